//! The connection to the database server: made when it is needed, thrown away at the first error, made again with back-off. Never sends
//! a statement twice: what is repeated is a whole command, by whoever gave it.

use futures_util::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions, MySql, Row,
    mysql::{MySqlArguments, MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow},
    query::Query,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Runtime, time::Instant};
use twinshard_core::storage::LostReason;

/// How long a connection may take until it can be used. A guess.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first failure keeps from trying again; every further one doubles it. A guess.
const BACK_OFF: Duration = Duration::from_millis(100);
/// The longest it becomes.
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// How long a statement waits for a lock, in seconds. Nobody else has any business in these tables.
const LOCK_WAIT_S: u32 = 3;
/// How many statements stay prepared: about 40 for every replica that is at work.
const PREPARED_MAX: usize = 1_024;
/// About the most bytes of one statement, unless the server takes fewer: the length at which the protocol begins to split packets, halved.
const STATEMENT_BYTES_MAX: usize = 8 << 20;

/// Why a command could not be done.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The replica is lost.
    Lost(LostReason),
    /// The store is no longer ours.
    TakenOver,
    /// The control database is not there, or is empty.
    NoControl,
    /// The server cannot do it now.
    Down(String),
    /// It never will: told at opening.
    Refused(String),
}

// Error numbers that MySQL and MariaDB share.
const TOO_MANY_CONNECTIONS: u16 = 1040;
const NO_DATABASE_RIGHT: u16 = 1044;
const WRONG_PASSWORD: u16 = 1045;
const DATABASE_EXISTS: u16 = 1007;
const TABLE_EXISTS: u16 = 1050;
const NO_SUCH_DATABASE: u16 = 1049;
const NO_SUCH_COLUMN: u16 = 1054;
const NO_SUCH_TABLE: u16 = 1146;
const NO_TABLE_RIGHT: u16 = 1142;
const NO_SUCH_TABLE_IN_ENGINE: u16 = 1932;
/// Tables and indexes that the server itself finds damaged.
const DAMAGED: [u16; 8] = [126, 127, 1034, 1194, 1195, 1712, 1812, 1877];

fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// Whether there is such a database or table already.
pub(crate) fn is_there_already(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(DATABASE_EXISTS | TABLE_EXISTS))
}

/// Whether the table or its database is not there.
pub(crate) fn is_missing(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(NO_SUCH_DATABASE | NO_SUCH_TABLE))
}

/// Whether the server is there and does not want us.
fn is_refusal(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(WRONG_PASSWORD | NO_DATABASE_RIGHT | NO_TABLE_RIGHT))
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        match number(&error) {
            Some(NO_SUCH_DATABASE | NO_SUCH_TABLE | NO_SUCH_TABLE_IN_ENGINE) => Self::Lost(LostReason::RowsMissing),
            Some(NO_SUCH_COLUMN) => Self::Lost(LostReason::RowsDamaged),
            Some(number) if DAMAGED.contains(&number) => Self::Lost(LostReason::RowsDamaged),
            Some(TOO_MANY_CONNECTIONS) | None => match error {
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. } => Self::Lost(LostReason::RowsDamaged),
                other => Self::Down(other.to_string()),
            },
            Some(_) if is_refusal(&error) => Self::Refused(error.to_string()),
            Some(_) => Self::Down(error.to_string()),
        }
    }
}

/// A statement with its parameters.
pub(crate) type Statement = Query<'static, MySql, MySqlArguments>;

/// A statement whose text this module made: names are quoted, values are bound.
pub(crate) fn statement(text: String) -> Statement {
    sqlx::query(AssertSqlSafe(text))
}

/// Burns down before every statement and after every change, for tests of a process that dies in the middle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fuse(Option<Arc<AtomicI64>>);

impl Fuse {
    #[cfg(test)]
    pub(crate) fn new(left: Arc<AtomicI64>) -> Self {
        Self(Some(left))
    }

    fn burn(&self) -> Result<(), sqlx::Error> {
        match &self.0 {
            Some(left) if left.fetch_sub(1, Ordering::SeqCst) <= 0 => Err(sqlx::Error::WorkerCrashed),
            _ => Ok(()),
        }
    }

    pub(crate) fn is_burnt(&self) -> bool {
        self.0.as_ref().is_some_and(|left| left.load(Ordering::SeqCst) < 0)
    }
}

/// One connection.
pub(crate) struct Link {
    inner: MySqlConnection,
    options: MySqlConnectOptions,
    fuse: Fuse,
    /// About the most bytes of one statement.
    pub(crate) statement_bytes_max: usize,
    /// Why what is committed may not be durable.
    pub(crate) not_durable: Option<&'static str>,
}

impl Link {
    async fn connect(options: &MySqlConnectOptions, fuse: &Fuse) -> Result<Self, sqlx::Error> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, Self::connect_at_last(options, fuse)).await;
        connected.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?
    }

    async fn connect_at_last(options: &MySqlConnectOptions, fuse: &Fuse) -> Result<Self, sqlx::Error> {
        let inner = options.connect().await?;
        let mut link =
            Self { inner, options: options.clone(), fuse: fuse.clone(), statement_bytes_max: STATEMENT_BYTES_MAX, not_durable: None };
        // Whatever the server's own settings are: without `autocommit` nothing is kept that is outside of a transaction.
        link.raw(format!(
            "SET SESSION autocommit = 1, SESSION completion_type = 'NO_CHAIN', \
             SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', SESSION lock_wait_timeout = {LOCK_WAIT_S}, \
             SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}, SESSION wait_timeout = 86400"
        ))
        .await?;
        link.raw("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ".to_owned()).await?;
        if let Some(row) = link.row(statement("SELECT CAST(@@max_allowed_packet AS UNSIGNED)".to_owned())).await? {
            let packet: u64 = row.try_get_unchecked(0)?;
            link.statement_bytes_max = STATEMENT_BYTES_MAX.min(usize::try_from(packet / 2).unwrap_or(STATEMENT_BYTES_MAX));
        }
        link.not_durable = link.durability().await?;
        if let Some(reason) = link.not_durable {
            tracing::warn!(reason, "the database may lose what it says is durable");
        }
        Ok(link)
    }

    /// Why what is committed may not be durable. A server that keeps a binary log goes by it after a crash: what it lacks is undone.
    async fn durability(&mut self) -> Result<Option<&'static str>, sqlx::Error> {
        let named = "'innodb_flush_log_at_trx_commit', 'log_bin', 'sync_binlog'";
        let mut settings = BTreeMap::new();
        for row in self.rows(statement(format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN ({named})"))).await? {
            let (name, value): (String, String) = (row.try_get_unchecked(0)?, row.try_get_unchecked(1)?);
            settings.insert(name.to_ascii_lowercase(), value);
        }
        let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
        if !is("innodb_flush_log_at_trx_commit", "1") {
            return Ok(Some("innodb_flush_log_at_trx_commit has to be 1"));
        }
        Ok((is("log_bin", "ON") && !is("sync_binlog", "1")).then_some("sync_binlog has to be 1, as it keeps a binary log"))
    }

    /// Another connection to the same server.
    pub(crate) async fn another(&self) -> Result<Self, Trouble> {
        Ok(Self::connect(&self.options, &self.fuse).await?)
    }

    /// A statement without parameters, or several separated by semicolons.
    pub(crate) async fn raw(&mut self, text: String) -> Result<(), sqlx::Error> {
        self.fuse.burn()?;
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut self.inner).await?;
        self.fuse.burn()
    }

    /// How many rows it changed.
    pub(crate) async fn change(&mut self, statement: Statement) -> Result<u64, sqlx::Error> {
        self.fuse.burn()?;
        let count = statement.execute(&mut self.inner).await?.rows_affected();
        self.fuse.burn().map(|()| count)
    }

    /// The first row, if there is one.
    pub(crate) async fn row(&mut self, statement: Statement) -> Result<Option<MySqlRow>, sqlx::Error> {
        self.fuse.burn()?;
        statement.fetch_optional(&mut self.inner).await
    }

    /// All rows.
    pub(crate) async fn rows(&mut self, statement: Statement) -> Result<Vec<MySqlRow>, sqlx::Error> {
        self.fuse.burn()?;
        statement.fetch_all(&mut self.inner).await
    }

    /// Rows as they come, one at a time, as long as they are taken; what is not is skipped when the connection is used next. How many came.
    pub(crate) async fn each(
        &mut self,
        statement: Statement,
        mut take: impl FnMut(&MySqlRow) -> Result<bool, Trouble>,
    ) -> Result<usize, Trouble> {
        self.fuse.burn()?;
        let mut rows = statement.fetch(&mut self.inner);
        let mut count = 0;
        while let Some(row) = rows.try_next().await? {
            count += 1;
            if !take(&row)? {
                break;
            }
        }
        Ok(count)
    }

    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.raw("COMMIT".to_owned()).await
    }
}

/// The database server as the store's thread sees it.
pub(crate) struct Database {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    options: MySqlConnectOptions,
    fuse: Fuse,
    link: Option<Link>,
    /// Raised by every connection that was made: what is remembered of one does not hold for the next.
    pub(crate) generation: u64,
    failure_count: u32,
    last_failure: String,
    not_before: Option<Instant>,
}

impl Drop for Database {
    fn drop(&mut self) {
        self.link = None;
        // Dropped on a thread that runs another runtime, it must not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Database {
    pub(crate) fn new(options: MySqlConnectOptions, fuse: Fuse) -> Result<Self, std::io::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = options.disable_statement_logging().statement_cache_capacity(PREPARED_MAX);
        Ok(Self {
            runtime: Some(runtime),
            options,
            fuse,
            link: None,
            generation: 0,
            failure_count: 0,
            last_failure: String::new(),
            not_before: None,
        })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.options.get_host(), self.options.get_port())
    }

    /// Whether a test let the process die.
    pub(crate) fn is_dead(&self) -> bool {
        self.fuse.is_burnt()
    }

    /// Does the work on the connection, which is made if there is none. Blocks at most for `timeout`, and for making the connection.
    /// After an error the connection is gone, and with it whatever the server had not committed.
    pub(crate) fn run<T>(&mut self, timeout: Duration, work: impl AsyncFnOnce(&mut Link, u64) -> Result<T, Trouble>) -> Result<T, Trouble> {
        // Out of its place only while it runs this.
        let Some(runtime) = self.runtime.take() else { return Err(Trouble::Down("closed".to_owned())) };
        let done = runtime.block_on(self.run_here(timeout, work));
        self.runtime = Some(runtime);
        done
    }

    async fn run_here<T>(&mut self, timeout: Duration, work: impl AsyncFnOnce(&mut Link, u64) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.connect().await?,
        };
        let done = match tokio::time::timeout(timeout, work(&mut link, self.generation)).await {
            Ok(done) => done,
            Err(_) => Err(Trouble::Down(format!("no answer within {timeout:?}"))),
        };
        match &done {
            Ok(_) => {
                if self.failure_count > 0 {
                    tracing::info!(database = self.address(), "the database answers again");
                }
                (self.failure_count, self.not_before) = (0, None);
                self.link = Some(link);
            }
            Err(Trouble::Down(reason) | Trouble::Refused(reason)) => self.failed(reason),
            Err(Trouble::Lost(_) | Trouble::TakenOver | Trouble::NoControl) => {}
        }
        done
    }

    async fn connect(&mut self) -> Result<Link, Trouble> {
        if self.not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return Err(Trouble::Down(self.last_failure.clone()));
        }
        let connected = Link::connect(&self.options, &self.fuse).await;
        match &connected {
            Ok(_) => self.generation += 1,
            Err(error) => self.failed(&error.to_string()),
        }
        Ok(connected?)
    }

    fn failed(&mut self, reason: &str) {
        let database = self.address();
        if self.failure_count == 0 {
            tracing::warn!(database, reason, "the database does not do its work; asked again with back-off");
        } else {
            tracing::debug!(database, reason, "the database still does not do its work");
        }
        let wait = BACK_OFF.saturating_mul(1 << self.failure_count.min(8)).min(BACK_OFF_MAX);
        reason.clone_into(&mut self.last_failure);
        self.failure_count = self.failure_count.saturating_add(1);
        self.not_before = Some(Instant::now() + wait);
    }

    /// Waits until the next try is allowed, but not beyond `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) {
        if let (Some(runtime), Some(not_before)) = (&self.runtime, self.not_before) {
            runtime.block_on(async { tokio::time::sleep_until(not_before.min(deadline)).await });
        }
    }
}

#[cfg(test)]
mod tests;
