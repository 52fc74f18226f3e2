//! What the server endpoint does, datagram by datagram, and one-way messages.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use r2p2::{
    CheckSeed, Feedback, Header, Identity, Incoming, MessageConfig, MessageReceiver, MessageSender,
    MessageType, Missing, Options, Outbox, Packet, Policy, ReplyTo, SendError, ServerConfig,
    ServerEndpoint, Session, Time, WireError,
};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4001);
const SWITCH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 9000);
const TO: ReplyTo = ReplyTo { address: CLIENT, request_id: 7 };
const SESSION: Session = Session { client: 9, sequence: 4, lowest: 1 };
const IDENTITY: Identity = SESSION.identity();

struct Fixture {
    server: ServerEndpoint,
    outbox: Outbox,
    now: Time,
}

impl Fixture {
    fn new(config: ServerConfig) -> Self {
        let mut server = ServerEndpoint::new(config, 1);
        server.set_switches(vec![SWITCH]);
        Self { server, outbox: Outbox::new(), now: Time::ZERO }
    }

    fn receive<'a>(
        &mut self,
        from: SocketAddrV4,
        datagram: &'a [u8],
    ) -> Result<Option<Incoming<'a>>, WireError> {
        self.server.handle_datagram(self.now, from, datagram, &mut self.outbox)
    }

    fn respond(&mut self, to: ReplyTo, options: Options, size: usize) {
        let body = Bytes::from(vec![7; size]);
        self.server.respond(self.now, to, &options, body, &mut self.outbox).unwrap();
    }

    fn sent(&mut self) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let mut sent = Vec::new();
        self.outbox.drain(|batch| {
            sent.extend(batch.datagrams().map(|bytes| (batch.destination, bytes.to_vec())));
        });
        sent
    }

    fn ask(&mut self, request_id: u16, missing: &[u8]) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let header = Header::single(MessageType::Ack, Policy::Fixed, request_id);
        let first = u16::from_be_bytes([missing[0], missing[1]]);
        let missing = Some(Missing::new(first, &missing[2..]));
        let mut ack = Vec::new();
        Packet { missing, ..Packet::new(header, b"ACK") }.encode(CheckSeed::NONE, &mut ack);
        self.receive(CLIENT, &ack).unwrap();
        self.sent()
    }
}

fn encode(message_type: MessageType, request_id: u16, options: Options, body: &[u8]) -> Vec<u8> {
    let header = Header::single(message_type, Policy::Replicated, request_id);
    encode_packet(header, options, body)
}

/// A packet of a request of three.
fn part(index: u16, options: Options) -> Vec<u8> {
    part_of(3, index, options)
}

fn part_of(count: u16, index: u16, options: Options) -> Vec<u8> {
    let header = Header {
        message_type: MessageType::Request,
        policy: Policy::Replicated,
        first: index == 0,
        last: index == count - 1,
        request_id: 7,
        order: if index == 0 { count } else { index },
    };
    encode_packet(header, options, &[b'a' + index as u8; 14])
}

fn encode_packet(header: Header, options: Options, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Packet { options, ..Packet::new(header, body) }.encode(CheckSeed::NONE, &mut out);
    out
}

fn with_session() -> Options {
    Options { session: Some(SESSION), ..Options::NONE }
}

fn with_identity() -> Options {
    Options { identity: Some(IDENTITY), ..Options::NONE }
}

fn orders(sent: &[(SocketAddrV4, Vec<u8>)]) -> Vec<u16> {
    let order = |bytes: &[u8]| {
        let header = Packet::parse(bytes).unwrap().header;
        if header.first { 0 } else { header.order }
    };
    sent.iter().map(|(_, bytes)| order(bytes)).collect()
}

#[test]
fn a_request_is_handed_over_with_what_a_reply_needs() {
    let mut it = Fixture::new(ServerConfig::default());
    let options = Options { origin: Some(CLIENT), request_kind: Some(2), ..with_session() };
    let datagram = encode(MessageType::Request, 7, options, b"body");
    let incoming = it.receive(SWITCH, &datagram).unwrap().expect("a request");
    assert_eq!(incoming.reply_to, TO, "ORIGIN is the client");
    assert_eq!(incoming.policy, Policy::Replicated);
    assert_eq!(incoming.options, Options { checked: true, ..options });
    let reply = Options { checked: true, ..with_identity() };
    assert_eq!(incoming.reply_options(), reply);
    assert_eq!(*incoming.body, *b"body");
}

#[test]
fn a_passed_on_request_is_acknowledged_to_the_client() {
    let mut it = Fixture::new(ServerConfig::default());
    let options = Options { origin: Some(CLIENT), ..with_session() };
    it.receive(SWITCH, &part(0, options)).unwrap();
    let sent = it.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, CLIENT);
    let missing = Packet::parse(&sent[0].1).unwrap().missing.unwrap();
    assert_eq!(missing.indices().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn origin_is_believed_of_switches_alone() {
    let mut it = Fixture::new(ServerConfig::default());
    for options in [Options::NONE, with_session()] {
        let options = Options { origin: Some(CLIENT), ..options };
        let datagram = encode(MessageType::Request, 7, options, b"body");
        let stranger = SocketAddrV4::new(*SWITCH.ip(), 9001);
        let refused = it.receive(stranger, &datagram).unwrap_err();
        assert_eq!(refused, WireError::UntrustedOrigin);
        assert!(it.receive(SWITCH, &datagram).unwrap().is_some());
        let ack = encode(MessageType::Ack, 7, options, b"ACK");
        assert_eq!(it.receive(stranger, &ack).unwrap_err(), WireError::UntrustedOrigin);
    }
}

#[test]
fn a_plain_request_that_was_passed_on_is_acknowledged_as_the_original_does() {
    let mut it = Fixture::new(ServerConfig::default());
    let options = Options { origin: Some(CLIENT), ..Options::NONE };
    it.receive(SWITCH, &part(0, options)).unwrap();
    assert_eq!(it.sent(), [(CLIENT, b"\xcc\x08\x31\xc0\x00\x07\x00\x01ACK".to_vec())]);
}

#[test]
fn a_plain_first_packet_that_the_network_doubled_is_acknowledged_once() {
    let mut it = Fixture::new(ServerConfig::default());
    let first = part(0, Options::NONE);
    it.receive(CLIENT, &first).unwrap();
    it.receive(CLIENT, &first).unwrap();
    assert_eq!(it.sent().len(), 1);
    // A retry is acknowledged.
    it.now += Duration::from_millis(20);
    it.receive(CLIENT, &first).unwrap();
    assert_eq!(it.sent().len(), 1);
}

#[test]
fn nothing_is_asked_of_a_client_before_its_first_packet() {
    let mut it = Fixture::new(ServerConfig::default());
    it.receive(CLIENT, &part(1, with_session())).unwrap();
    it.receive(CLIENT, &part(2, with_session())).unwrap();
    assert!(it.sent().is_empty());
    let expiry = Some(it.now + Duration::from_secs(2));
    assert_eq!(it.server.poll_timeout(), expiry, "nor later");
    let first = part(0, with_session());
    let incoming = it.receive(CLIENT, &first).unwrap().expect("complete");
    let body = [[b'a'; 14], [b'b'; 14], [b'c'; 14]].concat();
    assert_eq!(*incoming.body, body[..]);
    assert!(it.sent().is_empty(), "there is nothing to ask for");
}

#[test]
fn a_replica_that_may_not_acknowledge_is_silent() {
    let mut it = Fixture::new(ServerConfig { request_bytes_max: 30, ..ServerConfig::default() });
    it.server.set_acknowledging(false);
    let small =
        [part(0, with_session()), encode(MessageType::Request, 8, with_session(), &[7; 31])];
    for datagram in &small {
        assert!(it.receive(CLIENT, datagram).unwrap().is_none());
    }
    while let Some(next) = it.server.poll_timeout() {
        it.now = next;
        it.server.handle_timeout(next, &mut it.outbox);
    }
    assert!(it.sent().is_empty(), "P4");
    assert_eq!(it.server.counters().too_large, 2);
}

#[test]
fn a_leader_that_is_deposed_asks_for_nothing_more() {
    let mut it = Fixture::new(ServerConfig::default());
    it.receive(CLIENT, &part(0, with_session())).unwrap();
    assert_eq!(it.sent().len(), 1);
    it.server.set_acknowledging(false);
    while let Some(next) = it.server.poll_timeout() {
        it.now = next;
        it.server.handle_timeout(next, &mut it.outbox);
    }
    assert!(it.sent().is_empty(), "P4");
}

#[test]
fn missing_packets_of_a_request_are_asked_for_until_it_expires() {
    let mut it = Fixture::new(ServerConfig::default());
    it.receive(CLIENT, &part(0, with_session())).unwrap();
    it.receive(CLIENT, &part(2, with_session())).unwrap();
    it.sent();
    let mut asked = 0;
    while let Some(next) = it.server.poll_timeout() {
        it.now = next;
        it.server.handle_timeout(next, &mut it.outbox);
        for (to, bytes) in it.sent() {
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!((to, packet.body), (CLIENT, &b"ACK"[..]));
            assert_eq!(packet.missing.unwrap().indices().collect::<Vec<_>>(), [1]);
            asked += 1;
        }
    }
    assert!((10..30).contains(&asked), "{asked}");
    assert_eq!(it.now, Time::ZERO + Duration::from_secs(2));
    assert_eq!(it.server.counters().expired, 1);
}

#[test]
fn a_request_that_is_too_large_gets_a_drop() {
    let mut it = Fixture::new(ServerConfig { request_bytes_max: 30, ..ServerConfig::default() });
    // By the packet count alone, and by the only packet.
    let many = part_of(4, 0, with_session());
    let single = encode(MessageType::Request, 7, with_session(), &[7; 31]);
    for datagram in [&many, &single] {
        assert!(it.receive(CLIENT, datagram).unwrap().is_none());
        let [(to, bytes)] = &it.sent()[..] else {
            panic!("one DROP");
        };
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!((*to, packet.body), (CLIENT, &b"DROP"[..]));
        assert_eq!(packet.header.message_type, MessageType::Drop);
        assert_eq!(packet.options.identity, Some(IDENTITY));
    }
    assert_eq!(it.server.counters().too_large, 2);
    assert_eq!(it.server.poll_timeout(), None, "nothing is held");
}

#[test]
fn a_request_that_turns_out_too_large_gets_a_drop() {
    let mut it = Fixture::new(ServerConfig { request_bytes_max: 20, ..ServerConfig::default() });
    let parts = [true, false].map(|first| {
        let header = Header {
            message_type: MessageType::Request,
            policy: Policy::Fixed,
            first,
            last: !first,
            request_id: 7,
            order: if first { 2 } else { 1 },
        };
        encode_packet(header, Options::NONE, &[7; 14])
    });
    it.receive(CLIENT, &parts[0]).unwrap();
    assert_eq!(it.sent().len(), 1, "an ACK");
    it.receive(CLIENT, &parts[1]).unwrap();
    // cc 08: no options, since the client sent none.
    assert_eq!(it.sent(), [(CLIENT, b"\xcc\x08\x41\xc0\x00\x07\x00\x01DROP".to_vec())]);
}

#[test]
fn feedback_names_the_request() {
    let mut it = Fixture::new(ServerConfig::default());
    it.server.feedback(SWITCH, TO, Some(IDENTITY), &mut it.outbox);
    it.server.feedback(SWITCH, TO, None, &mut it.outbox);
    let sent = it.sent();
    for ((to, bytes), identity) in sent.iter().zip([Some(IDENTITY), None]) {
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(*to, SWITCH);
        assert_eq!(packet.header.message_type, MessageType::Feedback);
        assert_eq!(packet.options.identity, identity);
        let feedback = Feedback::parse(packet.body).unwrap();
        assert_eq!((feedback.client, feedback.request_id), (CLIENT, 7));
    }
    assert_eq!(sent.len(), 2);
}

#[test]
fn a_large_reply_begins_with_a_window_and_goes_on_as_it_is_asked_for() {
    let mut it = Fixture::new(ServerConfig::default());
    it.respond(TO, with_identity(), 1_000_000);
    let first = it.sent();
    assert_eq!(orders(&first), (0..64).collect::<Vec<_>>());
    let packet = Packet::parse(&first[5].1).unwrap();
    assert_eq!(packet.header.policy, Policy::Fixed);
    assert_eq!(packet.options.identity, Some(IDENTITY));
    assert_eq!(orders(&it.ask(7, &[0, 64, 0b0110_0000])), [65, 66]);
    assert_eq!(orders(&it.ask(7, &[0, 0, 0x80])), [0]);
    // Not of this request, beyond the end, and all that a bitmap can name.
    assert_eq!(it.ask(8, &[0, 0, 0x80]), []);
    assert_eq!(it.ask(7, &[0xFF, 0, 0xFF]), []);
    assert_eq!(it.ask(7, &[[0, 0].as_slice(), &[0xFF; 170]].concat()).len(), 128);
    // The client has it all.
    assert_eq!(it.ask(7, &[0, 0]), []);
    assert_eq!(it.ask(7, &[0, 0, 0x80]), []);
    assert_eq!(it.server.poll_timeout(), None);
}

#[test]
fn a_plain_reply_is_streamed_in_bursts_and_forgotten() {
    let mut it = Fixture::new(ServerConfig::default());
    it.respond(TO, Options::NONE, 1_000_000);
    let mut sent = it.sent();
    assert_eq!(sent.len(), 128);
    assert_eq!(it.ask(7, &[0, 0, 0x80]), [], "nobody asks for packets of it");
    while let Some(next) = it.server.poll_timeout() {
        assert_eq!(next.since(it.now), Duration::from_millis(1));
        it.now = next;
        it.server.handle_timeout(next, &mut it.outbox);
        let burst = it.sent();
        assert!(burst.len() <= 128);
        sent.extend(burst);
    }
    assert_eq!(orders(&sent), (0..684).collect::<Vec<_>>());
    assert_eq!(it.ask(7, &[0, 0, 0x80]), []);
}

#[test]
fn kept_replies_are_bounded_and_expire() {
    let mut it = Fixture::new(ServerConfig { reply_bytes_max: 10_000, ..ServerConfig::default() });
    let request = |request_id| ReplyTo { request_id, ..TO };
    for (request_id, size) in [(1, 4000), (2, 4000), (3, 4000), (3, 5000)] {
        it.respond(request(request_id), with_identity(), size);
    }
    it.sent();
    let is_kept = |it: &mut Fixture, id| !it.ask(id, &[0, 0, 0x80]).is_empty();
    assert!(!is_kept(&mut it, 1));
    assert!(is_kept(&mut it, 2), "the second reply to 3 has replaced the first");
    assert!(is_kept(&mut it, 3));
    // One that is too large alone takes the place of all others.
    it.respond(request(4), with_identity(), 20_000);
    it.sent();
    assert!(!is_kept(&mut it, 2) && !is_kept(&mut it, 3));
    assert!(is_kept(&mut it, 4));
    it.now = it.server.poll_timeout().expect("an expiry");
    it.server.handle_timeout(it.now, &mut it.outbox);
    assert!(!is_kept(&mut it, 4));
}

#[test]
fn a_reply_of_too_many_packets_is_an_error() {
    let mut it = Fixture::new(ServerConfig::default());
    let body = vec![0; 100 << 20];
    let error = SendError::TooLarge { bytes: 100 << 20 };
    let result = it.server.respond(it.now, TO, &with_identity(), &body[..], &mut it.outbox);
    assert_eq!(result, Err(error));
    assert!(it.sent().is_empty());
}

#[test]
fn what_is_not_for_a_server_is_an_error() {
    let mut it = Fixture::new(ServerConfig::default());
    let reply = encode(MessageType::Response, 7, Options::NONE, b"");
    let error = WireError::Misdirected(MessageType::Response);
    assert_eq!(it.receive(CLIENT, &reply).unwrap_err(), error);
    let mut damaged = encode(MessageType::Request, 7, Options::REPAIRABLE, b"x");
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(it.receive(CLIENT, &damaged).unwrap_err(), WireError::Damaged);
    damaged.truncate(5);
    assert_eq!(it.receive(CLIENT, &damaged).unwrap_err(), WireError::Truncated);
}

proptest! {
    #[test]
    fn any_datagrams_are_survived(
        datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..40)
    ) {
        let mut it = Fixture::new(ServerConfig::default());
        for mut datagram in datagrams {
            if datagram.len() > 3 {
                datagram[0] = 0xCC;
                datagram[2] &= 0x33;
            }
            drop(it.receive(CLIENT, &datagram));
            it.now += Duration::from_millis(1);
            it.server.handle_timeout(it.now, &mut it.outbox);
            prop_assert!(it.sent().len() <= 64);
        }
    }

    #[test]
    fn messages_between_replicas_survive_any_order_and_duplicates(
        sizes in prop::collection::vec(0..10_000_usize, 1..6),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut sender = MessageSender::new(65_534);
        let mut receiver = MessageReceiver::new(MessageConfig::default(), 1);
        let mut outbox = Outbox::new();
        let body = |number: usize| vec![number as u8; sizes[number]];
        for number in 0..sizes.len() {
            sender
                .send(MessageType::RaftRequest, CLIENT, &body(number), &mut outbox)
                .unwrap();
        }
        let mut sent = Vec::new();
        outbox.drain(|batch| sent.extend(batch.datagrams().map(<[u8]>::to_vec)));
        let mut got = vec![0; sizes.len()];
        let any_order = order.iter().map(|index| index.index(sent.len()));
        for datagram in any_order.chain(0..sent.len()) {
            let message = receiver
                .handle_datagram(Time::ZERO, SWITCH, &sent[datagram])
                .unwrap();
            if let Some(message) = message {
                let number = usize::from(message.request_id.wrapping_sub(65_534));
                prop_assert_eq!(message.message_type, MessageType::RaftRequest);
                prop_assert_eq!(&*message.body, &body(number)[..]);
                got[number] += 1;
            }
        }
        for (number, &times) in got.iter().enumerate() {
            // A doubled datagram doubles a message of one packet, and no other.
            prop_assert!(times == 1 || times > 1 && sizes[number] <= 1464);
        }
    }
}
