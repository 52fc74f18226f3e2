//! Admission by the leader: how many identities may be in the system at once (P23, P24).

use std::{collections::VecDeque, time::Duration};

use r2p2::Time;

use crate::{
    core::lookup::{Entry, Lookup},
    request::Identity,
};

/// The identities that are in the system, with when they were admitted.
///
/// An identity leaves when its replier has applied it, when it waited in vain for an order, or by
/// age. So neither a lost report nor a
/// dead replier leaks capacity, and a retry adds nothing.
#[derive(Debug)]
pub(crate) struct Admission {
    admitted: Lookup<Identity, Time>,
    /// In order of admission; some may have left since.
    by_age: VecDeque<(Time, Identity)>,
    limit: usize,
    age_max: Duration,
}

impl Admission {
    pub(crate) fn new(limit: usize, age_max: Duration, seed: u64) -> Self {
        Self { admitted: Lookup::new(seed), by_age: VecDeque::new(), limit, age_max }
    }

    /// Admits an identity if there is room; one that is in the system stays in it.
    pub(crate) fn admit(&mut self, now: Time, identity: Identity) -> bool {
        if self.admitted.len() >= self.limit {
            self.expire(now);
        }
        let has_room = self.admitted.len() < self.limit;
        match self.admitted.entry(identity) {
            Entry::Occupied(_) => true,
            Entry::Vacant(place) if has_room => {
                place.insert(now);
                self.by_age.push_back((now, identity));
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Whether an identity is in the system.
    pub(crate) fn contains(&self, identity: &Identity) -> bool {
        self.admitted.contains(identity)
    }

    /// The identity has been answered, or will not be.
    pub(crate) fn release(&mut self, identity: &Identity) {
        self.admitted.remove(identity);
        if self.by_age.len() > 2 * self.admitted.len() + 1024 {
            let admitted = &self.admitted;
            self.by_age.retain(|(at, identity)| admitted.get(identity) == Some(at));
        }
    }

    /// Forgets everything: this replica has become leader, and fills the set from its log.
    pub(crate) fn clear(&mut self) {
        self.admitted.clear();
        self.by_age.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.admitted.len()
    }

    /// Removes what is too old, and what was released from the front of the queue by age.
    fn expire(&mut self, now: Time) {
        while let Some((admitted, identity)) = self.by_age.front() {
            let is_current = self.admitted.get(identity) == Some(admitted);
            if is_current && now.since(*admitted) < self.age_max {
                return;
            }
            if is_current {
                self.admitted.remove(identity);
            }
            self.by_age.pop_front();
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
