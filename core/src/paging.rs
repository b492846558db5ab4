//! A read of several pages, from the side of whoever asks: each request names what the page before pinned, and what came of one shard is of one
//! index on all pages. Asks nobody itself.

use crate::{
    id::{LogIndex, ShardId},
    request::{Consistency, Pinned, Request, Rows},
    value::KeyRange,
};
use std::collections::BTreeMap;
use thiserror::Error;

/// A page of a shard at another index than the pages before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a page of {shard} is of {second}, one before was of {first}")]
pub struct Mixed {
    /// Which shard.
    pub shard: ShardId,
    /// The index that it was read at.
    pub first: LogIndex,
    /// The index of the further page.
    pub second: LogIndex,
}

/// A read under way.
#[derive(Clone, Debug)]
pub struct Paging {
    page_rows: u32,
    consistency: Consistency,
    pinned: Option<Pinned>,
    seen: BTreeMap<ShardId, LogIndex>,
    lag: BTreeMap<ShardId, u64>,
}

impl Paging {
    /// A read of pages of at most so many rows.
    #[must_use]
    pub const fn new(page_rows: u32, consistency: Consistency) -> Self {
        Self { page_rows, consistency, pinned: None, seen: BTreeMap::new(), lag: BTreeMap::new() }
    }

    /// The request for the next page: of this range, with so many rows left to give. One more is asked for: it shows whether that is all.
    #[must_use]
    pub fn request(&self, range: KeyRange, left: Option<u32>) -> Request {
        let wanted = left.unwrap_or(u32::MAX).saturating_add(1);
        let limit = wanted.min(self.page_rows.max(1));
        Request::ReadPage { range, limit, wanted, consistency: self.consistency.clone(), pinned: self.pinned }
    }

    /// Takes a page.
    ///
    /// # Errors
    /// If it does not go with the pages before: none of them may be given out together.
    pub fn take(&mut self, page: &Rows) -> Result<(), Mixed> {
        self.pinned = page.pinned;
        for (shard, second) in &page.seen {
            let first = *self.seen.entry(*shard).or_insert(*second);
            if first != *second {
                return Err(Mixed { shard: *shard, first, second: *second });
            }
        }
        for (shard, lag) in &page.lag {
            self.lag.entry(*shard).or_insert(*lag);
        }
        Ok(())
    }

    /// What is pinned for the next page: to be ended if there is none.
    #[must_use]
    pub const fn pinned(&self) -> Option<Pinned> {
        self.pinned
    }

    /// At which index each shard was read.
    #[must_use]
    pub const fn seen(&self) -> &BTreeMap<ShardId, LogIndex> {
        &self.seen
    }

    /// By how many entries each replica was behind when its shard was read.
    #[must_use]
    pub const fn lag(&self) -> &BTreeMap<ShardId, u64> {
        &self.lag
    }
}
