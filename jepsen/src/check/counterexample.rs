//! Why a history is not linearizable, as short as it can be said.

use std::cell::Cell;

use super::{
    Limits,
    problem::{Op, Problem},
    search::{Progress, Search},
};
use crate::Model;

/// The shortest beginning of a key's operations that has no order. Operations are told by their places
/// in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterexample {
    /// The operation with whose completion the beginning ends: up to there everything can be
    /// explained, and this cannot.
    pub stuck: usize,
    /// The operations that had begun by then, in order of invocation.
    pub prefix: Vec<usize>,
    /// Those of them that were concurrent with it.
    pub concurrent: Vec<usize>,
    /// Orders of everything else that had completed by then, the longest first, each with another
    /// state in the end, in which the stuck operation is not possible; not more than a few.
    pub orders: Vec<PartialOrder>,
}

/// An order of some operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialOrder {
    /// The operations.
    pub operations: Vec<usize>,
    /// What state they leave.
    pub state: String,
}

/// How many steps more than the search that failed each of those for a shorter beginning, and for its
/// orders, may make.
const STEPS_MAX: u64 = 1 << 16;

/// Finds it, after a search without success. If a limit is reached the beginning may not be the
/// shortest, but it is still one without an order.
pub(super) fn find<M: Model>(
    model: &M,
    search: &Search<'_, M>,
    limits: &Limits<'_>,
) -> Counterexample {
    let problem = &search.problem;
    let completions = problem.completions();
    // A shorter beginning is no harder than all of it.
    let steps_max = search.steps() + STEPS_MAX;
    let steps_left = Cell::new(3 * search.steps() + 16 * STEPS_MAX);
    let finder = Finder { model, problem, limits, steps_max, steps_left };
    // No beginning before the one that the search has come to is without an order; all that are longer
    // than one without an order are so too. So the shortest is mostly near, and is found by steps that
    // grow, and then by halves.
    let reached =
        search.dead_ends().and_then(|(op, _)| completions.iter().position(|it| *it == op));
    let mut shortest = completions.len() - 1;
    let mut from = reached.unwrap_or(0);
    let mut stride = 1;
    while from + stride <= shortest {
        let at = from + stride - 1;
        if finder.has_no_order(completions[at]) {
            shortest = at;
        } else {
            from = at + 1;
            stride *= 2;
        }
    }
    while from < shortest {
        let middle = from + (shortest - from) / 2;
        if finder.has_no_order(completions[middle]) {
            shortest = middle;
        } else {
            from = middle + 1;
        }
    }
    let before = shortest.checked_sub(1).map(|before| completions[before]);
    finder.explain(completions[shortest], before)
}

struct Finder<'a, M: Model> {
    model: &'a M,
    problem: &'a Problem<M>,
    limits: &'a Limits<'a>,
    /// Of each search.
    steps_max: u64,
    /// Of all searches for a shorter beginning.
    steps_left: Cell<u64>,
}

impl<M: Model> Finder<'_, M> {
    /// Whether it is known that what was known at the completion of an operation has no order.
    fn has_no_order(&self, last: u32) -> bool {
        let steps_max = self.steps_max.min(self.steps_left.get());
        if steps_max == 0 {
            return false;
        }
        let mut search = Search::new(self.model, self.problem.prefix(self.model, last));
        let progress = self.run(&mut search, steps_max);
        self.steps_left.set(self.steps_left.get().saturating_sub(search.steps()));
        progress == Progress::Exhausted
    }

    fn explain(&self, stuck: u32, before: Option<u32>) -> Counterexample {
        let prefix = self.problem.prefix(self.model, stuck);
        let stuck = self.problem.ops[stuck as usize];
        // What had not completed by then has no end in the prefix.
        let is_concurrent = |op: &&Op| {
            let is_before = op.completed_ns.is_some_and(|it| it < stuck.invoked_ns);
            op.place != stuck.place && !is_before
        };
        Counterexample {
            stuck: stuck.place,
            prefix: prefix.ops.iter().map(|op| op.place).collect(),
            concurrent: prefix.ops.iter().filter(is_concurrent).map(|op| op.place).collect(),
            orders: self.orders(prefix, stuck.place, before),
        }
    }

    /// Orders of what had completed before the stuck operation did.
    fn orders(&self, prefix: Problem<M>, stuck: usize, before: Option<u32>) -> Vec<PartialOrder> {
        let mut search = Search::new(self.model, prefix).without_foresight();
        self.run(&mut search, self.steps_max);
        if let Some((op, orders)) = search.dead_ends()
            && search.problem.ops[op as usize].place == stuck
        {
            return orders;
        }
        // It did not come so far in its steps. With foresight it comes there by one way at least, if the
        // stuck operation is not there to be foreseen.
        let Some(before) = before else { return Vec::new() };
        let mut prefix = self.problem.prefix(self.model, before);
        prefix.ops.retain(|op| op.place != stuck);
        let mut search = Search::new(self.model, prefix);
        let is_found = self.run(&mut search, self.steps_max) == Progress::Found;
        is_found.then(|| search.order()).into_iter().collect()
    }

    fn run(&self, search: &mut Search<'_, M>, steps_max: u64) -> Progress {
        // The search that failed is still there, and takes its share.
        let bytes_max = self.limits.bytes_max / 2;
        while search.steps() < steps_max && !(self.limits.is_time_up)() {
            let steps = search.steps() + super::STEPS_BETWEEN_LOOKS;
            match search.run(steps, bytes_max) {
                Progress::Paused => {}
                progress => return progress,
            }
        }
        Progress::Paused
    }
}
