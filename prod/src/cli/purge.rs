//! `twinshard purge`: deletes the data of servers that are no longer in the cluster.

use super::{
    Failure,
    recover::{found_at, newest_told},
};
use clap::Args;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, TryLockError},
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};
use twinshard_core::{
    id::{ClusterId, MapVersion},
    map::ClusterMap,
    recover::Found,
};

/// Deletes the data that removed servers left on disk. The cluster must be stopped.
#[derive(Debug, Args)]
#[command(after_help = "Lists what it would delete and asks first when it runs at a terminal; without one it needs --yes.")]
pub struct Purge {
    /// The cluster's directory
    #[arg(long, default_value = "data")]
    dir: PathBuf,
    /// Delete without asking
    #[arg(long)]
    yes: bool,
}

impl Purge {
    /// Runs it.
    ///
    /// # Errors
    /// If the cluster runs, or the register cannot be read or is older than what servers remember.
    pub fn run(self) -> Result<(), Failure> {
        let dir = &self.dir;
        let _lock = lock_stopped(dir)?;
        let (version, map) = crate::register::redb::look(&dir.join("register.redb"))?;
        let dirs = look_at_logs(&dir.join("servers"), map.cluster)?;
        refuse_old_register(version, &map, &dirs)?;
        let live: BTreeSet<PathBuf> =
            map.servers.iter().map(|(id, record)| crate::provision::process::server_dir(dir, *id, &record.name)).collect();
        let retired: Vec<_> = dirs.iter().filter(|(path, _)| !live.contains(*path)).collect();
        if retired.is_empty() {
            println!("Nothing to delete.");
            return Ok(());
        }
        println!("Data of servers that are no longer in the cluster:");
        for (path, found) in &retired {
            println!("  {}: {}", path.display(), contents(found.as_ref(), &map));
        }
        if !self.yes {
            if !io::stdin().is_terminal() {
                return Err(Failure::new("nothing was deleted: there is no terminal to ask at; --yes deletes without asking"));
            }
            if !confirmed(retired.len())? {
                return Err(Failure::new("nothing was deleted"));
            }
        }
        for (path, _) in &retired {
            std::fs::remove_dir_all(path).map_err(|error| Failure::new(format!("could not delete {}: {error}", path.display())))?;
        }
        println!("Deleted {}.", retired.len());
        Ok(())
    }
}

/// The directories of servers, with what their logs remember, where they can be read.
fn look_at_logs(servers: &Path, cluster: ClusterId) -> Result<BTreeMap<PathBuf, Option<Found>>, Failure> {
    let entries = match std::fs::read_dir(servers) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut dirs = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let found = found_at(&path, cluster)?.map(|(_, found)| found);
        dirs.insert(path, found);
    }
    Ok(dirs)
}

/// To a register that is older than what servers remember, as one restored from a copy, servers that were added since are unknown: it
/// would have their data deleted.
fn refuse_old_register(version: MapVersion, map: &ClusterMap, dirs: &BTreeMap<PathBuf, Option<Found>>) -> Result<(), Failure> {
    let recover = "Nothing was deleted. `twinshard recover --dry-run` says what the servers remember";
    if let Some(told) = newest_told(dirs.values().flatten()).filter(|told| version < *told) {
        return Err(Failure::new(format!("the register went back from {told} to {version}: it does not know every server. {recover}")));
    }
    for (path, found) in dirs {
        let unknown = found.iter().flat_map(|found| found.replicas.keys()).find(|replica| **replica > map.counters.replica);
        if let Some(replica) = unknown {
            return Err(Failure::new(format!(
                "{} holds {replica}, which is newer than all that the register knows: it went back. {recover}",
                path.display()
            )));
        }
    }
    Ok(())
}

/// What would be deleted with a directory.
fn contents(found: Option<&Found>, map: &ClusterMap) -> String {
    let Some(found) = found else { return "no log that can be read".to_owned() };
    let replicas = found.replicas.iter().map(|(id, replica)| {
        let known = map.shards.get(&replica.shard).map(|shard| format!("shard {}", shard.name));
        let shard = known.unwrap_or_else(|| format!("the former shard {}", replica.shard));
        let damaged = if replica.damaged { ", damaged" } else { "" };
        format!("{id} of {shard} up to {}{damaged}", replica.last)
    });
    let replicas: Vec<String> = replicas.collect();
    if replicas.is_empty() { "no replica".to_owned() } else { replicas.join("; ") }
}

/// Takes the directory of a cluster that is stopped; it stays so until this is dropped.
pub(super) fn lock_stopped(dir: &Path) -> Result<File, Failure> {
    let lock =
        File::open(dir.join("lock")).map_err(|error| Failure::new(format!("{} is no cluster's directory: {error}", dir.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Failure::new(format!("the cluster in {} runs: stop `twinshard up` first", dir.display()))),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn confirmed(count: usize) -> io::Result<bool> {
    print!("Delete these {count} for good? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use twinshard_core::{id::ReplicaId, recover::FoundReplica};

    #[test]
    fn register_that_is_older_than_what_servers_remember_deletes_nothing() {
        let refused = |version: u64, told: u64, replica: u64| {
            let mut map = ClusterMap::default();
            map.counters.replica = ReplicaId(3);
            let mut found = Found { map: Some((MapVersion(told), Arc::default())), ..Found::default() };
            found.replicas.insert(ReplicaId(replica), FoundReplica::default());
            let dirs = BTreeMap::from([(PathBuf::from("servers/S6-s4"), Some(found)), (PathBuf::from("servers/S7-s5"), None)]);
            refuse_old_register(MapVersion(version), &map, &dirs).err().map(|failure| failure.to_string())
        };
        assert_eq!((refused(9, 9, 3), refused(10, 9, 3)), (None, None));
        let words = refused(9, 24, 3).unwrap();
        assert!(words.contains("went back from v24 to v9") && words.contains("Nothing was deleted"), "{words}");
        // The server was added and never told of a map.
        let words = refused(9, 9, 4).unwrap();
        assert!(words.contains("S6-s4 holds r4"), "{words}");
    }
}
