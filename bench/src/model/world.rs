//! Modelled machines around real cores: processors, network cards and links as queues, in virtual
//! time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hovercraft::{
    Index, NodeId, Request,
    core::{Committed, Core, Mode, Output, Policy, Write, WriteNumber},
    messages::{Envelope, Message},
};
use r2p2::Time;

use super::{
    Costs,
    cores::{Cores, request, return_path},
    queue::{Link, Queue, frames},
};
use crate::generator::{Poisson, latencies};

/// Which system is modelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// One server.
    Unreplicated,
    /// Bodies in append-entries, the leader replies.
    Raft,
    /// Metadata in append-entries, with this choice of repliers.
    HovercRaft(Policy),
}

/// How long requests take to serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Service {
    /// All the same, in µs.
    Fixed(f64),
    /// One in ten ten times as long as the others, with this mean, in µs.
    Bimodal(f64),
}

impl Service {
    fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        let us = match self {
            Self::Fixed(us) => us,
            Self::Bimodal(mean) => mean / 1.9 * if rng.f64() < 0.1 { 10.0 } else { 1.0 },
        };
        Duration::from_secs_f64(us * 1e-6)
    }
}

/// What is asked of the modelled machines.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Which system.
    pub system: System,
    /// How many replicas; one if it is not replicated.
    pub replicas: u16,
    /// Bytes of a request and of a reply.
    pub bytes: (usize, usize),
    /// How long it takes.
    pub service: Service,
    /// The share of requests that only read.
    pub reads: f64,
    /// B (P15).
    pub queue_bound: usize,
    /// Arrivals a second.
    pub per_second: f64,
    /// How many requests are modelled.
    pub count: u64,
    /// Of all that is random.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Modelled {
    /// Answers a second, over the time of the load.
    pub achieved_per_s: f64,
    /// From the sending to the answer, in ns.
    pub latency_ns: Histogram<u64>,
    /// Requests that were not admitted or not answered.
    pub lost: u64,
}

impl Modelled {
    /// In µs; those that were lost count as endless.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        let count = self.latency_ns.len();
        let all = (count + self.lost) as f64;
        if quantile * all > count as f64 {
            return f64::INFINITY;
        }
        self.latency_ns.value_at_quantile(quantile * all / count.max(1) as f64) as f64 / 1000.0
    }
}

#[derive(Debug)]
enum Event {
    /// The next request is sent.
    Arrival,
    /// Something reaches a machine's network thread.
    Delivered(usize, Input),
    /// A network thread is free again, or a timer of its core is due.
    Turn(usize),
    /// A service has executed an entry.
    Executed(usize, Index),
    /// A reply reaches the client.
    Reply { number: u64 },
}

#[derive(Debug, Clone)]
enum Input {
    Request(Arc<Request>, u64),
    Message(Box<Envelope>),
    Stored(WriteNumber),
}

/// Events in order of time and, at one time, of their making.
#[derive(Debug)]
struct Timed {
    at: Time,
    serial: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// One machine: a network thread, a service, and a card with a link each way.
struct Machine {
    core: Option<Core>,
    inbox: VecDeque<Input>,
    applied: Option<Index>,
    busy_until: Time,
    /// When its next turn is planned.
    turn_at: Option<Time>,
    service: Queue,
    sends: Link,
    receives: Link,
    rng: fastrand::Rng,
}

/// The machines, the client, and what is under way between them.
struct World<'a> {
    costs: &'a Costs,
    load: Load,
    machines: Vec<Machine>,
    events: BinaryHeap<Reverse<Timed>>,
    serial: u64,
    schedule: Poisson,
    sent: u64,
    /// When each request was sent; none once it is answered.
    sent_at: Vec<Option<Time>>,
    rng: fastrand::Rng,
    latency_ns: Histogram<u64>,
    begun: Time,
    last: Time,
    buffer: Vec<u8>,
}

/// How long a cluster may take to elect its first leader.
const ELECTION: Duration = Duration::from_secs(1);
/// The first requests are not counted, as a share of all.
const WARM_UP: f64 = 0.2;
/// After the last request the world runs on for so long.
const REST: Duration = Duration::from_millis(20);
/// A request that is not answered within it is lost.
const PATIENCE: Duration = Duration::from_millis(50);
/// IDENTITY and the header of R2P2, in bytes.
const REPLY_HEADER_BYTES: usize = 30;
/// What a card takes over before it makes whoever sends wait.
const SEND_QUEUE: Duration = Duration::from_micros(20);
/// What one turn takes at most.
const TURN_INPUTS_MAX: usize = 256;

/// Models a load on machines with these costs.
pub fn model(load: Load, costs: &Costs) -> Modelled {
    let mut world = World::new(load, costs);
    world.elect();
    world.run();
    world.result()
}

impl<'a> World<'a> {
    fn new(load: Load, costs: &'a Costs) -> Self {
        let cores = match load.system {
            System::Unreplicated => vec![None],
            System::Raft => Self::cores(load, Mode::Raft, Policy::Leader),
            System::HovercRaft(policy) => Self::cores(load, Mode::HovercRaft, policy),
        };
        let machine = |(place, core): (usize, Option<Core>)| Machine {
            core,
            inbox: VecDeque::new(),
            applied: None,
            busy_until: Time::ZERO,
            turn_at: None,
            service: Queue::new(1),
            sends: Link::new(costs.link_gbit_per_s),
            receives: Link::new(costs.link_gbit_per_s),
            rng: fastrand::Rng::with_seed(load.seed ^ (place as u64 + 1)),
        };
        let begun = Time::ZERO + ELECTION;
        Self {
            costs,
            load,
            machines: cores.into_iter().enumerate().map(machine).collect(),
            events: BinaryHeap::new(),
            serial: 0,
            schedule: Poisson::new(begun, load.per_second, load.seed),
            sent: 0,
            sent_at: Vec::new(),
            rng: fastrand::Rng::with_seed(load.seed ^ 0xABCD),
            latency_ns: latencies(),
            begun,
            last: begun,
            buffer: Vec::new(),
        }
    }

    fn cores(load: Load, mode: Mode, policy: Policy) -> Vec<Option<Core>> {
        let Load { replicas, queue_bound, seed, .. } = load;
        let cores = Cores { replicas, mode, policy, queue_bound, seed };
        cores.start(Time::ZERO).into_iter().map(Some).collect()
    }

    /// Lets a leader come up before there is load.
    fn elect(&mut self) {
        for place in 0..self.machines.len() {
            self.plan(place, Time::ZERO);
        }
        while self.events.peek().is_some_and(|next| next.0.at < self.begun) {
            let Some(Reverse(timed)) = self.events.pop() else { return };
            self.event(timed);
        }
    }

    fn run(&mut self) {
        let first = self.schedule.next();
        self.at(first, Event::Arrival);
        while let Some(Reverse(timed)) = self.events.pop() {
            if self.sent == self.load.count && timed.at > self.last + REST {
                break;
            }
            self.event(timed);
        }
    }

    fn result(self) -> Modelled {
        let measured = self.sent_at.iter().enumerate().filter(|(place, _)| self.counts(*place));
        let lost = measured.filter(|(_, sent)| sent.is_some()).count() as u64;
        let counted = self.latency_ns.len();
        let span = self.last.since(self.begun).as_secs_f64() * (1.0 - WARM_UP);
        let achieved_per_s = counted as f64 / span.max(1e-9);
        Modelled { achieved_per_s, latency_ns: self.latency_ns, lost }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.serial += 1;
        self.events.push(Reverse(Timed { at, serial: self.serial, event }));
    }

    fn event(&mut self, timed: Timed) {
        let now = timed.at;
        match timed.event {
            Event::Arrival => self.arrival(now),
            Event::Delivered(place, input) => {
                self.machines[place].inbox.push_back(input);
                self.plan(place, now);
            }
            Event::Turn(place) => {
                if self.machines[place].turn_at == Some(now) {
                    self.machines[place].turn_at = None;
                    self.turn(place, now);
                }
            }
            Event::Executed(place, index) => {
                self.machines[place].applied = Some(index);
                self.plan(place, now);
            }
            Event::Reply { number } => self.answered(now, number),
        }
    }

    /// A client sends the next request: to all replicas by the switch, or to the one that leads.
    fn arrival(&mut self, now: Time) {
        self.sent += 1;
        self.last = now;
        let number = self.sent;
        self.sent_at.push(Some(now));
        let is_read = self.load.reads > 0.0 && self.rng.f64() < self.load.reads;
        let body = Bytes::from(vec![0; self.load.bytes.0]);
        let request = Arc::new(request(number, is_read, body));
        let leads = |machine: &Machine| machine.core.as_ref().is_some_and(Core::is_leader);
        let only = match self.load.system {
            System::HovercRaft(_) => None,
            _ => Some(self.machines.iter().position(leads).unwrap_or(0)),
        };
        // Header and options of R2P2.
        let bytes = self.load.bytes.0 + 40;
        for place in 0..self.machines.len() {
            if only.is_none_or(|only| only == place) {
                let arrives = now + self.wire();
                let at = self.machines[place].receives.carry(arrives, bytes);
                self.at(at, Event::Delivered(place, Input::Request(Arc::clone(&request), number)));
            }
        }
        if self.sent < self.load.count {
            self.schedule.advance();
            let next = self.schedule.next();
            self.at(next, Event::Arrival);
        }
    }

    /// Sees to it that a machine has a turn when it can, and when its core wants one.
    fn plan(&mut self, place: usize, now: Time) {
        let machine = &self.machines[place];
        let free = now.max(machine.busy_until);
        let has_input = !machine.inbox.is_empty() || machine.applied.is_some();
        let timer = machine.core.as_ref().and_then(Core::poll_timeout).map(|due| due.max(free));
        let Some(at) = (if has_input { Some(free) } else { timer }) else { return };
        if machine.turn_at.is_none_or(|planned| at < planned) {
            self.machines[place].turn_at = Some(at);
            self.at(at, Event::Turn(place));
        }
    }

    /// A network thread takes what has arrived, lets the core decide, and sends what comes of it.
    fn turn(&mut self, place: usize, now: Time) {
        let mut us = self.costs.turn_us;
        let mut served = Vec::new();
        for _ in 0..TURN_INPUTS_MAX {
            let Some(input) = self.machines[place].inbox.pop_front() else { break };
            us += self.input(place, now, input, &mut served);
        }
        let applied = self.machines[place].applied.take();
        let mut outputs = Vec::new();
        let mut committed = Vec::new();
        if let Some(core) = &mut self.machines[place].core {
            if let Some(index) = applied {
                core.handle_applied(now, index);
            }
            core.handle_timeout(now);
            core.flush(now, now.as_micros());
            outputs.extend(std::iter::from_fn(|| core.poll_output()));
            committed.extend(std::iter::from_fn(|| core.poll_apply()));
        }
        let mut sends = Vec::new();
        for output in outputs {
            us += self.output(place, now, output, &mut sends);
        }
        let done = now + micros(us);
        self.machines[place].busy_until = done;
        for (to, bytes, input) in sends {
            self.send(place, done, to, bytes, input);
        }
        for number in served {
            self.execute(place, done, 0, Some(number), true);
        }
        for entry in committed {
            self.apply(place, done, &entry);
        }
        self.plan(place, done);
    }

    /// What an input costs the network thread.
    fn input(&mut self, place: usize, now: Time, input: Input, served: &mut Vec<u64>) -> f64 {
        let costs = self.costs;
        let Some(core) = &mut self.machines[place].core else {
            if let Input::Request(_, number) = input {
                served.push(number);
            }
            return costs.datagram_in_us + costs.request_us;
        };
        match input {
            Input::Request(request, number) => {
                let bytes = request.body().len();
                core.handle_request(now, request, return_path(number));
                costs.datagram_in_us * frames(bytes) as f64
                    + costs.request_us
                    + bytes as f64 * costs.byte_ns / 1000.0
            }
            Input::Message(envelope) => {
                let us = message_us(costs, &envelope, costs.datagram_in_us, &mut self.buffer).0;
                core.handle_message(now, *envelope);
                us
            }
            Input::Stored(number) => {
                core.handle_stored(now, number);
                0.0
            }
        }
    }

    /// What an output costs, and what is sent by it.
    fn output(
        &mut self,
        place: usize,
        now: Time,
        output: Output,
        sends: &mut Vec<(usize, usize, Input)>,
    ) -> f64 {
        match output {
            Output::Send { to: NodeId(to), envelope } => {
                let costs = self.costs;
                let out = costs.datagram_out_us;
                let (us, bytes) = message_us(costs, &envelope, out, &mut self.buffer);
                sends.push((usize::from(to) - 1, bytes, Input::Message(envelope)));
                us
            }
            // Nothing but hard state is written here, and the disk is not what is modelled.
            Output::Write(Write::HardState { number, .. } | Write::Append { number, .. }) => {
                self.at(now, Event::Delivered(place, Input::Stored(number)));
                0.0
            }
            // A request that is not admitted stays unanswered, and counts as lost.
            _ => 0.0,
        }
    }

    fn send(&mut self, from: usize, now: Time, to: usize, bytes: usize, input: Input) {
        let left = self.machines[from].sends.carry(now, bytes);
        let arrives = left + self.wire();
        let at = self.machines[to].receives.carry(arrives, bytes);
        self.at(at, Event::Delivered(to, input));
    }

    fn apply(&mut self, place: usize, now: Time, committed: &Committed) {
        let Committed { index, entry, executes_read, answer_to } = committed;
        let request = entry.request();
        let number = request.map(|request| request.lowest());
        let executes = request.is_some_and(|it| it.kind().is_write()) || *executes_read;
        let answers = number.filter(|_| answer_to.is_some());
        self.execute(place, now, *index, answers, executes);
    }

    /// Hands work to the service: a core of its own, or the network thread's. Whoever executes a
    /// request sends its reply, and waits while the card has too much to send: so a replica whose
    /// link is full applies no faster than it answers.
    fn execute(
        &mut self,
        place: usize,
        now: Time,
        index: Index,
        answers: Option<u64>,
        executes: bool,
    ) {
        let (wire, reply_bytes) = (self.wire(), self.load.bytes.1 + REPLY_HEADER_BYTES);
        let machine = &mut self.machines[place];
        let mut work =
            if executes { self.load.service.draw(&mut machine.rng) } else { Duration::ZERO };
        if answers.is_some() {
            work += micros(self.costs.datagram_out_us * frames(reply_bytes) as f64);
        }
        let mut done = if self.costs.service_thread {
            machine.service.serve(now, work)
        } else {
            machine.busy_until = machine.busy_until.max(now) + work;
            machine.busy_until
        };
        let reply = answers.map(|number| (machine.sends.carry(done, reply_bytes), number));
        if let Some((left, _)) = reply {
            done = done.max(left - SEND_QUEUE);
            if self.costs.service_thread {
                machine.service.hold_until(done);
            } else {
                machine.busy_until = done;
            }
        }
        if let Some((left, number)) = reply {
            self.at(left + wire, Event::Reply { number });
        }
        if self.machines[place].core.is_some() {
            self.at(done, Event::Executed(place, index));
        }
    }

    fn answered(&mut self, now: Time, number: u64) {
        let place = number as usize - 1;
        let Some(sent) = self.sent_at[place] else { return };
        let latency = now.since(sent);
        if latency > PATIENCE {
            return;
        }
        self.sent_at[place] = None;
        if self.counts(place) {
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.latency_ns.saturating_record(nanos);
        }
    }

    /// Whether a request is behind those that warm the machines up.
    fn counts(&self, place: usize) -> bool {
        place as f64 >= self.load.count as f64 * WARM_UP
    }

    fn wire(&self) -> Duration {
        micros(self.costs.wire_us)
    }
}

/// What a message costs whoever sends or receives it, in µs, and its size.
fn message_us(
    costs: &Costs,
    envelope: &Envelope,
    datagram_us: f64,
    buffer: &mut Vec<u8>,
) -> (f64, usize) {
    buffer.clear();
    envelope.encode(buffer);
    let bytes = buffer.len();
    let entries = match &envelope.message {
        Message::AppendEntries(append) => append.entries.len(),
        _ => 0,
    };
    let us = datagram_us * frames(bytes) as f64
        + entries as f64 * costs.entry_us
        + bytes as f64 * costs.byte_ns / 1000.0;
    (us, bytes)
}

fn micros(us: f64) -> Duration {
    Duration::from_secs_f64(us * 1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(system: System, per_second: f64) -> Load {
        Load {
            system,
            replicas: 3,
            bytes: (24, 8),
            service: Service::Fixed(1.0),
            reads: 0.0,
            queue_bound: 128,
            per_second,
            count: 4000,
            seed: 5,
        }
    }

    #[test]
    fn every_system_answers_everything_at_low_load() {
        let costs = Costs::assumed();
        for system in [System::Unreplicated, System::Raft, System::HovercRaft(Policy::Jbsq)] {
            let modelled = model(load(system, 50_000.0), &costs);
            assert_eq!(modelled.lost, 0, "{system:?}");
            assert!(modelled.quantile_us(0.99) < 100.0, "{system:?} {modelled:?}");
        }
    }

    #[test]
    fn agreement_costs_round_trips() {
        let costs = Costs::assumed();
        let half = |system| model(load(system, 10_000.0), &costs).quantile_us(0.5);
        let alone = half(System::Unreplicated);
        let agreed = half(System::HovercRaft(Policy::Jbsq));
        // At least one more round trip between replicas.
        assert!(agreed > alone + 2.0 * costs.wire_us, "{alone} {agreed}");
    }

    #[test]
    fn the_same_seed_gives_the_same_result() {
        let costs = Costs::assumed();
        let once = || {
            let modelled = model(load(System::HovercRaft(Policy::Random), 200_000.0), &costs);
            (modelled.quantile_us(0.5), modelled.quantile_us(0.999), modelled.lost)
        };
        assert_eq!(once(), once());
    }

    #[test]
    fn reads_are_shared_by_the_replicas() {
        let costs = Costs::assumed();
        // 10 µs a request: one server does at most 100,000 a second.
        let reads =
            |system| Load { service: Service::Fixed(10.0), reads: 1.0, ..load(system, 180_000.0) };
        assert!(model(reads(System::Unreplicated), &costs).quantile_us(0.99) > 1000.0);
        assert!(model(reads(System::HovercRaft(Policy::Jbsq)), &costs).quantile_us(0.99) < 300.0);
    }
}
