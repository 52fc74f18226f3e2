//! Whole nodes, on their own threads, sockets and disks, behind a proxy that loses, delays, doubles
//! and damages what they and a client send.

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use hovercraft::{
    Client, ClusterLimits, Context, Node, NodeId, SnapshotWriter, StateMachine,
    admin::{self, NodeStatus},
};
use r2p2::HEADER_BYTES;
use support::{PATIENCE, is_level};
use tokio::task::JoinSet;

const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// Longest time for which packets suffer.
const STORM: Duration = Duration::from_secs(15);

/// The storm is over when so many writes were answered and so many packets damaged.
const ANSWERED_MIN: u64 = 400;
const DAMAGED_MIN: u64 = 5;

/// Packets of a thousand that are lost, doubled, late and damaged.
const LOST: u32 = 50;
const DOUBLED: u32 = 50;
const LATE: u32 = 50;
const DAMAGED: u32 = 20;

/// Longest delay of a packet.
const LATE_MAX_US: u64 = 30_000;

/// Counts how often each command was executed.
#[derive(Default)]
struct Tally(BTreeMap<Vec<u8>, u64>);

impl StateMachine for Tally {
    fn execute(&mut self, _: &Context, command: &[u8], reply: &mut Vec<u8>) {
        let count = self.0.entry(command.to_vec()).or_default();
        *count += 1;
        reply.extend_from_slice(&count.to_be_bytes());
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.0.get(query).copied().unwrap_or(0).to_be_bytes());
    }

    fn snapshot(&self) -> SnapshotWriter {
        let counts = self.0.clone();
        Box::new(move |to| {
            for (command, count) in counts {
                to.write_all(&(command.len() as u64).to_be_bytes())?;
                to.write_all(&command)?;
                to.write_all(&count.to_be_bytes())?;
            }
            Ok(())
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        self.0.clear();
        let mut rest = &bytes[..];
        while let Some((len, tail)) = rest.split_first_chunk::<8>() {
            let (command, tail) = tail.split_at(u64::from_be_bytes(*len) as usize);
            let (count, tail) = tail.split_first_chunk::<8>().ok_or(io::ErrorKind::InvalidData)?;
            self.0.insert(command.to_vec(), u64::from_be_bytes(*count));
            rest = tail;
        }
        Ok(())
    }
}

/// A datagram on its way: through which socket, and where to.
#[derive(Debug)]
struct Ticket {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    datagram: Vec<u8>,
}

/// The harm that datagrams come to.
struct Storm {
    is_over: AtomicBool,
    is_stopped: AtomicBool,
    flights: mpsc::Sender<(Instant, Ticket)>,
    damaged: AtomicU64,
    passed: AtomicU64,
    answered: AtomicU64,
}

impl Storm {
    /// Begins; what is late waits in a thread of its own.
    fn begin() -> Arc<Self> {
        let (flights, coming) = mpsc::channel();
        thread::spawn(move || fly(&coming));
        let (is_over, is_stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        let [damaged, passed, answered] = [const { AtomicU64::new(0) }; 3];
        Arc::new(Self { is_over, is_stopped, flights, damaged, passed, answered })
    }

    fn has_seen_enough(&self) -> bool {
        self.answered.load(Ordering::Relaxed) >= ANSWERED_MIN
            && self.damaged.load(Ordering::Relaxed) >= DAMAGED_MIN
    }

    fn pass(&self, rng: &mut fastrand::Rng, socket: &Arc<UdpSocket>, to: SocketAddr, bytes: &[u8]) {
        let is_calm = self.is_over.load(Ordering::Relaxed);
        let mut happens = |per_mille| !is_calm && rng.u32(..1000) < per_mille;
        if happens(LOST) {
            return;
        }
        let copies = 1 + usize::from(happens(DOUBLED));
        let (is_late, is_damaged) = (happens(LATE), happens(DAMAGED));
        let mut datagram = bytes.to_vec();
        if is_damaged && is_checked(&datagram) {
            let bit = rng.usize(..datagram.len() * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
        self.passed.fetch_add(1, Ordering::Relaxed);
        for copy in 0..copies {
            let late_us = if is_late || copy > 0 { rng.u64(..LATE_MAX_US) } else { 0 };
            let ticket = Ticket { socket: Arc::clone(socket), to, datagram: datagram.clone() };
            // At the end nobody is left to carry it.
            let _ = self.flights.send((Instant::now() + Duration::from_micros(late_us), ticket));
        }
    }

    /// Stands before a node: what comes to `front` goes to it, and what it answers goes back.
    fn stand_before(self: &Arc<Self>, node: SocketAddr, seed: u64) -> SocketAddrV4 {
        let front = Arc::new(socket());
        let address = v4(front.local_addr().expect("a bound socket has an address"));
        let storm = Arc::clone(self);
        thread::spawn(move || storm.carry(&front, node, seed));
        address
    }

    fn carry(self: &Arc<Self>, front: &Arc<UdpSocket>, node: SocketAddr, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        self.receive(front, |datagram, from| {
            let back = backs.entry(from).or_insert_with(|| {
                let back = Arc::new(socket());
                let (storm, front, own) = (Arc::clone(self), Arc::clone(front), Arc::clone(&back));
                let mut rng = rng.fork();
                thread::spawn(move || {
                    storm.receive(&own, |datagram, _| storm.pass(&mut rng, &front, from, datagram));
                });
                back
            });
            self.pass(&mut rng, back, node, datagram);
        });
    }

    fn receive(&self, socket: &UdpSocket, mut each: impl FnMut(&[u8], SocketAddr)) {
        let mut buffer = [0; 2048];
        while !self.is_stopped.load(Ordering::Relaxed) {
            // It ends now and then, to look whether all is over.
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                each(&buffer[..len], from);
            }
        }
    }
}

/// Returns whether whoever gets a datagram can tell that a bit of it is another: one with options
/// has a check.
fn is_checked(datagram: &[u8]) -> bool {
    datagram.get(1).is_some_and(|header_bytes| usize::from(*header_bytes) > HEADER_BYTES)
}

/// Sends each datagram when it is due.
fn fly(coming: &mpsc::Receiver<(Instant, Ticket)>) {
    // By the time at which it is due, and its number.
    let mut flying: BTreeMap<(Instant, u64), Ticket> = BTreeMap::new();
    let mut number = 0;
    loop {
        let now = Instant::now();
        while let Some(first) = flying.first_entry().filter(|first| first.key().0 <= now) {
            let Ticket { socket, to, datagram } = first.remove();
            // Whoever is not there misses it.
            let _ = socket.send_to(&datagram, to);
        }
        let next = flying.keys().next().map(|(due, _)| due.saturating_duration_since(now));
        match coming.recv_timeout(next.unwrap_or(Duration::from_secs(1))) {
            Ok((due, ticket)) => {
                number += 1;
                flying.insert((due, number), ticket);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind(LOOPBACK).expect("a free port");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out can be set");
    socket
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("only IPv4 is used here"),
    }
}

/// Writes until the storm is over; the commands that were answered, and those that were not.
async fn write_on(
    client: Client,
    caller: u32,
    storm: Arc<Storm>,
    until: Instant,
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut done, mut unknown) = (Vec::new(), Vec::new());
    for number in 0.. {
        if Instant::now() >= until || storm.has_seen_enough() {
            break;
        }
        // Now and then one of several packets.
        let padding = if number % 8 == 0 { 5000 } else { 10 };
        let command = [format!("{caller} {number} ").as_bytes(), &vec![b'.'; padding]].concat();
        match client.call(command.clone()).await {
            Ok(reply) => {
                assert_eq!(reply[..], 1u64.to_be_bytes(), "{caller} {number} was executed before");
                storm.answered.fetch_add(1, Ordering::Relaxed);
                done.push(command);
            }
            Err(_) => unknown.push(command),
        }
    }
    (done, unknown)
}

#[tokio::test]
async fn nodes_behind_a_storm_lose_nothing_and_do_nothing_twice() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let directory = tempfile::tempdir().unwrap();
    let storm = Storm::begin();
    let (mut nodes, mut fronts) = (Vec::new(), Vec::new());
    for id in (1..=3).map(NodeId) {
        let builder = Node::builder(id, LOOPBACK).data(directory.path().join(id.to_string()));
        // Snapshots are taken and travel too.
        let node = builder.log_bytes_max(1 << 20).start(Tally::default()).unwrap();
        let own = seed ^ u64::from(id.0);
        fronts.push((id, storm.stand_before(node.address().into(), own)));
        nodes.push(node);
    }
    admin::init(&fronts, ClusterLimits::default(), PATIENCE).await.unwrap();
    let members = fronts.iter().map(|(_, address)| *address);
    let client = Client::builder().members(members).timeout(PATIENCE).connect().await.unwrap();
    let until = Instant::now() + STORM;
    let mut callers = JoinSet::new();
    for caller in 0..8 {
        callers.spawn(write_on(client.clone(), caller, Arc::clone(&storm), until));
    }
    let (mut done, mut unknown) = (Vec::new(), Vec::new());
    while let Some(written) = callers.join_next().await {
        let (answered, unanswered) = written.unwrap();
        done.extend(answered);
        unknown.extend(unanswered);
    }
    storm.is_over.store(true, Ordering::Relaxed);
    wait_until_level(&nodes).await;
    let count = async |command: &Vec<u8>| {
        let reply = client.query(command.clone()).await.unwrap();
        u64::from_be_bytes(reply[..].try_into().unwrap())
    };
    for command in &done {
        assert_eq!(count(command).await, 1, "an acknowledged write is there, once");
    }
    for command in &unknown {
        assert!(count(command).await <= 1, "what nobody was told of is not there twice");
    }
    let [passed, damaged] = [&storm.passed, &storm.damaged].map(|it| it.load(Ordering::Relaxed));
    println!(
        "{} writes, {} unknown, {passed} datagrams, {damaged} damaged",
        done.len(),
        unknown.len()
    );
    assert!(!done.is_empty(), "the storm leaves room for progress");
    storm.is_stopped.store(true, Ordering::Relaxed);
    for node in nodes {
        node.stop().unwrap();
    }
}

/// Waits until all replicas have applied the same, asked past the proxy.
async fn wait_until_level(nodes: &[Node]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut status: Vec<NodeStatus> = Vec::new();
        for node in nodes {
            status.push(admin::status(node.address(), PATIENCE).await.unwrap());
        }
        if is_level(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "the replicas are not level: {status:#?}");
        tokio::task::yield_now().await;
    }
}
