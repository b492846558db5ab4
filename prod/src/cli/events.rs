//! `twinshard events`: what a node saw and did.

use super::{Failure, access::Target, client::ClientError};
use crate::shown;
use clap::Args;
use http::Method;
use serde_json::Value;
use std::{
    io::{self, Write},
    time::Duration,
};
use tokio::time::sleep;

/// Longer than the answer takes.
const TIMEOUT: Duration = Duration::from_secs(12);
/// How often new events are asked for.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Shows what the balancer saw, decided and did lately, oldest first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard events
  twinshard events --follow
  twinshard events --url http://127.0.0.1:43775      those of a server
  twinshard events --json | jq .text

A node keeps its newest 1,024 events, and forgets them when it ends.")]
pub struct Events {
    #[command(flatten)]
    target: Target,
    /// Go on with new ones until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Events {
    /// Runs it.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = self.target.client(TIMEOUT)?;
        let mut after = 0;
        let mut is_away = false;
        loop {
            match client.json(Method::GET, &format!("/events?after={after}"), None).await {
                Ok((code, answer)) if code.is_success() => {
                    is_away = false;
                    let last = answer["last"].as_u64().unwrap_or(0);
                    if last < after {
                        // Another life of the node, which counts from the start.
                        after = 0;
                        continue;
                    }
                    after = last;
                    self.print(&answer)?;
                }
                Ok((code, answer)) => {
                    return Err(Failure::new(format!("/events answered {code}: {}", answer["message"].as_str().unwrap_or_default())));
                }
                // Who follows waits for the node to come back.
                Err(error) if self.follow && after > 0 && !matches!(error, ClientError::Url(_)) => {
                    if !std::mem::replace(&mut is_away, true) {
                        eprintln!("twinshard: {error}; waiting for it");
                    }
                }
                Err(error) => return Err(error.into()),
            }
            if !self.follow {
                return Ok(());
            }
            sleep(FOLLOW_EVERY).await;
        }
    }

    fn print(&self, answer: &Value) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        for event in answer["events"].as_array().into_iter().flatten() {
            if self.json {
                writeln!(out, "{event}")?;
            } else {
                let ago = event["ago_ms"].as_u64().unwrap_or(0);
                let text = shown::line(event["text"].as_str().unwrap_or_default());
                writeln!(out, "{:>6}.{:01} s ago  {text}", ago / 1_000, ago % 1_000 / 100)?;
            }
        }
        Ok(out.flush()?)
    }
}
