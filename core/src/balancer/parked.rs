//! Requests of clients that wait until the register was read: those that name keys or servers of which the map at hand knows nothing.
//! Another balancer may have added them, and an answer from an old map would be a read of the past. Never sends anything.

use crate::{
    id::{SchemaId, Token},
    request::Request,
    time::Instant,
};
use std::collections::VecDeque;

/// A request that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) token: Token,
    pub(super) request: Request,
    pub(super) deadline: Instant,
    /// The schema that was known when it came: what it writes was checked against that.
    pub(super) schema: Option<SchemaId>,
    /// How many reads of the register had begun when it came: a later one must answer.
    reads_begun: u64,
}

/// The requests that wait, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Parked {
    waiting: VecDeque<Waiting>,
    reads_begun: u64,
}

impl Parked {
    /// Whether anyone waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.waiting.len()
    }

    /// A request has to wait.
    pub(super) fn push(&mut self, token: Token, request: Request, deadline: Instant, schema: Option<SchemaId>) {
        self.waiting.push_back(Waiting { token, request, deadline, schema, reads_begun: self.reads_begun });
    }

    /// A read of the register begins.
    pub(super) fn read_begins(&mut self) {
        self.reads_begun += 1;
    }

    /// The read that began last was answered: those that had come before it began.
    pub(super) fn read_done(&mut self) -> Vec<Waiting> {
        let ready = self.waiting.iter().take_while(|waiting| waiting.reads_begun < self.reads_begun).count();
        self.waiting.drain(..ready).collect()
    }

    /// Those whose deadline has come.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Waiting> {
        let (late, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|waiting| waiting.deadline <= now);
        self.waiting = waiting.into();
        late
    }

    /// Nobody waits for the answer any more.
    pub(super) fn abandoned(&mut self, token: Token) {
        self.waiting.retain(|waiting| waiting.token != token);
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_began_before_a_request_came_does_not_release_it() {
        let mut parked = Parked::default();
        parked.read_begins();
        parked.push(Token(1), Request::Status { fresh: false }, Instant(5), None);
        assert!(parked.read_done().is_empty());
        parked.read_begins();
        parked.push(Token(2), Request::Status { fresh: false }, Instant(9), None);
        assert_eq!(parked.read_done().iter().map(|waiting| waiting.token).collect::<Vec<_>>(), [Token(1)]);
        assert_eq!(parked.next_deadline(), Some(Instant(9)));
        assert!(parked.take_late(Instant(8)).is_empty());
        assert_eq!(parked.take_late(Instant(9)).len(), 1);
        assert!(parked.is_empty());
    }
}
