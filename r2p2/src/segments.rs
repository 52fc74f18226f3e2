//! A message cut into packets, any of which can be written at any time.

use std::{net::SocketAddrV4, time::Duration};

use bytes::Bytes;

use crate::{
    CheckSeed, Outbox,
    options::{ORIGIN_BYTES, Options},
    wire::{DATAGRAM_BYTES_MAX, Header, MessageType, PACKETS_MAX, Packet, Policy},
};

/// The body of the first packet of a multi-packet request: with its headers it fills the smallest
/// Ethernet frame, so that asking for admission costs little.
pub(crate) const FIRST_REQUEST_BODY_BYTES: usize = 14;

/// How many packets of a plain message are sent at once. Its receiver cannot ask for what it wants,
/// so the sender paces the rest by [`BURST_INTERVAL`].
pub(crate) const BURST: u16 = 128;

/// The time between two bursts.
pub(crate) const BURST_INTERVAL: Duration = Duration::from_millis(1);

/// Why a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The packet count does not fit its 16 bits.
    #[error("a message of {bytes} bytes needs more than {PACKETS_MAX} packets")]
    TooLarge {
        /// The size of the message.
        bytes: usize,
    },
}

/// What all the packets of one message have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope {
    pub(crate) message_type: MessageType,
    pub(crate) policy: Policy,
    pub(crate) request_id: u16,
    pub(crate) options: Options,
    /// Seed of the packets' checks, if they have any.
    pub(crate) seed: CheckSeed,
}

/// Where a message is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    total: usize,
    first: usize,
    rest: usize,
    count: u16,
}

impl Envelope {
    /// Decides how the packets of a message are cut, and completes the options by the checksum of
    /// the body where there is to be one: in every multi-packet message with options.
    pub(crate) fn cut(&mut self, body: &[u8]) -> Result<Cut, SendError> {
        self.options.checksum = None;
        if body.len() > self.capacity() && !self.options.is_none() {
            self.options.checksum = Some(crc32fast::hash(body));
        }
        let capacity = self.capacity();
        let (first, rest) = match self.message_type {
            _ if body.len() <= capacity => (body.len(), capacity),
            MessageType::Request => (FIRST_REQUEST_BODY_BYTES, capacity),
            _ => (capacity, capacity),
        };
        let count = 1 + (body.len() - first).div_ceil(rest);
        let too_large = SendError::TooLarge { bytes: body.len() };
        Ok(Cut {
            total: body.len(),
            first,
            rest,
            count: u16::try_from(count).map_err(|_| too_large)?,
        })
    }

    /// The most bytes of body in one packet.
    fn capacity(&self) -> usize {
        capacity(self.message_type, &self.options)
    }

    /// Appends the packet with this index, below the count of `cut`, of the message `body`.
    pub(crate) fn write(&self, cut: &Cut, body: &[u8], index: u16, out: &mut Vec<u8>) {
        debug_assert!(index < cut.count && body.len() == cut.total);
        let range = match usize::from(index) {
            0 => 0..cut.first,
            index => {
                let start = cut.first + (index - 1) * cut.rest;
                start..cut.total.min(start + cut.rest)
            }
        };
        let header = Header {
            message_type: self.message_type,
            policy: self.policy,
            first: index == 0,
            last: index == cut.count - 1,
            request_id: self.request_id,
            order: if index == 0 { cut.count } else { index },
        };
        let packet = Packet { options: self.options, ..Packet::new(header, &body[range]) };
        packet.encode(self.seed, out);
    }
}

/// The most bytes of body in one packet with these options.
fn capacity(message_type: MessageType, options: &Options) -> usize {
    let reserved = match message_type {
        MessageType::Request if !options.is_none() => ORIGIN_BYTES,
        _ => 0,
    };
    DATAGRAM_BYTES_MAX - options.header_size() - reserved
}

/// The least size of a request of several packets that begins with `packet`, whose packets are all
/// as large as they can be.
pub(crate) fn least_request_bytes(packet: &Packet<'_>) -> usize {
    let between = usize::from(packet.header.order.saturating_sub(2));
    FIRST_REQUEST_BODY_BYTES + between * capacity(MessageType::Request, &packet.options) + 1
}

impl Cut {
    /// How many packets there are.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }
}

/// A message whose packets may have to be sent again.
#[derive(Debug)]
pub(crate) struct Segments {
    envelope: Envelope,
    cut: Cut,
    body: Bytes,
}

impl Segments {
    pub(crate) fn new(mut envelope: Envelope, body: Bytes) -> Result<Self, SendError> {
        let cut = envelope.cut(&body)?;
        Ok(Self { envelope, cut, body })
    }

    /// The same as [`Self::new`], for a message that has been cut already.
    pub(crate) fn from_cut(envelope: Envelope, cut: Cut, body: Bytes) -> Self {
        debug_assert!(body.len() == cut.total);
        Self { envelope, cut, body }
    }

    /// Appends the packet with this index, which is below [`Self::count`].
    pub(crate) fn write(&self, index: u16, out: &mut Vec<u8>) {
        self.envelope.write(&self.cut, &self.body, index, out);
    }

    /// Sends a [`BURST`] of packets from the index `from` on. Returns the index of the next one, if
    /// there are more.
    pub(crate) fn send_burst(
        &self,
        to: SocketAddrV4,
        from: u16,
        outbox: &mut Outbox,
    ) -> Option<u16> {
        let end = from.saturating_add(BURST).min(self.count());
        for index in from..end {
            outbox.push(to, |out| self.write(index, out));
        }
        (end < self.count()).then_some(end)
    }

    /// How many packets there are.
    pub(crate) fn count(&self) -> u16 {
        self.cut.count
    }

    /// The request id of every packet.
    pub(crate) fn request_id(&self) -> u16 {
        self.envelope.request_id
    }

    /// The bytes of the whole body.
    pub(crate) fn body_bytes(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Session;

    fn packets(message_type: MessageType, options: Options, size: usize) -> Vec<Vec<u8>> {
        let body: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let seed = CheckSeed::NONE;
        let policy = Policy::Fixed;
        let envelope = Envelope { message_type, policy, request_id: 7, options, seed };
        let segments = Segments::new(envelope, body.into()).unwrap();
        let write = |index| {
            let mut out = Vec::new();
            segments.write(index, &mut out);
            out
        };
        (0..segments.count()).map(write).collect()
    }

    #[test]
    fn the_packets_of_any_message_make_its_body() {
        let session = Options {
            session: Some(Session { client: 1, sequence: 2, lowest: 3 }),
            ..Options::NONE
        };
        for message_type in [MessageType::Request, MessageType::Response] {
            for options in [Options::NONE, Options::REPAIRABLE, session] {
                for size in [0, 1, 14, 15, 1400, 1438, 1464, 1465, 1478, 1479, 4000, 100_000] {
                    let packets = packets(message_type, options, size);
                    let mut body = Vec::new();
                    for (index, bytes) in packets.iter().enumerate() {
                        assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
                        let packet = Packet::parse(bytes).unwrap();
                        let order = if index == 0 { packets.len() } else { index };
                        assert_eq!(usize::from(packet.header.order), order);
                        assert_eq!(packet.header.first, index == 0);
                        assert_eq!(packet.header.last, index == packets.len() - 1);
                        assert_eq!(packet.options.session, options.session);
                        body.extend_from_slice(packet.body);
                    }
                    let expected: Vec<u8> = (0..size).map(|i| i as u8).collect();
                    assert_eq!(body, expected, "{size} bytes");
                }
            }
        }
    }

    #[test]
    fn a_request_with_options_leaves_room_for_origin() {
        let session = Options {
            session: Some(Session { client: 1, sequence: 2, lowest: 3 }),
            ..Options::NONE
        };
        for size in [1400, 1430, 1440, 3000] {
            for bytes in packets(MessageType::Request, session, size) {
                assert!(bytes.len() + ORIGIN_BYTES <= DATAGRAM_BYTES_MAX);
            }
        }
    }

    #[test]
    fn only_multi_packet_messages_with_options_carry_a_checksum_unasked() {
        let identity = Options { outcome: Some(1), ..Options::NONE };
        let checksum = |options, size| {
            let packets = packets(MessageType::Response, options, size);
            Packet::parse(packets.last().unwrap()).unwrap().options.checksum
        };
        assert_eq!(checksum(Options::NONE, 3000), None);
        assert_eq!(checksum(identity, 100), None);
        assert!(checksum(identity, 3000).is_some());
        assert_eq!(checksum(Options::REPAIRABLE, 3), None);
        assert!(checksum(Options::REPAIRABLE, 3000).is_some());
    }

    #[test]
    fn a_message_of_too_many_packets_is_refused() {
        let mut envelope = Envelope {
            message_type: MessageType::Response,
            policy: Policy::Fixed,
            request_id: 7,
            options: Options::NONE,
            seed: CheckSeed::NONE,
        };
        let most = 1464 * PACKETS_MAX;
        let body = vec![0; most + 1];
        assert_eq!(envelope.cut(&body[..most]).unwrap().count(), 65_535);
        let error = SendError::TooLarge { bytes: most + 1 };
        assert_eq!(envelope.cut(&body), Err(error));
    }
}
