//! The routers with a machine that is played: what a real cluster shows rarely or never.

mod connections;
mod refusals;
mod requests;
mod streams;

use super::{serve::DRAIN_TIMEOUT, *};
use crate::{
    handle::{Ask, BalancerHandle, ServerHandle},
    net::{Network, TokioNetwork},
    telemetry::Telemetry,
};
use axum::Router;
use http_body_util::BodyExt;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinHandle,
};
use tower::ServiceExt;
use twinshard_core::{
    id::{LogIndex, MapVersion, ShardId},
    map::{ClusterMap, ShardRecord},
    request::{Reply, Request as Asked, Rows},
    schema::{Column, ColumnType, Schema},
    value::{Key, Row, StoredRow, Value as Held},
};

/// Two shards of 1,000 keys, and one column beside the key.
fn map() -> ClusterMap {
    let column = |name: &str, dtype| Column { name: name.into(), dtype };
    let schema = Schema::new(vec![column("Stud_id", ColumnType::Number), column("Stud_name", ColumnType::String)]).expect("a schema");
    let shard = |number: u64| {
        let name = format!("sh{number}").into();
        let low = Key(i64::try_from(number - 1).expect("small") * 1_000);
        let placement = Default::default();
        (ShardId(number), ShardRecord { name, low, size: 1_000, current: None, pending: None, placement, wanted_primary: None })
    };
    ClusterMap { schema: Some(schema), shards: [shard(1), shard(2)].into(), ..ClusterMap::default() }
}

/// A balancer's router, and the machine behind it that answers with `answer`; where it has none, it is silent.
fn played(settings: HttpSettings, mut answer: impl FnMut(Asked) -> Option<Reply> + Send + 'static) -> (Router, JoinHandle<()>) {
    let (known, map) = watch::channel(Some((MapVersion(1), Arc::new(map()))));
    let (handle, mut asks) = BalancerHandle::new(map, Telemetry::default());
    let machine = tokio::spawn(async move {
        let _known = known;
        let mut unanswered = Vec::new();
        while let Some(Ask { request, reply, .. }) = asks.recv().await {
            match answer(request) {
                Some(answer) => drop(reply.send(answer)),
                None => unanswered.push(reply),
            }
        }
    });
    (balancer::router(handle, settings), machine)
}

/// The same with two such writes at the machine, which is silent: and what these are told in the end.
async fn with_two_waiting(settings: HttpSettings, write: &'static str) -> (Router, JoinHandle<()>, Vec<JoinHandle<u16>>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let (router, machine) = played(settings, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    let asked = || {
        let router = router.clone();
        tokio::spawn(async move { ask(&router, request("POST", "/write", write)).await.status().as_u16() })
    };
    let waiting = vec![asked(), asked()];
    while taken.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    (router, machine, waiting)
}

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request {
    let builder = Request::builder().method(method).uri(path).header("host", "localhost");
    builder.body(body.into()).expect("a request")
}

async fn ask(router: &Router, request: Request) -> Response {
    router.clone().oneshot(request).await.expect("routers cannot fail")
}

/// Status and body; that the body came whole and is JSON is asserted.
async fn json_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    (status, serde_json::from_slice(&body).expect("JSON"))
}

/// Serves the router on a socket, says this to it, and waits until it hangs up.
async fn exchange(router: Router, settings: HttpSettings, words: &[u8]) -> Vec<u8> {
    let (stop, stopped) = watch::channel(false);
    let listener = TokioNetwork.listen("127.0.0.1:0").await.expect("a port");
    let address = TokioNetwork::local_address(&listener).expect("an address");
    let serving = tokio::spawn(serve::<TokioNetwork>(listener, router, settings, stopped));
    let mut client = tokio::net::TcpStream::connect(address).await.expect("a connection");
    client.write_all(words).await.expect("sent");
    let mut answer = Vec::new();
    // Neither an end nor a reset says that an answer is whole.
    let _ = client.read_to_end(&mut answer).await;
    stop.send_replace(true);
    serving.await.expect("served");
    answer
}

fn page(keys: std::ops::Range<i64>, text: &str, next: Option<i64>) -> Reply {
    let row = |key| StoredRow { version: Default::default(), row: Row { key: Key(key), values: vec![Held::Text(text.into())] } };
    Reply::Rows(Box::new(Rows {
        shards_queried: vec!["sh1".into(), "sh2".into()],
        rows: keys.map(row).collect(),
        next: next.map(Key),
        seen: BTreeMap::from([(ShardId(1), LogIndex(7))]),
        ..Rows::default()
    }))
}
