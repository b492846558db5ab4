//! What is known to be gone of a shard, and how it is given up where an operator accepted that. Judged by what was heard and by what the
//! provisioner did, never by a glance: a balancer that has just started, or is cut off, hears nobody, and everything may be whole.
//!
//! Giving up takes two steps. First every member that answers promises a new epoch, which ends the old configuration as far as it can be
//! reached; the rest runs no more, as the provisioner said. Then the map drops the shard and has one of the same name and range in its
//! place, under a new id, so that an old session token names nothing in it. The replicas leave the map, and nobody destroys them.

use super::{
    observed::Observed,
    plan::{self, Facts},
};
use crate::{
    config::Configuration,
    id::{ReplicaId, ShardId},
    map::{ClusterMap, ReplicaStage, ShardRecord},
    message::LeadStage,
    planted::Bug,
    reason::{Cause, Choice, Reason},
    request::RequestError,
    time::{Duration, Instant},
};
use std::collections::BTreeSet;

/// How long the members that answer may take to promise before another epoch is tried. A guess.
const FENCE_AGAIN_AFTER: Duration = Duration::from_millis(2_000);

/// Whether the members of a configuration can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// Enough of them answer.
    Can,
    /// Too few answer, and of others nothing is known yet.
    Unknown,
    /// Too many were silent for long, or are lost.
    Cannot,
    /// Those too many are lost, or their process was stopped or replaced since they were heard of last, in vain.
    Gone,
}

/// Why an operator's wish is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It is refused.
    Now(RequestError),
    /// Nobody knows yet: it is judged again until its deadline, and refused then.
    Later(RequestError),
}

impl From<RequestError> for Denied {
    fn from(error: RequestError) -> Self {
        Self::Now(error)
    }
}

impl Seal {
    /// What becomes of a wish that needs the seal: `Ok` if it can be had.
    pub(crate) fn or_denied(self, error: RequestError) -> Result<(), Denied> {
        match self {
            Self::Can => Ok(()),
            Self::Unknown => Err(Denied::Later(error)),
            Self::Cannot | Self::Gone => Err(Denied::Now(error)),
        }
    }
}

/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// It answers and has its log.
    Usable,
    /// Nothing is known, or not for long enough.
    Unknown,
    /// Its server was silent for long.
    Down,
    /// Its server was silent for long and does not run.
    Gone,
    /// It says that it is lost, or did: it answers nobody any more.
    Lost,
}

fn member(map: &ClusterMap, id: ReplicaId, observed: &Observed, now: Instant) -> Member {
    let Some(record) = map.replicas.get(&id).filter(|record| record.stage != ReplicaStage::Retired) else { return Member::Lost };
    if observed.is_usable(map, id, now) {
        Member::Usable
    } else if observed.status(map, id, now).is_some_and(|status| status.lost.is_some()) {
        Member::Lost
    } else if observed.is_gone(record.server, now) {
        Member::Gone
    } else if observed.is_down(record.server, now) {
        Member::Down
    } else {
        Member::Unknown
    }
}

/// Whether the members can be sealed, as far as this balancer knows.
pub(crate) fn seal(map: &ClusterMap, current: &Configuration, observed: &Observed, now: Instant) -> Seal {
    let members: Vec<Member> = current.members.iter().map(|id| member(map, *id, observed, now)).collect();
    let enough = |kinds: &[Member]| members.iter().filter(|member| kinds.contains(member)).count() >= current.seal_quorum();
    if enough(&[Member::Usable]) {
        Seal::Can
    } else if enough(&[Member::Usable, Member::Unknown]) {
        Seal::Unknown
    } else if enough(&[Member::Usable, Member::Unknown, Member::Down]) {
        Seal::Cannot
    } else {
        Seal::Gone
    }
}

/// Whether the primary of the configuration leads it and reaches a write quorum: then nothing is lost, though nothing can be changed.
pub(crate) fn serves(map: &ClusterMap, current: &Configuration, observed: &Observed, now: Instant) -> bool {
    let unreached = observed.unreached(map, current.primary, current.epoch, now);
    let reached = current.members.iter().filter(|member| !unreached.contains(member)).count();
    observed.lead(map, current.primary, current.epoch, now) == Some(LeadStage::Active) && reached >= current.write_quorum as usize
}

/// Whether the shard is to be given up: an operator accepted it, and it is known that it cannot come back.
pub(crate) fn is_given_up(map: &ClusterMap, shard: ShardId, current: &Configuration, facts: &Facts<'_>) -> bool {
    if !facts.accepted_loss.contains(&shard) {
        return false;
    }
    let seal = seal(map, current, facts.observed, facts.now);
    if facts.drives.has(Bug::GivesUpOnGlance) {
        return seal != Seal::Can;
    }
    seal == Seal::Gone && !serves(map, current, facts.observed, facts.now)
}

/// The next step of giving a shard up.
pub(crate) fn give_up(
    map: &mut ClusterMap,
    shard: ShardId,
    record: &ShardRecord,
    current: &Configuration,
    facts: &Facts<'_>,
) -> Option<Reason> {
    let Facts { now, observed, drives, .. } = *facts;
    let (mut members, mut waits) = (Vec::new(), false);
    for id in &current.members {
        match member(map, *id, observed, now) {
            Member::Usable => members.push(*id),
            // It may serve somebody else: it answers and promises, or it is seen to run no more.
            Member::Unknown | Member::Down => waits = true,
            Member::Gone | Member::Lost => {}
        }
    }
    if waits && !drives.has(Bug::GivesUpOnGlance) {
        return None;
    }
    let last = |id: &ReplicaId| (observed.status(map, *id, now).map(|status| status.last), std::cmp::Reverse(*id));
    let Some(primary) = members.iter().copied().max_by_key(last) else {
        begin_anew(map, shard);
        return None;
    };
    if let Some(pending) = &record.pending {
        if drives.have_promised(shard, pending.epoch, &members) {
            begin_anew(map, shard);
            return None;
        }
        if !drives.is_superseded(shard, pending.epoch) && drives.stood(shard, pending.epoch, now).0 < FENCE_AGAIN_AFTER.0 {
            return None;
        }
    }
    let epoch = map.counters.epoch.next();
    let write_quorum = plan::write_quorum(&map.settings, members.len());
    map.counters.epoch = epoch;
    if let Some(record) = map.shards.get_mut(&shard) {
        record.pending = Some(Configuration { epoch, primary, members, write_quorum });
    }
    Some(Reason { cause: Cause::LossAccepted, choice: Choice::NewestLog })
}

/// A shard of the same name and range, where it is wanted, in place of the one that is given up. The epoch that is minted tells servers that
/// the old one is over.
fn begin_anew(map: &mut ClusterMap, shard: ShardId) {
    let Some(old) = map.shards.remove(&shard) else { return };
    map.accepted_loss.remove(&shard);
    map.replicas.retain(|_, replica| replica.shard != shard);
    map.counters.epoch = map.counters.epoch.next();
    map.counters.shard = map.counters.shard.next();
    map.shards.insert(map.counters.shard, ShardRecord { current: None, pending: None, wanted_primary: None, ..old });
}

/// What an operator accepted is over once the shard is where it is wanted.
pub(crate) fn forget_accepted(map: &mut ClusterMap) {
    let accepted = std::mem::take(&mut map.accepted_loss);
    let is_open = |shard: &ShardId| {
        map.shards.get(shard).is_some_and(|record| {
            record.current.as_ref().is_some_and(|current| {
                record.pending.is_some()
                    || current.members.iter().any(|id| map.server_of(*id).is_none_or(|server| !record.placement.contains(&server)))
            })
        })
    };
    let open: BTreeSet<ShardId> = accepted.into_iter().filter(is_open).collect();
    map.accepted_loss = open;
}

/// The shards that were given up between two maps, with those in their place.
pub(crate) fn given_up(old: &ClusterMap, new: &ClusterMap) -> Vec<(ShardId, ShardId)> {
    // Another schema: the cluster was torn down and set up anew in between.
    if new.schema.is_none() || new.counters.schema != old.counters.schema {
        return Vec::new();
    }
    let gone = old.shards.iter().filter(|(id, _)| !new.shards.contains_key(id));
    gone.filter_map(|(id, record)| Some((*id, new.shard_named(&record.name)?))).collect()
}
