//! What hyper says by itself to whoever does not speak HTTP/1.1: a status and nothing else, or nothing at all. Every refusal is JSON
//! (API.md), so it is given its body on its way out. Never touches what a router answered; a client that does not read it is let go.

use super::error::ApiError;
use axum::http::StatusCode;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep},
};

/// No router answers an error without a body, so this end of a head is hyper's own.
const HEAD_END: &[u8] = b"content-length: 0\r\n\r\n";

/// A stream whose empty refusals get a body, and whose reader has to read.
#[derive(Debug)]
pub(super) struct Spoken<S> {
    stream: S,
    /// What is still to be written in place of what hyper wrote.
    left: Vec<u8>,
    /// How much hyper wrote.
    replaced_bytes: usize,
    /// Whether anything was written.
    has_spoken: bool,
    /// How long the other side may take no byte of what is written.
    write_timeout: Duration,
    /// When that is over; nothing while it takes some.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Spoken<S> {
    pub(super) const fn new(stream: S, write_timeout: Duration) -> Self {
        Self { stream, left: Vec::new(), replaced_bytes: 0, has_spoken: false, write_timeout, stalled: None }
    }
}

impl<S: AsyncWrite + Unpin> Spoken<S> {
    /// Says why the connection ends, where hyper ended it without a word: to a head that did not come in time, and to another protocol.
    /// After an answer there is nothing to say: an idle connection ends, too.
    pub(super) async fn explain(mut self, ended: &hyper::Error) -> io::Result<()> {
        let refusal = match (self.has_spoken, ended.is_timeout(), ended.is_parse()) {
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
    let end = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    [head, end.as_bytes()].concat()
}

/// The refusal with a body, if these bytes are one without.
fn with_body(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.strip_suffix(HEAD_END)?;
    let status = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    let status = StatusCode::from_bytes(status).ok().filter(StatusCode::is_client_error)?;
    let refusal = match status {
        StatusCode::URI_TOO_LONG => ApiError::new(status, "path-too-long", "The path is too long"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::new(status, "headers-too-large", "The headers are too many or too long"),
        _ => bad_http(status),
    };
    Some(answer(head, &refusal))
}

impl<S: AsyncWrite + Unpin> Spoken<S> {
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
        let write_timeout = self.write_timeout;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout))).as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }

    /// Whether these bytes are replaced, or those before them are not yet.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.left.is_empty()
            && let Some(answer) = with_body(bytes)
        {
            self.left = answer;
            self.replaced_bytes = bytes.len();
        }
        !self.left.is_empty()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Spoken<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, bytes)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Spoken<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.has_spoken = true;
        let written =
            if self.replaces(bytes) { self.poll_replaced(context) } else { Pin::new(&mut self.stream).poll_write(context, bytes) };
        self.in_time(context, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.has_spoken = true;
        let first = slices.first().map_or(&[][..], |slice| slice);
        let written = if self.replaces(first) {
            self.poll_replaced(context)
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(context, slices)
        };
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
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
        let bare = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let answer = String::from_utf8(with_body(bare).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["code"], "bad-http");
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n",
            b"content-length: 0\r\n\r\n",
            b"",
        ] {
            assert_eq!(with_body(other), None);
        }
    }
}
