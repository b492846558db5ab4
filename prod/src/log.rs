//! The server's shared log: one append-only checksummed file for all replicas (DESIGN 4 and 7, R9). Never decides what to keep.

pub mod file;

use std::io;
use thiserror::Error;
use twinshard_core::storage::LogBatch;

/// A log that is open and owned.
pub trait Log: Send + 'static {
    /// Makes the batches durable, in order, under one fsync. Blocks.
    ///
    /// # Errors
    /// Any error means that nothing is known of what is durable: the process must stop and reopen the log (R9).
    fn persist(&mut self, batches: &[LogBatch]) -> Result<(), LogError>;
}

/// Why the log cannot go on.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file system said no.
    #[error("the log could not be written: {0}")]
    Io(#[from] io::Error),
    /// Somebody opened this store after us; it is theirs.
    #[error("another process has taken over this store")]
    TakenOver,
    /// The file does not begin like a log.
    #[error("the log's header does not verify: it is damaged or no log; move it away to start empty, and the replicas are refilled")]
    Unreadable,
    /// It belongs to another cluster or server.
    #[error("the log belongs to another cluster or server")]
    Foreign,
    /// It was written by a format that this program does not read.
    #[error("the log has format {found}, this program reads {expected}")]
    Format {
        /// What it has.
        found: u32,
        /// What we read.
        expected: u32,
    },
}
