//! A cluster with an aggregator, in one loop: what the core and the aggregator are together, under
//! loss, doubled and late messages, restarts of the aggregator, and two of them (P26–P32).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use r2p2::Time;

use crate::{
    core::{
        Core, Mode, Output, Settings, Write,
        testing::{core_of, request, return_path},
    },
    entry::{Entry, Index, NodeId, Term},
    messages::Envelope,
    request::{Key, Request},
    switch::Aggregator,
};

/// How the network treats what is sent.
#[derive(Debug, Clone, Copy)]
struct Weather {
    loss_per_mille: u32,
    doubled_per_mille: u32,
    /// Of what is doubled, the second copy comes up to this late.
    late_max: Duration,
}

const CALM: Weather = Weather { loss_per_mille: 0, doubled_per_mille: 0, late_max: Duration::ZERO };

const STORM: Weather =
    Weather { loss_per_mille: 100, doubled_per_mille: 200, late_max: Duration::from_millis(500) };

#[derive(Debug, Clone)]
enum Event {
    Request(usize, Arc<Request>),
    Message(usize, Envelope),
    /// For the aggregator at this position.
    Aggregate(usize, Envelope),
    Stored(usize, u64),
}

struct Cluster {
    cores: Vec<Core>,
    aggregators: Vec<Option<Aggregator>>,
    /// The replicas that no aggregator reaches.
    unreached: Vec<usize>,
    /// What happens next, in order; the second number tells what is due at one time apart.
    agenda: BTreeMap<(Time, u64), Event>,
    count: u64,
    now: Time,
    weather: Weather,
    rng: fastrand::Rng,
    /// What was committed, by the first that knew.
    committed: BTreeMap<Index, (Term, Option<Key>)>,
    leaders: BTreeMap<Term, NodeId>,
    sequence: u64,
    /// Whether what the aggregators say is also said again much later.
    echoes: bool,
    appends_sent_directly: u64,
}

impl Cluster {
    fn new(replicas: u16, aggregators: usize, seed: u64) -> Self {
        let settings = Settings { mode: Mode::HovercRaftPlusPlus, ..Settings::default() };
        let core = |node| core_of((node, replicas), settings, Vec::new(), seed + u64::from(node));
        Self {
            cores: (1..=replicas).map(core).collect(),
            aggregators: (0..aggregators).map(|_| Some(Aggregator::new())).collect(),
            unreached: Vec::new(),
            agenda: BTreeMap::new(),
            count: 0,
            now: Time::ZERO,
            weather: CALM,
            rng: fastrand::Rng::with_seed(seed),
            committed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            sequence: 0,
            echoes: false,
            appends_sent_directly: 0,
        }
    }

    /// Runs for so long, with a request every `pause`.
    fn run(&mut self, length: Duration, pause: Duration) {
        let end = self.now + length;
        let mut next_request = self.now;
        while self.now < end {
            let timeout = self.cores.iter().filter_map(Core::poll_timeout).min();
            let event = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = [timeout, event, Some(next_request), Some(end)];
            self.now = next.into_iter().flatten().min().expect("the end comes").max(self.now);
            if self.now >= next_request {
                self.ask();
                next_request = self.now + pause;
            }
            while let Some(entry) = self.agenda.first_entry()
                && entry.key().0 <= self.now
            {
                let event = entry.remove();
                self.event(event);
            }
            for at in 0..self.cores.len() {
                self.cores[at].handle_timeout(self.now);
                self.turn(at);
            }
            self.announce();
        }
    }

    fn ask(&mut self) {
        self.sequence += 1;
        let request = request(9, self.sequence);
        for at in 0..self.cores.len() {
            self.travel(Event::Request(at, Arc::clone(&request)));
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Request(at, request) => {
                self.cores[at].handle_request(self.now, request, return_path(1));
            }
            Event::Message(at, envelope) => self.cores[at].handle_message(self.now, envelope),
            Event::Stored(at, number) => self.cores[at].handle_stored(self.now, number),
            Event::Aggregate(at, envelope) => {
                let Some(aggregator) = &mut self.aggregators[at] else { return };
                if aggregator.handle_message(self.now, &envelope) {
                    let to: Vec<_> = aggregator.followers().map(|member| member.id).collect();
                    for to in to {
                        self.aggregator_sends(to, envelope.clone());
                    }
                }
            }
        }
    }

    fn announce(&mut self) {
        for at in 0..self.aggregators.len() {
            let Some(aggregator) = &mut self.aggregators[at] else { continue };
            let Some(envelope) = aggregator.poll_announcement() else { continue };
            let to: Vec<_> = aggregator.members().map(|member| member.id).collect();
            for to in to {
                self.aggregator_sends(to, envelope.clone());
                if self.echoes {
                    let late = Duration::from_millis(self.rng.u64(..2000));
                    let event = Event::Message(usize::from(to.0) - 1, envelope.clone());
                    self.add(self.now + late, event);
                }
            }
        }
    }

    fn aggregator_sends(&mut self, to: NodeId, envelope: Envelope) {
        let at = usize::from(to.0) - 1;
        if !self.unreached.contains(&at) {
            self.travel(Event::Message(at, envelope));
        }
    }

    fn turn(&mut self, at: usize) {
        let now = self.now;
        self.cores[at].flush(now, 0);
        while let Some(output) = self.cores[at].poll_output() {
            match output {
                Output::Write(Write::HardState { number, .. } | Write::Append { number, .. }) => {
                    let takes = Duration::from_micros(self.rng.u64(50..300));
                    self.add(now + takes, Event::Stored(at, number));
                }
                Output::Send { to, envelope } => {
                    let is_append =
                        matches!(envelope.message, crate::messages::Message::AppendEntries(_));
                    self.appends_sent_directly += u64::from(is_append);
                    self.travel(Event::Message(usize::from(to.0) - 1, *envelope));
                }
                Output::Aggregate { envelope } => {
                    for position in 0..self.aggregators.len() {
                        self.travel(Event::Aggregate(position, Envelope::clone(&envelope)));
                    }
                }
                Output::AnswerRetry { request, to } => {
                    self.cores[at].order_again(now, &request, to);
                }
                Output::Stop(conflict) => panic!("{conflict}"),
                _ => {}
            }
        }
        while let Some(committed) = self.cores[at].poll_apply() {
            let index = committed.index;
            let entry = describe(&committed.entry);
            let known = self.committed.entry(index).or_insert(entry);
            assert_eq!(*known, entry, "replica {at} applies another entry {index}");
            self.cores[at].handle_applied(now, index);
        }
        if self.cores[at].is_leader() {
            let term = self.cores[at].hard_state().term;
            let node = NodeId(at as u16 + 1);
            let leader = *self.leaders.entry(term).or_insert(node);
            assert_eq!(leader, node, "two leaders of term {term}");
        }
    }

    /// Sends something on its way.
    fn travel(&mut self, event: Event) {
        let Weather { loss_per_mille, doubled_per_mille, late_max } = self.weather;
        if self.rng.u32(..1000) < doubled_per_mille {
            let late = Duration::from_nanos(self.rng.u64(..=late_max.as_nanos() as u64));
            self.add(self.now + late, event.clone());
        }
        if self.rng.u32(..1000) >= loss_per_mille {
            let delay = Duration::from_micros(self.rng.u64(20..80));
            self.add(self.now + delay, event);
        }
    }

    fn add(&mut self, at: Time, event: Event) {
        self.count += 1;
        self.agenda.insert((at, self.count), event);
    }

    fn leader(&self) -> &Core {
        let leads = |core: &&Core| core.is_leader();
        self.cores.iter().filter(leads).max_by_key(|core| core.hard_state().term).expect("it leads")
    }

    /// Everything is calm, and everyone gets as far as everyone else.
    fn assert_live(&mut self) {
        self.weather = CALM;
        self.run(Duration::from_secs(3), Duration::from_millis(10));
        let before = self.committed.len();
        self.run(Duration::from_millis(500), Duration::from_millis(10));
        assert!(self.committed.len() >= before + 40, "requests are served");
        self.run(Duration::from_millis(300), Duration::from_secs(1));
        let last = self.leader().commit_index();
        for core in &self.cores {
            assert_eq!(core.applied_index(), last);
        }
    }

    fn elections(&self) -> u64 {
        self.cores.iter().map(|core| core.counters().elections_started).sum()
    }
}

fn describe(entry: &Entry) -> (Term, Option<Key>) {
    (entry.term, entry.request().map(|request| request.key()))
}

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

#[test]
fn in_calm_weather_the_leader_sends_everything_once() {
    for replicas in [3, 5, 9] {
        let mut cluster = Cluster::new(replicas, 1, 1);
        cluster.run(SECOND, MILLI);
        let (before, directly) = (cluster.committed.len() as u64, cluster.appends_sent_directly);
        let sent = cluster.leader().counters().messages_sent;
        cluster.run(SECOND, MILLI);
        let requests = cluster.committed.len() as u64 - before;
        let sent = cluster.leader().counters().messages_sent - sent;
        assert!(requests > 900, "{requests}");
        // The leader may see that something is committed before the aggregator does, and says so.
        let directly = cluster.appends_sent_directly - directly;
        assert!(directly <= requests / 50, "{replicas}: {directly} for {requests}");
        // An entry, perhaps that it is on the leader's disk, the heartbeats, and those.
        assert!(sent <= 2 * requests + 60 + directly, "{replicas}: {sent} for {requests}");
        assert_eq!(cluster.elections(), 1);
    }
}

#[test]
fn a_dead_aggregator_costs_no_election_and_a_short_outage() {
    // P32.
    let mut cluster = Cluster::new(3, 1, 2);
    cluster.run(SECOND, MILLI);
    cluster.aggregators[0] = None;
    let before = cluster.leader().commit_index();
    let third = Settings::default().timing.election_min / 3;
    cluster.run(third + MILLI * 5, MILLI);
    assert!(cluster.leader().commit_index() > before + 40, "it goes on");
    cluster.run(SECOND, MILLI);
    cluster.aggregators[0] = Some(Aggregator::new());
    let found = cluster.leader().counters().aggregator_found;
    cluster.run(MILLI * 50, MILLI);
    assert_eq!(cluster.leader().counters().aggregator_found, found + 1);
    assert_eq!(cluster.elections(), 1);
    cluster.assert_live();
}

#[test]
fn a_restarted_aggregator_goes_on_where_it_was() {
    // P27: nobody notices but for what was on its way.
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.run(SECOND, MILLI);
    let lost = cluster.leader().counters().aggregator_lost;
    for _ in 0..10 {
        cluster.aggregators[0] = Some(Aggregator::new());
        cluster.run(MILLI * 100, MILLI);
    }
    assert_eq!((cluster.elections(), cluster.leader().counters().aggregator_lost), (1, lost));
    cluster.assert_live();
}

#[test]
fn a_replica_behind_a_dead_link_of_the_aggregator_keeps_up() {
    // P26, P30.
    let mut cluster = Cluster::new(3, 1, 4);
    cluster.run(SECOND, MILLI);
    let leads = |core: &Core| core.is_leader();
    let leader = cluster.cores.iter().position(leads).expect("somebody leads");
    cluster.unreached = vec![(leader + 1) % 3];
    cluster.run(SECOND, MILLI);
    let behind = cluster.leader().commit_index() - cluster.cores[(leader + 1) % 3].commit_index();
    assert!(behind < 50, "{behind} behind");
    assert_eq!(cluster.elections(), 1);
    cluster.unreached.clear();
    cluster.assert_live();
}

#[test]
fn what_is_committed_stays_so_in_any_weather() {
    for seed in 0..12 {
        let replicas = if seed % 2 == 0 { 3 } else { 5 };
        let aggregators = if seed % 3 == 0 { 2 } else { 1 };
        let mut cluster = Cluster::new(replicas, aggregators, 100 * seed);
        cluster.weather = STORM;
        cluster.echoes = true;
        for _ in 0..10 {
            cluster.run(MILLI * 300, MILLI * 2);
            let position = cluster.rng.usize(..aggregators);
            cluster.aggregators[position] = match cluster.rng.u8(..3) {
                0 => None,
                _ => Some(Aggregator::new()),
            };
            let unreached = cluster.rng.usize(..usize::from(replicas));
            cluster.unreached = if cluster.rng.bool() { vec![unreached] } else { Vec::new() };
        }
        cluster.echoes = false;
        cluster.unreached.clear();
        cluster.assert_live();
    }
}
