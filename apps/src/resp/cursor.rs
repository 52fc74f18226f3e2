//! The numbers by which SCAN goes on.
//!
//! Redis's cursor is a number of 64 bits, ours is the next key. So the gateway remembers which key
//! a number stands for: the latest scans of all its connections, bounded in count and in bytes. A
//! number is a hash of its key, so the same place has the same number, and a number that another
//! replica's gateway gave is either right here too or not known. An unknown number is an error:
//! to guess would skip keys.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

const CURSORS_MAX: usize = 65_536;
const CURSOR_BYTES_MAX: usize = 16 << 20;

/// Which key a cursor stands for.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    places: HashMap<u64, Place>,
    /// The numbers in `places` by when they were last given.
    ages: BTreeMap<u64, u64>,
    given_count: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Place {
    key: Bytes,
    age: u64,
}

impl Cursors {
    /// The number that stands for `key` until so many others were given that it is forgotten.
    pub(super) fn give(&mut self, key: &[u8]) -> u64 {
        // 53 bits, because JavaScript clients read the cursor as a float. 0 means the end, and a
        // number taken by another key is passed over.
        let mut number = (xxh3_64(key) >> 11).max(1);
        while self.find(number).is_some_and(|taken| taken != key) {
            number += 1;
        }
        if let Some(earlier) = self.places.remove(&number) {
            self.ages.remove(&earlier.age);
            self.bytes -= earlier.key.len();
        }
        self.given_count += 1;
        self.ages.insert(self.given_count, number);
        self.bytes += key.len();
        let place = Place { key: Bytes::copy_from_slice(key), age: self.given_count };
        self.places.insert(number, place);
        while self.ages.len() > CURSORS_MAX || self.bytes > CURSOR_BYTES_MAX {
            let (_, oldest) = self.ages.pop_first().expect("what has a size is not empty");
            let place = self.places.remove(&oldest).expect("every age has its place");
            self.bytes -= place.key.len();
        }
        number
    }

    /// The key that a number stands for; none if it was forgotten or never given.
    pub(super) fn find(&self, number: u64) -> Option<&Bytes> {
        self.places.get(&number).map(|place| &place.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_its_key_and_stays_the_same() {
        let mut cursors = Cursors::default();
        let number = cursors.give(b"key");
        assert_eq!(cursors.give(b"key"), number);
        assert_ne!(cursors.give(b"other"), number);
        assert_eq!(cursors.find(number).map(Bytes::as_ref), Some(&b"key"[..]));
        assert_eq!(cursors.find(0), None);
        assert!(number < 1 << 53);
    }

    #[test]
    fn keys_that_collide_get_numbers_of_their_own() {
        let mut cursors = Cursors::default();
        let number = Cursors::default().give(b"key");
        let key = Bytes::from("in the way");
        cursors.places.insert(number, Place { key, age: 0 });
        assert_eq!(cursors.give(b"key"), number + 1);
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_either_bound() {
        let mut cursors = Cursors::default();
        let (first, second) = (cursors.give(b"first"), cursors.give(b"second"));
        assert_eq!(cursors.give(b"first"), first, "given again, it is the youngest");
        for n in 0..CURSORS_MAX - 1 {
            cursors.give(format!("{n}").as_bytes());
        }
        assert_eq!(cursors.find(second), None);
        assert!(cursors.find(first).is_some());
        assert_eq!(cursors.places.len(), CURSORS_MAX);
        for n in 0..300u32 {
            let mut key = vec![0; 64 << 10];
            key[..4].copy_from_slice(&n.to_le_bytes());
            cursors.give(&key);
        }
        assert!(cursors.bytes <= CURSOR_BYTES_MAX);
        let held = cursors.places.values().map(|place| place.key.len());
        assert_eq!(cursors.bytes, held.sum::<usize>());
    }
}
