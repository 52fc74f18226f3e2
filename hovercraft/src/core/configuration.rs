//! Which configuration is in force (P34, P39).

use std::sync::Arc;

use crate::entry::{Configuration, Incarnation, Index, NodeId};

/// The configurations in the log, and the one before it.
#[derive(Debug)]
pub(crate) struct Configurations {
    /// The one before the log: of `init`, or of the latest snapshot or trim.
    base: Arc<Configuration>,
    /// (index, configuration), ascending.
    in_log: Vec<(Index, Arc<Configuration>)>,
}

impl Configurations {
    pub(crate) fn new(base: Arc<Configuration>) -> Self {
        Self { base, in_log: Vec::new() }
    }

    /// A configuration takes effect when it is appended.
    pub(crate) fn append(&mut self, index: Index, configuration: Arc<Configuration>) {
        self.in_log.push((index, configuration));
    }

    /// The entries at or above `from` are gone.
    pub(crate) fn truncate(&mut self, from: Index) {
        self.in_log.retain(|(index, _)| *index < from || planted!("configuration-not-truncated"));
    }

    /// The entries at or below `to` are in a snapshot.
    pub(crate) fn trim(&mut self, to: Index) {
        while self.in_log.first().is_some_and(|(index, _)| *index <= to) {
            let trimmed = self.in_log.remove(0).1;
            if !planted!("configuration-lost-by-trim") {
                self.base = trimmed;
            }
        }
    }

    /// Starts again from the configuration of a snapshot.
    pub(crate) fn reset(&mut self, base: Arc<Configuration>) {
        let is_kept = planted!("configuration-kept-at-install");
        let base = if is_kept { Arc::clone(self.current()) } else { base };
        *self = Self::new(base);
    }

    /// The one in force: the last in the log.
    pub(crate) fn current(&self) -> &Arc<Configuration> {
        self.in_log.last().map_or(&self.base, |(_, configuration)| configuration)
    }

    /// The one that was in force at `index`, which is not below what was trimmed.
    pub(crate) fn at(&self, index: Index) -> &Arc<Configuration> {
        let before = self.in_log.iter().rev().find(|(at, _)| *at <= index);
        before.map_or(&self.base, |(_, configuration)| configuration)
    }

    /// The index of the one in force; 0 if it stands before the log.
    pub(crate) fn current_index(&self) -> Index {
        self.in_log.last().map_or(0, |(index, _)| *index)
    }

    /// Whether the configuration in force names this life of this replica: only then may it vote,
    /// be a candidate, and be counted (P37, P39).
    pub(crate) fn names(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.current().member(node).is_some_and(|member| member.incarnation == incarnation)
    }
}
