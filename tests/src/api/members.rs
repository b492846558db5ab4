//! /add, /rm, the teardown and another beginning, and who leads.

use super::*;

fn write_some(api: &Api) {
    let rows: Vec<Value> = (0..600).map(|number| row(number * 20, "kept")).collect();
    api.is("POST", "/write", json!({ "data": rows }), json!({ "message": "600 Data entries added", "status": "success" }));
}

fn shards_of(api: &Api, server: &str) -> Value {
    api.status()["servers"][server].clone()
}

#[test]
fn servers_and_shards_are_added() {
    let Cluster { api, .. } = &Cluster::initialised();
    write_some(api);
    let shard = |name: &str, low: i64, size: i64| json!([{ "Stud_id_low": low, "Shard_id": name, "Shard_size": size }]);
    let before = api.status()["version"].clone();
    let too_few = "<Error> Number of new servers (n) is greater than newly added instances";
    api.refuses_all([
        ("POST", "/add", json!({ "n": 2, "servers": { "Server4": ["sh1"] } }), 400, "too-few-servers", too_few),
        (
            "POST",
            "/add",
            json!({ "n": 0, "servers": { "Server4": ["sh1"] } }),
            400,
            "invalid-request",
            "<Error> Number of new servers (n) is 0 but 1 are given",
        ),
        ("POST", "/add", json!({ "servers": { "Server4": ["sh1"] } }), 400, "invalid-request", "<Error> 'n' is missing"),
        ("POST", "/add", json!({ "n": 1, "servers": { "Server0": ["sh1"] } }), 409, "refused", "<Error> Server 'Server0' exists already"),
        (
            "POST",
            "/add",
            json!({ "n": 1, "servers": { "Server4": ["sh9"] } }),
            400,
            "invalid-request",
            "<Error> Server 'Server4' names the unknown shard 'sh9'",
        ),
        (
            "POST",
            "/add",
            json!({ "n": 1, "new_shards": shard("sh1", 50_000, 1), "servers": { "Server4": ["sh1"] } }),
            409,
            "refused",
            "<Error> Shard 'sh1' exists already",
        ),
        (
            "POST",
            "/add",
            json!({ "n": 1, "new_shards": shard("sh5", 12_287, 10), "servers": { "Server4": ["sh5"] } }),
            409,
            "refused",
            "<Error> Shard 'sh5' overlaps 'sh3'",
        ),
        (
            "POST",
            "/add",
            json!({ "n": 1, "new_shards": shard("sh5", 12_288, 0), "servers": { "Server4": ["sh5"] } }),
            400,
            "invalid-request",
            "<Error> Shard 'sh5' has size 0; it must be at least 1",
        ),
    ]);
    assert_eq!((api.status()["N"].clone(), api.status()["version"].clone()), (json!(3), before), "nothing was changed");

    // The contract's own example.
    let add =
        json!({ "n": 2, "new_shards": shard("sh5", 12_288, 4096), "servers": { "Server4": ["sh3", "sh5"], "Server[5]": ["sh2", "sh5"] } });
    let answer = api.ok("POST", "/add", add);
    let message = answer["message"].as_str().unwrap();
    let generated = message.strip_prefix("Add Server:4 and Server:").unwrap_or_else(|| panic!("{message}"));
    assert_eq!(answer, json!({ "N": 5, "message": message, "status": "successful" }));
    assert_eq!((shards_of(api, "Server4"), shards_of(api, &format!("Server{generated}"))), (json!(["sh3", "sh5"]), json!(["sh2", "sh5"])));
    // What was copied is served by the new server, and the new shard takes writes.
    let held = api.ok("GET", "/read/Server4", Value::Null);
    let kept: Vec<Value> = (410..600).map(|number| row(number * 20, "kept")).collect();
    assert_eq!(held, json!({ "sh3": kept, "sh5": [], "status": "success" }));
    api.is("POST", "/write", json!({ "data": [row(12_288, "new")] }), json!({ "message": "1 Data entries added", "status": "success" }));
    assert_eq!(api.read(12_000, 99_999), [row(12_288, "new")]);

    api.is(
        "POST",
        "/add",
        json!({ "n": 1, "servers": { "spare": [] } }),
        json!({ "N": 6, "message": "Add spare", "status": "successful" }),
    );
    let answer = api.ok("POST", "/add", json!({ "n": "2" }));
    assert_eq!((&answer["N"], &answer["status"]), (&json!(8), &json!("successful")));
}

#[test]
fn servers_are_removed_and_what_they_held_stays() {
    let Cluster { api, .. } = &Cluster::initialised();
    write_some(api);
    let kept = api.read(0, 12_287);
    let too_many = "<Error> Length of server list is more than removable instances";
    api.refuses_all([
        ("DELETE", "/rm", json!({}), 400, "invalid-request", "<Error> 'n' is missing"),
        ("DELETE", "/rm", json!({ "n": 1, "servers": ["Server9"] }), 400, "invalid-request", "<Error> Server 'Server9' does not exist"),
        ("DELETE", "/rm", json!({ "n": 4 }), 400, "invalid-request", "<Error> There are only 3 servers to remove"),
        ("DELETE", "/rm", json!({ "n": 1, "servers": ["Server0", "Server1"] }), 400, "too-many-servers", too_many),
        (
            "DELETE",
            "/rm",
            json!({ "n": 3, "servers": ["Server0"] }),
            409,
            "refused",
            "<Error> Shard 'sh1' would lose its last replica: name all servers to tear the cluster down",
        ),
    ]);
    assert_eq!(api.status()["N"], 3);
    api.ok("POST", "/add", json!({ "n": 1, "servers": { "Server4": ["sh1"] } }));
    // The named one, and one more whose going costs least.
    let answer = api.ok("DELETE", "/rm", json!({ "n": 2, "servers": ["Server1"] }));
    let gone = answer["message"]["servers"].as_array().unwrap().clone();
    assert_eq!((answer["message"]["N"].clone(), gone.len(), gone.contains(&json!("Server1"))), (json!(2), 2, true), "{answer}");
    assert_eq!(api.read(0, 12_287), kept);
    for shard in api.status()["shards"].as_array().unwrap() {
        assert!(shard["primary_server"].is_string(), "{shard}");
    }
    api.is("POST", "/rm", json!({ "n": 0 }), json!({ "message": { "N": 2, "servers": [] }, "status": "successful" }));
    let answer = api.ok("POST", "/rm", json!({ "n": "1" }));
    assert_eq!(answer["message"]["N"], 1);
    assert_eq!(api.read(0, 12_287), kept);
    api.refuses((
        "POST",
        "/primary_elect",
        json!({ "shard": "sh1" }),
        409,
        "refused",
        "<Error> Shard 'sh1' has no other up-to-date replica",
    ));
}

#[test]
fn cluster_that_was_torn_down_begins_anew_with_another_topology() {
    let Cluster { api, .. } = &Cluster::initialised();
    write_some(api);
    let all = ["Server0", "Server1", "Server2"];
    api.is("DELETE", "/rm", json!({ "n": 3, "servers": all }), json!({ "message": { "N": 0, "servers": all }, "status": "successful" }));
    let status = api.status();
    assert_eq!((&status["N"], &status["schema"], &status["shards"], &status["servers"]), (&json!(0), &Value::Null, &json!([]), &json!({})));

    // The balancer places three replicas of each shard, evenly; the key has another name.
    let schema = json!({ "columns": ["id", "price", "sold"], "dtypes": ["Number", "Float", "Boolean"] });
    let shards = json!([
        { "id_low": 0, "Shard_id": "a", "Shard_size": 100 },
        { "Stud_id_low": 100, "Shard_id": "b", "Shard_size": 100 },
    ]);
    api.is(
        "POST",
        "/init",
        json!({ "N": 4, "schema": schema, "shards": shards, "on_conflict": "error" }),
        json!({ "message": "Configured Database", "status": "success" }),
    );
    let status = api.status();
    assert_eq!((&status["N"], &status["schema"]), (&json!(4), &schema));
    let mut held: Vec<usize> = status["servers"].as_object().unwrap().values().map(|shards| shards.as_array().unwrap().len()).collect();
    held.sort_unstable();
    assert_eq!(held, [1, 1, 2, 2], "{}", status["servers"]);
    let item = |key: Value, price: f64| json!({ "id": key, "price": price, "sold": true });
    let added = json!({ "message": "1 Data entries added", "status": "success" });
    api.is("POST", "/write", json!({ "data": [item(json!("7"), 1.5)] }), added.clone());
    api.refuses(("POST", "/write", json!({ "data": [item(json!(7), 2.5)] }), 409, "key-exists", "<Error> Keys exist already: 7"));
    api.is("POST", "/write", json!({ "data": [item(json!(7), 2.5)], "on_conflict": "replace" }), added);
    api.is(
        "GET",
        "/read",
        json!({ "id": { "low": 0, "high": 199 } }),
        json!({ "shards_queried": ["a", "b"], "data": [item(json!(7), 2.5)], "status": "success" }),
    );
    api.is(
        "PUT",
        "/update",
        json!({ "id": 7, "data": { "price": 3 } }),
        json!({ "message": "Data entry for id: 7 updated", "status": "success" }),
    );
    api.is(
        "DELETE",
        "/del",
        json!({ "id": 7 }),
        json!({ "message": "Data entry with id:7 removed from all replicas", "status": "success" }),
    );
}

#[test]
fn replicas_are_moved_servers_drained_and_both_explained() {
    let Cluster { api, .. } = &Cluster::initialised();
    write_some(api);
    let kept = api.read(0, 12_287);
    let held = |shard: &str| -> Vec<String> {
        let servers = api.status()["servers"].as_object().unwrap().clone();
        servers.into_iter().filter(|(_, shards)| shards.as_array().unwrap().contains(&json!(shard))).map(|(name, _)| name).collect()
    };
    api.ok("POST", "/add", json!({ "n": 1, "servers": { "Server4": [] } }));
    let from = held("sh1").remove(0);
    let moved = json!({ "shard": "sh1", "from": from, "to": "Server4" });
    let done = json!({ "message": format!("Server4 holds a replica of sh1, and {from} holds none"), "status": "successful" });
    api.is("POST", "/move", moved.clone(), done.clone());
    assert!(held("sh1").contains(&"Server4".to_owned()) && !held("sh1").contains(&from), "{:?}", held("sh1"));
    // Again it is done already; back it goes as well.
    api.is("POST", "/move", moved, done);
    assert_eq!(api.read(0, 12_287), kept);
    api.refuses_all([
        ("POST", "/move", json!({ "shard": "sh1", "from": from }), 400, "invalid-request", "<Error> 'to' is missing"),
        (
            "POST",
            "/move",
            json!({ "shard": "sh9", "from": from, "to": "Server4" }),
            400,
            "no-such-shard",
            "<Error> Shard 'sh9' does not exist",
        ),
        (
            "POST",
            "/move",
            json!({ "shard": "sh1", "from": "Nobody", "to": from }),
            400,
            "invalid-request",
            "<Error> Server 'Nobody' does not exist",
        ),
        ("POST", "/drain", json!({ "server": "Nobody" }), 400, "invalid-request", "<Error> Server 'Nobody' does not exist"),
        ("GET", "/explain", json!({}), 400, "invalid-request", "<Error> give 'key' or 'shard', as in /explain?key=2255"),
        ("GET", "/explain?key=99999999", Value::Null, 400, "key-out-of-range", "<Error> Key 99999999 is outside every shard's range"),
    ]);
    let drained = api.ok("POST", "/drain", json!({ "server": "Server4" }));
    assert_eq!((&drained["message"], &drained["moves"][0]["shard"]), (&json!("Server4 holds no replica any more"), &json!("sh1")));
    assert_eq!(api.status()["servers"]["Server4"], json!([]));
    let drained = api.status()["health"].clone();
    assert_eq!((&drained["Server4"]["drained"], &drained[&from]["drained"]), (&json!(true), &json!(false)));
    assert_eq!(api.read(0, 12_287), kept);
    let explained = api.ok("GET", "/explain?key=2255", Value::Null);
    assert_eq!((&explained["shard"], &explained["waits_for"], &explained["key"]), (&json!("sh1"), &json!([]), &json!(2255)));
    let readers: Vec<&Value> = explained["replicas"].as_array().unwrap().iter().map(|replica| &replica["server"]).collect();
    assert!(
        readers.contains(&&explained["read"]["server"]) && explained["read"]["why"].as_str().unwrap().starts_with("ring"),
        "{explained}"
    );
    assert_eq!(api.ok("GET", "/explain", json!({ "shard": "sh1" }))["primary_server"], explained["primary_server"]);
}

#[test]
fn primaries_are_told_and_moved() {
    let Cluster { api, .. } = &Cluster::initialised();
    let (mut leader, mut epoch) = (String::new(), 0);
    for path in ["/primary_elect", "/primary-elect"] {
        for method in ["GET", "POST", "PUT"] {
            for field in ["shard", "Shard_id", "shard_id"] {
                let answer = api.ok(method, path, json!({ field: "sh1" }));
                let server = answer["server_id"].as_str().unwrap().to_owned();
                let now = answer["epoch"].as_u64().unwrap();
                let expected = json!({
                    "primary_server": server, "primary-elect": server, "server_id": server, "shard": "sh1", "epoch": now,
                    "message": "Primary server elected", "status": "successful",
                });
                assert_eq!(answer, expected);
                let moved = method != "GET";
                assert!(leader.is_empty() || (server != leader) == moved, "{method}: {leader} -> {server}");
                assert!(epoch == 0 || (now > epoch) == moved, "{method}: {epoch} -> {now}");
                (leader, epoch) = (server, now);
            }
        }
    }
    let shard = &api.status()["shards"][0];
    assert_eq!((&shard["primary_server"], &shard["epoch"]), (&json!(leader), &json!(epoch)));
    api.refuses_all([
        ("GET", "/primary_elect", Value::Null, 400, "invalid-request", "<Error> 'shard' is missing"),
        ("GET", "/primary_elect", json!({ "shard": 5 }), 400, "invalid-request", "<Error> 'shard' must be a string, not 5"),
        ("POST", "/primary_elect", json!({ "shard": "sh9" }), 400, "no-such-shard", "<Error> Shard 'sh9' does not exist"),
    ]);
}
