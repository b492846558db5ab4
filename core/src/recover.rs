//! Rebuilds a lost metadata register from what the servers remember (R19): the newest map that any of them has seen, put right by the
//! barriers and promises in their logs. Pure, and cautious: where it cannot be shown that no newer configuration ever served, it says
//! what is missing and leaves the decision to a human.
//!
//! Why it is safe. Let K be a configuration whose barrier is the newest of a shard, on an install quorum A of its members that have promised
//! nothing higher. Had a configuration after K ever served, it would have been preceded by promises of a seal quorum of K's members, and
//! every seal quorum meets A. So K or one before it served last; and K, being installed, has everything that was acknowledged before it.

use crate::{
    config::Configuration,
    id::{BalancerId, Epoch, MapVersion, Position, ReplicaId, ServerId, SessionId, ShardId},
    map::{ClusterMap, ControllerHint, ReplicaRecord, ReplicaStage, ServerGoal},
};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// How far above everything that was seen the counters begin: ids that were minted and never reached a server are not minted again. A guess:
/// far more than are ever minted between two maps that servers see.
const MARGIN: u64 = 1_000_000;

/// What the log of one server says of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundReplica {
    /// Its shard.
    pub shard: ShardId,
    /// The highest epoch that it promised.
    pub promised: Epoch,
    /// The end of its log.
    pub last: Position,
    /// The configurations of the barriers in its log.
    pub barriers: Vec<Configuration>,
    /// Its log does not verify: what it has promised, nobody knows.
    pub damaged: bool,
}

/// What one server remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest map that it has seen.
    pub map: Option<(MapVersion, Arc<ClusterMap>)>,
    /// Its replicas.
    pub replicas: BTreeMap<ReplicaId, FoundReplica>,
    /// The highest session that one of its commands names.
    pub session: SessionId,
}

/// Why the register cannot be rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unrecoverable {
    /// No server has seen a map.
    NoMap,
    /// It cannot be shown which configuration of a shard served last.
    Unclear {
        /// The shard's name.
        shard: Box<str>,
        /// The newest configuration that is seen anywhere; `None` if there is none.
        newest: Option<Configuration>,
        /// How many of its members have it as their newest and have promised nothing higher.
        agreeing_count: usize,
        /// The members of it that were not found, or are damaged, and their servers.
        missing: Vec<(ReplicaId, Option<Box<str>>)>,
    },
    /// Logs hold a shard that was added after every map that was found: its name and its keys are nowhere.
    Unnamed {
        /// Its id.
        shard: ShardId,
        /// Its replicas that hold something.
        replicas: Vec<ReplicaId>,
    },
}

impl fmt::Display for Unrecoverable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMap => f.write_str("no server has ever seen a cluster map: there is nothing to recover from"),
            Self::Unclear { shard, newest, agreeing_count, missing } => {
                write!(f, "it cannot be shown which configuration of {shard} served last: ")?;
                let Some(newest) = newest else { return f.write_str("none is seen anywhere, and not all servers were found") };
                let needed = newest.install_quorum();
                write!(f, "{agreeing_count} members agree to the newest that is seen, {newest}, and {needed} have to")?;
                if !missing.is_empty() {
                    let names = missing.iter().map(|(replica, server)| match server {
                        Some(server) => format!("{replica} on {server}"),
                        None => replica.to_string(),
                    });
                    write!(f, "; not found, or damaged: {}", names.collect::<Vec<_>>().join(", "))?;
                }
                Ok(())
            }
            Self::Unnamed { shard, replicas } => {
                let names = replicas.iter().map(ReplicaId::to_string).collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "logs hold {names} of the shard {shard}, which is newer than every cluster map that was found: its name and its keys \
                     are not known; find the data of the other servers, or a newer copy of the register"
                )
            }
        }
    }
}

impl std::error::Error for Unrecoverable {}

/// What a shard comes back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredShard {
    /// Its name.
    pub name: Box<str>,
    /// The configuration that is active from now on; `None` if it never had one.
    pub current: Option<Configuration>,
    /// Whether the newest map that was seen had another one.
    pub is_newer_than_map: bool,
}

/// A rebuilt register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Above every version that a server has seen.
    pub version: MapVersion,
    /// The map.
    pub map: ClusterMap,
    /// The version of the map it was made from.
    pub seen: MapVersion,
    /// What became of each shard.
    pub shards: Vec<RecoveredShard>,
}

/// Rebuilds the register's content from what every server that could be found remembers.
///
/// # Errors
/// If that is not enough to show that nothing newer ever served. Nothing is changed anywhere.
pub fn rebuild(found: &BTreeMap<ServerId, Found>) -> Result<Rebuilt, Unrecoverable> {
    let newest = found.values().filter_map(|found| found.map.as_ref()).max_by_key(|(version, _)| *version);
    let (seen, newest) = newest.ok_or(Unrecoverable::NoMap)?;
    refuse_unnamed(newest, found)?;
    let mut map = ClusterMap::clone(newest);
    // A server that the map lets go may be gone.
    let remembers = |id: &ServerId| found.get(id).is_some_and(|found| found.map.is_some());
    let are_all_found = map.servers.iter().all(|(id, record)| record.goal == ServerGoal::Leave || remembers(id));
    let mut shards = Vec::new();
    for shard in newest.shards.keys().copied().collect::<Vec<_>>() {
        let current = last_served(&map, shard, found, are_all_found)?;
        let Some(record) = map.shards.get_mut(&shard) else { continue };
        let is_newer_than_map = record.current != current;
        record.pending = None;
        record.current.clone_from(&current);
        let name = record.name.clone();
        for member in current.iter().flat_map(|current| &current.members) {
            let home = || found.iter().find(|(_, found)| found.replicas.contains_key(member)).map(|(server, _)| *server);
            if let Some(replica) = map.replicas.get_mut(member) {
                // It has served, so it was ready.
                replica.stage = replica.stage.max(ReplicaStage::Ready);
            } else if let Some(server) = home() {
                map.replicas.insert(*member, ReplicaRecord { shard, server, stage: ReplicaStage::Ready });
            }
        }
        shards.push(RecoveredShard { name, current, is_newer_than_map });
    }
    raise_counters(&mut map, found);
    map.controller = ControllerHint { holder: None, beat: map.controller.beat + 1 };
    Ok(Rebuilt { version: MapVersion(seen.0 + MARGIN), map, seen: *seen, shards })
}

/// A shard that the newest map has never heard of may have served. One that it knew and has no more was given up.
fn refuse_unnamed(newest: &ClusterMap, found: &BTreeMap<ServerId, Found>) -> Result<(), Unrecoverable> {
    let mut unnamed: BTreeMap<ShardId, Vec<ReplicaId>> = BTreeMap::new();
    for (id, replica) in found.values().flat_map(|found| &found.replicas) {
        let is_empty = !replica.damaged && replica.last == Position::ZERO && replica.barriers.is_empty();
        if replica.shard > newest.counters.shard && !newest.shards.contains_key(&replica.shard) && !is_empty {
            unnamed.entry(replica.shard).or_default().push(*id);
        }
    }
    unnamed.pop_first().map_or(Ok(()), |(shard, replicas)| Err(Unrecoverable::Unnamed { shard, replicas }))
}

/// The configuration of a shard that served last, or one after it that is installed.
fn last_served(
    map: &ClusterMap,
    shard: ShardId,
    found: &BTreeMap<ServerId, Found>,
    are_all_found: bool,
) -> Result<Option<Configuration>, Unrecoverable> {
    let mut configs: BTreeMap<Epoch, &Configuration> = BTreeMap::new();
    let mut replicas: BTreeMap<ReplicaId, &FoundReplica> = BTreeMap::new();
    for found in found.values() {
        if let Some(record) = found.map.as_ref().and_then(|(_, map)| map.shards.get(&shard)) {
            configs.extend(record.current.iter().chain(&record.pending).map(|config| (config.epoch, config)));
        }
        for (id, replica) in found.replicas.iter().filter(|(_, replica)| replica.shard == shard) {
            configs.extend(replica.barriers.iter().map(|config| (config.epoch, config)));
            if !replica.damaged {
                replicas.insert(*id, replica);
            }
        }
    }
    // Whether everything is here that ever was: then a configuration that served would show its barrier, whoever has promised what since.
    let is_here = |replica: &ReplicaId| replicas.contains_key(replica);
    let known = map.replicas.iter().filter(|(_, record)| record.shard == shard && record.stage == ReplicaStage::Ready).map(|(id, _)| id);
    // What was promised or written in an epoch that nobody shows may be for members that nobody shows either.
    let shown = configs.last_key_value().map_or(Epoch(0), |(epoch, _)| *epoch);
    let is_explained = replicas.values().all(|replica| replica.promised.max(replica.last.epoch) <= shown);
    let members = configs.values().flat_map(|config| &config.members);
    let knows_all = are_all_found && is_explained && known.chain(members).all(is_here);
    let mut newest = None;
    for config in configs.values().rev() {
        let has = |replica: &FoundReplica| {
            // An entry of the epoch follows its barrier.
            replica.last.epoch == config.epoch || replica.barriers.iter().any(|barrier| barrier.epoch == config.epoch)
        };
        let agrees = |replica: &FoundReplica| has(replica) && (knows_all || replica.promised == config.epoch);
        let agreeing_count = config.members.iter().filter_map(|member| replicas.get(member)).filter(|replica| agrees(replica)).count();
        if agreeing_count >= config.install_quorum() {
            return Ok(Some(Configuration::clone(config)));
        }
        newest.get_or_insert((*config, agreeing_count));
        // Where everything is here, its barrier is on no install quorum (R14), so it never served: which one did before shows the same way.
        if !knows_all {
            break;
        }
    }
    let name = || map.shards.get(&shard).map(|record| record.name.clone()).unwrap_or_default();
    let was_never_installed = replicas.values().all(|replica| replica.last == Position::ZERO);
    if knows_all && was_never_installed {
        return Ok(None); // It was created, and its first configuration at most proposed.
    }
    let Some((newest, agreeing_count)) = newest else {
        return Err(Unrecoverable::Unclear { shard: name(), newest: None, agreeing_count: 0, missing: Vec::new() });
    };
    let missing = newest.members.iter().filter(|member| !is_here(member)).map(|member| (*member, server_name(map, *member))).collect();
    Err(Unrecoverable::Unclear { shard: name(), newest: Some(newest.clone()), agreeing_count, missing })
}

fn server_name(map: &ClusterMap, replica: ReplicaId) -> Option<Box<str>> {
    map.servers.get(&map.server_of(replica)?).map(|record| record.name.clone())
}

/// Above everything that was seen anywhere: an id that was minted once means something for ever.
fn raise_counters(map: &mut ClusterMap, found: &BTreeMap<ServerId, Found>) {
    let maps: Vec<&ClusterMap> = found.values().filter_map(|found| found.map.as_ref()).map(|(_, map)| &**map).collect();
    let counters = maps.iter().map(|map| map.counters);
    let highest = |of: fn(crate::map::Counters) -> u64| counters.clone().map(of).max().unwrap_or(0);
    let replicas = || found.values().flat_map(|found| &found.replicas);
    let epochs = replicas().flat_map(|(_, replica)| {
        let barriers = replica.barriers.iter().map(|config| config.epoch);
        [replica.promised, replica.last.epoch].into_iter().chain(barriers)
    });
    let epoch = highest(|counters| counters.epoch.0).max(epochs.map(|epoch| epoch.0).max().unwrap_or(0));
    let replica = highest(|counters| counters.replica.0).max(replicas().map(|(id, _)| id.0).max().unwrap_or(0));
    let server = highest(|counters| counters.server.0).max(found.keys().map(|id| id.0).max().unwrap_or(0));
    let shard = highest(|counters| counters.shard.0).max(replicas().map(|(_, replica)| replica.shard.0).max().unwrap_or(0));
    let session = highest(|counters| counters.session.0).max(found.values().map(|found| found.session.0).max().unwrap_or(0));
    map.counters.epoch = Epoch(epoch + MARGIN);
    map.counters.replica = ReplicaId(replica + MARGIN);
    map.counters.server = ServerId(server + MARGIN);
    map.counters.shard = ShardId(shard + MARGIN);
    map.counters.session = SessionId(session + MARGIN);
    map.counters.balancer = BalancerId(highest(|counters| counters.balancer.0) + MARGIN);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::majority,
        id::LogIndex,
        map::{Address, ServerRecord, ShardRecord},
        value::Key,
    };
    use std::collections::BTreeSet;

    const SH: ShardId = ShardId(1);

    fn config(epoch: u64, members: &[u64]) -> Configuration {
        let members: Vec<ReplicaId> = members.iter().copied().map(ReplicaId).collect();
        Configuration { epoch: Epoch(epoch), primary: members[0], write_quorum: majority(members.len()), members }
    }

    /// Replica n of one shard is on server n.
    struct Story {
        found: BTreeMap<ServerId, Found>,
    }

    impl Story {
        /// So many servers that have all seen version 9 of the map, with epoch 5 of all of them as current, which serves.
        fn serving(count: u64) -> Self {
            let members: Vec<u64> = (1..=count).collect();
            let current = config(5, &members);
            let mut map = ClusterMap::default();
            let shard = ShardRecord {
                name: "sh1".into(),
                low: Key(0),
                size: 10,
                current: Some(current.clone()),
                pending: None,
                placement: BTreeSet::new(),
                wanted_primary: None,
            };
            map.shards.insert(SH, shard);
            (map.counters.epoch, map.counters.shard) = (Epoch(5), SH);
            let mut found = BTreeMap::new();
            for id in members {
                let address = Some(Address { http: "h:1".into(), peer: "h:2".into() });
                let name = format!("Server{id}").into();
                map.servers.insert(ServerId(id), ServerRecord { name, number: id, goal: ServerGoal::Run, address, incarnation: None });
                let record = ReplicaRecord { shard: SH, server: ServerId(id), stage: ReplicaStage::Ready };
                map.replicas.insert(ReplicaId(id), record);
                found.insert(ServerId(id), Found::default());
            }
            let map = Arc::new(map);
            for (id, found) in &mut found {
                found.map = Some((MapVersion(9), Arc::clone(&map)));
                let last = Position { epoch: Epoch(5), index: LogIndex(7) };
                let replica = FoundReplica { shard: SH, promised: Epoch(5), last, barriers: vec![current.clone()], damaged: false };
                found.replicas.insert(ReplicaId(id.0), replica);
            }
            Self { found }
        }

        fn replica(&mut self, id: u64) -> &mut FoundReplica {
            self.found.get_mut(&ServerId(id)).unwrap().replicas.get_mut(&ReplicaId(id)).unwrap()
        }

        /// It has the barrier of that configuration as its last entry.
        fn has(&mut self, id: u64, config: &Configuration) {
            let replica = self.replica(id);
            replica.promised = config.epoch;
            replica.last = Position { epoch: config.epoch, index: LogIndex(8) };
            replica.barriers.push(config.clone());
        }

        /// The epoch that comes back, or how many agree.
        fn epoch(&self) -> Result<u64, usize> {
            match rebuild(&self.found) {
                Ok(rebuilt) => Ok(rebuilt.map.shards[&SH].current.as_ref().map_or(0, |current| current.epoch.0)),
                Err(Unrecoverable::Unclear { agreeing_count, .. }) => Err(agreeing_count),
                Err(Unrecoverable::NoMap | Unrecoverable::Unnamed { .. }) => panic!("they have seen one that has all"),
            }
        }
    }

    #[test]
    fn what_served_comes_back_and_ids_go_on_above_everything() {
        let mut story = Story::serving(3);
        story.found.get_mut(&ServerId(2)).unwrap().session = SessionId(77);
        let rebuilt = rebuild(&story.found).unwrap();
        assert_eq!((rebuilt.seen, rebuilt.version > MapVersion(9)), (MapVersion(9), true));
        assert_eq!(rebuilt.map.shards[&SH].current, Some(config(5, &[1, 2, 3])));
        assert_eq!(rebuilt.map.controller.holder, None);
        let counters = rebuilt.map.counters;
        assert!(counters.epoch > Epoch(5) && counters.replica > ReplicaId(3) && counters.session > SessionId(77));
        assert_eq!(rebuild(&BTreeMap::from([(ServerId(1), Found::default())])), Err(Unrecoverable::NoMap));
    }

    #[test]
    fn shard_that_only_logs_show_is_not_dropped_without_a_word() {
        let mut story = Story::serving(3);
        // Added after version 9: no server was told of a map with it, and it was written to.
        let second = config(6, &[11, 12, 13]);
        for id in 1..=3 {
            let last = Position { epoch: Epoch(6), index: LogIndex(500) };
            let replica = FoundReplica { shard: ShardId(2), promised: Epoch(6), last, barriers: vec![second.clone()], damaged: false };
            story.found.get_mut(&ServerId(id)).unwrap().replicas.insert(ReplicaId(id + 10), replica);
        }
        let refused = rebuild(&story.found).unwrap_err();
        let replicas = vec![ReplicaId(11), ReplicaId(12), ReplicaId(13)];
        assert_eq!(refused, Unrecoverable::Unnamed { shard: ShardId(2), replicas });
        assert!(refused.to_string().contains("r11, r12, r13"), "{refused}");
        // One that the newest map knew was given up, and one that was only created never served.
        let mut given_up = story.found.clone();
        for found in given_up.values_mut() {
            Arc::make_mut(&mut found.map.as_mut().unwrap().1).counters.shard = ShardId(2);
        }
        assert!(rebuild(&given_up).is_ok());
        for replica in story.found.values_mut().flat_map(|found| found.replicas.values_mut()).filter(|replica| replica.shard != SH) {
            (replica.last, replica.barriers) = (Position::ZERO, vec![]);
        }
        assert!(rebuild(&story.found).is_ok());
    }

    #[test]
    fn one_of_three_may_be_missing_and_no_more() {
        for gone in [&[1][..], &[2], &[3], &[1, 2], &[2, 3]] {
            let mut story = Story::serving(3);
            story.found.retain(|id, _| !gone.contains(&id.0));
            assert_eq!(story.epoch(), if gone.len() == 1 { Ok(5) } else { Err(1) }, "without {gone:?}");
        }
        let mut story = Story::serving(3);
        story.replica(1).damaged = true;
        assert_eq!(story.epoch(), Ok(5));
        story.replica(2).damaged = true;
        assert_eq!(story.epoch(), Err(1));
        let words = rebuild(&story.found).unwrap_err().to_string();
        assert!(words.contains("sh1") && words.contains("r1 on Server1, r2 on Server2"), "{words}");
    }

    #[test]
    fn configuration_that_no_map_shows_comes_back_if_it_is_installed() {
        // Replica 1 was dropped, and nobody has heard of it but those who took the barrier.
        let next = config(6, &[2, 3]);
        let mut story = Story::serving(3);
        story.has(2, &next);
        story.has(3, &next);
        assert_eq!(story.epoch(), Ok(6));
        let rebuilt = rebuild(&story.found).unwrap();
        assert!(rebuilt.shards[0].is_newer_than_map && rebuilt.map.counters.epoch > Epoch(6));
        story.found.remove(&ServerId(1));
        assert_eq!(story.epoch(), Ok(6), "the one that was dropped is not asked");
        story.found.remove(&ServerId(3));
        assert_eq!(story.epoch(), Err(1));
    }

    #[test]
    fn configuration_that_was_only_begun_gives_way_where_everything_is_here() {
        let next = config(6, &[2, 3]);
        let mut story = Story::serving(3);
        story.has(2, &next);
        story.replica(3).promised = Epoch(6);
        assert_eq!(story.epoch(), Ok(5), "e6 is on one of two");
        // Without server 1 there may have been another after it.
        story.found.remove(&ServerId(1));
        assert_eq!(story.epoch(), Err(1));
        // Nor may a disk have been lost.
        let mut story = Story::serving(3);
        story.has(2, &next);
        story.found.get_mut(&ServerId(3)).unwrap().replicas.clear();
        assert_eq!(story.epoch(), Err(1), "e6 may have been on it");
    }

    #[test]
    fn older_configuration_is_not_taken_where_its_members_have_promised_to_leave_it() {
        // e6 served on new members, which are all gone; two of the three have sealed e5 for it.
        let mut story = Story::serving(3);
        story.replica(1).promised = Epoch(6);
        story.replica(2).promised = Epoch(6);
        let absent = ServerRecord { name: "Server4".into(), number: 4, goal: ServerGoal::Run, address: None, incarnation: None };
        for found in story.found.values_mut() {
            let (_, map) = found.map.as_mut().unwrap();
            Arc::make_mut(map).servers.insert(ServerId(4), absent.clone());
        }
        assert_eq!(story.epoch(), Err(1));
    }

    #[test]
    fn epoch_that_was_promised_and_that_nobody_shows_is_not_passed_over() {
        // All that the newest map shows is here. But it does not show e6, nor the new members that it may have served on.
        for (promised, written, comes_back) in [
            ([5, 5, 5], [5, 5, 5], Ok(5)),
            ([6, 5, 5], [5, 5, 5], Ok(5)),
            ([6, 6, 5], [5, 5, 5], Err(1)),
            ([6, 6, 6], [5, 5, 5], Err(0)),
            ([6, 6, 6], [6, 5, 5], Err(0)),
            ([6, 6, 6], [6, 6, 6], Err(0)),
        ] {
            let mut story = Story::serving(3);
            for (id, (promised, written)) in (1..).zip(promised.into_iter().zip(written)) {
                let replica = story.replica(id);
                (replica.promised, replica.last.epoch) = (Epoch(promised), Epoch(written));
            }
            assert_eq!(story.epoch(), comes_back, "promised {promised:?}, written {written:?}");
        }
        // Where somebody shows e6, everything is known: it is on no install quorum, and never served.
        let mut story = Story::serving(3);
        for id in 1..=3 {
            story.replica(id).promised = Epoch(6);
        }
        story.has(1, &config(6, &[1, 2, 3]));
        assert_eq!(story.epoch(), Ok(5));
    }

    #[test]
    fn shard_that_never_served_comes_back_without_a_configuration() {
        let mut story = Story::serving(3);
        for id in 1..=3 {
            *story.replica(id) = FoundReplica { shard: SH, ..FoundReplica::default() };
        }
        for found in story.found.values_mut() {
            let (_, map) = found.map.as_mut().unwrap();
            let record = Arc::make_mut(map).shards.get_mut(&SH).unwrap();
            record.pending = record.current.take();
        }
        assert_eq!(story.epoch(), Ok(0));
        story.found.remove(&ServerId(1));
        assert_eq!(story.epoch(), Err(0));
    }
}
