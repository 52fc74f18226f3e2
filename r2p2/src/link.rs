//! The datagram seam: what stands between the endpoints and a network, real or simulated.

use std::{io, net::SocketAddrV4};

use crate::Outbox;

/// A set of sockets that sends and receives datagrams in batches and never blocks.
///
/// UDP gives no promise of delivery, and neither does a link: a datagram that the kernel has no
/// room for is lost and counted, and the protocols above repair it. An error means that the link
/// itself is broken (a socket was closed, an address is not ours) and that the caller must stop.
pub trait Link {
    /// Sends everything in `outbox`, and leaves it empty.
    fn send(&mut self, outbox: &mut Outbox) -> io::Result<()>;

    /// Receives what is waiting, up to a bounded batch, and hands each datagram with its sender
    /// to `each`. Returns how many there were; 0 means that nothing was waiting when the link last
    /// looked, and that the next call looks again.
    fn receive(&mut self, each: &mut dyn FnMut(SocketAddrV4, &[u8])) -> io::Result<usize>;
}
