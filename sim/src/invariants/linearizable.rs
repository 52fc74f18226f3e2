//! A linearizable history: what was executed, in the order of the log, gives the replies of the
//! model; and no operation took effect before one that it began after (checked as answers come, in
//! `acknowledged_writes`). The order of the log is the witness, so this takes one pass. In the end
//! the workload judges what clients saw once more, without that order.

use std::{collections::BTreeMap, sync::Arc};

use hovercraft::{Index, Kind, NodeId, Request};

use super::{Application, Violation, broken};
use crate::{
    client::Client,
    history::History,
    service::Answer,
    workload::{Command, Model, Workload},
};

/// What was executed, and what it ought to have answered.
pub(crate) struct Linearizable {
    /// The first reply of each entry that was executed.
    replies: BTreeMap<Index, (NodeId, Arc<[u8]>)>,
    model: Model,
    workload: Arc<dyn Workload>,
    /// The model has executed everything up to here.
    checked: Index,
}

impl Linearizable {
    pub(super) fn new(workload: Arc<dyn Workload>) -> Self {
        let model = workload.model();
        Self { replies: BTreeMap::new(), model, workload, checked: 0 }
    }

    /// The replica that executed an entry first, and its reply.
    pub(super) fn first_reply(&self, index: Index) -> Option<(NodeId, &[u8])> {
        let (node, encoded) = self.replies.get(&index)?;
        Some((*node, Answer::decode(encoded)?.reply))
    }

    pub(super) fn note(&mut self, application: &Application<'_>) {
        if let Some(call) = application.call {
            let index = application.committed.index;
            let first = || (application.node, Arc::clone(&call.reply));
            self.replies.entry(index).or_insert_with(first);
        }
    }

    /// Everything that is committed has been executed.
    pub(super) fn check(&mut self, history: &History) -> Result<(), Violation> {
        for index in self.checked + 1..=history.committed_last() {
            let entry = history.committed(index).map(|recorded| &recorded.entry);
            let request = entry.and_then(|entry| entry.request());
            if let (Some(request), Some(_)) = (request, self.replies.get(&index)) {
                self.execute(index, request)?;
            }
            self.checked = index;
        }
        Ok(())
    }

    /// False if it could not be decided.
    pub(super) fn judge(&self, clients: &[Client]) -> Result<bool, Violation> {
        let observed: Vec<_> = clients.iter().flat_map(|it| it.observed.iter().cloned()).collect();
        self.workload.judge(&observed).map_err(|what| Violation {
            invariant: "linearizable history",
            rule: "P17",
            what: format!("as clients saw it: {what}"),
        })
    }

    fn execute(&mut self, index: Index, request: &Request) -> Result<(), Violation> {
        let (node, encoded) = &self.replies[&index];
        let command =
            Command { is_read: request.kind() == Kind::Read, body: request.body().clone() };
        let reply = Answer::decode(encoded).map_or(&[][..], |answer| answer.reply);
        let Err(problem) = (self.model)(&command, reply) else { return Ok(()) };
        let what = format!(
            "{} at {index} was answered {reply:?} by {node}: {problem}",
            self.workload.describe(request.body())
        );
        broken("linearizable history", "P17", what)
    }
}
