//! Names of requests, by which they can be followed through the logs of nodes: a client gives one in the header `X-Request-Id`, or is told
//! the one that the node made. Between nodes a part of a request has the node that asks and the number of the exchange as its name, which
//! both sides log beside it; a server, whose numbers begin anew with every start, adds who owns its store.

use axum::http::{HeaderMap, HeaderValue};
use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use twinshard_core::{
    id::NodeId,
    message::{Message, Tag, ToBalancer, ToServer},
};

/// What it is logged under; on with `TWINSHARD_LOG=info,twinshard::request=debug`.
pub const TARGET: &str = "twinshard::request";
/// The header.
pub const HEADER: &str = "x-request-id";
/// The longest name that is taken from a client.
const LENGTH_MAX: usize = 64;

/// The name of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

tokio::task_local! {
    static CURRENT: RequestId;
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl RequestId {
    /// That of the request that this task works on.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Works on a request.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// Works on what is left of a request, whose task may be another by now.
    pub async fn resume<F: Future>(id: Option<Self>, work: F) -> F::Output {
        match id {
            Some(id) => id.scope(work).await,
            None => work.await,
        }
    }

    /// As a header. `None` never: it is plain text.
    #[must_use]
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

/// Gives names.
#[derive(Clone, Debug)]
pub struct RequestIds {
    /// Tells those of this life of this node from all others.
    life: u64,
    last: Arc<AtomicU64>,
}

impl RequestIds {
    /// Names of one life of a node.
    #[must_use]
    pub fn new(life: u64) -> Self {
        Self { life, last: Arc::default() }
    }

    /// The name that the client gave, if it is one (1 to 64 letters, digits, '-', '_', '.', ':' and '/'), or a new one.
    #[must_use]
    pub fn name(&self, headers: &HeaderMap) -> RequestId {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(byte);
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        match given.filter(|given| (1..=LENGTH_MAX).contains(&given.len()) && given.as_bytes().iter().all(is_plain)) {
            Some(given) => RequestId(given.into()),
            None => RequestId(format!("{:08x}-{}", self.life, self.last.fetch_add(1, Ordering::Relaxed) + 1).into()),
        }
    }
}

/// What part of a request a message carries, and its exchange.
pub(crate) const fn asked(message: &Message) -> Option<(&'static str, Tag)> {
    match message {
        Message::ToServer(ToServer::Execute(execute)) => Some(("write", execute.tag)),
        Message::ToServer(ToServer::Read(read)) => Some(("read", read.tag)),
        Message::ToServer(ToServer::ReadOn(read)) => Some(("read", read.tag)),
        _ => None,
    }
}

/// What part of a request a message answers.
pub(crate) const fn answered(message: &Message) -> Option<(&'static str, Tag)> {
    match message {
        Message::ToBalancer(ToBalancer::Executed { tag, .. }) => Some(("write", *tag)),
        Message::ToBalancer(ToBalancer::ReadDone { tag, .. }) => Some(("read", *tag)),
        _ => None,
    }
}

/// The name of an exchange that the node asked for.
struct Exchange(NodeId, Tag);

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(node, Tag { life, number }) = self;
        match node {
            NodeId::Balancer(balancer) => write!(f, "{balancer}/{number}"),
            NodeId::Server(server) => write!(f, "{server}.{life}/{number}"),
        }
    }
}

/// A node asks another for its part of a request.
pub(crate) fn log_asked(request: &RequestId, node: NodeId, (part, tag): (&'static str, Tag), to: NodeId) {
    tracing::debug!(target: TARGET, %request, exchange = %Exchange(node, tag), part, %to, "asks");
}

/// A server heard or says something of an exchange that another node asked for.
pub(crate) fn log_exchange(asker: NodeId, exchange: Option<(&'static str, Tag)>, server: NodeId, what: &'static str) {
    if let Some((part, tag)) = exchange {
        tracing::debug!(target: TARGET, exchange = %Exchange(asker, tag), part, node = %server, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(given: &str) -> String {
        let headers = [(HEADER.parse().expect("a name"), given.parse().expect("a value"))].into_iter().collect();
        RequestIds::new(0xabc).name(&headers).to_string()
    }

    #[test]
    fn a_client_names_its_request_in_plain_words_or_is_given_a_name() {
        assert_eq!(name("order-7/a.b:c_D"), "order-7/a.b:c_D");
        for bad in ["", "two words", "tab\there", "a=b", "\"", &"x".repeat(65)] {
            assert_eq!(name(bad), "00000abc-1", "{bad}");
        }
        let ids = RequestIds::new(1);
        let none = HeaderMap::new();
        assert_eq!([ids.name(&none), ids.clone().name(&none)].map(|id| id.to_string()), ["00000001-1", "00000001-2"]);
    }
}
