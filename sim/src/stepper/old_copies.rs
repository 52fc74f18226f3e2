//! Directories that are restored from older copies (P37).
//!
//! The leader that counted what a copy lacks must not count the replica any more. Nothing else goes
//! wrong in such a run: another leader could not tell, and more than one lost disk of three is
//! beyond what the protocol promises.

use std::{collections::BTreeMap, time::Duration};

use hovercraft::{Incarnation, Term};

use super::{Event, Stepper};
use crate::{disk::Copy, faults::Leaves, history::term_in, invariants::Violation, trace::Place};

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
        if matched <= copy.last() || !self.replicas.iter().all(is_counted) {
            return;
        }
        // Nothing may be committed by what it has acknowledged, in answers that are still on their
        // way: one more disk would be lost with it.
        let Some(own) = self.replicas[at].life.as_ref().map(|life| &life.core) else { return };
        let (_, last) = own.log_bounds();
        let Some(of_last) = term_in(own, last) else { return };
        let others = self.replicas.iter().filter(|it| it.node != node);
        let holders = others.filter(|it| it.disk.holds(last, of_last)).count();
        if holders < life.core.configuration().quorum() {
            return;
        }
        let incarnation = copy.incarnation();
        let what = || format!("an older copy of the disk of {node} is put in place");
        self.trace.fault(self.now, Place::At(at), what);
        self.coverage.add("old copies put in place", 1);
        self.kill(at, Leaves::Nothing);
        self.replicas[at].disk.put_back(copy);
        self.restart(at);
        let term = status.term;
        self.old_copies.put_back = Some(PutBack { at, incarnation, leader, term });
        let heartbeat = self.schedule.options.cluster.settings(leader).timing.heartbeat;
        self.agenda.add(self.now + HEARD_AFTER + heartbeat * 20, Event::OldCopyHeard);
    }

    /// The leader has heard of it: if it leads still, it does not count it.
    pub(super) fn old_copy_heard(&mut self) -> Result<(), Violation> {
        let Some(PutBack { at, incarnation, leader, term }) = self.old_copies.put_back.take()
        else {
            return Ok(());
        };
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
}
