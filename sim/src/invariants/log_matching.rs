//! Log matching (Raft §5.3): if two logs hold an entry of the same index and term, they are equal
//! before it. It follows by induction from the entry before being of the same term.

use std::ops::Range;

use hovercraft::{Entry, Index, NodeId, core::Core};

use super::{Violation, body_presence, broken, entries_never_change};
use crate::history::{History, Recorded, term_in};

/// Entries have come to a log.
pub(super) fn check_appended(
    history: &mut History,
    node: NodeId,
    core: &Core,
    appended: &Range<Index>,
) -> Result<(), Violation> {
    for index in appended.clone() {
        let Some(entry) = core.log_entry(index) else { continue };
        if history.entry(index, entry.term).is_none() {
            body_presence::check(node, core.digest_key(), index, entry)?;
            let entry = Entry { return_path: None, ..entry.clone() };
            history.record(Recorded { index, entry, previous_term: term_in(core, index - 1) });
        } else {
            check_entry(history, node, core, index, entry)?;
        }
    }
    Ok(())
}

/// A whole log.
pub(super) fn check_all(history: &History, node: NodeId, core: &Core) -> Result<(), Violation> {
    let (first, last) = core.log_bounds();
    for index in first..=last {
        if let Some(entry) = core.log_entry(index) {
            check_entry(history, node, core, index, entry)?;
        }
    }
    Ok(())
}

fn check_entry(
    history: &History,
    node: NodeId,
    core: &Core,
    index: Index,
    entry: &Entry,
) -> Result<(), Violation> {
    let term = entry.term;
    let Some(known) = history.entry(index, term) else {
        let what = format!("{node} holds {index}@{term}, which was never appended");
        return broken("log matching", "Raft §5.3", what);
    };
    entries_never_change::check(node, known, entry)?;
    let before = term_in(core, index - 1);
    if let (Some(known), Some(before)) = (known.previous_term, before)
        && known != before
    {
        let what = format!("before {index}@{term} stands term {known}, at {node} term {before}");
        return broken("log matching", "Raft §5.3", what);
    }
    Ok(())
}
