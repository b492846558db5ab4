//! Whether the server may take part at all (R26). A disk that was put back from an older copy has forgotten promises and acknowledged
//! entries, and nothing on it says so. Therefore each life of a server has a mark of its own, drawn at random: the disk keeps the marks it
//! has seen, the register the newest one that took part. A life is recorded only if its disk has seen the recorded one; until the server
//! reads its own mark in the register it answers heartbeats and nothing else. Never trusts a disk because it is whole.
//!
//! ```text
//!   opened ──heartbeat──► mark on disk ──beat: incarnation, follows──► compare-and-set ──map──► takes part
//!                              ▲                                                          │ recorded mark never seen here
//!                              └──── replicas lost, recorded mark on disk ◄───────────────┘
//! ```

use super::{ServerMachine, Written};
use crate::{
    effect::{Note, ServerEffect},
    id::{Incarnation, NodeId},
    planted::Bug,
    storage::{Lives, LogRecord, LostReason},
};
use std::{collections::BTreeMap, sync::Arc};

/// The most lives that a disk remembers while none of them is recorded. Beyond, the oldest but the recorded one is forgotten; should it be
/// the one that was recorded, the server is taken for older than it is, which costs a copy and no data. A guess.
const LIVES_MAX: usize = 1_024;

/// What the server knows of its lives.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// What the disk holds once everything is written.
    lives: Lives,
    /// The lives that are durable.
    durable: Vec<Incarnation>,
    /// How many records of them were written: only the newest tells what is durable.
    written_count: u64,
    /// Heartbeats that wait until the mark is on the disk, by who asked.
    asked: BTreeMap<NodeId, u64>,
    takes_part: bool,
}

impl Standing {
    pub(super) fn new(lives: Lives) -> Self {
        Self { durable: lives.seen.clone(), lives, written_count: 0, asked: BTreeMap::new(), takes_part: false }
    }
}

impl ServerMachine {
    /// Whether the register is known to have recorded this life of the server.
    #[must_use]
    pub fn takes_part(&self) -> bool {
        self.standing.takes_part || self.config.planted.has(Bug::ServesUnrecorded)
    }

    /// As if the register had recorded this life.
    #[cfg(test)]
    pub(crate) fn take_part(&mut self) {
        self.standing.takes_part = true;
        self.standing.lives.seen = vec![self.config.incarnation];
        self.standing.durable = vec![self.config.incarnation];
    }

    /// The life that the newest map shows as recorded, if the disk has seen it.
    pub(super) fn follows(&self) -> Option<Incarnation> {
        let recorded = self.recorded()?;
        self.standing.durable.contains(&recorded).then_some(recorded)
    }

    fn recorded(&self) -> Option<Incarnation> {
        let (_, map) = self.map.as_ref()?;
        map.servers.get(&self.id())?.incarnation
    }

    /// A heartbeat is answered once the mark of this life is on the disk, which is not before the first one: lives that nobody hears of
    /// leave nothing behind.
    pub(super) fn on_heartbeat(&mut self, from: NodeId, beat: u64, out: &mut Vec<ServerEffect>) {
        let mark = self.config.incarnation;
        if self.standing.durable.contains(&mark) {
            self.answer_heartbeat(from, beat, out);
            return;
        }
        self.standing.asked.insert(from, beat);
        let seen = &mut self.standing.lives.seen;
        if !seen.contains(&mark) {
            seen.push(mark);
            if seen.len() > LIVES_MAX {
                seen.remove(1);
            }
            self.write_lives();
        }
    }

    fn write_lives(&mut self) {
        self.standing.written_count += 1;
        self.batch.push(LogRecord::Lives(self.standing.lives.clone()));
        self.written.push(Written::Lives(self.standing.written_count));
    }

    pub(super) fn on_lives_logged(&mut self, number: u64, out: &mut Vec<ServerEffect>) {
        if number != self.standing.written_count {
            return;
        }
        self.standing.durable.clone_from(&self.standing.lives.seen);
        for (from, beat) in std::mem::take(&mut self.standing.asked) {
            self.on_heartbeat(from, beat, out);
        }
    }

    /// A newer map came.
    pub(super) fn judge_life(&mut self, out: &mut Vec<ServerEffect>) {
        let Some(recorded) = self.recorded() else { return };
        if recorded == self.config.incarnation {
            self.is_recorded();
        } else if self.standing.takes_part {
            // A later life of the server took part: this process is no longer the server.
            self.standing.takes_part = false;
        } else if !self.standing.lives.seen.contains(&recorded) {
            self.went_back(recorded, out);
        }
    }

    fn is_recorded(&mut self) {
        if std::mem::replace(&mut self.standing.takes_part, true) {
            return;
        }
        // Older lives are forgotten only once the map is on the disk that shows this one: an older map would show one of those, and the
        // disk would be taken for older than it is.
        if let Some((version, map)) = &self.map {
            self.batch.push(LogRecord::Map { version: *version, map: Arc::clone(map) });
            self.map_due = None;
        }
        let replicas = &self.replicas;
        self.standing.lives.seen = vec![self.config.incarnation];
        self.standing.lives.lost.retain(|id| replicas.contains_key(id));
        self.write_lives();
    }

    /// The disk has never seen the life that the register recorded: it is older. Whatever its replicas promised and acknowledged in that
    /// life is forgotten, so they are lost, and stay so.
    fn went_back(&mut self, recorded: Incarnation, out: &mut Vec<ServerEffect>) {
        self.standing.lives.seen.insert(0, recorded);
        if !self.config.planted.has(Bug::TrustsOlderDisk) {
            if !self.replicas.is_empty() {
                out.push(ServerEffect::Note(Note::DiskWentBack { server: self.id() }));
            }
            for (id, replica) in &mut self.replicas {
                replica.lose(LostReason::DiskWentBack);
                self.standing.lives.lost.insert(*id);
                self.touched.insert(*id);
            }
        }
        self.write_lives();
    }
}
