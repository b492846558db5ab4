//! `twinshard recover`: a lost register, made anew from what the servers of a stopped cluster remember.

#[cfg(feature = "docker")]
mod deployed;

use super::{Failure, purge::lock_stopped, up::cluster_id};
use crate::{
    disk::{Disk, RealDisk},
    log::file::{FileLog, Identity, LOG_FILE},
    register::{RegisterError, redb::RedbRegister},
};
use clap::Args;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use twinshard_core::{
    command::Command,
    id::{ClusterId, OwnerNumber, ServerId},
    recover::{Found, FoundReplica, Rebuilt, rebuild},
};

/// Makes a lost or damaged register anew from what the servers remember. The cluster must be stopped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard recover --dir data --dry-run
  twinshard recover --dir data && twinshard up --dir data
  make down && twinshard recover --deployment twinshard && make all

It reads the servers' logs, which are below DIR/servers, or in the volumes of a deployment on Docker. Each server keeps the newest cluster map
that it has seen and, of each replica, what it promised and the configurations that it served in. A configuration comes back if enough of its
members agree that none after it can have served. Where that cannot be shown, nothing is written: find the data of the servers that it names,
or restore the register from a copy. A register that is whole is left alone; a damaged one is kept as register.redb.damaged, or as the table
register_damaged.")]
pub struct Recover {
    /// The cluster's directory
    #[arg(long, default_value = "data")]
    dir: PathBuf,
    /// The deployment on Docker, instead of a directory
    #[cfg(feature = "docker")]
    #[arg(long, value_name = "NAME", conflicts_with = "dir")]
    deployment: Option<String>,
    /// In a container of the deployment: what it is to know
    #[cfg(feature = "docker")]
    #[command(flatten)]
    inside: deployed::Inside,
    /// Only say what would come back
    #[arg(long)]
    dry_run: bool,
}

impl Recover {
    /// Runs it.
    ///
    /// # Errors
    /// If the cluster runs, the register is there and whole, or the servers do not remember enough.
    pub async fn run(self) -> Result<(), Failure> {
        #[cfg(feature = "docker")]
        if let Some(name) = &self.deployment {
            return match self.inside.cluster() {
                Some(cluster) => self.inside.run(name, cluster, self.dry_run).await,
                None => deployed::run(name, self.dry_run).await,
            };
        }
        let dir = &self.dir;
        let _lock = lock_stopped(dir)?;
        if !dir.join("cluster").exists() {
            return Err(Failure::new(format!(
                "{} has no `cluster` file: without the cluster's id nothing can be recovered",
                dir.display()
            )));
        }
        recover_file(dir, &dir.join("servers"), cluster_id(dir)?, self.dry_run)?;
        if !self.dry_run {
            println!("`twinshard up --dir {}` goes on.", dir.display());
        }
        Ok(())
    }
}

/// A register in a file.
fn recover_file(dir: &Path, servers: &Path, cluster: ClusterId, dry_run: bool) -> Result<(), Failure> {
    let path = dir.join("register.redb");
    let is_damaged = path.exists()
        && match RedbRegister::open(&path, cluster) {
            Ok(_) => return Err(Failure::new(format!("{} is there and whole: there is nothing to recover", path.display()))),
            Err(RegisterError::Damaged(_)) => true,
            Err(error) => return Err(Failure::new(format!("{}: {error}", path.display()))),
        };
    let Some(rebuilt) = rebuilt(servers, cluster, dry_run)? else { return Ok(()) };
    if is_damaged {
        let aside = path.with_extension("redb.damaged");
        fs::rename(&path, &aside).map_err(|error| Failure::new(format!("could not move {} aside: {error}", path.display())))?;
        println!("The damaged register is kept as {}", aside.display());
    }
    RedbRegister::restore(&path, rebuilt.version, &rebuilt.map)?;
    println!("{} is made anew.", path.display());
    Ok(())
}

/// What the servers remember; `None` if no more was asked than to say it.
fn rebuilt(servers: &Path, cluster: ClusterId, dry_run: bool) -> Result<Option<Rebuilt>, Failure> {
    let found = found_in(servers, cluster)?;
    println!("Servers found: {}", found.len());
    let rebuilt = rebuild(&found).map_err(|error| Failure::new(format!("nothing was written: {error}")))?;
    describe(&rebuilt);
    if dry_run {
        println!("Nothing was written.");
        return Ok(None);
    }
    Ok(Some(rebuilt))
}

fn describe(rebuilt: &Rebuilt) {
    println!("The newest map that a server has seen is version {}; it goes on as version {}", rebuilt.seen.0, rebuilt.version.0);
    for shard in &rebuilt.shards {
        let newer = if shard.is_newer_than_map { " (newer than that map)" } else { "" };
        match &shard.current {
            Some(config) => println!("  {}: {config}{newer}", shard.name),
            None => println!("  {}: never served", shard.name),
        }
    }
}

/// What the logs of the servers say, in directories `NAME-ID`.
fn found_in(servers: &Path, cluster: ClusterId) -> Result<BTreeMap<ServerId, Found>, Failure> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(servers) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(Failure::new(format!("could not read {}: {error}", servers.display()))),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(id) = name.rsplit_once("-s").and_then(|(_, id)| id.parse().ok()).map(ServerId) else { continue };
        if !path.join(LOG_FILE).exists() {
            continue; // It remembers nothing.
        }
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&path)?);
        // The owner matters to a new log alone, and this one is there.
        let log = FileLog::open(disk, Identity { cluster, server: id }, OwnerNumber(1))
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        found.insert(id, remembered(&log));
    }
    Ok(found)
}

fn remembered(log: &FileLog) -> Found {
    let state = log.state();
    let mut found = Found { map: state.map.clone(), ..Found::default() };
    for (id, replica) in &state.replicas {
        let barriers = replica.entries.iter().filter_map(|entry| match &entry.command {
            Command::Barrier(config) => Some(config.clone()),
            Command::Operations(_) | Command::CloseSession(_) => None,
        });
        let sessions = replica.entries.iter().filter_map(|entry| entry.request).map(|request| request.session);
        found.session = found.session.max(sessions.max().unwrap_or_default());
        let last = replica.entries.last().map_or(replica.base, |entry| entry.position);
        let (shard, promised, damaged) = (replica.shard, replica.promised, replica.damaged);
        found.replicas.insert(*id, FoundReplica { shard, promised, last, barriers: barriers.collect(), damaged });
    }
    found
}
