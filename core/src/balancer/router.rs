//! Stub of the router.
use super::BalancerConfig;
use crate::{
    effect::BalancerEffect,
    id::*,
    map::ClusterMap,
    message::ToBalancer,
    request::{Health, Request},
    time::Instant,
};
use std::{collections::BTreeMap, sync::Arc};
#[derive(Clone, Debug)]
pub(crate) struct Router {
    counts: BTreeMap<ServerId, u64>,
    session: bool,
}
impl Router {
    pub(crate) fn new(_: &BalancerConfig) -> Self {
        Self { counts: BTreeMap::new(), session: false }
    }
    pub(crate) fn set_map(&mut self, _: Instant, _: MapVersion, _: &Arc<ClusterMap>, _: &mut Vec<BalancerEffect>) {}
    pub(crate) fn set_session(&mut self, _: Instant, _: SessionId, _: &mut Vec<BalancerEffect>) {
        self.session = true;
    }
    pub(crate) fn wants_session(&self) -> bool {
        !self.session
    }
    pub(crate) fn set_health(&mut self, _: Instant, _: ServerId, _: Health, _: &mut Vec<BalancerEffect>) {}
    pub(crate) fn set_leader_hint(&mut self, _: Instant, _: ShardId, _: ReplicaId, _: Epoch, _: bool, _: &mut Vec<BalancerEffect>) {}
    pub(crate) fn request(&mut self, _: Instant, _: Token, _: Request, _: Instant, _: &mut Vec<BalancerEffect>) {}
    pub(crate) fn abandoned(&mut self, _: Token) {}
    pub(crate) fn message(&mut self, _: Instant, _: ServerId, _: ToBalancer, _: &mut Vec<BalancerEffect>) {}
    pub(crate) fn tick(&mut self, _: Instant, _: &mut Vec<BalancerEffect>) {}
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        None
    }
    pub(crate) fn wants_refresh(&self) -> bool {
        false
    }
    pub(crate) fn request_counts(&self) -> &BTreeMap<ServerId, u64> {
        &self.counts
    }
}
