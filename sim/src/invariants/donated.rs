//! What a donor sends is committed (P9, P36): entries in bulk, the entry that they follow, and the
//! entry that a snapshot stands for, with the configuration that was in force there.

use std::iter;

use hovercraft::{
    Index, NodeId, Term,
    messages::{Envelope, Message},
};

use super::{Violation, broken};
use crate::history::History;

const NAME: &str = "donors send what is committed";

pub(super) fn check(history: &History, node: NodeId, envelope: &Envelope) -> Result<(), Violation> {
    if let Message::Entries { after, after_term, entries, .. } = &envelope.message {
        let terms = iter::once(*after_term).chain(entries.iter().map(|entry| entry.term));
        for (index, term) in (*after..).zip(terms) {
            check_entry(history, node, "in bulk", (index, term))?;
        }
    }
    if let Message::SnapshotPart { meta, .. } = &envelope.message {
        check_entry(history, node, "a snapshot of", (meta.index, meta.term))?;
        let (_, configuration) = history.configuration_at(meta.index);
        if meta.configuration != **configuration {
            let what = format!(
                "{node} sends a snapshot of {} with configuration {}, where {} was in force",
                meta.index, meta.configuration.id, configuration.id
            );
            return broken(NAME, "P36, P39", what);
        }
    }
    Ok(())
}

fn check_entry(
    history: &History,
    node: NodeId,
    how: &str,
    (index, term): (Index, Term),
) -> Result<(), Violation> {
    let committed = history.committed(index).map(|recorded| recorded.entry.term);
    if index == 0 || committed == Some(term) {
        return Ok(());
    }
    let what = format!("{node} sends {how} {index}@{term}, where {committed:?} is committed");
    broken(NAME, "P9, P36", what)
}
