//! What a switch does with a client's packet: it passes it on, or refuses it.

use std::net::SocketAddrV4;

use crate::{
    CheckSeed, Outbox,
    options::{ORIGIN, ORIGIN_BYTES, Options},
    wire::{HEADER_BYTES, Header, MessageType, Packet, Policy},
};

/// Whether a datagram's header has room for ORIGIN.
pub fn has_room_for_origin(datagram: &[u8]) -> bool {
    datagram.get(1).is_some_and(|size| u8::try_from(usize::from(*size) + ORIGIN_BYTES).is_ok())
}

/// Passes a client's packet on to `to`, with ORIGIN saying who the client is, so that whoever gets
/// it answers the client (protocol §1).
///
/// The datagram must have been parsed, and must have no ORIGIN yet.
///
/// # Panics
///
/// If the header has no room for it: see [`has_room_for_origin`].
pub fn pass_on(datagram: &[u8], client: SocketAddrV4, to: SocketAddrV4, outbox: &mut Outbox) {
    assert!(has_room_for_origin(datagram), "whoever has no room is refused");
    let (fixed, rest) = datagram.split_at(HEADER_BYTES);
    let [port_high, port_low] = client.port().to_be_bytes();
    let [a, b, c, d] = client.ip().octets();
    outbox.push(to, |out| {
        let start = out.len();
        out.extend_from_slice(fixed);
        out[start + 1] += ORIGIN_BYTES as u8;
        out.extend_from_slice(&[ORIGIN, ORIGIN_BYTES as u8 - 2, a, b, c, d, port_high, port_low]);
        out.extend_from_slice(rest);
    });
}

/// Tells a client by DROP that its request is not admitted now (P23). `seed` is that of the request.
pub fn refuse(request: &Packet<'_>, client: SocketAddrV4, seed: CheckSeed, outbox: &mut Outbox) {
    let header = Header::single(MessageType::Drop, Policy::Fixed, request.header.request_id);
    let identity = request.options.session.map(|session| session.identity());
    let options = Options { identity, checked: request.options.checked, ..Options::NONE };
    let answer = Packet { options, ..Packet::drop(header) };
    outbox.push(client, |out| answer.encode(seed, out));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::options::tests::any_options;

    proptest! {
        #[test]
        fn only_the_origin_is_new(
            options in any_options(),
            body in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut options = Options { origin: None, ..options };
            options.checked = options.need_check();
            let seed = CheckSeed::of(9);
            let header = Header::single(MessageType::Request, Policy::Replicated, 7);
            let packet = Packet { options, ..Packet::new(header, &body) };
            let mut datagram = Vec::new();
            packet.encode(seed, &mut datagram);
            let client = SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 4567);
            let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
            let mut outbox = Outbox::new();
            // One behind the other, as in a batch.
            pass_on(&datagram, client, to, &mut outbox);
            pass_on(&datagram, client, to, &mut outbox);
            let mut passed_on = Vec::new();
            outbox.drain(|batch| passed_on.extend(batch.datagrams().map(<[u8]>::to_vec)));
            prop_assert_eq!(passed_on.len(), 2);
            for datagram in &passed_on {
                let parsed = Packet::open(datagram, seed).unwrap();
                prop_assert_eq!(parsed.options, Options { origin: Some(client), ..options });
                prop_assert_eq!((parsed.header, parsed.body), (header, &body[..]));
            }
        }
    }

    #[test]
    fn a_header_without_room_is_known() {
        let fits = |size: u8| has_room_for_origin(&[0xCC, size]);
        assert!(fits(247) && !fits(248) && !fits(255) && !has_room_for_origin(&[0xCC]));
    }
}
