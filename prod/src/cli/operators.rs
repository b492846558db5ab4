//! `twinshard move`, `twinshard drain` and `twinshard explain`: what operators ask of a balancer.

use super::{Failure, access::Target};
use clap::Args;
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// As long as the balancer takes for such a change by its defaults, and a little, in milliseconds.
const CHANGE_TIMEOUT_MS: u64 = 125_000;
/// As long as it takes for a question.
const ASK_TIMEOUT_MS: u64 = 12_000;

/// Moves a replica of a shard to another server, while it serves.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  twinshard move sh1 --from Server0 --to Server3
It ends when the new replica serves and the old one is no member any more; what that leaves on its server is removed soon after.
Interrupted, the move goes on; given again, the command waits for it.")]
pub struct Move {
    /// The shard
    shard: String,
    /// The server that holds a replica of it
    #[arg(long, value_name = "SERVER")]
    from: String,
    /// The server that is to hold it
    #[arg(long, value_name = "SERVER")]
    to: String,
    /// How long to wait for the answer, in milliseconds; longer than the balancer's --admin-timeout
    #[arg(long, value_name = "MS", default_value_t = CHANGE_TIMEOUT_MS)]
    timeout: u64,
    #[command(flatten)]
    target: Target,
}

impl Move {
    /// Runs it.
    ///
    /// # Errors
    /// If the balancer does not answer, or refuses.
    pub async fn run(self) -> Result<(), Failure> {
        let body = json!({ "shard": self.shard, "from": self.from, "to": self.to });
        let answer = ask(&self.target, Method::POST, "/move", Some(&body), self.timeout).await?;
        println!("{}", text(&answer["message"]));
        Ok(())
    }
}

/// Moves all replicas of a server to others, while they serve. The server stays, and holds nothing: the balancer places no replica there by
/// itself until an operator moves one to it.
#[derive(Debug, Args)]
pub struct Drain {
    /// The server
    server: String,
    /// How long to wait for the answer, in milliseconds; longer than the balancer's --admin-timeout
    #[arg(long, value_name = "MS", default_value_t = CHANGE_TIMEOUT_MS)]
    timeout: u64,
    #[command(flatten)]
    target: Target,
}

impl Drain {
    /// Runs it.
    ///
    /// # Errors
    /// If the balancer does not answer, or refuses.
    pub async fn run(self) -> Result<(), Failure> {
        let answer = ask(&self.target, Method::POST, "/drain", Some(&json!({ "server": self.server })), self.timeout).await?;
        for moved in answer["moves"].as_array().into_iter().flatten() {
            println!("{} to {}", text(&moved["shard"]), text(&moved["to"]));
        }
        println!("{}", text(&answer["message"]));
        Ok(())
    }
}

/// Says why a shard stands as it does: who leads it and why, what it waits for, and where a read goes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard explain --key 2255
  twinshard explain --shard sh1")]
pub struct Explain {
    /// The shard that holds this key
    #[arg(long, required_unless_present = "shard", allow_hyphen_values = true)]
    key: Option<i64>,
    /// The shard
    #[arg(long, conflicts_with = "key")]
    shard: Option<String>,
    /// How long to wait for the answer, in milliseconds; longer than the balancer's --request-timeout
    #[arg(long, value_name = "MS", default_value_t = ASK_TIMEOUT_MS)]
    timeout: u64,
    #[command(flatten)]
    target: Target,
}

impl Explain {
    /// Runs it.
    ///
    /// # Errors
    /// If the balancer does not answer, or there is no such shard.
    pub async fn run(self) -> Result<(), Failure> {
        let body = match (&self.key, &self.shard) {
            (Some(key), _) => json!({ "key": key }),
            (None, shard) => json!({ "shard": shard }),
        };
        let answer = ask(&self.target, Method::GET, "/explain", Some(&body), self.timeout).await?;
        print!("{}", explained(&answer));
        Ok(())
    }
}

async fn ask(target: &Target, method: Method, path: &str, body: Option<&Value>, timeout_ms: u64) -> Result<Value, Failure> {
    let (code, answer) = target.client(Duration::from_millis(timeout_ms))?.json(method, path, body).await?;
    if code.is_success() {
        return Ok(answer);
    }
    let (message, hint) = (text(&answer["message"]), text(&answer["hint"]));
    let message = message.trim_start_matches("<Error> ");
    Err(Failure::new(if hint.is_empty() { message.to_owned() } else { format!("{message} ({hint})") }))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn explained(answer: &Value) -> String {
    let lines = |of: &Value| -> Vec<String> { of.as_array().into_iter().flatten().map(text).collect() };
    let mut out = vec![format!("{}: keys {} to {}", text(&answer["shard"]), answer["low"], answer["high"])];
    out.extend(lines(&answer["why_primary"]).into_iter().map(|line| format!("primary    {line}")));
    let waits = lines(&answer["waits_for"]);
    if waits.is_empty() {
        out.push("waits for  nothing".to_owned());
    }
    out.extend(waits.into_iter().map(|line| format!("waits for  {line}")));
    match &answer["read"] {
        Value::Null => out.push("read       nowhere: no configuration serves".to_owned()),
        read => out.push(format!("read       at {}, by {}", text(&read["server"]), text(&read["why"]))),
    }
    for replica in answer["replicas"].as_array().into_iter().flatten() {
        let kind = if replica["is_member"] == true { "member" } else { "no member yet" };
        let (server, state) = (text(&replica["server"]), text(&replica["state"]));
        out.push(format!("replica    {server}: {state}, {kind}, {} requests in flight", replica["in_flight"]));
    }
    out.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_told_in_lines() {
        let answer = json!({
            "shard": "sh1", "low": 0, "high": 9, "why_primary": ["A leads epoch 3"], "waits_for": [],
            "read": { "server": "B", "why": "ring" },
            "replicas": [{ "server": "B", "state": "up", "in_flight": 2, "is_member": true }],
        });
        let expected = "\
sh1: keys 0 to 9
primary    A leads epoch 3
waits for  nothing
read       at B, by ring
replica    B: up, member, 2 requests in flight
";
        assert_eq!(explained(&answer), expected);
    }
}
