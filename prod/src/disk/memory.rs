//! A simulated disk: what was synced survives a crash; of what was not, each write may be whole, torn at a sector, or gone. Deterministic:
//! the caller brings the randomness.

use super::{Disk, DiskFile};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// A simulated disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<MemoryFile>>>>,
    limits: Arc<Mutex<Limits>>,
}

/// What the disk still grants, to all its files together.
#[derive(Debug, Default)]
struct Limits {
    /// By how many bytes files may still grow; without bound if `None`.
    room: Option<u64>,
    /// How many changes and syncs are still done before the power fails; it does not if `None`.
    power: Option<u64>,
}

impl Limits {
    fn power(&mut self) -> io::Result<()> {
        match &mut self.power {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Takes room from one offset to another; how far it suffices.
    fn allocate(&mut self, from: usize, to: usize) -> usize {
        match &mut self.room {
            Some(room) if to > from => {
                let granted = usize::try_from(*room).unwrap_or(usize::MAX).min(to - from);
                *room -= granted as u64;
                from + granted
            }
            _ => to,
        }
    }
}

#[derive(Debug, Default)]
struct MemoryFile {
    state: Mutex<FileState>,
    limits: Arc<Mutex<Limits>>,
}

#[derive(Debug, Default)]
struct FileState {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What survives.
    durable: Vec<u8>,
    /// What was done since the last sync, in order.
    unsynced: Vec<Write>,
    /// Up to where room is taken: beyond it the file is a hole, as file systems make it of a length that is only set.
    allocated: usize,
}

#[derive(Clone, Debug)]
enum Write {
    Bytes { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn apply(content: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Bytes { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(bytes);
        }
        Write::Length(len) => content.resize(*len, 0),
    }
}

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Power loss, and power again. `random` decides the fate of every write that was not synced. Handles opened before must not be used any
    /// more: they keep the old content to themselves.
    pub fn crash(&self, mut random: impl FnMut() -> u64) {
        held(&self.limits).power = None;
        let mut files = held(&self.files);
        for file in files.values_mut() {
            let survivor = {
                let state = held(&file.state);
                let mut content = state.durable.clone();
                for write in &state.unsynced {
                    match (write, random() % 4) {
                        (_, 0) => {}
                        (Write::Bytes { offset, bytes }, 1) => {
                            // Torn: a prefix of whole sectors.
                            let sectors = bytes.len().div_ceil(SECTOR);
                            let kept = usize::try_from(random() % (sectors as u64 + 1)).unwrap_or(0) * SECTOR;
                            let kept = kept.min(bytes.len());
                            apply(&mut content, &Write::Bytes { offset: *offset, bytes: bytes[..kept].to_vec() });
                        }
                        (write, _) => apply(&mut content, write),
                    }
                }
                FileState { allocated: content.len(), seen: content.clone(), durable: content, unsynced: Vec::new() }
            };
            *file = Arc::new(MemoryFile { state: Mutex::new(survivor), limits: Arc::clone(&self.limits) });
        }
    }

    /// Loses everything.
    pub fn lose(&self) {
        held(&self.files).clear();
    }

    /// Flips one bit of what a file holds, durably, as rot does. `false` if there is no such byte.
    #[must_use]
    pub fn rot(&self, name: &str, offset: usize, bit: u32) -> bool {
        let files = held(&self.files);
        let Some(file) = files.get(name) else { return false };
        let mut state = held(&file.state);
        let flip = |content: &mut Vec<u8>| content.get_mut(offset).map(|byte| *byte ^= 1 << (bit % 8)).is_some();
        flip(&mut state.durable) & flip(&mut state.seen)
    }

    /// How many bytes a file holds; `None` if it is not there.
    #[must_use]
    pub fn file_len(&self, name: &str) -> Option<usize> {
        held(&self.files).get(name).map(|file| held(&file.state).seen.len())
    }

    /// From now on files may grow by so many bytes in all; `None` is without bound. A write that does not fit is done as far as it fits,
    /// and fails.
    pub fn set_room(&self, bytes: Option<u64>) {
        held(&self.limits).room = bytes;
    }

    /// The power fails after so many more changes and syncs: all that come later fail and change nothing, until [`Self::crash`].
    pub fn fail_after(&self, operation_count: u64) {
        held(&self.limits).power = Some(operation_count);
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = held(&self.files);
        if let Some(file) = files.get(name) {
            return Ok(Arc::clone(file) as Arc<dyn DiskFile>);
        }
        held(&self.limits).power()?;
        let file = Arc::new(MemoryFile { state: Mutex::default(), limits: Arc::clone(&self.limits) });
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(held(&self.files).contains_key(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        held(&self.limits).power()?;
        let mut files = held(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(held(&self.state).seen.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = held(&self.state);
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(state.seen.get(offset..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = held(&self.state);
        let mut limits = held(&self.limits);
        limits.power()?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let fits = limits.allocate(state.allocated, offset + bytes.len());
        state.allocated = state.allocated.max(fits);
        let granted = fits.saturating_sub(offset).min(bytes.len());
        if granted > 0 {
            let write = Write::Bytes { offset, bytes: bytes[..granted].to_vec() };
            apply(&mut state.seen, &write);
            state.unsynced.push(write);
        }
        if granted < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = held(&self.state);
        held(&self.limits).power()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        state.allocated = state.allocated.min(len);
        let write = Write::Length(len);
        apply(&mut state.seen, &write);
        state.unsynced.push(write);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        held(&self.limits).power()?;
        let mut state = held(&self.state);
        let state = &mut *state;
        for write in state.unsynced.drain(..) {
            apply(&mut state.durable, &write);
        }
        Ok(())
    }
}
