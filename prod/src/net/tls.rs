//! The network of the machine, with TLS where it is asked for. The handshake of an accepted connection is done as it is read and written,
//! so that who dawdles over it holds up nobody, and the deadlines of whoever reads hold for it, too.

use super::{Network, TokioNetwork};
use std::{
    fmt, io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    Accept, TlsAcceptor,
    rustls::{ClientConfig, ServerConfig, pki_types::ServerName},
};

pub use tokio_rustls::TlsConnector;

/// The first byte of every TLS connection: a record of the handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// The answer to who speaks HTTP where HTTPS is spoken.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 195\r\n\r\n\
{\"message\":\"<Error> This port speaks TLS: use https:// and trust the cluster's ca.pem\",\
\"status\":\"failure\",\"code\":\"tls\",\"applied\":\"no\",\"retryable\":false,\"hint\":\"use https://; nothing was changed\"}";

/// A network, in TLS if it was made so.
#[derive(Clone, Default)]
pub struct TlsNetwork {
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    /// Who connects, and the name that the other side must have.
    connector: Option<(TlsConnector, ServerName<'static>)>,
}

impl fmt::Debug for TlsNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.tls.is_some() { "TLS" } else { "plain" })
    }
}

impl TlsNetwork {
    /// One in TLS.
    #[must_use]
    pub fn new(server: ServerConfig, client: Option<(ClientConfig, ServerName<'static>)>) -> Self {
        let connector = client.map(|(config, name)| (Arc::new(config).into(), name));
        Self { tls: Some(Tls { acceptor: Arc::new(server).into(), connector }) }
    }
}

/// Listens, with or without TLS.
pub struct Listener {
    socket: TcpListener,
    acceptor: Option<TlsAcceptor>,
}

/// A connection, with or without TLS.
pub enum Stream {
    /// Without.
    Plain(TcpStream),
    /// It is not known yet what the other side speaks.
    Fresh(TcpStream, TlsAcceptor),
    /// In the handshake.
    Accepting(Box<Accept<TcpStream>>),
    /// With.
    Secured(Box<tokio_rustls::TlsStream<TcpStream>>),
    /// The other side speaks no TLS: it is told so, from that byte of the answer on, and what it says is thrown away.
    Refused(TcpStream, usize),
    /// The handshake failed.
    Broken,
}

impl Stream {
    /// Connects to `host:port` as a client that asks for TLS, and for that name.
    ///
    /// # Errors
    /// If there is no connection, or the other side is not who it should be.
    pub async fn connect(address: &str, connector: &TlsConnector, name: ServerName<'static>) -> io::Result<Self> {
        let stream = TokioNetwork.connect(address).await?;
        let secured = connector.connect(name, stream).await?;
        Ok(Self::Secured(Box::new(secured.into())))
    }

    /// Gets on with the handshake until the stream can be read and written.
    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self {
                Self::Fresh(stream, _) => {
                    let mut first = [0];
                    let mut read = ReadBuf::new(&mut first);
                    ready!(stream.poll_peek(context, &mut read))?;
                    let is_tls = matches!(read.filled(), [HANDSHAKE] | []);
                    *self = match std::mem::replace(self, Self::Broken) {
                        Self::Fresh(stream, acceptor) if is_tls => Self::Accepting(Box::new(acceptor.accept(stream))),
                        Self::Fresh(stream, _) => Self::Refused(stream, 0),
                        other => other,
                    };
                }
                Self::Accepting(accept) => match ready!(Pin::new(accept.as_mut()).poll(context)) {
                    Ok(stream) => *self = Self::Secured(Box::new(stream.into())),
                    Err(error) => {
                        *self = Self::Broken;
                        return Poll::Ready(Err(error));
                    }
                },
                Self::Refused(stream, written) => {
                    while let Some(left @ [_, ..]) = NOT_TLS.get(*written..) {
                        *written += ready!(Pin::new(&mut *stream).poll_write(context, left))?.max(1);
                    }
                    ready!(Pin::new(stream).poll_shutdown(context))?;
                    return Poll::Ready(Ok(()));
                }
                Self::Plain(_) | Self::Secured(_) => return Poll::Ready(Ok(())),
                Self::Broken => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_handshake(context))?;
        match this {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Secured(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Refused(stream, _) => {
                // Read to its end, since closing over what was not read would take the answer back; for the reader it ended at once.
                let mut thrown = [0; 4096];
                loop {
                    let mut read = ReadBuf::new(&mut thrown);
                    ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
                    if read.filled().is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            Self::Fresh(..) | Self::Accepting(_) | Self::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_handshake(context))?;
        match this {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Secured(stream) => Pin::new(stream).poll_write(context, bytes),
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_handshake(context))?;
        match this {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Self::Secured(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Secured(stream) => Pin::new(stream).poll_flush(context),
            // Nothing was written yet.
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) | Self::Fresh(stream, _) | Self::Refused(stream, _) => Pin::new(stream).poll_shutdown(context),
            Self::Secured(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Accepting(_) | Self::Broken => Poll::Ready(Ok(())),
        }
    }
}

impl Network for TlsNetwork {
    type Stream = Stream;
    type Listener = Listener;

    async fn listen(&self, address: &str) -> io::Result<Listener> {
        let acceptor = self.tls.as_ref().map(|tls| tls.acceptor.clone());
        Ok(Listener { socket: TokioNetwork.listen(address).await?, acceptor })
    }

    async fn accept(listener: &mut Listener) -> io::Result<Stream> {
        let stream = TokioNetwork::accept(&mut listener.socket).await?;
        Ok(match &listener.acceptor {
            Some(acceptor) => Stream::Fresh(stream, acceptor.clone()),
            None => Stream::Plain(stream),
        })
    }

    fn local_address(listener: &Listener) -> io::Result<String> {
        TokioNetwork::local_address(&listener.socket)
    }

    fn peer(stream: &Stream) -> Option<IpAddr> {
        match stream {
            Stream::Plain(stream) | Stream::Fresh(stream, _) | Stream::Refused(stream, _) => TokioNetwork::peer(stream),
            Stream::Secured(stream) => TokioNetwork::peer(stream.get_ref().0),
            Stream::Accepting(_) | Stream::Broken => None,
        }
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        match &self.tls {
            None => Ok(Stream::Plain(TokioNetwork.connect(address).await?)),
            Some(Tls { connector: Some((connector, name)), .. }) => Stream::connect(address, connector, name.clone()).await,
            Some(Tls { connector: None, .. }) => Err(io::Error::other("this network only accepts")),
        }
    }
}
