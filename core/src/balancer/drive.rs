//! Carries out what the map says: creates, seals, installs, activates, teaches and retires replicas by messages that may be lost and
//! are said again (DESIGN 4, "Reconfiguration"). Acts only on maps that were read back (R10); what it remembers is lost with the balancer
//! and found again by asking.

use super::observed::Observed;
use crate::{
    config::Configuration,
    id::{Epoch, MapVersion, Position, ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage, ServerGoal, ShardRecord},
    message::{Install, LeadStage, ToServer},
    planted::{Bug, Planted},
    time::{Duration, Instant},
};
use std::collections::{BTreeMap, BTreeSet};

/// How long a source that failed is passed over. A guess: a respawn takes less.
const SOURCE_PASSED_OVER: Duration = Duration::from_millis(4_000);

/// What one controller knows of the proposal of one shard.
#[derive(Clone, Debug)]
struct Proposal {
    epoch: Epoch,
    /// When its primary came further last, or when it began.
    moved: Instant,
    /// How far it is ([`crate::message::ReplicaStatus::lead_progress`]).
    progress: u64,
    /// Promises of this epoch by members of current, with the ends of their logs (R6, R11).
    promises: BTreeMap<ReplicaId, Position>,
    /// The best of a full set of promises, once there was one (R12). Kept: a second install never changes its source (R13).
    source: Option<(ReplicaId, Position)>,
    installed: bool,
    superseded: bool,
}

/// What one controller knows of one shard.
#[derive(Clone, Debug)]
struct Drive {
    /// Since when the shard is known.
    since: Instant,
    proposal: Option<Proposal>,
    /// Proposals in a row that did not become active.
    attempts: u64,
    /// Sources that did not serve their log, and when.
    failed_sources: BTreeMap<ReplicaId, Instant>,
}

/// What one controller knows of all shards. Volatile.
#[derive(Clone, Debug)]
pub(crate) struct Drives {
    /// Replicas that their server has, as it said.
    pub(crate) created: BTreeSet<ReplicaId>,
    /// Replicas that their server no longer has, as it said.
    pub(crate) retired: BTreeSet<ReplicaId>,
    /// Servers whose process the provisioner has stopped for good.
    pub(crate) stopped: BTreeSet<ServerId>,
    shards: BTreeMap<ShardId, Drive>,
    planted: Planted,
}

/// A message to be sent.
pub(crate) type Outgoing = (ServerId, ToServer);

impl Drives {
    /// Nothing known yet.
    pub(crate) const fn new(planted: Planted) -> Self {
        Self { created: BTreeSet::new(), retired: BTreeSet::new(), stopped: BTreeSet::new(), shards: BTreeMap::new(), planted }
    }

    /// Whether the proposal of that epoch is installed, as its primary said.
    pub(crate) fn is_installed(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.proposal(shard, epoch).is_some_and(|proposal| proposal.installed)
    }

    /// Whether a member has promised a higher epoch, or the primary may not lead it.
    pub(crate) fn is_superseded(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.proposal(shard, epoch).is_some_and(|proposal| proposal.superseded)
    }

    /// How many proposals in a row did not become active.
    pub(crate) fn attempts(&self, shard: ShardId) -> u64 {
        self.shards.get(&shard).map_or(0, |drive| drive.attempts)
    }

    /// For how long nothing has come of the proposal, as far as this balancer has watched.
    pub(crate) fn stood(&self, shard: ShardId, epoch: Epoch, now: Instant) -> Duration {
        self.proposal(shard, epoch).map_or(Duration::ZERO, |proposal| now.since(proposal.moved))
    }

    /// How long the shard is known to this balancer.
    pub(crate) fn waited(&self, shard: ShardId, now: Instant) -> Duration {
        self.shards.get(&shard).map_or(Duration::ZERO, |drive| now.since(drive.since))
    }

    /// Whether this bug is planted.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.planted.has(bug)
    }

    /// Whether all of these have promised that epoch, durably.
    pub(crate) fn have_promised(&self, shard: ShardId, epoch: Epoch, members: &[ReplicaId]) -> bool {
        self.proposal(shard, epoch).is_some_and(|proposal| members.iter().all(|id| proposal.promises.contains_key(id)))
    }

    /// A planted bug: a life is recorded although its disk has not seen the one before.
    pub(crate) fn is_recording_any_life(&self) -> bool {
        self.planted.has(Bug::RecordsAnyLife)
    }

    /// Whether a seal waits although enough members promised: none of a full set without failed sources.
    pub(crate) fn waits_for_source(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|drive| {
            !drive.failed_sources.is_empty() && drive.proposal.as_ref().is_some_and(|proposal| proposal.source.is_none())
        })
    }

    fn proposal(&self, shard: ShardId, epoch: Epoch) -> Option<&Proposal> {
        self.shards.get(&shard)?.proposal.as_ref().filter(|proposal| proposal.epoch == epoch)
    }

    /// Follows a map that was read back.
    pub(crate) fn follow(&mut self, map: &ClusterMap, now: Instant) {
        self.shards.retain(|shard, _| map.shards.contains_key(shard));
        self.created.retain(|id| map.replicas.contains_key(id));
        self.retired.retain(|id| map.replicas.contains_key(id));
        self.stopped.retain(|id| map.servers.get(id).is_some_and(|record| record.goal == ServerGoal::Leave));
        for (shard, record) in &map.shards {
            let drive = self.shards.entry(*shard).or_insert_with(|| Drive {
                since: now,
                proposal: None,
                attempts: 0,
                failed_sources: BTreeMap::new(),
            });
            drive.failed_sources.retain(|_, failed| now.since(*failed).0 < SOURCE_PASSED_OVER.0);
            let known = drive.proposal.as_ref().map(|proposal| proposal.epoch);
            let pending = record.pending.as_ref().map(|pending| pending.epoch);
            if known == pending {
                continue;
            }
            match pending {
                Some(epoch) => {
                    drive.attempts += u64::from(known.is_some());
                    drive.proposal = Some(Proposal {
                        epoch,
                        moved: now,
                        progress: 0,
                        promises: BTreeMap::new(),
                        source: None,
                        installed: false,
                        superseded: false,
                    });
                }
                None => {
                    drive.attempts = 0;
                    drive.proposal = None;
                    drive.failed_sources.clear();
                }
            }
        }
    }

    /// A promise came.
    pub(crate) fn promised(&mut self, map: &ClusterMap, replica: ReplicaId, epoch: Epoch, last: Position) {
        let Some(record) = map.replicas.get(&replica) else { return };
        let Some(proposal) = self.shards.get_mut(&record.shard).and_then(|drive| drive.proposal.as_mut()) else { return };
        if epoch == proposal.epoch {
            // R6. The first one stands: a later answer to the same seal may tell of what the replica took in that epoch since.
            proposal.promises.entry(replica).or_insert(last);
        } else if epoch > proposal.epoch {
            proposal.superseded = true;
        }
    }

    /// The primary of the proposal said how much it has done. Replacing it would throw that away, so what it is doing is let go on.
    pub(crate) fn moves(&mut self, map: &ClusterMap, replica: ReplicaId, epoch: Epoch, progress: u64, now: Instant) {
        let Some(record) = map.replicas.get(&replica) else { return };
        let is_primary = |pending: &Configuration| pending.epoch == epoch && pending.primary == replica;
        if !map.shards.get(&record.shard).and_then(|shard| shard.pending.as_ref()).is_some_and(is_primary) {
            return;
        }
        let proposal = self.shards.get_mut(&record.shard).and_then(|drive| drive.proposal.as_mut());
        if let Some(proposal) = proposal.filter(|proposal| proposal.epoch == epoch && proposal.progress != progress) {
            (proposal.progress, proposal.moved) = (progress, now);
        }
    }

    /// A primary said how far it is.
    pub(crate) fn progress(&mut self, map: &ClusterMap, replica: ReplicaId, epoch: Epoch, stage: LeadStage, now: Instant) {
        let Some(record) = map.replicas.get(&replica) else { return };
        let Some(pending) = map.shards.get(&record.shard).and_then(|shard| shard.pending.as_ref()) else { return };
        if pending.epoch != epoch || pending.primary != replica {
            return;
        }
        let Some(drive) = self.shards.get_mut(&record.shard) else { return };
        let Some(proposal) = drive.proposal.as_mut().filter(|proposal| proposal.epoch == epoch) else { return };
        match stage {
            LeadStage::Installing => {}
            LeadStage::Installed | LeadStage::Active => proposal.installed = true,
            LeadStage::Lame => proposal.superseded = true,
            LeadStage::SourceFailed => {
                if let Some((source, _)) = proposal.source {
                    drive.failed_sources.insert(source, now);
                }
                proposal.superseded = true;
            }
        }
    }

    /// Everything that is to be said now. Called at every beat and whenever the map changed; saying it again is harmless.
    pub(crate) fn say(&mut self, version: MapVersion, map: &ClusterMap, observed: &Observed, now: Instant, out: &mut Vec<Outgoing>) {
        create_and_retire(version, map, observed, now, out);
        let mut learners = learners(map);
        for (shard, record) in &map.shards {
            match &record.pending {
                Some(pending) => self.propose(map, *shard, record, pending, observed, now, out),
                None => serve(map, record, learners.remove(shard).unwrap_or_default(), observed, now, out),
            }
        }
    }

    /// What is to be said of the proposal of the replica's shard, of which something was heard.
    pub(crate) fn say_of(&mut self, map: &ClusterMap, replica: ReplicaId, observed: &Observed, now: Instant, out: &mut Vec<Outgoing>) {
        let Some(shard) = map.replicas.get(&replica).map(|record| record.shard) else { return };
        if let Some(record) = map.shards.get(&shard)
            && let Some(pending) = &record.pending
        {
            self.propose(map, shard, record, pending, observed, now, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one step of `say`, cut out for reading")]
    fn propose(
        &mut self,
        map: &ClusterMap,
        shard: ShardId,
        record: &ShardRecord,
        pending: &Configuration,
        observed: &Observed,
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        let planted = self.planted;
        let Some(drive) = self.shards.get_mut(&shard) else { return };
        let Some(proposal) = drive.proposal.as_mut().filter(|proposal| proposal.epoch == pending.epoch) else { return };
        if proposal.superseded {
            return;
        }
        if proposal.installed {
            if planted.has(Bug::ActivatesWithoutCas)
                && let Some(server) = map.server_of(pending.primary)
            {
                out.push((server, ToServer::Activate { replica: pending.primary, epoch: pending.epoch }));
            }
            return;
        }
        if proposal.source.is_none() {
            proposal.source = match &record.current {
                // The first configuration: nothing was ever committed, so any log will do, and there is nothing to seal. But an earlier
                // proposal may have left its barrier, so the primary says what it has.
                None => {
                    let last = proposal.promises.get(&pending.primary);
                    if last.is_none()
                        && let Some(server) = map.server_of(pending.primary)
                    {
                        out.push((server, ToServer::Seal { replica: pending.primary, epoch: pending.epoch }));
                    }
                    last.map(|last| (pending.primary, *last))
                }
                Some(current) => {
                    let sealed = if planted.has(Bug::SealsPending) { pending } else { current }; // R11
                    for member in sealed.members.iter().filter(|member| !proposal.promises.contains_key(member)) {
                        if let Some(server) = map.server_of(*member) {
                            out.push((server, ToServer::Seal { replica: *member, epoch: pending.epoch }));
                        }
                    }
                    choose(sealed, &proposal.promises, &drive.failed_sources, pending.primary, planted)
                }
            };
        }
        let Some((source, source_last)) = proposal.source else { return };
        let Some(server) = map.server_of(pending.primary) else { return };
        let Some(source_server) = map.server_of(source) else { return };
        let servers = pending.members.iter().filter_map(|member| Some((*member, map.server_of(*member)?))).collect();
        let install = Install { config: pending.clone(), servers, source, source_server, source_last };
        if observed.is_alive(server, now) {
            out.push((server, ToServer::Install(install)));
        }
    }
}

/// The replicas of each shard that are ready, are to stay, and are no members: they are to be taught.
fn learners(map: &ClusterMap) -> BTreeMap<ShardId, Vec<(ReplicaId, ServerId)>> {
    let mut learners: BTreeMap<ShardId, Vec<(ReplicaId, ServerId)>> = BTreeMap::new();
    for (id, replica) in map.replicas.iter().filter(|(_, replica)| replica.stage == ReplicaStage::Ready) {
        let is_learner = map.shards.get(&replica.shard).is_some_and(|record| {
            record.placement.contains(&replica.server) && record.current.as_ref().is_some_and(|current| !current.has(*id))
        });
        if is_learner {
            learners.entry(replica.shard).or_default().push((*id, replica.server));
        }
    }
    learners
}

/// While nothing is pending: the primary must know that it is active (R15), and whom to teach.
fn serve(
    map: &ClusterMap,
    record: &ShardRecord,
    learners: Vec<(ReplicaId, ServerId)>,
    observed: &Observed,
    now: Instant,
    out: &mut Vec<Outgoing>,
) {
    let Some(current) = &record.current else { return };
    let Some(server) = map.server_of(current.primary) else { return };
    let status = observed.status(map, current.primary, now);
    let active = status.is_some_and(|status| status.promised == current.epoch && status.lead == Some(LeadStage::Active));
    if !active {
        out.push((server, ToServer::Activate { replica: current.primary, epoch: current.epoch }));
        return;
    }
    let taught = status.is_some_and(|status| !status.learners.is_empty());
    if !learners.is_empty() || taught {
        out.push((server, ToServer::Learn { replica: current.primary, epoch: current.epoch, learners }));
    }
}

/// The best log of a full set of promises (R12). Sources that failed do not count towards the set.
fn choose(
    sealed: &Configuration,
    promises: &BTreeMap<ReplicaId, Position>,
    failed: &BTreeMap<ReplicaId, Instant>,
    primary: ReplicaId,
    planted: Planted,
) -> Option<(ReplicaId, Position)> {
    let of_members = || promises.iter().filter(|(replica, _)| sealed.has(**replica));
    let able: Vec<(ReplicaId, Position)> =
        of_members().filter(|(replica, _)| !failed.contains_key(replica)).map(|(replica, last)| (*replica, *last)).collect();
    let needed = if planted.has(Bug::SealsOneTooFew) { sealed.seal_quorum().saturating_sub(1).max(1) } else { sealed.seal_quorum() };
    let counted = if planted.has(Bug::TakesSecondBestSource) { of_members().count() } else { able.len() };
    if counted < needed {
        return None;
    }
    // Among equals the primary itself, which then fetches nothing.
    able.into_iter().max_by_key(|(replica, last)| (*last, *replica == primary, std::cmp::Reverse(*replica)))
}

fn create_and_retire(version: MapVersion, map: &ClusterMap, observed: &Observed, now: Instant, out: &mut Vec<Outgoing>) {
    for (id, record) in &map.replicas {
        if !observed.is_alive(record.server, now) {
            continue;
        }
        match record.stage {
            ReplicaStage::Minted => {
                if let Some(incarnation) = observed.incarnation(record.server) {
                    let shard = record.shard;
                    out.push((record.server, ToServer::Create { version, incarnation, replica: *id, shard })); // R17
                }
            }
            ReplicaStage::Ready => {}
            ReplicaStage::Retired => {
                // R18: `map` was read back; it must show that nothing has it and nothing is pending that might. An old map does no harm:
                // a retired replica never becomes ready again, so no later configuration can have it either.
                let free = map
                    .shards
                    .get(&record.shard)
                    .is_none_or(|shard| shard.pending.is_none() && !shard.current.as_ref().is_some_and(|current| current.has(*id)));
                if free {
                    out.push((record.server, ToServer::Retire { replica: *id }));
                }
            }
        }
    }
}
