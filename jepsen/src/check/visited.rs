//! What the search has seen already (Lowe's cache): which operations were ordered, and the state that
//! they left. From the same two nothing else can come.

use hashbrown::HashTable;

use super::states::{bytes_to_grow, table_bytes};

/// Which of the operations that completed are ordered, as a sum of random numbers, one for each. Two
/// different sets have the same sum with a probability of 2^-128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ordered(u128);

impl Ordered {
    /// The set with an operation put in, or taken out.
    pub(super) fn toggle(self, operation: u32) -> Self {
        let low = mix(u64::from(operation));
        let high = mix(low ^ 0x9e37_79b9_7f4a_7c15);
        Self(self.0 ^ (u128::from(high) << 64 | u128::from(low)))
    }
}

/// The finaliser of Vigna's splitmix generator: every number has one, and it looks random.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[derive(Debug)]
struct Entry {
    ordered: Ordered,
    state: u32,
    /// The last set of unknown operations that was seen with these; none if there are no such
    /// operations in the history.
    last: u32,
}

const NONE: u32 = u32::MAX;

/// What was seen.
#[derive(Debug)]
pub(super) struct Visited {
    entries: HashTable<Entry>,
    /// How many words a set of unknown operations has.
    words: usize,
    /// Sets of unknown operations, one after another, and for each the one seen before it.
    sets: Vec<u64>,
    before: Vec<u32>,
    /// How often two sets were compared: work that the search has to count.
    pub(super) compared: u64,
}

impl Visited {
    /// For a history in which the outcome of `unknown` operations is unknown.
    pub(super) fn new(unknown: usize) -> Self {
        Self {
            entries: HashTable::new(),
            words: unknown.div_ceil(64),
            sets: Vec::new(),
            before: Vec::new(),
            compared: 0,
        }
    }

    /// Remembers a place of the search. False if it leads nowhere that an earlier one did not lead: the
    /// same operations were ordered, with the same state, and of the unknown ones no others. That is
    /// because what is not done of these can still be done, or never.
    pub(super) fn insert(&mut self, ordered: Ordered, state: u32, unknown: &[u64]) -> bool {
        let hash = |ordered: Ordered, state: u32| ordered.0 as u64 ^ mix(state.into());
        let found = self.entries.find_mut(hash(ordered, state), |entry| {
            entry.ordered == ordered && entry.state == state
        });
        let Some(entry) = found else {
            let last = push(&mut self.sets, &mut self.before, unknown, NONE);
            let entry = Entry { ordered, state, last };
            self.entries
                .insert_unique(hash(ordered, state), entry, |it| hash(it.ordered, it.state));
            return true;
        };
        let mut seen = entry.last;
        while seen != NONE {
            self.compared += 1;
            let at = seen as usize * self.words;
            let is_subset = |(seen, new): (&u64, &u64)| seen & !new == 0;
            if self.sets[at..at + self.words].iter().zip(unknown).all(is_subset) {
                return false;
            }
            seen = self.before[seen as usize];
        }
        if self.words == 0 {
            return false;
        }
        entry.last = push(&mut self.sets, &mut self.before, unknown, entry.last);
        true
    }

    pub(super) fn bytes(&self) -> usize {
        table_bytes(&self.entries)
            + bytes_to_grow::<u64>(self.sets.len(), self.sets.capacity())
            + bytes_to_grow::<u32>(self.before.len(), self.before.capacity())
    }
}

/// Keeps a set, and returns its number.
fn push(sets: &mut Vec<u64>, before: &mut Vec<u32>, set: &[u64], last: u32) -> u32 {
    if set.is_empty() {
        return NONE;
    }
    // A search that holds so many runs out of memory first.
    let number = u32::try_from(before.len()).expect("fewer than 2^32 sets");
    sets.extend_from_slice(set);
    before.push(last);
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_does_not_depend_on_the_order_in_which_it_was_made() {
        let set = |operations: &[u32]| {
            operations.iter().fold(Ordered::default(), |set, operation| set.toggle(*operation))
        };
        assert_eq!(set(&[1, 2, 3]), set(&[3, 1, 2]));
        assert_eq!(set(&[1, 2, 1]), set(&[2]));
        assert_ne!(set(&[0]), set(&[]));
    }

    #[test]
    fn a_place_with_more_unknown_operations_is_no_new_one() {
        let mut visited = Visited::new(3);
        let place = Ordered::default().toggle(7);
        assert!(visited.insert(place, 0, &[0b110]));
        assert!(!visited.insert(place, 0, &[0b111]));
        assert!(visited.insert(place, 0, &[0b101]));
        assert!(!visited.insert(place, 0, &[0b101]));
        assert!(visited.insert(place, 1, &[0b111]));
        assert!(visited.insert(place.toggle(1), 0, &[0b111]));
        assert!(visited.insert(place, 0, &[0b000]));
    }

    #[test]
    fn without_unknown_operations_a_place_is_new_once() {
        let mut visited = Visited::new(0);
        assert!(visited.insert(Ordered::default(), 0, &[]));
        assert!(!visited.insert(Ordered::default(), 0, &[]));
    }
}
