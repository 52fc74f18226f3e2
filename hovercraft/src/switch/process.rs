//! A switch as a part of a process: a socket and a thread around [`Switch`].

use std::{net::SocketAddrV4, sync::Arc, time::Duration};

use r2p2::{Link, Outbox, Time, UdpConfig, UdpLink, WaitLink};

use super::{Switch, SwitchConfig};
use crate::{
    entropy::random_u64,
    node::{Clock, NodeError, Stopper, network_status, roles},
};

/// How many datagram batches one turn takes before what came of them is sent.
const RECEIVES_MAX: usize = 16;

/// A switch that runs in a thread of its own until it is stopped or fails.
#[derive(Debug)]
pub struct RunningSwitch {
    address: SocketAddrV4,
    stopper: Stopper,
    role: roles::Role<Result<(), NodeError>>,
}

impl RunningSwitch {
    /// Starts a switch at an address; port 0 takes a free one. For the first `spin` of a wait it
    /// looks for work before it sleeps.
    pub fn start(
        address: SocketAddrV4,
        config: SwitchConfig,
        spin: Duration,
    ) -> Result<Self, NodeError> {
        check(&config)?;
        Self::launch(UdpLink::bind(&UdpConfig::new(address))?, config, spin)
    }

    /// Starts a switch as [`Self::start`] does, on a link of the caller's: a simulated network, for
    /// example.
    pub fn start_on(
        link: impl WaitLink + 'static,
        config: SwitchConfig,
        spin: Duration,
    ) -> Result<Self, NodeError> {
        check(&config)?;
        Self::launch(link, config, spin)
    }

    fn launch(
        link: impl WaitLink + 'static,
        config: SwitchConfig,
        spin: Duration,
    ) -> Result<Self, NodeError> {
        let address = link.local_address()?;
        let stopper = Stopper::new(Arc::default(), link.waker());
        let handle = stopper.clone();
        let switch = Switch::new(config, random_u64());
        let role = roles::spawn("switch", run(switch, link, stopper, spin))?;
        Ok(Self { address, stopper: handle, role })
    }

    /// Where it receives, with the port that was chosen.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Stops the switch from elsewhere: a signal handler, for example.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops it. What it knew is gone, which harms nobody (P24, P27).
    #[cfg(not(madsim))]
    pub fn stop(self) -> Result<(), NodeError> {
        self.stopper.stop();
        self.join()
    }

    /// Waits until it ends: because a [`Stopper`] was used, or because it failed.
    #[cfg(not(madsim))]
    pub fn join(self) -> Result<(), NodeError> {
        roles::finish(self.ended())
    }

    /// Waits until it ends: because a [`Stopper`] was used, or because it failed.
    #[cfg(madsim)]
    pub async fn join(self) -> Result<(), NodeError> {
        self.ended().await
    }

    async fn ended(self) -> Result<(), NodeError> {
        self.role.join().await.map_err(|roles::Panicked| NodeError::Panicked)?
    }
}

fn check(config: &SwitchConfig) -> Result<(), NodeError> {
    let wrong =
        |setting, reason: &str| Err(NodeError::Setting { setting, reason: reason.to_owned() });
    if config.members.is_empty() && config.router.is_none() && !config.aggregates {
        return wrong("members", "a switch needs replicas, workers, or to aggregate");
    }
    if config.admission.is_some_and(|it| it.limit == 0 || it.age_max.is_zero()) {
        return wrong("admission", "its limit and its age must be above 0");
    }
    if let Some(router) = &config.router
        && (router.workers.is_empty() || router.routing == r2p2::Routing::Jbsq(0))
    {
        return wrong("router", "it needs workers, and a bound above 0");
    }
    Ok(())
}

async fn run(
    mut switch: Switch,
    mut link: impl WaitLink,
    stopper: Stopper,
    spin: Duration,
) -> Result<(), NodeError> {
    let clock = Clock::new();
    let mut outbox = Outbox::new();
    while !stopper.is_stopped() {
        switch.network = network_status(&link, switch.packets_damaged());
        if turn(&mut switch, &mut link, &clock, &mut outbox)? {
            roles::breathe().await;
        } else {
            let now = clock.now();
            link.wait(switch.poll_timeout().map(|at: Time| at.since(now)), spin).await?;
        }
    }
    Ok(())
}

/// Takes what has arrived and sends what came of it; returns whether there may be more.
fn turn(
    switch: &mut Switch,
    link: &mut impl Link,
    clock: &Clock,
    outbox: &mut Outbox,
) -> Result<bool, NodeError> {
    let mut received = 0;
    for _ in 0..RECEIVES_MAX {
        let now = clock.now();
        let count = link.receive(&mut |from, datagram| {
            if let Err(error) = switch.handle_datagram(now, from, datagram, outbox) {
                tracing::debug!(%from, %error, "not a packet for a switch");
            }
        })?;
        received += count;
        if count == 0 {
            break;
        }
    }
    switch.handle_timeout(clock.now(), outbox);
    switch.flush(outbox);
    link.send(outbox)?;
    Ok(received > 0)
}
