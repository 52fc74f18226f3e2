//! Leader completeness (Raft §5.4, P37): a leader's log holds everything that was committed in the
//! terms before its own.
//!
//! Not what later terms committed: votes may reach a candidate when another one has long been elected
//! in a later term, and then it leads its own, in which nothing will be committed any more. The term of a
//! commit is taken to be that of whoever knew of it first, which may be later: then less is asked.

use hovercraft::{NodeId, core::Core};

use super::{Violation, broken};
use crate::history::{History, term_in};

pub(super) fn check(history: &History, node: NodeId, core: &Core) -> Result<(), Violation> {
    let (first, last) = core.log_bounds();
    let term = core.hard_state().term;
    for index in first..=history.committed_last() {
        let committed = history.committed(index).map(|recorded| recorded.entry.term);
        let here = term_in(core, index);
        if here != committed && history.is_committed_before(index, term) {
            let what = format!(
                "{node} leads term {term} with {index}@{here:?} in a log up to {last}, and \
                 {index}@{committed:?} is committed"
            );
            return broken("leader completeness", "Raft §5.4", what);
        }
    }
    Ok(())
}
