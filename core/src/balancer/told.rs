//! Whether the register went back. A server keeps the newest map that it was told of, and is told only of maps that the register held; so a
//! register that holds an older one, asked after the server spoke, has lost something, as a database that was restored from an older copy.
//! From it epochs and ids would be minted a second time. An answer that is lost or late raises no alarm: only reads that began after the
//! server spoke count, and a register shows to such a one all that it held before.

use crate::id::MapVersion;

/// The newest map that a server told of, and what reads of the register showed since.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    newest: MapVersion,
    /// How many operations on the register had begun by then.
    operation: u64,
    went_back: Option<(MapVersion, MapVersion)>,
}

impl Told {
    /// A server has a map of this version. Whether it is the newest so far.
    pub(super) fn hear(&mut self, version: MapVersion, operations_begun: u64) -> bool {
        let is_newer = version > self.newest;
        if is_newer {
            (self.newest, self.operation) = (version, operations_begun);
        }
        is_newer
    }

    /// That read of the register showed that version. Whether it is now known that it went back, and was not before.
    pub(super) fn shown(&mut self, operation: u64, held: MapVersion) -> bool {
        let is_found = self.went_back.is_none() && operation > self.operation && held < self.newest;
        if is_found {
            self.went_back = Some((self.newest, held));
        }
        is_found
    }

    /// From which version to which it went back. For as long as the balancer runs: that it is put right cannot be told from its content.
    pub(super) const fn went_back(&self) -> Option<(MapVersion, MapVersion)> {
        self.went_back
    }
}
