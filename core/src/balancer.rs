//! The balancer machine: routes requests, watches servers, and as controller moves the cluster towards what the map wants.

use crate::{
    effect::{BalancerEffect, BalancerInput},
    id::BalancerId,
    planted::Planted,
    time::{Duration, Instant},
};

/// How a replica is picked for a read (DESIGN 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// The 512-slot ring of API.md.
    Classic,
    /// Consistent hashing with bounded loads.
    #[default]
    Ring,
    /// The less loaded of two chosen at random.
    LeastLoaded,
}

/// What a balancer machine is told when it starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalancerConfig {
    /// How replicas are picked.
    pub policy: Policy,
    /// Seeds what has to be spread; decides nothing that safety depends on.
    pub seed: u64,
    /// How often servers are asked whether they are there (100 ms).
    pub heartbeat_every: Duration,
    /// Silence after which a server is suspected (500 ms).
    pub suspect_after: Duration,
    /// Silence after which it is taken for dead and respawned (3 s).
    pub replace_after: Duration,
    /// Silence of the controller's beat after which another balancer takes over (3 s).
    pub controller_after: Duration,
    /// The most client requests in flight; one more is answered Overloaded.
    pub requests_max: usize,
    /// For the simulator.
    pub planted: Planted,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        Self {
            policy: Policy::Ring,
            seed: 0,
            heartbeat_every: Duration::from_millis(100),
            suspect_after: Duration::from_millis(500),
            replace_after: Duration::from_millis(3_000),
            controller_after: Duration::from_millis(3_000),
            requests_max: 10_000,
            planted: Planted::NONE,
        }
    }
}

/// The balancer machine.
#[derive(Clone, Debug)]
pub struct BalancerMachine {
    config: BalancerConfig,
}

impl BalancerMachine {
    /// A balancer that has just started. Its first `Tick` reads the register and mints its id and session there.
    #[must_use]
    pub fn new(config: BalancerConfig, now: Instant) -> Self {
        let _ = now;
        Self { config }
    }

    /// Its id, once minted. It sends nothing before.
    #[must_use]
    pub const fn id(&self) -> Option<BalancerId> {
        None
    }

    /// Takes one input. Runs to the end, never fails, never blocks.
    pub fn step(&mut self, now: Instant, input: BalancerInput, out: &mut Vec<BalancerEffect>) {
        let _ = (now, input, out, &self.config);
    }

    /// When to call [`Self::step`] with [`BalancerInput::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
