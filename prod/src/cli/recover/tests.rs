use super::*;
use crate::log::{Log as _, file::Identity};
use twinshard_core::{
    id::{Epoch, OwnerNumber, Position, ReplicaId, ShardId},
    map::{Address, ClusterMap, ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
    storage::LogRecord,
    value::Key,
};

const CLUSTER: ClusterId = ClusterId(7);
const SERVER: ServerId = ServerId(1);

/// One server with one replica that never served.
fn map() -> ClusterMap {
    let mut map = ClusterMap { cluster: CLUSTER, ..ClusterMap::default() };
    let address = Some(Address { http: "h:1".into(), peer: "h:2".into() });
    map.servers.insert(SERVER, ServerRecord { name: "Server0".into(), number: 0, goal: ServerGoal::Run, address, incarnation: None });
    map.replicas.insert(ReplicaId(1), ReplicaRecord { shard: ShardId(1), server: SERVER, stage: ReplicaStage::Ready });
    let (current, pending, wanted_primary) = (None, None, None);
    let shard = ShardRecord { name: "sh1".into(), low: Key(0), size: 10, current, pending, placement: [SERVER].into(), wanted_primary };
    map.shards.insert(ShardId(1), shard);
    map
}

/// A server's directory, whose server has seen version 9 of the map.
fn server(dir: &Path) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir).unwrap());
    let mut log = FileLog::open(disk, Identity { cluster: CLUSTER, server: SERVER }, OwnerNumber(500)).unwrap();
    let records = vec![
        LogRecord::Map { version: MapVersion(9), map: Arc::new(map()) },
        LogRecord::Create { replica: ReplicaId(1), shard: ShardId(1) },
    ];
    log.persist(&[records]).unwrap();
}

fn with_register(version: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    server(&dir.path().join("servers/Server0-s1"));
    RedbRegister::restore(&dir.path().join("register.redb"), MapVersion(version), &map()).unwrap();
    dir
}

fn recovered(dir: &Path, dry_run: bool) -> Result<(), String> {
    let found = found_in(&dir.join("servers"), CLUSTER).unwrap();
    recover_file(dir, &found, CLUSTER, dry_run).map_err(|failure| failure.to_string())
}

fn version(dir: &Path) -> MapVersion {
    RedbRegister::open(&dir.join("register.redb"), CLUSTER).unwrap().read().unwrap().0
}

#[test]
fn register_that_went_back_is_set_aside_and_one_that_did_not_is_left_alone() {
    for whole in [9, 10] {
        let dir = with_register(whole);
        let words = recovered(dir.path(), false).unwrap_err();
        assert!(words.contains("nothing to recover"), "{words}");
        assert_eq!(version(dir.path()), MapVersion(whole));
    }
    let dir = with_register(8);
    recovered(dir.path(), true).unwrap();
    assert_eq!(version(dir.path()), MapVersion(8), "nothing was to be written");
    recovered(dir.path(), false).unwrap();
    assert!(version(dir.path()) > MapVersion(9));
    // Nothing that was ever set aside is lost.
    RedbRegister::restore(&dir.path().join("register.redb"), MapVersion(7), &map()).unwrap();
    recovered(dir.path(), false).unwrap();
    assert!(dir.path().join("register.redb.damaged").exists() && dir.path().join("register.redb.damaged-2").exists());
}

#[test]
fn looking_at_logs_changes_nothing_in_them() {
    let dir = tempfile::tempdir().unwrap();
    server(dir.path());
    let log = dir.path().join(LOG_FILE);
    let whole = fs::read(&log).unwrap();
    for (cut, flipped) in [(0, None), (3, None), (0, Some(70)), (0, Some(2))] {
        let mut bytes = whole[..whole.len() - cut].to_vec();
        // A crash leaves a tail; bits rot; a header is lost.
        bytes.extend(vec![0x55; cut * 5]);
        if let Some(at) = flipped {
            bytes[at] ^= 1;
        }
        fs::write(&log, &bytes).unwrap();
        let found = found_among([dir.path().to_owned()], CLUSTER).unwrap();
        assert_eq!(fs::read(&log).unwrap(), bytes, "{cut} {flipped:?}");
        let files: std::collections::BTreeSet<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, ["lock", LOG_FILE].map(Into::into).into());
        assert_eq!(found.contains_key(&SERVER), flipped != Some(2), "one without a header remembers nothing");
    }
    fs::write(&log, &whole).unwrap();
    let found = found_among([dir.path().to_owned()], CLUSTER).unwrap();
    let expected = FoundReplica { shard: ShardId(1), promised: Epoch(0), last: Position::ZERO, barriers: vec![], damaged: false };
    assert_eq!(found[&SERVER].replicas[&ReplicaId(1)], expected);
    assert_eq!(found[&SERVER].map, Some((MapVersion(9), Arc::new(map()))));
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    recover: Recover,
}

#[tokio::test]
async fn register_of_a_server_on_its_own_comes_back_while_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    server(&store);
    fs::write(dir.path().join("cluster"), format!("{CLUSTER}\n")).unwrap();
    let recover = || <Line as clap::Parser>::parse_from(["twinshard", "--dir", dir.path().to_str().unwrap()]).recover.run();
    let runs = RealDisk::open(&store).unwrap();
    let words = recover().await.unwrap_err().to_string();
    assert!(words.contains("in use by another process"), "{words}");
    drop(runs);
    recover().await.unwrap();
    assert!(version(dir.path()) > MapVersion(9));
}
