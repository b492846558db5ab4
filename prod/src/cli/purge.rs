//! `twinshard purge`: deletes the data of servers that are no longer in the cluster.

use super::Failure;
use clap::Args;
use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
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
    /// If the cluster runs, or the register cannot be read.
    pub fn run(self) -> Result<(), Failure> {
        let dir = &self.dir;
        let _lock = lock_stopped(dir)?;
        let live: BTreeSet<PathBuf> = crate::register::redb::servers(&dir.join("register.redb"))?
            .into_iter()
            .map(|(id, name)| crate::provision::process::server_dir(dir, id, &name))
            .collect();
        let mut retired = Vec::new();
        match std::fs::read_dir(dir.join("servers")) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry?.path();
                    if !live.contains(&path) {
                        retired.push(path);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        retired.sort();
        if retired.is_empty() {
            println!("Nothing to delete.");
            return Ok(());
        }
        println!("Data of servers that are no longer in the cluster:");
        for path in &retired {
            println!("  {}", path.display());
        }
        if !self.yes {
            if !io::stdin().is_terminal() {
                return Err(Failure::new("nothing was deleted: there is no terminal to ask at; --yes deletes without asking"));
            }
            if !confirmed(retired.len())? {
                return Err(Failure::new("nothing was deleted"));
            }
        }
        for path in &retired {
            std::fs::remove_dir_all(path).map_err(|error| Failure::new(format!("could not delete {}: {error}", path.display())))?;
        }
        println!("Deleted {}.", retired.len());
        Ok(())
    }
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
