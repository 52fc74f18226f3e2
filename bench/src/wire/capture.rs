//! Datagrams as the kernel passes them on, by a packet socket.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with, sockopt},
};

use super::Tally;

/// Why nothing is captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// No packet socket.
    #[error("packets cannot be captured: {0}; it needs root")]
    Socket(#[source] io::Error),
    /// It failed.
    #[error("the capture of packets failed: {0}")]
    Io(#[source] io::Error),
}

/// Hands every datagram to a [`Tally`], in a thread of its own.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Tally>>,
}

/// What waits while the thread does not run: some seconds of packets.
const BUFFER_BYTES: usize = 256 << 20;

/// How often the thread looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Capture {
    /// Begins with the next packet, in the network namespace of this thread. Each is seen once: when it
    /// has arrived.
    pub fn start(mut tally: Tally) -> Result<Self, CaptureError> {
        // Of the family's protocols, those that are no wildcard are shown what arrives and not what is
        // sent.
        let (flags, protocol) = (SocketFlags::CLOEXEC, Some(eth::IP));
        let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, protocol)
            .map_err(|errno| CaptureError::Socket(errno.into()))?;
        let prepared =
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).and_then(|()| {
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LOOK_EVERY))
            });
        prepared.map_err(|errno| CaptureError::Socket(errno.into()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            run(&socket, &stopped, &mut tally)?;
            Ok(tally)
        });
        Ok(Self { stop, thread })
    }

    /// Ends it, when everything that has arrived so far is counted.
    pub fn stop(self) -> Result<Tally, CaptureError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the capture does not panic").map_err(CaptureError::Io)
    }
}

fn run(socket: &OwnedFd, stopped: &AtomicBool, tally: &mut Tally) -> io::Result<()> {
    // An IP packet is never larger.
    let mut buffer = vec![0; 1 << 16];
    loop {
        // What arrives from now on is nobody's, so what waits is the rest.
        let is_stopped = stopped.load(Ordering::Relaxed);
        let flags = if is_stopped { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        match recv(socket, &mut buffer[..], flags) {
            Ok((_, size)) => {
                if let Some(datagram) = parse(&buffer[..size]) {
                    tally.datagram(&datagram);
                }
            }
            Err(Errno::AGAIN) if is_stopped => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A UDP datagram on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) payload: &'a [u8],
}

/// Reads an IPv4 packet; none if it is not a whole UDP datagram.
pub(super) fn parse(packet: &[u8]) -> Option<Datagram<'_>> {
    const UDP: u8 = 17;
    const UDP_HEADER: usize = 8;
    let first = packet.first()?;
    let header_bytes = usize::from(first & 0x0F) * 4;
    let header = packet.get(..header_bytes.max(20))?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // More fragments follow, or this is not the first one.
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3FFF != 0;
    if first >> 4 != 4 || header[9] != UDP || is_fragment {
        return None;
    }
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let (source, destination) = (address(12), address(16));
    let udp = packet.get(header_bytes..total)?;
    let (ports, payload) = (udp.get(..UDP_HEADER)?, &udp[UDP_HEADER..]);
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some(Datagram {
        from: SocketAddrV4::new(source, port(0)),
        to: SocketAddrV4::new(destination, port(2)),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        let mut packet =
            vec![0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x1B, 0x58, 0x1B, 0x59, 0, 11, 0, 0, 7, 8, 9]);
        packet
    }

    #[test]
    fn a_datagram_is_read_with_its_ends() {
        let expected = Datagram {
            from: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7000),
            to: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 7001),
            payload: &[7, 8, 9],
        };
        assert_eq!(parse(&packet()), Some(expected));
    }

    #[test]
    fn what_is_no_whole_datagram_is_left_out() {
        let with = |at: usize, value: u8| {
            let mut packet = packet();
            packet[at] = value;
            packet
        };
        // Version 6, TCP, more fragments, a later fragment, longer than it is, shorter than its header.
        for wrong in [with(0, 0x65), with(9, 6), with(6, 0x20), with(7, 1), with(3, 99), with(3, 9)]
        {
            assert_eq!(parse(&wrong), None);
        }
        for size in 0..28 {
            assert_eq!(parse(&packet()[..size]), None);
        }
    }
}
