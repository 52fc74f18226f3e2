//! The generator and the server on loopback sockets.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use hovercraft::client::Destinations;
use r2p2::{Link as _, Outbox, Time, UdpConfig, UdpLink};

use super::server::{Behaviour, Server};
use crate::generator::{DriveError, Plan, Record, Route, Watch, drive};

pub(super) fn run(plan: &Plan, behaviour: Behaviour, seed: u64) -> Result<Record, DriveError> {
    let mut link = UdpLink::bind(&UdpConfig::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))?;
    let address = link.local_address()?;
    let over = AtomicBool::new(false);
    let route = Route { destinations: Destinations::All(vec![address]), interface: None };
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&mut link, behaviour, seed, &over));
        let driven = drive(plan.clone(), &route, &Watch::default());
        over.store(true, Ordering::Relaxed);
        serving.join().expect("the server does not panic")?;
        Ok(driven?.record)
    })
}

fn serve(link: &mut UdpLink, behaviour: Behaviour, seed: u64, over: &AtomicBool) -> io::Result<()> {
    /// The longest wait, so that the end is noticed.
    const WAIT_MAX: Duration = Duration::from_millis(20);
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let origin = Instant::now();
    let clock = || Time::ZERO + origin.elapsed();
    let mut server = Server::new(behaviour, seed);
    let mut outbox = Outbox::new();
    let mut replies = Outbox::new();
    while !over.load(Ordering::Relaxed) {
        while link.receive(&mut |from, datagram| {
            server.handle_datagram(clock(), from, datagram, &mut outbox);
        })? > 0
        {}
        server.handle_timeout(clock(), &mut replies);
        link.send(&mut outbox)?;
        link.send(&mut replies)?;
        let left = server.poll_timeout().map_or(WAIT_MAX, |due| due.since(clock()));
        link.wait(Some(left.min(WAIT_MAX)), Duration::ZERO)?;
    }
    Ok(())
}
