//! `twinshard recover`: a lost register, made anew from what the servers of a stopped cluster remember.

#[cfg(feature = "docker")]
mod deployed;

use super::{Failure, purge::lock_stopped, up::cluster_id};
use crate::{
    disk::{Disk, RealDisk},
    log::{
        LogError,
        file::{FileLog, LOG_FILE, LogState},
    },
    register::{Register as _, RegisterError, redb::RedbRegister},
};
use clap::Args;
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use twinshard_core::{
    command::Command,
    id::{ClusterId, MapVersion, ServerId},
    recover::{Found, FoundReplica, Rebuilt, rebuild},
};

/// Makes a lost or damaged register anew from what the servers remember. The cluster must be stopped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard recover --dir data --dry-run
  twinshard recover --dir data && twinshard up --dir data
  make down && twinshard recover --deployment twinshard && make all

It reads the servers' logs and changes nothing in them. They are below DIR/servers, in DIR/store of a server on its own, or in the volumes of a
deployment on Docker. Each server keeps the newest cluster map that it has seen and, of each replica, what it promised and the configurations
that it served in. A configuration comes back if enough of its members agree that none after it can have served. Where that cannot be shown,
nothing is written: find the data of the servers that it names. A register that is whole is left alone; one that is damaged, or older than what
servers have seen, as one that was restored from a copy, is kept as register.redb.damaged, or as the table register_damaged.")]
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
        // A server on its own has no cluster's lock, but its store has one.
        let store = dir.join("store");
        let is_alone = store.join(LOG_FILE).exists();
        let _lock = if is_alone { None } else { Some(lock_stopped(dir)?) };
        if !dir.join("cluster").exists() {
            return Err(Failure::new(format!(
                "{} has no `cluster` file: without the cluster's id nothing can be recovered",
                dir.display()
            )));
        }
        let cluster = cluster_id(dir)?;
        let found = if is_alone { found_among([store], cluster)? } else { found_in(&dir.join("servers"), cluster)? };
        recover_file(dir, &found, cluster, self.dry_run)?;
        if !self.dry_run {
            let start = if is_alone { "server --standalone" } else { "up" };
            println!("`twinshard {start} --dir {}` goes on.", dir.display());
        }
        Ok(())
    }
}

/// A register in a file.
fn recover_file(dir: &Path, found: &BTreeMap<ServerId, Found>, cluster: ClusterId, dry_run: bool) -> Result<(), Failure> {
    let path = dir.join("register.redb");
    if path.exists() {
        let read = RedbRegister::open(&path, cluster).and_then(|mut register| register.read());
        println!("{}: {}", path.display(), wrong_with(&path.display(), read.map(|(version, _)| version), found)?);
    }
    let Some(rebuilt) = rebuilt(found, dry_run)? else { return Ok(()) };
    if path.exists() {
        let mut aside = path.with_extension("redb.damaged");
        let mut number = 1;
        while aside.exists() {
            number += 1;
            aside = path.with_extension(format!("redb.damaged-{number}"));
        }
        fs::rename(&path, &aside).map_err(|error| Failure::new(format!("could not move {} aside: {error}", path.display())))?;
        println!("It is kept as {}", aside.display());
    }
    RedbRegister::restore(&path, rebuilt.version, &rebuilt.map)?;
    println!("{} is made anew.", path.display());
    Ok(())
}

/// What is wrong with a register.
///
/// # Errors
/// If nothing is, or that cannot be told.
fn wrong_with(
    what: &dyn fmt::Display,
    read: Result<MapVersion, RegisterError>,
    found: &BTreeMap<ServerId, Found>,
) -> Result<String, Failure> {
    match (read, newest_told(found.values())) {
        (Ok(version), Some(newest)) if version < newest => Ok(format!("it went back from {newest} to {version}")),
        (Ok(_), _) => Err(Failure::new(format!("{what} is there and whole: there is nothing to recover"))),
        (Err(RegisterError::Damaged(reason)), _) => Ok(reason),
        (Err(error), _) => Err(Failure::new(format!("{what}: {error}"))),
    }
}

/// The newest map that a server was told of.
pub(super) fn newest_told<'a>(found: impl IntoIterator<Item = &'a Found>) -> Option<MapVersion> {
    found.into_iter().filter_map(|found| found.map.as_ref()).map(|(version, _)| *version).max()
}

/// What the servers remember; `None` if no more was asked than to say it.
fn rebuilt(found: &BTreeMap<ServerId, Found>, dry_run: bool) -> Result<Option<Rebuilt>, Failure> {
    println!("Servers found: {}", found.len());
    let rebuilt = rebuild(found).map_err(|error| Failure::new(format!("nothing was written: {error}")))?;
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

/// What the logs of the servers say that are below a directory.
fn found_in(servers: &Path, cluster: ClusterId) -> Result<BTreeMap<ServerId, Found>, Failure> {
    let entries = match fs::read_dir(servers) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(Failure::new(format!("could not read {}: {error}", servers.display()))),
    };
    let mut dirs = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    dirs.sort();
    found_among(dirs, cluster)
}

/// What the logs in these directories say. One that cannot be read is as one that is not there.
fn found_among(dirs: impl IntoIterator<Item = PathBuf>, cluster: ClusterId) -> Result<BTreeMap<ServerId, Found>, Failure> {
    let mut found = BTreeMap::new();
    for dir in dirs {
        found.extend(found_at(&dir, cluster)?);
    }
    Ok(found)
}

/// What the log in a directory says; `None` without one that can be read.
pub(super) fn found_at(dir: &Path, cluster: ClusterId) -> Result<Option<(ServerId, Found)>, Failure> {
    if !dir.join(LOG_FILE).exists() {
        return Ok(None);
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir)?);
    match FileLog::look(disk, cluster) {
        Ok((server, state)) => Ok(Some((server, remembered(&state)))),
        Err(LogError::Unreadable) => {
            println!("{}: its log is damaged, or was never written: it remembers nothing", dir.display());
            Ok(None)
        }
        Err(error) => Err(Failure::new(format!("{}: {error}", dir.display()))),
    }
}

fn remembered(state: &LogState) -> Found {
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

#[cfg(test)]
mod tests;
