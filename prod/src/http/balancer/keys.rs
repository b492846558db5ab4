//! The Idempotency-Keys that this balancer has seen of late, each with a hash of what came with it. What a key did is remembered by the shards
//! it touched, and outlives this; but only here it shows that another body under the same key goes to other shards. Never answers in their
//! place.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use twinshard_core::{command::Idempotency, request::RequestError};

/// The most keys remembered; the oldest go first. A guess: with the longest keys, some 10 MiB.
const KEYS_MAX: usize = 32_768;

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    by_key: BTreeMap<Box<str>, Use>,
    /// The kept ones, the oldest first.
    order: VecDeque<Box<str>>,
}

#[derive(Debug)]
struct Use {
    body_hash: u128,
    under_way: usize,
    /// Whether a shard may remember it.
    is_kept: bool,
}

/// A request with a key, until it was answered.
#[derive(Debug)]
pub(super) struct Claim {
    keys: Keys,
    key: Box<str>,
    is_kept: bool,
}

impl Keys {
    /// Takes note of a key that is used now.
    ///
    /// # Errors
    /// If it came with another body before.
    pub(super) fn claim(&self, idempotency: &Idempotency) -> Result<Claim, RequestError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Use { body_hash: idempotency.body_hash, under_way: 0, is_kept: false };
        let known = seen.by_key.entry(idempotency.key.clone()).or_insert(new);
        if known.body_hash != idempotency.body_hash {
            return Err(RequestError::KeyReused);
        }
        known.under_way += 1;
        // A request that is dropped midway may have reached a shard.
        Ok(Claim { keys: self.clone(), key: idempotency.key.clone(), is_kept: true })
    }
}

impl Claim {
    /// The request reached no shard: its key is free for another body.
    pub(super) const fn forget(&mut self) {
        self.is_kept = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut guard = self.keys.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *guard;
        let Some(known) = seen.by_key.get_mut(&self.key) else { return };
        known.under_way = known.under_way.saturating_sub(1);
        if self.is_kept && !known.is_kept {
            known.is_kept = true;
            seen.order.push_back(self.key.clone());
        } else if !known.is_kept && known.under_way == 0 {
            seen.by_key.remove(&self.key);
        }
        while seen.order.len() > KEYS_MAX {
            if let Some(oldest) = seen.order.pop_front() {
                seen.by_key.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, body_hash: u128) -> Idempotency {
        Idempotency { key: key.into(), body_hash }
    }

    #[test]
    fn key_stays_with_its_body_unless_no_shard_was_reached() {
        let keys = Keys::default();
        let first = keys.claim(&with("a", 1)).unwrap();
        let second = keys.claim(&with("a", 1)).unwrap();
        assert_eq!(keys.claim(&with("a", 2)).unwrap_err(), RequestError::KeyReused, "the first is still under way");
        drop(first);
        drop(second);
        assert_eq!(keys.claim(&with("a", 2)).unwrap_err(), RequestError::KeyReused);
        assert!(keys.claim(&with("a", 1)).is_ok());

        let mut refused = keys.claim(&with("b", 1)).unwrap();
        refused.forget();
        drop(refused);
        assert!(keys.claim(&with("b", 2)).is_ok());
    }

    #[test]
    fn oldest_keys_are_forgotten() {
        let keys = Keys::default();
        for number in 0..KEYS_MAX + 10 {
            drop(keys.claim(&with(&number.to_string(), 1)).unwrap());
        }
        let seen = keys.0.lock().unwrap();
        assert_eq!((seen.by_key.len(), seen.order.len()), (KEYS_MAX, KEYS_MAX));
        assert!(!seen.by_key.contains_key("9") && seen.by_key.contains_key("10"));
    }
}
