//! When calls run out of time.

use std::{cmp::Reverse, collections::BinaryHeap};

use r2p2::Time;

/// Deadlines of things that mostly end before them, and then are left here until there are many.
#[derive(Debug)]
pub(super) struct Deadlines<T> {
    heap: BinaryHeap<Reverse<(Time, T)>>,
}

/// So many may be left over, beside as many as there are live ones.
const LEFTOVERS_MAX: usize = 1024;

impl<T: Ord> Deadlines<T> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Notes a deadline. `live_count` and `is_live` say which of the noted ones still matter, so
    /// that others can be thrown away once they are the most.
    pub(super) fn push(
        &mut self,
        deadline: Time,
        of: T,
        live_count: usize,
        is_live: impl Fn(&T) -> bool,
    ) {
        if self.heap.len() > 2 * live_count + LEFTOVERS_MAX {
            self.heap.retain(|Reverse((_, of))| is_live(of));
        }
        self.heap.push(Reverse((deadline, of)));
    }

    /// Removes one that has passed.
    pub(super) fn pop(&mut self, now: Time) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, of))| of)
    }

    /// The next deadline; it may be that of something that has ended.
    pub(super) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((deadline, _))| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_pass_in_order_and_leftovers_are_thrown_away() {
        let mut deadlines = Deadlines::new();
        for number in 0..100_000_u64 {
            deadlines.push(Time::from_nanos(number), number, 1, |&live| live == 0);
        }
        assert!(deadlines.heap.len() <= LEFTOVERS_MAX + 4);
        assert_eq!(deadlines.next(), Some(Time::ZERO));
        assert_eq!(deadlines.pop(Time::ZERO), Some(0));
        assert_eq!(deadlines.pop(Time::ZERO), None);
        let later = deadlines.pop(Time::from_nanos(100_000)).unwrap();
        assert!(deadlines.pop(Time::from_nanos(100_000)).unwrap() > later);
    }
}
