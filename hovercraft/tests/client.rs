//! The client on real sockets, against a server in mode `unreplicated`.

mod support;

use std::{
    collections::BTreeSet,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use bytes::Bytes;
use hovercraft::{
    CallError, CallOutcome, Client, ClusterLimits, ConnectError, Context, Mode, Node, NodeBuilder,
    NodeId, SnapshotWriter, StateMachine, admin::Answer, core::SessionGrant,
};
use r2p2::{MessageSender, MessageType, Outbox, ServerConfig, ServerEndpoint, Time};
use support::{Journal, PATIENCE};
use tokio::task::JoinSet;

const LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn builder() -> NodeBuilder {
    Node::builder(NodeId(1), LOOPBACK).mode(Mode::Unreplicated)
}

fn limits(session_window: u32) -> ClusterLimits {
    ClusterLimits { session_window, ..ClusterLimits::default() }
}

async fn connect(node: &Node) -> Client {
    let client = Client::builder().members([node.address()]).timeout(PATIENCE);
    client.connect().await.unwrap()
}

/// An address that receives and never answers.
fn mute() -> (UdpSocket, SocketAddrV4) {
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    let address = v4(socket.local_addr().unwrap());
    (socket, address)
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => unreachable!("only IPv4 is used here"),
    }
}

/// Answers with what it was asked.
struct Echo;

impl StateMachine for Echo {
    fn execute(&mut self, _: &Context, command: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(command);
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(query);
    }

    fn snapshot(&self) -> SnapshotWriter {
        Box::new(|_| Ok(()))
    }

    fn restore(&mut self, _: &mut dyn Read) -> io::Result<()> {
        Ok(())
    }
}

fn number(reply: &Bytes) -> u64 {
    u64::from_be_bytes(reply.as_ref().try_into().expect("the journal answers with 8 bytes"))
}

/// Makes calls from as many tasks, all at the same time.
async fn call_at_once(client: &Client, count: u64) -> BTreeSet<u64> {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let client = client.clone();
        calls.spawn(async move { number(&client.call("x").await.unwrap()) });
    }
    calls.join_all().await.into_iter().collect()
}

#[tokio::test]
async fn a_thousand_calls_at_once_are_executed_once_each() {
    let node = builder().start(Journal::default()).unwrap();
    let client = connect(&node).await;
    assert_eq!(call_at_once(&client, 1000).await, (1..=1000).collect());
    assert_eq!(number(&client.query("").await.unwrap()), 1000);
    let stats = client.stats();
    assert_eq!(stats.answered_by, [(node.address(), 1002)]);
    assert_eq!(stats.sessions_opened, 1);
    node.stop().unwrap();
}

#[tokio::test]
async fn more_callers_than_the_window_has_room_for_wait_for_their_turns() {
    let node = builder().limits(limits(4)).start(Journal::default()).unwrap();
    let client = connect(&node).await;
    assert_eq!(call_at_once(&client, 300).await, (1..=300).collect());
    // With a call that may be cancelled.
    assert_eq!(number(&client.call_until_known("x").await.unwrap()), 301);
    node.stop().unwrap();
}

/// A server that opens sessions with a window of two, and executes nothing but "answer".
async fn serve_little(socket: tokio::net::UdpSocket) {
    let mut endpoint = ServerEndpoint::new(ServerConfig::default(), 1);
    let mut sender = MessageSender::new(1);
    let (mut outbox, mut buffer) = (Outbox::new(), [0; 2000]);
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let from = v4(from);
        let datagram = &buffer[..length];
        if r2p2::message_type(datagram) == Some(MessageType::RaftRequest) {
            let answer = Answer::Cluster(0).encode();
            sender.send(MessageType::RaftReply, from, &answer, &mut outbox).unwrap();
            send(&socket, &mut outbox).await;
            continue;
        }
        let incoming = endpoint.handle_datagram(Time::ZERO, from, datagram, &mut outbox);
        if let Some(incoming) = incoming.unwrap() {
            let (to, options) = (incoming.reply_to, incoming.reply_options());
            let limits = ClusterLimits::default();
            let (client, window) = (7, 2);
            let request_bytes_max = limits.request_bytes_max;
            let lifetime = limits.session_lifetime;
            let grant = SessionGrant { client, window, request_bytes_max, lifetime }.encode();
            if incoming.options.request_kind.is_some() {
                endpoint.respond(Time::ZERO, to, &options, &grant[..], &mut outbox).unwrap();
            } else if incoming.body[..] == *b"answer" {
                endpoint.respond(Time::ZERO, to, &options, &b"done"[..], &mut outbox).unwrap();
            }
        }
        send(&socket, &mut outbox).await;
    }
}

async fn send(socket: &tokio::net::UdpSocket, outbox: &mut Outbox) {
    let mut replies = Vec::new();
    outbox.drain(|batch| {
        replies.extend(batch.datagrams().map(|datagram| (batch.destination, datagram.to_vec())));
    });
    for (to, reply) in replies {
        socket.send_to(&reply, to).await.unwrap();
    }
}

#[tokio::test]
async fn calls_whose_futures_are_dropped_make_room_for_others() {
    let socket = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let server = v4(socket.local_addr().unwrap());
    tokio::spawn(serve_little(socket));
    let client = Client::builder().members([server]).timeout(PATIENCE);
    let client = client.connect().await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        calls.spawn(async move { client.call("never answered").await });
    }
    // The others come first, and fill the window for as long as somebody waits for them.
    tokio::task::yield_now().await;
    let patient = client.with_timeout(Duration::from_millis(200));
    let error = patient.call("answer").await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(_)), "{error}");
    calls.shutdown().await;
    assert_eq!(client.call("answer").await, Ok("done".into()));
    assert_eq!(client.stats().answered(), 2);
}

#[tokio::test]
async fn large_requests_and_replies_arrive_whole() {
    let node = builder().start(Echo).unwrap();
    let client = connect(&node).await;
    for size in [0, 1, 1400, 1500, 3_000_000] {
        let body: Bytes = (0..size).map(|i: u32| i as u8).collect();
        assert_eq!(client.call(body.clone()).await, Ok(body.clone()));
        assert_eq!(client.query(body.clone()).await, Ok(body));
    }
    let bytes_max = ClusterLimits::default().request_bytes_max as usize;
    let error = client.call(vec![0; bytes_max + 1]).await.unwrap_err();
    assert_eq!(error, CallError::TooLarge { bytes: bytes_max + 1, bytes_max });
    node.stop().unwrap();
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_told_from_one_that_may_have() {
    let (_socket, nobody) = mute();
    let timeout = Duration::from_millis(100);
    let connected = Client::builder().members([nobody]).timeout(timeout).connect().await;
    assert!(matches!(connected, Err(ConnectError::TimedOut(after)) if after == timeout));

    let node = builder().start(Journal::default()).unwrap();
    let client = connect(&node).await;
    client.call("x").await.unwrap();
    node.stop().unwrap();
    let client = client.with_timeout(timeout);
    let error = client.call("x").await.unwrap_err();
    assert_eq!(error, CallError::TimedOut(timeout));
    assert_eq!(error.outcome(), CallOutcome::Unknown);
    let error = client.query("").await.unwrap_err();
    assert_eq!(error, CallError::QueryTimedOut(timeout));
}

#[tokio::test]
async fn in_mode_raft_the_next_replica_is_tried_and_then_remembered() {
    let node = builder().start(Journal::default()).unwrap();
    let (socket, nobody) = mute();
    let client = Client::builder().members([nobody, node.address()]).mode(Mode::Raft);
    let client = client.timeout(PATIENCE).connect().await.unwrap();
    // Connecting went to the first one; what follows goes to the one that answered. Only a retry,
    // when that is slow, goes to the other one again.
    let mut buffer = [0; 2000];
    socket.set_nonblocking(true).unwrap();
    let mut requests = || {
        let mut count = 0;
        while let Ok(length) = socket.recv(&mut buffer) {
            let kind = r2p2::message_type(&buffer[..length]);
            count += usize::from(kind == Some(MessageType::Request));
        }
        count
    };
    assert!(requests() > 0);
    let since = std::time::Instant::now();
    loop {
        client.call("x").await.unwrap();
        if requests() == 0 {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "every call goes to the one that never answers");
    }
    node.stop().unwrap();
}

#[tokio::test]
async fn a_multicast_group_reaches_the_server() {
    let group = SocketAddrV4::new(Ipv4Addr::new(239, 77, 0, 9), 17_431);
    let node = builder().multicast(group, Ipv4Addr::LOCALHOST).start(Journal::default());
    let node = match node {
        Ok(node) => node,
        Err(error) => return eprintln!("skipped, there is no multicast here: {error}"),
    };
    let client = Client::builder().multicast(group, Ipv4Addr::LOCALHOST).timeout(PATIENCE);
    let client = client.connect().await.unwrap();
    assert_eq!(number(&client.call("x").await.unwrap()), 1);
    assert_eq!(client.stats().answered_by, [(node.address(), 2)]);
    node.stop().unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    let group = SocketAddrV4::new(Ipv4Addr::new(239, 77, 0, 9), 17_431);
    let wrong = [
        (Client::builder(), "members"),
        (Client::builder().multicast(LOOPBACK, Ipv4Addr::LOCALHOST), "multicast"),
        (Client::builder().multicast(group, Ipv4Addr::LOCALHOST).mode(Mode::Raft), "multicast"),
    ];
    for (builder, expected) in wrong {
        match builder.connect().await {
            Err(ConnectError::Setting { setting, .. }) => assert_eq!(setting, expected),
            other => panic!("{other:?}"),
        }
    }
}
