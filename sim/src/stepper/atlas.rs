//! What faults may break: no more than the protocol promises to survive, unless the schedule goes
//! beyond it.
//!
//! In the durability `sync` everybody may die at any time, and any disk may fail: what it synced is
//! there. In `interval` and `memory` at most n − quorum replicas may have lost what they acknowledged
//! and not be back in the configuration (P37): the others are still a quorum. Everything else is
//! only a matter of time, and so ends before progress is asked for.

use hovercraft::storage::Durability;

use super::Stepper;
use crate::{faults::Fault, replica::Replica};

impl Stepper {
    /// Whether a fault may happen now.
    pub(super) fn may_happen(&self, fault: &Fault) -> bool {
        if self.schedule.beyond {
            return true;
        }
        match fault {
            Fault::Blackout { .. } => self.durability() == Durability::Sync,
            Fault::Kill { target, .. }
            | Fault::WriteError { target, .. }
            | Fault::Damage { target, .. } => self.may_lose(self.find(*target)),
            Fault::KillAggregator { .. } | Fault::CutAggregator { .. } => !self.machines.is_empty(),
            _ => true,
        }
    }

    pub(super) fn durability(&self) -> Durability {
        self.schedule.options.cluster.durability
    }

    /// Whether a replica may lose what it has acknowledged.
    fn may_lose(&self, at: usize) -> bool {
        if self.durability() == Durability::Sync {
            return true;
        }
        let configuration = &self.invariants.history.configuration;
        let is_lost = |replica: &Replica| {
            let incarnation = replica.disk.durable_hard_state().incarnation;
            let named = configuration.member(replica.node).map(|member| member.incarnation);
            // One whose disk is about to fail is as good as lost.
            replica.lost || replica.disk.fails || named != Some(incarnation)
        };
        let others = self.replicas.iter().enumerate().filter(|(other, _)| *other != at);
        let lost = others.filter(|(_, replica)| is_lost(replica)).count();
        lost + 1 + configuration.quorum() <= configuration.members.len()
    }
}
