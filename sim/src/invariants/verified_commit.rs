//! Verified commit (P12, P13): what a replica takes as committed is what every other one takes as
//! committed there, and when it is first taken so a quorum holds it.

use std::sync::Arc;

use hovercraft::{
    Index, NodeId, Term,
    core::Core,
    storage::{Durability, SnapshotMeta},
};

use super::{Violation, broken};
use crate::{
    history::{History, term_in},
    replica::Replica,
};

const NAME: &str = "verified commit";

/// The commit index of a replica was `before`.
pub(super) fn check(
    history: &mut History,
    replicas: &[Replica],
    node: NodeId,
    core: &Core,
    before: Index,
) -> Result<(), Violation> {
    let (first, commit) = (core.log_bounds().0, core.commit_index());
    if commit < before {
        let what = format!("the commit index of {node} went from {before} back to {commit}");
        return broken(NAME, "P12", what);
    }
    if first - 1 > history.committed_last() {
        let what = format!("{node} trimmed up to {}, which is not committed", first - 1);
        return broken(NAME, "P36", what);
    }
    let term = core.hard_state().term;
    if core.is_leader()
        && commit > before
        && let Some(counted) = term_in(core, commit)
        && counted != term
    {
        let what = format!("{node} leads term {term} and commits {commit}@{counted} by counting");
        return broken(NAME, "P13", what);
    }
    for index in first.max(before + 1)..=commit {
        let Some(term) = term_in(core, index) else { continue };
        match history.committed(index) {
            Some(known) if known.entry.term == term => {}
            Some(known) => {
                let what = format!(
                    "{node} takes {index}@{term} as committed, and {index}@{} is",
                    known.entry.term
                );
                return broken(NAME, "P12", what);
            }
            None => {
                let recorded = history.entry(index, term).map(Arc::clone);
                let recorded = recorded.expect("what is in a log was recorded");
                check_quorum(history, replicas, node, index, term)?;
                history.commit(recorded, core.hard_state().term);
            }
        }
    }
    Ok(())
}

/// A snapshot stands for a committed entry.
pub(super) fn check_snapshot(
    history: &History,
    node: NodeId,
    meta: &SnapshotMeta,
) -> Result<(), Violation> {
    // At index 0 it stands for the empty state, before any entry.
    let committed = match meta.index {
        0 => Some(0),
        index => history.committed(index).map(|recorded| recorded.entry.term),
    };
    if committed == Some(meta.term) {
        return Ok(());
    }
    let what = format!(
        "{node} installed a snapshot of {}@{}, where {committed:?} is committed",
        meta.index, meta.term
    );
    broken(NAME, "P36", what)
}

/// In `sync`, what is committed for the first time is on the disks of a quorum.
fn check_quorum(
    history: &History,
    replicas: &[Replica],
    node: NodeId,
    index: Index,
    term: Term,
) -> Result<(), Violation> {
    if replicas[0].settings.durability != Durability::Sync {
        return Ok(());
    }
    let holders = replicas.iter().filter(|replica| replica.disk.holds(index, term)).count();
    if holders >= history.configuration.quorum() {
        return Ok(());
    }
    let what = format!("{node} takes {index}@{term} as committed, which {holders} disks hold");
    broken(NAME, "P6, P13, P37", what)
}
