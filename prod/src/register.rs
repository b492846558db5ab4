//! The metadata register: one versioned document with read and compare-and-set, linearizable and durable (DESIGN 3).

#[cfg(feature = "mysql")]
pub mod mysql;
pub mod redb;

use std::sync::Arc;
use thiserror::Error;
use twinshard_core::{
    id::{ClusterId, MapVersion},
    map::ClusterMap,
};

/// A register that is open.
pub trait Register: Send + 'static {
    /// What is in it. Blocks.
    ///
    /// # Errors
    /// It cannot be reached or read.
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError>;

    /// Replaces the map, durably, if the version is `expected`; the new version is `expected + 1`. `false` if it was another. Blocks.
    ///
    /// # Errors
    /// No answer: it may have been done or be done later.
    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError>;
}

impl Register for Box<dyn Register> {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        (**self).read()
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        (**self).compare_and_set(expected, map)
    }
}

/// Why the register does not answer.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// The storage under it failed.
    #[error("the metadata register failed: {0}")]
    Failed(String),
    /// What it holds does not verify.
    #[error("the metadata register is damaged: {0}")]
    Damaged(String),
}

/// The format of the value.
const FORMAT: u32 = 2;

/// Version and map in one value with a checksum.
fn encode(version: MapVersion, map: &ClusterMap) -> Result<Vec<u8>, RegisterError> {
    let mut value = postcard::to_extend(&(FORMAT, version, map), vec![0; 4]).map_err(|error| RegisterError::Failed(error.to_string()))?;
    let sum = crc32c::crc32c(&value[4..]);
    value[..4].copy_from_slice(&sum.to_le_bytes());
    Ok(value)
}

fn decode(value: &[u8]) -> Result<(MapVersion, ClusterMap), RegisterError> {
    let damaged = || RegisterError::Damaged("the map does not verify".to_owned());
    let (sum, bytes) = value.split_first_chunk::<4>().ok_or_else(damaged)?;
    if crc32c::crc32c(bytes).to_le_bytes() != *sum {
        return Err(damaged());
    }
    // The format stands first, so that another is told from damage.
    let (format, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(|_| damaged())?;
    if format != FORMAT {
        return Err(RegisterError::Failed(format!("it has format {format}, this program reads {FORMAT}")));
    }
    postcard::from_bytes(rest).map_err(|_| damaged())
}

/// Refuses a register of another cluster.
fn check_cluster(map: &ClusterMap, cluster: ClusterId) -> Result<(), RegisterError> {
    if map.cluster == cluster {
        return Ok(());
    }
    Err(RegisterError::Failed(format!("it belongs to the cluster {}, not to {cluster}", map.cluster)))
}
