//! What the exhaustive search does to a run: at every message and every fsync it may deviate from the fault-free schedule. Counts the
//! places where it could, never decides which to take.

use super::{
    net::{Fate, Subject},
    world::{Event, World},
};
use crate::faults::Place;
use std::collections::BTreeMap;
use twinshard_core::{id::ServerId, time::Duration};

/// How long a delayed message takes: longer than everything else that goes on.
const DELAY: Duration = Duration::from_millis(400);
/// After how long a crashed server starts again: faster than anyone notices.
const DOWN: Duration = Duration::from_millis(20);

/// What is done differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deviation {
    /// The message is lost.
    Drop,
    /// It comes late.
    Delay,
    /// It comes twice, the second time late.
    Duplicate,
    /// Its receiver dies before it comes, or the server before its fsync is done; it starts again soon.
    Crash,
}

impl Deviation {
    /// What can be done to a message.
    pub const OF_MESSAGE: [Self; 4] = [Self::Drop, Self::Delay, Self::Duplicate, Self::Crash];
}

/// The deviations of one run, and the places where there could have been some.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// By the number of the place.
    pub deviations: BTreeMap<u32, Deviation>,
    /// How many places there were.
    pub site_count: u32,
    /// Which of them are fsyncs: they can only crash.
    pub syncs: Vec<u32>,
    /// Places count until the deviations are over: a search looks at those after its last one.
    pub closed: bool,
}

impl World {
    fn next_site(&mut self) -> Option<(u32, Option<Deviation>)> {
        let script = self.script.as_mut().filter(|script| !script.closed)?;
        let site = script.site_count;
        script.site_count += 1;
        Some((site, script.deviations.get(&site).copied()))
    }

    pub(super) fn scripted_message(&mut self, _from: Place, to: Place, subject: Subject, fate: Fate) -> Fate {
        // Heartbeats, maps and their answers come again by themselves; they would only make the search longer.
        const TRIVIAL: [u8; 4] = [1, 2, 11, 20];
        if TRIVIAL.contains(&subject.kind) {
            return fate;
        }
        let Some((_, Some(deviation))) = self.next_site() else { return fate };
        match deviation {
            Deviation::Drop => Fate::default(),
            Deviation::Delay => Fate { first: fate.first.map(|latency| Duration(latency.0 + DELAY.0)), second: None },
            Deviation::Duplicate => Fate { second: fate.first.map(|latency| Duration(latency.0 + DELAY.0)), ..fate },
            Deviation::Crash => {
                if let Place::Server(server) = to {
                    self.crash_briefly(server);
                }
                fate
            }
        }
    }

    /// Whether the fsync fails because its server dies.
    pub(super) fn scripted_sync(&mut self, server: ServerId) -> bool {
        let Some((site, deviation)) = self.next_site() else { return false };
        if let Some(script) = &mut self.script {
            script.syncs.push(site);
        }
        if deviation.is_some() {
            self.crash_briefly(server);
        }
        deviation.is_some()
    }

    fn crash_briefly(&mut self, server: ServerId) {
        self.after(Duration(1), Event::CrashBriefly { server, length: DOWN });
    }
}
