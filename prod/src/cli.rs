//! The `twinshard` program: one command a module. Prints for people; decides nothing.

mod access;
mod bench;
mod chaos;
pub mod client;
mod config;
mod demo;
#[cfg(feature = "docker")]
mod deploy;
mod events;
mod healthcheck;
mod load;
mod logs;
mod nodes;
mod operators;
mod purge;
mod recover;
mod register;
mod rows;
mod serving;
mod status;
mod topology;
#[cfg(feature = "docker")]
mod undeploy;
mod up;

use clap::{Parser, Subcommand};
use std::{
    fmt,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// A sharded, replicated row store behind an HTTP load balancer, rehearsed in simulation.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Start here:
  twinshard up                            a cluster on this machine; then, as it says,
  curl -X POST localhost:5000/init -d ... set it up
  twinshard status                        what it is doing
  twinshard events --follow               what it sees and does about it
  twinshard explain --key 2255            why it does so
  twinshard bench --run a1                how fast it is, and that nothing is lost
  twinshard chaos FILE --up               a scenario file, with real faults
  twinshard demo                          all of that by itself, with a kill -9 in the middle

Exit codes: 0 fine, 1 a violation or failure, 2 usage."
)]
struct Cli {
    /// A file with settings (`twinshard config --help`)
    #[arg(long, value_name = "FILE", env = "TWINSHARD_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Balancer(nodes::BalancerCommand),
    Server(nodes::ServerCommand),
    Status(status::StatusCommand),
    Events(events::Events),
    Explain(operators::Explain),
    Move(operators::Move),
    Drain(operators::Drain),
    Bench(bench::Bench),
    Demo(demo::Demo),
    Chaos(chaos::Chaos),
    Purge(purge::Purge),
    Healthcheck(healthcheck::Healthcheck),
    Config(config::Config),
    #[cfg(feature = "docker")]
    #[command(
        // It has them in a volume.
        mut_arg("tokens", |arg| arg.hide(true)),
        mut_arg("ca", |arg| arg.hide(true)),
        mut_arg("auth", |arg| arg.help("Whether clients must show a token; left out, off: nodes listen within the deployment's own network"))
    )]
    Deploy(deploy::Deploy),
    #[cfg(feature = "docker")]
    Undeploy(undeploy::Undeploy),
    #[cfg(feature = "docker")]
    Restart(deploy::Restart),
    Recover(recover::Recover),
}

impl Command {
    /// Refuses settings that contradict each other, as running it would.
    fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Up(up) => up.check(),
            Self::Balancer(balancer) => balancer.check(),
            Self::Server(server) => server.check(),
            #[cfg(feature = "docker")]
            Self::Deploy(deploy) => deploy.check(),
            _ => Ok(()),
        }
    }
}

/// Why a command failed, in words for the person who ran it. Exit code 1, or 2 for its usage.
#[derive(Debug)]
pub struct Failure {
    words: String,
    is_usage: bool,
}

impl Failure {
    /// With these words.
    #[must_use]
    pub fn new(words: impl Into<String>) -> Self {
        Self { words: words.into(), is_usage: false }
    }

    /// The command was not given as it should be.
    #[must_use]
    pub fn usage(words: impl Into<String>) -> Self {
        Self { words: words.into(), is_usage: true }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What a node said of what another client sent does nothing to the terminal.
        f.write_str(&crate::shown::lines(&self.words))
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// Runs the program on the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    end_with_the_reader();
    let cli = match config::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(failure) => {
            eprintln!("twinshard: {failure}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("twinshard: could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(up) => up.run().await,
            Command::Balancer(balancer) => balancer.run().await,
            Command::Server(server) => server.run().await,
            Command::Status(status) => status.run().await,
            Command::Events(events) => events.run().await,
            Command::Explain(explain) => explain.run().await,
            Command::Move(relocation) => relocation.run().await,
            Command::Drain(drain) => drain.run().await,
            Command::Bench(bench) => bench.run().await,
            Command::Demo(demo) => demo.run().await,
            Command::Chaos(chaos) => chaos.run().await,
            Command::Purge(purge) => purge.run(),
            Command::Healthcheck(healthcheck) => healthcheck.run().await,
            Command::Config(config) => config.run(cli.config.as_deref()),
            #[cfg(feature = "docker")]
            Command::Deploy(deploy) => deploy.run().await,
            #[cfg(feature = "docker")]
            Command::Undeploy(undeploy) => undeploy.run().await,
            #[cfg(feature = "docker")]
            Command::Restart(restart) => restart.run().await,
            Command::Recover(recover) => recover.run().await,
        }
    });
    // A thread may be waiting for standard input: a node that failed ends all the same.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("twinshard: {failure}");
            if failure.is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Ends quietly once nobody reads what is printed any more, as behind `| head`. Every other panic is told as ever.
fn end_with_the_reader() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let words = info.payload_as_str().unwrap_or_default();
        if words.starts_with("failed printing to stdout") && words.contains("Broken pipe") {
            // As a program that the signal ends: 128 and SIGPIPE.
            std::process::exit(141);
        }
        tell(info);
    }));
}

/// Makes a directory, and those above it, for its owner only. One that is there stays as it is.
fn make_dir(dir: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| Failure::new(format!("could not make {}: {error}", dir.display())))
}

/// The variable with [`logs::LogArgs::log`], for every command that logs.
const LOG: &str = "TWINSHARD_LOG";
/// The one with [`logs::LogArgs::log_format`].
const LOG_FORMAT: &str = "TWINSHARD_LOG_FORMAT";
