//! Any datagram: header, options, missing packets, feedback.

#![no_main]

use libfuzzer_sys::fuzz_target;
use r2p2::{Feedback, Packet, message_type};

fuzz_target!(|datagram: &[u8]| {
    let Ok(packet) = Packet::parse(datagram) else {
        return;
    };
    assert_eq!(message_type(datagram), Some(packet.header.message_type));
    if let Some(missing) = &packet.missing {
        assert_eq!(missing.is_empty(), missing.indices().count() == 0);
    }
    if let Ok(feedback) = Feedback::parse(packet.body) {
        assert_eq!(feedback.to_bytes(), packet.body);
    }
    // What is understood survives being written and read again.
    let mut again = Vec::new();
    packet.encode(&mut again);
    let parsed = Packet::parse(&again).expect("what we write we can read");
    let has_options = packet.has_options;
    assert_eq!(Packet { has_options, ..parsed }, packet);
});
