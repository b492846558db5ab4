//! What a node tells people about itself: counters and histograms in the OpenMetrics text format, and the newest notes of its machine.
//! Nothing here is ever read by a machine. Times are tokio's, so that a simulated node tells simulated ones.

use crate::{driver::StorageWork, peer::Counters};
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
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use twinshard_core::{
    effect::Note,
    message::{LeadStage, ReplicaStatus},
};

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
    /// Its id.
    pub replica: u64,
}

/// Labels of what waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waiting {
    queue: &'static str,
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
    storage_errors: Family<Work, Counter>,
    queues: Family<Waiting, Gauge>,
    notes: Family<Kind, Counter>,
    elections: Counter,
    peers: Arc<Counters>,
    registry: Arc<Registry>,
    events: Arc<Mutex<VecDeque<Event>>>,
    log: Arc<Mutex<LogWork>>,
    stops: Arc<AtomicBool>,
}

/// How the log of a node does.
#[derive(Debug, Default)]
struct LogWork {
    /// Since when it writes what it has not confirmed.
    since: Option<Instant>,
    /// Whether it could not write what came last.
    has_failed: bool,
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
        let (notes, elections) = (Family::<Kind, Counter>::default(), Counter::default());
        let storage_errors = Family::<Work, Counter>::default();
        let queues = Family::<Waiting, Gauge>::default();
        let mut registry = Registry::with_prefix("twinshard");
        let help = "Time from the head of a request to the head of its answer";
        registry.register_with_unit("http_request", help, Unit::Seconds, requests.clone());
        let help = "Time that a store worked: persist is one fsync of the log, with everything that came together";
        registry.register_with_unit("storage", help, Unit::Seconds, storage.clone());
        let help = "Work of a store that failed, was not answered, or found a replica lost";
        registry.register("storage_errors", help, storage_errors.clone());
        registry.register("queue", "What was given to a part of this node and is not done", queues.clone());
        registry.register("events", "What the machine of this node noted", notes.clone());
        let help = "Epochs with a primary that began: on a server those that it leads, on a balancer all that it saw";
        registry.register("elections", help, elections.clone());
        let (registry, peers, events) = (Arc::new(registry), Arc::default(), Arc::default());
        let (log, stops) = (Arc::default(), Arc::default());
        Self { requests, storage, storage_errors, queues, notes, elections, peers, registry, events, log, stops }
    }
}

impl Telemetry {
    /// A request was answered.
    pub(crate) fn answered(&self, method: &str, path: &str, status: u16, took: Duration) {
        let asked = Asked { method: method.to_owned(), path: path.to_owned(), status };
        self.requests.get_or_create(&asked).observe(took.as_secs_f64());
    }

    /// A store begins to work.
    pub(crate) fn works(&self, work: StorageWork) {
        if matches!(work, StorageWork::Persist { .. }) {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).since.get_or_insert_with(Instant::now);
        }
    }

    /// Why nothing can be promised of what the log of this node is given, if so.
    pub(crate) fn log_trouble(&self, patience: Duration) -> Option<String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.has_failed {
            return Some("the log could not be written".to_owned());
        }
        let waits = log.since.map(|since| since.elapsed()).filter(|waits| *waits >= patience)?;
        Some(format!("the log has confirmed nothing for {} s", waits.as_secs()))
    }

    /// The node is told to stop.
    pub fn stop(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub(crate) fn stops(&self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }

    /// A store has worked, and perhaps failed.
    pub(crate) fn worked(&self, work: StorageWork, took: Duration, failed: bool) {
        if matches!(work, StorageWork::Persist { .. }) {
            *self.log.lock().unwrap_or_else(PoisonError::into_inner) = LogWork { since: None, has_failed: failed };
        }
        let work = match work {
            StorageWork::Persist { .. } => "persist",
            StorageWork::RowsRead => "rows-read",
            StorageWork::RowsWrite => "rows-write",
            StorageWork::RegisterRead => "register-read",
            StorageWork::RegisterSwap => "register-swap",
        };
        self.storage.get_or_create(&Work { work }).observe(took.as_secs_f64());
        self.storage_errors.get_or_create(&Work { work }).inc_by(u64::from(failed));
    }

    /// How much waits in a queue of this node; who owns the queue sets it.
    pub(crate) fn queue(&self, queue: &'static str) -> Gauge {
        self.queues.get_or_create_owned(&Waiting { queue })
    }

    /// Where the transport counts.
    pub(crate) const fn peers(&self) -> &Arc<Counters> {
        &self.peers
    }

    /// The machine noted something.
    pub(crate) fn noted(&self, note: &Note) {
        self.notes.get_or_create(&Kind { kind: kind(note) }).inc();
        if matches!(note, Note::Leads { .. } | Note::Activated { .. }) {
            self.elections.inc();
        }
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
    pub fn text(&self, mut now: Measured) -> String {
        let peers = self.peers.counts();
        now.set("peer_messages_waiting", "Messages that wait to be written to other nodes", peers.waiting);
        let happened = [
            ("sent", peers.sent),
            ("received", peers.received),
            ("dropped", peers.dropped),
            ("dialed", peers.dialed),
            ("accepted", peers.accepted),
            ("refused", peers.refused),
            ("silent", peers.silent),
            ("damaged", peers.damaged),
        ];
        let happened = happened.map(|(kind, count)| (Kind { kind }, count));
        now.count_each(
            "peer",
            "Messages sent, received and dropped; connections dialed, accepted, refused and given up; damaged frames",
            happened,
        );
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

    /// What each replica says of itself.
    pub fn replicas(&mut self, replicas: &[(OfReplica, &ReplicaStatus)]) {
        let mut each = |name, help, value: fn(&ReplicaStatus) -> u64| {
            let replicas = replicas.iter().filter(|(_, status)| status.lost.is_none());
            self.set_each(name, help, replicas.map(|(labels, status)| (labels.clone(), value(status))));
        };
        each("replica_epoch", "The highest epoch that the replica has promised", |status| status.promised.0);
        each("replica_leads", "1 if the replica is the primary and serves", |status| u64::from(status.lead == Some(LeadStage::Active)));
        each("replica_last_index", "The end of the replica's log", |status| status.last.index.0);
        each("replica_commit_index", "What the replica knows to be committed", |status| status.commit.0);
        each("replica_applied_index", "What the replica has applied", |status| status.applied.0);
        each("replica_flushed_index", "What the replica's row store holds", |status| status.flushed.0);
        each("replica_commit_lag", "Entries of the replica's log that it does not know to be committed", |status| {
            status.last.index.0.saturating_sub(status.commit.0)
        });
        each("replica_apply_lag", "Committed entries that the replica has not applied", |status| {
            status.commit.0.saturating_sub(status.applied.0)
        });
        each("replica_store_away", "1 if the replica's row store does not answer", |status| u64::from(status.store_away));
        let lost = replicas.iter().map(|(labels, status)| (labels.clone(), u64::from(status.lost.is_some())));
        self.set_each("replica_lost", "1 if the replica is lost", lost);
    }

    /// One count for each label set.
    fn count_each<L>(&mut self, name: &'static str, help: &str, values: impl IntoIterator<Item = (L, u64)>)
    where
        L: EncodeLabelSet + Clone + fmt::Debug + PartialEq + Eq + std::hash::Hash + Send + Sync + 'static,
    {
        let family = Family::<L, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
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
        Note::DiskWentBack { .. } => "disk-went-back",
        Note::Recovered { .. } => "recovered",
        Note::Respawning { .. } => "respawning",
        Note::Restarted { .. } => "restarted",
        Note::Started { .. } => "started",
        Note::ProvisionFailed { .. } => "provision-failed",
        Note::Proposed { .. } => "proposed",
        Note::Activated { .. } => "activated",
        Note::Lost { .. } => "lost",
        Note::RegisterWentBack { .. } => "register-went-back",
        Note::Stopped { .. } => "stopped",
        Note::Removed { .. } => "removed",
        Note::Minted { .. } => "minted",
        Note::Retired { .. } => "retired",
        Note::GivenUp { .. } => "given-up",
        Note::Leads { .. } => "leads",
        Note::Granted { .. } => "granted",
        Note::Refused { .. } => "refused",
        Note::Controlling { .. } => "controlling",
        Note::Ceded { .. } => "ceded",
        Note::Dropped { .. } => "dropped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinshard_core::id::{Epoch, ReplicaId, ServerId, ShardId};

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

    #[tokio::test(start_paused = true)]
    async fn a_log_that_fails_or_does_not_confirm_is_told() {
        let (telemetry, patience) = (Telemetry::default(), Duration::from_secs(5));
        let persist = StorageWork::Persist { record_count: 1 };
        telemetry.works(StorageWork::RowsWrite);
        telemetry.works(persist);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(telemetry.log_trouble(patience), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(telemetry.log_trouble(patience).as_deref(), Some("the log has confirmed nothing for 6 s"));
        telemetry.worked(persist, Duration::ZERO, true);
        assert_eq!(telemetry.log_trouble(patience).as_deref(), Some("the log could not be written"));
        telemetry.worked(persist, Duration::ZERO, false);
        assert_eq!(telemetry.log_trouble(Duration::ZERO), None);
    }

    #[test]
    fn what_was_counted_and_what_is_measured_is_told_in_one_text() {
        let telemetry = Telemetry::default();
        telemetry.answered("POST", "/write", 200, Duration::from_millis(3));
        telemetry.worked(StorageWork::Persist { record_count: 7 }, Duration::from_micros(120), false);
        telemetry.worked(StorageWork::RowsWrite, Duration::from_micros(120), true);
        telemetry.queue("log").set(3);
        telemetry.noted(&Note::Leads { replica: ReplicaId(1), shard: ShardId(1), epoch: Epoch(3) });
        telemetry.noted(&Note::Controlling { from: None });
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
            "twinshard_storage_errors_total{work=\"persist\"} 0",
            "twinshard_storage_errors_total{work=\"rows-write\"} 1",
            "twinshard_queue{queue=\"log\"} 3",
            "twinshard_elections_total 1",
            "twinshard_peer_messages_waiting 0",
            "twinshard_peer_total{kind=\"dropped\"} 0",
            "twinshard_map_version 26",
            "twinshard_shard_epoch{shard=\"sh1\"} 3",
            "twinshard_shard_epoch{shard=\"a\\\"b\\n\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
