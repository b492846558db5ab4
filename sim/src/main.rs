//! `twinshard-sim`: burns seeds, plays scenarios, shrinks what fails. Exit codes: 0 fine, 1 a violation, 2 wrong usage.

use clap::{Args, Parser, Subcommand, builder::RangedU64ValueParser};
use std::{
    io::Write as _,
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

/// A line on standard output. Whoever reads no further ends the program as the signal would, and that is no panic.
macro_rules! out {
    ($($text:tt)*) => {
        if writeln!(std::io::stdout(), $($text)*).is_err() {
            std::process::exit(READER_GONE);
        }
    };
}

/// What a shell says of a program whose reader has gone: 128 and the number of SIGPIPE.
const READER_GONE: i32 = 141;
/// How many seeds are played where nobody says how many.
const SEEDS: u64 = 1_000;
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
    /// How many seeds to play [default: 1000]. Not with `--planted all`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// On how many threads.
    #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
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
    /// With --exhaust: the most schedules of each workload. A search that ends there says so.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..), requires = "exhaust")]
    schedules: u64,
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
    let reproduce = format!("twinshard-sim run {} --seed {}", quoted(&arguments.file.to_string_lossy()), arguments.seed);
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
    out!("{report}");
    if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./+,:@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

impl Explore {
    fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(SEEDS)
    }

    /// What contradicts itself, in words.
    fn mistake(&self) -> Option<String> {
        let all = self.planted.as_deref() == Some("all");
        if all && self.seeds.is_some() {
            return Some("--planted all plays a number of seeds of its own for each bug: leave --seeds out".to_owned());
        }
        let count = if all { RARE_SEEDS_MAX } else { self.seeds() };
        self.start.checked_add(count).is_none().then(|| {
            let last = u64::MAX - count;
            format!("--start {} with {count} seeds goes beyond the last seed there is: it can be {last} at most", self.start)
        })
    }
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
    let found = twinshard_sim::turmoil::swarm::search(arguments.start, arguments.seeds(), arguments.jobs, arguments.keep_going, |_| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100) {
            eprintln!("{done} seeds, {:.1} a second", done as f64 / begun.elapsed().as_secs_f64());
        }
    });
    eprintln!("{:.1} seeds/s", found.seeds as f64 / begun.elapsed().as_secs_f64());
    out!("{} seeds, hash {}", found.seeds, found.hash);
    for failure in &found.failures {
        let seed = failure.seed;
        out!("VIOLATION in seed {seed}:");
        failure.complaints.iter().for_each(|complaint| out!("  {complaint}"));
        out!("reproduce: twinshard-sim explore --engine turmoil --start {seed} --seeds 1");
        out!("or keep this as a file and give it to twinshard-sim run --engine turmoil --seed {seed}:\n{}", failure.scenario);
    }
    if found.failures.is_empty() {
        out!("no violation");
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn explore(arguments: &Explore) -> ExitCode {
    if let Some(mistake) = arguments.mistake() {
        eprintln!("{mistake}");
        return ExitCode::from(2);
    }
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
            out!("{line}");
        }
        out!("hash {} after {} steps", result.hash, result.events);
        return result.violation.map_or(ExitCode::SUCCESS, |violation| {
            out!("{violation}");
            ExitCode::from(1)
        });
    }
    let begun = Instant::now();
    let done = AtomicU64::new(0);
    let found = search::search(
        Search { start: arguments.start, count: arguments.seeds(), jobs: arguments.jobs, planted: bug, keeps_going: arguments.keep_going },
        |_| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(1_000) {
                eprintln!("{done} seeds, {:.0} a second", done as f64 / begun.elapsed().as_secs_f64());
            }
        },
    );
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{:.0} seeds/s, {:.0} events/s", found.seeds as f64 / seconds, found.events as f64 / seconds);
    out!("{} seeds, {} events, hash {}", found.seeds, found.events, found.hash);
    if let Some((took, seed)) = found.slowest {
        out!("slowest to come back: {took} (seed {seed})");
    }
    for (name, count) in found.coverage.iter() {
        out!("  {count:>12} {name}");
    }
    for (seed, violation, at) in found.failures.iter().skip(1) {
        out!("VIOLATION in seed {seed} at {at}: {violation}");
    }
    let Some((seed, violation, at)) = found.failures.into_iter().next() else {
        out!("no violation");
        return if arguments.planted.is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS };
    };
    out!("VIOLATION in seed {seed} at {at}: {violation}");
    let name = arguments.planted.as_deref().map(|name| format!(" --planted {name}")).unwrap_or_default();
    out!("reproduce: twinshard-sim explore --start {seed} --seeds 1{name}");
    if !arguments.no_shrink {
        let plan = swarm::plan(seed, bug);
        let (small, runs) = search::shrink(&plan, violation.rule);
        let again = search::play(&small);
        out!("shrunk from {} to {} parts in {runs} runs:", plan.size(), small.size());
        out!("{}", small.to_string().trim_end());
        if let Some(violation) = again.violation {
            out!("{violation}");
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
    out!("{:<44} {:>7} {:>7}  shown by", "bug", "budget", "seed");
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
        out!("{:<44} {count:>7} {seed:>7}  {rule}", bug.name());
    }
    eprintln!("{:.0} s", begun.elapsed().as_secs_f64());
    out!("{} of {} found", Bug::ALL.len() - missed, Bug::ALL.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn exhaust(arguments: &Explore, bug: Planted, depth: u32) -> ExitCode {
    let mut failed = false;
    for tiny in exhaust::workloads(bug) {
        let begun = Instant::now();
        let searched = exhaust::search(&tiny, depth, arguments.schedules, arguments.jobs);
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{:.0} schedules/s, {:.0} events/s", searched.schedules as f64 / seconds, searched.events as f64 / seconds);
        out!("{}: {} places, {} schedules, {} events", tiny.name, searched.sites, searched.schedules, searched.events);
        if let Some((tried, of)) = searched.stopped {
            out!("  not complete: stopped at {} schedules, with {tried} of {of} first deviations tried to the end", arguments.schedules);
        }
        if let Some((deviations, violation)) = searched.failure {
            failed = true;
            out!("VIOLATION with {deviations:?}: {violation}");
        }
    }
    if failed == arguments.planted.is_some() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explored(arguments: &str) -> Result<Explore, String> {
        let cli = Cli::try_parse_from(["twinshard-sim", "explore"].into_iter().chain(arguments.split_whitespace()));
        match cli.map_err(|error| error.to_string())?.command {
            Command::Explore(explore) => explore.mistake().map_or(Ok(explore), Err),
            Command::Run(_) => unreachable!(),
        }
    }

    #[test]
    fn searches_of_nothing_are_mistakes() {
        for (arguments, said) in [
            ("--seeds 0", "0 is not in 1.."),
            ("--engine turmoil --seeds 0", "0 is not in 1.."),
            ("--planted all --seeds 0", "0 is not in 1.."),
            ("--planted all --seeds 5", "leave --seeds out"),
            ("--start 18446744073709551615", "18446744073709550615 at most"),
            ("--start 18446744073709551615 --seeds 1", "beyond the last seed"),
            ("--engine turmoil --start 18446744073709551611 --seeds 5", "18446744073709551610 at most"),
            ("--planted all --start 18446744073709550000", "18446744073709531615 at most"),
            ("--jobs 0", "0 is not in 1.."),
            ("--schedules 5", "--exhaust"),
        ] {
            let told = explored(arguments).expect_err(arguments);
            assert!(told.contains(said), "{arguments}: {told}");
        }
        assert_eq!(explored("--start 18446744073709551610 --seeds 5").expect("the last there are").seeds(), 5);
        assert_eq!(explored("").expect("defaults").seeds(), SEEDS);
    }

    #[test]
    fn a_line_to_paste_names_the_file_as_it_was_given() {
        assert_eq!(quoted("../y/primary-crash.toml"), "../y/primary-crash.toml");
        assert_eq!(quoted("my files/a.toml"), "'my files/a.toml'");
        assert_eq!(quoted("it's.toml"), r"'it'\''s.toml'");
    }
}
