use super::*;
use crate::{disk::DiskFile, log::file::FileLog};

/// The length from which a log is written anew: often, here.
const REWRITE_BYTES: u64 = 3_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    Nothing,
    /// A disk that says that it synced and did not.
    SyncsNothing,
    /// A batch is acknowledged before it is written.
    AcknowledgesEarly,
    /// A batch for which there is no room is acknowledged.
    HidesFullDisk,
    /// Batches are written last first.
    Reverses,
    /// Promises are not written.
    ForgetsPromises,
    /// What another has taken over is written to on paper only.
    HidesTakeover,
    /// What does not verify is passed over, and what is left is served.
    HidesDamage,
    /// What does not verify ends the log, as if it were torn.
    TakesRotForTorn,
    /// Its first failure is forgotten: what comes next is answered.
    GoesOn,
}

struct LogVenue {
    disk: MemoryDisk,
    bug: Bug,
}

struct BrokenLog {
    log: FileLog,
    bug: Bug,
    unwritten: Vec<LogBatch>,
    failed: bool,
}

impl Venue for LogVenue {
    type Log = BrokenLog;

    fn disk(&self) -> &MemoryDisk {
        &self.disk
    }

    fn open(&mut self, identity: Identity) -> Result<(BrokenLog, OwnerNumber, LogState), LogError> {
        if self.bug == Bug::TakesRotForTorn {
            // Without the mark nothing says that it was synced, at least of the last write.
            let _ = overwrite(&self.disk, 48, &[0; 12]);
        }
        let disk: Arc<dyn Disk> = match self.bug {
            Bug::SyncsNothing => Arc::new(LyingDisk(self.disk.clone())),
            _ => Arc::new(self.disk.clone()),
        };
        let log = FileLog::open_sized(disk, identity, OwnerNumber(5), REWRITE_BYTES)?;
        let mut state = log.state().clone();
        if self.bug == Bug::HidesDamage {
            state.replicas.values_mut().for_each(|log| log.damaged = false);
        }
        let owner = log.owner();
        Ok((BrokenLog { log, bug: self.bug, unwritten: Vec::new(), failed: false }, owner, state))
    }
}

impl Log for BrokenLog {
    fn persist(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        let mut batches = batches.to_vec();
        match self.bug {
            Bug::AcknowledgesEarly => batches = std::mem::replace(&mut self.unwritten, batches),
            Bug::Reverses => batches.reverse(),
            Bug::ForgetsPromises => {
                batches.iter_mut().for_each(|batch| batch.retain(|record| !matches!(record, LogRecord::Promise { .. })));
            }
            Bug::GoesOn if self.failed => return Ok(()),
            _ => {}
        }
        let result = self.log.persist(&batches);
        self.failed |= result.is_err();
        match (result, self.bug) {
            (Err(LogError::Io(error)), Bug::HidesFullDisk) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            (Err(LogError::TakenOver), Bug::HidesTakeover) => Ok(()),
            (result, _) => result,
        }
    }
}

#[derive(Debug)]
struct LyingDisk(MemoryDisk);

#[derive(Debug)]
struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile(self.0.open(name)?)))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.0.exists(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
}

impl DiskFile for LyingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn found(bug: Bug) -> Result<Tried, String> {
    check(|| LogVenue { disk: MemoryDisk::new(), bug })
}

#[test]
fn the_log_in_a_file_conforms() {
    match found(Bug::Nothing) {
        Ok(tried) => assert!(tried.interrupted > 20 && tried.full > 20 && tried.damaged > 20 && tried.spared > 20, "{tried:?}"),
        Err(words) => panic!("{words}"),
    }
}

#[test]
fn the_log_in_a_file_outlives_much_random_work() {
    let mut tried = Tried::default();
    for seed in 1_000..1_600 {
        let mut venue = LogVenue { disk: MemoryDisk::new(), bug: Bug::Nothing };
        random_work(&mut venue, seed, 60, &mut tried).unwrap_or_else(|words| panic!("seed {seed}: {words}"));
    }
}

#[test]
fn every_planted_bug_of_a_log_is_found() {
    for bug in [
        Bug::SyncsNothing,
        Bug::AcknowledgesEarly,
        Bug::HidesFullDisk,
        Bug::Reverses,
        Bug::ForgetsPromises,
        Bug::HidesTakeover,
        Bug::HidesDamage,
        Bug::TakesRotForTorn,
        Bug::GoesOn,
    ] {
        assert!(found(bug).is_err(), "{bug:?} was not found");
    }
}
