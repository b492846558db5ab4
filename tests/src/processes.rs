//! The production program as its user meets it: real processes, real signals, real files.

use http::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use twinshard::cli::client::Client;

/// No wait of these tests is longer; all end as soon as what they wait for is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// The release build, which knows no planted bug: the features of the simulator must not be unified into it. The one that
/// TWINSHARD_PROGRAM names, if it is built already.
pub(crate) fn production_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(program) = std::env::var_os("TWINSHARD_PROGRAM") {
            return program.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let build = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--offline", "-p", "twinshard", "--message-format=json-render-diagnostics"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(build.status.success(), "the production binary does not build");
        let lines = String::from_utf8(build.stdout).unwrap();
        let executable = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == "twinshard")
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        executable.unwrap()
    })
}

/// A running `twinshard up`.
pub(crate) struct Up {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The first balancer's.
    pub(crate) url: String,
    urls: Vec<String>,
    dir: PathBuf,
}

impl Up {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    pub(crate) fn start_with(dir: &Path, flags: &[&str]) -> Self {
        Self::start_logging(dir, flags, "warn")
    }

    /// The level is the one that its own nodes log at, too.
    pub(crate) fn start_logging(dir: &Path, flags: &[&str], level: &str) -> Self {
        Self::start_under(dir, flags, &[("TWINSHARD_LOG", level)])
    }

    /// With these variables in its environment.
    pub(crate) fn start_under(dir: &Path, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(production_binary())
            .args(["up", "--port", "0", "--dir"])
            .arg(dir)
            .args(flags)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let urls: Vec<String> =
            line.split_whitespace().filter(|word| word.starts_with("http://") || word.starts_with("https://")).map(str::to_owned).collect();
        Self { child, stdout, url: urls.first().expect(&line).clone(), urls, dir: dir.canonicalize().unwrap() }
    }

    /// Every balancer's.
    pub(crate) fn urls(&self) -> &[String] {
        &self.urls
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url, Duration::from_secs(130)).unwrap()
    }

    /// SIGKILL to everything at once.
    pub(crate) fn kill(&self) {
        let mut everything = self.pids(&[]);
        everything.push(self.child.id());
        signal("KILL", &everything);
    }

    /// SIGTERM, and what it printed until it ended.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        signal("TERM", &[self.child.id()]);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }

    /// The processes of this cluster whose command line has all these words.
    fn pids(&self, words: &[&str]) -> Vec<u32> {
        let dir = self.dir.to_str().unwrap();
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap() {
            let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(dir) && words.iter().all(|word| command.contains(word)) {
                pids.push(pid);
            }
        }
        pids
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn server_pid(&self, name: &str) -> u32 {
        let pids = self.pids(&[" server ", &format!("--name {name} ")]);
        assert_eq!(pids.len(), 1, "{name} has processes {pids:?}");
        pids[0]
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // After a panic nothing may be left running; after `stop` there is nothing left.
        let mut pids = self.pids(&[]);
        if let Ok(None) = self.child.try_wait() {
            pids.push(self.child.id());
        }
        signal("KILL", &pids);
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(name: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let mut kill = Command::new("kill");
        kill.arg(format!("-{name}")).args(pids.iter().map(u32::to_string)).stderr(Stdio::null());
        let _ = kill.status().unwrap();
    }
}

pub(crate) fn default_cluster() -> Value {
    json!({
        "N": 3,
        "schema": { "columns": ["Stud_id", "Stud_name", "Stud_marks"], "dtypes": ["Number", "String", "String"] },
        "shards": [
            { "Stud_id_low": 0, "Shard_id": "sh1", "Shard_size": 4096 },
            { "Stud_id_low": 4096, "Shard_id": "sh2", "Shard_size": 4096 },
            { "Stud_id_low": 8192, "Shard_id": "sh3", "Shard_size": 4096 },
        ],
        "servers": { "Server0": ["sh1", "sh2", "sh3"], "Server1": ["sh1", "sh2", "sh3"], "Server2": ["sh1", "sh2", "sh3"] },
    })
}

pub(crate) async fn ok(client: &mut Client, method: Method, path: &str, body: Value) -> Value {
    let (code, answer) = client.json(method, path, Some(&body)).await.unwrap();
    assert!(code.is_success(), "{path} {body} answered {code} {answer}");
    answer
}

async fn status(client: &mut Client) -> Value {
    client.json(Method::GET, "/status", None).await.unwrap().1
}

fn primary(status: &Value, shard: &str) -> Option<String> {
    let shards = status["shards"].as_array().unwrap();
    shards.iter().find(|record| record["Shard_id"] == shard)?["primary_server"].as_str().map(str::to_owned)
}

/// Asks until the answer is there; what it waits for is named when it never comes.
pub(crate) async fn wait_for<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) fn row(key: i64, value: u64) -> Value {
    json!({ "Stud_id": key, "Stud_name": value.to_string(), "Stud_marks": "1" })
}

pub(crate) async fn read_all(client: &mut Client) -> BTreeMap<i64, u64> {
    let answer = ok(client, Method::POST, "/read", json!({ "Stud_id": { "low": 0, "high": 12287 } })).await;
    let rows = answer["data"].as_array().unwrap();
    rows.iter().map(|row| (row["Stud_id"].as_i64().unwrap(), row["Stud_name"].as_str().unwrap().parse().unwrap())).collect()
}

/// Writes of new keys that go on until told to stop; the keys that were acknowledged.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<i64>>,
}

impl Load {
    pub(crate) fn start(url: &str, first_key: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = Client::new(url, Duration::from_secs(15)).unwrap();
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut key = first_key;
            while !told.load(Ordering::Relaxed) {
                // Keys go round all three shards and never come again.
                let place = key % 3 * 4096 + key / 3;
                let body = json!({ "data": [row(place, key.unsigned_abs())] });
                if let Ok((code, _)) = client.json(Method::POST, "/write", Some(&body)).await
                    && code.is_success()
                {
                    acknowledged.push(place);
                } else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                key += 1;
                if key / 3 >= 4096 {
                    break;
                }
            }
            acknowledged
        });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

pub(crate) async fn assert_all_there(client: &mut Client, acknowledged: &[i64]) {
    assert!(!acknowledged.is_empty(), "no write was acknowledged: the test shows nothing");
    let rows = read_all(client).await;
    let missing: Vec<_> = acknowledged.iter().filter(|key| !rows.contains_key(key)).collect();
    assert_eq!(missing, Vec::<&i64>::new(), "acknowledged rows are missing");
}

pub(crate) async fn healthy(client: &mut Client, count: usize) {
    wait_for("all servers up and every shard with all its members", async || {
        let status = status(client).await;
        let up = status["health"]
            .as_object()
            .is_some_and(|servers| servers.len() == count && servers.values().all(|server| server["state"] == "up"));
        let whole =
            status["shards"].as_array().unwrap().iter().all(|shard| {
                shard["primary_server"].is_string() && shard["members"].as_array().is_some_and(|members| members.len() == count)
            });
        (up && whole).then_some(())
    })
    .await;
}

/// Waits until a server holds so many rows itself: until its loss is known, it is one of the members that cannot answer.
pub(crate) async fn holds(client: &mut Client, server: &str, count: usize) {
    wait_for(&format!("{count} rows on {server}"), async || {
        let (code, held) = client.json(Method::GET, &format!("/read/{server}"), None).await.unwrap();
        let found = || ["sh1", "sh2", "sh3"].iter().map(|shard| held[shard].as_array().map_or(0, Vec::len)).sum::<usize>();
        (code.is_success() && found() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_is_found_again_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut client = up.client();
    let before = status(&mut client).await;
    assert_eq!((&before["N"], &before["schema"], &before["shards"]), (&json!(0), &Value::Null, &json!([])));
    let answer = ok(&mut client, Method::POST, "/init", default_cluster()).await;
    assert_eq!(answer, json!({ "message": "Configured Database", "status": "success" }));
    let rows: Vec<_> = (0..300).map(|key| row(key * 40, 7)).collect();
    ok(&mut client, Method::POST, "/write", json!({ "data": rows })).await;
    let (code, printed) = up.stop();
    assert!(code.success(), "{printed}");

    let up = Up::start(dir.path());
    let mut client = up.client();
    assert_eq!(read_all(&mut client).await.len(), 300);
    ok(&mut client, Method::POST, "/write", json!({ "data": [row(1, 8)] })).await;
    assert_eq!(up.pids(&[" server "]).len(), 3);
    let remains = up.pids(&[]);
    assert!(up.stop().0.success());
    for pid in remains {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} still runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_primaries_are_killed_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut client = up.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let load = Load::start(&up.url, 0);
    for (round, name) in ["KILL", "STOP", "KILL"].into_iter().enumerate() {
        healthy(&mut client, 3).await;
        let shard = format!("sh{}", round + 1);
        let victim = primary(&status(&mut client).await, &shard).unwrap();
        let pid = up.server_pid(&victim);
        signal(name, &[pid]);
        wait_for("another primary", async || primary(&status(&mut client).await, &shard).filter(|name| *name != victim)).await;
        ok(&mut client, Method::POST, "/write", json!({ "data": [row(i64::try_from(round).unwrap() * 4096 + 4095, 1)] })).await;
        wait_for("the server's respawn", async || (up.pids(&[&format!("--name {victim} ")]) != [pid]).then_some(())).await;
    }
    healthy(&mut client, 3).await;
    let acknowledged = load.stop().await;
    assert_all_there(&mut client, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_everything_is_killed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    ok(&mut up.client(), Method::POST, "/init", default_cluster()).await;
    let mut acknowledged = Vec::new();
    for round in 0..2 {
        let load = Load::start(&up.url, round * 4_000);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        up.kill();
        let written = load.stop().await;
        acknowledged.extend(written);
        // Its drop kills what is left of the old cluster, and must not meet the new one.
        drop(up);
        up = Up::start(dir.path());
        assert_all_there(&mut up.client(), &acknowledged).await;
    }
    healthy(&mut up.client(), 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_lost_its_directory_is_refilled_under_new_ids() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut client = up.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let rows: Vec<_> = (0..3_000).map(|key| row(key * 4, 7)).collect();
    ok(&mut client, Method::POST, "/write", json!({ "data": rows })).await;
    let pid = up.server_pid("Server1");
    signal("STOP", &[pid]);
    let data = std::fs::read_dir(dir.path().join("servers")).unwrap().map(|entry| entry.unwrap().path());
    let data = data.filter(|path| path.to_string_lossy().contains("Server1")).collect::<Vec<_>>();
    assert_eq!(data.len(), 1);
    std::fs::remove_dir_all(&data[0]).unwrap();
    signal("KILL", &[pid]);
    wait_for("the server's respawn", async || {
        (!up.pids(&["--name Server1 "]).is_empty() && up.pids(&["--name Server1 "]) != [pid]).then_some(())
    })
    .await;
    healthy(&mut client, 3).await;
    holds(&mut client, "Server1", 3_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balancer_that_was_killed_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    ok(&mut up.client(), Method::POST, "/init", default_cluster()).await;
    let load = Load::start(&up.url, 0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let servers = up.pids(&[" server "]);
    signal("KILL", &up.pids(&[" balancer "]));
    let mut client = up.client();
    wait_for("a write through the new balancer", async || {
        let body = json!({ "data": [row(4095, 1)] });
        client.json(Method::POST, "/write", Some(&body)).await.is_ok_and(|(code, _)| code.is_success()).then_some(())
    })
    .await;
    assert_eq!(up.pids(&[" server "]), servers, "the servers are adopted, not started again");
    let acknowledged = load.stop().await;
    assert_all_there(&mut client, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_through_the_other_balancer_when_one_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start_with(dir.path(), &["--balancers", "2"]);
    assert_eq!(up.urls.len(), 2);
    let mut clients = [0, 1].map(|place| Client::new(&up.urls[place], Duration::from_secs(130)).unwrap());
    ok(&mut clients[1], Method::POST, "/init", default_cluster()).await;
    for (client, value) in clients.iter_mut().zip([7, 8]) {
        ok(client, Method::POST, "/write", json!({ "data": [row(8191, value)] })).await;
    }
    assert_eq!(read_all(&mut clients[0]).await, BTreeMap::from([(8191, 8)]));
    let mut acknowledged = vec![8191];
    for place in [0, 1] {
        let port = format!("--listen {} ", up.urls[place].trim_start_matches("http://"));
        let victim = up.pids(&[" balancer ", &port]);
        assert_eq!(victim.len(), 1);
        let load = Load::start(&up.urls[1 - place], i64::try_from(place).unwrap() * 4_000);
        signal("KILL", &victim);
        // Whoever controls now: a server that dies meanwhile is respawned all the same.
        let pid = up.server_pid("Server2");
        signal("KILL", &[pid]);
        wait_for("the server's respawn", async || {
            let pids = up.pids(&[" server ", "--name Server2 "]);
            (!pids.is_empty() && pids != [pid]).then_some(())
        })
        .await;
        let mut other = Client::new(&up.urls[1 - place], Duration::from_secs(130)).unwrap();
        healthy(&mut other, 3).await;
        let written = load.stop().await;
        acknowledged.extend(written);
        // It was started again, where it was.
        let mut again = Client::new(&up.urls[place], Duration::from_secs(130)).unwrap();
        wait_for("the balancer that was killed", async || again.json(Method::GET, "/status", None).await.ok()).await;
        assert_all_there(&mut again, &acknowledged).await;
    }
    assert!(up.stop().0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_port_disturbs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut client = up.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    let status = status(&mut client).await;
    let mut ports: Vec<String> = status["health"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|server| [server["http"].as_str().unwrap().to_owned(), server["peer"].as_str().unwrap().to_owned()])
        .collect();
    ports.push(up.url.trim_start_matches("http://").to_owned());
    for port in &ports {
        let mut stream = std::net::TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Either side may hang up first.
        let _ = stream.write_all(&[0xff; 70_000]);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    ok(&mut client, Method::POST, "/write", json!({ "data": [row(1, 8)] })).await;
    assert_eq!(read_all(&mut client).await, BTreeMap::from([(1, 8)]));
    assert_eq!(up.pids(&[" server "]).len(), 3);
}

#[test]
fn directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _up = Up::start(dir.path());
    let output = Command::new(production_binary()).args(["up", "--port", "0", "--dir"]).arg(dir.path()).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains("in use"), "{words}");
}
