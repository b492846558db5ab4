//! redb on our disks. Its files are checked whole when they are opened: later it believes what it reads, so that a key that rotted would be
//! a row that is missing. It may panic on pages that it does not expect; no panic passes from here.

use super::DiskFile;
use redb::{Builder, Database};
use std::{
    io,
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// What went wrong with a redb file.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The file system failed, or another process has the file.
    Io(String),
    /// The file does not hold what was written.
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::Io("another process has it open".to_owned()),
            // It is no redb file, or ends too soon.
            redb::Error::Io(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                Self::Damaged(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error.to_string()),
            error @ (redb::Error::PreviousIo | redb::Error::DatabaseClosed) => Self::Io(error.to_string()),
            redb::Error::Corrupted(words) => Self::Damaged(words),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Runs work on a redb file.
pub(crate) fn guarded<T, F: From<Fault>>(work: impl FnOnce() -> Result<T, F>) -> Result<T, F> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Fault::Damaged("it does not read".to_owned()).into()))
}

/// An open redb file.
pub(crate) struct Embedded(Option<Database>);

impl Embedded {
    /// Opens the file, makes a database of an empty one, and reads all of it.
    pub(crate) fn open(backend: impl redb::StorageBackend) -> Result<Self, Fault> {
        guarded(|| Ok(Self(Some(Builder::new().set_check_integrity_on_open(true).create_with_backend(backend)?))))
    }
}

impl Deref for Embedded {
    type Target = Database;

    #[allow(clippy::expect_used, reason = "only a drop takes it")]
    fn deref(&self) -> &Database {
        self.0.as_ref().expect("it is open")
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let database = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::error!("a redb file was not closed well: it is looked through when it is opened again");
        }
    }
}

/// A file as redb wants it.
#[derive(Debug)]
pub(crate) struct RedbFile(pub(crate) Arc<dyn DiskFile>);

impl redb::StorageBackend for RedbFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
