//! The router of unreplicated services: it gives each request to one of several workers, without I/O.
//!
//! It passes on the first packet of a request. A worker asks the client itself for the rest, and
//! answers it itself; a FEEDBACK tells the router that it has. A slot that no FEEDBACK frees, because
//! that was lost or the worker is gone, is freed by age, and a worker that has let a slot grow old
//! without a sign of life gets one request at a time until there is one.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddrV4,
    time::Duration,
};

use foldhash::fast::FixedState;

use crate::{
    CheckSeed, Outbox, Time,
    pass_on::{has_room_for_origin, pass_on, refuse},
    wire::{Feedback, Packet, Policy},
};

/// How a worker is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// Join the bounded shortest queue: the worker with the fewest requests, while it has fewer than
    /// so many; else the request waits here for the first that has.
    Jbsq(u32),
    /// The worker with the fewest requests.
    ShortestQueue,
    /// One after the other.
    RoundRobin,
    /// Anyone.
    Random,
    /// Always the first.
    Fixed,
}

/// What a router is to do.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Where the workers are.
    pub workers: Vec<SocketAddrV4>,
    /// How one is chosen.
    pub routing: Routing,
    /// A request that no FEEDBACK was heard of for so long does not count any more: longer than the
    /// service ever takes.
    pub age_max: Duration,
    /// How many requests wait here at most; more get a DROP.
    pub waiting_max: usize,
}

/// Counts what happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say what is counted")]
pub struct RouterCounters {
    pub requests: u64,
    /// A request that is with a worker came again, and went there again.
    pub retries: u64,
    /// It waited until a worker had room.
    pub waited: u64,
    pub dropped: u64,
    pub answered: u64,
    /// Slots that were freed by age.
    pub healed: u64,
    /// Workers that gave no sign of life.
    pub workers_lost: u64,
    pub workers_found: u64,
}

/// A client's request, as FEEDBACK names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    client: SocketAddrV4,
    request_id: u16,
}

/// A request that is with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    worker: usize,
    since: Time,
}

#[derive(Debug)]
struct Worker {
    address: SocketAddrV4,
    /// Requests that it has and has not answered.
    count: u32,
    heard: Time,
    is_lost: bool,
    /// Given to it while it was lost, to see whether it is back.
    probed: Option<Time>,
}

/// Gives requests to workers.
#[derive(Debug)]
pub struct Router {
    config: RouterConfig,
    workers: Vec<Worker>,
    slots: HashMap<Key, Slot, FixedState>,
    /// In order of their times; some have been freed since.
    by_age: VecDeque<(Time, Key)>,
    /// The first packets that wait for a worker.
    waiting: VecDeque<(Key, Vec<u8>)>,
    /// The keys of those.
    waits: HashSet<Key, FixedState>,
    turn: usize,
    rng: fastrand::Rng,
    counters: RouterCounters,
}

/// How many slots there may be. More requests than that get a DROP.
const SLOTS_MAX: usize = 1 << 20;

impl Router {
    /// A router whose hash tables and choices are seeded by `seed`.
    ///
    /// # Panics
    ///
    /// If there is no worker, or a bound of zero.
    pub fn new(config: RouterConfig, seed: u64) -> Self {
        assert!(!config.workers.is_empty(), "a router needs workers");
        assert!(config.routing != Routing::Jbsq(0), "nobody ever has less than nothing");
        let worker = |&address| Worker {
            address,
            count: 0,
            heard: Time::ZERO,
            is_lost: false,
            probed: None,
        };
        Self {
            workers: config.workers.iter().map(worker).collect(),
            config,
            slots: HashMap::with_hasher(FixedState::with_seed(seed)),
            by_age: VecDeque::new(),
            waiting: VecDeque::new(),
            waits: HashSet::with_hasher(FixedState::with_seed(seed)),
            turn: 0,
            rng: fastrand::Rng::with_seed(seed),
            counters: RouterCounters::default(),
        }
    }

    /// Takes a packet of a client's request, and the datagram that it was parsed from.
    pub fn handle_request(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        packet: &Packet<'_>,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        // Who says ORIGIN to a switch is none of its clients.
        if packet.options.origin.is_some() || packet.header.policy.is_replicated() {
            return;
        }
        if !has_room_for_origin(datagram) {
            self.counters.dropped += 1;
            return refuse(packet, from, CheckSeed::NONE, outbox);
        }
        let key = Key { client: from, request_id: packet.header.request_id };
        let known = self.slots.get(&key).copied();
        if let Some(slot) = known.filter(|slot| !self.workers[slot.worker].is_lost) {
            self.counters.retries += u64::from(packet.header.first);
            pass_on(datagram, from, self.workers[slot.worker].address, outbox);
            return;
        }
        if !packet.header.first {
            return;
        }
        self.counters.requests += 1;
        if self.waits.contains(&key) {
            return;
        }
        let chosen = self.choose(now, packet.header.policy);
        match chosen.filter(|_| self.waiting.is_empty() && self.slots.len() < SLOTS_MAX) {
            Some(worker) => self.give(now, worker, key, datagram, outbox),
            None if self.waiting.len() < self.config.waiting_max => {
                self.counters.waited += 1;
                self.waits.insert(key);
                self.waiting.push_back((key, datagram.to_vec()));
            }
            None => {
                self.counters.dropped += 1;
                refuse(packet, from, CheckSeed::NONE, outbox);
            }
        }
    }

    /// Takes what a worker says in a FEEDBACK.
    pub fn handle_feedback(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        said: Feedback,
        outbox: &mut Outbox,
    ) {
        let Some(worker) = self.workers.iter().position(|worker| worker.address == from) else {
            return;
        };
        self.workers[worker].heard = now;
        self.workers[worker].probed = None;
        if std::mem::take(&mut self.workers[worker].is_lost) {
            self.counters.workers_found += 1;
        }
        let key = Key { client: said.client, request_id: said.request_id };
        if self.slots.get(&key).is_some_and(|slot| slot.worker == worker) {
            self.slots.remove(&key);
            self.workers[worker].count -= 1;
            self.counters.answered += 1;
        }
        if self.by_age.len() > 2 * self.slots.len() + 1024 {
            let slots = &self.slots;
            self.by_age.retain(|(at, key)| slots.get(key).is_some_and(|slot| slot.since == *at));
        }
        self.give_waiting(now, outbox);
    }

    /// Frees what is too old.
    pub fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        while let Some(&(since, key)) = self.by_age.front() {
            let slot = self.slots.get(&key).copied().filter(|slot| slot.since == since);
            if slot.is_some() && now.since(since) < self.config.age_max {
                break;
            }
            self.by_age.pop_front();
            let Some(slot) = slot else { continue };
            self.slots.remove(&key);
            self.counters.healed += 1;
            let worker = &mut self.workers[slot.worker];
            worker.count -= 1;
            if worker.heard <= since && !worker.is_lost {
                worker.is_lost = true;
                worker.probed = Some(now);
                self.counters.workers_lost += 1;
            }
        }
        self.give_waiting(now, outbox);
    }

    /// When to call [`Self::handle_timeout`]. May change with every call of another method.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.by_age.front().map(|(since, _)| *since + self.config.age_max)
    }

    /// What happened since the start.
    pub fn counters(&self) -> &RouterCounters {
        &self.counters
    }

    /// Each worker, how many requests it has, and whether it has given signs of life.
    pub fn workers(&self) -> impl Iterator<Item = (SocketAddrV4, u32, bool)> {
        self.workers.iter().map(|worker| (worker.address, worker.count, !worker.is_lost))
    }

    /// How many requests wait here.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    fn give_waiting(&mut self, now: Time, outbox: &mut Outbox) {
        while !self.waiting.is_empty()
            && self.slots.len() < SLOTS_MAX
            && let Some(worker) = self.choose(now, Policy::LoadBalance)
        {
            let (key, datagram) = self.waiting.pop_front().expect("it is not empty");
            self.waits.remove(&key);
            self.give(now, worker, key, &datagram, outbox);
        }
    }

    fn give(&mut self, now: Time, worker: usize, key: Key, datagram: &[u8], outbox: &mut Outbox) {
        if let Some(before) = self.slots.insert(key, Slot { worker, since: now }) {
            self.workers[before.worker].count -= 1;
        }
        self.by_age.push_back((now, key));
        let chosen = &mut self.workers[worker];
        chosen.count += 1;
        if chosen.is_lost {
            chosen.probed = Some(now);
        }
        pass_on(datagram, key.client, chosen.address, outbox);
    }

    /// The worker for a request; none if it has to wait.
    fn choose(&mut self, now: Time, policy: Policy) -> Option<usize> {
        // One that is lost gets a request now and then.
        let patience = self.config.age_max;
        let due = |worker: &Worker| {
            worker.is_lost && worker.probed.is_none_or(|at| now.since(at) >= patience)
        };
        if policy == Policy::Fixed || self.config.routing == Routing::Fixed {
            return Some(0);
        }
        if let Some(worker) = self.workers.iter().position(due) {
            return Some(worker);
        }
        let count = self.workers.len();
        let (workers, turn) = (&self.workers, self.turn);
        let live = |at: &usize| !workers[*at].is_lost;
        let around = (0..count).map(|offset| (turn + offset) % count).filter(live);
        let shortest = around.clone().min_by_key(|at| workers[*at].count);
        let chosen = match self.config.routing {
            Routing::Jbsq(bound) => shortest.filter(|at| workers[*at].count < bound),
            Routing::ShortestQueue => shortest,
            Routing::RoundRobin => around.clone().next(),
            Routing::Random => {
                let live_count = around.clone().count();
                let nth = (live_count > 0).then(|| self.rng.usize(..live_count));
                nth.and_then(|nth| around.clone().nth(nth))
            }
            Routing::Fixed => Some(0),
        };
        if let Some(at) = chosen {
            self.turn = (at + 1) % count;
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wire::{Header, MessageType};

    fn address(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    const CLIENT: u16 = 99;

    struct Bench {
        router: Router,
        now: Time,
        outbox: Outbox,
    }

    impl Bench {
        fn new(workers: u16, routing: Routing) -> Self {
            let config = RouterConfig {
                workers: (1..=workers).map(address).collect(),
                routing,
                age_max: Duration::from_secs(1),
                waiting_max: 4,
            };
            Self { router: Router::new(config, 7), now: Time::ZERO, outbox: Outbox::new() }
        }

        /// Client 99 sends the first packet of a request; where it went, and what was said to whom.
        fn request(&mut self, request_id: u16) -> Vec<u16> {
            let header = Header::single(MessageType::Request, Policy::LoadBalance, request_id);
            self.send(CLIENT, &Packet::new(header, b"body"))
        }

        fn feedback(&mut self, worker: u16, request_id: u16) -> Vec<u16> {
            let body = Feedback { request_id, client: address(CLIENT) }.to_bytes();
            let header = Header::single(MessageType::Feedback, Policy::Fixed, request_id);
            self.send(worker, &Packet::new(header, &body))
        }

        fn send(&mut self, from: u16, packet: &Packet<'_>) -> Vec<u16> {
            let mut datagram = Vec::new();
            packet.encode(CheckSeed::NONE, &mut datagram);
            let (now, from) = (self.now, address(from));
            if packet.header.message_type == MessageType::Feedback {
                let said = Feedback::parse(packet.body).unwrap();
                self.router.handle_feedback(now, from, said, &mut self.outbox);
            } else {
                self.router.handle_request(now, from, packet, &datagram, &mut self.outbox);
            }
            self.sent()
        }

        fn pass(&mut self, time: Duration) -> Vec<u16> {
            self.now += time;
            self.router.handle_timeout(self.now, &mut self.outbox);
            self.sent()
        }

        /// Whom something was sent to; everything to a worker says whose it is.
        fn sent(&mut self) -> Vec<u16> {
            let mut to = Vec::new();
            self.outbox.drain(|batch| {
                for datagram in batch.datagrams() {
                    let packet = Packet::parse(datagram).unwrap();
                    let is_request = packet.header.message_type == MessageType::Request;
                    let origin = is_request.then(|| address(CLIENT));
                    assert_eq!(packet.options.origin, origin);
                    to.push(batch.destination.port());
                }
            });
            to
        }

        fn counts(&self) -> Vec<u32> {
            self.router.workers().map(|(_, count, _)| count).collect()
        }
    }

    #[test]
    fn jbsq_bounds_the_queues_and_the_rest_waits_in_order() {
        let mut bench = Bench::new(2, Routing::Jbsq(2));
        let went: Vec<_> = (1..=4).flat_map(|id| bench.request(id)).collect();
        assert_eq!((went, bench.counts()), (vec![1, 2, 1, 2], vec![2, 2]));
        for id in 5..=8 {
            assert_eq!(bench.request(id), []);
        }
        // P23: the client is told that there is no room.
        assert_eq!(bench.request(9), [CLIENT]);
        // Who was first gets the first slot; the retry of one that waits adds nothing.
        assert_eq!(bench.request(5), []);
        assert_eq!(bench.feedback(2, 2), [2]);
        assert_eq!((bench.counts(), bench.router.waiting_count()), (vec![2, 2], 3));
        assert_eq!(bench.feedback(2, 5), [2]);
    }

    #[test]
    fn the_other_policies() {
        let mut bench = Bench::new(3, Routing::RoundRobin);
        let went: Vec<_> = (1..=4).flat_map(|id| bench.request(id)).collect();
        assert_eq!(went, [1, 2, 3, 1]);
        let mut bench = Bench::new(3, Routing::ShortestQueue);
        (1..=3).for_each(|id| drop(bench.request(id)));
        bench.feedback(2, 2);
        assert_eq!((bench.request(4), bench.request(4)), (vec![2], vec![2]));
        let mut bench = Bench::new(3, Routing::Fixed);
        assert_eq!((bench.request(1), bench.request(2)), (vec![1], vec![1]));
        let mut bench = Bench::new(3, Routing::Random);
        let went: Vec<_> = (0..300).flat_map(|id| bench.request(id)).collect();
        let of = |worker| went.iter().filter(|to| **to == worker).count();
        assert!((1..=3).all(|worker| of(worker) > 70), "{} {} {}", of(1), of(2), of(3));
    }

    #[test]
    fn feedback_frees_once_and_only_what_that_worker_has() {
        let mut bench = Bench::new(2, Routing::Jbsq(1));
        bench.request(1);
        bench.request(2);
        bench.feedback(2, 1);
        assert_eq!(bench.counts(), [1, 1]);
        bench.feedback(1, 1);
        bench.feedback(1, 1);
        // Of nobody that it knows, and of nothing that it sent.
        bench.feedback(7, 2);
        bench.feedback(2, 77);
        assert_eq!(bench.counts(), [0, 1]);
    }

    #[test]
    fn a_retry_goes_where_the_request_is() {
        let mut bench = Bench::new(2, Routing::Jbsq(1));
        assert_eq!((bench.request(1), bench.request(1)), (vec![1], vec![1]));
        assert_eq!(bench.counts(), [1, 0]);
    }

    #[test]
    fn slots_heal_by_age_and_a_silent_worker_gets_one_request_at_a_time() {
        let mut bench = Bench::new(2, Routing::Jbsq(2));
        (1..=4).for_each(|id| drop(bench.request(id)));
        bench.now += Duration::from_millis(500);
        bench.feedback(2, 2);
        assert_eq!(bench.request(5), [2]);
        // Worker 1 has answered nothing for a second; what worker 2 has lost is its own.
        bench.pass(Duration::from_millis(500));
        let state: Vec<_> =
            bench.router.workers().map(|(_, count, lives)| (count, lives)).collect();
        assert_eq!(state, [(0, false), (1, true)]);
        assert_eq!((bench.request(6), bench.request(7)), (vec![2], vec![]));
        assert_eq!(bench.router.counters().workers_lost, 1);
        // After another second it is tried again: with what has waited.
        assert_eq!(bench.pass(Duration::from_secs(1)), [1]);
        assert_eq!(bench.feedback(1, 7), []);
        assert_eq!(bench.router.counters().workers_found, 1);
    }

    #[test]
    fn a_retry_of_what_a_lost_worker_has_goes_elsewhere() {
        let mut bench = Bench::new(2, Routing::RoundRobin);
        assert_eq!(bench.request(1), [1]);
        bench.now += Duration::from_millis(900);
        assert_eq!((bench.request(2), bench.request(3)), (vec![2], vec![1]));
        bench.pass(Duration::from_millis(100));
        assert_eq!(bench.request(3), [2]);
        assert_eq!(bench.counts(), [0, 2]);
    }

    #[test]
    fn what_is_none_of_its_business_is_left_alone() {
        let mut bench = Bench::new(1, Routing::RoundRobin);
        let header = Header::single(MessageType::Request, Policy::Replicated, 1);
        assert_eq!(bench.send(CLIENT, &Packet::new(header, b"body")), []);
        let header = Header::single(MessageType::Request, Policy::LoadBalance, 1);
        let mut packet = Packet::new(header, b"body");
        packet.options.origin = Some(address(5));
        assert_eq!(bench.send(CLIENT, &packet), []);
    }
}
