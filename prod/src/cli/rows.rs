//! Where a server keeps its rows: the options, and the opening. The log is always a file of its own.

use super::Failure;
#[cfg(feature = "mysql")]
use crate::mysql::MysqlSettings;
use crate::{
    disk::Disk,
    log::file::Identity,
    rows::{RecoverRows, redb::RedbRows},
    store::{self, Opened},
};
use clap::{Args, ValueEnum};
use std::{sync::Arc, thread};
use tokio::sync::oneshot;
use twinshard_core::id::OwnerNumber;

/// How long a server waits for a database that is down: less than whoever starts it waits for the server.
#[cfg(feature = "mysql")]
const DATABASE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(25);
/// The longest password, with its end of line.
#[cfg(feature = "mysql")]
const PASSWORD_BYTES_MAX: u64 = 1_024;

/// What keeps the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RowsArg {
    /// A file in the server's directory.
    Redb,
    /// A MySQL or MariaDB server, with a database for every replica.
    #[cfg(feature = "mysql")]
    Mysql,
}

/// Where the rows are.
#[derive(Clone, Debug, Args)]
pub struct RowsArgs {
    /// What keeps the rows
    #[arg(long, value_enum, default_value_t = RowsArg::Redb)]
    rows: RowsArg,
    /// With --rows mysql: where the database server is, mysql://USER@HOST:PORT/
    #[cfg(feature = "mysql")]
    #[arg(long, value_name = "URL", required_if_eq("rows", "mysql"))]
    database_url: Option<String>,
    /// The file with the password of that user; readable by its owner only. Left out: none
    #[cfg(feature = "mysql")]
    #[arg(long, value_name = "FILE", requires = "database_url")]
    database_password_file: Option<std::path::PathBuf>,
    /// The name of the control database, with which all others begin: every server that shares a database server has its own
    #[cfg(feature = "mysql")]
    #[arg(long, value_name = "NAME", default_value = crate::rows::mysql::PREFIX)]
    database_name: String,
}

impl RowsArgs {
    /// Opens log and rows, on a thread: it may wait for a database.
    pub(super) async fn open(
        &self,
        disk: Arc<dyn Disk>,
        identity: Identity,
        first_owner: OwnerNumber,
    ) -> Result<Opened<Box<dyn RecoverRows>>, Failure> {
        #[cfg(feature = "mysql")]
        let settings = self.settings()?;
        let (send, opened) = oneshot::channel();
        let open = move || {
            let rows = |owner| -> Result<Box<dyn RecoverRows>, _> {
                #[cfg(feature = "mysql")]
                if let Some(settings) = settings {
                    let unknown = Box::new(|_| None);
                    return Ok(Box::new(crate::rows::mysql::MysqlRows::open(&settings, identity, owner, unknown)?));
                }
                Ok(Box::new(RedbRows::open(Arc::clone(&disk), identity, owner)?))
            };
            // Nobody waits for it any more if it cannot be sent: then it closes.
            drop(send.send(store::open_with(&disk, identity, first_owner, rows)));
        };
        thread::Builder::new().name("opening".to_owned()).spawn(open)?;
        Ok(opened.await??)
    }

    #[cfg(feature = "mysql")]
    fn settings(&self) -> Result<Option<MysqlSettings>, Failure> {
        let (RowsArg::Mysql, Some(url)) = (self.rows, &self.database_url) else { return Ok(None) };
        let password = password(self.database_password_file.as_deref())?;
        let mut settings = MysqlSettings::new(url, &password, &self.database_name).map_err(Failure::new)?;
        settings.patience = DATABASE_PATIENCE;
        Ok(Some(settings))
    }
}

/// What the file holds, that only its owner may read; nothing where there is none.
#[cfg(feature = "mysql")]
pub(super) fn password(file: Option<&std::path::Path>) -> Result<String, Failure> {
    let text = file.map(|file| crate::secret::private_text(file, PASSWORD_BYTES_MAX)).transpose()?.unwrap_or_default();
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
