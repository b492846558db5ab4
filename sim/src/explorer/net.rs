//! The simulated network: what becomes of one message. A message's fate is keyed by link, kind, what it is about, and how often that
//! was said on this link before; the windows that are open when it is sent decide what may happen. Never looks into the future.

use crate::{
    faults::{Fault, Place, is_cut, is_in_group},
    keyed::{Draw, Keyed, Purpose, fold},
};
use twinshard_core::{
    command::Operation,
    message::{Message, ReplicaBody, ToBalancer, ToServer},
    time::Duration,
    value::Value,
};

/// The shortest and the longest time that a message takes when nothing is wrong.
const LATENCY_NS: (u64, u64) = (40_000, 900_000);
/// How many counters of repeats there are. Two subjects that share one only get other attempt numbers than they would alone.
const REPEAT_SLOTS: usize = 4_096;

/// What a message is: its kind and what it is about. Stable under changes of whatever else happens in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The kind of message.
    pub kind: u8,
    /// What it is about.
    pub id: u64,
}

impl Subject {
    /// Of this message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let (kind, id) = match message {
            Message::ToServer(message) => match message {
                ToServer::Heartbeat { beat } => (1, *beat),
                ToServer::Map { version, .. } => (2, version.0),
                ToServer::Create { replica, .. } => (3, replica.0),
                ToServer::Retire { replica } => (4, replica.0),
                ToServer::Seal { replica, epoch } => (5, fold(replica.0, epoch.0)),
                ToServer::Install(install) => (6, install.config.epoch.0),
                ToServer::Activate { epoch, .. } => (7, epoch.0),
                ToServer::Learn { epoch, .. } => (8, epoch.0),
                ToServer::Execute(execute) => {
                    (9, execute.operations.first().map_or(0, |operation| fold(execute.replica.0, subject_of(operation))))
                }
                ToServer::Read(read) => {
                    (10, fold(read.replica.0, fold(read.range.low.0.cast_unsigned(), read.range.high.0.cast_unsigned())))
                }
                ToServer::Home { tag } => (11, tag.number),
                ToServer::ReadOn(read) => (12, fold(read.pin.number, read.range.low.0.cast_unsigned())),
                ToServer::Unpin(pin) => (13, pin.number),
            },
            Message::ToBalancer(message) => match message {
                ToBalancer::Beat { beat, .. } => (20, *beat),
                ToBalancer::Created { replica } => (21, replica.0),
                ToBalancer::Retired { replica } => (22, replica.0),
                ToBalancer::Promised { replica, epoch, .. } => (23, fold(replica.0, epoch.0)),
                ToBalancer::Progress { epoch, .. } => (24, epoch.0),
                ToBalancer::Executed { tag, .. } => (25, tag.number),
                ToBalancer::ReadDone { tag, .. } => (26, tag.number),
                ToBalancer::Home { tag } => (27, tag.number),
            },
            Message::Replica(message) => {
                let (kind, id) = match &message.body {
                    ReplicaBody::Append { previous, entries, .. } => (40, fold(previous.index.0, u64::from(entries.is_empty()))),
                    ReplicaBody::Appended { matched } => (41, matched.0),
                    ReplicaBody::Mismatch { hint } => (42, hint.index.0),
                    ReplicaBody::Refused => (43, 0),
                    ReplicaBody::NeedSnapshot { base } => (44, base.index.0),
                    ReplicaBody::Round { round } => (45, *round),
                    ReplicaBody::RoundConfirmed { round } => (46, *round),
                    ReplicaBody::ReadIndex { tag } => (47, tag.number),
                    ReplicaBody::ReadIndexIs { tag, .. } => (48, tag.number),
                    ReplicaBody::FetchLog { after, .. } => (49, after.index.0),
                    ReplicaBody::LogPart { previous, .. } => (50, previous.index.0),
                    ReplicaBody::LogGap { hint, .. } => (51, hint.index.0),
                    ReplicaBody::FetchRefused => (52, 0),
                    ReplicaBody::FetchSnapshot { snapshot, .. } => (53, snapshot.map_or(0, |snapshot| snapshot.0)),
                    ReplicaBody::SnapshotPart { snapshot, .. } => (54, snapshot.0),
                };
                (kind, fold(fold(message.from.0, message.to.0), fold(message.epoch.0, id)))
            }
        };
        Self { kind, id }
    }
}

fn subject_of(operation: &Operation) -> u64 {
    let value = match operation {
        Operation::Insert { row, .. } => row.values.first(),
        Operation::Update { set, .. } => set.first().map(|(_, value)| value),
        Operation::Delete { .. } => None,
    };
    match value {
        Some(Value::Integer(number)) => number.cast_unsigned(),
        Some(Value::Decimal(_) | Value::Boolean(_) | Value::Text(_)) | None => operation.key().0.cast_unsigned(),
    }
}

/// What becomes of a message: nothing, one delivery, or two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// After how long it arrives; `None` if it is lost.
    pub first: Option<Duration>,
    /// After how long it arrives again.
    pub second: Option<Duration>,
}

/// The network of one run.
#[derive(Clone, Debug)]
pub struct Net {
    keyed: Keyed,
    repeats: Vec<u32>,
    /// Latency and loss are off: the schedule of the exhaustive search.
    pub plain: bool,
}

impl Net {
    /// A network that has carried nothing yet.
    #[must_use]
    pub fn new(keyed: Keyed) -> Self {
        Self { keyed, repeats: vec![0; REPEAT_SLOTS], plain: false }
    }

    /// What becomes of this message under the faults that are open now.
    pub fn fate<'a>(&mut self, from: Place, to: Place, subject: Subject, open: impl Iterator<Item = &'a Fault>) -> Fate {
        let link = fold(fold(u64::from(subject.kind), from.code()), to.code());
        let key = fold(link, subject.id);
        let slot = usize::try_from(key % REPEAT_SLOTS as u64).unwrap_or(0);
        self.repeats[slot] += 1;
        let mut draw = self.keyed.draw(Purpose::Message, [link, subject.id, u64::from(self.repeats[slot])]);
        if self.plain {
            return Fate { first: Some(Duration(500_000)), second: None };
        }
        let latency = Duration(draw.between(LATENCY_NS.0, LATENCY_NS.1));
        let mut fate = Fate { first: Some(latency), second: None };
        for fault in open {
            worsen(&mut fate, fault, from, to, draw);
        }
        fate
    }
}

/// Every fault draws from numbers of its own, so that windows do not change each other.
fn worsen(fate: &mut Fate, fault: &Fault, from: Place, to: Place, draw: Draw) {
    match fault {
        Fault::Weather { place, loss_ppm, duplicate_ppm, straggler_ppm, straggler_max } => {
            let mut own = draw.split(place.code());
            if *place != Place::Others && *place != from && *place != to {
                return;
            }
            let (lost, twice, late) = (own.chance(*loss_ppm), own.chance(*duplicate_ppm), own.chance(*straggler_ppm));
            let delay = Duration(own.below(straggler_max.0));
            let again = Duration(own.below(straggler_max.0.max(1_000_000)));
            if lost {
                fate.first = None;
            } else if late {
                fate.first = fate.first.map(|latency| Duration(latency.0 + delay.0));
            }
            if twice {
                fate.second = Some(Duration(LATENCY_NS.0 + again.0));
            }
        }
        Fault::Cut { a, b, way } => {
            if is_cut(*a, *b, *way, from, to) {
                *fate = Fate::default();
            }
        }
        Fault::Split { servers, balancers, .. } => {
            let side = |place| is_in_group(*servers, *balancers, place);
            if side(from) != side(to) {
                *fate = Fate::default();
            }
        }
        Fault::Crash { .. }
        | Fault::PowerLoss
        | Fault::DiskLoss { .. }
        | Fault::DiskBack { .. }
        | Fault::Rot { .. }
        | Fault::Pause { .. }
        | Fault::SlowDisk { .. }
        | Fault::StoreDown { .. }
        | Fault::Register { .. }
        | Fault::ProvisionFails
        | Fault::StartsFail { .. }
        | Fault::Down { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Way;
    use twinshard_core::id::ServerId;

    const A: Place = Place::Server(ServerId(1));
    const B: Place = Place::Server(ServerId(2));
    const C: Place = Place::Balancer(0);

    fn fate(from: Place, to: Place, faults: &[Fault]) -> Fate {
        Net::new(Keyed::new(1)).fate(from, to, Subject { kind: 1, id: 1 }, faults.iter())
    }

    #[test]
    fn a_cut_stops_what_it_says_and_nothing_else() {
        let cut = |a, b, way| [Fault::Cut { a, b, way }];
        for (faults, from, to, arrives) in [
            (cut(A, B, Way::Both), A, B, false),
            (cut(A, B, Way::Both), B, A, false),
            (cut(A, B, Way::Both), A, C, true),
            (cut(A, B, Way::Forth), A, B, false),
            (cut(A, B, Way::Forth), B, A, true),
            (cut(A, B, Way::Back), A, B, true),
            (cut(A, Place::Others, Way::Both), A, C, false),
            (cut(A, Place::Others, Way::Both), C, A, false),
            (cut(A, Place::Others, Way::Both), B, C, true),
            (cut(A, Place::Others, Way::Back), C, A, false),
            (cut(A, Place::Others, Way::Back), A, C, true),
        ] {
            assert_eq!(fate(from, to, &faults).first.is_some(), arrives, "{faults:?} {from} {to}");
        }
    }

    #[test]
    fn a_window_changes_nothing_for_those_it_does_not_touch() {
        let weather =
            |place| Fault::Weather { place, loss_ppm: 500_000, duplicate_ppm: 500_000, straggler_ppm: 500_000, straggler_max: Duration(9) };
        for id in 0..100 {
            let mut net = Net::new(Keyed::new(3));
            let mut other = net.clone();
            let subject = Subject { kind: 7, id };
            let storm = [weather(Place::Server(ServerId(9))), weather(A)];
            let calm = [weather(A)];
            assert_eq!(net.fate(A, B, subject, storm.iter()), other.fate(A, B, subject, calm.iter()));
        }
    }
}
