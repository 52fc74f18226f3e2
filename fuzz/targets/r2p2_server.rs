//! Any sequence of datagrams at a server that answers everything.

#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};

use bytes::Bytes;
use hovercraft_fuzz::arrivals;
use libfuzzer_sys::fuzz_target;
use r2p2::{Outbox, ServerConfig, ServerEndpoint};

fuzz_target!(|input: &[u8]| {
    let config = ServerConfig {
        request_bytes_max: 600,
        peer_bytes_max: 2000,
        reassembly_bytes_max: 4000,
        reply_bytes_max: 200_000,
    };
    let mut server = ServerEndpoint::new(config, 1);
    server.set_switches(vec![SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)]);
    let mut outbox = Outbox::new();
    let large = Bytes::from(vec![0; 100_000]);
    for arrival in arrivals(input) {
        let (now, from) = (arrival.now, arrival.from);
        server.set_acknowledging(!arrival.datagram.ends_with(b"follower"));
        let incoming = server.handle_datagram(now, from, &arrival.datagram, &mut outbox);
        assert!(outbox.datagram_count() <= 128, "one datagram makes a server send at most this");
        if let Ok(Some(incoming)) = incoming {
            assert!(incoming.body.len() <= 600);
            let (to, options) = (incoming.reply_to, incoming.reply_options());
            server
                .respond(now, to, &options, large.clone(), &mut outbox)
                .expect("a reply of a size that can be sent");
        }
        server.handle_timeout(now, &mut outbox);
        assert!(server.poll_timeout().is_none_or(|next| next > now));
        outbox.drain(|_| ());
    }
});
