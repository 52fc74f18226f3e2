//! Runs of a replica: each makes itself known to the leader of a term before it acknowledges
//! anything there (P17, P37).
//!
//! It tells a number that it has drawn and the end of what it loaded; the leader answers. After
//! that no message carries the number.
//!
//! **Older copies.** A directory that was restored from a copy votes and acknowledges as if nothing
//! were missing. The leader that counted what is gone can tell, in its term: the run began below
//! what its incarnation had acknowledged. It does not count the incarnation any more, and says so.
//!
//! **Late acknowledgements.** What an earlier run acknowledged may come late, and must not count
//! for the later one. That one answers only rounds that began after the leader had heard of it, and
//! earlier rounds do not count any more, at the leader and at an aggregator.
//!
//! **Answers to clients.** Whatever an earlier run answered was committed before this one began, so
//! it is in the leader's log when this run is heard of.

use r2p2::Time;
use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    core::{Core, Role, log::Log, replication::Leader},
    entry::{Incarnation, Index, NodeId, Term},
    messages::Message,
};

/// A run of a replica's process, and the end of what it loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Run {
    /// Drawn at random at its start.
    pub number: u64,
    /// Index at which its log, or its snapshot, ended then.
    pub loaded_index: Index,
    /// Term of that entry.
    pub loaded_term: Term,
}

/// This run, and the leader's knowledge of it.
#[derive(Debug)]
pub(crate) struct OwnRun {
    run: Run,
    asked: Option<(Term, Time)>,
    known: Known,
    /// The leader has said that it began with an older copy of its data.
    is_restored: bool,
}

/// Leaders that know this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    ToNobody,
    /// To the leader of a term, for which it answers rounds from one on.
    In {
        term: Term,
        first_round: u64,
    },
    #[cfg(test)]
    ToEverybody,
}

impl OwnRun {
    pub(crate) fn new(seed: u64) -> Self {
        // Without a draw from the core's own numbers, so that what they decide stays what it was.
        let number = fastrand::Rng::with_seed(!seed).u64(..);
        let run = Run { number, loaded_index: 0, loaded_term: 0 };
        Self { run, asked: None, known: Known::ToNobody, is_restored: false }
    }

    #[cfg(test)]
    pub(crate) fn be_known_to_everybody(&mut self) {
        self.known = Known::ToEverybody;
    }

    /// The end of what this run has loaded.
    pub(crate) fn loaded(&mut self, index: Index, term: Term) {
        (self.run.loaded_index, self.run.loaded_term) = (index, term);
    }

    /// Returns the first round that it answers, if the leader of a term knows it.
    fn first_round_in(&self, now: Term) -> Option<u64> {
        match self.known {
            Known::ToNobody => None,
            Known::In { term, first_round } => (term == now).then_some(first_round),
            #[cfg(test)]
            Known::ToEverybody => Some(0),
        }
    }
}

/// The leader's knowledge of a follower's runs, in its term.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// Number of the last one that was heard of.
    current: Option<u64>,
    /// The leader's round when it was.
    heard_in: u64,
    /// The first round whose answers cannot be of an earlier run.
    first_round: u64,
    /// Incarnation that has less than what it acknowledged.
    disowned: Option<Incarnation>,
}

impl Runs {
    /// Returns whether this incarnation is not to be counted.
    pub(crate) fn disowns(&self, incarnation: Incarnation) -> bool {
        self.disowned == Some(incarnation)
    }

    /// Returns whether an answer to this round may be of an earlier run.
    pub(crate) fn is_late(&self, round: u64) -> bool {
        round < self.first_round && !planted!("late-run-counts")
    }

    /// Returns whether a run's word of itself came late, and another one has been heard of since.
    fn is_over(&self, run: u64, round: u64) -> bool {
        self.current.is_some_and(|current| run != current && round <= self.heard_in)
    }
}

/// Returns whether a run began without something that its incarnation has acknowledged.
fn lacks(run: Run, matched: Index, log: &Log) -> bool {
    // An index that is trimmed has no term to compare.
    let is_older = log.term(matched).is_some_and(|term| run.loaded_term < term);
    matched > 0 && (run.loaded_index < matched || is_older)
}

/// The follower's half.
impl Core {
    /// The leader of this term was heard of: tells it of this run, unless it has answered. At most
    /// once a heartbeat.
    pub(super) fn tell_of_own_run(&mut self, now: Time, leader: NodeId) {
        let (term, pause) = (self.term(), self.settings.timing.heartbeat);
        if self.own_run.first_round_in(term).is_some() {
            return;
        }
        let asked = self.own_run.asked.filter(|(asked_in, _)| *asked_in == term);
        let is_once = planted!("run-told-once");
        if asked.is_some_and(|(_, at)| now.since(at) < pause || is_once) {
            return;
        }
        self.own_run.asked = Some((term, now));
        let (run, round) = (self.own_run.run, self.acknowledging.round());
        self.send(leader, Message::NewRun { run, round });
    }

    /// Returns whether the leader knows which run acknowledges.
    pub(super) fn may_acknowledge(&self) -> bool {
        let first_round = self.own_run.first_round_in(self.term());
        first_round.is_some_and(|first_round| self.acknowledging.round() >= first_round)
    }

    /// The leader of this term knows a run.
    pub(super) fn run_known_came(&mut self, number: u64, index: Index, first_round: u64) {
        if number == self.own_run.run.number {
            self.commit.answer_after(index);
            self.own_run.known = Known::In { term: self.term(), first_round };
            self.acknowledging.mark();
        }
    }

    /// The leader has found that this run began with less than its incarnation had acknowledged: it
    /// draws another one, and is recovering (P37). What comes twice is of the one before. Every run
    /// of the incarnation is meant: with a copy in place, two may live at once.
    pub(super) fn disowned(&mut self, from: NodeId, incarnation: Incarnation) {
        let follows =
            matches!(self.role, Role::Follower { leader: Some(leader) } if leader == from);
        if !follows || incarnation != self.incarnation() {
            return;
        }
        tracing::error!(
            "this replica began with less than it had acknowledged: an older copy of its data was \
             put in place; leave it as it is: it is recovering until it has caught up with the \
             leader"
        );
        (self.own_run.is_restored, self.own_run.asked) = (true, None);
        self.own_run.known = Known::ToNobody;
        self.hard_state.incarnation = Incarnation(self.rng.u64(1..));
        // Answers that are held speak for the other one.
        self.held.clear();
        self.recovering.forget();
        self.write_hard_state();
    }

    /// Returns whether the leader has told this run that an older copy of its data was put in place,
    /// and it has not caught up since.
    pub fn is_restored(&self) -> bool {
        self.own_run.is_restored && !self.is_named()
    }
}

/// The leader's half.
impl Core {
    /// A follower's run tells of itself, as long as it has no answer.
    pub(super) fn new_run_came(
        &mut self,
        now: Time,
        (from, incarnation): (NodeId, Incarnation),
        run: Run,
        round: u64,
    ) {
        let Role::Leader(leader) = &mut self.role else { return };
        let leader_round = leader.round();
        let Some(follower) = leader.follower_mut(from) else { return };
        let runs = &mut follower.runs;
        if runs.is_over(run.number, round) {
            return;
        }
        if runs.current != Some(run.number) {
            let has_earlier = runs.current.is_some();
            (runs.current, runs.heard_in) = (Some(run.number), leader_round);
            if has_earlier {
                self.another_run_began(now, (from, incarnation), run);
            }
        }
        let is_member = self.is_member(from, incarnation);
        let Role::Leader(leader) = &mut self.role else { return };
        let sent_at = leader.round_sent_at(round);
        let Some(follower) = leader.follower_mut(from) else { return };
        // Said for as long as it asks, because this may be lost.
        let answer = if follower.runs.disowns(incarnation) {
            Message::Disowned { incarnation }
        } else {
            // It has heard of that round, so it need not say it again to keep the leader in office.
            follower.has_heard(now, sent_at.filter(|_| is_member));
            let first_round = follower.runs.first_round;
            Message::RunKnown { run: run.number, index: self.log.last(), first_round }
        };
        self.send(from, answer);
    }

    /// Returns whether a follower's answer to a round may be of an earlier run, or is of an
    /// incarnation that has less than it acknowledged. A run of that one which has been known before
    /// is told so.
    pub(super) fn is_of_earlier_run(
        &mut self,
        (from, incarnation): (NodeId, Incarnation),
        round: u64,
    ) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let Some(runs) = leader.follower(from).map(|follower| &follower.runs) else {
            return false;
        };
        if runs.is_late(round) {
            return true;
        }
        let is_disowned = runs.disowns(incarnation);
        if is_disowned {
            self.send(from, Message::Disowned { incarnation });
        }
        is_disowned
    }

    /// A run has taken the place of another one: begins the first round that it answers.
    fn another_run_began(
        &mut self,
        now: Time,
        (from, incarnation): (NodeId, Incarnation),
        run: Run,
    ) {
        // With two members nobody else could confirm that it may be named again; and the leader,
        // which has everything, votes in each election.
        let (members, quorum) = (self.configuration().members.len(), self.configuration().quorum());
        let can_recover = members > quorum;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.first_round = leader.begin_round(now);
        leader.moves += 1;
        let first_round = leader.first_round;
        let Some(follower) = leader.follower_mut(from) else { return };
        // An aggregator's word of an earlier round is then not what was said before.
        (follower.runs.first_round, follower.round) = (first_round, first_round);
        let is_same = follower.incarnation == Some(incarnation);
        let matched = if is_same { follower.matched } else { 0 };
        let is_less = lacks(run, matched, &self.log) && !planted!("restored-counts");
        if is_less && !follower.runs.disowns(incarnation) {
            follower.matched = 0;
            if can_recover {
                follower.incarnation = None;
                follower.runs.disowned = Some(incarnation);
                leader.repliers.exclude(from, true);
            }
            self.counters.restored_found += 1;
            tracing::error!(
                node = %from,
                matched,
                loaded = run.loaded_index,
                "a replica has started with less than it had acknowledged: an older copy of its \
                 data was put in place; leave it as it is: it is not counted until it has caught up"
            );
        }
        self.send_round();
    }
}

impl Leader {
    /// Returns whether an incarnation of a replica has less than it acknowledged (P37).
    pub(crate) fn disowns(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.follower(node).is_some_and(|follower| follower.runs.disowns(incarnation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            Mode, Output, Settings, Write,
            testing::{append_noops, core, core_of, elect, elected_at, envelope, leader, settle},
        },
        messages::{AggCommit, AppendReply, Progress},
    };

    fn run(number: u64, loaded_index: Index, loaded_term: Term) -> Run {
        Run { number, loaded_index, loaded_term }
    }

    /// A replica's messages to another one.
    fn sent(outputs: Vec<Output>, to: u16) -> Vec<Message> {
        let messages = outputs.into_iter().filter_map(|output| match output {
            Output::Send { to: node, envelope } if node == NodeId(to) => Some(envelope.message),
            _ => None,
        });
        messages.collect()
    }

    fn round(core: &Core) -> u64 {
        let Role::Leader(leader) = &core.role else { panic!("it leads") };
        leader.round()
    }

    /// A run of replica 2 tells of itself, after it has heard of a round; returns the answer.
    fn tells(core: &mut Core, run: Run, round: u64) -> Option<Message> {
        settle(core, elected_at());
        let message = Message::NewRun { run, round };
        core.handle_message(elected_at(), envelope(2, 1, message));
        let is_answer = |message: &Message| {
            matches!(message, Message::RunKnown { .. } | Message::Disowned { .. })
        };
        sent(settle(core, elected_at()), 2).into_iter().find(is_answer)
    }

    /// Replica 2 answers a round; returns up to where it is counted.
    fn acknowledges(core: &mut Core, acknowledged: Index, round: u64) -> Index {
        let reply = AppendReply { round, acknowledged, ..AppendReply::default() };
        core.handle_message(elected_at(), envelope(2, 1, Message::AppendReply(reply)));
        matched(core)
    }

    fn matched(core: &Core) -> Index {
        core.status().replicas.iter().find(|it| it.node == NodeId(2)).unwrap().matched
    }

    const DISOWNED: Message = Message::Disowned { incarnation: Incarnation(2) };

    /// A leader to which run 10 of replica 2 has acknowledged the no-op at 1, and a newer round.
    fn leader_of_run_10() -> Core {
        let mut core = leader(Settings::default());
        let answer = Message::RunKnown { run: 10, index: 1, first_round: 0 };
        assert_eq!(tells(&mut core, run(10, 0, 0), 1), Some(answer));
        let now = round(&core);
        assert_eq!(acknowledges(&mut core, 1, now), 1);
        core.heartbeat(elected_at());
        core
    }

    #[test]
    fn a_run_that_began_below_what_was_acknowledged_is_not_counted() {
        // P37: an empty copy, with the same incarnation.
        let mut core = leader_of_run_10();
        for _ in 0..2 {
            let heard = round(&core);
            let answer = tells(&mut core, run(11, 0, 0), heard);
            assert_eq!(answer, Some(DISOWNED), "for as long as it asks");
        }
        let now = round(&core);
        assert_eq!(acknowledges(&mut core, 1, now), 0);
        let status = core.status();
        assert!(status.replicas[1].restored && !status.replicas[2].restored);
        assert!(!core.is_counted(NodeId(2), Incarnation(2)));
    }

    /// P37: somebody starts an older copy while the replica runs, and stops it again.
    #[test]
    fn a_run_that_was_known_before_a_copy_was_found_is_told_too() {
        let mut core = leader_of_run_10();
        let heard = round(&core);
        assert_eq!(tells(&mut core, run(11, 0, 0), heard), Some(DISOWNED));
        let reply = AppendReply { round: round(&core), acknowledged: 1, ..AppendReply::default() };
        core.handle_message(elected_at(), envelope(2, 1, Message::AppendReply(reply)));
        assert!(sent(settle(&mut core, elected_at()), 2).contains(&DISOWNED));
        assert_eq!(matched(&core), 0);
    }

    /// P33: the answer to a round takes one way more, and the leader would step down before it.
    #[test]
    fn a_run_that_tells_of_itself_keeps_the_leader_in_office() {
        let mut core = leader(Settings::default());
        let late = elected_at() + core.settings.timing.election_max;
        let message = Message::NewRun { run: run(10, 0, 0), round: 1 };
        core.handle_message(late, envelope(2, 1, message));
        core.handle_timeout(late);
        assert!(core.is_leader());
    }

    /// P40: a round that has not begun would replace the run that lives.
    #[test]
    fn a_run_that_has_heard_of_a_round_to_come_is_refused() {
        let mut core = leader_of_run_10();
        let next = round(&core) + 1;
        assert_eq!(tells(&mut core, run(11, 0, 0), next), None);
        assert!(core.is_counted(NodeId(2), Incarnation(2)));
        assert_eq!(core.counters().messages_refused, 1);
    }

    /// P37: nobody else could confirm that it may be named again.
    #[test]
    fn one_of_two_is_counted_anew() {
        let mut core = elect(core_of((1, 2), Settings::default(), Vec::new(), 1), |_| ());
        assert!(tells(&mut core, run(10, 0, 0), 1).is_some());
        let now = round(&core);
        assert_eq!(acknowledges(&mut core, 1, now), 1);
        core.heartbeat(elected_at());
        let heard = round(&core);
        let answer = Message::RunKnown { run: 11, index: 1, first_round: heard + 1 };
        assert_eq!(tells(&mut core, run(11, 0, 0), heard), Some(answer));
        assert_eq!(acknowledges(&mut core, 1, heard), 0, "that is late");
        assert_eq!(acknowledges(&mut core, 1, heard + 1), 1);
        assert!(core.is_counted(NodeId(2), Incarnation(2)));
    }

    #[test]
    fn a_run_that_began_with_everything_is_counted() {
        let mut core = leader_of_run_10();
        for number in 11..14 {
            let heard = round(&core);
            let answer = tells(&mut core, run(number, 1, 1), heard);
            let first_round = heard + 1;
            assert_eq!(answer, Some(Message::RunKnown { run: number, index: 1, first_round }));
            let again = tells(&mut core, run(number, 1, 1), heard);
            assert_eq!(again, answer, "it may ask more than once");
            assert_eq!(acknowledges(&mut core, 1, first_round), 1);
            core.heartbeat(elected_at());
        }
        // A longer log of an older term does not hold what was acknowledged.
        let heard = round(&core);
        let answer = tells(&mut core, run(14, 9, 0), heard);
        assert_eq!(answer, Some(DISOWNED));
    }

    /// P37: what comes late, and is of an earlier run, neither counts nor accuses anybody.
    #[test]
    fn late_messages_of_an_earlier_run_are_ignored() {
        let mut core = leader_of_run_10();
        for _ in 0..3 {
            core.append_own(elected_at(), crate::entry::Payload::Noop);
        }
        let before = round(&core);
        assert!(tells(&mut core, run(11, 1, 1), before).is_some());
        assert_eq!(acknowledges(&mut core, 4, before), 1);
        assert_eq!(tells(&mut core, run(10, 0, 0), before), None);
        assert!(core.is_counted(NodeId(2), Incarnation(2)));
        let first_round = round(&core);
        assert_eq!(acknowledges(&mut core, 2, first_round), 2);
    }

    /// P37: the same holds for what an aggregator says of it.
    #[test]
    fn late_progress_of_an_earlier_run_is_ignored() {
        let settings = Settings { mode: Mode::HovercRaftPlusPlus, ..Settings::default() };
        let mut core = leader(settings);
        let announces = |core: &mut Core, matched, round| {
            let node = NodeId(2);
            let replicas = vec![Progress { node, matched, round, ..Progress::default() }];
            let configuration = core.configuration().id;
            let commit = AggCommit { configuration, commit: 0, round: 0, replicas };
            let from = NodeId::AGGREGATOR.0;
            core.handle_message(elected_at(), envelope(from, 1, Message::AggCommit(commit)));
        };
        tells(&mut core, run(10, 0, 0), 1);
        core.heartbeat(elected_at());
        let before = round(&core);
        tells(&mut core, run(11, 0, 0), before);
        announces(&mut core, 1, before);
        assert_eq!(matched(&core), 0);
        core.heartbeat(elected_at());
        let stated = settle(&mut core, elected_at()).into_iter().find_map(|output| match output {
            Output::Aggregate { envelope } => Some(envelope.message),
            _ => None,
        });
        let Some(Message::Aggregate(aggregate)) = stated else { panic!("it sends a round") };
        assert_eq!(aggregate.first_round, before + 1);
        announces(&mut core, 1, before + 1);
        assert_eq!(matched(&core), 1);
    }

    /// A follower that has just begun, and its number.
    fn follower_unknown() -> (Core, u64) {
        let mut core = core(Settings::default(), Vec::new());
        core.own_run = OwnRun::new(5);
        let number = core.own_run.run.number;
        (core, number)
    }

    /// The leader of a term sends the no-op at 1 in a round; returns what is answered.
    fn hears(core: &mut Core, term: Term, round: u64) -> Vec<Message> {
        let append = crate::messages::AppendEntries { round, ..append_noops((0, 0), term, 1) };
        let now = Time::ZERO + core.settings.timing.heartbeat * round as u32;
        core.handle_message(now, envelope(2, term, Message::AppendEntries(append)));
        sent(settle(core, now), 2)
    }

    fn acknowledges_any(messages: &[Message]) -> bool {
        messages.iter().any(|message| matches!(message, Message::AppendReply(_)))
    }

    #[test]
    fn nothing_is_acknowledged_before_the_leader_of_the_term_knows_the_run() {
        let (mut core, number) = follower_unknown();
        let asks = |round| Message::NewRun { run: run(number, 0, 0), round };
        let known = |number, first_round| Message::RunKnown { run: number, index: 1, first_round };
        assert_eq!(hears(&mut core, 1, 1), [asks(1)]);
        core.handle_message(Time::ZERO, envelope(2, 1, known(number ^ 1, 0)));
        assert_eq!(hears(&mut core, 1, 2), [asks(2)], "that was for another run");
        core.handle_message(Time::ZERO, envelope(2, 1, known(number, 3)));
        assert!(!acknowledges_any(&sent(settle(&mut core, Time::ZERO), 2)), "it is of round 2");
        assert!(acknowledges_any(&hears(&mut core, 1, 3)));
        assert_eq!(hears(&mut core, 2, 1), [asks(1)], "another leader does not know it");
        core.handle_message(Time::ZERO, envelope(2, 2, known(number, 0)));
        assert!(acknowledges_any(&sent(settle(&mut core, Time::ZERO), 2)));
    }

    #[test]
    fn only_an_answer_to_this_run_says_what_may_be_answered() {
        // P17.
        let (mut core, number) = follower_unknown();
        hears(&mut core, 1, 1);
        let says = |run, index| envelope(2, 1, Message::RunKnown { run, index, first_round: 0 });
        core.handle_message(Time::ZERO, says(number ^ 1, 1));
        assert!(!core.commit.may_answer(2), "that is for another run");
        core.handle_message(Time::ZERO, says(number, 5));
        assert!(!core.commit.may_answer(5) && core.commit.may_answer(6));
    }

    #[test]
    fn a_run_that_is_not_counted_draws_another_incarnation_and_recovers() {
        let (mut core, _) = follower_unknown();
        hears(&mut core, 1, 1);
        let before = core.incarnation();
        let says = |from| envelope(from, 1, Message::Disowned { incarnation: before });
        core.handle_message(Time::ZERO, says(3));
        assert!(core.is_named() && core.incarnation() == before, "3 does not lead");
        core.handle_message(Time::ZERO, says(2));
        assert!(!core.is_named() && core.is_restored());
        core.flush(Time::ZERO, 0);
        let saved = std::iter::from_fn(|| core.poll_output()).find_map(|output| match output {
            Output::Write(Write::HardState { state, .. }) => Some(state.incarnation),
            _ => None,
        });
        assert_eq!(saved, Some(core.incarnation()));
        core.handle_message(Time::ZERO, says(2));
        assert_eq!(saved, Some(core.incarnation()), "the same, once more");
    }

    /// P37: a copy from before the present incarnation, whose name nobody gives it any more.
    #[test]
    fn a_run_that_is_not_counted_and_not_named_draws_another_incarnation_too() {
        let (mut core, _) = follower_unknown();
        core.hard_state.incarnation = Incarnation(99);
        hears(&mut core, 1, 1);
        let message = Message::Disowned { incarnation: Incarnation(99) };
        core.handle_message(Time::ZERO, envelope(2, 1, message));
        assert!(!core.is_named() && core.incarnation() != Incarnation(99));
    }

    /// P37: in the next run its incarnation is still not counted, and the one that it drew is.
    #[test]
    fn who_was_told_in_vain_is_told_again() {
        let mut core = leader_of_run_10();
        let mut heard = round(&core);
        for number in 11..14 {
            assert_eq!(tells(&mut core, run(number, 0, 0), heard), Some(DISOWNED));
            heard = round(&core);
        }
        let message = Message::NewRun { run: run(13, 0, 0), round: heard };
        let told =
            crate::messages::Envelope { incarnation: Incarnation(99), ..envelope(2, 1, message) };
        core.handle_message(elected_at(), told);
        let answers = sent(settle(&mut core, elected_at()), 2);
        assert!(answers.iter().any(|it| matches!(it, Message::RunKnown { run: 13, .. })));
    }
}
