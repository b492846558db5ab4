//! Read rounds at the primary and the question for a read index at everybody else (R21, R22). Trusts no clock: times only say when to
//! ask again or give up.
//!
//! ReadIndex of Ongaro's dissertation, section 6.4, with the round confirmed by a write quorum, which meets every seal quorum.

use super::{Replica, ReplicaEffect, Role, pins::Reader, replication::Lead};
use crate::{
    config::Configuration,
    id::{Epoch, LogIndex, NodeId, ReplicaId},
    message::{Freshness, Read, ReadRefusal, ReadResult, ReplicaBody, ReplicaMessage, Tag, ToBalancer},
    planted::Bug,
    quorum,
    time::Instant,
    value::{Key, KeyRange},
};
use std::collections::{BTreeMap, BTreeSet};

/// The rounds of one epoch.
#[derive(Clone, Debug, Default)]
pub(super) struct Rounds {
    /// The number of the last round.
    number: u64,
    current: Option<Round>,
    /// Whoever came after the current round's first message.
    waiting: Vec<Asker>,
}

#[derive(Clone, Debug)]
struct Round {
    number: u64,
    /// The commit index when it began.
    index: LogIndex,
    /// By member id (R6).
    confirmed: BTreeSet<ReplicaId>,
    askers: Vec<Asker>,
    resend_at: Instant,
    give_up_at: Instant,
}

/// Who wants a read index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Asker {
    /// A read at the primary itself.
    Here(u64),
    /// A question of another replica.
    There(ReplicaId, Tag),
}

/// The reads that a replica has taken on.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadTable {
    next: u64,
    /// In order of arrival, so the first gives up first.
    reads: BTreeMap<u64, PendingRead>,
    /// What waits until so much is applied.
    behind: BTreeSet<(LogIndex, u64)>,
    /// What the view is to read now.
    ready: Vec<u64>,
}

#[derive(Clone, Debug)]
struct PendingRead {
    to: NodeId,
    tag: Tag,
    range: KeyRange,
    limit: u32,
    wanted: u32,
    /// What it must have seen, by its client's word.
    wants: Option<LogIndex>,
    read_index: Option<LogIndex>,
    phase: Phase,
    give_up_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    /// It has no read index yet.
    Index,
    /// It waits until that is applied, or for the rows.
    Rows,
}

/// The questions of a replica that does not lead: one at a time, each for the reads that came before it was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Asking {
    number: u64,
    asked: Option<Question>,
    waiting: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Question {
    tag: Tag,
    reads: Vec<u64>,
    resend_at: Instant,
    silence_count: u32,
}

/// The rows of a read, or why there are none, as the view gives them.
pub(super) struct RowsRead {
    pub(super) rows: Vec<crate::value::StoredRow>,
    pub(super) more: bool,
    pub(super) at: crate::id::Position,
}

impl Replica {
    /// Takes a read on, or refuses it at once.
    pub(crate) fn read(&mut self, now: Instant, from: NodeId, read: Read) {
        let Read { tag, replica: _, range, limit, wanted, freshness } = read;
        let refusal = if self.lost.is_some() {
            Some(ReadRefusal::Lost)
        } else if self.reads.reads.len() >= self.context.settings.reads_max {
            Some(ReadRefusal::Busy)
        } else if self.swap.is_some() {
            Some(ReadRefusal::Behind)
        } else {
            match freshness {
                Freshness::Linearizable(epoch) if epoch != self.promised || epoch != self.heard => Some(ReadRefusal::WrongEpoch),
                Freshness::Linearizable(_) if !self.serves_as_primary() && self.leader.is_none() => Some(ReadRefusal::NoReadIndex),
                Freshness::Linearizable(_) | Freshness::AtLeast(_) | Freshness::Any => None,
            }
        };
        if let Some(reason) = refusal {
            let result = ReadResult::Refused { epoch: self.heard, reason };
            self.tell(from, ToBalancer::ReadDone { tag, result });
            return;
        }
        self.reads.next += 1;
        let id = self.reads.next;
        let give_up_at = now + self.context.settings.read_timeout;
        let phase = match freshness {
            Freshness::Linearizable(_) => Phase::Index,
            Freshness::AtLeast(_) | Freshness::Any => Phase::Rows,
        };
        let limit = limit.max(1);
        let wants = if let Freshness::AtLeast(index) = freshness { Some(index) } else { None };
        self.reads.reads.insert(id, PendingRead { to: from, tag, range, limit, wanted, wants, read_index: None, phase, give_up_at });
        match freshness {
            Freshness::Linearizable(_) if self.serves_as_primary() => self.want_index(Asker::Here(id)),
            Freshness::Linearizable(_) => self.asking.waiting.push(id),
            Freshness::AtLeast(index) => {
                self.reads.behind.insert((index, id));
                // More than is known to be committed: the primary knows whether anybody can have seen that. Where none answers, it waits.
                if index > self.commit {
                    if self.serves_as_primary() {
                        self.want_index(Asker::Here(id));
                    } else if self.leader.is_some() {
                        self.asking.waiting.push(id);
                    }
                }
            }
            Freshness::Any => {
                self.reads.behind.insert((LogIndex(0), id));
            }
        }
    }

    // ---- at the primary -----------------------------------------------------------------------------------------------------

    pub(super) fn on_read_index(&mut self, from: ReplicaId, epoch: Epoch, tag: Tag) {
        let waiting = self.lead().map_or(0, |lead| lead.rounds.waiting.len());
        let can = self.serves_as_primary()
            && self.lead().is_some_and(|lead| lead.epoch() == epoch && self.commit >= lead.barrier)
            && waiting < self.context.settings.reads_max;
        if can {
            self.want_index(Asker::There(from, tag));
        } else {
            self.send(from, ReplicaBody::ReadIndexIs { tag, index: None });
        }
    }

    fn want_index(&mut self, asker: Asker) {
        if self.context.planted.has(Bug::ReadsWithoutRound) {
            self.give_index(asker, Some(self.commit));
            return;
        }
        let share = self.context.planted.has(Bug::LaterReadsShareRound);
        let Some(lead) = self.lead_mut() else { return };
        match &mut lead.rounds.current {
            Some(round) if share => round.askers.push(asker),
            // R21: a round serves only who came before its first message.
            Some(_) | None => lead.rounds.waiting.push(asker),
        }
    }

    fn give_index(&mut self, asker: Asker, index: Option<LogIndex>) {
        match (asker, index) {
            (Asker::Here(id), Some(index)) => self.has_index(id, index),
            (Asker::Here(id), None) => self.has_no_index(id, ReadRefusal::NoReadIndex),
            (Asker::There(to, tag), index) => self.send(to, ReplicaBody::ReadIndexIs { tag, index }),
        }
    }

    /// Begins a round for all who wait, if none is under way. The primary must be active and its barrier committed (R21).
    pub(super) fn start_round(&mut self, now: Instant) {
        if !self.serves_as_primary() {
            return;
        }
        let (id, index) = (self.id, self.commit);
        let (resend_at, give_up_at) = (now + self.context.settings.resend_after, now + self.context.settings.read_timeout);
        let Some(lead) = self.lead_mut() else { return };
        if lead.rounds.current.is_some() || lead.rounds.waiting.is_empty() || index < lead.barrier {
            return;
        }
        lead.rounds.number += 1;
        let number = lead.rounds.number;
        // The primary confirms for itself: what it has promised it knows at once, and it has stepped down if that is higher (R5).
        let confirmed = BTreeSet::from([id]);
        let askers = std::mem::take(&mut lead.rounds.waiting);
        lead.rounds.current = Some(Round { number, index, confirmed, askers, resend_at, give_up_at });
        self.send_round();
        self.complete_round();
    }

    fn send_round(&mut self) {
        let Role::Leading(lead) = &self.role else { return };
        let Some(round) = &lead.rounds.current else { return };
        for to in lead.config.members.iter().filter(|member| !round.confirmed.contains(member)) {
            let body = ReplicaBody::Round { round: round.number };
            self.out.push(ReplicaEffect::Send(ReplicaMessage { from: self.id, to: *to, epoch: lead.epoch(), body }));
        }
    }

    fn complete_round(&mut self) {
        let Some(lead) = self.lead_mut() else { return };
        let enough = |round: &Round, config: &Configuration| quorum::reached(config, &round.confirmed, config.write_quorum as usize);
        if !lead.rounds.current.as_ref().is_some_and(|round| enough(round, &lead.config)) {
            return;
        }
        if let Some(round) = lead.rounds.current.take() {
            for asker in round.askers {
                self.give_index(asker, Some(round.index));
            }
        }
    }

    /// At a member: confirms that it has promised nothing higher.
    pub(super) fn on_round(&mut self, now: Instant, from: ReplicaId, epoch: Epoch, round: u64) {
        if epoch > self.heard {
            self.hear(now, epoch);
        }
        if epoch < self.promised {
            self.send(from, ReplicaBody::Refused);
        } else if epoch == self.promised {
            self.send(from, ReplicaBody::RoundConfirmed { round });
        }
        // Below: it has not taken part in that epoch yet. The round comes again.
    }

    pub(super) fn on_round_confirmed(&mut self, from: ReplicaId, epoch: Epoch, number: u64) {
        let Some(lead) = self.lead_mut().filter(|lead| lead.epoch() == epoch) else { return };
        match &mut lead.rounds.current {
            // R6, R21: confirmations of that round, by member.
            Some(round) if round.number == number => {
                round.confirmed.insert(from);
            }
            Some(_) | None => return,
        }
        self.complete_round();
    }

    /// Nobody gets an index from rounds of an epoch that is over.
    pub(super) fn fail_rounds(&mut self, lead: Lead) {
        let current = lead.rounds.current.map_or_else(Vec::new, |round| round.askers);
        for asker in current.into_iter().chain(lead.rounds.waiting) {
            match asker {
                Asker::Here(id) => self.has_no_index(id, ReadRefusal::WrongEpoch),
                Asker::There(to, tag) => self.send(to, ReplicaBody::ReadIndexIs { tag, index: None }),
            }
        }
    }

    pub(super) fn tick_rounds(&mut self, now: Instant) {
        let resend_after = self.context.settings.resend_after;
        let Some(round) = self.lead_mut().and_then(|lead| lead.rounds.current.as_mut()) else { return };
        if now >= round.give_up_at {
            let askers = std::mem::take(&mut round.askers);
            if let Some(lead) = self.lead_mut() {
                lead.rounds.current = None;
            }
            for asker in askers {
                self.give_index(asker, None);
            }
        } else if now >= round.resend_at {
            round.resend_at = now + resend_after;
            self.send_round();
        }
    }

    pub(super) fn rounds_deadline(&self) -> Option<Instant> {
        let round = self.lead()?.rounds.current.as_ref()?;
        Some(round.resend_at.min(round.give_up_at))
    }

    // ---- at everybody else --------------------------------------------------------------------------------------------------

    /// Sends the next question, if none is under way, for all reads that came before.
    pub(super) fn ask_index(&mut self, now: Instant) {
        if self.asking.asked.is_some() || self.asking.waiting.is_empty() {
            return;
        }
        let reads = std::mem::take(&mut self.asking.waiting);
        let Some(leader) = self.leader else {
            for id in reads {
                self.has_no_index(id, ReadRefusal::NoReadIndex);
            }
            return;
        };
        self.asking.number += 1;
        // R22: the owner number tells it from every question before a restart, the envelope says which replica asks.
        let tag = Tag { life: self.context.incarnation, number: self.asking.number };
        let resend_at = now + self.context.settings.resend_after;
        self.asking.asked = Some(Question { tag, reads, resend_at, silence_count: 0 });
        self.send(leader, ReplicaBody::ReadIndex { tag });
    }

    pub(super) fn on_read_index_is(&mut self, _now: Instant, from: ReplicaId, epoch: Epoch, tag: Tag, index: Option<LogIndex>) {
        if self.asking.asked.as_ref().is_none_or(|question| question.tag != tag) {
            return;
        }
        let Some(question) = self.asking.asked.take() else { return };
        for id in question.reads {
            match index {
                Some(index) => self.has_index(id, index),
                None => self.has_no_index(id, ReadRefusal::NoReadIndex),
            }
        }
        // The index is one that the primary knows to be committed: as good as any it sends with an append (R2).
        if let Some(index) = index
            && epoch == self.promised
            && self.leader == Some(from)
        {
            self.commit = self.commit.max(index.min(self.verified));
        }
    }

    /// In another epoch the primary is another: who waits is told to ask again.
    pub(super) fn stop_asking(&mut self, _now: Instant) {
        let asked = self.asking.asked.take().map_or_else(Vec::new, |question| question.reads);
        for id in asked.into_iter().chain(std::mem::take(&mut self.asking.waiting)) {
            self.has_no_index(id, ReadRefusal::WrongEpoch);
        }
    }

    /// There is no read index to be had now. Who goes by what its client has seen can do without.
    fn has_no_index(&mut self, id: u64, reason: ReadRefusal) {
        if self.reads.reads.get(&id).is_some_and(|read| read.wants.is_none()) {
            self.refuse_read(id, reason);
        }
    }

    fn has_index(&mut self, id: u64, index: LogIndex) {
        if let Some(read) = self.reads.reads.get_mut(&id) {
            if let Some(wants) = read.wants {
                // Whatever was seen was committed before it was, so a read index that is asked for later is not below it.
                if wants > index {
                    self.reads.behind.remove(&(wants, id));
                    self.refuse_read(id, ReadRefusal::NeverWas);
                }
                return;
            }
            read.read_index = Some(index);
            read.phase = Phase::Rows;
            self.reads.behind.insert((index, id));
        }
    }

    /// The reads that have all they wait for, with range and limit.
    pub(super) fn take_ready_reads(&mut self, applied: LogIndex) -> Vec<(u64, KeyRange, u32)> {
        while let Some((index, id)) = self.reads.behind.first().copied() {
            if index > applied {
                break;
            }
            self.reads.behind.pop_first();
            self.reads.ready.push(id);
        }
        let ready = std::mem::take(&mut self.reads.ready);
        ready.into_iter().filter_map(|id| self.reads.reads.get(&id).map(|read| (id, read.range, read.limit))).collect()
    }

    pub(super) fn finish_read(&mut self, now: Instant, id: u64, read: RowsRead) {
        let at = read.at;
        let Some(PendingRead { to, tag, range, wanted, read_index, .. }) = self.reads.reads.remove(&id) else { return };
        // I6: a read contains what its index stands for.
        assert!(read_index.is_none_or(|index| index <= at.index), "I6: {} read at {at} for the read index {read_index:?}", self.id);
        let reader = Reader { to, tag, read_index };
        let rest = read.rows.last().filter(|_| read.more).and_then(|last| last.row.key.0.checked_add(1)).map(Key);
        match rest.filter(|rest| *rest <= range.high) {
            Some(rest) if read.rows.len() < wanted as usize => self.pin(now, reader, KeyRange { low: rest, high: range.high }, read),
            Some(_) | None => self.tell_rows(reader, read.rows, read.more, at, None),
        }
    }

    fn refuse_read(&mut self, id: u64, reason: ReadRefusal) {
        if let Some(PendingRead { to, tag, .. }) = self.reads.reads.remove(&id) {
            let result = ReadResult::Refused { epoch: self.heard, reason };
            self.tell(to, ToBalancer::ReadDone { tag, result });
        }
    }

    pub(super) fn refuse_all_reads(&mut self, reason: ReadRefusal) {
        let ids: Vec<u64> = self.reads.reads.keys().copied().collect();
        for id in ids {
            self.refuse_read(id, reason);
        }
        self.reads.behind.clear();
        self.reads.ready.clear();
        self.asking.asked = None;
        self.asking.waiting.clear();
    }

    pub(super) fn tick_reads(&mut self, now: Instant) {
        while let Some((id, read)) = self.reads.reads.first_key_value() {
            if now < read.give_up_at {
                break;
            }
            let (id, reason) = (*id, if read.phase == Phase::Index { ReadRefusal::NoReadIndex } else { ReadRefusal::Behind });
            self.refuse_read(id, reason);
        }
        let known = &self.reads.reads;
        self.reads.behind.retain(|(_, id)| known.contains_key(id));
        let (leader, resend_after) = (self.leader, self.context.settings.resend_after);
        let Some(question) = &mut self.asking.asked else { return };
        question.reads.retain(|id| known.contains_key(id));
        if question.reads.is_empty() {
            self.asking.asked = None;
        } else if now >= question.resend_at {
            question.silence_count = question.silence_count.saturating_add(1);
            question.resend_at = now + resend_after.times(1 << question.silence_count.min(3));
            let tag = question.tag;
            if let Some(leader) = leader {
                self.send(leader, ReplicaBody::ReadIndex { tag });
            }
        }
    }

    pub(super) fn reads_deadline(&self) -> Option<Instant> {
        let give_up_at = self.reads.reads.first_key_value().map(|(_, read)| read.give_up_at);
        let resend_at = self.asking.asked.as_ref().map(|question| question.resend_at);
        give_up_at.into_iter().chain(resend_at).min()
    }

    /// How many reads it has taken on and not answered.
    pub(crate) fn read_count(&self) -> usize {
        self.reads.reads.len()
    }
}
