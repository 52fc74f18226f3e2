//! The aggregator of HovercRaft++: it passes the leader's entries on to the followers, counts their
//! answers, and announces what a quorum holds (P26–P28, P31).
//!
//! All its state is soft (P27): every message of the leader brings what there is to know, so an
//! aggregator that was restarted, or is a second one, goes on with the next message. It decides
//! nothing: a leader merges what it says with what it knows itself, and a follower takes a commit
//! index only as far as it knows its log to be the leader's (P12).

use std::time::Duration;

use r2p2::Time;
use rkyv::{Archive, Deserialize, Serialize};

use super::heard::{self, Heard, Speaker, Stated};
use crate::{
    entry::{Index, Member, NodeId, Term},
    messages::{Acknowledge, AggCommit, Envelope, Message, MessageError, Progress},
};

/// A leader that has not been heard of for so long makes way for one of a lower term or another
/// cluster. To forget is always safe (P27); and without it, one damaged message with a high term
/// would keep the aggregator from its work until it is restarted.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// The largest cluster. What a message brings bounds what is kept.
const VOTERS_MAX: usize = 64;

/// No index and no round is ever higher.
const NUMBER_MAX: u64 = 1 << 62;

/// Counts what happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say what is counted")]
pub struct AggregatorCounters {
    pub appends_passed_on: u64,
    /// They said only how far the leader's disk is, which is for the aggregator alone (P32).
    pub appends_kept: u64,
    pub acknowledgements_counted: u64,
    /// Of another term, configuration or incarnation (P28).
    pub acknowledgements_ignored: u64,
    pub commits_announced: u64,
    /// Of an older leader, of another cluster, or without a meaning.
    pub messages_ignored: u64,
    /// It began anew for a higher term or configuration.
    pub leaders_followed: u64,
}

/// What an aggregator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct AggregatorStatus {
    /// The cluster and the term of the leader that it serves; 0 before one was heard of.
    pub cluster: u64,
    /// See `cluster`.
    pub term: Term,
    /// The configuration that it counts by.
    pub configuration: u64,
    /// What it has announced as committed.
    pub commit: Index,
    /// The highest index that the leader sent through it.
    pub last: Index,
}

/// Counts acknowledgements for one leader.
///
/// A driver hands it every message by [`Self::handle_message`], and when it has taken what has
/// arrived it calls [`Self::poll_announcement`].
#[derive(Debug, Default)]
pub struct Aggregator {
    serving: Option<Serving>,
    counters: AggregatorCounters,
    /// The voters of the last message of a leader.
    voters: Vec<Member>,
    /// That of the last announcement, to be used again.
    replicas: Vec<Progress>,
}

/// What is known of the highest (term, configuration id).
#[derive(Debug)]
struct Serving {
    cluster: u64,
    term: Term,
    configuration: u64,
    leader: NodeId,
    /// In ascending order of their numbers.
    voters: Vec<Voter>,
    /// The first index of the term.
    noop: Index,
    /// What the leader itself holds as its durability promises.
    durable: Index,
    /// The highest index that was received in this (term, configuration id).
    last: Index,
    /// The highest round of the leader.
    round: u64,
    /// The first one whose answers count: earlier ones may be of runs that are over (P37).
    first_round: u64,
    heard: Time,
    announced: Announced,
    /// A quorum of indices or rounds is looked for here, so that nothing is allocated for it.
    scratch: Vec<u64>,
}

/// What was said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Announced {
    commit: Index,
    /// The highest round that a quorum has answered.
    round: u64,
    /// The highest round that everybody has answered.
    round_of_all: u64,
}

#[derive(Debug)]
struct Voter {
    member: Member,
    /// What it acknowledged; zero if it has not been heard of.
    progress: Progress,
}

impl Voter {
    fn new(member: &Member) -> Self {
        let progress = Progress { node: member.id, ..Progress::default() };
        Self { member: *member, progress }
    }

    fn forget(&mut self) {
        *self = Self::new(&self.member);
    }
}

impl Aggregator {
    /// One that has heard of nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a message. Returns whether it is to be passed on, as it came, to
    /// [`Self::followers`].
    pub fn handle_message(&mut self, now: Time, envelope: &Envelope) -> bool {
        let (speaker, heard) = heard::read(envelope, &mut self.voters);
        self.hear(now, speaker, heard)
    }

    /// Takes a message in its form on the wire, as [`Self::handle_message`] does.
    pub fn handle_record(&mut self, now: Time, bytes: &[u8]) -> Result<bool, MessageError> {
        let (speaker, heard) = heard::read_record(bytes, &mut self.voters, VOTERS_MAX)?;
        Ok(self.hear(now, speaker, heard))
    }

    fn hear(&mut self, now: Time, speaker: Speaker, heard: Heard) -> bool {
        match heard {
            Heard::Stated(stated) => self.stated(now, speaker, stated),
            Heard::Acknowledged(acknowledge) => {
                let is_counted = self.acknowledged(speaker, acknowledge);
                let counters = &mut self.counters;
                counters.acknowledgements_counted += u64::from(is_counted);
                counters.acknowledgements_ignored += u64::from(!is_counted);
                false
            }
            Heard::Other => {
                self.counters.messages_ignored += 1;
                false
            }
        }
    }

    /// What is to be told to all of [`Self::members`], the leader among them, if there is news.
    pub fn poll_announcement(&mut self) -> Option<Envelope> {
        let serving = self.serving.as_mut()?;
        let announced = serving.count();
        if announced == serving.announced && !planted!("agg-feeds-check-quorum") {
            return None;
        }
        serving.announced = announced;
        self.counters.commits_announced += 1;
        let mut replicas = std::mem::take(&mut self.replicas);
        replicas.clear();
        let all = serving.voters.iter().map(|voter| voter.progress);
        replicas.extend(all.filter(|progress| progress.round > 0));
        let commit = AggCommit {
            configuration: serving.configuration,
            commit: announced.commit,
            round: announced.round,
            replicas,
        };
        Some(Envelope {
            cluster: serving.cluster,
            from: NodeId::AGGREGATOR,
            incarnation: crate::entry::Incarnation(0),
            term: serving.term,
            message: Message::AggCommit(commit),
        })
    }

    /// An announcement has been sent: its memory is used for the next one.
    pub fn recycle(&mut self, announcement: Envelope) {
        if let Message::AggCommit(commit) = announcement.message {
            self.replicas = commit.replicas;
        }
    }

    /// The voters that it counts.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.serving.iter().flat_map(|serving| &serving.voters).map(|voter| &voter.member)
    }

    /// Those of them that do not lead.
    pub fn followers(&self) -> impl Iterator<Item = &Member> {
        let leader = self.serving.as_ref().map(|serving| serving.leader);
        self.members().filter(move |member| Some(member.id) != leader)
    }

    /// What it knows.
    pub fn status(&self) -> AggregatorStatus {
        self.serving.as_ref().map_or_else(AggregatorStatus::default, |serving| AggregatorStatus {
            cluster: serving.cluster,
            term: serving.term,
            configuration: serving.configuration,
            commit: serving.announced.commit,
            last: serving.last,
        })
    }

    /// What happened since the start.
    pub fn counters(&self) -> &AggregatorCounters {
        &self.counters
    }

    fn stated(&mut self, now: Time, leader: Speaker, stated: Stated) -> bool {
        if !self.is_credible(leader, stated) || !self.follow(now, leader, stated) {
            self.counters.messages_ignored += 1;
            return false;
        }
        let serving = self.serving.as_mut().expect("follow() serves the sender");
        serving.heard = now;
        if stated.first_round > serving.first_round {
            serving.first_round = stated.first_round;
            serving.voters.iter_mut().for_each(Voter::forget);
        }
        let is_round = stated.round > serving.round;
        serving.round = serving.round.max(stated.round);
        serving.durable = serving.durable.max(stated.durable);
        serving.last = serving.last.max(stated.last());
        serving.noop = stated.noop;
        let is_for_followers = is_round || stated.count > 0;
        self.counters.appends_passed_on += u64::from(is_for_followers);
        self.counters.appends_kept += u64::from(!is_for_followers);
        is_for_followers
    }

    /// Makes sure that the sender is the leader of the highest (term, configuration id); false if
    /// it is not.
    fn follow(&mut self, now: Time, leader: Speaker, stated: Stated) -> bool {
        let sent = (leader.cluster, leader.term, stated.configuration);
        if let Some(serving) = &self.serving {
            let here = (serving.cluster, serving.term, serving.configuration);
            let is_newer = sent.0 == here.0 && sent > here;
            if sent == here {
                return leader.from == serving.leader;
            }
            if !is_newer && now.since(serving.heard) < FORGET_AFTER {
                return false;
            }
        }
        self.counters.leaders_followed += 1;
        let mut voters: Vec<_> = self.voters.iter().map(Voter::new).collect();
        if planted!("agg-old-answers")
            && let Some(before) = self.serving.take()
        {
            voters = before.voters;
        }
        self.serving = Some(Serving {
            cluster: leader.cluster,
            term: leader.term,
            configuration: stated.configuration,
            leader: leader.from,
            voters,
            noop: stated.noop,
            durable: 0,
            last: 0,
            round: 0,
            first_round: 0,
            heard: now,
            announced: Announced::default(),
            scratch: Vec::with_capacity(self.voters.len()),
        });
        true
    }

    /// Takes a follower's answer if it is to this leader in this configuration, and of the life
    /// that the configuration names (P28).
    fn acknowledged(&mut self, follower: Speaker, acknowledge: Acknowledge) -> bool {
        let Some(serving) = &mut self.serving else {
            return false;
        };
        let here = (serving.cluster, serving.term, serving.configuration);
        let is_for_us = here == (follower.cluster, follower.term, acknowledge.configuration);
        if !is_for_us && !planted!("agg-old-answers") {
            return false;
        }
        let Acknowledge { round, acknowledged, applied, .. } = acknowledge;
        let from = follower.from;
        let voter = serving.voters.iter_mut().find(|voter| voter.member.id == from);
        let Some(voter) = voter.filter(|voter| {
            voter.member.incarnation == follower.incarnation && from != serving.leader
        }) else {
            return false;
        };
        // An aggregator that has begun again may not know yet which rounds count. It does once it
        // has heard of the round that is answered.
        let is_late = round < serving.first_round && !planted!("agg-late-run-counts");
        let counts = !is_late && round <= serving.round;
        if acknowledged.max(applied) > NUMBER_MAX || !counts {
            return false;
        }
        let progress = &mut voter.progress;
        progress.matched = progress.matched.max(acknowledged);
        // One that has started again applies anew what it applied before: the later report holds.
        let is_newer = (round, applied) > (progress.round, progress.applied);
        if round > progress.round || (round == progress.round && is_newer) {
            (progress.round, progress.applied) = (round, applied);
            progress.poisoned = acknowledge.poisoned;
            progress.disk_wait_us = acknowledge.disk_wait_us;
            progress.lacks_room = acknowledge.lacks_room;
        }
        true
    }

    /// Whether a leader that keeps the rules could have sent this (P40).
    fn is_credible(&self, leader: Speaker, stated: Stated) -> bool {
        let voters = &self.voters;
        let Stated { configuration, durable, first_round, previous, noop, round, .. } = stated;
        let highest = previous.max(round).max(noop).max(durable);
        let own = voters.iter().find(|voter| voter.id == leader.from);
        (2..=VOTERS_MAX).contains(&voters.len())
            && voters.is_sorted_by(|a, b| a.id < b.id)
            && own.is_some_and(|own| own.incarnation == leader.incarnation)
            && first_round <= round
            && highest.max(configuration).max(leader.term) <= NUMBER_MAX
    }
}

impl Serving {
    /// What a quorum holds and has answered.
    fn count(&mut self) -> Announced {
        let more = if planted!("agg-counts-half") { self.voters.len() % 2 } else { 1 };
        let quorum = self.voters.len() / 2 + more;
        let own = (self.durable, self.round);
        let (held, _) = self.ranked(quorum, own.0, |progress| progress.matched);
        let (round, round_of_all) = self.ranked(quorum, own.1, |progress| progress.round);
        // Nothing above what was received here, nothing below the term's first entry (P28).
        let received = held.min(self.last);
        let is_own = received >= self.noop || planted!("agg-below-noop");
        let commit = if is_own { received } else { 0 };
        let before = self.announced;
        Announced {
            commit: commit.max(before.commit),
            round: round.min(self.round).max(before.round),
            round_of_all: round_of_all.min(self.round).max(before.round_of_all),
        }
    }

    /// The highest value that a quorum has reached, and the highest that all have; `own` is the
    /// leader's.
    fn ranked(&mut self, quorum: usize, own: u64, value: impl Fn(&Progress) -> u64) -> (u64, u64) {
        self.scratch.clear();
        for voter in &self.voters {
            let is_leader = voter.member.id == self.leader;
            self.scratch.push(if is_leader { own } else { value(&voter.progress) });
        }
        self.scratch.sort_unstable_by(|a, b| b.cmp(a));
        let least = self.scratch.last().copied().unwrap_or(0);
        (self.scratch[quorum - 1], least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::testing::{CLUSTER, aggregate, append_noops, envelope},
        entry::Incarnation,
        messages::{Aggregate, AppendEntries},
    };

    struct Bench {
        aggregator: Aggregator,
        now: Time,
    }

    impl Bench {
        fn new() -> Self {
            Self { aggregator: Aggregator::new(), now: Time::ZERO }
        }

        /// The leader of `term` sends entries 1 to `last` in a round, and holds up to `durable`.
        fn append(&mut self, term: Term, last: usize, durable: Index, round: u64) -> bool {
            self.append_in(1, term, last, durable, round)
        }

        /// The leader sends nine entries in a round, and says which round is the first that counts.
        fn append_of_runs(&mut self, round: u64, first_round: u64) -> bool {
            let append = AppendEntries { round, ..append_noops((0, 0), 1, 9) };
            let aggregate = Aggregate { first_round, ..aggregate(9, append) };
            self.send(&envelope(1, 1, Message::Aggregate(Box::new(aggregate))))
        }

        fn append_in(
            &mut self,
            configuration: u64,
            term: Term,
            last: usize,
            durable: Index,
            round: u64,
        ) -> bool {
            let append = AppendEntries { round, ..append_noops((0, 0), term, last) };
            let aggregate = Aggregate { configuration, ..aggregate(durable, append) };
            self.send(&envelope(1, term, Message::Aggregate(Box::new(aggregate))))
        }

        /// Both ways of reading it come to the same.
        fn send(&mut self, envelope: &Envelope) -> bool {
            let mut bytes = Vec::new();
            envelope.encode(&mut bytes);
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            let read = heard::read(envelope, &mut ours);
            let of_record = heard::read_record(&bytes, &mut theirs, VOTERS_MAX);
            assert_eq!(of_record.as_ref(), Ok(&read));
            assert_eq!(ours, theirs);
            self.aggregator.handle_record(self.now, &bytes).expect("it was just written")
        }

        /// A follower holds up to `acknowledged`, and has heard of `round`.
        fn acknowledge(&mut self, from: u16, term: Term, acknowledged: Index, round: u64) {
            self.send(&envelope(from, term, acknowledge(1, acknowledged, round)));
        }

        /// The commit index and the round that are announced.
        fn announced(&mut self) -> Option<(Index, u64)> {
            let envelope = self.aggregator.poll_announcement()?;
            let Message::AggCommit(commit) = envelope.message else { panic!("it says only that") };
            assert_eq!((envelope.from, envelope.cluster), (NodeId::AGGREGATOR, CLUSTER));
            Some((commit.commit, commit.round))
        }
    }

    fn acknowledge(configuration: u64, acknowledged: Index, round: u64) -> Message {
        Message::Acknowledge(Acknowledge {
            configuration,
            round,
            acknowledged,
            applied: acknowledged,
            poisoned: false,
            disk_wait_us: 0,
            lacks_room: false,
        })
    }

    #[test]
    fn what_a_quorum_holds_is_announced_once() {
        let mut bench = Bench::new();
        assert!(bench.append(1, 3, 0, 1));
        let followers: Vec<_> = bench.aggregator.followers().map(|member| member.id.0).collect();
        assert_eq!((followers, bench.aggregator.members().count()), (vec![2, 3], 3));
        bench.acknowledge(2, 1, 3, 1);
        // P28: the leader holds nothing yet, though it has sent it; it answers its own round.
        assert_eq!(bench.announced(), Some((0, 1)));
        bench.acknowledge(3, 1, 2, 1);
        assert_eq!(bench.announced(), Some((2, 1)));
        // P32: the leader's disk has got further; that is for nobody else.
        assert!(!bench.append(1, 0, 3, 1));
        assert_eq!((bench.announced(), bench.announced()), (Some((3, 1)), None));
        bench.acknowledge(3, 1, 3, 1);
        assert_eq!(bench.announced(), None);
    }

    #[test]
    fn nothing_is_announced_that_was_not_received_or_is_of_an_earlier_term() {
        // P28: a restarted aggregator has heard of entry 1 only, and the followers hold five.
        let mut bench = Bench::new();
        bench.append(1, 1, 5, 1);
        bench.acknowledge(2, 1, 5, 0);
        assert_eq!(bench.announced(), Some((1, 0)));
        // The no-op of term 2 is entry 4.
        let append = AppendEntries { noop: 4, ..append_noops((0, 0), 2, 9) };
        let message = Message::Aggregate(Box::new(aggregate(9, append)));
        bench.send(&envelope(1, 2, message));
        bench.acknowledge(2, 2, 3, 0);
        assert_eq!(bench.announced(), None);
        bench.acknowledge(2, 2, 4, 0);
        assert_eq!(bench.announced(), Some((4, 0)));
    }

    #[test]
    fn a_probe_that_ends_below_the_term_announces_nothing() {
        // P28: restarted, it has heard of entry 3 only, and the no-op is entry 4, which both hold.
        let mut bench = Bench::new();
        let append = AppendEntries { noop: 4, ..append_noops((3, 1), 2, 0) };
        bench.send(&envelope(1, 2, Message::Aggregate(Box::new(aggregate(9, append)))));
        bench.acknowledge(2, 2, 9, 0);
        assert_eq!(bench.announced(), None);
    }

    #[test]
    fn only_answers_to_this_leader_in_this_configuration_and_life_are_counted() {
        // P28: in term 2 and configuration 7.
        let mut bench = Bench::new();
        bench.append_in(7, 2, 3, 3, 1);
        bench.send(&envelope(2, 1, acknowledge(7, 3, 1)));
        bench.send(&envelope(2, 2, acknowledge(6, 3, 1)));
        let of_another_life = envelope(2, 2, acknowledge(7, 3, 1));
        bench.send(&Envelope { incarnation: Incarnation(9), ..of_another_life });
        let of_another_cluster = envelope(2, 2, acknowledge(7, 3, 1));
        bench.send(&Envelope { cluster: CLUSTER + 1, ..of_another_cluster });
        bench.send(&envelope(1, 2, acknowledge(7, 3, 1)));
        bench.send(&envelope(4, 2, acknowledge(7, 3, 1)));
        assert_eq!(bench.announced(), None);
        assert_eq!(bench.aggregator.counters().acknowledgements_ignored, 6);
        bench.send(&envelope(2, 2, acknowledge(7, 3, 1)));
        assert_eq!(bench.announced(), Some((3, 1)));
    }

    #[test]
    fn it_serves_the_highest_term_and_configuration_and_forgets_the_rest() {
        // P27.
        let mut bench = Bench::new();
        bench.append(1, 3, 3, 1);
        bench.acknowledge(2, 1, 3, 1);
        assert_eq!(bench.announced(), Some((3, 1)));
        bench.append(2, 2, 2, 1);
        assert_eq!((bench.aggregator.status().term, bench.announced()), (2, None));
        bench.acknowledge(2, 1, 3, 1);
        assert!(!bench.append(1, 4, 4, 2));
        assert_eq!(bench.announced(), None);
        bench.append_in(2, 2, 2, 2, 1);
        assert!(!bench.append_in(1, 2, 3, 3, 2));
        let status = bench.aggregator.status();
        assert_eq!((status.term, status.configuration, status.last), (2, 2, 2));
        // Whoever it was, it is gone: a damaged term does not last.
        bench.now += FORGET_AFTER;
        assert!(bench.append(1, 4, 4, 2));
        assert_eq!(bench.aggregator.status().term, 1);
    }

    #[test]
    fn a_round_is_announced_when_a_quorum_and_when_everybody_has_answered() {
        // P31; the second time it tells the leader of those that are not in the first quorum.
        let mut bench = Bench::new();
        bench.append(1, 1, 1, 5);
        assert_eq!(bench.announced(), None);
        bench.acknowledge(2, 1, 0, 5);
        assert_eq!(bench.announced(), Some((0, 5)));
        bench.acknowledge(3, 1, 0, 4);
        bench.announced();
        bench.acknowledge(3, 1, 0, 5);
        assert_eq!((bench.announced(), bench.announced()), (Some((0, 5)), None));
        // Nobody has answered what the leader has not begun.
        bench.acknowledge(2, 1, 0, 9);
        assert_eq!(bench.announced(), None);
    }

    /// Returns the progress of replica 2: matched, applied and round.
    fn progress(bench: &mut Bench) -> (Index, Index, u64) {
        bench.announced();
        let serving = bench.aggregator.serving.as_ref().expect("it serves");
        let Progress { matched, applied, round, .. } = serving.voters[1].progress;
        (matched, applied, round)
    }

    #[test]
    fn a_replica_that_started_again_is_as_far_as_it_says_but_holds_what_it_held() {
        let mut bench = Bench::new();
        bench.append(1, 9, 9, 5);
        bench.acknowledge(2, 1, 9, 5);
        bench.acknowledge(2, 1, 3, 5);
        assert_eq!(progress(&mut bench), (9, 9, 5));
        bench.append(1, 9, 9, 6);
        bench.acknowledge(2, 1, 3, 6);
        bench.acknowledge(2, 1, 8, 5);
        assert_eq!(progress(&mut bench), (9, 3, 6));
    }

    /// P37: what was acknowledged in earlier rounds may be of a run that is over.
    #[test]
    fn acknowledgements_of_rounds_before_the_first_one_are_forgotten() {
        let mut bench = Bench::new();
        bench.append_of_runs(3, 0);
        bench.acknowledge(2, 1, 4, 3);
        assert_eq!(bench.announced(), Some((4, 3)));
        bench.acknowledge(2, 1, 8, 3);
        bench.append_of_runs(4, 4);
        bench.acknowledge(2, 1, 8, 3);
        assert_eq!(bench.announced(), None);
        bench.acknowledge(2, 1, 6, 4);
        assert_eq!(bench.announced(), Some((6, 4)));
        assert!(!bench.append_of_runs(5, 6), "no leader has begun that round");
    }

    /// P37: an aggregator that has begun again hears what is old first.
    #[test]
    fn rounds_that_it_has_not_heard_of_do_not_count() {
        let mut bench = Bench::new();
        bench.append_of_runs(3, 0);
        bench.acknowledge(2, 1, 8, 3);
        assert_eq!(bench.announced(), Some((8, 3)));
        bench.acknowledge(2, 1, 5, 4);
        assert_eq!(progress(&mut bench), (8, 8, 3));
        bench.append_of_runs(4, 4);
        bench.acknowledge(2, 1, 5, 4);
        assert_eq!(progress(&mut bench), (5, 5, 4));
    }

    #[test]
    fn what_breaks_the_rules_is_ignored() {
        // P40.
        let good = || aggregate(3, append_noops((0, 0), 1, 3));
        let mut cases = vec![good(); 6];
        cases[0].voters.clear();
        cases[1].voters.truncate(1);
        cases[2].voters.swap(0, 2);
        cases[3].append.round = u64::MAX;
        cases[4].voters[0].incarnation = Incarnation(77);
        cases[5].configuration = u64::MAX;
        for (number, case) in cases.into_iter().enumerate() {
            let mut bench = Bench::new();
            assert!(!bench.send(&envelope(1, 1, Message::Aggregate(Box::new(case)))), "{number}");
            assert_eq!(bench.aggregator.status(), AggregatorStatus::default());
        }
        let mut bench = Bench::new();
        let of_nobody = Message::Aggregate(Box::new(good()));
        assert!(!bench.send(&envelope(9, 1, of_nobody)));
        assert!(!bench.send(&envelope(1, u64::MAX, Message::Aggregate(Box::new(good())))));
        assert!(!bench.send(&envelope(1, 1, Message::Vote { last_index: 0, last_term: 0 })));
        bench.append(1, 3, 3, 1);
        bench.acknowledge(2, 1, u64::MAX, 1);
        assert_eq!(bench.announced(), None);
    }
}
