//! The Docker deployment as its operator meets it, where there is an engine: built, killed, paused, cut off, taken down, brought up, removed.

use crate::processes::{Load, assert_all_there, default_cluster, healthy, ok, production_binary, read_all, wait_for};
use http::Method;
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};
use twinshard::cli::client::Client;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).current_dir(root()).stdin(Stdio::null()).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn docker(args: &[&str]) -> String {
    let output = run("docker", args);
    assert!(output.status.success(), "docker {args:?}: {}", words(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A free port whose next one is free as well.
fn two_ports() -> u16 {
    let listen = |port| std::net::TcpListener::bind(("127.0.0.1", port)).ok();
    std::iter::repeat_with(|| listen(0).unwrap())
        .map(|first| (first.local_addr().unwrap().port(), first))
        .find_map(|(port, _first)| port.checked_add(1).and_then(listen).map(|_| port))
        .unwrap()
}

/// A deployment of this test's own, which goes with it.
struct Deployment {
    name: String,
    port: u16,
    rows: &'static str,
    /// Further words for make.
    more: Vec<&'static str>,
}

impl Deployment {
    /// `None` where no engine answers.
    fn new(rows: &'static str) -> Option<Self> {
        if !Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no Docker engine answers here");
            return None;
        }
        Some(Self { name: format!("twinshard-test-{rows}-{}", std::process::id()), port: two_ports(), rows, more: Vec::new() })
    }

    fn make(&self, target: &str) {
        let port = format!("PORT={}", self.port);
        let (name, rows) = (format!("NAME={}", self.name), format!("ROWS={}", self.rows));
        let output = run("make", &[&[target, &name, &rows, &port], &self.more[..]].concat());
        assert!(output.status.success(), "make {target}: {}", words(&output));
    }

    /// Where a balancer serves.
    fn url(&self, place: u16) -> String {
        format!("http://127.0.0.1:{}", self.port + place)
    }

    fn container(&self, alias: &str) -> String {
        format!("{}-{alias}", self.name)
    }

    /// What of a kind carries its label.
    fn labelled(&self, kind: &[&str]) -> Vec<String> {
        let filter = format!("label=twinshard.deployment={}", self.name);
        docker(&[kind, &["-q", "--filter", &filter]].concat()).lines().map(str::to_owned).collect()
    }

    fn client(&self) -> Client {
        Client::new(&self.url(0), Duration::from_secs(130)).unwrap()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let _ = run("make", &["clean", &format!("NAME={}", self.name)]);
    }
}

/// One after the other: they build in the same place, and a test that waits for its turn would keep others from running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_on_docker_stand_what_happens_to_them() {
    deployment_on_docker_loses_nothing_and_leaves_nothing().await;
    deployment_with_databases_and_two_balancers_stands_the_death_of_any().await;
}

async fn deployment_on_docker_loses_nothing_and_leaves_nothing() {
    let Some(deployment) = Deployment::new("redb") else { return };
    deployment.make("all");
    // Nobody said that it may be broken.
    let words_of_chaos = ["chaos", "scenarios/primary-crash.toml", "--deployment", &deployment.name];
    let refused = run(production_binary().to_str().unwrap(), &words_of_chaos);
    assert_eq!(refused.status.code(), Some(2), "{}", words(&refused));
    assert!(words(&refused).contains("was not made to be broken"), "{}", words(&refused));
    let mut client = deployment.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let load = Load::start(&deployment.url(0), 0);
    let began = |name: &str| docker(&["inspect", "-f", "{{.State.StartedAt}} {{.Id}}", &deployment.container(name)]);
    let network = ["network", "disconnect", &deployment.name];
    for (server, command) in
        [("Server1", &["kill"][..]), ("Server0", &["pause"]), ("Server2", &["stop"]), ("Server1", &network), ("Server0", &["rm", "-f"])]
    {
        healthy(&mut client, 3).await;
        let before = began(server);
        docker(&[command, &[&deployment.container(server)]].concat());
        wait_for(&format!("another life of {server}"), async || {
            let output = run("docker", &["inspect", "-f", "{{.State.StartedAt}} {{.Id}}", &deployment.container(server)]);
            (output.status.success() && words(&output).trim() != before).then_some(())
        })
        .await;
    }
    healthy(&mut client, 3).await;
    // The balancer is made anew: what runs is adopted.
    let servers = ["Server0", "Server1", "Server2"].map(began);
    docker(&["kill", &deployment.container("balancer")]);
    deployment.make("all");
    healthy(&mut deployment.client(), 3).await;
    assert_eq!(["Server0", "Server1", "Server2"].map(began), servers);
    let acknowledged = load.stop().await;
    assert_all_there(&mut deployment.client(), &acknowledged).await;

    // No container has more than it needs, and none tells a secret.
    for name in ["balancer", "Server0"] {
        let told = docker(&["inspect", &deployment.container(name)]);
        for expected in ["\"ReadonlyRootfs\": true", "\"User\": \"65532:65532\"", "no-new-privileges", "\"Privileged\": false"] {
            assert!(told.contains(expected), "{name}: {expected} is not in {told}");
        }
        assert_eq!(told.contains("docker.sock"), name == "balancer");
    }

    // Names that are those of something else do no harm.
    let body = serde_json::json!({ "n": 1, "servers": { "balancer": ["sh1"] } });
    let (code, refusal) = Client::new(&deployment.url(0), Duration::from_secs(5))
        .unwrap()
        .json(Method::POST, "/add", Some(&body))
        .await
        .unwrap_or_else(|error| (http::StatusCode::REQUEST_TIMEOUT, serde_json::json!(error.to_string())));
    assert!(!code.is_success(), "{refusal}");
    wait_for("the refusal", async || {
        let logs = words(&run("docker", &["logs", &deployment.container("balancer")]));
        logs.contains("is taken by something else").then_some(())
    })
    .await;
    ok(&mut client, Method::DELETE, "/rm", serde_json::json!({ "n": 1, "servers": ["balancer"] })).await;

    // What protects it is not left out by mistake, and a restart keeps it.
    let all = |auth: &str| {
        run(
            "make",
            &["all", &format!("NAME={}", deployment.name), &format!("PORT={}", deployment.port), "ROWS=redb", &format!("AUTH={auth}")],
        )
    };
    assert!(all("required").status.success());
    let refused = all("");
    assert!(!refused.status.success() && words(&refused).contains("asks for tokens"), "{}", words(&refused));
    deployment.make("restart");
    let status = async || Client::new(&deployment.url(0), Duration::from_secs(5)).unwrap().json(Method::GET, "/status", None).await;
    assert_eq!(status().await.unwrap().0, http::StatusCode::UNAUTHORIZED);
    assert!(all("off").status.success());

    deployment.make("down");
    assert_eq!(deployment.labelled(&["ps", "-a"]), Vec::<String>::new());
    deployment.make("all");
    healthy(&mut deployment.client(), 3).await;
    assert_all_there(&mut deployment.client(), &acknowledged).await;
    assert!(read_all(&mut deployment.client()).await.len() >= acknowledged.len());

    let foreign = Foreign(format!("foreign-{}", std::process::id()));
    docker(&["volume", "create", "--label", "twinshard.deployment=another", &foreign.0]);
    deployment.make("clean");
    for kind in [&["ps", "-a"][..], &["volume", "ls"], &["network", "ls"], &["images"]] {
        assert_eq!(deployment.labelled(kind), Vec::<String>::new(), "{kind:?} are left");
    }
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &format!("name={}", foreign.0)]), foreign.0);
}

/// A volume of somebody else, which goes with the test.
struct Foreign(String);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = run("docker", &["volume", "rm", &self.0]);
    }
}

async fn deployment_with_databases_and_two_balancers_stands_the_death_of_any() {
    let Some(mut deployment) = Deployment::new("mysql") else { return };
    if !run("make", &["db-image", &format!("NAME={}", deployment.name)]).status.success() {
        eprintln!("skipped: no image of databases can be built here");
        return;
    }
    deployment.more = vec!["BALANCERS=2"];
    deployment.make("all");
    let mut client = deployment.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let loads = [Load::start(&deployment.url(0), 0), Load::start(&deployment.url(1), 6_000)];
    let inspected = |name: &str, what: &str| words(&run("docker", &["inspect", "-f", what, &deployment.container(name)])).trim().to_owned();
    let born = |name: &str| inspected(name, "{{.State.Status}} {{.State.StartedAt}} {{.State.Paused}}");
    for (name, command) in [
        ("Server1-db", &["kill"][..]),
        ("balancer", &["kill"]),
        ("Server0", &["kill"]),
        ("register", &["kill"]),
        ("Server0-db", &["pause"]),
        ("balancer2", &["rm", "-f"]),
        ("register", &["pause"]),
        ("Server2-db", &["stop"]),
        ("Server1-db", &["rm", "-f"]),
    ] {
        let before = born(name);
        docker(&[command, &[&deployment.container(name)]].concat());
        wait_for(&format!("{name} again after {command:?}"), async || {
            let now = born(name);
            let is_another = now != before || command[0] == "pause";
            (is_another && now.starts_with("running") && now.ends_with("false")).then_some(())
        })
        .await;
        let mut other = Client::new(&deployment.url(1), Duration::from_secs(130)).unwrap();
        healthy(if name == "balancer" { &mut other } else { &mut client }, 3).await;
    }
    for name in ["Server1-db", "register", "balancer2"] {
        docker(&["network", "disconnect", &deployment.name, &deployment.container(name)]);
        wait_for(&format!("{name} in the network"), async || {
            inspected(name, "{{.NetworkSettings.Networks}}").contains(&deployment.name).then_some(())
        })
        .await;
    }
    healthy(&mut client, 3).await;
    let mut acknowledged = Vec::new();
    for load in loads {
        acknowledged.extend(load.stop().await);
    }
    assert_all_there(&mut client, &acknowledged).await;
    // A client of the database finds the rows, and passwords are where only their user sees them.
    let table = docker(&[
        "exec",
        &deployment.container("Server0-db"),
        "mysql",
        "-Ne",
        "SELECT CONCAT(table_schema, '.shard_rows') FROM information_schema.tables WHERE table_name = 'shard_rows' LIMIT 1",
    ]);
    let count = docker(&["exec", &deployment.container("Server0-db"), "mysql", "-Ne", &format!("SELECT COUNT(Stud_name) FROM {table}")]);
    assert!(count.parse::<u64>().unwrap() > 0, "{count}");
    let told =
        docker(&["inspect", &deployment.container("Server0"), &deployment.container("Server0-db"), &deployment.container("register")]);
    assert!(told.contains("mysql://twinshard@Server0-db:3306/") && !told.contains("IDENTIFIED"), "{told}");

    // The register is emptied under it: what is there is served, nothing is changed, and nothing is made anew by itself.
    docker(&["exec", &deployment.container("register"), "mysql", "-e", "DROP DATABASE twinshard_register"]);
    let mut second = Client::new(&deployment.url(1), Duration::from_secs(15)).unwrap();
    wait_for("the warning", async || {
        let (_, status) = second.json(Method::GET, "/status", None).await.ok()?;
        status["warnings"].to_string().contains("register does not answer").then_some(())
    })
    .await;
    assert_all_there(&mut second, &acknowledged).await;
    let recover = || run("make", &["recover", &format!("NAME={}", deployment.name)]);
    let refused = recover();
    assert!(!refused.status.success() && words(&refused).contains("stop the deployment"), "{}", words(&refused));
    deployment.make("down");
    let refused = run("make", &["all", &format!("NAME={}", deployment.name), &format!("PORT={}", deployment.port)]);
    assert!(!refused.status.success() && words(&refused).contains("database is empty"), "{}", words(&refused));
    deployment.make("down");
    let recovered = recover();
    assert!(recovered.status.success() && words(&recovered).contains("made anew"), "{}", words(&recovered));
    let refused = run("make", &["all", &format!("NAME={}", deployment.name), "ROWS=redb", &format!("PORT={}", deployment.port)]);
    assert!(!refused.status.success() && words(&refused).contains("keeps its rows in mysql"), "{}", words(&refused));
    // And goes on with the controller in a container of its own, which is found again when it is gone.
    deployment.more = vec!["SHARD_MANAGER=1"];
    deployment.make("all");
    healthy(&mut deployment.client(), 3).await;
    assert_all_there(&mut deployment.client(), &acknowledged).await;
    docker(&["rm", "-f", &deployment.container("shard_manager")]);
    docker(&["kill", &deployment.container("Server1")]);
    wait_for("Server1 again", async || {
        let output = run("docker", &["inspect", "-f", "{{.State.Running}}", &deployment.container("Server1")]);
        (words(&output).trim() == "true").then_some(())
    })
    .await;
    healthy(&mut deployment.client(), 3).await;
    assert_all_there(&mut deployment.client(), &acknowledged).await;
}
