//! The general scenario of the turmoil world: each seed is a scenario file of its own, so that one that fails can be kept, changed and played
//! again. And the search through many.

use super::engine::play;
use crate::{
    keyed::{Draw, Keyed, Purpose},
    trace::TraceHash,
};
use core::fmt::Write as _;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use twinshard_scenarios::{report::Report, scenario::Scenario};

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What is wrong, one line each.
    pub complaints: Vec<String>,
    /// The scenario, as small as taking faults and steps of the operator away makes it.
    pub scenario: String,
}

/// What many seeds brought.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// How many were played.
    pub seeds: u64,
    /// Their trace hashes, folded in their order.
    pub hash: TraceHash,
    /// Those that failed, the lowest first.
    pub failures: Vec<Failure>,
}

/// One part of a scenario that can be taken away.
struct Parts {
    head: String,
    windows: Vec<String>,
}

impl Parts {
    fn text(&self) -> String {
        format!("{}\n{}", self.head, self.windows.join("\n"))
    }
}

/// The scenario of a seed, as its file would be.
#[must_use]
pub fn scenario(seed: u64) -> String {
    parts(seed).text()
}

fn pick<T: Copy>(draw: &mut Draw, from: &[T]) -> T {
    from[draw.below(from.len() as u64) as usize]
}

fn parts(seed: u64) -> Parts {
    let keyed = Keyed::new(seed);
    let mut draw = keyed.draw(Purpose::Process, [0]);
    let servers = draw.between(3, 5);
    let replicas = pick(&mut draw, &[2, 3, 3, 3, 3, 5]).min(servers);
    let quorum = pick(&mut draw, &[None, None, None, Some(1), Some(2), Some(3)]).filter(|quorum| *quorum <= replicas);
    let shards = draw.between(1, 3);
    let balancers = pick(&mut draw, &[1, 1, 1, 2]);
    let duration = draw.between(2_500, 6_000);
    let mut head = format!("name = \"seed-{seed}\"\nstory = \"Drawn from a seed.\"\n\n[topology]\nservers = {servers}\n");
    let _ = writeln!(head, "balancers = {balancers}\nreplicas = {replicas}");
    if let Some(quorum) = quorum {
        let _ = writeln!(head, "write_quorum = {quorum}");
    }
    head.push_str("shards = [\n");
    for shard in 0..shards {
        let _ = writeln!(head, "    {{ name = \"sh{}\", low = {}, size = 64 }},", shard + 1, shard * 64);
    }
    head.push_str("]\n\n");
    head.push_str(&limits(keyed));
    head.push_str("[workload]\n");
    let retries = pick(&mut draw, &[0, 0, 3]);
    let _ = writeln!(head, "clients = {}\nduration_ms = {duration}\nkeys_per_shard = {}", draw.between(2, 8), draw.between(4, 50));
    let _ = writeln!(
        head,
        "deadline_ms = {}\nrange_width = {}",
        pick(&mut draw, &[600, 2_000, 6_000]),
        range_width(keyed, draw.between(2, 30))
    );
    let _ = writeln!(head, "idempotency_keys = {}\nretries_max = {retries}", retries > 0 || draw.chance(300_000));
    if draw.chance(300_000) {
        let _ = writeln!(head, "think_ms = {}", draw.between(5, 60));
    } else {
        let _ = writeln!(head, "rate_per_s = {}", draw.between(30, 120));
    }
    head.push_str("\n[workload.mix]\n");
    for kind in ["write", "insert", "skip", "batch", "mixed_batch", "update", "delete", "read", "range_read", "session_read", "stale_read"]
    {
        let weight = if kind == "write" { 3 } else { draw.below(5) };
        let _ = writeln!(head, "{kind} = {weight}");
    }
    let count = pick(&mut draw, &[0, 1, 1, 2, 2, 3, 4]);
    // A disk is lost where its shards stand that, and where nothing else takes a member away meanwhile: what two faults lose is lost.
    let stands = quorum.unwrap_or(replicas / 2 + 1) >= 2;
    let loses_disk = stands && draw.chance(150_000);
    let windows = (0..count)
        .map(|number| {
            let mut draw = keyed.draw(Purpose::Crash, [number]);
            fault(&mut draw, (servers, shards, balancers, duration), loses_disk.then_some(number))
        })
        .chain((0..pick(&mut draw, &[0, 0, 0, 1, 2])).map(|number| {
            let mut draw = keyed.draw(Purpose::Provision, [number]);
            operator(&mut draw, number, (servers, shards, duration))
        }))
        .collect();
    Parts { head, windows }
}

/// Some seeds read over whole shards, and over several.
fn range_width(keyed: Keyed, narrow: u64) -> u64 {
    let mut draw = keyed.draw(Purpose::Rows, [1]);
    if draw.chance(300_000) { draw.between(64, 200) } else { narrow }
}

/// Limits that a short run meets: most seeds have some, so that answers of several pages, snapshots and compaction are the rule.
fn limits(keyed: Keyed) -> String {
    let mut draw = keyed.draw(Purpose::Rows, [0]);
    if draw.chance(250_000) {
        return String::new();
    }
    let mut text = "[topology.limits]\n".to_owned();
    for (name, values) in [
        ("page_rows", &[1, 2, 3, 4, 2_048][..]),
        ("read_bytes_max", &[60, 300, 1 << 20][..]),
        ("chunk_bytes", &[100, 1_000, 256 << 10][..]),
        ("log_keep_count", &[1, 16, 16_384][..]),
        ("flush_entries", &[2, 20, 1_024][..]),
        // Not fewer: what an answer that comes late has pinned is let go by time alone, which is longer than clients wait here.
        ("pins_max", &[6, 8][..]),
    ] {
        let _ = writeln!(text, "{name} = {}", pick(&mut draw, values));
    }
    text.push('\n');
    text
}

fn direction(draw: &mut Draw) -> &'static str {
    if draw.chance(400_000) { "direction = \"one-way\"\n" } else { "" }
}

fn fault(draw: &mut Draw, (servers, shards, balancers, duration): (u64, u64, u64, u64), loses_disk: Option<u64>) -> String {
    let (at, long) = (draw.between(100, duration), draw.between(50, 2_500));
    let server = format!("Server{}", draw.below(servers));
    let shard = draw.between(1, shards);
    let role = |draw: &mut Draw| match draw.below(3) {
        0 => server.clone(),
        1 => format!("primary of sh{shard}"),
        _ => format!("backup of sh{shard}"),
    };
    let kind = match loses_disk {
        None => draw.below(15),
        Some(0) => 15,
        Some(_) => 9 + draw.below(3),
    };
    let (kind, rest) = match kind {
        0..4 => ("crash", format!("target = \"{}\"\n", role(draw))),
        15 => ("lose-disk", format!("target = \"{}\"\n", role(draw))),
        4 => ("crash", format!("target = \"balancer {}\"\n", draw.below(balancers))),
        5 => ("power-loss", String::new()),
        6 => {
            let rest = format!("between = [\"primary of sh{shard}\"]\nand = [\"backups of sh{shard}\"]\n{}", direction(draw));
            ("partition", rest)
        }
        7 => ("partition", format!("between = [\"{}\"]\nand = [\"balancers\"]\n{}", role(draw), direction(draw))),
        8 => ("isolate", format!("target = \"{}\"\n", role(draw))),
        9 => ("register-down", String::new()),
        10 => ("slow-disk", format!("target = \"{}\"\nsync_ms = {}\n", role(draw), draw.between(5, 120))),
        11 => ("provision-fails", format!("times = {}\n", draw.between(1, 3))),
        12 => {
            let (loss, doubled, late) = (draw.below(40), draw.below(40), draw.below(80));
            ("network", format!("loss_per_mille = {loss}\nduplicate_per_mille = {doubled}\ndelay_ms = {late}\n"))
        }
        13 => ("database-down", format!("target = \"{}\"\n", role(draw))),
        _ if draw.chance(250_000) => ("pause", format!("target = \"balancer {}\"\n", draw.below(balancers))),
        _ => ("pause", format!("target = \"{}\"\n", role(draw))),
    };
    format!("[[faults]]\nat_ms = {at}\nfor_ms = {long}\nkind = \"{kind}\"\n{rest}")
}

fn operator(draw: &mut Draw, number: u64, (servers, shards, duration): (u64, u64, u64)) -> String {
    let at = draw.between(200, duration);
    match draw.below(5) {
        0 => {
            let held = format!("sh{}", draw.between(1, shards));
            format!(
                "[[admin]]\nat_ms = {at}\nkind = \"add\"\nservers = [{{ name = \"Server{}\", shards = [\"{held}\"] }}]\n",
                servers + number
            )
        }
        1 => format!("[[admin]]\nat_ms = {at}\nkind = \"remove\"\nservers = [\"Server{}\"]\n", draw.below(servers)),
        2 => format!("[[admin]]\nat_ms = {at}\nkind = \"move-primary\"\nshard = \"sh{}\"\n", draw.between(1, shards)),
        3 => {
            let (shard, from, to) = (draw.between(1, shards), draw.below(servers), draw.below(servers));
            let ends = format!("from = \"Server{from}\"\nto = \"Server{to}\"\n");
            format!("[[admin]]\nat_ms = {at}\nkind = \"move\"\nshard = \"sh{shard}\"\n{ends}")
        }
        _ => format!("[[admin]]\nat_ms = {at}\nkind = \"drain\"\nserver = \"Server{}\"\n", draw.below(servers)),
    }
}

/// Plays one scenario and says what is wrong.
fn judge(text: &str, seed: u64) -> (Vec<String>, TraceHash) {
    let scenario = match Scenario::parse("seed", text) {
        Ok(scenario) => scenario,
        Err(error) => return (vec![error.to_string()], TraceHash::default()),
    };
    match play(&scenario, seed, format!("twinshard-sim explore --engine turmoil --start {seed} --seeds 1")) {
        Ok(played) => {
            let mut complaints = Report::new(played.run).complaints();
            // What the operator may not do is refused: that is for the scenarios to expect.
            complaints.retain(|complaint| !complaint.contains("requests of the operator"));
            (complaints, played.hash)
        }
        Err(error) => (vec![error.to_string()], TraceHash::default()),
    }
}

/// Takes away every fault and step without which it fails in the same check.
fn shrink(seed: u64, complaint: &str) -> String {
    let check = |complaint: &str| complaint.split(':').next().unwrap_or_default().to_owned();
    let wanted = check(complaint);
    let mut parts = parts(seed);
    let mut place = 0;
    while place < parts.windows.len() {
        let taken = parts.windows.remove(place);
        if judge(&parts.text(), seed).0.iter().any(|complaint| check(complaint) == wanted) {
            continue;
        }
        parts.windows.insert(place, taken);
        place += 1;
    }
    parts.text()
}

/// Plays seeds on some threads; the result depends on the seeds alone. Stops at the lowest that fails unless it keeps going.
#[must_use]
pub fn search(start: u64, count: u64, jobs: usize, keeps_going: bool, progress: impl Fn(u64) + Sync) -> Found {
    let next = AtomicU64::new(start);
    let end = AtomicU64::new(start + count);
    let all: Mutex<Vec<(u64, Vec<String>, TraceHash)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        break;
                    }
                    let (complaints, hash) = judge(&scenario(seed), seed);
                    if !complaints.is_empty() && !keeps_going {
                        end.fetch_min(seed + 1, Ordering::Relaxed);
                    }
                    all.lock().unwrap_or_else(PoisonError::into_inner).push((seed, complaints, hash));
                    progress(seed);
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.sort_by_key(|(seed, ..)| *seed);
    let mut found = Found::default();
    for (seed, complaints, hash) in all {
        found.seeds += 1;
        found.hash = TraceHash(crate::keyed::fold(found.hash.0, hash.0));
        if let Some(first) = complaints.first() {
            let scenario = shrink(seed, first);
            found.failures.push(Failure { seed, complaints, scenario });
            if !keeps_going {
                break;
            }
        }
    }
    found
}
