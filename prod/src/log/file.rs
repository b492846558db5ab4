//! The shared log in one file: a header, then frames of records. A frame's head has a checksum of its own and tells the frame's length, how
//! far the file was synced when it was written, and whose records it holds: so a frame that rotted costs the replicas it touches and no
//! others. A copy of what the records amount to is kept in memory (its entries are shared with the machine), so that the file can
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
    storage::{Lives, LogBatch, LogRecord},
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
const FORMAT: u32 = 4;
/// Magic, format, cluster, server, owner, checksum.
const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 8 + 4;
/// How far the file is synced, and a checksum of that; after the header.
const MARK_BYTES: usize = 8 + 4;
/// Where the frames begin.
const FRAMES_AT: u64 = (HEADER_BYTES + MARK_BYTES) as u64;
/// Length, checksum of the payload, synced-to mark, whose records, checksum of the head.
const FRAME_BYTES: usize = 4 + 4 + 8 + 8 + 4;
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
    /// The lives of the server that this disk has seen.
    pub lives: Lives,
    /// A synced part of the file does not verify: what it held, nobody knows.
    pub damaged: bool,
    /// Whose records did not verify, as a set of [`mark_of`].
    pub damaged_marks: u64,
}

/// A set of one replica among 64: several share a place, so that a set may hold too many, never too few.
const fn mark_of(replica: ReplicaId) -> u64 {
    1 << (replica.0 % 64)
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
            LogRecord::Lives(lives) => self.lives.clone_from(lives),
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
        match self.replicas.get_mut(&replica) {
            Some(log) => log.damaged |= !change(log),
            // Its creation did not verify.
            None if self.damaged_marks & mark_of(replica) != 0 => {}
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
    /// The lives of the server, in a file that was written anew.
    Lives(Cow<'a, Lives>),
}

impl Frame<'_> {
    fn marks(&self) -> u64 {
        match self {
            Self::Batch(batch) => batch.iter().filter_map(LogRecord::replica).fold(0, |marks, replica| marks | mark_of(replica)),
            Self::Replica(replica, _) => mark_of(*replica),
            Self::Map(..) | Self::Lives(_) => 0,
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
struct Head {
    size: usize,
    sum: u32,
    synced: u64,
    marks: u64,
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
    /// How long the file may become before it is written anew.
    rewrite_at: u64,
    /// See [`REWRITE_BYTES_MIN`].
    rewrite_bytes_min: u64,
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
        Self::open_sized(disk, identity, first_owner, REWRITE_BYTES_MIN)
    }

    /// As [`Self::open`]; written anew from another length on.
    pub(crate) fn open_sized(
        disk: Arc<dyn Disk>,
        identity: Identity,
        first_owner: OwnerNumber,
        rewrite_bytes_min: u64,
    ) -> Result<Self, LogError> {
        if disk.exists(NEW_FILE)? {
            // What a crash left of writing anew only takes room.
            disk.open(NEW_FILE)?.set_len(0)?;
        }
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
            rewrite_at: rewrite_bytes_min,
            rewrite_bytes_min,
            state: LogState::default(),
            failed: false,
        };
        if owner.is_some() {
            log.read()?;
            log.rewrite_at = rewrite_bytes_min.max(log.end);
        }
        log.file.write_at(0, &write_header(log.identity, log.owner))?;
        if log.state.damaged || log.state.damaged_marks != 0 {
            // The old file tells of the damage until the new one does.
            log.file.sync()?;
            log.mark_damaged();
            let (file, end) = log.write_anew()?;
            log.replace(file, end)?;
        } else {
            log.file.set_len(log.end)?;
            log.file.sync()?;
            log.mark()?;
        }
        Ok(log)
    }

    /// What a log of the cluster holds, and whose it is, without changing anything: its owner, a torn tail and what is damaged stay as they
    /// are. For tools.
    ///
    /// # Errors
    /// If there is none, it cannot be read ([`LogError::Unreadable`]: it does not begin like a log), the format is another, or it is
    /// another cluster's.
    pub fn look(disk: Arc<dyn Disk>, cluster: ClusterId) -> Result<(ServerId, LogState), LogError> {
        if !disk.exists(LOG_FILE)? {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        let file = disk.open(LOG_FILE)?;
        let mut header = [0; HEADER_BYTES];
        if file.len()? < HEADER_BYTES as u64 {
            return Err(LogError::Unreadable);
        }
        file.read_at(0, &mut header)?;
        let identity = Identity { cluster, server: ServerId(u64_at(&header, 28)) };
        let owner = read_header(&header, identity)?;
        let (state, rewrite) = (LogState::default(), REWRITE_BYTES_MIN);
        let mut log =
            Self { disk, file, identity, owner, end: FRAMES_AT, rewrite_at: rewrite, rewrite_bytes_min: rewrite, state, failed: true };
        log.read()?;
        if log.state.damaged || log.state.damaged_marks != 0 {
            log.mark_damaged();
        }
        Ok((identity.server, log.state))
    }

    fn mark_damaged(&mut self) {
        let LogState { replicas, damaged, damaged_marks, .. } = &mut self.state;
        for (replica, log) in replicas.iter_mut() {
            log.damaged |= *damaged || *damaged_marks & mark_of(*replica) != 0;
        }
        let lost: Vec<String> = replicas.iter().filter(|(_, log)| log.damaged).map(|(replica, _)| replica.to_string()).collect();
        tracing::error!(replicas = lost.join(" "), "synced parts of the log do not verify; the replicas they touch are lost and refilled");
        (*damaged, *damaged_marks) = (false, 0);
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
        // How far anything that verifies says that the file was synced: before that, what does not verify rotted; after, it is torn (R9).
        let mut synced = self.read_mark()?;
        let mut at = FRAMES_AT;
        while let Some(head) = self.read_head(at, len)? {
            synced = synced.max(head.synced);
            at += (FRAME_BYTES + head.size) as u64;
        }
        let mut at = FRAMES_AT;
        while let Some(head) = self.read_head(at, len)? {
            let mut payload = vec![0; head.size];
            self.file.read_at(at + FRAME_BYTES as u64, &mut payload)?;
            if crc32c::crc32c(&payload) == head.sum {
                match postcard::from_bytes::<Frame<'_>>(&payload) {
                    Ok(Frame::Batch(batch)) => batch.iter().for_each(|record| self.state.apply(record)),
                    Ok(Frame::Replica(replica, log)) => {
                        self.state.replicas.insert(replica, log.into_owned());
                    }
                    Ok(Frame::Lives(lives)) => self.state.lives = lives.into_owned(),
                    Ok(Frame::Map(version, map)) => self.state.map = Some((version, Arc::new(map.into_owned()))),
                    // It verifies but is not ours to read.
                    Err(_) => self.state.damaged = true,
                }
            } else if at < synced {
                self.state.damaged_marks |= head.marks;
            } else {
                break;
            }
            at += (FRAME_BYTES + head.size) as u64;
        }
        self.state.damaged |= at < synced;
        self.end = at;
        Ok(())
    }

    /// The head of the frame at `at`; `None` if there is none that verifies with room for what it tells of.
    fn read_head(&self, at: u64, len: u64) -> Result<Option<Head>, LogError> {
        if at + FRAME_BYTES as u64 > len {
            return Ok(None);
        }
        let mut head = [0; FRAME_BYTES];
        self.file.read_at(at, &mut head)?;
        let size = u32_at(&head, 0) as usize;
        let verifies = crc32c::crc32c(&head[..FRAME_BYTES - 4]) == u32_at(&head, FRAME_BYTES - 4);
        if !verifies || size > FRAME_MAX || at + (FRAME_BYTES + size) as u64 > len {
            return Ok(None);
        }
        Ok(Some(Head { size, sum: u32_at(&head, 4), synced: u64_at(&head, 8), marks: u64_at(&head, 16) }))
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
        self.file.write_at(HEADER_BYTES as u64, &write_mark(self.end))
    }

    fn frame(frame: &Frame<'_>, synced: u64, out: &mut Vec<u8>) -> Result<(), LogError> {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        *out = postcard::to_extend(frame, std::mem::take(out)).map_err(io::Error::other)?;
        let (head, payload) = out[start..].split_at_mut(FRAME_BYTES);
        let size = u32::try_from(payload.len()).ok().filter(|size| *size as usize <= FRAME_MAX);
        let size = size.ok_or_else(|| io::Error::other("a batch is too large"))?;
        head[..4].copy_from_slice(&size.to_le_bytes());
        head[4..8].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        head[8..16].copy_from_slice(&synced.to_le_bytes());
        head[16..24].copy_from_slice(&frame.marks().to_le_bytes());
        let sum = crc32c::crc32c(&head[..FRAME_BYTES - 4]);
        head[FRAME_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
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
            Self::frame(&Frame::Batch(Cow::Borrowed(batch)), self.end, &mut bytes)?;
            batch.iter().for_each(|record| self.state.apply(record));
        }
        self.file.write_at(self.end, &bytes)?;
        self.file.sync()?;
        self.end += bytes.len() as u64;
        self.mark()?;
        if self.end > self.rewrite_at {
            match self.write_anew() {
                Ok((file, end)) => self.replace(file, end)?,
                // What was asked for is durable all the same.
                Err(error) => {
                    tracing::warn!(%error, "the log could not be written anew; it goes on as it is");
                    self.rewrite_at = self.end + self.rewrite_bytes_min;
                    self.disk.open(NEW_FILE)?.set_len(0)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is needed to a new file, durably; the file and its length.
    fn write_anew(&self) -> Result<(Arc<dyn DiskFile>, u64), LogError> {
        let mut bytes = write_header(self.identity, self.owner).to_vec();
        bytes.resize(usize::try_from(FRAMES_AT).unwrap_or(usize::MAX), 0);
        for (replica, log) in &self.state.replicas {
            Self::frame(&Frame::Replica(*replica, Cow::Borrowed(log)), 0, &mut bytes)?;
        }
        Self::frame(&Frame::Lives(Cow::Borrowed(&self.state.lives)), 0, &mut bytes)?;
        if let Some((version, map)) = &self.state.map {
            Self::frame(&Frame::Map(*version, Cow::Borrowed(map)), 0, &mut bytes)?;
        }
        // Under its own name it is synced whole.
        let end = bytes.len() as u64;
        bytes[HEADER_BYTES..HEADER_BYTES + MARK_BYTES].copy_from_slice(&write_mark(end));
        let file = self.disk.open(NEW_FILE)?;
        file.set_len(0)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        Ok((file, end))
    }

    /// Puts a file that was written anew in the place of the old one.
    fn replace(&mut self, file: Arc<dyn DiskFile>, end: u64) -> Result<(), LogError> {
        self.disk.rename(NEW_FILE, LOG_FILE)?;
        self.file = file;
        self.end = end;
        self.rewrite_at = self.rewrite_bytes_min.max(end * 2);
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

fn write_mark(synced: u64) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..8].copy_from_slice(&synced.to_le_bytes());
    let sum = crc32c::crc32c(&mark[..8]);
    mark[8..].copy_from_slice(&sum.to_le_bytes());
    mark
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
