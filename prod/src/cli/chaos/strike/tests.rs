use super::*;
use std::sync::Mutex;
use twinshard_scenarios::{
    history::History,
    report::{Report, RunResult, WorldCheck},
    timeline::Names,
};

/// A ground that answers blows like this, by how many were dealt before.
pub(in crate::cli::chaos) struct Field<F> {
    pub(in crate::cli::chaos) answer: F,
    dealt: Mutex<Vec<(Blow, Node)>>,
}

impl<F: Fn(usize, Blow) -> Result<bool, String>> Field<F> {
    pub(in crate::cli::chaos) const fn new(answer: F) -> Self {
        Self { answer, dealt: Mutex::new(Vec::new()) }
    }

    fn blows(&self) -> Vec<Blow> {
        self.dealt.lock().expect("a lock").iter().map(|(blow, _)| *blow).collect()
    }
}

impl<F: Fn(usize, Blow) -> Result<bool, String>> Strikes for Field<F> {
    fn has_networks(&self) -> bool {
        true
    }

    fn has_databases(&self) -> bool {
        true
    }

    fn has_register(&self) -> bool {
        true
    }

    async fn deal(&self, blow: Blow, node: Node) -> Result<bool, String> {
        let mut dealt = self.dealt.lock().expect("a lock");
        dealt.push((blow, node));
        (self.answer)(dealt.len() - 1, blow)
    }
}

/// A scenario with this fault, half a second after the load began.
pub(in crate::cli::chaos) fn scenario(fault: &str) -> Scenario {
    let text = format!(
        r#"
        name = "x"
        story = "s"
        topology = {{ servers = 1, replicas = 1, shards = [{{ name = "sh1", low = 0, size = 100 }}] }}
        workload = {{ clients = 3, duration_ms = 1000, rate_per_s = 200, mix = {{ write = 1 }} }}
        [[faults]]
        at_ms = 500
        {fault}
        "#
    );
    Scenario::parse("x.toml", &text).expect("a scenario")
}

async fn played(fault: &str, ground: &impl Strikes) -> Struck {
    let (_stop, stopped) = watch::channel(false);
    let live = Live::new(vec!["127.0.0.1:1".to_owned()], None);
    strike_all(&scenario(fault), ground, &live, Instant(0), &stopped).await
}

fn complaints(scenario: Scenario, struck: Struck) -> Vec<String> {
    let check =
        WorldCheck { name: "faults".to_owned(), what: "faults".to_owned(), count: struck.faults.len() as u64, failures: struck.failures };
    let run = RunResult {
        scenario,
        engine: "none".to_owned(),
        seed: 1,
        load_from_ns: 0,
        ended_ns: 1_000_000_000,
        history: History::default(),
        names: Names::default(),
        notes: Vec::new(),
        faults: struck.faults,
        admin: Vec::new(),
        world_checks: vec![check],
        reproduce: String::new(),
    };
    Report::new(run).complaints()
}

#[tokio::test(start_paused = true)]
async fn fault_that_hits_nobody_fails_the_run() {
    for fault in [
        "kind = \"crash\"\ntarget = \"balancer\"\nfor_ms = 300",
        "kind = \"pause\"\ntarget = \"balancer\"\nfor_ms = 300",
        "kind = \"isolate\"\ntarget = \"balancer\"\nfor_ms = 300",
        "kind = \"register-down\"\nfor_ms = 300",
        "kind = \"power-loss\"",
    ] {
        let idle = Field::new(|_, _| Ok(false));
        let found = complaints(scenario(fault), played(fault, &idle).await);
        assert!(found.iter().any(|complaint| complaint.contains("did not happen: it hit none of")), "{fault}: {found:?}");
        assert!(found.iter().any(|complaint| complaint.contains("0 of 1 faults happened")), "{fault}: {found:?}");
        let hit = Field::new(|_, _| Ok(true));
        let found = complaints(scenario(fault), played(fault, &hit).await);
        assert!(!found.iter().any(|complaint| complaint.contains("happen")), "{fault}: {found:?}");
    }
    let nobody = "kind = \"database-down\"\ntarget = \"Server0\"\nfor_ms = 300";
    let found = complaints(scenario(nobody), played(nobody, &Field::new(|_, _| Ok(true))).await);
    assert!(found.iter().any(|complaint| complaint.contains("database-down found nobody to strike")), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn fault_begins_when_it_hits_and_is_kept_up() {
    let third = Field::new(|nth, _| Ok(nth == 2));
    let struck = played("kind = \"register-down\"\nfor_ms = 300", &third).await;
    assert_eq!(third.blows(), [Blow::Kill; 4]);
    assert_eq!(struck.failures, Vec::<String>::new());
    let [event] = &struck.faults[..] else { panic!("{struck:?}") };
    assert_eq!((event.at_ns / 1_000_000, &event.struck[..]), (700, &["the register".to_owned()][..]));
}

#[tokio::test(start_paused = true)]
async fn power_loss_strikes_databases_as_well() {
    let ground = Field::new(|_, _| Ok(true));
    played("kind = \"power-loss\"", &ground).await;
    let dealt = ground.dealt.lock().expect("a lock").clone();
    for node in [Node::Balancer(0), Node::Register] {
        assert!(dealt.contains(&(Blow::Kill, node)) && dealt.contains(&(Blow::Revive, node)), "{node:?}: {dealt:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_undone_whatever_fails() {
    // The second look fails, and so do the first two tries to undo it.
    let ground = Field::new(|nth, _| if nth == 0 || nth >= 6 { Ok(true) } else { Err(format!("no answer to {nth}")) });
    let struck = played("kind = \"isolate\"\ntarget = \"balancer\"\nfor_ms = 300", &ground).await;
    assert_eq!(ground.blows(), [[Blow::CutOff; 4].as_slice(), &[Blow::Rejoin; 3]].concat());
    assert_eq!((struck.faults.len(), &struck.failures[..]), (1, &["fault 0: no answer to 1".to_owned()][..]));
    // One that cannot be undone is told of.
    let ground = Field::new(|_, blow| if blow == Blow::Pause { Ok(true) } else { Err("stuck".to_owned()) });
    let struck = played("kind = \"pause\"\ntarget = \"balancer\"\nfor_ms = 300", &ground).await;
    assert_eq!(struck.failures, ["fault 0: stuck"]);
}

#[tokio::test(start_paused = true)]
async fn faults_end_when_the_run_is_stopped() {
    let (stop, stopped) = watch::channel(false);
    let ground = Field::new(|_, _| Ok(true));
    let live = Live::new(vec!["127.0.0.1:1".to_owned()], None);
    let scenario = scenario("kind = \"pause\"\ntarget = \"balancer\"\nfor_ms = 60000");
    let playing = strike_all(&scenario, &ground, &live, Instant(0), &stopped);
    let (struck, ()) = tokio::join!(playing, async {
        live.sleep_until(700_000_000).await;
        stop.send_replace(true);
    });
    assert_eq!(ground.blows(), [Blow::Pause, Blow::Resume]);
    assert_eq!((struck.faults.len(), live.now_ns_now() / 1_000_000), (1, 700));
}
