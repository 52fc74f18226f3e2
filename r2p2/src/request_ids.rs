//! The 16-bit numbers of a client's requests.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use foldhash::fast::FixedState;

use crate::Time;

/// How long the number of a request without SESSION is kept after the caller gave it up: a late
/// reply must not answer another request, and packets that a server still holds of one request
/// must not become part of another.
const LINGER: Duration = Duration::from_secs(2);

/// How many numbers may be kept; beyond it the oldest is used again early.
const LINGERING_MAX: usize = 16_384;

/// How many requests may be outstanding: so that, with the numbers that are kept, a quarter is
/// always free.
pub(crate) const IN_USE_MAX: usize = 32_768;

/// Which numbers are taken, and by which of the outstanding requests.
#[derive(Debug)]
pub(crate) struct RequestIds {
    next: u16,
    /// None for a number that is kept though its request is gone.
    taken: HashMap<u16, Option<usize>, FixedState>,
    lingering: VecDeque<(Time, u16)>,
}

impl RequestIds {
    /// The first request gets the number `first`.
    pub(crate) fn new(first: u16, seed: u64) -> Self {
        Self {
            next: first,
            taken: HashMap::with_hasher(FixedState::with_seed(seed)),
            lingering: VecDeque::new(),
        }
    }

    /// The number for the next request. There must be fewer than [`IN_USE_MAX`] requests.
    pub(crate) fn next(&mut self, now: Time) -> u16 {
        while let Some((_, id)) = self.lingering.pop_front_if(|(until, _)| *until <= now) {
            self.taken.remove(&id);
        }
        debug_assert!(self.taken.len() < IN_USE_MAX + LINGERING_MAX);
        while self.taken.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }

    /// Gives a number of [`Self::next`] to a request.
    pub(crate) fn take(&mut self, id: u16, request: usize) {
        self.taken.insert(id, Some(request));
    }

    /// The request with this number.
    pub(crate) fn find(&self, id: u16) -> Option<usize> {
        self.taken.get(&id).copied().flatten()
    }

    /// Makes a number free.
    pub(crate) fn release(&mut self, id: u16) {
        self.taken.remove(&id);
    }

    /// Keeps a number for a while, though its request is gone.
    pub(crate) fn release_later(&mut self, now: Time, id: u16) {
        if self.lingering.len() == LINGERING_MAX
            && let Some((_, oldest)) = self.lingering.pop_front()
        {
            self.taken.remove(&oldest);
        }
        self.taken.insert(id, None);
        self.lingering.push_back((now + LINGER, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_and_skip_those_taken() {
        let mut ids = RequestIds::new(u16::MAX, 0);
        let mut take = |request| {
            let id = ids.next(Time::ZERO);
            ids.take(id, request);
            id
        };
        assert_eq!([take(0), take(1), take(2)], [u16::MAX, 0, 1]);
        ids.next = u16::MAX;
        assert_eq!(ids.next(Time::ZERO), 2);
        ids.release(0);
        ids.next = u16::MAX;
        assert_eq!(ids.next(Time::ZERO), 0);
    }

    #[test]
    fn a_number_given_up_is_not_used_for_a_while() {
        let mut ids = RequestIds::new(5, 0);
        let id = ids.next(Time::ZERO);
        ids.take(id, 0);
        ids.release_later(Time::ZERO, id);
        assert_eq!(ids.find(id), None);
        ids.next = 5;
        assert_eq!(ids.next(Time::ZERO), 6);
        ids.next = 5;
        assert_eq!(ids.next(Time::ZERO + LINGER), 5);
    }

    #[test]
    fn numbers_never_run_out() {
        let mut ids = RequestIds::new(0, 0);
        for request in 0..IN_USE_MAX - 1 {
            let id = ids.next(Time::ZERO);
            ids.take(id, request);
        }
        for _ in 0..100_000 {
            let id = ids.next(Time::ZERO);
            ids.release_later(Time::ZERO, id);
        }
        assert!(ids.taken.len() < IN_USE_MAX + LINGERING_MAX);
    }
}
