//! Random schedules of one shard with a register and a controller in miniature: lost, late, doubled and reordered messages, slow disks,
//! power loss with torn tails, lost disks, changes of configuration at any moment. A search, not a proof; the explorer goes further.

use super::world::{SHARD, World, home, replica, server};
use crate::{
    command::Operation,
    config::Configuration,
    id::{Epoch, LogIndex, MapVersion, Position, ReplicaId, ServerId},
    message::{ExecuteResult, Freshness, LeadStage, ReadResult, Tag, ToBalancer, ToServer},
    planted::Planted,
    server::ServerSettings,
    time::Duration,
    value::Key,
};
use std::collections::{BTreeMap, BTreeSet};

const SERVERS: u64 = 5;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What the register holds and the controller has gathered.
struct Chaos {
    world: World,
    dice: Dice,
    current: Option<Configuration>,
    /// The configuration before: balancers with an old map still send to it.
    former: Option<Configuration>,
    pending: Option<Configuration>,
    epoch: u64,
    ready: BTreeSet<ReplicaId>,
    minted: BTreeSet<ReplicaId>,
    /// Every replica ever minted.
    generation: u64,
    promises: BTreeMap<ReplicaId, Position>,
    installed_with: Option<(ReplicaId, Position)>,
    read_inbox: usize,
    acknowledged: LogIndex,
    reads: BTreeMap<Tag, LogIndex>,
    acknowledged_count: u64,
    read_count: u64,
    activated_count: u64,
}

impl Chaos {
    fn new(seed: u64, planted: Planted) -> Self {
        let mut dice = Dice(seed);
        let small = dice.one_in(2);
        let settings = ServerSettings {
            append_entries_max: 1 + dice.below(4) as usize,
            appends_in_flight_max: 1 + dice.below(4) as usize,
            log_keep_count: if small { 3 } else { 1_000 },
            flush_entries: 1 + dice.below(3) as usize,
            executes_max: 20,
            ..ServerSettings::default()
        };
        let mut world = World::with(SERVERS, settings, planted);
        world.inbox.clear();
        world.late_answers = true;
        Self {
            world,
            dice,
            current: None,
            former: None,
            pending: None,
            epoch: 0,
            ready: (1..=SERVERS).map(ReplicaId).collect(),
            minted: BTreeSet::new(),
            generation: 0,
            promises: BTreeMap::new(),
            installed_with: None,
            read_inbox: 0,
            acknowledged: LogIndex(0),
            reads: BTreeMap::new(),
            acknowledged_count: 0,
            read_count: 0,
            activated_count: 0,
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.act();
            self.take_inbox();
        }
    }

    fn act(&mut self) {
        let id = 1 + self.dice.below(SERVERS);
        match self.dice.below(100) {
            0..45 => {
                let count = self.world.mail_count() as u64;
                if count > 0 {
                    let place = if self.dice.one_in(3) { self.dice.below(count) } else { 0 };
                    let (drop, copy) = (self.dice.one_in(15), self.dice.one_in(20));
                    self.world.deliver_one(place as usize, drop, copy);
                }
            }
            45..60 => self.world.sync_one(id),
            60..70 => self.world.answer_one(id),
            70..75 => {
                self.world.now = self.world.now + Duration::from_millis(1 + self.dice.below(60));
                for id in 1..=SERVERS {
                    self.world.tick_due(id);
                }
            }
            75..83 => self.write(),
            83..88 => self.read(),
            88..96 => self.control(),
            96 if self.dice.one_in(2) => {
                if self.dice.one_in(3) {
                    self.world.heal();
                } else {
                    self.world.cut(id);
                }
            }
            96 | 97 => {
                if self.dice.one_in(2) && self.world.runs(id) {
                    let records = self.dice.below(4) as usize;
                    self.world.crash_torn(id, records);
                }
            }
            98 => {
                if !self.world.runs(id) {
                    self.world.start(id);
                }
            }
            _ => {
                if self.dice.one_in(40) && self.may_lose(id) {
                    self.world.wipe(id);
                    self.ready.retain(|replica| home(*replica) != server(id));
                }
            }
        }
    }

    /// Losing a disk is allowed while what is left of the current configuration can still be sealed with everything acknowledged.
    fn may_lose(&self, id: u64) -> bool {
        let left = |config: &Configuration| {
            let left = config.members.iter().filter(|member| self.ready.contains(member) && home(**member) != server(id)).count();
            left >= config.seal_quorum().max(config.write_quorum as usize)
        };
        self.current.as_ref().is_some_and(left) && self.pending.is_none() && self.ready.len() > 3
    }

    fn mint(&mut self, at: u64) {
        self.generation += 1;
        let new = ReplicaId(self.generation * 10 + at);
        self.minted.insert(new);
    }

    /// One idempotent step of the controller, by what the register holds.
    fn control(&mut self) {
        for id in 1..=SERVERS {
            let has = |set: &BTreeSet<ReplicaId>| set.iter().any(|replica| home(*replica) == server(id));
            if self.world.runs(id) && !has(&self.ready) && !has(&self.minted) {
                self.mint(id);
            }
        }
        for id in self.minted.clone() {
            let incarnation = self.world.incarnation(home(id).0);
            let message = ToServer::Create { version: MapVersion(1), incarnation, replica: id, shard: SHARD };
            self.world.order(home(id), message);
        }
        let Some(pending) = self.pending.clone() else {
            if self.current.is_none() || self.dice.one_in(12) {
                self.propose();
            } else if let Some(current) = self.current.clone() {
                if self.dice.one_in(3) {
                    let learners: Vec<u64> = self.ready.iter().filter(|id| !current.has(**id)).map(|id| id.0).collect();
                    self.world.learn(current.primary.0, current.epoch.0, &learners);
                }
                self.world.activate(current.primary.0, current.epoch.0);
            }
            return;
        };
        let enough = match &self.current {
            None => true,
            Some(current) => {
                for member in &current.members {
                    if !self.promises.contains_key(member) {
                        self.world.seal(member.0, pending.epoch.0);
                    }
                }
                self.promises.len() >= current.seal_quorum()
            }
        };
        if enough && self.installed_with.is_none() {
            let best = self.promises.iter().map(|(id, last)| (*last, *id)).max();
            let own = self.promises.get(&pending.primary).copied();
            self.installed_with = Some(match best {
                None => (pending.primary, Position::ZERO),
                Some((last, _)) if own == Some(last) => (pending.primary, last),
                Some((last, id)) => (id, last),
            });
        }
        if let Some((source, last)) = self.installed_with {
            self.world.install(&pending, source.0, last);
        }
        if self.dice.one_in(25) {
            self.propose();
        }
    }

    fn propose(&mut self) {
        self.epoch += 1;
        let ready: Vec<ReplicaId> = self.ready.iter().copied().collect();
        let mut members: Vec<ReplicaId> = ready.iter().copied().filter(|_| self.dice.one_in(2)).collect();
        if members.is_empty() {
            members = ready;
        }
        let primary = members[self.dice.below(members.len() as u64) as usize];
        let write_quorum = 1 + self.dice.below(members.len() as u64) as u32;
        self.pending = Some(Configuration { epoch: Epoch(self.epoch), primary, members, write_quorum });
        self.promises.clear();
        self.installed_with = None;
    }

    /// What a balancer takes for current.
    fn believed(&mut self) -> Option<Configuration> {
        if self.dice.one_in(4) { self.former.clone() } else { self.current.clone() }
    }

    fn write(&mut self) {
        let Some(current) = self.believed() else { return };
        let (primary, epoch) = (current.primary.0, current.epoch.0);
        let key = self.dice.below(20).cast_signed();
        self.world.write(primary, epoch, key);
    }

    fn read(&mut self) {
        let Some(current) = self.believed() else { return };
        let at = current.members[self.dice.below(current.members.len() as u64) as usize];
        let tag = self.world.read(at.0, Freshness::Linearizable(current.epoch));
        self.reads.insert(tag, self.acknowledged);
    }

    fn take_inbox(&mut self) {
        while self.read_inbox < self.world.inbox.len() {
            let (_, message) = self.world.inbox[self.read_inbox].clone();
            self.read_inbox += 1;
            match message {
                ToBalancer::Created { replica } => {
                    if self.minted.remove(&replica) {
                        self.ready.insert(replica);
                    }
                }
                ToBalancer::Promised { replica, epoch, last } => {
                    let pending = self.pending.as_ref().is_some_and(|pending| pending.epoch == epoch);
                    let member = self.current.as_ref().is_some_and(|current| current.has(replica));
                    if pending && member && self.installed_with.is_none() {
                        self.promises.insert(replica, last);
                    }
                }
                ToBalancer::Progress { replica, epoch, stage } => self.progress(replica, epoch, stage),
                ToBalancer::Executed { result: ExecuteResult::Done(outcome), .. } => {
                    self.acknowledged_count += 1;
                    let entry = self.world.committed.get(&outcome.position.index);
                    assert!(
                        entry.is_some_and(|entry| entry.position == outcome.position),
                        "I5: {outcome:?} is acknowledged, not committed"
                    );
                    self.acknowledged = self.acknowledged.max(outcome.position.index);
                }
                ToBalancer::ReadDone { tag, result: ReadResult::Rows { rows, at, read_index, .. } } => {
                    self.read_count += 1;
                    let before = self.reads.remove(&tag).expect("answered once");
                    assert!(
                        read_index.is_some_and(|index| index >= before),
                        "I6: read index {read_index:?}, acknowledged before: {before}"
                    );
                    assert!(at.index >= before, "I6");
                    assert_eq!(
                        rows.iter().map(|row| (row.row.key, row.version)).collect::<BTreeMap<_, _>>(),
                        self.state_at(at.index),
                        "I6"
                    );
                }
                ToBalancer::ReadDone { .. }
                | ToBalancer::Executed { .. }
                | ToBalancer::Beat { .. }
                | ToBalancer::Retired { .. }
                | ToBalancer::Home { .. } => {}
            }
        }
    }

    fn progress(&mut self, by: ReplicaId, epoch: Epoch, stage: LeadStage) {
        let of_pending = self.pending.as_ref().is_some_and(|pending| pending.epoch == epoch && pending.primary == by);
        let of_current = self.current.as_ref().is_some_and(|current| current.epoch == epoch && current.primary == by);
        match stage {
            LeadStage::Installed if of_pending => {
                self.former = self.current.take();
                self.current = self.pending.take();
                self.activated_count += 1;
                self.world.activate(by.0, epoch.0);
            }
            LeadStage::Lame | LeadStage::SourceFailed if of_pending || (of_current && self.pending.is_none()) => self.propose(),
            LeadStage::Installing | LeadStage::Installed | LeadStage::Active | LeadStage::Lame | LeadStage::SourceFailed => {}
        }
    }

    /// Rows by key with the version of each, after the entry of that index. Every write here is a replacing insert.
    fn state_at(&self, index: LogIndex) -> BTreeMap<Key, Position> {
        let mut state = BTreeMap::new();
        for entry in self.world.committed.range(..=index).map(|(_, entry)| entry) {
            if let crate::command::Command::Operations(operations) = &entry.command {
                state.extend(operations.iter().map(Operation::key).map(|key| (key, entry.position)));
            }
        }
        state
    }

    /// Everything runs and hears everything: the shard must serve again and hold all that was acknowledged.
    fn heal(&mut self) {
        self.world.late_answers = false;
        self.world.heal();
        for id in 1..=SERVERS {
            if !self.world.runs(id) {
                self.world.start(id);
            }
            for _ in 0..10_000 {
                self.world.answer_one(id);
            }
        }
        for _ in 0..400 {
            self.world.run(20);
            self.take_inbox();
            self.control();
            let Some(current) = self.current.clone() else { continue };
            if self.pending.is_some() {
                continue;
            }
            let tag = self.world.write(current.primary.0, current.epoch.0, 999);
            self.world.run(200);
            self.take_inbox();
            if self.world.acknowledged(tag) {
                let last = *self.world.committed.last_key_value().expect("an entry").0;
                assert!(last >= self.acknowledged, "I3");
                return;
            }
        }
        panic!("the shard does not serve again: {:?} {:?}", self.current, self.pending);
    }
}

/// Runs one seed; the counts say that something happened.
pub(crate) fn play(seed: u64, planted: Planted) -> (u64, u64, u64) {
    let mut chaos = Chaos::new(seed, planted);
    chaos.run(4_000);
    chaos.heal();
    (chaos.acknowledged_count, chaos.read_count, chaos.activated_count)
}

#[test]
fn chaos_breaks_nothing() {
    let mut sum = (0, 0, 0);
    for seed in 0..chaos_seeds() {
        let result = std::panic::catch_unwind(|| play(seed, Planted::NONE));
        let Ok((writes, reads, changes)) = result else { panic!("seed {seed}") };
        sum = (sum.0 + writes, sum.1 + reads, sum.2 + changes);
    }
    assert!(sum.0 > 100 && sum.1 > 100 && sum.2 > 20, "too little happened: {sum:?}");
}

fn chaos_seeds() -> u64 {
    option_env!("CHAOS_SEEDS").and_then(|seeds| seeds.parse().ok()).unwrap_or(30)
}

#[test]
fn a_server_id_is_the_last_digit_of_its_replicas() {
    assert_eq!(home(replica(34)), ServerId(4));
}

/// What the search above would find, were it there.
#[cfg(feature = "planted")]
#[test]
fn chaos_finds_planted_bugs() {
    use crate::planted::Bug;
    let bugs = [
        Bug::AcknowledgesBeforeDurable,
        Bug::CommitsOldEpochByCounting,
        Bug::LaterReadsShareRound,
        Bug::RestartedPrimaryGoesOn,
        Bug::CountsLearners,
        Bug::ServesUnactivated,
    ];
    for bug in bugs {
        let found = (0..200).any(|seed| std::panic::catch_unwind(|| play(seed, Planted::with(bug))).is_err());
        assert!(found, "{}", bug.name());
    }
}
