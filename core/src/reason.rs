//! Why a configuration was proposed: what the planner saw, and how it chose who leads. For people; decides nothing.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a configuration was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reason {
    /// What made another configuration necessary.
    pub cause: Cause,
    /// Why its primary.
    pub choice: Choice,
}

/// What made another configuration necessary. Where several things did, what weighs most: what is wrong with the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The shard has none yet, and all its replicas are ready.
    First,
    /// The shard has none yet, and a majority of its replicas is ready; the others were waited for long enough.
    FirstOfSome,
    /// The primary does not answer.
    PrimarySilent,
    /// The primary's replica is lost.
    PrimaryLost,
    /// The primary was restarted or stepped down (R15).
    PrimaryLame,
    /// The primary has promised an epoch that never came to be.
    PrimarySealed,
    /// The primary reaches too few members, by its own word.
    PrimaryCutOff,
    /// The primary's row store does not answer.
    StoreAway,
    /// An operator asked for another primary.
    PrimaryWished,
    /// The primary's replica is wanted elsewhere.
    PrimaryUnwanted,
    /// A member's replica is lost.
    MemberLost,
    /// A member's replica is wanted elsewhere.
    MemberUnwanted,
    /// A member does not answer.
    MemberSilent,
    /// A learner has caught up.
    LearnerReady,
    /// The proposal before cannot be finished: its epoch is over, or its source does not serve.
    EpochOver,
    /// The proposal before stood still.
    StoodStill,
    /// The proposal before stood still, as its primary does not reach all members: they are left out.
    Unreached,
    /// Too many members are gone and an operator accepted what is lost with them: those that answer promise that it is over.
    LossAccepted,
}

/// Why the primary of a proposed configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Choice {
    /// It leads already, and nothing speaks against it.
    Leads,
    /// An operator asked for it.
    Wished,
    /// Of those that can lead it has the newest log: it need fetch nothing.
    NewestLog,
    /// Others could lead as well; its server leads the fewest shards, or it is the first of those.
    LeadsLeast,
    /// No other can lead.
    OnlyOne,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "it is the first, and all replicas are ready",
            Self::FirstOfSome => "it is the first, and most replicas are ready",
            Self::PrimarySilent => "the primary does not answer",
            Self::PrimaryLost => "the primary's replica is lost",
            Self::PrimaryLame => "the primary was restarted or stepped down",
            Self::PrimarySealed => "the primary has promised an epoch that never came to be",
            Self::PrimaryCutOff => "the primary reaches too few members",
            Self::StoreAway => "the primary's row store does not answer",
            Self::PrimaryWished => "an operator asked for another primary",
            Self::PrimaryUnwanted => "the primary's replica is wanted elsewhere",
            Self::MemberLost => "a member's replica is lost",
            Self::MemberUnwanted => "a member's replica is wanted elsewhere",
            Self::MemberSilent => "a member does not answer",
            Self::LearnerReady => "a new replica has caught up",
            Self::EpochOver => "the proposal before cannot be finished",
            Self::StoodStill => "the proposal before stood still",
            Self::Unreached => "the proposal before stood still for members that its primary does not reach",
            Self::LossAccepted => "too many members are gone, and an operator accepted what is lost with them",
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leads => "it leads already",
            Self::Wished => "an operator asked for it",
            Self::NewestLog => "it has the newest log of those that can lead",
            Self::LeadsLeast => "of those that can lead as well it leads the fewest shards",
            Self::OnlyOne => "no other can lead",
        })
    }
}
