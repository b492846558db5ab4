//! /read and /read/{server}. An answer of several pages is, of each shard, of one index; where that cannot be gone on with, it begins anew as
//! long as nothing was given out, else it breaks off.

use super::{
    App, key_field, section_head, sections_tail,
    session::{SESSION, read_position, seen_with, session, with_headers},
    unexpected,
};
use crate::http::{
    Answer, allow,
    error::ApiError,
    fields,
    held::Held,
    json, json_response,
    stream::{self, Format, Got, Page, Section, Want},
};
use crate::shown;
use axum::{
    extract::{Request, State},
    http::{Method, StatusCode, header},
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::time::Instant;
use twinshard_core::{
    id::{LogIndex, ShardId},
    map::ClusterMap,
    paging::Paging,
    request::{Consistency, Reply, Request as Asked, Rows},
    value::{Key, KeyRange},
};

/// The most rows that `limit` may ask for.
const LIMIT_MAX: u64 = 1_000_000;
/// What an answer with a cursor says of the request that goes on there.
const CURSOR_PROMISE: &str = "key-order";

/// Whether an Accept header names the format of one row a line.
fn wants_lines(accept: &str) -> bool {
    accept.split(',').filter_map(|media| media.split(';').next()).any(|media| media.trim().eq_ignore_ascii_case("application/x-ndjson"))
}

/// What a client reads.
struct Wanted {
    range: KeyRange,
    limit: Option<u32>,
    consistency: Consistency,
    /// What its session had seen before.
    session: BTreeMap<ShardId, LogIndex>,
    in_session: bool,
    format: Format,
}

pub(super) async fn read(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET, Method::POST])?;
    let lines = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(wants_lines);
    let call = app.call_of_rows(request, fields::READ).await?;
    let schema = app.schema().await?;
    let (value, name) = key_field(&call, &schema)?;
    let mut range = json::range(value, &name)?;
    let limit = json::optional_count(&call.json, "limit")?;
    if limit.is_some_and(|limit| limit == 0 || limit > LIMIT_MAX) {
        return Err(ApiError::invalid(format!("'limit' must be from 1 to {LIMIT_MAX}")));
    }
    let limit = limit.and_then(|limit| u32::try_from(limit).ok());
    if let Some(cursor) = call.json.get("cursor").filter(|cursor| !cursor.is_null()) {
        let cursor = json::key(cursor, "cursor")?;
        if !range.contains(cursor) {
            return Err(ApiError::invalid("'cursor' is not one of this range"));
        }
        range.low = cursor;
    }
    let session = session(&call)?;
    let consistency = json::consistency(&call.json, &session)?;
    let in_session = call.parts.headers.contains_key(SESSION) || matches!(consistency, Consistency::Session(_));
    let format = Format { schema, versions: json::flag(&call.json, "versions")?, lines };
    let wanted = Wanted { range, limit, consistency, session, in_session, format };
    let deadline = Instant::now() + app.settings.request_timeout;
    loop {
        match whole(&app, &wanted, deadline).await {
            // What was pinned is gone, and nothing was given out: another replica may do.
            Err(error) if error.is("read-cut") && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

/// One attempt.
async fn whole(app: &App, wanted: &Wanted, deadline: Instant) -> Answer {
    let Wanted { range, limit, ref consistency, ref session, in_session, ref format } = *wanted;
    let map = app.map()?;
    let reading = Arc::new(Reading::new(app.clone(), consistency.clone()));
    let first = reading.page(range, limit, deadline, false).await?;
    let names = first.shards_queried.clone();
    let (lines, versions) = (format.lines, format.versions);
    let mut head = Vec::new();
    if !lines {
        head.extend_from_slice(b"{\"shards_queried\":");
        head.extend_from_slice(json!(names).to_string().as_bytes());
        head.extend_from_slice(b",\"data\":[");
    }
    let (session_before, of_tail, read) = (session.clone(), consistency.clone(), Arc::clone(&reading));
    let tail = move |next: Option<Key>| {
        let mut tail = Map::new();
        if lines {
            tail.insert("shards_queried".to_owned(), json!(names));
        }
        if let Some(next) = next {
            tail.insert("next_cursor".to_owned(), json!(next.0.to_string()));
            tail.insert("cursor_promise".to_owned(), json!(CURSOR_PROMISE));
        }
        let progress = read.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = progress.paging.seen();
        if of_tail == Consistency::Stale || versions {
            tail.insert("index".to_owned(), by_name(&map, seen.iter().map(|(shard, index)| (*shard, index.0))));
        }
        if of_tail == Consistency::Stale {
            let lag = progress.paging.lag();
            tail.insert("lag".to_owned(), by_name(&map, lag.iter().map(|(shard, lag)| (*shard, *lag))));
        }
        // The headers were sent before the rest was seen.
        if progress.streams {
            if versions {
                tail.insert("position".to_owned(), json!(read_position(seen)));
            }
            if in_session {
                let seen = seen_with(session_before.clone(), Some(&of_tail), seen.clone());
                tail.insert("session".to_owned(), json!(json::write_session_token(&seen)));
            }
        }
        tail.insert("status".to_owned(), json!("success"));
        let tail = Value::Object(tail).to_string();
        if lines { format!("{tail}\n").into_bytes() } else { format!("],{}", &tail[1..]).into_bytes() }
    };
    let first = Mutex::new(Some(Section { head, first: Page { rows: first.rows, next: first.next } }));
    let fetched = Arc::clone(&reading);
    let fetch = move |want: Want| {
        let begun = match &want {
            Want::Section(_) => first.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Want::Page { .. } => None,
        };
        let reading = Arc::clone(&fetched);
        async move {
            match (want, begun) {
                (_, Some(section)) => Ok(Got::Section(section)),
                (Want::Page { from, left, streams, .. }, None) => {
                    let range = KeyRange { low: from, high: range.high };
                    // Once it streams each page has its own deadline: a large answer takes as long as its client reads.
                    let deadline = if streams { Instant::now() + reading.app.settings.request_timeout } else { deadline };
                    let rows = reading.page(range, left, deadline, streams).await?;
                    Ok(Got::Page(Page { rows: rows.rows, next: rows.next }))
                }
                (Want::Section(_), None) => Err(ApiError::invalid("there is one section")),
            }
        }
    };
    let response = stream::answer(format.clone(), 1, limit, fetch, tail).await?;
    let seen = reading.progress.lock().unwrap_or_else(PoisonError::into_inner).paging.seen().clone();
    let position = read_position(&seen);
    Ok(with_headers(response, &seen_with(session.clone(), Some(consistency), seen), &position))
}

fn by_name(map: &ClusterMap, values: impl Iterator<Item = (ShardId, u64)>) -> Value {
    let name = |shard: ShardId| map.shards.get(&shard).map_or_else(|| shard.to_string(), |record| record.name.to_string());
    Value::Object(values.map(|(shard, value)| (name(shard), json!(value))).collect())
}

/// An answer of several pages under way.
struct Reading {
    app: App,
    held: Held<Asked, Reply>,
    progress: Mutex<Progress>,
}

struct Progress {
    paging: Paging,
    streams: bool,
}

impl Reading {
    fn new(app: App, consistency: Consistency) -> Self {
        let held = Held::new(app.handle.clone(), Asked::EndRead);
        let paging = Paging::new(app.settings.page_rows, consistency);
        Self { app, held, progress: Mutex::new(Progress { paging, streams: false }) }
    }

    async fn page(&self, range: KeyRange, left: Option<u32>, deadline: Instant, streams: bool) -> Result<Rows, ApiError> {
        let request = self.progress.lock().unwrap_or_else(PoisonError::into_inner).paging.request(range, left);
        match self.app.ask(request, deadline.saturating_duration_since(Instant::now())).await? {
            Reply::Rows(rows) => {
                self.held.set(rows.pinned);
                let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.streams = streams;
                progress.paging.take(&rows).map_err(|mixed| {
                    tracing::error!(%mixed, "pages of two moments in one answer");
                    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", mixed.to_string())
                })?;
                Ok(*rows)
            }
            other => Err(unexpected(&other)),
        }
    }
}

pub(super) async fn read_server(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    // As it stands: no name of a server has anything to decode.
    let server: Box<str> = shown::echo(request.uri().path().trim_start_matches("/read/")).into();
    let deadline = Instant::now() + app.settings.request_timeout;
    loop {
        match held_by(&app, server.clone()).await {
            Err(error) if error.is("read-cut") && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

async fn held_by(app: &App, server: Box<str>) -> Answer {
    let held = Arc::new(Held::new(app.handle.clone(), Asked::EndRead));
    let ask = |app: App, server: Box<str>, shard: Option<Box<str>>, from: Key, held: Arc<Held<Asked, Reply>>| async move {
        let range = KeyRange { low: from, high: KeyRange::ALL.high };
        let (limit, pinned) = (app.settings.page_rows, held.get());
        let request = Asked::ReadServer { server, shard, range, limit, wanted: u32::MAX, pinned };
        match app.ask(request, app.settings.request_timeout).await? {
            Reply::ServerRows { shards, rows, next, pinned, .. } => {
                held.set(pinned);
                Ok((shards, Page { rows, next }))
            }
            other => Err(unexpected(&other)),
        }
    };
    let (shards, _) = ask(app.clone(), server.clone(), None, KeyRange::ALL.low, Arc::clone(&held)).await?;
    let schema = app.map()?.schema.clone().map(Arc::new);
    let Some(schema) = schema else { return Ok(json_response(StatusCode::OK, &json!({ "status": "success" }))) };
    let format = Format { schema, versions: false, lines: false };
    let count = shards.len();
    let app = app.clone();
    let fetch = move |want: Want| {
        let (section, from) = match want {
            Want::Section(section) => (section, KeyRange::ALL.low),
            Want::Page { section, from, .. } => (section, from),
        };
        let begins = matches!(want, Want::Section(_));
        let name = shards[section].clone();
        let asked = ask(app.clone(), server.clone(), Some(name.clone()), from, Arc::clone(&held));
        async move {
            let (_, page) = asked.await?;
            Ok(if begins { Got::Section(Section { head: section_head(&name, section), first: page }) } else { Got::Page(page) })
        }
    };
    stream::answer(format, count, None, fetch, move |_| sections_tail(count)).await
}
