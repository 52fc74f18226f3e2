//! Any sequence of datagrams at a client with requests of every sort outstanding.

#![no_main]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use bytes::Bytes;
use hovercraft_fuzz::arrivals;
use libfuzzer_sys::fuzz_target;
use r2p2::{ClientConfig, ClientEndpoint, Options, Outbox, Policy, Session, Time};

fuzz_target!(|input: &[u8]| {
    let config = ClientConfig {
        reply_bytes_max: 600,
        reassembly_bytes_max: 2000,
        ..ClientConfig::default()
    };
    let mut client = ClientEndpoint::new(config, 1);
    let mut outbox = Outbox::new();
    let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
    let destinations = Arc::from([server]);
    let session = |sequence| Options {
        session: Some(Session { client: 0, sequence, lowest: 0 }),
        ..Options::NONE
    };
    let requests = [
        (Options::NONE, 0),
        (Options::NONE, 500_000),
        (Options::REPAIRABLE, 5000),
        (session(0), 0),
        (session(1), 200_000),
    ];
    for (options, size) in requests {
        let body = Bytes::from(vec![0; size]);
        client
            .request(Time::ZERO, &destinations, Policy::Fixed, options, body, &mut outbox)
            .expect("there is room for all of them");
    }
    outbox.drain(|_| ());
    for arrival in arrivals(input) {
        let outstanding = client.outstanding_count();
        let event =
            client.handle_datagram(arrival.now, arrival.from, &arrival.datagram, &mut outbox);
        drop(event);
        assert!(client.outstanding_count() + 1 >= outstanding);
        assert!(outbox.datagram_count() <= 128, "one datagram makes a client send at most this");
        client.handle_timeout(arrival.now, &mut outbox);
        assert!(client.poll_timeout().is_none_or(|next| next > arrival.now));
        outbox.drain(|_| ());
    }
});
