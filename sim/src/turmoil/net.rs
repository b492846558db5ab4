//! Turmoil's simulated network behind the driver's trait, with what turmoil itself cannot do: frames between nodes that are lost, come
//! twice or overtake each other, and processes that stand still. Addresses are `host:port` with turmoil's host names. Never touches a
//! handshake, nor the HTTP of clients: TCP does not lose bytes, a peer that is gone does.

use super::world::{PEER_PORT, Shared, now};
use crate::faults::Place;
use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use turmoil::net::{TcpListener, TcpStream};
use twinshard::net::Network;

/// How often a process that stands still looks whether it may go on: one step of the simulation.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Length, checksum and kind: what a frame of the peer protocol begins with. The length is that of the payload alone.
const HEADER_BYTES: usize = 9;
/// How much a connection holds that the network does not take, before its writer has to wait.
const READY_BYTES_MAX: usize = 1 << 20;

/// The simulated network, as one host sees it.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "what all hosts share has none")]
pub struct TurmoilNetwork {
    shared: Shared,
    here: Place,
}

/// A listening socket and the name that others reach it by.
#[expect(missing_debug_implementations, reason = "turmoil's listener has none")]
pub struct Listener {
    socket: TcpListener,
    address: String,
    network: TurmoilNetwork,
}

impl TurmoilNetwork {
    pub(super) const fn new(shared: Shared, here: Place) -> Self {
        Self { shared, here }
    }

    /// Returns once the process does not stand still.
    pub(super) async fn goes_on(&self) {
        while self.shared.state().paused.contains_key(&self.here) {
            sleep(LOOK_EVERY).await;
        }
    }

    /// `begins`: the side that connected speaks twice before the handshake is done, the other one once.
    fn stream(&self, inner: TcpStream, peer_host: &str, is_peer_link: bool, begins: bool) -> Stream {
        let link = is_peer_link.then(|| {
            let mut state = self.shared.state();
            state.connections += 1;
            let to = state.place_of_host(peer_host);
            Link { to, number: state.connections, handshake_flushes: if begins { 2 } else { 1 }, ..Link::default() }
        });
        Stream { inner, network: self.clone(), link, timer: None }
    }
}

impl Network for TurmoilNetwork {
    type Stream = Stream;
    type Listener = Listener;

    async fn listen(&self, address: &str) -> io::Result<Listener> {
        let (_, port) = split(address)?;
        let socket = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(Listener { socket, address: address.to_owned(), network: self.clone() })
    }

    async fn accept(listener: &mut Listener) -> io::Result<Stream> {
        let (stream, from) = listener.socket.accept().await?;
        listener.network.goes_on().await;
        let host = turmoil::reverse_lookup(from.ip()).unwrap_or_default();
        let is_peer_link = stream.local_addr()?.port() == PEER_PORT;
        Ok(listener.network.stream(stream, &host, is_peer_link, false))
    }

    fn local_address(listener: &Listener) -> io::Result<String> {
        Ok(listener.address.clone())
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let (host, port) = split(address)?;
        self.goes_on().await;
        let stream = TcpStream::connect((host, port)).await?;
        Ok(self.stream(stream, host, port == PEER_PORT, true))
    }
}

fn split(address: &str) -> io::Result<(&str, u16)> {
    let (host, port) = address.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
    Ok((host, port.parse().map_err(|_| io::ErrorKind::InvalidInput)?))
}

/// What becomes of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// How often it arrives: 0, 1 or 2.
    pub(super) copies: u8,
    /// How much later than others. Later frames overtake it.
    pub(super) late: Duration,
}

/// The writing half of a connection between nodes, cut into frames.
#[derive(Debug, Default)]
struct Link {
    to: Option<Place>,
    /// Unlike any other connection of the run.
    number: u64,
    /// How many flushes the handshake still has.
    handshake_flushes: u8,
    wrote: bool,
    /// The frame that is not whole yet.
    begun: Vec<u8>,
    frames: u64,
    late: BTreeMap<(u64, u64), Vec<u8>>,
    ready: VecDeque<u8>,
}

impl Link {
    /// Takes bytes of the node; whole frames, counted from 1, meet their fate.
    fn take(&mut self, bytes: &[u8], now: u64, fate: impl Fn(u64) -> Fate) {
        self.begun.extend_from_slice(bytes);
        while let Some(length) = self.begun.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize + HEADER_BYTES) {
            if self.begun.len() < length {
                return;
            }
            let rest = self.begun.split_off(length);
            let frame = std::mem::replace(&mut self.begun, rest);
            self.frames += 1;
            let Fate { copies, late } = fate(self.frames);
            for copy in 0..u64::from(copies) {
                // The second copy trails by one step more.
                let late = late + LOOK_EVERY * u32::try_from(copy).unwrap_or(u32::MAX);
                if late.is_zero() {
                    self.ready.extend(&frame);
                } else {
                    let due = now.saturating_add(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX));
                    self.late.insert((due, 2 * self.frames + copy), frame.clone());
                }
            }
        }
    }

    fn ripen(&mut self, now: u64) {
        while let Some(entry) = self.late.first_entry() {
            if entry.key().0 > now {
                break;
            }
            self.ready.extend(entry.remove());
        }
    }
}

/// A connection.
#[expect(missing_debug_implementations, reason = "what all hosts share has none")]
pub struct Stream {
    inner: TcpStream,
    network: TurmoilNetwork,
    link: Option<Link>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// Pending while the process stands still, looked at again in the next step.
    fn poll_goes_on(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.network.shared.state().paused.contains_key(&self.network.here) {
            ready!(self.poll_timer(context, LOOK_EVERY));
        }
        Poll::Ready(())
    }

    fn poll_timer(&mut self, context: &mut Context<'_>, after: Duration) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(after)));
        ready!(timer.as_mut().poll(context));
        self.timer = None;
        Poll::Ready(())
    }

    /// Hands the network what is due. Frames that are late see to it that somebody looks again.
    fn drive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(link) = &mut self.link else { return Poll::Ready(Ok(())) };
            link.ripen(now());
            while !link.ready.is_empty() {
                let (front, _) = link.ready.as_slices();
                let written = ready!(pin!(&mut self.inner).poll_write(context, front))?;
                link.ready.drain(..written);
            }
            if link.late.is_empty() || self.poll_timer(context, LOOK_EVERY).is_pending() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_goes_on(context));
        // What cannot be written is the writer's to be told.
        let _ = this.drive(context);
        Pin::new(&mut this.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_goes_on(context));
        match &mut this.link {
            None => Pin::new(&mut this.inner).poll_write(context, bytes),
            Some(link) if link.handshake_flushes > 0 => {
                link.wrote = true;
                Pin::new(&mut this.inner).poll_write(context, bytes)
            }
            Some(link) if link.ready.len() > READY_BYTES_MAX => {
                ready!(this.drive(context))?;
                this.poll_write_frames(bytes, context)
            }
            Some(_) => this.poll_write_frames(bytes, context),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_goes_on(context));
        match &mut this.link {
            Some(link) if link.handshake_flushes > 0 => {
                ready!(Pin::new(&mut this.inner).poll_flush(context))?;
                link.handshake_flushes -= u8::from(std::mem::take(&mut link.wrote));
                Poll::Ready(Ok(()))
            }
            Some(_) | None => {
                ready!(this.drive(context))?;
                Pin::new(&mut this.inner).poll_flush(context)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_goes_on(context));
        if let Some(link) = &mut this.link {
            // What is late then never comes.
            link.late.clear();
        }
        ready!(this.drive(context))?;
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

impl Stream {
    fn poll_write_frames(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let network = self.network.clone();
        if let Some(link) = &mut self.link {
            let (to, number) = (link.to, link.number);
            link.take(bytes, now(), |frame| network.shared.state().fate(network.here, to, [number, frame]));
        }
        match self.drive(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&length[..], &[0; HEADER_BYTES - 4], payload].concat()
    }

    #[test]
    fn frames_are_lost_doubled_and_overtaken_wherever_the_bytes_are_cut() {
        let frames = [frame(b"first"), frame(b""), frame(b"third"), frame(b"last")];
        let bytes = frames.concat();
        let fates =
            [Fate { copies: 1, late: 5 * LOOK_EVERY }, Fate { copies: 0, ..Fate::default() }, Fate { copies: 2, ..Fate::default() }];
        for cut in 0..=bytes.len() {
            let mut link = Link::default();
            for part in [&bytes[..cut], &bytes[cut..]] {
                link.take(part, 0, |number| fates.get(number as usize - 1).copied().unwrap_or(Fate { copies: 1, late: Duration::ZERO }));
            }
            let sent = |link: &mut Link, now: u64| {
                link.ripen(now);
                link.ready.drain(..).collect::<Vec<u8>>()
            };
            assert_eq!(sent(&mut link, 0), [&*frames[2], &*frames[3]].concat());
            assert_eq!(sent(&mut link, 4_999_999), frames[2], "the second copy trails");
            assert_eq!(sent(&mut link, 5_000_000), frames[0]);
            assert!(link.begun.is_empty() && link.late.is_empty());
        }
    }
}
