//! Whole conversations with a server that applies by P21, over a network that loses, doubles and
//! reorders: what the results say must be what happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use proptest::{option, prelude::*};
use r2p2::{Incoming, ReplyTo, ServerConfig, ServerEndpoint};

use super::*;
use crate::cluster_id::tests::says;
use crate::{
    CallOutcome, ClusterLimits, Configuration, Context, Entry, Identity, Kind, NodeId, Payload,
    Request, ReturnPath, SnapshotWriter, StateMachine,
    core::{Applier, Committed, Response, testing::DIGEST_KEY},
};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 7000);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 7000);
const KINDS: [CallKind; 3] = [
    CallKind::Command { until_known: false },
    CallKind::Command { until_known: true },
    CallKind::Query,
];

/// How long a session lives.
const LIFETIME: Duration = Duration::from_millis(300);

/// What a run consists of.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    /// Of 100 datagrams, how many are lost, and how many doubled.
    lost: u8,
    doubled: u8,
    /// Of 100 requests, how many are not admitted (P23).
    refused: u8,
    window: u32,
    /// The window that the cluster changes to, half way.
    later_window: u32,
    /// Session time that passes from some entries to the next, at most.
    idle_ms: u64,
    /// Nothing arrives at the server for so long, half way.
    outage: Duration,
    /// Place in [`KINDS`], time until the next call in µs, size of the body, and whether the caller
    /// gives up.
    calls: Vec<(usize, u64, usize, bool)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind_gap_size =
        (0..KINDS.len(), 0..20_000_u64, prop_oneof![9 => 8..100_usize, 1 => Just(4000)]);
    let call = (kind_gap_size, prop::bool::weighted(0.1));
    let calls = prop::collection::vec(call.prop_map(|((k, g, s), gone)| (k, g, s, gone)), 1..40);
    let faults = (0..40_u8, 0..40_u8, 0..30_u8, option::weighted(0.3, 100..3000_u64));
    let limits = (2..12_u32, option::weighted(0.2, 1..12_u32), option::weighted(0.3, 0..600_u64));
    (any::<u64>(), faults, limits, calls).prop_map(|(seed, faults, limits, calls)| {
        let (lost, doubled, refused, outage_ms) = faults;
        let (window, later_window, idle_ms) = limits;
        Plan {
            seed,
            lost,
            doubled,
            refused,
            window,
            later_window: later_window.unwrap_or(window),
            idle_ms: idle_ms.unwrap_or(0),
            outage: Duration::from_millis(outage_ms.unwrap_or(0)),
            calls,
        }
    })
}

/// Notes the calls that it executes, and answers with what it was asked.
struct Recorder {
    executed: Arc<Mutex<Vec<u64>>>,
}

impl StateMachine for Recorder {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        let call = u64::from_be_bytes(command[..8].try_into().unwrap());
        self.executed.lock().unwrap().push(call);
        self.query(context, command, reply);
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(query);
    }

    fn snapshot(&self) -> SnapshotWriter {
        unreachable!("the test takes no snapshots")
    }

    fn restore(&mut self, _: &mut dyn Read) -> io::Result<()> {
        unreachable!("the test takes no snapshots")
    }
}

/// The server: a log of one replica.
struct Server {
    endpoint: ServerEndpoint,
    applier: Applier,
    executed: Arc<Mutex<Vec<u64>>>,
}

impl Server {
    fn new(window: u32) -> Self {
        let executed = Arc::new(Mutex::new(Vec::new()));
        let service = Recorder { executed: Arc::clone(&executed) };
        let applier =
            Applier::new(Box::new(service), 1, DIGEST_KEY, Arc::new(configuration(window)));
        let endpoint = ServerEndpoint::new(ServerConfig::default(), 1);
        Self { endpoint, applier, executed }
    }

    fn apply(&mut self, now: Time, idle: Duration, payload: Payload, outbox: &mut Outbox) {
        let reply_to =
            |path: ReturnPath| ReplyTo { address: path.address, request_id: path.request_id };
        let answer_to = Some(ReturnPath { address: CLIENT, request_id: 0 });
        let session_delta_us = idle.as_micros() as u32;
        let entry = Entry { term: 1, log_time_us: 0, session_delta_us, payload, return_path: None };
        let index = self.applier.applied() + 1;
        let committed = Committed { index, entry, executes_read: true, answer_to };
        let endpoint = &mut self.endpoint;
        let mut respond = |response: Response<'_>| {
            let options = options_of(&response);
            endpoint.respond(now, reply_to(response.to), &options, response.body, outbox).unwrap();
        };
        self.applier.apply(&committed, &mut respond).unwrap();
    }
}

fn configuration(window: u32) -> Configuration {
    let limits = ClusterLimits {
        session_window: window,
        session_lifetime: LIFETIME,
        ..ClusterLimits::default()
    };
    Configuration::new(1, Vec::new(), limits)
}

fn options_of(response: &Response<'_>) -> Options {
    let Identity::Session { client, sequence } = response.identity else {
        panic!("the client sends no plain requests");
    };
    let outcome = (response.outcome != Outcome::Executed).then_some(response.outcome as u8);
    let identity = Some(r2p2::Identity { client, sequence });
    Options { identity, outcome, ..Options::NONE }
}

fn request_of(incoming: Incoming<'_>) -> Request {
    let session = incoming.options.session.expect("every request has SESSION");
    let kind = match (incoming.policy, incoming.options.request_kind) {
        (Policy::Replicated, None) => Kind::Write,
        (Policy::ReplicatedRead, None) => Kind::Read,
        (Policy::Replicated, Some(1)) => Kind::OpenSession,
        (Policy::Replicated, Some(2)) => Kind::Cancel,
        other => panic!("a request of {other:?}"),
    };
    let identity = Identity::Session { client: session.client, sequence: session.sequence };
    Request::new(DIGEST_KEY, identity, session.lowest, kind, incoming.body.into_bytes())
}

/// Client, network and server.
struct World {
    plan: Plan,
    now: Time,
    rng: fastrand::Rng,
    session: Session<usize>,
    server: Server,
    /// What is under way: when it arrives, a number, for whom, and the datagram.
    network: BTreeMap<(Time, u64), (SocketAddrV4, Vec<u8>)>,
    number: u64,
    outage_ends: Time,
    gone: BTreeSet<usize>,
    results: BTreeMap<usize, Result<Bytes, CallError>>,
}

impl World {
    fn new(plan: Plan) -> Self {
        let destinations = Destinations::All(vec![SERVER]);
        Self {
            now: Time::ZERO,
            rng: fastrand::Rng::with_seed(plan.seed),
            session: Session::new(&destinations, plan.seed),
            server: Server::new(plan.window),
            network: BTreeMap::new(),
            number: 0,
            outage_ends: Time::ZERO,
            gone: BTreeSet::new(),
            results: BTreeMap::new(),
            plan,
        }
    }

    fn run(mut self) -> Self {
        let calls = self.plan.calls.clone();
        let half = calls.len() / 2;
        for (token, (kind, gap_us, size, gives_up)) in calls.into_iter().enumerate() {
            if token == half {
                self.outage_ends = self.now + self.plan.outage;
                let configuration = Arc::new(configuration(self.plan.later_window));
                let payload = Payload::Configuration(configuration);
                let mut outbox = Outbox::new();
                self.server.apply(self.now, Duration::ZERO, payload, &mut outbox);
            }
            let mut body = vec![0; size];
            body[..8].copy_from_slice(&(token as u64).to_be_bytes());
            let timeout = Duration::from_millis(self.rng.u64(1..1000));
            self.session.submit(Call {
                kind: KINDS[kind],
                body: body.into(),
                deadline: self.now + timeout,
                timeout,
                token,
            });
            let next = self.now + Duration::from_micros(gap_us);
            self.run_until(next);
            if gives_up && !self.results.contains_key(&token) {
                self.gone.insert(token);
                let gone = &self.gone;
                self.session.abandon(self.now, |token| gone.contains(token));
            }
        }
        // Everybody gets a result, and then whatever is under way still arrives.
        let end = self.now + Duration::from_mins(2);
        self.run_until(end);
        assert!(self.network.is_empty(), "no request is outstanding any more");
        self
    }

    fn run_until(&mut self, end: Time) {
        loop {
            let mut outbox = Outbox::new();
            self.session.flush(self.now, &mut outbox);
            self.post(SERVER, &mut outbox);
            while let Some((token, result)) = self.session.poll_result() {
                assert!(self.results.insert(token, result).is_none(), "call {token} ended twice");
            }
            let timeouts = [self.session.poll_timeout(), self.server.endpoint.poll_timeout()];
            let arrival = self.network.keys().next().map(|(time, _)| *time);
            let next = timeouts.into_iter().flatten().chain(arrival).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            let mut outbox = Outbox::new();
            self.session.handle_timeout(self.now, &mut outbox);
            self.post(SERVER, &mut outbox);
            self.server.endpoint.handle_timeout(self.now, &mut outbox);
            self.post(CLIENT, &mut outbox);
            if arrival.is_some_and(|arrival| arrival <= self.now) {
                let (_, (to, datagram)) = self.network.pop_first().unwrap();
                self.arrive(to, &datagram);
            }
        }
    }

    /// Gives datagrams to the network, which does with them what it likes.
    fn post(&mut self, to: SocketAddrV4, outbox: &mut Outbox) {
        let Self { plan, now, rng, network, number, .. } = self;
        outbox.drain(|batch| {
            for datagram in batch.datagrams() {
                let copies = usize::from(rng.u8(0..100) >= plan.lost)
                    + usize::from(rng.u8(0..100) < plan.doubled);
                for _ in 0..copies {
                    // Some are as late as a retry.
                    let slow = if rng.u8(0..20) == 0 { 300_000 } else { 500 };
                    *number += 1;
                    let arrives = *now + Duration::from_micros(rng.u64(50..slow));
                    network.insert((arrives, *number), (to, datagram.to_vec()));
                }
            }
        });
    }

    fn arrive(&mut self, to: SocketAddrV4, datagram: &[u8]) {
        let mut outbox = Outbox::new();
        if to == CLIENT {
            self.session.handle_datagram(self.now, SERVER, datagram, &mut outbox).unwrap();
            return self.post(SERVER, &mut outbox);
        }
        if self.now < self.outage_ends {
            return;
        }
        if r2p2::message_type(datagram) == Some(MessageType::RaftRequest) {
            outbox.push(CLIENT, |out| out.extend_from_slice(&says(0)));
            return self.post(CLIENT, &mut outbox);
        }
        let Server { endpoint, applier, .. } = &mut self.server;
        let incoming = endpoint.handle_datagram(self.now, CLIENT, datagram, &mut outbox).unwrap();
        if let Some(incoming) = incoming {
            let reply_to = incoming.reply_to;
            let options = incoming.reply_options();
            let request = Arc::new(request_of(incoming));
            let path = ReturnPath { address: CLIENT, request_id: reply_to.request_id };
            let mut kept = false;
            if self.rng.u8(0..100) < self.plan.refused {
                endpoint.drop_request(reply_to, &options, &mut outbox);
                kept = true;
            } else if self.rng.bool() {
                // A leader may answer a retry without ordering it again (P18).
                kept = applier.answer_retry(request.key(), path, &mut |response| {
                    let options = options_of(&response);
                    let body = response.body;
                    endpoint.respond(self.now, reply_to, &options, body, &mut outbox).unwrap();
                });
            }
            if !kept {
                let idles = self.rng.u8(0..5) == 0;
                let idle_ms = if idles { self.rng.u64(0..=self.plan.idle_ms) } else { 0 };
                let idle = Duration::from_millis(idle_ms);
                let payload = Payload::Request { replier: NodeId(1), request };
                self.server.apply(self.now, idle, payload, &mut outbox);
            }
        }
        self.post(CLIENT, &mut outbox);
    }

    /// Checks what the results say against what was executed.
    fn check(&self) -> Result<(), TestCaseError> {
        let executed = self.server.executed.lock().unwrap();
        for (token, (kind, _, size, _)) in self.plan.calls.iter().enumerate() {
            let count = executed.iter().filter(|call| **call == token as u64).count();
            prop_assert!(count <= 1, "call {} was executed {} times", token, count);
            let Some(result) = self.results.get(&token) else {
                prop_assert!(self.gone.contains(&token), "call {} has no result", token);
                continue;
            };
            let is_query = KINDS[*kind] == CallKind::Query;
            match result {
                Ok(reply) => {
                    prop_assert_eq!(count, usize::from(!is_query), "call {}", token);
                    prop_assert_eq!(reply.len(), *size);
                    prop_assert_eq!(&reply[..8], &(token as u64).to_be_bytes());
                }
                Err(error) => match error.outcome() {
                    CallOutcome::NotExecuted => prop_assert_eq!(count, 0, "call {}", token),
                    CallOutcome::Executed => prop_assert_eq!(count, 1, "call {}", token),
                    CallOutcome::Unknown => {
                        let shrank = self.plan.later_window < self.plan.window;
                        let may_expire = self.plan.idle_ms > 0;
                        let may_be_unknown = match error {
                            CallError::TimedOut(_) => !KINDS[*kind].may_be_cancelled(),
                            CallError::SessionExpired => may_expire,
                            CallError::Unexpected(outcome) => {
                                shrank && *outcome == Outcome::OutsideWindow as u8
                            }
                            _ => false,
                        };
                        prop_assert!(may_be_unknown, "call {}: {}", token, error);
                    }
                },
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn what_a_result_says_is_what_happened(plan in plan()) {
        World::new(plan).run().check()?;
    }
}
