//! A live cluster as the clients of a story see it, and what its balancers tell of it.

#[cfg(test)]
mod tests;

use super::{
    super::Failure,
    ground::{Node, Strikes},
};
use crate::{
    net::tls::TlsNetwork,
    story::{
        Record, World,
        exchange::{self, Answer, Exchange},
        wire::Call,
    },
};
use http::{HeaderValue, Method};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use twinshard_core::{
    effect::Note,
    id::{ReplicaId, ServerId},
    map::ClusterMap,
};
use twinshard_scenarios::scenario::{FaultKind, Target};

/// How often balancers are asked what they have seen.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// How long such an answer may take.
const WATCH_TIMEOUT: Duration = Duration::from_millis(1_000);
/// How long the removal of all servers may take at the end.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(120);
/// Replicas that are lost leave the map once nothing has them any more. They may take so long.
const GONE_WITHIN: Duration = Duration::from_millis(10_000);

/// What was seen of the cluster.
#[derive(Default)]
pub(super) struct Entered {
    pub(super) record: Record,
    /// What balancers told, by time once the run is over.
    pub(super) notes: Vec<(u64, Note)>,
    map: Arc<ClusterMap>,
    /// When a balancer took control last, in nanoseconds of the run (which may have begun later), and which.
    controller: Option<(i128, usize)>,
}

/// A live cluster.
#[derive(Clone)]
pub(super) struct Live {
    began: Instant,
    network: TlsNetwork,
    /// Where they serve, by place.
    balancers: Arc<[String]>,
    authorization: Option<HeaderValue>,
    entered: Arc<Mutex<Entered>>,
}

#[derive(Deserialize)]
struct Told {
    last: u64,
    events: Vec<Event>,
    map: Option<ClusterMap>,
}

#[derive(Deserialize)]
struct Event {
    number: u64,
    ago_ms: u64,
    note: Note,
}

impl Live {
    pub(super) fn new(balancers: Vec<String>, authorization: Option<HeaderValue>) -> Self {
        let (balancers, entered) = (balancers.into(), Arc::default());
        Self { began: Instant::now(), network: TlsNetwork::default(), balancers, authorization, entered }
    }

    /// Since the run began.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The same in nanoseconds.
    pub(super) fn now_ns_now(&self) -> u64 {
        u64::try_from(self.now().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) async fn sleep_until(&self, at_ns: u64) {
        sleep(Duration::from_nanos(at_ns.saturating_sub(self.now_ns_now()))).await;
    }

    /// The same, or until `stopped` says so: whether it did.
    pub(super) async fn sleep_until_or(&self, at_ns: u64, stopped: &mut watch::Receiver<bool>) -> bool {
        tokio::select! {
            biased;
            // Who would say so is gone only when all is over.
            _ = stopped.wait_for(|stop| *stop) => true,
            () = self.sleep_until(at_ns) => false,
        }
    }

    fn entered(&self) -> MutexGuard<'_, Entered> {
        // Nothing panics while it holds the lock.
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen, once nobody looks any more.
    pub(super) fn into_entered(self) -> Entered {
        let mut entered = std::mem::take(&mut *self.entered());
        entered.notes.sort_by_key(|(at, _)| *at);
        entered
    }

    async fn ask(&self, balancer: usize, method: Method, path: &str, body: Value, within: Duration) -> Result<Exchange, bool> {
        let call = Call { method, path: path.to_owned(), body, key: None, session: None };
        exchange::exchange(self, &self.balancer(balancer), &call, within).await
    }

    /// Whether there is a cluster already.
    pub(super) async fn is_set_up(&self) -> Result<bool, Failure> {
        let failed = |words: String| Failure::new(format!("{} {words}", self.balancer(0)));
        let answer = self.ask(0, Method::GET, "/status", Value::Null, WATCH_TIMEOUT).await;
        let Exchange { status, body, .. } = answer.map_err(|_| failed("does not answer over plain HTTP".to_owned()))?;
        let answer: Value = serde_json::from_slice(&body)?;
        if status != 200 {
            return Err(failed(format!("answered {status} to /status: {}", answer["message"].as_str().unwrap_or_default())));
        }
        Ok(answer["N"] != 0)
    }

    /// Keeps up with what balancers tell.
    pub(super) fn watch(&self, tasks: &mut JoinSet<()>) {
        for place in 0..self.balancers.len() {
            let live = self.clone();
            tasks.spawn(async move { live.follow(place).await });
        }
    }

    async fn follow(self, place: usize) {
        // Of this balancer's life: what it told, by number.
        let (mut after, mut known) = (0, BTreeMap::new());
        loop {
            let path = format!("/events?machine=true&after={after}");
            let asked_ns = self.now_ns_now();
            match self.ask(place, Method::GET, &path, Value::Null, WATCH_TIMEOUT).await {
                Ok(Exchange { status: 200, body, .. }) => match serde_json::from_slice::<Told>(&body) {
                    Ok(told) if told.last < after => after = 0,
                    Ok(told) => {
                        after = told.last;
                        self.enter(place, told, [asked_ns, self.now_ns_now()], &mut known);
                    }
                    Err(error) => self.with(|record| record.breaches.push(format!("/events cannot be read: {error}"))),
                },
                Ok(Exchange { status, .. }) => self.with(|record| record.breaches.push(format!("/events answered {status}"))),
                // It may have begun another life, which counts from 1: all it has is told again.
                Err(_) => after = 0,
            }
            sleep(WATCH_EVERY).await;
        }
    }

    /// Takes up what a balancer told between these two times.
    fn enter(&self, place: usize, told: Told, [asked_ns, answered_ns]: [u64; 2], known: &mut BTreeMap<u64, (i128, Note)>) {
        let mut entered = self.entered();
        let Entered { record, notes, map, controller } = &mut *entered;
        if let Some(newest) = told.map {
            record.names.learn(&newest);
            record.recorder.learn(&newest);
            *map = Arc::new(newest);
        }
        for Event { number, ago_ms, note } in told.events {
            // It says how long ago in whole milliseconds, at some time between the two: so it was at or after this, and not after that.
            let ago_ns = i128::from(ago_ms) * 1_000_000;
            let [earliest, latest] = [i128::from(asked_ns) - ago_ns - 1_000_000, i128::from(answered_ns) - ago_ns];
            match known.get(&number) {
                // What another life tells was later than anything that this one told.
                Some((before, told)) if *told == note && earliest <= *before => continue,
                Some(_) => known.clear(),
                None => {}
            }
            known.insert(number, (latest, note.clone()));
            if matches!(note, Note::Controlling { .. }) {
                *controller = (*controller).max(Some((latest, place)));
            }
            // What was before the run is none of its.
            if let Ok(at) = u64::try_from(latest) {
                notes.push((at, note));
            }
        }
    }

    /// The replicas that servers among these hold.
    pub(super) fn replicas_of(&self, nodes: &[Node]) -> BTreeSet<ReplicaId> {
        let entered = self.entered();
        let held = entered.map.replicas.iter().filter(|(_, record)| nodes.contains(&Node::Server(record.server)));
        held.map(|(id, _)| *id).collect()
    }

    /// Those of the lost that are in the map after all: what was to be lost was found again.
    pub(super) async fn not_lost(&self, lost: &BTreeSet<ReplicaId>) -> Vec<String> {
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let left: Vec<ReplicaId> = self.entered().map.replicas.keys().filter(|id| lost.contains(id)).copied().collect();
            if left.is_empty() || Instant::now() >= deadline {
                return left.into_iter().map(|id| format!("replica {id} was not lost with its disk")).collect();
            }
            sleep(WATCH_EVERY).await;
        }
    }

    /// Those that a fault strikes now.
    pub(super) fn nodes(&self, kind: &FaultKind, ground: &impl Strikes) -> Vec<Node> {
        let databases = |servers: Vec<Node>| servers.into_iter().filter_map(database_of);
        match kind {
            FaultKind::Crash { target } | FaultKind::LoseDisk { target } | FaultKind::Pause { target } | FaultKind::Isolate { target } => {
                self.those(target)
            }
            FaultKind::PowerLoss {} => {
                let mut all = [self.those(&Target::Balancers), self.those(&Target::Servers)].concat();
                if ground.has_databases() {
                    all.extend(databases(self.those(&Target::Servers)));
                }
                all.extend(ground.has_register().then_some(Node::Register));
                all
            }
            FaultKind::DatabaseDown { target } => databases(self.those(target)).collect(),
            FaultKind::RegisterDown {} => vec![Node::Register],
            FaultKind::Partition { .. } | FaultKind::ProvisionFails { .. } | FaultKind::Network { .. } | FaultKind::SlowDisk { .. } => {
                Vec::new()
            }
        }
    }

    fn those(&self, target: &Target) -> Vec<Node> {
        let (map, controller) = {
            let entered = self.entered();
            (Arc::clone(&entered.map), entered.controller)
        };
        let holders = |shard: &str, leads: bool| {
            let record = map.shard_named(shard).and_then(|id| map.shards.get(&id));
            let config = record.and_then(|record| record.current.as_ref());
            let members =
                config.into_iter().flat_map(|config| config.members.iter().filter(|member| (**member == config.primary) == leads));
            let servers: BTreeSet<ServerId> = members.filter_map(|member| map.server_of(*member)).collect();
            servers.into_iter().map(Node::Server).collect::<Vec<_>>()
        };
        match target {
            Target::Server(name) => {
                map.servers.iter().filter(|(_, record)| *record.name == **name).map(|(id, _)| Node::Server(*id)).collect()
            }
            Target::Balancer(number) => vec![Node::Balancer(*number as usize)],
            Target::PrimaryOf(shard) => holders(shard, true),
            Target::BackupOf(shard) => holders(shard, false).into_iter().take(1).collect(),
            Target::BackupsOf(shard) => holders(shard, false),
            Target::Controller => controller.map(|(_, place)| Node::Balancer(place)).into_iter().collect(),
            Target::Servers => map.servers.keys().copied().map(Node::Server).collect(),
            Target::Balancers => (0..self.balancers.len()).map(Node::Balancer).collect(),
            Target::Clients => Vec::new(),
        }
    }

    /// A node as reports name it.
    pub(super) fn name(&self, node: Node) -> String {
        match node {
            Node::Server(id) => self.entered().record.names.server(id),
            Node::Balancer(place) => format!("balancer {place}"),
            Node::Database(id) => format!("the database of {}", self.entered().record.names.server(id)),
            Node::Register => "the register".to_owned(),
        }
    }

    /// Removes all servers, so that another scenario can begin.
    pub(super) async fn clear(&self) {
        let names: Vec<Box<str>> = self.entered().map.servers.values().map(|record| record.name.clone()).collect();
        let body = json!({ "n": names.len(), "servers": names, "accept_data_loss": true });
        match self.ask(0, Method::DELETE, "/rm", body, CLEAR_TIMEOUT).await {
            Ok(Exchange { status: 200, .. }) => {}
            Ok(Exchange { body, .. }) => eprintln!("the cluster stays as it is: {}", String::from_utf8_lossy(&body)),
            Err(_) => eprintln!("the cluster stays as it is: no answer"),
        }
    }
}

const fn database_of(node: Node) -> Option<Node> {
    match node {
        Node::Server(id) => Some(Node::Database(id)),
        Node::Balancer(_) | Node::Database(_) | Node::Register => None,
    }
}

impl World for Live {
    type Network = TlsNetwork;

    fn network(&self) -> &TlsNetwork {
        &self.network
    }

    fn now_ns(&self) -> u64 {
        self.now_ns_now()
    }

    fn balancer(&self, number: usize) -> String {
        let count = self.balancers.len().max(1);
        self.balancers.get(number % count).cloned().unwrap_or_default()
    }

    fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    fn heard(&self, _: &Answer) {}

    fn with<T>(&self, work: impl FnOnce(&mut Record) -> T) -> T {
        work(&mut self.entered().record)
    }

    fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.entered().map)
    }
}
