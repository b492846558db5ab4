//! Faults as windows: what goes wrong, from when, for how long, where. Plain data; the worlds carry them out.

use core::fmt;
use twinshard_core::{
    id::ServerId,
    time::{Duration, Instant},
};

/// One end of a link, as a plan names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A server. Ids are minted in order, so the plan can name servers that do not exist yet.
    Server(ServerId),
    /// A balancer, by its place, over all its restarts.
    Balancer(usize),
    /// Everyone else.
    Others,
    /// Every client.
    Clients,
    /// The server that leads a shard when the window opens; shards by their place in the plan.
    PrimaryOf(usize),
    /// The first server that holds a member without leading.
    BackupOf(usize),
    /// All of those.
    BackupsOf(usize),
    /// The balancer that controls when the window opens.
    Controller,
    /// Every server.
    Servers,
    /// Every balancer.
    Balancers,
}

impl Place {
    /// A number of its own, for keys and hashes.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Server(id) => 1_000 + id.0,
            Self::Balancer(place) => 1 + place as u64,
            Self::Others => 0,
            Self::Clients => 500,
            // Roles have become nodes before anything is drawn.
            Self::PrimaryOf(_) | Self::BackupOf(_) | Self::BackupsOf(_) | Self::Controller | Self::Servers | Self::Balancers => 501,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(id) => id.fmt(f),
            Self::Balancer(place) => write!(f, "balancer {place}"),
            Self::Others => f.write_str("everyone else"),
            Self::Clients => f.write_str("the clients"),
            Self::PrimaryOf(shard) => write!(f, "the primary of shard {shard}"),
            Self::BackupOf(shard) => write!(f, "a backup of shard {shard}"),
            Self::BackupsOf(shard) => write!(f, "the backups of shard {shard}"),
            Self::Controller => f.write_str("the controller"),
            Self::Servers => f.write_str("every server"),
            Self::Balancers => f.write_str("every balancer"),
        }
    }
}

/// Which way a cut link does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Neither way.
    Both,
    /// From the first to the second.
    Forth,
    /// From the second to the first.
    Back,
}

/// What a disk loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// Everything.
    Disk,
    /// The log; the rows are there.
    Log,
    /// The rows; the log is there.
    Rows,
}

/// What a register does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegisterFault {
    /// It does the work and its answer is lost.
    LostReply,
    /// It says nothing, and does the work later.
    Late,
    /// It does nothing and says so.
    Unavailable,
    /// Somebody else writes between: the version moves.
    Touched,
}

/// Something that goes wrong while its window lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Messages to or from a place (`Others`: all) suffer. Chances in a million.
    Weather {
        /// Whose.
        place: Place,
        /// Lost.
        loss_ppm: u32,
        /// Delivered twice.
        duplicate_ppm: u32,
        /// Delayed by up to `straggler_max`.
        straggler_ppm: u32,
        /// The longest delay.
        straggler_max: Duration,
    },
    /// A link does not work.
    Cut {
        /// One end.
        a: Place,
        /// The other.
        b: Place,
        /// Which way.
        way: Way,
    },
    /// The nodes are in two groups that do not hear each other; the register is with one of them.
    Split {
        /// One bit for each server, by id: those of the one group.
        servers: u64,
        /// One bit for each balancer, by place: those of the one group.
        balancers: u64,
        /// Whether the register is with that group.
        register: bool,
    },
    /// A process dies at the start and is started again at the end, unless somebody did before.
    Crash {
        /// Which.
        place: Place,
    },
    /// A process dies at the start and cannot be started before the end. A balancer is then, by its supervisor; a server when a
    /// balancer asks for it.
    Down {
        /// Which.
        place: Place,
        /// Whether its disk is gone too.
        loses_disk: bool,
    },
    /// All processes die at the start and are started again at the end.
    PowerLoss,
    /// A server dies at the start, loses what it had, and is started again at the end.
    DiskLoss {
        /// Which.
        server: ServerId,
        /// What it loses.
        loss: Loss,
    },
    /// A server dies for a moment at the start, when somebody copies its disk; at the end it dies again, and the copy takes the place of
    /// the disk, so that it is as old as the window is long.
    DiskBack {
        /// Which.
        server: ServerId,
    },
    /// What the row store of a server holds of one replica is damaged at the start.
    Rot {
        /// Which server.
        server: ServerId,
        /// Which of its replicas.
        pick: u64,
    },
    /// A process stands still; what comes for it waits.
    Pause {
        /// Which.
        place: Place,
    },
    /// The fsyncs of a server take up to so long.
    SlowDisk {
        /// Which.
        place: Place,
        /// The longest.
        sync_max: Duration,
    },
    /// The row store of a server answers `Unavailable`.
    StoreDown {
        /// Which.
        place: Place,
    },
    /// The register misbehaves towards one balancer (`Others`: all).
    Register {
        /// Whom it serves badly.
        place: Place,
        /// How.
        fault: RegisterFault,
        /// How often, in a million.
        ppm: u32,
    },
    /// The provisioner fails.
    ProvisionFails,
    /// The next starts of a server fail.
    StartsFail {
        /// Whose (`Servers`: anyone's).
        place: Place,
        /// How many.
        times: u32,
    },
}

/// A fault and its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// When it begins.
    pub start: Instant,
    /// How long it lasts.
    pub length: Duration,
    /// What.
    pub fault: Fault,
}

impl Fault {
    /// Whom it strikes.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        match self {
            Self::Weather { place, .. }
            | Self::Crash { place }
            | Self::Down { place, .. }
            | Self::Pause { place }
            | Self::SlowDisk { place, .. }
            | Self::StoreDown { place }
            | Self::Register { place, .. }
            | Self::StartsFail { place, .. } => vec![*place],
            Self::Cut { a, b, .. } => vec![*a, *b],
            Self::DiskLoss { server, .. } | Self::DiskBack { server } | Self::Rot { server, .. } => vec![Place::Server(*server)],
            Self::PowerLoss | Self::Split { .. } => vec![Place::Servers, Place::Balancers],
            Self::ProvisionFails => vec![Place::Servers],
        }
    }
}

/// Whether a place is in the group of a split.
#[must_use]
pub const fn is_in_group(servers: u64, balancers: u64, place: Place) -> bool {
    match place {
        Place::Server(id) => id.0 < 64 && servers >> id.0 & 1 == 1,
        Place::Balancer(place) => place < 64 && balancers >> place & 1 == 1,
        _ => false,
    }
}

/// Whether a message from `from` to `to` falls to this cut.
#[must_use]
pub fn is_cut(a: Place, b: Place, way: Way, from: Place, to: Place) -> bool {
    let (forth, back) = (matches(a, b, from, to), matches(a, b, to, from));
    match way {
        Way::Both => forth || back,
        Way::Forth => forth,
        Way::Back => back,
    }
}

/// Whether a message from `from` to `to` goes from `a` to `b`, where `Others` is whoever is not the other end.
fn matches(a: Place, b: Place, from: Place, to: Place) -> bool {
    let side = |end: Place, other: Place, place: Place| {
        if end == Place::Others { place != other && place != Place::Clients } else { place == end }
    };
    side(a, b, from) && side(b, a, to)
}

impl Window {
    /// When it is over.
    #[must_use]
    pub fn end(&self) -> Instant {
        self.start + self.length
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}: {}", self.start, self.length, self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weather { place, loss_ppm, duplicate_ppm, straggler_ppm, straggler_max } => write!(
                f,
                "weather at {place}: {loss_ppm} ppm lost, {duplicate_ppm} ppm twice, {straggler_ppm} ppm up to {straggler_max} late"
            ),
            Self::Cut { a, b, way: Way::Both } => write!(f, "{a} and {b} are cut off"),
            Self::Cut { a, b, way: Way::Forth } => write!(f, "nothing gets from {a} to {b}"),
            Self::Cut { a, b, way: Way::Back } => write!(f, "nothing gets from {b} to {a}"),
            Self::Split { servers, balancers, register } => {
                write!(f, "a group of its own:")?;
                (0..64).filter(|bit| servers >> bit & 1 == 1).try_for_each(|bit| write!(f, " s{bit}"))?;
                (0..64).filter(|bit| balancers >> bit & 1 == 1).try_for_each(|bit| write!(f, " balancer {bit}"))?;
                f.write_str(if *register { ", with the register" } else { ", without the register" })
            }
            Self::Crash { place } => write!(f, "{place} is down"),
            Self::PowerLoss => f.write_str("everything is down"),
            Self::DiskLoss { server, loss } => write!(f, "{server} is down and loses its {loss:?}"),
            Self::DiskBack { server } => write!(f, "{server} gets back the disk that it had at the start"),
            Self::Rot { server, pick } => write!(f, "{server} has damaged rows of replica {pick}"),
            Self::Pause { place } => write!(f, "{place} stands still"),
            Self::SlowDisk { place, sync_max } => write!(f, "{place} syncs in up to {sync_max}"),
            Self::StoreDown { place } => write!(f, "the row store of {place} does not answer"),
            Self::Register { place, fault, ppm } => write!(f, "the register towards {place}: {fault:?}, {ppm} ppm"),
            Self::ProvisionFails => f.write_str("the provisioner fails"),
            Self::Down { place, loses_disk: false } => write!(f, "{place} is down"),
            Self::Down { place, loses_disk: true } => write!(f, "{place} is down and its disk is gone"),
            Self::StartsFail { place, times } => write!(f, "the next {times} starts of {place} fail"),
        }
    }
}
