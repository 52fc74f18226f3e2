//! The R2P2 header, and datagrams as packets.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | magic `0xCC` |
//! | 1 | 1 | header size in bytes: 8, or more when options follow |
//! | 2 | 1 | message type (high nibble), policy (low nibble) |
//! | 3 | 1 | flags: first `0x80`, last `0x40` |
//! | 4 | 2 | request id, big-endian |
//! | 6 | 2 | packet order, big-endian: the packet count in the first packet of a message, the packet's index in the others |
//! | 8 | header size − 8 | options (see [`Options`]) |
//! | header size | the rest | body |

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    check::{self, CHECK_BYTES, CheckSeed, padding_bytes},
    options::{CHECK, Missing, ORIGIN, ORIGIN_BYTES, Options, OptionsError, pad},
};

/// The most bytes of UDP payload in a packet: a 1500-byte MTU without IP and UDP headers.
pub const DATAGRAM_BYTES_MAX: usize = 1472;

/// The bytes of a header without options.
pub const HEADER_BYTES: usize = 8;

/// The most packets of one message: the packet order is a 16-bit number.
pub const PACKETS_MAX: usize = 65_535;

/// The body of an ACK.
pub(crate) const ACK_BODY: &[u8] = b"ACK";

/// The body of a DROP.
pub(crate) const DROP_BODY: &[u8] = b"DROP";

const MAGIC: u8 = 0xCC;
const FLAG_FIRST: u8 = 0x80;
const FLAG_LAST: u8 = 0x40;

/// What a message is for (protocol §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// A client asks.
    Request = 0,
    /// A server answers.
    Response = 1,
    /// A server tells a switch that it has answered.
    Feedback = 2,
    /// A receiver asks for the rest of a multi-packet message.
    Ack = 3,
    /// A request is not admitted; the paper's NACK (P23).
    Drop = 4,
    /// A replica asks another one.
    RaftRequest = 5,
    /// A replica answers another one.
    RaftReply = 6,
    /// A replica tells another one.
    RaftMessage = 7,
}

impl MessageType {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Request,
            1 => Self::Response,
            2 => Self::Feedback,
            3 => Self::Ack,
            4 => Self::Drop,
            5 => Self::RaftRequest,
            6 => Self::RaftReply,
            7 => Self::RaftMessage,
            _ => return None,
        })
    }

    /// Returns whether only replicas, and whoever asks them, say such things: never the original.
    pub(crate) const fn is_for_replicas(self) -> bool {
        matches!(self, Self::RaftRequest | Self::RaftReply | Self::RaftMessage)
    }
}

/// Who may serve a request. Everything that is not a request says [`Policy::Fixed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Policy {
    /// Any server.
    LoadBalance = 0,
    /// The server that it was sent to.
    Fixed = 1,
    /// Every replica, in an agreed order (`REPLICATED_REQ`).
    Replicated = 2,
    /// One replica, at an agreed place in the order (`REPLICATED_REQ_R`).
    ReplicatedRead = 3,
}

impl Policy {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::LoadBalance,
            1 => Self::Fixed,
            2 => Self::Replicated,
            3 => Self::ReplicatedRead,
            _ => return None,
        })
    }

    /// Whether the request goes through the replicated log.
    pub fn is_replicated(self) -> bool {
        matches!(self, Self::Replicated | Self::ReplicatedRead)
    }
}

/// Why a datagram is not a packet, or not one for the endpoint that got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// There is no room for a header.
    #[error("the datagram is shorter than an R2P2 header")]
    Truncated,
    /// The magic number is another one.
    #[error("the datagram does not begin with R2P2's magic number")]
    NotR2p2,
    /// The header size is below 8 or above the size of the datagram.
    #[error("the header size does not fit the datagram")]
    BadHeaderSize,
    /// No message type has this number.
    #[error("there is no message type {0}")]
    UnknownType(u8),
    /// No policy has this number.
    #[error("there is no policy {0}")]
    UnknownPolicy(u8),
    /// The options cannot be read.
    #[error(transparent)]
    BadOptions(#[from] OptionsError),
    /// The body is not what this type of message has.
    #[error("the body is not one of this type of message")]
    BadBody,
    /// The packet is not as it was sent, was sent for another cluster, or lacks the check that it
    /// must have.
    #[error("the packet does not have the right check")]
    Damaged,
    /// The packet has ORIGIN, and comes from nobody who may say that.
    #[error("ORIGIN is not believed from this sender")]
    UntrustedOrigin,
    /// The packet is of a type that this endpoint does not take.
    #[error("a {0:?} is not for this endpoint")]
    Misdirected(MessageType),
}

/// The fixed part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the message is for.
    pub message_type: MessageType,
    /// Who may serve it.
    pub policy: Policy,
    /// The packet is the first of its message.
    pub first: bool,
    /// The packet is the last of its message.
    pub last: bool,
    /// Tells the messages of one sender's socket apart.
    pub request_id: u16,
    /// The packet count in the first packet of a message, the packet's index in the others.
    pub order: u16,
}

impl Header {
    /// The header of a message that is one packet.
    pub const fn single(message_type: MessageType, policy: Policy, request_id: u16) -> Self {
        Self { message_type, policy, first: true, last: true, request_id, order: 1 }
    }

    /// Whether the packet is a whole message. The packet order of such a packet says nothing.
    pub const fn is_single(&self) -> bool {
        self.first && self.last
    }
}

/// A datagram, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The fixed part.
    pub header: Header,
    /// The options that we know.
    pub options: Options,
    /// The packets that the sender of an ACK is missing.
    pub missing: Option<Missing<'a>>,
    /// Whether there were options other than ORIGIN, known or not: whoever sends some may be sent
    /// some, and ORIGIN is not the sender's.
    pub has_options: bool,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A packet without options.
    pub const fn new(header: Header, body: &'a [u8]) -> Self {
        Self { header, options: Options::NONE, missing: None, has_options: false, body }
    }

    /// The packet of a DROP (P23), without options.
    pub const fn drop(header: Header) -> Self {
        Self::new(header, DROP_BODY)
    }

    /// Reads a datagram that this endpoint may act on: as [`Self::parse`] does, but refuses what has
    /// options other than ORIGIN, or is for replicas, and has not the right check.
    pub fn open(datagram: &'a [u8], seed: CheckSeed) -> Result<Self, WireError> {
        let must_be_checked = match *datagram {
            [MAGIC, size, type_and_policy, _, _, _, _, _, ..] => {
                let type_number = type_and_policy >> 4;
                let is_for_replicas =
                    MessageType::from_number(type_number).is_some_and(MessageType::is_for_replicas);
                let is_plain = usize::from(size) == HEADER_BYTES || has_origin_alone(datagram);
                is_for_replicas || !is_plain
            }
            _ => false,
        };
        if must_be_checked && !check::is_right(seed, datagram) && !is_let_through(datagram) {
            return Err(WireError::Damaged);
        }
        Self::parse(datagram)
    }

    /// Reads a datagram, whatever its check is. Options of unknown kinds are skipped.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, _) =
            datagram.split_first_chunk::<HEADER_BYTES>().ok_or(WireError::Truncated)?;
        let [magic, size, type_and_policy, flags, id @ .., order_high, order_low] = *fixed;
        if magic != MAGIC {
            return Err(WireError::NotR2p2);
        }
        let size = usize::from(size);
        if size < HEADER_BYTES || size > datagram.len() {
            return Err(WireError::BadHeaderSize);
        }
        let (head, body) = datagram.split_at(size);
        let type_number = type_and_policy >> 4;
        let policy_number = type_and_policy & 0x0F;
        let header = Header {
            message_type: MessageType::from_number(type_number)
                .ok_or(WireError::UnknownType(type_number))?,
            policy: Policy::from_number(policy_number)
                .ok_or(WireError::UnknownPolicy(policy_number))?,
            first: flags & FLAG_FIRST != 0,
            last: flags & FLAG_LAST != 0,
            request_id: u16::from_be_bytes(id),
            order: u16::from_be_bytes([order_high, order_low]),
        };
        let (options, missing) = Options::parse(&head[HEADER_BYTES..])?;
        let has_options = size > HEADER_BYTES && !has_origin_alone(datagram);
        Ok(Self { header, options, missing, has_options, body })
    }

    /// Appends the datagram to `out`. Only the known options are written; if there are any, with a
    /// check that begins with `seed`.
    pub fn encode(&self, seed: CheckSeed, out: &mut Vec<u8>) {
        let start = out.len();
        let header = &self.header;
        let type_and_policy = (header.message_type as u8) << 4 | header.policy as u8;
        let flags =
            if header.first { FLAG_FIRST } else { 0 } | if header.last { FLAG_LAST } else { 0 };
        let [id_high, id_low] = header.request_id.to_be_bytes();
        let [order_high, order_low] = header.order.to_be_bytes();
        out.extend_from_slice(&[
            MAGIC,
            HEADER_BYTES as u8,
            type_and_policy,
            flags,
            id_high,
            id_low,
            order_high,
            order_low,
        ]);
        self.options.encode_origin(out);
        let is_checked = self.options.need_check() || self.missing.is_some();
        if is_checked {
            let origin_bytes = out.len() - start - HEADER_BYTES;
            out.extend_from_slice(&[CHECK, CHECK_BYTES as u8 - 2, 0, 0, 0, 0]);
            self.options.encode(out);
            if let Some(missing) = &self.missing {
                missing.encode(out);
            }
            pad(padding_bytes(out.len() - start - origin_bytes), out);
        }
        let size = out.len() - start;
        out[start + 1] =
            u8::try_from(size).expect("all options together fit a header of 255 bytes");
        out.extend_from_slice(self.body);
        if is_checked {
            check::seal(seed, &mut out[start..]);
        }
    }
}

/// Returns whether a planted bug takes a packet whatever its check is.
fn is_let_through(datagram: &[u8]) -> bool {
    let is = |kind, is_chosen: bool| is_chosen && message_type(datagram) == Some(kind);
    is(MessageType::Request, planted!("request-unchecked"))
        || is(MessageType::Response, planted!("reply-unchecked"))
        || is(MessageType::RaftMessage, planted!("message-unchecked"))
}

/// Returns whether ORIGIN is all that a datagram has of options.
fn has_origin_alone(datagram: &[u8]) -> bool {
    let size = (HEADER_BYTES + ORIGIN_BYTES) as u8;
    datagram.get(1) == Some(&size) && datagram.get(HEADER_BYTES) == Some(&ORIGIN)
}

/// The type of a datagram's message, or nothing if it is not R2P2: for sending a datagram to the
/// endpoint that will parse it.
pub fn message_type(datagram: &[u8]) -> Option<MessageType> {
    match *datagram {
        [MAGIC, _, type_and_policy, ..] => MessageType::from_number(type_and_policy >> 4),
        _ => None,
    }
}

/// The body of a FEEDBACK: which request has been answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feedback {
    /// The client's request id.
    pub request_id: u16,
    /// The client's address.
    pub client: SocketAddrV4,
}

impl Feedback {
    /// Reads the body of a FEEDBACK.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let body: [u8; 8] = body.try_into().map_err(|_| WireError::BadBody)?;
        let [id_high, id_low, port_high, port_low, ip @ ..] = body;
        let port = u16::from_be_bytes([port_high, port_low]);
        Ok(Self {
            request_id: u16::from_be_bytes([id_high, id_low]),
            client: SocketAddrV4::new(Ipv4Addr::from(ip), port),
        })
    }

    /// The body that [`Self::parse`] reads.
    pub fn to_bytes(self) -> [u8; 8] {
        let [id_high, id_low] = self.request_id.to_be_bytes();
        let [port_high, port_low] = self.client.port().to_be_bytes();
        let [a, b, c, d] = self.client.ip().octets();
        [id_high, id_low, port_high, port_low, a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::options::tests::any_options;

    fn any_header() -> impl Strategy<Value = Header> {
        let numbers = (0..8_u8, 0..4_u8, any::<u16>(), any::<u16>());
        (numbers, any::<bool>(), any::<bool>()).prop_map(
            |((message_type, policy, request_id, order), first, last)| Header {
                message_type: MessageType::from_number(message_type).unwrap(),
                policy: Policy::from_number(policy).unwrap(),
                first,
                last,
                request_id,
                order,
            },
        )
    }

    proptest! {
        #[test]
        fn packets_survive_encoding(
            header in any_header(),
            options in any_options(),
            bitmap in prop::option::of(prop::collection::vec(any::<u8>(), 0..250)),
            first_missing in any::<u16>(),
            seed in any::<u64>(),
            body in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let missing = bitmap.as_ref().map(|bitmap| Missing::new(first_missing, bitmap));
            let checked = options.need_check() || missing.is_some();
            let packet = Packet {
                options: Options { checked, ..options },
                missing,
                has_options: checked,
                ..Packet::new(header, &body)
            };
            let mut datagram = Vec::new();
            Packet { options, ..packet }.encode(CheckSeed::of(seed), &mut datagram);
            prop_assert_eq!(Packet::parse(&datagram), Ok(packet));
            prop_assert_eq!(message_type(&datagram), Some(header.message_type));
            let is_plain = !checked && header.message_type.is_for_replicas();
            let opened = if is_plain { Err(WireError::Damaged) } else { Ok(packet) };
            prop_assert_eq!(Packet::open(&datagram, CheckSeed::of(seed)), opened);
            if checked {
                let other = Packet::open(&datagram, CheckSeed::of(seed ^ 1));
                prop_assert_eq!(other, Err(WireError::Damaged));
            }
        }

        #[test]
        fn any_datagram_is_a_packet_or_an_error(
            mut datagram in prop::collection::vec(any::<u8>(), 0..300),
            plausible in any::<bool>(),
        ) {
            if plausible && datagram.len() > 3 {
                datagram[0] = MAGIC;
                datagram[2] &= 0x73;
            }
            if let Ok(packet) = Packet::parse(&datagram) {
                // What is parsed can be encoded, and is the same again.
                let mut again = Vec::new();
                packet.encode(CheckSeed::NONE, &mut again);
                let parsed = Packet::parse(&again).unwrap();
                let checked = packet.options.checked;
                let options = Options { checked, ..parsed.options };
                let has_options = packet.has_options;
                prop_assert_eq!(Packet { options, has_options, ..parsed }, packet);
            }
        }
    }

    #[test]
    fn what_is_not_a_packet_is_named() {
        let good = [0xCC, 8, 0x01, 0xC0, 0, 1, 0, 1, b'x'];
        assert!(Packet::parse(&good).is_ok());
        let change = |position: usize, byte: u8| {
            let mut bad = good;
            bad[position] = byte;
            Packet::parse(&bad).unwrap_err()
        };
        assert_eq!(Packet::parse(&good[..7]), Err(WireError::Truncated));
        assert_eq!(Packet::parse(&[]), Err(WireError::Truncated));
        assert_eq!(change(0, 0xCD), WireError::NotR2p2);
        assert_eq!(change(1, 7), WireError::BadHeaderSize);
        assert_eq!(change(1, 10), WireError::BadHeaderSize);
        assert_eq!(change(1, 9), OptionsError::Truncated(b'x').into());
        assert_eq!(change(2, 0x81), WireError::UnknownType(8));
        assert_eq!(change(2, 0x04), WireError::UnknownPolicy(4));
    }

    #[test]
    fn feedback_is_laid_out_as_in_the_protocol() {
        let feedback = Feedback {
            request_id: 0x0102,
            client: SocketAddrV4::new(Ipv4Addr::new(10, 20, 30, 40), 0x0304),
        };
        let bytes = [1, 2, 3, 4, 10, 20, 30, 40];
        assert_eq!(feedback.to_bytes(), bytes);
        assert_eq!(Feedback::parse(&bytes), Ok(feedback));
        assert_eq!(Feedback::parse(&bytes[1..]), Err(WireError::BadBody));
    }

    #[test]
    fn all_options_together_fit_a_header() {
        let session = crate::options::Session { client: 1, sequence: 1, lowest: 1 };
        let packet = Packet {
            options: Options {
                session: Some(session),
                origin: Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)),
                request_kind: Some(1),
                identity: Some(session.identity()),
                outcome: Some(1),
                checksum: Some(1),
                undroppable: true,
                checked: true,
                reason: Some(crate::options::Reason { reason: 1, node: 1 }),
            },
            missing: Some(Missing::new(0, &[1; 255])),
            ..Packet::new(Header::single(MessageType::Ack, Policy::Fixed, 1), ACK_BODY)
        };
        let mut datagram = Vec::new();
        packet.encode(CheckSeed::NONE, &mut datagram);
        assert!(usize::from(datagram[1]) > 240);
        assert!(Packet::parse(&datagram).is_ok());
    }
}
