//! An HTTP client over any network: one exchange on a connection of its own, with a deadline. A lost segment wedges its stream for ever in
//! turmoil, which sends nothing again, so no connection outlives a request.

use super::{
    World,
    spelling::{self, Spelled},
    wire::{self, Answered, POSITION, SESSION, Told},
};
use crate::net::Network;
use bytes::Bytes;
use http::{Request as HttpRequest, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{future::pending, time::Duration};
use tokio::time::timeout;
use twinshard_core::{request::Request, schema::Schema};

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// An answer.
    Reply(Box<Answered>),
    /// Nobody listens there: nothing was sent.
    NotSent,
    /// No answer, or half of one: what was asked for may have been done.
    Unknown,
    /// An answer that API.md does not have. The text says why.
    Breach(String),
}

/// What an exchange brought.
#[derive(Debug)]
pub struct Exchange {
    /// The status code.
    pub status: u16,
    /// The session token, and the position of the answer itself.
    pub told: Told,
    /// The body, whole.
    pub body: Bytes,
}

/// Asks a balancer.
pub async fn ask(world: &impl World, address: &str, schema: &Schema, request: &Request, within: Duration) -> Answer {
    let Some(call) = wire::call(schema, request) else {
        return Answer::Breach(format!("HTTP cannot say {request:?}"));
    };
    match exchange(world, address, &call, within).await {
        Ok(Exchange { status, told, body }) => match wire::answered(schema, request, status, &told, &body) {
            Ok(answered) => Answer::Reply(Box::new(answered)),
            Err(text) => Answer::Breach(text),
        },
        Err(true) => Answer::Unknown,
        Err(false) => Answer::NotSent,
    }
}

/// One call and its answer. The error says whether anything was sent.
///
/// # Errors
/// No whole answer came in time.
pub async fn exchange(world: &impl World, address: &str, call: &wire::Call, within: Duration) -> Result<Exchange, bool> {
    let mut sent = false;
    let done =
        timeout(within, carry(world, address, (spelling::spelled(call), call.key.as_deref(), call.session.as_deref()), &mut sent)).await;
    match done {
        Ok(Some(exchange)) => Ok(exchange),
        Ok(None) | Err(_) => Err(sent),
    }
}

/// A request that is no call, and its answer.
///
/// # Errors
/// As [`exchange`].
pub async fn send(world: &impl World, address: &str, spelled: Spelled, within: Duration) -> Result<Exchange, bool> {
    let mut sent = false;
    let done = timeout(within, carry(world, address, (spelled, None, None), &mut sent)).await;
    match done {
        Ok(Some(exchange)) => Ok(exchange),
        Ok(None) | Err(_) => Err(sent),
    }
}

async fn carry(
    world: &impl World,
    address: &str,
    (spelled, key, session): (Spelled, Option<&str>, Option<&str>),
    sent: &mut bool,
) -> Option<Exchange> {
    let stream = world.network().connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.ok()?;
    let mut request = HttpRequest::builder()
        .method(spelled.method)
        .uri(spelled.path)
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    if let Some(session) = session {
        request = request.header(SESSION, session);
    }
    if let Some(authorization) = world.authorization() {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Full::new(spelled.body)).ok()?;
    *sent = true;
    let exchange = async {
        let response: Response<Incoming> = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let told = Told { session: header(SESSION), position: header(POSITION) };
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some(Exchange { status, told, body })
    };
    // The connection only carries: the exchange says how it ended.
    let carrying = async {
        let _ = connection.await;
        pending::<()>().await;
    };
    tokio::select! {
        biased;
        done = exchange => done,
        () = carrying => None,
    }
}
