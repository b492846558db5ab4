//! The network as the driver sees it: listen, accept, connect. Tokio's in production, turmoil's in simulation.

use std::{future::Future, io};
use tokio::io::{AsyncRead, AsyncWrite};

/// A network.
pub trait Network: Clone + Send + Sync + 'static {
    /// A connected stream.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// A listening socket.
    type Listener: Send + 'static;

    /// Listens on `host:port`.
    fn listen(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// The next connection.
    fn accept(listener: &mut Self::Listener) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// The `host:port` that others can connect to.
    ///
    /// # Errors
    /// If the socket is closed.
    fn local_address(listener: &Self::Listener) -> io::Result<String>;

    /// Connects to `host:port`. May hang: the caller sets a deadline.
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}
