//! The search for an order of one key's operations: Wing and Gong's, with Lowe's cache (Testing for
//! linearizability, 2017) and six ways to search less. Each is right because a valid order that it
//! leaves out can be changed into a valid one that it does not:
//!
//! - An operation that changes nothing in any state, and can come next, comes next: in any order it can
//!   be moved to the front.
//! - What replaces a state, where nothing needs the one that is there nor the one that it leaves, comes
//!   next: in any order it can be moved to the front.
//! - Of operations that do the same and can come next, the one that completes first is tried: in any
//!   order the two can change places. Unknown ones complete last.
//! - A place that was seen with fewer unknown operations done leads at least as far (see `visited`).
//! - An unknown operation is not followed by one that leaves the same without it: in any order the
//!   unknown one can be left out.
//! - A state is given up if something has to be seen that it does not lead to, and nothing is left that
//!   would overwrite it with what does, or not in time (see [`Model::leads_to`]).

use super::{
    counterexample::PartialOrder,
    locks::Locks,
    pending::Pending,
    problem::Problem,
    states::{Interned, bytes_to_grow},
    visited::{Ordered, Visited},
};
use crate::{
    Model,
    model::{Role, Step},
};

/// A search that can be interrupted.
#[derive(Debug)]
pub(super) struct Search<'m, M: Model> {
    model: &'m M,
    pub(super) problem: Problem<M>,
    pending: Pending,
    locks: Locks,
    states: Interned<M::State>,
    visited: Visited,
    /// Which unknown operations are ordered, as bits.
    unknown: Vec<u64>,
    /// Of each operation, its bit; `NONE` if its outcome is known.
    unknown_bits: Vec<u32>,
    /// From the beginning to where the search is.
    frames: Vec<Frame>,
    /// The candidates of all frames.
    candidates: Vec<u32>,
    /// Every place that was ever reached: the one before it, and the operation between.
    tree: Vec<(u32, u32)>,
    /// Of each action, the last place at which it was a candidate.
    tried: Vec<u32>,
    furthest: Furthest,
    /// Whether states are left that what observes next cannot see.
    has_foresight: bool,
    steps: u64,
}

#[derive(Debug)]
struct Frame {
    /// What was ordered to come here; `NONE` in the beginning.
    op: u32,
    /// Where in the tree.
    node: u32,
    state: u32,
    /// The action that has overwritten what was there last; `NONE` if nothing was.
    source: u32,
    ordered: Ordered,
    /// The candidates that were not tried yet are from here to the end of those of the frame.
    next: usize,
    end: usize,
}

/// How far any order came.
#[derive(Debug, Default)]
struct Furthest {
    /// The operation that could not be ordered before its completion, and when that was.
    op: Option<(u32, u32)>,
    /// Orders that came there.
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    node: u32,
    state: u32,
    depth: usize,
}

/// Where a search stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is an order.
    Found,
    /// There is none.
    Exhausted,
    /// The steps are used up.
    Paused,
    /// The memory is.
    OutOfMemory,
}

const NONE: u32 = u32::MAX;

/// How many orders are kept to be shown.
const PLACES_MAX: usize = 8;

impl<'m, M: Model> Search<'m, M> {
    pub(super) fn new(model: &'m M, problem: Problem<M>) -> Self {
        let mut unknown_bits = vec![NONE; problem.ops.len()];
        let mut unknown = 0;
        for (bit, op) in unknown_bits.iter_mut().zip(&problem.ops) {
            if op.completed_ns.is_none() {
                *bit = unknown;
                unknown += 1;
            }
        }
        let visited = Visited::new(unknown as usize);
        let mut search = Self {
            model,
            pending: Pending::new(&problem),
            locks: Locks::new(model, &problem),
            states: Interned::new(),
            visited,
            unknown: vec![0; (unknown as usize).div_ceil(64)],
            unknown_bits,
            frames: Vec::new(),
            candidates: Vec::new(),
            tree: Vec::new(),
            tried: vec![NONE; problem.actions.len()],
            furthest: Furthest::default(),
            has_foresight: true,
            steps: 0,
            problem,
        };
        let state = search.states.number(model.initial(), |state| model.heap_bytes(state));
        search.enter(NONE, NONE, (state, NONE), Ordered::default());
        search
    }

    /// Lets the search go as far as orders come, whatever is observed later: so that those that come
    /// furthest are really that.
    pub(super) fn without_foresight(self) -> Self {
        Self { has_foresight: false, ..self }
    }

    /// Goes on until `steps_max` steps were made in all, or `bytes_max` bytes are in use.
    pub(super) fn run(&mut self, steps_max: u64, bytes_max: usize) -> Progress {
        loop {
            if self.pending.first_completion().is_none() {
                return Progress::Found;
            }
            if self.steps() >= steps_max {
                return Progress::Paused;
            }
            if self.bytes() > bytes_max {
                return Progress::OutOfMemory;
            }
            let Some(frame) = self.frames.last_mut() else { return Progress::Exhausted };
            if frame.next == frame.end {
                self.leave();
                continue;
            }
            let op = self.candidates[frame.next];
            frame.next += 1;
            self.try_next(op);
        }
    }

    /// The steps that were made.
    pub(super) fn steps(&self) -> u64 {
        self.steps + self.visited.compared
    }

    /// Orders an operation next, if that leads to a new place.
    fn try_next(&mut self, op: u32) {
        self.steps += 1;
        let frame = self.frames.last().expect("a candidate is of a frame");
        let (node, before, ordered) = (frame.node, frame.state, frame.ordered);
        let is_overwritten = matches!(self.problem.role(op), Role::Overwrites | Role::Replaces);
        let source =
            if is_overwritten { self.problem.ops[op as usize].action } else { frame.source };
        let is_unknown = self.unknown_bits[op as usize] != NONE;
        let action = self.problem.actions.get(self.problem.ops[op as usize].action);
        let step = self.model.step(self.states.get(before), action);
        if self.is_as_well_without_last(action, self.states.get(before), &step) {
            return;
        }
        let state = match step {
            Step::Refused => return,
            // What changes nothing and may as well not have been done.
            Step::Unchanged if is_unknown => return,
            Step::Unchanged => before,
            Step::Becomes(state) => self.states.number(state, |state| self.model.heap_bytes(state)),
        };
        self.order_next(op);
        let ordered = if is_unknown { ordered } else { ordered.toggle(op) };
        if self.has_foresight && self.is_hopeless(state)
            || !self.visited.insert(ordered, state, &self.unknown)
        {
            self.give_back(op);
            return;
        }
        self.enter(op, node, (state, source), ordered);
    }

    /// Whether the operation before is unknown, and an action leaves the same without it.
    fn is_as_well_without_last(
        &self,
        action: &M::Action,
        before: &M::State,
        step: &Step<M::State>,
    ) -> bool {
        let [.., parent, last] = &*self.frames else { return false };
        if last.op == NONE || self.unknown_bits[last.op as usize] == NONE {
            return false;
        }
        let without = self.states.get(parent.state);
        let after = match step {
            Step::Refused => return false,
            Step::Unchanged => before,
            Step::Becomes(after) => after,
        };
        match &self.model.step(without, action) {
            Step::Refused => false,
            Step::Unchanged => without == after,
            Step::Becomes(after_without) => after_without == after,
        }
    }

    /// Whether something that must be seen cannot be, from a state on.
    fn is_hopeless(&self, state: u32) -> bool {
        let leads_to = |action: u32| {
            self.model.leads_to(self.states.get(state), self.problem.actions.get(action))
        };
        if !self.locks.locked().all(leads_to) {
            return true;
        }
        let Some(observer) = self.pending.first_observer() else { return false };
        let observer = &self.problem.ops[observer as usize];
        let is_overwritten = self.pending.first_overwriter().is_some_and(|overwriter| {
            let invoked_ns = self.problem.ops[overwriter as usize].invoked_ns;
            observer.completed_ns.is_none_or(|completed_ns| invoked_ns <= completed_ns)
        });
        !is_overwritten && !leads_to(observer.action)
    }

    /// Comes to a new place, and finds out what can come next.
    fn enter(&mut self, op: u32, from: u32, (state, source): (u32, u32), ordered: Ordered) {
        // A search that comes to so many runs out of memory first.
        let node = u32::try_from(self.tree.len()).expect("fewer than 2^32 places");
        self.tree.push((from, op));
        let next = self.candidates.len();
        self.find_candidates(node, state, source);
        let end = self.candidates.len();
        self.frames.push(Frame { op, node, state, source, ordered, next, end });
        let place = Place { node, state, depth: self.frames.len() };
        if let Some(completion) = self.pending.first_completion() {
            self.furthest.note(completion, place);
        }
    }

    fn find_candidates(&mut self, node: u32, state: u32, source: u32) {
        let Self { model, problem, pending, locks, states, candidates, tried, .. } = self;
        let is_unneeded = source != NONE && locks.is_unneeded(source);
        let state = states.get(state);
        let start = candidates.len();
        candidates.extend(pending.next_completed());
        candidates[start..].sort_unstable_by_key(|op| pending.completion(*op));
        let mut kept = start;
        for at in start..candidates.len() {
            let op = candidates[at];
            let action = problem.ops[op as usize].action;
            if std::mem::replace(&mut tried[action as usize], node) == node {
                continue;
            }
            match model.step(state, problem.actions.get(action)) {
                Step::Refused => {}
                // Only later, or by nobody, can it matter which of the two comes first.
                Step::Unchanged | Step::Becomes(_)
                    if problem.role(op) == Role::Observes
                        || is_unneeded
                            && problem.role(op) == Role::Replaces
                            && locks.is_unneeded(action) =>
                {
                    candidates.truncate(start);
                    candidates.push(op);
                    return;
                }
                Step::Unchanged | Step::Becomes(_) => {
                    candidates[kept] = op;
                    kept += 1;
                }
            }
        }
        candidates.truncate(kept);
        let Some((first, _)) = pending.first_completion() else { return };
        let completed_ns = problem.ops[first as usize].completed_ns;
        for op in pending.next_unknown() {
            let it = &problem.ops[op as usize];
            let is_invoked = completed_ns.is_some_and(|completed_ns| it.invoked_ns <= completed_ns);
            if is_invoked && tried[it.action as usize] != node {
                candidates.push(op);
            }
        }
    }

    /// Goes back to the place before.
    fn leave(&mut self) {
        let frame = self.frames.pop().expect("the caller has seen it");
        let start = self.frames.last().map_or(0, |frame| frame.end);
        self.candidates.truncate(start);
        if frame.op != NONE {
            self.give_back(frame.op);
        }
    }

    fn order_next(&mut self, op: u32) {
        let it = self.problem.ops[op as usize];
        self.pending.order(op);
        self.locks.order(it.action, it.completed_ns.is_some());
        self.flip_unknown(op);
    }

    fn give_back(&mut self, op: u32) {
        let it = self.problem.ops[op as usize];
        self.pending.give_back(op);
        self.locks.give_back(it.action, it.completed_ns.is_some());
        self.flip_unknown(op);
    }

    fn flip_unknown(&mut self, op: u32) {
        let bit = self.unknown_bits[op as usize];
        if bit != NONE {
            self.unknown[bit as usize / 64] ^= 1 << (bit % 64);
        }
    }

    /// The order in which the search is; after success that which was found.
    pub(super) fn order(&self) -> PartialOrder {
        let state = self.frames.last().map_or(0, |frame| frame.state);
        self.told(self.frames.iter().skip(1).map(|frame| frame.op), state)
    }

    /// The operation that no order could place before its completion, and the orders that came there.
    pub(super) fn dead_ends(&self) -> Option<(u32, Vec<PartialOrder>)> {
        let (op, _) = self.furthest.op?;
        let mut places = self.furthest.places.clone();
        places.sort_by_key(|place| (std::cmp::Reverse(place.depth), place.node));
        let order = |place: &Place| self.told(self.way_to(place.node).into_iter(), place.state);
        Some((op, places.iter().map(order).collect()))
    }

    fn told(&self, order: impl Iterator<Item = u32>, state: u32) -> PartialOrder {
        PartialOrder {
            operations: order.map(|op| self.problem.ops[op as usize].place).collect(),
            state: self.model.describe(self.states.get(state)),
        }
    }

    fn way_to(&self, mut node: u32) -> Vec<u32> {
        let mut way = Vec::new();
        while let (before, op) = self.tree[node as usize]
            && op != NONE
        {
            way.push(op);
            node = before;
        }
        way.reverse();
        way
    }

    /// How many bytes it takes, with what it takes to grow.
    pub(super) fn bytes(&self) -> usize {
        self.problem.bytes()
            + self.pending.bytes()
            + self.locks.bytes()
            + self.states.bytes()
            + self.visited.bytes()
            + bytes_to_grow::<Frame>(self.frames.len(), self.frames.capacity())
            + bytes_to_grow::<u32>(self.candidates.len(), self.candidates.capacity())
            + bytes_to_grow::<(u32, u32)>(self.tree.len(), self.tree.capacity())
            + (self.tried.len() + self.unknown_bits.len()) * size_of::<u32>()
    }
}

impl Furthest {
    fn note(&mut self, (op, completion): (u32, u32), place: Place) {
        match self.op {
            Some((_, furthest)) if completion < furthest => return,
            Some((_, furthest)) if completion == furthest => {}
            _ => {
                self.op = Some((op, completion));
                self.places.clear();
            }
        }
        // One for each state, the longest; of more states than are kept, those with the longest.
        let same = self.places.iter().position(|it| it.state == place.state);
        let shortest = || (0..PLACES_MAX).min_by_key(|at| self.places[*at].depth);
        match same.or_else(|| (self.places.len() == PLACES_MAX).then(shortest).flatten()) {
            None => self.places.push(place),
            Some(at) if self.places[at].depth < place.depth => self.places[at] = place,
            Some(_) => {}
        }
    }
}
