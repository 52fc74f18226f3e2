//! The unordered set: requests whose order this replica does not know (P8).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use r2p2::Time;

use crate::{
    core::lookup::{Entry, Lookup},
    digest::Digest,
    request::{Identity, Key, Request, ReturnPath},
};

/// The bounds of the set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
}

/// A request that waits for an order.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) request: Arc<Request>,
    pub(crate) return_path: Option<ReturnPath>,
    arrived: Time,
}

/// Requests by identity and digest, in order of arrival.
///
/// The queue has holes where requests were taken from its middle; `front` is the position of its
/// first element, so positions stay valid while the queue moves.
#[derive(Debug)]
pub(crate) struct Unordered {
    queue: VecDeque<Option<Waiting>>,
    front: u64,
    by_key: Lookup<Key, u64>,
    bytes: usize,
    /// The leader has ordered, or decided to leave, everything before this position (P10).
    cursor: u64,
    limits: Limits,
}

impl Unordered {
    pub(crate) fn new(limits: Limits, seed: u64) -> Self {
        let by_key = Lookup::new(seed);
        Self { queue: VecDeque::new(), front: 0, by_key, bytes: 0, cursor: 0, limits }
    }

    /// Adds a request as the newest; of one that is here, only the return path changes, unless it
    /// was left without an order: what comes again is to be ordered like what is new. Returns false
    /// if it had no room.
    pub(crate) fn insert(
        &mut self,
        now: Time,
        request: Arc<Request>,
        mut return_path: Option<ReturnPath>,
    ) -> bool {
        let has_room = self.has_room(&request);
        match self.by_key.entry(name(&request.key())) {
            Entry::Occupied(at) => {
                let at = *at.get();
                if at >= self.cursor
                    && let Some(waiting) = self.get_mut(at)
                {
                    waiting.return_path = return_path.or(waiting.return_path);
                    return true;
                }
                let left = self.take(&request.key()).expect("by_key has just named it");
                return_path = return_path.or(left.return_path);
                let at = self.front + self.queue.len() as u64;
                self.by_key.insert(name(&request.key()), at);
            }
            Entry::Vacant(_) if !has_room => return false,
            Entry::Vacant(place) => {
                place.insert(self.front + self.queue.len() as u64);
            }
        }
        self.bytes += request.body().len();
        self.queue.push_back(Some(Waiting { request, return_path, arrived: now }));
        self.compact();
        true
    }

    /// Adds a request as [`Self::insert`] does, and evicts the oldest ones if it has no room.
    pub(crate) fn insert_evicting(
        &mut self,
        now: Time,
        request: Arc<Request>,
        return_path: Option<ReturnPath>,
    ) {
        if request.body().len() > self.limits.bytes {
            return;
        }
        while !self.by_key.contains(&name(&request.key())) && !self.has_room(&request) {
            self.pop_oldest();
        }
        let inserted = self.insert(now, request, return_path);
        assert!(inserted, "room was made for the request");
    }

    /// Takes a request out, to put it into the log.
    pub(crate) fn take(&mut self, key: &Key) -> Option<Waiting> {
        let at = self.by_key.remove(&name(key))?;
        let waiting = self.queue[(at - self.front) as usize].take();
        let waiting = waiting.expect("by_key names only positions that hold a request");
        self.bytes -= waiting.request.body().len();
        self.skip_holes();
        Some(waiting)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Waiting> {
        let at = *self.by_key.get(&name(key))?;
        self.queue[(at - self.front) as usize].as_ref()
    }

    /// The oldest request at or behind the cursor, which moves to it.
    pub(crate) fn peek_next(&mut self) -> Option<&Waiting> {
        self.cursor = self.cursor.max(self.front);
        while self.queue.get((self.cursor - self.front) as usize)?.is_none() {
            self.cursor += 1;
        }
        self.queue[(self.cursor - self.front) as usize].as_ref()
    }

    /// This replica has become leader: what `keep` accepts, oldest first, is to be ordered, and
    /// the rest stays without an order (P10). Returns how many are to be ordered.
    pub(crate) fn adopt(&mut self, now: Time, mut keep: impl FnMut(&Request) -> bool) -> usize {
        // The accepted ones move behind the others, so that the cursor parts the two.
        let all: Vec<_> = self.queue.drain(..).flatten().collect();
        self.by_key.clear();
        self.bytes = 0;
        let (adopted, left): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|waiting| keep(&waiting.request));
        self.cursor = self.front + left.len() as u64;
        let count = adopted.len();
        for mut waiting in left.into_iter().chain(adopted) {
            // Ages must not go back along the queue; what is adopted waits as if it had just come.
            if self.by_key.len() as u64 >= self.cursor - self.front {
                waiting.arrived = now;
            }
            self.bytes += waiting.request.body().len();
            self.by_key.insert(name(&waiting.request.key()), self.front + self.queue.len() as u64);
            self.queue.push_back(Some(waiting));
        }
        count
    }

    /// Removes what is too old, handing it to `each`.
    pub(crate) fn expire(&mut self, now: Time, mut each: impl FnMut(Waiting)) {
        while self.oldest_arrival().is_some_and(|at| now.since(at) >= self.limits.age) {
            if let Some(waiting) = self.pop_oldest() {
                each(waiting);
            }
        }
    }

    /// When [`Self::expire`] will next have something to do; changes with every verb.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        Some(self.oldest_arrival()? + self.limits.age)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn has_room(&self, request: &Request) -> bool {
        self.by_key.len() < self.limits.count
            && self.bytes + request.body().len() <= self.limits.bytes
    }

    fn get_mut(&mut self, at: u64) -> Option<&mut Waiting> {
        self.queue[(at - self.front) as usize].as_mut()
    }

    fn oldest_arrival(&self) -> Option<Time> {
        let oldest = self.queue.front()?.as_ref();
        Some(oldest.expect("holes at the front are skipped at once").arrived)
    }

    fn pop_oldest(&mut self) -> Option<Waiting> {
        let key = self.queue.front()?.as_ref()?.request.key();
        self.take(&key)
    }

    fn skip_holes(&mut self) {
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.front += 1;
        }
    }

    /// Closes the holes when they outnumber the requests, so that memory stays bounded by the
    /// limit on requests.
    fn compact(&mut self) {
        if self.queue.len() <= 2 * self.by_key.len() + 1024 {
            return;
        }
        let before_cursor = (self.cursor.saturating_sub(self.front) as usize).min(self.queue.len());
        let kept = self.queue.iter().take(before_cursor).filter(|slot| slot.is_some()).count();
        self.queue.retain(Option::is_some);
        self.cursor = self.front + kept as u64;
        for (offset, waiting) in self.queue.iter().enumerate() {
            let waiting = waiting.as_ref().expect("holes were just removed");
            self.by_key.insert(name(&waiting.request.key()), self.front + offset as u64);
        }
    }
}

/// What a request is known by: its identity and digest.
fn name(key: &Key) -> Key {
    match key.identity {
        Identity::Session { client, sequence } if client > 0 && planted!("bind-by-short-id") => {
            let identity = Identity::Session { client: 1, sequence: sequence & 0xffff };
            Key { identity, digest: Digest(0) }
        }
        _ => *key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{request, return_path};

    const LIMITS: Limits = Limits { count: 3, bytes: 1 << 20, age: Duration::from_secs(1) };

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_full_set_refuses_or_evicts_the_oldest() {
        let mut set = Unordered::new(LIMITS, 0);
        for sequence in 1..=3 {
            assert!(set.insert(at(0), request(1, sequence), None));
        }
        assert!(!set.insert(at(0), request(1, 4), None));
        set.insert_evicting(at(0), request(1, 4), None);
        assert!(set.get(&request(1, 1).key()).is_none());
        assert!(set.get(&request(1, 4).key()).is_some());
        assert_eq!(set.len(), 3);
    }

    #[test]
    fn the_newest_return_path_wins() {
        let mut set = Unordered::new(LIMITS, 0);
        set.insert(at(0), request(1, 1), Some(return_path(1)));
        set.insert(at(0), request(1, 1), Some(return_path(2)));
        let taken = set.take(&request(1, 1).key()).unwrap();
        assert_eq!(taken.return_path, Some(return_path(2)));
        assert_eq!((set.len(), set.bytes()), (0, 0));
    }

    #[test]
    fn a_new_leader_orders_what_it_adopts_and_what_comes_later() {
        let mut set = Unordered::new(LIMITS, 0);
        for sequence in 1..=3 {
            set.insert(at(0), request(1, sequence), None);
        }
        set.take(&request(1, 3).key());
        let is_adopted =
            |request: &Request| request.key() == crate::core::testing::request(1, 1).key();
        assert_eq!(set.adopt(at(1), is_adopted), 1);
        set.insert(at(1), request(1, 4), None);
        for sequence in [1, 4] {
            let next = set.peek_next().unwrap().request.key();
            assert_eq!(next, request(1, sequence).key());
            set.take(&next);
        }
        assert!(set.peek_next().is_none());
        assert_eq!(set.next_expiry(), Some(at(1)));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn a_retry_of_what_was_left_without_an_order_is_ordered() {
        let mut set = Unordered::new(LIMITS, 0);
        set.insert(at(0), request(1, 1), Some(return_path(1)));
        set.insert(at(0), request(1, 2), None);
        assert_eq!(set.adopt(at(1), |_| false), 0);
        assert!(set.peek_next().is_none());
        assert!(set.insert(at(1), request(1, 1), None));
        let next = set.peek_next().expect("it came again");
        assert_eq!(next.request.key(), request(1, 1).key());
        assert_eq!((next.return_path, set.len()), (Some(return_path(1)), 2));
    }

    #[test]
    fn the_old_expire() {
        let mut set = Unordered::new(LIMITS, 0);
        set.insert(at(0), request(1, 1), None);
        set.insert(at(1), request(1, 2), None);
        assert_eq!(set.next_expiry(), Some(at(1)));
        let mut expired = Vec::new();
        set.expire(at(1), |waiting| expired.push(waiting.request.key()));
        assert_eq!((expired, set.len()), (vec![request(1, 1).key()], 1));
        assert_eq!(set.next_expiry(), Some(at(2)));
    }

    proptest::proptest! {
        /// Against a list: inserts, takes from anywhere and from the front, with enough holes to
        /// compact.
        #[test]
        fn behaves_as_a_list(operations in proptest::collection::vec((0u8..5, 0u64..40), 1..4000)) {
            let limits = Limits { count: 30, ..LIMITS };
            let mut set = Unordered::new(limits, 7);
            let mut model: Vec<u64> = Vec::new();
            for (operation, sequence) in operations {
                let key = request(1, sequence).key();
                match operation {
                    0..=2 => {
                        let inserted = set.insert(at(0), request(1, sequence), None);
                        let known = model.contains(&sequence);
                        assert_eq!(inserted, known || model.len() < 30);
                        if inserted && !known {
                            model.push(sequence);
                        }
                    }
                    3 => {
                        let taken = set.take(&key).is_some();
                        assert_eq!(taken, model.contains(&sequence));
                        model.retain(|other| *other != sequence);
                    }
                    _ => {
                        let next = set.peek_next().map(|waiting| waiting.request.key());
                        let expected = model.first().map(|sequence| request(1, *sequence).key());
                        assert_eq!(next, expected);
                    }
                }
                assert_eq!(set.len(), model.len());
            }
        }
    }
}
