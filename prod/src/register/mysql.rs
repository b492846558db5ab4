//! The register in a MySQL or MariaDB server: for several balancers. One row of one table holds version and map; a compare-and-set is one
//! UPDATE that names the version it replaces, so the server's row lock makes all that is asked of it one after the other.
//!
//! It is as linearizable as that server: one server, or a group that answers like one. A replica that was promoted without the last
//! commits would be a register that went back, which whoever saw more refuses.

use super::{Register, RegisterError, check_cluster, decode, encode};
use crate::mysql::{
    MysqlSettings,
    connection::{Database, Fuse, Link, Trouble, is_there_already, statement},
    quoted,
};
use sqlx::Row as _;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;
use twinshard_core::{
    id::{ClusterId, MapVersion},
    map::ClusterMap,
    storage::LostReason,
};

/// The name of its database, unless it is told otherwise.
pub const DATABASE: &str = "twinshard_register";
/// How long an operation may take until its outcome counts as unknown. A guess: a balancer that controls beats every second.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(3);
/// The same for making the table.
const MAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most registers that are kept aside.
const ASIDE_MAX: u32 = 100;

/// A register in a database.
pub struct MysqlRegister {
    database: Database,
    table: Table,
    /// The newest version that was seen: it never goes back.
    seen: MapVersion,
}

impl fmt::Debug for MysqlRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlRegister").field("table", &self.table.name).field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// Why opening did not give a register.
#[derive(Debug)]
enum Absent {
    /// There is none, or nothing in it.
    Empty,
    /// The database does not answer now.
    Down(String),
    Error(RegisterError),
}

impl From<Trouble> for Absent {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Lost(LostReason::RowsMissing) | Trouble::NoControl | Trouble::TakenOver => Self::Empty,
            Trouble::Lost(reason) => Self::Error(RegisterError::Damaged(format!("its table is of no use: {reason:?}"))),
            Trouble::Down(reason) => Self::Down(reason),
            Trouble::Refused(reason) => Self::Error(RegisterError::Failed(format!("the database refuses: {reason}"))),
        }
    }
}

impl From<Absent> for RegisterError {
    fn from(absent: Absent) -> Self {
        match absent {
            Absent::Empty => Self::Damaged("its database is empty".to_owned()),
            Absent::Down(reason) => Self::Failed(reason),
            Absent::Error(error) => error,
        }
    }
}

/// The one table.
struct Table {
    database: String,
    name: String,
}

impl Table {
    fn new(settings: &MysqlSettings) -> Self {
        let database = quoted(&settings.database);
        Self { name: format!("{database}.{}", quoted("register")), database }
    }

    async fn make(&self, link: &mut Link, value: &[u8], version: MapVersion) -> Result<(), Trouble> {
        link.raw(format!("CREATE DATABASE IF NOT EXISTS {} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", self.database)).await?;
        link.raw(format!(
            "CREATE TABLE IF NOT EXISTS {} (one TINYINT NOT NULL PRIMARY KEY, version BIGINT UNSIGNED NOT NULL, map LONGBLOB NOT NULL) \
             ENGINE=InnoDB",
            self.name
        ))
        .await?;
        // Of several that make it at once one puts the row; the others find it.
        let insert = format!("INSERT IGNORE INTO {} (one, version, map) VALUES (1, ?, ?)", self.name);
        link.change(statement(insert).bind(version.0).bind(value.to_vec())).await?;
        Ok(())
    }

    async fn read(&self, link: &mut Link) -> Result<(u64, Vec<u8>), Trouble> {
        let select = format!("SELECT version, map FROM {} WHERE one = 1", self.name);
        let row = link.row(statement(select)).await?.ok_or(Trouble::NoControl)?;
        Ok((row.try_get_unchecked(0)?, row.try_get_unchecked(1)?))
    }

    /// Whether it was replaced.
    async fn swap(&self, link: &mut Link, expected: u64, next: u64, value: Vec<u8>) -> Result<bool, Trouble> {
        let update = format!("UPDATE {} SET version = ?, map = ? WHERE one = 1 AND version = ?", self.name);
        if link.change(statement(update).bind(next).bind(value).bind(expected)).await? > 0 {
            return Ok(true);
        }
        // Another version, or none at all.
        let select = format!("SELECT version FROM {} WHERE one = 1", self.name);
        link.row(statement(select)).await?.map(|_| false).ok_or(Trouble::NoControl)
    }
}

impl MysqlRegister {
    /// Opens the register of a cluster. Waits for a database that is down as long as the settings say. Not on a thread that runs a runtime.
    ///
    /// # Errors
    /// If there is none ([`RegisterError::Damaged`]), it cannot be read, is damaged, or is another cluster's.
    pub fn open(settings: &MysqlSettings, cluster: ClusterId) -> Result<Self, RegisterError> {
        Self::open_with(settings, cluster, None, Fuse::default())
    }

    /// Opens the register, or makes one that holds `initial`. Only where there never was one: a register that lost what it had would
    /// begin again with ids that are in use.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_or_make(settings: &MysqlSettings, initial: &ClusterMap) -> Result<Self, RegisterError> {
        Self::open_with(settings, initial.cluster, Some((MapVersion(0), initial)), Fuse::default())
    }

    /// Makes a register that holds this, where there is none.
    ///
    /// # Errors
    /// If there is one, or it cannot be made.
    pub fn restore(settings: &MysqlSettings, version: MapVersion, map: &ClusterMap) -> Result<(), RegisterError> {
        let (found, _) = Self::open_with(settings, map.cluster, Some((version, map)), Fuse::default())?.read()?;
        if found == version { Ok(()) } else { Err(RegisterError::Failed(format!("there is one already, at {found}"))) }
    }

    /// Keeps a register that is of no use under a name of its own, which is given, so that one can be made in its place.
    ///
    /// # Errors
    /// If the database does not do it.
    pub fn set_aside(settings: &MysqlSettings) -> Result<Option<String>, RegisterError> {
        let failed = |error| RegisterError::Failed(format!("no runtime for the database: {error}"));
        let table = Table::new(settings);
        let mut register =
            Self { database: Database::new(settings.options.clone(), Fuse::default()).map_err(failed)?, table, seen: MapVersion(0) };
        let done = register.run(MAKE_TIMEOUT, async |table, link| {
            let mut number = 1;
            loop {
                let aside = if number == 1 { "register_damaged".to_owned() } else { format!("register_damaged_{number}") };
                match link.raw(format!("RENAME TABLE {} TO {}.{}", table.name, table.database, quoted(&aside))).await {
                    // Of an earlier recovery.
                    Err(error) if is_there_already(&error) && number < ASIDE_MAX => number += 1,
                    done => return done.map(|()| Some(aside)).map_err(Trouble::from),
                }
            }
        });
        match done {
            // There was none.
            Err(Absent::Empty) => Ok(None),
            done => Ok(done?),
        }
    }

    fn open_with(
        settings: &MysqlSettings,
        cluster: ClusterId,
        initial: Option<(MapVersion, &ClusterMap)>,
        fuse: Fuse,
    ) -> Result<Self, RegisterError> {
        let failed = |error| RegisterError::Failed(format!("no runtime for the database: {error}"));
        let database = Database::new(settings.options.clone(), fuse).map_err(failed)?;
        let mut register = Self { database, table: Table::new(settings), seen: MapVersion(0) };
        let deadline = Instant::now() + settings.patience;
        let map = loop {
            match register.look_or_make(initial) {
                Err(Absent::Down(_)) if Instant::now() < deadline && !register.database.is_dead() => register.database.wait(deadline),
                found => break found?.1,
            }
        };
        check_cluster(&map, cluster)?;
        Ok(register)
    }

    fn run<T>(&mut self, timeout: Duration, work: impl AsyncFnOnce(&Table, &mut Link) -> Result<T, Trouble>) -> Result<T, Absent> {
        let table = &self.table;
        let done = self.database.run(timeout, async |link, _| {
            if let Some(reason) = link.not_durable {
                return Err(Trouble::Refused(format!("{reason}, or what it says is durable is not")));
            }
            work(table, link).await
        });
        Ok(done?)
    }

    fn look_or_make(&mut self, initial: Option<(MapVersion, &ClusterMap)>) -> Result<(MapVersion, ClusterMap), Absent> {
        match (self.look(), initial) {
            (Err(Absent::Empty), Some((version, map))) => {
                let value = encode(version, map).map_err(Absent::Error)?;
                self.run(MAKE_TIMEOUT, async |table, link| table.make(link, &value, version).await)?;
                self.look()
            }
            (found, _) => found,
        }
    }

    fn look(&mut self) -> Result<(MapVersion, ClusterMap), Absent> {
        let (stored, value) = self.run(OPERATION_TIMEOUT, async |table, link| table.read(link).await)?;
        let (version, map) = decode(&value).map_err(Absent::Error)?;
        if version.0 != stored {
            return Err(Absent::Error(RegisterError::Damaged(format!("it says v{stored} and holds {version}"))));
        }
        if version < self.seen {
            let seen = self.seen;
            return Err(Absent::Error(RegisterError::Damaged(format!(
                "it went back from {seen} to {version}: was its database restored from an older copy?"
            ))));
        }
        self.seen = version;
        Ok((version, map))
    }
}

impl Register for MysqlRegister {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        let (version, map) = self.look()?;
        Ok((version, Arc::new(map)))
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        let Some(next) = expected.0.checked_add(1).map(MapVersion) else { return Ok(false) };
        let value = encode(next, map)?;
        let is_done = self.run(OPERATION_TIMEOUT, async |table, link| table.swap(link, expected.0, next.0, value).await)?;
        if is_done {
            self.seen = self.seen.max(next);
        }
        Ok(is_done)
    }
}

#[cfg(test)]
mod tests;
