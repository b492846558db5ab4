//! Opens all of a server's storage: takes ownership, completes what a crash cut short, and says what was found (DESIGN 3 and 4).

use crate::{
    disk::Disk,
    log::{
        LogError,
        file::{FileLog, Identity},
    },
    rows::{RecoverRows, StoreError, redb::RedbRows},
};
use std::sync::Arc;
use thiserror::Error;
use twinshard_core::{
    id::OwnerNumber,
    storage::{LostReason, Recovered, RecoveredReplica, StoreCommand},
};

/// The storage of one server, open and owned.
#[derive(Debug)]
pub struct Opened<R = RedbRows> {
    /// The shared log.
    pub log: FileLog,
    /// The row store.
    pub rows: R,
    /// What was found.
    pub recovered: Recovered,
    /// The number of this opening.
    pub owner: OwnerNumber,
}

/// Why storage does not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The row store.
    #[error("the row store does not open: {0}")]
    Rows(#[from] StoreError),
}

/// Opens log and row store on a disk. See [`FileLog::open`] for `first_owner`.
///
/// # Errors
/// What cannot be mended by refilling replicas: a file system that fails, storage of another cluster or server, another format.
pub fn open(disk: &Arc<dyn Disk>, identity: Identity, first_owner: OwnerNumber) -> Result<Opened, OpenError> {
    open_with(disk, identity, first_owner, |owner| RedbRows::open(Arc::clone(disk), identity, owner))
}

/// Opens the log on a disk, and the row store wherever it is. May block as long as the row store waits.
///
/// # Errors
/// As [`open`].
pub fn open_with<R: RecoverRows>(
    disk: &Arc<dyn Disk>,
    identity: Identity,
    first_owner: OwnerNumber,
    rows: impl FnOnce(OwnerNumber) -> Result<R, StoreError>,
) -> Result<Opened<R>, OpenError> {
    let log = FileLog::open(Arc::clone(disk), identity, first_owner)?;
    let owner = log.owner();
    let mut rows = rows(owner)?;
    let recovered = recover(&log, &mut rows)?;
    Ok(Opened { log, rows, recovered, owner })
}

/// What a log and its row store amount to. Completes resets, and destroys views that no replica of the log has.
///
/// # Errors
/// If the row store fails as a whole.
pub fn recover(log: &FileLog, rows: &mut impl RecoverRows) -> Result<Recovered, OpenError> {
    let mut recovered = Recovered { map: log.state().map.clone(), lives: log.state().lives.clone(), ..Recovered::default() };
    for (id, found) in &log.state().replicas {
        let view = if found.damaged {
            Err(LostReason::LogDamaged)
        } else if log.state().lives.lost.contains(id) {
            Err(LostReason::DiskWentBack)
        } else {
            // R1: a durable Reset demands its stage as the view.
            let reset = match found.reset {
                Some((stage, base)) => rows.complete_reset(*id, stage, base)?,
                None => Ok(()),
            };
            match reset {
                Ok(()) => rows.view(*id)?,
                Err(reason) => Err(reason),
            }
        };
        let view = view.and_then(|view| {
            if view.applied < found.base {
                return Err(LostReason::RowsBehind);
            }
            Ok(view)
        });
        recovered.replicas.insert(
            *id,
            RecoveredReplica {
                shard: found.shard,
                promised: found.promised,
                commit: found.commit,
                base: found.base,
                entries: found.entries.clone(),
                view,
            },
        );
    }
    // Views without a log are what a crash left of a creation or a removal.
    for id in rows.replicas()? {
        if !recovered.replicas.contains_key(&id) {
            rows.execute(id, StoreCommand::Destroy)?;
        }
    }
    Ok(recovered)
}
