//! Where a balancer has the register: the options, and the opening.

use super::{
    Failure,
    up::{open_register, register_is_where_its_data_is},
};
use crate::register::Register;
use clap::{Args, ValueEnum};
use std::path::Path;
use twinshard_core::id::ClusterId;

#[cfg(feature = "mysql")]
use std::time::Duration;
#[cfg(feature = "mysql")]
use tokio::time::{Instant, sleep};

#[cfg(feature = "mysql")]
use crate::{
    mysql::MysqlSettings,
    register::{
        RegisterError,
        mysql::{DATABASE, MysqlRegister},
    },
};

/// How long a balancer waits for a database that is down before it gives up, to be started again by whoever does that.
#[cfg(feature = "mysql")]
const DATABASE_PATIENCE: Duration = Duration::from_secs(25);
/// How often a router looks whether the register is made by now.
#[cfg(feature = "mysql")]
const MAKING_POLL: Duration = Duration::from_millis(500);
/// The file in a balancer's directory that says that the register in the database was made: it is never made a second time.
#[cfg(feature = "mysql")]
const MADE: &str = "register-made";

/// What keeps the register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RegisterArg {
    /// A file in the balancer's directory: for one balancer.
    #[default]
    Redb,
    /// A MySQL or MariaDB server: for several.
    #[cfg(feature = "mysql")]
    Mysql,
}

#[cfg(feature = "docker")]
impl RegisterArg {
    /// As it stands on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            #[cfg(feature = "mysql")]
            Self::Mysql => "mysql",
        }
    }
}

/// Where the register is.
#[derive(Clone, Debug, Args)]
pub struct RegisterArgs {
    /// What keeps the cluster map
    #[arg(long, value_enum, default_value_t)]
    pub register: RegisterArg,
    /// With --register mysql: where the database server is, mysql://USER@HOST:PORT/ [default: the deployment's own]
    #[cfg(feature = "mysql")]
    #[arg(long, value_name = "URL")]
    register_url: Option<String>,
    /// The file with the password of that user; readable by its owner only. Left out: none
    #[cfg(feature = "mysql")]
    #[arg(long, value_name = "FILE", requires = "register_url")]
    register_password_file: Option<std::path::PathBuf>,
    /// The name of the register's database
    #[cfg(feature = "mysql")]
    #[arg(long, value_name = "NAME", default_value = DATABASE)]
    register_name: String,
}

impl RegisterArgs {
    /// Whether there may be other balancers.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.register != RegisterArg::Redb
    }

    /// Where the database is that the options name.
    #[cfg(feature = "mysql")]
    pub(super) fn settings(&self) -> Result<MysqlSettings, Failure> {
        let Some(url) = &self.register_url else {
            return Err(Failure::usage("--register mysql needs --register-url, except in a deployment on Docker"));
        };
        let password = super::rows::password(self.register_password_file.as_deref())?;
        MysqlSettings::new(url, &password, &self.register_name).map_err(Failure::usage)
    }

    /// Opens the register that the options name. One in a database is made, where it never was, by a balancer that `may_make` it.
    ///
    /// # Errors
    /// If it cannot be opened, or the directory's data is that of another register.
    pub(super) async fn open(&self, dir: &Path, cluster: ClusterId, may_make: bool) -> Result<Box<dyn Register>, Failure> {
        // One in a file is made with its directory.
        let _ = may_make;
        match self.register {
            RegisterArg::Redb => open_file(dir, cluster),
            #[cfg(feature = "mysql")]
            RegisterArg::Mysql => open_database(self.settings()?, dir, cluster, may_make).await,
        }
    }

    /// As [`Self::open`]; where the options name no database it is the deployment's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(feature = "docker")]
    pub(super) async fn open_deployed(
        &self,
        provisioner: &crate::provision::docker::DockerProvisioner,
        dir: &Path,
        cluster: ClusterId,
        may_make: bool,
    ) -> Result<Box<dyn Register>, Failure> {
        #[cfg(feature = "mysql")]
        if self.register == RegisterArg::Mysql
            && self.register_url.is_none()
            && let Some(settings) = provisioner.register_settings().map_err(Failure::new)?
        {
            if let Err(error) = provisioner.bring_register_up().await {
                // Another balancer may be doing it.
                tracing::warn!(%error, "the register's database could not be brought up; waiting for it");
            }
            return open_database(settings, dir, cluster, may_make).await;
        }
        self.open(dir, cluster, may_make).await
    }
}

/// Opens the register in the directory.
///
/// # Errors
/// If it cannot be opened, or is gone while the data is there.
pub(super) fn open_file(dir: &Path, cluster: ClusterId) -> Result<Box<dyn Register>, Failure> {
    register_is_where_its_data_is(dir)?;
    Ok(Box::new(open_register(dir, cluster)?))
}

/// Opens the register in the database, and makes it if it may and it never was there, which the directory tells; if it may not, it waits
/// for another to make it. On a thread: it waits for a database that is down.
///
/// # Errors
/// If it cannot be opened, is empty although it was made, or the directory has a register of its own.
#[cfg(feature = "mysql")]
async fn open_database(mut settings: MysqlSettings, dir: &Path, cluster: ClusterId, may_make: bool) -> Result<Box<dyn Register>, Failure> {
    if dir.join("register.redb").exists() {
        return Err(Failure::new(format!(
            "{} has its register in register.redb, which cannot be changed: leave --register out, or give another --dir",
            dir.display()
        )));
    }
    settings.patience = DATABASE_PATIENCE;
    let made = dir.join(MADE);
    let is_made = made.exists();
    let deadline = Instant::now() + DATABASE_PATIENCE;
    let opened = loop {
        let settings = settings.clone();
        match on_thread(move || opened(&settings, cluster, may_make && !is_made)).await? {
            Err(RegisterError::Damaged(_)) if !is_made && !may_make && Instant::now() < deadline => sleep(MAKING_POLL).await,
            opened => break opened,
        }
    };
    let register = opened.map_err(|error| {
        let hint = match error {
            RegisterError::Damaged(_) => "; make it anew from what the servers remember (`make recover`)",
            RegisterError::Failed(_) => "",
        };
        Failure::new(format!("{error}{hint}"))
    })?;
    if !is_made {
        remember_made(dir)?;
    }
    Ok(Box::new(register))
}

/// Where it is not to be made, an empty database is one that lost what it had.
#[cfg(feature = "mysql")]
fn opened(settings: &MysqlSettings, cluster: ClusterId, makes: bool) -> Result<MysqlRegister, RegisterError> {
    let initial = twinshard_core::map::ClusterMap { cluster, ..Default::default() };
    if makes { MysqlRegister::open_or_make(settings, &initial) } else { MysqlRegister::open(settings, cluster) }
}

/// Writes down that the register in the database was made.
#[cfg(feature = "mysql")]
pub(super) fn remember_made(dir: &Path) -> Result<(), Failure> {
    let made = dir.join(MADE);
    let failed = |error: std::io::Error| Failure::new(format!("could not write {}: {error}", made.display()));
    std::fs::File::create(&made).and_then(|file| file.sync_all()).map_err(failed)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// What speaks with a database blocks, and not on a thread of ours.
#[cfg(feature = "mysql")]
pub(super) async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let (send, done) = tokio::sync::oneshot::channel();
    // Nobody waits for it any more if it cannot be sent.
    std::thread::Builder::new().name("opening".to_owned()).spawn(move || drop(send.send(work())))?;
    Ok(done.await?)
}

#[cfg(all(test, feature = "mysql"))]
mod tests {
    use super::*;
    use crate::mysql::test_server::Server;

    #[tokio::test]
    async fn a_register_is_made_once_and_only_by_a_balancer_that_may() {
        let Some(server) = Server::start() else { return };
        let settings = server.settings("r");
        let cluster = ClusterId(7);
        let asked = settings.clone();
        let router = on_thread(move || opened(&asked, cluster, false)).await.expect("asked");
        assert!(matches!(router, Err(RegisterError::Damaged(_))), "{router:?}");
        let dirs = [0; 3].map(|_| tempfile::tempdir().expect("a directory"));
        // It waits until another has made it.
        let waits = open_database(settings.clone(), dirs[0].path(), cluster, false);
        let makes = open_database(settings.clone(), dirs[1].path(), cluster, true);
        let (waited, made) = tokio::join!(waits, makes);
        assert!(waited.is_ok() && made.is_ok());
        assert!(dirs[0].path().join(MADE).exists() && dirs[1].path().join(MADE).exists());
        // Emptied, it is made by nobody who has seen it.
        let asked = settings.clone();
        let aside = on_thread(move || MysqlRegister::set_aside(&asked)).await.expect("asked").expect("set aside");
        assert_eq!(aside.as_deref(), Some("register_damaged"));
        let refused = open_database(settings, dirs[1].path(), cluster, true).await.err().expect("it is empty");
        assert!(refused.to_string().contains("recover"), "{refused}");
    }
}
