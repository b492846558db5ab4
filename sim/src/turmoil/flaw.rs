//! What can be wrong with the world itself, planted to show that a run notices it. Never there unless a test asks for it.

use super::world::now;
use crate::staging::LOAD_FROM;
use axum::{Router, extract::Request, middleware};
use std::{io, sync::Arc, time::Duration};
use tokio::time::sleep;
use twinshard::{
    disk::{Disk, DiskFile, memory::MemoryDisk},
    story::wire::SESSION,
};

/// When a task of each server panics: the load has begun.
const PANICS_AFTER: Duration = Duration::from_millis(3_000);

/// What is wrong with the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// From the load on the disks of servers say that they synced and did not: power loss takes what was acknowledged.
    DisksLie,
    /// A task that a server spawned panics, and nobody waits for it.
    TaskPanics,
    /// Balancers take no notice of what a client's session has seen.
    TokensIgnored,
}

impl Flaw {
    /// A server's disk.
    pub(super) fn disk(flaw: Option<Self>, disk: MemoryDisk) -> Arc<dyn Disk> {
        match flaw {
            Some(Self::DisksLie) => Arc::new(LyingDisk(disk)),
            Some(Self::TaskPanics | Self::TokensIgnored) | None => Arc::new(disk),
        }
    }

    /// A balancer's HTTP.
    pub(super) fn router(flaw: Option<Self>, router: Router) -> Router {
        match flaw {
            Some(Self::TokensIgnored) => router.layer(middleware::map_request(|mut request: Request| async move {
                request.headers_mut().remove(SESSION);
                request
            })),
            Some(Self::DisksLie | Self::TaskPanics) | None => router,
        }
    }

    /// Called by each server as it starts.
    pub(super) fn server_starts(flaw: Option<Self>) {
        match flaw {
            Some(Self::TaskPanics) => {
                tokio::spawn(async {
                    sleep(PANICS_AFTER).await;
                    panic!("a task that nobody waits for");
                });
            }
            Some(Self::DisksLie | Self::TokensIgnored) | None => {}
        }
    }
}

#[derive(Debug)]
struct LyingDisk(MemoryDisk);

#[derive(Debug)]
struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile(self.0.open(name)?)))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.0.exists(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
}

impl DiskFile for LyingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        if now() < LOAD_FROM.0 { self.0.sync() } else { Ok(()) }
    }
}
