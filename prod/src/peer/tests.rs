//! The transport over a network in memory and on paused time: what is silent for seconds costs none.

use super::{
    handshake::{answer, dial, hello},
    memory::Memory,
    *,
};
use std::future::Future;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, timeout},
};
use twinshard_core::{
    id::BalancerId,
    map::{Address, ClusterMap, ServerGoal, ServerRecord},
    message::{ToBalancer, ToServer},
};

const CLUSTER: ClusterId = ClusterId(77);
const SECRET: Secret = Secret::new([5; 32]);

fn server(number: u64) -> NodeId {
    NodeId::Server(ServerId(number))
}

fn identity(node: NodeId) -> Identity {
    Identity { cluster: CLUSTER, node }
}

/// A map with these servers at these addresses.
fn map(version: u64, servers: &[(u64, &str)]) -> (MapVersion, Arc<ClusterMap>) {
    let mut map = ClusterMap { cluster: CLUSTER, ..ClusterMap::default() };
    for (number, peer) in servers {
        let address = Some(Address { http: "nowhere:1".into(), peer: (*peer).into() });
        map.servers.insert(
            ServerId(*number),
            ServerRecord { name: format!("S{number}").into(), number: *number, goal: ServerGoal::Run, address, incarnation: None },
        );
    }
    (MapVersion(version), Arc::new(map))
}

struct Node {
    peers: Peers<Memory>,
    inbound: mpsc::Receiver<Inbound>,
    counters: Arc<Counters>,
    book: watch::Sender<Option<(MapVersion, Arc<ClusterMap>)>>,
}

impl Node {
    async fn start(network: &Memory, node: NodeId, listen: Option<&str>, servers: &[(u64, &str)]) -> Self {
        Self::start_with(network, node, listen, servers, PeerSettings::default()).await
    }

    async fn start_with(network: &Memory, node: NodeId, listen: Option<&str>, servers: &[(u64, &str)], settings: PeerSettings) -> Self {
        let listener = match listen {
            Some(address) => Some(network.listen(address).await.expect("listens")),
            None => None,
        };
        let (book, map) = watch::channel(Some(map(1, servers)));
        let counters = Arc::new(Counters::default());
        let parts = PeerParts {
            network: network.clone(),
            settings,
            secret: SECRET,
            entropy: Entropy::from_seed(1),
            identity: watch::channel(Some(identity(node))).1,
            book: map,
            counters: Arc::clone(&counters),
        };
        let (peers, inbound) = Peers::start(parts, listener);
        Self { peers, inbound, counters, book }
    }

    async fn next(&mut self) -> (NodeId, Vec<Message>) {
        let inbound = within(self.inbound.recv()).await.expect("open");
        (inbound.from, inbound.messages)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

fn beat(beat: u64) -> Message {
    Message::ToServer(ToServer::Heartbeat { beat })
}

fn home() -> Message {
    Message::ToBalancer(ToBalancer::Home { tag: twinshard_core::message::Tag::default() })
}

/// Both ends of a handshake.
async fn shake(
    dialer: (Identity, NodeId, Secret),
    acceptor: (Identity, Secret),
) -> (Result<(), HandshakeError>, Result<NodeId, HandshakeError>) {
    let (mut ours, mut theirs) = duplex(1 << 10);
    let dialing = async {
        let shaken = dial(&mut ours, dialer.0, dialer.1, &dialer.2, [1; 32]).await;
        drop(ours);
        shaken
    };
    let answering = async {
        let shaken = answer(&mut theirs, acceptor.0, &acceptor.1, [2; 32]).await;
        drop(theirs);
        shaken
    };
    tokio::join!(dialing, answering)
}

#[tokio::test(start_paused = true)]
async fn two_that_know_the_secret_come_together() {
    let (dialed, answered) = shake((identity(server(1)), server(2), SECRET), (identity(server(2)), SECRET)).await;
    assert!(dialed.is_ok(), "{dialed:?}");
    assert_eq!(answered.expect("accepted"), server(1));
    let balancer = NodeId::Balancer(BalancerId(9));
    let (dialed, answered) = shake((identity(balancer), server(2), SECRET), (identity(server(2)), SECRET)).await;
    assert!(dialed.is_ok(), "{dialed:?}");
    assert_eq!(answered.expect("accepted"), balancer);
}

#[tokio::test(start_paused = true)]
async fn another_secret_is_refused_by_both_sides() {
    let (dialed, answered) = shake((identity(server(1)), server(2), Secret::new([6; 32])), (identity(server(2)), SECRET)).await;
    assert!(matches!(dialed, Err(HandshakeError::Secret)), "{dialed:?}");
    assert!(answered.is_err(), "{answered:?}");

    // A dialer that does not check the acceptor's proof and answers with a wrong one of its own.
    let (mut ours, mut theirs) = duplex(1 << 10);
    let liar = async {
        ours.write_all(&hello(PROTOCOL_VERSION, CLUSTER, server(1), server(2))).await.expect("written");
        let mut verdict = [0; 75];
        ours.read_exact(&mut verdict).await.expect("a verdict");
        // Its own proof sent back does not do either: the roles differ.
        ours.write_all(&verdict[43..]).await.expect("written");
    };
    let (answered, ()) = tokio::join!(answer(&mut theirs, identity(server(2)), &SECRET, [2; 32]), liar);
    assert!(matches!(answered, Err(HandshakeError::Secret)), "{answered:?}");
}

#[tokio::test(start_paused = true)]
async fn another_cluster_another_node_and_oneself_are_refused_with_the_reason() {
    let stray = Identity { cluster: ClusterId(78), node: server(1) };
    let (dialed, answered) = shake((stray, server(2), SECRET), (identity(server(2)), SECRET)).await;
    assert!(matches!(dialed, Err(HandshakeError::Cluster)), "{dialed:?}");
    assert!(matches!(answered, Err(HandshakeError::Cluster)), "{answered:?}");

    let (dialed, answered) = shake((identity(server(1)), server(3), SECRET), (identity(server(2)), SECRET)).await;
    assert!(matches!(dialed, Err(HandshakeError::Node)), "{dialed:?}");
    assert!(matches!(answered, Err(HandshakeError::Node)), "{answered:?}");

    let (dialed, _) = shake((identity(server(2)), server(2), SECRET), (identity(server(2)), SECRET)).await;
    assert!(matches!(dialed, Err(HandshakeError::Node)), "{dialed:?}");
}

#[tokio::test(start_paused = true)]
async fn another_version_is_told_apart_on_both_sides() {
    let (mut ours, mut theirs) = duplex(1 << 10);
    let newer = async {
        ours.write_all(&hello(PROTOCOL_VERSION + 1, CLUSTER, server(1), server(2))).await.expect("written");
        let mut verdict = [0; 11];
        ours.read_exact(&mut verdict).await.expect("a verdict");
        verdict
    };
    let (answered, verdict) = tokio::join!(answer(&mut theirs, identity(server(2)), &SECRET, [2; 32]), newer);
    assert!(matches!(answered, Err(HandshakeError::Version(version)) if version == PROTOCOL_VERSION + 1), "{answered:?}");
    assert_eq!(u16::from_le_bytes([verdict[8], verdict[9]]), PROTOCOL_VERSION);
    assert_eq!(verdict[10], 1);

    // The dialer reads the same verdict from a peer of another version.
    let (mut ours, mut theirs) = duplex(1 << 10);
    let older = async {
        let mut verdict = verdict;
        verdict[8..10].copy_from_slice(&(PROTOCOL_VERSION + 1).to_le_bytes());
        theirs.write_all(&verdict).await.expect("written");
        theirs
    };
    let (dialed, _) = tokio::join!(dial(&mut ours, identity(server(1)), server(2), &SECRET, [1; 32]), older);
    assert!(matches!(dialed, Err(HandshakeError::Version(version)) if version == PROTOCOL_VERSION + 1), "{dialed:?}");
}

#[tokio::test(start_paused = true)]
async fn garbage_on_the_port_is_closed_and_disturbs_nobody() {
    let network = Memory::default();
    let mut two = Node::start(&network, server(2), Some("two:1"), &[(1, "one:1"), (2, "two:1")]).await;
    let mut one = Node::start(&network, server(1), Some("one:1"), &[(1, "one:1"), (2, "two:1")]).await;

    let mut garbage = network.connect("two:1").await.expect("connects");
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    assert_eq!(within(garbage.read(&mut [0; 64])).await.ok(), Some(0), "closed without a word");

    // Silent ones are closed in time; more than allowed push out the oldest, not the good one that comes last.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(network.connect("two:1").await.expect("connects"));
    }
    one.peers.send(server(2), beat(1));
    assert_eq!(two.next().await, (server(1), vec![beat(1)]));
    let began = Instant::now();
    for stream in &mut silent[..200 - PeerSettings::default().strangers_max] {
        assert_eq!(within(stream.read(&mut [0; 64])).await.ok(), Some(0));
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "the oldest have been pushed out already");
    for stream in &mut silent {
        assert_eq!(within(stream.read(&mut [0; 64])).await.ok(), Some(0));
    }
    assert!(began.elapsed() <= PeerSettings::default().handshake_within);
    assert_eq!(two.counters.counts().refused, 201);
    assert_eq!(two.counters.counts().accepted, 1);
}

#[tokio::test(start_paused = true)]
async fn messages_cross_in_order_and_a_server_answers_a_balancer_on_its_connection() {
    let network = Memory::default();
    let book = [(1, "one:1"), (2, "two:1")];
    let mut one = Node::start(&network, server(1), Some("one:1"), &book).await;
    let mut two = Node::start(&network, server(2), Some("two:1"), &book).await;
    let balancer_id = NodeId::Balancer(BalancerId(1));
    let mut balancer = Node::start(&network, balancer_id, None, &book).await;

    for number in 0..10 {
        one.peers.send(server(2), beat(number));
        two.peers.send(server(1), beat(100 + number));
        balancer.peers.send(server(1), beat(200 + number));
    }
    assert_eq!(two.next().await, (server(1), (0..10).map(beat).collect()), "one frame for all that waited");
    let mut heard = BTreeMap::new();
    for _ in 0..2 {
        let (from, messages) = one.next().await;
        heard.insert(from, messages);
    }
    assert_eq!(heard[&server(2)], (100..110).map(beat).collect::<Vec<_>>());
    assert_eq!(heard[&balancer_id], (200..210).map(beat).collect::<Vec<_>>());

    one.peers.send(balancer_id, home());
    assert_eq!(balancer.next().await, (server(1), vec![home()]));
    two.peers.send(balancer_id, home());
    assert_eq!(two.counters.counts().dropped, 1, "a balancer that never came has no address");
    assert_eq!(balancer.counters.counts().dialed, 1);

    // It stays one connection however long it is idle and used again.
    tokio::time::sleep(Duration::from_secs(30)).await;
    balancer.peers.send(server(1), beat(1));
    assert_eq!(one.next().await, (balancer_id, vec![beat(1)]));
    assert_eq!(balancer.counters.counts().dialed, 1);
    assert_eq!(balancer.counters.counts().silent, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_moves_is_found_again_and_one_that_leaves_is_forgotten() {
    let network = Memory::default();
    let mut one = Node::start(&network, server(1), Some("one:1"), &[(1, "one:1"), (2, "two:1")]).await;
    let mut two = Node::start(&network, server(2), Some("two:1"), &[]).await;
    one.peers.send(server(2), beat(1));
    assert_eq!(two.next().await, (server(1), vec![beat(1)]));

    // The old one still stands and would take the message.
    let mut respawned = Node::start(&network, server(2), Some("two:2"), &[]).await;
    one.book.send_replace(Some(map(2, &[(1, "one:1"), (2, "two:2")])));
    one.peers.send(server(2), beat(2));
    assert_eq!(respawned.next().await, (server(1), vec![beat(2)]));
    assert!(two.inbound.try_recv().is_err());

    one.book.send_replace(Some(map(3, &[(1, "one:1")])));
    one.peers.send(server(3), beat(3));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(one.peers.links.keys().copied().collect::<Vec<_>>(), vec![ServerId(3)]);
    assert_eq!(one.counters.counts().dropped, 1, "no address");
    assert!(respawned.peers.shared.accepted().is_empty(), "its connection is closed");
    one.peers.close().await;
}

#[tokio::test(start_paused = true)]
async fn dials_back_off_and_what_waited_is_dropped() {
    let network = Memory::default();
    let mut one = Node::start(&network, server(1), None, &[(2, "two:1")]).await;
    for number in 0..100 {
        one.peers.send(server(2), beat(number));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let counts = one.counters.counts();
    assert!((90..=100).contains(&counts.dropped), "{counts:?}");
    // It comes up; the next message that finds the pause over gets through.
    let mut two = Node::start(&network, server(2), Some("two:1"), &[]).await;
    one.peers.send(server(2), beat(1_000));
    let (_, messages) = two.next().await;
    assert_eq!(messages.last(), Some(&beat(1_000)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up_and_dialed_anew() {
    let network = Memory::default();
    let mut listener = network.listen("two:1").await.expect("listens");
    let mut one = Node::start(&network, server(1), None, &[(2, "two:1")]).await;
    one.peers.send(server(2), beat(1));
    let mut wedged = within(Memory::accept(&mut listener)).await.expect("dialed");
    answer(&mut wedged, identity(server(2)), &SECRET, [3; 32]).await.expect("shakes hands");
    let mut taken = [0; 1024];
    assert!(wedged.read(&mut taken).await.expect("a frame") > 0);
    // It says nothing: as if a segment had been lost for good.
    let began = Instant::now();
    one.peers.send(server(2), beat(2));
    let gone = within(async { while wedged.read(&mut taken).await.is_ok_and(|bytes| bytes > 0) {} });
    gone.await;
    let took = began.elapsed();
    let settings = PeerSettings::default();
    assert!(took <= settings.silent_max + settings.ping_every, "{took:?}");
    assert!(took >= settings.silent_max, "{took:?}");
    assert_eq!(one.counters.counts().silent, 1);

    one.peers.send(server(2), beat(3));
    let mut again = within(Memory::accept(&mut listener)).await.expect("dialed anew");
    answer(&mut again, identity(server(2)), &SECRET, [4; 32]).await.expect("shakes hands");
    let frame = within(frame::read(&mut again, 1 << 20, &mut Vec::new())).await.expect("a frame");
    assert_eq!(frame, frame::Frame::Messages(vec![beat(3)]));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_fills_its_queue_and_no_more() {
    let network = Memory::default();
    let mut listener = network.listen("two:1").await.expect("listens");
    let settings = PeerSettings { queue_messages_max: 100, ..PeerSettings::default() };
    let mut one = Node::start_with(&network, server(1), None, &[(2, "two:1")], settings).await;
    for number in 0..1_000 {
        one.peers.send(server(2), beat(number));
    }
    assert_eq!(one.counters.counts().dropped, 900);
    let mut stream = within(Memory::accept(&mut listener)).await.expect("dialed");
    answer(&mut stream, identity(server(2)), &SECRET, [3; 32]).await.expect("shakes hands");
    let frame = within(frame::read(&mut stream, 1 << 20, &mut Vec::new())).await.expect("a frame");
    assert_eq!(frame, frame::Frame::Messages((0..100).map(beat).collect()));
}

/// A stream to `two:1` that has shaken hands as this node.
async fn accepted_as(network: &Memory, node: NodeId) -> DuplexStream {
    let mut stream = network.connect("two:1").await.expect("connects");
    dial(&mut stream, identity(node), server(2), &SECRET, [7; 32]).await.expect("shakes hands");
    stream
}

#[tokio::test(start_paused = true)]
async fn a_bad_frame_closes_its_connection_alone() {
    let network = Memory::default();
    let mut two = Node::start(&network, server(2), Some("two:1"), &[]).await;
    let mut good = accepted_as(&network, server(1)).await;
    let mut bad = accepted_as(&network, server(3)).await;
    let mut huge = accepted_as(&network, server(4)).await;
    bad.write_all(&[7; 40]).await.expect("written");
    let mut announced = u32::MAX.to_le_bytes().to_vec();
    announced.extend_from_slice(&[0; 5]);
    huge.write_all(&announced).await.expect("written");
    for stream in [&mut bad, &mut huge] {
        assert_eq!(within(stream.read(&mut [0; 64])).await.ok(), Some(0));
    }
    let mut frame = Vec::new();
    frame::write_messages(&[beat(1)], 1 << 20, &mut frame);
    good.write_all(&frame).await.expect("written");
    assert_eq!(two.next().await, (server(1), vec![beat(1)]));
    assert_eq!(two.counters.counts().damaged, 2);
}

#[tokio::test(start_paused = true)]
async fn a_second_connection_of_a_peer_takes_the_place_of_the_first() {
    let network = Memory::default();
    let mut two = Node::start(&network, server(2), Some("two:1"), &[]).await;
    let balancer = NodeId::Balancer(BalancerId(1));
    let mut first = accepted_as(&network, balancer).await;
    let mut frame = Vec::new();
    frame::write_messages(&[beat(1)], 1 << 20, &mut frame);
    first.write_all(&frame).await.expect("written");
    two.next().await;
    let mut second = accepted_as(&network, balancer).await;
    assert_eq!(within(first.read(&mut [0; 64])).await.ok(), Some(0), "the first is closed");
    two.peers.send(balancer, home());
    let frame = within(frame::read(&mut second, 1 << 20, &mut Vec::new())).await.expect("a frame");
    assert_eq!(frame, frame::Frame::Messages(vec![home()]));

    // And one that says nothing for long is closed.
    let began = Instant::now();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(100), second.read_to_end(&mut rest)).await.expect("in time").expect("closed");
    assert!(began.elapsed() <= PeerSettings::default().idle_max, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_balancer_dials_only_once_it_knows_who_it_is() {
    let network = Memory::default();
    let mut two = Node::start(&network, server(2), Some("two:1"), &[]).await;
    let (introduce, known) = watch::channel(None);
    let (_book, map) = watch::channel(Some(map(1, &[(2, "two:1")])));
    let parts = PeerParts {
        network: network.clone(),
        settings: PeerSettings::default(),
        secret: SECRET,
        entropy: Entropy::from_seed(1),
        identity: known,
        book: map,
        counters: Arc::new(Counters::default()),
    };
    let (mut peers, _inbound) = Peers::start(parts, None);
    peers.send(server(2), beat(1));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let balancer = NodeId::Balancer(BalancerId(4));
    introduce.send_replace(Some(identity(balancer)));
    peers.send(server(2), beat(2));
    assert_eq!(two.next().await, (balancer, vec![beat(2)]));
}
