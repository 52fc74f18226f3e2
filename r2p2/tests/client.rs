//! What the client endpoint does, datagram by datagram.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use r2p2::{
    CheckSeed, ClientConfig, ClientEndpoint, ClientEvent, ClientEventKind, Header, Identity,
    MessageType, Missing, Options, Outbox, Packet, Policy, RequestError, RequestHandle, Session,
    Time, WireError,
};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 8000);
const OTHER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 8000);

/// A client whose request ids begin at 1, with what it has sent.
struct Fixture {
    client: ClientEndpoint,
    outbox: Outbox,
    now: Time,
}

impl Fixture {
    fn new() -> Self {
        Self::with(ClientConfig::default())
    }

    fn with(config: ClientConfig) -> Self {
        Self { client: ClientEndpoint::new(config, 1), outbox: Outbox::new(), now: Time::ZERO }
    }

    fn request(&mut self, options: Options, body: &[u8]) -> Result<RequestHandle, RequestError> {
        self.request_to(&[SERVER], options, body)
    }

    fn request_to(
        &mut self,
        destinations: &[SocketAddrV4],
        options: Options,
        body: &[u8],
    ) -> Result<RequestHandle, RequestError> {
        let body = Bytes::copy_from_slice(body);
        let destinations = Arc::from(destinations);
        let policy = Policy::Replicated;
        self.client.request(self.now, &destinations, policy, options, body, &mut self.outbox)
    }

    fn sent(&mut self) -> Vec<(SocketAddrV4, Vec<u8>)> {
        let mut sent = Vec::new();
        self.outbox.drain(|batch| {
            sent.extend(batch.datagrams().map(|bytes| (batch.destination, bytes.to_vec())));
        });
        sent
    }

    fn receive<'a>(
        &mut self,
        from: SocketAddrV4,
        datagram: &'a [u8],
    ) -> Result<Option<ClientEvent<'a>>, WireError> {
        self.client.handle_datagram(self.now, from, datagram, &mut self.outbox)
    }

    /// Goes to the next timeout, and returns how long that took and what was sent.
    fn time_out(&mut self) -> (Duration, Vec<(SocketAddrV4, Vec<u8>)>) {
        let next = self.client.poll_timeout().expect("a timer is running");
        let waited = next.since(self.now);
        self.now = next;
        self.client.handle_timeout(self.now, &mut self.outbox);
        (waited, self.sent())
    }
}

fn datagram(message_type: MessageType, request_id: u16, options: Options, body: &[u8]) -> Vec<u8> {
    let packet = Packet {
        options,
        ..Packet::new(Header::single(message_type, Policy::Fixed, request_id), body)
    };
    let mut out = Vec::new();
    packet.encode(CheckSeed::NONE, &mut out);
    out
}

/// An ACK that names packets from `first` on.
fn missing(request_id: u16, first: u16, bitmap: &[u8]) -> Vec<u8> {
    let header = Header::single(MessageType::Ack, Policy::Fixed, request_id);
    let missing = Some(Missing::new(first, bitmap));
    let mut out = Vec::new();
    Packet { missing, ..Packet::new(header, b"ACK") }.encode(CheckSeed::NONE, &mut out);
    out
}

fn session(sequence: u64) -> Options {
    Options { session: Some(Session { client: 9, sequence, lowest: 1 }), ..Options::NONE }
}

fn identity(sequence: u64) -> Options {
    Options { identity: Some(Identity { client: 9, sequence }), ..Options::NONE }
}

fn reply_body(event: Option<ClientEvent<'_>>) -> (RequestHandle, Vec<u8>) {
    match event {
        Some(ClientEvent { handle, kind: ClientEventKind::Reply { body, .. }, .. }) => {
            (handle, body.to_vec())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn retries_are_the_same_bytes_after_longer_and_longer_waits() {
    let mut it = Fixture::new();
    it.request(session(1), b"body").unwrap();
    let first = it.sent();
    let mut waits = Vec::new();
    for _ in 0..6 {
        let (waited, sent) = it.time_out();
        waits.push(waited.as_millis());
        assert_eq!(sent, first);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
}

#[test]
fn a_retry_of_a_large_request_is_its_first_packet() {
    let mut it = Fixture::new();
    it.request(session(1), &[7; 5000]).unwrap();
    let first = it.sent();
    assert_eq!(first.len(), 1);
    assert_eq!(Packet::parse(&first[0].1).unwrap().body, [7; 14]);
    assert_eq!(it.time_out().1, first);
}

#[test]
fn requests_after_a_change_begin_with_the_longer_wait() {
    let mut it = Fixture::new();
    it.request(session(1), b"").unwrap();
    it.client.set_retry_after(Duration::from_millis(300));
    it.request(session(2), b"").unwrap();
    it.sent();
    let mut waits = Vec::new();
    for _ in 0..4 {
        waits.push(it.time_out().0.as_millis());
    }
    // The first request again after 100, 300 and 700 ms, the second one after 400 ms.
    assert_eq!(waits, [100, 200, 100, 300]);
}

#[test]
fn asked_one_by_one_destinations_take_turns() {
    let config = ClientConfig { one_by_one: true, ..ClientConfig::default() };
    let mut it = Fixture::with(config);
    it.request_to(&[SERVER, OTHER], session(1), &[7; 2000]).unwrap();
    let mut destinations: Vec<_> = it.sent().into_iter().map(|(to, _)| to).collect();
    for _ in 0..2 {
        destinations.extend(it.time_out().1.into_iter().map(|(to, _)| to));
    }
    assert_eq!(destinations, [SERVER, OTHER, SERVER]);
    // Only the one that acknowledges gets the rest.
    assert!(it.receive(OTHER, &missing(1, 1, &[0b1100_0000])).unwrap().is_none());
    assert_eq!(it.sent().iter().map(|(to, _)| *to).collect::<Vec<_>>(), [OTHER; 2]);
}

#[test]
fn a_reply_to_a_request_with_session_is_known_by_its_identity_alone() {
    let mut it = Fixture::new();
    let handle = it.request(session(4), b"").unwrap();
    let wrong = [
        datagram(MessageType::Response, 1, Options::NONE, b"x"),
        datagram(MessageType::Response, 1, identity(3), b"x"),
        datagram(MessageType::Drop, 1, Options::NONE, b"DROP"),
    ];
    for datagram in &wrong {
        assert!(it.receive(SERVER, datagram).unwrap().is_none());
    }
    // Another replica may answer, under whatever request id.
    let right = datagram(MessageType::Response, 777, identity(4), b"x");
    let event = it.receive(OTHER, &right).unwrap();
    assert_eq!(reply_body(event), (handle, b"x".to_vec()));
    assert!(it.receive(OTHER, &right).unwrap().is_none(), "it has ended");
    assert_eq!(it.client.poll_timeout(), None);
}

#[test]
fn a_reply_to_a_plain_request_is_known_by_its_request_id_from_anyone() {
    let mut it = Fixture::new();
    let first = it.request_to(&[SERVER, OTHER], Options::NONE, b"").unwrap();
    let second = it.request(Options::NONE, b"").unwrap();
    assert_eq!(it.sent().len(), 3);
    let replies = [2, 1].map(|id| datagram(MessageType::Response, id, Options::NONE, &[id as u8]));
    assert_eq!(reply_body(it.receive(OTHER, &replies[0]).unwrap()), (second, vec![2]));
    assert_eq!(reply_body(it.receive(OTHER, &replies[1]).unwrap()), (first, vec![1]));
    assert!(it.receive(OTHER, &replies[1]).unwrap().is_none());
}

#[test]
fn a_drop_leaves_the_request_outstanding_and_backs_off() {
    let mut it = Fixture::new();
    let handle = it.request(session(1), b"").unwrap();
    let refusal = datagram(MessageType::Drop, 1, identity(1), b"DROP");
    for (copies, wait_ms) in [(1, 200), (2, 800)] {
        let event = it.receive(SERVER, &refusal).unwrap().expect("an event");
        assert_eq!(event.handle, handle);
        let ClientEventKind::Dropped { copies_sent } = event.kind else {
            panic!("{:?}", event.kind);
        };
        assert_eq!(copies_sent, copies);
        assert_eq!(it.time_out().0, Duration::from_millis(wait_ms));
    }
    it.client.forget(it.now, handle);
    assert!(it.receive(SERVER, &refusal).unwrap().is_none());
    assert_eq!(it.client.outstanding_count(), 0);
}

#[test]
fn a_handle_of_a_request_that_has_ended_forgets_nothing() {
    let mut it = Fixture::new();
    let old = it.request(session(1), b"").unwrap();
    it.client.forget(it.now, old);
    let new = it.request(session(1), b"").unwrap();
    assert_eq!(new.index(), old.index());
    it.client.forget(it.now, old);
    assert_eq!(it.client.outstanding_count(), 1);
}

#[test]
fn a_late_reply_to_a_forgotten_plain_request_answers_no_other() {
    let mut it = Fixture::new();
    let handle = it.request(Options::NONE, b"").unwrap();
    it.client.forget(it.now, handle);
    for _ in 0..65_535 {
        let handle = it.request(session(1), b"").unwrap();
        it.client.forget(it.now, handle);
    }
    it.request(Options::NONE, b"").unwrap();
    let late = datagram(MessageType::Response, 1, Options::NONE, b"late");
    assert!(it.receive(SERVER, &late).unwrap().is_none());
}

#[test]
fn the_rest_of_a_plain_request_goes_to_who_acknowledges_once_for_each_copy() {
    let mut it = Fixture::new();
    it.request(Options::NONE, &[7; 5000]).unwrap();
    it.sent();
    let ack = datagram(MessageType::Ack, 1, Options::NONE, b"ACK");
    it.receive(OTHER, &ack).unwrap();
    let rest = it.sent();
    assert_eq!(rest.len(), 4);
    assert!(rest.iter().all(|(to, _)| *to == OTHER));
    it.receive(OTHER, &ack).unwrap();
    assert!(it.sent().is_empty());
    assert_eq!(it.time_out().1.len(), 1);
    it.receive(SERVER, &ack).unwrap();
    assert_eq!(it.sent().len(), 4);
}

#[test]
fn one_plain_ack_brings_a_bounded_burst_and_the_rest_in_time() {
    let mut it = Fixture::new();
    it.request_to(&[SERVER, OTHER], Options::NONE, &vec![7; 500_000]).unwrap();
    it.sent();
    let ack = datagram(MessageType::Ack, 1, Options::NONE, b"ACK");
    let mut got: [Vec<u16>; 2] = Default::default();
    let mut count = |sent: Vec<(SocketAddrV4, Vec<u8>)>| {
        for (to, bytes) in &sent {
            let order = Packet::parse(bytes).unwrap().header.order;
            got[usize::from(*to == OTHER)].push(order);
        }
        sent.len()
    };
    for from in [SERVER, OTHER, SERVER] {
        it.receive(from, &ack).unwrap();
        assert!(count(it.sent()) <= 128);
    }
    // Another burst to each, and then what is left.
    let waits: Vec<_> = (0..2)
        .map(|_| {
            let (waited, sent) = it.time_out();
            assert!(count(sent) <= 256);
            waited.as_millis()
        })
        .collect();
    assert_eq!(waits, [1, 1]);
    assert_eq!(got, [(1..343).collect::<Vec<_>>(), (1..343).collect()]);
    // Only then the client waits for the reply.
    let (waited, sent) = it.time_out();
    assert_eq!((waited.as_millis(), sent.len()), (100, 2));
}

#[test]
fn a_request_with_options_is_not_sent_for_a_plain_ack() {
    // Found by the fuzz target `r2p2_client`: 137 packets for one datagram.
    let mut it = Fixture::new();
    it.request(session(1), &vec![7; 200_000]).unwrap();
    it.request(Options::REPAIRABLE, &vec![7; 200_000]).unwrap();
    it.sent();
    for request_id in [1, 2] {
        it.receive(SERVER, &datagram(MessageType::Ack, request_id, Options::NONE, b"ACK")).unwrap();
        assert_eq!(it.sent(), []);
    }
}

#[test]
fn what_is_missing_of_a_request_with_session_goes_to_all_destinations() {
    let mut it = Fixture::new();
    it.request_to(&[SERVER, OTHER], session(1), &[7; 5000]).unwrap();
    it.sent();
    // Packets 1, 3 and 9, of which there are only four.
    it.receive(SERVER, &missing(1, 1, &[0b1010_0000, 0b1000_0000])).unwrap();
    let sent = it.sent();
    let named = |to: SocketAddrV4| {
        let to_one = sent.iter().filter(move |(destination, _)| *destination == to);
        let packets = to_one.map(|(_, bytes)| Packet::parse(bytes).unwrap());
        packets
            .map(|packet| {
                assert_eq!(packet.options.session, session(1).session, "P4");
                packet.header.order
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(named(SERVER), [1, 3]);
    assert_eq!(named(OTHER), [1, 3]);
}

#[test]
fn progress_of_a_transfer_delays_the_retry() {
    let mut it = Fixture::new();
    it.request(session(1), &[7; 5000]).unwrap();
    it.sent();
    it.now += Duration::from_millis(90);
    it.receive(SERVER, &missing(1, 1, &[0x80])).unwrap();
    assert_eq!(it.client.poll_timeout(), Some(it.now + Duration::from_millis(100)));
}

#[test]
fn packets_of_replies_from_two_servers_are_not_mixed() {
    let mut it = Fixture::new();
    it.request(session(1), b"").unwrap();
    let part = |first: bool, body: &[u8]| {
        let header = Header {
            message_type: MessageType::Response,
            policy: Policy::Fixed,
            first,
            last: !first,
            request_id: 1,
            order: if first { 2 } else { 1 },
        };
        let mut out = Vec::new();
        let options = identity(1);
        Packet { options, ..Packet::new(header, body) }.encode(CheckSeed::NONE, &mut out);
        out
    };
    assert!(it.receive(SERVER, &part(true, b"one, ")).unwrap().is_none());
    let second = part(false, b"two");
    assert!(it.receive(OTHER, &second).unwrap().is_none());
    let first = part(true, b"two, ");
    let event = it.receive(OTHER, &first).unwrap();
    assert_eq!(reply_body(event).1, b"two, two");
    // What is left of the other reply is not asked for.
    it.sent();
    while it.client.poll_timeout().is_some() {
        assert!(it.time_out().1.is_empty());
    }
}

#[test]
fn a_reply_that_is_too_large_ends_the_request() {
    let mut it = Fixture::with(ClientConfig { reply_bytes_max: 2000, ..ClientConfig::default() });
    let handle = it.request(Options::NONE, b"").unwrap();
    let mut reply = datagram(MessageType::Response, 1, Options::NONE, &[7; 1464]);
    (reply[3], reply[7]) = (0x80, 2);
    assert!(it.receive(SERVER, &reply).unwrap().is_none());
    (reply[3], reply[7]) = (0x40, 1);
    let event = it.receive(SERVER, &reply).unwrap().expect("an event");
    assert_eq!(event.handle, handle);
    assert!(matches!(event.kind, ClientEventKind::ReplyTooLarge));
    assert_eq!(it.client.outstanding_count(), 0);
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let mut it = Fixture::with(ClientConfig { outstanding_max: 2, ..ClientConfig::default() });
    assert_eq!(it.request_to(&[], Options::NONE, b""), Err(RequestError::NoDestination));
    it.request(session(1), b"").unwrap();
    assert_eq!(it.request(session(1), b""), Err(RequestError::IdentityInUse));
    it.request(session(2), b"").unwrap();
    assert_eq!(it.request(session(3), b""), Err(RequestError::TooManyOutstanding(2)));
    it.sent();
    let request = datagram(MessageType::Request, 1, Options::NONE, b"");
    let error = WireError::Misdirected(MessageType::Request);
    assert_eq!(it.receive(SERVER, &request).unwrap_err(), error);
}

#[test]
fn a_damaged_reply_is_not_delivered() {
    let mut it = Fixture::new();
    it.request(Options::REPAIRABLE, b"").unwrap();
    let mut damaged = datagram(MessageType::Response, 1, Options::NONE, b"x");
    damaged.splice(8..8, [9, 4, 1, 2, 3, 4]);
    damaged[1] += 6;
    assert_eq!(it.receive(SERVER, &damaged).unwrap_err(), WireError::Damaged);
    assert_eq!(it.client.outstanding_count(), 1);
}
