//! What the planner proposes, case by case: a map and what was seen go in, a configuration or nothing comes out.

use super::*;
use crate::{
    balancer::observed::{Beat, Seen},
    id::{Epoch, Incarnation, LogIndex, MapVersion, Position},
    map::{Address, ServerRecord},
    message::ReplicaStatus,
    planted::Planted,
    storage::LostReason,
    value::Key,
};

mod membership;
mod pending;
mod reasons;

const SUSPECT_AFTER: Duration = Duration::from_millis(500);
const BEAT_EVERY_MS: u64 = 100;

const SH1: ShardId = ShardId(1);
const SH2: ShardId = ShardId(2);

const S1: ServerId = ServerId(1);
const S2: ServerId = ServerId(2);
const S3: ServerId = ServerId(3);
const S4: ServerId = ServerId(4);

const R1: ReplicaId = ReplicaId(1);
const R2: ReplicaId = ReplicaId(2);
const R3: ReplicaId = ReplicaId(3);
const R4: ReplicaId = ReplicaId(4);

fn config(epoch: u64, primary: ReplicaId, members: &[ReplicaId]) -> Configuration {
    Configuration { epoch: Epoch(epoch), primary, members: members.to_vec(), write_quorum: majority(members.len()) }
}

/// What a replica of epoch 5 says while all is well: the ends of the logs are the same.
fn status(replica: ReplicaId, shard: ShardId) -> ReplicaStatus {
    ReplicaStatus {
        replica,
        shard,
        lost: None,
        promised: Epoch(5),
        lead: None,
        lead_progress: 0,
        store_away: false,
        last: Position { epoch: Epoch(5), index: LogIndex(10) },
        commit: LogIndex(10),
        applied: LogIndex(10),
        flushed: LogIndex(10),
        learners: vec![],
        unreached: vec![],
    }
}

/// A cluster as one controller sees it. Replica n of shard 1 is on server n.
struct Story {
    map: ClusterMap,
    observed: Observed,
    drives: Drives,
    now: Instant,
    beat: u64,
    /// What each replica says from now on.
    says: BTreeMap<ReplicaId, ReplicaStatus>,
    silent: BTreeSet<ServerId>,
}

impl Story {
    /// So many servers, each with a ready replica of shard 1, which is configured by e5 with all of them and led by replica 1.
    fn new(server_count: u64) -> Self {
        let mut map = ClusterMap::default();
        map.counters.epoch = Epoch(5);
        let mut story = Self {
            map,
            observed: Observed::new(SUSPECT_AFTER, Duration::from_millis(3_000)),
            drives: Drives::new(Planted::NONE),
            now: Instant(0) + Duration::from_millis(10_000),
            beat: 0,
            says: BTreeMap::new(),
            silent: BTreeSet::new(),
        };
        let mut shard = ShardRecord {
            name: "sh1".into(),
            low: Key(0),
            size: 100,
            current: None,
            pending: None,
            placement: BTreeSet::new(),
            wanted_primary: None,
        };
        for number in 1..=server_count {
            story.server(ServerId(number));
            story.replica(ReplicaId(number), SH1, ServerId(number), ReplicaStage::Ready);
            shard.placement.insert(ServerId(number));
        }
        let members: Vec<ReplicaId> = (1..=server_count).map(ReplicaId).collect();
        shard.current = Some(config(5, R1, &members));
        story.map.shards.insert(SH1, shard);
        story.says(R1, |status| status.lead = Some(LeadStage::Active));
        story.wait(0);
        story
    }

    /// The same before the first configuration.
    fn unborn(server_count: u64) -> Self {
        let mut story = Self::new(server_count);
        story.shard().current = None;
        for status in story.says.values_mut() {
            (status.promised, status.lead, status.last) = (Epoch(0), None, Position::ZERO);
        }
        story.wait(0);
        story
    }

    fn server(&mut self, server: ServerId) {
        let address = Some(Address { http: "h:1".into(), peer: "h:2".into() });
        let record = ServerRecord {
            name: format!("Server{}", server.0).into(),
            number: server.0,
            goal: ServerGoal::Run,
            address,
            incarnation: Some(Incarnation(1)),
        };
        self.map.servers.insert(server, record);
        self.map.counters.server = self.map.counters.server.max(server);
        self.observed.servers.insert(server, Seen::new(self.now));
    }

    fn replica(&mut self, replica: ReplicaId, shard: ShardId, server: ServerId, stage: ReplicaStage) {
        self.map.replicas.insert(replica, ReplicaRecord { shard, server, stage });
        self.map.counters.replica = self.map.counters.replica.max(replica);
        if stage == ReplicaStage::Ready {
            self.says.insert(replica, status(replica, shard));
        }
    }

    /// Another shard with one replica on each of the servers 1 to 3 (11, 12 and 13), led by that on `leader`.
    fn second_shard(&mut self, leader: ServerId) {
        for server in [S1, S2, S3] {
            self.replica(ReplicaId(10 + server.0), SH2, server, ReplicaStage::Ready);
        }
        let leader = ReplicaId(10 + leader.0);
        let current = config(5, leader, &[ReplicaId(11), ReplicaId(12), ReplicaId(13)]);
        let record = ShardRecord { name: "sh2".into(), low: Key(100), current: Some(current), ..self.shard().clone() };
        self.map.shards.insert(SH2, record);
        self.says(leader, |status| status.lead = Some(LeadStage::Active));
        self.wait(0);
    }

    fn shard(&mut self) -> &mut ShardRecord {
        self.map.shards.get_mut(&SH1).unwrap()
    }

    /// Changes what a replica says, from its server's next beat on.
    fn says(&mut self, replica: ReplicaId, change: impl FnOnce(&mut ReplicaStatus)) {
        change(self.says.get_mut(&replica).unwrap());
    }

    fn silence(&mut self, servers: &[ServerId]) {
        self.silent.extend(servers);
    }

    /// Lets time pass. Who is not silent is heard of every 100 ms and at the end.
    fn wait(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        self.drives.follow(&self.map, self.now);
        loop {
            self.beat += 1;
            for server in self.map.servers.keys().filter(|server| !self.silent.contains(server)) {
                let replicas: Vec<ReplicaStatus> = self
                    .says
                    .iter()
                    .filter(|(id, _)| self.map.server_of(**id) == Some(*server))
                    .map(|(_, status)| status.clone())
                    .collect();
                let beat = Beat { beat: self.beat, incarnation: Incarnation(1), follows: None, map_version: MapVersion(1), replicas };
                self.observed.heard(self.now, *server, beat, 0);
            }
            if self.now == end {
                return;
            }
            self.now = (self.now + Duration::from_millis(BEAT_EVERY_MS)).min(end);
        }
    }

    /// The next map, after checks that hold of any.
    fn next(&self) -> ClusterMap {
        let facts =
            Facts { now: self.now, observed: &self.observed, drives: &self.drives, accepted_loss: &self.map.accepted_loss, seed: 7 };
        let (next, reasons) = next_map(&self.map, &facts);
        assert_eq!(reasons.keys().collect::<Vec<_>>(), proposed(&self.map, &next), "each proposal has a reason");
        for (id, record) in &next.shards {
            let before = &self.map.shards[id];
            let Some(pending) = record.pending.as_ref().filter(|pending| before.pending.as_ref() != Some(pending)) else { continue };
            assert!(pending.is_valid(), "{pending}");
            // I1: an epoch is minted for each proposal.
            assert!(pending.epoch > self.map.counters.epoch && pending.epoch <= next.counters.epoch, "{pending}");
            assert_eq!(before.current, record.current, "a proposal changes nothing that is active");
            for member in &pending.members {
                assert_eq!(next.replicas[member].stage, ReplicaStage::Ready, "R17: {pending}");
            }
        }
        next
    }

    /// Why that is proposed for shard 1 now.
    fn reason(&self) -> Option<Reason> {
        let facts =
            Facts { now: self.now, observed: &self.observed, drives: &self.drives, accepted_loss: &self.map.accepted_loss, seed: 7 };
        next_map(&self.map, &facts).1.get(&SH1).copied()
    }

    /// What is proposed for shard 1 now, as `e6[r1* r2 r3]w2`; nothing if what is pending stays.
    #[track_caller]
    fn proposes(&self, expected: &str) {
        let next = self.next();
        let pending = next.shards[&SH1].pending.as_ref();
        let new = pending.filter(|pending| self.map.shards[&SH1].pending.as_ref() != Some(pending));
        assert_eq!(new.map(Configuration::to_string).unwrap_or_default(), expected, "at {}", self.now);
    }

    #[track_caller]
    fn proposes_nothing(&self) {
        self.proposes("");
    }

    /// The map does not change in any way.
    #[track_caller]
    fn is_content(&self) {
        assert_eq!(self.next(), self.map, "at {}", self.now);
    }

    /// The next map is stored and read back.
    fn adopt(&mut self) {
        self.map = self.next();
        self.drives.follow(&self.map, self.now);
    }
}

/// The shards with a new proposal.
fn proposed<'a>(map: &ClusterMap, next: &'a ClusterMap) -> Vec<&'a ShardId> {
    let is_new = |(id, record): &(&ShardId, &ShardRecord)| record.pending.is_some() && record.pending != map.shards[id].pending;
    next.shards.iter().filter(is_new).map(|(id, _)| id).collect()
}

#[test]
fn fine_cluster_is_left_alone() {
    for server_count in 1..=5 {
        let mut story = Story::new(server_count);
        story.is_content();
        story.wait(60_000);
        story.is_content();
    }
    let mut story = Story::new(3);
    story.second_shard(S1);
    // Nobody is moved only to spread the primaries.
    story.is_content();
}

#[test]
fn first_configuration_takes_all_replicas_as_soon_as_they_are_ready() {
    Story::unborn(1).proposes("e6[r1*]w1");
    Story::unborn(3).proposes("e6[r1* r2 r3]w2");
    let mut story = Story::unborn(3);
    story.map.settings.write_quorum = Some(3);
    story.proposes("e6[r1* r2 r3]w3");
    story.shard().wanted_primary = Some(S3);
    story.proposes("e6[r1 r2 r3*]w3");
    let mut story = Story::unborn(3);
    story.second_shard(S1);
    // Server 1 leads another shard already.
    story.proposes("e6[r1 r2* r3]w2");
}

#[test]
fn first_configuration_waits_for_all_replicas_then_for_a_majority() {
    for (silent, expected) in [(&[S3][..], "e6[r1* r2]w2"), (&[S2, S3], "")] {
        let mut story = Story::unborn(3);
        story.silence(silent);
        story.wait(10_000);
        story.proposes_nothing();
        story.wait(1);
        story.proposes(expected);
    }
    // The same where one was minted and not created.
    let mut story = Story::unborn(3);
    story.replica(R3, SH1, S3, ReplicaStage::Minted);
    story.wait(9_000);
    story.is_content();
    story.drives.created.insert(R3);
    story.proposes("e6[r1* r2 r3]w2");
}

#[test]
fn silent_primary_is_replaced_after_700_ms() {
    let mut story = Story::new(3);
    story.silence(&[S1]);
    story.wait(700);
    story.is_content();
    story.wait(1);
    story.proposes("e6[r2* r3]w2");
    // It was only slow.
    story.silent.clear();
    story.wait(0);
    story.is_content();
}

#[test]
fn best_log_leads_next_then_who_leads_least_then_the_lowest_id() {
    let mut story = Story::new(3);
    story.silence(&[S1]);
    story.wait(800);
    story.proposes("e6[r2* r3]w2");
    let mut story = Story::new(3);
    story.second_shard(S2);
    story.silence(&[S1]);
    story.wait(800);
    story.proposes("e6[r2 r3*]w2");
    for (last, expected) in [((5, 11), "e6[r2* r3]w2"), ((4, 99), "e6[r2 r3*]w2")] {
        let mut story = Story::new(3);
        story.second_shard(S2);
        story.says(R2, |status| status.last = Position { epoch: Epoch(last.0), index: LogIndex(last.1) });
        story.silence(&[S1]);
        story.wait(800);
        story.proposes(expected);
    }
}

#[test]
fn primary_that_may_not_lead_its_epoch_costs_an_epoch_at_once() {
    // R15. Lame, restarted (it leads nothing in the epoch it promised), or sealed for an epoch that never came to be.
    let cases: [fn(&mut ReplicaStatus); 4] = [
        |status| status.lead = Some(LeadStage::Lame),
        |status| status.lead = Some(LeadStage::SourceFailed),
        |status| status.lead = None,
        |status| (status.promised, status.lead) = (Epoch(6), None),
    ];
    for change in cases {
        let mut story = Story::new(3);
        story.says(R1, change);
        story.wait(0);
        story.proposes("e6[r1 r2* r3]w2");
        // Where there is no other it leads the next one itself.
        let mut story = Story::new(1);
        story.says(R1, change);
        story.wait(0);
        story.proposes("e6[r1*]w1");
    }
    let fine: [fn(&mut ReplicaStatus); 3] = [
        |status| status.lead = Some(LeadStage::Installing),
        |status| status.lead = Some(LeadStage::Installed),
        // What it said before it was installed says nothing.
        |status| (status.promised, status.lead) = (Epoch(4), Some(LeadStage::Lame)),
    ];
    for change in fine {
        let mut story = Story::new(3);
        story.says(R1, change);
        story.wait(0);
        story.is_content();
    }
}

#[test]
fn primary_cut_off_by_its_own_word_is_moved_unless_it_reaches_a_write_quorum() {
    let cases: [(u64, &[ReplicaId], &str); 6] = [
        (3, &[R2], ""),
        (3, &[R2, R3], "e6[r1 r2* r3]w2"),
        (5, &[R2, R3], ""),
        (5, &[R2, R3, R4], "e6[r1 r2* r3 r4 r5]w3"),
        (2, &[R2], "e6[r1 r2*]w2"),
        (1, &[], ""),
    ];
    for (server_count, unreached, expected) in cases {
        let mut story = Story::new(server_count);
        story.says(R1, |status| {
            status.unreached = unreached.to_vec();
            // However long its log is.
            status.last.index = LogIndex(99);
        });
        story.wait(0);
        story.proposes(expected);
        // What it said of an epoch before says nothing of this one.
        story.says(R1, |status| status.promised = Epoch(4));
        story.wait(0);
        story.proposes_nothing();
    }
}

#[test]
fn restart_does_not_hide_how_long_a_primary_is_quiet() {
    let mut story = Story::new(3);
    story.silence(&[S1]);
    story.wait(600);
    // The provisioner says that it runs again: its own silence, after which it is started anew, begins here; that of its shards does not.
    story.observed.servers.get_mut(&S1).unwrap().expected = story.now;
    story.wait(100);
    story.is_content();
    story.wait(1);
    assert_eq!(story.observed.silence(S1, story.now), Duration::from_millis(101));
    story.proposes("e6[r2* r3]w2");
}

#[test]
fn nothing_is_proposed_where_the_current_configuration_cannot_be_sealed() {
    let mut story = Story::new(3);
    story.silence(&[S1, S2]);
    story.wait(60_000);
    story.is_content();
    // One more is enough, and what can be sealed is two of them.
    story.silent.remove(&S2);
    story.wait(0);
    story.proposes("e6[r2* r3]w2");
    // Lost replicas answer and are no help. What takes their place waits until somebody can be sealed.
    let mut story = Story::new(3);
    for replica in [R1, R2] {
        story.says(replica, |status| status.lost = Some(LostReason::LogMissing));
    }
    story.wait(0);
    story.proposes_nothing();
}

#[test]
fn wish_for_a_primary_is_honoured_and_cleared_when_it_leads() {
    let mut story = Story::new(3);
    story.shard().wanted_primary = Some(S3);
    story.proposes("e6[r1 r2 r3*]w2");
    story.adopt();
    assert_eq!(story.shard().wanted_primary, Some(S3), "it does not lead yet");
    story.drives.progress(&story.map, R3, Epoch(6), LeadStage::Installed, story.now);
    story.adopt();
    assert_eq!(story.shard().clone().wanted_primary, None);
    assert_eq!(story.shard().current, Some(config(6, R3, &[R1, R2, R3])));
    story.says(R3, |status| (status.promised, status.lead) = (Epoch(6), Some(LeadStage::Active)));
    story.wait(0);
    story.is_content();
}

#[test]
fn wish_for_a_primary_is_void_when_it_cannot_lead() {
    let mut dead = Story::new(3);
    dead.shard().wanted_primary = Some(S3);
    dead.silence(&[S3]);
    dead.wait(500);
    let mut unplaced = Story::new(3);
    unplaced.server(S4);
    unplaced.shard().wanted_primary = Some(S4);
    unplaced.wait(0);
    for mut story in [dead, unplaced] {
        story.proposes_nothing();
        story.adopt();
        assert_eq!(story.shard().wanted_primary, None);
    }
    // A wish for a server that is still being taught waits until it is a member.
    let mut story = Story::new(3);
    story.server(S4);
    story.replica(R4, SH1, S4, ReplicaStage::Ready);
    story.shard().placement.insert(S4);
    story.shard().wanted_primary = Some(S4);
    story.wait(0);
    story.is_content();
    story.says(R1, |status| status.learners = vec![(R4, LogIndex(10), true)]);
    story.wait(0);
    story.proposes("e6[r1 r2 r3 r4*]w3");
}
