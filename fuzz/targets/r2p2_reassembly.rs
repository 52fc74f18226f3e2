//! Any sequence of datagrams at the receiver of messages between replicas: reassembly alone.

#![no_main]

use hovercraft_fuzz::arrivals;
use libfuzzer_sys::fuzz_target;
use r2p2::{MessageConfig, MessageReceiver};

fuzz_target!(|input: &[u8]| {
    let config =
        MessageConfig { message_bytes_max: 600, peer_bytes_max: 2000, reassembly_bytes_max: 4000 };
    let mut receiver = MessageReceiver::new(config, 1);
    for arrival in arrivals(input) {
        let message = receiver.handle_datagram(arrival.now, arrival.from, &arrival.datagram);
        if let Ok(Some(message)) = message {
            assert!(message.body.len() <= 600.max(arrival.datagram.len()));
        }
    }
});
