//! Deadlines of things that are numbered densely, at a constant cost each.
//!
//! All deadlines of one interval are set in the order in which they pass, so a list for each
//! interval keeps them sorted without searching. Each number has at most one deadline.

use std::time::Duration;

use crate::Time;

const NONE: u32 = u32::MAX;

/// A number's place in the list of its interval.
#[derive(Debug, Clone, Copy)]
struct Link {
    deadline: Time,
    interval: u32,
    previous: u32,
    next: u32,
}

const UNSET: Link = Link { deadline: Time::ZERO, interval: NONE, previous: NONE, next: NONE };

#[derive(Debug)]
struct List {
    interval: Duration,
    head: u32,
    tail: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Timers {
    lists: Vec<List>,
    links: Vec<Link>,
}

impl Timers {
    /// Timers for these intervals, which are named by their position.
    pub(crate) fn new(intervals: impl IntoIterator<Item = Duration>) -> Self {
        let list = |interval| List { interval, head: NONE, tail: NONE };
        Self { lists: intervals.into_iter().map(list).collect(), links: Vec::new() }
    }

    /// Sets the deadline of `number` to one interval from now, instead of any that it had.
    pub(crate) fn arm(&mut self, now: Time, number: usize, interval: usize) {
        self.cancel(number);
        if number >= self.links.len() {
            self.links.resize(number + 1, UNSET);
        }
        let list = &mut self.lists[interval];
        let number = number as u32;
        self.links[number as usize] = Link {
            deadline: now + list.interval,
            interval: interval as u32,
            previous: list.tail,
            next: NONE,
        };
        match list.tail {
            NONE => list.head = number,
            tail => self.links[tail as usize].next = number,
        }
        list.tail = number;
    }

    /// Removes the deadline of `number`, if it has one.
    pub(crate) fn cancel(&mut self, number: usize) {
        let Some(link) = self.links.get_mut(number) else {
            return;
        };
        let link = std::mem::replace(link, UNSET);
        if link.interval == NONE {
            return;
        }
        let list = &mut self.lists[link.interval as usize];
        match link.previous {
            NONE => list.head = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        match link.next {
            NONE => list.tail = link.previous,
            next => self.links[next as usize].previous = link.previous,
        }
    }

    /// Whether `number` has a deadline.
    pub(crate) fn is_armed(&self, number: usize) -> bool {
        self.links.get(number).is_some_and(|link| link.interval != NONE)
    }

    /// Removes a deadline that has passed, and returns its number.
    pub(crate) fn pop(&mut self, now: Time) -> Option<usize> {
        let due = self.heads().find(|&head| self.links[head].deadline <= now)?;
        self.cancel(due);
        Some(due)
    }

    /// The next deadline. It changes when one is set, removed or popped.
    pub(crate) fn next(&self) -> Option<Time> {
        self.heads().map(|head| self.links[head].deadline).min()
    }

    /// The numbers of an interval, the longest armed first.
    pub(crate) fn oldest(&self, interval: usize) -> impl Iterator<Item = usize> {
        let follow = |number: u32| (number != NONE).then_some(number as usize);
        std::iter::successors(follow(self.lists[interval].head), move |&number| {
            follow(self.links[number].next)
        })
    }

    fn heads(&self) -> impl Iterator<Item = usize> {
        let heads = self.lists.iter().map(|list| list.head);
        heads.filter(|&head| head != NONE).map(|head| head as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const INTERVALS: [Duration; 3] =
        [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(30)];

    proptest! {
        #[test]
        fn deadlines_are_those_of_a_map(
            steps in prop::collection::vec((0..4u8, 0..12usize, 0..3usize, 0..9_000_000u64), 1..200)
        ) {
            let mut timers = Timers::new(INTERVALS);
            let mut model = BTreeMap::new();
            let mut now = Time::ZERO;
            for (step, number, interval, wait) in steps {
                match step {
                    0 | 1 => {
                        timers.arm(now, number, interval);
                        model.insert(number, now + INTERVALS[interval]);
                    }
                    2 => {
                        timers.cancel(number);
                        model.remove(&number);
                    }
                    _ => {
                        now += Duration::from_nanos(wait);
                        while let Some(number) = timers.pop(now) {
                            let deadline = model.remove(&number);
                            prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                        }
                        prop_assert!(model.values().all(|&deadline| deadline > now));
                    }
                }
                prop_assert_eq!(timers.next(), model.values().min().copied());
            }
        }
    }

    #[test]
    fn the_oldest_come_first() {
        let mut timers = Timers::new(INTERVALS);
        for number in [4, 2, 7, 2] {
            timers.arm(Time::ZERO, number, 1);
        }
        assert_eq!(timers.oldest(1).collect::<Vec<_>>(), [4, 7, 2]);
    }
}
