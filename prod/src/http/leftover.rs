//! What a handler leaves unread of a request's body. Where the rest is there, it is read and dropped, and the connection goes on; an answer
//! never waits for one that is still to come.

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::header,
};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// How long what is on its way may take. A guess: more than one round trip to most clients, less than anybody notices.
const REST_TIMEOUT: Duration = Duration::from_millis(20);

/// Where a body goes when its handler drops it unread.
#[derive(Clone, Debug, Default)]
pub(super) struct Leftover(Arc<Mutex<Option<Body>>>);

/// The request with a body that comes back.
pub(super) fn watch(request: Request) -> (Request, Leftover) {
    let leftover = Leftover::default();
    // Whoever waits for leave to send has sent nothing, and is to be told before it does.
    if request.headers().contains_key(header::EXPECT) {
        return (request, leftover);
    }
    let back = leftover.clone();
    (request.map(|body| Body::new(Watched { body: Some(body), leftover: back })), leftover)
}

impl Leftover {
    /// Reads what came back; whether that was all of it.
    pub(super) async fn drain(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = body else { return true };
        let read = async { while let Some(Ok(_)) = body.frame().await {} };
        timeout(REST_TIMEOUT, read).await.is_ok()
    }
}

struct Watched {
    body: Option<Body>,
    leftover: Leftover,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !http_body::Body::is_end_stream(body)) {
            *self.leftover.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
