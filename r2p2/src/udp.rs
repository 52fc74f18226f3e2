//! The UDP shell: a [`Link`] over the kernel's sockets, in batches (Linux).
//!
//! Small datagrams cost the kernel some µs each, and to pass many in one system call hardly helps.
//! What helps is to let the kernel treat many as one: a [`Batch`] goes out by segmentation offload
//! (GSO), and trains of datagrams come in as one buffer (GRO). Both work for multicast too.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd},
    task::Waker,
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::{Batch, Link, Outbox, WaitLink};

#[cfg(not(madsim))]
mod async_link;
mod socket;
mod waker;

#[cfg(not(madsim))]
pub use async_link::AsyncUdpLink;

use socket::{ReceiveBuffers, Socket};
use waker::Sleeper;

/// The socket buffers asked for unless the user says otherwise: at 1,000 requests outstanding,
/// 1 MiB held all of them, and the kernel's default of 208 KiB did not.
const BUFFER_BYTES_DEFAULT: usize = 8 << 20;

/// What a [`UdpLink`] binds to.
#[derive(Debug, Clone)]
pub struct UdpConfig {
    /// Where datagrams for this host arrive, and where all are sent from. Port 0 takes a free one.
    pub address: SocketAddrV4,
    /// A multicast group and port to join, shared with other members on this host.
    pub group: Option<SocketAddrV4>,
    /// The address of the interface by which multicast comes in and goes out. By default the one
    /// bound to; 0.0.0.0 leaves the choice to the routing table.
    pub interface: Ipv4Addr,
    /// How many routers a multicast datagram may pass, plus one. By default 1: it stays in its network.
    pub multicast_ttl: u32,
    /// The size in bytes to ask for, for each of the receive and send buffers of each socket.
    pub buffer_bytes: usize,
}

impl UdpConfig {
    /// A link at `address`, which sends multicast by that address's interface and joins no group.
    pub fn new(address: SocketAddrV4) -> Self {
        Self {
            address,
            group: None,
            interface: *address.ip(),
            multicast_ttl: 1,
            buffer_bytes: BUFFER_BYTES_DEFAULT,
        }
    }
}

/// Why a [`UdpLink`] could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The name of a host could not be turned into an address.
    #[error("the address could not be resolved: {0}")]
    Unresolved(#[source] io::Error),
    /// The kernel refused a socket, or an option that every link needs.
    #[error("a UDP socket could not be set up: {0}")]
    Socket(#[source] io::Error),
    /// The address is in use, or not one of this host's.
    #[error("the address {address} could not be bound: {source}")]
    Address {
        /// The address that was asked for.
        address: SocketAddrV4,
        /// What the kernel said.
        source: io::Error,
    },
    /// The group is not a multicast address (224.0.0.0 to 239.255.255.255).
    #[error("the group {group} is not a multicast address")]
    NotMulticast {
        /// The group that was asked for.
        group: SocketAddrV4,
    },
    /// The kernel refused the membership, mostly because no interface has that address.
    #[error("the group {group} could not be joined on the interface {interface}: {source}")]
    Join {
        /// The group that was asked for.
        group: SocketAddrV4,
        /// The interface that was asked for.
        interface: Ipv4Addr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a link has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpStatistics {
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Bytes in them.
    pub bytes_in: u64,
    /// System calls to receive them.
    pub calls_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Bytes in them.
    pub bytes_out: u64,
    /// System calls to send them.
    pub calls_out: u64,
    /// Datagrams lost here because the kernel had no room for them.
    pub lost_full: u64,
    /// Datagrams lost here because the kernel would not send them where they were to go.
    pub lost_refused: u64,
    /// System calls to wait.
    pub calls_wait: u64,
}

/// A unicast socket, and a second one if the link is a member of a multicast group.
///
/// One thread owns it. Its loop is: [`Link::receive`] until that returns 0, act, [`Link::send`],
/// [`UdpLink::wait`]. Others end the wait by a [`Waker`].
#[derive(Debug)]
pub struct UdpLink {
    unicast: Socket,
    member: Option<Socket>,
    group_wakes: bool,
    segmentation: bool,
    buffers: ReceiveBuffers,
    sleeper: Sleeper,
    statistics: UdpStatistics,
}

impl UdpLink {
    /// Opens the sockets that `config` asks for.
    pub fn bind(config: &UdpConfig) -> Result<Self, BindError> {
        let unicast = Socket::unicast(config)?;
        let member = config.group.map(|group| Socket::member(config, group)).transpose()?;
        Ok(Self {
            segmentation: unicast.has_segmentation(),
            unicast,
            member,
            group_wakes: true,
            buffers: ReceiveBuffers::new(),
            sleeper: Sleeper::new().map_err(BindError::Socket)?,
            statistics: UdpStatistics::default(),
        })
    }

    /// Whether a datagram to the group ends a wait (the default), or stays where it is until
    /// something else does.
    ///
    /// A follower can do nothing with a request before the order that names it has come, so it need
    /// not wake for one: what it saves at low load is a third of its CPU. The buffer must hold what
    /// arrives until the next turn.
    pub fn set_group_wakes(&mut self, wakes: bool) {
        self.group_wakes = wakes;
    }

    /// Blocks until a datagram waits, a [`Waker`] calls, or `timeout` has passed (none: for ever).
    ///
    /// For the first `spin` it looks again and again, and yields the core in between. To be woken
    /// costs more than a short request, so that spinning halves the latency of a lone one; with no
    /// core to spare it gains nothing. It may return early, and without a cause.
    pub fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> io::Result<()> {
        let mut left = timeout;
        if !spin.is_zero() {
            let start = Instant::now();
            let end = timeout.map_or(spin, |timeout| timeout.min(spin));
            while start.elapsed() < end && !self.sleeper.is_called() {
                let ready = self.poll(Some(Duration::ZERO))?;
                if ready.sockets {
                    self.sleeper.rise(ready.bell);
                    return Ok(());
                }
                thread::yield_now();
            }
            left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        }
        // A call that has come already must not hide what the sockets have: look, but do not block.
        let ready = if left == Some(Duration::ZERO) || !self.sleeper.lie_down() {
            self.poll(Some(Duration::ZERO))?
        } else {
            self.poll(left)?
        };
        self.sleeper.rise(ready.bell);
        Ok(())
    }

    /// Handles that end [`UdpLink::wait`] from another thread.
    ///
    /// To wake a thread that is awake costs one atomic exchange: only the first call to a thread
    /// that sleeps makes a system call. A call is never lost: one that comes while the thread is
    /// awake ends its next wait at once. What the caller wrote before is seen after the wait.
    pub fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    /// The address that peers see, with the port that the kernel chose if none was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddrV4> {
        self.unicast.local_address()
    }

    /// The receive and send buffers of the unicast socket in bytes, as the kernel accounts for
    /// them: twice what it granted, for it counts its own overhead (0.7 KiB or more a datagram).
    pub fn buffer_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((self.unicast.receive_buffer_bytes()?, self.unicast.send_buffer_bytes()?))
    }

    /// What the link has done so far.
    pub fn statistics(&self) -> UdpStatistics {
        self.statistics
    }
}

impl UdpLink {
    /// Asks the kernel which sockets have something, so that none is read in vain.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Ready> {
        self.statistics.calls_wait += 1;
        let listens = self.member.as_ref().filter(|_| self.group_wakes);
        let last = listens.map_or_else(|| self.unicast.as_fd(), AsFd::as_fd);
        let mut fds = [
            PollFd::new(&self.sleeper, PollFlags::IN),
            PollFd::new(&self.unicast, PollFlags::IN),
            PollFd::from_borrowed_fd(last, PollFlags::IN),
        ];
        let asked = if listens.is_some() { 3 } else { 2 };
        let timeout = timeout.map(|timeout| Timespec {
            // Years beyond i64 are for ever.
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut fds[..asked], timeout.as_ref()) {
            Ok(_) => {}
            // A signal: what the sockets have is as unknown as before.
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno.into()),
        }
        // An error on a socket is taken away by reading from it, so it counts as something to read.
        let [bell, unicast, member] = fds.map(|fd| !fd.revents().is_empty());
        self.unicast.drained = !unicast;
        if let Some(socket) = &mut self.member {
            // A socket that was not asked about may have something.
            socket.drained = self.group_wakes && !member;
        }
        Ok(Ready { bell, sockets: unicast || member })
    }

    fn send_batch(&mut self, batch: &Batch) {
        let segments = batch.datagrams().count();
        if self.segmentation && segments > 1 {
            self.statistics.calls_out += 1;
            let segment_size = Some(batch.segment_size);
            match self.unicast.send(batch.destination, &batch.bytes, segment_size) {
                Ok(()) => return self.count_sent(segments, batch.bytes.len()),
                Err(error) if !is_segmentation_refused(&error) => {
                    return self.count_lost(batch, segments, &error);
                }
                Err(_) => {}
            }
        }
        let mut sent = 0;
        for datagram in batch.datagrams() {
            self.statistics.calls_out += 1;
            match self.unicast.send(batch.destination, datagram, None) {
                Ok(()) => {
                    sent += 1;
                    self.count_sent(1, datagram.len());
                }
                Err(error) => self.count_lost(batch, 1, &error),
            }
        }
        // The kernel's refusal may be about the destination. Only if all went the other way was it
        // about segmentation, which then is not tried again.
        if self.segmentation && segments > 1 && sent == segments {
            self.segmentation = false;
            tracing::info!(
                destination = %batch.destination,
                "the kernel does not segment here: datagrams are sent one by one"
            );
        }
    }

    fn count_sent(&mut self, datagrams: usize, bytes: usize) {
        self.statistics.datagrams_out += datagrams as u64;
        self.statistics.bytes_out += bytes as u64;
    }

    /// UDP promises nothing, and what the kernel says of one destination says nothing of the next:
    /// whatever cannot be sent is lost, and the protocols above repair it.
    fn count_lost(&mut self, batch: &Batch, datagrams: usize, error: &io::Error) {
        let full = matches!(
            Errno::from_io_error(error),
            Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM)
        );
        if full {
            self.statistics.lost_full += datagrams as u64;
        } else {
            self.statistics.lost_refused += datagrams as u64;
        }
        tracing::debug!(destination = %batch.destination, datagrams, %error, "not sent");
    }

    /// Makes one receive call on a socket. Returns how many datagrams came, and whether the socket
    /// is drained.
    fn receive_from(
        &mut self,
        source: Source,
        each: &mut dyn FnMut(SocketAddrV4, &[u8]),
    ) -> io::Result<(usize, bool)> {
        let socket = match source {
            Source::Unicast => &mut self.unicast,
            Source::Group => match &mut self.member {
                Some(member) => member,
                None => return Ok((0, true)),
            },
        };
        self.statistics.calls_in += 1;
        match self.buffers.receive(socket, each) {
            Ok(received) => {
                self.statistics.datagrams_in += received.datagrams as u64;
                self.statistics.bytes_in += received.bytes as u64;
                Ok((received.datagrams, socket.drained))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.drained = true;
                Ok((0, true))
            }
            // A peer is gone, or a route: it is about what was sent earlier, and reading it took it away.
            Err(error) if is_about_a_peer(&error) => Ok((0, false)),
            Err(error) => Err(error),
        }
    }
}

/// One of the sockets of a link.
#[derive(Debug, Clone, Copy)]
enum Source {
    Group,
    Unicast,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    bell: bool,
    sockets: bool,
}

/// The unicast socket, for a thread that waits for many links at once.
impl AsFd for UdpLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.unicast.as_fd()
    }
}

impl Link for UdpLink {
    fn send(&mut self, outbox: &mut Outbox) -> io::Result<()> {
        outbox.drain(|batch| self.send_batch(batch));
        Ok(())
    }

    /// The group's socket is read before the unicast one, so that bodies come before the metadata
    /// that names them. A socket that is known to be drained is not asked again before the next
    /// wait, or a call that returned 0.
    fn receive(&mut self, each: &mut dyn FnMut(SocketAddrV4, &[u8])) -> io::Result<usize> {
        let mut count = 0;
        if self.member.as_ref().is_some_and(|member| !member.drained) {
            count += self.receive_from(Source::Group, each)?.0;
        }
        if !self.unicast.drained {
            count += self.receive_from(Source::Unicast, each)?.0;
        }
        if count == 0 {
            self.unicast.drained = false;
            if let Some(member) = &mut self.member {
                member.drained = false;
            }
        }
        Ok(count)
    }
}

/// Everything blocks the thread, which the link has for itself.
impl WaitLink for UdpLink {
    async fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> io::Result<()> {
        Self::wait(self, timeout, spin)
    }

    fn waker(&self) -> Waker {
        self.waker()
    }

    fn local_address(&self) -> io::Result<SocketAddrV4> {
        self.local_address()
    }

    fn statistics(&self) -> UdpStatistics {
        self.statistics
    }
}

/// What kernels say where a device cannot segment, or cannot segment this; some also say it of a
/// destination.
fn is_segmentation_refused(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::INVAL | Errno::MSGSIZE))
}

/// What ICMP reports of datagrams sent earlier, where the kernel passes it on.
fn is_about_a_peer(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNREFUSED
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::NETDOWN
                | Errno::MSGSIZE
        )
    )
}

#[cfg(test)]
mod tests;
