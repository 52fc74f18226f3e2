//! Log matching, entries that never change, and bodies (Raft §5.3, P6, P7).
//!
//! If two logs hold an entry of the same index and term, it is the same entry, byte for byte, body
//! and replier included, and the logs are equal before it. The latter follows by induction from
//! the entry before being of the same term.

use std::ops::Range;

use hovercraft::{Entry, Index, NodeId, Payload, Request, core::Core};

use super::{Violation, broken};
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
            check_body(node, index, entry)?;
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
    if !is_same(&known.entry, entry) {
        let what =
            format!("{index}@{term} was {:?} and is {entry:?} at replica {node}", known.entry);
        return broken("entries never change", "P6, P7", what);
    }
    let before = term_in(core, index - 1);
    if let (Some(known), Some(before)) = (known.previous_term, before)
        && known != before
    {
        let what = format!("before {index}@{term} stands term {known}, at {node} term {before}");
        return broken("log matching", "Raft §5.3", what);
    }
    Ok(())
}

/// Equal but for the return path, which is not part of an entry (P5).
fn is_same(a: &Entry, b: &Entry) -> bool {
    a.term == b.term
        && a.log_time_us == b.log_time_us
        && a.session_delta_us == b.session_delta_us
        && a.payload == b.payload
}

fn check_body(node: NodeId, index: Index, entry: &Entry) -> Result<(), Violation> {
    let Payload::Request { request, .. } = &entry.payload else { return Ok(()) };
    let body = request.body().clone();
    let again = Request::new(request.identity(), request.lowest(), request.kind(), body);
    if again.key() == request.key() {
        return Ok(());
    }
    let what = format!("the body of {index}@{} at {node} is not what was ordered", entry.term);
    broken("body presence", "P2, P6", what)
}
