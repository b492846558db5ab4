//! The suite and what befalls a database, on a real MariaDB or MySQL. Without one (`make db` fetches it) these tests say so and pass.

use super::*;
use crate::{
    conformance::{
        Random,
        register::{Venue, check},
    },
    mysql::test_server::Server,
};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// More statements than any test makes.
const FOREVER: i64 = 1 << 60;
const CLUSTER: ClusterId = ClusterId(7);

/// One register of several on a server.
struct InDatabase {
    settings: MysqlSettings,
    left: Arc<AtomicI64>,
}

impl InDatabase {
    fn new(server: &Server) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let settings = server.settings(&format!("r{}", LAST.fetch_add(1, Ordering::Relaxed)));
        Self { settings, left: Arc::new(AtomicI64::new(FOREVER)) }
    }

    /// As a person with a client; `OURS` stands for the register's.
    fn by_hand(&self, text: &str) {
        let mut database = Database::new(self.settings.options.clone(), Fuse::default()).expect("a runtime");
        let text = text.replace("OURS", &Table::new(&self.settings).name);
        database.run(MAKE_TIMEOUT, async |link, _| Ok(link.raw(text).await?)).expect("done by hand");
    }

    fn made(&self) -> MysqlRegister {
        MysqlRegister::open_or_make(&self.settings, &map(0)).expect("opens")
    }
}

fn map(beat: u64) -> ClusterMap {
    let mut map = ClusterMap { cluster: CLUSTER, ..ClusterMap::default() };
    map.controller.beat = beat;
    map
}

impl Venue for InDatabase {
    type Register = MysqlRegister;

    fn open(&mut self, initial: &ClusterMap) -> Result<MysqlRegister, RegisterError> {
        MysqlRegister::open_with(&self.settings, initial.cluster, Some((MapVersion(0), initial)), Fuse::new(Arc::clone(&self.left)))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn crash(&mut self, _random: &mut Random) {
        self.left.store(FOREVER, Ordering::SeqCst);
    }

    fn fail_after(&mut self, operation_count: u64) -> bool {
        self.left.store(i64::try_from(operation_count / 2).expect("few"), Ordering::SeqCst);
        true
    }

    fn damage(&mut self) -> bool {
        self.by_hand("UPDATE OURS SET map = CONCAT(map, 'x')");
        true
    }
}

#[test]
fn a_register_in_a_database_conforms() {
    let Some(server) = Server::start() else { return };
    if let Err(words) = check(|| InDatabase::new(&server)) {
        panic!("{words}");
    }
}

#[test]
fn a_register_whose_database_was_emptied_is_never_begun_anew_by_who_only_opens_it() {
    let Some(server) = Server::start() else { return };
    for emptied in ["DELETE FROM OURS", "DROP TABLE OURS"] {
        let venue = InDatabase::new(&server);
        let mut register = venue.made();
        assert!(register.compare_and_set(MapVersion(0), &map(1)).expect("there"));
        venue.by_hand(emptied);
        assert!(matches!(register.read(), Err(RegisterError::Damaged(_))), "{emptied}");
        assert!(matches!(register.compare_and_set(MapVersion(1), &map(2)), Err(RegisterError::Damaged(_))), "{emptied}");
        let opened = MysqlRegister::open(&venue.settings, CLUSTER);
        assert!(matches!(&opened, Err(RegisterError::Damaged(words)) if words.contains("empty")), "{emptied}: {opened:?}");
        MysqlRegister::restore(&venue.settings, MapVersion(9), &map(9)).expect("it is empty");
        assert_eq!(register.read().expect("there again").0, MapVersion(9));
        let again = MysqlRegister::restore(&venue.settings, MapVersion(10), &map(10));
        assert!(matches!(&again, Err(RegisterError::Failed(words)) if words.contains("one already")), "{again:?}");
    }
}

#[test]
fn a_register_that_went_back_is_refused_by_who_saw_more() {
    let Some(server) = Server::start() else { return };
    let venue = InDatabase::new(&server);
    let mut register = venue.made();
    for beat in 1..=3 {
        assert!(register.compare_and_set(MapVersion(beat - 1), &map(beat)).expect("there"));
    }
    let old = encode(MapVersion(2), &map(2)).expect("encodes").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    venue.by_hand(&format!("UPDATE OURS SET version = 2, map = x'{old}'"));
    let read = register.read();
    assert!(matches!(&read, Err(RegisterError::Damaged(words)) if words.contains("went back from v3 to v2")), "{read:?}");
    assert!(!register.compare_and_set(MapVersion(3), &map(4)).expect("there"));
    // Who did not see more cannot know.
    assert_eq!(MysqlRegister::open(&venue.settings, CLUSTER).expect("whole").read().expect("whole").0, MapVersion(2));
}

#[test]
fn a_database_that_is_killed_and_comes_back_is_one_again() {
    let Some(mut server) = Server::start() else { return };
    let venue = InDatabase::new(&server);
    let mut register = venue.made();
    assert!(register.compare_and_set(MapVersion(0), &map(1)).expect("there"));
    server.kill();
    assert!(matches!(register.compare_and_set(MapVersion(1), &map(2)), Err(RegisterError::Failed(_))));
    server.start_again();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let found = loop {
        match register.read() {
            Ok(found) => break found,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        register.database.wait(Instant::now() + Duration::from_secs(2));
    };
    assert_eq!(found, (MapVersion(1), Arc::new(map(1))));
    assert!(register.compare_and_set(MapVersion(1), &map(2)).expect("there"));
}

#[test]
fn a_database_that_may_lose_what_it_commits_is_refused() {
    let Some(server) = Server::start_with(&["--log-bin=binary", "--server-id=1", "--sync-binlog=1"]) else { return };
    let venue = InDatabase::new(&server);
    drop(venue.made());
    for (setting, loses) in [("innodb_flush_log_at_trx_commit", 2), ("sync_binlog", 0)] {
        venue.by_hand(&format!("SET GLOBAL {setting} = {loses}"));
        let opened = MysqlRegister::open(&venue.settings, CLUSTER);
        assert!(matches!(&opened, Err(RegisterError::Failed(words)) if words.contains(setting)), "{opened:?}");
        venue.by_hand(&format!("SET GLOBAL {setting} = 1"));
        drop(MysqlRegister::open(&venue.settings, CLUSTER).expect("durable"));
    }
}

#[test]
fn what_is_acknowledged_is_there_whatever_the_servers_settings_are() {
    // Without `autocommit` what is done outside of a transaction ends with the connection.
    let Some(server) = Server::start_with(&["--autocommit=0", "--completion-type=CHAIN"]) else { return };
    let venue = InDatabase::new(&server);
    let mut register = venue.made();
    assert!(register.compare_and_set(MapVersion(0), &map(1)).expect("there"));
    assert_eq!(MysqlRegister::open(&venue.settings, CLUSTER).expect("made").read().expect("whole").0, MapVersion(1));
    drop(register);
    assert_eq!(MysqlRegister::open(&venue.settings, CLUSTER).expect("made").read().expect("whole").0, MapVersion(1));
}

#[test]
fn every_register_that_is_set_aside_is_kept() {
    let Some(server) = Server::start() else { return };
    let venue = InDatabase::new(&server);
    for aside in ["register_damaged", "register_damaged_2", "register_damaged_3"] {
        drop(venue.made());
        assert_eq!(MysqlRegister::set_aside(&venue.settings).expect("set aside").as_deref(), Some(aside));
    }
    assert_eq!(MysqlRegister::set_aside(&venue.settings).expect("there is none"), None);
    venue.by_hand(&format!("SELECT version FROM {}.register_damaged", quoted(&venue.settings.database)));
}
