use super::*;
use crate::history::Kind;
use std::collections::BTreeSet;

fn scenario(extra: &str) -> Scenario {
    let text = format!(
        r#"
name = "x"
story = "s"
[topology]
servers = 3
shards = [{{ name = "sh1", low = 0, size = 100 }}, {{ name = "sh2", low = 100, size = 100 }}]
[[admin]]
at_ms = 1000
kind = "add"
servers = [{{ name = "Server9", shards = ["sh3"] }}]
shards = [{{ name = "sh3", low = 200, size = 100 }}]
[workload]
clients = 4
duration_ms = 10000
rate_per_s = 300
keys_per_shard = 20
{extra}
[workload.mix]
write = 4
insert = 1
skip = 1
batch = 2
mixed_batch = 1
update = 2
delete = 1
read = 4
range_read = 2
session_read = 1
stale_read = 1
"#
    );
    Scenario::parse("x.toml", &text).expect("a good scenario")
}

fn operations(plan: &[Planned]) -> impl Iterator<Item = (&Planned, &Operation)> {
    plan.iter().flat_map(|planned| match &planned.request {
        Request::Write { operations, .. } => operations.iter().map(|operation| (planned, operation)).collect(),
        _ => Vec::new(),
    })
}

#[test]
fn the_plan_is_a_function_of_the_seed() {
    let scenario = scenario("");
    let plan = Workload::new(&scenario, 7).plan();
    assert_eq!(plan, Workload::new(&scenario, 7).plan());
    assert_ne!(plan, Workload::new(&scenario, 8).plan());
    assert_eq!(plan.len(), 3_000);
    assert!(plan.is_sorted_by_key(|planned| planned.at_ns));
    assert!(plan.iter().all(|planned| planned.at_ns < 10_000_000_000 && planned.client < 4));
    // Pinned: a change of any crate or of the code below must be seen, because it changes every seed there is.
    let mut digest = 0_u64;
    let mut take = |number: u64| digest = digest.wrapping_mul(0x100_0000_01b3) ^ number;
    for planned in &plan {
        take(planned.at_ns);
        take(u64::from(planned.client));
        take(Kind::of(&planned.request) as u64);
        match &planned.request {
            Request::Write { operations, .. } => operations.iter().for_each(|operation| take(operation.key().0 as u64)),
            Request::Read { range, limit, .. } => take(range.low.0 as u64 ^ u64::from(*limit) << 32),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(digest, 9_402_208_659_339_964_617, "the plan changed");
}

#[test]
fn values_are_unique_and_keys_in_use() {
    let plan = Workload::new(&scenario(""), 1).plan();
    let mut values = BTreeSet::new();
    let mut new_shard_count = 0;
    for (planned, operation) in operations(&plan) {
        let value = match operation {
            Operation::Insert { row, .. } => Some(crate::history::value_of(row)),
            Operation::Update { set, .. } => match set.as_slice() {
                [(VALUE_COLUMN, Value::Integer(value))] => Some(*value as u64),
                _ => panic!("{set:?}"),
            },
            Operation::Delete { .. } => None,
        };
        if let Some(value) = value {
            assert!(values.insert(value), "{value} stands twice");
        }
        let key = operation.key().0;
        assert!((0..300).contains(&key) && key % 100 < 20, "{key}");
        if key >= 200 {
            new_shard_count += 1;
            assert!(planned.at_ns >= 3_000_000_000, "a shard that is not there yet");
        }
    }
    assert!(values.len() > 2_000 && new_shard_count > 200, "{} {new_shard_count}", values.len());
}

#[test]
fn the_mix_is_kept() {
    let plan = Workload::new(&scenario(""), 1).plan();
    let mut counts = BTreeMap::new();
    for planned in &plan {
        *counts.entry(Kind::of(&planned.request)).or_insert(0_u32) += 1;
    }
    // Of 20 parts: writes 6, batches 3, updates 2, deletes 1, reads 4, range reads 2, session 1, stale 1.
    for (kind, parts) in
        [(Kind::Write, 6), (Kind::Batch, 3), (Kind::Update, 2), (Kind::Delete, 1), (Kind::PointRead, 4), (Kind::RangeRead, 2)]
    {
        let count = counts[&kind];
        assert!(count.abs_diff(150 * parts) < 30 + 15 * parts, "{kind:?} {count}");
    }
    assert!(counts[&Kind::SessionRead] > 100 && counts[&Kind::StaleRead] > 100);
}

#[test]
fn keys_follow_their_choice() {
    let share_of_first = |choice: &str| {
        let plan = Workload::new(&scenario(&format!("key_choice = '{choice}'")), 1).plan();
        let keys: Vec<i64> = operations(&plan).map(|(_, operation)| operation.key().0).collect();
        100 * keys.iter().filter(|key| **key == 0).count() / keys.len()
    };
    let (uniform, zipf, sequential) = (share_of_first("uniform"), share_of_first("zipf"), share_of_first("sequential"));
    assert!((0..=4).contains(&uniform) && (0..=4).contains(&sequential), "{uniform} {sequential}");
    assert!((15..=30).contains(&zipf), "{zipf}");
}

#[test]
fn reading_back_follows_pages_to_the_end() {
    let workload = Workload::new(&scenario(""), 1);
    let requests = workload.read_back();
    assert_eq!(requests.len(), 3);
    let reply = |next| Reply::Rows(Box::new(twinshard_core::request::Rows { next, ..Default::default() }));
    let Some(Request::Read { range, .. }) = next_page(&requests[1], &reply(Some(Key(150)))) else { panic!("no next page") };
    assert_eq!(range, KeyRange { low: Key(150), high: Key(199) });
    assert_eq!(next_page(&requests[1], &reply(None)), None);
    assert_eq!(next_page(&requests[1], &reply(Some(Key(200)))), None);
}
