//! Large answers, page by page: never more than the beginning or a page in memory. A page that fails midway breaks the chunked body off, so that it cannot be
//! taken for whole (API.md).

use super::{error::ApiError, json};
use crate::request_id::RequestId;
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use std::{future::Future, io, sync::Arc};
use twinshard_core::{
    schema::Schema,
    value::{Key, StoredRow},
};

/// An answer of so many bytes begins to stream. A guess: more than the course's reads of a whole cluster come to.
pub(super) const WHOLE_BYTES_MAX: usize = 256 << 10;

/// A page of rows and where the next begins.
pub(super) struct Page {
    pub(super) rows: Vec<StoredRow>,
    pub(super) next: Option<Key>,
}

/// How rows are written.
#[derive(Clone)]
pub(super) struct Format {
    pub(super) schema: Arc<Schema>,
    pub(super) versions: bool,
    /// One row a line, and a last line with the tail.
    pub(super) lines: bool,
}

impl Format {
    fn write(&self, rows: &[StoredRow], first: &mut bool, out: &mut Vec<u8>) {
        for stored in rows {
            if !self.lines && !std::mem::take(first) {
                out.push(b',');
            }
            json::write_row(&self.schema, stored, self.versions, out);
            if self.lines {
                out.push(b'\n');
            }
        }
    }

    const fn content_type(&self) -> &'static str {
        if self.lines { "application/x-ndjson" } else { "application/json" }
    }
}

/// One list of rows in the answer: what stands before it, and the page it begins with.
pub(super) struct Section {
    pub(super) head: Vec<u8>,
    pub(super) first: Page,
}

/// What to fetch next.
#[derive(Clone, Debug)]
pub(super) enum Want {
    /// The page of the section that begins at this key; so many rows are left to give. One more is asked for: it shows whether that is all.
    /// `streams`: the answer's beginning is on its way.
    Page { section: usize, from: Key, left: Option<u32>, streams: bool },
    /// The beginning of a section.
    Section(usize),
}

/// What was fetched.
pub(super) enum Got {
    Page(Page),
    Section(Section),
}

/// Writes sections one after another and then the tail, which is told where the rows ended if a limit ended them.
pub(super) async fn answer<F, Fut>(
    format: Format,
    sections: usize,
    limit: Option<u32>,
    fetch: F,
    tail: impl Fn(Option<Key>) -> Vec<u8> + Send + Sync + 'static,
) -> Result<Response, ApiError>
where
    F: Fn(Want) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Got, ApiError>> + Send,
{
    let content_type = format.content_type();
    let state = State { section: 0, first: true, left: limit, next: None, started: false, streams: false };
    send(content_type, (format, fetch, tail, state), move |(format, fetch, tail, mut state), streams, mut out| async move {
        state.streams = streams;
        let whole = step(&format, sections, &fetch, &tail, &mut state, &mut out).await?;
        Ok((out, (!whole).then_some((format, fetch, tail, state))))
    })
    .await
}

/// Sends what `step` writes, piece by piece, until it has nothing left to write. It is told whether the answer's beginning is on its way.
pub(super) async fn send<S, F, Fut>(content_type: &'static str, state: S, step: F) -> Result<Response, ApiError>
where
    S: Send + 'static,
    F: Fn(S, bool, Vec<u8>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(Vec<u8>, Option<S>), ApiError>> + Send,
{
    let (mut out, mut left) = (Vec::new(), Some(state));
    // Small answers are whole, and errors so far have a status code of their own.
    while let Some(state) = left.take_if(|_| out.len() < WHOLE_BYTES_MAX) {
        (out, left) = step(state, false, out).await?;
    }
    let content_type = [(header::CONTENT_TYPE, content_type)];
    let Some(left) = left else { return Ok((content_type, Body::from(out)).into_response()) };
    // The rest is fetched by the task that sends it, and still a part of this request.
    let id = RequestId::current();
    let rest = stream::unfold(Some((left, step)), move |work| {
        let id = id.clone();
        async move {
            let (state, step) = work?;
            Some(match RequestId::resume(id, step(state, true, Vec::new())).await {
                Ok((out, left)) => (Ok(Bytes::from(out)), left.map(|left| (left, step))),
                Err(error) => {
                    tracing::warn!(?error, "an answer broke off");
                    (Err(io::Error::other("the answer broke off")), None)
                }
            })
        }
    });
    let begun = stream::once(std::future::ready(Ok(Bytes::from(out))));
    Ok((content_type, Body::from_stream(futures_util::StreamExt::chain(begun, rest))).into_response())
}

struct State {
    section: usize,
    first: bool,
    left: Option<u32>,
    next: Option<Key>,
    started: bool,
    streams: bool,
}

/// Fetches and writes until a page is not the last of its section, or all is written (`true`).
async fn step<F, Fut>(
    format: &Format,
    sections: usize,
    fetch: &F,
    tail: &(impl Fn(Option<Key>) -> Vec<u8> + Send + Sync),
    state: &mut State,
    out: &mut Vec<u8>,
) -> Result<bool, ApiError>
where
    F: Fn(Want) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Got, ApiError>> + Send,
{
    loop {
        if !state.started && state.section >= sections {
            out.extend(tail(None));
            return Ok(true);
        }
        let want = match state.next {
            Some(from) => Want::Page { section: state.section, from, left: state.left, streams: state.streams },
            None => Want::Section(state.section),
        };
        let page = match fetch(want).await? {
            Got::Page(page) => page,
            Got::Section(Section { head, first }) => {
                out.extend(head);
                state.started = true;
                state.first = true;
                first
            }
        };
        let rows_max = state.left.map_or(usize::MAX, |left| left as usize);
        let rows = &page.rows[..page.rows.len().min(rows_max)];
        format.write(rows, &mut state.first, out);
        if let Some(left) = &mut state.left {
            *left = left.saturating_sub(u32::try_from(rows.len()).unwrap_or(u32::MAX));
        }
        // The row after the limit shows that there are more, and is where to go on.
        if let Some(beyond) = page.rows.get(rows.len()) {
            out.extend(tail(Some(beyond.row.key)));
            return Ok(true);
        }
        match page.next {
            Some(next) => {
                state.next = Some(next);
                return Ok(false);
            }
            None => {
                state.next = None;
                state.started = false;
                state.section += 1;
            }
        }
    }
}
