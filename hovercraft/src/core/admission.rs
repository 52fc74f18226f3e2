//! Admission: how many identities may be in the system at once (P23, P24). The leader has one of
//! these, and so has a switch.

use std::{collections::VecDeque, time::Duration};

use r2p2::Time;

use crate::{
    core::lookup::{Entry, Lookup},
    request::Identity,
};

/// The identities that are in the system, with when they were admitted.
///
/// An identity leaves when its replier has applied it, when it waited in vain for an order, or by
/// age. So neither a lost report nor a dead replier leaks capacity, and a retry adds nothing. Beside
/// each there is what the authority wants to know when it leaves.
#[derive(Debug)]
pub(crate) struct Admission<T = ()> {
    admitted: Lookup<Identity, (Time, T)>,
    /// In order of admission; some may have left since.
    by_age: VecDeque<(Time, Identity)>,
    limit: usize,
    age_max: Duration,
}

impl Admission {
    /// Admits an identity if there is room; one that is in the system stays in it.
    pub(crate) fn admit(&mut self, now: Time, identity: Identity) -> bool {
        if self.len() >= self.limit {
            self.expire(now, |()| ());
        }
        let has_room = self.len() < self.limit;
        match self.admitted.entry(identity) {
            Entry::Occupied(_) => true,
            Entry::Vacant(place) if has_room => {
                place.insert((now, ()));
                self.by_age.push_back((now, identity));
                true
            }
            Entry::Vacant(_) => false,
        }
    }
}

impl<T: Copy> Admission<T> {
    pub(crate) fn new(limit: usize, age_max: Duration, seed: u64) -> Self {
        Self { admitted: Lookup::new(seed), by_age: VecDeque::new(), limit, age_max }
    }

    /// Takes in an identity that is not in the system, whatever the limit says.
    pub(crate) fn insert(&mut self, now: Time, identity: Identity, beside: T) {
        self.admitted.insert(identity, (now, beside));
        self.by_age.push_back((now, identity));
    }

    /// Whether an identity is in the system.
    pub(crate) fn contains(&self, identity: &Identity) -> bool {
        self.admitted.contains(identity)
    }

    /// The identity has been answered, or will not be. Returns when it was admitted, and what was
    /// beside it.
    pub(crate) fn release(&mut self, identity: &Identity) -> Option<(Time, T)> {
        let released = self.admitted.remove(identity);
        if self.by_age.len() > 2 * self.admitted.len() + 1024 {
            let admitted = &self.admitted;
            let is_current = |(at, identity): &(Time, Identity)| {
                admitted.get(identity).is_some_and(|(admitted_at, _)| admitted_at == at)
            };
            self.by_age.retain(is_current);
        }
        released
    }

    /// Forgets everything: this replica has become leader, and fills the set from its log.
    pub(crate) fn clear(&mut self) {
        self.admitted.clear();
        self.by_age.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.admitted.len()
    }

    /// When the oldest identity that is in the system was admitted.
    pub(crate) fn oldest(&mut self) -> Option<Time> {
        while let Some((at, identity)) = self.by_age.front() {
            if self.admitted.get(identity).is_some_and(|(admitted_at, _)| admitted_at == at) {
                return Some(*at);
            }
            self.by_age.pop_front();
        }
        None
    }

    /// Removes what is too old, handing what was beside it to `each`, and what was released from
    /// the front of the queue by age.
    pub(crate) fn expire(&mut self, now: Time, mut each: impl FnMut(T)) {
        while self.oldest().is_some_and(|at| now.since(at) >= self.age_max) {
            let (_, identity) = self.by_age.pop_front().expect("there is an oldest one");
            let (_, beside) = self.admitted.remove(&identity).expect("it is in the system");
            each(beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(sequence: u64) -> Identity {
        Identity::Session { client: 1, sequence }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_retry_adds_nothing_and_a_release_makes_room() {
        let mut admission = Admission::new(2, Duration::from_secs(10), 0);
        assert!(admission.admit(at(0), identity(1)));
        assert!(admission.admit(at(0), identity(1)));
        assert!(admission.admit(at(0), identity(2)));
        assert!(!admission.admit(at(0), identity(3)));
        admission.release(&identity(1));
        admission.release(&identity(1));
        assert!(admission.admit(at(0), identity(3)));
        assert_eq!(admission.len(), 2);
    }

    #[test]
    fn age_heals_what_was_never_released() {
        let mut admission = Admission::new(1, Duration::from_secs(10), 0);
        assert!(admission.admit(at(0), identity(1)));
        assert!(!admission.admit(at(9), identity(2)));
        assert!(admission.admit(at(10), identity(2)));
        assert!(!admission.admit(at(10), identity(1)));
    }

    #[test]
    fn what_was_admitted_again_ages_from_then() {
        let mut admission = Admission::new(2, Duration::from_secs(10), 0);
        admission.admit(at(0), identity(9));
        admission.admit(at(0), identity(1));
        admission.release(&identity(1));
        admission.admit(at(5), identity(1));
        assert!(admission.admit(at(11), identity(2)));
        assert!(!admission.admit(at(11), identity(3)));
    }
}
