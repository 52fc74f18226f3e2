//! Exchanges between the original C client and server, byte for byte: fed one side of a capture,
//! our endpoint must produce the other side. See `captures/README.md`.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use r2p2::{
    ClientConfig, ClientEndpoint, ClientEventKind, MessageType, Options, Outbox, Packet,
    ServerConfig, ServerEndpoint, Time,
};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4001);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 8000);

const CAPTURES: [&str; 8] = [
    "echo-4-fixed",
    "echo-8-lb",
    "request-1464",
    "request-1465",
    "request-4000",
    "reply-1465",
    "reply-4000",
    "both-20000",
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Client,
    Server,
}

/// The datagrams of a capture in the order seen on the wire, with who sent them.
fn load(name: &str) -> Vec<(Side, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let text = fs::read_to_string(directory.join(name).with_extension("hex")).unwrap();
    let digits = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).expect("hexadecimal")
    };
    text.lines()
        .map(|line| {
            let (direction, hex) = line.split_once(' ').unwrap();
            let side = match direction {
                "client>server" => Side::Client,
                "server>client" => Side::Server,
                other => panic!("a line begins with {other}"),
            };
            (side, hex.as_bytes().chunks(2).map(digits).collect())
        })
        .collect()
}

/// The bodies of the messages of a type, by request id.
fn bodies(capture: &[(Side, Vec<u8>)], message_type: MessageType) -> BTreeMap<u16, Vec<u8>> {
    let mut bodies: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    for (_, datagram) in capture {
        let packet = Packet::parse(datagram).unwrap();
        if packet.header.message_type == message_type {
            let body = bodies.entry(packet.header.request_id).or_default();
            body.extend_from_slice(packet.body);
        }
    }
    bodies
}

fn drain(outbox: &mut Outbox, to: SocketAddrV4, sent: &mut VecDeque<Vec<u8>>) {
    outbox.drain(|batch| {
        assert_eq!(batch.destination, to);
        sent.extend(batch.datagrams().map(<[u8]>::to_vec));
    });
}

#[test]
fn the_captures_are_complete() {
    let sizes = |name| {
        let capture = load(name);
        let size = |message_type| bodies(&capture, message_type)[&1].len();
        (size(MessageType::Request), size(MessageType::Response))
    };
    let expected =
        [(4, 4), (8, 8), (1464, 8), (1465, 8), (4000, 8), (8, 1465), (8, 4000), (20_000, 20_000)];
    assert_eq!(CAPTURES.map(sizes), expected);
    for name in CAPTURES {
        let capture = load(name);
        for message_type in [MessageType::Request, MessageType::Response] {
            for body in bodies(&capture, message_type).values() {
                let pattern = (b'a'..=b'z').cycle().take(body.len());
                assert!(body.iter().copied().eq(pattern), "{name}");
            }
        }
    }
}

#[test]
fn the_server_answers_as_the_original_does() {
    for name in CAPTURES {
        let capture = load(name);
        let requests = bodies(&capture, MessageType::Request);
        let replies = bodies(&capture, MessageType::Response);
        let mut server = ServerEndpoint::new(ServerConfig::default(), 1);
        let mut outbox = Outbox::new();
        let mut sent = VecDeque::new();
        for (line, (side, datagram)) in capture.iter().enumerate() {
            if *side == Side::Server {
                assert_eq!(sent.pop_front().as_ref(), Some(datagram), "{name}, line {line}");
                continue;
            }
            assert!(sent.is_empty(), "{name}, line {line}: sent too early");
            let incoming =
                server.handle_datagram(Time::ZERO, CLIENT, datagram, &mut outbox).unwrap();
            if let Some(incoming) = incoming {
                let id = incoming.reply_to.request_id;
                assert_eq!(*incoming.body, requests[&id], "{name}, line {line}");
                let options = incoming.reply_options();
                server
                    .respond(
                        Time::ZERO,
                        incoming.reply_to,
                        &options,
                        &replies[&id][..],
                        &mut outbox,
                    )
                    .unwrap();
            }
            drain(&mut outbox, CLIENT, &mut sent);
        }
        assert!(sent.is_empty(), "{name}: more is sent than by the original");
    }
}

#[test]
fn the_client_asks_as_the_original_does() {
    for name in CAPTURES {
        let capture = load(name);
        let mut requests = bodies(&capture, MessageType::Request);
        let mut replies = bodies(&capture, MessageType::Response);
        let destinations = Arc::from([SERVER]);
        // The original counts its requests from 1, and so does an endpoint with this seed.
        let mut client = ClientEndpoint::new(ClientConfig::default(), 1);
        let mut outbox = Outbox::new();
        let mut sent = VecDeque::new();
        for (line, (side, datagram)) in capture.iter().enumerate() {
            if *side == Side::Server {
                assert!(sent.is_empty(), "{name}, line {line}: sent too early");
                let id = Packet::parse(datagram).unwrap().header.request_id;
                let event =
                    client.handle_datagram(Time::ZERO, SERVER, datagram, &mut outbox).unwrap();
                if let Some(event) = event {
                    let ClientEventKind::Reply { options, body } = event.kind else {
                        panic!("{name}, line {line}: {:?}", event.kind);
                    };
                    assert_eq!(options, Options::NONE);
                    assert_eq!(*body, replies.remove(&id).unwrap(), "{name}, line {line}");
                }
            } else if sent.is_empty() {
                let packet = Packet::parse(datagram).unwrap();
                let body = requests.remove(&packet.header.request_id).unwrap();
                client
                    .request(
                        Time::ZERO,
                        &destinations,
                        packet.header.policy,
                        Options::NONE,
                        Bytes::from(body),
                        &mut outbox,
                    )
                    .unwrap();
            }
            drain(&mut outbox, SERVER, &mut sent);
            if *side == Side::Client {
                assert_eq!(sent.pop_front().as_ref(), Some(datagram), "{name}, line {line}");
            }
        }
        assert!(sent.is_empty(), "{name}: more is sent than by the original");
        assert!(requests.is_empty() && replies.is_empty(), "{name}");
        assert_eq!(client.outstanding_count(), 0);
    }
}
