//! Turmoil's simulated network behind the driver's trait. Addresses are `host:port` with turmoil's host names.

use std::io;
use turmoil::net::{TcpListener, TcpStream};
use twinshard::net::Network;

/// The simulated network, as the host sees it that runs now.
#[derive(Clone, Copy, Debug, Default)]
pub struct TurmoilNetwork;

/// A listening socket and the name that others reach it by.
#[expect(missing_debug_implementations, reason = "turmoil's listener has none")]
pub struct Listener {
    socket: TcpListener,
    address: String,
}

impl Network for TurmoilNetwork {
    type Stream = TcpStream;
    type Listener = Listener;

    async fn listen(&self, address: &str) -> io::Result<Listener> {
        let (_, port) = split(address)?;
        let socket = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(Listener { socket, address: address.to_owned() })
    }

    async fn accept(listener: &mut Listener) -> io::Result<TcpStream> {
        listener.socket.accept().await.map(|(stream, _)| stream)
    }

    fn local_address(listener: &Listener) -> io::Result<String> {
        Ok(listener.address.clone())
    }

    async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let (host, port) = split(address)?;
        TcpStream::connect((host, port)).await
    }
}

fn split(address: &str) -> io::Result<(&str, u16)> {
    let (host, port) = address.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
    Ok((host, port.parse().map_err(|_| io::ErrorKind::InvalidInput)?))
}
