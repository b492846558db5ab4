//! The invariants I1 to I6 (DESIGN 4), watched from outside the machines: by what they write, send and answer, and by what the disks
//! hold, those of dead processes included. Each step costs what it changed, never what there is. Changes nothing in the run.
//! It is over 800 lines: each check needs what the others keep of logs, configurations and losses.
//!
//! - I1: the register's writes are compared, one by one ([`Checks::on_cas`]); nobody leads an epoch that is another's.
//! - I2: every entry that any log ever takes is kept by (epoch, index) with the one before it, and compared.
//! - I3: at each activation, and at each commit, the members that hold the entry durably are counted; no log drops what is committed.
//! - I4: what is said to be committed is compared with what others said; views with a second evaluation ([`ShardModel`]).
//! - I5: the first word that an entry is committed is checked against the disks of its configuration.
//! - I6: a read index against what was committed when the read was sent; rows against the state at the index that was said.

mod reads;

use super::{
    coverage::{Coverage, Sometimes},
    log::{LogState, ReplicaLog},
    model::{Effect, Memory, ShardModel},
    world::ServerNode,
};
use core::fmt;
use reads::AskedRead;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use twinshard_core::{
    command::{Command, Entry},
    config::Configuration,
    id::{Epoch, LogIndex, NodeId, Position, ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage},
    message::{Execute, ExecuteResult, LeadStage, Message, Pin, ReplicaBody, ReplicaMessage, Tag, ToBalancer, ToServer},
    server::ServerMachine,
    storage::{LogRecord, LostReason, StoreCommand},
};

/// The servers of a world.
pub(super) type Servers = BTreeMap<ServerId, ServerNode>;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant, or a word for what else was promised.
    pub rule: &'static str,
    /// What was found.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

/// What is known of one configuration that was ever proposed.
#[derive(Clone, Debug)]
struct Known {
    shard: ShardId,
    config: Configuration,
    activated: bool,
}

/// An entry as the first log took it.
#[derive(Clone, Debug)]
struct Taken {
    entry: Arc<Entry>,
    previous: Epoch,
}

/// What is known of one shard.
#[derive(Clone, Debug)]
pub struct ShardChecks {
    /// The committed log.
    pub model: ShardModel,
    /// By index from 1: the entries of each epoch that any log ever took.
    taken: Vec<Vec<Taken>>,
    /// The highest index that was acknowledged.
    pub acked: LogIndex,
}

#[derive(Clone, Copy, Debug)]
struct ReplicaKnown {
    shard: ShardId,
    server: ServerId,
    /// Up to here its log was compared with what is committed.
    verified: LogIndex,
}

#[derive(Clone, Debug)]
struct Asked {
    replica: ReplicaId,
    epoch: Epoch,
    execute: Execute,
}

/// All checks of a run.
#[derive(Clone, Debug)]
pub struct Checks {
    memory: Memory,
    shards: BTreeMap<ShardId, ShardChecks>,
    replicas: BTreeMap<ReplicaId, ReplicaKnown>,
    /// The durable logs of replicas that are gone, as they were when they went: what was acknowledged with them was durable then.
    graves: BTreeMap<ReplicaId, ReplicaLog>,
    /// Positions that a durable log no longer has, each with the highest promise under which it was dropped.
    dropped: BTreeMap<ReplicaId, BTreeMap<Position, Epoch>>,
    configs: BTreeMap<Epoch, Known>,
    leaders: BTreeMap<Epoch, ReplicaId>,
    executes: BTreeMap<(NodeId, Tag), Asked>,
    reads: BTreeMap<(NodeId, Tag), AskedRead>,
    /// What readers were told to be pinned, with the position.
    pins: BTreeMap<Pin, Position>,
    lame: BTreeSet<(ReplicaId, Epoch)>,
    /// Replicas of which the world took something: their disk, log or rows, or what was stored of them went bad.
    damaged: BTreeSet<ReplicaId>,
    /// Replicas that a durable record removed.
    removed: BTreeSet<ReplicaId>,
    reported_lost: BTreeSet<ReplicaId>,
    /// Replicas of disks that went back behind a life that the register knows.
    older: BTreeSet<ReplicaId>,
    /// Shards that an operator accepted to lose, and were: nothing is acknowledged in them any more.
    given_up: BTreeSet<ShardId>,
    last_writer: Option<u64>,
    /// What happened how often.
    pub coverage: Coverage,
    violation: Option<Violation>,
}

impl Checks {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            shards: BTreeMap::new(),
            replicas: BTreeMap::new(),
            graves: BTreeMap::new(),
            dropped: BTreeMap::new(),
            configs: BTreeMap::new(),
            leaders: BTreeMap::new(),
            executes: BTreeMap::new(),
            reads: BTreeMap::new(),
            pins: BTreeMap::new(),
            lame: BTreeSet::new(),
            damaged: BTreeSet::new(),
            removed: BTreeSet::new(),
            reported_lost: BTreeSet::new(),
            older: BTreeSet::new(),
            given_up: BTreeSet::new(),
            last_writer: None,
            coverage: Coverage::default(),
            violation: None,
        }
    }

    /// The first violation, if there was one.
    #[must_use]
    pub const fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Notes a violation; the first one stays.
    pub fn fail(&mut self, rule: &'static str, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, text: text() });
        }
    }

    /// What is known of a shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardChecks> {
        self.shards.get(&shard)
    }

    /// Every shard that ever had a replica.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &ShardChecks)> {
        self.shards.iter().map(|(id, shard)| (*id, shard))
    }

    /// The server that a replica was created on.
    #[must_use]
    pub fn home(&self, replica: ReplicaId) -> Option<ServerId> {
        self.replicas.get(&replica).map(|known| known.server)
    }

    /// Whether the world took something of the replica: it will never promise again. What a replica says of itself does not count.
    #[must_use]
    pub fn is_damaged(&self, replica: ReplicaId) -> bool {
        self.damaged.contains(&replica)
    }

    /// The shard whose configuration has that epoch: of two with the same keys, after a teardown, only one has.
    pub(super) fn shard_of_epoch(&self, epoch: Epoch) -> Option<ShardId> {
        self.configs.get(&epoch).map(|known| known.shard)
    }

    /// The map has another shard in the place of this one.
    pub(super) fn give_up(&mut self, shard: ShardId) {
        self.given_up.insert(shard);
    }

    fn shard_mut(&mut self, shard: ShardId) -> &mut ShardChecks {
        let memory = self.memory;
        self.shards.entry(shard).or_insert_with(|| ShardChecks { model: ShardModel::new(memory), taken: Vec::new(), acked: LogIndex(0) })
    }

    // ---- what is committed

    /// Somebody says that everything up to `index` in the log of `replica` is committed. `epoch` is the one it says so in.
    fn claim(&mut self, servers: &Servers, replica: ReplicaId, index: LogIndex, epoch: Option<Epoch>) {
        let Some(known) = self.replicas.get(&replica).copied() else { return };
        if index <= known.verified {
            return;
        }
        let Some(log) = written(servers, known.server, replica) else { return };
        if index > log.last().index {
            self.fail("I4", || format!("{replica} has committed {index} and its log ends at {}", log.last()));
            return;
        }
        for at in known.verified.0 + 1..=index.0 {
            let at = LogIndex(at);
            let model = &self.shard_mut(known.shard).model;
            let (mine, theirs) = (log.entry(at), model.entry(at));
            match (mine, theirs) {
                (Some(mine), Some(theirs)) if !same(mine, theirs) => {
                    let (mine, theirs) = (mine.position, theirs.position);
                    self.fail("I4", || format!("{replica} has committed {mine}, committed is {theirs}"));
                }
                (Some(_), Some(_)) => {}
                (Some(mine), None) => self.commit(servers, known.shard, replica, mine, epoch.unwrap_or(log.promised)),
                (None, Some(theirs)) if at == log.base.index && theirs.position != log.base => {
                    let theirs = theirs.position;
                    self.fail("I4", || format!("{replica} has base {}, committed is {theirs}", log.base));
                }
                (None, Some(_)) => {}
                (None, None) => self.fail("I4", || format!("{replica} has base {}, of which nothing was committed from {at}", log.base)),
            }
        }
        if let Some(known) = self.replicas.get_mut(&replica) {
            known.verified = index;
        }
    }

    /// The first word that an entry is committed.
    fn commit(&mut self, servers: &Servers, shard: ShardId, by: ReplicaId, entry: &Arc<Entry>, epoch: Epoch) {
        self.coverage.hit(Sometimes::Committed);
        let position = entry.position;
        match self.configs.get(&epoch) {
            Some(Known { activated: false, config, .. }) => {
                let text = format!("{by} commits {position} in {config}, which is not active");
                self.fail("I1", || text);
            }
            None => self.fail("I1", || format!("{by} commits {position} in {epoch}, which nobody proposed")),
            Some(_) => {}
        }
        // I5, and I3 for every later configuration: w of each hold it.
        let later: Vec<Configuration> = self
            .configs
            .range(epoch..)
            .filter(|(_, known)| known.activated && known.shard == shard)
            .map(|(_, known)| known.config.clone())
            .collect();
        for config in later {
            let holders = self.holders(servers, &config, position);
            if holders < config.write_quorum as usize {
                let rule = if config.epoch == epoch { "I5" } else { "I3" };
                self.fail(rule, || format!("{by} commits {position} in {epoch}; {holders} members of {config} hold it"));
            }
        }
        let shard = self.shard_mut(shard);
        let evicted = shard.model.evicted_count;
        let what = match shard.model.commit(entry) {
            Effect::Repeated(_) => Some(Sometimes::Repeated),
            Effect::Refused => Some(Sometimes::SessionsRefused),
            Effect::None | Effect::Executed(_) => None,
        };
        let evicted = shard.model.evicted_count - evicted;
        self.coverage.add(Sometimes::SessionsEvicted, evicted);
        if let Some(what) = what {
            self.coverage.hit(what);
        }
    }

    /// How many members hold an entry durably, or did when they were lost.
    fn holders(&self, servers: &Servers, config: &Configuration, position: Position) -> usize {
        let holds = |member: &&ReplicaId| {
            let log = self.home(**member).and_then(|server| servers.get(&server)).and_then(|node| node.log.durable.replicas.get(*member));
            [log, self.graves.get(*member)].into_iter().flatten().any(|log| log.holds(position))
        };
        config.members.iter().filter(holds).count()
    }

    /// A server has made a step: what its replicas take for committed is compared.
    pub(super) fn on_step(&mut self, servers: &Servers, machine: &ServerMachine) {
        for replica in machine.replicas() {
            if let Some(reason) = replica.lost() {
                self.on_lost(replica.id(), reason);
                continue;
            }
            let epoch = (replica.lead() == Some(LeadStage::Active)).then(|| replica.promised());
            self.claim(servers, replica.id(), replica.watermarks().commit, epoch);
        }
    }

    // ---- logs and rows

    /// A server writes a record; its log is as before it.
    pub(super) fn on_record(&mut self, server: ServerId, before: &LogState, record: &LogRecord) {
        match record {
            LogRecord::Create { replica, shard } => {
                self.shard_mut(*shard);
                // An id whose first life was never durable, or never promised anything, may be created once more.
                let promised = self.graves.get(replica).map_or(Epoch(0), |log| log.promised);
                if (self.replicas.contains_key(replica) && !self.is_damaged(*replica)) || promised > Epoch(0) {
                    self.fail("R17", || format!("{server} creates {replica}, which was created before and promised {promised}"));
                }
                self.replicas.insert(*replica, ReplicaKnown { shard: *shard, server, verified: LogIndex(0) });
            }
            LogRecord::Append { replica, entries } => {
                let Some(known) = self.replicas.get(replica).copied() else { return };
                let mut previous = before.replicas.get(replica).map_or(Position::ZERO, ReplicaLog::last);
                for entry in entries {
                    self.take(known.shard, *replica, entry, previous.epoch);
                    previous = entry.position;
                }
            }
            LogRecord::Truncate { replica, after } => {
                self.coverage.hit(Sometimes::Truncations);
                self.drops(before, *replica, *after, "truncates");
            }
            LogRecord::Reset { replica, base, .. } => {
                self.coverage.hit(Sometimes::SnapshotsInstalled);
                // What is at or below the base comes back with the snapshot; above it the suffix is dropped.
                self.drops(before, *replica, base.index, "replaces");
                let Some(known) = self.replicas.get(replica).copied() else { return };
                if !self.shard_mut(known.shard).model.has(*base) {
                    self.fail("I4", || format!("{replica} takes a snapshot at {base}, which is not committed"));
                }
                if let Some(known) = self.replicas.get_mut(replica) {
                    known.verified = known.verified.max(base.index);
                }
            }
            LogRecord::Compact { replica, base } => {
                self.coverage.hit(Sometimes::Compactions);
                let Some(known) = self.replicas.get(replica).copied() else { return };
                if !self.shard_mut(known.shard).model.has(*base) {
                    self.fail("I4", || format!("{replica} compacts to {base}, which is not committed"));
                }
            }
            LogRecord::Promise { .. }
            | LogRecord::Commit { .. }
            | LogRecord::Remove { .. }
            | LogRecord::Lives(_)
            | LogRecord::Map { .. } => {}
        }
    }

    /// A batch was written: commit hints can be looked at.
    pub(super) fn on_written(&mut self, servers: &Servers, batch: &[LogRecord]) {
        for record in batch {
            if let LogRecord::Commit { replica, index } = record {
                self.claim(servers, *replica, *index, None);
            }
        }
    }

    /// A record becomes durable; the disk is as before it.
    pub(super) fn on_durable(&mut self, before: &LogState, record: &LogRecord) {
        let log = |replica: &ReplicaId| before.replicas.get(replica);
        match record {
            LogRecord::Remove { replica } => {
                self.removed.insert(*replica);
                if let Some(log) = log(replica) {
                    self.graves.insert(*replica, log.clone());
                }
            }
            LogRecord::Truncate { replica, after } => {
                if let Some(log) = log(replica) {
                    self.on_dropped(*replica, log, *after);
                }
            }
            LogRecord::Reset { replica, .. } => {
                if let Some(log) = log(replica) {
                    self.on_dropped(*replica, log, LogIndex(0));
                }
            }
            LogRecord::Create { .. }
            | LogRecord::Append { .. }
            | LogRecord::Promise { .. }
            | LogRecord::Commit { .. }
            | LogRecord::Compact { .. }
            | LogRecord::Lives(_)
            | LogRecord::Map { .. } => {}
        }
    }

    fn on_dropped(&mut self, replica: ReplicaId, log: &ReplicaLog, after: LogIndex) {
        let dropped = self.dropped.entry(replica).or_default();
        for entry in log.entries.iter().rev().take_while(|entry| entry.position.index > after) {
            let promised = dropped.entry(entry.position).or_default();
            *promised = log.promised.max(*promised);
        }
    }

    fn take(&mut self, shard: ShardId, replica: ReplicaId, entry: &Arc<Entry>, previous: Epoch) {
        let Ok(place) = usize::try_from(entry.position.index.0) else { return };
        let taken = &mut self.shard_mut(shard).taken;
        if taken.len() <= place {
            taken.resize_with(place + 1, Vec::new);
        }
        match taken[place].iter().find(|known| known.entry.position.epoch == entry.position.epoch) {
            None => taken[place].push(Taken { entry: Arc::clone(entry), previous }),
            Some(known) if !same(&known.entry, entry) || known.previous != previous => {
                let text = format!(
                    "{replica} takes {:?} after {previous}; another log has {:?} there after {}",
                    entry, known.entry, known.previous
                );
                self.fail("I2", || text);
            }
            Some(_) => {}
        }
    }

    /// A replica drops the entries above `after`.
    fn drops(&mut self, before: &LogState, replica: ReplicaId, after: LogIndex, how: &str) {
        let (Some(known), Some(log)) = (self.replicas.get(&replica).copied(), before.replicas.get(&replica)) else { return };
        for at in after.0 + 1..=log.last().index.0 {
            let at = LogIndex(at);
            let committed = self.shard_mut(known.shard).model.entry(at).map(|entry| entry.position);
            if committed.is_some() && committed == log.entry(at).map(|entry| entry.position) {
                self.fail("I3", || format!("{replica} {how} its log after {after} and drops {at}, which is committed"));
            }
        }
        if let Some(known) = self.replicas.get_mut(&replica) {
            known.verified = known.verified.min(after);
        }
    }

    /// A server asks work of its row store.
    pub(super) fn on_store(&mut self, servers: &Servers, replica: ReplicaId, command: &StoreCommand) {
        if let StoreCommand::Flush(batch) = command {
            self.claim(servers, replica, batch.applied.index, None);
            let Some(known) = self.replicas.get(&replica).copied() else { return };
            // R8: rows never hold more than the own durable log.
            let durable = servers.get(&known.server).and_then(|node| node.log.durable.replicas.get(&replica));
            if durable.is_none_or(|log| log.last().index < batch.applied.index) {
                let end = durable.map(ReplicaLog::last);
                self.fail("R8", || format!("{replica} flushes {}, its durable log ends at {end:?}", batch.applied));
            }
        }
    }

    /// The row store has done a flush or taken a whole stage: the view is compared with the committed log.
    pub(super) fn on_view(&mut self, server: &ServerNode, replica: ReplicaId, staged: bool) {
        let Some(known) = self.replicas.get(&replica).copied() else { return };
        let Some(rows) = server.rows.replica(replica) else { return };
        let view = if staged {
            match rows.staged() {
                Some((_, view)) => view,
                None => return,
            }
        } else {
            &rows.view
        };
        if let Err(text) = self.shard_mut(known.shard).model.compare(view) {
            self.fail("I4", || format!("{replica} holds {text}"));
        }
    }

    /// A process died: its log is what the disk holds.
    pub(super) fn on_crash(&mut self, server: ServerId, log: &LogState) {
        let graves = &self.graves;
        // What was not durable never was.
        self.replicas.retain(|id, known| known.server != server || log.replicas.contains_key(id) || graves.contains_key(id));
        for (replica, known) in self.replicas.iter_mut().filter(|(_, known)| known.server == server) {
            let last = log.replicas.get(replica).map_or(LogIndex(0), |log| log.last().index);
            known.verified = known.verified.min(last);
        }
    }

    /// A disk is about to be lost: what it held was durable until now.
    pub(super) fn on_loss(&mut self, log: &LogState) {
        for (replica, log) in &log.replicas {
            // A disk that was put back may be lost again: what the newer one held is what was acknowledged.
            if self.graves.get(replica).is_none_or(|known| known.last() <= log.last()) {
                self.graves.insert(*replica, log.clone());
            }
            self.damaged.insert(*replica);
        }
    }

    /// An older copy of a disk is about to take the place of what it holds. `is_older`: the register knows of a life of the server that the
    /// copy has not seen, so that nobody may count what its replicas say.
    pub(super) fn on_put_back(&mut self, log: &LogState, copy: &LogState, is_older: bool) {
        self.on_loss(log);
        if is_older {
            self.older.extend(copy.replicas.keys());
        }
    }

    /// R26: whoever has forgotten what it said says nothing more.
    fn on_word(&mut self, replica: ReplicaId, what: &str) {
        if self.older.contains(&replica) {
            self.fail("R26", || format!("{replica} is of a disk that went back, and {what}"));
        }
    }

    /// What is stored of a replica went bad: it may serve until somebody looks.
    pub(super) fn on_rot(&mut self, replica: ReplicaId) {
        self.damaged.insert(replica);
    }

    // ---- the register

    /// The register was written.
    pub(super) fn on_cas(&mut self, servers: &Servers, writer: u64, old: &ClusterMap, new: &ClusterMap) {
        if old.controller.holder.is_some() && self.last_writer.is_some_and(|last| last != writer) {
            self.coverage.hit(Sometimes::Duels);
        }
        self.last_writer = Some(writer);
        let (was, is) = (&old.counters, &new.counters);
        if is.server < was.server
            || is.shard < was.shard
            || is.replica < was.replica
            || is.epoch < was.epoch
            || is.session < was.session
            || is.balancer < was.balancer
        {
            self.fail("I1", || format!("counters go back from {was:?} to {is:?}"));
        }
        for (id, record) in &new.replicas {
            match old.replicas.get(id) {
                None if *id <= was.replica || *id > is.replica || record.stage != ReplicaStage::Minted => {
                    self.fail("R17", || format!("{id} appears as {record:?}, counters were {was:?}"));
                }
                Some(before) if before.shard != record.shard || before.server != record.server || before.stage > record.stage => {
                    self.fail("R17", || format!("{id} was {before:?} and is {record:?}"));
                }
                None | Some(_) => {}
            }
        }
        for (id, shard) in &new.shards {
            let before = old.shards.get(id);
            if shard.pending.as_ref() != before.and_then(|shard| shard.pending.as_ref())
                && let Some(config) = &shard.pending
            {
                if before.is_some_and(|shard| shard.pending.is_some()) {
                    self.coverage.hit(Sometimes::Superseded);
                }
                self.on_proposed(*id, config, old, new);
            }
            if shard.current.as_ref() != before.and_then(|shard| shard.current.as_ref()) {
                let was = before.and_then(|shard| shard.current.as_ref());
                match &shard.current {
                    Some(config) if before.is_some_and(|shard| shard.pending.as_ref() == Some(config)) => {
                        self.on_activated(servers, *id, was, config);
                    }
                    other => {
                        self.fail("I1", || format!("{id} has {other:?} active, which was not pending in {before:?}"));
                    }
                }
            }
        }
    }

    fn on_proposed(&mut self, shard: ShardId, config: &Configuration, old: &ClusterMap, new: &ClusterMap) {
        self.coverage.hit(Sometimes::Proposed);
        if !config.is_valid() || config.epoch <= old.counters.epoch || config.epoch > new.counters.epoch {
            self.fail("I1", || format!("{config} of {shard} is proposed, counters were {:?}", old.counters));
        }
        for member in &config.members {
            let record = new.replicas.get(member);
            if record.is_none_or(|record| record.stage != ReplicaStage::Ready || record.shard != shard) {
                self.fail("R17", || format!("{config} of {shard} has {member}, which is {record:?}"));
            }
        }
        let known = Known { shard, config: config.clone(), activated: false };
        if let Some(before) = self.configs.insert(config.epoch, known) {
            self.fail("I1", || format!("{config} of {shard} has the epoch of {before:?}"));
        }
    }

    fn on_activated(&mut self, servers: &Servers, shard: ShardId, was: Option<&Configuration>, config: &Configuration) {
        self.coverage.hit(Sometimes::Activated);
        if let Some(was) = was {
            if was.primary != config.primary {
                self.coverage.hit(Sometimes::Failovers);
            }
            let fresh = config.members.iter().filter(|member| !was.has(**member)).count();
            self.coverage.add(Sometimes::LearnersPromoted, fresh as u64);
            if was.epoch >= config.epoch {
                self.fail("I1", || format!("{config} of {shard} follows {was}"));
            }
        }
        if let Some(known) = self.configs.get_mut(&config.epoch) {
            known.activated = true;
        }
        // I3: whatever is committed is on a write quorum of the new configuration and in its primary's log.
        let last = self.shard_mut(shard).model.last_position();
        let holders = self.holders(servers, config, last);
        if holders < config.write_quorum as usize {
            self.fail("I3", || format!("{config} of {shard} becomes active; {holders} members hold {last}, which is committed"));
        }
        // R14: the barrier is on so many that the configuration can be sealed again.
        let log = self.home(config.primary).and_then(|server| written(servers, server, config.primary));
        let barrier = log.and_then(|log| {
            let before = log.entries.partition_point(|entry| entry.position.epoch < config.epoch);
            log.entries.get(before).map(|entry| entry.position).filter(|position| position.epoch == config.epoch)
        });
        if let Some(barrier) = barrier {
            let holders = self.holders(servers, config, barrier);
            if holders < config.install_quorum() {
                self.fail("R14", || format!("{config} of {shard} becomes active; {holders} members hold its barrier {barrier}"));
            }
        }
        if let Some(log) = log
            && !log.holds(last)
            && !self.is_damaged(config.primary)
        {
            let end = log.last();
            self.fail("I3", || format!("{config} of {shard} becomes active; its primary's log ends at {end}, {last} is committed"));
        }
    }

    // ---- messages

    /// A balancer (or a server, for others) sends to a server.
    pub(super) fn on_ask(&mut self, from: NodeId, message: &Message) {
        match message {
            Message::ToServer(ToServer::Execute(execute)) => {
                let asked = Asked { replica: execute.replica, epoch: execute.epoch, execute: execute.clone() };
                self.executes.insert((from, execute.tag), asked);
            }
            Message::ToServer(ToServer::Read(read)) => self.on_read_asked(from, read),
            Message::ToServer(ToServer::ReadOn(read)) => self.on_read_on_asked(from, read),
            Message::ToServer(ToServer::Install(install)) => {
                if install.source != install.config.primary {
                    self.coverage.hit(Sometimes::ForeignSources);
                }
            }
            Message::ToServer(ToServer::Activate { epoch, .. }) => {
                // R10: only what was read back. The register may have moved on, but it must have been there.
                if self.configs.get(epoch).is_none_or(|known| !known.activated) {
                    self.fail("I1", || format!("{from} activates {epoch}, which never became current"));
                }
            }
            Message::ToServer(
                ToServer::Heartbeat { .. }
                | ToServer::Map { .. }
                | ToServer::Create { .. }
                | ToServer::Retire { .. }
                | ToServer::Seal { .. }
                | ToServer::Learn { .. }
                | ToServer::Unpin(_)
                | ToServer::Home { .. },
            )
            | Message::ToBalancer(_)
            | Message::Replica(_) => {}
        }
    }

    /// A server sends.
    pub(super) fn on_say(&mut self, servers: &Servers, from: ServerId, to: NodeId, message: &Message) {
        match message {
            Message::Replica(message) => self.on_replica(servers, message),
            Message::ToBalancer(ToBalancer::Executed { tag, result }) => self.on_executed(servers, to, *tag, result),
            Message::ToBalancer(ToBalancer::ReadDone { tag, result }) => self.on_read_done(servers, to, *tag, result),
            Message::ToBalancer(ToBalancer::Beat { replicas, .. }) => {
                for status in replicas {
                    if let Some(reason) = status.lost {
                        self.on_lost(status.replica, reason);
                        continue;
                    }
                    if status.lead == Some(LeadStage::Lame) && self.lame.insert((status.replica, status.promised)) {
                        self.coverage.hit(Sometimes::Lame);
                    }
                    self.claim(servers, status.replica, status.applied, None);
                }
            }
            Message::ToBalancer(ToBalancer::Progress { stage, .. }) => {
                if *stage == LeadStage::SourceFailed {
                    self.coverage.hit(Sometimes::SourcesFailed);
                }
            }
            Message::ToBalancer(ToBalancer::Promised { replica, epoch, last }) => self.on_promised(servers, from, *replica, *epoch, *last),
            Message::ToBalancer(ToBalancer::Created { .. } | ToBalancer::Retired { .. } | ToBalancer::Home { .. }) => {}
            Message::ToServer(_) => self.on_ask(NodeId::Server(from), message),
        }
    }

    /// A replica takes itself for lost, and with that forgets what it promised to keep: only because the world took something of it.
    fn on_lost(&mut self, replica: ReplicaId, reason: LostReason) {
        if self.reported_lost.insert(replica) {
            self.coverage.hit(Sometimes::ReplicasLost);
        }
        if !self.is_damaged(replica) && !self.removed.contains(&replica) {
            self.fail("lost", || format!("{replica} takes itself for lost ({reason:?}); nothing was taken from it"));
        }
    }

    /// R3: a promise is told when it is durable, with a log end that is durable too.
    fn on_promised(&mut self, servers: &Servers, server: ServerId, replica: ReplicaId, epoch: Epoch, last: Position) {
        self.on_word(replica, "promises");
        let Some(log) = servers.get(&server).and_then(|node| node.log.durable.replicas.get(&replica)) else { return };
        // What it took since, in that epoch or a later one, may have replaced the end that it speaks of.
        let dropped = self.dropped.get(&replica).and_then(|dropped| dropped.get(&last)).is_some_and(|promised| *promised >= epoch);
        if log.promised < epoch || !(log.holds(last) || dropped) {
            let (promised, end) = (log.promised, log.last());
            self.fail("R3", || format!("{replica} says it promised {epoch} at {last}; durable are {promised} and {end}"));
        }
    }

    fn on_replica(&mut self, servers: &Servers, message: &ReplicaMessage) {
        // That there is no such log here any more is true of whoever is gone.
        if message.body != ReplicaBody::FetchRefused {
            self.on_word(message.from, "speaks to others");
        }
        match &message.body {
            ReplicaBody::Append { commit, entries, .. } => {
                let leader = *self.leaders.entry(message.epoch).or_insert(message.from);
                if leader != message.from {
                    self.fail("I1", || format!("{} and {leader} both lead {}", message.from, message.epoch));
                }
                if !entries.is_empty()
                    && let Some(known) = self.configs.get(&message.epoch)
                    && known.config.primary != message.from
                {
                    let config = known.config.clone();
                    self.fail("I1", || format!("{} appends in {config}", message.from));
                }
                self.claim(servers, message.from, *commit, Some(message.epoch));
            }
            ReplicaBody::Appended { matched } => {
                // A member acknowledges what is durable.
                let Some(known) = self.replicas.get(&message.from).copied() else { return };
                let durable = servers.get(&known.server).and_then(|node| node.log.durable.replicas.get(&message.from));
                let end = durable.map_or(LogIndex(0), |log| log.last().index);
                if end < *matched {
                    self.fail("I5", || format!("{} acknowledges {matched}, its durable log ends at {end}", message.from));
                }
            }
            ReplicaBody::ReadIndexIs { index: Some(index), .. } => self.claim(servers, message.from, *index, Some(message.epoch)),
            ReplicaBody::SnapshotPart { position, .. } => self.claim(servers, message.from, position.index, None),
            ReplicaBody::ReadIndexIs { index: None, .. }
            | ReplicaBody::Mismatch { .. }
            | ReplicaBody::Refused
            | ReplicaBody::NeedSnapshot { .. }
            | ReplicaBody::Round { .. }
            | ReplicaBody::RoundConfirmed { .. }
            | ReplicaBody::ReadIndex { .. }
            | ReplicaBody::FetchLog { .. }
            | ReplicaBody::LogPart { .. }
            | ReplicaBody::LogGap { .. }
            | ReplicaBody::FetchRefused
            | ReplicaBody::FetchSnapshot { .. } => {}
        }
    }

    fn on_executed(&mut self, servers: &Servers, to: NodeId, tag: Tag, result: &ExecuteResult) {
        let outcome = match result {
            ExecuteResult::Done(outcome) => outcome,
            ExecuteResult::NotPrimary { .. } => return self.coverage.hit(Sometimes::NotPrimary),
            ExecuteResult::SessionGone | ExecuteResult::Busy => return,
        };
        self.coverage.hit(Sometimes::Executed);
        let Some(asked) = self.executes.get(&(to, tag)).cloned() else {
            return self.fail("I5", || format!("{to} is answered {tag:?}, which it did not ask"));
        };
        self.claim(servers, asked.replica, outcome.position.index, Some(asked.epoch));
        let Some(known) = self.replicas.get(&asked.replica).copied() else { return };
        if self.given_up.contains(&known.shard) {
            let shard = known.shard;
            self.fail("loss", || format!("{} acknowledges {} in {shard}, which is given up", asked.replica, outcome.position));
        }
        if self.configs.get(&asked.epoch).is_none_or(|known| !known.activated) {
            self.fail("I1", || format!("{} answers in {}, which is not active", asked.replica, asked.epoch));
        }
        let shard = self.shard_mut(known.shard);
        let index = outcome.position.index;
        shard.acked = shard.acked.max(index);
        let Some(entry) = shard.model.entry(index).cloned() else {
            return self.fail("I5", || format!("{} acknowledges {}, which is not committed", asked.replica, outcome.position));
        };
        if shard.model.effect(index).and_then(Effect::outcome) != Some(outcome) {
            let expected = shard.model.effect(index).cloned();
            return self.fail("I4", || format!("{} answers {outcome:?}, expected {expected:?}", asked.replica));
        }
        // The answer must be to this command: by its request id, or by the client's key.
        let own = asked
            .execute
            .request
            .is_some_and(|request| entry.request.is_some_and(|given| (given.session, given.number) == (request.session, request.number)));
        let keyed = asked.execute.idempotency.is_some() && asked.execute.idempotency == entry.idempotency;
        let same_rows = matches!(&entry.command, Command::Operations(operations) if *operations == *asked.execute.operations);
        if !(own || keyed) || !same_rows {
            self.fail("I4", || format!("{} answers {:?} with the result of {entry:?}", asked.replica, asked.execute));
        }
    }
}

/// Two logs often share one allocation: then there is nothing to compare.
fn same(one: &Arc<Entry>, other: &Arc<Entry>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

fn written(servers: &Servers, server: ServerId, replica: ReplicaId) -> Option<&ReplicaLog> {
    servers.get(&server)?.log.written.replicas.get(&replica)
}
