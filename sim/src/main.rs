//! `twinshard-sim`: burns seeds, plays scenarios, shrinks what fails. Exit codes: 0 fine, 1 a violation, 2 wrong usage.

use clap::{Args, Parser, Subcommand};
use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};
use twinshard_core::planted::{Bug, Planted};
use twinshard_scenarios::{report::Report, scenario::Scenario};
use twinshard_sim::{
    exhaust,
    search::{self, Search},
    staging, swarm,
};

/// Seeds within which a planted bug must show.
const PLANTED_SEEDS_MAX: u64 = 5_000;
/// The same for those that need more to come together.
const RARE_SEEDS_MAX: u64 = 20_000;
/// Those.
const RARE: &[Bug] = &[Bug::ReadsWithoutRound, Bug::CreatesAgain];

/// Plays Twinshard in simulated worlds.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plays many seeds of the general scenario and shrinks the first that fails.
    Explore(Explore),
    /// Plays a scenario file and prints its report.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// The scenario, a TOML file.
    file: std::path::PathBuf,
    /// In which world.
    #[arg(long, value_enum, default_value_t = Engine::Explorer)]
    engine: Engine,
    /// The seed of everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Engine {
    /// The machines alone.
    Explorer,
    /// The production driver over a simulated network.
    Turmoil,
}

#[derive(Debug, Args)]
struct Explore {
    /// In which world. The turmoil world draws a scenario file of its own for each seed.
    #[arg(long, value_enum, default_value_t = Engine::Explorer)]
    engine: Engine,
    /// How many seeds to play.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// On how many threads.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Plants a bug; then a search without a violation is the failure. `all`: each bug in turn, with a number of seeds of its own.
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
    /// Prints the trace of the last seed (with --seeds 1: of that seed).
    #[arg(long)]
    trace: bool,
    /// Instead of seeds: every schedule of the tiny workloads with at most so many deviations.
    #[arg(long, value_name = "DEPTH", num_args = 0..=1, default_missing_value = "2", conflicts_with_all = ["seeds", "start", "trace"])]
    exhaust: Option<u32>,
    /// Plays all seeds even if some fail, and tells of each that does.
    #[arg(long)]
    keep_going: bool,
    /// Does not shrink what fails.
    #[arg(long)]
    no_shrink: bool,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Explore(arguments) => explore(&arguments),
        Command::Run(arguments) => run(&arguments),
    }
}

fn run(arguments: &Run) -> ExitCode {
    let scenario = match Scenario::load(&arguments.file) {
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let reproduce = format!("twinshard-sim run scenarios/{}.toml --seed {}", scenario.name, arguments.seed);
    let played = match arguments.engine {
        Engine::Explorer => staging::play(&scenario, arguments.seed, format!("{reproduce} --engine explorer")),
        #[cfg(feature = "turmoil")]
        Engine::Turmoil => match twinshard_sim::turmoil::engine::play(&scenario, arguments.seed, format!("{reproduce} --engine turmoil")) {
            Ok(played) => played.run,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        },
        #[cfg(not(feature = "turmoil"))]
        Engine::Turmoil => {
            eprintln!("the turmoil world is not built into this program");
            return ExitCode::from(2);
        }
    };
    let report = Report::new(played);
    println!("{report}");
    if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn planted(name: Option<&str>) -> Result<Planted, String> {
    let Some(name) = name else { return Ok(Planted::NONE) };
    let full = |bug: &&Bug| bug.name() == name || bug.name().strip_prefix("planted-") == Some(name);
    Bug::ALL.iter().find(full).map(|bug| Planted::with(*bug)).ok_or_else(|| {
        let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        format!("there is no planted bug '{name}'; there are:\n  {}", names.join("\n  "))
    })
}

#[cfg(not(feature = "turmoil"))]
fn explore_turmoil(_: &Explore) -> ExitCode {
    eprintln!("the turmoil world is not built into this program");
    ExitCode::from(2)
}

#[cfg(feature = "turmoil")]
fn explore_turmoil(arguments: &Explore) -> ExitCode {
    if arguments.planted.is_some() || arguments.exhaust.is_some() || arguments.trace {
        eprintln!("--planted, --exhaust and --trace are the explorer's");
        return ExitCode::from(2);
    }
    let begun = Instant::now();
    let done = AtomicU64::new(0);
    let found = twinshard_sim::turmoil::swarm::search(arguments.start, arguments.seeds, arguments.jobs, arguments.keep_going, |_| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100) {
            eprintln!("{done} seeds, {:.1} a second", done as f64 / begun.elapsed().as_secs_f64());
        }
    });
    eprintln!("{:.1} seeds/s", found.seeds as f64 / begun.elapsed().as_secs_f64());
    println!("{} seeds, hash {}", found.seeds, found.hash);
    for failure in &found.failures {
        let seed = failure.seed;
        println!("VIOLATION in seed {seed}:");
        failure.complaints.iter().for_each(|complaint| println!("  {complaint}"));
        println!("reproduce: twinshard-sim explore --engine turmoil --start {seed} --seeds 1");
        println!("or keep this as a file and give it to twinshard-sim run --engine turmoil --seed {seed}:\n{}", failure.scenario);
    }
    if found.failures.is_empty() {
        println!("no violation");
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn explore(arguments: &Explore) -> ExitCode {
    if let Engine::Turmoil = arguments.engine {
        return explore_turmoil(arguments);
    }
    if arguments.planted.as_deref() == Some("all") {
        return every_planted_bug(arguments);
    }
    let bug = match planted(arguments.planted.as_deref()) {
        Ok(bug) => bug,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    if let Some(depth) = arguments.exhaust {
        return exhaust(arguments, bug, depth);
    }
    if arguments.trace {
        let result = search::play_with_text(&swarm::plan(arguments.start, bug));
        for line in &result.text {
            println!("{line}");
        }
        println!("hash {} after {} steps", result.hash, result.events);
        return result.violation.map_or(ExitCode::SUCCESS, |violation| {
            println!("{violation}");
            ExitCode::from(1)
        });
    }
    let begun = Instant::now();
    let done = AtomicU64::new(0);
    let found = search::search(
        Search { start: arguments.start, count: arguments.seeds, jobs: arguments.jobs, planted: bug, keeps_going: arguments.keep_going },
        |_| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(1_000) {
                eprintln!("{done} seeds, {:.0} a second", done as f64 / begun.elapsed().as_secs_f64());
            }
        },
    );
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{:.0} seeds/s, {:.0} events/s", found.seeds as f64 / seconds, found.events as f64 / seconds);
    println!("{} seeds, {} events, hash {}", found.seeds, found.events, found.hash);
    if let Some((took, seed)) = found.slowest {
        println!("slowest to come back: {took} (seed {seed})");
    }
    for (name, count) in found.coverage.iter() {
        println!("  {count:>12} {name}");
    }
    for (seed, violation, at) in found.failures.iter().skip(1) {
        println!("VIOLATION in seed {seed} at {at}: {violation}");
    }
    let Some((seed, violation, at)) = found.failures.into_iter().next() else {
        println!("no violation");
        return if arguments.planted.is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS };
    };
    println!("VIOLATION in seed {seed} at {at}: {violation}");
    let name = arguments.planted.as_deref().map(|name| format!(" --planted {name}")).unwrap_or_default();
    println!("reproduce: twinshard-sim explore --start {seed} --seeds 1{name}");
    if !arguments.no_shrink {
        let plan = swarm::plan(seed, bug);
        let (small, runs) = search::shrink(&plan, violation.rule);
        let again = search::play(&small);
        println!("shrunk from {} to {} parts in {runs} runs:", plan.size(), small.size());
        print!("{small}");
        if let Some(violation) = again.violation {
            println!("{violation}");
        }
    }
    if arguments.planted.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Searches each planted bug from the start until it shows, and says where.
fn every_planted_bug(arguments: &Explore) -> ExitCode {
    if arguments.exhaust.is_some() || arguments.trace {
        eprintln!("--exhaust and --trace go with one planted bug");
        return ExitCode::from(2);
    }
    let begun = Instant::now();
    let mut missed = 0;
    println!("{:<44} {:>7} {:>7}  shown by", "bug", "budget", "seed");
    for &bug in Bug::ALL {
        let count = if RARE.contains(&bug) { RARE_SEEDS_MAX } else { PLANTED_SEEDS_MAX };
        let planted = Planted::with(bug);
        let found = search::search(Search { start: arguments.start, count, jobs: arguments.jobs, planted, keeps_going: false }, |_| {});
        let (seed, rule) = match found.failures.first() {
            Some((seed, violation, _)) => (seed.to_string(), violation.rule),
            None => {
                missed += 1;
                ("-".to_owned(), "NOTHING")
            }
        };
        println!("{:<44} {count:>7} {seed:>7}  {rule}", bug.name());
    }
    eprintln!("{:.0} s", begun.elapsed().as_secs_f64());
    println!("{} of {} found", Bug::ALL.len() - missed, Bug::ALL.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn exhaust(arguments: &Explore, bug: Planted, depth: u32) -> ExitCode {
    let mut failed = false;
    for tiny in exhaust::workloads(bug) {
        let begun = Instant::now();
        let searched = exhaust::search(&tiny, depth, arguments.jobs);
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{:.0} schedules/s, {:.0} events/s", searched.schedules as f64 / seconds, searched.events as f64 / seconds);
        println!("{}: {} places, {} schedules, {} events", tiny.name, searched.sites, searched.schedules, searched.events);
        if let Some((deviations, violation)) = searched.failure {
            failed = true;
            println!("VIOLATION with {deviations:?}: {violation}");
        }
    }
    if failed == arguments.planted.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
