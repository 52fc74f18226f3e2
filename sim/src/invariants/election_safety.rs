//! Election safety (Raft §5.2, P33, P37): a term has one leader at most, in one of its runs.

use std::collections::BTreeMap;

use hovercraft::{NodeId, Term};

use super::{Violation, broken};

/// Who led which term, in which run.
#[derive(Debug, Default)]
pub(crate) struct Elections(BTreeMap<Term, (NodeId, u64)>);

impl Elections {
    /// A replica leads. Returns whether that is new.
    pub(crate) fn check(&mut self, term: Term, node: NodeId, run: u64) -> Result<bool, Violation> {
        match self.0.insert(term, (node, run)) {
            None => Ok(true),
            Some(leader) if leader == (node, run) => Ok(false),
            Some((other, _)) => {
                let what = format!("{other} and {node} both lead term {term}");
                broken("election safety", "Raft §5.2", what).map(|()| false)
            }
        }
    }
}
