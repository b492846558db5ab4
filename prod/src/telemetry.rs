//! What a node tells people about itself: counters and histograms in the OpenMetrics text format, and the newest notes of its machine.
//! Nothing here is ever read by a machine. Times are tokio's, so that a simulated node tells simulated ones.

use crate::driver::StorageWork;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use twinshard_core::effect::Note;

/// How many notes are kept. The newest take the place of the oldest.
pub const EVENTS_MAX: usize = 1_024;

/// A note, its number (from 1, without gaps) and when it was taken.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number in the life of this node.
    pub number: u64,
    /// When.
    pub at: Instant,
    /// What.
    pub note: Note,
}

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: String,
    /// The route, not the path: there are only so many.
    path: String,
    status: u16,
}

/// Labels of a piece of work of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Work {
    work: &'static str,
}

/// Labels of a note.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// Labels of what belongs to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfReplica {
    /// The shard's name.
    pub shard: String,
    /// The server's name.
    pub server: String,
}

/// Labels of what belongs to a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfShard {
    /// Its name.
    pub shard: String,
}

/// Labels of what belongs to a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfServer {
    /// Its name.
    pub server: String,
}

/// What one node has counted and noted. Clones share it.
#[derive(Clone)]
pub struct Telemetry {
    requests: Family<Asked, Histogram, fn() -> Histogram>,
    storage: Family<Work, Histogram, fn() -> Histogram>,
    notes: Family<Kind, Counter>,
    registry: Arc<Registry>,
    events: Arc<Mutex<VecDeque<Event>>>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry(..)")
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        // From a quarter of a millisecond to a deadline, in factors of two.
        let requests = Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.000_25, 2.0, 17))) as fn() -> Histogram);
        let storage = Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.000_05, 2.0, 17))) as fn() -> Histogram);
        let notes = Family::<Kind, Counter>::default();
        let mut registry = Registry::with_prefix("twinshard");
        let help = "Time from the head of a request to the head of its answer";
        registry.register_with_unit("http_request", help, Unit::Seconds, requests.clone());
        let help = "Time that a store worked: persist is one fsync of the log, with everything that came together";
        registry.register_with_unit("storage", help, Unit::Seconds, storage.clone());
        registry.register("events", "What the machine of this node noted", notes.clone());
        Self { requests, storage, notes, registry: Arc::new(registry), events: Arc::default() }
    }
}

impl Telemetry {
    /// A request was answered.
    pub(crate) fn answered(&self, method: &str, path: &str, status: u16, took: Duration) {
        let asked = Asked { method: method.to_owned(), path: path.to_owned(), status };
        self.requests.get_or_create(&asked).observe(took.as_secs_f64());
    }

    /// A store has worked.
    pub(crate) fn worked(&self, work: StorageWork, took: Duration) {
        let work = match work {
            StorageWork::Persist { .. } => "persist",
            StorageWork::RowsRead => "rows-read",
            StorageWork::RowsWrite => "rows-write",
            StorageWork::RegisterRead => "register-read",
            StorageWork::RegisterSwap => "register-swap",
        };
        self.storage.get_or_create(&Work { work }).observe(took.as_secs_f64());
    }

    /// The machine noted something.
    pub(crate) fn noted(&self, note: &Note) {
        self.notes.get_or_create(&Kind { kind: kind(note) }).inc();
        if matches!(note, Note::Dropped { .. }) {
            return; // They can be many, and are counted.
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let number = events.back().map_or(0, |event| event.number) + 1;
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { number, at: Instant::now(), note: note.clone() });
    }

    /// The notes with higher numbers that are still kept, oldest first.
    #[must_use]
    pub fn events_after(&self, number: u64) -> Vec<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| event.number > number).cloned().collect()
    }

    /// Everything, with what is measured only now, as OpenMetrics text.
    #[must_use]
    pub fn text(&self, now: Measured) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode_registry(&mut out, &self.registry);
        let _ = text::encode_registry(&mut out, &now.registry);
        let _ = text::encode_eof(&mut out);
        out
    }
}

/// What is measured when somebody asks.
#[derive(Debug)]
pub struct Measured {
    registry: Registry,
}

impl Default for Measured {
    fn default() -> Self {
        Self { registry: Registry::with_prefix("twinshard") }
    }
}

impl Measured {
    /// One number.
    pub fn set(&mut self, name: &'static str, help: &str, value: u64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.registry.register(name, help, gauge);
    }

    /// One number for each label set.
    pub fn set_each<L>(&mut self, name: &'static str, help: &str, values: impl IntoIterator<Item = (L, u64)>)
    where
        L: EncodeLabelSet + Clone + fmt::Debug + PartialEq + Eq + std::hash::Hash + Send + Sync + 'static,
    {
        let family = Family::<L, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.registry.register(name, help, family);
    }
}

/// A short name of what was noted.
#[must_use]
pub const fn kind(note: &Note) -> &'static str {
    match note {
        Note::Suspected { .. } => "suspected",
        Note::Recovered { .. } => "recovered",
        Note::Respawning { .. } => "respawning",
        Note::Restarted { .. } => "restarted",
        Note::Started { .. } => "started",
        Note::ProvisionFailed { .. } => "provision-failed",
        Note::Proposed { .. } => "proposed",
        Note::Activated { .. } => "activated",
        Note::Lost { .. } => "lost",
        Note::Controlling => "controlling",
        Note::RegisterWentBack { .. } => "register-went-back",
        Note::Dropped { .. } => "dropped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinshard_core::id::ServerId;

    #[test]
    fn newest_events_are_kept_and_numbered_without_gaps() {
        let telemetry = Telemetry::default();
        assert!(telemetry.events_after(0).is_empty());
        let count = EVENTS_MAX as u64 + 10;
        for server in 1..=count {
            telemetry.noted(&Note::Suspected { server: ServerId(server) });
            telemetry.noted(&Note::Dropped { reason: "late".into() });
        }
        let numbers: Vec<u64> = telemetry.events_after(0).iter().map(|event| event.number).collect();
        assert_eq!(numbers, (11..=count).collect::<Vec<_>>());
        assert_eq!(telemetry.events_after(count - 1).len(), 1);
        assert!(telemetry.events_after(count).is_empty());
    }

    #[test]
    fn what_was_counted_and_what_is_measured_is_told_in_one_text() {
        let telemetry = Telemetry::default();
        telemetry.answered("POST", "/write", 200, Duration::from_millis(3));
        telemetry.worked(StorageWork::Persist { record_count: 7 }, Duration::from_micros(120));
        telemetry.noted(&Note::Controlling);
        let mut now = Measured::default();
        now.set("map_version", "The version of the cluster map", 26);
        let of = |shard: &str| OfShard { shard: shard.to_owned() };
        now.set_each("shard_epoch", "The epoch of the shard", [(of("sh1"), 3), (of("a\"b\n"), 4)]);
        let text = telemetry.text(now);
        for line in [
            "twinshard_http_request_seconds_count{method=\"POST\",path=\"/write\",status=\"200\"} 1",
            "twinshard_storage_seconds_bucket{le=\"0.0002\",work=\"persist\"} 1",
            "twinshard_storage_seconds_bucket{le=\"0.0001\",work=\"persist\"} 0",
            "twinshard_events_total{kind=\"controlling\"} 1",
            "twinshard_map_version 26",
            "twinshard_shard_epoch{shard=\"sh1\"} 3",
            "twinshard_shard_epoch{shard=\"a\\\"b\\n\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
