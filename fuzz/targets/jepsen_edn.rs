//! Any text as a history in one of Jepsen's formats.

#![no_main]

use hovercraft_jepsen::History;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // In a vector, so that no input is spent on that.
    let _ = History::read_within(format!("[{text}]").as_bytes(), 1 << 20);
    let _ = History::read_within(text.as_bytes(), 1 << 20);
});
