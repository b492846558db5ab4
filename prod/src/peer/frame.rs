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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use twinshard_core::{
        command::{Command, Entry, OnConflict, Operation},
        id::{Epoch, LogIndex, Position, ReplicaId, ServerId},
        message::{ReplicaBody, ReplicaMessage, ToBalancer, ToServer},
        value::{Finite, Key, Row, Value},
    };

    const MAX: usize = 64 << 20;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_filter_map("finite", Finite::new).prop_map(Value::Decimal),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,40}".prop_map(|text| Value::Text(text.into())),
        ]
    }

    fn entry() -> impl Strategy<Value = Arc<Entry>> {
        (any::<u64>(), any::<u64>(), any::<i64>(), prop::collection::vec(value(), 0..4)).prop_map(|(epoch, index, key, values)| {
            let row = Row { key: Key(key), values };
            Arc::new(Entry {
                position: Position { epoch: Epoch(epoch), index: LogIndex(index) },
                request: None,
                idempotency: None,
                command: Command::Operations(vec![
                    Operation::Insert { row, on_conflict: OnConflict::Replace },
                    Operation::Delete { key: Key(key) },
                ]),
            })
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<u64>().prop_map(|beat| Message::ToServer(ToServer::Heartbeat { beat })),
            any::<u64>().prop_map(|replica| Message::ToBalancer(ToBalancer::Created { replica: ReplicaId(replica) })),
            any::<u64>().prop_map(|server| Message::ToServer(ToServer::Learn {
                replica: ReplicaId(1),
                epoch: Epoch(2),
                learners: vec![(ReplicaId(3), ServerId(server))],
            })),
            prop::collection::vec(entry(), 0..6).prop_map(|entries| Message::Replica(ReplicaMessage {
                from: ReplicaId(1),
                to: ReplicaId(2),
                epoch: Epoch(3),
                body: ReplicaBody::Append { previous: Position::ZERO, entries, commit: LogIndex(4) },
            })),
        ]
    }

    /// Reads frames until something is wrong.
    fn read_all(mut bytes: &[u8], max: usize) -> (Vec<Frame>, FrameError) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (mut frames, mut buffer) = (Vec::new(), Vec::new());
            loop {
                match read(&mut bytes, max, &mut buffer).await {
                    Ok(frame) => frames.push(frame),
                    Err(error) => return (frames, error),
                }
            }
        })
    }

    fn messages(frames: Vec<Frame>) -> Vec<Message> {
        frames
            .into_iter()
            .flat_map(|frame| match frame {
                Frame::Messages(messages) => messages,
                Frame::Ping | Frame::Pong => vec![],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(batches in prop::collection::vec(prop::collection::vec(message(), 1..5), 0..4)) {
            let mut bytes = Vec::new();
            for batch in &batches {
                prop_assert_eq!(write_messages(batch, MAX, &mut bytes), batch.len());
                write_signal(true, &mut bytes);
            }
            let (frames, error) = read_all(&bytes, MAX);
            prop_assert!(matches!(error, FrameError::Io(_)), "{}", error);
            prop_assert_eq!(frames.len(), 2 * batches.len());
            prop_assert_eq!(messages(frames), batches.concat());
        }

        #[test]
        fn a_small_limit_splits_batches_and_loses_only_what_is_too_long(batch in prop::collection::vec(message(), 1..12), max in 8_usize..400) {
            let mut bytes = Vec::new();
            let written = write_messages(&batch, max, &mut bytes);
            let (frames, error) = read_all(&bytes, max);
            prop_assert!(matches!(error, FrameError::Io(_)), "{}", error);
            let fitting: Vec<Message> =
                batch.into_iter().filter(|message| postcard::to_allocvec(&[message][..]).is_ok_and(|bytes| bytes.len() <= max)).collect();
            prop_assert_eq!(written, fitting.len());
            prop_assert_eq!(messages(frames), fitting);
        }

        #[test]
        fn a_changed_bit_is_noticed(batch in prop::collection::vec(message(), 1..4), place in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let mut bytes = Vec::new();
            write_messages(&batch, MAX, &mut bytes);
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let (frames, _) = read_all(&bytes, 1 << 20);
            prop_assert_eq!(frames, vec![]);
        }

        #[test]
        fn garbage_with_a_good_checksum_is_refused_or_read_but_never_fatal(payload in prop::collection::vec(any::<u8>(), 0..300), kind in 0..4_u8) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend_from_slice(&payload);
            seal(0, kind, &mut bytes);
            let (frames, _) = read_all(&bytes, MAX);
            prop_assert!(frames.len() <= 1);
        }
    }

    #[test]
    fn an_announced_length_is_checked_before_anything_is_read() {
        let mut bytes = Vec::new();
        write_messages(&[Message::ToServer(ToServer::Heartbeat { beat: 1 })], MAX, &mut bytes);
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read_all(&bytes, MAX).1, FrameError::TooLong(length) if length == u32::MAX as usize));
    }

    #[test]
    fn a_list_that_claims_to_be_endless_is_refused() {
        // Kind 0 with a list of 2^63 messages in ten bytes; then one in an append.
        for payload in
            [vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], vec![1, 2, 1, 2, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend_from_slice(&payload);
            seal(0, MESSAGES, &mut bytes);
            let (frames, error) = read_all(&bytes, MAX);
            assert_eq!(frames, vec![]);
            assert!(matches!(error, FrameError::Decode(_)), "{error}");
        }
    }

    #[test]
    fn frames_that_are_not_exactly_their_content_are_refused() {
        let cases: [(u8, &[u8]); 4] = [(PING, &[0]), (PONG, &[1, 2]), (MESSAGES, &[0]), (7, &[])];
        for (kind, payload) in cases {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend_from_slice(payload);
            seal(0, kind, &mut bytes);
            let (frames, error) = read_all(&bytes, MAX);
            assert_eq!(frames, vec![]);
            assert!(matches!(error, FrameError::Length | FrameError::Kind(7)), "{error}");
        }
    }
}
