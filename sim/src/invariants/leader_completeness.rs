//! Leader completeness (Raft §5.4, P37): a leader's log holds everything that was committed before
//! it was elected.

use hovercraft::{NodeId, core::Core};

use super::{Violation, broken};
use crate::history::{History, term_in};

pub(super) fn check(history: &History, node: NodeId, core: &Core) -> Result<(), Violation> {
    let (first, last) = core.log_bounds();
    let term = core.hard_state().term;
    if last < history.committed_last() {
        let what = format!(
            "{node} leads term {term} with a log up to {last}, and {} is committed",
            history.committed_last()
        );
        return broken("leader completeness", "Raft §5.4", what);
    }
    for index in first..=history.committed_last() {
        let committed = history.committed(index).map(|recorded| recorded.entry.term);
        let here = term_in(core, index);
        if here != committed {
            let what = format!(
                "{node} leads term {term} with {index}@{here:?}, and {index}@{committed:?} is \
                 committed"
            );
            return broken("leader completeness", "Raft §5.4", what);
        }
    }
    Ok(())
}
