use super::*;
use crate::{
    disk::{Disk, RealDisk, memory::MemoryDisk},
    rows::{
        memory::{Medium, MemoryRows},
        redb::RedbRows,
    },
};
use std::sync::{Arc, Weak};

/// redb on a disk that loses and tears.
#[derive(Default)]
pub(super) struct RedbInMemory {
    disk: MemoryDisk,
    /// Stands for the lock that a real directory has.
    held: Weak<MemoryDisk>,
}

impl Venue for RedbInMemory {
    type Store = RedbRows;

    fn open(&mut self, identity: Identity, owner: OwnerNumber) -> Result<RedbRows, StoreError> {
        if self.held.strong_count() > 0 {
            return Err(StoreError::Failed("in use".to_owned()));
        }
        let disk = Arc::new(self.disk.clone());
        self.held = Arc::downgrade(&disk);
        RedbRows::open(disk, identity, owner)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn crash(&mut self, random: &mut Random) {
        self.disk.crash(|| random.word());
    }

    fn fail_after(&mut self, operation_count: u64) -> bool {
        self.disk.fail_after(operation_count);
        true
    }

    fn set_room(&mut self, bytes: Option<u64>) -> bool {
        self.disk.set_room(bytes);
        true
    }

    fn lose(&mut self) {
        self.disk.lose();
    }

    fn damage(&mut self, replica: ReplicaId, part: Part) -> bool {
        crate::rows::redb::damage(&self.disk, replica, part);
        true
    }
}

/// redb in a real directory.
struct RedbInFiles {
    dir: tempfile::TempDir,
}

impl Venue for RedbInFiles {
    type Store = RedbRows;

    fn open(&mut self, identity: Identity, owner: OwnerNumber) -> Result<RedbRows, StoreError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(self.dir.path()).map_err(|error| StoreError::Failed(error.to_string()))?);
        RedbRows::open(disk, identity, owner)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn crash(&mut self, _random: &mut Random) {}

    fn lose(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
    }

    fn damage(&mut self, replica: ReplicaId, part: Part) -> bool {
        crate::rows::redb::damage(&RealDisk::open(self.dir.path()).unwrap(), replica, part);
        true
    }
}

/// The store in memory.
#[derive(Default)]
pub(super) struct InMemory {
    medium: Medium,
    copy: Medium,
}

impl Venue for InMemory {
    type Store = MemoryRows;

    fn open(&mut self, identity: Identity, owner: OwnerNumber) -> Result<MemoryRows, StoreError> {
        MemoryRows::open(&self.medium, identity, owner)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn crash(&mut self, _random: &mut Random) {}

    fn lose(&mut self) {
        self.medium.lose();
    }

    fn copy(&mut self, replica: ReplicaId) -> bool {
        self.copy.copy(&self.medium, replica);
        true
    }

    fn go_back(&mut self, replica: ReplicaId) {
        self.medium.copy(&self.copy, replica);
    }
}

fn passes<V: Venue>(fresh: impl FnMut() -> V) {
    if let Err(words) = check(fresh) {
        panic!("{words}");
    }
}

#[test]
fn memory_conforms() {
    passes(InMemory::default);
}

#[test]
fn redb_on_a_disk_that_loses_and_tears_conforms() {
    passes(RedbInMemory::default);
}

#[test]
fn redb_on_the_real_disk_conforms() {
    passes(|| RedbInFiles { dir: tempfile::tempdir().unwrap() });
}

#[test]
fn redb_outlives_many_random_crashes() {
    for seed in 100..160 {
        random_work(&mut RedbInMemory::default(), seed, 100).unwrap_or_else(|words| panic!("seed {seed}: {words}"));
    }
}

/// How many of three replicas are lost when some of the store's file rots, or is cut; the others are whole, and the store can be used.
fn lost_to(seed: u64) -> usize {
    let mut random = Random::new(seed);
    let mut venue = RedbInMemory::default();
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).unwrap();
    let replicas = [1, 2, 3].map(ReplicaId);
    let views = replicas.map(|replica| {
        let keys: Vec<i64> = (0..40).collect();
        create(&mut store, replica, &keys, position(1, 1)).unwrap();
        flush(&mut store, replica, batch(position(1, 2), samples::every_value(position(1, 2)))).unwrap();
        view(&mut store, replica).unwrap()
    });
    drop(store);
    let file = crate::rows::redb::ROWS_FILE;
    let len = venue.disk.file_len(file).unwrap();
    if random.percent(20) {
        let rows = venue.disk.open(file).unwrap();
        rows.set_len(random.below(len as u64)).unwrap();
        rows.sync().unwrap();
    } else {
        for _ in 0..=random.below(4) {
            let near = if random.percent(50) { len.min(8_192) } else { len };
            let bit = u32::try_from(random.below(8)).unwrap();
            assert!(venue.disk.rot(file, random.size(near), bit));
        }
    }
    let mut lost = 0;
    for owner in 2..4 {
        let mut store = venue.open(IDENTITY, OwnerNumber(owner)).unwrap();
        lost = 0;
        for (replica, expected) in replicas.iter().zip(&views) {
            match view(&mut store, *replica) {
                Ok(found) => assert!(found == *expected, "seed {seed}: {replica} rotted unnoticed"),
                Err(_) => lost += 1,
            }
        }
        create(&mut store, ReplicaId(owner + 10), &[1], position(1, 1)).unwrap();
        assert_eq!(keys(&mut store, ReplicaId(owner + 10)), Ok(vec![1]));
    }
    lost
}

#[test]
fn rot_anywhere_in_redb_is_told_or_does_not_matter() {
    let lost: Vec<usize> = (0..300).map(lost_to).collect();
    let some = lost.iter().filter(|lost| **lost > 0).count();
    assert!(some > 30 && some < lost.len(), "{some}");
}
