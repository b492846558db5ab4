//! The network as the driver sees it: listen, accept, connect. Tokio's in production, turmoil's in simulation.

#[cfg(feature = "tls")]
pub mod tls;

use std::{future::Future, io, net::IpAddr};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

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

    /// Who is at the other end, where that has an address.
    fn peer(_stream: &Self::Stream) -> Option<IpAddr> {
        None
    }

    /// Connects to `host:port`. May hang: the caller sets a deadline.
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// The network of the machine that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioNetwork;

impl Network for TokioNetwork {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn listen(&self, address: &str) -> io::Result<TcpListener> {
        // Sets SO_REUSEADDR, so that a restart does not wait for the connections of its predecessor to time out.
        TcpListener::bind(address).await
    }

    async fn accept(listener: &mut TcpListener) -> io::Result<TcpStream> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn local_address(listener: &TcpListener) -> io::Result<String> {
        Ok(listener.local_addr()?.to_string())
    }

    fn peer(stream: &TcpStream) -> Option<IpAddr> {
        stream.peer_addr().ok().map(|address| address.ip())
    }

    async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
