//! What happened how often: every "never" of the checks is worth what these "sometimes" are. Never changes the run.

macro_rules! coverage {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Something that a good swarm makes happen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Sometimes {
            $($(#[$doc])* $variant,)*
        }

        impl Sometimes {
            /// All of them, in the order of reports.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

coverage! {
    /// Messages that were sent.
    Messages = "messages sent",
    /// Messages that were lost.
    MessagesLost = "messages lost",
    /// Messages that came twice.
    MessagesTwice = "messages delivered twice",
    /// A process died.
    Crashes = "processes killed",
    /// Records that were written and not durable when their process died.
    RecordsLost = "log records lost in crashes",
    /// Flushes that were visible and not durable when their process died.
    FlushesLost = "flushes lost in crashes",
    /// A disk was lost, whole or in part.
    DisksLost = "disks lost",
    /// A disk went back behind a life that the register knows.
    DisksOlder = "disks put back that are older",
    /// A disk was put back, and no life of the server was recorded since the copy.
    DisksPutBack = "disks put back in time",
    /// A replica reported itself as lost.
    ReplicasLost = "replicas reported lost",
    /// A client asked for a further page.
    Pages = "further pages asked for",
    /// A read went on in what its first page pinned.
    FurtherPages = "further pages read",
    /// What was pinned for a read was gone.
    ReadsCut = "reads cut",
    /// A process stood still.
    Pauses = "processes paused",
    /// A link was cut.
    Cuts = "links cut",
    /// The register answered nobody.
    RegisterUnavailable = "register answers missing",
    /// A compare-and-set met another version.
    RegisterConflicts = "compare-and-sets in conflict",
    /// A configuration was proposed.
    Proposed = "configurations proposed",
    /// A configuration became active.
    Activated = "configurations activated",
    /// The primary changed with it.
    Failovers = "primaries changed",
    /// A proposal was replaced by a newer one.
    Superseded = "proposals superseded",
    /// A member is new in a configuration.
    LearnersPromoted = "learners promoted",
    /// An installation took the log of another replica.
    ForeignSources = "installs from another source",
    /// A replica reported itself lame.
    Lame = "lame leaders reported",
    /// A source could not serve its log.
    SourcesFailed = "sources failed",
    /// A log was replaced by a snapshot.
    SnapshotsInstalled = "snapshots installed",
    /// A divergent suffix was dropped.
    Truncations = "suffixes truncated",
    /// A log was compacted.
    Compactions = "logs compacted",
    /// Entries were committed.
    Committed = "entries committed",
    /// A command was answered.
    Executed = "commands answered",
    /// An entry was not executed because it had been before.
    Repeated = "retries answered from memory",
    /// A session was evicted.
    SessionsEvicted = "sessions evicted",
    /// A command was refused by the state of its session.
    SessionsRefused = "commands refused by their session",
    /// A primary said that it is not.
    NotPrimary = "commands sent to the wrong replica",
    /// A linearizable read was answered.
    Linearizable = "linearizable reads",
    /// A linearizable read was answered by a backup.
    LinearizableAtBackup = "linearizable reads at backups",
    /// Another read was answered.
    WeakReads = "weaker reads",
    /// A read was refused.
    ReadsRefused = "reads refused by replicas",
    /// A client was answered.
    ClientsAnswered = "clients answered",
    /// A client was told that nobody knows.
    ClientsUnknown = "clients told unknown",
    /// A client came again under its key.
    ClientsRetried = "clients that came again",
    /// A change of servers was done.
    AdminDone = "changes of servers done",
    /// Replicas were moved for an operator.
    Relocated = "replicas moved for operators",
    /// A shard was given up, as an operator had accepted.
    GivenUp = "shards given up",
    /// A server was spawned or respawned.
    Spawned = "servers spawned",
    /// A balancer took control.
    Controlling = "controllers taking over",
    /// Two balancers believed that they control.
    Duels = "map writes by two controllers in turn",
    /// A shard could not be asked to come back: too many disks were lost.
    BeyondRepair = "shards beyond repair",
}

/// The counts of a run, or of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Self {
        Self(vec![0; Sometimes::ALL.len()])
    }
}

impl Coverage {
    /// It happened.
    pub fn hit(&mut self, what: Sometimes) {
        self.add(what, 1);
    }

    /// It happened so often.
    pub fn add(&mut self, what: Sometimes, count: u64) {
        self.0[what as usize] += count;
    }

    /// How often it happened.
    #[must_use]
    pub fn count(&self, what: Sometimes) -> u64 {
        self.0[what as usize]
    }

    /// Adds the counts of another run.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// Every count with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Sometimes::ALL.iter().map(|what| (what.name(), self.count(*what)))
    }
}
