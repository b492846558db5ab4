//! What waits to be written to one peer: bounded in messages and bytes.

use super::{Counters, PeerSettings};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};
use tokio::sync::Notify;
use twinshard_core::{
    command::{Entry, Operation},
    message::{Execute, Message, ReadResult, ReplicaBody, ToBalancer, ToServer},
    storage::SnapshotChunk,
    value::{StoredRow, Value},
};

/// The most messages in one frame. A guess: enough that the cost of a frame does not show.
const BATCH_MESSAGES_MAX: usize = 1_024;

/// A queue with one reader.
#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Notify,
    messages_max: usize,
    bytes_max: usize,
    /// Where it counts what waits.
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Inner {
    messages: VecDeque<(usize, Message)>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(settings: &PeerSettings, counters: &Arc<Counters>) -> Self {
        Self {
            inner: Mutex::default(),
            changed: Notify::new(),
            messages_max: settings.queue_messages_max,
            bytes_max: settings.queue_bytes_max,
            counters: Arc::clone(counters),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here can panic half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message. `false` if there is no room or the queue is closed. An empty queue takes any message.
    pub(super) fn push(&self, message: Message) -> bool {
        let bytes = size_bytes(&message);
        let mut inner = self.inner();
        let full = inner.messages.len() >= self.messages_max || inner.bytes.saturating_add(bytes) > self.bytes_max;
        if inner.closed || (full && !inner.messages.is_empty()) {
            return false;
        }
        inner.bytes += bytes;
        inner.messages.push_back((bytes, message));
        self.counters.waiting.fetch_add(1, Ordering::Relaxed);
        let first = inner.messages.len() == 1;
        drop(inner);
        if first {
            self.changed.notify_one();
        }
        true
    }

    fn left(&self, count: usize) {
        self.counters.waiting.fetch_sub(count as u64, Ordering::Relaxed);
    }

    /// Waits until there is something. `false` once the queue is closed.
    pub(super) async fn ready(&self) -> bool {
        loop {
            {
                let inner = self.inner();
                if inner.closed {
                    return false;
                }
                if !inner.messages.is_empty() {
                    return true;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes the oldest messages, at least one if there is one, and about `bytes_max` bytes.
    pub(super) fn take(&self, bytes_max: usize) -> Vec<Message> {
        let mut inner = self.inner();
        let mut count = 0;
        let mut bytes = 0;
        for (size, _) in &inner.messages {
            if count == BATCH_MESSAGES_MAX || (count > 0 && bytes + size > bytes_max) {
                break;
            }
            count += 1;
            bytes += size;
        }
        inner.bytes -= bytes;
        self.left(count);
        inner.messages.drain(..count).map(|(_, message)| message).collect()
    }

    /// Drops everything and says how much that was.
    pub(super) fn clear(&self) -> usize {
        let mut inner = self.inner();
        inner.bytes = 0;
        let dropped = std::mem::take(&mut inner.messages);
        drop(inner);
        self.left(dropped.len());
        dropped.len()
    }

    /// Nothing goes in any more, and the reader stops.
    pub(super) fn close(&self) {
        self.inner().closed = true;
        self.changed.notify_one();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.left(self.inner().messages.len());
    }
}

/// About how many bytes a message takes, in memory and in a frame. Only what can be large is looked at.
fn size_bytes(message: &Message) -> usize {
    const SMALL: usize = 96;
    SMALL
        + match message {
            Message::ToServer(ToServer::Map { map, .. }) => {
                96 * map.servers.len() + 256 * map.shards.len() + 32 * map.replicas.len() + 16 * map.sessions.len()
            }
            Message::ToServer(ToServer::Execute(Execute { operations, idempotency, .. })) => {
                operations.iter().map(operation_bytes).sum::<usize>() + idempotency.as_ref().map_or(0, |idempotency| idempotency.key.len())
            }
            Message::ToServer(_) => 0,
            Message::ToBalancer(ToBalancer::Beat { replicas, .. }) => 96 * replicas.len(),
            Message::ToBalancer(ToBalancer::ReadDone { result: ReadResult::Rows { rows, .. }, .. }) => rows_bytes(rows),
            Message::ToBalancer(_) => 0,
            Message::Replica(message) => match &message.body {
                ReplicaBody::Append { entries, .. } | ReplicaBody::LogPart { entries, .. } => {
                    entries.iter().map(|entry| Entry::size_bytes(entry)).sum()
                }
                ReplicaBody::SnapshotPart { chunk, .. } => chunk_bytes(chunk),
                _ => 0,
            },
        }
}

fn operation_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Insert { row, .. } => row.size_bytes() + 8,
        Operation::Update { set, .. } => 40 + set.iter().map(|(_, value)| Value::size_bytes(value) + 8).sum::<usize>(),
        Operation::Delete { .. } => 16,
    }
}

fn rows_bytes(rows: &[StoredRow]) -> usize {
    rows.iter().map(|stored| stored.row.size_bytes() + 16).sum()
}

fn chunk_bytes(chunk: &SnapshotChunk) -> usize {
    rows_bytes(&chunk.rows)
        + chunk.sessions.iter().map(|(_, session)| 32 + 48 * session.outcomes.len()).sum::<usize>()
        + chunk.idempotency.iter().map(|(key, _)| key.len() + 64).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinshard_core::{
        command::OnConflict,
        id::{Epoch, ReplicaId},
        message::Tag,
        value::{Key, Row},
    };

    fn beat(beat: u64) -> Message {
        Message::ToServer(ToServer::Heartbeat { beat })
    }

    fn write(text_bytes: usize) -> Message {
        let row = Row { key: Key(1), values: vec![Value::Text("x".repeat(text_bytes).into())] };
        Message::ToServer(ToServer::Execute(Execute {
            tag: Tag::default(),
            replica: ReplicaId(1),
            epoch: Epoch(1),
            request: None,
            idempotency: None,
            operations: Arc::new(vec![Operation::Insert { row, on_conflict: OnConflict::Replace }]),
        }))
    }

    #[tokio::test]
    async fn messages_come_out_in_order_and_the_one_too_many_is_refused() {
        let counters = Arc::default();
        let queue = Queue::new(&PeerSettings { queue_messages_max: 3, ..PeerSettings::default() }, &counters);
        assert!((1..=3).all(|n| queue.push(beat(n))));
        assert!(!queue.push(beat(4)));
        assert_eq!(counters.counts().waiting, 3);
        assert!(queue.ready().await);
        assert_eq!(queue.take(1 << 20), vec![beat(1), beat(2), beat(3)]);
        assert!(queue.push(beat(5)));
        assert_eq!(queue.clear(), 1);
        assert_eq!(queue.take(1 << 20), vec![]);
        queue.close();
        assert!(!queue.ready().await);
        assert!(!queue.push(beat(6)));
        assert_eq!(counters.counts().waiting, 0);
        // What nobody will ever take does not wait any more.
        let queue = Queue::new(&PeerSettings::default(), &counters);
        assert!(queue.push(beat(7)) && counters.counts().waiting == 1);
        drop(queue);
        assert_eq!(counters.counts().waiting, 0);
    }

    #[test]
    fn bytes_are_bounded_but_one_message_always_fits() {
        let queue = Queue::new(&PeerSettings { queue_bytes_max: 5_000, ..PeerSettings::default() }, &Arc::default());
        assert!(queue.push(write(10_000)), "an empty queue takes anything");
        assert!(!queue.push(beat(1)));
        assert_eq!(queue.take(1).len(), 1);
        assert!(queue.push(write(2_000)));
        assert!(queue.push(write(2_000)));
        assert!(!queue.push(write(2_000)));
        assert_eq!(queue.take(3_000).len(), 1);
        assert!(queue.push(write(2_000)));
        assert_eq!(queue.take(10_000).len(), 2);
    }
}
