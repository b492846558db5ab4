use super::*;

const GOOD: &str = r#"
name = "x"
story = "s"
[topology]
servers = 3
[[topology.shards]]
name = "sh1"
low = 0
size = 100
[workload]
clients = 2
duration_ms = 1000
rate_per_s = 200
mix = { write = 1 }
[[faults]]
at_ms = 10
for_ms = 20
kind = "partition"
between = ["primary of sh1"]
and = ["backups of sh1"]
direction = "one-way"
[[admin]]
at_ms = 5
kind = "add"
servers = [{ name = "Server9", shards = ["sh1", "sh2"] }]
shards = [{ name = "sh2", low = 100, size = 100 }]
"#;

#[test]
fn a_good_file_is_read() {
    let scenario = Scenario::parse("x.toml", GOOD).expect("good");
    let partition = &scenario.faults[0];
    assert_eq!((partition.at_ms, partition.for_ms, partition.kind.name()), (10, 20, "partition"));
    assert_eq!(
        partition.kind,
        FaultKind::Partition {
            between: vec![Target::PrimaryOf("sh1".to_owned())],
            and: vec![Target::BackupsOf("sh1".to_owned())],
            direction: Direction::OneWay
        }
    );
    assert_eq!(scenario.servers_of(0), ["Server0", "Server1", "Server2"]);
    assert_eq!(scenario.end_ms(), 1000);
    let Request::Init { servers: Some(servers), .. } = scenario.init() else { panic!("not an init with servers") };
    assert!(servers.iter().all(|server| server.shards == vec![Box::from("sh1")]));
}

#[test]
fn a_bad_file_is_refused_with_its_key() {
    const PARTITION: &str = "kind = \"partition\"\nbetween = [\"primary of sh1\"]\nand = [\"backups of sh1\"]\ndirection = \"one-way\"";
    const ADDED: &str = "kind = \"add\"\nservers = [{ name = \"Server9\", shards = [\"sh1\", \"sh2\"] }]\n\
                         shards = [{ name = \"sh2\", low = 100, size = 100 }]";
    let cases = [
        ("servers = 3", "servers = 3\nsevers = 4", "unknown field `severs`"),
        ("servers = 3", "", "missing field `servers`"),
        ("servers = 3", "servers = \"3\"", "invalid type"),
        ("servers = 3", "servers = 2", "topology.replicas: is more than there are servers"),
        ("size = 100\n", "size = 0\n", "topology.shards[0]: 'sh1': low must be at least 0"),
        ("low = 100", "low = 99", "admin[0].shards: 'sh2' overlaps 'sh1'"),
        ("\"sh1\", \"sh2\"]", "\"sh3\"]", "admin[0].servers: there is no shard 'sh3'"),
        ("rate_per_s = 200", "", "give either rate_per_s"),
        ("mix = { write = 1 }", "mix = { wirte = 1 }", "unknown field `wirte`"),
        ("mix = { write = 1 }", "mix = { }", "workload.mix: is empty"),
        ("primary of sh1", "primary of sh7", "faults[0].between: there is no shard 'sh7'"),
        ("primary of sh1", "the primary of sh1", "names nobody"),
        ("for_ms = 20\n", "", "faults[0].for_ms: is missing"),
        ("for_ms = 20\n", "for_ms = 20\nloss = 3\n", "loss"),
        ("kind = \"add\"", "kind = \"add\"\nforce = true", "force"),
        (PARTITION, "kind = \"power-loss\"\ntarget = \"Server1\"", "target"),
        ("kind = \"partition\"", "kind = \"earthquake\"", "unknown variant `earthquake`"),
        (PARTITION, "kind = \"database-down\"\ntarget = \"controller\"", "faults[0].target: a balancer has no rows in a database"),
        (ADDED, "kind = \"drain\"\nserver = \"Server7\"", "admin[0].server: there is no server 'Server7'"),
        (ADDED, "kind = \"move\"\nshard = \"sh1\"\nfrom = \"Server0\"\nto = \"Server7\"", "admin[0].to: there is no server 'Server7'"),
        (ADDED, "kind = \"move\"\nshard = \"sh7\"\nfrom = \"Server0\"\nto = \"Server1\"", "admin[0].shard: there is no shard 'sh7'"),
        ("clients = 2", "clients = 2\nretries_max = 1", "workload.retries_max: needs idempotency_keys"),
    ];
    for (from, to, expected) in cases {
        assert!(GOOD.contains(from), "{from}");
        let error = Scenario::parse("x.toml", &GOOD.replacen(from, to, 1)).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.starts_with("x.toml: "), "{from} -> {to}: {error}");
    }
}

#[test]
fn every_scenario_of_the_folder_is_sound() {
    let all = Scenario::load_all(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("good scenarios");
    assert!(all.len() >= 10, "only {}", all.len());
    for scenario in &all {
        let load = &scenario.workload;
        // Under load is 200 operations a second (DESIGN 9); in a closed loop, at most.
        let rate = load.rate_per_s.or(load.think_ms.map(|think| u64::from(load.clients) * 1_000 / think.max(1))).expect("a loop");
        assert!(rate >= 200, "{}: {rate} operations a second", scenario.name);
        assert!(scenario.end_ms() <= 15_000, "{}: too long to play often", scenario.name);
        // What is told to people fits the report.
        assert!(scenario.story.lines().all(|line| line.len() <= 110), "{}: a long line", scenario.name);
        // Whatever goes wrong is over, and the load goes on for a while.
        let quiet_ms = load.duration_ms - scenario.faults.iter().map(|fault| fault.at_ms + fault.for_ms).max().unwrap_or(0);
        assert!(quiet_ms >= 1_000, "{}: {quiet_ms} ms after the last fault", scenario.name);
        let expects_service = scenario.expect.writes_again_within_ms.or(scenario.expect.longest_outage_ms);
        assert!(expects_service.is_some() && scenario.expect.operations_min.is_some(), "{}: expects too little", scenario.name);
    }
    let kinds: std::collections::BTreeSet<&str> = all.iter().flat_map(|scenario| &scenario.faults).map(|fault| fault.kind.name()).collect();
    for kind in ["crash", "lose-disk", "power-loss", "pause", "partition", "register-down", "database-down", "provision-fails", "network"] {
        assert!(kinds.contains(kind), "no scenario has {kind}");
    }
}
