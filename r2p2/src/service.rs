//! R2P2 for users: a [`Server`] that answers requests by an async function, and a [`Client`] that
//! calls one. Nothing is replicated here.
//!
//! Both are shells: a loop that waits for the link, lets the endpoint act, and sends what it wrote.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{SocketAddr, SocketAddrV4},
    pin::Pin,
};

use tokio::{
    net::{ToSocketAddrs, lookup_host},
    time::{Instant, Sleep, sleep_until},
};

use crate::{BindError, Time};

mod client;
mod server;

pub use client::{CallError, CallSettings, Client, Outcome};
pub use server::Server;

/// Turns the runtime's time into that of the endpoints which a task drives.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that shows zero now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time since the start.
    pub fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    /// When it will be `time`.
    pub fn instant(&self, time: Time) -> Instant {
        self.start + time.since(Time::ZERO)
    }
}

/// One timer for all the deadlines of a task's loop. It is moved only to ring earlier: deadlines
/// are put off with every datagram, and to ring in vain is cheaper than to tell the runtime each
/// time.
#[derive(Debug)]
pub struct Alarm {
    sleep: Pin<Box<Sleep>>,
    set: bool,
}

impl Alarm {
    /// An alarm that never rings, yet.
    pub fn new() -> Self {
        Self { sleep: Box::pin(sleep_until(Instant::now())), set: false }
    }

    /// Sees to it that the alarm rings at `deadline` at the latest.
    pub fn ring_by(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && (!self.set || deadline < self.sleep.deadline())
        {
            self.sleep.as_mut().reset(deadline);
            self.set = true;
        }
    }

    /// Waits for the next ring. Cancel-safe.
    pub async fn ring(&mut self) {
        if self.set {
            self.sleep.as_mut().await;
            self.set = false;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Alarm {
    fn default() -> Self {
        Self::new()
    }
}

/// The first IPv4 address that a name stands for.
async fn resolve(address: impl ToSocketAddrs) -> Result<SocketAddrV4, BindError> {
    let mut addresses = lookup_host(address).await.map_err(BindError::Unresolved)?;
    addresses
        .find_map(|address| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        })
        .ok_or_else(|| {
            BindError::Unresolved(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "there is no IPv4 address",
            ))
        })
}

/// A number that others cannot guess, so that they can neither fill our hash tables with collisions
/// nor know the next request id.
fn seed() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests;
