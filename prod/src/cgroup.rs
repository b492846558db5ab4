//! What the container that this process runs in leaves it: its control group's limit of memory, of both versions of control groups.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The most memory that this process may take, in bytes, if something bounds it.
#[must_use]
pub fn memory_max() -> Option<u64> {
    memory_max_of(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

/// `groups` has a line `number:controllers:path` for each hierarchy; version 2 names no controller.
fn memory_max_of(root: &Path, groups: &str) -> Option<u64> {
    let of_memory = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        if controllers.is_empty() {
            Some((root.to_owned(), path, "memory.max"))
        } else {
            controllers.split(',').any(|name| name == "memory").then(|| (root.join("memory"), path, "memory.limit_in_bytes"))
        }
    });
    // A container sees its own group as the root, whatever the path says; beyond that every group above bounds, too.
    of_memory.flat_map(|(root, path, file)| limits(&root, path, file)).min()
}

fn limits(root: &Path, path: &str, file: &str) -> Vec<u64> {
    let mut dirs = vec![root.to_owned()];
    let mut dir: PathBuf = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        dir = dir.join(part);
        dirs.push(dir.clone());
    }
    let read = |dir: PathBuf| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    // Version 1 says that nothing bounds with a number that no machine has; version 2 with a word.
    dirs.into_iter().filter_map(read).filter(|limit| (1..1 << 60).contains(limit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_above_counts_in_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(memory_max_of(root, "0::/\n"), None);
        write("memory.max", "max\n");
        write("a/memory.max", "536870912\n");
        write("a/b/memory.max", "1073741824\n");
        assert_eq!(memory_max_of(root, "0::/\n"), None);
        assert_eq!(memory_max_of(root, "0::/a/b\n"), Some(512 << 20));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_max_of(root, "5:cpu,memory:/docker/1\n1:name=systemd:/docker/1\n"), None);
        write("memory/memory.limit_in_bytes", "268435456\n");
        assert_eq!(memory_max_of(root, "5:cpu,memory:/docker/1\n"), Some(256 << 20), "a container sees its own group as the root");
        assert_eq!(memory_max_of(root, ""), None);
    }
}
