use super::*;
use crate::{
    core::{
        Settings,
        testing::{
            aggregate, announcement, append_noops, configuration, core, elected_at, envelope,
            leader, noop, request, return_path, settle,
        },
    },
    entry::{Configuration, Incarnation, Payload},
    messages::{AppendEntries, Envelope},
};

fn settings() -> Settings {
    Settings { mode: Mode::HovercRaftPlusPlus, ..Settings::default() }
}

/// What goes to the aggregator.
fn by_aggregator(outputs: &[Output]) -> Vec<&Envelope> {
    let envelopes = outputs.iter().filter_map(|output| match output {
        Output::Aggregate { envelope } => Some(&**envelope),
        _ => None,
    });
    envelopes.collect()
}

/// The append-entries that go to each follower directly.
fn direct(outputs: &[Output]) -> Vec<(u16, &AppendEntries)> {
    let appends = outputs.iter().filter_map(|output| match output {
        Output::Send { to, envelope } => match &envelope.message {
            Message::AppendEntries(append) => Some((to.0, append)),
            _ => None,
        },
        _ => None,
    });
    appends.collect()
}

fn aggregates(outputs: &[Output]) -> Vec<&Aggregate> {
    let messages = by_aggregator(outputs).into_iter().filter_map(|it| match &it.message {
        Message::Aggregate(aggregate) => Some(&**aggregate),
        _ => None,
    });
    messages.collect()
}

fn both(mut first: Vec<Output>, second: Vec<Output>) -> Vec<Output> {
    first.extend(second);
    first
}

fn acknowledgements(outputs: &[Output]) -> Vec<(Index, u64)> {
    let messages = by_aggregator(outputs).into_iter().filter_map(|it| match &it.message {
        Message::Acknowledge(acknowledge) => Some((acknowledge.acknowledged, acknowledge.round)),
        _ => None,
    });
    messages.collect()
}

fn replies(outputs: &[Output]) -> Vec<AppendReply> {
    let replies = outputs.iter().filter_map(|output| match output {
        Output::Send { envelope, .. } => match &envelope.message {
            Message::AppendReply(reply) => Some(reply.clone()),
            _ => None,
        },
        _ => None,
    });
    replies.collect()
}

/// A leader with two followers, and what the aggregator has heard of them.
struct Bench {
    core: Core,
    now: Time,
    commit: AggCommit,
}

impl Bench {
    /// In which the aggregator is not known to work yet.
    fn elected() -> Self {
        let replicas = [2, 3].map(|node| Progress { node: NodeId(node), ..Progress::default() });
        let commit = AggCommit { configuration: 1, commit: 0, round: 0, replicas: replicas.into() };
        Self { core: leader(settings()), now: elected_at(), commit }
    }

    /// In which it works, and both followers hold everything.
    fn new() -> Self {
        let mut bench = Self::elected();
        bench.pass(20);
        bench.hold(1, [2, 3]);
        bench.announce();
        assert!(bench.core.stream().is_some());
        assert_eq!(bench.core.commit_index(), 1);
        bench
    }

    /// Time passes.
    fn pass(&mut self, millis: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        let end = self.now + Duration::from_millis(millis);
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.core.handle_timeout(self.now);
            outputs.extend(settle(&mut self.core, self.now));
        }
        self.now = end;
        outputs
    }

    fn round(&self) -> u64 {
        let Role::Leader(leader) = &self.core.role else { panic!("it leads") };
        leader.round()
    }

    /// These followers have heard of the present round by way of the aggregator, and hold up to
    /// `matched`.
    fn hold<const N: usize>(&mut self, matched: Index, nodes: [u16; N]) {
        let round = self.round();
        for progress in &mut self.commit.replicas {
            if nodes.contains(&progress.node.0) {
                (progress.matched, progress.applied, progress.round) = (matched, matched, round);
            }
        }
        self.commit.round = round;
    }

    fn announce(&mut self) -> Vec<Output> {
        let term = self.core.hard_state().term;
        self.core.handle_message(self.now, announcement(term, self.commit.clone()));
        settle(&mut self.core, self.now)
    }

    fn request(&mut self, sequence: u64) -> Vec<Output> {
        self.core.handle_request(self.now, request(9, sequence), return_path(1));
        settle(&mut self.core, self.now)
    }

    fn is_direct(&self, node: u16) -> bool {
        let Role::Leader(leader) = &self.core.role else { panic!("it leads") };
        !leader.is_served_by_aggregator(NodeId(node))
    }
}

#[test]
fn the_leader_sends_one_message_and_commits_by_its_own_count() {
    // P26.
    let mut bench = Bench::new();
    let outputs = bench.request(1);
    assert_eq!(direct(&outputs), []);
    let sent = aggregates(&outputs);
    // The entry; and that it is on the leader's own disk (P32).
    let sizes = sent.iter().map(|it| (it.last(), it.append.entries.len(), it.durable));
    assert_eq!(sizes.collect::<Vec<_>>(), [(2, 1, 1), (2, 0, 2)]);
    assert_eq!((sent[0].configuration, sent[0].voters.len(), sent[0].append.noop), (1, 3, 1));
    // What the aggregator says of the commit index is not believed; who holds what, is counted.
    bench.commit.commit = 2;
    bench.announce();
    assert_eq!(bench.core.commit_index(), 1);
    bench.hold(2, [3]);
    let outputs = bench.announce();
    assert_eq!((bench.core.commit_index(), direct(&outputs).len()), (2, 0));
}

#[test]
fn an_announcement_of_another_configuration_or_term_is_not_merged() {
    // P26, P28.
    let mut bench = Bench::new();
    bench.request(1);
    bench.hold(2, [2, 3]);
    bench.commit.configuration = 2;
    bench.announce();
    assert_eq!(bench.core.commit_index(), 1);
    bench.commit.configuration = 1;
    let old = announcement(0, bench.commit.clone());
    bench.core.handle_message(bench.now, old);
    assert_eq!(bench.core.commit_index(), 1);
    // Nor is one that a replica sends in its name.
    let forged = envelope(2, 1, Message::AggCommit(bench.commit.clone()));
    bench.core.handle_message(bench.now, forged);
    assert_eq!(bench.core.commit_index(), 1);
    bench.announce();
    assert_eq!(bench.core.commit_index(), 2);
}

#[test]
fn the_memory_of_another_life_is_not_merged() {
    // P37: replica 2 has said itself that it is another one by now.
    let mut bench = Bench::new();
    let round = bench.round();
    let reply = AppendReply { round, ..AppendReply::default() };
    let anew =
        Envelope { incarnation: Incarnation(77), ..envelope(2, 1, Message::AppendReply(reply)) };
    bench.core.handle_message(bench.now, anew);
    bench.request(1);
    bench.hold(2, [2]);
    bench.announce();
    assert_eq!(bench.core.commit_index(), 1);
}

#[test]
fn a_silent_aggregator_is_left_in_time_and_found_again() {
    // P32.
    let mut bench = Bench::new();
    let since = bench.now;
    let term = bench.core.hard_state().term;
    bench.request(1);
    let timing = settings().timing;
    let outputs = bench.pass(timing.election_min.as_millis() as u64 / 3);
    // Everyone has heard of the leader, and will say what got lost.
    let told: Vec<_> = direct(&outputs).iter().map(|(node, _)| *node).collect();
    assert!(told.contains(&2) && told.contains(&3), "{told:?}");
    assert!(bench.core.stream().is_none() && bench.is_direct(2) && bench.is_direct(3));
    assert_eq!((bench.core.hard_state().term, bench.core.counters().aggregator_lost), (term, 1));
    assert!(bench.now.since(since) <= timing.election_min / 3);
    let outputs = bench.request(2);
    assert_eq!((direct(&outputs).len(), aggregates(&outputs).len()), (2, 0));
    // An old announcement does not bring it back; one of a round since then does.
    bench.announce();
    assert!(bench.core.stream().is_none());
    let outputs = bench.pass(20);
    assert_eq!((direct(&outputs).len(), aggregates(&outputs).len()), (2, 1));
    bench.hold(3, [2, 3]);
    bench.announce();
    assert!(bench.core.stream().is_some());
    let outputs = bench.request(3);
    assert_eq!((direct(&outputs).len(), aggregates(&outputs)[0].last()), (0, 4));
}

#[test]
fn memory_of_the_aggregator_does_not_feed_check_quorum() {
    // P31: it repeats what it has heard of, and nobody else is there.
    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.pass(10);
        bench.announce();
    }
    assert!(!bench.core.is_leader());
    // Rounds that a quorum answers through it do.
    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.pass(10);
        bench.hold(1, [2]);
        bench.announce();
    }
    assert!(bench.core.is_leader());
}

#[test]
fn one_that_the_aggregator_does_not_reach_is_served_directly() {
    // P26: replica 3 is behind a dead link.
    let mut bench = Bench::new();
    let mut heard = 0;
    for sequence in 1..=20 {
        let outputs = both(bench.request(sequence), bench.pass(10));
        bench.hold(1 + sequence, [2]);
        bench.announce();
        heard += direct(&outputs).iter().filter(|(node, _)| *node == 3).count();
        assert!(!bench.is_direct(2));
        // Two heartbeats, and the one by which that is seen.
        assert!(bench.is_direct(3) || sequence <= 6, "{sequence}");
    }
    assert!(heard > 10, "{heard}");
    assert!(bench.core.stream().is_some());
}

#[test]
fn one_that_rejects_is_repaired_while_the_stream_goes_on() {
    // P30: replica 3 has lost entry 2.
    let mut bench = Bench::new();
    bench.request(1);
    bench.request(2);
    bench.hold(3, [2]);
    bench.announce();
    let round = bench.round();
    let reply =
        AppendReply { round, acknowledged: 1, rejected_after: Some(1), ..AppendReply::default() };
    bench.core.handle_message(bench.now, envelope(3, 1, Message::AppendReply(reply)));
    let outputs = settle(&mut bench.core, bench.now);
    let repaired: Vec<_> =
        direct(&outputs).iter().map(|(to, it)| (*to, it.entries.len())).collect();
    assert_eq!(repaired, [(3, 2)]);
    let outputs = bench.request(3);
    assert_eq!((direct(&outputs).len(), aggregates(&outputs)[0].last()), (1, 4));
    // The aggregator's memory of it proves nothing; that it has accepted since does.
    bench.announce();
    assert!(bench.is_direct(3));
    bench.hold(4, [2, 3]);
    bench.announce();
    assert!(!bench.is_direct(3));
    assert_eq!(direct(&bench.request(4)), []);
}

#[test]
fn it_is_not_used_while_the_configuration_changes() {
    // P28, P32.
    let mut bench = Bench::new();
    let next = Configuration { id: 2, ..configuration(3) };
    bench.core.append_own(bench.now, Payload::Configuration(next.into()));
    let outputs = both(settle(&mut bench.core, bench.now), bench.pass(20));
    assert!(aggregates(&outputs).is_empty() && direct(&outputs).len() >= 2);
    // What the aggregator still says is of the old one.
    bench.hold(2, [2, 3]);
    bench.announce();
    assert_eq!(bench.core.commit_index(), 1);
    let round = bench.round();
    let reply = AppendReply { round, acknowledged: 2, applied: 2, ..AppendReply::default() };
    bench.core.handle_message(bench.now, envelope(2, 1, Message::AppendReply(reply)));
    let outputs = both(settle(&mut bench.core, bench.now), bench.pass(20));
    assert_eq!(bench.core.commit_index(), 2);
    assert_eq!(aggregates(&outputs)[0].configuration, 2);
}

/// Replica 1 as a follower of replica 2, with one entry; what comes by the aggregator.
struct Follower {
    core: Core,
    now: Time,
}

impl Follower {
    fn new() -> Self {
        Self { core: core(settings(), vec![noop(1)]), now: Time::ZERO }
    }

    fn by_aggregator(&mut self, append: AppendEntries) -> Vec<Output> {
        let message = Message::Aggregate(Box::new(aggregate(0, append)));
        self.core.handle_message(self.now, envelope(2, 1, message));
        settle(&mut self.core, self.now)
    }

    fn directly(&mut self, append: AppendEntries) -> Vec<Output> {
        self.core.handle_message(self.now, envelope(2, 1, Message::AppendEntries(append)));
        settle(&mut self.core, self.now)
    }
}

#[test]
fn a_follower_answers_the_way_that_a_message_came() {
    let mut it = Follower::new();
    // The round at once, and the entries when they are on disk.
    let outputs = it.by_aggregator(append_noops((1, 1), 1, 2));
    assert_eq!((acknowledgements(&outputs), replies(&outputs)), (vec![(1, 1), (3, 1)], vec![]));
    let outputs = it.directly(append_noops((3, 1), 1, 1));
    // P28: it holds four, but what came by the aggregator ends at three.
    assert_eq!(acknowledgements(&outputs), []);
    let reply = replies(&outputs).pop().expect("the leader sent it an entry");
    assert_eq!((reply.acknowledged, reply.round), (4, 1));
    let round = AppendEntries { round: 2, ..append_noops((4, 1), 1, 0) };
    let outputs = it.by_aggregator(round.clone());
    assert_eq!((acknowledgements(&outputs), replies(&outputs)), (vec![(4, 2)], vec![]));
    // Twice is once.
    let outputs = it.by_aggregator(round);
    assert_eq!((acknowledgements(&outputs), replies(&outputs)), (vec![], vec![]));
}

#[test]
fn an_acknowledgement_is_at_most_the_last_index_of_what_it_answers() {
    // P28.
    let mut it = Follower::new();
    it.directly(append_noops((1, 1), 1, 5));
    let outputs = it.by_aggregator(AppendEntries { round: 2, ..append_noops((1, 1), 1, 2) });
    assert_eq!(acknowledgements(&outputs), [(3, 2)]);
}

#[test]
fn what_does_not_match_is_for_the_leader_and_not_for_the_aggregator() {
    // P30.
    let mut it = Follower::new();
    let outputs = it.by_aggregator(append_noops((5, 1), 1, 2));
    assert_eq!(acknowledgements(&outputs), []);
    assert_eq!(replies(&outputs)[0].rejected_after, Some(1));
    // What is repaired directly is answered directly.
    let outputs = it.directly(append_noops((1, 1), 1, 6));
    let told = replies(&outputs).pop().map(|reply| reply.acknowledged);
    assert_eq!((acknowledgements(&outputs), told), (vec![], Some(7)));
    let outputs = it.by_aggregator(append_noops((7, 1), 1, 1));
    assert_eq!(acknowledgements(&outputs).pop(), Some((8, 1)));
}

#[test]
fn a_leader_that_was_answered_through_a_dead_aggregator_is_answered_again() {
    // P32: what it is owed is told to it though the aggregator was told before.
    let mut it = Follower::new();
    it.by_aggregator(append_noops((1, 1), 1, 2));
    let outputs = it.directly(AppendEntries { round: 2, ..append_noops((3, 1), 1, 0) });
    assert_eq!((replies(&outputs)[0].acknowledged, replies(&outputs)[0].round), (3, 2));
}

#[test]
fn an_announcement_commits_what_is_verified_and_no_more() {
    // P12: entry 1 is this replica's own, and not known to be the leader's.
    let mut it = Follower::new();
    let commit = AggCommit { configuration: 1, commit: 4, round: 1, replicas: Vec::new() };
    it.by_aggregator(append_noops((0, 0), 1, 0));
    it.core.handle_message(it.now, announcement(1, commit.clone()));
    assert_eq!(it.core.commit_index(), 0);
    it.by_aggregator(append_noops((1, 1), 1, 2));
    assert_eq!(it.core.commit_index(), 3);
    it.core.handle_message(it.now, announcement(1, AggCommit { commit: 2, ..commit }));
    assert_eq!(it.core.commit_index(), 3);
}

#[test]
fn an_announcement_is_no_sign_of_the_leader() {
    // P29.
    let mut it = Follower::new();
    it.by_aggregator(append_noops((1, 1), 1, 2));
    let due = it.core.poll_timeout();
    it.now += Duration::from_millis(10);
    let commit = AggCommit { configuration: 1, commit: 1, round: 1, replicas: Vec::new() };
    it.core.handle_message(it.now, announcement(1, commit.clone()));
    assert_eq!(it.core.poll_timeout(), due);
    // Nor does it make a leader of anyone.
    it.core.handle_message(it.now, announcement(2, commit));
    settle(&mut it.core, it.now);
    assert_eq!((it.core.leader(), it.core.hard_state().term, it.core.commit_index()), (None, 2, 1));
}
