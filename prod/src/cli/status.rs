//! `twinshard status`: the cluster as a table.

use super::{Failure, access::Target};
use crate::shown;
use clap::Args;
use http::Method;
use serde_json::Value;
use std::{fmt::Write, time::Duration};

/// Longer than any deadline of the balancer.
const TIMEOUT: Duration = Duration::from_secs(12);

/// Shows shards, epochs, primaries, replicas with their lag, servers with their health, and warnings.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard status
  twinshard status --url http://127.0.0.1:5001 --json

A replica is written SERVER:ROLE+LAG, the lag being the entries that it has still to apply.
`stands W/R/S`: how many more servers may fail before writing, reading, and reconfiguring stop.")]
pub struct StatusCommand {
    #[command(flatten)]
    target: Target,
    /// Print the balancer's own JSON
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    /// Runs it.
    ///
    /// # Errors
    /// If the balancer does not answer.
    pub async fn run(self) -> Result<(), Failure> {
        let (code, status) = self.target.client(TIMEOUT)?.json(Method::GET, "/status", None).await?;
        if !code.is_success() {
            return Err(Failure::new(format!("/status answered {code}: {}", text(&status["message"]))));
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            print!("{}", table(&status));
        }
        Ok(())
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => shown::line(text).into_owned(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The answer of /status for people.
fn table(status: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = render(status, &mut out);
    out
}

fn render(status: &Value, out: &mut String) -> std::fmt::Result {
    writeln!(out, "cluster {}, map version {}", text(&status["cluster"]), text(&status["version"]))?;
    if status["schema"].is_null() {
        writeln!(out, "not initialised: POST /init")?;
    }
    writeln!(out)?;
    let servers: Vec<[String; 5]> = status["health"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, server)| {
            let silence = server["silence_ms"].as_u64().map_or("never heard".to_owned(), |silence| format!("{silence} ms ago"));
            let drained = if server["drained"] == true { ", drained" } else { "" };
            [shown::line(name).into_owned(), text(&server["state"]) + drained, silence, text(&server["respawns"]), text(&server["http"])]
        })
        .collect();
    columns(out, ["server", "state", "heard", "respawns", "http"], &servers)?;
    writeln!(out)?;
    let shards: Vec<[String; 7]> = list(&status["shards"])
        .iter()
        .map(|shard| {
            let low = shard["Stud_id_low"].as_i64().unwrap_or(0);
            let high = low.saturating_add(shard["Shard_size"].as_i64().unwrap_or(1) - 1);
            let stands = &shard["tolerance"];
            let replicas: Vec<String> = list(&shard["replicas"])
                .iter()
                .map(|replica| format!("{}:{}+{}", text(&replica["server"]), text(&replica["role"]), text(&replica["lag"])))
                .collect();
            [
                text(&shard["Shard_id"]),
                format!("{low}..{high}"),
                text(&shard["epoch"]),
                text(&shard["primary_server"]),
                text(&shard["write_quorum"]),
                format!("{}/{}/{}", text(&stands["write"]), text(&stands["read"]), text(&stands["seal"])),
                replicas.join(" "),
            ]
        })
        .collect();
    columns(out, ["shard", "keys", "epoch", "primary", "quorum", "stands", "replicas"], &shards)?;
    let mut warnings: Vec<String> = list(&status["warnings"]).iter().map(text).collect();
    for shard in list(&status["shards"]) {
        warnings.extend(list(&shard["warnings"]).iter().map(|warning| format!("{}: {}", text(&shard["Shard_id"]), text(warning))));
    }
    if !warnings.is_empty() {
        writeln!(out)?;
    }
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

/// Left-aligned columns as wide as their widest cell.
fn columns<const N: usize>(out: &mut String, head: [&str; N], rows: &[[String; N]]) -> std::fmt::Result {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(head)?;
    rows.iter().try_for_each(|row| line(row.each_ref().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table_shows_shards_servers_and_warnings() {
        let status = json!({
            "cluster": "c1", "version": 7, "schema": {}, "warnings": ["the register is away"],
            "health": { "Server0": { "state": "up", "silence_ms": 12, "respawns": 1, "http": "127.0.0.1:4000" } },
            "shards": [{
                "Stud_id_low": 0, "Shard_id": "sh1", "Shard_size": 4096, "primary_server": "Server0", "epoch": 3, "write_quorum": 1,
                "tolerance": { "write": 0, "read": 0, "seal": 0 },
                "replicas": [{ "server": "Server0", "role": "primary", "lag": 0 }],
                "warnings": ["one replica"],
            }],
        });
        let expected = "\
cluster c1, map version 7

server   state  heard      respawns  http
Server0  up     12 ms ago  1         127.0.0.1:4000

shard  keys     epoch  primary  quorum  stands  replicas
sh1    0..4095  3      Server0  1       0/0/0   Server0:primary+0

warning: the register is away
warning: sh1: one replica
";
        assert_eq!(table(&status), expected);
    }
}
