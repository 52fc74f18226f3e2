//! Which operations are not ordered yet, and which of them can come next.

use super::{
    list::UndoList,
    problem::{Op, Problem},
};
use crate::{Model, model::Role};

/// The operations that are not ordered. They are ordered one by one, and given back in the opposite
/// order.
#[derive(Debug)]
pub(super) struct Pending {
    /// Invocations and completions of the operations that completed, in order of time.
    events: Vec<Event>,
    left: UndoList,
    /// Of each operation, where its invocation and completion are among the events.
    places: Vec<(u32, u32)>,
    /// Unknown operations that do the same, each in order of invocation: of those it is enough to try
    /// the first one that is left, since each may be done at any later time.
    classes: Vec<Class>,
    /// Of each unknown operation, its class.
    class_of: Vec<u32>,
    /// What observes, in order of completion.
    observers: Ranked,
    /// What overwrites, in order of invocation.
    overwriters: Ranked,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    op: u32,
    is_completion: bool,
}

#[derive(Debug)]
struct Class {
    ops: Vec<u32>,
    ordered: usize,
}

/// Some of the operations in an order of their own.
#[derive(Debug)]
struct Ranked {
    ops: Vec<u32>,
    left: UndoList,
    /// Of each operation of the problem; `NONE` if it is not one of these.
    ranks: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Pending {
    pub(super) fn new<M: Model>(problem: &Problem<M>) -> Self {
        let ops = || (0..).zip(&problem.ops);
        let mut events: Vec<(u64, Event)> = Vec::new();
        for (op, it) in ops() {
            let Some(completed_ns) = it.completed_ns else { continue };
            events.push((it.invoked_ns, Event { op, is_completion: false }));
            events.push((completed_ns, Event { op, is_completion: true }));
        }
        // What is invoked when another completes is concurrent with it.
        events.sort_by_key(|(time, event)| (*time, event.is_completion));
        let events: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
        let mut places = vec![(NONE, NONE); problem.ops.len()];
        for (place, event) in (0..).zip(&events) {
            let places = &mut places[event.op as usize];
            if event.is_completion { places.1 = place } else { places.0 = place }
        }

        let mut classes: Vec<Class> = Vec::new();
        let mut class_of = vec![NONE; problem.ops.len()];
        let mut class_of_action = vec![NONE; problem.actions.len()];
        for (op, it) in ops().filter(|(_, it)| it.completed_ns.is_none()) {
            let class = &mut class_of_action[it.action as usize];
            if *class == NONE {
                *class = classes.len() as u32;
                classes.push(Class { ops: Vec::new(), ordered: 0 });
            }
            classes[*class as usize].ops.push(op);
            class_of[op as usize] = *class;
        }

        let with_role = |role: Role| ops().filter(move |(op, _)| problem.role(*op) == role);
        let completing = |(op, it): (u32, &Op)| Some((it.completed_ns?, op));
        let mut observers: Vec<_> = with_role(Role::Observes).filter_map(completing).collect();
        observers.sort_unstable();
        let observers = observers.into_iter().map(|(_, op)| op).collect();
        let overwrites = |op: u32| matches!(problem.role(op), Role::Overwrites | Role::Replaces);
        let overwriters = (0..problem.ops.len() as u32).filter(|op| overwrites(*op)).collect();
        Self {
            left: UndoList::new(events.len()),
            events,
            places,
            classes,
            class_of,
            observers: Ranked::new(observers, problem.ops.len()),
            overwriters: Ranked::new(overwriters, problem.ops.len()),
        }
    }

    /// The operation that completes first, and the place of that event; none if all are ordered.
    pub(super) fn first_completion(&self) -> Option<(u32, u32)> {
        let completion = self.left.iter().find(|at| self.events[*at as usize].is_completion)?;
        Some((self.events[completion as usize].op, completion))
    }

    /// The operations that completed and can come next: those that were invoked before any of those
    /// that are left completed.
    pub(super) fn next_completed(&self) -> impl Iterator<Item = u32> {
        let events = self.left.iter().map(|at| self.events[at as usize]);
        events.take_while(|event| !event.is_completion).map(|event| event.op)
    }

    /// The unknown operations that may come next, if they were invoked by then.
    pub(super) fn next_unknown(&self) -> impl Iterator<Item = u32> {
        self.classes.iter().filter_map(|class| class.ops.get(class.ordered).copied())
    }

    /// The place at which an operation completes, to compare.
    pub(super) fn completion(&self, op: u32) -> u32 {
        self.places[op as usize].1
    }

    /// What observes and completes first.
    pub(super) fn first_observer(&self) -> Option<u32> {
        self.observers.first()
    }

    /// What overwrites and was invoked first.
    pub(super) fn first_overwriter(&self) -> Option<u32> {
        self.overwriters.first()
    }

    /// Takes an operation out: it is ordered next.
    pub(super) fn order(&mut self, op: u32) {
        match self.class_of[op as usize] {
            NONE => {
                let (invocation, completion) = self.places[op as usize];
                self.left.take(invocation);
                self.left.take(completion);
            }
            class => self.classes[class as usize].ordered += 1,
        }
        self.observers.take(op);
        self.overwriters.take(op);
    }

    /// Gives back the operation that was ordered last.
    pub(super) fn give_back(&mut self, op: u32) {
        match self.class_of[op as usize] {
            NONE => {
                let (invocation, completion) = self.places[op as usize];
                self.left.put_back(completion);
                self.left.put_back(invocation);
            }
            class => self.classes[class as usize].ordered -= 1,
        }
        self.observers.put_back(op);
        self.overwriters.put_back(op);
    }

    pub(super) fn bytes(&self) -> usize {
        let ranked =
            |it: &Ranked| it.left.bytes() + (it.ops.len() + it.ranks.len()) * size_of::<u32>();
        self.events.capacity() * size_of::<Event>()
            + self.left.bytes()
            + self.places.len() * size_of::<(u32, u32)>()
            + self.classes.capacity() * size_of::<Class>()
            + self.class_of.len() * 2 * size_of::<u32>()
            + ranked(&self.observers)
            + ranked(&self.overwriters)
    }
}

impl Ranked {
    fn new(ops: Vec<u32>, count: usize) -> Self {
        let mut ranks = vec![NONE; count];
        for (rank, op) in (0..).zip(&ops) {
            ranks[*op as usize] = rank;
        }
        Self { left: UndoList::new(ops.len()), ops, ranks }
    }

    fn first(&self) -> Option<u32> {
        Some(self.ops[self.left.first()? as usize])
    }

    fn take(&mut self, op: u32) {
        let rank = self.ranks[op as usize];
        if rank != NONE {
            self.left.take(rank);
        }
    }

    fn put_back(&mut self, op: u32) {
        let rank = self.ranks[op as usize];
        if rank != NONE {
            self.left.put_back(rank);
        }
    }
}
