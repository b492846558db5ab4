//! Frames: a header of length, checksum and kind, then messages in postcard. What cannot be read ends the connection, never the
//! process.

use std::io;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use twinshard_core::message::Message;

/// Length of the payload (u32, little endian), CRC32C of kind and payload (u32, little endian), kind.
const HEADER_BYTES: usize = 9;
/// How much is reserved before the bytes have come.
const RESERVE_MAX: usize = 64 << 10;

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Messages, at least one.
    Messages(Vec<Message>),
    /// Are you there? Answered with a pong.
    Ping,
    /// Yes.
    Pong,
}

/// Why there is no frame.
#[derive(Debug, Error)]
pub(super) enum FrameError {
    /// The stream ended, also in the middle of a frame.
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
    /// It says that it is longer than frames may be.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// The checksum is of something else.
    #[error("a frame does not verify")]
    Checksum,
    /// There is no such kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// It is not a list of messages.
    #[error("a frame that does not decode: {0}")]
    Decode(postcard::Error),
    /// It is longer than its messages, or has none.
    #[error("a frame that is not exactly its messages")]
    Length,
}

/// A message that is too long for any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a message of {0} bytes is too long for a frame")]
pub(super) struct MessageTooLong(pub(super) usize);

const MESSAGES: u8 = 0;
const PING: u8 = 1;
const PONG: u8 = 2;

/// Appends what postcard writes to a buffer that is already begun.
struct Tail<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Tail<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends frames with these messages, one if they fit, and says how many went in. A message that is too long for a frame of its own
/// is left out.
pub(super) fn write_messages(messages: &[Message], frame_bytes_max: usize, out: &mut Vec<u8>) -> usize {
    if messages.is_empty() {
        return 0;
    }
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    // Writing into memory does not fail, and the types of the core have no maps or sequences of unknown length.
    let written = postcard::serialize_with_flavor(messages, Tail(out));
    let length = out.len() - start - HEADER_BYTES;
    if written.is_ok() && length <= frame_bytes_max && u32::try_from(length).is_ok() {
        seal(start, MESSAGES, out);
        return messages.len();
    }
    out.truncate(start);
    if let [_] = messages {
        let error = MessageTooLong(length);
        tracing::error!(%error, "message dropped");
        return 0;
    }
    let (first, second) = messages.split_at(messages.len() / 2);
    write_messages(first, frame_bytes_max, out) + write_messages(second, frame_bytes_max, out)
}

/// Appends a frame without messages.
pub(super) fn write_signal(ping: bool, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    seal(start, if ping { PING } else { PONG }, out);
}

/// Fills in the header of the frame that begins at `start` and goes to the end.
fn seal(start: usize, kind: u8, out: &mut [u8]) {
    let frame = &mut out[start..];
    frame[8] = kind;
    let checksum = crc32c::crc32c(&frame[8..]);
    // The caller has checked that it fits.
    let length = (frame.len() - HEADER_BYTES) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads one frame. `buffer` is scratch. Must not be dropped half-way: the stream would be out of step.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), frame_bytes_max: usize, buffer: &mut Vec<u8>) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let [a, b, c, d, e, f, g, h, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let checksum = u32::from_le_bytes([e, f, g, h]);
    if length > frame_bytes_max {
        return Err(FrameError::TooLong(length));
    }
    buffer.clear();
    // Grows with what really comes, not with what was announced.
    buffer.reserve(length.min(RESERVE_MAX));
    stream.take(length as u64).read_to_end(buffer).await?;
    if buffer.len() < length {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    parse(kind, checksum, buffer)
}

fn parse(kind: u8, checksum: u32, payload: &[u8]) -> Result<Frame, FrameError> {
    if crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload) != checksum {
        return Err(FrameError::Checksum);
    }
    match kind {
        MESSAGES => {
            // Postcard's lengths are not trusted: serde reserves at most 1 MiB ahead of the elements that are really there.
            let (messages, rest) = postcard::take_from_bytes::<Vec<Message>>(payload).map_err(FrameError::Decode)?;
            if messages.is_empty() || !rest.is_empty() { Err(FrameError::Length) } else { Ok(Frame::Messages(messages)) }
        }
        PING | PONG if !payload.is_empty() => Err(FrameError::Length),
        PING => Ok(Frame::Ping),
        PONG => Ok(Frame::Pong),
        unknown => Err(FrameError::Kind(unknown)),
    }
}
