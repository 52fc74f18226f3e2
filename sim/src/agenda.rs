//! What will happen, in order of time.

use std::{cmp::Ordering, collections::BinaryHeap};

use r2p2::Time;

/// A queue ordered by time; what is due at one time comes in the order in which it was added.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    heap: BinaryHeap<Item<E>>,
    added: u64,
}

#[derive(Debug)]
struct Item<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), added: 0 }
    }

    pub(crate) fn add(&mut self, at: Time, event: E) {
        self.added += 1;
        self.heap.push(Item { at, number: self.added, event });
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|item| item.at)
    }

    pub(crate) fn next(&mut self) -> Option<(Time, E)> {
        self.heap.pop().map(|item| (item.at, item.event))
    }
}

impl<E> Item<E> {
    fn rank(&self) -> (Time, u64) {
        (self.at, self.number)
    }
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl<E> Eq for Item<E> {}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Item<E> {
    /// Turned around: the heap hands out its greatest item, and the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        other.rank().cmp(&self.rank())
    }
}
