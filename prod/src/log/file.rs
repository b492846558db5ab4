//! The shared log in one file: a header, then frames of records, each with its length, a checksum and how far the file was synced when it
//! was written. A copy of what the records amount to is kept in memory (its entries are shared with the machine), so that the file can
//! be written anew, without what is obsolete, whenever that is most of it.
//!
//! Weighed against the crate `raft-engine`: that one brings its own file system layer and threads, so it does not run on the simulated
//! disk, and does not tell a torn tail from a rotted record.

use super::{Log, LogError};
use crate::disk::{Disk, DiskFile};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap, io, sync::Arc};
use twinshard_core::{
    command::Entry,
    id::{ClusterId, Epoch, LogIndex, MapVersion, OwnerNumber, Position, ReplicaId, ServerId, ShardId, StageId},
    map::ClusterMap,
    storage::{LogBatch, LogRecord},
};

/// The name of the log's file.
pub const LOG_FILE: &str = "log";
/// Its name while it is written anew.
const NEW_FILE: &str = "log.new";
/// The name of one that was found unreadable.
const DAMAGED_FILE: &str = "log.damaged";
/// What the file begins with.
const MAGIC: [u8; 8] = *b"TWSHLOG\0";
/// The format of the frames.
const FORMAT: u32 = 1;
/// Magic, format, cluster, server, owner, checksum.
const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 8 + 4;
/// How far the file is synced, and a checksum of that; after the header.
const MARK_BYTES: usize = 8 + 4;
/// Where the frames begin.
const FRAMES_AT: u64 = (HEADER_BYTES + MARK_BYTES) as u64;
/// Length, checksum, synced-to mark.
const FRAME_BYTES: usize = 4 + 4 + 8;
/// The longest frame: a batch is at most some messages' worth of entries.
const FRAME_MAX: usize = 1 << 30;
/// The file is written anew when it is longer than this and less than half of it is needed. A guess.
const REWRITE_BYTES_MIN: u64 = 64 << 20;

/// What the records of one replica amount to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaLog {
    /// Its shard.
    pub shard: ShardId,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// The commit hint.
    pub commit: LogIndex,
    /// What the log was compacted or reset to.
    pub base: Position,
    /// The entries after it.
    pub entries: Vec<Arc<Entry>>,
    /// The last reset: the stage that has to be the view, at its position.
    pub reset: Option<(StageId, Position)>,
    /// A record of it that was synced does not verify, or does not follow (R9).
    pub damaged: bool,
}

/// What all records amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The replicas that were created and not removed.
    pub replicas: BTreeMap<ReplicaId, ReplicaLog>,
    /// The newest map seen.
    pub map: Option<(MapVersion, Arc<ClusterMap>)>,
    /// A synced part of the file does not verify: what it held, nobody knows.
    pub damaged: bool,
}

impl LogState {
    /// Takes one record. One that does not follow makes its replica damaged: the log is not what was written.
    pub fn apply(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Create { replica, shard } => {
                let new = ReplicaLog {
                    shard: *shard,
                    promised: Epoch(0),
                    commit: LogIndex(0),
                    base: Position::ZERO,
                    entries: Vec::new(),
                    reset: None,
                    damaged: false,
                };
                self.replicas.insert(*replica, new);
            }
            LogRecord::Remove { replica } => {
                self.replicas.remove(replica);
            }
            LogRecord::Map { version, map } => {
                if self.map.as_ref().is_none_or(|(known, _)| known < version) {
                    self.map = Some((*version, Arc::clone(map)));
                }
            }
            LogRecord::Promise { replica, epoch } => self.change(*replica, |log| {
                log.promised = log.promised.max(*epoch);
                true
            }),
            LogRecord::Truncate { replica, after } => self.change(*replica, |log| {
                let kept = after.0.saturating_sub(log.base.index.0);
                log.entries.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
                *after >= log.base.index
            }),
            LogRecord::Append { replica, entries } => self.change(*replica, |log| {
                for entry in entries {
                    if entry.position.index != log.last().next() {
                        return false;
                    }
                    log.entries.push(Arc::clone(entry));
                }
                true
            }),
            LogRecord::Commit { replica, index } => self.change(*replica, |log| {
                log.commit = log.commit.max(*index);
                true
            }),
            LogRecord::Reset { replica, base, stage } => self.change(*replica, |log| {
                log.entries.clear();
                log.base = *base;
                log.commit = log.commit.max(base.index);
                log.reset = Some((*stage, *base));
                true
            }),
            LogRecord::Compact { replica, base } => self.change(*replica, |log| {
                let gone = base.index.0.saturating_sub(log.base.index.0);
                let gone = usize::try_from(gone).unwrap_or(usize::MAX);
                if gone > log.entries.len() {
                    return false;
                }
                log.entries.drain(..gone);
                log.base = log.base.max(*base);
                true
            }),
        }
    }

    fn change(&mut self, replica: ReplicaId, change: impl FnOnce(&mut ReplicaLog) -> bool) {
        // A record of a replica that is not here is one of a replica whose creation was lost to damage.
        match self.replicas.get_mut(&replica) {
            Some(log) => log.damaged |= !change(log),
            None => self.damaged = true,
        }
    }
}

impl ReplicaLog {
    fn last(&self) -> LogIndex {
        self.entries.last().map_or(self.base.index, |entry| entry.position.index)
    }
}

/// What a frame holds.
#[derive(Debug, Serialize, Deserialize)]
enum Frame<'a> {
    /// What a machine wanted persisted.
    Batch(Cow<'a, LogBatch>),
    /// All that is known of a replica, in a file that was written anew.
    Replica(ReplicaId, Cow<'a, ReplicaLog>),
    /// The newest map, in a file that was written anew.
    Map(MapVersion, Cow<'a, ClusterMap>),
}

/// The log in a file.
#[derive(Debug)]
pub struct FileLog {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    identity: Identity,
    owner: OwnerNumber,
    /// Where the next frame goes; everything before is synced.
    end: u64,
    /// How long the file was when it was last written anew.
    base_bytes: u64,
    state: LogState,
    failed: bool,
}

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Of which server.
    pub server: ServerId,
}

impl FileLog {
    /// Opens the log, or makes an empty one, and takes ownership: the owner number is greater than at every opening before, durably.
    /// A torn tail is cut; damage before it is told in [`Self::state`]. A file that does not begin like a log is put aside, and the log is
    /// empty: the server's replicas are lost then. `first_owner` is the owner number of a new log, drawn at random so that a server that
    /// lost its disk does not get an old number again (R17).
    ///
    /// # Errors
    /// If the file system fails, the format is another, or the log is another cluster's or server's.
    pub fn open(disk: Arc<dyn Disk>, identity: Identity, first_owner: OwnerNumber) -> Result<Self, LogError> {
        let mut file = disk.open(LOG_FILE)?;
        let mut header = [0; HEADER_BYTES];
        // A file that is shorter was never synced once: nothing was ever promised.
        let mut owner = None;
        if file.len()? >= HEADER_BYTES as u64 {
            file.read_at(0, &mut header)?;
            match read_header(&header, identity) {
                Ok(found) => owner = Some(found),
                Err(LogError::Unreadable) => {
                    tracing::error!("the log's header does not verify; it is kept as {DAMAGED_FILE} and the replicas are refilled");
                    disk.rename(LOG_FILE, DAMAGED_FILE)?;
                    file = disk.open(LOG_FILE)?;
                }
                Err(error) => return Err(error),
            }
        }
        let mut log = Self {
            disk,
            file,
            identity,
            owner: owner.map_or(first_owner, OwnerNumber::next),
            end: FRAMES_AT,
            base_bytes: FRAMES_AT,
            state: LogState::default(),
            failed: false,
        };
        if owner.is_some() {
            log.read()?;
        }
        log.file.write_at(0, &write_header(log.identity, log.owner))?;
        log.file.set_len(log.end)?;
        log.file.sync()?;
        log.mark()?;
        if log.state.damaged {
            for replica in log.state.replicas.values_mut() {
                replica.damaged = true;
            }
            log.rewrite()?;
        }
        Ok(log)
    }

    /// What is in it.
    #[must_use]
    pub const fn state(&self) -> &LogState {
        &self.state
    }

    /// Who owns it.
    #[must_use]
    pub const fn owner(&self) -> OwnerNumber {
        self.owner
    }

    fn read(&mut self) -> Result<(), LogError> {
        let len = self.file.len()?;
        let mut mark = self.read_mark()?;
        let mut at = FRAMES_AT;
        // A frame that does not verify: torn if nothing from here on was ever synced, rotted otherwise (R9).
        while let Some((payload, synced)) = self.read_frame(at, len)? {
            mark = mark.max(synced);
            let next = at + (FRAME_BYTES + payload.len()) as u64;
            match postcard::from_bytes::<Frame<'_>>(&payload) {
                Ok(Frame::Batch(batch)) => batch.iter().for_each(|record| self.state.apply(record)),
                Ok(Frame::Replica(replica, log)) => {
                    self.state.replicas.insert(replica, log.into_owned());
                }
                Ok(Frame::Map(version, map)) => self.state.map = Some((version, Arc::new(map.into_owned()))),
                // It verifies but is not ours to read.
                Err(_) => self.state.damaged = true,
            }
            at = next;
        }
        self.state.damaged |= at < mark;
        self.end = at;
        Ok(())
    }

    /// The payload of the frame at `at` and the mark it carries; `None` if there is none that verifies.
    fn read_frame(&self, at: u64, len: u64) -> Result<Option<(Vec<u8>, u64)>, LogError> {
        if at + FRAME_BYTES as u64 > len {
            return Ok(None);
        }
        let mut head = [0; FRAME_BYTES];
        self.file.read_at(at, &mut head)?;
        let size = u32_at(&head, 0) as usize;
        if size == 0 || size > FRAME_MAX || at + (FRAME_BYTES + size) as u64 > len {
            return Ok(None);
        }
        let mut payload = vec![0; size];
        self.file.read_at(at + FRAME_BYTES as u64, &mut payload)?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[8..]), &payload);
        Ok((sum == u32_at(&head, 4)).then(|| (payload, u64_at(&head, 8))))
    }

    fn read_mark(&self) -> Result<u64, LogError> {
        let mut mark = [0; MARK_BYTES];
        if self.file.len()? < FRAMES_AT {
            return Ok(0);
        }
        self.file.read_at(HEADER_BYTES as u64, &mut mark)?;
        Ok(if crc32c::crc32c(&mark[..8]) == u32_at(&mark, 8) { u64_at(&mark, 0) } else { 0 })
    }

    /// Notes how far the file is synced. Not synced itself: it may only ever say too little.
    fn mark(&self) -> io::Result<()> {
        let mut mark = [0; MARK_BYTES];
        mark[..8].copy_from_slice(&self.end.to_le_bytes());
        let sum = crc32c::crc32c(&mark[..8]);
        mark[8..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_at(HEADER_BYTES as u64, &mark)
    }

    fn frame(&self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), LogError> {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        let taken = std::mem::take(out);
        *out = postcard::to_extend(frame, taken).map_err(io::Error::other)?;
        let size = out.len() - start - FRAME_BYTES;
        let size =
            u32::try_from(size).ok().filter(|size| *size as usize <= FRAME_MAX).ok_or_else(|| io::Error::other("a batch is too large"))?;
        out[start..start + 4].copy_from_slice(&size.to_le_bytes());
        out[start + 8..start + 16].copy_from_slice(&self.end.to_le_bytes());
        let sum = crc32c::crc32c(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
        Ok(())
    }

    fn write(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        let mut header = [0; HEADER_BYTES];
        self.file.read_at(0, &mut header)?;
        if read_header(&header, self.identity)? != self.owner {
            return Err(LogError::TakenOver);
        }
        let mut bytes = Vec::new();
        for batch in batches {
            self.frame(&Frame::Batch(Cow::Borrowed(batch)), &mut bytes)?;
            batch.iter().for_each(|record| self.state.apply(record));
        }
        self.file.write_at(self.end, &bytes)?;
        self.file.sync()?;
        self.end += bytes.len() as u64;
        self.mark()?;
        if self.end > REWRITE_BYTES_MIN.max(self.base_bytes * 2) {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Writes what is needed to a new file and puts it in the place of the old one.
    fn rewrite(&mut self) -> Result<(), LogError> {
        let file = self.disk.open(NEW_FILE)?;
        let mut bytes = write_header(self.identity, self.owner).to_vec();
        bytes.resize(usize::try_from(FRAMES_AT).unwrap_or(usize::MAX), 0);
        for (replica, log) in &self.state.replicas {
            self.frame(&Frame::Replica(*replica, Cow::Borrowed(log)), &mut bytes)?;
        }
        if let Some((version, map)) = &self.state.map {
            self.frame(&Frame::Map(*version, Cow::Borrowed(map)), &mut bytes)?;
        }
        // The marks in these frames are the old file's; they must not speak of the new one.
        let mut at = usize::try_from(FRAMES_AT).unwrap_or(usize::MAX);
        while at < bytes.len() {
            let size = u32_at(&bytes, at) as usize;
            bytes[at + 8..at + 16].fill(0);
            let sum = crc32c::crc32c(&bytes[at + 8..at + FRAME_BYTES + size]);
            bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
            at += FRAME_BYTES + size;
        }
        file.set_len(0)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        self.disk.rename(NEW_FILE, LOG_FILE)?;
        self.file = file;
        self.end = bytes.len() as u64;
        self.base_bytes = self.end;
        self.state.damaged = false;
        self.mark()?;
        Ok(())
    }
}

impl Log for FileLog {
    fn persist(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        if self.failed {
            return Err(LogError::Io(io::Error::other("it failed before: nothing is known of what is durable")));
        }
        let result = self.write(batches);
        self.failed = result.is_err(); // R9
        result
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn write_header(identity: Identity, owner: OwnerNumber) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..28].copy_from_slice(&identity.cluster.0.to_le_bytes());
    header[28..36].copy_from_slice(&identity.server.0.to_le_bytes());
    header[36..44].copy_from_slice(&owner.0.to_le_bytes());
    let sum = crc32c::crc32c(&header[..44]);
    header[44..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn read_header(header: &[u8; HEADER_BYTES], identity: Identity) -> Result<OwnerNumber, LogError> {
    if header[..8] != MAGIC || crc32c::crc32c(&header[..44]) != u32_at(header, 44) {
        return Err(LogError::Unreadable);
    }
    let found = u32_at(header, 8);
    if found != FORMAT {
        return Err(LogError::Format { found, expected: FORMAT });
    }
    let cluster = u128::from(u64_at(header, 12)) | u128::from(u64_at(header, 20)) << 64;
    if (Identity { cluster: ClusterId(cluster), server: ServerId(u64_at(header, 28)) }) != identity {
        return Err(LogError::Foreign);
    }
    Ok(OwnerNumber(u64_at(header, 36)))
}
