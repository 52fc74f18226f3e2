//! R2P2 for users: a [`Server`] that answers requests by an async function, and a [`Client`] that
//! calls one. Nothing is replicated here.
//!
//! Both are shells: a loop that waits for the link, lets the endpoint act, and sends what it wrote.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{SocketAddr, SocketAddrV4},
};

use tokio::net::{ToSocketAddrs, lookup_host};

use crate::BindError;

mod client;
mod server;

pub use client::{CallError, CallSettings, Client, Outcome};
pub use server::Server;

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
