//! A network in memory, for tests on paused time.

use crate::net::Network;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
};

/// Listeners by address. A later one takes the place of an earlier.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>>);

pub(crate) struct MemoryListener(String, mpsc::Receiver<DuplexStream>);

impl Network for Memory {
    type Stream = DuplexStream;
    type Listener = MemoryListener;

    async fn listen(&self, address: &str) -> io::Result<MemoryListener> {
        let (connect, accept) = mpsc::channel(1_000);
        let mut listeners = self.0.lock().expect("lock");
        // Port 0 is the next one that was never used.
        let address = if address.ends_with(":0") { format!("{address}{}", listeners.len()) } else { address.to_owned() };
        listeners.insert(address.clone(), connect);
        Ok(MemoryListener(address, accept))
    }

    async fn accept(listener: &mut MemoryListener) -> io::Result<DuplexStream> {
        match listener.1.recv().await {
            Some(stream) => Ok(stream),
            None => std::future::pending().await,
        }
    }

    fn local_address(listener: &MemoryListener) -> io::Result<String> {
        Ok(listener.0.clone())
    }

    async fn connect(&self, address: &str) -> io::Result<DuplexStream> {
        let listener = self.0.lock().expect("lock").get(address).cloned();
        let (ours, theirs) = duplex(1 << 16);
        match listener {
            Some(listener) if listener.send(theirs).await.is_ok() => Ok(ours),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}
