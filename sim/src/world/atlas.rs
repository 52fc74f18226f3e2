//! What faults may break: no more than the protocol promises to survive, unless the schedule goes
//! beyond it. The same as the stepper's, by what is seen of the replicas from outside.
//!
//! In the durability `sync` everybody may die at any time, and any disk may fail: what it synced is
//! there. In `interval` and `memory` at most n − quorum replicas may have lost what they acknowledged
//! and not be back in the configuration (P37): the others are still a quorum.

use hovercraft::{NodeError, storage::Durability};

use super::{World, wrong};
use crate::{faults::Fault, invariants::Violation, trace::Place};

impl World {
    /// Whether a fault may happen now.
    pub(super) fn may_happen(&self, fault: &Fault) -> bool {
        match fault {
            // All hosts here have one clock: the stepper has those.
            Fault::ClockJump { .. }
            | Fault::ClockDrift { .. }
            | Fault::BitFlip { .. }
            | Fault::Narrow { .. }
            | Fault::OldCopy { .. } => false,
            _ if self.plan.beyond => true,
            Fault::Blackout { .. } => self.survives_blackouts(),
            Fault::Kill { target, .. }
            | Fault::WriteError { target, .. }
            | Fault::Damage { target, .. } => self.may_lose(self.find(*target)),
            // A stop that finds no room for its last word is an unclean one (P38).
            Fault::Restart { target, .. } => {
                let at = self.find(*target);
                !self.replicas[at].disk.is_full() || self.may_lose(at)
            }
            _ => true,
        }
    }

    pub(super) fn survives_blackouts(&self) -> bool {
        self.plan.options.cluster.durability == Durability::Sync
    }

    /// Whether a replica may lose what it has acknowledged.
    fn may_lose(&self, at: usize) -> bool {
        let others = self.replicas.iter().enumerate().filter(|(other, _)| *other != at);
        // One whose disk is about to fail is as good as lost.
        let is_lost = |replica: &super::Replica| replica.lost || replica.disk.may_fail();
        let lost = others.filter(|(_, replica)| is_lost(replica)).count();
        let count = self.replicas.len();
        let quorum = count / 2 + 1;
        self.survives_blackouts() || lost + 1 + quorum <= count
    }

    /// Looks whether a process has ended, and who is back in the configuration.
    pub(super) fn look(&mut self) -> Result<(), Violation> {
        if let Some(wrong) = &self.witness.seen().wrong {
            return Err(wrong.clone());
        }
        let survives = self.survives_blackouts();
        for at in 0..self.replicas.len() {
            let ended = self.replicas[at].ended();
            let is_loud = self.plan.beyond && matches!(ended, Some(Err(NodeError::Conflict(_))));
            let replica = &mut self.replicas[at];
            match ended {
                Some(Err(error)) if !is_loud => {
                    let what = format!("replica {} ended: {error}", replica.id);
                    return Err(wrong("no replica ends by itself", "P38", what));
                }
                Some(_) => {
                    self.watcher.tell(Place::At(at), format!("{} has ended", at + 1));
                    self.watcher.bury(replica.id, &mut self.coverage);
                    replica.lost |= !survives && !replica.disk.is_clean();
                    // Beyond the promises a replica that sees a conflict is an operator's affair.
                    if is_loud {
                        replica.disk.condemn();
                    }
                }
                None => {}
            }
            if replica.attend() {
                self.coverage.add("starts", 1);
                self.watcher.tell(Place::At(at), format!("{} starts", at + 1));
            }
            if survives
                && replica.is_up
                && let Some(status) = self.watcher.status(replica.id)
                && status.durable > replica.disk.synced_max()
            {
                let what = format!(
                    "replica {} takes {} as stored, and its store synced {}",
                    replica.id,
                    status.durable,
                    replica.disk.synced_max()
                );
                return Err(wrong("stored is synced", "P37", what));
            }
            if replica.lost && replica.is_up {
                let status = self.watcher.status(replica.id);
                replica.lost = !status.is_some_and(|it| !it.recovering && it.commit == it.last);
            }
        }
        Ok(())
    }
}
