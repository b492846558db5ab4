//! Values with a checksum over themselves and the place they stand at, as both stores on disk keep them: a value that stands at another
//! place does not verify either.

use serde::{Serialize, de::DeserializeOwned};
use twinshard_core::{id::ReplicaId, value::Key};

/// Where a value of a replica stands.
pub(super) fn place(replica: ReplicaId, key: &[u8]) -> Vec<u8> {
    let mut place = replica.0.to_le_bytes().to_vec();
    place.extend_from_slice(key);
    place
}

/// Where a row of a replica stands.
pub(super) fn row_place(replica: ReplicaId, key: Key) -> Vec<u8> {
    place(replica, &key.0.to_le_bytes())
}

/// The checksum, then the value.
pub(super) fn encode(place: &[u8], value: &impl Serialize) -> Vec<u8> {
    // Plain data without maps of unknown length: it always serialises.
    let bytes = postcard::to_extend(value, vec![0; 4]).unwrap_or_default();
    let mut bytes = bytes;
    if let Some((sum, value)) = bytes.split_first_chunk_mut::<4>() {
        *sum = crc32c::crc32c_append(crc32c::crc32c(place), value).to_le_bytes();
    }
    bytes
}

/// The checksum alone.
#[cfg(feature = "mysql")]
pub(super) fn sum(place: &[u8], value: &impl Serialize) -> u32 {
    encode(place, value).first_chunk::<4>().map_or(0, |sum| u32::from_le_bytes(*sum))
}

/// The value, if it verifies.
pub(super) fn decode<T: DeserializeOwned>(place: &[u8], bytes: &[u8]) -> Option<T> {
    let (sum, value) = bytes.split_first_chunk::<4>()?;
    if crc32c::crc32c_append(crc32c::crc32c(place), value).to_le_bytes() != *sum {
        return None;
    }
    postcard::from_bytes(value).ok()
}
