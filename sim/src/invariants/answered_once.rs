//! Answered once a run (P17): a service that goes back to the own snapshot applies entries again,
//! and answers none of them again.

use hovercraft::Index;

use super::{Application, Violation, broken};

/// `applied_max` is the highest index that this run has applied before.
pub(super) fn check(application: &Application<'_>, applied_max: Index) -> Result<(), Violation> {
    let (node, committed) = (application.node, application.committed);
    if committed.answer_to.is_none() || committed.index > applied_max {
        return Ok(());
    }
    let what = format!("{node} answers {} again, having applied {applied_max}", committed.index);
    broken("answered once a run", "P17", what)
}
