//! The register in a redb file: for one balancer. Durable, atomic, and checked: version and map stand in one value with a checksum.

use super::{Register, RegisterError};
use redb::{Database, ReadableDatabase, TableDefinition};
use std::{path::Path, sync::Arc};
use twinshard_core::{
    id::{ClusterId, MapVersion, ServerId},
    map::ClusterMap,
};

const TABLE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("register");
/// The format of the value.
const FORMAT: u32 = 1;

/// A register in a file.
pub struct RedbRegister {
    database: Database,
}

impl std::fmt::Debug for RedbRegister {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbRegister").finish_non_exhaustive()
    }
}

fn failed(error: impl Into<redb::Error>) -> RegisterError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => RegisterError::Failed("another process has it open".to_owned()),
        redb::Error::Corrupted(reason) => RegisterError::Damaged(reason),
        other => RegisterError::Failed(other.to_string()),
    }
}

impl RedbRegister {
    /// Opens the register, or makes one that holds an empty map of `cluster`.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, or is another cluster's.
    pub fn open(path: &Path, cluster: ClusterId) -> Result<Self, RegisterError> {
        let database = Database::create(path).map_err(failed)?;
        let mut register = Self { database };
        let transaction = register.database.begin_write().map_err(failed)?;
        let is_new = {
            let table = transaction.open_table(TABLE).map_err(failed)?;
            table.get("map").map_err(failed)?.is_none()
        };
        if is_new {
            let map = ClusterMap { cluster, ..ClusterMap::default() };
            put(&transaction, MapVersion(0), &map)?;
        }
        transaction.commit().map_err(failed)?;
        let (_, map) = register.read()?;
        if map.cluster != cluster {
            return Err(RegisterError::Failed(format!("it belongs to the cluster {}, not to {cluster}", map.cluster)));
        }
        Ok(register)
    }
}

use redb::ReadableTable;

fn put(transaction: &redb::WriteTransaction, version: MapVersion, map: &ClusterMap) -> Result<(), RegisterError> {
    let mut value = postcard::to_extend(&(FORMAT, version, map), vec![0; 4]).map_err(|error| RegisterError::Failed(error.to_string()))?;
    let sum = crc32c::crc32c(&value[4..]);
    value[..4].copy_from_slice(&sum.to_le_bytes());
    transaction.open_table(TABLE).map_err(failed)?.insert("map", value.as_slice()).map_err(failed)?;
    Ok(())
}

fn get(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<(MapVersion, ClusterMap), RegisterError> {
    let damaged = || RegisterError::Damaged("the map does not verify".to_owned());
    let value = table.get("map").map_err(failed)?.ok_or_else(damaged)?;
    let (sum, bytes) = value.value().split_first_chunk::<4>().ok_or_else(damaged)?;
    if crc32c::crc32c(bytes).to_le_bytes() != *sum {
        return Err(damaged());
    }
    // The format stands first, so that another is told from damage.
    let (format, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(|_| damaged())?;
    if format != FORMAT {
        return Err(RegisterError::Failed(format!("it has format {format}, this program reads {FORMAT}")));
    }
    postcard::from_bytes(rest).map_err(|_| damaged())
}

impl Register for RedbRegister {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let (version, map) = get(&transaction.open_table(TABLE).map_err(failed)?)?;
        Ok((version, Arc::new(map)))
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        let (version, _) = get(&transaction.open_table(TABLE).map_err(failed)?)?;
        if version != expected {
            return Ok(false);
        }
        put(&transaction, expected.next(), map)?;
        // redb's commit is durable when it returns.
        transaction.commit().map_err(failed)?;
        Ok(true)
    }
}

/// The servers that a register's map knows, by id and name. For tools, while no balancer runs.
///
/// # Errors
/// If the register cannot be read.
pub fn servers(path: &Path) -> Result<Vec<(ServerId, Box<str>)>, RegisterError> {
    let database = Database::open(path).map_err(failed)?;
    let mut register = RedbRegister { database };
    let (_, map) = register.read()?;
    Ok(map.servers.iter().map(|(id, record)| (*id, record.name.clone())).collect())
}
