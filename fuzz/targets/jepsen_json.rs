//! Any bytes as a history of JSON lines: what can be read can be written and read again.

#![no_main]

use hovercraft_jepsen::History;
use libfuzzer_sys::fuzz_target;

const LINE: &[u8] =
    b"{\"process\":0,\"type\":\"invoke\",\"f\":\"get\",\"value\":null,\"time\":0}\n";

fuzz_target!(|bytes: &[u8]| {
    // Behind a right line, so that the format is known.
    let text = [LINE, bytes].concat();
    let Ok(history) = History::read_within(&*text, 1 << 20) else { return };
    let mut written = Vec::new();
    history.write(&mut written).expect("memory does not fail");
    let read = History::read(&*written).expect("what was written can be read");
    assert_eq!(read.operations.len(), history.operations.len());
});
