//! Directories that are restored from older copies (P37).
//!
//! The leader that counted what a copy lacks must not count the replica any more. Where it has
//! heard of less than the copy has, it may count that, and no late acknowledgement of what is gone.
//! Nothing else goes wrong in such a run than that packets are late and aggregators die: another
//! leader could not tell, and more than one lost disk of three is beyond what the protocol
//! promises.

use std::{collections::BTreeMap, time::Duration};

use hovercraft::{
    Incarnation, NodeId, Term,
    messages::{Envelope, Message},
};

use super::{Event, Stepper};
use crate::{
    disk::Copy,
    faults::{Leaves, plan::LATE_MAX},
    history::{position, term_in},
    invariants::Violation,
    trace::Place,
};

/// A leader has heard a run that began with a copy within this time, beside twenty heartbeats.
const HEARD_AFTER: Duration = Duration::from_millis(50);

/// The copies of this run.
#[derive(Debug, Default)]
pub(super) struct OldCopies {
    kept: BTreeMap<usize, Copy>,
    put_back: Option<PutBack>,
}

/// A replica whose disk is an older copy, and the leader that counted what it lacks.
#[derive(Debug)]
struct PutBack {
    at: usize,
    incarnation: Incarnation,
    leader: usize,
    term: Term,
    /// The leader has counted more than the copy has.
    is_less: bool,
    /// Number by which its run tells of itself.
    run: Option<u64>,
    /// The leader has answered that run.
    is_known: bool,
}

impl Stepper {
    /// Somebody copies a replica's directory.
    pub(super) fn copy_disk(&mut self, at: usize) {
        if self.replicas[at].life.is_some() {
            let copy = self.replicas[at].disk.copy();
            self.old_copies.kept.insert(at, copy);
        }
    }

    /// Somebody puts the copy in place, if that is the one thing that goes wrong.
    pub(super) fn put_copy_back(&mut self, at: usize) {
        let Some(copy) = self.old_copies.kept.remove(&at) else { return };
        let is_calm = self.healed_at.is_none() && self.watch.is_none();
        let is_calm = is_calm && self.old_copies.put_back.is_none();
        let is_counted = |replica: &crate::replica::Replica| {
            let life = replica.life.as_ref();
            life.is_some_and(|life| !life.core.status().recovering)
        };
        let Some(leader) = self.leader().filter(|leader| *leader != at && is_calm) else { return };
        let Some(life) = self.replicas[leader].life.as_ref() else { return };
        let (node, status) = (self.replicas[at].node, life.core.status());
        let matched = status.replicas.iter().find(|it| it.node == node).map_or(0, |it| it.matched);
        if !self.replicas.iter().all(is_counted) {
            return;
        }
        let is_less = matched > copy.last();
        // Nothing may be committed by what it has acknowledged, in answers that are still on their
        // way: one more disk would be lost with it.
        let Some(own) = self.replicas[at].life.as_ref().map(|life| &life.core) else { return };
        let (_, last) = own.log_bounds();
        let Some(of_last) = term_in(own, last).filter(|_| last > copy.last()) else { return };
        if !is_less && !self.replicas[at].disk.holds(last, of_last) {
            return;
        }
        let others = self.replicas.iter().filter(|it| it.node != node);
        let holders = others.filter(|it| it.disk.holds(last, of_last)).count();
        if holders < life.core.configuration().quorum() {
            return;
        }
        let incarnation = copy.incarnation();
        let what = || format!("an older copy of the disk of {node} is put in place");
        self.trace.fault(self.now, Place::At(at), what);
        self.coverage.add("old copies put in place", u64::from(is_less));
        self.coverage.add("old copies with acknowledgements on their way", u64::from(!is_less));
        self.kill(at, Leaves::Nothing);
        self.replicas[at].disk.put_back(copy);
        self.restart(at);
        let term = status.term;
        self.old_copies.put_back =
            Some(PutBack { at, incarnation, leader, term, is_less, run: None, is_known: false });
        let heartbeat = self.schedule.options.cluster.settings(leader).timing.heartbeat;
        let late = if is_less { Duration::ZERO } else { LATE_MAX };
        self.agenda.add(self.now + HEARD_AFTER + heartbeat * 20 + late, Event::OldCopyHeard);
    }

    /// The leader has heard of it: if it leads still, it does not count it.
    pub(super) fn old_copy_heard(&mut self) -> Result<(), Violation> {
        let put_back = self.old_copies.put_back.take().filter(|it| it.is_less);
        let Some(PutBack { at, incarnation, leader, term, .. }) = put_back else { return Ok(()) };
        let status = |at: usize| self.replicas[at].life.as_ref().map(|life| life.core.status());
        let leads = self.leader() == Some(leader);
        let Some(status) = status(leader).filter(|it| leads && it.term == term) else {
            return Ok(());
        };
        let node = self.replicas[at].node;
        let is_named = status.replicas.iter().any(|it| it.node == node && it.restored);
        let has_drawn = self.replicas[at].disk.durable_hard_state().incarnation != incarnation;
        if is_named || has_drawn {
            self.coverage.add("old copies found", 1);
            return Ok(());
        }
        let what = format!("{node} began with an older copy of its disk, and is still counted");
        Err(Violation { invariant: "old copies are not counted", rule: "P37", what })
    }

    /// The leader looks at what it counts: of a run that it knows, no more than its disk holds.
    pub(super) fn counts_of_old_copy(&self, leader: usize) -> Result<(), Violation> {
        let put_back = self.old_copies.put_back.as_ref();
        let Some(put_back) = put_back.filter(|it| it.leader == leader && it.is_known) else {
            return Ok(());
        };
        let (replica, life) = (&self.replicas[put_back.at], self.replicas[leader].life.as_ref());
        let Some(core) = life.map(|life| &life.core) else { return Ok(()) };
        let status = core.status();
        let counted = status.replicas.iter().find(|it| it.node == replica.node && !it.restored);
        let matched = counted.filter(|_| status.term == put_back.term).map_or(0, |it| it.matched);
        // An entry that is trimmed is in the leader's snapshot: others hold it too.
        if term_in(core, matched).is_none_or(|term| replica.disk.holds(matched, term)) {
            return Ok(());
        }
        let what = format!("{matched} of {}, whose disk is an older copy without it", replica.node);
        Err(Violation { invariant: "late acknowledgements", rule: "P37", what })
    }
}

impl OldCopies {
    /// A replica sends something: looks for the leader's answer to the run that began with a copy.
    pub(super) fn note(&mut self, at: usize, to: NodeId, envelope: &Envelope) {
        let Some(put_back) = &mut self.put_back else { return };
        if let Message::NewRun { run, .. } = &envelope.message
            && at == put_back.at
        {
            put_back.run = Some(run.number);
        }
        if let Message::RunKnown { run, .. } = &envelope.message
            && position(to) == put_back.at
        {
            put_back.is_known |= put_back.run == Some(*run);
        }
    }
}
