//! `twinshard healthcheck`: whether the node of this container is alive, by its exit code.

use super::{Failure, client::Client};
use clap::Args;
use http::Method;
use std::{path::PathBuf, time::Duration};

/// Shorter than what an image gives a health check.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a node whether it is alive: exit code 0 if it is. For containers, whose images hold nothing else to ask with.
#[derive(Debug, Args)]
pub struct Healthcheck {
    /// The node
    #[arg(long, default_value = "http://127.0.0.1:5000", env = "TWINSHARD_URL", value_parser = Client::check_url)]
    url: String,
    /// With https://: the file with the certificate to trust
    #[arg(long, env = "TWINSHARD_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Healthcheck {
    /// Runs it.
    ///
    /// # Errors
    /// If the node does not answer, or not well.
    pub async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.url, TIMEOUT)?;
        let mut client = match &self.ca {
            Some(file) => client.trusting(file)?,
            None => client,
        };
        let answer = client.send(Method::GET, "/healthz", None).await?;
        if answer.status.is_success() { Ok(()) } else { Err(Failure::new(format!("/healthz answered {}", answer.status))) }
    }
}
