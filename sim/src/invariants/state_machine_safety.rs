//! State machine safety (Raft §5.4.3, P20, P41): replicas apply the committed entries in order, each
//! once a run, and have equal state at equal index: service, session table, log time and
//! configuration.

use std::{collections::BTreeMap, sync::Arc};

use hovercraft::{Index, Kind, NodeId};

use super::{Application, OF_SERVICE, Violation, broken};
use crate::{
    history::History,
    service::Answer,
    view::{Samples, View, two_values},
    workload::Workload,
};

const NAME: &str = "state machine safety";

/// What the state was at each index, as the first replica to get there had it.
pub(crate) struct States {
    /// Digest of everything that the service executed up to index i, at position i − 1.
    executed: Vec<u64>,
    /// The whole replicated state, at some indices, and who was the first to be there.
    whole: BTreeMap<Index, (NodeId, View)>,
    workload: Arc<dyn Workload>,
    samples: Samples,
}

impl States {
    pub(super) fn new(workload: Arc<dyn Workload>) -> Self {
        let samples = Samples::of(workload.as_ref());
        Self { executed: Vec::new(), whole: BTreeMap::new(), workload, samples }
    }

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
            if let (Some(Answer { reply, .. }), Some((other, known))) = (reply, first)
                && reply != known
            {
                let request = application.committed.entry.request();
                let command = request
                    .map_or_else(String::new, |request| self.workload.describe(request.body()));
                let (here, there) = (format!("replica {node}"), format!("replica {other}"));
                let what = format!(
                    "The service answered a command differently on two replicas: it is not \
                     deterministic, or its state differed before. At {index}, `{command}`: {}",
                    two_values((&here, reply), (&there, known))
                );
                return broken(NAME, OF_SERVICE, what);
            }
            let what = format!("{node} executed {index} with another result than others");
            return broken(NAME, "Raft §5.4.3", what);
        }
        application.state.map_or(Ok(()), |state| self.check_state(node, index, state))
    }

    pub(crate) fn check_state(
        &mut self,
        node: NodeId,
        index: Index,
        state: &View,
    ) -> Result<(), Violation> {
        let (first, known) = self.whole.entry(index).or_insert_with(|| (node, state.clone()));
        if known == state {
            return Ok(());
        }
        let (here, there) = (format!("replica {node}"), format!("replica {first}"));
        let named = ((here.as_str(), state), (there.as_str(), &*known));
        let difference = self.samples.difference(self.workload.as_ref(), named.0, named.1);
        let what = format!(
            "Two replicas that executed the same commands have different states. After {index}, \
             {difference}"
        );
        broken("equal states and session tables", OF_SERVICE, what)
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
