use super::*;
use crate::{
    balancer::{
        loss::Denied,
        removal::{Remove, remove},
    },
    schema::{Column, ColumnType},
    time::Duration,
};

fn schema() -> Schema {
    Schema::new(vec![Column { name: "Stud_id".into(), dtype: ColumnType::Number }]).unwrap()
}

fn observed() -> Observed {
    Observed::new(Duration::from_millis(500), Duration::from_millis(3_000))
}

/// A cluster of three servers, whose one shard was not begun yet.
fn cluster(on_conflict: Option<OnConflict>) -> ClusterMap {
    let (schema, shards) = (schema(), [NewShard { name: "sh1".into(), low: 0, size: 10 }]);
    let request = Init { server_count: Some(3), schema: &schema, shards: &shards, servers: None, on_conflict, by_name: false };
    init(&ClusterMap::default(), &request).unwrap().0
}

fn removed(map: &ClusterMap, server_count: u64, names: &[&str], accept_data_loss: bool) -> Result<Vec<Box<str>>, RequestError> {
    let servers: Vec<Box<str>> = names.iter().map(|&name| name.into()).collect();
    let request = Remove { server_count, servers: &servers, accept_data_loss, capped: false };
    let (next, goal) = remove(map, &request, &observed(), Instant::default()).map_err(|denied| match denied {
        Denied::Now(error) | Denied::Later(error) => error,
    })?;
    let Goal::Removed { names, .. } = goal else { panic!("{goal:?}") };
    let gone = next.servers.values().filter(|record| record.goal == ServerGoal::Leave).count();
    assert_eq!(gone, names.len());
    Ok(names)
}

#[test]
fn last_servers_go_only_where_all_are_named_or_the_loss_is_accepted() {
    let map = cluster(None);
    let all = ["Server2", "Server0", "Server1"];
    for named in 0..3 {
        let refusal = removed(&map, 3, &all[..named], false).unwrap_err();
        assert!(refusal.to_string().contains("'sh1'") && matches!(refusal, RequestError::Refused(_)), "{refusal}");
        assert_eq!(removed(&map, 3, &all[..named], true).unwrap().len(), 3);
    }
    assert_eq!(*removed(&map, 3, &all, false).unwrap(), ["Server0", "Server1", "Server2"].map(Box::from), "in the order they came");
    // Without shards there is nothing to lose.
    let (bare, _) = add(&ClusterMap::default(), 2, &[], &[], false).unwrap();
    assert_eq!(removed(&bare, 2, &[], false).unwrap().len(), 2);
}

#[test]
fn what_an_earlier_cluster_did_on_conflict_is_forgotten() {
    let map = cluster(Some(OnConflict::Error));
    assert_eq!(map.settings.on_conflict, OnConflict::Error);
    let servers = ["Server0", "Server1", "Server2"].map(Box::from);
    let request = Remove { server_count: 3, servers: &servers, accept_data_loss: false, capped: false };
    let (mut torn_down, _) = remove(&map, &request, &observed(), Instant::default()).unwrap();
    torn_down.servers.clear();
    let (schema, shards) = (schema(), [NewShard { name: "sh1".into(), low: 0, size: 10 }]);
    let request = Init { server_count: None, schema: &schema, shards: &shards, servers: None, on_conflict: None, by_name: false };
    assert_eq!(init(&torn_down, &request).unwrap().0.settings.on_conflict, OnConflict::Replace);
}

#[test]
fn templates_have_one_pair_of_brackets_at_the_end() {
    for template in ["Server[5]", "Server[]", "[x]", "[]", "a.b-c_d[0]"] {
        assert!(is_template(template), "{template}");
    }
    for other in ["Server5", "Server[5", "Server5]", "A]x", "S[1]x", "S[1][2]", "a b[1]", "S[a/b]", ""] {
        assert!(!is_template(other), "{other}");
    }
}

#[test]
fn server_names_a_shard_once() {
    let server = |name: &str, shards: &[&str]| NewServer { name: name.into(), shards: shards.iter().map(|&shard| shard.into()).collect() };
    let (schema, shards) = (schema(), [NewShard { name: "sh1".into(), low: 0, size: 10 }]);
    let servers = [server("Server0", &["sh1", "sh1"])];
    let request = Init { server_count: None, schema: &schema, shards: &shards, servers: Some(&servers), on_conflict: None, by_name: false };
    assert!(matches!(init(&ClusterMap::default(), &request), Err(RequestError::Invalid(_))));
    assert!(matches!(add(&cluster(None), 1, &[], &[server("Server9", &["sh1", "sh1"])], true), Err(RequestError::Invalid(_))));
    assert!(add(&cluster(None), 1, &[], &[server("Server9", &["sh1"])], true).is_ok());
}
