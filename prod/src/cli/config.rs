//! The settings of the commands that run nodes, from a TOML file: a table for each command, a key for each of its flags. What may stand
//! there, what it means and what it is otherwise, the flags themselves say: nothing is written twice. A flag goes before the environment,
//! that before the file, that before the default.

use super::{Cli, Failure};
use clap::{
    Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches, Subcommand,
    builder::BoolishValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use std::{
    collections::{BTreeMap, BTreeSet},
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
/// The flag of a node that a supervisor runs.
const CHILD: &str = "--child";
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
                let settings = load(&file, Extent::Together)?;
                let count: usize = settings.values().map(BTreeMap::len).sum();
                println!("{}: {count} settings, all of them good", file.display());
            }
            What::Show { command } => {
                let settings = file.map(|file| load(file, Extent::Each)).transpose()?.unwrap_or_default();
                let wanted = COMMANDS.iter().filter(|name| command.as_ref().is_none_or(|wanted| wanted == *name));
                for name in wanted {
                    print!("{}", shown(name, &settings)?);
                }
            }
        }
        Ok(())
    }
}

/// By command, by key: the flags that say the same; none for a switch that is off.
type Settings = BTreeMap<String, BTreeMap<String, Vec<OsString>>>;

/// How much of a file is to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Every setting. What they lack, or contradict, flags and the environment may mend.
    Each,
    /// And those of a command with each other.
    Together,
}

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
pub(super) fn parse(mut words: Vec<OsString>) -> Result<Cli, Failure> {
    let mut command = Cli::command();
    // What a supervisor tells its child is all there is.
    if words.iter().all(|word| word != CHILD) {
        let said = given(&command, &words);
        command = with_environment(command, &said);
        if let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&words)
            && let Some(file) = matches.get_one::<PathBuf>("config")
            && let Some(name) = matches.subcommand_name().filter(|name| COMMANDS.contains(name))
        {
            words.extend(left_to_say(&command, name, &words, &load(file, Extent::Each)?));
        }
    }
    let matches = command.try_get_matches_from(words).unwrap_or_else(|error| error.exit());
    Cli::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string()))
}

/// The flags of the command that these words, and what environment it has, give.
fn given(command: &Command, words: &[OsString]) -> BTreeSet<String> {
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(words) else { return BTreeSet::new() };
    let Some((_, given)) = matches.subcommand() else { return BTreeSet::new() };
    let says = |id: &str| matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
    given.ids().map(clap::Id::as_str).filter(|id| says(id)).map(str::to_owned).collect()
}

/// What the file has to say to a command where these words and the environment do not.
fn left_to_say(command: &Command, name: &str, words: &[OsString], settings: &Settings) -> Vec<OsString> {
    let (said, known) = (given(command, words), command.find_subcommand(name));
    let is_left = |key: &str| {
        known.is_some_and(|known| known.get_arguments().any(|arg| arg.get_long() == Some(key) && !is_beaten(known, &said, arg)))
    };
    settings.get(name).into_iter().flatten().filter(|(key, _)| is_left(key)).flat_map(|(_, flags)| flags.iter().cloned()).collect()
}

/// Whether a flag was said already, or one that contradicts it.
fn is_beaten(known: &Command, said: &BTreeSet<String>, arg: &Arg) -> bool {
    let contradicts = |one, other: &Arg| known.get_arg_conflicts_with(one).iter().any(|found| found.get_id() == other.get_id());
    known
        .get_arguments()
        .filter(|other| said.contains(other.get_id().as_str()))
        .any(|other| other.get_id() == arg.get_id() || contradicts(other, arg) || contradicts(arg, other))
}

fn flag(key: &str, value: &str) -> OsString {
    format!("--{key}={value}").into()
}

/// Every setting that was not said may come from the environment: `TWINSHARD_UP_PORT` is --port of `twinshard up`.
fn with_environment(command: Command, said: &BTreeSet<String>) -> Command {
    COMMANDS.iter().fold(command, |command, name| {
        if command.find_subcommand(name).is_none() {
            return command; // Left out of this build.
        }
        command.mut_subcommand(name, |command| {
            let known = command.clone();
            command.mut_args(|arg| match environment_of(name, &arg).filter(|_| !is_beaten(&known, said, &arg)) {
                Some(variable) if matches!(arg.get_action(), ArgAction::SetTrue) => {
                    arg.env(variable).hide_env(true).value_parser(BoolishValueParser::new())
                }
                Some(variable) => arg.env(variable).hide_env(true),
                None => arg,
            })
        })
    })
}

/// That of all commands where there is one, else the command's own.
fn environment_of(command: &str, arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|_| is_setting(arg))?;
    let own = || format!("TWINSHARD_{command}_{long}").to_uppercase().replace('-', "_");
    Some(arg.get_env().map_or_else(own, |of_all| of_all.to_string_lossy().into_owned()))
}

fn is_setting(arg: &Arg) -> bool {
    !arg.is_hide_set() && arg.get_long().is_some_and(|long| !["help", "version", "config"].contains(&long))
}

fn load(file: &Path, extent: Extent) -> Result<Settings, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::usage(format!("could not read {}: {error}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| failed(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(&format!("it has {size} bytes; a file of settings has at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    checked(&text, extent).map_err(|mistakes| {
        let lines = mistakes.iter().map(|mistake| format!("{}:{}:{}: {}", file.display(), mistake.line, mistake.column, mistake.words));
        Failure::usage(lines.collect::<Vec<_>>().join("\n"))
    })
}

/// The settings, or every mistake in the order of the text.
fn checked(text: &str, extent: Extent) -> Result<Settings, Vec<Mistake>> {
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
        let mistakes_before = mistakes.len();
        for (key, value) in table {
            match setting(&command, known, key.get_ref().as_ref(), value) {
                Ok(found) => drop(settings.entry(name.to_owned()).or_default().insert(key.get_ref().to_string(), found)),
                Err((is_key, words)) => mistakes.push(at(if is_key { key.span().start } else { value.span().start }, words)),
            }
        }
        if extent == Extent::Together
            && mistakes.len() == mistakes_before
            && let Some(words) = settings.get(name).and_then(|table| contradiction(&command, name, table))
        {
            mistakes.push(at(place, format!("[{name}]: {words}")));
        }
    }
    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
}

/// One setting as flags, or whether its key is wrong and what to say.
fn setting(program: &Command, command: &Command, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, (bool, String)> {
    let Some(arg) = command.get_arguments().find(|arg| is_setting(arg) && arg.get_long() == Some(key)) else {
        let known = command.get_arguments().filter(|arg| is_setting(arg)).filter_map(Arg::get_long);
        return Err((true, unknown(&format!("setting of `{}`", command.get_name()), key, known)));
    };
    let flags = match (arg.get_action(), value.get_ref()) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => vec![format!("--{key}").into()],
        (ArgAction::SetTrue, DeValue::Boolean(false)) => vec![],
        (ArgAction::SetTrue, _) => return Err((false, format!("'{key}' is true or false"))),
        (ArgAction::Append, DeValue::Array(items)) => items
            .iter()
            .map(|item| Ok(flag(key, &scalar(key, item.get_ref())?)))
            .collect::<Result<_, _>>()
            .map_err(|words| (false, words))?,
        (_, value) => vec![flag(key, &scalar(key, value).map_err(|words| (false, words))?)],
    };
    match run(program, command.get_name(), &flags) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => Err((false, in_a_line(&error))),
        // That others are missing beside it does not matter.
        Ok(_) | Err(_) => Ok(flags),
    }
}

/// A value as it stands on the command line.
fn scalar(key: &str, value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|error| format!("'{key}': {error}")),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => Err(format!("'{key}' is a text or a number")),
    }
}

fn run(program: &Command, name: &str, flags: &[OsString]) -> Result<clap::ArgMatches, clap::Error> {
    let words = [program.get_name(), name].map(OsString::from);
    program.clone().try_get_matches_from(words.iter().chain(flags))
}

fn in_a_line(error: &clap::Error) -> String {
    let words = error.to_string();
    let words = words.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    words.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Why a command would not start with these settings, each of which is good, and with what it cannot do without.
fn contradiction(program: &Command, name: &str, table: &BTreeMap<String, Vec<OsString>>) -> Option<String> {
    let needed = match run(program, name, &[]) {
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(flags)) => flags.clone(),
            Some(_) | None => vec![],
        },
        Ok(_) | Err(_) => vec![],
    };
    let needed = needed.iter().filter_map(|flag| flag.strip_prefix("--")?.split(' ').next());
    // A directory, a file and the id of a cluster can be 0.
    let stand_ins = needed.filter(|key| !table.contains_key(*key)).map(|key| flag(key, "0"));
    let flags: Vec<OsString> = table.values().flatten().cloned().chain(stand_ins).collect();
    let checked = run(program, name, &flags).and_then(|matches| Cli::from_arg_matches(&matches));
    match checked {
        Ok(cli) => cli.command.check().err().map(|failure| failure.to_string()),
        Err(error) => Some(in_a_line(&error)),
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
    let command = with_environment(Cli::command(), &BTreeSet::new()).ignore_errors(true);
    let Some(known) = command.find_subcommand(name) else { return Ok(String::new()) };
    let mut words: Vec<OsString> = vec![command.get_name().into(), name.into()];
    words.extend(left_to_say(&command, name, &words, settings));
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
        let raw = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        let raw: Vec<String> = raw.map(|raw| if raw.parse::<i64>().is_ok() { raw } else { toml::Value::String(raw).to_string() }).collect();
        let value = match (arg.get_action(), raw.first()) {
            (ArgAction::SetTrue, _) => Some(matches.get_flag(id).to_string()),
            (ArgAction::Append, Some(_)) => Some(format!("[{}]", raw.join(", "))),
            (_, first) => first.cloned(),
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
        checked(text, Extent::Together).err().into_iter().flatten().map(|mistake| (mistake.line, mistake.column, mistake.words)).collect()
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
    fn what_contradicts_itself_is_a_mistake_of_the_table() {
        for (text, words) in [
            ("ca = \"/there\"", "--tls"),
            ("tls-name = \"a\"", "--tls"),
            ("suspect-after = 2000\nreplace-after = 1000", "--replace-after is less than --suspect-after"),
            ("bind = \"0.0.0.0\"", "say --auth required"),
            ("bind = \"0.0.0.0\"\nauth = \"off\"", ""),
            ("tls = true\nca = \"/there\"", ""),
        ] {
            let found = mistakes(&format!("\n[up]\n{text}\n"));
            let expected = if words.is_empty() { vec![] } else { vec![(2, 2)] };
            assert_eq!(found.iter().map(|(line, column, _)| (*line, *column)).collect::<Vec<_>>(), expected, "{text}: {found:?}");
            assert!(found.iter().all(|(_, _, said)| said.contains(words)), "{text}: {found:?}");
            // What is lacking may come from elsewhere.
            assert!(checked(&format!("[up]\n{text}\n"), Extent::Each).is_ok(), "{text}");
        }
        for (text, words) in [
            ("[balancer]\nlisten = \"0.0.0.0:1\"", "--auth required"),
            ("[balancer]\nrole = \"router\"", "leave --role out"),
            ("[balancer]\nregister = \"mysql\"\nprovisioner = \"process\"", "--provisioner docker"),
            ("[server]\npeer-listen = \"10.0.0.1:1\"", "--auth required"),
            ("[server]\nport = 1\nlisten = \"127.0.0.1:1\"", "cannot be used with"),
            ("[deploy]\ntokens = \"/there\"", "no setting of `deploy`"),
            ("[deploy]\nbind = \"0.0.0.0\"", "--auth required"),
            ("[deploy]\nplain = true\ntls = true", "cannot be used with"),
        ] {
            let found = mistakes(text);
            assert!(found.len() == 1 && found[0].2.contains(words), "{text}: {found:?}");
        }
        for text in ["[balancer]\nlisten = \"127.0.0.1:1\"", "[server]\nstandalone = true", "[server]\nid = 2\ncluster = \"00\""] {
            assert_eq!(mistakes(text), [], "what only flags can say is not missing");
        }
    }

    #[test]
    fn a_list_is_a_list_in_a_file_and_a_flag_goes_before_what_contradicts_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("text");
        let server = |more: &[&str]| {
            let words = ["twinshard", "--config", path, "server", "--standalone"].iter().chain(more).map(OsString::from).collect();
            let super::super::Command::Server(server) = parse(words).expect("parses").command else { panic!() };
            format!("{server:?}")
        };
        for names in ["[\"a.example\", \"10.0.0.1\"]", "\"a.example,10.0.0.1\""] {
            let text = format!("[server]\nlisten = \"127.0.0.1:5001\"\ntls = true\ntls-name = {names}\n");
            std::fs::write(file.path(), &text).expect("written");
            let said = server(&[]);
            assert!(said.contains("listen: Some(127.0.0.1:5001)") && said.contains("tls_name: [\"a.example\", \"10.0.0.1\"]"), "{said}");
            let said = server(&["--port", "5002", "--tls-name", "b.example"]);
            assert!(said.contains("listen: None, port: Some(5002)") && said.contains("tls_name: [\"b.example\"]"), "{said}");
            let again = shown("server", &checked(&text, Extent::Together).expect("good")).expect("shown");
            assert!(again.contains("\ntls-name = [\"a.example\", \"10.0.0.1\"]  # set in the file\n"), "{again}");
        }
        assert!(mistakes("[server]\ntls = true\ntls-name = [true]\n")[0].2.contains("'tls-name' is a text or a number"));
    }

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let all: String = COMMANDS.iter().map(|name| shown(name, &Settings::new()).expect("shown")).collect();
        let settings = checked(&all, Extent::Together).expect("no mistakes");
        let again: String = COMMANDS.iter().map(|name| shown(name, &settings).expect("shown")).collect();
        assert_eq!(again.replace("# set in the file", "# the default"), all);
        let documented = include_str!("../../../docs/twinshard.toml");
        assert!(documented == all, "docs/twinshard.toml is old: `twinshard config show > docs/twinshard.toml` makes it anew");
    }
}
