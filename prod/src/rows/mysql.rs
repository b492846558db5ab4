//! The row store in a MySQL or MariaDB server: a database for every replica, the user's columns as real columns, so that any client of
//! the server shows them. For reading only: a value that was changed by another hand does not verify, and its replica is lost.
//!
//! A database that is down is [`StoreAnswer::Unavailable`], one that lost what it had is [`StoreAnswer::Lost`]. Every command may be
//! repeated after it failed half-way.

mod control;
mod layout;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use super::{RecoverRows, RowStore, StoreError};
use crate::{
    handle::MapWatch,
    log::file::Identity,
    mysql::{
        MysqlSettings,
        connection::{Database, Fuse, Link, Trouble},
    },
};
use control::{Control, Databases, Listed, Use};
use layout::Place;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use twinshard_core::{
    id::{OwnerNumber, Position, ReplicaId, SnapshotId, StageId},
    schema::Schema,
    storage::{FlushBatch, LostReason, RowQuery, SnapshotChunk, StoreAnswer, StoreCommand, ViewState},
};
use view::Applied;

/// The name of the control database, with which all others begin, unless it is told otherwise.
pub const PREFIX: &str = "twinshard";
/// How long reading or writing rows may take before the database counts as down. A guess.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for what makes or drops a database, or reads a whole view. A guess.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);

/// The most connections that reads of one server are spread over, the first of which is the one that writes. A guess: more than the
/// database of a small machine has processors for.
const READ_LINKS_MAX: usize = 4;

/// What a new replica's tables are made after.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The columns of its rows.
    pub schema: Schema,
    /// The name of its shard, as far as it is known.
    pub shard: Option<Box<str>>,
}

/// Tells the shape of a new replica; `None` as long as nobody knows it.
pub type Shapes = Box<dyn Fn(ReplicaId) -> Option<Shape> + Send>;

/// A snapshot that is open: a transaction on a connection of its own.
struct Snapshot {
    link: Link,
    place: Arc<Place>,
}

/// A row store in a MySQL or MariaDB server.
pub struct MysqlRows {
    database: Database,
    state: State,
    patience: Duration,
    command_timeout: Duration,
}

/// All but the connection.
struct State {
    control: Control,
    shapes: Shapes,
    /// Of the connection under which the rest was read.
    generation: u64,
    listed: Listed,
    /// By the names of their databases.
    places: BTreeMap<String, Arc<Place>>,
    /// How far each view has been seen to be: one that has less went back, as a database that was restored from an older copy.
    reached: BTreeMap<ReplicaId, Position>,
    snapshots: BTreeMap<(ReplicaId, SnapshotId), Snapshot>,
    /// Further connections, for reads that do not wait for each other. Made when they are needed, and kept.
    readers: Vec<Link>,
}

impl fmt::Debug for MysqlRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlRows").field("owner", &self.state.control.owner).finish_non_exhaustive()
    }
}

impl MysqlRows {
    /// Takes ownership for `owner`, and makes an empty store where there is none. Waits for a database that is down as long as the
    /// settings say. `shapes` is asked at every creation, until [`RowStore::follow`] gives a better source. Not on a thread that runs
    /// a runtime.
    ///
    /// # Errors
    /// If the database stays down, refuses us, or is another cluster's or server's.
    pub fn open(settings: &MysqlSettings, identity: Identity, owner: OwnerNumber, shapes: Shapes) -> Result<Self, StoreError> {
        Self::open_with(settings, identity, owner, shapes, Fuse::default())
    }

    fn open_with(settings: &MysqlSettings, identity: Identity, owner: OwnerNumber, shapes: Shapes, fuse: Fuse) -> Result<Self, StoreError> {
        let database = Database::new(settings.options.clone(), fuse)
            .map_err(|error| StoreError::Failed(format!("no runtime for the database: {error}")))?;
        let control = Control { prefix: settings.database.clone(), identity, owner };
        let listed = Listed::default();
        let (places, reached, snapshots) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let state = State { control, shapes, generation: 0, listed, places, reached, snapshots, readers: Vec::new() };
        let mut rows = Self { database, state, patience: settings.patience, command_timeout: COMMAND_TIMEOUT };
        let opened = rows.patiently(async |state, link| {
            state.control.take_over(link, false).await?;
            state.load(link).await?;
            state.sweep(link).await?;
            Ok(())
        })?;
        match opened {
            Ok(()) => Ok(rows),
            Err(reason) if reason != LostReason::Foreign => {
                Err(StoreError::Failed(format!("its control database is of no use: {reason:?}")))
            }
            Err(_) => Err(StoreError::Failed(format!(
                "the database `{}` at {} belongs to another cluster or server",
                rows.state.control.prefix,
                rows.database.address()
            ))),
        }
    }

    fn run<T>(&mut self, timeout: Duration, work: impl AsyncFnOnce(&mut State, &mut Link) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let state = &mut self.state;
        self.database.run(timeout, async |link, generation| {
            if state.generation != generation && state.generation > 0 {
                state.readers.clear();
                state.load(link).await?;
            }
            state.generation = generation;
            work(state, link).await
        })
    }

    /// What is answered to a command that could not be done.
    fn answer_to(&self, trouble: Trouble) -> Result<StoreAnswer, StoreError> {
        match trouble {
            Trouble::Lost(reason) => Ok(StoreAnswer::Lost(reason)),
            Trouble::NoControl => Ok(StoreAnswer::Lost(LostReason::RowsMissing)),
            Trouble::TakenOver => Err(StoreError::TakenOver),
            Trouble::Down(reason) if self.database.is_dead() => Err(StoreError::Failed(reason)),
            Trouble::Down(_) | Trouble::Refused(_) => Ok(StoreAnswer::Unavailable),
        }
    }

    /// As [`Self::run`], and waits for a database that is down.
    fn patiently<T>(
        &mut self,
        mut work: impl AsyncFnMut(&mut State, &mut Link) -> Result<T, Trouble>,
    ) -> Result<Result<T, LostReason>, StoreError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let reason = match self.run(LONG_TIMEOUT, &mut work) {
                Ok(done) => return Ok(Ok(done)),
                Err(Trouble::Lost(reason)) => return Ok(Err(reason)),
                Err(Trouble::NoControl) => return Ok(Err(LostReason::RowsMissing)),
                Err(Trouble::TakenOver) => return Err(StoreError::TakenOver),
                Err(Trouble::Refused(reason)) => {
                    return Err(StoreError::Failed(format!("the database at {} refuses: {reason}", self.database.address())));
                }
                Err(Trouble::Down(reason)) => reason,
            };
            if self.database.is_dead() || Instant::now() >= deadline {
                let (address, waited) = (self.database.address(), self.patience);
                return Err(StoreError::Failed(format!("the database at {address} did not answer within {waited:?}: {reason}")));
            }
            self.database.wait(deadline);
        }
    }
}

/// What is wrong with one replica is told of that one alone.
fn lost_or<T>(done: Result<T, Trouble>) -> Result<Result<T, LostReason>, Trouble> {
    match done {
        Ok(done) => Ok(Ok(done)),
        Err(Trouble::Lost(reason)) => Ok(Err(reason)),
        Err(trouble) => Err(trouble),
    }
}

impl RowStore for MysqlRows {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        let timeout = match &command {
            StoreCommand::Create | StoreCommand::Destroy | StoreCommand::Stage { .. } | StoreCommand::SwapStage { .. } => LONG_TIMEOUT,
            StoreCommand::Flush(_)
            | StoreCommand::Read(_)
            | StoreCommand::OpenSnapshot(_)
            | StoreCommand::ReadSnapshot { .. }
            | StoreCommand::ReadPinned { .. }
            | StoreCommand::CloseSnapshot(_) => self.command_timeout,
        };
        let done = self.run(timeout, async |state, link| state.work(link, replica, command).await);
        done.or_else(|trouble| self.answer_to(trouble))
    }

    fn read_all(&mut self, reads: Vec<(ReplicaId, RowQuery)>) -> Vec<Result<StoreAnswer, StoreError>> {
        let count = reads.len();
        match self.run(self.command_timeout, async |state, link| state.read_all(link, reads).await) {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            // What is wrong with the database is so for all of them.
            Err(trouble) => {
                let mut answers = vec![self.answer_to(trouble)];
                answers.resize_with(count, || Ok(StoreAnswer::Unavailable));
                answers
            }
        }
    }

    fn follow(&mut self, map: MapWatch) {
        self.state.shapes = Box::new(move |replica| {
            let map = map.borrow();
            let (_, map) = map.as_ref()?;
            let shard = map.replicas.get(&replica).and_then(|record| map.shards.get(&record.shard));
            Some(Shape { schema: map.schema.clone()?, shard: shard.map(|shard| shard.name.clone()) })
        });
    }
}

impl RecoverRows for MysqlRows {
    fn replicas(&mut self) -> Result<Vec<ReplicaId>, StoreError> {
        let listed = self.patiently(async |state, link| state.load(link).await)?;
        listed.map_err(|reason| StoreError::Failed(format!("{reason:?}")))?;
        Ok(self.state.listed.replicas.iter().filter(|(_, known)| known.view.is_some()).map(|(id, _)| *id).collect())
    }

    fn view(&mut self, replica: ReplicaId) -> Result<Result<ViewState, LostReason>, StoreError> {
        self.patiently(async |state, link| {
            let place = state.view(link, replica).await?;
            view::state(link, &place, replica).await
        })
    }

    fn complete_reset(&mut self, replica: ReplicaId, stage: StageId, base: Position) -> Result<Result<(), LostReason>, StoreError> {
        self.patiently(async |state, link| state.swap(link, replica, stage, base).await.map(|_| ()))
    }
}

impl State {
    /// Reads anew what the control database says.
    async fn load(&mut self, link: &mut Link) -> Result<(), Trouble> {
        self.places.clear();
        self.listed = match self.control.list(link).await {
            Err(Trouble::NoControl) => {
                link.raw("ROLLBACK".to_owned()).await?;
                Listed::default()
            }
            other => other?,
        };
        Ok(())
    }

    /// The view has come to this position.
    fn reach(&mut self, replica: ReplicaId, position: Position) -> Result<(), Trouble> {
        let reached = self.reached.entry(replica).or_default();
        if position < *reached {
            return Err(Trouble::Lost(LostReason::RowsBehind));
        }
        *reached = position;
        Ok(())
    }

    /// Drops what is dead and not read any more. What does not go now is tried again later.
    async fn sweep(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let read: BTreeSet<&str> = self.snapshots.values().map(|snapshot| &*snapshot.place.database).collect();
        let dead: Vec<String> = self.listed.dead.iter().filter(|name| !read.contains(&***name)).cloned().collect();
        for database in dead {
            match self.control.drop_dead(link, &database).await {
                Ok(()) => drop(self.listed.dead.remove(&database)),
                Err(Trouble::TakenOver) => return Err(Trouble::TakenOver),
                Err(trouble) => {
                    tracing::warn!(database, ?trouble, "a database that is not needed any more does not go; tried again later");
                    break;
                }
            }
        }
        Ok(())
    }

    async fn place(&mut self, link: &mut Link, database: &str, replica: ReplicaId) -> Result<Arc<Place>, Trouble> {
        if let Some(place) = self.places.get(database) {
            return Ok(Arc::clone(place));
        }
        let place = Arc::new(view::open(link, database, replica).await?);
        self.places.insert(database.to_owned(), Arc::clone(&place));
        Ok(place)
    }

    async fn view(&mut self, link: &mut Link, replica: ReplicaId) -> Result<Arc<Place>, Trouble> {
        let known = self.listed.replicas.get(&replica).and_then(|known| known.view.clone());
        let database = known.ok_or(Trouble::Lost(LostReason::RowsMissing))?;
        let is_new = !self.places.contains_key(&database);
        let place = self.place(link, &database, replica).await?;
        if is_new {
            // Of a connection that was made again, perhaps to a server that was restored.
            let Applied { position, .. } = view::applied(link, &place, replica, false).await?;
            self.reach(replica, position)?;
        }
        Ok(place)
    }

    async fn work(&mut self, link: &mut Link, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, Trouble> {
        match command {
            StoreCommand::Create => self.create(link, replica).await,
            StoreCommand::Destroy => self.destroy(link, replica).await,
            StoreCommand::Flush(batch) => self.flush(link, replica, &batch).await,
            StoreCommand::Read(query) => {
                let place = self.view(link, replica).await?;
                Ok(StoreAnswer::Rows(view::read(link, &place, replica, &query).await?))
            }
            StoreCommand::OpenSnapshot(snapshot) => {
                let place = self.view(link, replica).await?;
                let mut link = link.another().await?;
                link.raw("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY".to_owned()).await?;
                let Applied { position, .. } = view::applied(&mut link, &place, replica, false).await?;
                self.reach(replica, position)?;
                self.snapshots.insert((replica, snapshot), Snapshot { link, place });
                Ok(StoreAnswer::SnapshotOpened { position })
            }
            StoreCommand::ReadSnapshot { snapshot, cursor, bytes_max } => {
                // Taken out: a read that is cut short leaves a connection that is of no use.
                let Some(mut open) = self.snapshots.remove(&(replica, snapshot)) else { return Ok(StoreAnswer::Unavailable) };
                let chunk = view::chunk(&mut open.link, &open.place, replica, cursor, bytes_max as usize).await?;
                self.snapshots.insert((replica, snapshot), open);
                Ok(StoreAnswer::Chunk(Box::new(chunk)))
            }
            StoreCommand::ReadPinned { snapshot, query } => {
                let Some(mut open) = self.snapshots.remove(&(replica, snapshot)) else { return Ok(StoreAnswer::Unavailable) };
                let page = view::read(&mut open.link, &open.place, replica, &query).await?;
                self.snapshots.insert((replica, snapshot), open);
                Ok(StoreAnswer::Rows(page))
            }
            StoreCommand::CloseSnapshot(snapshot) => {
                if self.snapshots.remove(&(replica, snapshot)).is_some() {
                    self.sweep(link).await?;
                }
                Ok(StoreAnswer::Done)
            }
            StoreCommand::Stage { stage, position, chunk, last } => self.stage(link, replica, (stage, position), &chunk, last).await,
            StoreCommand::SwapStage { stage, position } => {
                let place = self.swap(link, replica, stage, position).await?;
                Ok(StoreAnswer::Swapped(Box::new(view::state(link, &place, replica).await?)))
            }
        }
    }

    /// Reads, spread over some connections. Nothing is written meanwhile, so each sees what was flushed before it was asked for.
    async fn read_all(&mut self, link: &mut Link, reads: Vec<(ReplicaId, RowQuery)>) -> Result<Vec<StoreAnswer>, Trouble> {
        let mut answers = vec![StoreAnswer::Unavailable; reads.len()];
        let mut places = Vec::new();
        for (replica, _) in &reads {
            places.push(lost_or(self.view(link, *replica).await)?);
        }
        // Given up with whatever is under way on them, if a read fails or is too late.
        let mut readers = std::mem::take(&mut self.readers);
        while readers.len() + 1 < READ_LINKS_MAX.min(reads.len()) {
            match link.another().await {
                Ok(reader) => readers.push(reader),
                Err(trouble) => {
                    // One is enough.
                    tracing::debug!(?trouble, "no further connection to the database");
                    break;
                }
            }
        }
        let left = RefCell::new(reads.iter().zip(places).zip(&mut answers));
        let lanes = std::iter::once(link).chain(&mut readers).map(async |link: &mut Link| {
            loop {
                let Some((((replica, query), place), answer)) = left.borrow_mut().next() else { return Ok::<(), Trouble>(()) };
                let read = match place {
                    Ok(place) => lost_or(view::read(link, &place, *replica, query).await)?,
                    Err(reason) => Err(reason),
                };
                *answer = read.map_or_else(StoreAnswer::Lost, StoreAnswer::Rows);
            }
        });
        futures_util::future::try_join_all(lanes).await?;
        self.readers = readers;
        Ok(answers)
    }

    async fn create(&mut self, link: &mut Link, replica: ReplicaId) -> Result<StoreAnswer, Trouble> {
        // Nobody knows the columns before the first map came.
        let Some(shape) = (self.shapes)(replica) else { return Ok(StoreAnswer::Unavailable) };
        let place = match self.control.make(link, replica, shape.clone()).await {
            Err(Trouble::NoControl) => {
                tracing::error!("the database lost everything; it begins anew, empty");
                link.raw("ROLLBACK".to_owned()).await?;
                self.control.take_over(link, true).await?;
                self.load(link).await?;
                self.control.make(link, replica, shape).await?
            }
            other => other?,
        };
        self.control.begin(link).await?;
        view::begin(link, &place, replica, Applied::EMPTY).await?;
        self.control.bury(link, replica).await?;
        self.control.set(link, &place.database, Use::View).await?;
        link.commit().await?;
        self.buried(replica);
        self.listed.replicas.insert(replica, Databases { view: Some(place.database.clone()), stage: None });
        self.sweep(link).await?;
        Ok(StoreAnswer::Done)
    }

    async fn destroy(&mut self, link: &mut Link, replica: ReplicaId) -> Result<StoreAnswer, Trouble> {
        self.snapshots.retain(|(id, _), _| *id != replica);
        match self.control.begin(link).await {
            // Nothing is there at all.
            Err(Trouble::NoControl) => {
                link.raw("ROLLBACK".to_owned()).await?;
                self.listed.replicas.remove(&replica);
                return Ok(StoreAnswer::Done);
            }
            other => other?,
        }
        self.control.bury(link, replica).await?;
        link.commit().await?;
        self.buried(replica);
        self.sweep(link).await?;
        Ok(StoreAnswer::Done)
    }

    /// The databases of a replica are dead.
    fn buried(&mut self, replica: ReplicaId) {
        self.reached.remove(&replica);
        let Some(Databases { view, stage }) = self.listed.replicas.remove(&replica) else { return };
        self.listed.dead.extend(view.into_iter().chain(stage.map(|(_, stage)| stage)));
    }

    async fn flush(&mut self, link: &mut Link, replica: ReplicaId, batch: &FlushBatch) -> Result<StoreAnswer, Trouble> {
        let place = self.view(link, replica).await?;
        self.control.begin(link).await?;
        let known = view::applied(link, &place, replica, true).await?;
        self.reach(replica, known.position)?;
        if batch.applied <= known.position {
            link.raw("ROLLBACK".to_owned()).await?;
            return Ok(StoreAnswer::Flushed { durable: known.position });
        }
        view::apply(link, &place, replica, batch).await?;
        let applied = Applied { position: batch.applied, session_floor: batch.session_floor, whole: true };
        view::set_applied(link, &place, replica, applied).await?;
        // Durable when it returns, unless the server is set otherwise.
        link.commit().await?;
        self.reach(replica, batch.applied)?;
        Ok(StoreAnswer::Flushed { durable: batch.applied })
    }

    async fn stage(
        &mut self,
        link: &mut Link,
        replica: ReplicaId,
        (stage, position): (StageId, Position),
        chunk: &SnapshotChunk,
        last: bool,
    ) -> Result<StoreAnswer, Trouble> {
        let known = self.listed.replicas.get(&replica).and_then(|known| known.stage.clone());
        let place = match known {
            Some((id, database)) if id == stage => self.place(link, &database, replica).await?,
            older => {
                let schema = match self.view(link, replica).await {
                    Ok(place) => Some(Shape { schema: place.schema().clone(), shard: None }),
                    Err(Trouble::Lost(_)) => None,
                    Err(trouble) => return Err(trouble),
                };
                let told = (self.shapes)(replica);
                let Some(shape) = told.or(schema) else { return Ok(StoreAnswer::Unavailable) };
                let place = Arc::new(self.control.make(link, replica, shape).await?);
                self.control.begin(link).await?;
                view::begin(link, &place, replica, Applied { position, whole: false, ..Applied::EMPTY }).await?;
                if let Some((_, older)) = &older {
                    self.control.set(link, older, Use::Dead).await?;
                }
                self.control.set(link, &place.database, Use::Stage(stage)).await?;
                link.commit().await?;
                self.listed.dead.extend(older.map(|(_, older)| older));
                self.listed.replicas.entry(replica).or_default().stage = Some((stage, place.database.clone()));
                self.places.insert(place.database.clone(), Arc::clone(&place));
                self.sweep(link).await?;
                place
            }
        };
        self.control.begin(link).await?;
        view::applied(link, &place, replica, true).await?;
        view::add(link, &place, replica, chunk).await?;
        view::set_applied(link, &place, replica, Applied { position, session_floor: chunk.session_floor, whole: last }).await?;
        link.commit().await?;
        Ok(StoreAnswer::Done)
    }

    /// Makes the stage the view, and gives the view.
    async fn swap(&mut self, link: &mut Link, replica: ReplicaId, stage: StageId, position: Position) -> Result<Arc<Place>, Trouble> {
        let known = self.listed.replicas.get(&replica).cloned().unwrap_or_default();
        self.control.begin(link).await?;
        if let Some((id, database)) = known.stage
            && id == stage
        {
            let place = self.place(link, &database, replica).await?;
            let staged = view::applied(link, &place, replica, true).await?;
            if staged.whole && staged.position == position {
                if let Some(view) = &known.view {
                    self.control.set(link, view, Use::Dead).await?;
                }
                self.control.set(link, &database, Use::View).await?;
                link.commit().await?;
                self.listed.dead.extend(known.view);
                self.listed.replicas.insert(replica, Databases { view: Some(database), stage: None });
                self.reached.insert(replica, staged.position);
                self.sweep(link).await?;
                return Ok(place);
            }
        }
        // Done before, or never whole.
        if let Some(view) = known.view {
            let place = self.place(link, &view, replica).await?;
            let Applied { position: applied, .. } = view::applied(link, &place, replica, true).await?;
            if applied >= position {
                link.raw("ROLLBACK".to_owned()).await?;
                self.reached.insert(replica, applied);
                return Ok(place);
            }
        }
        Err(Trouble::Lost(LostReason::RowsBehind))
    }
}
