//! Linearizability of each key by itself, from times and values alone: versions and indexes are not looked at.
//!
//! The zone test of Gibbons and Korach ("Testing Shared Memories", 1997, section 4.2): all that touch one value must happen while that
//! value stands. From the first return to the last call of them it stands for certain (a forward zone); if all overlap, it stands at
//! some instant between the last call and the first return (a backward zone). No two forward zones may overlap, no backward zone may
//! lie within a forward zone of another value. Absence has no value of its own here: an absence is held only to what is certain, that
//! the key was absent from the return of the last deletion that it may have seen; and likewise a condition that a key be there.

use super::{
    Check, Findings,
    model::{INFINITY, MINUS_INFINITY, Model},
};

/// What stands in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Value(u64),
    Absence,
    /// Any value.
    Presence,
}

impl Stands {
    fn excludes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Value(one), Self::Value(other)) => one != other,
            (Self::Absence, other) | (other, Self::Absence) => other != Self::Absence,
            (Self::Presence, _) | (_, Self::Presence) => false,
        }
    }
}

/// Some operations on one key between two times. `low < high` strictly in a forward zone.
#[derive(Clone, Copy, Debug)]
struct Zone {
    stands: Stands,
    low: u64,
    high: u64,
    /// The operations that set its ends.
    ops: [usize; 2],
}

/// What an operation has to do with a key.
#[derive(Clone, Copy, Debug)]
enum Touch {
    Write {
        value: u64,
        present: bool,
    },
    Read {
        value: u64,
    },
    Exists {
        present: bool,
    },
    /// It may have made the key present or absent from its call on.
    Maybe {
        present: bool,
        called: u64,
    },
}

const NOBODY: usize = usize::MAX;

/// Checks one shard.
pub(super) fn check(model: &Model<'_>) -> Findings {
    let mut found = Findings::default();
    let mut touches: Vec<(usize, usize, Touch)> = Vec::with_capacity(model.writes.len() + model.seen.len() + model.needs.len());
    for (op, each) in model.ops.iter().enumerate().filter(|(_, op)| op.is_strict()) {
        for write in &model.writes[each.writes.clone()] {
            touches.push((write.key, op, Touch::Write { value: write.value, present: write.present }));
        }
        for need in &model.needs[each.needs.clone()] {
            touches.push((need.key, op, Touch::Exists { present: need.present }));
        }
        for seen in &model.seen[each.seen.clone()] {
            let touch = match seen.value {
                crate::history::ABSENT => Touch::Exists { present: false },
                value => Touch::Read { value },
            };
            touches.push((seen.key, op, touch));
        }
    }
    touches.extend(model.maybes.iter().map(|maybe| (maybe.key, NOBODY, Touch::Maybe { present: maybe.present, called: maybe.called })));
    // Stable: the order of operations within a key stays.
    touches.sort_by_key(|(key, _, _)| *key);
    let mut zone_count = 0;
    let mut key_count = 0;
    for of_key in touches.chunk_by(|one, other| one.0 == other.0) {
        key_count += 1;
        zone_count += check_key(model, of_key, &mut found);
    }
    found.count("keys", key_count);
    found.count("touches of keys", touches.len());
    found.count("zones", zone_count);
    found
}

/// Writers that may have made a key present (or absent): by call, with the two latest returns of all up to and with each.
#[derive(Default)]
struct Makers {
    called: Vec<(u64, u64, usize)>,
    latest: Vec<[(u64, usize); 2]>,
}

impl Makers {
    fn finish(&mut self) {
        self.called.sort_unstable();
        let mut two = [(MINUS_INFINITY, NOBODY); 2];
        for (_, returned, op) in &self.called {
            if *returned >= two[0].0 {
                two = [(*returned, *op), two[0]];
            } else if *returned > two[1].0 {
                two[1] = (*returned, *op);
            }
            self.latest.push(two);
        }
    }

    /// The latest return of those called by `called_by`, without `except`. `None` if there is none.
    fn latest_return(&self, called_by: u64, except: usize) -> Option<(u64, usize)> {
        let count = self.called.partition_point(|(called, _, _)| *called <= called_by);
        let two = self.latest[count.checked_sub(1)?];
        two.into_iter().find(|(returned, op)| *returned > MINUS_INFINITY && (*op != except || *op == NOBODY))
    }
}

/// Checks one key; the number of its zones.
fn check_key(model: &Model<'_>, touches: &[(usize, usize, Touch)], found: &mut Findings) -> usize {
    let key = touches[0].0;
    let ops = |op: usize| &model.ops[op];
    let mut makers = [Makers::default(), Makers::default()];
    // By value: whoever wrote or saw it, writers first.
    let mut by_value: Vec<(u64, bool, usize)> = Vec::with_capacity(touches.len());
    let (mut forward, mut backward): (Vec<Zone>, Vec<Zone>) = (Vec::new(), Vec::new());
    for (_, op, touch) in touches {
        match *touch {
            Touch::Write { value, present } => {
                makers[usize::from(present)].called.push((ops(*op).called, ops(*op).returned, *op));
                if present {
                    by_value.push((value, false, *op));
                } else {
                    backward.push(Zone { stands: Stands::Absence, low: ops(*op).called, high: ops(*op).returned, ops: [*op, *op] });
                }
            }
            Touch::Read { value } => by_value.push((value, true, *op)),
            Touch::Maybe { present, called } => makers[usize::from(present)].called.push((called, INFINITY, NOBODY)),
            Touch::Exists { .. } => {}
        }
    }
    makers.iter_mut().for_each(Makers::finish);
    by_value.sort_unstable();
    for group in by_value.chunk_by(|one, other| one.0 == other.0) {
        let (value, writer) = (group[0].0, group[0].2);
        if group[0].1 {
            // Nobody wrote it: that is told with the integrity of values.
            continue;
        }
        let mut zone = Zone { stands: Stands::Value(value), low: INFINITY, high: MINUS_INFINITY, ops: [writer; 2] };
        for (_, is_read, op) in group {
            if *is_read && ops(*op).returned < ops(writer).called {
                found.violation(|| {
                    let summary = format!("key {}: a value was seen before anybody asked for it", model.keys[key]);
                    model.violation(Check::Linearizability, summary, &[(*op, ""), (writer, "")])
                });
            }
            if ops(*op).returned < zone.low {
                (zone.low, zone.ops[0]) = (ops(*op).returned, *op);
            }
            if ops(*op).called > zone.high {
                (zone.high, zone.ops[1]) = (ops(*op).called, *op);
            }
        }
        if zone.low < zone.high {
            forward.push(zone);
        } else {
            backward.push(Zone { low: zone.high, high: zone.low, ops: [zone.ops[1], zone.ops[0]], ..zone });
        }
    }
    for (_, op, touch) in touches {
        let Touch::Exists { present } = *touch else { continue };
        let stands = if present { Stands::Presence } else { Stands::Absence };
        let (called, returned) = (ops(*op).called, ops(*op).returned);
        let since = match makers[usize::from(present)].latest_return(returned, *op) {
            Some(since) => since,
            // A key is absent in the beginning, and never present.
            None if !present => (MINUS_INFINITY, *op),
            None => {
                found.violation(|| {
                    let summary = format!("key {} was found there before anybody could have put it there", model.keys[key]);
                    model.violation(Check::Linearizability, summary, &[(*op, "")])
                });
                continue;
            }
        };
        let by = if since.1 == NOBODY { *op } else { since.1 };
        if since.0 < called {
            forward.push(Zone { stands, low: since.0, high: called, ops: [by, *op] });
        } else {
            backward.push(Zone { stands, low: called, high: returned, ops: [*op, *op] });
        }
    }
    let count = forward.len() + backward.len();
    conflicts(model, key, forward, &backward, found);
    count
}

/// The zones of one kind by their beginning, with the one that reaches furthest of all up to and with each.
struct Sorted {
    zones: Vec<Zone>,
    furthest: Vec<usize>,
}

impl Sorted {
    fn new(mut zones: Vec<Zone>) -> Self {
        zones.sort_unstable_by_key(|zone| (zone.low, zone.high, zone.ops));
        let mut best = 0;
        let furthest = (0..zones.len())
            .map(|at| {
                if zones[at].high > zones[best].high {
                    best = at;
                }
                best
            })
            .collect();
        Self { zones, furthest }
    }

    /// The zone that begins before `low` and reaches furthest.
    fn reaching(&self, low: u64) -> Option<&Zone> {
        let count = self.zones.partition_point(|zone| zone.low < low);
        count.checked_sub(1).map(|last| &self.zones[self.furthest[last]])
    }
}

fn conflicts(model: &Model<'_>, key: usize, forward: Vec<Zone>, backward: &[Zone], found: &mut Findings) {
    let kind = |wanted: fn(&Zone) -> bool| Sorted::new(forward.iter().filter(|zone| wanted(zone)).copied().collect());
    let values = kind(|zone| matches!(zone.stands, Stands::Value(_)));
    let absences = kind(|zone| zone.stands == Stands::Absence);
    let presences = kind(|zone| zone.stands == Stands::Presence);
    let mut tell = |one: &Zone, other: &Zone, how: &str| {
        found.violation(|| {
            let name = |zone: &Zone| match zone.stands {
                Stands::Value(value) => format!("={value}"),
                Stands::Absence => "no row".to_owned(),
                Stands::Presence => "some row".to_owned(),
            };
            let summary = format!("key {}: {} and {} {how}", model.keys[key], name(one), name(other));
            let mut ops: Vec<(usize, &str)> = Vec::new();
            for op in one.ops.into_iter().chain(other.ops) {
                if !ops.iter().any(|(known, _)| *known == op) {
                    ops.push((op, ""));
                }
            }
            ops.sort_by_key(|(op, _)| (model.ops[*op].called, *op));
            model.violation(Check::Linearizability, summary, &ops)
        });
    };
    const OVERLAP: &str = "stood at the same time";
    const WITHIN: &str = "exclude each other: one falls within the time for which the other certainly stood";
    // Two forward zones of values: neighbours suffice to find whether there are any that overlap.
    for pair in values.zones.windows(2) {
        if pair[1].low < pair[0].high {
            tell(&pair[0], &pair[1], OVERLAP);
        }
    }
    for zone in &forward {
        if zone.stands != Stands::Absence
            // The absence that reaches furthest of those that begin before this zone ends.
            && let Some(absence) = absences.reaching(zone.high)
            && absence.high > zone.low
        {
            tell(absence, zone, OVERLAP);
        }
    }
    for zone in backward {
        for kind in [&values, &absences, &presences] {
            if let Some(around) = kind.reaching(zone.low)
                && around.high > zone.high
                && around.stands.excludes(zone.stands)
            {
                tell(around, zone, WITHIN);
            }
        }
    }
}
