//! Any bytes as a record of the store: hard state, run of entries, snapshot meta.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| hovercraft::storage::fuzz_records(bytes));
