use super::*;
use crate::{
    disk::{Disk, embedded::RedbFile, memory::MemoryDisk},
    register::redb::RedbRegister,
};
use std::sync::atomic::{AtomicI64, Ordering};

/// redb on a disk that loses and tears.
#[derive(Default)]
struct RedbInMemory {
    disk: MemoryDisk,
    /// Stands for the lock that a real file has.
    held: std::sync::Weak<()>,
}

/// A register that holds its place as long as it lives.
struct Held {
    register: RedbRegister,
    _held: Arc<()>,
}

impl Register for Held {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        self.register.read()
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        self.register.compare_and_set(expected, map)
    }
}

impl Venue for RedbInMemory {
    type Register = Held;

    fn open(&mut self, initial: &ClusterMap) -> Result<Held, RegisterError> {
        if self.held.strong_count() > 0 {
            return Err(RegisterError::Failed("in use".to_owned()));
        }
        let held = Arc::new(());
        self.held = Arc::downgrade(&held);
        Ok(Held { register: RedbRegister::open_on(&self.disk, initial)?, _held: held })
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

    fn damage(&mut self) -> bool {
        crate::register::redb::damage(RedbFile(self.disk.open("register").unwrap()));
        true
    }
}

/// redb in a real file.
struct RedbInFile {
    dir: tempfile::TempDir,
}

impl Venue for RedbInFile {
    type Register = RedbRegister;

    fn open(&mut self, initial: &ClusterMap) -> Result<RedbRegister, RegisterError> {
        RedbRegister::open_file(&self.dir.path().join("register.redb"), initial)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn crash(&mut self, _random: &mut Random) {}

    fn damage(&mut self) -> bool {
        crate::register::redb::damage(
            redb::backends::FileBackend::new(
                std::fs::File::options().read(true).write(true).open(self.dir.path().join("register.redb")).unwrap(),
            )
            .unwrap(),
        );
        true
    }
}

fn passes<V: Venue>(fresh: impl FnMut() -> V) {
    if let Err(words) = check(fresh) {
        panic!("{words}");
    }
}

#[test]
fn redb_on_a_disk_that_loses_and_tears_conforms() {
    passes(RedbInMemory::default);
}

#[test]
fn redb_in_a_real_file_conforms() {
    passes(|| RedbInFile { dir: tempfile::tempdir().unwrap() });
}

#[test]
fn redb_outlives_many_random_crashes() {
    for seed in 100..300 {
        random_work(&mut RedbInMemory::default(), seed, 60).unwrap_or_else(|words| panic!("seed {seed}: {words}"));
    }
}

#[test]
fn a_crash_while_redb_is_made_leaves_a_register_or_none() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut venue = RedbInMemory::default();
        for _ in 0..2 {
            venue.fail_after(random.below(40));
            let given = venue.open(&initial()).is_ok();
            venue.crash(&mut random);
            let opened = venue.open(&initial());
            let found = opened.map_err(words).and_then(|mut register| expect(&mut register, MapVersion(0), &initial()));
            assert_eq!(found, Ok(()), "seed {seed}; it had opened: {given}");
        }
    }
}

/// Whether a register with these bits flipped was found to be damaged. It is that, at every opening, or whole.
fn is_damaged(flips: impl Fn(usize) -> Vec<(usize, u32)>) -> bool {
    let mut venue = RedbInMemory::default();
    let mut register = venue.open(&initial()).unwrap();
    for count in 0..3 {
        assert!(register.compare_and_set(MapVersion(count), &marked(1, count)).unwrap());
    }
    drop(register);
    let flips = flips(venue.disk.file_len("register").unwrap());
    for (offset, bit) in &flips {
        assert!(venue.disk.rot("register", *offset, *bit));
    }
    let mut errors = 0;
    for _ in 0..2 {
        match venue.open(&initial()).and_then(|mut register| register.read()) {
            Ok((version, map)) => assert_eq!((version, &*map), (MapVersion(3), &marked(1, 2)), "{flips:?}"),
            Err(RegisterError::Damaged(_)) => errors += 1,
            Err(error) => panic!("{flips:?}: {error}"),
        }
    }
    errors > 0
}

#[test]
fn rot_anywhere_in_redb_is_told_or_does_not_matter() {
    let damaged = (0..500).filter(|seed| {
        is_damaged(|len| {
            let mut random = Random::new(*seed);
            let near = if random.percent(50) { len.min(8_192) } else { len };
            (0..=random.below(4)).map(|_| (random.size(near), u32::try_from(random.below(8)).unwrap())).collect()
        })
    });
    assert!(damaged.count() > 20);
}

#[test]
fn rot_in_the_head_of_redb_is_told_or_does_not_matter() {
    let places = (0..320).flat_map(|offset| (0..8).map(move |bit| (offset, bit)));
    assert!(places.filter(|place| is_damaged(|_| vec![*place])).count() > 200);
}

/// What a crash leaves of a register that was told its last map is put: the file while it is open.
#[test]
fn rot_in_the_last_commit_of_redb_is_told_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("register.redb");
    let mut register = RedbRegister::open_file(&path, &initial()).unwrap();
    for count in 0..5 {
        assert!(register.compare_and_set(MapVersion(count), &marked(1, count)).unwrap());
    }
    let before = std::fs::read(&path).unwrap();
    assert!(register.compare_and_set(MapVersion(5), &marked(2, 9)).unwrap());
    let left = std::fs::read(&path).unwrap();
    let opened = |name: &str, bytes: &[u8]| {
        let copy = dir.path().join(name);
        std::fs::write(&copy, bytes).unwrap();
        RedbRegister::open_file(&copy, &initial()).and_then(|mut register| register.read())
    };
    let (version, map) = opened("whole", &left).unwrap();
    assert_eq!((version, &*map), (MapVersion(6), &marked(2, 9)));
    let mut damaged_count = 0;
    for page in (4_096..left.len()).step_by(4_096).filter(|page| before.get(*page..page + 4_096) != left.get(*page..page + 4_096)) {
        let first = (page..page + 4_096).find(|at| before.get(*at) != left.get(*at)).unwrap();
        let mut rotten = left.clone();
        rotten[first] ^= 1;
        match opened(&format!("rotten-{page}"), &rotten) {
            Ok((version, map)) => assert_eq!((version, &*map), (MapVersion(6), &marked(2, 9)), "byte {first}: it went back without a word"),
            Err(RegisterError::Damaged(_)) => damaged_count += 1,
            Err(error) => panic!("byte {first}: {error}"),
        }
    }
    assert!(damaged_count > 0, "no rot was told");
}

/// More steps than any test makes.
const FOREVER: i64 = 1 << 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    Nothing,
    /// The version is not looked at.
    IgnoresVersion,
    /// The version is looked at, and the map replaced after that: two steps where one belongs.
    ChecksThenSets,
    /// A map that is replaced keeps its version.
    KeepsVersion,
    /// What was put is answered before it is there.
    AcknowledgesEarly,
    /// What does not verify is taken for nothing.
    StartsEmpty,
    /// After an error it is asked again, and finds its own version in the way.
    Resends,
    /// Map and version are written one after the other.
    WritesInTwoSteps,
}

/// Keeps all that it ever was: a register in memory with one bug.
struct BrokenVenue {
    kept: Arc<Mutex<Option<(MapVersion, ClusterMap)>>>,
    left: Arc<AtomicI64>,
    bug: Bug,
}

struct Broken {
    kept: Arc<Mutex<Option<(MapVersion, ClusterMap)>>>,
    left: Arc<AtomicI64>,
    bug: Bug,
    unwritten: Option<(MapVersion, ClusterMap)>,
}

impl Venue for BrokenVenue {
    type Register = Broken;

    fn open(&mut self, initial: &ClusterMap) -> Result<Broken, RegisterError> {
        let mut kept = self.kept.lock().unwrap();
        let map = &kept.get_or_insert((MapVersion(0), initial.clone())).1;
        if map.cluster == ClusterId(0) && self.bug == Bug::StartsEmpty {
            *kept = Some((MapVersion(0), initial.clone()));
        } else if map.cluster == ClusterId(0) {
            return Err(RegisterError::Damaged("it is".to_owned()));
        } else if map.cluster != initial.cluster {
            return Err(RegisterError::Failed("it belongs to another".to_owned()));
        }
        drop(kept);
        Ok(Broken { kept: Arc::clone(&self.kept), left: Arc::clone(&self.left), bug: self.bug, unwritten: None })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn crash(&mut self, _random: &mut Random) {
        self.left.store(FOREVER, Ordering::SeqCst);
    }

    fn fail_after(&mut self, operation_count: u64) -> bool {
        self.left.store(i64::try_from(operation_count / 3).unwrap(), Ordering::SeqCst);
        true
    }

    fn damage(&mut self) -> bool {
        self.kept.lock().unwrap().as_mut().unwrap().1.cluster = ClusterId(0);
        true
    }
}

impl Broken {
    /// A step of its own, at which it may die.
    fn step(&self) -> Result<(), RegisterError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(RegisterError::Failed("dead".to_owned())) }
    }

    fn swap(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        let (version, _) = self.read()?;
        let mut kept = self.kept.lock().unwrap();
        let version = match self.bug {
            Bug::ChecksThenSets => {
                drop(kept);
                thread::yield_now();
                kept = self.kept.lock().unwrap();
                version
            }
            _ if self.unwritten.is_some() => version,
            _ => kept.as_ref().map_or(version, |(version, _)| *version),
        };
        if version != expected && self.bug != Bug::IgnoresVersion {
            return Ok(false);
        }
        let next = if self.bug == Bug::KeepsVersion { version } else { MapVersion(expected.0.wrapping_add(1)) };
        if self.bug == Bug::WritesInTwoSteps {
            *kept = Some((version, map.clone()));
            self.step()?;
        }
        if self.bug == Bug::AcknowledgesEarly {
            self.unwritten = Some((next, map.clone()));
        } else {
            *kept = Some((next, map.clone()));
        }
        Ok(true)
    }
}

impl Register for Broken {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        let kept = self.unwritten.clone().or_else(|| self.kept.lock().unwrap().clone());
        kept.map(|(version, map)| (version, Arc::new(map))).ok_or(RegisterError::Damaged("it is".to_owned()))
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        self.step()?;
        let is_done = self.swap(expected, map)?;
        match self.step() {
            Err(_) if self.bug == Bug::Resends => self.swap(expected, map),
            answered => answered.map(|()| is_done),
        }
    }
}

#[test]
fn every_planted_bug_of_a_register_is_found() {
    let found = |bug| check(|| BrokenVenue { kept: Arc::default(), left: Arc::new(AtomicI64::new(FOREVER)), bug });
    assert_eq!(found(Bug::Nothing), Ok(()));
    for bug in [
        Bug::IgnoresVersion,
        Bug::ChecksThenSets,
        Bug::KeepsVersion,
        Bug::AcknowledgesEarly,
        Bug::StartsEmpty,
        Bug::Resends,
        Bug::WritesInTwoSteps,
    ] {
        assert!(found(bug).is_err(), "{bug:?} was not found");
    }
}
