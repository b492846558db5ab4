//! The suite and what befalls a database, on a real MariaDB or MySQL. Without one (`make db` fetches it) these tests say so and pass.

use super::*;
use crate::{
    conformance::{
        Random,
        rows::{IDENTITY, Part, Venue, check, random_work, schema},
    },
    mysql::{connection::statement, quoted, test_server::Server},
};
use sqlx::Row as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use twinshard_core::{
    id::{ClusterId, Epoch, LogIndex, SessionId},
    schema::{Column, ColumnType},
    storage::RowQuery,
    value::{Finite, Key, KeyRange, Row, StoredRow, Value},
};

/// More statements than any test makes.
const FOREVER: i64 = 1 << 60;
const REPLICA: ReplicaId = ReplicaId(7);
const TABLES: [&str; 4] = ["shard_rows", "sessions", "idempotency", "applied"];

/// One store of several on a server.
struct InDatabase<'a> {
    server: &'a Server,
    settings: MysqlSettings,
    left: Arc<AtomicI64>,
}

impl<'a> InDatabase<'a> {
    fn new(server: &'a Server) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("t{}", LAST.fetch_add(1, Ordering::Relaxed));
        let settings = server.settings(&prefix);
        Self { server, settings, left: Arc::new(AtomicI64::new(FOREVER)) }
    }

    fn open_with(&self, owner: u64, schema: &Schema) -> Result<MysqlRows, StoreError> {
        let shape = Shape { schema: schema.clone(), shard: Some("Sh`1".into()) };
        MysqlRows::open(&self.settings, IDENTITY, OwnerNumber(owner), Box::new(move |_| Some(shape.clone())))
    }

    /// As a person with a client.
    fn by_hand(&self, statements: impl IntoIterator<Item = String>) {
        let mut database = Database::new(self.settings.options.clone(), Fuse::default()).expect("a runtime");
        let statements: Vec<String> = statements.into_iter().collect();
        let done = database.run(LONG_TIMEOUT, async |link, _| {
            for statement in statements {
                link.raw(statement).await?;
            }
            Ok(())
        });
        done.expect("done by hand");
    }

    fn names(&self, query: &str) -> Vec<String> {
        let mut database = Database::new(self.settings.options.clone(), Fuse::default()).expect("a runtime");
        let found = database.run(LONG_TIMEOUT, async |link, _| {
            let rows = link.rows(statement(query.to_owned())).await?;
            rows.iter().map(|row| row.try_get_unchecked(0).map_err(Trouble::from)).collect::<Result<Vec<String>, Trouble>>()
        });
        found.expect("read by hand")
    }

    fn databases(&self) -> Vec<String> {
        let prefix = &self.settings.database;
        let all = self.names("SHOW DATABASES");
        all.into_iter().filter(|name| name == prefix || name.starts_with(&format!("{prefix}_"))).collect()
    }

    /// The database that a copy of a view is kept in.
    fn copy_name(&self) -> String {
        format!("copy_of_{}", self.settings.database)
    }

    /// The database that is the view of the replica.
    fn view(&self, replica: ReplicaId) -> String {
        let control = quoted(&self.settings.database);
        let select = format!("SELECT name FROM {control}.replica_databases WHERE replica = {} AND used_as = 'view'", replica.0);
        self.names(&select).pop().expect("it has a view")
    }
}

impl Venue for InDatabase<'_> {
    type Store = MysqlRows;

    fn open(&mut self, identity: Identity, owner: OwnerNumber) -> Result<MysqlRows, StoreError> {
        let shape = Shape { schema: schema(), shard: Some("sh1".into()) };
        let fuse = Fuse::new(Arc::clone(&self.left));
        MysqlRows::open_with(&self.settings, identity, owner, Box::new(move |_| Some(shape.clone())), fuse)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn crash(&mut self, _random: &mut Random) {
        self.left.store(FOREVER, Ordering::SeqCst);
    }

    fn fail_after(&mut self, operation_count: u64) -> bool {
        self.left.store(i64::try_from(operation_count).expect("few") * 2, Ordering::SeqCst);
        true
    }

    fn lose(&mut self) {
        self.by_hand(self.databases().iter().map(|name| format!("DROP DATABASE {}", quoted(name))));
    }

    fn copy(&mut self, replica: ReplicaId) -> bool {
        let (view, copy) = (quoted(&self.view(replica)), quoted(&self.copy_name()));
        self.by_hand([format!("CREATE DATABASE {copy}")]);
        self.by_hand(TABLES.map(|table| format!("CREATE TABLE {copy}.{table} AS SELECT * FROM {view}.{table}")));
        true
    }

    fn go_back(&mut self, replica: ReplicaId) {
        let (view, copy) = (quoted(&self.view(replica)), quoted(&self.copy_name()));
        self.by_hand(TABLES.map(|table| format!("DELETE FROM {view}.{table}")));
        self.by_hand(TABLES.map(|table| format!("INSERT INTO {view}.{table} SELECT * FROM {copy}.{table}")));
    }

    fn damage(&mut self, replica: ReplicaId, part: Part) -> bool {
        let at = quoted(&self.view(replica));
        let set = |table: &str, set: &str, id: String| format!("UPDATE {at}.{table} SET {set} WHERE {id}");
        let statements = match part {
            Part::Row(Key(key)) => vec![set("shard_rows", "`text` = CONCAT(`text`, '!')", format!("id = {key}"))],
            Part::Swapped(Key(one), Key(other)) => vec![
                set("shard_rows", "id = 999", format!("id = {one}")),
                set("shard_rows", &format!("id = {one}"), format!("id = {other}")),
                set("shard_rows", &format!("id = {other}"), "id = 999".to_owned()),
            ],
            Part::Session(SessionId(id)) => vec![set("sessions", "state = CONCAT(state, 'x')", format!("id = {id}"))],
            Part::Idempotency(key) => vec![set("idempotency", "state = CONCAT(state, 'x')", format!("id = '{key}'"))],
            Part::Applied => vec![set("applied", "log_index = log_index + 1", "one = 1".to_owned())],
        };
        self.by_hand(statements);
        true
    }
}

fn position(index: u64) -> Position {
    Position { epoch: Epoch(1), index: LogIndex(index) }
}

fn flush(keys: impl IntoIterator<Item = i64>, at: u64, values: &[Value]) -> StoreCommand {
    let version = position(at);
    let row = |key| (Key(key), Some(StoredRow { version, row: Row { key: Key(key), values: values.to_vec() } }));
    let rows = keys.into_iter().map(row).collect();
    StoreCommand::Flush(Box::new(FlushBatch {
        rows,
        sessions: BTreeMap::new(),
        idempotency: BTreeMap::new(),
        session_floor: SessionId(0),
        applied: version,
    }))
}

fn names() -> Schema {
    let columns = [("Stud_id", ColumnType::Number), ("Stud_name", ColumnType::String)];
    Schema::new(columns.map(|(name, dtype)| Column { name: name.into(), dtype }).to_vec()).expect("allowed")
}

fn name() -> Vec<Value> {
    vec![Value::Text("Ada".into())]
}

fn all() -> StoreCommand {
    StoreCommand::Read(RowQuery::Range { range: KeyRange::ALL, limit: u32::MAX, bytes_max: u32::MAX })
}

fn keys(answer: StoreAnswer) -> Vec<i64> {
    let StoreAnswer::Rows(page) = answer else { panic!("{answer:?} in the place of rows") };
    page.rows.iter().map(|row| row.row.key.0).collect()
}

/// Whoever asks again gets through once the server and the back-off let them.
fn patiently(store: &mut MysqlRows, command: StoreCommand) -> StoreAnswer {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = store.execute(REPLICA, command.clone()).expect("not the end");
        if answer != StoreAnswer::Unavailable || Instant::now() >= deadline {
            return answer;
        }
        store.database.wait(deadline);
    }
}

#[test]
fn a_database_conforms() {
    let Some(server) = Server::start() else { return };
    check(|| InDatabase::new(&server)).unwrap_or_else(|words| panic!("{words}"));
}

#[test]
fn a_database_outlives_many_random_crashes() {
    let Some(server) = Server::start() else { return };
    for seed in 100..112 {
        let mut venue = InDatabase::new(&server);
        random_work(&mut venue, seed, 60).unwrap_or_else(|words| panic!("seed {seed}: {words}"));
        // What crashes left goes when the store is opened, and nothing else is there.
        let mut store = venue.open(IDENTITY, OwnerNumber(1_000)).expect("opens");
        let views = store.replicas().expect("lists").len();
        let stages = store.state.listed.replicas.values().filter(|known| known.stage.is_some()).count();
        drop(store);
        assert_eq!(venue.databases().len(), 1 + views + stages, "seed {seed}: {:?}", venue.databases());
    }
}

#[test]
fn a_database_that_is_down_is_unavailable_and_comes_back_with_everything() {
    let Some(mut server) = Server::start() else { return };
    let mut store = InDatabase::new(&server).open_with(1, &names()).expect("opens");
    assert_eq!(store.execute(REPLICA, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
    assert_eq!(store.execute(REPLICA, flush(0..2_500, 1, &name())).expect("ours"), StoreAnswer::Flushed { durable: position(1) });
    server.kill();
    for command in [all(), flush([9_000], 2, &name()), StoreCommand::Create, StoreCommand::Destroy] {
        assert_eq!(store.execute(REPLICA, command).expect("not the end"), StoreAnswer::Unavailable);
    }
    server.start_again();
    let answer = patiently(&mut store, flush([9_000], 2, &name()));
    assert_eq!(answer, StoreAnswer::Flushed { durable: position(2) });
    assert_eq!(keys(store.execute(REPLICA, all()).expect("ours")), (0..2_500).chain([9_000]).collect::<Vec<_>>());
}

#[test]
fn reads_that_come_together_are_spread_over_connections_and_answered_as_one_by_one() {
    let Some(mut server) = Server::start() else { return };
    let venue = InDatabase::new(&server);
    let mut store = venue.open_with(1, &names()).expect("opens");
    let other = ReplicaId(8);
    for (replica, keys) in [(REPLICA, 0..2_500), (other, 0..10)] {
        assert_eq!(store.execute(replica, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
        store.execute(replica, flush(keys, 1, &name())).expect("ours");
    }
    let read = |replica, low: i64, high: i64| {
        (replica, RowQuery::Range { range: KeyRange { low: Key(low), high: Key(high) }, limit: u32::MAX, bytes_max: u32::MAX })
    };
    let reads: Vec<_> =
        (0..20).map(|n| read(if n % 3 == 0 { other } else { REPLICA }, n, 50 * n)).chain([read(ReplicaId(99), 0, 9)]).collect();
    let mut one_by_one: Vec<StoreAnswer> = Vec::new();
    for (replica, query) in &reads {
        one_by_one.push(store.execute(*replica, StoreCommand::Read(query.clone())).expect("ours"));
    }
    assert_eq!(one_by_one.last(), Some(&StoreAnswer::Lost(LostReason::RowsMissing)));
    let together = |store: &mut MysqlRows| -> Vec<StoreAnswer> {
        store.read_all(reads.clone()).into_iter().map(|answer| answer.expect("ours")).collect()
    };
    assert!(together(&mut store) == one_by_one);
    assert_eq!(store.state.readers.len(), READ_LINKS_MAX - 1);
    // What is flushed is seen on all of them at once.
    for at in 2..30 {
        let flushed = store.execute(REPLICA, flush([10_000 + i64::try_from(at).expect("few")], at, &name())).expect("ours");
        assert_eq!(flushed, StoreAnswer::Flushed { durable: position(at) });
        for answer in store.read_all(vec![read(REPLICA, 10_000, 20_000); 8]) {
            assert_eq!(keys(answer.expect("ours")).len() as u64, at - 1);
        }
    }
    // One value does not verify: those who read it hear of it, and nobody else.
    venue.by_hand([format!("UPDATE {}.shard_rows SET `Stud_name` = 'Eve' WHERE `Stud_id` = 2400", quoted(&venue.view(REPLICA)))]);
    let answers = store.read_all(vec![read(REPLICA, 8, 8), read(REPLICA, 2_400, 2_400), read(other, 7, 7)]);
    let answers: Vec<StoreAnswer> = answers.into_iter().map(|answer| answer.expect("ours")).collect();
    assert_eq!(answers[1], StoreAnswer::Lost(LostReason::RowsDamaged));
    assert_eq!((keys(answers[0].clone()), keys(answers[2].clone())), (vec![8], vec![7]));
    // A database that is gone is gone for all.
    server.kill();
    assert!(together(&mut store).iter().all(|answer| *answer == StoreAnswer::Unavailable));
    server.start_again();
    patiently(&mut store, all());
    let back: Vec<StoreAnswer> = together(&mut store);
    assert!(back == one_by_one);
    assert_eq!(store.state.readers.len(), READ_LINKS_MAX - 1);
}

#[test]
fn a_database_that_hangs_is_unavailable_and_its_late_commit_does_no_harm() {
    let Some(server) = Server::start() else { return };
    let mut store = InDatabase::new(&server).open_with(1, &names()).expect("opens");
    assert_eq!(store.execute(REPLICA, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
    server.signal("STOP");
    store.command_timeout = Duration::from_millis(300);
    assert_eq!(store.execute(REPLICA, flush([1], 1, &name())).expect("not the end"), StoreAnswer::Unavailable);
    assert_eq!(store.execute(REPLICA, flush([1, 2], 2, &name())).expect("not the end"), StoreAnswer::Unavailable);
    server.signal("CONT");
    store.command_timeout = COMMAND_TIMEOUT;
    let answer = patiently(&mut store, flush([1, 2, 3], 3, &name()));
    assert_eq!(answer, StoreAnswer::Flushed { durable: position(3) });
    assert_eq!(keys(store.execute(REPLICA, all()).expect("ours")), [1, 2, 3]);
}

#[test]
fn a_database_that_lost_what_it_had_says_so_and_begins_anew() {
    let Some(server) = Server::start() else { return };
    let mut venue = InDatabase::new(&server);
    let mut store = venue.open_with(1, &names()).expect("opens");
    let other = ReplicaId(8);
    for replica in [REPLICA, other] {
        assert_eq!(store.execute(replica, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
        store.execute(replica, flush([1], 1, &name())).expect("ours");
    }
    venue.by_hand([format!("DROP DATABASE {}", quoted(&venue.view(REPLICA)))]);
    let missing = StoreAnswer::Lost(LostReason::RowsMissing);
    for command in [all(), flush([2], 2, &name())] {
        assert_eq!(store.execute(REPLICA, command).expect("ours"), missing);
    }
    assert_eq!(keys(store.execute(other, all()).expect("ours")), [1], "the other has its own");
    venue.lose();
    for command in [all(), flush([2], 2, &name())] {
        assert_eq!(store.execute(other, command).expect("ours"), missing);
    }
    assert_eq!(store.execute(other, StoreCommand::Destroy).expect("ours"), StoreAnswer::Done);
    let new = ReplicaId(9);
    assert_eq!(store.execute(new, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
    store.execute(new, flush([3], 1, &name())).expect("ours");
    assert_eq!(keys(store.execute(new, all()).expect("ours")), [3]);
    // Who took over meanwhile is not robbed by who comes late.
    let mut late = store;
    venue.lose();
    let _new = venue.open_with(2, &names()).expect("opens");
    assert!(matches!(late.execute(new, StoreCommand::Create), Err(StoreError::TakenOver)));
}

#[test]
fn a_person_finds_the_rows_with_a_client() {
    let Some(server) = Server::start() else { return };
    let columns = [
        ("id", ColumnType::Number),
        ("marks", ColumnType::Number),
        ("Select", ColumnType::String),
        ("share", ColumnType::Float),
        ("here", ColumnType::Boolean),
    ];
    let schema = Schema::new(columns.map(|(name, dtype)| Column { name: name.into(), dtype }).to_vec()).expect("allowed");
    let venue = InDatabase::new(&server);
    let mut store = venue.open_with(1, &schema).expect("opens");
    store.execute(REPLICA, StoreCommand::Create).expect("ours");
    let share = Finite::new(0.25).expect("finite");
    let values = [Value::Integer(42), Value::Text("it's `me`".into()), Value::Decimal(share), Value::Boolean(true)];
    store.execute(REPLICA, flush([-5], 3, &values)).expect("ours");
    let database = venue.view(REPLICA);
    assert!(database.ends_with("_sh_1_r7_1"), "{database}");
    let found = venue.names(&format!(
        "SELECT CONCAT_WS('|', id, marks, `Select`, share, here, epoch$, index$) FROM {}.shard_rows WHERE marks > 41.5",
        quoted(&database)
    ));
    assert_eq!(found, ["-5|42|it's `me`|0.25|1|1|3"]);
}

#[test]
fn as_many_columns_as_a_schema_may_have_fit_a_row() {
    let Some(server) = Server::start() else { return };
    let column =
        |place: usize| Column { name: format!("c{place}").into(), dtype: if place == 0 { ColumnType::Number } else { ColumnType::String } };
    let schema = Schema::new((0..twinshard_core::schema::COLUMNS_MAX).map(column).collect()).expect("allowed");
    let mut store = InDatabase::new(&server).open_with(1, &schema).expect("opens");
    assert_eq!(store.execute(REPLICA, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
    for (at, length) in [(1, 1), (2, 40), (3, 41), (4, 768), (5, 3_000)] {
        let values: Vec<Value> =
            (1..twinshard_core::schema::COLUMNS_MAX).map(|_| Value::Text("\u{e9}".repeat(length / 2 + 1).into())).collect();
        let answer = store.execute(REPLICA, flush(0..40, at, &values)).expect("ours");
        assert_eq!(answer, StoreAnswer::Flushed { durable: position(at) }, "texts of {length} bytes");
        let StoreAnswer::Rows(page) = store.execute(REPLICA, all()).expect("ours") else { panic!("no rows") };
        assert!(page.rows.len() == 40 && page.rows.iter().all(|row| row.row.values == values), "texts of {length} bytes");
    }
}

#[test]
fn a_name_is_quoted_so_that_it_ends_where_it_ends() {
    assert_eq!(quoted("Select"), "`Select`");
    assert_eq!(quoted("a`b"), "`a``b`");
    assert_eq!(quoted("`; DROP DATABASE x; --"), "```; DROP DATABASE x; --`");
}

#[test]
fn a_password_in_a_url_is_refused_and_none_is_shown() {
    assert!(MysqlSettings::new("mysql://root:secret@localhost:3306/", "", PREFIX).is_err());
    assert!(MysqlSettings::new("postgres://root@localhost/", "", PREFIX).is_err());
    let settings = MysqlSettings::new("mysql://root@localhost:3306/", "secret", PREFIX).expect("fits");
    assert!(!format!("{settings:?}").contains("secret"));
    for name in ["", "Big", "a-b", "an_overlong_name_of_it"] {
        assert!(MysqlSettings::new("mysql://root@localhost:3306/", "", name).is_err(), "{name}");
    }
}

#[test]
fn a_database_that_nobody_answers_for_is_told_in_one_line() {
    let mut settings = MysqlSettings::new("mysql://root@127.0.0.1:1/", "", PREFIX).expect("fits");
    settings.patience = Duration::from_millis(300);
    let error = MysqlRows::open(&settings, IDENTITY, OwnerNumber(1), Box::new(|_| None)).expect_err("nobody is there");
    let words = error.to_string();
    assert!(words.contains("the database at 127.0.0.1:1 did not answer within 300ms") && words.contains("refused"), "{words}");
}

#[test]
fn a_store_of_another_is_told_by_its_name() {
    let Some(server) = Server::start() else { return };
    let mut venue = InDatabase::new(&server);
    drop(venue.open(IDENTITY, OwnerNumber(1)).expect("opens"));
    let error = venue.open(Identity { cluster: ClusterId(99), ..IDENTITY }, OwnerNumber(2)).expect_err("not ours");
    assert!(error.to_string().contains(&format!("`{}`", venue.settings.database)), "{error}");
    assert!(venue.server.is_running());
}

#[test]
fn a_database_that_came_back_as_an_older_copy_is_not_read() {
    let Some(mut server) = Server::start() else { return };
    let mut store = InDatabase::new(&server).open_with(1, &names()).expect("opens");
    assert_eq!(store.execute(REPLICA, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
    store.execute(REPLICA, flush([1], 1, &name())).expect("ours");
    let settings = server.settings(&store.state.control.prefix);
    let mut venue = InDatabase { server: &server, settings, left: Arc::default() };
    assert!(venue.copy(REPLICA));
    store.execute(REPLICA, flush([2], 2, &name())).expect("ours");
    venue.go_back(REPLICA);
    server.kill();
    server.start_again();
    for command in [all(), StoreCommand::OpenSnapshot(SnapshotId(1)), flush([3], 3, &name())] {
        assert_eq!(patiently(&mut store, command), StoreAnswer::Lost(LostReason::RowsBehind));
    }
}

#[test]
fn who_was_replaced_drops_nothing_and_reads_nothing_on_a_new_connection() {
    let Some(server) = Server::start() else { return };
    let venue = InDatabase::new(&server);
    let opened = || {
        let mut store = venue.open_with(1, &names()).expect("opens");
        assert_eq!(store.execute(REPLICA, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
        store.execute(REPLICA, flush([1], 1, &name())).expect("ours");
        store
    };
    let mut late = opened();
    let snapshot = SnapshotId(1);
    late.execute(REPLICA, StoreCommand::OpenSnapshot(snapshot)).expect("ours");
    let stage = StageId(1);
    let staged = StoreCommand::Stage { stage, position: position(5), chunk: Box::default(), last: true };
    assert_eq!(late.execute(REPLICA, staged).expect("ours"), StoreAnswer::Done);
    late.execute(REPLICA, StoreCommand::SwapStage { stage, position: position(5) }).expect("ours");
    assert_eq!(late.state.listed.dead.len(), 1, "it is read");
    drop(venue.open_with(2, &names()).expect("opens"));
    assert!(matches!(late.execute(REPLICA, StoreCommand::CloseSnapshot(snapshot)), Err(StoreError::TakenOver)));

    let mut late = opened();
    drop(venue.open_with(2, &names()).expect("opens"));
    assert_eq!(keys(late.execute(REPLICA, all()).expect("on the connection that it has")), [1]);
    let broken: Result<(), Trouble> = late.database.run(LONG_TIMEOUT, async |_, _| Err(Trouble::NoControl));
    assert!(broken.is_err());
    assert!(matches!(late.execute(REPLICA, all()), Err(StoreError::TakenOver)));
}

#[test]
fn no_more_rows_come_than_there_is_room_for() {
    let Some(server) = Server::start() else { return };
    let mut store = InDatabase::new(&server).open_with(1, &names()).expect("opens");
    assert_eq!(store.execute(REPLICA, StoreCommand::Create).expect("ours"), StoreAnswer::Done);
    store.execute(REPLICA, flush(0..400, 1, &[Value::Text("x".repeat(20_000).into())])).expect("ours");
    let came = |store: &mut MysqlRows| {
        let found = store.database.run(LONG_TIMEOUT, async |link, _| {
            let rows = link.rows(statement("SHOW SESSION STATUS LIKE 'Handler_read_next'".to_owned())).await?;
            let value: String = rows.first().ok_or(Trouble::NoControl)?.try_get_unchecked(1)?;
            Ok(value.parse::<usize>().expect("a number"))
        });
        found.expect("there")
    };
    let before = came(&mut store);
    let query = RowQuery::Range { range: KeyRange::ALL, limit: u32::MAX, bytes_max: 1_000_000 };
    let StoreAnswer::Rows(page) = store.execute(REPLICA, StoreCommand::Read(query)).expect("ours") else { panic!("no rows") };
    let (took, sent) = (page.rows.len(), came(&mut store) - before);
    assert!(page.more && (40..60).contains(&took) && sent < 90, "{took} of {sent}");
}
