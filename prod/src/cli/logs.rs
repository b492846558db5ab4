//! What the commands that run nodes log.

use super::{Failure, LOG, LOG_FORMAT};
use crate::shown;
use clap::{Args, Command, FromArgMatches, ValueEnum};
use std::ffi::OsString;
use tracing_subscriber::EnvFilter;

/// What is logged, to standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct LogArgs {
    /// What is logged: a level, and levels of parts of the program, such as info,twinshard::request=debug [default: info]
    #[arg(long, value_name = "FILTER", env = LOG, hide_env = true, value_parser = log_filter)]
    pub log: Option<String>,
    /// How it is logged [default: text]
    #[arg(long, value_name = "FORMAT", env = LOG_FORMAT, hide_env = true, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// How a node logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text each.
    Text,
    /// A JSON object a line.
    Json,
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl LogArgs {
    /// As the environment says.
    ///
    /// # Errors
    /// If what it says is no filter or no format.
    pub fn of_environment() -> Result<Self, Failure> {
        let command = Self::augment_args(Command::new("log").no_binary_name(true));
        Ok(Self::from_arg_matches(&command.try_get_matches_from(std::iter::empty::<&str>())?)?)
    }

    /// As another node of the cluster is told it.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let format = self.log_format.map(|format| if format == LogFormat::Json { "json" } else { "text" });
        let flags = [("--log", self.log.as_deref()), ("--log-format", format)];
        flags.into_iter().filter_map(|(flag, value)| Some([flag.into(), value?.into()])).flatten().collect()
    }

    /// Logs from now on.
    ///
    /// # Errors
    /// If the filter is none.
    pub fn start(&self) -> Result<(), Failure> {
        let filter = EnvFilter::try_new(self.log.as_deref().unwrap_or("info"))?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| shown::Entries(std::io::stderr())).with_ansi(false);
        match self.log_format {
            Some(LogFormat::Json) => log.json().flatten_event(true).init(),
            Some(LogFormat::Text) | None => log.init(),
        }
        Ok(())
    }
}
