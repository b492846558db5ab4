//! The balancer's side of exactly-once: numbers of its session per shard, which of them are open, who waits for one (R23, R25; RIFL,
//! section 3). Never gives a number out twice and never raises the lowest past one that is open.

use crate::{
    command::RequestId,
    id::{SessionId, ShardId, Token},
};
use std::collections::{BTreeMap, BTreeSet};

/// How far the numbers of one session and shard may run ahead of the lowest open one (R25). Replicas remember as many outcomes of each
/// session. A guess: well above what one shard has under way at once.
pub(crate) const WINDOW_MAX: u64 = 256;
/// How many parts of writes may wait for a number of one shard; one more is Overloaded. A guess.
pub(crate) const WAITING_MAX: usize = 4_096;

/// A number that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Number {
    /// The session it belongs to, which may no longer be the newest.
    pub(crate) session: SessionId,
    /// The number.
    pub(crate) number: u64,
}

#[derive(Clone, Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

impl Numbers {
    fn lowest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.last + 1)
    }
}

/// All sessions and numbers of one balancer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    session: Option<SessionId>,
    /// The shards that refused the session.
    refused: BTreeSet<ShardId>,
    /// The session must not be used any more, by any shard.
    has_ended: bool,
    numbers: BTreeMap<(ShardId, SessionId), Numbers>,
    ticket: u64,
    waiting: BTreeMap<ShardId, BTreeMap<u64, (Token, usize)>>,
}

impl Sessions {
    /// Takes a session that was minted and read back (R10). Numbers of the one before stay open until they are answered or given up.
    pub(crate) fn set(&mut self, session: SessionId) {
        if self.session == Some(session) {
            return;
        }
        self.session = Some(session);
        self.refused.clear();
        self.has_ended = false;
        self.numbers.retain(|(_, owner), numbers| *owner == session || !numbers.open.is_empty());
    }

    /// Whether there never was a session.
    pub(crate) const fn is_blank(&self) -> bool {
        self.session.is_none()
    }

    /// Whether a new session must be minted: there is none, or it was refused (R23).
    pub(crate) fn is_wanted(&self) -> bool {
        self.session.is_none() || !self.refused.is_empty()
    }

    /// A shard refused the session.
    pub(crate) fn refuse(&mut self, shard: ShardId, session: SessionId) {
        if self.session == Some(session) {
            self.refused.insert(shard);
        }
    }

    /// The session is not used any more: it may be another balancer's too.
    pub(crate) const fn end(&mut self) {
        self.has_ended = true;
    }

    /// Gives a number out, if there is a session that the shard has not refused and a number is free.
    pub(crate) fn open(&mut self, shard: ShardId) -> Option<Number> {
        let session = self.session.filter(|_| !self.has_ended && !self.refused.contains(&shard))?;
        let numbers = self.numbers.entry((shard, session)).or_default();
        // R25: bounded.
        if numbers.last + 1 - numbers.lowest() >= WINDOW_MAX {
            return None;
        }
        numbers.last += 1;
        numbers.open.insert(numbers.last);
        Some(Number { session, number: numbers.last })
    }

    /// The identity under which the open number's command is sent now: the lowest may have risen since it was sent first.
    pub(crate) fn request_id(&self, shard: ShardId, number: Number) -> RequestId {
        let lowest = self.numbers.get(&(shard, number.session)).map_or(number.number, Numbers::lowest);
        // R25: never past an open one, which this is.
        assert!(lowest <= number.number, "{shard}: the lowest {lowest} is past the open number {}", number.number);
        RequestId { session: number.session, number: number.number, lowest }
    }

    /// The number is answered or given up (R25).
    pub(crate) fn close(&mut self, shard: ShardId, number: Number) {
        let key = (shard, number.session);
        if let Some(numbers) = self.numbers.get_mut(&key) {
            numbers.open.remove(&number.number);
            if numbers.open.is_empty() && self.session != Some(number.session) {
                self.numbers.remove(&key);
            }
        }
    }

    /// Whether one more may wait for a number of the shard.
    pub(crate) fn has_room(&self, shard: ShardId) -> bool {
        self.waiting.get(&shard).is_none_or(|waiting| waiting.len() < WAITING_MAX)
    }

    /// Whether anybody waits for a number of the shard.
    pub(crate) fn has_waiting(&self, shard: ShardId) -> bool {
        self.waiting.contains_key(&shard)
    }

    /// The shards that somebody waits for.
    pub(crate) fn waited_for(&self) -> Vec<ShardId> {
        self.waiting.keys().copied().collect()
    }

    /// Waits in line; the ticket leaves it.
    pub(crate) fn wait(&mut self, shard: ShardId, token: Token, leg: usize) -> u64 {
        self.ticket += 1;
        self.waiting.entry(shard).or_default().insert(self.ticket, (token, leg));
        self.ticket
    }

    /// Leaves the line.
    pub(crate) fn leave(&mut self, shard: ShardId, ticket: u64) {
        if let Some(waiting) = self.waiting.get_mut(&shard) {
            waiting.remove(&ticket);
            if waiting.is_empty() {
                self.waiting.remove(&shard);
            }
        }
    }

    /// The first in line, if a number is free for it.
    pub(crate) fn next(&mut self, shard: ShardId) -> Option<(Token, usize)> {
        let session = self.session.filter(|_| !self.has_ended && !self.refused.contains(&shard))?;
        let is_full = self.numbers.get(&(shard, session)).is_some_and(|numbers| numbers.last + 1 - numbers.lowest() >= WINDOW_MAX);
        if is_full {
            return None;
        }
        let waiting = self.waiting.get_mut(&shard)?;
        let first = waiting.pop_first().map(|(_, first)| first);
        if waiting.is_empty() {
            self.waiting.remove(&shard);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn number(session: u64, number: u64) -> Number {
        Number { session: SessionId(session), number }
    }

    #[test]
    fn lowest_rises_only_past_closed_numbers() {
        let mut sessions = Sessions::default();
        assert!(sessions.is_wanted());
        assert_eq!(sessions.open(SHARD), None);
        sessions.set(SessionId(5));
        assert!(!sessions.is_wanted());
        for expected in 1..=3 {
            assert_eq!(sessions.open(SHARD), Some(number(5, expected)));
        }
        assert_eq!(sessions.open(ShardId(2)), Some(number(5, 1)), "numbers are per shard");
        sessions.close(SHARD, number(5, 2));
        assert_eq!(sessions.request_id(SHARD, number(5, 3)).lowest, 1);
        sessions.close(SHARD, number(5, 1));
        assert_eq!(sessions.request_id(SHARD, number(5, 3)), RequestId { session: SessionId(5), number: 3, lowest: 3 });
        sessions.close(SHARD, number(5, 3));
        assert_eq!(sessions.open(SHARD), Some(number(5, 4)));
        assert_eq!(sessions.request_id(SHARD, number(5, 4)).lowest, 4);
    }

    #[test]
    fn numbers_are_bounded_by_the_lowest_open_one() {
        let mut sessions = Sessions::default();
        sessions.set(SessionId(1));
        for expected in 1..=WINDOW_MAX {
            assert_eq!(sessions.open(SHARD), Some(number(1, expected)));
        }
        for closed in 2..=WINDOW_MAX {
            sessions.close(SHARD, number(1, closed));
        }
        let ticket = sessions.wait(SHARD, Token(9), 0);
        assert_eq!((sessions.open(SHARD), sessions.next(SHARD)), (None, None), "number 1 is still open");
        sessions.close(SHARD, number(1, 1));
        assert_eq!(sessions.next(SHARD), Some((Token(9), 0)));
        sessions.leave(SHARD, ticket);
        assert_eq!(sessions.open(SHARD), Some(number(1, WINDOW_MAX + 1)));
    }

    #[test]
    fn refused_session_gives_no_more_numbers_to_that_shard() {
        let mut sessions = Sessions::default();
        sessions.set(SessionId(1));
        let open = sessions.open(SHARD).unwrap();
        sessions.refuse(SHARD, SessionId(1));
        assert!(sessions.is_wanted());
        assert_eq!(sessions.open(SHARD), None);
        assert!(sessions.open(ShardId(2)).is_some(), "other shards still take it");
        sessions.set(SessionId(2));
        assert!(!sessions.is_wanted());
        assert_eq!(sessions.open(SHARD), Some(number(2, 1)));
        // The old number is still told apart and keeps its own lowest.
        assert_eq!(sessions.request_id(SHARD, open), RequestId { session: SessionId(1), number: 1, lowest: 1 });
        sessions.refuse(SHARD, SessionId(1));
        assert!(!sessions.is_wanted(), "that one is over already");
    }

    #[test]
    fn line_is_first_come_first_served_and_bounded() {
        let mut sessions = Sessions::default();
        let tickets: Vec<_> = (0..WAITING_MAX).map(|place| sessions.wait(SHARD, Token(place as u64), 0)).collect();
        assert!(!sessions.has_room(SHARD));
        assert!(sessions.has_room(ShardId(2)));
        sessions.leave(SHARD, tickets[0]);
        assert!(sessions.has_room(SHARD));
        sessions.set(SessionId(1));
        assert_eq!(sessions.next(SHARD), Some((Token(1), 0)));
    }

    #[test]
    fn session_that_ended_lets_nobody_out_of_the_line() {
        let mut sessions = Sessions::default();
        sessions.set(SessionId(1));
        let first = sessions.open(SHARD).unwrap();
        sessions.end();
        sessions.wait(SHARD, Token(1), 0);
        sessions.close(SHARD, first);
        assert_eq!(sessions.open(SHARD), None);
        assert_eq!(sessions.next(SHARD), None, "who is let out gets no number and waits again, for ever");
    }
}
