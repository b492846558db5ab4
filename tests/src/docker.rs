//! The Docker deployment as its operator meets it, where there is an engine: built, killed, paused, cut off, taken down, brought up, removed.

use crate::processes::{Load, assert_all_there, default_cluster, healthy, ok, read_all, wait_for};
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

/// One at a time: they build in the same place, and a machine has only so much room.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A deployment of this test's own, which goes with it.
struct Deployment {
    name: String,
    port: u16,
    rows: &'static str,
}

impl Deployment {
    /// `None` where no engine answers.
    fn new(rows: &'static str) -> Option<Self> {
        if !Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no Docker engine answers here");
            return None;
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { name: format!("twinshard-test-{rows}-{}", std::process::id()), port, rows })
    }

    fn make(&self, target: &str) {
        let port = format!("PORT={}", self.port);
        let output = run("make", &[target, &format!("NAME={}", self.name), &format!("ROWS={}", self.rows), &port]);
        assert!(output.status.success(), "make {target}: {}", words(&output));
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
        Client::new(&format!("http://127.0.0.1:{}", self.port), Duration::from_secs(130)).unwrap()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let _ = run("make", &["clean", &format!("NAME={}", self.name)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_on_docker_loses_nothing_and_leaves_nothing() {
    let _turn = TURN.lock().await;
    let Some(deployment) = Deployment::new("redb") else { return };
    deployment.make("all");
    let mut client = deployment.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let url = format!("http://127.0.0.1:{}", deployment.port);
    let load = Load::start(&url, 0);
    let began = |name: &str| docker(&["inspect", "-f", "{{.State.StartedAt}} {{.Id}}", &deployment.container(name)]);
    for (server, command) in [("Server1", "kill"), ("Server0", "pause"), ("Server2", "stop")] {
        healthy(&mut client, 3).await;
        let before = began(server);
        docker(&[command, &deployment.container(server)]);
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
    let (code, refusal) = Client::new(&url, Duration::from_secs(5))
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

    deployment.make("down");
    assert_eq!(deployment.labelled(&["ps", "-a"]), Vec::<String>::new());
    deployment.make("all");
    healthy(&mut deployment.client(), 3).await;
    assert_all_there(&mut deployment.client(), &acknowledged).await;
    assert!(read_all(&mut deployment.client()).await.len() >= acknowledged.len());

    let foreign = format!("foreign-{}", std::process::id());
    docker(&["volume", "create", "--label", "twinshard.deployment=another", &foreign]);
    deployment.make("clean");
    for kind in [&["ps", "-a"][..], &["volume", "ls"], &["network", "ls"], &["images"]] {
        assert_eq!(deployment.labelled(kind), Vec::<String>::new(), "{kind:?} are left");
    }
    docker(&["volume", "rm", &foreign]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_with_databases_stands_their_death() {
    let _turn = TURN.lock().await;
    let Some(deployment) = Deployment::new("mysql") else { return };
    if !run("make", &["db-image", &format!("NAME={}", deployment.name)]).status.success() {
        eprintln!("skipped: no image of databases can be built here");
        return;
    }
    deployment.make("all");
    let mut client = deployment.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let load = Load::start(&format!("http://127.0.0.1:{}", deployment.port), 0);
    let runs = async |name: &str| {
        wait_for(&format!("{name} again"), async || {
            let output = run("docker", &["inspect", "-f", "{{.State.Status}}", &deployment.container(name)]);
            (words(&output).trim() == "running").then_some(())
        })
        .await;
    };
    for (name, command) in [("Server1-db", "kill"), ("Server0", "kill"), ("Server0-db", "pause"), ("Server2-db", "stop")] {
        healthy(&mut client, 3).await;
        docker(&[command, &deployment.container(name)]);
        runs(name).await;
    }
    docker(&["network", "disconnect", &deployment.name, &deployment.container("Server1-db")]);
    wait_for("Server1's database in the network", async || {
        let output = run("docker", &["inspect", "-f", "{{.NetworkSettings.Networks}}", &deployment.container("Server1-db")]);
        words(&output).contains(&deployment.name).then_some(())
    })
    .await;
    healthy(&mut client, 3).await;
    let acknowledged = load.stop().await;
    assert_all_there(&mut client, &acknowledged).await;
    // Rows are where they were said to be, and passwords where only their user sees them.
    let told = docker(&["inspect", &deployment.container("Server0"), &deployment.container("Server0-db")]);
    assert!(told.contains("mysql://twinshard@Server0-db:3306/") && !told.contains("IDENTIFIED"), "{told}");
    deployment.make("down");
    let refused = run("make", &["all", &format!("NAME={}", deployment.name), "ROWS=redb", &format!("PORT={}", deployment.port)]);
    assert!(!refused.status.success() && words(&refused).contains("keeps its rows in mysql"), "{}", words(&refused));
    deployment.make("all");
    healthy(&mut deployment.client(), 3).await;
    assert_all_there(&mut deployment.client(), &acknowledged).await;
}
