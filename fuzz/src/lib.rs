//! What the fuzz targets share: a way to read a sequence of datagrams from a fuzzer's input.

use std::{net::Ipv4Addr, net::SocketAddrV4, time::Duration};

use r2p2::{CheckSeed, Time, put_check_right};

/// One step of a sequence: a datagram that arrives.
pub struct Arrival {
    /// When.
    pub now: Time,
    /// From one of four peers.
    pub from: SocketAddrV4,
    /// The datagram.
    pub datagram: Vec<u8>,
}

/// Reads a sequence of datagrams: each is {wait and peer u8, length u8, bytes}. Those that need a
/// check have the right one, but for one in eight.
pub fn arrivals(mut input: &[u8]) -> impl Iterator<Item = Arrival> {
    let mut now = Time::ZERO;
    std::iter::from_fn(move || {
        let (&[step, length], rest) = input.split_first_chunk()?;
        let (datagram, rest) = rest.split_at(rest.len().min(usize::from(length)));
        input = rest;
        let mut datagram = datagram.to_vec();
        if datagram.last().is_none_or(|byte| byte % 8 != 7) {
            put_check_right(CheckSeed::NONE, &mut datagram);
        }
        now += Duration::from_millis(u64::from(step >> 2));
        let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, u16::from(step & 3) + 1);
        Some(Arrival { now, from, datagram })
    })
}
