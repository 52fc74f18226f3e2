//! The datagram seam: what stands between the endpoints and a network, real or simulated.

use std::{future::Future, io, net::SocketAddrV4, task::Waker, time::Duration};

use crate::{Outbox, UdpStatistics};

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

/// A link that shares its thread with others: a task waits for it.
pub trait AsyncLink: Link + Send {
    /// Waits until [`Link::receive`] may find something. Cancel-safe: it takes nothing.
    fn readable(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

/// A link that has a thread for itself, and sleeps with it.
///
/// A real one blocks the thread, so that what [`WaitLink::wait`] returns is ready when it is first
/// polled; a simulated one suspends its task instead.
pub trait WaitLink: Link + Send {
    /// Waits until a datagram waits, a [`WaitLink::waker`] is called, or `timeout` has passed (none:
    /// for ever). It may return early, and without a cause. For the first `spin` it may look again
    /// and again instead of sleeping.
    fn wait(
        &mut self,
        timeout: Option<Duration>,
        spin: Duration,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Ends the present wait, or the next one, from anywhere.
    fn waker(&self) -> Waker;

    /// The address that peers see.
    fn local_address(&self) -> io::Result<SocketAddrV4>;

    /// What the link has done so far.
    fn statistics(&self) -> UdpStatistics;
}
