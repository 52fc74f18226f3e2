//! The stepper: replicas, clients, disks and a network in one event loop on one thread.

mod aggregators;
mod atlas;
mod clients;
mod effects;
mod injection;
mod old_copies;
mod processes;
mod scenes;
mod survivors;
mod wire;

use std::{collections::BTreeMap, iter, net::SocketAddrV4, sync::Arc, time::Duration};

use bytes::Bytes;
use hovercraft::{
    Configuration, Identity, Incarnation, Member, NodeId, Outcome, Request, ReturnPath, Term,
    messages::Envelope,
    storage::{Birth, Durability, HardState, Room},
};
use r2p2::Time;

use self::{aggregators::Machine, old_copies::OldCopies, survivors::Watch, wire::Flip};
use crate::{
    agenda::Agenda,
    client::Client,
    clock::Clock,
    coverage::Coverage,
    disk::{Disk, Snapshot},
    invariants::{Invariants, Violation, liveness},
    network::{Cause, Endpoint, Network},
    options::Options,
    replica::{Effect, Input, Life, Replica},
    schedule::Schedule,
    seed::Seed,
    survivors::Survivors,
    trace::{Line, Trace},
    workload::{Registers, Workload},
};

/// What is on its way through the network.
#[derive(Debug, Clone)]
enum Packet {
    Message(Box<Envelope>),
    /// A message in its form on the wire.
    Encoded(Bytes),
    Request(Arc<Request>, ReturnPath),
    /// Boxed, because every event has room for the largest.
    Reply(Box<Reply>),
    /// Not admitted now.
    Drop,
    /// A request has been answered, or refused (P19).
    Feedback(Identity),
}

/// What a client hears of its request.
#[derive(Debug, Clone)]
struct Reply {
    identity: Identity,
    outcome: Outcome,
    body: Bytes,
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
    /// A process hears what room its log has.
    Room(Process, Room),
    /// A leader has heard a replica whose disk is an older copy.
    OldCopyHeard,
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
    /// It is over by itself.
    Nothing,
    /// Of a replica that is down.
    Restart(usize),
    RestartAll,
    /// Of a disk, and the replica that it stopped.
    Repair(usize),
    /// Of a disk that is full.
    MakeRoom(usize),
    /// A copy takes the place of the directory.
    PutBack(usize),
    QuickDisk(usize),
    QuickNode(usize),
    /// Of an aggregator that is down.
    StartAggregator(usize),
    /// A clock goes faster or slower by so many millionths.
    Drift(usize, i64),
    /// Of what a fault did to links.
    Mend(Cause),
    /// Links that come and go: cut, or mended.
    Flap(Cause, bool),
    /// Of everything: nothing goes wrong any more.
    Heal,
}

/// What happens so often that it is counted without looking up its name.
#[derive(Debug, Default)]
struct Tally {
    deliveries: u64,
    answers: u64,
    retries: u64,
    refusals: u64,
    reused: u64,
    unawaited: u64,
    reads: u64,
    writes: u64,
    duplicates: u64,
    announcements: u64,
    requests_by_switch: u64,
    bodies_by_follower: u64,
    /// Messages with one body, and with more.
    bodies: [u64; 2],
}

impl Tally {
    fn add_to(&self, coverage: &mut Coverage) {
        coverage.add("deliveries", self.deliveries);
        coverage.add("answers", self.answers);
        coverage.add("client retries", self.retries);
        coverage.add("cancellations that refused", self.refusals);
        coverage.add("identities reused", self.reused);
        coverage.add("replies that nobody waited for", self.unawaited);
        coverage.add("reads executed", self.reads);
        coverage.add("writes executed", self.writes);
        coverage.add("duplicates refused", self.duplicates);
        coverage.add("announcements of aggregators", self.announcements);
        coverage.add("requests by a switch", self.requests_by_switch);
        coverage.add("bodies sent: one", self.bodies[0]);
        coverage.add("bodies sent: many", self.bodies[1]);
        coverage.add("bodies sent by a follower", self.bodies_by_follower);
    }
}

/// A cluster, its clients, and all that can go wrong between them.
pub struct Stepper {
    schedule: Schedule,
    workload: Arc<dyn Workload>,
    now: Time,
    agenda: Agenda<Event>,
    network: Network,
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    machines: Vec<Option<Machine>>,
    /// Whom each client talks to in mode `raft`.
    preferred: Vec<usize>,
    /// When each replica's, then each client's next wake-up is.
    wakes: Vec<Option<Time>>,
    rngs: Vec<fastrand::Rng>,
    healed_at: Option<Time>,
    /// Those who will be left alone before that.
    survivors: Option<Survivors>,
    /// They are alone.
    watch: Option<Watch>,
    /// Replicas that do not start meanwhile.
    forsaken: Vec<bool>,
    /// Clients may be made quiet again.
    quiet_again_at: Time,
    /// The term of the last leader.
    led: Term,
    old_copies: OldCopies,
    /// From here on nobody needs to wait for anything: the last operation has come up, and no pause
    /// or stall, which the healing does not end, lasts longer.
    quiet_from: Time,
    invariants: Invariants,
    trace: Trace,
    coverage: Coverage,
    tally: Tally,
    effects: Vec<Effect>,
    /// Who asked for votes, by term.
    candidates: BTreeMap<Term, Vec<usize>>,
    digest: u64,
    /// How many events there were at this time.
    standing: u64,
    /// Begin of the latest stretch of time in which deliveries are counted, and their number.
    stretch: (Time, u64),
}

/// More events than this at one time are a loop.
const STANDING_MAX: u64 = 100_000;

/// More deliveries than this in a stretch of time are a storm: messages that bring more of the
/// same.
const STORM: (Duration, u64) = (Duration::from_millis(20), 200_000);

/// What most messages take, encoded.
const USUAL_MESSAGE_BYTES: usize = 512;

/// Most bytes that an entry takes beside the body of an operation.
const ENTRY_BYTES: u64 = 1024;

/// What a paused replica's socket holds; the rest is lost.
const INBOX_MAX: usize = 2000;

impl Stepper {
    /// A cluster that has just been initialised, every replica started, with the registers.
    pub fn new(schedule: Schedule) -> Self {
        Self::build(schedule, Arc::new(Registers), Trace::off())
    }

    /// The same, with a service of one's own.
    pub fn with_workload(schedule: Schedule, workload: Arc<dyn Workload>) -> Self {
        Self::build(schedule, workload, Trace::off())
    }

    /// The same, keeping the last lines of its story.
    pub fn traced(schedule: Schedule, workload: Arc<dyn Workload>, lines_max: usize) -> Self {
        Self::build(schedule, workload, Trace::last(lines_max))
    }

    fn build(schedule: Schedule, workload: Arc<dyn Workload>, trace: Trace) -> Self {
        let options = &schedule.options;
        let seed = Seed(options.seed);
        let (count, clients) = (usize::from(options.cluster.replicas), options.clients.len());
        let aggregators = usize::from(options.cluster.aggregators);
        let configuration = configuration(options);
        let client = |(position, options): (usize, &_)| Client::new(position, *options, seed);
        let mut stepper = Self {
            now: Time::ZERO,
            agenda: Agenda::new(),
            network: Network::new(seed, options.network, count + clients + aggregators),
            replicas: (0..count).map(|at| replica(&schedule, &configuration, at)).collect(),
            clients: options.clients.iter().enumerate().map(client).collect(),
            machines: (0..aggregators).map(|_| Some(Machine::new(options))).collect(),
            preferred: vec![0; clients],
            wakes: vec![None; count + clients],
            rngs: (0..count).map(|at| seed.stream("turns", at as u64)).collect(),
            healed_at: None,
            survivors: schedule.options.survivors.clone().filter(|_| !schedule.beyond),
            watch: None,
            forsaken: vec![false; count],
            quiet_again_at: Time::ZERO,
            led: 0,
            old_copies: OldCopies::default(),
            quiet_from: schedule.last_planned(),
            invariants: Invariants::new(count, Arc::new(configuration), &workload),
            trace,
            coverage: Coverage::default(),
            tally: Tally::default(),
            effects: Vec::new(),
            candidates: BTreeMap::new(),
            digest: 0,
            standing: 0,
            stretch: (Time::ZERO, 0),
            workload,
            schedule,
        };
        if stepper.schedule.beyond {
            stepper.invariants.trust_no_clock();
        }
        if stepper.schedule.is_of_aggregators() {
            stepper.invariants.expect_no_election(&stepper.schedule.options);
        }
        if stepper.schedule.is_of_held_hosts() {
            stepper.invariants.expect_patience(&stepper.schedule.options);
        }
        if stepper.schedule.is_of_stalled_disks() {
            stepper.invariants.expect_moving_disks(&stepper.schedule.options);
        }
        for at in 0..count {
            stepper.start(at);
        }
        for planned in &stepper.schedule.operations {
            stepper.clients[planned.client].plan(planned);
        }
        for (number, timed) in stepper.schedule.faults.iter().enumerate() {
            let at = Time::ZERO + Duration::from_micros(timed.at_us);
            stepper.agenda.add(at, Event::Fault(number));
        }
        let end = Time::ZERO + Duration::from_micros(stepper.schedule.options.chaos_us);
        stepper.agenda.add(end, Event::Relief(Relief::Heal));
        for position in 0..clients {
            stepper.wake_client(position);
        }
        stepper
    }

    /// The invariants look at nothing from now on: to see what they cost.
    #[must_use]
    pub fn without_invariants(mut self) -> Self {
        self.invariants.turn_off();
        for replica in &mut self.replicas {
            replica.digests = false;
            replica.life.iter_mut().for_each(Life::without_digests);
        }
        self
    }

    /// Runs until everything is done and everybody has caught up; then starts every replica again,
    /// and looks whether everything that was acknowledged is still there.
    pub fn run(&mut self) -> Result<(), Violation> {
        if self.schedule.beyond {
            return self.run_beyond();
        }
        self.settle()?;
        self.restart_all();
        self.settle()?;
        self.judge()
    }

    /// What the clients saw, all of it, judged by itself.
    fn judge(&mut self) -> Result<(), Violation> {
        let is_decided = self.invariants.judge(&self.clients)?;
        self.coverage.add(if is_decided { "histories judged" } else { "histories undecided" }, 1);
        Ok(())
    }

    /// Until everything is done.
    fn settle(&mut self) -> Result<(), Violation> {
        while !self.is_settled() {
            self.step()?;
            self.check_patience()?;
        }
        self.check_admission()?;
        self.invariants.at_rest(&self.replicas)
    }

    /// Where faults go beyond what is promised, nothing needs to be done in the end; but nothing
    /// that is done may be wrong.
    fn run_beyond(&mut self) -> Result<(), Violation> {
        const LONG_ENOUGH: Duration = Duration::from_secs(2);
        while self.quiet_for().is_none_or(|waited| waited < LONG_ENOUGH) {
            if self.is_settled() {
                self.invariants.at_rest(&self.replicas)?;
                return self.judge();
            }
            self.step()?;
        }
        self.coverage.add("runs beyond the promises that did not recover", 1);
        self.judge()
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
            Event::Deliver { from, to, sent, packet } => {
                self.tally.deliveries += 1;
                self.check_storm()?;
                self.deliver(from, to, sent, packet)
            }
            Event::Turn(process) => self.turn(process),
            Event::Wake(process) => self.wake(process),
            Event::Disk(process) => self.disk_done(process),
            Event::Room(process, room) => self.input(process, Input::Room(room)),
            Event::OldCopyHeard => self.old_copy_heard(),
            Event::Sync(process) => {
                if self.is_running(process) {
                    let later = self.disk_moves_later(process.at);
                    let disk = &mut self.replicas[process.at].disk;
                    let next = later.unwrap_or_else(|| at + disk.sync_interval());
                    self.agenda.add(next, Event::Sync(process));
                }
                Ok(())
            }
            Event::Apply(process) => self.apply(process),
            Event::Snapshot(process, snapshot) => {
                if let Some(later) = self.disk_moves_later(process.at)
                    && self.is_running(process)
                {
                    self.agenda.add(later, Event::Snapshot(process, snapshot));
                    return Ok(());
                }
                self.input(process, Input::SnapshotTaken(snapshot))
            }
            Event::Client(position) => {
                self.client_turn(position);
                Ok(())
            }
            Event::Fault(number) => {
                self.inject(number);
                Ok(())
            }
            Event::Relief(relief) => {
                self.relieve(relief);
                Ok(())
            }
        }
    }

    fn check_storm(&mut self) -> Result<(), Violation> {
        let (time, deliveries_max) = STORM;
        let (since, count) = &mut self.stretch;
        if self.now.since(*since) > time {
            (*since, *count) = (self.now, 0);
        }
        *count += 1;
        if *count <= deliveries_max {
            return Ok(());
        }
        let what = format!("{deliveries_max} packets are delivered in less than {time:?}");
        Err(Violation { invariant: "no storm of messages", rule: "P9", what })
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
        coverage.add("bytes through narrow links", self.network.squeezed_bytes);
        coverage.add("bytes that narrow links lost", self.network.overflowed_bytes);
        coverage.add("orders with a bit flipped", self.network.flipped);
        coverage.add("packets late", self.network.late);
        coverage.add("packets too large", self.network.too_large);
        self.tally.add_to(&mut coverage);
        let lost = self.clients.iter().map(|client| client.sessions_lost).sum();
        coverage.add("sessions lost", lost);
        let rules = &self.invariants.session_rules;
        coverage.add("sessions evicted for their number", rules.evicted_for_count);
        coverage.add("sessions evicted for their size", rules.evicted_for_bytes);
        coverage
    }

    /// Digest of everything that happened so far: equal for equal options.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The story so far, as far as it is kept.
    pub fn story(&self) -> impl Iterator<Item = String> {
        self.trace.lines().map(ToString::to_string)
    }

    /// How many packets came through so far.
    pub fn deliveries(&self) -> u64 {
        self.tally.deliveries
    }

    /// How many replicas and clients there are.
    pub(crate) fn endpoints(&self) -> (usize, usize) {
        (self.replicas.len(), self.clients.len())
    }

    pub(crate) fn into_lines(self) -> Vec<Line> {
        self.trace.into_lines()
    }

    /// Everything is done, and everybody has caught up and is a member again.
    fn is_settled(&self) -> bool {
        self.healed_at.is_some() && self.clients.iter().all(Client::is_done) && {
            let lives = self.replicas.iter().filter_map(|replica| replica.life.as_ref());
            let committed = lives.map(|life| life.core.commit_index()).max().unwrap_or_default();
            self.replicas.iter().all(|replica| liveness::is_settled(replica, committed))
        }
    }

    /// How long nothing has gone wrong, and nothing new has come up.
    fn quiet_for(&self) -> Option<Duration> {
        self.healed_at.map(|at| self.now.since(at.max(self.quiet_from)))
    }

    /// Nothing has gone wrong for a while, so everything must be done.
    fn check_patience(&mut self) -> Result<(), Violation> {
        if let Some(watch) = self.watch {
            return self.watch_survivors(watch);
        }
        let Some(waited) = self.quiet_for() else {
            let is_lasting = self.schedule.options.is_lasting;
            if !is_lasting && self.clients.iter().all(Client::is_done) {
                self.heal();
            }
            return Ok(());
        };
        let is_over = |patience_us| waited > Duration::from_micros(patience_us);
        // This is asked after every event, so the rest is for the few runs that take long.
        if !is_over(self.schedule.options.patience_us) {
            return Ok(());
        }
        let patience_us = self.patience_us();
        if !is_over(patience_us) {
            return Ok(());
        }
        let waiting = self.clients.iter().filter(|client| !client.is_done());
        let waiting = waiting.map(|client| client.describe(self.workload.as_ref())).collect();
        Err(liveness::fail(patience_us, waiting, &self.replicas))
    }

    /// How long after all is well everything must be done. Behind a switch that will never reach a
    /// replica again, a client whose leader that is has each of its requests, and perhaps a
    /// cancellation, answered at the third try.
    fn patience_us(&self) -> u64 {
        /// The second wait is twice the first, and there is some chance in both.
        const WAITS: u64 = 2 * 4;
        let Options { cluster, patience_us, .. } = &self.schedule.options;
        let has_any_for_good = || self.schedule.faults.iter().any(|it| it.fault.is_for_good());
        if !cluster.by_switch || !has_any_for_good() {
            return *patience_us;
        }
        let longest = self.clients.iter().map(Client::first_waits_us).max();
        patience_us + WAITS * longest.unwrap_or(0)
    }

    /// Sends the same packet to several.
    fn send_to_all(
        &mut self,
        from: Endpoint,
        to: impl ExactSizeIterator<Item = Endpoint>,
        packet: Packet,
    ) {
        let copies = iter::repeat_n(packet, to.len());
        for (to, packet) in to.zip(copies) {
            self.send(from, to, packet);
        }
    }

    fn send(&mut self, from: Endpoint, to: Endpoint, packet: Packet) {
        if let Some(number) = self.network.damage_packet(from, to) {
            let cluster = self.schedule.options.seed;
            let digest_key = Seed(cluster).digest_key();
            let flip = Flip { cluster, digest_key, number };
            if let Some(packet) = flip.of(packet) {
                self.coverage.add("packets damaged and taken", 1);
                self.transmit(from, to, packet);
            }
            return;
        }
        self.transmit(from, to, packet);
    }

    fn transmit(&mut self, from: Endpoint, to: Endpoint, packet: Packet) {
        let [first, second] = self.network.send(self.now, from, to, || packet.size_bytes());
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

impl Packet {
    /// About how long it is.
    fn size_bytes(&self) -> usize {
        match self {
            Self::Message(envelope) => {
                let mut bytes = Vec::with_capacity(USUAL_MESSAGE_BYTES);
                envelope.encode(&mut bytes);
                bytes.len()
            }
            Self::Encoded(bytes) => bytes.len(),
            Self::Request(request, _) => request.body().len() + 40,
            Self::Reply(reply) => reply.body.len() + 40,
            Self::Drop | Self::Feedback(_) => 12,
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
    let members = (0..usize::from(options.cluster.replicas)).map(member).collect();
    Configuration::new(1, members, options.cluster.limits())
}

fn replica(schedule: &Schedule, configuration: &Configuration, at: usize) -> Replica {
    let options = &schedule.options;
    let (settings, seed) = (options.cluster.settings(at), Seed(options.seed));
    let Member { id, incarnation, .. } = configuration.members[at];
    let birth = Birth {
        cluster: options.seed,
        node: id,
        configuration: configuration.clone(),
        digest_key: seed.digest_key(),
    };
    let hard_state = HardState {
        term: 0,
        vote: None,
        incarnation,
        birth: Some(birth),
        // What `init` wrote is whole in every durability.
        durability: Durability::Sync,
        clean: true,
    };
    let stream = |name| seed.stream(name, at as u64);
    let largest = schedule.operations.iter().map(|it| it.body.len() + it.padding).max();
    let entry_bytes_max = ENTRY_BYTES + largest.unwrap_or(0) as u64;
    let disk =
        Disk::new(options.disk, settings.durability, hard_state, entry_bytes_max, stream("disk"));
    let mut rng = stream("clock");
    let drift = u64::from(options.drift_ppm_max);
    let speed_ppm = 1_000_000 - drift + rng.u64(..=2 * drift);
    let clock = Clock::new(speed_ppm, rng.i64(-1_000_000..1_000_000));
    Replica::new(id, (settings, entry_bytes_max), disk, clock, stream("replica"))
}
