//! The addresses that open sessions: advice by which the leader keeps one address from taking the
//! whole session table (P21, P23).
//!
//! Nothing rests on it: another leader has seen other openings, and apply evicts by its own rules.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use r2p2::Time;

use crate::core::lookup::{Entry, Lookup};

/// Openings are remembered for this long: an address that opens no more than its share in this time
/// is never refused.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Number of openings in that time that are every address's share, however many addresses there are:
/// a few programs that are started again and again must not wait for each other.
const SHARE_MIN: usize = 64;

/// Number of openings that are remembered at most.
const COUNT_MAX: usize = 65_536;

/// The sessions that were ordered lately, by the address that opened them.
#[derive(Debug)]
pub(crate) struct Openings {
    recent: VecDeque<(Time, Ipv4Addr)>,
    /// Number of each address in `recent`.
    counts: Lookup<Ipv4Addr, usize>,
    /// Number of sessions in the table, as the application last said.
    open: usize,
}

impl Openings {
    pub(crate) fn new(seed: u64) -> Self {
        Self { recent: VecDeque::new(), counts: Lookup::new(seed), open: 0 }
    }

    /// Notes how many sessions there are.
    pub(crate) fn set_open(&mut self, sessions: usize) {
        self.open = sessions;
    }

    /// Returns whether an address has opened more than its share of half a table while the other
    /// half is full.
    pub(crate) fn is_above_share(&mut self, now: Time, address: Ipv4Addr, max: u32) -> bool {
        let half = max as usize / 2;
        if self.open <= half {
            return false;
        }
        self.forget(now, COUNT_MAX);
        let share = half / (self.counts.len() + 1);
        self.counts.get(&address).is_some_and(|count| *count >= share.max(SHARE_MIN))
    }

    /// A session of an address will be ordered.
    pub(crate) fn note(&mut self, now: Time, address: Ipv4Addr) {
        self.forget(now, COUNT_MAX - 1);
        self.recent.push_back((now, address));
        match self.counts.entry(address) {
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(place) => {
                place.insert(1);
            }
        }
    }

    /// Forgets what is too old, and the oldest above a number.
    fn forget(&mut self, now: Time, count_max: usize) {
        while let Some((at, address)) = self.recent.front().copied()
            && (now.since(at) >= REMEMBERED || self.recent.len() > count_max)
        {
            self.recent.pop_front();
            let Entry::Occupied(mut count) = self.counts.entry(address) else { continue };
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = 1000;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(number)
    }

    #[test]
    fn an_address_gets_its_share_and_again_when_time_has_passed() {
        let mut openings = Openings::new(1);
        for _ in 0..200 {
            openings.note(at(0), address(1));
        }
        openings.note(at(0), address(2));
        openings.set_open(500);
        assert!(!openings.is_above_share(at(0), address(1), MAX), "half of the table is free");
        openings.set_open(501);
        // Half of a thousand among two and a newcomer.
        assert!(openings.is_above_share(at(0), address(1), MAX));
        assert!(!openings.is_above_share(at(0), address(2), MAX));
        assert!(!openings.is_above_share(at(0), address(3), MAX));
        assert!(openings.is_above_share(at(9), address(1), MAX));
        assert!(!openings.is_above_share(at(10), address(1), MAX));
        assert_eq!((openings.recent.len(), openings.counts.len()), (0, 0));
    }

    #[test]
    fn it_is_bounded_and_everybody_may_open_a_few_whatever_the_number_of_addresses() {
        let mut openings = Openings::new(1);
        for number in 0..3 * COUNT_MAX as u32 {
            openings.note(at(0), address(number));
        }
        assert_eq!((openings.recent.len(), openings.counts.len()), (COUNT_MAX, COUNT_MAX));
        openings.set_open(MAX as usize);
        for _ in 0..SHARE_MIN {
            assert!(!openings.is_above_share(at(0), address(7), MAX));
            openings.note(at(0), address(7));
        }
        assert!(openings.is_above_share(at(0), address(7), MAX));
    }
}
