//! The versions of each key in log order, and what may stand anywhere between them.

use super::model::{Born, MINUS_INFINITY, Model};
use core::ops::Range;
use twinshard_core::id::LogIndex;

/// A version of a key with a known place in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub(super) key: usize,
    pub(super) index: LogIndex,
    pub(super) op: usize,
    pub(super) value: u64,
    /// False for a deletion.
    pub(super) present: bool,
    /// Where its other columns come from; never [`Born::Before`] where the version before is known.
    pub(super) born: Born,
}

/// The two earliest calls of what may have made a key present, or absent, at a place that nobody knows.
#[derive(Clone, Copy, Debug, Default)]
struct Loose {
    first: Option<(u64, usize)>,
    second: Option<(u64, usize)>,
}

impl Loose {
    fn add(&mut self, called: u64, op: usize) {
        let new = Some((called, op));
        if self.first.is_none_or(|first| called < first.0) {
            self.second = self.first;
            self.first = new;
        } else if self.second.is_none_or(|second| called < second.0) {
            self.second = new;
        }
    }

    fn any(&self, called_by: u64, except: usize) -> bool {
        [self.first, self.second].into_iter().flatten().any(|(called, op)| called <= called_by && op != except)
    }
}

/// The versions of all keys of a shard.
#[derive(Debug)]
pub(super) struct Versions {
    list: Vec<Version>,
    /// By key, where its versions begin; one more than there are keys.
    starts: Vec<usize>,
    /// By key: what may have made it absent, present.
    loose: Vec<[Loose; 2]>,
    /// Writes without a place in the log.
    pub(super) loose_count: usize,
}

impl Versions {
    pub(super) fn new(model: &Model<'_>) -> Self {
        let mut list = Vec::with_capacity(model.writes.len());
        let mut loose = vec![[Loose::default(); 2]; model.keys.len()];
        let mut loose_count = 0;
        for write in &model.writes {
            let op = &model.ops[write.op];
            match op.index() {
                Some(index) => {
                    list.push(Version { key: write.key, index, op: write.op, value: write.value, present: write.present, born: write.born })
                }
                None => {
                    loose[write.key][usize::from(write.present)].add(op.called, write.op);
                    loose_count += 1;
                }
            }
        }
        for maybe in &model.maybes {
            loose[maybe.key][usize::from(maybe.present)].add(maybe.called, usize::MAX);
        }
        list.sort_unstable_by_key(|version| (version.key, version.index, version.op));
        for place in 1..list.len() {
            let (before, here): (Version, &mut Version) = (list[place - 1], &mut list[place]);
            if here.born == Born::Before && before.key == here.key {
                here.born = if before.present { before.born } else { Born::Unclear };
            }
        }
        let mut starts = Vec::with_capacity(model.keys.len() + 1);
        let mut at = 0;
        for key in 0..=model.keys.len() {
            while at < list.len() && list[at].key < key {
                at += 1;
            }
            starts.push(at);
        }
        Self { list, starts, loose, loose_count }
    }

    /// The versions of a key, in log order.
    pub(super) fn of(&self, key: usize) -> &[Version] {
        &self.list[self.range(key)]
    }

    fn range(&self, key: usize) -> Range<usize> {
        self.starts[key]..self.starts[key + 1]
    }

    pub(super) fn key_count(&self) -> usize {
        self.loose.len()
    }

    /// Where among [`Self::of`] the version that this operation wrote stands.
    pub(super) fn place(&self, key: usize, index: LogIndex, op: usize) -> Option<usize> {
        self.of(key).binary_search_by_key(&(index, op), |version| (version.index, version.op)).ok()
    }

    /// Whether a write that has no known place, not by `except`, could have made the key present (or absent) before `returned`.
    pub(super) fn could_be(&self, key: usize, present: bool, returned: u64, except: usize) -> bool {
        self.loose[key][usize::from(present)].any(returned, except)
    }
}

/// The versions of one key at which it is present (or absent), and how real time narrows down which of them an operation saw.
#[derive(Debug)]
pub(super) struct Slots {
    /// The version; `None` is the beginning.
    versions: Vec<Option<usize>>,
    /// The latest return of any writer that ends a slot, up to and with this one.
    ended_by: Vec<u64>,
    /// The earliest call of any writer that begins a slot, from this one on.
    begun_from: Vec<u64>,
}

/// Which slots an operation may have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// One from the first to the last of these versions.
    Between(Option<usize>, Option<usize>),
    /// None: the last version that began before the operation returned was over before it was called.
    TooOld(Option<usize>),
    /// None: none ever began before it returned.
    Nothing,
}

impl Slots {
    pub(super) fn new(model: &Model<'_>, versions: &[Version], present: bool) -> Self {
        let begin = if present { None } else { Some(None) };
        let slots = versions.iter().enumerate().filter(|(_, version)| version.present == present).map(|(place, _)| Some(place));
        let slots: Vec<Option<usize>> = begin.into_iter().chain(slots).collect();
        let mut latest = MINUS_INFINITY;
        let ended_by = slots
            .iter()
            .map(|slot| {
                let next = slot.map_or(0, |place| place + 1);
                latest = latest.max(versions.get(next).map_or(u64::MAX, |version| model.ops[version.op].returned));
                latest
            })
            .collect();
        let mut earliest = u64::MAX;
        let mut begun_from: Vec<u64> = slots
            .iter()
            .rev()
            .map(|slot| {
                earliest = earliest.min(slot.map_or(MINUS_INFINITY, |place| model.ops[versions[place].op].called));
                earliest
            })
            .collect();
        begun_from.reverse();
        Self { versions: slots, ended_by, begun_from }
    }

    /// Which slots an operation called and returned at these times may have seen. Whatever is true lies between the two.
    pub(super) fn sight(&self, called: u64, returned: u64) -> Sight {
        let first = self.ended_by.partition_point(|ended| *ended < called);
        match self.begun_from.partition_point(|begun| *begun <= returned).checked_sub(1) {
            None => Sight::Nothing,
            Some(last) if first > last => Sight::TooOld(self.versions[last]),
            Some(last) => Sight::Between(self.versions[first], self.versions[last]),
        }
    }
}
