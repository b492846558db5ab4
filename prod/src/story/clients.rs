//! The clients: they ask over HTTP, write down what they saw, and judge at the end whether all is there again.

use super::{
    World,
    exchange::{self, Answer, Exchange},
    spelling,
    wire::{Call, sayable},
};
use http::Method;
use serde_json::Value as Json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use twinshard_core::{
    map::ClusterMap,
    request::{Applied, Reply, Request, RequestError},
    schema::Schema,
    time::{self, Instant},
};
use twinshard_scenarios::{
    report::AdminEvent,
    scenario::{self, Scenario},
    workload::{self, ClosedLoop, OPERATOR, Workload, next_page},
};

/// When /init is sent.
const INIT_AT: Duration = Duration::from_millis(20);
/// How long a client waits before it comes again.
const COME_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long a client of the end waits for an answer.
pub const END_TIMEOUT: Duration = Duration::from_millis(10_000);
/// How often a client asks what it does not know how to ask, and how long it waits for an answer.
const STRAY_EVERY: Duration = Duration::from_millis(150);
const STRAY_TIMEOUT: Duration = Duration::from_millis(2_000);
/// How long the cluster may take to come back after the last fault.
pub const HEAL_WITHIN: Duration = Duration::from_millis(30_000);
/// How long replicas may take to be equal once nothing writes any more.
const EQUAL_WITHIN: Duration = Duration::from_millis(10_000);

/// See [`workload::ADMIN_TIMEOUT`].
const ADMIN_TIMEOUT: Duration = Duration::from_nanos(workload::ADMIN_TIMEOUT.0);

/// What came of the end.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Shards that have all their members.
    pub shards: u64,
    /// Replicas that were compared.
    pub compared: u64,
    /// What did not come back.
    pub failures: Vec<String>,
    /// Replicas that differ.
    pub unequal: Vec<String>,
}

/// A request at a time of the run.
#[derive(Clone, Debug)]
pub struct Step {
    /// When.
    pub at: Instant,
    /// Whose.
    pub client: u32,
    /// Whom it is asked first; see [`World::balancer`].
    pub balancer: usize,
    /// How long the client waits for an answer.
    pub timeout: time::Duration,
    /// How often it comes again when the outcome is not known.
    pub retries: u32,
    /// What.
    pub request: Request,
}

/// What is asked for, and when.
#[derive(Clone, Debug)]
pub struct Script {
    /// The request that sets the cluster up.
    pub init: Request,
    /// Operations of clients.
    pub operations: Vec<Step>,
    /// What the operator asks for, with its place in the scenario.
    pub admin: Vec<(usize, Instant, Request)>,
    /// Clients that ask again when they were answered.
    pub closed: Option<ClosedLoop>,
    /// What reads back what was written.
    pub read_back: Vec<Request>,
    /// When the last fault is over.
    pub healed_at: Instant,
}

impl Script {
    /// What a scenario has clients do under a seed, in a run whose load begins then. Clients take the balancers in turn.
    #[must_use]
    pub fn new(scenario: &Scenario, seed: u64, load_from: Instant) -> Self {
        let at = |ms: u64| load_from + time::Duration::from_millis(ms);
        let (spec, workload) = (&scenario.workload, Workload::new(scenario, seed));
        let operations = workload.plan().into_iter().map(|planned| Step {
            at: load_from + time::Duration(planned.at_ns),
            client: planned.client,
            balancer: planned.client as usize,
            timeout: time::Duration::from_millis(spec.deadline_ms),
            retries: spec.retries_max,
            request: planned.request,
        });
        Self {
            init: scenario.init(),
            operations: operations.collect(),
            admin: scenario.admin.iter().enumerate().map(|(place, step)| (place, at(step.at_ms), step.kind.request())).collect(),
            closed: workload.closed_loop(load_from),
            read_back: workload.read_back(),
            healed_at: at(scenario.end_ms()),
        }
    }
}

/// The clients of a story.
#[derive(Clone, Debug)]
pub struct Clients<W> {
    world: W,
    schema: Arc<Schema>,
    /// When nobody waits any longer for what was asked before all faults were over: a balancer that lost power ends no connection.
    patience_ends: u64,
}

impl<W: World> Clients<W> {
    /// Clients of a world.
    pub fn new(world: W) -> Self {
        Self { world, schema: Arc::new(scenario::schema()), patience_ends: 0 }
    }

    /// Everything that clients do, from /init to the last comparison, which waits until `healed`.
    pub async fn story(mut self, script: Script, healed: Arc<AtomicBool>) -> Ended {
        self.patience_ends = script.healed_at.0 + u64::try_from(END_TIMEOUT.as_nanos()).unwrap_or(u64::MAX);
        let mut tasks = JoinSet::new();
        let clients = self.clone();
        tasks.spawn(async move { clients.init(script.init).await });
        let operations = script.operations.into_iter().map(|step| (step.at, None, step));
        let admin = script.admin.into_iter().map(|(place, at, request)| {
            let step = Step { at, client: OPERATOR, balancer: 0, timeout: time::Duration(0), retries: 0, request };
            (at, Some(place), step)
        });
        let mut steps: Vec<_> = operations.chain(admin).collect();
        // Of one time, clients first: what is drawn in a simulated world depends on the order.
        steps.sort_by_key(|(at, place, _)| (*at, *place));
        for (at, place, step) in steps {
            let clients = self.clone();
            tasks.spawn(async move {
                clients.sleep_until(at.0).await;
                match place {
                    Some(place) => clients.administer(place, step.request).await,
                    None => {
                        let timeout = Duration::from_nanos(step.timeout.0);
                        clients.operate(step.client, step.balancer, step.request, timeout, step.retries).await;
                    }
                }
            });
        }
        if let Some(closed) = script.closed {
            for client in 0..closed.clients {
                let (clients, closed) = (self.clone(), closed.clone());
                tasks.spawn(async move {
                    clients.sleep_until(closed.from.0).await;
                    let mut nth = 0;
                    while clients.world.now_ns() < closed.until.0 {
                        let id = closed.workload.closed_loop_id(client, nth);
                        let request = closed.workload.request(id, Instant(clients.world.now_ns()).since(closed.from).as_millis());
                        let timeout = Duration::from_nanos(closed.timeout.0);
                        clients.operate(client, client as usize, request, timeout, closed.retries).await;
                        sleep(Duration::from_nanos(closed.think.0)).await;
                        nth += 1;
                    }
                });
            }
        }
        let clients = self.clone();
        tasks.spawn(async move { clients.stray(script.healed_at.0).await });
        while let Some(joined) = tasks.join_next().await {
            if let Err(error) = joined {
                self.breach(format!("a client failed: {error}"));
            }
        }
        while !healed.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(10)).await;
        }
        let mut ended = Ended::default();
        match timeout(HEAL_WITHIN, self.whole(&mut ended)).await {
            Ok(()) => {}
            // Nothing that is asked now would be answered.
            Err(_) => {
                ended.failures.push(format!("not whole {} s after the last fault: {}", HEAL_WITHIN.as_secs(), missing(&self.world.map())));
                return ended;
            }
        }
        let mut whole: Vec<Request> = Vec::new();
        for first in script.read_back {
            let mut next = Some(first);
            while let Some(request) = next {
                let reply = self.operate(u32::MAX, 0, request.clone(), END_TIMEOUT, 3).await;
                next = reply.as_ref().and_then(|reply| next_page(&request, reply));
                whole.push(request);
                if !matches!(reply, Some(Reply::Rows(_))) {
                    ended.failures.push(format!("what was written cannot be read back: {reply:?}"));
                }
            }
        }
        if ended.failures.is_empty() {
            let mut last = vec![format!("replicas could not be compared within {} s", EQUAL_WITHIN.as_secs())];
            let equal = timeout(EQUAL_WITHIN, async {
                loop {
                    last = self.compare(&mut ended).await;
                    if last.is_empty() {
                        break;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            });
            if equal.await.is_err() {
                ended.unequal = last;
            }
        }
        ended
    }

    /// A client that knows the contract badly: until then it asks what is refused, or said in another way, and judges what it is told.
    async fn stray(&self, until_ns: u64) {
        let mut number = 0;
        while self.world.now_ns() < until_ns {
            sleep(STRAY_EVERY).await;
            let (asked, statuses) = spelling::stray(number);
            if let Ok(told) = exchange::send(&self.world, &self.world.balancer(number), asked.clone(), STRAY_TIMEOUT).await
                && let Some(text) = spelling::breach(&asked, statuses, told.status, &told.body)
            {
                self.breach(text);
            }
            number += 1;
        }
    }

    async fn sleep_until(&self, at_ns: u64) {
        sleep(Duration::from_nanos(at_ns.saturating_sub(self.world.now_ns()))).await;
    }

    fn breach(&self, text: String) {
        self.world.with(|record| record.breaches.push(text));
    }

    /// One exchange, in the trace.
    async fn ask(&self, balancer: usize, request: &Request, within: Duration) -> Answer {
        let answer = exchange::ask(&self.world, &self.world.balancer(balancer), &self.schema, request, within).await;
        self.world.heard(&answer);
        self.world.with(|record| record.answer_count += 1);
        if let Answer::Breach(text) = &answer {
            self.breach(text.clone());
        }
        answer
    }

    /// Sets the cluster up, and waits until it is whole.
    pub async fn set_up(&self, request: Request) {
        self.init(request).await;
        self.whole(&mut Ended::default()).await;
    }

    async fn init(&self, request: Request) {
        sleep(INIT_AT).await;
        loop {
            let answer = self.ask(0, &request, ADMIN_TIMEOUT).await;
            match answer {
                Answer::Reply(answered)
                    if matches!(answered.reply, Reply::Initialised | Reply::Failed(RequestError::AlreadyInitialised)) =>
                {
                    return;
                }
                Answer::Reply(_) | Answer::NotSent | Answer::Unknown => sleep(COME_AGAIN_AFTER).await,
                Answer::Breach(_) => return,
            }
        }
    }

    async fn administer(&self, place: usize, request: Request) {
        let at_ns = self.world.now_ns();
        let keep = |event: AdminEvent| self.world.with(|record| drop(record.told.insert(place, event)));
        keep(AdminEvent { place, at_ns, answered_ns: None, answer: "no answer".to_owned() });
        let operation = self.world.with(|record| record.recorder.begin(OPERATOR, at_ns, request.clone()));
        let within = ADMIN_TIMEOUT.min(Duration::from_nanos(self.patience_ends.saturating_sub(at_ns)));
        let answer = self.ask(0, &request, within).await;
        let text = match &answer {
            Answer::Reply(answered) => match &answered.reply {
                Reply::Failed(error) => error.to_string(),
                _ => "done".to_owned(),
            },
            Answer::NotSent => "nobody listens".to_owned(),
            Answer::Unknown => "no answer".to_owned(),
            Answer::Breach(text) => text.clone(),
        };
        let now = self.world.now_ns();
        let answered_ns = matches!(answer, Answer::Reply(_)).then_some(now);
        keep(AdminEvent { place, at_ns, answered_ns, answer: text });
        self.world.with(|record| {
            let recorded = match &answer {
                Answer::Reply(answered) => record.recorder.finish(operation, now, &answered.reply),
                Answer::NotSent | Answer::Unknown | Answer::Breach(_) => record.recorder.give_up(operation),
            };
            if let Err(error) = recorded {
                record.breaches.push(error.to_string());
            }
        });
    }

    /// One operation of a client with all its attempts. Gives the last answer.
    async fn operate(&self, client: u32, balancer: usize, request: Request, within: Duration, retries: u32) -> Option<Reply> {
        let called = self.world.now_ns();
        let (operation, request) = self.world.with(|record| {
            let request = record.recorder.with_session(client, sayable(request));
            (record.recorder.begin(client, called, request.clone()), request)
        });
        let mut attempt = 0;
        loop {
            let answer = self.ask(balancer + attempt as usize, &request, within).await;
            let comes_again = attempt < retries
                && match &answer {
                    Answer::Reply(answered) => {
                        matches!(&answered.reply, Reply::Failed(error) if error.retryable() && error.applied() != Applied::No)
                    }
                    Answer::Unknown => true,
                    Answer::NotSent | Answer::Breach(_) => false,
                };
            let at = self.world.now_ns();
            if comes_again {
                let told = self.world.with(|record| record.recorder.retry(operation));
                if let Err(error) = told {
                    self.breach(error.to_string());
                }
                attempt += 1;
                sleep(COME_AGAIN_AFTER).await;
                continue;
            }
            return self.world.with(|record| {
                let (recorded, reply) = match answer {
                    Answer::Reply(answered) => {
                        record.recorder.saw_token(client, &answered.seen);
                        let reply = answered.reply;
                        (record.recorder.finish(operation, at, &reply), Some(reply))
                    }
                    // Nothing was sent by this attempt.
                    Answer::NotSent => (record.recorder.finish(operation, at, &Reply::Failed(RequestError::NoServer)), None),
                    Answer::Unknown | Answer::Breach(_) => (record.recorder.give_up(operation), None),
                };
                if let Err(error) = recorded {
                    record.breaches.push(error.to_string());
                }
                reply
            });
        }
    }

    /// Waits until every shard has all its members, all of them up, and nothing is on its way.
    async fn whole(&self, ended: &mut Ended) {
        loop {
            if let Some(status) = self.status().await
                && let Some(shards) = is_whole(&status)
            {
                ended.shards = shards;
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn status(&self) -> Option<Json> {
        let call = Call { method: Method::GET, path: "/status".to_owned(), body: Json::Null, key: None, session: None };
        let Exchange { status, body, .. } =
            exchange::exchange(&self.world, &self.world.balancer(0), &call, Duration::from_millis(2_000)).await.ok()?;
        if status == 200 { serde_json::from_slice(&body).ok() } else { None }
    }

    /// What each server holds of a shard against what the shard is.
    async fn compare(&self, ended: &mut Ended) -> Vec<String> {
        let map = self.world.map();
        let mut unequal = Vec::new();
        let mut held: BTreeMap<Box<str>, Json> = BTreeMap::new();
        for server in map.servers.values().map(|record| &record.name) {
            let path = format!("/read/{server}");
            let call = Call { method: Method::GET, path, body: Json::Null, key: None, session: None };
            match exchange::exchange(&self.world, &self.world.balancer(0), &call, END_TIMEOUT).await {
                Ok(Exchange { status: 200, body, .. }) => match serde_json::from_slice(&body) {
                    Ok(shards) => drop(held.insert(server.clone(), shards)),
                    Err(error) => unequal.push(format!("{server} cannot be read: {error}")),
                },
                other => unequal.push(format!("{server} cannot be read: {other:?}")),
            }
        }
        let (compared, differences) = differences(&map, &held);
        ended.compared = compared;
        unequal.extend(differences);
        unequal
    }
}

/// How many replicas were compared, and where what servers gave by shard is not what the shard is: every member has to have given its rows.
fn differences(map: &ClusterMap, held: &BTreeMap<Box<str>, Json>) -> (u64, Vec<String>) {
    let (mut compared, mut differences) = (0, Vec::new());
    for record in map.shards.values() {
        let shard = &record.name;
        let mut before: Option<(&str, &Json)> = None;
        for (server, shards) in held {
            let Some(rows) = shards.get(&**shard).filter(|rows| rows.is_array()) else { continue };
            compared += 1;
            match before {
                Some((other, known)) if known != rows => differences.push(format!("{server} and {other} hold other rows of {shard}")),
                Some(_) | None => before = Some((server, rows)),
            }
        }
        let members = record.current.iter().flat_map(|current| &current.members).filter_map(|member| map.server_of(*member));
        for server in members.filter_map(|id| map.servers.get(&id)) {
            if !held.get(&server.name).is_some_and(|shards| shards[&**shard].is_array()) {
                differences.push(format!("{} gave no rows of {shard}, of which it is a member", server.name));
            }
        }
    }
    if compared == 0 {
        differences.push("no replica was compared".to_owned());
    }
    (compared, differences)
}

/// In words, what shards lack.
fn missing(map: &ClusterMap) -> String {
    let shards = map.shards.values();
    let shards: Vec<String> = shards.map(|shard| format!("{} is {:?}, pending {:?}", shard.name, shard.current, shard.pending)).collect();
    shards.join("; ")
}

fn is_whole(status: &Json) -> Option<u64> {
    let up = status.get("health")?.as_object()?.values().all(|server| server["state"] == "up");
    let shards = status.get("shards")?.as_array()?;
    let held = status.get("servers")?.as_object()?;
    let complete = shards.iter().all(|shard| {
        let wanted = held.values().filter_map(Json::as_array).filter(|shards| shards.contains(&shard["Shard_id"])).count();
        !shard["primary_server"].is_null()
            && shard["pending_epoch"].is_null()
            && shard["members"].as_array().is_some_and(|members| members.len() == wanted)
    });
    (up && complete && !shards.is_empty()).then_some(shards.len() as u64)
}

#[cfg(test)]
mod tests;
