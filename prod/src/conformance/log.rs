//! What the shared log must do, over the simulated disk. [`check`] runs all of it: scripted claims, then random work with crashes, full
//! disks and rot against a model.

mod model;
#[cfg(test)]
mod tests;

use super::{Random, ensure};
use crate::{
    disk::{Disk, memory::MemoryDisk},
    log::{
        Log, LogError,
        file::{Identity, LOG_FILE, LogState},
    },
};
use model::Model;
use std::{io, sync::Arc};
use twinshard_core::{
    id::{ClusterId, Epoch, OwnerNumber, ReplicaId, ServerId, ShardId},
    storage::{LogBatch, LogRecord},
};

/// A log under test.
pub trait Venue {
    /// The log.
    type Log: Log;

    /// The disk it is kept on, with nothing in between.
    fn disk(&self) -> &MemoryDisk;

    /// Opens the log, or makes an empty one: its owner and what is in it.
    ///
    /// # Errors
    /// What the log says.
    fn open(&mut self, identity: Identity) -> Result<(Self::Log, OwnerNumber, LogState), LogError>;
}

/// Whose log the suite opens.
const IDENTITY: Identity = Identity { cluster: ClusterId(7), server: ServerId(3) };

/// How often what was meant to be tried was tried: a suite that passes because nothing happened shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Crashes within a persist.
    pub interrupted: u32,
    /// Persists for which there was no room.
    pub full: u32,
    /// Rots that were found to touch a replica.
    pub damaged: u32,
    /// Rots that left another replica intact.
    pub spared: u32,
}

/// The whole suite. `fresh` makes an empty log.
///
/// # Errors
/// The claim that does not hold, in words.
pub fn check<V: Venue>(mut fresh: impl FnMut() -> V) -> Result<Tried, String> {
    who_opens_last_owns_the_log(&mut fresh())?;
    a_log_of_another_is_refused(&mut fresh())?;
    what_rotted_costs_who_it_touches(&mut fresh())?;
    a_log_that_is_cut_or_wiped_is_not_taken_for_whole(&mut fresh)?;
    let mut tried = Tried::default();
    for seed in 0..60 {
        random_work(&mut fresh(), seed, 60, &mut tried).map_err(|words| format!("seed {seed}: {words}"))?;
    }
    Ok(tried)
}

fn words(error: LogError) -> String {
    error.to_string()
}

fn create(replica: u64) -> LogRecord {
    LogRecord::Create { replica: ReplicaId(replica), shard: ShardId(replica) }
}

fn promise(replica: u64, epoch: u64) -> LogRecord {
    LogRecord::Promise { replica: ReplicaId(replica), epoch: Epoch(epoch) }
}

fn persist(log: &mut impl Log, batches: &[LogBatch]) -> Result<(), String> {
    log.persist(batches).map_err(words)
}

fn who_opens_last_owns_the_log<V: Venue>(venue: &mut V) -> Result<(), String> {
    let (mut old, first, _) = venue.open(IDENTITY).map_err(words)?;
    persist(&mut old, &[vec![create(1), promise(1, 1)]])?;
    let (mut new, second, state) = venue.open(IDENTITY).map_err(words)?;
    ensure!(second > first, "the owner number went from {first} to {second}");
    for _ in 0..2 {
        let answer = old.persist(&[vec![promise(1, 9)]]);
        ensure!(answer.is_err(), "a log that another has opened since was written");
    }
    persist(&mut new, &[vec![promise(1, 2)]])?;
    drop((old, new));
    let (_, third, found) = venue.open(IDENTITY).map_err(words)?;
    ensure!(third > second, "the owner number went from {second} to {third}");
    let promised = found.replicas.get(&ReplicaId(1)).map(|log| log.promised);
    ensure!(promised == Some(Epoch(2)), "after {:?}, it is {promised:?} that r1 promised", state.replicas);
    Ok(())
}

fn a_log_of_another_is_refused<V: Venue>(venue: &mut V) -> Result<(), String> {
    let (mut log, ..) = venue.open(IDENTITY).map_err(words)?;
    persist(&mut log, &[vec![create(1)]])?;
    drop(log);
    for other in [Identity { cluster: ClusterId(8), ..IDENTITY }, Identity { server: ServerId(4), ..IDENTITY }] {
        ensure!(matches!(venue.open(other), Err(LogError::Foreign)), "another's log was opened");
    }
    let (_, _, state) = venue.open(IDENTITY).map_err(words)?;
    ensure!(state.replicas.len() == 1, "a refused opening changed the log");
    Ok(())
}

/// Overwrites a part of the log's file, durably, as a disk does that rots.
fn overwrite(disk: &MemoryDisk, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = disk.open(LOG_FILE)?;
    file.write_at(offset, bytes)?;
    file.sync()
}

fn log_len(venue: &impl Venue) -> u64 {
    venue.disk().file_len(LOG_FILE).unwrap_or(0) as u64
}

fn what_rotted_costs_who_it_touches<V: Venue>(venue: &mut V) -> Result<(), String> {
    let (mut log, ..) = venue.open(IDENTITY).map_err(words)?;
    persist(&mut log, &[vec![create(1)], vec![create(2)], vec![create(3)]])?;
    let before = log_len(venue);
    persist(&mut log, &[vec![promise(2, 4)]])?;
    let after = log_len(venue);
    persist(&mut log, &[vec![promise(1, 5)], vec![promise(3, 6)]])?;
    drop(log);
    ensure!(venue.disk().rot(LOG_FILE, usize::try_from(after).unwrap_or(0) - 1, 3), "the file ends before {before}");
    for _ in 0..3 {
        let (_, _, state) = venue.open(IDENTITY).map_err(words)?;
        let found: Vec<(u64, bool, Epoch)> = state.replicas.iter().map(|(id, log)| (id.0, log.damaged, log.promised)).collect();
        let expected = [(1, false, Epoch(5)), (2, true, Epoch(0)), (3, false, Epoch(6))];
        ensure!(found == expected, "a promise of r2 rotted; of replica, damage and promise it found {found:?}");
    }
    Ok(())
}

fn a_log_that_is_cut_or_wiped_is_not_taken_for_whole<V: Venue>(fresh: &mut impl FnMut() -> V) -> Result<(), String> {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut venue = fresh();
        let (mut log, ..) = venue.open(IDENTITY).map_err(words)?;
        persist(&mut log, &[vec![create(1)], vec![create(2)]])?;
        for epoch in 1..20 {
            persist(&mut log, &[vec![promise(1, epoch)], vec![promise(2, epoch)]])?;
        }
        drop(log);
        let len = log_len(&venue);
        let at = random.below(len);
        let hit = if random.percent(50) {
            venue.disk().open(LOG_FILE).and_then(|file| file.set_len(at).and_then(|()| file.sync()))
        } else {
            overwrite(venue.disk(), at / 512 * 512, &[0; 512])
        };
        hit.map_err(|error| error.to_string())?;
        for _ in 0..2 {
            // The opening may be cut short as well.
            venue.disk().fail_after(random.below(8));
            let opened = venue.open(IDENTITY).is_ok();
            if !opened {
                venue.disk().crash(|| random.word());
            }
            venue.disk().fail_after(u64::MAX);
            let (_, _, state) = venue.open(IDENTITY).map_err(words)?;
            for (id, log) in &state.replicas {
                ensure!(log.damaged || log.promised == Epoch(19), "cut or wiped at {at} of {len}, {id} forgot a promise: {log:?}");
            }
        }
    }
    Ok(())
}

/// So many steps of random work.
///
/// # Errors
/// What the log did that it must not, in words.
pub fn random_work<V: Venue>(venue: &mut V, seed: u64, steps: usize, tried: &mut Tried) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let (mut log, ..) = venue.open(IDENTITY).map_err(words)?;
    for step in 0..steps {
        let failed = |words: String| format!("step {step}: {words}");
        let batches = model.batches(&mut random);
        match random.below(100) {
            0..6 => {
                drop(log);
                log = reopened(venue, &mut model, &mut random, false).map_err(failed)?;
            }
            6..14 => {
                drop(log);
                log = reopened(venue, &mut model, &mut random, true).map_err(failed)?;
            }
            14..26 => {
                venue.disk().fail_after(random.below(9));
                let result = log.persist(&batches);
                drop(log);
                tried.interrupted += u32::from(result.is_err());
                model.wrote(&batches, result.is_ok());
                log = reopened(venue, &mut model, &mut random, true).map_err(failed)?;
            }
            26..36 => {
                venue.disk().set_room(Some(random.below(700)));
                let result = log.persist(&batches);
                tried.full += u32::from(result.is_err());
                ensure!(
                    result.is_ok() || log.persist(&[]).is_err() && log.persist(&batches).is_err(),
                    "step {step}: it goes on after it failed"
                );
                drop(log);
                model.wrote(&batches, result.is_ok());
                // A process that is started again while the disk is full finds what was durable.
                let crash = random.percent(50);
                log = reopened(venue, &mut model, &mut random, crash).map_err(failed)?;
                venue.disk().set_room(None);
            }
            36..46 => {
                drop(log);
                rot(venue, &mut random)?;
                let (opened, _, state) = venue.open(IDENTITY).map_err(words).map_err(failed)?;
                log = opened;
                let (damaged, intact) = model.accept_damage(state).map_err(failed)?;
                tried.damaged += u32::from(damaged > 0);
                tried.spared += u32::from(damaged > 0 && intact > 0);
                // It stays what it is, until the machine has removed who is lost.
                drop(log);
                log = reopened(venue, &mut model, &mut random, false).map_err(failed)?;
                let removals = model.remove_damaged();
                log.persist(&[removals]).map_err(words).map_err(failed)?;
            }
            _ => {
                log.persist(&batches).map_err(words).map_err(failed)?;
                model.wrote(&batches, true);
            }
        }
    }
    drop(log);
    reopened(venue, &mut model, &mut random, true).map(|_| ())
}

fn reopened<V: Venue>(venue: &mut V, model: &mut Model, random: &mut Random, crash: bool) -> Result<V::Log, String> {
    if crash {
        venue.disk().crash(|| random.word());
    }
    if random.percent(20) {
        venue.disk().fail_after(random.below(6));
        let _ = venue.open(IDENTITY);
        venue.disk().crash(|| random.word());
    }
    let (log, _, state) = venue.open(IDENTITY).map_err(words)?;
    model.accept(state)?;
    Ok(log)
}

/// A few neighbouring bits of the file rot, in the header or in the frames.
fn rot(venue: &impl Venue, random: &mut Random) -> Result<(), String> {
    // Where the frames begin: a spot that covers both what is synced and how much that is could not be told from a torn write.
    const FRAMES_AT: usize = 60;
    let len = venue.disk().file_len(LOG_FILE).unwrap_or(0);
    ensure!(len >= FRAMES_AT, "the file has {len} bytes");
    let (low, high) = if random.percent(10) || len == FRAMES_AT { (0, FRAMES_AT) } else { (FRAMES_AT, len) };
    let offset = low + random.size(high - low);
    for place in 0..=random.size(4) {
        let bit = u32::try_from(random.below(8)).unwrap_or(0);
        if offset + place < high {
            ensure!(venue.disk().rot(LOG_FILE, offset + place, bit), "there is no byte {offset}");
        }
    }
    Ok(())
}
