//! Any bytes as a message of a replica, a question or an answer of an operator, a session's grant.

#![no_main]

use hovercraft::{
    admin::{Answer, Question},
    core::SessionGrant,
    messages::{Envelope, PROTOCOL_VERSION},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Behind a right version, so that no input is spent on that.
    let mut versioned = PROTOCOL_VERSION.to_be_bytes().to_vec();
    versioned.extend_from_slice(bytes);
    if let Ok(envelope) = Envelope::decode(&versioned) {
        let mut again = Vec::new();
        envelope.encode(&mut again);
        assert_eq!(Envelope::decode(&again), Ok(envelope));
    }
    let _ = Question::decode(&versioned);
    let _ = Answer::decode(&versioned);
    let _ = SessionGrant::decode(bytes);
});
