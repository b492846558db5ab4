//! The faults of a scenario at their times: whom they hit, and that all is undone afterwards, whatever came of them. Never counts a fault
//! that hit nobody.

#[cfg(test)]
pub(super) mod tests;

use super::{
    ground::{Blow, Node, Strikes},
    live::Live,
};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use twinshard_core::{id::ReplicaId, time::Instant};
use twinshard_scenarios::{
    report::FaultEvent,
    scenario::{Fault, FaultKind, Scenario},
};

/// How often a fault that lasts is seen to: who came back meanwhile is struck again.
const STRIKE_EVERY: Duration = Duration::from_millis(100);
/// How often it is tried to undo what was done to a node.
const UNDO_TRIES: u32 = 20;

/// What came of all faults.
#[derive(Debug, Default)]
pub(super) struct Struck {
    /// Those that happened, by time.
    pub(super) faults: Vec<FaultEvent>,
    /// What did not work.
    pub(super) failures: Vec<String>,
    /// Replicas whose disk was lost: none of them may ever be again.
    pub(super) lost: BTreeSet<ReplicaId>,
}

/// What came of one fault.
#[derive(Debug, Default)]
struct Outcome {
    /// When it hit first.
    at_ns: Option<u64>,
    hit: BTreeSet<Node>,
    lost: BTreeSet<ReplicaId>,
    failure: Option<String>,
}

/// Plays all faults at their times. When `stopped` says so, those that are on end and others do not begin.
pub(super) async fn strike_all(
    scenario: &Scenario,
    ground: &impl Strikes,
    live: &Live,
    load_from: Instant,
    stopped: &watch::Receiver<bool>,
) -> Struck {
    let windows = scenario.faults.iter().map(|fault| strike(ground, live, fault, load_from, stopped.clone()));
    let mut struck = Struck::default();
    let mut events: BTreeMap<(u64, usize), FaultEvent> = BTreeMap::new();
    for (place, outcome) in join_all(windows).await.into_iter().enumerate() {
        struck.failures.extend(outcome.failure.map(|failure| format!("fault {place}: {failure}")));
        struck.lost.extend(outcome.lost);
        if let Some(at_ns) = outcome.at_ns {
            let names = outcome.hit.iter().map(|node| live.name(*node)).collect();
            events.insert((at_ns, place), FaultEvent { place, at_ns, struck: names });
        }
    }
    struck.faults = events.into_values().collect();
    struck
}

/// Plays one fault until its end, and undoes it.
async fn strike(ground: &impl Strikes, live: &Live, fault: &Fault, load_from: Instant, mut stopped: watch::Receiver<bool>) -> Outcome {
    let (from, until) = (load_from.0 + fault.at_ms * 1_000_000, load_from.0 + (fault.at_ms + fault.for_ms) * 1_000_000);
    let mut outcome = Outcome::default();
    if live.sleep_until_or(from, &mut stopped).await {
        return outcome;
    }
    let nodes = live.nodes(&fault.kind, ground);
    let held = live.replicas_of(&nodes);
    loop {
        let now = live.now_ns_now();
        let blows = nodes.iter().filter_map(|node| Some((*node, blow(&fault.kind, outcome.hit.contains(node))?)));
        let dealt = blows.map(|(node, blow)| async move { (node, ground.deal(blow, node).await) });
        for (node, done) in join_all(dealt).await {
            match done {
                Ok(true) => {
                    outcome.at_ns.get_or_insert(now);
                    outcome.hit.insert(node);
                }
                Ok(false) => {}
                // The others are struck all the same.
                Err(error) => drop(outcome.failure.get_or_insert(error)),
            }
        }
        let now = live.now_ns_now();
        let next = until.min(now + u64::try_from(STRIKE_EVERY.as_nanos()).unwrap_or(u64::MAX));
        if now >= until || live.sleep_until_or(next, &mut stopped).await {
            break;
        }
    }
    let undone = join_all(nodes.iter().map(|node| undo(ground, &fault.kind, *node))).await;
    let not_undone = undone.into_iter().find_map(Result::err);
    let name = fault.kind.name();
    let idle = if nodes.is_empty() {
        Some(format!("{name} found nobody to strike"))
    } else if outcome.hit.is_empty() {
        let names: Vec<String> = nodes.iter().map(|node| live.name(*node)).collect();
        Some(format!("{name} did not happen: it hit none of {}", names.join(", ")))
    } else {
        None
    };
    outcome.failure = outcome.failure.or(not_undone).or(idle);
    if let FaultKind::LoseDisk { .. } = fault.kind {
        if held.is_empty() && !outcome.hit.is_empty() {
            outcome.failure.get_or_insert(format!("{name} struck who held nothing"));
        }
        outcome.lost = held;
    }
    outcome
}

/// What a fault does to a node, again and again while it lasts. `None` if nothing more.
fn blow(kind: &FaultKind, is_hit: bool) -> Option<Blow> {
    match kind {
        FaultKind::Crash { .. } | FaultKind::PowerLoss {} | FaultKind::RegisterDown {} | FaultKind::DatabaseDown { .. } => Some(Blow::Kill),
        FaultKind::LoseDisk { .. } => Some(if is_hit { Blow::Kill } else { Blow::LoseDisk }),
        FaultKind::Pause { .. } => (!is_hit).then_some(Blow::Pause),
        FaultKind::Isolate { .. } => Some(Blow::CutOff),
        // Refused before.
        FaultKind::Partition { .. } | FaultKind::ProvisionFails { .. } | FaultKind::Network { .. } | FaultKind::SlowDisk { .. } => None,
    }
}

/// Undoes what a fault did to a node. It is tried until it is known that nothing is left to undo.
async fn undo(ground: &impl Strikes, kind: &FaultKind, node: Node) -> Result<(), String> {
    let blow = match kind {
        FaultKind::Pause { .. } => Blow::Resume,
        FaultKind::Isolate { .. } => Blow::Rejoin,
        FaultKind::Crash { .. } | FaultKind::PowerLoss {} => Blow::Revive,
        // Balancers bring back what is missing.
        FaultKind::LoseDisk { .. }
        | FaultKind::RegisterDown {}
        | FaultKind::DatabaseDown { .. }
        | FaultKind::Partition { .. }
        | FaultKind::ProvisionFails { .. }
        | FaultKind::Network { .. }
        | FaultKind::SlowDisk { .. } => return Ok(()),
    };
    let mut tries_left = UNDO_TRIES;
    loop {
        tries_left -= 1;
        match ground.deal(blow, node).await {
            Ok(_) => return Ok(()),
            Err(error) if tries_left == 0 => return Err(error),
            Err(_) => sleep(STRIKE_EVERY).await,
        }
    }
}
