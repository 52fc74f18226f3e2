//! The generator and the server over a network without delay, in virtual time.

use std::net::{Ipv4Addr, SocketAddrV4};

use hovercraft::client::Destinations;
use r2p2::{Outbox, Time};

use super::server::{Behaviour, Server};
use crate::generator::{Engine, Plan, Record};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
/// The first client's port; the next has the next.
const CLIENTS: u16 = 1000;

pub(super) fn run(plan: &Plan, behaviour: Behaviour, seed: u64) -> Record {
    run_with(plan, behaviour, seed, |now| now)
}

/// As [`run`]; `wake` says when the generator really wakes up that wanted to at a time.
pub(super) fn run_with(
    plan: &Plan,
    behaviour: Behaviour,
    seed: u64,
    wake: impl Fn(Time) -> Time,
) -> Record {
    let mut now = Time::ZERO;
    let mut server = Server::new(behaviour, seed ^ 0x5E4E);
    let mut engine = Engine::new(plan.clone(), &Destinations::All(vec![SERVER]), now);
    let (mut requests, mut replies) = (Outbox::new(), Outbox::new());
    while !engine.is_finished(now) {
        engine.turn(now);
        while let Some(client) = engine.poll_touched() {
            engine.flush(client, now, &mut requests);
            let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, CLIENTS + client as u16);
            requests.drain(|batch| {
                for datagram in batch.datagrams() {
                    server.handle_datagram(now, from, datagram, &mut replies);
                }
            });
        }
        server.handle_timeout(now, &mut replies);
        let mut any = false;
        replies.drain(|batch| {
            let client = usize::from(batch.destination.port() - CLIENTS);
            for datagram in batch.datagrams() {
                any = true;
                engine.handle_datagram(client, now, SERVER, datagram, &mut requests);
            }
        });
        if !any {
            let next = engine.poll_timeout().into_iter().chain(server.poll_timeout()).min();
            now = wake(next.expect("a run ends at a known time").max(now));
        }
    }
    engine.finish().expect("the server grants every session")
}
