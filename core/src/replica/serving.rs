//! Between the log and its view: hands committed entries on, answers whoever waits for a result. Never evaluates a command (R7).

use super::{
    Replica, ReplicaEffect, StorePurpose,
    read_round::RowsRead,
    view::{AppliedResult, ViewEffect},
};
use crate::{
    id::Position,
    message::{ExecuteResult, ToBalancer},
    time::Instant,
};
use std::sync::Arc;

impl Replica {
    /// Queues what is committed, lets the view apply what it can, and hands it the reads that have what they wait for.
    pub(super) fn advance_view(&mut self, now: Instant) {
        if self.swap.is_some() || self.lost.is_some() {
            return;
        }
        let mut index = self.view.queued_through().next();
        while index <= self.commit {
            let Some(entry) = self.log.get(index) else {
                panic!("{}: {index} is committed but neither applied nor in the log after {}", self.id, self.log.base());
            };
            self.view.queue(Arc::clone(entry));
            index = index.next();
        }
        let mut out = Vec::new();
        self.view.advance(now, self.durable, &mut out);
        self.carry_out(now, out);
        loop {
            if self.lost.is_some() {
                return;
            }
            let ready = self.take_ready_reads(self.view.applied().index);
            if ready.is_empty() {
                return;
            }
            let bytes_max = self.context.settings.read_bytes_max;
            for (id, range, limit) in ready {
                self.view.read(id, range, limit, bytes_max);
            }
            let mut out = Vec::new();
            self.view.advance(now, self.durable, &mut out);
            self.carry_out(now, out);
        }
    }

    /// Does what the view wants done.
    pub(super) fn carry_out(&mut self, now: Instant, effects: Vec<ViewEffect>) {
        for effect in effects {
            match effect {
                ViewEffect::Store { request, command } => {
                    let purpose = StorePurpose::View { generation: self.generation, request };
                    self.out.push(ReplicaEffect::Store { purpose, command });
                }
                ViewEffect::Applied { position, request: _, result } => self.answer(position, result),
                ViewEffect::ReadDone { id, rows, more, at } => self.finish_read(now, id, RowsRead { rows, more, at }),
                ViewEffect::Lost(reason) => {
                    self.lose(reason);
                    return;
                }
            }
        }
    }

    /// Answers whoever waits for the entry. Only who leads and is active remembers anybody (R5).
    fn answer(&mut self, position: Position, result: AppliedResult) {
        let Some((to, tag)) = self.lead_mut().and_then(|lead| lead.pending.remove(&position.index)) else { return };
        let result = match result {
            AppliedResult::Done(outcome) => ExecuteResult::Done(outcome),
            AppliedResult::SessionGone => ExecuteResult::SessionGone,
            // Only commands are waited for.
            AppliedResult::Nothing => return,
        };
        self.tell(to, ToBalancer::Executed { tag, result });
    }
}
