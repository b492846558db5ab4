//! The clients of the turmoil world: they ask over HTTP from a host of their own, and judge at the end whether all is there again.

use super::{
    client::{self, Answer, Exchange},
    wire::{Call, sayable},
    world::{Shared, balancer_address, now},
};
use crate::{
    plan::{Action, Plan},
    staging::{ADMIN_FROM, ADMIN_TIMEOUT, ClosedLoop},
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
    request::{Applied, Consistency, Reply, Request, RequestError},
    schema::Schema,
    time,
};
use twinshard_scenarios::{
    report::AdminEvent,
    workload::{Workload, next_page},
};

/// When /init is sent.
const INIT_AT: Duration = Duration::from_millis(20);
/// How long a client waits before it comes again.
const COME_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long a client of the end waits for an answer.
pub(super) const END_TIMEOUT: Duration = Duration::from_millis(10_000);
/// How long replicas may take to be equal once nothing writes any more.
const EQUAL_WITHIN: Duration = Duration::from_millis(10_000);

/// What the clients' host hands to the loop at the end.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended {
    pub(super) shards: u64,
    pub(super) compared: u64,
    pub(super) failures: Vec<String>,
    pub(super) unequal: Vec<String>,
}

/// What is shared by the tasks of the clients' host.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) shared: Shared,
    pub(super) schema: Arc<Schema>,
    pub(super) balancer_count: usize,
    pub(super) told: Arc<std::sync::Mutex<BTreeMap<u32, AdminEvent>>>,
    /// When nobody waits any longer for what was asked before all faults were over: a balancer that lost power ends no connection.
    pub(super) patience_ends: u64,
}

impl Clients {
    /// Everything that clients do, from /init to the last comparison.
    pub(super) async fn story(self, plan: Plan, closed: Option<ClosedLoop>, workload: Workload, healed: Arc<AtomicBool>) -> Ended {
        let mut tasks = JoinSet::new();
        let init = Request::Init {
            server_count: Some(plan.topology.servers.len() as u64),
            schema: (*self.schema).clone(),
            shards: plan.topology.shards.clone(),
            servers: Some(plan.topology.servers.clone()),
            on_conflict: None,
            by_name: false,
        };
        let clients = self.clone();
        tasks.spawn(async move { clients.init(init).await });
        for planned in plan.operations {
            let Action::Raw(request) = planned.action else { continue };
            let clients = self.clone();
            tasks.spawn(async move {
                sleep_until(planned.at.0).await;
                if planned.client == ADMIN_FROM {
                    clients.administer(planned.id, request).await;
                } else {
                    let timeout = Duration::from_nanos(planned.timeout.0);
                    clients.operate(planned.client, planned.balancer, request, timeout, planned.retries).await;
                }
            });
        }
        if let Some(closed) = closed {
            for client in 0..closed.clients {
                let (clients, closed) = (self.clone(), closed.clone());
                tasks.spawn(async move {
                    sleep_until(closed.from.0).await;
                    let mut nth = 0;
                    while now() < closed.until.0 {
                        let id = closed.workload.closed_loop_id(client, nth);
                        let request = closed.workload.request(id, time::Instant(now()).since(closed.from).as_millis());
                        let timeout = Duration::from_nanos(closed.timeout.0);
                        clients.operate(client, client as usize, request, timeout, closed.retries).await;
                        sleep(Duration::from_nanos(closed.think.0)).await;
                        nth += 1;
                    }
                });
            }
        }
        while let Some(joined) = tasks.join_next().await {
            if let Err(error) = joined {
                self.breach(format!("a client failed: {error}"));
            }
        }
        while !healed.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(10)).await;
        }
        let mut ended = Ended::default();
        match timeout(Duration::from_nanos(plan.heal_within.0), self.whole(&mut ended)).await {
            Ok(()) => {}
            // Nothing that is asked now would be answered.
            Err(_) => {
                ended.failures.push(format!("not whole {} after the last fault: {}", plan.heal_within, self.missing()));
                return ended;
            }
        }
        let mut whole: Vec<Request> = Vec::new();
        for first in workload.read_back() {
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
            let mut last = Vec::new();
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

    fn breach(&self, text: String) {
        self.shared.state().breaches.push(text);
    }

    /// One exchange, in the trace.
    async fn ask(&self, balancer: usize, request: &Request, within: Duration) -> Answer {
        let answer = client::ask(&balancer_address(balancer % self.balancer_count), &self.schema, request, within).await;
        self.shared.trace(1, &format!("{answer:?}"));
        self.shared.state().answer_count += 1;
        if let Answer::Breach(text) = &answer {
            self.breach(text.clone());
        }
        answer
    }

    async fn init(&self, request: Request) {
        sleep(INIT_AT).await;
        loop {
            let answer = self.ask(0, &request, Duration::from_nanos(ADMIN_TIMEOUT.0)).await;
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

    async fn administer(&self, id: u32, request: Request) {
        let place = (id - ADMIN_FROM) as usize;
        let at_ns = now();
        let keep = |event: AdminEvent| {
            if let Ok(mut told) = self.told.lock() {
                told.insert(id, event);
            }
        };
        keep(AdminEvent { place, at_ns, answered_ns: None, answer: "no answer".to_owned() });
        let record = self.shared.state().recorder.begin(ADMIN_FROM, at_ns, request.clone());
        let within = Duration::from_nanos(ADMIN_TIMEOUT.0.min(self.patience_ends.saturating_sub(at_ns)));
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
        let answered_ns = matches!(answer, Answer::Reply(_)).then(now);
        keep(AdminEvent { place, at_ns, answered_ns, answer: text });
        let mut state = self.shared.state();
        let recorded = match &answer {
            Answer::Reply(answered) => state.recorder.finish(record, now(), &answered.reply),
            Answer::NotSent | Answer::Unknown | Answer::Breach(_) => state.recorder.give_up(record),
        };
        if let Err(error) = recorded {
            state.breaches.push(error.to_string());
        }
    }

    /// One operation of a client with all its attempts. Gives the last answer.
    async fn operate(&self, client: u32, balancer: usize, request: Request, within: Duration, retries: u32) -> Option<Reply> {
        let (record, request) = {
            let mut state = self.shared.state();
            let request = state.recorder.with_session(client, sayable(request));
            (state.recorder.begin(client, now(), request.clone()), request)
        };
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
            let at = now();
            if comes_again {
                let told = self.shared.state().recorder.retry(record);
                if let Err(error) = told {
                    self.breach(error.to_string());
                }
                attempt += 1;
                sleep(COME_AGAIN_AFTER).await;
                continue;
            }
            let mut state = self.shared.state();
            let (recorded, reply) = match answer {
                Answer::Reply(answered) => {
                    state.recorder.saw_token(client, &answered.seen);
                    let reply = narrowed(&state.names, &request, answered.reply);
                    (state.recorder.finish(record, at, &reply), Some(reply))
                }
                // Nothing was sent by this attempt.
                Answer::NotSent => (state.recorder.finish(record, at, &Reply::Failed(RequestError::NoServer)), None),
                Answer::Unknown | Answer::Breach(_) => (state.recorder.give_up(record), None),
            };
            if let Err(error) = recorded {
                state.breaches.push(error.to_string());
            }
            return reply;
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
        let Exchange { status, body, .. } = client::exchange(&balancer_address(0), &call, Duration::from_millis(2_000)).await.ok()?;
        if status == 200 { serde_json::from_slice(&body).ok() } else { None }
    }

    fn missing(&self) -> String {
        let map = Arc::clone(&self.shared.state().map);
        let shards: Vec<String> =
            map.shards.values().map(|shard| format!("{} is {:?}, pending {:?}", shard.name, shard.current, shard.pending)).collect();
        shards.join("; ")
    }

    /// What each server holds of a shard against what the shard is.
    async fn compare(&self, ended: &mut Ended) -> Vec<String> {
        let map = Arc::clone(&self.shared.state().map);
        let mut unequal = Vec::new();
        let mut held: BTreeMap<String, Json> = BTreeMap::new();
        for record in map.servers.values() {
            let path = format!("/read/{}", record.name);
            let call = Call { method: Method::GET, path, body: Json::Null, key: None, session: None };
            match client::exchange(&balancer_address(0), &call, END_TIMEOUT).await {
                Ok(Exchange { status: 200, body, .. }) => {
                    held.insert(record.name.to_string(), serde_json::from_slice(&body).unwrap_or(Json::Null));
                }
                other => unequal.push(format!("{} cannot be read: {other:?}", record.name)),
            }
        }
        ended.compared = 0;
        for shard in map.shards.values() {
            let mut before: Option<(&str, &Json)> = None;
            for (server, shards) in &held {
                let Some(rows) = shards.get(&*shard.name) else { continue };
                ended.compared += 1;
                match before {
                    Some((other, known)) if known != rows => {
                        unequal.push(format!("{server} and {other} hold other rows of {}", shard.name));
                    }
                    Some(_) | None => before = Some((server, rows)),
                }
            }
        }
        unequal
    }
}

/// Reads name in `seen` all that the client's session has seen; the answer speaks for the shards it asked alone.
fn narrowed(names: &twinshard_scenarios::timeline::Names, request: &Request, reply: Reply) -> Reply {
    match (request, reply) {
        (Request::Read { consistency: Consistency::Session(_), .. }, Reply::Rows(mut rows)) => {
            let queried = rows.shards_queried.clone();
            rows.seen.retain(|shard, _| queried.iter().any(|name| **name == *names.shard(*shard)));
            Reply::Rows(rows)
        }
        (_, reply) => reply,
    }
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

async fn sleep_until(at_ns: u64) {
    sleep(Duration::from_nanos(at_ns.saturating_sub(now()))).await;
}
