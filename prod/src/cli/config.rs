//! The settings of the commands that run nodes, from a TOML file: a table for each command, a key for each of its flags. What may stand
//! there, what it means and what it is otherwise, the flags themselves say: nothing is written twice. A flag goes before the environment,
//! that before the file, that before the default.

use super::{Cli, Failure};
use clap::{Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches, Subcommand, error::ErrorKind, parser::ValueSource};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The commands that have settings.
const COMMANDS: &[&str] = &["up", "balancer", "server", "deploy"];
/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How like a known name an unknown one must be to be taken for it.
const LIKENESS_MIN: f64 = 0.7;

/// Shows and checks settings.
#[derive(Debug, Args)]
#[command(after_help = "A file has a table for each command, with its flags as keys:
  [up]
  port = 5001
  balancers = 2
Then `twinshard --config FILE up`, or TWINSHARD_CONFIG=FILE. TWINSHARD_UP_PORT=5002 goes before the file, --port 5003 before that.")]
pub struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Says every mistake in a file, with its line
    Check {
        /// The file
        file: PathBuf,
    },
    /// Prints all settings as a file: what each is for, what it is now, and what says so
    Show {
        /// Only those of one command
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(COMMANDS))]
        command: Option<String>,
    },
}

impl Config {
    /// Runs it; `file` is what `--config` named.
    ///
    /// # Errors
    /// If the file has mistakes.
    pub fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        match self.what {
            What::Check { file } => {
                let settings = load(&file)?;
                let count: usize = settings.values().map(BTreeMap::len).sum();
                println!("{}: {count} settings, all of them good", file.display());
            }
            What::Show { command } => {
                let settings = file.map(load).transpose()?.unwrap_or_default();
                let wanted = COMMANDS.iter().filter(|name| command.as_ref().is_none_or(|wanted| wanted == *name));
                for name in wanted {
                    print!("{}", shown(name, &settings)?);
                }
            }
        }
        Ok(())
    }
}

/// By command, by key: the value as a flag takes it; nothing for a flag without one.
type Settings = BTreeMap<String, BTreeMap<String, Option<String>>>;

/// What is wrong in a file, and where.
#[derive(Debug, PartialEq, Eq)]
struct Mistake {
    line: usize,
    column: usize,
    words: String,
}

/// The program's arguments, with the environment's and the file's.
///
/// # Errors
/// If the file has mistakes. Wrong arguments end the program with their own message.
pub(super) fn parse(words: Vec<OsString>) -> Result<Cli, Failure> {
    let command = with_environment(Cli::command());
    let mut words = words;
    if let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&words)
        && let Some(file) = matches.get_one::<PathBuf>("config")
        && let Some((name, given)) = matches.subcommand()
        && COMMANDS.contains(&name)
    {
        let settings = load(file)?;
        let says = |id: &str| matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        for (key, value) in settings.get(name).into_iter().flatten().filter(|(key, _)| !says(&id_of(&command, name, key))) {
            words.push(flag(key, value.as_deref()));
        }
    }
    let matches = command.try_get_matches_from(words).unwrap_or_else(|error| error.exit());
    Cli::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string()))
}

fn flag(key: &str, value: Option<&str>) -> OsString {
    value.map_or_else(|| format!("--{key}"), |value| format!("--{key}={value}")).into()
}

/// Every setting may come from the environment: `TWINSHARD_UP_PORT` is --port of `twinshard up`.
fn with_environment(command: Command) -> Command {
    COMMANDS.iter().fold(command, |command, name| {
        if command.find_subcommand(name).is_none() {
            return command; // Left out of this build.
        }
        command.mut_subcommand(name, |command| {
            command.mut_args(|arg| match environment_of(name, &arg) {
                Some(variable) => arg.env(variable).hide_env(true),
                None => arg,
            })
        })
    })
}

fn environment_of(command: &str, arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|_| is_setting(arg))?;
    Some(format!("TWINSHARD_{command}_{long}").to_uppercase().replace('-', "_"))
}

fn is_setting(arg: &Arg) -> bool {
    !arg.is_hide_set() && arg.get_long().is_some_and(|long| !["help", "version", "config"].contains(&long))
}

fn id_of(command: &Command, name: &str, key: &str) -> String {
    let args = command.find_subcommand(name).into_iter().flat_map(Command::get_arguments);
    args.filter(|arg| arg.get_long() == Some(key)).map(|arg| arg.get_id().to_string()).next().unwrap_or_default()
}

fn load(file: &Path) -> Result<Settings, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::usage(format!("could not read {}: {error}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| failed(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(&format!("it has {size} bytes; a file of settings has at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    checked(&text).map_err(|mistakes| {
        let lines = mistakes.iter().map(|mistake| format!("{}:{}:{}: {}", file.display(), mistake.line, mistake.column, mistake.words));
        Failure::usage(lines.collect::<Vec<_>>().join("\n"))
    })
}

/// The settings, or every mistake in the order of the text.
fn checked(text: &str) -> Result<Settings, Vec<Mistake>> {
    let at = |offset: usize, words: String| {
        let before = &text[..offset.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Mistake { line, column, words }
    };
    let document =
        DeTable::parse(text).map_err(|error| vec![at(error.span().map_or(0, |span| span.start), error.message().trim().to_owned())])?;
    let command = Cli::command();
    let (mut settings, mut mistakes) = (Settings::new(), Vec::new());
    for (name, table) in document.get_ref() {
        let (place, name) = (name.span().start, name.get_ref().as_ref());
        let (Some(known), Some(table)) = (command.find_subcommand(name).filter(|_| COMMANDS.contains(&name)), table.get_ref().as_table())
        else {
            mistakes.push(at(place, unknown("command with settings", name, COMMANDS.iter().copied())));
            continue;
        };
        for (key, value) in table {
            match setting(&command, known, key.get_ref().as_ref(), value) {
                Ok(found) => drop(settings.entry(name.to_owned()).or_default().insert(key.get_ref().to_string(), found)),
                Err((is_key, words)) => mistakes.push(at(if is_key { key.span().start } else { value.span().start }, words)),
            }
        }
    }
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    if mistakes.is_empty() {
        // `off = false` says nothing.
        settings.values_mut().for_each(|table| table.retain(|_, value| value.as_deref() != Some(UNSET)));
        Ok(settings)
    } else {
        Err(mistakes)
    }
}

/// Stands for a flag that is not given.
const UNSET: &str = "\0";

/// One setting as a flag takes it, or whether its key is wrong and what to say.
fn setting(program: &Command, command: &Command, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Option<String>, (bool, String)> {
    let Some(arg) = command.get_arguments().find(|arg| is_setting(arg) && arg.get_long() == Some(key)) else {
        let known = command.get_arguments().filter(|arg| is_setting(arg)).filter_map(Arg::get_long);
        return Err((true, unknown(&format!("setting of `{}`", command.get_name()), key, known)));
    };
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let value = match value.get_ref() {
        DeValue::Boolean(true) if is_switch => return Ok(None),
        DeValue::Boolean(false) if is_switch => return Ok(Some(UNSET.to_owned())),
        _ if is_switch => return Err((false, format!("'{key}' is true or false"))),
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.to_string(),
            Err(error) => return Err((false, format!("'{key}': {error}"))),
        },
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            return Err((false, format!("'{key}' is a text or a number")));
        }
    };
    let words = [OsString::from(program.get_name()), command.get_name().into(), flag(key, Some(&value))];
    match program.clone().try_get_matches_from(words) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => {
            let words = error.to_string();
            let words = words.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
            Err((false, words.lines().map(str::trim).collect::<Vec<_>>().join(" ")))
        }
        // That others are missing beside it does not matter.
        Ok(_) | Err(_) => Ok(Some(value)),
    }
}

fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known.iter().map(|known| (strsim::jaro_winkler(known, name), known)).max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest.filter(|(likeness, _)| *likeness >= LIKENESS_MIN) {
        Some((_, nearest)) => format!("'{name}' is no {kind}; is '{nearest}' meant?"),
        None => format!("'{name}' is no {kind}; there are {}", known.join(", ")),
    }
}

/// The settings of a command as a file.
fn shown(name: &str, settings: &Settings) -> Result<String, Failure> {
    let command = with_environment(Cli::command()).ignore_errors(true);
    let Some(known) = command.find_subcommand(name) else { return Ok(String::new()) };
    let mut words: Vec<OsString> = vec![command.get_name().into(), name.into()];
    let empty = BTreeMap::new();
    words.extend(settings.get(name).unwrap_or(&empty).iter().map(|(key, value)| flag(key, value.as_deref())));
    let matches = command.clone().try_get_matches_from(words).map_err(|error| Failure::usage(error.to_string()))?;
    let Some((_, matches)) = matches.subcommand() else { return Ok(String::new()) };
    let about = known.get_about().map(ToString::to_string).unwrap_or_default();
    let mut out = format!("# {about}\n[{name}]\n");
    for arg in known.get_arguments().filter(|arg| is_setting(arg)) {
        let (id, key) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let allowed: Vec<String> = match arg.get_action() {
            ArgAction::SetTrue => Vec::new(),
            _ => arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect(),
        };
        let allowed = if allowed.is_empty() { String::new() } else { format!(" ({})", allowed.join(", ")) };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\n# {}{allowed}", help.replace('\n', "\n# "));
        let raw = matches.get_raw(id).and_then(|mut values| values.next()).map(|value| value.to_string_lossy().into_owned());
        let value = match (arg.get_action(), raw) {
            (ArgAction::SetTrue, _) => Some(matches.get_flag(id).to_string()),
            (_, raw) => raw.map(|raw| if raw.parse::<i64>().is_ok() { raw } else { toml::Value::String(raw).to_string() }),
        };
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "set in the file".to_owned(),
            Some(ValueSource::EnvVariable) => format!("set in the environment, {}", environment_of(name, arg).unwrap_or_default()),
            Some(_) => "the default".to_owned(),
            None => "not set".to_owned(),
        };
        let _ = match value {
            Some(value) => writeln!(out, "{key} = {value}  # {source}"),
            None => writeln!(out, "# {key} =  # {source}"),
        };
    }
    out.push('\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<(usize, usize, String)> {
        checked(text).err().into_iter().flatten().map(|mistake| (mistake.line, mistake.column, mistake.words)).collect()
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "[up]\nport = 70000\nbalancer = 2\nauth = \"on\"\n[serve]\n[server]\nstandalone = 1\nid = [1]\nzzz = 1\n";
        let found = mistakes(text);
        let places: Vec<(usize, usize)> = found.iter().map(|(line, column, _)| (*line, *column)).collect();
        assert_eq!(places, [(2, 8), (3, 1), (4, 8), (5, 2), (7, 14), (8, 6), (9, 1)], "{found:?}");
        for (place, words) in [
            (0, "70000 is not in 0..=65535"),
            (1, "is 'balancers' meant?"),
            (2, "possible values: off, required"),
            (3, "is 'server' meant?"),
            (4, "'standalone' is true or false"),
            (5, "'id' is a text or a number"),
            (6, "there are standalone, dir"),
        ] {
            assert!(found[place].2.contains(words), "{} does not say: {words}", found[place].2);
        }
        assert_eq!(mistakes("[up\n").len(), 1);
        assert_eq!(mistakes("port = 1\n")[0].0, 1);
    }

    #[test]
    fn the_file_goes_before_the_default_and_a_flag_before_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[up]\nport = 5_001\nbalancers = 3\ndir = \"there\"\n[server]\nstandalone = false\n").expect("written");
        let path = file.path().to_str().expect("text");
        let words = |more: &[&str]| ["twinshard", "--config", path].iter().chain(more).map(OsString::from).collect();
        let super::super::Command::Up(up) = parse(words(&["up", "--balancers", "2"])).expect("parses").command else { panic!() };
        let shown = format!("{up:?}");
        for expected in ["port: 5001", "balancers: 2", "dir: \"there\"", "bind: 127.0.0.1"] {
            assert!(shown.contains(expected), "{expected} is not in {shown}");
        }
        std::fs::write(file.path(), "[up]\nprot = 5001\n").expect("written");
        let refused = parse(words(&["up"])).expect_err("a mistake").to_string();
        assert!(refused.contains(":2:1: 'prot' is no setting of `up`; is 'port' meant?"), "{refused}");
    }

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let all: String = COMMANDS.iter().map(|name| shown(name, &Settings::new()).expect("shown")).collect();
        let settings = checked(&all).expect("no mistakes");
        let again: String = COMMANDS.iter().map(|name| shown(name, &settings).expect("shown")).collect();
        assert_eq!(again.replace("# set in the file", "# the default"), all);
        let documented = include_str!("../../../docs/twinshard.toml");
        assert!(documented == all, "docs/twinshard.toml is old: `twinshard config show > docs/twinshard.toml` makes it anew");
    }
}
