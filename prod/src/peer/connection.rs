//! One connection after its handshake: reads frames into the driver's inbox, writes what the queue holds, and gives up on silence.

use super::{
    Inbound, PeerSettings, Shared, count,
    frame::{self, Frame, FrameError},
    queue::Queue,
};
use std::io;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use twinshard_core::id::NodeId;

/// How much is read from the network at once.
const READ_BYTES: usize = 64 << 10;
/// A write buffer that grew beyond this is let go.
const BUFFER_KEEP_BYTES: usize = 4 << 20;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum Ended {
    /// The other side closed it, or sent what cannot be read.
    #[error(transparent)]
    Read(#[from] FrameError),
    /// It cannot be written to.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    /// No sign of life although one was asked for.
    #[error("the peer is silent")]
    Silent,
    /// Nothing said for long.
    #[error("idle")]
    Idle,
    /// We close it: the queue is closed, or the node stops.
    #[error("closed")]
    Closed,
}

/// What the reading half tells the writing half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    frames: u64,
    pings: u64,
}

/// Runs until it ends; says why, and whether anything was ever heard. `accepted` ones end when nothing is heard for long.
pub(super) async fn run<S>(shared: &Shared, stream: S, peer: NodeId, queue: &Queue, accepted: bool) -> (Ended, bool)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let (tell, heard) = watch::channel(Heard::default());
    let watched = heard.clone();
    let ended = tokio::select! {
        biased;
        ended = read(shared, reader, peer, tell) => ended,
        ended = write(shared, writer, queue, heard, accepted) => ended,
    };
    match &ended {
        Ended::Silent => count(&shared.counters.silent, 1),
        Ended::Read(FrameError::Io(_)) | Ended::Write(_) | Ended::Idle | Ended::Closed => {}
        Ended::Read(error) => {
            count(&shared.counters.damaged, 1);
            tracing::warn!(%peer, %error, "bad frame: connection closed");
        }
    }
    tracing::debug!(%peer, why = %ended, "connection ended");
    let any = watched.borrow().frames > 0;
    (ended, any)
}

async fn read(shared: &Shared, reader: impl AsyncRead + Unpin, peer: NodeId, tell: watch::Sender<Heard>) -> Ended {
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let mut buffer = Vec::new();
    loop {
        let frame = match frame::read(&mut reader, shared.settings.frame_bytes_max, &mut buffer).await {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        tell.send_modify(|heard| {
            heard.frames += 1;
            heard.pings += u64::from(frame == Frame::Ping);
        });
        match frame {
            Frame::Messages(messages) => {
                count(&shared.counters.received, messages.len());
                // Waits while the driver is busy: then the network pushes back on the peer.
                if shared.inbox.send(Inbound { from: peer, messages }).await.is_err() {
                    return Ended::Closed;
                }
            }
            Frame::Ping | Frame::Pong => {}
        }
        if buffer.capacity() > BUFFER_KEEP_BYTES {
            buffer = Vec::new();
        }
    }
}

/// When a sign of life was asked for and heard.
struct Pulse {
    asked: Option<Instant>,
    last_ask: Option<Instant>,
    /// Something was written after the last ping.
    unasked: bool,
    last_heard: Instant,
}

impl Pulse {
    /// When the next ping is due: soon after something was written, seldom, and never a second one before the first is answered.
    fn ping_at(&self, settings: &PeerSettings) -> Option<Instant> {
        (self.unasked && self.asked.is_none()).then(|| self.last_ask.map_or(self.last_heard, |last| last + settings.ping_every))
    }

    fn give_up_at(&self, settings: &PeerSettings, accepted: bool) -> Option<Instant> {
        match self.asked {
            Some(asked) => Some(asked + settings.silent_max),
            None => accepted.then(|| self.last_heard + settings.idle_max),
        }
    }
}

async fn write(
    shared: &Shared,
    mut writer: impl AsyncWrite + Unpin,
    queue: &Queue,
    mut heard: watch::Receiver<Heard>,
    accepted: bool,
) -> Ended {
    let settings = &shared.settings;
    let mut buffer = Vec::new();
    let mut ponged = 0;
    let mut pulse = Pulse { asked: None, last_ask: None, unasked: false, last_heard: Instant::now() };
    loop {
        let now = Instant::now();
        let give_up_at = pulse.give_up_at(settings, accepted);
        if give_up_at.is_some_and(|at| at <= now) {
            return if pulse.asked.is_some() { Ended::Silent } else { Ended::Idle };
        }
        let ping_at = pulse.ping_at(settings);
        let wake = match (ping_at, give_up_at) {
            (Some(ping), Some(give_up)) => Some(ping.min(give_up)),
            (ping, give_up) => ping.or(give_up),
        };
        tokio::select! {
            biased;
            changed = heard.changed() => {
                if changed.is_err() {
                    // The reading half has ended and says why itself.
                    std::future::pending::<()>().await;
                }
                pulse.asked = None;
                pulse.last_heard = Instant::now();
                let pings = heard.borrow_and_update().pings;
                if pings > ponged {
                    ponged = pings;
                    frame::write_signal(false, &mut buffer);
                }
            }
            open = queue.ready() => {
                if !open {
                    return Ended::Closed;
                }
                let messages = queue.take(settings.batch_bytes);
                let written = frame::write_messages(&messages, settings.frame_bytes_max, &mut buffer);
                count(&shared.counters.sent, written);
                count(&shared.counters.dropped, messages.len() - written);
                pulse.unasked |= written > 0;
            }
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
        }
        let ping = pulse.ping_at(settings).is_some_and(|at| at <= Instant::now());
        if ping {
            frame::write_signal(true, &mut buffer);
        }
        if let Err(ended) = write_all(&mut writer, &buffer, settings).await {
            return ended;
        }
        if ping {
            // Only now: what takes long to write takes long to be answered.
            let now = Instant::now();
            pulse.asked = Some(now);
            pulse.last_ask = Some(now);
            pulse.unasked = false;
        }
        buffer.clear();
        if buffer.capacity() > BUFFER_KEEP_BYTES {
            buffer = Vec::new();
        }
    }
}

/// Writes all; a peer that takes nothing at all for too long counts as silent.
async fn write_all(writer: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8], settings: &PeerSettings) -> Result<(), Ended> {
    if bytes.is_empty() {
        return Ok(());
    }
    while !bytes.is_empty() {
        let written = timeout(settings.silent_max, writer.write(bytes)).await.map_err(|_| Ended::Silent)??;
        if written == 0 {
            return Err(Ended::Write(io::ErrorKind::WriteZero.into()));
        }
        bytes = &bytes[written..];
    }
    timeout(settings.silent_max, writer.flush()).await.map_err(|_| Ended::Silent)??;
    Ok(())
}
