//! Whole exchanges between client and servers over a network that loses, doubles and reorders.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use r2p2::{
    ClientConfig, ClientEndpoint, ClientEventKind, MessageType, Options, Outbox, Policy,
    ServerConfig, ServerEndpoint, Session, Time, message_type,
};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4001);
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 0, 0, 1), 8000);

fn server(number: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, number as u8), 8000)
}

/// What the network does to a datagram, in parts of 1000, and how long it takes.
#[derive(Debug, Clone, Copy)]
struct Faults {
    loss: u64,
    duplication: u64,
    delay: Duration,
    jitter: Duration,
    /// How many datagrams wait at a receiver that takes 2 µs for each; others are lost.
    receive_buffer: usize,
}

impl Faults {
    const NONE: Self = Self {
        loss: 0,
        duplication: 0,
        delay: Duration::from_micros(20),
        jitter: Duration::ZERO,
        receive_buffer: usize::MAX,
    };
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    at: Time,
    /// Orders datagrams that arrive at the same time.
    serial: u64,
    from: SocketAddrV4,
    to: SocketAddrV4,
    datagram: Vec<u8>,
}

/// A client, a group of servers and the network between them.
struct World {
    now: Time,
    faults: Faults,
    random: u64,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    serial: u64,
    /// When each receiver has taken what waits for it.
    busy_until: BTreeMap<SocketAddrV4, Time>,
    sent: BTreeMap<SocketAddrV4, u64>,
    acknowledgers: BTreeMap<SocketAddrV4, u64>,
    client: ClientEndpoint,
    servers: Vec<ServerEndpoint>,
    /// The requests that each server has got.
    received: Vec<Vec<Bytes>>,
    /// Who answers, and by how many bytes.
    replier: usize,
    reply_size: usize,
    replies: Vec<Bytes>,
    dropped: u32,
}

impl World {
    fn new(faults: Faults, seed: u64, servers: usize) -> Self {
        let endpoint = |_| ServerEndpoint::new(ServerConfig::default(), seed);
        Self {
            now: Time::ZERO,
            faults,
            random: seed,
            in_flight: BinaryHeap::new(),
            serial: 0,
            busy_until: BTreeMap::new(),
            sent: BTreeMap::new(),
            acknowledgers: BTreeMap::new(),
            client: ClientEndpoint::new(ClientConfig::default(), seed),
            servers: (0..servers).map(endpoint).collect(),
            received: vec![Vec::new(); servers],
            replier: 0,
            reply_size: 0,
            replies: Vec::new(),
            dropped: 0,
        }
    }

    fn request(&mut self, to: &[SocketAddrV4], policy: Policy, options: Options, body: Bytes) {
        let mut outbox = Outbox::new();
        let to = Arc::from(to);
        self.client.request(self.now, &to, policy, options, body, &mut outbox).unwrap();
        self.send(CLIENT, &mut outbox);
    }

    /// Runs until the client has its replies, or for a minute.
    fn run(&mut self) {
        let end = Time::ZERO + Duration::from_mins(1);
        while self.client.outstanding_count() > 0 && self.step() && self.now < end {}
    }

    /// Does what happens next; false if nothing will.
    fn step(&mut self) -> bool {
        let timeouts = self.servers.iter().filter_map(ServerEndpoint::poll_timeout);
        let timeout = timeouts.chain(self.client.poll_timeout()).min();
        let arrival = self.in_flight.peek().map(|Reverse(next)| next.at);
        let Some(next) = timeout.into_iter().chain(arrival).min() else {
            return false;
        };
        self.now = self.now.max(next);
        let arrived = self.in_flight.peek().is_some_and(|Reverse(next)| next.at <= self.now);
        if arrived && let Some(Reverse(next)) = self.in_flight.pop() {
            if next.to == CLIENT {
                self.deliver_to_client(&next);
            } else {
                self.deliver_to_server(&next);
            }
        }
        let mut outbox = Outbox::new();
        self.client.handle_timeout(self.now, &mut outbox);
        self.send(CLIENT, &mut outbox);
        for number in 0..self.servers.len() {
            self.servers[number].handle_timeout(self.now, &mut outbox);
            self.send(server(number), &mut outbox);
        }
        true
    }

    fn deliver_to_client(&mut self, next: &InFlight) {
        let mut outbox = Outbox::new();
        let event =
            self.client.handle_datagram(self.now, next.from, &next.datagram, &mut outbox).unwrap();
        match event.map(|event| event.kind) {
            None => {}
            Some(ClientEventKind::Reply { body, .. }) => self.replies.push(body.into_bytes()),
            Some(ClientEventKind::Dropped { .. }) => self.dropped += 1,
            Some(other) => panic!("{other:?}"),
        }
        self.send(CLIENT, &mut outbox);
    }

    fn deliver_to_server(&mut self, next: &InFlight) {
        let number = (0..self.servers.len())
            .find(|&number| server(number) == next.to)
            .expect("only servers of the world are sent to");
        let mut outbox = Outbox::new();
        let endpoint = &mut self.servers[number];
        let incoming =
            endpoint.handle_datagram(self.now, next.from, &next.datagram, &mut outbox).unwrap();
        if let Some(incoming) = incoming {
            let options = incoming.reply_options();
            let to = incoming.reply_to;
            self.received[number].push(incoming.body.into_bytes());
            if number == self.replier {
                let body = pattern(self.reply_size, 77);
                endpoint.respond(self.now, to, &options, body, &mut outbox).unwrap();
            }
        }
        self.send(next.to, &mut outbox);
    }

    fn send(&mut self, from: SocketAddrV4, outbox: &mut Outbox) {
        let mut datagrams = Vec::new();
        outbox.drain(|batch| {
            datagrams.extend(batch.datagrams().map(|bytes| (batch.destination, bytes.to_vec())));
        });
        for (destination, datagram) in datagrams {
            *self.sent.entry(from).or_default() += 1;
            if message_type(&datagram) == Some(MessageType::Ack) {
                *self.acknowledgers.entry(from).or_default() += 1;
            }
            if destination == GROUP {
                for number in 0..self.servers.len() {
                    self.transmit(from, server(number), &datagram);
                }
            } else {
                self.transmit(from, destination, &datagram);
            }
        }
    }

    fn transmit(&mut self, from: SocketAddrV4, to: SocketAddrV4, datagram: &[u8]) {
        let copies = 1 + u64::from(self.random(1000) < self.faults.duplication);
        for _ in 0..copies {
            if self.random(1000) < self.faults.loss {
                continue;
            }
            let jitter = self.random(1 + self.faults.jitter.as_nanos() as u64);
            let at = self.now + self.faults.delay + Duration::from_nanos(jitter);
            let taken = self.busy_until.get(&to).copied().unwrap_or(at).max(at);
            let waiting = taken.since(at).as_nanos() / 2000;
            if waiting as usize >= self.faults.receive_buffer {
                continue;
            }
            let at = if self.faults.receive_buffer < usize::MAX {
                let taken = taken + Duration::from_micros(2);
                self.busy_until.insert(to, taken);
                taken
            } else {
                at
            };
            self.serial += 1;
            self.in_flight.push(Reverse(InFlight {
                at,
                serial: self.serial,
                from,
                to,
                datagram: datagram.to_vec(),
            }));
        }
    }

    /// A number below `limit`.
    fn random(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ z >> 31) % limit
    }
}

fn pattern(size: usize, salt: usize) -> Bytes {
    (0..size).map(|i| (i * 31 + i / 251 + salt) as u8).collect()
}

fn session(sequence: u64) -> Options {
    Options { session: Some(Session { client: 5, sequence, lowest: 1 }), ..Options::NONE }
}

proptest! {
    #[test]
    fn requests_and_replies_survive_loss_duplication_and_reordering(
        request_size in 0..40_000_usize,
        reply_size in prop_oneof![0..3000_usize, 0..200_000_usize],
        with_session in any::<bool>(),
        (loss, duplication) in (0..250_u64, 0..250_u64),
        jitter in 0..3000_u64,
        seed in any::<u64>(),
    ) {
        let faults = Faults {
            loss,
            duplication,
            jitter: Duration::from_micros(jitter),
            ..Faults::NONE
        };
        let mut world = World::new(faults, seed, 1);
        world.reply_size = reply_size;
        let (policy, options) = if with_session {
            (Policy::Replicated, session(1))
        } else {
            (Policy::Fixed, Options::REPAIRABLE)
        };
        let body = pattern(request_size, 1);
        world.request(&[server(0)], policy, options, body.clone());
        world.run();
        prop_assert_eq!(&world.replies, &[pattern(reply_size, 77)]);
        prop_assert!(world.received[0].iter().all(|received| *received == body));
    }

    #[test]
    fn plain_messages_survive_any_order_and_duplicates(
        request_size in 0..40_000_usize,
        reply_size in 0..100_000_usize,
        duplication in 0..500_u64,
        jitter in 0..3000_u64,
        seed in any::<u64>(),
    ) {
        let faults = Faults {
            duplication,
            jitter: Duration::from_micros(jitter),
            ..Faults::NONE
        };
        let mut world = World::new(faults, seed, 1);
        world.reply_size = reply_size;
        let body = pattern(request_size, 1);
        world.request(&[server(0)], Policy::LoadBalance, Options::NONE, body.clone());
        world.run();
        prop_assert_eq!(&world.replies, &[pattern(reply_size, 77)]);
        prop_assert!(world.received[0].iter().all(|received| *received == body));
    }

    /// Without options there is no selective repeat, but the whole is tried again.
    #[test]
    fn plain_messages_survive_some_loss(
        request_size in 0..10_000_usize,
        reply_size in 0..10_000_usize,
        loss in 0..50_u64,
        seed in any::<u64>(),
    ) {
        let mut world = World::new(Faults { loss, ..Faults::NONE }, seed, 1);
        world.reply_size = reply_size;
        let body = pattern(request_size, 1);
        world.request(&[server(0)], Policy::Fixed, Options::NONE, body.clone());
        world.run();
        prop_assert_eq!(&world.replies, &[pattern(reply_size, 77)]);
        prop_assert!(world.received[0].iter().all(|received| *received == body));
    }

    #[test]
    fn many_requests_at_once_get_each_its_reply(
        sizes in prop::collection::vec(prop_oneof![0..100_usize, 0..10_000_usize], 1..20),
        loss in 0..100_u64,
        seed in any::<u64>(),
    ) {
        let mut world = World::new(Faults { loss, ..Faults::NONE }, seed, 3);
        world.reply_size = 2000;
        for (number, &size) in sizes.iter().enumerate() {
            let body = pattern(size, number);
            world.request(&[GROUP], Policy::Replicated, session(number as u64), body);
        }
        world.run();
        prop_assert_eq!(world.replies.len(), sizes.len());
        for (number, &size) in sizes.iter().enumerate() {
            prop_assert!(world.received[0].contains(&pattern(size, number)));
        }
    }
}

/// Both directions of the largest messages through sockets with the kernel's smallest buffers.
#[test]
fn eight_mebibytes_pass_a_lossy_network_and_small_buffers() {
    const SIZE: usize = 8 << 20;
    for (loss, jitter_us) in [(0, 0), (10, 50)] {
        let faults = Faults {
            loss,
            jitter: Duration::from_micros(jitter_us),
            // 208 KiB, at the 2304 bytes that the kernel counts for a full datagram.
            receive_buffer: 90,
            ..Faults::NONE
        };
        let mut world = World::new(faults, 1, 1);
        world.reply_size = SIZE;
        let body = pattern(SIZE, 1);
        world.request(&[server(0)], Policy::Replicated, session(1), body.clone());
        world.run();
        assert_eq!(world.received[0], [body]);
        assert!(world.replies == [pattern(SIZE, 77)]);
        // A packet is 1424 bytes of request or 1440 of reply. Little is sent that was not lost.
        let needed = (SIZE / 1424) as u64;
        for sender in [CLIENT, server(0)] {
            let sent = world.sent[&sender] - world.acknowledgers[&sender];
            assert!(sent < needed + needed * (loss + 10) / 500, "{sent} by {sender}");
            assert!(world.acknowledgers[&sender] < needed / 10);
        }
        // Receiving takes 23 ms, and losses stop the flow now and then.
        let limit = Duration::from_millis(if loss == 0 { 30 } else { 80 });
        assert!(world.now < Time::ZERO + limit, "{:?}", world.now);
    }
}

#[test]
fn an_answer_that_takes_long_is_not_asked_for_twice_as_often() {
    let faults = Faults { delay: Duration::from_millis(10), ..Faults::NONE };
    let mut world = World::new(faults, 1, 1);
    world.reply_size = 1 << 20;
    world.request(&[server(0)], Policy::Fixed, Options::REPAIRABLE, Bytes::new());
    world.run();
    assert_eq!(world.replies.len(), 1);
    let needed = (1 << 20) / 1458 + 1;
    assert!(world.sent[&server(0)] < needed + needed / 5, "{}", world.sent[&server(0)]);
}

#[test]
fn a_group_gets_a_large_request_that_its_leader_alone_acknowledges() {
    let replicas = [server(0), server(1), server(2)];
    for destinations in [&[GROUP][..], &replicas] {
        let mut world = World::new(Faults::NONE, 1, 3);
        world.servers[0].set_acknowledging(false);
        world.servers[2].set_acknowledging(false);
        // P16: another replica than the leader may answer.
        world.replier = 2;
        world.reply_size = 6000;
        let body = pattern(500_000, 1);
        world.request(destinations, Policy::Replicated, session(1), body.clone());
        world.run();
        assert_eq!(world.replies, [pattern(6000, 77)]);
        while world.received.iter().any(Vec::is_empty) && world.step() {}
        assert!(world.received.iter().all(|received| *received == [body.clone()]));
        let acknowledgers: Vec<_> = world.acknowledgers.keys().collect();
        assert_eq!(acknowledgers, [&server(1)]);
    }
}

#[test]
fn a_request_that_no_leader_saw_begin_is_completed_by_the_next_one() {
    let mut world = World::new(Faults::NONE, 1, 2);
    for server in &mut world.servers {
        server.set_acknowledging(false);
    }
    let body = pattern(50_000, 1);
    world.request(&[GROUP], Policy::Replicated, session(1), body.clone());
    while world.now < Time::ZERO + Duration::from_millis(50) && world.step() {}
    assert!(world.received.iter().all(Vec::is_empty));
    world.servers[0].set_acknowledging(true);
    world.run();
    assert_eq!(world.received[0], [body]);
    assert_eq!(world.replies.len(), 1);
}

#[test]
fn a_request_that_is_too_large_is_refused_by_its_first_packet() {
    let mut world = World::new(Faults::NONE, 1, 1);
    let most = ServerConfig::default().request_bytes_max;
    for (size, is_refused) in [(most, false), (most + 2000, true)] {
        let body = Bytes::from(vec![0; size]);
        let sent = world.sent.get(&CLIENT).copied().unwrap_or_default();
        let sequence = size as u64;
        world.request(&[server(0)], Policy::Replicated, session(sequence), body);
        while world.dropped == 0 && world.client.outstanding_count() > 0 && world.step() {}
        assert_eq!(world.dropped > 0, is_refused);
        if is_refused {
            assert_eq!(world.sent[&CLIENT], sent + 1);
        }
    }
    assert_eq!(world.servers[0].counters().too_large, 1);
}
