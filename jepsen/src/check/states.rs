//! States as numbers: each distinct one is kept once.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// Distinct values, numbered in the order in which they came.
#[derive(Debug)]
pub(super) struct Interned<T> {
    items: Vec<T>,
    numbers: HashTable<u32>,
    hasher: FixedState,
    /// Beside the tables.
    heap_bytes: usize,
}

impl<T: Eq + Hash> Interned<T> {
    pub(super) fn new() -> Self {
        Self {
            items: Vec::new(),
            numbers: HashTable::new(),
            // Nothing depends on the order of the table.
            hasher: FixedState::default(),
            heap_bytes: 0,
        }
    }

    /// The number of a value; `heap_bytes` tells what it takes if it is new.
    pub(super) fn number(&mut self, item: T, heap_bytes: impl FnOnce(&T) -> usize) -> u32 {
        let Self { items, numbers, hasher, .. } = self;
        let hash = hasher.hash_one(&item);
        if let Some(number) = numbers.find(hash, |number| items[*number as usize] == item) {
            return *number;
        }
        // A search that holds so many runs out of memory first.
        let number = u32::try_from(items.len()).expect("fewer than 2^32 states");
        self.heap_bytes += heap_bytes(&item);
        items.push(item);
        numbers.insert_unique(hash, number, |number| hasher.hash_one(&items[*number as usize]));
        number
    }

    pub(super) fn get(&self, number: u32) -> &T {
        &self.items[number as usize]
    }

    /// All of them, in order of their numbers.
    pub(super) fn items(&self) -> &[T] {
        &self.items
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many bytes it takes, with what it would take to grow.
    pub(super) fn bytes(&self) -> usize {
        let items = bytes_to_grow::<T>(self.items.len(), self.items.capacity());
        items + table_bytes(&self.numbers) + self.heap_bytes
    }
}

/// What a vector takes, and while it grows the next time if it is full.
pub(super) fn bytes_to_grow<T>(len: usize, capacity: usize) -> usize {
    let grown = if len == capacity { 2 * capacity } else { 0 };
    (capacity + grown) * size_of::<T>()
}

/// What a table takes, and while it grows the next time if it is full.
pub(super) fn table_bytes<T>(table: &HashTable<T>) -> usize {
    let grown = if table.len() == table.capacity() { 2 * table.allocation_size() } else { 0 };
    table.allocation_size() + grown
}
