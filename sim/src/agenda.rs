//! What will happen, in order of time.

use std::{cmp::Reverse, collections::BinaryHeap};

use r2p2::Time;

/// A queue ordered by time; what is due at one time comes in the order in which it was added.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    /// Events are large, and stay where they are while the heap is sorted.
    heap: BinaryHeap<Reverse<Key>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    added: u64,
}

/// When, the how many-th that was added, and its slot, from the highest bits to the lowest: one
/// number is compared faster than three.
type Key = u128;

const SLOT_BITS: u32 = 24;

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), added: 0 }
    }

    pub(crate) fn add(&mut self, at: Time, event: E) {
        self.added += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() as u32 - 1
            }
        };
        assert!(slot < 1 << SLOT_BITS, "millions of events at once are a loop");
        let place = self.added << SLOT_BITS | u64::from(slot);
        self.heap.push(Reverse(Key::from(at.as_nanos()) << 64 | Key::from(place)));
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse(key)| time(*key))
    }

    pub(crate) fn next(&mut self) -> Option<(Time, E)> {
        let Reverse(key) = self.heap.pop()?;
        let slot = key as u32 & ((1 << SLOT_BITS) - 1);
        let event = self.slots[slot as usize].take().expect("what is in the heap has its slot");
        self.free.push(slot);
        Some((time(key), event))
    }
}

fn time(key: Key) -> Time {
    Time::from_nanos((key >> 64) as u64)
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
