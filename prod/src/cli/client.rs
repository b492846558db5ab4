//! A small HTTP/1.1 client, in TLS where the URL says so, for the program's own commands: one keep-alive connection, a deadline for every request, a new connection
//! after any failure.

use crate::{
    net::{
        Network, TokioNetwork,
        tls::{Stream, TlsConnector},
    },
    secret::Secret,
    tls::{TlsError, trusting},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{path::Path, time::Duration};
use thiserror::Error;
use tokio::{task::JoinHandle, time::timeout};
use tokio_rustls::rustls::pki_types::ServerName;

/// How long a connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request got no answer. It may have taken effect unless it never left.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The URL is not `http://host:port` or `https://host:port`.
    #[error("'{0}' is not a URL of the form http://host:port or https://host:port")]
    Url(String),
    /// Nothing says who may certify the other side.
    #[error("https:// needs --ca FILE, the cluster's ca.pem, to know whom to trust")]
    NoAuthority,
    /// The file that says so cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody listens, or the connect failed: nothing was sent.
    #[error("could not connect to {address}: {error}")]
    Connect {
        /// Whereto.
        address: String,
        /// Why.
        error: std::io::Error,
    },
    /// The connection broke after the request was sent.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is not JSON.
    #[error("the answer is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not.
    pub fn json(&self) -> Result<Value, ClientError> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// A client of one address.
pub struct Client {
    address: String,
    /// In TLS, the name that the other side must have.
    name: Option<ServerName<'static>>,
    connector: Option<TlsConnector>,
    timeout: Duration,
    /// What it shows of itself.
    authorization: Option<HeaderValue>,
    connection: Option<(SendRequest<Full<Bytes>>, JoinHandle<()>)>,
}

impl Client {
    /// Whether this is the URL of a balancer, for the command line.
    ///
    /// # Errors
    /// If it is not `http://host:port` or `https://host:port`.
    pub fn check_url(url: &str) -> Result<String, ClientError> {
        Self::new(url, Duration::ZERO).map(|_| url.to_owned())
    }

    /// A client of `http://host:port`, or with [`Self::trusting`] of `https://host:port`; every request ends within `timeout`.
    ///
    /// # Errors
    /// If the URL is of another form.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, ClientError> {
        let secured = url.strip_prefix("https://");
        let rest = secured.or_else(|| url.strip_prefix("http://")).unwrap_or(url).trim_end_matches('/');
        let bad = || ClientError::Url(url.to_owned());
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = secured.map(|_| ServerName::try_from(name).map_err(|_| bad())).transpose()?;
        Ok(Self { address: rest.to_owned(), name, connector: None, timeout, authorization: None, connection: None })
    }

    /// Trusts the authorities in this file.
    ///
    /// # Errors
    /// If it holds none.
    pub fn trusting(mut self, file: &Path) -> Result<Self, TlsError> {
        self.connector = Some(trusting(file)?);
        Ok(self)
    }

    /// Shows this token with every request.
    #[must_use]
    pub fn with_token(mut self, token: &Secret) -> Self {
        self.authorization = Some(token.bearer());
        self
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send(&mut self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Answer, ClientError> {
        let limit = self.timeout;
        // Whatever is left of a request that failed must not be taken for the answer to the next.
        let connection = self.connection.take();
        let work = async {
            let (mut sender, task) = match connection {
                Some((sender, task)) if !sender.is_closed() => (sender, task),
                _ => self.connect().await?,
            };
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, &self.address)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.unwrap_or_default())))
                .map_err(|_| ClientError::Url(path.to_owned()))?;
            if let Some(authorization) = &self.authorization {
                request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
            }
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            Ok((Answer { status, body }, (sender, task)))
        };
        match timeout(limit, work).await {
            Ok(Ok((answer, connection))) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ClientError::Timeout(limit)),
        }
    }

    /// Sends JSON and expects JSON.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn json(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), ClientError> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let answer = self.send(method, path, body).await?;
        let value = answer.json()?;
        Ok((answer.status, value))
    }

    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, JoinHandle<()>), ClientError> {
        let failed = |error| ClientError::Connect { address: self.address.clone(), error };
        let connect = async {
            match (&self.name, &self.connector) {
                (None, _) => TokioNetwork.connect(&self.address).await.map(Stream::Plain).map_err(failed),
                (Some(name), Some(connector)) => Stream::connect(&self.address, connector, name.clone()).await.map_err(failed),
                (Some(_), None) => Err(ClientError::NoAuthority),
            }
        };
        let stream = match timeout(CONNECT_TIMEOUT, connect).await {
            Ok(stream) => stream?,
            Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
        };
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped or the connection breaks, which the sender's next use reports.
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok((sender, task))
    }
}
