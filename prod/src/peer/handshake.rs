//! The handshake: both sides name themselves and each other and prove that they know the cluster secret, without saying it.
//!
//! ```text
//!   dialer                                              acceptor
//!     │ hello: magic, version, cluster, from, to, nonce    │
//!     ├───────────────────────────────────────────────────►│ version? cluster? is `to` me?
//!     │      verdict: magic, code, nonce, proof "acceptor" │
//!     │◄───────────────────────────────────────────────────┤
//!     │ proof "dialer"                                     │
//!     ├───────────────────────────────────────────────────►│
//! ```
//! A proof is HMAC-SHA256 under the secret over the role, the whole hello and the acceptor's nonce: it is good for these two nodes, in
//! these roles, this once. It keeps strangers and strays out; it does not encrypt or protect what follows against somebody in between.

use super::Identity;
use crate::secret::Secret;
use std::io;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use twinshard_core::id::{BalancerId, NodeId, ServerId};

/// The version of the peer protocol: of the handshake, the frames and the encoding of messages. Nodes of different versions do not talk.
pub const PROTOCOL_VERSION: u16 = 4;

const MAGIC: &[u8; 8] = b"twinshrd";
/// Magic and version: their place never changes, so that any two versions can tell each other.
const PREFIX_BYTES: usize = 10;
const NODE_BYTES: usize = 9;
const NONCE_BYTES: usize = 32;
const HELLO_BYTES: usize = PREFIX_BYTES + 16 + 2 * NODE_BYTES + NONCE_BYTES;
/// Magic, version and code; then, only if the code is fine, nonce and proof.
const VERDICT_BYTES: usize = PREFIX_BYTES + 1;

const FINE: u8 = 0;
const WRONG_VERSION: u8 = 1;
const WRONG_CLUSTER: u8 = 2;
const WRONG_NODE: u8 = 3;

const ACCEPTOR: &[u8] = b"twinshard acceptor";
const DIALER: &[u8] = b"twinshard dialer..";

/// Why two ends did not come together.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The stream ended or failed.
    #[error("the connection ended during the handshake: {0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("the handshake took too long")]
    TooSlow,
    /// The other end speaks something else.
    #[error("not a peer of any cluster: the first bytes are wrong")]
    Garbage,
    /// It speaks another version.
    #[error("the peer speaks protocol version {0}, this node {PROTOCOL_VERSION}")]
    Version(u16),
    /// It belongs to another cluster.
    #[error("the peer belongs to another cluster")]
    Cluster,
    /// It is not the node that was meant, or not one that may connect.
    #[error("the peer is another node than the one meant")]
    Node,
    /// It does not know the secret.
    #[error("the peer does not know the cluster secret")]
    Secret,
    /// There are too many connections.
    #[error("too many connections")]
    TooMany,
}

impl HandshakeError {
    /// Whether a person should look: nothing that passing garbage or a peer that dies can cause.
    pub(super) const fn is_suspicious(&self) -> bool {
        match self {
            Self::Version(_) | Self::Cluster | Self::Node | Self::Secret | Self::TooMany => true,
            Self::Io(_) | Self::TooSlow | Self::Garbage => false,
        }
    }

    /// Whether the other end never spoke as a peer does. One that dies midway does not count: it is heard of elsewhere.
    pub(super) const fn is_stranger(&self) -> bool {
        match self {
            Self::TooSlow | Self::Garbage => true,
            Self::Io(_) | Self::Version(_) | Self::Cluster | Self::Node | Self::Secret | Self::TooMany => false,
        }
    }
}

/// The side that connected. Afterwards the stream carries frames.
pub(super) async fn dial<S>(stream: &mut S, me: Identity, to: NodeId, secret: &Secret, nonce: [u8; 32]) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = Vec::with_capacity(HELLO_BYTES);
    hello.extend_from_slice(MAGIC);
    hello.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    hello.extend_from_slice(&me.cluster.0.to_le_bytes());
    put_node(me.node, &mut hello);
    put_node(to, &mut hello);
    hello.extend_from_slice(&nonce);
    stream.write_all(&hello).await?;
    stream.flush().await?;

    let version = read_prefix(stream).await?;
    match stream.read_u8().await? {
        FINE => {}
        WRONG_CLUSTER => return Err(HandshakeError::Cluster),
        WRONG_NODE => return Err(HandshakeError::Node),
        _ => return Err(HandshakeError::Version(version)),
    }
    if version != PROTOCOL_VERSION {
        return Err(HandshakeError::Version(version));
    }
    let (mut theirs, mut proof) = ([0; NONCE_BYTES], [0; 32]);
    stream.read_exact(&mut theirs).await?;
    stream.read_exact(&mut proof).await?;
    if !secret.verify(&[ACCEPTOR, &hello, &theirs], &proof) {
        return Err(HandshakeError::Secret);
    }
    stream.write_all(&secret.prove(&[DIALER, &hello, &theirs])).await?;
    stream.flush().await?;
    Ok(())
}

/// The side that was connected to. Gives the node at the other end.
pub(super) async fn answer<S>(stream: &mut S, me: Identity, secret: &Secret, nonce: [u8; 32]) -> Result<NodeId, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let version = read_prefix(stream).await?;
    if version != PROTOCOL_VERSION {
        refuse(stream, WRONG_VERSION).await?;
        return Err(HandshakeError::Version(version));
    }
    let mut rest = [0; HELLO_BYTES - PREFIX_BYTES];
    stream.read_exact(&mut rest).await?;
    let mut hello = Vec::with_capacity(HELLO_BYTES);
    hello.extend_from_slice(MAGIC);
    hello.extend_from_slice(&version.to_le_bytes());
    hello.extend_from_slice(&rest);

    let (cluster, nodes) = rest.split_at(16);
    if cluster != me.cluster.0.to_le_bytes() {
        refuse(stream, WRONG_CLUSTER).await?;
        return Err(HandshakeError::Cluster);
    }
    let (from, to) = (take_node(&nodes[..NODE_BYTES]), take_node(&nodes[NODE_BYTES..2 * NODE_BYTES]));
    let from = match (from, to) {
        (Some(from), Some(to)) if to == me.node && from != me.node => from,
        _ => {
            refuse(stream, WRONG_NODE).await?;
            return Err(HandshakeError::Node);
        }
    };

    let mut verdict = Vec::with_capacity(VERDICT_BYTES + NONCE_BYTES + 32);
    put_verdict(FINE, &mut verdict);
    verdict.extend_from_slice(&nonce);
    verdict.extend_from_slice(&secret.prove(&[ACCEPTOR, &hello, &nonce]));
    stream.write_all(&verdict).await?;
    stream.flush().await?;

    let mut proof = [0; 32];
    stream.read_exact(&mut proof).await?;
    if secret.verify(&[DIALER, &hello, &nonce], &proof) { Ok(from) } else { Err(HandshakeError::Secret) }
}

async fn read_prefix<S: AsyncRead + Unpin>(stream: &mut S) -> Result<u16, HandshakeError> {
    let mut prefix = [0; PREFIX_BYTES];
    // Byte by byte up to the first wrong one: garbage that is short is told apart from a slow peer at once.
    stream.read_exact(&mut prefix[..MAGIC.len()]).await?;
    if &prefix[..MAGIC.len()] != MAGIC {
        return Err(HandshakeError::Garbage);
    }
    stream.read_exact(&mut prefix[MAGIC.len()..]).await?;
    Ok(u16::from_le_bytes([prefix[8], prefix[9]]))
}

async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, code: u8) -> Result<(), HandshakeError> {
    let mut verdict = Vec::with_capacity(VERDICT_BYTES);
    put_verdict(code, &mut verdict);
    stream.write_all(&verdict).await?;
    stream.shutdown().await?;
    Ok(())
}

fn put_verdict(code: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    out.push(code);
}

fn put_node(node: NodeId, out: &mut Vec<u8>) {
    let (kind, number) = match node {
        NodeId::Server(id) => (1, id.0),
        NodeId::Balancer(id) => (2, id.0),
    };
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
}

fn take_node(bytes: &[u8]) -> Option<NodeId> {
    let (kind, number) = bytes.split_first()?;
    let number = u64::from_le_bytes(number.try_into().ok()?);
    match kind {
        1 => Some(NodeId::Server(ServerId(number))),
        2 => Some(NodeId::Balancer(BalancerId(number))),
        _ => None,
    }
}

/// A hello as it stands on the wire, for tests that write one by hand.
#[cfg(test)]
pub(super) fn hello(version: u16, cluster: twinshard_core::id::ClusterId, from: NodeId, to: NodeId) -> Vec<u8> {
    let mut hello = Vec::new();
    hello.extend_from_slice(MAGIC);
    hello.extend_from_slice(&version.to_le_bytes());
    hello.extend_from_slice(&cluster.0.to_le_bytes());
    put_node(from, &mut hello);
    put_node(to, &mut hello);
    hello.extend_from_slice(&[9; NONCE_BYTES]);
    hello
}
