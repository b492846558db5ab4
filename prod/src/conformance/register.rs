//! What every metadata register must do. [`check`] runs all of it.

#[cfg(test)]
mod tests;

use super::{Random, ensure};
use crate::register::{Register, RegisterError};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use twinshard_core::{
    id::{ClusterId, MapVersion, ReplicaId, ServerId, ShardId},
    map::{Address, ClusterMap, ReplicaRecord, ReplicaStage, SERVERS_MAX, ServerGoal, ServerRecord},
};

/// A place where a register of one kind is kept, and what can befall it.
pub trait Venue {
    /// The register.
    type Register: Register;

    /// Opens the register, or makes one that holds `initial` at version 0.
    ///
    /// # Errors
    /// What the register says.
    fn open(&mut self, initial: &ClusterMap) -> Result<Self::Register, RegisterError>;

    /// Whether the place lets several have the register open at once. If not, opening it a second time is an error.
    fn is_shared(&self) -> bool;

    /// The process that had it open dies. If the place can lose what was not made durable, it does.
    fn crash(&mut self, random: &mut Random);

    /// The process dies in the middle of what it does after about so many steps of its own: from then on everything is an error until
    /// [`Self::crash`]. `false` if that cannot be played here.
    fn fail_after(&mut self, operation_count: u64) -> bool {
        let _ = operation_count;
        false
    }

    /// Damages the map that is kept. The register is not open. `false` if that cannot be played here.
    fn damage(&mut self) -> bool {
        false
    }
}

/// Whose register the suite opens.
const CLUSTER: ClusterId = ClusterId(7);
/// Writers at a time, and how often each wins.
const WRITERS: u64 = 4;
const WINS: u64 = 12;
/// Far more than it takes.
const TRIES_MAX: u32 = 100_000;

/// The whole suite. `fresh` makes an empty place.
///
/// # Errors
/// The claim that does not hold, in words.
pub fn check<V: Venue>(mut fresh: impl FnMut() -> V) -> Result<(), String> {
    a_new_register_holds_what_it_was_given(&mut fresh())?;
    only_the_expected_version_is_replaced(&mut fresh())?;
    a_large_map_comes_back(&mut fresh())?;
    another_clusters_register_is_refused(&mut fresh())?;
    of_concurrent_writers_one_wins_each_version(&mut fresh(), false)?;
    of_concurrent_writers_one_wins_each_version(&mut fresh(), true)?;
    damage_is_told_and_never_served(&mut fresh())?;
    for seed in 0..8 {
        random_work(&mut fresh(), seed, 60).map_err(|words| format!("seed {seed}: {words}"))?;
    }
    Ok(())
}

fn words(error: RegisterError) -> String {
    error.to_string()
}

fn initial() -> ClusterMap {
    ClusterMap { cluster: CLUSTER, ..ClusterMap::default() }
}

/// A map that tells itself from others.
fn marked(writer: u64, count: u64) -> ClusterMap {
    let mut map = initial();
    map.controller.beat = writer;
    map.counters.server = ServerId(count);
    map
}

fn expect(register: &mut impl Register, version: MapVersion, map: &ClusterMap) -> Result<(), String> {
    let (found_version, found) = register.read().map_err(words)?;
    ensure!(found_version == version, "it has {found_version}; it must have {version}");
    ensure!(*found == *map, "at {version} it has another map than was put");
    Ok(())
}

fn swap(register: &mut impl Register, expected: MapVersion, map: &ClusterMap) -> Result<bool, String> {
    register.compare_and_set(expected, map).map_err(words)
}

fn a_new_register_holds_what_it_was_given<V: Venue>(venue: &mut V) -> Result<(), String> {
    let given = marked(5, 6);
    let mut register = venue.open(&given).map_err(words)?;
    expect(&mut register, MapVersion(0), &given)?;
    if !venue.is_shared() {
        ensure!(venue.open(&given).is_err(), "two have the register open at once");
    }
    drop(register);
    venue.crash(&mut Random::new(1));
    // Who opens it later finds what the first one put.
    let mut register = venue.open(&marked(8, 9)).map_err(words)?;
    expect(&mut register, MapVersion(0), &given)
}

fn only_the_expected_version_is_replaced<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut register = venue.open(&initial()).map_err(words)?;
    for version in 0..5_u64 {
        for wrong in [version + 1, version + 7, u64::from(version == 0) + version.saturating_sub(1), u64::MAX] {
            ensure!(!swap(&mut register, MapVersion(wrong), &marked(9, 9))?, "v{wrong} was replaced where v{version} is");
        }
        let before = if version == 0 { initial() } else { marked(1, version) };
        expect(&mut register, MapVersion(version), &before)?;
        ensure!(swap(&mut register, MapVersion(version), &marked(1, version + 1))?, "v{version} was not replaced where it is");
        expect(&mut register, MapVersion(version + 1), &marked(1, version + 1))?;
        // The same map again is a new version all the same.
        ensure!(!swap(&mut register, MapVersion(version), &marked(1, version + 1))?, "v{version} was replaced twice");
    }
    Ok(())
}

fn a_large_map_comes_back<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut map = initial();
    for id in 1..=SERVERS_MAX as u64 {
        let address = Address { http: "[2001:db8::1]:65535".into(), peer: "[2001:db8::1]:65534".into() };
        let name = format!("{id:x<63}").into();
        map.servers
            .insert(ServerId(id), ServerRecord { name, number: id, goal: ServerGoal::Run, address: Some(address), incarnation: None });
    }
    for id in 1..=60_000 {
        let record = ReplicaRecord { shard: ShardId(id / 3), server: ServerId(id % 1_000), stage: ReplicaStage::Ready };
        map.replicas.insert(ReplicaId(u64::MAX - id), record);
    }
    let mut register = venue.open(&initial()).map_err(words)?;
    ensure!(swap(&mut register, MapVersion(0), &map)?, "a large map was not put");
    expect(&mut register, MapVersion(1), &map)?;
    drop(register);
    venue.crash(&mut Random::new(2));
    expect(&mut venue.open(&initial()).map_err(words)?, MapVersion(1), &map)
}

fn another_clusters_register_is_refused<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut register = venue.open(&initial()).map_err(words)?;
    ensure!(swap(&mut register, MapVersion(0), &marked(1, 1))?, "v0 was not replaced where it is");
    drop(register);
    match venue.open(&ClusterMap { cluster: ClusterId(8), ..ClusterMap::default() }) {
        Err(error) => ensure!(words(error).contains("belongs to"), "the refusal does not say whose it is"),
        // A place that keeps each cluster's register apart has none to refuse.
        Ok(mut register) => ensure!(register.read().map_err(words)?.0 == MapVersion(0), "another cluster's register was opened"),
    }
    expect(&mut venue.open(&initial()).map_err(words)?, MapVersion(1), &marked(1, 1))
}

/// Several users of one handle.
struct Turns<R>(Arc<Mutex<R>>);

impl<R: Register> Register for Turns<R> {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read()
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).compare_and_set(expected, map)
    }
}

/// A register some of whose answers, and some of whose questions, are lost on the way, or come late: after others that were asked later.
struct Lossy<R> {
    register: R,
    random: Random,
    late: Option<(MapVersion, ClusterMap)>,
}

impl<R: Register> Lossy<R> {
    fn land(&mut self) -> Result<(), RegisterError> {
        if let Some((expected, map)) = self.late.take_if(|_| self.random.percent(50)) {
            // Nobody hears what came of it.
            self.register.compare_and_set(expected, &map)?;
        }
        Ok(())
    }
}

impl<R: Register> Register for Lossy<R> {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        self.land()?;
        let found = self.register.read()?;
        self.land()?;
        Ok(found)
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        self.land()?;
        let lost = || Err(RegisterError::Failed("the reply is lost".to_owned()));
        match self.random.below(5) {
            0 => lost(),
            1 => self.register.compare_and_set(expected, map).and_then(|_| lost()),
            2 => {
                self.late = Some((expected, map.clone()));
                lost()
            }
            _ => self.register.compare_and_set(expected, map),
        }
    }
}

/// Raises the map's counter until it has won often enough; the versions that it was told it made. After a lost reply it reads again.
fn race(register: &mut impl Register, writer: u64) -> Result<Vec<u64>, String> {
    let mut won = Vec::new();
    for _ in 0..TRIES_MAX {
        let (version, map) = register.read().map_err(words)?;
        if let Ok(true) = register.compare_and_set(version, &marked(writer, map.counters.server.0 + 1)) {
            won.push(version.0 + 1);
        }
        if won.len() as u64 == WINS {
            return Ok(won);
        }
    }
    Err(format!("in {TRIES_MAX} tries {} wins", won.len()))
}

fn of_concurrent_writers_one_wins_each_version<V: Venue>(venue: &mut V, is_lossy: bool) -> Result<(), String> {
    let won: Vec<Result<Vec<u64>, String>> = if venue.is_shared() {
        let registers: Result<Vec<V::Register>, RegisterError> = (0..WRITERS).map(|_| venue.open(&initial())).collect();
        raced(registers.map_err(words)?, is_lossy)
    } else {
        let one = Arc::new(Mutex::new(venue.open(&initial()).map_err(words)?));
        raced((0..WRITERS).map(|_| Turns(Arc::clone(&one))).collect(), is_lossy)
    };
    let mut winners = BTreeMap::new();
    for (writer, versions) in won.into_iter().enumerate() {
        for version in versions? {
            let other = winners.insert(version, writer);
            ensure!(other.is_none(), "v{version} was won by {writer} and by {other:?}");
        }
    }
    let wins = WRITERS * WINS;
    let mut register = venue.open(&initial()).map_err(words)?;
    let (version, map) = register.read().map_err(words)?;
    ensure!(version.0 == wins || (is_lossy && version.0 > wins), "after {wins} wins it has {version}");
    ensure!(winners.keys().all(|won| (1..=version.0).contains(won)), "versions were won that are not there: {:?}", winners.keys());
    ensure!(map.counters.server.0 == version.0, "{} wins are in the map of {version}: one wrote over another", map.counters.server.0);
    Ok(())
}

fn raced<R: Register>(registers: Vec<R>, is_lossy: bool) -> Vec<Result<Vec<u64>, String>> {
    thread::scope(|scope| {
        let writers = registers.into_iter().zip(0..).map(|(mut register, writer)| {
            scope.spawn(move || match is_lossy {
                true => race(&mut Lossy { register, random: Random::new(writer), late: None }, writer),
                false => race(&mut register, writer),
            })
        });
        let writers: Vec<_> = writers.collect();
        writers.into_iter().map(|writer| writer.join().unwrap_or_else(|_| Err("a writer panicked".to_owned()))).collect()
    })
}

fn damage_is_told_and_never_served<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut register = venue.open(&initial()).map_err(words)?;
    ensure!(swap(&mut register, MapVersion(0), &marked(1, 1))?, "v0 was not replaced where it is");
    drop(register);
    if !venue.damage() {
        return Ok(());
    }
    for attempt in 0..2 {
        // An empty register in the place of a damaged one would mint the same ids again.
        let result = venue.open(&initial()).and_then(|mut register| register.read().map(|(version, _)| version));
        ensure!(matches!(result, Err(RegisterError::Damaged(_))), "a damaged register gave {result:?} at opening {attempt}");
    }
    Ok(())
}

/// Compare-and-sets and reads with clean reopenings, crashes between two of them and crashes within one. A reply that was lost leaves
/// the map as it was or replaced; after that it is one of the two for good.
///
/// # Errors
/// What the register did that it must not, in words.
pub fn random_work<V: Venue>(venue: &mut V, seed: u64, steps: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut register = venue.open(&initial()).map_err(words)?;
    let (mut version, mut map) = (MapVersion(0), initial());
    for step in 0..steps {
        let words = |error: RegisterError| format!("step {step}: {error}");
        let next = marked(seed, step);
        match random.below(10) {
            0 => {
                drop(register);
                if random.percent(70) {
                    venue.crash(&mut random);
                }
                register = venue.open(&initial()).map_err(words)?;
            }
            1..4 if venue.fail_after(random.below(12)) => {
                let result = register.compare_and_set(version, &next);
                drop(register);
                venue.crash(&mut random);
                register = venue.open(&initial()).map_err(words)?;
                let (found, _) = register.read().map_err(words)?;
                let is_done = match result {
                    Ok(is_done) => {
                        ensure!(is_done, "step {step}: {version} was not replaced where it is");
                        true
                    }
                    // The reply is lost: one reads again.
                    Err(_) => found == version.next(),
                };
                if is_done {
                    (version, map) = (version.next(), next);
                }
            }
            4 => ensure!(
                !register.compare_and_set(version.next(), &next).map_err(words)?,
                "step {step}: a version that is not there was replaced"
            ),
            _ => {
                ensure!(register.compare_and_set(version, &next).map_err(words)?, "step {step}: {version} was not replaced where it is");
                (version, map) = (version.next(), next);
            }
        }
        expect(&mut register, version, &map).map_err(|words| format!("step {step}: {words}"))?;
    }
    Ok(())
}
