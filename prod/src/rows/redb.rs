//! The row store in one redb file: a key of every table begins with the replica. redb verifies its own checksums only in repair, so every
//! value carries one that is checked whenever it is read; a bad one makes its replica lost and is never served.

use super::{
    RecoverRows, RowStore, StoreError,
    sealed::{self, encode, place, row_place},
};
use crate::{
    disk::{
        Disk,
        embedded::{Embedded, Fault, RedbFile, guarded},
    },
    log::file::Identity,
};
use redb::{ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, sync::Arc};
use twinshard_core::{
    id::{ClusterId, OwnerNumber, Position, ReplicaId, ServerId, SessionId, SnapshotId, StageId},
    storage::{
        FlushBatch, IdempotencyState, LostReason, RowPage, RowQuery, SessionState, SnapshotChunk, SnapshotCursor, StoreAnswer,
        StoreCommand, ViewState,
    },
    value::{Key, StoredRow},
};

/// The name of the store's file.
pub const ROWS_FILE: &str = "rows.redb";
/// Its name once it was found damaged.
const DAMAGED_FILE: &str = "rows.damaged.redb";
/// There while the store is known to be damaged: the next opening begins with an empty one.
const DAMAGED_MARK: &str = "rows.is-damaged";
/// The format of tables and values.
const FORMAT: u32 = 1;

type Rows = TableDefinition<'static, (u64, i64), &'static [u8]>;
type Sessions = TableDefinition<'static, (u64, u64), &'static [u8]>;
type Keys = TableDefinition<'static, (u64, &'static str), &'static [u8]>;
type Metas = TableDefinition<'static, u64, &'static [u8]>;

/// The tables of the views, and those of the stages.
#[derive(Clone, Copy)]
struct Tables {
    rows: Rows,
    sessions: Sessions,
    keys: Keys,
    meta: Metas,
}

const VIEW: Tables = Tables {
    rows: TableDefinition::new("rows"),
    sessions: TableDefinition::new("sessions"),
    keys: TableDefinition::new("idempotency"),
    meta: TableDefinition::new("meta"),
};
const STAGE: Tables = Tables {
    rows: TableDefinition::new("stage rows"),
    sessions: TableDefinition::new("stage sessions"),
    keys: TableDefinition::new("stage idempotency"),
    meta: TableDefinition::new("stage meta"),
};
const STORE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("store");

/// What stands in a meta table: session floor and position; of a stage also which, and whether it is whole.
type Meta = (SessionId, Position, StageId, bool);

/// Why a command could not be done.
enum Trouble {
    /// The replica is lost.
    Lost(LostReason),
    /// The store is no longer ours.
    TakenOver,
    /// The file failed as a whole.
    File(Fault),
}

impl<E: Into<Fault>> From<E> for Trouble {
    fn from(fault: E) -> Self {
        Self::File(fault.into())
    }
}

/// A row store in a redb file.
pub struct RedbRows {
    disk: Arc<dyn Disk>,
    database: Embedded,
    owner: OwnerNumber,
    snapshots: BTreeMap<(ReplicaId, SnapshotId), ReadTransaction>,
}

impl std::fmt::Debug for RedbRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbRows").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl RedbRows {
    /// Opens the store, or makes an empty one, and takes ownership for `owner`. A file that is damaged is put aside and the store is
    /// empty: its replicas are lost then.
    ///
    /// # Errors
    /// If the file system fails, the format is another, or the store is another cluster's or server's.
    pub fn open(disk: Arc<dyn Disk>, identity: Identity, owner: OwnerNumber) -> Result<Self, StoreError> {
        let failed = |error: std::io::Error| StoreError::Failed(error.to_string());
        if disk.exists(DAMAGED_MARK).map_err(failed)? {
            if disk.exists(ROWS_FILE).map_err(failed)? {
                disk.rename(ROWS_FILE, DAMAGED_FILE).map_err(failed)?;
            }
            disk.rename(DAMAGED_MARK, "rows.was-damaged").map_err(failed)?;
        }
        let opened = match Self::try_open(&disk, identity, owner) {
            Err(Trouble::File(Fault::Damaged(reason))) => {
                tracing::error!(reason, "the row store is damaged; it is kept as {DAMAGED_FILE} and its replicas are refilled");
                disk.rename(ROWS_FILE, DAMAGED_FILE).map_err(failed)?;
                Self::try_open(&disk, identity, owner)
            }
            other => other,
        };
        opened.map_err(|trouble| match trouble {
            Trouble::TakenOver => StoreError::TakenOver,
            Trouble::Lost(_) => StoreError::Failed("it belongs to another cluster or server".to_owned()),
            Trouble::File(Fault::Io(reason) | Fault::Damaged(reason)) => StoreError::Failed(reason),
        })
    }

    fn try_open(disk: &Arc<dyn Disk>, identity: Identity, owner: OwnerNumber) -> Result<Self, Trouble> {
        let file = disk.open(ROWS_FILE).map_err(|error| Fault::Io(error.to_string()))?;
        let database = Embedded::open(RedbFile(file))?;
        guarded(|| take_over(&database, identity, owner))?;
        Ok(Self { disk: Arc::clone(disk), database, owner, snapshots: BTreeMap::new() })
    }

    /// Runs `work`; damage of the file stops the process, and is remembered for the next opening.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<Result<T, LostReason>, StoreError> {
        match guarded(|| work(self)) {
            Ok(value) => Ok(Ok(value)),
            Err(Trouble::Lost(reason)) => Ok(Err(reason)),
            Err(Trouble::TakenOver) => Err(StoreError::TakenOver),
            Err(Trouble::File(Fault::Io(reason))) => Err(StoreError::Failed(reason)),
            Err(Trouble::File(Fault::Damaged(reason))) => {
                let marked = self.disk.open(DAMAGED_MARK).and_then(|mark| mark.sync());
                let marked = marked.map_or_else(|error| format!("; and it could not be marked: {error}"), |()| String::new());
                Err(StoreError::Failed(format!("the row store is damaged: {reason}; started again it is refilled from the others{marked}")))
            }
        }
    }

    fn write(&self) -> Result<WriteTransaction, Trouble> {
        let transaction = self.database.begin_write()?;
        {
            let store = transaction.open_table(STORE)?;
            let owner = store.get("owner")?;
            if owner.is_none_or(|owner| owner.value() != self.owner.0.to_le_bytes()) {
                return Err(Trouble::TakenOver);
            }
        }
        Ok(transaction)
    }

    fn work(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, Trouble> {
        match command {
            StoreCommand::Create => {
                let transaction = self.write()?;
                clear(&transaction, VIEW, replica)?;
                put_meta(&transaction, VIEW, replica, (SessionId(0), Position::ZERO, StageId(0), true))?;
                transaction.commit()?;
                Ok(StoreAnswer::Done)
            }
            StoreCommand::Destroy => {
                self.snapshots.retain(|(id, _), _| *id != replica);
                let transaction = self.write()?;
                clear(&transaction, VIEW, replica)?;
                clear(&transaction, STAGE, replica)?;
                transaction.commit()?;
                Ok(StoreAnswer::Done)
            }
            StoreCommand::Flush(batch) => self.flush(replica, &batch),
            StoreCommand::Read(query) => {
                let read = self.database.begin_read()?;
                meta(&read, replica)?;
                Ok(StoreAnswer::Rows(rows(&read, replica, &query)?))
            }
            StoreCommand::OpenSnapshot(snapshot) => {
                let read = self.database.begin_read()?;
                let (_, position, ..) = meta(&read, replica)?;
                self.snapshots.insert((replica, snapshot), read);
                Ok(StoreAnswer::SnapshotOpened { position })
            }
            StoreCommand::ReadSnapshot { snapshot, cursor, bytes_max } => match self.snapshots.get(&(replica, snapshot)) {
                Some(read) => Ok(StoreAnswer::Chunk(Box::new(chunk(read, replica, cursor, bytes_max as usize)?))),
                None => Ok(StoreAnswer::Unavailable),
            },
            StoreCommand::ReadPinned { snapshot, query } => match self.snapshots.get(&(replica, snapshot)) {
                Some(read) => Ok(StoreAnswer::Rows(rows(read, replica, &query)?)),
                None => Ok(StoreAnswer::Unavailable),
            },
            StoreCommand::CloseSnapshot(snapshot) => {
                self.snapshots.remove(&(replica, snapshot));
                Ok(StoreAnswer::Done)
            }
            StoreCommand::Stage { stage, position, chunk, last } => {
                let transaction = self.write()?;
                let known = read_meta(&transaction.open_table(STAGE.meta)?, replica)?;
                if known.is_none_or(|(_, _, known, _)| known != stage) {
                    clear(&transaction, STAGE, replica)?;
                }
                {
                    let mut rows = transaction.open_table(STAGE.rows)?;
                    for row in &chunk.rows {
                        rows.insert((replica.0, row.row.key.0), encode(&row_place(replica, row.row.key), row).as_slice())?;
                    }
                    let mut sessions = transaction.open_table(STAGE.sessions)?;
                    for (id, session) in &chunk.sessions {
                        sessions.insert((replica.0, id.0), encode(&place(replica, &id.0.to_le_bytes()), session).as_slice())?;
                    }
                    let mut keys = transaction.open_table(STAGE.keys)?;
                    for (key, state) in &chunk.idempotency {
                        keys.insert((replica.0, &**key), encode(&place(replica, key.as_bytes()), state).as_slice())?;
                    }
                }
                put_meta(&transaction, STAGE, replica, (chunk.session_floor, position, stage, last))?;
                transaction.commit()?;
                Ok(StoreAnswer::Done)
            }
            StoreCommand::SwapStage { stage, position } => Ok(StoreAnswer::Swapped(Box::new(self.swap(replica, stage, position)?))),
        }
    }

    fn flush(&self, replica: ReplicaId, batch: &FlushBatch) -> Result<StoreAnswer, Trouble> {
        let transaction = self.write()?;
        let known = read_meta(&transaction.open_table(VIEW.meta)?, replica)?;
        let (_, applied, ..) = known.ok_or(Trouble::Lost(LostReason::RowsMissing))?;
        if batch.applied <= applied {
            return Ok(StoreAnswer::Flushed { durable: applied });
        }
        {
            let mut rows = transaction.open_table(VIEW.rows)?;
            for (key, row) in &batch.rows {
                match row {
                    Some(row) => rows.insert((replica.0, key.0), encode(&row_place(replica, *key), row).as_slice())?,
                    None => rows.remove((replica.0, key.0))?,
                };
            }
            let mut sessions = transaction.open_table(VIEW.sessions)?;
            for (id, session) in &batch.sessions {
                match session {
                    Some(session) => {
                        sessions.insert((replica.0, id.0), encode(&place(replica, &id.0.to_le_bytes()), session).as_slice())?
                    }
                    None => sessions.remove((replica.0, id.0))?,
                };
            }
            let mut keys = transaction.open_table(VIEW.keys)?;
            for (key, state) in &batch.idempotency {
                match state {
                    Some(state) => keys.insert((replica.0, &**key), encode(&place(replica, key.as_bytes()), state).as_slice())?,
                    None => keys.remove((replica.0, &**key))?,
                };
            }
        }
        put_meta(&transaction, VIEW, replica, (batch.session_floor, batch.applied, StageId(0), true))?;
        // redb's commit is durable when it returns.
        transaction.commit()?;
        Ok(StoreAnswer::Flushed { durable: batch.applied })
    }

    fn swap(&self, replica: ReplicaId, stage: StageId, position: Position) -> Result<ViewState, Trouble> {
        let transaction = self.write()?;
        let staged = read_meta(&transaction.open_table(STAGE.meta)?, replica)?;
        let known = read_meta(&transaction.open_table(VIEW.meta)?, replica)?;
        match (staged, known) {
            (Some((floor, at, found, true)), _) if found == stage && at == position => {
                clear(&transaction, VIEW, replica)?;
                move_table(&transaction, STAGE.rows, VIEW.rows, (replica.0, i64::MIN), (replica.0, i64::MAX))?;
                move_table(&transaction, STAGE.sessions, VIEW.sessions, (replica.0, 0), (replica.0, u64::MAX))?;
                move_keys(&transaction, replica)?;
                clear(&transaction, STAGE, replica)?;
                put_meta(&transaction, VIEW, replica, (floor, position, StageId(0), true))?;
                transaction.commit()?;
            }
            // Done before.
            (_, Some((_, applied, ..))) if applied >= position => {}
            _ => return Err(Trouble::Lost(LostReason::RowsBehind)),
        }
        view_state(&self.database.begin_read()?, replica)
    }
}

/// Makes the tables, checks whose they are, and notes the owner.
fn take_over(database: &Embedded, identity: Identity, owner: OwnerNumber) -> Result<(), Trouble> {
    let transaction = database.begin_write()?;
    {
        let mut store = transaction.open_table(STORE)?;
        let ours = (identity.cluster, identity.server);
        let found = store.get("identity")?.map(|value| value.value().to_vec());
        match found {
            Some(found) => {
                let unreadable = |_| Fault::Damaged("it does not say whose it is".to_owned());
                let (format, found): (u32, (ClusterId, ServerId)) = decode(&[], &found).map_err(unreadable)?;
                if format != FORMAT {
                    return Err(Fault::Io(format!("it has format {format}, this program reads {FORMAT}")).into());
                }
                if found != ours {
                    return Err(Trouble::Lost(LostReason::Foreign));
                }
            }
            None => {
                store.insert("identity", encode(&[], &(FORMAT, ours)).as_slice())?;
            }
        }
        store.insert("owner", owner.0.to_le_bytes().as_slice())?;
        for tables in [VIEW, STAGE] {
            transaction.open_table(tables.rows)?;
            transaction.open_table(tables.sessions)?;
            transaction.open_table(tables.keys)?;
            transaction.open_table(tables.meta)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

impl RowStore for RedbRows {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        Ok(self.guarded(|rows| rows.work(replica, command))?.unwrap_or_else(StoreAnswer::Lost))
    }
}

impl RecoverRows for RedbRows {
    fn replicas(&mut self) -> Result<Vec<ReplicaId>, StoreError> {
        let list = |rows: &mut Self| {
            let read = rows.database.begin_read()?;
            let meta = read.open_table(VIEW.meta)?;
            let mut ids = Vec::new();
            for entry in meta.iter()? {
                ids.push(ReplicaId(entry?.0.value()));
            }
            Ok(ids)
        };
        self.guarded(list)?.map_err(|reason| StoreError::Failed(format!("{reason:?}")))
    }

    fn view(&mut self, replica: ReplicaId) -> Result<Result<ViewState, LostReason>, StoreError> {
        self.guarded(|rows| view_state(&rows.database.begin_read()?, replica))
    }

    fn complete_reset(&mut self, replica: ReplicaId, stage: StageId, base: Position) -> Result<Result<(), LostReason>, StoreError> {
        self.guarded(|rows| rows.swap(replica, stage, base).map(|_| ()))
    }
}

fn decode<T: DeserializeOwned>(place: &[u8], bytes: &[u8]) -> Result<T, Trouble> {
    sealed::decode(place, bytes).ok_or(Trouble::Lost(LostReason::RowsDamaged))
}

fn read_meta(table: &impl ReadableTable<u64, &'static [u8]>, replica: ReplicaId) -> Result<Option<Meta>, Trouble> {
    let Some(value) = table.get(replica.0)? else { return Ok(None) };
    decode(&place(replica, b"meta"), value.value()).map(Some)
}

fn meta(read: &ReadTransaction, replica: ReplicaId) -> Result<Meta, Trouble> {
    read_meta(&read.open_table(VIEW.meta)?, replica)?.ok_or(Trouble::Lost(LostReason::RowsMissing))
}

fn put_meta(transaction: &WriteTransaction, tables: Tables, replica: ReplicaId, meta: Meta) -> Result<(), Trouble> {
    transaction.open_table(tables.meta)?.insert(replica.0, encode(&place(replica, b"meta"), &meta).as_slice())?;
    Ok(())
}

/// Removes everything of a replica from the tables.
fn clear(transaction: &WriteTransaction, tables: Tables, replica: ReplicaId) -> Result<(), Trouble> {
    let id = replica.0;
    transaction.open_table(tables.rows)?.retain_in((id, i64::MIN)..=(id, i64::MAX), |_, _| false)?;
    transaction.open_table(tables.sessions)?.retain_in((id, 0)..=(id, u64::MAX), |_, _| false)?;
    transaction.open_table(tables.keys)?.retain_in((id, "")..(id + 1, ""), |_, _| false)?;
    transaction.open_table(tables.meta)?.remove(id)?;
    Ok(())
}

fn move_table<K>(
    transaction: &WriteTransaction,
    from: TableDefinition<'static, K, &'static [u8]>,
    to: TableDefinition<'static, K, &'static [u8]>,
    first: K,
    last: K,
) -> Result<(), Trouble>
where
    K: redb::Key + Copy + 'static,
    for<'a> K: redb::Value<SelfType<'a> = K> + std::borrow::Borrow<K>,
{
    let source = transaction.open_table(from)?;
    let mut target = transaction.open_table(to)?;
    for entry in source.range::<K>(first..=last)? {
        let (key, value) = entry?;
        target.insert(key.value(), value.value())?;
    }
    Ok(())
}

fn move_keys(transaction: &WriteTransaction, replica: ReplicaId) -> Result<(), Trouble> {
    let source = transaction.open_table(STAGE.keys)?;
    let mut target = transaction.open_table(VIEW.keys)?;
    for entry in source.range((replica.0, "")..(replica.0 + 1, ""))? {
        let (key, value) = entry?;
        target.insert(key.value(), value.value())?;
    }
    Ok(())
}

fn view_state(read: &ReadTransaction, replica: ReplicaId) -> Result<ViewState, Trouble> {
    let (session_floor, applied, ..) = meta(read, replica)?;
    let mut state = ViewState { session_floor, applied, ..ViewState::default() };
    for entry in read.open_table(VIEW.sessions)?.range((replica.0, 0)..=(replica.0, u64::MAX))? {
        let (key, value) = entry?;
        let id = key.value().1;
        let session: SessionState = decode(&place(replica, &id.to_le_bytes()), value.value())?;
        state.sessions.insert(SessionId(id), session);
    }
    for entry in read.open_table(VIEW.keys)?.range((replica.0, "")..(replica.0 + 1, ""))? {
        let (key, value) = entry?;
        let known: IdempotencyState = decode(&place(replica, key.value().1.as_bytes()), value.value())?;
        state.idempotency.insert(key.value().1.into(), known);
    }
    Ok(state)
}

fn rows(read: &ReadTransaction, replica: ReplicaId, query: &RowQuery) -> Result<RowPage, Trouble> {
    let table = read.open_table(VIEW.rows)?;
    let mut page = RowPage::default();
    match query {
        RowQuery::Keys(keys) => {
            for key in keys {
                if let Some(value) = table.get((replica.0, key.0))? {
                    page.rows.push(decode(&row_place(replica, *key), value.value())?);
                }
            }
        }
        RowQuery::Range { range, .. } if range.is_empty() => {}
        RowQuery::Range { range, limit, bytes_max } => {
            let mut bytes = 0;
            for entry in table.range((replica.0, range.low.0)..=(replica.0, range.high.0))? {
                if page.rows.len() >= *limit as usize || (bytes >= *bytes_max as usize && !page.rows.is_empty()) {
                    page.more = true;
                    break;
                }
                let (key, value) = entry?;
                let value = value.value();
                bytes += value.len();
                page.rows.push(decode(&row_place(replica, Key(key.value().1)), value)?);
            }
        }
    }
    Ok(page)
}

/// Sessions and idempotency keys first, then rows.
fn chunk(read: &ReadTransaction, replica: ReplicaId, cursor: Option<SnapshotCursor>, bytes_max: usize) -> Result<SnapshotChunk, Trouble> {
    let (session_floor, ..) = meta(read, replica)?;
    let mut chunk = SnapshotChunk { session_floor, ..SnapshotChunk::default() };
    let mut bytes = 0;
    let (after, from) = match cursor {
        None => {
            for entry in read.open_table(VIEW.sessions)?.range((replica.0, 0)..=(replica.0, u64::MAX))? {
                let (key, value) = entry?;
                let id = key.value().1;
                bytes += value.value().len();
                chunk.sessions.push((SessionId(id), decode(&place(replica, &id.to_le_bytes()), value.value())?));
            }
            (Some(None), Key(i64::MIN))
        }
        Some(SnapshotCursor::AfterIdempotency(key)) => (Some(Some(key)), Key(i64::MIN)),
        Some(SnapshotCursor::FromKey(key)) => (None, key),
    };
    if let Some(after) = after {
        let first = after.as_deref().unwrap_or_default();
        for entry in read.open_table(VIEW.keys)?.range((replica.0, first)..(replica.0 + 1, ""))? {
            let (key, value) = entry?;
            let key = key.value().1;
            if after.as_deref() == Some(key) {
                continue;
            }
            if bytes >= bytes_max
                && let Some((last, _)) = chunk.idempotency.last()
            {
                chunk.next = Some(SnapshotCursor::AfterIdempotency(last.clone()));
                return Ok(chunk);
            }
            bytes += value.value().len() + key.len();
            chunk.idempotency.push((key.into(), decode(&place(replica, key.as_bytes()), value.value())?));
        }
    }
    for entry in read.open_table(VIEW.rows)?.range((replica.0, from.0)..=(replica.0, i64::MAX))? {
        let (key, value) = entry?;
        let key = Key(key.value().1);
        if bytes >= bytes_max && !chunk.rows.is_empty() {
            chunk.next = Some(SnapshotCursor::FromKey(key));
            break;
        }
        bytes += value.value().len();
        let row: StoredRow = decode(&row_place(replica, key), value.value())?;
        chunk.rows.push(row);
    }
    Ok(chunk)
}

/// Damages what is kept of a replica, for the suite.
#[cfg(test)]
pub(crate) fn damage(disk: &dyn Disk, replica: ReplicaId, part: crate::conformance::rows::Part) {
    use crate::conformance::rows::Part;
    let database = Embedded::open(RedbFile(disk.open(ROWS_FILE).expect("opens"))).expect("a database");
    let transaction = database.begin_write().expect("ours");
    {
        let mut rows = transaction.open_table(VIEW.rows).expect("a table");
        let mut sessions = transaction.open_table(VIEW.sessions).expect("a table");
        let mut keys = transaction.open_table(VIEW.keys).expect("a table");
        let mut meta = transaction.open_table(VIEW.meta).expect("a table");
        let id = replica.0;
        let flipped = |value: Option<redb::AccessGuard<'_, &[u8]>>| {
            let mut bytes = value.expect("it is there").value().to_vec();
            *bytes.last_mut().expect("not empty") ^= 0x10;
            bytes
        };
        match part {
            Part::Row(key) => {
                let bytes = flipped(rows.get((id, key.0)).expect("reads"));
                rows.insert((id, key.0), bytes.as_slice()).expect("written");
            }
            Part::Swapped(one, other) => {
                let bytes = |key: Key| rows.get((id, key.0)).expect("reads").expect("it is there").value().to_vec();
                let values = (bytes(one), bytes(other));
                rows.insert((id, one.0), values.1.as_slice()).expect("written");
                rows.insert((id, other.0), values.0.as_slice()).expect("written");
            }
            Part::Session(session) => {
                let bytes = flipped(sessions.get((id, session.0)).expect("reads"));
                sessions.insert((id, session.0), bytes.as_slice()).expect("written");
            }
            Part::Idempotency(key) => {
                let bytes = flipped(keys.get((id, key)).expect("reads"));
                keys.insert((id, key), bytes.as_slice()).expect("written");
            }
            Part::Applied => {
                let bytes = flipped(meta.get(id).expect("reads"));
                meta.insert(id, bytes.as_slice()).expect("written");
            }
        }
    }
    transaction.commit().expect("written");
}
