//! Packets that a switch passes on for their sender.

use std::net::SocketAddrV4;

use crate::{
    options::{ORIGIN, ORIGIN_BYTES},
    wire::HEADER_BYTES,
};

/// Appends a client's packet to `out`, with ORIGIN saying who the client is, so that whoever gets
/// it answers the client (protocol §1). Returns false, and appends nothing, if the header has no
/// room for it.
///
/// The datagram must have been parsed, and must have no ORIGIN yet.
pub fn pass_on(datagram: &[u8], client: SocketAddrV4, out: &mut Vec<u8>) -> bool {
    let Some((fixed, rest)) = datagram.split_first_chunk::<HEADER_BYTES>() else {
        return false;
    };
    let Ok(size) = u8::try_from(usize::from(fixed[1]) + ORIGIN_BYTES) else {
        return false;
    };
    let [port_high, port_low] = client.port().to_be_bytes();
    let [a, b, c, d] = client.ip().octets();
    out.extend_from_slice(fixed);
    let start = out.len() - HEADER_BYTES;
    out[start + 1] = size;
    out.extend_from_slice(&[ORIGIN, ORIGIN_BYTES as u8 - 2, a, b, c, d, port_high, port_low]);
    out.extend_from_slice(rest);
    true
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::{Header, MessageType, Options, Packet, Policy, options::tests::any_options};

    proptest! {
        #[test]
        fn only_the_origin_is_new(mut options in any_options(), body: Vec<u8>) {
            options.origin = None;
            let header = Header::single(MessageType::Request, Policy::Replicated, 7);
            let packet = Packet { options, ..Packet::new(header, &body) };
            let (mut datagram, mut passed_on) = (Vec::new(), vec![1, 2, 3]);
            packet.encode(&mut datagram);
            let client = SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 4567);
            prop_assert!(pass_on(&datagram, client, &mut passed_on));
            let parsed = Packet::parse(&passed_on[3..]).unwrap();
            prop_assert_eq!(parsed.options, Options { origin: Some(client), ..options });
            prop_assert_eq!((parsed.header, parsed.body), (header, &body[..]));
        }
    }

    #[test]
    fn a_header_without_room_is_left_alone() {
        let mut datagram = vec![0; 300];
        (datagram[0], datagram[1]) = (0xCC, 250);
        let mut out = Vec::new();
        let client = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        assert!(!pass_on(&datagram, client, &mut out) && out.is_empty());
        assert!(!pass_on(&[0xCC], client, &mut out) && out.is_empty());
    }
}
