//! Files that appear whole or not at all: written aside, synced, and then put in place. Of several that start at once one wins.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A path beside this one that nobody else uses: in containers every process may have the same number.
///
/// # Errors
/// If the system has no entropy.
pub fn beside(path: &Path) -> io::Result<PathBuf> {
    let drawn = getrandom::u64().map_err(io::Error::other)?;
    Ok(path.with_extension(format!("new.{drawn:016x}")))
}

/// Makes a file for its owner only, with this text. `false` if there is one already, which stays as it is.
///
/// # Errors
/// If it cannot be written; there is none then.
pub fn create(path: &Path, text: &str) -> io::Result<bool> {
    let aside = beside(path)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| fs::hard_link(&aside, path));
    fs::remove_file(&aside)?;
    match linked {
        Ok(()) => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(dir)?.sync_all()?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn of_those_that_make_a_file_at_once_one_wins_and_nothing_is_left_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let made: Vec<bool> = std::thread::scope(|scope| {
            let makers: Vec<_> =
                (0..8).map(|number| (number, &path)).map(|(number, path)| scope.spawn(move || create(path, &number.to_string()))).collect();
            makers.into_iter().map(|maker| maker.join().expect("no panic").expect("made")).collect()
        });
        assert_eq!(made.iter().filter(|made| **made).count(), 1);
        let winner = made.iter().position(|made| *made).expect("one");
        assert_eq!(fs::read_to_string(&path).expect("there"), winner.to_string());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
        assert!(create(&dir.path().join("none/file"), "").is_err());
    }
}
