//! One UDP socket with segmentation offload: how it is opened, how it sends and receives.

use std::{
    array, io,
    io::IoSliceMut,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use socket2::{Domain, SockRef, Type};

use super::{BindError, UdpConfig};

/// How many buffers one system call may fill; each holds a datagram, or a train of them (GRO).
///
/// Lone datagrams cost 0.43 µs each in eights and 0.41 in 32s; a call for one pays for every buffer
/// it offers.
const BUFFERS: usize = 8;

/// Bytes from one receive buffer to the next.
///
/// A train of datagrams is at most 65,535 bytes. The odd five cache lines beyond that keep the
/// heads of the buffers, which small datagrams live in, out of each other's cache sets.
const BUFFER_STRIDE: usize = 65_536 + 5 * 64;

/// A socket that never blocks.
#[derive(Debug)]
pub(super) struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
    /// The kernel had nothing more when last asked.
    pub(super) drained: bool,
}

impl Socket {
    /// The socket that everything is sent from, and that what is sent to this host arrives at.
    pub(super) fn unicast(config: &UdpConfig) -> Result<Self, BindError> {
        let socket = open()?;
        socket
            .set_multicast_if_v4(&config.interface)
            .and_then(|()| socket.set_multicast_ttl_v4(config.multicast_ttl))
            .and_then(|()| socket.set_multicast_loop_v4(true))
            .map_err(BindError::Socket)?;
        Self::bind(socket, config.address, config.buffer_bytes)
    }

    /// A member of `group`, beside those that other replicas on this host have.
    pub(super) fn member(config: &UdpConfig, group: SocketAddrV4) -> Result<Self, BindError> {
        if !group.ip().is_multicast() {
            return Err(BindError::NotMulticast { group });
        }
        let socket = open()?;
        socket.set_reuse_address(true).map_err(BindError::Socket)?;
        // Bound to the group's address, the socket gets what was sent to the group and nothing else.
        let member = Self::bind(socket, group, config.buffer_bytes)?;
        let interface = config.interface;
        member.udp.join_multicast_v4(group.ip(), &interface).map_err(|source| BindError::Join {
            group,
            interface,
            source,
        })?;
        Ok(member)
    }

    fn bind(
        socket: socket2::Socket,
        address: SocketAddrV4,
        buffer_bytes: usize,
    ) -> Result<Self, BindError> {
        socket.bind(&address.into()).map_err(|source| BindError::Address { address, source })?;
        let udp = UdpSocket::from(socket);
        let state = UdpSocketState::new((&udp).into()).map_err(BindError::Socket)?;
        enlarge_buffers(&udp, buffer_bytes).map_err(BindError::Socket)?;
        // quinn-udp asks for congestion marks, which nobody here reads, at 0.05 µs a datagram.
        SockRef::from(&udp).set_recv_tos_v4(false).map_err(BindError::Socket)?;
        // quinn-udp forbids fragments, for QUIC measures the path. R2P2's packets are of a fixed
        // size, and a tunnel with a smaller MTU must slow them down, not stop them.
        sockopt::set_ip_mtu_discover(&udp, Ipv4PathMtuDiscovery::WANT)
            .map_err(|errno| BindError::Socket(errno.into()))?;
        Ok(Self { udp, state, drained: false })
    }

    /// Sends `bytes` to `destination`: one datagram, or several of `segment_size` bytes.
    pub(super) fn send(
        &self,
        destination: SocketAddrV4,
        bytes: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: SocketAddr::V4(destination),
            ecn: None,
            contents: bytes,
            segment_size,
            src_ip: None,
        };
        self.state.try_send((&self.udp).into(), &transmit)
    }

    /// Whether the kernel has segmentation offload (GSO).
    pub(super) fn has_segmentation(&self) -> bool {
        self.state.max_gso_segments() > 1
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddrV4> {
        match self.udp.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn receive_buffer_bytes(&self) -> io::Result<usize> {
        Ok(sockopt::socket_recv_buffer_size(&self.udp)?)
    }

    pub(super) fn send_buffer_bytes(&self) -> io::Result<usize> {
        Ok(sockopt::socket_send_buffer_size(&self.udp)?)
    }

    #[cfg(not(madsim))]
    pub(super) fn try_clone(&self) -> io::Result<UdpSocket> {
        self.udp.try_clone()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }
}

/// What one system call received.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    pub(super) datagrams: usize,
    pub(super) bytes: usize,
}

/// Buffers that the kernel fills, allocated once.
#[derive(Debug)]
pub(super) struct ReceiveBuffers {
    bytes: Vec<u8>,
    metas: [RecvMeta; BUFFERS],
}

impl ReceiveBuffers {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BUFFERS * BUFFER_STRIDE],
            metas: array::from_fn(|_| RecvMeta::default()),
        }
    }

    /// Makes one receive call on `socket`, hands over each datagram, and notes whether any is left.
    pub(super) fn receive(
        &mut self,
        socket: &mut Socket,
        each: &mut dyn FnMut(SocketAddrV4, &[u8]),
    ) -> io::Result<Received> {
        let mut chunks = self.bytes.chunks_exact_mut(BUFFER_STRIDE);
        let mut slices: [IoSliceMut<'_>; BUFFERS] =
            array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let filled = socket.state.recv((&socket.udp).into(), &mut slices, &mut self.metas)?;
        // A call that could have filled more found the queue empty: to ask again would be a waste.
        socket.drained = filled < BUFFERS;

        let mut received = Received::default();
        let buffers = self.bytes.chunks_exact(BUFFER_STRIDE);
        for (meta, buffer) in self.metas[..filled].iter().zip(buffers) {
            // An IPv4 socket has IPv4 peers.
            let SocketAddr::V4(from) = meta.addr else {
                continue;
            };
            received.bytes += meta.len;
            if meta.len == 0 {
                received.datagrams += 1;
                each(from, &[]);
            }
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                received.datagrams += 1;
                each(from, datagram);
            }
        }
        Ok(received)
    }
}

fn open() -> Result<socket2::Socket, BindError> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    socket2::Socket::new(Domain::IPV4, kind, None).map_err(BindError::Socket)
}

/// Asks for buffers of `bytes`, beyond the limit for ordinary users (`net.core.rmem_max`) where this
/// process may. The kernel grants what it likes, so that the caller has to look.
fn enlarge_buffers(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, bytes).is_err() {
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
    }
    Ok(())
}
