use super::*;
use serde_json::json;
use std::collections::BTreeSet;
use twinshard_core::{
    config::Configuration,
    id::{Epoch, ReplicaId, ServerId, ShardId},
    map::{ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
    value::Key,
};

/// `sh1` with members on `Server1` and `Server2`.
fn map() -> ClusterMap {
    let mut map = ClusterMap::default();
    for number in 1..=2 {
        let server = ServerId(number);
        map.servers.insert(
            server,
            ServerRecord { name: format!("Server{number}").into(), number, goal: ServerGoal::Run, address: None, incarnation: None },
        );
        map.replicas.insert(ReplicaId(number), ReplicaRecord { shard: ShardId(1), server, stage: ReplicaStage::Ready });
    }
    let members = BTreeSet::from([ReplicaId(1), ReplicaId(2)]);
    let current = Configuration { epoch: Epoch(1), primary: ReplicaId(1), members: members.into_iter().collect(), write_quorum: 2 };
    let record = ShardRecord {
        name: "sh1".into(),
        low: Key(0),
        size: 1,
        current: Some(current),
        pending: None,
        placement: BTreeSet::new(),
        wanted_primary: None,
    };
    map.shards.insert(ShardId(1), record);
    map
}

#[test]
fn replicas_are_equal_only_if_all_were_compared() {
    let row = json!([{ "Stud_id": 1 }]);
    for (first, second, compared, words) in [
        (Some(json!({ "sh1": row })), Some(json!({ "sh1": row })), 2, &[][..]),
        (Some(json!({ "sh1": row })), Some(json!({ "sh1": [] })), 2, &["Server2 and Server1 hold other rows of sh1"]),
        (Some(json!({ "sh1": row })), Some(json!({})), 1, &["Server2 gave no rows of sh1, of which it is a member"]),
        (Some(json!({ "sh1": row })), None, 1, &["Server2 gave no rows of sh1, of which it is a member"]),
        (Some(json!({ "sh1": null })), Some(json!(null)), 0, &["Server1 gave no rows", "Server2 gave no rows", "no replica was compared"]),
    ] {
        let held = [("Server1", first), ("Server2", second)];
        let held = held.into_iter().filter_map(|(name, shards)| Some((name.into(), shards?))).collect();
        let (count, found) = differences(&map(), &held);
        assert_eq!((count, found.len()), (compared, words.len()), "{found:?}");
        assert!(found.iter().zip(words).all(|(found, words)| found.starts_with(words)), "{found:?}");
    }
    assert_eq!(differences(&ClusterMap::default(), &BTreeMap::new()), (0, vec!["no replica was compared".to_owned()]));
}
