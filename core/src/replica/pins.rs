//! Pins: the state of the shard at the position of a read's first page, held for the pages that follow, so that a range of several pages is
//! one read at one index.
//!
//! A pin is a snapshot of the row store, opened in the step that answers the first page, with what is not flushed by then of the keys that
//! are left. The store works in order: the snapshot has at least what was visible at that moment, which the overlay begins after, and at
//! most what was applied, since no flush takes more. So overlay over snapshot is the state at the position of the first page, for good.
//!
//! Bounds: so many pins, so many bytes of what is not flushed, a time without a question, and a time in all (what a store keeps for the
//! sake of a snapshot grows with what is written meanwhile).

use super::{Replica, StorePurpose, read_round::RowsRead};
use crate::{
    id::{LogIndex, NodeId, Position, SnapshotId},
    message::{Pin, ReadOn, ReadRefusal, ReadResult, Tag, ToBalancer},
    planted::Bug,
    storage::{RowPage, RowQuery, StoreAnswer, StoreCommand},
    time::Instant,
    value::{Key, KeyRange, StoredRow},
};
use std::collections::BTreeMap;

/// What was read at the first page, by key; `None` where it was removed.
pub(super) type Overlay = BTreeMap<Key, Option<StoredRow>>;

/// Who is to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) to: NodeId,
    pub(super) tag: Tag,
    pub(super) read_index: Option<LogIndex>,
}

/// The pins of a replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins {
    open: BTreeMap<u64, Pinned>,
    /// What the overlays of all hold.
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Pinned {
    snapshot: SnapshotId,
    at: Position,
    /// What the store has shown by the time it was asked to open the snapshot.
    visible: LogIndex,
    overlay: Overlay,
    bytes: usize,
    state: State,
    close_at: Instant,
    end_at: Instant,
}

#[derive(Clone, Debug)]
enum State {
    /// The snapshot is being opened; then the first page is answered.
    Opening {
        reader: Reader,
        rows: Vec<StoredRow>,
    },
    Idle,
    /// A page is being read.
    Reading {
        reader: Reader,
        range: KeyRange,
        limit: usize,
    },
}

impl Replica {
    /// A page that does not end its range, of which more is wanted: the state that it is of is kept, then it is answered.
    pub(super) fn pin(&mut self, now: Instant, reader: Reader, rest: KeyRange, read: RowsRead) {
        let settings = &self.context.settings;
        let room = settings.pin_bytes_max.saturating_sub(self.pins.bytes);
        let overlay = (self.pins.open.len() < settings.pins_max).then(|| self.view.overlaid(rest, room));
        let Some(Some((mut overlay, bytes))) = overlay else {
            if let Some(None) = overlay {
                // The rows that wait for a flush are too many to be kept twice: once they are flushed the read may come again.
                self.view.flush_soon();
            }
            return self.refuse(reader, ReadRefusal::Busy);
        };
        if self.context.planted.has(Bug::PinsWithoutOverlay) {
            overlay.clear();
        }
        let settings = &self.context.settings;
        let (close_at, end_at) = (now + settings.pin_idle_max, now + settings.pin_life_max);
        let snapshot = SnapshotId(self.mint());
        let RowsRead { rows, at, .. } = read;
        let visible = self.view.visible();
        let state = State::Opening { reader, rows };
        self.pins.bytes += bytes;
        self.pins.open.insert(snapshot.0, Pinned { snapshot, at, visible, overlay, bytes, state, close_at, end_at });
        self.store(StorePurpose::OpenPin(snapshot), StoreCommand::OpenSnapshot(snapshot));
    }

    pub(super) fn on_pin_opened(&mut self, now: Instant, snapshot: SnapshotId, answer: &StoreAnswer) {
        let close_at = now + self.context.settings.pin_idle_max;
        let Some(pinned) = self.pins.open.get_mut(&snapshot.0) else { return };
        let fits = matches!(answer, StoreAnswer::SnapshotOpened { position }
            if position.index >= pinned.visible && position.index <= pinned.at.index);
        if !fits {
            return self.end_pin(snapshot.0, ReadRefusal::Behind);
        }
        pinned.close_at = close_at;
        let at = pinned.at;
        if let State::Opening { reader, rows } = std::mem::replace(&mut pinned.state, State::Idle) {
            let pin = Pin { replica: self.id, number: snapshot.0 };
            self.tell_rows(reader, rows, true, at, Some(pin));
        }
    }

    /// A further page of what is pinned.
    pub(crate) fn read_on(&mut self, now: Instant, from: NodeId, read: ReadOn) {
        let ReadOn { tag, pin, range, limit } = read;
        let reader = Reader { to: from, tag, read_index: None };
        if self.lost.is_some() {
            return self.refuse(reader, ReadRefusal::Lost);
        }
        let Some(pinned) = self.pins.open.get_mut(&pin.number) else { return self.refuse(reader, ReadRefusal::PinGone) };
        match &mut pinned.state {
            State::Opening { .. } => {}
            // Asked again: the answer on its way goes to the last who asked.
            State::Reading { reader: asked, range: under_way, .. } => {
                if *under_way == range {
                    *asked = reader;
                }
            }
            State::Idle => {
                pinned.close_at = now + self.context.settings.pin_idle_max;
                pinned.state = State::Reading { reader, range, limit: limit.max(1) as usize };
                self.read_pinned(pin.number);
            }
        }
    }

    /// Asks the store for what is still missing of the page that is being read.
    fn read_pinned(&mut self, number: u64) {
        let bytes_max = self.context.settings.read_bytes_max;
        let Some(pinned) = self.pins.open.get(&number) else { return };
        let State::Reading { range, limit, .. } = &pinned.state else { return };
        if range.is_empty() {
            return self.on_pinned_rows(SnapshotId(number), StoreAnswer::Rows(RowPage::default()));
        }
        // Removed rows are still in the snapshot: so many more are asked for.
        let hidden = pinned.overlay.range(range.low..=range.high).filter(|(_, row)| row.is_none()).count();
        let limit = u32::try_from(limit.saturating_add(hidden)).unwrap_or(u32::MAX);
        let query = RowQuery::Range { range: *range, limit, bytes_max };
        let snapshot = pinned.snapshot;
        self.store(StorePurpose::Pinned(snapshot), StoreCommand::ReadPinned { snapshot, query });
    }

    pub(super) fn on_pinned_rows(&mut self, snapshot: SnapshotId, answer: StoreAnswer) {
        let number = snapshot.0;
        let bytes_max = self.context.settings.read_bytes_max as usize;
        let Some(pinned) = self.pins.open.get_mut(&number) else { return };
        let StoreAnswer::Rows(page) = answer else {
            // It may have gone with the connection that held it.
            return self.end_pin(number, ReadRefusal::PinGone);
        };
        let State::Reading { reader, range, limit } = &mut pinned.state else { return };
        let end = match page.rows.last() {
            Some(last) if page.more => last.row.key,
            Some(_) | None => range.high,
        };
        let mut merged: BTreeMap<Key, &StoredRow> = page.rows.iter().map(|stored| (stored.row.key, stored)).collect();
        if range.low <= end {
            for (key, row) in pinned.overlay.range(range.low..=end) {
                match row {
                    Some(row) => merged.insert(*key, row),
                    None => merged.remove(key),
                };
            }
        }
        if merged.is_empty() && page.more {
            // All of it was removed; what follows is of the same state.
            range.low = Key(end.0.saturating_add(1));
            return self.read_pinned(number);
        }
        let (mut rows, mut bytes, count) = (Vec::new(), 0, merged.len());
        for row in merged.into_values() {
            if rows.len() >= *limit || (bytes >= bytes_max && !rows.is_empty()) {
                break;
            }
            bytes += row.row.size_bytes();
            rows.push(row.clone());
        }
        let last = rows.last().map_or(range.high, |last| last.row.key);
        let more = (page.more || rows.len() < count) && last < range.high;
        let (reader, at) = (*reader, pinned.at);
        pinned.state = State::Idle;
        self.tell_rows(reader, rows, more, at, None);
    }

    /// Nobody reads on in it.
    pub(crate) fn unpin(&mut self, pin: Pin) {
        self.end_pin(pin.number, ReadRefusal::PinGone);
    }

    /// Closes a pin; who waits for a page of it is refused.
    fn end_pin(&mut self, number: u64, reason: ReadRefusal) {
        let Some(pinned) = self.pins.open.remove(&number) else { return };
        self.pins.bytes -= pinned.bytes;
        match pinned.state {
            State::Opening { reader, .. } => self.refuse(reader, if reason == ReadRefusal::PinGone { ReadRefusal::Busy } else { reason }),
            State::Reading { reader, .. } => self.refuse(reader, ReadRefusal::PinGone),
            State::Idle => {}
        }
        self.store(StorePurpose::Close, StoreCommand::CloseSnapshot(pinned.snapshot));
    }

    /// The rows are replaced, or gone.
    pub(super) fn end_pins(&mut self, reason: ReadRefusal) {
        let numbers: Vec<u64> = self.pins.open.keys().copied().collect();
        for number in numbers {
            self.end_pin(number, reason);
        }
    }

    pub(super) fn tick_pins(&mut self, now: Instant) {
        let is_over = |pinned: &Pinned| now >= pinned.due();
        let over: Vec<u64> = self.pins.open.iter().filter(|(_, pinned)| is_over(pinned)).map(|(number, _)| *number).collect();
        for number in over {
            self.end_pin(number, ReadRefusal::PinGone);
        }
    }

    pub(super) fn pins_deadline(&self) -> Option<Instant> {
        self.pins.open.values().map(Pinned::due).min()
    }

    /// How many states it holds for reads.
    pub(crate) fn pin_count(&self) -> usize {
        self.pins.open.len()
    }

    fn refuse(&mut self, reader: Reader, reason: ReadRefusal) {
        let result = ReadResult::Refused { epoch: self.heard, reason };
        self.tell(reader.to, ToBalancer::ReadDone { tag: reader.tag, result });
    }

    pub(super) fn tell_rows(&mut self, reader: Reader, rows: Vec<StoredRow>, more: bool, at: Position, pin: Option<Pin>) {
        let lag = self.commit.0.saturating_sub(at.index.0);
        let Reader { to, tag, read_index } = reader;
        self.tell(to, ToBalancer::ReadDone { tag, result: ReadResult::Rows { rows, more, at, read_index, lag, pin } });
    }
}

impl Pinned {
    /// When it ends by time alone. While the store is at it, only its life bounds it.
    fn due(&self) -> Instant {
        match self.state {
            State::Idle => self.close_at.min(self.end_at),
            State::Opening { .. } | State::Reading { .. } => self.end_at,
        }
    }
}
