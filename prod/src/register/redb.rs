//! The register in a redb file: for one balancer. Durable, atomic, and checked: version and map stand in one value with a checksum.

use super::{Register, RegisterError, check_cluster, decode, encode};
use crate::disk::{
    Disk,
    embedded::{Embedded, Fault, RedbFile, guarded},
};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};
use twinshard_core::{
    id::{ClusterId, MapVersion},
    map::ClusterMap,
};

const TABLE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("register");
/// The name of its file on a disk of its own.
const REGISTER_FILE: &str = "register";
/// Its name while it is made.
const NEW_FILE: &str = "register.new";

/// A register in a file.
pub struct RedbRegister {
    database: Embedded,
}

impl std::fmt::Debug for RedbRegister {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbRegister").finish_non_exhaustive()
    }
}

impl From<Fault> for RegisterError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(reason) => Self::Failed(reason),
            Fault::Damaged(reason) => Self::Damaged(reason),
        }
    }
}

fn failed(error: impl Into<Fault>) -> RegisterError {
    error.into().into()
}

fn refused(error: io::Error) -> RegisterError {
    RegisterError::Failed(error.to_string())
}

impl RedbRegister {
    /// Opens the register, or makes one that holds an empty map of `cluster`.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, or is another cluster's.
    pub fn open(path: &Path, cluster: ClusterId) -> Result<Self, RegisterError> {
        Self::open_file(path, &ClusterMap { cluster, ..ClusterMap::default() })
    }

    /// Opens the register, or makes one that holds `initial`.
    pub(crate) fn open_file(path: &Path, initial: &ClusterMap) -> Result<Self, RegisterError> {
        if !path.try_exists().map_err(refused)? {
            Self::restore(path, MapVersion(0), initial)?;
        }
        Self::with(locked(File::options().read(true).write(true).open(path))?, initial)
    }

    /// Makes a register that holds this.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn restore(path: &Path, version: MapVersion, map: &ClusterMap) -> Result<(), RegisterError> {
        let new = path.with_extension("new");
        make(locked(File::options().create(true).truncate(false).read(true).write(true).open(&new))?, version, map)?;
        fs::rename(&new, path).map_err(refused)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(refused)
    }

    /// Opens the register on a disk, or makes one that holds `initial`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(disk: &dyn Disk, initial: &ClusterMap) -> Result<Self, RegisterError> {
        if !disk.exists(REGISTER_FILE).map_err(refused)? {
            make(RedbFile(disk.open(NEW_FILE).map_err(refused)?), MapVersion(0), initial)?;
            disk.rename(NEW_FILE, REGISTER_FILE).map_err(refused)?;
        }
        Self::with(RedbFile(disk.open(REGISTER_FILE).map_err(refused)?), initial)
    }

    fn with(backend: impl redb::StorageBackend, initial: &ClusterMap) -> Result<Self, RegisterError> {
        let mut register = existing(backend)?;
        let (_, map) = register.read()?;
        check_cluster(&map, initial.cluster)?;
        Ok(register)
    }
}

fn locked(file: io::Result<File>) -> Result<FileBackend, RegisterError> {
    FileBackend::new(file.map_err(refused)?).map_err(failed)
}

/// Opens a register that was made before: what is not in it now was lost, and is not made anew.
fn existing(backend: impl redb::StorageBackend) -> Result<RedbRegister, RegisterError> {
    if backend.len().map_err(failed)? == 0 {
        return Err(RegisterError::Damaged("the file is empty".to_owned()));
    }
    Ok(RedbRegister { database: Embedded::open(backend)? })
}

/// Makes a register, aside: under its own name it is there whole or not at all, or a damaged one would be taken for a new one.
fn make(backend: impl redb::StorageBackend, version: MapVersion, initial: &ClusterMap) -> Result<(), RegisterError> {
    backend.set_len(0).map_err(failed)?;
    let database = Embedded::open(backend)?;
    guarded(|| {
        let transaction = writing(&database)?;
        put(&transaction, version, initial)?;
        transaction.commit().map_err(failed)
    })
}

/// A transaction that commits in two phases. After a crash, a commit in one phase that does not verify is taken for one that was cut short,
/// and the one before it comes back without a word, although it was acknowledged as replaced. One in two phases that does not verify is
/// damaged. Rows need none: a store that went back is behind its log's base, or the log is replayed over it.
fn writing(database: &Embedded) -> Result<redb::WriteTransaction, RegisterError> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn put(transaction: &redb::WriteTransaction, version: MapVersion, map: &ClusterMap) -> Result<(), RegisterError> {
    let value = encode(version, map)?;
    transaction.open_table(TABLE).map_err(failed)?.insert("map", value.as_slice()).map_err(failed)?;
    Ok(())
}

fn get(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<(MapVersion, ClusterMap), RegisterError> {
    let damaged = || RegisterError::Damaged("the map does not verify".to_owned());
    let value = table.get("map").map_err(failed)?.ok_or_else(damaged)?;
    decode(value.value())
}

impl Register for RedbRegister {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        guarded(|| {
            let transaction = self.database.begin_read().map_err(failed)?;
            let (version, map) = get(&transaction.open_table(TABLE).map_err(failed)?)?;
            Ok((version, Arc::new(map)))
        })
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        guarded(|| {
            let transaction = writing(&self.database)?;
            let (version, _) = get(&transaction.open_table(TABLE).map_err(failed)?)?;
            if version != expected {
                return Ok(false);
            }
            put(&transaction, expected.next(), map)?;
            // redb's commit is durable when it returns.
            transaction.commit().map_err(failed)?;
            Ok(true)
        })
    }
}

/// What a register holds that was made before. For tools, while no balancer runs.
///
/// # Errors
/// If the register cannot be read.
pub fn look(path: &Path) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
    existing(locked(File::options().read(true).write(true).open(path))?)?.read()
}

/// Damages the map that is kept, for the suite.
#[cfg(test)]
pub(crate) fn damage(backend: impl redb::StorageBackend) {
    let database = Embedded::open(backend).expect("a database");
    let transaction = database.begin_write().expect("ours");
    {
        let mut table = transaction.open_table(TABLE).expect("a table");
        let mut value = table.get("map").expect("reads").expect("it is there").value().to_vec();
        *value.last_mut().expect("not empty") ^= 1;
        table.insert("map", value.as_slice()).expect("written");
    }
    transaction.commit().expect("written");
}
