//! A hash table that cannot be iterated, so that nothing depends on its order.

use std::hash::Hash;

use foldhash::fast::FixedState;
pub(crate) use hashbrown::hash_map::Entry;

/// Finds values by key. The hash is seeded, so that a client cannot choose keys that collide.
#[derive(Debug)]
pub(crate) struct Lookup<K, V> {
    table: hashbrown::HashMap<K, V, FixedState>,
}

impl<K: Eq + Hash, V> Lookup<K, V> {
    pub(crate) fn new(seed: u64) -> Self {
        Self { table: hashbrown::HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    /// Returns the value that was there before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.table.insert(key, value)
    }

    /// The place of a key, to look and to insert with one search.
    pub(crate) fn entry(&mut self, key: K) -> Entry<'_, K, V, FixedState> {
        self.table.entry(key)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.table.remove(key)
    }

    /// Removes a key if it has this value.
    pub(crate) fn remove_if(&mut self, key: K, value: &V) -> bool
    where
        V: PartialEq,
    {
        match self.table.entry(key) {
            Entry::Occupied(found) if found.get() == value => {
                found.remove();
                true
            }
            Entry::Occupied(_) | Entry::Vacant(_) => false,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.table.get(key)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.table.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}
