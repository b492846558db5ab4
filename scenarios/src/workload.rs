//! What the clients of a scenario ask: a pure function of scenario, seed and the number of the operation. Never looks at an answer, so
//! that taking one operation away leaves all others as they were.
//!
//! Open loop: [`Workload::plan`] is the list of operations with absolute times. Closed loop: the client's n-th operation has the number
//! [`Workload::closed_loop_id`]; the world asks for it when the client has thought. Every value written is unique in the run.

use crate::scenario::{AdminKind, KeyChoice, Scenario, ShardSpec, WorkloadSpec};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::collections::BTreeMap;
use twinshard_core::{
    command::{Idempotency, OnConflict, Operation},
    request::{Consistency, Reply, Request},
    time::{Duration, Instant},
    value::{Key, KeyRange, Row, Value},
};

use crate::history::{VALUE_COLUMN, name_for};

/// How many rows a page of the final reading back has at most.
pub const READ_BACK_LIMIT: u32 = 1_000;

/// A stream of random numbers of its own for each purpose of a seed. The same on every machine and with every version of the crates.
#[must_use]
pub fn stream(seed: u64, purpose: &str, number: u64) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    // FNV-1a: spreads the purpose, which is all that is asked of it.
    let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(number);
    rng
}

/// A number below `bound`, which must not be 0. Its bias is below 2^-32 for every bound below 2^32.
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    debug_assert!(bound > 0, "nothing is below 0");
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// An operation of an open loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its number.
    pub id: u64,
    /// When it begins, in nanoseconds from the start of the load.
    pub at_ns: u64,
    /// Which client sends it.
    pub client: u32,
    /// What it asks. A session read's token is for the world to fill in ([`crate::history::Recorder::with_session`]).
    pub request: Request,
}

/// The keys in use from some time on.
#[derive(Clone, Debug)]
struct Keys {
    from_ms: u64,
    /// Neighbours belong to different shards.
    keys: Vec<Key>,
    /// For Zipf: the sum of the weights up to and with each key.
    weight_sums: Vec<u64>,
}

/// The workload of a scenario under a seed.
#[derive(Clone, Debug)]
pub struct Workload {
    spec: WorkloadSpec,
    seed: u64,
    eras: Vec<Keys>,
    shards: Vec<KeyRange>,
}

/// The client that the operator is in histories.
pub const OPERATOR: u32 = 900_000;
/// How long the operator waits (API.md).
pub const ADMIN_TIMEOUT: Duration = Duration::from_millis(120_000);

/// A closed loop: each client asks again when it was answered.
#[derive(Clone, Debug)]
pub struct ClosedLoop {
    /// What is asked.
    pub workload: Workload,
    /// How many clients.
    pub clients: u32,
    /// How long a client thinks.
    pub think: Duration,
    /// How long it waits for an answer.
    pub timeout: Duration,
    /// How often it comes again when the outcome is not known.
    pub retries: u32,
    /// When the load begins.
    pub from: Instant,
    /// When it ends.
    pub until: Instant,
}

impl Workload {
    /// Prepares the choice of keys.
    #[must_use]
    pub fn new(scenario: &Scenario, seed: u64) -> Self {
        let spec = scenario.workload.clone();
        let mut shards: Vec<&ShardSpec> = scenario.topology.shards.iter().collect();
        let mut eras = vec![keys(&spec, &shards, 0)];
        let mut steps: Vec<_> = scenario.admin.iter().collect();
        steps.sort_by_key(|step| step.at_ms);
        for step in steps {
            if let AdminKind::Add { shards: new, .. } = &step.kind
                && !new.is_empty()
            {
                shards.extend(new);
                eras.push(keys(&spec, &shards, step.at_ms + spec.new_shard_after_ms));
            }
        }
        let shards = shards.iter().map(|shard| KeyRange { low: Key(shard.low), high: Key(shard.low + shard.size - 1) }).collect();
        Self { spec, seed, eras, shards }
    }

    /// The closed loop of a run whose load begins then, if it is one.
    #[must_use]
    pub fn closed_loop(&self, from: Instant) -> Option<ClosedLoop> {
        let spec = &self.spec;
        let think_ms = spec.think_ms.filter(|_| spec.rate_per_s.is_none())?;
        Some(ClosedLoop {
            workload: self.clone(),
            clients: spec.clients,
            think: Duration::from_millis(think_ms),
            timeout: Duration::from_millis(spec.deadline_ms),
            retries: spec.retries_max,
            from,
            until: from + Duration::from_millis(spec.duration_ms),
        })
    }

    /// The operations of an open loop, by time. Empty for a closed loop.
    #[must_use]
    pub fn plan(&self) -> Vec<Planned> {
        let Some(rate) = self.spec.rate_per_s else { return Vec::new() };
        let count = rate * self.spec.duration_ms / 1_000;
        let spacing_ns = 1_000_000_000 / rate;
        (0..count)
            .map(|id| {
                let mut rng = stream(self.seed, "workload times", id);
                // Evenly, each somewhere in its own slot: bursts and ties, yet the same rate.
                let at_ns = id * 1_000_000_000 / rate + below(&mut rng, spacing_ns.max(1));
                let client = below(&mut rng, u64::from(self.spec.clients)) as u32;
                Planned { id, at_ns, client, request: self.request(id, at_ns / 1_000_000) }
            })
            .collect()
    }

    /// The number of a client's n-th operation, from 0, in a closed loop.
    #[must_use]
    pub fn closed_loop_id(&self, client: u32, nth: u64) -> u64 {
        nth * u64::from(self.spec.clients) + u64::from(client)
    }

    /// What operation `id` asks if it begins at `at_ms` after the start of the load.
    #[must_use]
    pub fn request(&self, id: u64, at_ms: u64) -> Request {
        let mut rng = stream(self.seed, "workload operations", id);
        let era = self.eras.iter().rfind(|era| era.from_ms <= at_ms).unwrap_or(&self.eras[0]);
        let mut maker = Maker { workload: self, era, id, rng: &mut rng, made: 0 };
        let weights = self.spec.mix.weights();
        let mut point = below(maker.rng, weights.iter().map(|weight| u64::from(*weight)).sum::<u64>().max(1));
        let mut kind = 0;
        for (place, weight) in weights.iter().enumerate() {
            if point < u64::from(*weight) {
                kind = place;
                break;
            }
            point -= u64::from(*weight);
        }
        // The order of `Mix::weights`.
        match kind {
            0 => maker.insert(OnConflict::Replace),
            1 => maker.insert(OnConflict::Error),
            2 => maker.insert(OnConflict::Skip),
            3 => maker.batch(),
            4 => maker.mixed_batch(),
            5 => {
                let update = maker.update();
                maker.write(vec![update], OnConflict::Replace)
            }
            6 => {
                let delete = Operation::Delete { key: maker.key() };
                maker.write(vec![delete], OnConflict::Replace)
            }
            7 => maker.read(1, Consistency::Linearizable),
            8 => maker.range_read(Consistency::Linearizable),
            9 => maker.any_read(Consistency::Session(BTreeMap::new())),
            _ => maker.any_read(Consistency::Stale),
        }
    }

    /// Reads that together see every row that clients could have written: for the end, when all is healed. Follow with [`next_page`].
    #[must_use]
    pub fn read_back(&self) -> Vec<Request> {
        let whole = |range: &KeyRange| Request::Read { range: *range, limit: READ_BACK_LIMIT, consistency: Consistency::Linearizable };
        self.shards.iter().map(whole).collect()
    }
}

/// The request that goes on where this answer ended, if it did not reach the end.
#[must_use]
pub fn next_page(request: &Request, reply: &Reply) -> Option<Request> {
    match (request, reply) {
        (Request::Read { range, limit, consistency }, Reply::Rows(rows)) => rows
            .next
            .filter(|next| range.contains(*next))
            .map(|low| Request::Read { range: KeyRange { low, high: range.high }, limit: *limit, consistency: consistency.clone() }),
        _ => None,
    }
}

fn keys(spec: &WorkloadSpec, shards: &[&ShardSpec], from_ms: u64) -> Keys {
    /// Weights are whole numbers: floats may differ between machines.
    const WEIGHT_OF_FIRST: u64 = 1 << 32;
    let per_shard = i64::from(spec.keys_per_shard);
    let keys: Vec<Key> = (0..per_shard)
        .flat_map(|offset| shards.iter().filter(move |shard| offset < shard.size).map(move |shard| Key(shard.low + offset)))
        .collect();
    let weight_sums = match spec.key_choice {
        KeyChoice::Zipf => keys
            .iter()
            .zip(1..)
            .scan(0, |sum, (_, rank)| {
                *sum += WEIGHT_OF_FIRST / rank;
                Some(*sum)
            })
            .collect(),
        KeyChoice::Uniform | KeyChoice::Sequential => Vec::new(),
    };
    Keys { from_ms, keys, weight_sums }
}

/// Makes one request.
struct Maker<'a> {
    workload: &'a Workload,
    era: &'a Keys,
    id: u64,
    rng: &'a mut ChaCha8Rng,
    made: u64,
}

impl Maker<'_> {
    fn key(&mut self) -> Key {
        let keys = &self.era.keys;
        let place = match self.workload.spec.key_choice {
            KeyChoice::Uniform => below(self.rng, keys.len() as u64) as usize,
            KeyChoice::Sequential => ((self.id + self.made) % keys.len() as u64) as usize,
            KeyChoice::Zipf => {
                let point = below(self.rng, self.era.weight_sums[keys.len() - 1]);
                self.era.weight_sums.partition_point(|sum| *sum <= point)
            }
        };
        keys[place]
    }

    /// A value that no other operation writes: it tells the operation and the place in it.
    fn value(&mut self) -> i64 {
        self.made += 1;
        let per_operation = u64::from(self.workload.spec.rows_per_batch);
        (self.id * per_operation + self.made) as i64
    }

    fn row(&mut self, key: Key) -> Row {
        let value = self.value();
        Row { key, values: vec![Value::Text(name_for(value as u64)), Value::Integer(value)] }
    }

    fn update(&mut self) -> Operation {
        let key = self.key();
        Operation::Update { key, set: vec![(VALUE_COLUMN, Value::Integer(self.value()))] }
    }

    fn insert(&mut self, on_conflict: OnConflict) -> Request {
        let key = self.key();
        let row = self.row(key);
        self.write(vec![Operation::Insert { row, on_conflict }], on_conflict)
    }

    fn batch(&mut self) -> Request {
        let operations = (0..self.workload.spec.rows_per_batch)
            .map(|_| {
                // Keys may repeat: the later entry wins.
                let key = self.key();
                Operation::Insert { row: self.row(key), on_conflict: OnConflict::Replace }
            })
            .collect();
        self.write(operations, OnConflict::Replace)
    }

    fn mixed_batch(&mut self) -> Request {
        let operations = (0..self.workload.spec.rows_per_batch)
            .map(|_| match below(self.rng, 4) {
                0 => self.update(),
                1 => Operation::Delete { key: self.key() },
                _ => {
                    let key = self.key();
                    Operation::Insert { row: self.row(key), on_conflict: OnConflict::Replace }
                }
            })
            .collect();
        self.write(operations, OnConflict::Replace)
    }

    fn write(&mut self, operations: Vec<Operation>, on_conflict: OnConflict) -> Request {
        let idempotency = self.workload.spec.idempotency_keys.then(|| Idempotency {
            key: format!("operation-{}", self.id).into_boxed_str(),
            // Made outside the core from the body; every body here is another.
            body_hash: u128::from(self.id) + 1,
        });
        Request::Write { operations, on_conflict: Some(on_conflict), idempotency }
    }

    fn read(&mut self, width: u32, consistency: Consistency) -> Request {
        let low = self.key();
        let high = Key(low.0.saturating_add(i64::from(width) - 1));
        // Now and then a page ends early.
        let limit = if width > 1 && below(self.rng, 4) == 0 { width.div_ceil(2) } else { width };
        Request::Read { range: KeyRange { low, high }, limit, consistency }
    }

    fn range_read(&mut self, consistency: Consistency) -> Request {
        self.read(self.workload.spec.range_width, consistency)
    }

    fn any_read(&mut self, consistency: Consistency) -> Request {
        if below(self.rng, 2) == 0 { self.read(1, consistency) } else { self.range_read(consistency) }
    }
}

#[cfg(test)]
mod tests;
