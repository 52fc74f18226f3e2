//! State machine safety (Raft §5.4.3, P20, P41): replicas apply the committed entries in order, each
//! once a run, and have equal state at equal index: service, session table, log time and
//! configuration.

use std::collections::BTreeMap;

use hovercraft::{Index, Kind, NodeId};

use super::{Application, Violation, broken};
use crate::{history::History, service::Answer};

const NAME: &str = "state machine safety";

/// What the state was at each index, as the first replica to get there had it.
#[derive(Debug, Default)]
pub(crate) struct States {
    /// Digest of everything that the service executed up to index i, at position i − 1.
    executed: Vec<u64>,
    /// Digest of the whole replicated state, at some indices.
    whole: BTreeMap<Index, u64>,
}

impl States {
    /// Digest of everything that a service executed up to an index.
    pub(crate) fn executed(&self, index: Index) -> u64 {
        let position = usize::try_from(index).ok().and_then(|index| index.checked_sub(1));
        position.and_then(|at| self.executed.get(at)).copied().unwrap_or_default()
    }

    /// `first` is the replica that executed this entry first, and its reply.
    pub(crate) fn check(
        &mut self,
        application: &Application<'_>,
        first: Option<(NodeId, &[u8])>,
    ) -> Result<(), Violation> {
        let (node, index) = (application.node, application.committed.index);
        let before = self.executed(index - 1);
        let here = match application.call {
            Some(call) if !call.is_query => call.history,
            _ => before,
        };
        if index == self.executed.len() as Index + 1 {
            self.executed.push(here);
        } else if self.executed(index) != here {
            let reply = application.call.and_then(|call| Answer::decode(&call.reply));
            let what = match (reply, first) {
                (Some(Answer { reply, .. }), Some((other, known))) if reply != known => format!(
                    "{node} executed {index} and answered {reply:?}, and {other} answered \
                     {known:?}: the service is not deterministic, or its state differed"
                ),
                _ => format!("{node} executed {index} with another result than others"),
            };
            return broken(NAME, "Raft §5.4.3", what);
        }
        application.state.map_or(Ok(()), |state| self.check_state(node, index, state))
    }

    pub(crate) fn check_state(
        &mut self,
        node: NodeId,
        index: Index,
        state: u64,
    ) -> Result<(), Violation> {
        let known = *self.whole.entry(index).or_insert(state);
        if known == state {
            return Ok(());
        }
        let what = format!("the state of {node} at {index} is not that of others");
        broken("equal states and session tables", "P20, P41", what)
    }
}

/// A replica applies what comes next, and what is committed there.
pub(super) fn check_order(
    application: &Application<'_>,
    before: Index,
    history: &History,
) -> Result<(), Violation> {
    let (node, index) = (application.node, application.committed.index);
    if index != before + 1 {
        return broken(NAME, "P21", format!("{node} applies {index} after {before}"));
    }
    let entry = &application.committed.entry;
    let committed = history.committed(index).map(|recorded| recorded.entry.term);
    if committed != Some(entry.term) {
        let what = format!("{node} applies {index}@{}, and {committed:?} is committed", entry.term);
        return broken(NAME, "Raft §5.4.3", what);
    }
    let is_write = entry.request().is_some_and(|request| request.kind() == Kind::Write);
    if application.call.is_some_and(|call| !call.is_query) && !is_write {
        return broken(NAME, "P17", format!("{node} executes {index}, which is no write"));
    }
    Ok(())
}
