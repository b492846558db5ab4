//! What the map should become: pure functions from the map and what was seen to the next map (DESIGN 5; the planner of oxide omicron's
//! Reconfigurator is the model). Every transition that is ready goes into one compare-and-set. Never sends, never waits.

use super::{
    drive::Drives,
    loss::{self, Seal},
    observed::Observed,
};
use crate::{
    config::{Configuration, MEMBERS_MAX, majority},
    id::{ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaRecord, ReplicaStage, ServerGoal, Settings, ShardRecord},
    message::LeadStage,
    planted::Bug,
    reason::{Cause, Choice, Reason},
    time::{Duration, Instant},
};
use std::collections::{BTreeMap, BTreeSet};

/// Silence after which a primary's shard is given to another. Above the suspicion so that one slow answer costs nothing. A guess.
const FAIL_OVER_AFTER: Duration = Duration::from_millis(700);
/// How long a member that is down may stay a member while the write quorum holds without it. Longer than a respawn takes. A guess.
const DROP_AFTER: Duration = Duration::from_millis(15_000);
/// How long the first configuration of a shard waits for all its replicas before a majority is enough. A guess.
const FIRST_WAIT: Duration = Duration::from_millis(10_000);
/// How long a proposal may stand still before another takes its place; grows with every attempt (R16). A guess.
const STUCK_AFTER: Duration = Duration::from_millis(1_500);
/// The most attempts that lengthen [`STUCK_AFTER`].
const ATTEMPTS_MAX: u64 = 8;

/// What plans are made from, besides the map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) now: Instant,
    pub(crate) observed: &'a Observed,
    pub(crate) drives: &'a Drives,
    /// What an operator accepted, as far as that was read back.
    pub(crate) accepted_loss: &'a BTreeSet<ShardId>,
    /// Spreads the patience of competing controllers (R16).
    pub(crate) seed: u64,
}

/// The next map, equal to `map` if nothing is to do, and why it proposes what it does.
pub(crate) fn next_map(map: &ClusterMap, facts: &Facts<'_>) -> (ClusterMap, BTreeMap<ShardId, Reason>) {
    let mut next = map.clone();
    let mut reasons = BTreeMap::new();
    lives(&mut next, facts);
    replicas(&mut next, facts);
    let shards: Vec<ShardId> = next.shards.keys().copied().collect();
    for shard in shards {
        reasons.extend(configuration(&mut next, shard, facts).map(|reason| (shard, reason)));
    }
    retire(&mut next, facts);
    (next, reasons)
}

/// The write quorum of a configuration of so many members.
pub(crate) fn write_quorum(settings: &Settings, member_count: usize) -> u32 {
    let members = u32::try_from(member_count).unwrap_or(u32::MAX);
    settings.write_quorum.unwrap_or_else(|| majority(member_count)).clamp(1, members.max(1))
}

/// Records the life of each server that answers (R26): only if its disk has seen the life that is recorded, so that whoever is recorded
/// has everything that any recorded life before it promised.
fn lives(map: &mut ClusterMap, facts: &Facts<'_>) {
    for (id, record) in &mut map.servers {
        let Some(seen) = facts.observed.servers.get(id) else { continue };
        let follows = record.incarnation.is_none() || record.incarnation == seen.follows || facts.drives.is_recording_any_life();
        if seen.incarnation.is_some() && seen.incarnation != record.incarnation && follows {
            record.incarnation = seen.incarnation;
        }
    }
}

/// Mints replicas where one is wanted and none lives, marks created ones ready (R17), and lost ones retired.
fn replicas(map: &mut ClusterMap, facts: &Facts<'_>) {
    let ids: Vec<ReplicaId> = map.replicas.keys().copied().collect();
    for id in ids {
        let Some(record) = map.replicas.get(&id).copied() else { continue };
        let lost = facts.observed.status(map, id, facts.now).is_some_and(|status| status.lost.is_some());
        let stage = match record.stage {
            ReplicaStage::Minted | ReplicaStage::Ready if lost => ReplicaStage::Retired,
            ReplicaStage::Minted if facts.drives.created.contains(&id) => ReplicaStage::Ready,
            stage @ (ReplicaStage::Minted | ReplicaStage::Ready | ReplicaStage::Retired) => stage,
        };
        map.replicas.insert(id, ReplicaRecord { stage, ..record });
    }
    let wanted: Vec<(ShardId, ServerId)> =
        map.shards.iter().flat_map(|(shard, record)| record.placement.iter().map(|server| (*shard, *server))).collect();
    let live: BTreeSet<(ShardId, ServerId)> =
        map.replicas.values().filter(|record| record.stage != ReplicaStage::Retired).map(|record| (record.shard, record.server)).collect();
    for (shard, server) in wanted {
        if !live.contains(&(shard, server)) && map.servers.contains_key(&server) {
            let id = map.counters.replica.next();
            map.counters.replica = id;
            map.replicas.insert(id, ReplicaRecord { shard, server, stage: ReplicaStage::Minted });
        }
    }
}

/// Activates what is installed, proposes what is due and says why.
fn configuration(map: &mut ClusterMap, shard: ShardId, facts: &Facts<'_>) -> Option<Reason> {
    let record = map.shards.get(&shard).cloned()?;
    let mut stuck = None;
    if let Some(pending) = &record.pending
        && facts.drives.is_installed(shard, pending.epoch)
    {
        let next = ShardRecord { current: Some(pending.clone()), pending: None, ..record };
        map.shards.insert(shard, next);
        return None;
    }
    if let Some(current) = &record.current
        && loss::is_given_up(map, shard, current, facts)
    {
        return loss::give_up(map, shard, &record, current, facts);
    }
    if let Some(pending) = &record.pending {
        stuck = Some(Stuck { pending, why: stuck_by(map, shard, &record, pending, facts)? });
    }
    let target = match &record.current {
        None => first_target(map, shard, &record, stuck, facts),
        Some(current) => next_target(map, shard, &record, current, stuck, facts),
    };
    let Target { members, primary, reason } = target?;
    let epoch = map.counters.epoch.next();
    let write_quorum = write_quorum(&map.settings, members.len());
    let config = Configuration { epoch, primary, members, write_quorum };
    debug_assert!(config.is_valid(), "{config}");
    map.counters.epoch = epoch;
    if let Some(record) = map.shards.get_mut(&shard) {
        record.pending = Some(config);
    }
    Some(reason)
}

struct Target {
    members: Vec<ReplicaId>,
    primary: ReplicaId,
    reason: Reason,
}

/// A proposal that cannot be finished. Members may have promised its epoch, so `current` serves no more either: whatever comes next, it
/// has a new epoch (R16).
#[derive(Clone, Copy, Debug)]
struct Stuck<'a> {
    pending: &'a Configuration,
    why: Why,
}

/// Why a proposal cannot be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Its epoch is over, or its source does not serve: another epoch with the same primary may do.
    EpochOver,
    /// Nothing came of it in time: its primary may be the reason.
    StoodStill,
}

impl Stuck<'_> {
    /// Who led it, if it stood still: another is asked to lead the next one, where there is another.
    fn tired(self) -> Option<ReplicaId> {
        (self.why == Why::StoodStill).then_some(self.pending.primary)
    }

    const fn cause(self) -> Cause {
        match self.why {
            Why::EpochOver => Cause::EpochOver,
            Why::StoodStill => Cause::StoodStill,
        }
    }
}

/// Whether the proposal cannot be finished, so that a newer one must take its place (R16), and why.
fn stuck_by(map: &ClusterMap, shard: ShardId, record: &ShardRecord, pending: &Configuration, facts: &Facts<'_>) -> Option<Why> {
    let Facts { now, observed, drives, seed, .. } = *facts;
    if drives.is_superseded(shard, pending.epoch) || observed.lead(map, pending.primary, pending.epoch, now) == Some(LeadStage::Lame) {
        return Some(Why::EpochOver);
    }
    // Competing controllers are patient for different times, and for longer each time.
    let attempts = drives.attempts(shard).min(ATTEMPTS_MAX);
    let jitter = Duration::from_millis(crate::balancer::mix(seed, pending.epoch.0) % 500);
    let stood = drives.stood(shard, pending.epoch, now);
    let patience = STUCK_AFTER.times(attempts + 1);
    if stood.0 < patience.0 + jitter.0 {
        // Not so patient when it is clear that it cannot go on.
        let primary_gone = map.server_of(pending.primary).is_none_or(|server| observed.quiet(server, now) > FAIL_OVER_AFTER)
            || map.replicas.get(&pending.primary).is_none_or(|replica| replica.stage != ReplicaStage::Ready);
        return (primary_gone && stood.0 > jitter.0).then_some(Why::StoodStill);
    }
    // It stood still. A new one helps only if the current members can be sealed.
    record.current.as_ref().is_none_or(|current| can_seal(map, current, facts)).then_some(Why::StoodStill)
}

fn can_seal(map: &ClusterMap, current: &Configuration, facts: &Facts<'_>) -> bool {
    loss::seal(map, current, facts.observed, facts.now) == Seal::Can
}

/// How many shards each server leads, so that primaries are spread.
fn leads(map: &ClusterMap) -> BTreeMap<ServerId, usize> {
    let mut leads = BTreeMap::new();
    for record in map.shards.values() {
        if let Some(config) = record.pending.as_ref().or(record.current.as_ref())
            && let Some(server) = map.server_of(config.primary)
        {
            *leads.entry(server).or_default() += 1;
        }
    }
    leads
}

/// The first configuration of a shard: all its replicas once they are ready, after a while a majority of them.
fn first_target(map: &ClusterMap, shard: ShardId, record: &ShardRecord, stuck: Option<Stuck<'_>>, facts: &Facts<'_>) -> Option<Target> {
    let members: Vec<ReplicaId> = map
        .replicas
        .iter()
        .filter(|(id, replica)| {
            replica.shard == shard && record.placement.contains(&replica.server) && facts.observed.is_usable(map, **id, facts.now)
        })
        .map(|(id, _)| *id)
        .take(MEMBERS_MAX)
        .collect();
    let wanted = record.placement.len().min(MEMBERS_MAX);
    let enough =
        members.len() >= wanted || (members.len() >= majority(wanted) as usize && facts.drives.waited(shard, facts.now) > FIRST_WAIT);
    if members.is_empty() || !enough {
        return None;
    }
    let leads = leads(map);
    let lead_count = |id: &ReplicaId| map.server_of(*id).and_then(|server| leads.get(&server).copied()).unwrap_or(0);
    // The wanted one, else the server that leads least.
    let primary = members
        .iter()
        .copied()
        .min_by_key(|id| (stuck.and_then(Stuck::tired) == Some(*id), map.server_of(*id) != record.wanted_primary, lead_count(id), *id))?;
    let choice = match members.len() {
        1 => Choice::OnlyOne,
        _ if map.server_of(primary) == record.wanted_primary => Choice::Wished,
        _ => Choice::LeadsLeast,
    };
    let first = if members.len() >= wanted { Cause::First } else { Cause::FirstOfSome };
    Some(Target { members, primary, reason: Reason { cause: stuck.map_or(first, Stuck::cause), choice } })
}

/// What should follow the current configuration; `None` if it is fine as it is or nothing can be done now.
fn next_target(
    map: &ClusterMap,
    shard: ShardId,
    record: &ShardRecord,
    current: &Configuration,
    stuck: Option<Stuck<'_>>,
    facts: &Facts<'_>,
) -> Option<Target> {
    let Facts { now, observed, .. } = *facts;
    if !can_seal(map, current, facts) {
        return None;
    }
    let server_of = |id: ReplicaId| map.server_of(id);
    let silent = |id: ReplicaId| server_of(id).map_or(Duration(u64::MAX), |server| observed.quiet(server, now));
    let usable = |id: ReplicaId| observed.is_usable(map, id, now);
    let placed = |id: ReplicaId| server_of(id).is_some_and(|server| record.placement.contains(&server));
    let ready = |id: ReplicaId| map.replicas.get(&id).is_some_and(|replica| replica.stage == ReplicaStage::Ready);

    let store_away = |id: ReplicaId| observed.status(map, id, now).is_some_and(|status| status.store_away);

    // The primary leads on unless it may not, cannot, or does not answer.
    let lead = observed.lead(map, current.primary, current.epoch, now);
    let against = against_primary(map, current, facts);
    let primary_fine = against.is_none();
    let tired = stuck.and_then(Stuck::tired);

    let alive = current.members.iter().filter(|id| usable(**id)).count();
    let quorum_holds = alive >= current.write_quorum.max(u32::try_from(current.seal_quorum()).unwrap_or(u32::MAX)) as usize;
    let stays = |id: ReplicaId| {
        ready(id) && (usable(id) || (quorum_holds && primary_fine && silent(id) <= DROP_AFTER) || silent(id) <= FAIL_OVER_AFTER)
    };
    let mut members: BTreeSet<ReplicaId> = current.members.iter().copied().filter(|id| stays(*id)).collect();
    // Learners that have caught up, as the active primary says.
    if let Some(status) = observed.status(map, current.primary, now)
        && lead == Some(LeadStage::Active)
    {
        members.extend(
            status.learners.iter().filter(|(id, _, caught_up)| *caught_up && ready(*id) && placed(*id) && usable(*id)).map(|(id, ..)| *id),
        );
    }
    // Who is no longer wanted goes once as many of those that are wanted are members and answer as there are members now, or as are wanted:
    // neither the last one nor a copy that nobody else has is given up for one that is still to come.
    let held: BTreeSet<ServerId> = members.iter().copied().filter(|id| usable(*id) && placed(*id)).filter_map(server_of).collect();
    let enough = held.len() >= record.placement.len().min(current.members.len()) || facts.drives.has(Bug::MoveDropsFirst);
    if !held.is_empty() && enough {
        members.retain(|id| placed(*id));
    }
    if let Some(target) = stuck.and_then(|stuck| without_unreached(map, shard, stuck, &members, facts)) {
        return Some(target);
    }
    if members.is_empty() || members.len() > MEMBERS_MAX {
        return None;
    }

    let can_lead = |id: &ReplicaId| usable(*id) && silent(*id) <= FAIL_OVER_AFTER;
    // One whose row store is away commits, and answers little: another leads, if it can.
    let others_store = members.iter().any(|id| *id != current.primary && can_lead(id) && !store_away(*id));
    let against = against.or_else(|| (store_away(current.primary) && others_store).then_some(Cause::StoreAway));
    let primary_fine = against.is_none();
    let wanted_primary = record
        .wanted_primary
        .and_then(|server| members.iter().copied().find(|id| server_of(*id) == Some(server)))
        .filter(|id| can_lead(id) && tired != Some(*id) && !store_away(*id));
    let (primary, choice) = match wanted_primary {
        Some(wanted) => (wanted, Choice::Wished),
        None if primary_fine && members.contains(&current.primary) && tired != Some(current.primary) => (current.primary, Choice::Leads),
        None => {
            let leads = leads(map);
            let lead_count = |id: ReplicaId| server_of(id).and_then(|server| leads.get(&server).copied()).unwrap_or(0);
            let last = |id: ReplicaId| observed.status(map, id, now).map(|status| status.last).unwrap_or_default();
            // The best log needs no fetch; among equals, who leads least.
            let rank = |id: ReplicaId| {
                let is_fresh = tired != Some(id) && (primary_fine || id != current.primary);
                (!store_away(id), is_fresh, last(id))
            };
            let able: Vec<ReplicaId> = members.iter().copied().filter(can_lead).collect();
            let best = able.iter().copied();
            let best = best.max_by_key(|id| (rank(*id), std::cmp::Reverse(lead_count(*id)), std::cmp::Reverse(*id)))?;
            let others = || able.iter().copied().filter(|id| *id != best).map(rank);
            let choice = match rank(best) {
                best if others().any(|other| other == best) => Choice::LeadsLeast,
                best if others().any(|other| (other.0, other.1) == (best.0, best.1)) => Choice::NewestLog,
                _ => Choice::OnlyOne,
            };
            (best, choice)
        }
    };
    let members: Vec<ReplicaId> = members.into_iter().collect();
    if stuck.is_none() && primary_fine && primary == current.primary && members == current.members {
        return None;
    }
    let cause = match (stuck, against) {
        (Some(stuck), _) => stuck.cause(),
        (None, Some(against)) => against,
        (None, None) if primary != current.primary && choice == Choice::Wished => Cause::PrimaryWished,
        (None, None) if !members.contains(&current.primary) => Cause::PrimaryUnwanted,
        (None, None) => {
            let gone = || current.members.iter().copied().filter(|id| !members.contains(id));
            if gone().any(|id| !ready(id)) {
                Cause::MemberLost
            } else if gone().any(|id| !placed(id)) {
                Cause::MemberUnwanted
            } else if gone().next().is_some() {
                Cause::MemberSilent
            } else {
                Cause::LearnerReady
            }
        }
    };
    let reason = Reason { cause, choice };
    // What is proposed must be able to install.
    let able = members.iter().filter(|id| usable(**id)).count();
    let config = Configuration { epoch: current.epoch, primary, write_quorum: write_quorum(&map.settings, members.len()), members };
    if able < config.install_quorum() {
        // Only those that answer, if that is what it takes.
        let members: Vec<ReplicaId> = config.members.iter().copied().filter(|id| usable(*id)).collect();
        return members.contains(&primary).then_some(Target { members, primary, reason });
    }
    Some(Target { members: config.members, primary, reason })
}

/// What speaks against the primary of the current configuration.
fn against_primary(map: &ClusterMap, current: &Configuration, facts: &Facts<'_>) -> Option<Cause> {
    let Facts { now, observed, .. } = *facts;
    let primary = current.primary;
    if map.replicas.get(&primary).is_none_or(|replica| replica.stage != ReplicaStage::Ready) {
        return Some(Cause::PrimaryLost);
    }
    let against = match observed.status(map, primary, now) {
        None => {
            let silent = map.server_of(primary).is_none_or(|server| observed.quiet(server, now) > FAIL_OVER_AFTER);
            silent.then_some(Cause::PrimarySilent)
        }
        // What it said before it was installed says nothing.
        Some(status) if status.promised < current.epoch => None,
        Some(status) if status.promised == current.epoch => match status.lead {
            Some(LeadStage::Active | LeadStage::Installed | LeadStage::Installing) => None,
            // R15: it may not lead the epoch that it promised.
            Some(LeadStage::Lame | LeadStage::SourceFailed) | None => (!facts.drives.has(Bug::IgnoresLame)).then_some(Cause::PrimaryLame),
        },
        // Sealed for an epoch that never came to be.
        Some(_) => Some(Cause::PrimarySealed),
    };
    against.or_else(|| is_cut_off(map, current, facts).then_some(Cause::PrimaryCutOff))
}

/// Whether the primary reaches too few members to commit anything, by its own word. The balancer reaches it, so nothing else tells.
fn is_cut_off(map: &ClusterMap, current: &Configuration, facts: &Facts<'_>) -> bool {
    let unreached = facts.observed.unreached(map, current.primary, current.epoch, facts.now);
    let reached = current.members.iter().filter(|member| !unreached.contains(member)).count();
    reached < current.write_quorum as usize
}

/// The same primary without the members that it does not reach: where a proposal stood still because of them and no other primary is left
/// to try, for there are too few members or another was tried already.
fn without_unreached(
    map: &ClusterMap,
    shard: ShardId,
    stuck: Stuck<'_>,
    members: &BTreeSet<ReplicaId>,
    facts: &Facts<'_>,
) -> Option<Target> {
    let Stuck { pending, why } = stuck;
    let primary = pending.primary;
    let unreached = facts.observed.unreached(map, primary, pending.epoch, facts.now);
    let others_tried = pending.members.len() <= 2 || facts.drives.attempts(shard) > 0;
    if why != Why::StoodStill || unreached.is_empty() || !others_tried || !facts.observed.is_usable(map, primary, facts.now) {
        return None;
    }
    let members: Vec<ReplicaId> = members.iter().copied().filter(|id| !unreached.contains(id)).collect();
    let reason = Reason { cause: Cause::Unreached, choice: Choice::OnlyOne };
    (members.contains(&primary) && members.len() <= MEMBERS_MAX).then_some(Target { members, primary, reason })
}

/// Whether a configuration, active or proposed, has a member on the server.
pub(crate) fn is_in_use(map: &ClusterMap, server: ServerId) -> bool {
    map.shards.keys().any(|shard| has_part(map, *shard, server))
}

/// Whether a configuration of the shard, active or proposed, has a member on the server.
pub(crate) fn has_part(map: &ClusterMap, shard: ShardId, server: ServerId) -> bool {
    let configs = map.shards.get(&shard).into_iter().flat_map(|record| record.current.iter().chain(record.pending.iter()));
    configs.flat_map(|config| &config.members).any(|member| map.server_of(*member) == Some(server))
}

/// Retires what no configuration has and nobody wants, and forgets what its server no longer holds (R18).
fn retire(map: &mut ClusterMap, facts: &Facts<'_>) {
    let in_use: BTreeSet<ReplicaId> = map
        .shards
        .values()
        .flat_map(|record| record.current.iter().chain(record.pending.iter()))
        .flat_map(|config| config.members.iter().copied())
        .collect();
    let ids: Vec<ReplicaId> = map.replicas.keys().copied().collect();
    for id in ids {
        let Some(record) = map.replicas.get(&id).copied() else { continue };
        if in_use.contains(&id) {
            continue;
        }
        let wanted = map.shards.get(&record.shard).is_some_and(|shard| shard.placement.contains(&record.server));
        let server_here = map.servers.contains_key(&record.server);
        // Gone, as its server said; or its server is stopped for good and says nothing any more.
        let gone = facts.drives.retired.contains(&id) || facts.drives.stopped.contains(&record.server);
        if !server_here || (record.stage == ReplicaStage::Retired && gone) {
            map.replicas.remove(&id);
        } else if !wanted && record.stage != ReplicaStage::Retired {
            map.replicas.insert(id, ReplicaRecord { stage: ReplicaStage::Retired, ..record });
        }
    }
    // A wish for a primary is done when it leads, or void when it cannot.
    let ids: Vec<ShardId> = map.shards.keys().copied().collect();
    for id in ids {
        let Some(record) = map.shards.get(&id) else { continue };
        let Some(wanted) = record.wanted_primary else { continue };
        let leads =
            record.pending.is_none() && record.current.as_ref().is_some_and(|current| map.server_of(current.primary) == Some(wanted));
        let void = !record.placement.contains(&wanted) || (record.pending.is_none() && !facts.observed.is_alive(wanted, facts.now));
        if (leads || void)
            && let Some(record) = map.shards.get_mut(&id)
        {
            record.wanted_primary = None;
        }
    }
    // A server that leaves and holds nothing goes once it is stopped.
    let holds: BTreeSet<ServerId> = map.replicas.values().map(|record| record.server).collect();
    map.servers.retain(|id, record| record.goal == ServerGoal::Run || holds.contains(id) || !facts.drives.stopped.contains(id));
    map.drained.retain(|id| map.servers.contains_key(id));
    loss::forget_accepted(map);
}

#[cfg(test)]
mod tests;
