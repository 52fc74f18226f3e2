//! Why a history is not linearizable, as short as it can be said.

use super::{
    Limits,
    problem::Problem,
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

/// How many steps one of the searches for a shorter beginning may make.
const STEPS_MAX: u64 = 1 << 22;

/// Finds it, after a search without success. If a limit is reached the beginning may not be the
/// shortest, but it is still one without an order.
pub(super) fn find<M: Model>(
    model: &M,
    search: &Search<'_, M>,
    limits: &Limits<'_>,
) -> Counterexample {
    let problem = &search.problem;
    let completions = problem.completions();
    let mut finder = Finder { model, problem, limits };
    // No beginning before the one that the search has come to is without an order; all that are as
    // long as one without an order are so too.
    let reached =
        search.dead_ends().and_then(|(op, _)| completions.iter().position(|it| *it == op));
    let mut shortest = completions.len() - 1;
    let mut from = reached.unwrap_or(0);
    let mut middle = from;
    while from < shortest {
        if finder.has_no_order(completions[middle]) {
            shortest = middle;
        } else {
            from = middle + 1;
        }
        middle = from + (shortest - from) / 2;
    }
    finder.explain(completions[shortest])
}

struct Finder<'a, M: Model> {
    model: &'a M,
    problem: &'a Problem<M>,
    limits: &'a Limits<'a>,
}

impl<M: Model> Finder<'_, M> {
    /// Whether it is known that what was known at the completion of an operation has no order.
    fn has_no_order(&mut self, last: u32) -> bool {
        let (prefix, _) = self.problem.prefix(self.model, last);
        self.run(&mut Search::new(self.model, prefix)) == Progress::Exhausted
    }

    fn run(&self, search: &mut Search<'_, M>) -> Progress {
        // The search that failed is still there, and takes its share.
        let bytes_max = self.limits.bytes_max / 2;
        while search.steps() < STEPS_MAX && !(self.limits.is_time_up)() {
            let steps = search.steps() + super::STEPS_BETWEEN_LOOKS;
            match search.run(steps, bytes_max) {
                Progress::Paused => {}
                progress => return progress,
            }
        }
        Progress::Paused
    }

    fn explain(&mut self, stuck: u32) -> Counterexample {
        let (prefix, numbers) = self.problem.prefix(self.model, stuck);
        let place = |op: u32| self.problem.ops[op as usize].place;
        let in_prefix: Vec<usize> = numbers.iter().map(|op| place(*op)).collect();
        let invoked_ns = self.problem.ops[stuck as usize].invoked_ns;
        let is_concurrent = |op: &u32| {
            let completed_ns = self.problem.ops[*op as usize].completed_ns;
            *op != stuck && completed_ns.is_none_or(|completed_ns| completed_ns >= invoked_ns)
        };
        let concurrent = numbers.iter().copied().filter(is_concurrent).map(place).collect();

        let mut search = Search::new(self.model, prefix).without_foresight();
        self.run(&mut search);
        let dead_ends = match search.dead_ends() {
            Some((op, dead_ends)) if numbers[op as usize] == stuck => dead_ends,
            // It did not come so far in its steps.
            _ => Vec::new(),
        };
        let orders = dead_ends.into_iter().map(|it| PartialOrder {
            operations: it.order.iter().map(|op| place(numbers[*op as usize])).collect(),
            state: it.state,
        });
        Counterexample {
            stuck: place(stuck),
            prefix: in_prefix,
            concurrent,
            orders: orders.collect(),
        }
    }
}
