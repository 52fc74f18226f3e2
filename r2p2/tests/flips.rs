//! One flipped bit in any packet of ours: it is refused by everyone, and nobody takes it for a plain
//! packet (protocol §1).

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use bytes::Bytes;
use r2p2::{
    CheckSeed, ClientConfig, ClientEndpoint, Header, Identity, MessageConfig, MessageReceiver,
    MessageSender, MessageType, Missing, Options, Outbox, Packet, Policy, ReplyTo, ServerConfig,
    ServerEndpoint, Session, Time, pass_on, refuse,
};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4001);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 8000);
const SWITCH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 9000);
const SESSION: Session = Session { client: 9, sequence: 4, lowest: 1 };
const CLUSTER: u64 = 0x0123_4567_89AB_CDEF;

fn seed() -> CheckSeed {
    CheckSeed::of(CLUSTER)
}

fn with_session() -> Options {
    Options { session: Some(SESSION), ..Options::NONE }
}

fn drain(outbox: &mut Outbox) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    outbox.drain(|batch| sent.extend(batch.datagrams().map(<[u8]>::to_vec)));
    sent
}

fn client() -> ClientEndpoint {
    let mut client = ClientEndpoint::new(ClientConfig::default(), 1);
    client.set_check_seed(seed());
    client
}

fn server() -> ServerEndpoint {
    let mut server = ServerEndpoint::new(ServerConfig::default(), 1);
    server.set_check_seed(seed());
    server.set_switches(vec![SWITCH]);
    server
}

/// The packets of a request, as the leader asks for them, and what the leader says meanwhile.
fn request(options: Options, size: usize) -> Vec<Vec<u8>> {
    let (mut client, mut server, mut outbox) = (client(), server(), Outbox::new());
    let body = Bytes::from(vec![0xA5; size]);
    let to = Arc::from([SERVER]);
    client.request(Time::ZERO, &to, Policy::Replicated, options, body, &mut outbox).unwrap();
    let mut seen = Vec::new();
    let mut sent = drain(&mut outbox);
    let mut is_complete = false;
    while !sent.is_empty() {
        seen.extend(sent.iter().cloned());
        for datagram in &sent {
            let to_server = r2p2::message_type(datagram) == Some(MessageType::Request);
            if to_server {
                let got = server.handle_datagram(Time::ZERO, CLIENT, datagram, &mut outbox);
                is_complete |= got.unwrap().is_some();
            } else {
                drop(client.handle_datagram(Time::ZERO, SERVER, datagram, &mut outbox).unwrap());
            }
        }
        sent = drain(&mut outbox);
    }
    assert!(is_complete);
    seen
}

/// Returns what a server says to a client and a switch.
fn answers() -> Vec<Vec<u8>> {
    let (mut server, mut outbox) = (server(), Outbox::new());
    let to = ReplyTo { address: CLIENT, request_id: 7 };
    let identity = Some(SESSION.identity());
    let replies = [
        Options { identity, ..Options::NONE },
        Options { identity, outcome: Some(2), ..Options::NONE },
        Options::REPAIRABLE,
    ];
    for options in &replies {
        for size in [0, 5, 3000] {
            let body = vec![0x5A; size];
            server.respond(Time::ZERO, to, options, &body[..], &mut outbox).unwrap();
        }
        server.drop_request(to, options, &mut outbox);
    }
    server.feedback(SWITCH, to, identity, &mut outbox);
    drain(&mut outbox)
}

fn acks() -> Vec<Vec<u8>> {
    let ack = |bitmap: &[u8]| {
        let header = Header::single(MessageType::Ack, Policy::Fixed, 7);
        let missing = Some(Missing::new(3, bitmap));
        let mut out = Vec::new();
        Packet { missing, ..Packet::new(header, b"ACK") }.encode(seed(), &mut out);
        out
    };
    (0..=160).map(|length| ack(&vec![0xF0; length])).collect()
}

fn messages() -> Vec<Vec<u8>> {
    let mut outbox = Outbox::new();
    let types = [MessageType::RaftRequest, MessageType::RaftReply, MessageType::RaftMessage];
    for message_type in types {
        for size in [0, 1, 60, 3000] {
            // Every request id is as good as another: these are near those of other types.
            for first_id in [0, 0x0100, 0x8001] {
                let mut sender = MessageSender::new(first_id);
                sender.send(message_type, SERVER, &vec![3; size], &mut outbox).unwrap();
            }
        }
    }
    drain(&mut outbox)
}

/// A packet with each set of the options, and with the bodies that look most like options.
fn every_set_of_options() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for set in 1..1_u8 << 7 {
        let has = |bit: u8| set & 1 << bit != 0;
        let options = Options {
            session: has(0).then_some(SESSION),
            request_kind: has(1).then_some(2),
            identity: has(2).then_some(Identity { client: 9, sequence: 4 }),
            outcome: has(3).then_some(3),
            checksum: has(4).then_some(0x0204_0608),
            undroppable: has(5),
            checked: has(6),
            ..Options::NONE
        };
        for body in [&[][..], &[2, 6, 10, 0, 0, 1, 0x10, 1], &[0; 40]] {
            let header = Header::single(MessageType::Request, Policy::Replicated, 7);
            let mut out = Vec::new();
            Packet { options, ..Packet::new(header, body) }.encode(seed(), &mut out);
            packets.push(out);
        }
    }
    packets
}

fn passed_on(datagram: &[u8]) -> Vec<u8> {
    let mut outbox = Outbox::new();
    pass_on(datagram, CLIENT, SERVER, &mut outbox);
    drain(&mut outbox).remove(0)
}

/// Every datagram that differs from this one in a bit, and where.
fn flips(datagram: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
    (0..datagram.len() * 8).map(|bit| {
        let mut flipped = datagram.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit / 8, flipped)
    })
}

fn assert_refused(datagram: &[u8], right: CheckSeed) {
    assert!(Packet::open(datagram, right).is_ok(), "it is right as it was sent");
    for (at, flipped) in flips(datagram) {
        for seed in [right, seed(), CheckSeed::NONE, CheckSeed::of(1)] {
            let opened = Packet::open(&flipped, seed);
            assert!(opened.is_err(), "byte {at} of {datagram:02x?}: {opened:?}");
        }
    }
}

#[test]
fn every_packet_of_ours_is_refused_with_any_bit_flipped() {
    let open = Options { request_kind: Some(1), ..with_session() };
    let undroppable = Options { undroppable: true, ..with_session() };
    let mut packets = Vec::new();
    for options in [with_session(), open, undroppable, Options::REPAIRABLE] {
        for size in [0, 8, 3000] {
            packets.extend(request(options, size));
        }
    }
    packets.extend(answers());
    packets.extend(acks());
    packets.extend(every_set_of_options());
    for packet in &packets {
        assert_refused(packet, seed());
    }
    for packet in messages() {
        assert_refused(&packet, CheckSeed::NONE);
    }
}

#[test]
fn of_what_a_switch_passes_on_no_flip_but_in_the_address_is_taken() {
    // The switch computes nothing, so that ORIGIN itself is not covered: the reply goes astray.
    let mut packets = request(with_session(), 3000);
    packets.retain(|it| r2p2::message_type(it) == Some(MessageType::Request));
    packets.extend(every_set_of_options());
    for packet in packets {
        let passed = passed_on(&packet);
        let expected = Packet::open(&passed, seed()).unwrap();
        for (at, flipped) in flips(&passed) {
            match Packet::open(&flipped, seed()) {
                Ok(opened) => {
                    assert!((10..16).contains(&at), "byte {at} of {passed:02x?}");
                    let options = Options { origin: expected.options.origin, ..opened.options };
                    assert_eq!(Packet { options, ..opened }, expected);
                }
                Err(_) => assert!(!(10..16).contains(&at), "byte {at} is of the address"),
            }
        }
    }
}

#[test]
fn endpoints_do_nothing_about_a_flipped_packet() {
    for datagram in request(with_session(), 20).iter().chain(&request(with_session(), 3000)) {
        let is_request = r2p2::message_type(datagram) == Some(MessageType::Request);
        for (_, flipped) in flips(datagram).filter(|_| is_request) {
            let (mut server, mut outbox) = (server(), Outbox::new());
            assert!(server.handle_datagram(Time::ZERO, CLIENT, &flipped, &mut outbox).is_err());
            assert!(outbox.is_empty() && server.poll_timeout().is_none());
        }
    }
    let (mut client, mut outbox) = (client(), Outbox::new());
    let to = Arc::from([SERVER]);
    let body = Bytes::from_static(b"body");
    let (options, policy) = (with_session(), Policy::Replicated);
    client.request(Time::ZERO, &to, policy, options, body, &mut outbox).unwrap();
    drain(&mut outbox);
    for datagram in answers() {
        for (_, flipped) in flips(&datagram) {
            assert!(client.handle_datagram(Time::ZERO, SERVER, &flipped, &mut outbox).is_err());
            assert!(outbox.is_empty() && client.outstanding_count() == 1);
        }
    }
    let mut receiver = MessageReceiver::new(MessageConfig::default(), 1);
    for datagram in messages() {
        for (_, flipped) in flips(&datagram) {
            assert!(receiver.handle_datagram(Time::ZERO, SERVER, &flipped).is_err());
        }
    }
}

#[test]
fn packets_of_another_cluster_are_refused() {
    let packet = &request(with_session(), 20)[0];
    for other in [CheckSeed::NONE, CheckSeed::of(CLUSTER ^ 1), CheckSeed::of(CLUSTER << 1)] {
        assert!(Packet::open(packet, other).is_err());
    }
    // A refusal by a switch has the request's seed.
    let mut outbox = Outbox::new();
    refuse(&Packet::open(packet, seed()).unwrap(), CLIENT, seed(), &mut outbox);
    assert_refused(&drain(&mut outbox)[0], seed());
}

#[test]
fn packets_of_replicas_without_a_check_are_refused() {
    for message_type in [MessageType::RaftRequest, MessageType::RaftReply, MessageType::RaftMessage]
    {
        let mut datagram = Vec::new();
        Packet::new(Header::single(message_type, Policy::Fixed, 1), b"")
            .encode(CheckSeed::NONE, &mut datagram);
        assert!(Packet::open(&datagram, CheckSeed::NONE).is_err());
    }
    // So are options that nobody knows.
    let unknown = [0xCC, 10, 0x02, 0xC0, 0, 1, 0, 1, 99, 0];
    assert!(Packet::parse(&unknown).is_ok() && Packet::open(&unknown, CheckSeed::NONE).is_err());
}
