//! A quorum goes on alone: everything else stays crashed, cut off or slow, and within four election
//! timeouts a client of the survivors has an answer. Then all is healed.

use std::time::Duration;

use hovercraft::{
    Index, Term,
    core::{Limits, Settings},
    storage::Durability,
};
use r2p2::Time;

use super::{Stepper, injection::BY_HAND};
use crate::{
    faults::{Fault, Leaves},
    invariants::{TURN_MAX_US, Violation},
    schedule::Timed,
    seed::Seed,
    survivors::{Others, Shape, Survivors},
    trace::Place,
};

/// Number of the longest election timeouts that the survivors have.
const TIMEOUTS: u32 = 4;

/// Number of them that a leader has more whose disk stands: two until it notices, four until it
/// knows that the others' disks move (P38), and the election.
const TIMEOUTS_OF_STALLED: u32 = 8;

/// Time after which a replica that needs a snapshot gives up a donor that does not answer.
const DONOR_PATIENCE: Duration = Duration::from_secs(3);

/// Time of a replica with a full log until it has tried again to take a snapshot (P38).
const TAKES_SNAPSHOT: Duration = Duration::from_secs(2);

/// Longest time for which a request counts that nobody answers.
const LEAVES_SYSTEM: Duration = Duration::from_secs(6);

/// The survivors are asked so many things at most.
const QUESTIONS_MAX: usize = 32;

/// A packet of more bytes does not pass a narrow link.
const NARROW_BYTES: usize = 250;

/// Stall of a disk that never goes on: longer than any run.
const FOR_EVER: Duration = Duration::from_hours(24);

/// The demand on the survivors, and its deadline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    /// They are asked something then.
    ask_at: Time,
    began: Time,
    /// Time that they have in all.
    within: Duration,
}

impl Stepper {
    /// Leaves the survivors alone, if the schedule has any and they can be expected to go on.
    pub(super) fn leave_survivors_alone(&mut self) -> bool {
        let Some(survivors) = self.survivors.take() else { return false };
        if !self.can_go_on(&survivors) {
            self.coverage.add("cores that were no quorum", 1);
            return false;
        }
        let what = || {
            let Survivors { members, shape, others } = &survivors;
            format!("{members:?} go on alone as a {shape:?}; the others are {others:?}")
        };
        self.trace.fault(self.now, Place::World, what);
        self.network.calm();
        let members = survivors.positions();
        for at in 0..self.replicas.len() {
            self.replicas[at].slow_us = 0;
            self.replicas[at].disk.repair();
            if members.contains(&at) {
                self.restart(at);
            } else {
                self.forsake(at, &survivors, &members);
            }
        }
        for (a, first) in members.iter().enumerate() {
            for (b, second) in members.iter().enumerate() {
                if a != b && !survivors.are_linked(a, b) {
                    self.network.cut(self.now, BY_HAND, *first, *second, true);
                }
            }
        }
        if !self.is_electable(&survivors, &members) {
            // The limit of Raft that is known as the constrained election (docs/protocol.md).
            self.coverage.add("constrained elections", 1);
            self.take_back_others();
            return false;
        }
        // A pause, a stall or a slow write of a survivor that has begun is not cut short.
        let ready = |at: &usize| {
            let replica = &self.replicas[*at];
            replica.paused_until.max(replica.disk.stalled_until).max(replica.disk.busy_until)
        };
        let from = members.iter().map(ready).max().unwrap_or(self.now).max(self.now);
        let within = self.survivors_have(&members);
        self.watch = Some(Watch { ask_at: from, began: from, within });
        true
    }

    /// Four election timeouts, by a slow clock; and what else the survivors may have to wait for.
    fn survivors_have(&self, members: &[usize]) -> Duration {
        let cluster = &self.schedule.options.cluster;
        let has_stalled = self.leader().is_some_and(|at| self.is_stalled_for_ever(at));
        let count = if has_stalled { TIMEOUTS + TIMEOUTS_OF_STALLED } else { TIMEOUTS };
        let timeouts = Duration::from_micros(cluster.election_max_us) * count * 6 / 5;
        let bounds = members.iter().filter_map(|at| self.replicas[*at].life.as_ref());
        let bounds: Vec<_> = bounds.map(|life| life.core.log_bounds()).collect();
        let first = bounds.iter().map(|(first, _)| *first).max().unwrap_or(1);
        let last = bounds.iter().map(|(_, last)| *last).max().unwrap_or(0);
        let lags = |&(_, end): &(Index, Index)| {
            end + 1 < first || end + cluster.limits.bulk_distance < last
        };
        // One of them may need a snapshot before it can be counted, and a second one where its donor
        // was behind too; each time it may ask all those first that do not answer.
        let silent = (self.replicas.len() - members.len()).max(1) as u32;
        let catches_up = DONOR_PATIENCE * 2 * silent;
        let fetched = if bounds.iter().any(lags) { catches_up } else { Duration::ZERO };
        // What nobody answers any more leaves the system in the end (P24).
        let usual = Settings::default().admission_limit;
        let is_narrow = cluster.admission_limit < usual || cluster.limits != Limits::DEFAULT;
        let leaves = if is_narrow { LEAVES_SYSTEM } else { Duration::ZERO };
        // A snapshot that could not be taken is tried again after a pause; a full log waits for it.
        let has_failed = |at: &usize| {
            let replica = &self.replicas[*at];
            let life = replica.life.as_ref();
            let postponed = life.map_or(0, |life| life.core.counters().snapshots_postponed);
            replica.disk.spoiled > 0 || postponed > 0
        };
        let has_failed = members.iter().any(has_failed);
        let taken = if has_failed { TAKES_SNAPSHOT } else { Duration::ZERO };
        timeouts + fetched + leaves + taken + self.echoes_for() + self.applies_in(members, last)
    }

    /// Time that they have in all by what they are now, if that is more than they were given.
    fn survivors_need(&self, watch: Watch) -> Option<Duration> {
        let survivors = self.schedule.options.survivors.as_ref()?;
        let within = self.survivors_have(&survivors.positions());
        (within > watch.within).then_some(within)
    }

    /// Returns how long a leader that is down may still be heard: what is on its way is not taken
    /// back.
    fn echoes_for(&self) -> Duration {
        let late_us = |timed: &Timed| {
            let (Fault::Echo { late_us, .. } | Fault::DelayTail { late_us, .. }) = timed.fault
            else {
                return None;
            };
            Some(late_us)
        };
        let longest_us = self.schedule.faults.iter().filter_map(late_us).max();
        Duration::from_micros(longest_us.unwrap_or_default())
    }

    /// Returns the time for what the survivors have not applied yet, and for as much again, which
    /// goes before what is asked now.
    fn applies_in(&self, members: &[usize], last: Index) -> Duration {
        let lives = members.iter().filter_map(|at| self.replicas[*at].life.as_ref());
        let applied = lives.map(|life| life.applier.applied()).min().unwrap_or(last);
        let longest_us = self.schedule.options.pace.apply_max_us.unwrap_or_default();
        Duration::from_micros(2 * longest_us * last.saturating_sub(applied))
    }

    /// Makes what never ends happen to one that does not survive.
    fn forsake(&mut self, at: usize, survivors: &Survivors, members: &[usize]) {
        let leads = self.leader() == Some(at);
        // A leader whose links pass nothing but heartbeats keeps its office: a known limit.
        let others = match survivors.others {
            Others::Narrow if leads => Others::Down,
            others => others,
        };
        if others == Others::Down {
            self.forsaken[at] = true;
            match self.durability() {
                Durability::Sync => self.kill(at, Leaves::Prefix),
                Durability::Interval | Durability::Memory => self.stop(at),
            }
            // One that may not stop in good order now stays, and nobody hears it.
            self.part_from(at, members, true, true);
            return;
        }
        self.restart(at);
        match others {
            Others::CutOff => self.part_from(at, members, true, true),
            Others::Deaf => self.part_from(at, members, true, false),
            Others::Mute => self.part_from(at, members, false, true),
            Others::Slow => {
                let pace = &self.schedule.options.pace;
                self.replicas[at].slow_us = TURN_MAX_US - pace.turn_max_us;
            }
            Others::Stalled => self.replicas[at].disk.stalled_until = self.now + FOR_EVER,
            Others::Narrow => {
                for member in members {
                    self.network.pass_small(at, *member, NARROW_BYTES);
                    self.network.pass_small(*member, at, NARROW_BYTES);
                }
            }
            Others::Down => {}
        }
    }

    /// Cuts the links from the survivors and the aggregators to a replica, or those back.
    fn part_from(&mut self, at: usize, members: &[usize], into: bool, out: bool) {
        let aggregators = self.first_aggregator()..self.first_aggregator() + self.machines.len();
        for other in members.iter().copied().chain(aggregators) {
            if into {
                self.network.cut(self.now, BY_HAND, other, at, false);
            }
            if out {
                self.network.cut(self.now, BY_HAND, at, other, false);
            }
        }
    }

    /// Returns whether all survivors are members in their present life.
    fn can_go_on(&self, survivors: &Survivors) -> bool {
        let configuration = &self.invariants.history.configuration;
        survivors.members.iter().all(|number| {
            let replica = &self.replicas[number - 1];
            let incarnation = replica.disk.durable_hard_state().incarnation;
            let named = configuration.member(replica.node).map(|member| member.incarnation);
            !replica.lost && named == Some(incarnation)
        })
    }

    fn is_stalled_for_ever(&self, at: usize) -> bool {
        self.replicas[at].disk.stalled_until > self.now + FOR_EVER / 2
    }

    /// Returns whether one of the survivors hears a quorum that may vote for it, whatever becomes
    /// of a leader that it does not hear.
    fn is_electable(&self, survivors: &Survivors, members: &[usize]) -> bool {
        let log = |at: usize| self.last_of(at);
        let leads =
            |at: usize| self.replicas[at].life.as_ref().is_some_and(|life| life.core.is_leader());
        // Where all hear each other, one of them has the longest log.
        let is_full = survivors.shape == Shape::Full;
        is_full
            || (0..members.len()).any(|a| {
                let votes = (0..members.len()).filter(|&b| {
                    let (own, other) = (members[a], members[b]);
                    let would_vote = log(other) <= log(own) && (a == b || !leads(other));
                    survivors.are_linked(a, b) && would_vote
                });
                votes.count() >= self.quorum()
            })
    }

    /// Returns whether what the survivors have come to since is a limit that docs/protocol.md
    /// names: none of them can be elected; or the leader keeps its office by the heartbeats of
    /// replicas that cannot take what it sends.
    fn meets_known_limit(&self) -> bool {
        let Some(survivors) = &self.schedule.options.survivors else { return false };
        let members = survivors.positions();
        if !self.is_electable(survivors, &members) {
            return true;
        }
        let Some(leader) = self.leader() else { return false };
        let hears = |a: usize| {
            let others = (0..members.len()).filter(|b| survivors.are_linked(a, *b));
            others.count() >= self.quorum()
        };
        match survivors.others {
            Others::Narrow | Others::Stalled | Others::Slow => {
                let place = members.iter().position(|at| *at == leader);
                place.map_or(survivors.others == Others::Narrow, |place| !hears(place))
            }
            Others::Down | Others::CutOff | Others::Deaf | Others::Mute => false,
        }
    }

    fn quorum(&self) -> usize {
        self.invariants.history.configuration.quorum()
    }

    fn last_of(&self, at: usize) -> (Term, Index) {
        self.replicas[at].life.as_ref().map_or((0, 0), |life| {
            let (_, last) = life.core.log_bounds();
            // A log without entries ends where its snapshot does.
            let meta = self.replicas[at].disk.snapshot().map(|snapshot| &snapshot.meta);
            let snapshot = meta.filter(|meta| meta.index == last).map_or(0, |meta| meta.term);
            let term = life.core.log_entry(last).map_or(snapshot, |entry| entry.term);
            (term, last)
        })
    }

    /// Asks the survivors something again and again, until they have answered once.
    pub(super) fn watch_survivors(&mut self, watch: Watch) -> Result<(), Violation> {
        let prober = self.clients.len() - 1;
        let is_answered = |it: &crate::observed::Observed| it.ended.is_some();
        if self.clients[prober].observed.iter().any(is_answered) {
            self.coverage.add("cores that went on alone", 1);
            self.end_watch();
            return Ok(());
        }
        let is_late = self.now > watch.began + watch.within;
        if is_late && self.meets_known_limit() {
            self.coverage.add("cores at a known limit", 1);
            self.end_watch();
            return Ok(());
        }
        // One of them may have come to need a snapshot since.
        if is_late && let Some(within) = self.survivors_need(watch) {
            self.watch = Some(Watch { within, ..watch });
            return Ok(());
        }
        if is_late {
            let states = self.replicas.iter().filter_map(|replica| replica.life.as_ref());
            let states: Vec<_> = states.map(|life| format!("{:?}", life.core.status())).collect();
            let what = format!(
                "a quorum that nothing is wrong with answered nothing in {:?}:\n{}",
                watch.within,
                states.join("\n")
            );
            return Err(Violation { invariant: "progress of a core", rule: "liveness", what });
        }
        if self.now >= watch.ask_at {
            let heartbeat = Duration::from_micros(self.schedule.options.cluster.heartbeat_us);
            self.watch = Some(Watch { ask_at: self.now + heartbeat, ..watch });
            // What waits for an answer is asked again by itself.
            let asked = self.clients[prober].observed.len();
            if asked < QUESTIONS_MAX {
                let seed = Seed(self.schedule.options.seed);
                let mut rng = seed.stream("question to survivors", asked as u64);
                let command = self.workload.command(&mut rng, 0);
                self.clients[prober].tell(command);
                self.wake_client(prober);
            }
        }
        Ok(())
    }

    fn end_watch(&mut self) {
        self.watch = None;
        self.take_back_others();
        self.heal();
    }

    /// Nothing lasts for ever any more.
    fn take_back_others(&mut self) {
        for at in 0..self.replicas.len() {
            self.forsaken[at] = false;
            if self.is_stalled_for_ever(at) {
                self.replicas[at].disk.stalled_until = self.now;
            }
        }
    }
}
