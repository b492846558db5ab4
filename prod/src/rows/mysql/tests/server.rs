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

/// Any user is let in: the data is a test's, and so is the port.
fn run(program: &Path, dir: &Path, port: u16) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    let mut command = Command::new(program);
    // What was fetched without being installed finds its libraries and messages beside it.
    if let Some(root) = program.ancestors().nth(3) {
        command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
        if let Ok(messages) = root.join("usr/share/mysql/english").canonicalize() {
            command.arg("--no-defaults").arg(format!("--lc-messages-dir={}", messages.display()));
        } else {
            command.arg("--no-defaults");
        }
    }
    command
        .arg(format!("--datadir={}", dir.join("data").display()))
        .arg(format!("--socket={}", dir.join("socket").display()))
        .arg(format!("--port={port}"))
        .args(["--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-grant-tables", "--user=root", "--performance-schema=OFF"])
        .args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log);
    fs::create_dir_all(dir.join("data")).expect("a directory");
    command.spawn().expect("the server starts")
}
