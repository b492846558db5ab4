//! A database server of a test's own: a child process on a free port, with its data in a temporary directory.

use crate::rows::mysql::MysqlSettings;
use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Once,
    time::Duration,
};

/// It is killed when it is dropped.
pub(super) struct Server {
    program: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Server {
    /// `None` where no server can be had, which is said once.
    pub(super) fn start() -> Option<Self> {
        let Some(program) = program() else {
            static SAID: Once = Once::new();
            SAID.call_once(|| eprintln!("skipped: no mariadbd in TWINSHARD_MARIADBD, PATH or target/db (make db)"));
            return None;
        };
        let dir = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        prepare(&program, dir.path());
        let child = run(&program, dir.path(), port);
        Some(Self { program, dir, port, child })
    }

    pub(super) fn settings(&self) -> MysqlSettings {
        let mut settings = MysqlSettings::new(&format!("mysql://root@127.0.0.1:{}/", self.port), "").expect("a URL");
        settings.patience = Duration::from_secs(30);
        settings
    }

    /// As kill -9.
    pub(super) fn kill(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("ours");
    }

    pub(super) fn start_again(&mut self) {
        self.child = run(&self.program, self.dir.path(), self.port);
    }

    pub(super) fn is_running(&self) -> bool {
        Path::new("/proc").join(self.child.id().to_string()).exists()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the server's program is.
fn program() -> Option<PathBuf> {
    if let Some(program) = env::var_os("TWINSHARD_MARIADBD") {
        return Some(program.into());
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/db/mariadb/usr/sbin");
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).chain([fetched, PathBuf::from("/usr/sbin")]).collect();
    dirs.iter().flat_map(|dir| ["mariadbd", "mysqld"].map(|name| dir.join(name))).find(|program| program.is_file())
}

/// Where it was unpacked: it lies in usr/sbin of it.
fn root(program: &Path) -> PathBuf {
    program.ancestors().nth(3).unwrap_or(Path::new("/")).to_owned()
}

fn libraries(program: &Path) -> PathBuf {
    root(program).join("usr/lib/x86_64-linux-gnu")
}

/// The program, with the libraries and messages that lie beside what was fetched without being installed.
fn command(program: &Path, dir: &Path) -> Command {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    let mut command = Command::new(program);
    command.arg("--no-defaults");
    command.env("LD_LIBRARY_PATH", libraries(program));
    let messages = root(program).join("usr/share/mysql/english");
    if messages.is_dir() {
        command.arg(format!("--lc-messages-dir={}", messages.display()));
    }
    command.arg(format!("--datadir={}", dir.join("data").display()));
    command.args(["--user=root", "--innodb-buffer-pool-size=32M"]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    command
}

/// Makes the data directory, and ends well: what is being made does not outlive a kill.
fn prepare(program: &Path, dir: &Path) {
    let version = Command::new(program).arg("--version").env("LD_LIBRARY_PATH", libraries(program)).output().expect("it runs");
    let is_mariadb = String::from_utf8_lossy(&version.stdout).contains("MariaDB");
    if is_mariadb {
        fs::create_dir_all(dir.join("data")).expect("a directory");
    }
    let prepared = command(program, dir).arg(if is_mariadb { "--bootstrap" } else { "--initialize-insecure" }).status();
    assert!(prepared.expect("it runs").success(), "{}", fs::read_to_string(dir.join("log")).unwrap_or_default());
}

/// Any user is let in: the data is a test's, and so is the port.
fn run(program: &Path, dir: &Path, port: u16) -> Child {
    let mut command = command(program, dir);
    command.arg(format!("--socket={}", dir.join("socket").display())).arg(format!("--port={port}")).args([
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--skip-grant-tables",
        "--skip-networking=0",
        "--performance-schema=OFF",
    ]);
    command.spawn().expect("the server starts")
}
