//! The stepper: replicas, clients, disks and a network in one event loop on one thread.

mod clients;
mod effects;
mod injection;
mod processes;
mod scenes;

use std::{collections::BTreeMap, net::SocketAddrV4, sync::Arc};

use bytes::Bytes;
use hovercraft::{
    Configuration, Identity, Incarnation, Member, NodeId, Outcome, Request, ReturnPath,
    messages::Envelope,
    storage::{Birth, Durability, HardState},
};
use r2p2::Time;

use crate::{
    agenda::Agenda,
    client::Client,
    clock::Clock,
    coverage::Coverage,
    disk::{Disk, Snapshot},
    faults::Fault,
    invariants::{Invariants, Violation},
    network::{Endpoint, Network},
    options::Options,
    replica::{Input, Replica},
    trace::Trace,
};

/// What is on its way through the network.
#[derive(Debug, Clone)]
enum Packet {
    Message(Box<Envelope>),
    /// A message in its form on the wire.
    Encoded(Bytes),
    Request(Arc<Request>, ReturnPath),
    Reply {
        identity: Identity,
        outcome: Outcome,
        body: Bytes,
    },
    /// Not admitted now.
    Drop,
}

/// One run of a replica, by its position; what was to happen to an earlier run does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    at: usize,
    run: u64,
}

#[derive(Debug)]
enum Event {
    Deliver {
        from: Endpoint,
        to: Endpoint,
        sent: Time,
        packet: Packet,
    },
    /// A replica looks at its inbox.
    Turn(Process),
    /// A timer of a replica may be due.
    Wake(Process),
    /// A batch of writes is done.
    Disk(Process),
    /// Time for the next sync in the durability `interval`.
    Sync(Process),
    /// An application thread has executed an entry.
    Apply(Process),
    /// A snapshot that a replica took is written.
    Snapshot(Process, Box<Snapshot>),
    /// A client has something to do.
    Client(usize),
    Fault(usize),
    /// What a fault did ends.
    Relief(Relief),
}

#[derive(Debug, Clone, Copy)]
enum Relief {
    /// Of a replica that is down.
    Restart(usize),
    /// Of a slow disk.
    QuickDisk(usize),
    /// Of cut links.
    Mend,
    /// Of everything: nothing goes wrong any more.
    Heal,
}

/// A cluster, its clients, and all that can go wrong between them.
#[derive(Debug)]
pub struct Stepper {
    options: Options,
    now: Time,
    agenda: Agenda<Event>,
    network: Network,
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    /// Whom each client talks to in mode `raft`.
    preferred: Vec<usize>,
    /// When each replica's, then each client's next wake-up is.
    wakes: BTreeMap<Endpoint, Time>,
    rngs: Vec<fastrand::Rng>,
    faults: Vec<(Time, Fault)>,
    healed_at: Option<Time>,
    invariants: Invariants,
    trace: Trace,
    coverage: Coverage,
    digest: u64,
    /// How many events there were at this time.
    standing: u64,
}

/// More events than this at one time are a loop.
const STANDING_MAX: u64 = 100_000;

/// What a paused replica's socket holds; the rest is lost.
const INBOX_MAX: usize = 2000;

impl Stepper {
    /// A cluster that has just been initialised, every replica started.
    pub fn new(options: Options) -> Self {
        Self::with_trace(options, Trace::off())
    }

    /// As [`Self::new`], and keeps the last lines of its story.
    pub fn traced(options: Options, lines_max: usize) -> Self {
        Self::with_trace(options, Trace::last(lines_max))
    }

    fn with_trace(options: Options, trace: Trace) -> Self {
        let seed = options.seed;
        let (count, clients) = (options.replicas.len(), options.clients.len());
        let configuration = configuration(&options);
        let replicas = (0..count).map(|at| replica(&options, &configuration, at)).collect();
        let client = |(position, options): (usize, &_)| {
            Client::new(position, *options, seed.stream("client", position as u64))
        };
        let plan = &mut seed.stream("plan", 0);
        let faults = options.faults.plan(plan, options.chaos, count);
        let mut stepper = Self {
            now: Time::ZERO,
            agenda: Agenda::new(),
            network: Network::new(seed, options.network, count + clients),
            replicas,
            clients: options.clients.iter().enumerate().map(client).collect(),
            preferred: vec![0; clients],
            wakes: BTreeMap::new(),
            rngs: (0..count).map(|at| seed.stream("turns", at as u64)).collect(),
            faults,
            healed_at: None,
            invariants: Invariants::new(count, Arc::new(configuration)),
            trace,
            coverage: Coverage::default(),
            digest: 0,
            standing: 0,
            options,
        };
        for at in 0..count {
            stepper.start(at);
        }
        for (number, (at, _)) in stepper.faults.iter().enumerate() {
            stepper.agenda.add(*at, Event::Fault(number));
        }
        let end = Time::ZERO + stepper.options.chaos;
        stepper.agenda.add(end, Event::Relief(Relief::Heal));
        for position in 0..clients {
            stepper.wake_client(position);
        }
        stepper
    }

    /// Runs until everything is done and everybody has caught up.
    pub fn run(&mut self) -> Result<(), Violation> {
        while !self.is_settled() {
            self.step()?;
            self.check_patience()?;
        }
        self.invariants.at_rest(&self.replicas)
    }

    /// The next event.
    pub fn step(&mut self) -> Result<(), Violation> {
        let Some((at, event)) = self.agenda.next() else {
            let what = "nothing will ever happen again".to_owned();
            return Err(Violation { invariant: "progress", rule: "liveness", what });
        };
        self.standing = if at > self.now { 0 } else { self.standing + 1 };
        if self.standing > STANDING_MAX {
            let what = "too much happens at one time".to_owned();
            return Err(Violation { invariant: "progress", rule: "liveness", what });
        }
        self.now = at;
        self.digest =
            (self.digest.rotate_left(5) ^ at.as_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match event {
            Event::Deliver { from, to, sent, packet } => self.deliver(from, to, sent, packet),
            Event::Turn(process) => self.turn(process),
            Event::Wake(process) => self.wake(process),
            Event::Disk(process) => self.disk_done(process),
            Event::Sync(process) => {
                if self.is_running(process) {
                    let after = self.replicas[process.at].disk.sync_interval();
                    self.agenda.add(at + after, Event::Sync(process));
                }
                Ok(())
            }
            Event::Apply(process) => self.apply(process),
            Event::Snapshot(process, snapshot) => {
                self.input(process, Input::SnapshotTaken(*snapshot))
            }
            Event::Client(position) => {
                self.client_turn(position);
                Ok(())
            }
            Event::Fault(number) => {
                self.inject(self.faults[number].1);
                Ok(())
            }
            Event::Relief(relief) => {
                self.relieve(relief);
                Ok(())
            }
        }
    }

    /// The replica that leads the highest term, if one does.
    pub fn leader(&self) -> Option<usize> {
        let term = |replica: &Replica| {
            let core = &replica.life.as_ref()?.core;
            core.is_leader().then(|| core.hard_state().term)
        };
        let leads = |at: &usize| term(&self.replicas[*at]).is_some();
        (0..self.replicas.len()).filter(leads).max_by_key(|at| term(&self.replicas[*at]))
    }

    /// What happened so far.
    pub fn coverage(&self) -> Coverage {
        let mut coverage = self.coverage.clone();
        for life in self.replicas.iter().filter_map(|replica| replica.life.as_ref()) {
            coverage.add_core(life.core.counters());
        }
        coverage.add("entries committed", self.invariants.history.committed_last());
        coverage.add("packets lost", self.network.lost);
        coverage.add("packets doubled", self.network.doubled);
        coverage.add("packets cut off", self.network.cut_off);
        coverage.add("packets damaged", self.network.damaged);
        let lost = self.clients.iter().map(|client| client.sessions_lost).sum();
        coverage.add("sessions lost", lost);
        coverage
    }

    /// Digest of everything that happened so far: equal for equal options.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The story so far, as far as it is kept.
    pub fn story(&self) -> impl Iterator<Item = &str> {
        self.trace.lines()
    }

    /// Everything is done, and everybody has caught up and is a member again.
    fn is_settled(&self) -> bool {
        let committed = self.invariants.history.committed_last();
        let is_settled = |replica: &Replica| {
            let Some(life) = &replica.life else { return false };
            let member = life.core.configuration().member(replica.node);
            let incarnation = life.core.hard_state().incarnation;
            life.applier.applied() == committed
                && life.core.log_bounds().1 == committed
                && member.is_some_and(|member| member.incarnation == incarnation)
        };
        self.healed_at.is_some()
            && self.clients.iter().all(Client::is_done)
            && self.replicas.iter().all(is_settled)
    }

    /// Nothing has gone wrong for a while, so everything must be done.
    fn check_patience(&mut self) -> Result<(), Violation> {
        let Some(healed_at) = self.healed_at else {
            if self.clients.iter().all(Client::is_done) {
                self.heal();
            }
            return Ok(());
        };
        let patience = self.options.patience;
        if self.now.since(healed_at) <= patience {
            return Ok(());
        }
        let waiting = self.clients.iter().filter(|client| !client.is_done());
        let lives = self.replicas.iter().filter_map(|replica| replica.life.as_ref());
        let states = lives.map(|life| format!("{:?}", life.core.status()));
        let what: Vec<_> = waiting.map(ToString::to_string).chain(states).collect();
        let what = format!(
            "{patience:?} after all is well again not everything is done:\n{}",
            what.join("\n")
        );
        Err(Violation { invariant: "progress", rule: "liveness", what })
    }

    fn send(&mut self, from: Endpoint, to: Endpoint, packet: Packet) {
        let [first, second] = self.network.send(self.now, from, to);
        let sent = self.now;
        if let Some(at) = second {
            let packet = packet.clone();
            self.agenda.add(at, Event::Deliver { from, to, sent, packet });
        }
        if let Some(at) = first {
            self.agenda.add(at, Event::Deliver { from, to, sent, packet });
        }
    }
}

/// The first configuration, and what each replica's disk holds after `init`.
fn configuration(options: &Options) -> Configuration {
    let member = |at: usize| {
        let number = at as u16 + 1;
        let address = SocketAddrV4::new([127, 0, 0, 1].into(), 9000 + number);
        Member { id: NodeId(number), incarnation: Incarnation(u64::from(number)), address }
    };
    let members = (0..options.replicas.len()).map(member).collect();
    Configuration { id: 1, members, limits: options.limits }
}

fn replica(options: &Options, configuration: &Configuration, at: usize) -> Replica {
    let settings = options.replicas[at];
    let Member { id, incarnation, .. } = configuration.members[at];
    let birth = Birth { cluster: options.seed.0, node: id, configuration: configuration.clone() };
    let hard_state = HardState {
        term: 0,
        vote: None,
        incarnation,
        birth: Some(birth),
        // What `init` wrote is whole in every durability.
        durability: Durability::Sync,
        clean: true,
    };
    let stream = |name| options.seed.stream(name, at as u64);
    let disk = Disk::new(options.disk, settings.durability, hard_state, stream("disk"));
    let mut rng = stream("clock");
    let drift = options.drift_ppm_max;
    let speed_ppm = 1_000_000 - drift + rng.u64(..=2 * drift);
    let clock = Clock::new(speed_ppm, rng.i64(-1_000_000..1_000_000));
    Replica::new(id, settings, disk, clock, stream("replica"))
}
