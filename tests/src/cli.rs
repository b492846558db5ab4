//! The program's commands as somebody runs them at a terminal: what they print, where they refuse, and with which exit code.

use crate::{
    api::{Api, init, row},
    processes::{Up, production_binary, wait_for},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use twinshard::peer::PROTOCOL_VERSION;

/// Exit code, standard output, standard error.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(production_binary()).args(args).env_remove("TWINSHARD_URL").stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn servers_in(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("servers")).unwrap().count()
}

#[test]
fn purge_deletes_what_left_the_cluster_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let purge = |more: &[&str]| run(&[&["purge", "--dir", dir.path().to_str().unwrap()], more].concat());
    let (code, _, words) = purge(&["--yes"]);
    assert_eq!((code, words.lines().count(), words.contains("no cluster's directory")), (1, 1, true), "{words}");

    let up = Up::start(dir.path());
    let api = Api::of(&up);
    api.ok("POST", "/init", init());
    api.ok("POST", "/write", json!({ "data": [row(1, "kept"), row(9000, "kept")] }));
    let (register, older) = (dir.path().join("register.redb"), dir.path().join("older"));
    assert!(up.stop().0.success());
    std::fs::copy(&register, &older).unwrap();
    let up = Up::start(dir.path());
    let api = Api::of(&up);
    api.ok("POST", "/add", json!({ "n": 1, "servers": { "Server7": ["sh1"] } }));
    assert!(up.stop().0.success());
    // A register from before the server was added would have its data deleted.
    let newest = dir.path().join("newest");
    std::fs::rename(&register, &newest).unwrap();
    std::fs::copy(&older, &register).unwrap();
    let (code, list, words) = purge(&["--yes"]);
    assert_eq!((code, words.contains("went back"), servers_in(dir.path())), (1, true, 4), "{list}{words}");
    std::fs::rename(&newest, &register).unwrap();
    let up = Up::start(dir.path());
    let api = Api::of(&up);
    api.ok("DELETE", "/rm", json!({ "n": 1, "servers": ["Server7"] }));
    let (code, _, words) = purge(&["--yes"]);
    assert_eq!((code, words.lines().count(), words.contains("stop `twinshard up` first")), (1, 1, true), "{words}");
    assert!(up.stop().0.success());
    assert_eq!(servers_in(dir.path()), 4, "what was retired stays until it is purged");

    // Without a terminal to ask at, only with --yes.
    let (code, list, words) = purge(&[]);
    assert_eq!(
        (code, list.contains("Server7"), list.contains("Server0"), words.contains("--yes")),
        (1, true, false, true),
        "{list}{words}"
    );
    assert_eq!(servers_in(dir.path()), 4);
    let (code, list, words) = purge(&["--yes"]);
    assert_eq!((code, list.contains("Server7"), list.ends_with("Deleted 1.\n"), words), (0, true, true, String::new()), "{list}");
    assert_eq!(purge(&["--yes"]), (0, "Nothing to delete.\n".into(), String::new()));

    let up = Up::start(dir.path());
    let api = Api::of(&up);
    assert_eq!(api.read(0, 12_287), [row(1, "kept"), row(9000, "kept")]);
    api.ok("DELETE", "/rm", json!({ "n": 3, "servers": ["Server0", "Server1", "Server2"] }));
    assert!(up.stop().0.success());
    assert_eq!(servers_in(dir.path()), 3, "a teardown deletes nothing by itself");
    assert_eq!(purge(&["--yes"]).0, 0);
    assert_eq!(servers_in(dir.path()), 0);

    let up = Up::start(dir.path());
    let api = Api::of(&up);
    api.ok("POST", "/init", init());
    assert_eq!(api.read(0, 12_287), Vec::<Value>::new());
}

#[test]
fn wrong_usage_ends_with_two_and_failures_with_one_line_and_one() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let (fresh, file) = (dir.path().join("fresh"), file.to_str().unwrap());
    let fresh = fresh.to_str().unwrap();
    let standalone = |more: &[&'static str]| [&["server", "--standalone", "--dir", fresh][..], more].concat();
    for (args, words) in [
        (vec!["up", "--nonsense"], "--nonsense"),
        (vec!["up", "--port", "65536"], "65536"),
        (vec!["up", "--policy", "best"], "ring, classic, least-loaded"),
        (vec!["up", "--bind", "0.0.0.0", "--port", "0", "--dir", fresh], "--auth required"),
        (vec!["bench"], "--run"),
        (vec!["bench", "--run", "a9"], "a1, a2, a3"),
        (vec!["bench", "--run", "a1", "--workers", "0"], "0"),
        (vec!["status", "--url", "nonsense"], "http://host:port"),
        (vec!["server", "--cluster", "1"], "--secret-file"),
        (vec!["balancer", "--dir", fresh], "--secret-file"),
        (standalone(&["--listen", "0.0.0.0:0"]), "--auth required"),
        (standalone(&["--listen", "[::]:0"]), "--auth required"),
        (standalone(&["--peer-listen", "10.0.0.1:5000"]), "--auth off"),
        (standalone(&["--listen", "5001"]), "IP:PORT"),
        (standalone(&["--port", "1", "--listen", "127.0.0.1:1"]), "cannot be used with"),
        (standalone(&["--name", "a name"]), "letters, digits"),
    ] {
        let (code, printed, said) = run(&args);
        assert_eq!((code, printed.as_str()), (2, ""), "{args:?} said {said}");
        assert!(said.contains(words), "{args:?} said {said}");
    }
    assert!(!Path::new(fresh).exists(), "a refusal left something behind");

    let url = format!("http://127.0.0.1:{port}");
    drop(taken);
    let gone = (vec!["status", "--url", &url], port.as_str());
    let (code, _, said) = run(&gone.0);
    assert_eq!((code, said.lines().count(), said.contains(gone.1)), (1, 1, true), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, words) in [
        (vec!["up", "--port", "0", "--dir", file], file),
        (vec!["up", "--port", &port, "--dir", fresh], &port),
        (vec!["server", "--standalone", "--port", &port, "--dir", fresh], &port),
        (vec!["server", "--standalone", "--port", "0", "--dir", file], file),
        (vec!["purge", "--dir", file], file),
        (vec!["demo", "--dir", file], "exists already"),
    ] {
        let (code, _, said) = run(&args);
        assert_eq!((code, said.lines().count(), said.contains(words)), (1, 1, true), "{args:?} said {said}");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in ["up", "balancer", "server", "status", "events", "bench", "demo", "purge", "recover"] {
        let (code, printed, said) = run(&[command, "--help"]);
        assert_eq!((code, said.as_str()), (0, ""), "{command}");
        assert!(printed.contains("Usage: twinshard ") && printed.len() > 200, "{command} --help teaches nothing");
    }
    let (code, printed, _) = run(&["--help"]);
    assert!(code == 0 && printed.contains("Exit codes: 0 fine, 1 a violation or failure, 2 usage"), "{printed}");
    assert_eq!(run(&[]).0, 2);
    assert_eq!(run(&["nonsense"]).0, 2);
}

#[test]
fn status_and_bench_tell_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let (code, before, _) = run(&["status", "--url", &up.url]);
    assert_eq!((code, before.contains("not initialised")), (0, true), "{before}");
    let bench = ["bench", "--run", "a1", "--requests", "200", "--workers", "4", "--url", &up.url];
    let (code, printed, _) = run(&[&bench[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &report["writes"]["errors"], &report["reads"]["requests"]), (0, &json!(0), &json!(200)), "{printed}");
    assert_eq!((&report["read_back"]["missing"], &report["read_back"]["wrong"]), (&json!(0), &json!(0)), "{printed}");
    let (code, printed, _) = run(&bench);
    assert_eq!((code, printed.contains("every acknowledged row is there")), (0, true), "{printed}");
    let (code, table, _) = run(&["status", "--url", &up.url]);
    assert_eq!(code, 0);
    for words in ["Server5  up", "sh4    12288..16383", ":primary+", ":backup+"] {
        assert!(table.contains(words), "{words} is not in\n{table}");
    }
    let (code, printed, _) = run(&["status", "--json", "--url", &up.url]);
    assert_eq!((code, &serde_json::from_str::<Value>(&printed).unwrap()["N"]), (0, &json!(6)));
}

/// Those who run nodes by hand have such variables, which would make other nodes of the children of `up`.
#[test]
fn settings_of_nodes_in_the_environment_are_not_for_the_children_of_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "[up]\nlog = \"warn\"\n[server]\nstandalone = true\n[balancer]\nrole = \"router\"\n").unwrap();
    let environment = [
        ("TWINSHARD_CONFIG", file.to_str().unwrap()),
        ("TWINSHARD_SERVER_STANDALONE", "1"),
        ("TWINSHARD_SERVER_TLS", "yes"),
        ("TWINSHARD_SERVER_PORT", "1"),
        ("TWINSHARD_BALANCER_ROLE", "router"),
        ("TWINSHARD_BALANCER_TLS", "true"),
    ];
    let data = dir.path().join("data");
    let up = Up::start_under(&data, &[], &environment);
    let api = Api::of(&up);
    api.ok("POST", "/init", init());
    api.ok("POST", "/write", json!({ "data": [row(1, "here")] }));
    assert_eq!(api.read(0, 10), [row(1, "here")]);
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777;
    assert_eq!(mode(&data), 0o700, "the directory is for its owner only");
}

#[test]
fn what_config_shows_is_what_would_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "[up]\nport = 5001\nbalancers = 2\ntls = false\n").unwrap();
    let mut show = Command::new(production_binary());
    show.args(["--config", file.to_str().unwrap(), "config", "show", "up"]).stdin(Stdio::null());
    show.env("TWINSHARD_UP_PORT", "5002").env("TWINSHARD_UP_TLS", "yes").env("TWINSHARD_UP_TLS_NAME", "a.example,b.example");
    let output = show.env("TWINSHARD_LOG", "warn").output().unwrap();
    let (shown, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for line in [
        "port = 5002  # set in the environment, TWINSHARD_UP_PORT",
        "balancers = 2  # set in the file",
        "tls = true  # set in the environment, TWINSHARD_UP_TLS",
        "tls-name = [\"a.example\", \"b.example\"]  # set in the environment, TWINSHARD_UP_TLS_NAME",
        "log = \"warn\"  # set in the environment, TWINSHARD_LOG",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}{said}");
    }

    std::fs::write(&file, "[up]\nbind = \"0.0.0.0\"\n").unwrap();
    let (code, _, said) = run(&["config", "check", file.to_str().unwrap()]);
    assert_eq!((code, said.contains(":1:2: [up]: 0.0.0.0 is not a loopback address")), (2, true), "{said}");
}

/// Connects, says this, and waits until the other end hangs up.
fn say(address: &str, words: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Either side may hang up first.
    let _ = stream.write_all(words);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
}

#[tokio::test]
async fn strangers_on_the_peer_port_are_refused_in_one_line_each() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start_logging(dir.path(), &[], "info");
    let api = Api::of(&up);
    api.ok("POST", "/init", init());
    let peer = api.ok("GET", "/status", Value::Null)["health"]["Server0"]["peer"].as_str().unwrap().to_owned();
    // As a peer begins: magic and version, then another cluster, nodes and a nonce.
    let hello = |cluster: u128, from: u64| {
        let mut hello = [&b"twinshrd"[..], &PROTOCOL_VERSION.to_le_bytes()].concat();
        hello.extend_from_slice(&cluster.to_le_bytes());
        for (kind, number) in [(2, from), (1, 1)] {
            hello.push(kind);
            hello.extend_from_slice(&u64::to_le_bytes(number));
        }
        hello.extend_from_slice(&[7; 32]);
        hello
    };
    let cluster = std::fs::read_to_string(dir.path().join("cluster")).unwrap();
    let cluster = u128::from_str_radix(cluster.trim(), 16).unwrap();
    let wrong_proof = [hello(cluster, 99), vec![0; 32]].concat();
    for (words, reason) in [
        (&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], "not a peer of any cluster"),
        (&[0xff; 70_000], "not a peer of any cluster"),
        (b"", "the handshake took too long"),
        (b"twinshrd", "the handshake took too long"),
        (b"twinshrd\xff\0", "protocol version 255"),
        (&hello(cluster ^ 1, 99), "another cluster"),
        (&wrong_proof, "does not know the cluster secret"),
    ] {
        let lines = |log: &str| log.lines().filter(|line| line.contains("peer connection refused")).map(str::to_owned).collect::<Vec<_>>();
        let read = || std::fs::read_to_string(dir.path().join("logs/Server0-s1.log")).unwrap();
        let before = lines(&read()).len();
        say(&peer, words);
        wait_for(reason, async || (lines(&read()).len() > before).then_some(())).await;
        let said = lines(&read());
        assert_eq!((said.len(), said[before].contains(reason)), (before + 1, true), "{said:?}");
    }
    api.ok("POST", "/write", json!({ "data": [row(1, "still served")] }));
    assert_eq!(api.read(0, 12_287), [row(1, "still served")]);
    assert_eq!(api.ok("GET", "/status", Value::Null)["health"]["Server0"]["respawns"], 0);
}

#[test]
fn output_that_nobody_reads_ends_the_program_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut status = Command::new(production_binary());
    status.args(["status", "--url", &up.url]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = status.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""));
}
