//! Any bytes in the place of a log's records: it is opened, or refused, and never panics.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| hovercraft::storage::fuzz_recovery(bytes));
