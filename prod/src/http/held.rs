//! What a replica holds for an answer of several pages: let go as soon as the answer is whole, breaks off, or nobody wants it any more.

use crate::handle::{Failing, Handle};
use std::sync::{Mutex, PoisonError};
use twinshard_core::request::Pinned;

/// What is pinned for the next page.
pub(super) struct Held<Q, A: Failing> {
    handle: Handle<Q, A>,
    end: fn(Pinned) -> Q,
    pinned: Mutex<Option<Pinned>>,
}

impl<Q, A: Failing> Held<Q, A> {
    pub(super) fn new(handle: Handle<Q, A>, end: fn(Pinned) -> Q) -> Self {
        Self { handle, end, pinned: Mutex::new(None) }
    }

    pub(super) fn get(&self) -> Option<Pinned> {
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, pinned: Option<Pinned>) {
        *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = pinned;
    }
}

impl<Q, A: Failing> Drop for Held<Q, A> {
    fn drop(&mut self) {
        if let Some(pinned) = self.get() {
            self.handle.tell((self.end)(pinned));
        }
    }
}
