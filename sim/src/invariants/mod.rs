//! What must hold after every step, one invariant a file, each with the rule that it checks and
//! where that comes from.
//!
//! They look at what the replicas hold, not at what they say, and know the whole history.

mod acknowledged_writes;
mod acknowledgement;
mod announced;
mod answered_once;
mod body_presence;
mod bounded;
mod cancelled;
mod configuration_in_force;
mod donated;
mod durable_index;
mod durable_term;
mod election_safety;
mod entries_never_change;
mod exactly_once;
mod fallback;
mod leader_completeness;
mod linearizable;
pub(crate) mod liveness;
mod log_matching;
mod queue_bound;
mod quorum_heard;
mod read_only;
mod session_lifetime;
mod session_rules;
mod session_tables;
mod stalled_disk;
mod state_machine_safety;
mod verified;
mod verified_commit;

use std::{error::Error, fmt, sync::Arc};

use hovercraft::{Configuration, Index, NodeId, core::Committed, messages::Envelope};
use r2p2::Time;

pub(crate) use self::quorum_heard::TURN_MAX_US;
use crate::{
    client::{Client, Completion},
    disk::Snapshot,
    history::{Change, History, Mirror, position},
    options::Options,
    replica::Replica,
    service::Call,
    view::View,
    workload::Workload,
};

/// An invariant was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// The rule that it stands for.
    pub rule: &'static str,
    /// What was found.
    pub what: String,
}

/// The rule that a service breaks, and not the product: what is found is then told first.
pub(crate) const OF_SERVICE: &str = "StateMachine";

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        tell(f, self.invariant, self.rule, &self.what)
    }
}

impl Error for Violation {}

/// Tells what was found, with the invariant and its rule.
pub(crate) fn tell(
    f: &mut fmt::Formatter<'_>,
    invariant: &str,
    rule: &str,
    what: &str,
) -> fmt::Result {
    if rule == OF_SERVICE {
        write!(f, "{what} [{invariant}, {rule}]")
    } else {
        write!(f, "{invariant} [{rule}]: {what}")
    }
}

/// An entry that a replica has applied.
#[derive(Debug)]
pub(crate) struct Application<'a> {
    pub(crate) node: NodeId,
    pub(crate) committed: &'a Committed,
    /// What the service was called for.
    pub(crate) call: Option<&'a Call>,
    /// The whole replicated state after it, at some indices.
    pub(crate) state: Option<&'a View>,
}

/// Every invariant, and what they share.
pub(crate) struct Invariants {
    pub(crate) history: History,
    mirrors: Vec<Option<Mirror>>,
    /// How far each replica has applied in any of its runs.
    applied_max: Vec<Index>,
    /// The same, up to the start of the present run.
    applied_earlier: Vec<Index>,
    promises: Vec<acknowledgement::Promise>,
    heard: quorum_heard::Heard,
    fallback: fallback::Fallback,
    stalled_disk: stalled_disk::StalledDisk,
    said: announced::Said,
    elections: election_safety::Elections,
    states: state_machine_safety::States,
    executed: exactly_once::Executed,
    pub(crate) session_rules: session_rules::SessionRules,
    cancelled: cancelled::Cancelled,
    acknowledged: acknowledged_writes::Acknowledged,
    linearizable: linearizable::Linearizable,
    /// They look at nothing: to see what they cost.
    is_off: bool,
    turns: u64,
}

/// The whole logs are looked at after so many turns.
const LOOK_AT_ALL_EVERY: u64 = 512;

impl Invariants {
    pub(crate) fn new(
        replicas: usize,
        configuration: Arc<Configuration>,
        workload: &Arc<dyn Workload>,
    ) -> Self {
        Self {
            session_rules: session_rules::SessionRules::new(configuration.limits),
            history: History::new(configuration),
            mirrors: (0..replicas).map(|_| None).collect(),
            applied_max: vec![0; replicas],
            applied_earlier: vec![0; replicas],
            promises: vec![acknowledgement::Promise::default(); replicas],
            heard: quorum_heard::Heard::new(replicas),
            fallback: fallback::Fallback::default(),
            stalled_disk: stalled_disk::StalledDisk::default(),
            said: announced::Said::default(),
            elections: election_safety::Elections::default(),
            states: state_machine_safety::States::new(Arc::clone(workload)),
            executed: exactly_once::Executed::default(),
            cancelled: cancelled::Cancelled::default(),
            acknowledged: acknowledged_writes::Acknowledged::default(),
            linearizable: linearizable::Linearizable::new(Arc::clone(workload)),
            is_off: false,
            turns: 0,
        }
    }

    /// Clocks may go wrong by more than is promised: nothing is said of how long things take.
    pub(crate) fn trust_no_clock(&mut self) {
        self.heard.is_off = true;
    }

    /// Nothing goes wrong but with aggregators.
    pub(crate) fn expect_no_election(&mut self, options: &Options) {
        self.fallback = fallback::Fallback::of(options);
    }

    /// Nothing goes wrong but that all replicas stand still together.
    pub(crate) fn expect_patience(&mut self, options: &Options) {
        self.fallback = fallback::Fallback::of(options).without_waits();
    }

    /// Nothing goes wrong but that disks stand still.
    pub(crate) fn expect_moving_disks(&mut self, options: &Options) {
        self.stalled_disk = stalled_disk::StalledDisk::of(options);
    }

    /// Replicas stand still until then.
    pub(crate) fn paused(&mut self, now: Time, until: Time) {
        self.fallback.paused(now, until);
    }

    /// From now on they look at nothing.
    pub(crate) fn turn_off(&mut self) {
        self.is_off = true;
    }

    /// A replica has started: what it has is what its disk gave back.
    pub(crate) fn started(&mut self, replica: &Replica) {
        self.fallback.started();
        let at = position(replica.node);
        self.applied_earlier[at] = self.applied_max[at];
        self.stalled_disk.started(at);
        if let Some(life) = &replica.life {
            let mirror = Mirror::new(self.mirrors.len(), &life.core);
            self.mirrors[position(replica.node)] = Some(mirror);
        }
    }

    /// A replica's turn has ended. Returns what became of its log.
    pub(crate) fn turn_ended(
        &mut self,
        now: Time,
        replicas: &[Replica],
        at: usize,
    ) -> Result<Option<Change>, Violation> {
        if self.is_off {
            return Ok(None);
        }
        let replica = &replicas[at];
        let (Some(life), Some(mirror)) = (&replica.life, &mut self.mirrors[at]) else {
            return Ok(None);
        };
        let core = &life.core;
        self.applied_max[at] = self.applied_max[at].max(life.applier.applied());
        let change = mirror.update(core);
        log_matching::check_appended(&mut self.history, replica.node, core, &change.appended)?;
        self.turns += 1;
        if self.turns.is_multiple_of(LOOK_AT_ALL_EVERY) {
            log_matching::check_all(&self.history, replica.node, core)?;
            bounded::check(replicas, replica, core)?;
            durable_index::check_all(replica, core)?;
        }
        if core.is_leader() {
            let term = core.hard_state().term;
            if self.elections.check(term, replica.node, replica.run)? {
                leader_completeness::check(&self.history, replica.node, core)?;
            }
        }
        self.promises[at].check(replica, core)?;
        self.heard.check(now, replica, core)?;
        self.fallback.check(now, replicas, replica, core)?;
        self.stalled_disk.check(now, replicas, at, core)?;
        let before = std::mem::replace(&mut mirror.commit, core.commit_index());
        verified::check(replica, core)?;
        verified_commit::check(&mut self.history, replicas, replica.node, core, before)?;
        configuration_in_force::check(&self.history, mirror, replica.node, core)?;
        durable_index::check(replica, core)?;
        if core.is_leader() && !change.appended.is_empty() {
            queue_bound::check(replica, mirror, &self.applied_max)?;
        }
        Ok(Some(change))
    }

    /// A replica sends a message.
    pub(crate) fn sent(
        &mut self,
        now: Time,
        replicas: &[Replica],
        at: usize,
        to: NodeId,
        envelope: &Envelope,
    ) -> Result<(), Violation> {
        if self.is_off {
            return Ok(());
        }
        self.promises[at].note(&replicas[at], envelope);
        self.heard.note(now, at, envelope);
        self.said.note(envelope);
        self.stalled_disk.sent(now, &replicas[at], envelope)?;
        durable_term::check(&replicas[at], to, envelope)?;
        donated::check(&self.history, replicas[at].node, envelope)?;
        acknowledgement::check(replicas, at, envelope)
    }

    /// An aggregator says what a quorum holds.
    pub(crate) fn announced(
        &self,
        replicas: &[Replica],
        envelope: &Envelope,
    ) -> Result<(), Violation> {
        if self.is_off { Ok(()) } else { announced::check(&self.said, replicas, envelope) }
    }

    /// A replica has applied an entry.
    pub(crate) fn applied(&mut self, application: &Application<'_>) -> Result<(), Violation> {
        if self.is_off {
            return Ok(());
        }
        let at = position(application.node);
        let index = application.committed.index;
        if let Some(mirror) = &mut self.mirrors[at] {
            let before = std::mem::replace(&mut mirror.applied, index);
            state_machine_safety::check_order(application, before, &self.history)?;
            answered_once::check(application, mirror.applied_max)?;
            mirror.applied_max = mirror.applied_max.max(index);
        }
        self.linearizable.note(application);
        read_only::check(application, &self.states, self.applied_earlier[at])?;
        let first = self.linearizable.first_reply(index);
        self.states.check(application, first)?;
        self.session_rules.check(application)?;
        self.cancelled.check_executed(application)?;
        self.executed.check(application)
    }

    /// A snapshot replaced the state of a replica.
    pub(crate) fn restored(
        &mut self,
        node: NodeId,
        snapshot: &Snapshot,
        state: Option<View>,
    ) -> Result<(), Violation> {
        if self.is_off {
            return Ok(());
        }
        let index = snapshot.meta.index;
        if let Some(mirror) = &mut self.mirrors[position(node)] {
            mirror.applied = index;
        }
        verified_commit::check_snapshot(&self.history, node, &snapshot.meta)?;
        state.map_or(Ok(()), |state| self.states.check_state(node, index, &state))
    }

    /// The highest index that any client has an answer from.
    pub(crate) fn floor(&self) -> Index {
        self.acknowledged.last()
    }

    /// A client's request has an answer.
    pub(crate) fn completed(&mut self, completion: &Completion) -> Result<(), Violation> {
        if self.is_off {
            return Ok(());
        }
        self.cancelled.note(completion, &self.executed)?;
        session_lifetime::check(completion, &self.history)?;
        self.acknowledged.check(completion, &self.executed, &self.history)
    }

    /// Nothing goes wrong any more, and everybody has caught up.
    pub(crate) fn at_rest(&mut self, replicas: &[Replica]) -> Result<(), Violation> {
        if self.is_off {
            return Ok(());
        }
        session_tables::check(replicas)?;
        self.session_rules.check_all(replicas)?;
        self.linearizable.check(&self.history)?;
        for replica in replicas {
            let Some(life) = &replica.life else { continue };
            log_matching::check_all(&self.history, replica.node, &life.core)?;
            if let Some(view) = life.view() {
                self.states.check_state(replica.node, life.applier.applied(), &view)?;
            }
        }
        self.acknowledged.check_all(replicas)
    }

    /// The run is over. False if it could not be decided whether what clients saw is right.
    pub(crate) fn judge(&self, clients: &[Client]) -> Result<bool, Violation> {
        if self.is_off {
            return Ok(true);
        }
        self.linearizable.judge(clients)
    }

    pub(crate) fn mirror(&self, at: usize) -> Option<&Mirror> {
        self.mirrors[at].as_ref()
    }
}

/// Fails with what was found.
fn broken(
    invariant: &'static str,
    rule: &'static str,
    what: impl Into<String>,
) -> Result<(), Violation> {
    Err(Violation { invariant, rule, what: what.into() })
}
