//! What an aggregator announces (P28): a quorum of the configuration holds it, in `sync` on its disks,
//! and it is not below the first index of the term.
//!
//! From the paper's `AGG_COMMIT` and Raft's rule that only entries of the own term are committed by
//! counting (dissertation §3.6.2).

use hovercraft::{
    messages::{Envelope, Message},
    storage::Durability,
};

use super::{Violation, broken};
use crate::{history::term_in, replica::Replica};

const NAME: &str = "announced";

pub(super) fn check(replicas: &[Replica], envelope: &Envelope) -> Result<(), Violation> {
    let Message::AggCommit(commit) = &envelope.message else { return Ok(()) };
    let index = commit.commit;
    let term = envelope.term;
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
