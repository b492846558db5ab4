//! The simulated metadata register: linearizable and durable, with an answer that may be lost, late or refused. Never loses a write
//! that it has made.

use crate::{
    faults::{Fault, Place, RegisterFault, is_in_group},
    keyed::{Draw, Keyed, Purpose},
};
use std::sync::Arc;
use twinshard_core::{effect::RegisterAnswer, id::MapVersion, map::ClusterMap, time::Duration};

/// How long a balancer waits for a register that does not answer before it takes it for unavailable.
const TIMEOUT: Duration = Duration::from_millis(250);
/// How late a write may land whose answer nobody waits for any more.
const LATE_MAX: Duration = Duration::from_millis(2_500);

/// What is asked of it.
#[derive(Clone, Debug)]
pub enum Ask {
    /// What is in it?
    Read,
    /// Replace it if the version is this.
    Cas {
        /// The version it must have.
        expected: MapVersion,
        /// The new map.
        map: Arc<ClusterMap>,
    },
    /// Somebody else writes it as it is.
    Touch,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// After how long the work is done; `None` if never.
    pub effect: Option<Duration>,
    /// After how long, from the work on, its answer arrives; `None` if it is lost.
    pub answer: Option<Duration>,
    /// After how long the asker is told that nobody answered.
    pub unavailable: Option<Duration>,
    /// Whether somebody else writes first.
    pub touched: bool,
}

/// The register.
#[derive(Clone, Debug)]
pub struct SimRegister {
    /// The version.
    pub version: MapVersion,
    /// The map.
    pub map: Arc<ClusterMap>,
}

impl SimRegister {
    /// What becomes of a balancer's `number`-th request under the faults that are open now.
    pub fn fate<'a>(keyed: Keyed, asker: Place, number: u64, open: impl Iterator<Item = &'a Fault>) -> Fate {
        let mut draw = keyed.draw(Purpose::Register, [asker.code(), number]);
        let latency = |draw: &mut Draw| Duration(draw.between(100_000, 2_500_000));
        let mut fate = Fate { effect: Some(latency(&mut draw)), answer: Some(latency(&mut draw)), unavailable: None, touched: false };
        for fault in open {
            if let Fault::Split { servers, balancers, register } = fault
                && is_in_group(*servers, *balancers, asker) != *register
            {
                return Fate { unavailable: Some(TIMEOUT), ..Fate::default() };
            }
            if let Fault::Register { place, fault, ppm } = fault {
                let mut own = draw.split(*fault as u64);
                if (*place != Place::Others && *place != asker) || !own.chance(*ppm) {
                    continue;
                }
                match fault {
                    RegisterFault::LostReply => (fate.answer, fate.unavailable) = (None, Some(TIMEOUT)),
                    RegisterFault::Late => {
                        fate.effect = Some(Duration(TIMEOUT.0 / 2 + own.below(LATE_MAX.0)));
                        (fate.answer, fate.unavailable) = (None, Some(TIMEOUT));
                    }
                    RegisterFault::Unavailable => {
                        fate = Fate { unavailable: Some(Duration(own.between(100_000, TIMEOUT.0))), ..Fate::default() };
                    }
                    RegisterFault::Touched => fate.touched = true,
                }
            }
        }
        fate
    }

    /// Does what is asked.
    pub fn execute(&mut self, ask: Ask) -> RegisterAnswer {
        match ask {
            Ask::Read => RegisterAnswer::Read { version: self.version, map: Arc::clone(&self.map) },
            Ask::Cas { expected, map } if expected == self.version => {
                self.version = self.version.next();
                self.map = map;
                RegisterAnswer::Swapped
            }
            Ask::Cas { .. } => RegisterAnswer::Conflict,
            Ask::Touch => {
                self.version = self.version.next();
                RegisterAnswer::Swapped
            }
        }
    }
}
