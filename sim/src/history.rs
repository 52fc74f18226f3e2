//! What the invariants know of a run: every entry that was ever in a log, what was committed, and
//! what each log looked like after its replica's last turn.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use foldhash::fast::FixedState;
use hovercraft::{Configuration, Entry, Index, NodeId, Payload, Term, core::Core};

/// An entry as it was when it was first seen in a log.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) index: Index,
    pub(crate) entry: Entry,
    /// Of the entry before it; none if that was not in the log any more.
    pub(crate) previous_term: Option<Term>,
}

/// All entries, by (index, term), and those that were committed.
#[derive(Debug)]
pub(crate) struct History {
    entries: HashMap<(Index, Term), Arc<Recorded>, FixedState>,
    /// Position 0 is index 1. With the term of whoever knew of it first: it was committed in that term, or
    /// in an earlier one.
    committed: Vec<(Arc<Recorded>, Term)>,
    /// The last one that was committed.
    pub(crate) configuration: Arc<Configuration>,
    /// All that were committed, by index; the first one, which `init` wrote, has index 0.
    configurations: Vec<(Index, Arc<Configuration>)>,
}

impl History {
    pub(crate) fn new(configuration: Arc<Configuration>) -> Self {
        let configurations = vec![(0, Arc::clone(&configuration))];
        Self { entries: HashMap::default(), committed: Vec::new(), configuration, configurations }
    }

    pub(crate) fn entry(&self, index: Index, term: Term) -> Option<&Arc<Recorded>> {
        self.entries.get(&(index, term))
    }

    pub(crate) fn record(&mut self, recorded: Recorded) {
        let place = (recorded.index, recorded.entry.term);
        self.entries.insert(place, Arc::new(recorded));
    }

    /// The entry that is committed at an index.
    pub(crate) fn committed(&self, index: Index) -> Option<&Arc<Recorded>> {
        self.committed.get(place(index)?).map(|(recorded, _)| recorded)
    }

    /// Whether the entry at an index was committed before a term.
    pub(crate) fn is_committed_before(&self, index: Index, term: Term) -> bool {
        let place = place(index);
        place.and_then(|at| self.committed.get(at)).is_some_and(|(_, known_in)| *known_in < term)
    }

    /// Everything that is committed, in order.
    pub(crate) fn all_committed(&self) -> impl Iterator<Item = &Recorded> {
        self.committed.iter().map(|(recorded, _)| &**recorded)
    }

    /// The last configuration that was committed up to an index, and its index.
    pub(crate) fn configuration_at(&self, index: Index) -> (Index, &Arc<Configuration>) {
        let count = self.configurations.partition_point(|(at, _)| *at <= index);
        let (at, configuration) = &self.configurations[count - 1];
        (*at, configuration)
    }

    pub(crate) fn committed_last(&self) -> Index {
        self.committed.len() as Index
    }

    /// The next index is committed, as somebody in a term knows.
    pub(crate) fn commit(&mut self, recorded: Arc<Recorded>, known_in: Term) {
        assert_eq!(recorded.index, self.committed_last() + 1);
        if let Payload::Configuration(configuration) = &recorded.entry.payload {
            self.configuration = Arc::clone(configuration);
            self.configurations.push((recorded.index, Arc::clone(configuration)));
        }
        self.committed.push((recorded, known_in));
    }
}

/// Of an index, in a list that begins with 1.
fn place(index: Index) -> Option<usize> {
    usize::try_from(index.checked_sub(1)?).ok()
}

/// What a replica's log looked like after its last turn.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) first: Index,
    terms: VecDeque<Term>,
    /// For each replica by position, the indices of the entries that it is to answer.
    queues: Vec<VecDeque<Index>>,
    configurations: VecDeque<(Index, Arc<Configuration>)>,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    /// The highest index that it has applied in this run, also if its service went back since.
    pub(crate) applied_max: Index,
}

/// What a turn did to a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// How many entries went from the end.
    pub(crate) truncated: u64,
    /// The indices that came at the end.
    pub(crate) appended: Range<Index>,
}

impl Mirror {
    /// Of a replica that has just started.
    pub(crate) fn new(replicas: usize, core: &Core) -> Self {
        let (first, _) = core.log_bounds();
        Self {
            first,
            terms: VecDeque::new(),
            queues: vec![VecDeque::new(); replicas],
            configurations: VecDeque::new(),
            commit: core.commit_index(),
            applied: core.applied_index(),
            applied_max: core.applied_index(),
        }
    }

    pub(crate) fn last(&self) -> Index {
        self.first + self.terms.len() as Index - 1
    }

    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        self.terms.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// How many entries above `applied` the replica at a position is to answer.
    pub(crate) fn queue(&self, position: usize, applied: Index) -> usize {
        let queue = &self.queues[position];
        queue.len() - queue.partition_point(|index| *index <= applied)
    }

    /// The last configuration in the log, and its index.
    pub(crate) fn configuration(&self) -> Option<(Index, &Arc<Configuration>)> {
        self.configurations.back().map(|(index, configuration)| (*index, configuration))
    }

    /// Takes over what the log looks like now.
    pub(crate) fn update(&mut self, core: &Core) -> Change {
        let (first, last) = core.log_bounds();
        let mut agreed = self.last().min(last);
        while agreed >= self.first.max(first) && self.term(agreed) != term_in(core, agreed) {
            agreed -= 1;
        }
        // A log that begins behind this one is what a snapshot left.
        let agreed = agreed.max(first - 1);
        let truncated = self.last().saturating_sub(agreed);
        self.truncate(agreed);
        self.trim(first);
        for index in agreed + 1..=last {
            self.push(core, index);
        }
        Change { truncated, appended: agreed + 1..last + 1 }
    }

    fn truncate(&mut self, last: Index) {
        while self.last() > last && self.terms.pop_back().is_some() {}
        while self.configurations.back().is_some_and(|(index, _)| *index > last) {
            self.configurations.pop_back();
        }
        for queue in &mut self.queues {
            while queue.back().is_some_and(|index| *index > last) {
                queue.pop_back();
            }
        }
    }

    fn trim(&mut self, first: Index) {
        while self.first < first && self.terms.pop_front().is_some() {
            self.first += 1;
        }
        if self.terms.is_empty() {
            self.first = first;
        }
        while self.configurations.front().is_some_and(|(index, _)| *index < first) {
            self.configurations.pop_front();
        }
        for queue in &mut self.queues {
            while queue.front().is_some_and(|index| *index < first) {
                queue.pop_front();
            }
        }
    }

    fn push(&mut self, core: &Core, index: Index) {
        let entry = core.log_entry(index).expect("the bounds of a log name what is in it");
        self.terms.push_back(entry.term);
        if let Payload::Configuration(configuration) = &entry.payload {
            self.configurations.push_back((index, Arc::clone(configuration)));
        }
        if let Some(queue) = entry.replier().and_then(|node| self.queues.get_mut(position(node))) {
            queue.push_back(index);
        }
    }
}

pub(crate) fn term_in(core: &Core, index: Index) -> Option<Term> {
    core.log_entry(index).map(|entry| entry.term)
}

/// The position of a replica among all: they are numbered from 1.
pub(crate) fn position(node: NodeId) -> usize {
    usize::from(node.0) - 1
}
