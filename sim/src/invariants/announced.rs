//! What an aggregator announces (P28): a quorum of the configuration holds it, in `sync` on its disks,
//! and it is not below the first index of the term; and of a replica nothing that it did not
//! acknowledge in that term and configuration, nor of a run that is over (P37).
//!
//! From the paper's `AGG_COMMIT` and Raft's rule that only entries of the own term are committed by
//! counting (dissertation §3.6.2).

use std::collections::BTreeMap;

use hovercraft::{
    Index, NodeId, Term,
    messages::{Envelope, Message},
    storage::Durability,
};

use super::{Violation, broken};
use crate::{history::term_in, replica::Replica};

const NAME: &str = "announced";

/// Words to aggregators, by term and configuration.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// By each follower: how far it has acknowledged, and which round.
    acknowledged: BTreeMap<(Term, u64, NodeId), (Index, u64)>,
    /// By the leader: rounds, and the first one that counted from then on.
    counting: BTreeMap<(Term, u64), BTreeMap<u64, u64>>,
}

impl Said {
    pub(super) fn note(&mut self, envelope: &Envelope) {
        let term = envelope.term;
        let said = match &envelope.message {
            Message::Acknowledge(said) => said,
            Message::Aggregate(said) => {
                let counting = self.counting.entry((term, said.configuration)).or_default();
                let (round, first) = (said.append.round, said.first_round);
                let before = counting.range(..=round).next_back();
                if before.is_none_or(|(_, before)| *before < first) {
                    counting.insert(round, first);
                }
                return;
            }
            _ => return,
        };
        let key = (term, said.configuration, envelope.from);
        let (index, round) = self.acknowledged.entry(key).or_default();
        (*index, *round) = ((*index).max(said.acknowledged), (*round).max(said.round));
    }

    /// Returns the first round that counts for an aggregator that has heard of one.
    fn first_round(&self, key: (Term, u64), heard: u64) -> u64 {
        let counting = self.counting.get(&key);
        let said = counting.and_then(|counting| counting.range(..=heard).next_back());
        said.map_or(0, |(_, first)| *first)
    }
}

pub(super) fn check(
    said: &Said,
    replicas: &[Replica],
    envelope: &Envelope,
) -> Result<(), Violation> {
    let Message::AggCommit(commit) = &envelope.message else { return Ok(()) };
    let index = commit.commit;
    let term = envelope.term;
    // The aggregator has heard of every round that it counts an answer to.
    let heard = commit.replicas.iter().map(|it| it.round).fold(commit.round, u64::max);
    for progress in &commit.replicas {
        let key = (term, commit.configuration, progress.node);
        let (matched, round) = said.acknowledged.get(&key).copied().unwrap_or_default();
        if progress.matched > matched || progress.round > round {
            let what = format!("{progress:?} in term {term}, in which it said {matched}, {round}");
            return broken(NAME, "P28", what);
        }
        if progress.round < said.first_round((term, commit.configuration), heard) {
            let what = format!("{progress:?} in term {term}, of a run that is over");
            return broken(NAME, "P28, P37", what);
        }
    }
    let lives = replicas.iter().filter_map(|replica| replica.life.as_ref());
    let leader = lives.map(|life| &life.core).find(|core| {
        core.is_leader()
            && core.hard_state().term == term
            && core.configuration().id == commit.configuration
    });
    // A leader that is gone has told nobody here what its log was.
    let Some(leader) = leader.filter(|_| index > 0) else { return Ok(()) };
    let (first, last) = leader.log_bounds();
    if index > last {
        let what = format!("{index} of term {term}, and the leader's log ends at {last}");
        return broken(NAME, "P28", what);
    }
    let Some(of_entry) = term_in(leader, index).filter(|_| index >= first) else { return Ok(()) };
    if of_entry != term {
        let what = format!("{index}@{of_entry} by counting, in term {term}");
        return broken(NAME, "P28, P13", what);
    }
    let is_sync = replicas.iter().all(|it| it.settings.durability == Durability::Sync);
    let holders = replicas.iter().filter(|replica| replica.disk.holds(index, of_entry)).count();
    if is_sync && holders < leader.configuration().quorum() {
        let what = format!("{index}@{of_entry} is on {holders} disks");
        return broken(NAME, "P28", what);
    }
    Ok(())
}
