//! The control database: who owns the store, and which databases are whose view or stage. A swap is a change of two of its rows. Every
//! transaction of the store begins by finding its owner there, and keeps it from changing until it ends.
//!
//! Making and dropping a database cannot be part of a transaction. So a database stands here before it is made, under a name that was
//! never used before, and until it is dropped: `new` -> `view` or `stage` -> `dead`. What a crash left `new` or `dead` is dropped later.

use super::{Shape, layout::Place, view};
use crate::{
    log::file::Identity,
    mysql::{
        connection::{Link, Trouble, is_missing, is_there_already, statement},
        quoted,
    },
};
use sqlx::Row as _;
use std::collections::{BTreeMap, BTreeSet};
use twinshard_core::{
    id::{OwnerNumber, ReplicaId, StageId},
    storage::LostReason,
};

/// The format of tables and values.
const FORMAT: u32 = 1;
/// The longest name of a database.
const NAME_MAX: usize = 64;
/// How many names are tried when databases of such names are there although the control database does not know them.
const TRIES_MAX: usize = 100;

/// Whose store it is.
pub(super) struct Control {
    /// The name of the control database, with which all others begin.
    pub(super) prefix: String,
    pub(super) identity: Identity,
    pub(super) owner: OwnerNumber,
}

/// The databases of one replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Databases {
    pub(super) view: Option<String>,
    pub(super) stage: Option<(StageId, String)>,
}

/// What a database is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    View,
    Stage(StageId),
    Dead,
}

impl Use {
    const fn kind(self) -> (&'static str, StageId) {
        match self {
            Self::View => ("view", StageId(0)),
            Self::Stage(stage) => ("stage", stage),
            Self::Dead => ("dead", StageId(0)),
        }
    }
}

/// What the control database says.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) replicas: BTreeMap<ReplicaId, Databases>,
    /// To be dropped.
    pub(super) dead: BTreeSet<String>,
}

fn missing_is_no_control(error: sqlx::Error) -> Trouble {
    if is_missing(&error) { Trouble::NoControl } else { error.into() }
}

impl Control {
    fn table(&self, table: &str) -> String {
        format!("{}.{}", quoted(&self.prefix), quoted(table))
    }

    fn owners(&self) -> String {
        self.table("owner")
    }

    fn databases(&self) -> String {
        self.table("replica_databases")
    }

    /// Makes the store ours: the control database is made if there is none. `anew` after it was lost under us: an owner that is there by
    /// now has taken over.
    pub(super) async fn take_over(&self, link: &mut Link, anew: bool) -> Result<(), Trouble> {
        let (prefix, owners, databases) = (quoted(&self.prefix), self.owners(), self.databases());
        link.raw(format!("CREATE DATABASE IF NOT EXISTS {prefix} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")).await?;
        link.raw(format!(
            "CREATE TABLE IF NOT EXISTS {owners} (one TINYINT NOT NULL PRIMARY KEY, format INT UNSIGNED NOT NULL, \
             cluster VARCHAR(32) NOT NULL, server BIGINT UNSIGNED NOT NULL, owner BIGINT UNSIGNED NOT NULL, \
             last_database BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB"
        ))
        .await?;
        link.raw(format!(
            "CREATE TABLE IF NOT EXISTS {databases} (name VARCHAR(64) NOT NULL PRIMARY KEY, replica BIGINT UNSIGNED NOT NULL, \
             shard VARCHAR(64) NOT NULL, used_as VARCHAR(8) NOT NULL, stage BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB"
        ))
        .await?;
        link.raw("START TRANSACTION".to_owned()).await?;
        let known = link.row(statement(format!("SELECT format, cluster, server, owner FROM {owners} WHERE one = 1 FOR UPDATE"))).await?;
        let Identity { cluster, server } = self.identity;
        if let Some(known) = known {
            let format: u32 = known.try_get_unchecked(0)?;
            if format != FORMAT {
                return Err(Trouble::Refused(format!("its format is {format}, this program reads {FORMAT}")));
            }
            let (found, of): (String, u64) = (known.try_get_unchecked(1)?, known.try_get_unchecked(2)?);
            if found != cluster.to_string() || of != server.0 {
                return Err(Trouble::Lost(LostReason::Foreign));
            }
            let owner: u64 = known.try_get_unchecked(3)?;
            if anew && owner != self.owner.0 {
                return Err(Trouble::TakenOver);
            }
            link.change(statement(format!("UPDATE {owners} SET owner = ? WHERE one = 1")).bind(self.owner.0)).await?;
        } else {
            let insert = format!("INSERT INTO {owners} (one, format, cluster, server, owner, last_database) VALUES (1, ?, ?, ?, ?, 0)");
            let insert = statement(insert).bind(FORMAT).bind(cluster.to_string()).bind(server.0).bind(self.owner.0);
            link.change(insert).await?;
            // Whose they were is not known any more.
            link.change(statement(format!("UPDATE {databases} SET used_as = 'dead'"))).await?;
        }
        // Nobody is about to make them any more.
        link.change(statement(format!("UPDATE {databases} SET used_as = 'dead' WHERE used_as = 'new'"))).await?;
        Ok(link.commit().await?)
    }

    /// Begins a transaction that is only committed while the store is ours.
    pub(super) async fn begin(&self, link: &mut Link) -> Result<(), Trouble> {
        link.raw("START TRANSACTION".to_owned()).await?;
        let owner = format!("SELECT cluster, server, owner FROM {} WHERE one = 1 LOCK IN SHARE MODE", self.owners());
        let found = link.row(statement(owner)).await.map_err(missing_is_no_control)?.ok_or(Trouble::NoControl)?;
        let (cluster, server): (String, u64) = (found.try_get_unchecked(0)?, found.try_get_unchecked(1)?);
        let owner: u64 = found.try_get_unchecked(2)?;
        if cluster != self.identity.cluster.to_string() || server != self.identity.server.0 {
            return Err(Trouble::Lost(LostReason::Foreign));
        }
        if owner == self.owner.0 { Ok(()) } else { Err(Trouble::TakenOver) }
    }

    /// Everything that is listed, while the store is ours.
    pub(super) async fn list(&self, link: &mut Link) -> Result<Listed, Trouble> {
        let mut listed = Listed::default();
        self.begin(link).await?;
        let all = format!("SELECT name, replica, used_as, stage FROM {}", self.databases());
        for row in link.rows(statement(all)).await.map_err(missing_is_no_control)? {
            let (name, replica): (String, u64) = (row.try_get_unchecked(0)?, row.try_get_unchecked(1)?);
            let (used_as, stage): (String, u64) = (row.try_get_unchecked(2)?, row.try_get_unchecked(3)?);
            match &*used_as {
                "view" => listed.replicas.entry(ReplicaId(replica)).or_default().view = Some(name),
                "stage" => listed.replicas.entry(ReplicaId(replica)).or_default().stage = Some((StageId(stage), name)),
                // A new one is being made, or its making failed: its connection is gone by now.
                _ => drop(listed.dead.insert(name)),
            }
        }
        link.commit().await?;
        Ok(listed)
    }

    /// Changes what a database is for, in the transaction that is open.
    pub(super) async fn set(&self, link: &mut Link, database: &str, to: Use) -> Result<(), Trouble> {
        let (used_as, stage) = to.kind();
        let set = format!("UPDATE {} SET used_as = ?, stage = ? WHERE name = ?", self.databases());
        // What says so already counts too.
        let count = link.change(statement(set).bind(used_as).bind(stage.0).bind(database.to_owned())).await?;
        if count == 0 { Err(Trouble::NoControl) } else { Ok(()) }
    }

    /// All databases of a replica are dead, in the transaction that is open.
    pub(super) async fn bury(&self, link: &mut Link, replica: ReplicaId) -> Result<(), Trouble> {
        let set = format!("UPDATE {} SET used_as = 'dead', stage = 0 WHERE replica = ?", self.databases());
        link.change(statement(set).bind(replica.0)).await?;
        Ok(())
    }

    /// Makes a database with empty tables that is not used for anything yet.
    pub(super) async fn make(&self, link: &mut Link, replica: ReplicaId, shape: Shape) -> Result<Place, Trouble> {
        for _ in 0..TRIES_MAX {
            let database = self.reserve(link, replica, shape.shard.as_deref()).await?;
            let create = format!("CREATE DATABASE {} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", quoted(&database));
            match link.raw(create).await {
                Ok(()) => {
                    let place = Place::new(database, shape.schema);
                    view::create_tables(link, &place).await?;
                    return Ok(place);
                }
                // Of a store whose control database was lost. It stays as it is.
                Err(error) if is_there_already(&error) => self.forget(link, &database).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Trouble::Down(format!("there are already {TRIES_MAX} databases of {replica} that the store does not know")))
    }

    async fn reserve(&self, link: &mut Link, replica: ReplicaId, shard: Option<&str>) -> Result<String, Trouble> {
        let (owners, databases) = (self.owners(), self.databases());
        self.begin(link).await?;
        link.change(statement(format!("UPDATE {owners} SET last_database = last_database + 1 WHERE one = 1"))).await?;
        let last = link.row(statement(format!("SELECT last_database FROM {owners} WHERE one = 1"))).await?;
        let number: u64 = last.ok_or(Trouble::NoControl)?.try_get_unchecked(0)?;
        let name = database_name(&self.prefix, shard, replica, number);
        let insert = format!("INSERT INTO {databases} (name, replica, shard, used_as, stage) VALUES (?, ?, ?, 'new', 0)");
        link.change(statement(insert).bind(name.clone()).bind(replica.0).bind(shard.unwrap_or_default().to_owned())).await?;
        link.commit().await?;
        Ok(name)
    }

    /// Drops a dead database, if the store is ours. Dropping ends the transaction before it begins; but a name that was dead while the store
    /// was ours is never used again by whoever has it then.
    pub(super) async fn drop_dead(&self, link: &mut Link, database: &str) -> Result<(), Trouble> {
        if let Err(trouble) = self.begin(link).await {
            link.raw("ROLLBACK".to_owned()).await?;
            return Err(trouble);
        }
        link.raw(format!("DROP DATABASE IF EXISTS {}", quoted(database))).await?;
        self.forget(link, database).await
    }

    async fn forget(&self, link: &mut Link, database: &str) -> Result<(), Trouble> {
        link.change(statement(format!("DELETE FROM {} WHERE name = ?", self.databases())).bind(database.to_owned())).await?;
        Ok(())
    }
}

/// A name by which a person finds the database. Lower case, as some servers keep no other; unique by its number.
fn database_name(prefix: &str, shard: Option<&str>, replica: ReplicaId, number: u64) -> String {
    let end = format!("_{replica}_{number}");
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
    let mut name = prefix.to_owned();
    if let Some(shard) = shard {
        let room = NAME_MAX.saturating_sub(prefix.len() + 1 + end.len());
        name.push('_');
        name.extend(shard.chars().map(plain).take(room));
    }
    name.push_str(&end);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_after_its_shard_and_fits() {
        assert_eq!(database_name("twinshard", Some("sh1"), ReplicaId(12), 4), "twinshard_sh1_r12_4");
        assert_eq!(database_name("twinshard", None, ReplicaId(12), 4), "twinshard_r12_4");
        assert_eq!(database_name("twinshard", Some("Eu.West-`1"), ReplicaId(1), 2), "twinshard_eu_west__1_r1_2");
        let long = database_name("twinshard", Some(&"x".repeat(63)), ReplicaId(u64::MAX), 1_000_000);
        assert!(long.len() <= NAME_MAX && long.ends_with("_r18446744073709551615_1000000"), "{long}");
    }
}
