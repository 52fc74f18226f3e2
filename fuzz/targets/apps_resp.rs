//! Any bytes from a Redis client, in two pieces.

#![no_main]

use hovercraft_apps::resp::RequestReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let mut reader = RequestReader::new(1 << 16);
    for piece in [input.0, input.1] {
        reader.buffer().extend_from_slice(piece);
        loop {
            match reader.next_request() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
