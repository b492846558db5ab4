//! Exactly-once as replicated state: what a shard remembers of sessions and idempotency keys (DESIGN 4; R23 to R25; RIFL, section 3).
//! A pure function of the log: the same entries give the same answers at every replica.

use crate::{
    command::{Idempotency, Outcome, RequestId, Verdict},
    id::{LogIndex, SessionId},
    planted::{Bug, Planted},
    storage::{IdempotencyState, SessionState, ViewState},
};
use std::collections::BTreeMap;

/// What the memory says of a command before it is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recall {
    /// Never seen: execute it and tell [`Memory::remember`].
    New,
    /// Its answer is known; nothing is executed.
    Known(Outcome),
    /// Refused: the session is gone, or the number below its lowest (R24).
    Gone,
}

/// One change of the memory, so that it can be done again on a copy that lags behind (what is flushed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A command of a session was answered.
    Answered {
        /// Which command.
        request: RequestId,
        /// At which entry.
        index: LogIndex,
        /// How.
        outcome: Outcome,
    },
    /// A command of a session that was answered before raised its lowest number.
    Touched {
        /// Which command.
        request: RequestId,
        /// At which entry.
        index: LogIndex,
    },
    /// A session was closed.
    Closed(SessionId),
    /// An idempotency key was used first.
    Keyed {
        /// The key.
        key: Box<str>,
        /// What is remembered.
        state: IdempotencyState,
    },
}

/// Sessions and idempotency keys of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    sessions: BTreeMap<SessionId, SessionState>,
    /// Sessions by the entry that used them last: the first goes first.
    by_use: BTreeMap<LogIndex, SessionId>,
    floor: SessionId,
    keys: BTreeMap<Box<str>, IdempotencyState>,
    /// Keys by the entry that brought them.
    by_age: BTreeMap<LogIndex, Box<str>>,
}

/// What a change did besides: what it made forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Sessions that changed or went.
    pub(crate) sessions: Vec<SessionId>,
    /// Keys that came or went.
    pub(crate) keys: Vec<Box<str>>,
}

impl Memory {
    /// As it was read back.
    pub(crate) fn new(state: ViewState) -> Self {
        let by_use = state.sessions.iter().map(|(id, session)| (session.last_used, *id)).collect();
        let by_age = state.idempotency.iter().map(|(key, known)| (known.outcome.position.index, key.clone())).collect();
        Self { sessions: state.sessions, by_use, floor: state.session_floor, keys: state.idempotency, by_age }
    }

    /// What is known of a command.
    pub(crate) fn recall(&self, request: Option<&RequestId>, idempotency: Option<&Idempotency>, planted: Planted) -> Recall {
        if let Some(request) = request {
            match self.sessions.get(&request.session) {
                Some(session) if request.number < session.lowest => return Recall::Gone,
                Some(session) => {
                    if let Some(outcome) = session.outcomes.get(&request.number)
                        && !planted.has(Bug::AppliesRetryTwice)
                    {
                        return Recall::Known(outcome.clone());
                    }
                }
                None if request.session <= self.floor && !planted.has(Bug::ForgetsFloor) => return Recall::Gone, // R24
                None => {}
            }
        }
        if let Some(idempotency) = idempotency
            && let Some(known) = self.keys.get(&idempotency.key)
        {
            let outcome = known.outcome.clone();
            return Recall::Known(if known.body_hash == idempotency.body_hash {
                outcome
            } else {
                Outcome { verdict: Verdict::KeyReused, position: outcome.position }
            });
        }
        Recall::New
    }

    /// Whether the session remembers that number itself.
    pub(crate) fn has(&self, request: &RequestId) -> bool {
        self.sessions.get(&request.session).is_some_and(|session| session.outcomes.contains_key(&request.number))
    }

    /// Carries a change out. `sessions_max` and `keys_max` bound what is remembered.
    pub(crate) fn change(&mut self, change: &Change, sessions_max: usize, keys_max: usize) -> Touched {
        let mut touched = Touched::default();
        match change {
            Change::Answered { request, index, outcome } => {
                self.touch(request, *index);
                if let Some(session) = self.sessions.get_mut(&request.session) {
                    session.outcomes.insert(request.number, outcome.clone());
                }
                touched.sessions.push(request.session);
                self.evict(sessions_max, &mut touched);
            }
            Change::Touched { request, index } => {
                self.touch(request, *index);
                touched.sessions.push(request.session);
                self.evict(sessions_max, &mut touched);
            }
            Change::Closed(id) => {
                if let Some(session) = self.sessions.remove(id) {
                    self.by_use.remove(&session.last_used);
                }
                self.floor = self.floor.max(*id);
                touched.sessions.push(*id);
            }
            Change::Keyed { key, state } => {
                self.by_age.insert(state.outcome.position.index, key.clone());
                self.keys.insert(key.clone(), state.clone());
                touched.keys.push(key.clone());
                while self.keys.len() > keys_max {
                    let Some((_, oldest)) = self.by_age.pop_first() else { break };
                    self.keys.remove(&oldest);
                    touched.keys.push(oldest);
                }
            }
        }
        touched
    }

    fn touch(&mut self, request: &RequestId, index: LogIndex) {
        let session = self.sessions.entry(request.session).or_default();
        self.by_use.remove(&session.last_used);
        session.last_used = index;
        if request.lowest > session.lowest {
            session.lowest = request.lowest;
            session.outcomes = session.outcomes.split_off(&request.lowest);
        }
        self.by_use.insert(index, request.session);
    }

    fn evict(&mut self, sessions_max: usize, touched: &mut Touched) {
        while self.sessions.len() > sessions_max.max(1) {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.sessions.remove(&oldest);
            self.floor = self.floor.max(oldest); // R24
            touched.sessions.push(oldest);
        }
    }

    /// A session, if it is remembered.
    pub(crate) fn session(&self, id: SessionId) -> Option<&SessionState> {
        self.sessions.get(&id)
    }

    /// A key, if it is remembered.
    pub(crate) fn key(&self, key: &str) -> Option<&IdempotencyState> {
        self.keys.get(key)
    }

    /// The highest session ever evicted or closed.
    pub(crate) const fn floor(&self) -> SessionId {
        self.floor
    }

    /// How many sessions are remembered.
    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// What is remembered, as a store would hold it.
    #[cfg(test)]
    pub(crate) fn to_state(&self, applied: crate::id::Position) -> ViewState {
        ViewState { sessions: self.sessions.clone(), idempotency: self.keys.clone(), session_floor: self.floor, applied }
    }
}
