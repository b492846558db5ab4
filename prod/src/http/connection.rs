//! One connection as hyper reads and writes it: how long it may be without a request, a head may take to come, and an answer to be read; and
//! what hyper says by itself to whoever does not speak HTTP/1.1: a status and nothing else, or nothing at all. Every refusal is JSON, so it
//! is given its body on its way out. Never touches what a router answered.

use super::{
    error::ApiError,
    serve::{HEAD_BYTES_MAX, Places},
};
use axum::http::StatusCode;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep},
};

/// No router answers an error without a body, so a head with this line is hyper's own.
const NO_BODY: &str = "content-length: 0";
/// The most headers that hyper reads.
const HEADERS_MAX: usize = 100;

/// What is happening on a connection, as its service and its stream tell each other.
#[derive(Debug, Default)]
pub(super) struct Phase {
    /// Requests that are not answered yet: one, or none.
    serving: AtomicUsize,
    /// Whether what still comes is to be read after the end.
    lingers: AtomicBool,
    /// The places of clients, if this connection has none of them.
    spare_of: Option<Places>,
}

/// A request until its answer begins.
#[derive(Debug)]
pub(super) struct Serving(Arc<Phase>);

impl Phase {
    pub(super) fn new(spare_of: Option<Places>) -> Arc<Self> {
        Arc::new(Self { spare_of, ..Self::default() })
    }

    pub(super) fn begin(phase: &Arc<Self>) -> Serving {
        phase.serving.fetch_add(1, Ordering::Relaxed);
        Serving(Arc::clone(phase))
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed) > 0
    }

    /// The answer does not wait for the end of its request.
    pub(super) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    pub(super) fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// Whether it has no place among those of clients.
    pub(super) const fn is_spare(&self) -> bool {
        self.spare_of.is_some()
    }

    /// Whether there is no place for a client's request, either.
    pub(super) fn has_no_place(&self) -> bool {
        self.spare_of.as_ref().is_some_and(|places| !places.are_free())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream whose client has to ask and to read in time, and whose empty refusals get a body.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    phase: Arc<Phase>,
    /// What is still to be written in place of what hyper wrote.
    left: Vec<u8>,
    /// How much hyper wrote.
    replaced_bytes: usize,
    /// Whether anything was written.
    has_spoken: bool,
    /// Whether something of a head has come.
    head_begun: bool,
    /// Whether the rest of it did not come in time.
    head_is_late: bool,
    /// Bytes and lines that came since something was written.
    heard: (usize, usize),
    /// How long a head may take, and the other side may take no byte of what is written.
    patience: Duration,
    /// How long there may be no request.
    idle_timeout: Duration,
    /// When one of the two is over.
    waits: Option<Pin<Box<Sleep>>>,
    /// When writing takes too long; nothing while the other side takes some.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Connection<S> {
    pub(super) const fn new(stream: S, phase: Arc<Phase>, patience: Duration, idle_timeout: Duration) -> Self {
        Self {
            stream,
            phase,
            left: Vec::new(),
            replaced_bytes: 0,
            has_spoken: false,
            head_begun: false,
            head_is_late: false,
            heard: (0, 0),
            patience,
            idle_timeout,
            waits: None,
            stalled: None,
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// These bytes came.
    fn hear(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.heard.0 <= HEAD_BYTES_MAX {
            self.heard.1 += bytes.iter().filter(|byte| **byte == b'\n').count();
        }
        self.heard.0 = self.heard.0.saturating_add(bytes.len());
        if !self.head_begun && !self.phase.is_serving() {
            self.head_begun = true;
            self.waits = None;
        }
    }

    /// Something is written: what came before is answered.
    fn speak(&mut self) {
        self.has_spoken = true;
        self.head_begun = false;
        self.heard = (0, 0);
        self.waits = None;
    }

    /// An answer is out. Hyper reads again when it is woken, and by then nothing may have come: so it has to be.
    fn rest(&mut self, context: &mut Context<'_>) {
        if !self.head_begun && !self.phase.is_serving() {
            let idle_timeout = self.idle_timeout;
            // What it says is asked when hyper reads.
            let _ = self.waits.get_or_insert_with(|| Box::pin(sleep(idle_timeout))).as_mut().poll(context);
        }
    }

    /// Nothing has come. A client that says nothing is hung up on without a word; one that stops midway is told.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase.is_serving() {
            self.head_begun = false;
            self.waits = None;
            return Poll::Pending;
        }
        let longest = if self.head_begun { self.patience } else { self.idle_timeout };
        ready!(self.waits.get_or_insert_with(|| Box::pin(sleep(longest))).as_mut().poll(context));
        if !self.head_begun {
            return Poll::Ready(Ok(()));
        }
        self.head_is_late = true;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head does not come")))
    }
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    /// Says why the connection ends, where hyper ended it without a word: to a head that did not come in time, and to another protocol.
    /// After an answer there is nothing to say.
    pub(super) async fn explain(&mut self, ended: &hyper::Error) -> io::Result<()> {
        let refusal = match (self.has_spoken, self.head_is_late, ended.is_parse()) {
            (false, true, _) => ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow-headers", "The headers did not come in time"),
            (false, false, true) => bad_http(StatusCode::BAD_REQUEST),
            (true, ..) | (false, false, false) => return Ok(()),
        };
        let head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", refusal.status());
        let answer = answer(head.as_bytes(), &refusal);
        self.write_all(&answer).await?;
        self.shutdown().await
    }
}

fn bad_http(status: StatusCode) -> ApiError {
    ApiError::new(status, "bad-http", "This is not a request of HTTP/1.1")
}

/// All of an answer whose head begins so.
fn answer(head: &[u8], refusal: &ApiError) -> Vec<u8> {
    let body = refusal.body().to_string();
    let mut end = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in super::guard::ALWAYS {
        end.push_str(&format!("{name}: {value}\r\n"));
    }
    [head, end.as_bytes(), b"\r\n", body.as_bytes()].concat()
}

/// The refusal with a body, if these bytes are one without. `is_small`: what it is for was a head of the usual size.
fn with_body(bytes: &[u8], is_small: bool) -> Option<Vec<u8>> {
    // What begins otherwise is not looked through.
    let status = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    let status = StatusCode::from_bytes(status).ok().filter(StatusCode::is_client_error)?;
    let lines = str::from_utf8(bytes.strip_suffix(b"\r\n\r\n")?).ok()?;
    let lines: Vec<&str> = lines.split("\r\n").collect();
    if !lines.contains(&NO_BODY) {
        return None;
    }
    let head: String = lines.iter().filter(|line| **line != NO_BODY).flat_map(|line| [line, "\r\n"]).collect();
    let refusal = match status {
        StatusCode::URI_TOO_LONG => ApiError::new(status, "path-too-long", "The path is too long"),
        // So hyper calls a Content-Length beyond 64 bits, too.
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if is_small => {
            let words = "The Content-Length is larger than any body allowed";
            let refusal = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", words);
            return Some(answer(format!("HTTP/1.1 {}\r\nconnection: close\r\n", refusal.status()).as_bytes(), &refusal));
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::new(status, "headers-too-large", "The headers are too many or too long"),
        _ => bad_http(status),
    };
    Some(answer(head.as_bytes(), &refusal))
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    fn poll_replaced(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while !self.left.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left.drain(..written);
        }
        Poll::Ready(Ok(self.replaced_bytes))
    }

    /// What became of a write, or that nothing did for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let patience = self.patience;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }

    /// Whether these bytes are replaced, or those before them are not yet.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.left.is_empty()
            && let Some(answer) = with_body(bytes, self.heard.0 < HEAD_BYTES_MAX && self.heard.1 <= HEADERS_MAX)
        {
            self.left = answer;
            self.replaced_bytes = bytes.len();
        }
        !self.left.is_empty()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = bytes.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, bytes) {
            Poll::Ready(read) => {
                self.hear(&bytes.filled()[before..]);
                Poll::Ready(read)
            }
            Poll::Pending => self.wait(context),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let replaces = self.replaces(bytes);
        self.speak();
        let written = if replaces { self.poll_replaced(context) } else { Pin::new(&mut self.stream).poll_write(context, bytes) };
        self.in_time(context, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        let replaces = self.replaces(first);
        self.speak();
        let written = if replaces { self.poll_replaced(context) } else { Pin::new(&mut self.stream).poll_write_vectored(context, slices) };
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.rest(context);
        }
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.in_time(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_refusals_get_a_body() {
        let bare = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: Tue\r\n\r\n";
        let answer = String::from_utf8(with_body(bare, false).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("\r\ncross-origin-resource-policy: same-origin"), "{head}");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ndate: Tue\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["code"], "bad-http");
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n",
            b"content-length: 0\r\n\r\n",
            b"",
        ] {
            assert_eq!(with_body(other, false), None);
        }
    }
}
