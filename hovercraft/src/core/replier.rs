//! Who answers: the bounded queues of the repliers, and the policies that choose (P15, P16).

use std::{collections::VecDeque, time::Duration};

use r2p2::Time;

use crate::{
    core::log::Log,
    entry::{Index, NodeId, position_of},
    request::{Identity, Kind, Request},
};

/// How long the leader has nothing to order before it counts as idle (P16): at fewer than 50,000
/// requests a second there is nothing to balance, and a hop less is worth more.
const IDLE: Duration = Duration::from_micros(20);

/// How the leader chooses who answers a request (P16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Of two, the one with less left to do: its own entries to answer, and writes to execute.
    Jbsq,
    /// Anyone who is eligible.
    Random,
    /// The leader, always.
    Leader,
}

/// An entry that waits for its replier.
#[derive(Debug)]
struct Queued {
    index: Index,
    identity: Identity,
}

/// The leader's view of one replica as a replier.
#[derive(Debug)]
struct Queue {
    node: NodeId,
    /// The entries above applied(node) whose replier is the node, ascending.
    entries: VecDeque<Queued>,
    /// None until the replica has reported in this term (P15).
    applied: Option<Index>,
    /// The round of that report.
    round: u64,
    /// When `applied` last moved.
    moved: Time,
    /// Not a voter that may answer now: silent, recovering, or no longer a member.
    excluded: bool,
}

/// The queues of all members, as the leader computes them from its log.
#[derive(Debug)]
pub(crate) struct Repliers {
    queues: Vec<Queue>,
    policy: Policy,
    leader: NodeId,
    /// How many queues there are that are not the leader's, and not excluded.
    others: usize,
    /// What the leader is taken to have applied where it is compared with the others.
    leader_counted: Index,
    /// What it last reported to itself for that, and how often the others have reported progress since.
    leader_said: Index,
    reports_of_others: usize,
    /// The most that they said since it was counted.
    others_said: Option<Index>,
    /// Its own entries above that, which it has answered.
    leader_answered: VecDeque<Index>,
    /// B: the hard bound on each queue.
    bound: usize,
    /// How far a replica's applied index may be behind the commit index.
    lag_max: u64,
    /// Who is next in turn, so that equals go around.
    turn: usize,
}

impl Repliers {
    /// The queues as the log says, for a new leader: nobody has reported yet.
    pub(crate) fn from_log(
        members: impl Iterator<Item = NodeId>,
        leader: NodeId,
        log: &Log,
        policy: Policy,
        bound: usize,
        lag_max: u64,
    ) -> Self {
        let new_queue = |node| Queue {
            node,
            entries: VecDeque::new(),
            applied: None,
            round: 0,
            moved: Time::ZERO,
            excluded: false,
        };
        let queues: Vec<_> = members.map(new_queue).collect();
        let others = queues.iter().filter(|queue| queue.node != leader).count();
        let mut repliers = Self {
            queues,
            policy,
            leader,
            others,
            leader_counted: 0,
            leader_said: 0,
            reports_of_others: 0,
            others_said: None,
            leader_answered: VecDeque::new(),
            bound,
            lag_max,
            turn: 0,
        };
        for (index, entry) in log.entries_from(log.first()) {
            if planted!("queues-not-reset") {
                break;
            }
            if let (Some(replier), Some(request)) = (entry.replier(), entry.request()) {
                repliers.add(replier, index, request);
            }
        }
        repliers
    }

    /// Takes note of an appended entry and its replier.
    pub(crate) fn add(&mut self, replier: NodeId, index: Index, request: &Request) {
        if let Some(queue) = self.queue_mut(replier) {
            queue.entries.push_back(Queued { index, identity: request.identity() });
        }
    }

    /// A replica says, having heard of `round`, how far it has applied; hands the identities that it
    /// has thereby answered to `answered`. A report that is older than another is harmless; a newer
    /// one that says less is of a replica that has started again and applies anew what it applied
    /// before. That is not put back into its queue, because it is not answered again (P17).
    pub(crate) fn report(
        &mut self,
        now: Time,
        node: NodeId,
        (round, applied): (u64, Index),
        mut answered: impl FnMut(&Identity),
    ) {
        let is_leader = node == self.leader;
        let at = position_of(&self.queues, node, |queue| queue.node);
        let Some(queue) = at.map(|at| &mut self.queues[at]) else {
            return;
        };
        let is_same_round = round == queue.round;
        let says_less = queue.applied.is_some_and(|before| before > applied);
        if round < queue.round || (is_same_round && says_less) {
            return;
        }
        queue.round = round;
        let moves = queue.applied.replace(applied) != Some(applied);
        if moves {
            queue.moved = now;
        }
        while let Some(queued) = queue.entries.pop_front_if(|queued| queued.index <= applied) {
            if is_leader {
                self.leader_answered.push_back(queued.index);
            }
            answered(&queued.identity);
        }
        if moves && !is_leader && !queue.excluded {
            self.reports_of_others += 1;
            self.others_said = self.others_said.max(Some(applied));
        }
        if is_leader || self.reports_of_others >= self.others {
            self.count_leader();
        }
    }

    /// What the others say of themselves is a round trip old, and each says it once a round. By what
    /// it knows of itself now the leader would always seem to be the least loaded, and would answer
    /// more than its share. So it reports to itself as often as each of the others does, and no more
    /// than the most advanced of them said since; or, should they all stand still, as all queues together
    /// behind where it is (P16).
    fn count_leader(&mut self) {
        let applied = self.applied(self.leader).unwrap_or(0);
        if self.reports_of_others >= self.others {
            self.reports_of_others = 0;
            self.leader_said = self.others_said.take().unwrap_or(applied);
        }
        let least = applied.saturating_sub((self.bound * self.queues.len()) as u64);
        let counted = self.leader_said.clamp(least, applied);
        self.leader_counted = counted;
        while self.leader_answered.pop_front_if(|index| *index <= counted).is_some() {}
    }

    /// Says whether a replica may be given anything to answer.
    pub(crate) fn exclude(&mut self, node: NodeId, excluded: bool) {
        let is_other = node != self.leader;
        let Some(queue) = self.queue_mut(node) else {
            return;
        };
        if queue.excluded != excluded {
            queue.excluded = excluded;
            let count = usize::from(is_other);
            self.others = if excluded { self.others - count } else { self.others + count };
        }
    }

    /// Chooses the replier of the next entry; none if nobody is eligible (P15).
    pub(crate) fn choose(
        &mut self,
        now: Time,
        (log, commit): (&Log, Index),
        kind: Kind,
        rng: &mut fastrand::Rng,
    ) -> Option<NodeId> {
        let leader = self.leader;
        if self.policy == Policy::Jbsq && kind.is_write() && self.is_idle(now, log, commit) {
            return Some(leader);
        }
        let position = match self.policy {
            Policy::Leader => {
                let queue = self.of(leader)?;
                // Alone, the lag limit bounds what is ordered and not applied too (P15).
                let applied = queue.applied?;
                return (log.last() - applied.min(log.last()) < self.lag_max).then_some(leader);
            }
            Policy::Random => {
                let eligible =
                    self.queues.iter().filter(|q| self.is_eligible(q, log, commit)).count();
                let chosen = (eligible > 0).then(|| rng.usize(..eligible))?;
                let mut positions = 0..self.queues.len();
                positions
                    .by_ref()
                    .filter(|at| self.is_eligible(&self.queues[*at], log, commit))
                    .nth(chosen)
            }
            Policy::Jbsq => self.shorter_of_two(log, commit, rng),
        }?;
        Some(self.queues[position].node)
    }

    /// Of the next in turn and another at random, the one with less left to do. What is known is a
    /// round trip old: if everything went to whoever seems the least loaded of all, each report would
    /// draw a burst to its sender (Mitzenmacher, "How Useful Is Old Information?", 2000).
    fn shorter_of_two(
        &mut self,
        log: &Log,
        commit: Index,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let count = self.queues.len();
        let is_eligible = |at: &usize| self.is_eligible(&self.queues[*at], log, commit);
        let next = (0..count).map(|offset| (self.turn + offset) % count).find(is_eligible)?;
        // Beginning anywhere among the others; who is not eligible is passed over.
        let others = count - 1;
        let begin = if others > 0 { rng.usize(..others) } else { 0 };
        let mut around = (0..others).map(|offset| (next + 1 + (begin + offset) % others) % count);
        let other = around.find(is_eligible);
        let left = |at: usize| self.left_to_do(&self.queues[at], log);
        let chosen = other.filter(|other| left(*other) < left(next)).unwrap_or(next);
        self.turn = (next + 1) % count;
        Some(chosen)
    }

    /// Whether a replica has not moved its applied index after `since` (P18).
    pub(crate) fn stands_still_since(&self, node: NodeId, since: Time) -> bool {
        self.of(node).is_none_or(|queue| queue.moved < since)
    }

    /// Whether an entry in (`after`, `to`] waits for this replica.
    pub(crate) fn has_between(&self, node: NodeId, after: Index, to: Index) -> bool {
        let Some(queue) = self.of(node) else {
            return false;
        };
        let position = queue.entries.partition_point(|queued| queued.index <= after);
        queue.entries.get(position).is_some_and(|queued| queued.index <= to)
    }

    /// How long a replica's queue is, and how far it has applied.
    pub(crate) fn queue(&self, node: NodeId) -> Option<(usize, Option<Index>)> {
        let queue = self.of(node)?;
        Some((queue.entries.len(), queue.applied))
    }

    /// Of applied(X), for P18.
    pub(crate) fn applied(&self, node: NodeId) -> Option<Index> {
        self.queue(node)?.1
    }

    /// Whether nothing waits for the leader, nor did a moment ago. It has to execute a write in any
    /// case: then it also answers it, because another replica would have to be told of the commit
    /// first (P16).
    fn is_idle(&self, now: Time, log: &Log, commit: Index) -> bool {
        let last = log.slot(log.last()).and_then(|slot| slot.ordered_at);
        let queue = self.of(self.leader);
        last.is_none_or(|at| now.since(at) >= IDLE)
            && queue
                .is_some_and(|q| q.applied == Some(log.last()) && self.is_eligible(q, log, commit))
    }

    /// Entries that this log has trimmed and X has not applied may be X's too. They cannot be
    /// counted, and a later leader may still hold them: until X is past them, its queue is not
    /// known to be below the bound.
    fn is_eligible(&self, queue: &Queue, log: &Log, commit: Index) -> bool {
        !queue.excluded
            && queue.entries.len() < self.bound + usize::from(planted!("queue-off-by-one"))
            && queue.applied.is_some_and(|applied| {
                applied + 1 >= log.first() && commit.saturating_sub(applied) < self.lag_max
            })
    }

    /// X's own entries above applied(X), which it has yet to answer, and one more for every full queue
    /// of writes that it has yet to execute. The writes do not count one by one, because how many
    /// there are says above all how old the last report is.
    fn left_to_do(&self, queue: &Queue, log: &Log) -> u64 {
        let (applied, answered) = if queue.node == self.leader {
            (self.leader_counted, self.leader_answered.len())
        } else {
            (queue.applied.unwrap_or(0), 0)
        };
        let writes = log.write_count(log.last()) - log.write_count(applied.min(log.last()));
        (queue.entries.len() + answered) as u64 + writes / self.bound as u64
    }

    fn of(&self, node: NodeId) -> Option<&Queue> {
        position_of(&self.queues, node, |queue| queue.node).map(|at| &self.queues[at])
    }

    fn queue_mut(&mut self, node: NodeId) -> Option<&mut Queue> {
        position_of(&self.queues, node, |queue| queue.node).map(|at| &mut self.queues[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::testing::{entry, noop, request_of},
        entry::Payload,
    };

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    struct Bench {
        log: Log,
        repliers: Repliers,
        rng: fastrand::Rng,
        now: Time,
    }

    impl Bench {
        fn new(policy: Policy, bound: usize) -> Self {
            let mut log = Log::new(0, 0, 0, 0);
            log.append(noop(1));
            let mut repliers = Repliers::from_log([A, B].into_iter(), A, &log, policy, bound, 100);
            repliers.report(Time::ZERO, A, (1, 1), |_| ());
            Self { log, repliers, rng: fastrand::Rng::with_seed(1), now: Time::ZERO }
        }

        fn order(&mut self, kind: Kind) -> Option<NodeId> {
            let replier = self.repliers.choose(self.now, (&self.log, 1), kind, &mut self.rng)?;
            let request = request_of(1, self.log.last(), 1, kind, b"");
            let payload = Payload::Request { replier, request: request.clone() };
            let index = self.log.append(entry(1, payload));
            self.log.slot_mut(index).expect("it was appended").ordered_at = Some(self.now);
            self.repliers.add(replier, index, &request);
            Some(replier)
        }
    }

    #[test]
    fn the_bound_is_hard_and_nobody_is_eligible_without_a_report() {
        for policy in [Policy::Jbsq, Policy::Random] {
            let mut bench = Bench::new(policy, 2);
            assert_eq!(bench.order(Kind::Write), Some(A));
            assert_eq!(bench.order(Kind::Write), Some(A));
            assert_eq!(bench.order(Kind::Write), None);
            bench.repliers.report(Time::ZERO, B, (1, 1), |_| ());
            assert_eq!(bench.order(Kind::Write), Some(B));
            assert_eq!(bench.order(Kind::Write), Some(B));
            assert_eq!(bench.order(Kind::Write), None);
            bench.repliers.report(Time::ZERO, A, (1, 2), |_| ());
            assert_eq!(bench.order(Kind::Write), Some(A));
        }
    }

    #[test]
    fn jbsq_counts_writes_for_all_and_reads_for_their_replier() {
        let mut bench = Bench::new(Policy::Jbsq, 128);
        bench.repliers.report(Time::ZERO, B, (1, 1), |_| ());
        let repliers: Vec<_> = (0..4).filter_map(|_| bench.order(Kind::Read)).collect();
        assert_eq!(repliers, [A, B, A, B]);
        bench.repliers.report(Time::ZERO, B, (1, 3), |_| ());
        bench.repliers.report(Time::ZERO, A, (1, 4), |_| ());
        // B has one read left. A has none, but counts one: nobody else said that it is so far yet.
        let two = [bench.order(Kind::Read), bench.order(Kind::Read)];
        assert!(two.contains(&Some(A)) && two.contains(&Some(B)), "{two:?}");
    }

    #[test]
    fn the_leader_counts_itself_no_further_than_the_others_said_they_are() {
        let mut bench = Bench::new(Policy::Jbsq, 4);
        bench.repliers.report(Time::ZERO, B, (1, 1), |_| ());
        let mut shares = [0_u32; 2];
        for _ in 0..30 {
            // It executes at once; of B it hears only after four more requests.
            for _ in 0..4 {
                let replier = bench.order(Kind::Write).expect("the queues are short");
                shares[usize::from(replier == B)] += 1;
                bench.repliers.report(Time::ZERO, A, (1, bench.log.last() - 1), |_| ());
            }
            bench.repliers.report(Time::ZERO, B, (1, bench.log.last()), |_| ());
            bench.repliers.report(Time::ZERO, A, (1, bench.log.last() - 1), |_| ());
        }
        assert!(shares[0].abs_diff(shares[1]) <= 2, "{shares:?}");
        // Should B stand still, A answers everything but what B has.
        for _ in 0..100 {
            assert!(bench.order(Kind::Write).is_some());
            bench.repliers.report(Time::ZERO, A, (1, bench.log.last()), |_| ());
        }
    }

    #[test]
    fn what_a_replica_was_given_last_is_seen_before_the_next_report() {
        let mut bench = Bench::new(Policy::Jbsq, 128);
        let nodes = [A, B, NodeId(3)].into_iter();
        bench.repliers = Repliers::from_log(nodes, A, &bench.log, Policy::Jbsq, 128, 1000);
        for node in [A, B, NodeId(3)] {
            bench.repliers.report(Time::ZERO, node, (1, 1), |_| ());
        }
        let first: Vec<_> = (0..30).filter_map(|_| bench.order(Kind::Write)).collect();
        assert_eq!(first.iter().filter(|node| **node == B).count(), 10);
        bench.repliers.report(Time::ZERO, B, (1, 31), |_| ());
        let burst: Vec<_> = (0..10).filter_map(|_| bench.order(Kind::Write)).collect();
        let to_b = burst.iter().filter(|node| **node == B).count();
        assert!((5..10).contains(&to_b), "more, and not everything: {to_b}");
        let then: Vec<_> = (0..90).filter_map(|_| bench.order(Kind::Write)).collect();
        let to_b = to_b + then.iter().filter(|node| **node == B).count();
        assert!((38..45).contains(&to_b), "until the queues are equal: {to_b}");
    }

    #[test]
    fn a_full_queue_of_writes_to_execute_weighs_as_one_to_answer() {
        let mut bench = Bench::new(Policy::Jbsq, 8);
        let c = NodeId(3);
        let nodes = [A, B, c].into_iter();
        bench.repliers = Repliers::from_log(nodes, A, &bench.log, Policy::Jbsq, 8, 1000);
        for last in 1..=80 {
            bench.repliers.report(Time::ZERO, A, (1, last), |_| ());
            assert_eq!(bench.order(Kind::Write), Some(A));
        }
        bench.repliers.exclude(A, true);
        bench.repliers.report(Time::ZERO, B, (1, 17), |_| ());
        bench.repliers.report(Time::ZERO, c, (1, 81), |_| ());
        let reads: Vec<_> = (0..8).filter_map(|_| bench.order(Kind::Read)).collect();
        assert_eq!(reads, [c; 8], "B is 64 writes behind");
        assert_eq!(bench.order(Kind::Read), Some(B), "and the queue of the other is full");
    }

    #[test]
    fn an_idle_leader_answers_a_write_itself() {
        let mut bench = Bench::new(Policy::Jbsq, 128);
        let all_done = |bench: &mut Bench| {
            for node in [A, B] {
                bench.repliers.report(Time::ZERO, node, (1, bench.log.last()), |_| ());
            }
        };
        for _ in 0..4 {
            all_done(&mut bench);
            bench.now += IDLE;
            assert_eq!(bench.order(Kind::Write), Some(A));
        }
        assert_eq!(bench.order(Kind::Write), Some(B), "whoever is not idle shares the work");
        all_done(&mut bench);
        let soon: Vec<_> = (0..2)
            .filter_map(|_| {
                all_done(&mut bench);
                bench.order(Kind::Write)
            })
            .collect();
        assert!(soon.contains(&B), "at a high rate nothing to do now is not idle");
        all_done(&mut bench);
        bench.now += IDLE;
        let reads: Vec<_> = (0..2).filter_map(|_| bench.order(Kind::Read)).collect();
        assert!(reads.contains(&B), "a read is executed by its replier alone, so it goes around");
        bench.repliers.exclude(A, true);
        all_done(&mut bench);
        bench.now += IDLE;
        assert_eq!(bench.order(Kind::Write), Some(B));
    }

    #[test]
    fn the_lag_limit_and_exclusion_hold_a_replica_back() {
        let mut bench = Bench::new(Policy::Jbsq, 128);
        bench.repliers.report(Time::ZERO, B, (1, 1), |_| ());
        assert_eq!(
            bench.repliers.choose(bench.now, (&bench.log, 101), Kind::Read, &mut bench.rng),
            None
        );
        bench.repliers.exclude(A, true);
        assert_eq!(
            bench.repliers.choose(bench.now, (&bench.log, 1), Kind::Read, &mut bench.rng),
            Some(B)
        );
    }

    #[test]
    fn a_replica_that_has_not_applied_what_is_trimmed_is_not_eligible() {
        // B restarted and is at 1; its share of 2..=5 is trimmed here, and another log has it.
        let mut bench = Bench::new(Policy::Jbsq, 128);
        bench.repliers.report(Time::ZERO, B, (1, 1), |_| ());
        for _ in 0..4 {
            bench.order(Kind::Write);
        }
        bench.log.trim(5);
        bench.repliers.report(Time::ZERO, A, (1, 5), |_| ());
        assert_eq!([bench.order(Kind::Write), bench.order(Kind::Write)], [Some(A), Some(A)]);
        bench.repliers.report(Time::ZERO, B, (1, 5), |_| ());
        assert_eq!(bench.order(Kind::Write), Some(B));
    }

    #[test]
    fn under_the_policy_leader_the_lag_limit_bounds_alone() {
        let mut bench = Bench::new(Policy::Leader, 2);
        let ordered = std::iter::from_fn(|| bench.order(Kind::Write)).take(1000).count();
        assert_eq!(ordered, 100);
    }

    #[test]
    fn an_old_report_changes_nothing() {
        let mut bench = Bench::new(Policy::Jbsq, 128);
        bench.repliers.report(Time::ZERO, B, (1, 3), |_| ());
        bench.repliers.report(Time::ZERO, B, (1, 1), |_| ());
        assert_eq!(bench.repliers.queue(B), Some((0, Some(3))));
        bench.repliers.report(Time::ZERO, B, (0, 4), |_| ());
        assert_eq!(bench.repliers.queue(B), Some((0, Some(3))));
    }

    #[test]
    fn a_replica_that_started_again_is_as_far_as_it_says() {
        // P15: it applies its log anew, and is not eligible while it lags.
        let mut bench = Bench::new(Policy::Jbsq, 128);
        bench.repliers.exclude(A, true);
        bench.repliers.report(Time::ZERO, B, (2, 101), |_| ());
        assert_eq!(
            bench.repliers.choose(bench.now, (&bench.log, 101), Kind::Read, &mut bench.rng),
            Some(B)
        );
        bench.repliers.report(Time::ZERO, B, (3, 1), |_| ());
        assert_eq!(bench.repliers.applied(B), Some(1));
        assert_eq!(
            bench.repliers.choose(bench.now, (&bench.log, 101), Kind::Read, &mut bench.rng),
            None
        );
    }
}
