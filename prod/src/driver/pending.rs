//! The requests a machine has not answered yet, and where each answer goes.

use crate::request_id::RequestId;
use std::collections::BTreeMap;
use tokio::sync::oneshot;
use twinshard_core::id::Token;

/// Requests by the token they were given.
#[derive(Debug)]
pub(super) struct Pending<A> {
    last: Token,
    replies: BTreeMap<Token, (oneshot::Sender<A>, Option<RequestId>)>,
}

impl<A> Pending<A> {
    pub(super) const fn new() -> Self {
        Self { last: Token(0), replies: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.replies.len()
    }

    pub(super) fn add(&mut self, reply: oneshot::Sender<A>, id: Option<RequestId>) -> Token {
        self.last = self.last.next();
        self.replies.insert(self.last, (reply, id));
        self.last
    }

    /// The name of an open request, if it has one.
    pub(super) fn id(&self, token: Token) -> Option<&RequestId> {
        self.replies.get(&token).and_then(|(_, id)| id.as_ref())
    }

    /// Hands the answer over. `false` if no such request is open: it was given up before.
    pub(super) fn answer(&mut self, token: Token, answer: A) -> bool {
        match self.replies.remove(&token) {
            // Who asked may be gone by now; then nobody is to be told.
            Some((reply, _)) => reply.send(answer).is_ok(),
            None => false,
        }
    }

    /// Forgets the requests that nobody waits for any more, and names them in order.
    pub(super) fn sweep(&mut self) -> Vec<Token> {
        let gone: Vec<Token> = self.replies.iter().filter(|(_, (reply, _))| reply.is_closed()).map(|(token, _)| *token).collect();
        for token in &gone {
            self.replies.remove(token);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_reach_who_asked_and_the_gone_are_swept_once() {
        let mut pending = Pending::new();
        let (reply, mut first) = oneshot::channel();
        let first_token = pending.add(reply, None);
        let (reply, second) = oneshot::channel::<u32>();
        let second_token = pending.add(reply, None);
        assert_ne!(first_token, second_token);
        drop(second);
        assert_eq!(pending.sweep(), vec![second_token]);
        assert_eq!(pending.sweep(), vec![]);
        assert!(!pending.answer(second_token, 2));
        assert!(pending.answer(first_token, 1));
        assert_eq!(first.try_recv(), Ok(1));
        assert_eq!(pending.len(), 0);
    }
}
