//! What will happen, in order of time.

use std::{cmp::Reverse, collections::BinaryHeap};

use r2p2::Time;

/// A queue ordered by time; what is due at one time comes in the order in which it was added.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    /// (when, the how many-th that was added, its slot): events are large, and stay where they are
    /// while the heap is sorted.
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    slots: Vec<Option<E>>,
    free: Vec<usize>,
    added: u64,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), added: 0 }
    }

    pub(crate) fn add(&mut self, at: Time, event: E) {
        self.added += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() - 1
            }
        };
        self.heap.push(Reverse((at, self.added, slot)));
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn next(&mut self) -> Option<(Time, E)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        let event = self.slots[slot].take().expect("what is in the heap has its slot");
        self.free.push(slot);
        Some((at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_when_they_were_added() {
        let mut agenda = Agenda::new();
        for (at, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            agenda.add(Time::from_nanos(at), event);
        }
        assert_eq!(agenda.next().map(|(_, event)| event), Some('a'));
        agenda.add(Time::from_nanos(1), 'x');
        agenda.add(Time::from_nanos(2), 'e');
        let rest: String = std::iter::from_fn(|| agenda.next().map(|(_, event)| event)).collect();
        assert_eq!(rest, "bxcde");
    }
}
