//! The event queue: what happens next. Events of one instant happen in the order in which they were planned.

use core::cmp::Reverse;
use std::collections::BinaryHeap;
use twinshard_core::time::Instant;

/// A queue of events by time. The heap holds only places; the events lie still.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
    planned_count: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), planned_count: 0 }
    }
}

impl<E> Queue<E> {
    /// Plans an event.
    pub fn plan(&mut self, at: Instant, event: E) {
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place] = Some(event);
                place
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.heap.push(Reverse((at, self.planned_count, place)));
        self.planned_count += 1;
    }

    /// Takes the next event.
    pub fn take(&mut self) -> Option<(Instant, E)> {
        let Reverse((at, _, place)) = self.heap.pop()?;
        self.free.push(place);
        self.events[place].take().map(|event| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_by_plan() {
        let mut queue = Queue::default();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (2, "b")] {
            queue.plan(Instant(at), name);
        }
        assert_eq!(queue.take(), Some((Instant(1), "a")));
        queue.plan(Instant(5), "e");
        let rest: Vec<_> = core::iter::from_fn(|| queue.take()).map(|(_, name)| name).collect();
        assert_eq!(rest, ["b", "c", "d", "e"]);
    }
}
