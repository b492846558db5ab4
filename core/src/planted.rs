//! Bugs planted on purpose, so that every check proves that it can fail. Compiled in only with the feature `planted`, which the
//! simulator alone asks for; without it [`Planted::has`] is the constant `false`.

use serde::{Deserialize, Serialize};

macro_rules! bugs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Bug {
            $($(#[$doc])* $variant,)*
        }

        impl Bug {
            /// Every bug, in the order of the list.
            #[cfg(feature = "planted")]
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            #[cfg(feature = "planted")]
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

bugs! {
    /// A replica keeps its id after its disk was lost and is opened empty.
    KeepsIdAfterLosingDisk = "planted-keeps-id-after-losing-disk",
    /// A follower acknowledges an append before it is durable.
    AcknowledgesBeforeDurable = "planted-acknowledges-before-durable",
    /// The primary commits an entry of an older epoch by counting.
    CommitsOldEpochByCounting = "planted-commits-old-epoch-by-counting",
    /// The primary answers a read index without a round.
    ReadsWithoutRound = "planted-reads-without-round",
    /// Reads that arrive after a round's first message share it.
    LaterReadsShareRound = "planted-later-reads-share-round",
    /// A retried command is executed again.
    AppliesRetryTwice = "planted-applies-retry-twice",
    /// The controller is content with one promise less than the seal quorum.
    SealsOneTooFew = "planted-seals-one-too-few",
    /// The controller activates without the compare-and-set.
    ActivatesWithoutCas = "planted-activates-without-cas",
    /// A restarted primary goes on in its epoch.
    RestartedPrimaryGoesOn = "planted-restarted-primary-goes-on",
    /// A learner's acknowledgement counts towards the write quorum.
    CountsLearners = "planted-counts-learners",
    /// A snapshot leaves the session table out.
    SnapshotWithoutSessions = "planted-snapshot-without-sessions",
    /// A primary commits and answers before it is activated.
    ServesUnactivated = "planted-serves-unactivated",
    /// R1: a snapshot drops the log first and installs in a later persist.
    SnapshotInTwoPersists = "planted-r1-snapshot-in-two-persists",
    /// R2: the commit index is used beyond what was verified.
    CommitsUnverified = "planted-r2-commits-unverified",
    /// R3: a promise is answered before the writes ordered before it are durable.
    PromisesBeforeWrites = "planted-r3-promises-before-writes",
    /// R10: a controller acts on its own intention after a compare-and-set whose reply was lost.
    ActsOnIntention = "planted-r10-acts-on-intention",
    /// R11: the members of pending are sealed, not those of current.
    SealsPending = "planted-r11-seals-pending",
    /// R12: if the best source cannot serve, the second best of the same set is taken.
    TakesSecondBestSource = "planted-r12-takes-second-best-source",
    /// R13: a second install of an epoch changes its source.
    InstallsTwice = "planted-r13-installs-twice",
    /// R14: the barrier is durable on the write quorum only.
    InstallsOnWriteQuorum = "planted-r14-installs-on-write-quorum",
    /// R15: the controller remembers that a primary knows it is active, and does not act on lame.
    IgnoresLame = "planted-r15-ignores-lame",
    /// R17: a delayed create brings an old id back empty.
    CreatesAgain = "planted-r17-creates-again",
    /// R23: a balancer goes on with its old session after a restart.
    ReusesSession = "planted-r23-reuses-session",
    /// A replica takes itself for lost after it swapped a snapshot in, when more was committed meanwhile.
    LosesItselfAfterSwap = "planted-loses-itself-after-swap",
    /// A replica takes itself for lost when it hears a higher epoch while a snapshot is swapped in.
    LosesItselfAtHigherEpoch = "planted-loses-itself-at-higher-epoch",
    /// A shard is given up because too few of its members answer right now.
    GivesUpOnGlance = "planted-gives-up-on-glance",
    /// An operator is told that a change is done once the map wants it.
    AnswersOnWish = "planted-answers-on-wish",
    /// A drain leaves the last replica where it is.
    DrainLeavesOne = "planted-drain-leaves-one",
    /// A member leaves as soon as it is wanted elsewhere, before the new one serves.
    MoveDropsFirst = "planted-move-drops-first",
    /// A write that waited for the register goes to the shards of another schema than it was checked against.
    RoutesUnchecked = "planted-routes-unchecked",
    /// R24: the session floor is not kept: an evicted session is taken for a new one.
    ForgetsFloor = "planted-r24-forgets-floor",
    /// R26: a server takes part before it has read its own life in the register.
    ServesUnrecorded = "planted-r26-serves-unrecorded",
    /// R26: a server whose disk is older than the recorded one keeps its replicas.
    TrustsOlderDisk = "planted-r26-trusts-older-disk",
    /// R26: the controller records a life whose disk has not seen the recorded one.
    RecordsAnyLife = "planted-r26-records-any-life",
    /// What is not flushed when a read's state is pinned is left out of its further pages.
    PinsWithoutOverlay = "planted-pins-without-overlay",
    /// The further pages of a read are asked of any replica, at its own index.
    ContinuesElsewhere = "planted-continues-elsewhere",
}

/// Which bug is planted in a machine, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Planted {
    #[cfg(feature = "planted")]
    bug: Option<Bug>,
}

impl Planted {
    /// No bug.
    pub const NONE: Self = Self {
        #[cfg(feature = "planted")]
        bug: None,
    };

    /// With this bug.
    #[cfg(feature = "planted")]
    #[must_use]
    pub const fn with(bug: Bug) -> Self {
        Self { bug: Some(bug) }
    }

    /// Whether this bug is planted. Constant `false` without the feature.
    #[cfg(feature = "planted")]
    #[must_use]
    pub fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether this bug is planted. Constant `false` without the feature.
    #[cfg(not(feature = "planted"))]
    #[must_use]
    pub const fn has(self, _: Bug) -> bool {
        false
    }
}
