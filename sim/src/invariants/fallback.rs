//! Fallback (P32): whatever happens to aggregators, as long as nothing else goes wrong, costs no
//! election, and no entry waits longer than is stated.
//!
//! A replica whose log is full takes nothing until its application has made room, however long that
//! takes. What was committed meanwhile it must fetch then, in bulk or as a snapshot, from one donor
//! after another, some of which have less, or one that its service cannot read. So it counts as full
//! until its log reaches what is committed; from then on what is stated holds for it again. While so
//! many are full that the others are no quorum, no time counts.
//!
//! From the rule itself: the paper's switch is a single point of failure, and its answer to that, a
//! new election, is not ours.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use hovercraft::{Index, NodeId, Term, core::Core};
use r2p2::Time;

use super::{Violation, broken};
use crate::{options::Options, replica::Replica};

const NAME: &str = "fallback";

/// What is expected where nothing goes wrong but with aggregators.
#[derive(Debug, Default)]
pub(crate) struct Fallback {
    /// None where other things go wrong too.
    limits: Option<Limits>,
    /// Whoever leads, and since when.
    reign: Option<Reign>,
    /// Replicas stood still until then.
    paused_until: Time,
    /// Replicas that were full, and have not caught up since, as of their last turns.
    behind: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    /// A replica may be about to ask for pre-votes when it hears of the first leader.
    quiet_after: Duration,
    /// From the append to the commit; none where replicas stand still, and entries wait.
    wait_max: Option<Duration>,
}

#[derive(Debug)]
struct Reign {
    term: Term,
    since: Time,
    /// What is appended and not committed, and since when.
    waiting: VecDeque<(Index, Time)>,
    /// When so many logs were full that a quorum could not go on.
    full_at: Time,
}

impl Reign {
    fn begin(term: Term, now: Time) -> Self {
        Self { term, since: now, waiting: VecDeque::new(), full_at: now }
    }
}

impl Fallback {
    pub(super) fn of(options: &Options) -> Self {
        let (cluster, network, disk) = (&options.cluster, &options.network, &options.disk);
        let hop_us = network.delay_min_us + network.delay_spread_us + options.pace.turn_max_us;
        let sync_us = disk.sync_min_us + disk.sync_spread_us;
        // A third of the shortest election timeout until it is noticed, a heartbeat until everyone
        // says what got lost; and another where a body got lost too.
        let wait_us = cluster.election_min_us / 3
            + 2 * cluster.heartbeat_us
            + HOPS * hop_us
            + SYNCS * sync_us;
        let slow =
            |us: u64| Duration::from_micros(us + us * u64::from(options.drift_ppm_max) / 500_000);
        let quiet_after = slow(cluster.election_max_us);
        let limits = Limits { quiet_after, wait_max: Some(slow(wait_us)) };
        Self { limits: Some(limits), ..Self::default() }
    }

    /// Leaves out what entries wait for.
    pub(super) fn without_waits(mut self) -> Self {
        self.limits.iter_mut().for_each(|limits| limits.wait_max = None);
        self
    }

    /// All replicas stand still until then. Patience is granted once: who stands still again before
    /// the leader had the time to say anything may ask for votes (P33).
    pub(super) fn paused(&mut self, now: Time, until: Time) {
        let Some(limits) = self.limits else { return };
        let is_quiet =
            |reign: &Reign| now.since(reign.since.max(self.paused_until)) > limits.quiet_after;
        if until > self.paused_until {
            if !self.reign.as_ref().is_some_and(is_quiet) && now > self.paused_until {
                self.reign = None;
            }
            self.paused_until = until;
        }
    }

    /// A replica starts: elections are to be expected again.
    pub(super) fn started(&mut self) {
        self.reign = None;
    }

    /// At the end of a replica's turn.
    pub(super) fn check(
        &mut self,
        now: Time,
        replicas: &[Replica],
        replica: &Replica,
        core: &Core,
    ) -> Result<(), Violation> {
        let Some(limits) = self.limits else { return Ok(()) };
        let term = core.hard_state().term;
        let Some(reign) = &mut self.reign else {
            if core.is_leader() {
                self.reign = Some(Reign::begin(term, now));
            }
            return Ok(());
        };
        let is_quiet = now.since(reign.since) > limits.quiet_after;
        if core.is_leader() && term > reign.term && !is_quiet {
            *reign = Reign::begin(term, now);
        }
        let is_candidate = !core.is_leader() && core.leader().is_none();
        if is_quiet && (is_candidate || term > reign.term) {
            let what = format!(
                "{} asks for votes in term {term}, and nothing went wrong that costs an election",
                replica.node
            );
            return broken(NAME, "P32, P33", what);
        }
        let last = core.log_bounds().1;
        if is_full(replica) {
            self.behind.insert(replica.node);
        } else if last >= committed(replicas) {
            self.behind.remove(&replica.node);
        }
        let is_out = |it: &&Replica| is_full(it) || self.behind.contains(&it.node);
        let out = replicas.iter().filter(is_out).count();
        if out > replicas.len() - core.configuration().quorum() {
            reign.full_at = now;
        }
        if !core.is_leader() || term != reign.term {
            return Ok(());
        }
        let commit = core.commit_index();
        while reign.waiting.pop_front_if(|(index, _)| *index <= commit).is_some() {}
        if reign.waiting.back().map_or(commit, |(index, _)| *index) < last {
            reign.waiting.push_back((last, now));
        }
        let full_at = reign.full_at;
        let time = |since: Time| now.since(since.max(full_at));
        let waits = reign.waiting.front().map(|(index, since)| (*index, time(*since)));
        if let Some((index, time)) = waits
            && let Some(wait_max) = limits.wait_max
            && is_quiet
            && time > wait_max
        {
            let what = format!("{index} has waited for {time:?}, and {wait_max:?} is stated");
            return broken(NAME, "P32", what);
        }
        Ok(())
    }
}

/// The highest index that a replica knows to be committed.
fn committed(replicas: &[Replica]) -> Index {
    let lives = replicas.iter().filter_map(|replica| replica.life.as_ref());
    lives.map(|life| life.core.commit_index()).max().unwrap_or_default()
}

fn is_full(replica: &Replica) -> bool {
    let bound = 2 * replica.settings.log_bytes_max as u64;
    replica.disk.is_full()
        || replica.life.as_ref().is_some_and(|life| life.core.status().log_bytes >= bound)
}

/// How often something goes over the network until an entry is committed that was lost with an
/// aggregator: a heartbeat, where to go on, the entries, the question for a body, the body, and the
/// acknowledgement, with as many to spare.
const HOPS: u64 = 16;

/// The disks of the leader and of a follower, each of them busy with another batch.
const SYNCS: u64 = 4;
