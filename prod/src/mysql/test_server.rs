//! A database server of a test's own: a child process on a free port, with its data in a temporary directory.

use super::MysqlSettings;
use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Once,
    time::Duration,
};

/// It is killed when it is dropped.
pub(crate) struct Server {
    program: PathBuf,
    is_mariadb: bool,
    dir: tempfile::TempDir,
    port: u16,
    options: &'static [&'static str],
    child: Child,
}

impl Server {
    /// `None` where no server can be had, which is said once.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// With options of its own.
    pub(crate) fn start_with(options: &'static [&'static str]) -> Option<Self> {
        let Some(program) = program() else {
            static SAID: Once = Once::new();
            SAID.call_once(|| eprintln!("skipped: no mariadbd in TWINSHARD_MARIADBD, target/db (make db) or PATH"));
            return None;
        };
        let dir = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let is_mariadb = is_mariadb(&program);
        prepare(&program, dir.path(), is_mariadb);
        let child = run(&program, dir.path(), port, is_mariadb, options);
        Some(Self { program, is_mariadb, dir, port, options, child })
    }

    pub(crate) fn settings(&self, database: &str) -> MysqlSettings {
        Self::settings_at(self.port, database)
    }

    /// For a server that is reached by another port.
    pub(crate) fn settings_at(port: u16, database: &str) -> MysqlSettings {
        let url = format!("mysql://root@127.0.0.1:{port}/");
        let mut settings = MysqlSettings::new(&url, "", database).expect("a URL and a name");
        settings.patience = Duration::from_secs(30);
        settings
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// As kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("ours");
    }

    pub(crate) fn start_again(&mut self) {
        self.child = run(&self.program, self.dir.path(), self.port, self.is_mariadb, self.options);
    }

    /// Stops answering, or goes on.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("it runs").success());
    }

    pub(crate) fn is_running(&self) -> bool {
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
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/db/mariadb/run");
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect();
    let installed = dirs.iter().flat_map(|dir| ["mariadbd", "mysqld"].map(|name| dir.join(name)));
    std::iter::once(fetched).chain(installed).find(|program| program.is_file())
}

fn is_mariadb(program: &Path) -> bool {
    let version = Command::new(program).args(["--no-defaults", "--version"]).output().expect("it runs");
    String::from_utf8_lossy(&version.stdout).contains("MariaDB")
}

fn command(program: &Path, dir: &Path) -> Command {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    let mut command = Command::new(program);
    command.arg("--no-defaults").arg(format!("--datadir={}", dir.join("data").display()));
    command.args(["--user=root", "--innodb-buffer-pool-size=32M"]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    command
}

/// Makes the data directory, and ends well: what is being made does not outlive a kill.
fn prepare(program: &Path, dir: &Path, is_mariadb: bool) {
    let mut command = command(program, dir);
    if is_mariadb {
        fs::create_dir_all(dir.join("data")).expect("a directory");
        command.arg("--bootstrap");
    } else {
        let user = "CREATE USER 'root'@'127.0.0.1';\nGRANT ALL ON *.* TO 'root'@'127.0.0.1';\n";
        fs::write(dir.join("user.sql"), user).expect("written");
        command.args(["--initialize-insecure", "--secure-file-priv=NULL"]);
        command.arg(format!("--init-file={}", dir.join("user.sql").display()));
    }
    assert!(command.status().expect("it runs").success(), "{}", fs::read_to_string(dir.join("log")).unwrap_or_default());
}

/// Whoever comes is let in: the data is a test's, and so is the port.
fn run(program: &Path, dir: &Path, port: u16, is_mariadb: bool, options: &[&str]) -> Child {
    let mut command = command(program, dir);
    command.arg(format!("--socket={}", dir.join("socket").display())).arg(format!("--port={port}")).args([
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--performance-schema=OFF",
    ]);
    command.args(if is_mariadb { ["--skip-grant-tables"].as_slice() } else { ["--mysqlx=OFF", "--secure-file-priv=NULL"].as_slice() });
    command.args(options);
    command.spawn().expect("the server starts")
}
