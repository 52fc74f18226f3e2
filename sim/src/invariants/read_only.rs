//! Read-only requests (P17): executed only by their replier, after everything before them.

use hovercraft::{Index, Kind};

use super::{Application, Violation, broken, state_machine_safety::States};

/// `earlier` is how far earlier runs of the replica have applied.
pub(super) fn check(
    application: &Application<'_>,
    states: &States,
    earlier: Index,
) -> Result<(), Violation> {
    let Some(call) = application.call.filter(|call| call.is_query) else { return Ok(()) };
    let (node, committed) = (application.node, application.committed);
    let index = committed.index;
    let is_read = committed.entry.request().is_some_and(|request| request.kind() == Kind::Read);
    if !is_read || committed.entry.replier() != Some(node) {
        let what =
            format!("{node} reads for {index}, whose replier is {:?}", committed.entry.replier());
        return broken("read-only requests", "P17", what);
    }
    if index <= earlier {
        let what =
            format!("{node} reads for {index}, which an earlier run of it may have answered");
        return broken("read-only requests", "P17", what);
    }
    if call.context.index != index || call.history != states.executed(index - 1) {
        let what = format!("{node} reads for {index} from a state that is not that before it");
        return broken("read-only requests", "P17", what);
    }
    Ok(())
}
