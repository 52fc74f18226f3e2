//! Any datagram: header, options, missing packets, feedback.

#![no_main]

use libfuzzer_sys::fuzz_target;
use r2p2::{CheckSeed, Feedback, Options, Packet, message_type};

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
    packet.encode(CheckSeed::NONE, &mut again);
    let parsed = Packet::parse(&again).expect("what we write we can read");
    let has_options = packet.has_options;
    let options = Options { checked: packet.options.checked, ..parsed.options };
    assert_eq!(Packet { options, has_options, ..parsed }, packet);
    let is_plain = !packet.options.checked && packet.missing.is_none();
    if !is_plain {
        let opened = Packet::open(&again, CheckSeed::NONE).expect("it has the right check");
        assert_eq!(opened, parsed);
    }
});
