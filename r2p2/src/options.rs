//! The options between header and body: ours, not the original's (protocol §1).
//!
//! Each is {kind u8, length u8, value}; the length counts the value only, integers are big-endian.
//!
//! | kind | name | value | in |
//! |---|---|---|---|
//! | 1 | SESSION | client id u64, sequence u64, lowest unacknowledged sequence u64 | every packet of a request (P1, P4) |
//! | 2 | ORIGIN | client ip u32, port u16 | requests that someone else passes on |
//! | 5 | `REQUEST_KIND` | u8 | requests |
//! | 6 | MISSING | first index u16, bitmap | ACK |
//! | 7 | IDENTITY | client id u64, sequence u64 | responses, DROP, FEEDBACK |
//! | 8 | OUTCOME | u8 | responses |
//! | 9 | CHECKSUM | CRC-32 of the message's body, u32 | every packet of a multi-packet message with options |
//! | 10 | UNDROPPABLE | nothing | requests that are not to be refused under load |
//! | 11 | CHECK | CRC-32C of the packet, u32 | every packet with options; the first of them, but for ORIGIN |
//! | 12 | REASON | reason u8, replica u16 | DROP: why, if it is not load |
//! | 0 | padding | nothing | behind the others, where the header's size needs it |
//!
//! Unknown kinds are skipped. A known kind of a wrong length, or twice, is an error.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    check::{CHECK_BYTES, padding_bytes},
    wire::HEADER_BYTES,
};

const SESSION: u8 = 1;
pub(crate) const ORIGIN: u8 = 2;
const REQUEST_KIND: u8 = 5;
const MISSING: u8 = 6;
const IDENTITY: u8 = 7;
const OUTCOME: u8 = 8;
const CHECKSUM: u8 = 9;
const UNDROPPABLE: u8 = 10;
pub(crate) const CHECK: u8 = 11;
const REASON: u8 = 12;
const PADDING: u8 = 0;

/// The bytes that ORIGIN adds to a header: senders of requests with SESSION leave room for it, so
/// that a packet that is passed on still fits an MTU.
pub(crate) const ORIGIN_BYTES: usize = 8;

/// The longest bitmap of a MISSING option: with all the other options it fits a header.
pub(crate) const BITMAP_BYTES_MAX: usize = 155;

/// Why the options of a packet cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The header ends within an option.
    #[error("option {0} goes beyond the end of the header")]
    Truncated(u8),
    /// The value has not the length that its kind has.
    #[error("option {0} has a value of a wrong length")]
    BadLength(u8),
    /// The option is there more than once.
    #[error("option {0} is there twice")]
    Repeated(u8),
}

/// The SESSION option of a request: its identity, and what the client has got (P1, P20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session {
    /// The client id; 0 in a request that opens a session.
    pub client: u64,
    /// Which request of this client.
    pub sequence: u64,
    /// The client holds the replies of every sequence below this one.
    pub lowest: u64,
}

impl Session {
    /// What a reply to the request is matched by.
    pub const fn identity(&self) -> Identity {
        Identity { client: self.client, sequence: self.sequence }
    }
}

/// The IDENTITY option: which request a response, a DROP or a FEEDBACK is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The client id of the request's session.
    pub client: u64,
    /// The sequence of the request.
    pub sequence: u64,
}

/// The REASON option of a DROP: why no request is admitted, if that is not load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason {
    /// A number of the layer above.
    pub reason: u8,
    /// The replica that it is about.
    pub node: u16,
}

/// The options of a packet, without MISSING, which ACKs alone have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Whose request, and which (P1).
    pub session: Option<Session>,
    /// The client's address, set by whoever passes a request on and cannot keep its source address.
    pub origin: Option<SocketAddrV4>,
    /// What kind of request: a number of the layer above.
    pub request_kind: Option<u8>,
    /// Which request is answered.
    pub identity: Option<Identity>,
    /// Why a request was not executed: a number of the layer above; none or 0 if it was executed.
    pub outcome: Option<u8>,
    /// The CRC-32 of the body of a message of several packets, in each of them. It sets the packets
    /// of two messages apart that share address and request id, because a request id recurs and a
    /// retry may be answered anew. Endpoints compute it: what they are given to send needs none.
    pub checksum: Option<u32>,
    /// Not to be refused because of load, as far as there is room at all.
    pub undroppable: bool,
    /// There is a check of the whole packet, which shows too that the sender understands options and
    /// selective repeat. Whatever is encoded with an option other than ORIGIN has one.
    pub checked: bool,
    /// The reason why a request was not admitted, in a DROP.
    pub reason: Option<Reason>,
}

impl Options {
    /// No options at all, as the original R2P2 has it.
    pub const NONE: Self = Self {
        session: None,
        origin: None,
        request_kind: None,
        identity: None,
        outcome: None,
        checksum: None,
        undroppable: false,
        checked: false,
        reason: None,
    };

    /// Options for a request without SESSION whose sender and receiver are of this crate: nothing
    /// but what makes large messages survive loss. The original R2P2 does not understand it.
    pub const REPAIRABLE: Self = Self { checked: true, ..Self::NONE };

    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Returns whether a packet with these options has a check.
    pub(crate) fn need_check(&self) -> bool {
        !Self { origin: None, ..*self }.is_none()
    }

    /// The bytes of a header with these options and no others, ORIGIN left out.
    pub(crate) fn header_size(&self) -> usize {
        if !self.need_check() {
            return HEADER_BYTES;
        }
        let size = HEADER_BYTES + CHECK_BYTES + self.encoded_size();
        size + padding_bytes(size)
    }

    /// The bytes that [`Self::encode`] appends.
    fn encoded_size(&self) -> usize {
        let size = |present: bool, value: usize| if present { 2 + value } else { 0 };
        size(self.session.is_some(), 24)
            + size(self.request_kind.is_some(), 1)
            + size(self.identity.is_some(), 16)
            + size(self.outcome.is_some(), 1)
            + size(self.checksum.is_some(), 4)
            + size(self.undroppable, 0)
            + size(self.reason.is_some(), 3)
    }

    /// Appends ORIGIN to `out`, if there is one.
    pub(crate) fn encode_origin(&self, out: &mut Vec<u8>) {
        if let Some(origin) = self.origin {
            out.extend_from_slice(&[ORIGIN, 6]);
            out.extend_from_slice(&origin.ip().octets());
            out.extend_from_slice(&origin.port().to_be_bytes());
        }
    }

    /// Appends the options to `out`, in ascending order of their kinds, but for ORIGIN and the check.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(session) = self.session {
            out.extend_from_slice(&[SESSION, 24]);
            out.extend_from_slice(&session.client.to_be_bytes());
            out.extend_from_slice(&session.sequence.to_be_bytes());
            out.extend_from_slice(&session.lowest.to_be_bytes());
        }
        if let Some(kind) = self.request_kind {
            out.extend_from_slice(&[REQUEST_KIND, 1, kind]);
        }
        if let Some(identity) = self.identity {
            out.extend_from_slice(&[IDENTITY, 16]);
            out.extend_from_slice(&identity.client.to_be_bytes());
            out.extend_from_slice(&identity.sequence.to_be_bytes());
        }
        if let Some(outcome) = self.outcome {
            out.extend_from_slice(&[OUTCOME, 1, outcome]);
        }
        if let Some(checksum) = self.checksum {
            out.extend_from_slice(&[CHECKSUM, 4]);
            out.extend_from_slice(&checksum.to_be_bytes());
        }
        if self.undroppable {
            out.extend_from_slice(&[UNDROPPABLE, 0]);
        }
        if let Some(Reason { reason, node }) = self.reason {
            let [high, low] = node.to_be_bytes();
            out.extend_from_slice(&[REASON, 3, reason, high, low]);
        }
    }

    /// Reads all the options of a header.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<(Self, Option<Missing<'_>>), OptionsError> {
        let mut options = Self::NONE;
        let mut missing = None;
        while let [kind, rest @ ..] = bytes {
            let kind = *kind;
            let (&length, rest) = rest.split_first().ok_or(OptionsError::Truncated(kind))?;
            let (value, rest) =
                rest.split_at_checked(usize::from(length)).ok_or(OptionsError::Truncated(kind))?;
            bytes = rest;
            let mut value = Value { kind, bytes: value };
            match kind {
                SESSION => set(kind, &mut options.session, value.session()?)?,
                ORIGIN => set(kind, &mut options.origin, value.address()?)?,
                REQUEST_KIND => set(kind, &mut options.request_kind, value.u8()?)?,
                MISSING => set(kind, &mut missing, value.missing()?)?,
                IDENTITY => set(kind, &mut options.identity, value.identity()?)?,
                OUTCOME => set(kind, &mut options.outcome, value.u8()?)?,
                CHECKSUM => set(kind, &mut options.checksum, value.u32()?)?,
                UNDROPPABLE if options.undroppable => return Err(OptionsError::Repeated(kind)),
                UNDROPPABLE => options.undroppable = true,
                CHECK if options.checked => return Err(OptionsError::Repeated(kind)),
                CHECK => options.checked = value.u32().map(|_| true)?,
                REASON => set(kind, &mut options.reason, value.reason()?)?,
                _ => continue,
            }
            if !value.bytes.is_empty() {
                return Err(OptionsError::BadLength(kind));
            }
        }
        Ok((options, missing))
    }
}

/// Appends so many bytes of options that say nothing.
pub(crate) fn pad(bytes: usize, out: &mut Vec<u8>) {
    debug_assert!(bytes.is_multiple_of(2), "an option without a value takes two bytes");
    out.resize(out.len() + bytes, PADDING);
}

fn set<T>(kind: u8, slot: &mut Option<T>, value: T) -> Result<(), OptionsError> {
    if slot.replace(value).is_some() {
        return Err(OptionsError::Repeated(kind));
    }
    Ok(())
}

/// What is left to read of an option's value.
struct Value<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], OptionsError> {
        let (head, tail) =
            self.bytes.split_first_chunk().ok_or(OptionsError::BadLength(self.kind))?;
        self.bytes = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, OptionsError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, OptionsError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, OptionsError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, OptionsError> {
        self.array().map(u64::from_be_bytes)
    }

    fn session(&mut self) -> Result<Session, OptionsError> {
        Ok(Session { client: self.u64()?, sequence: self.u64()?, lowest: self.u64()? })
    }

    fn address(&mut self) -> Result<SocketAddrV4, OptionsError> {
        let ip = Ipv4Addr::from(self.array::<4>()?);
        Ok(SocketAddrV4::new(ip, self.u16()?))
    }

    fn identity(&mut self) -> Result<Identity, OptionsError> {
        Ok(Identity { client: self.u64()?, sequence: self.u64()? })
    }

    fn reason(&mut self) -> Result<Reason, OptionsError> {
        Ok(Reason { reason: self.u8()?, node: self.u16()? })
    }

    fn missing(&mut self) -> Result<Missing<'a>, OptionsError> {
        let first = self.u16()?;
        Ok(Missing::new(first, std::mem::take(&mut self.bytes)))
    }
}

/// The MISSING option of an ACK: packets that the sender of the ACK asks for.
///
/// The most significant bit of the bitmap's first byte stands for the packet `first`, the next one
/// for the packet after it, and so on. An empty bitmap says that nothing is missing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing<'a> {
    first: u16,
    bitmap: &'a [u8],
}

impl<'a> Missing<'a> {
    /// The packets of a bitmap that begins at the index `first`. What is too long for a header
    /// together with all other options is cut off: whoever misses more asks again.
    pub fn new(first: u16, bitmap: &'a [u8]) -> Self {
        let length = bitmap.len().min(BITMAP_BYTES_MAX);
        Self { first, bitmap: &bitmap[..length] }
    }

    /// Whether nothing is missing any more.
    pub fn is_empty(&self) -> bool {
        self.indices().next().is_none()
    }

    /// The indices of the missing packets, ascending.
    pub fn indices(&self) -> impl Iterator<Item = u16> + use<'a> {
        let bits = |byte: u8| (0..8).filter(move |bit| byte & 0x80 >> bit != 0);
        let first = usize::from(self.first);
        self.bitmap
            .iter()
            .enumerate()
            .flat_map(move |(position, &byte)| {
                bits(byte).map(move |bit| first + position * 8 + bit)
            })
            .filter_map(|index| u16::try_from(index).ok())
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let length = 2 + self.bitmap.len();
        out.extend_from_slice(&[MISSING, length as u8]);
        out.extend_from_slice(&self.first.to_be_bytes());
        out.extend_from_slice(self.bitmap);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    /// Any options.
    pub(crate) fn any_options() -> impl Strategy<Value = Options> {
        let session = any::<(u64, u64, u64)>().prop_map(|(client, sequence, lowest)| Session {
            client,
            sequence,
            lowest,
        });
        let identity =
            any::<(u64, u64)>().prop_map(|(client, sequence)| Identity { client, sequence });
        let origin = any::<(u32, u16)>()
            .prop_map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from_bits(ip), port));
        let numbers =
            (any::<Option<u8>>(), any::<Option<u8>>(), any::<Option<u32>>(), any::<bool>());
        (option::of(session), option::of(origin), option::of(identity), numbers).prop_map(
            |(session, origin, identity, (request_kind, outcome, checksum, undroppable))| Options {
                session,
                origin,
                request_kind,
                identity,
                outcome,
                checksum,
                undroppable,
                checked: false,
                reason: outcome.map(|reason| Reason { reason, node: reason.into() }),
            },
        )
    }

    fn encode(options: &Options) -> Vec<u8> {
        let mut bytes = Vec::new();
        options.encode_origin(&mut bytes);
        options.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn options_survive_encoding(options in any_options()) {
            let bytes = encode(&options);
            let origin_bytes = if options.origin.is_some() { ORIGIN_BYTES } else { 0 };
            prop_assert_eq!(bytes.len(), origin_bytes + options.encoded_size());
            prop_assert_eq!(Options::parse(&bytes), Ok((options, None)));
        }

        #[test]
        fn unknown_kinds_are_skipped(
            options in any_options(),
            kind in prop_oneof![Just(0), 13..=255_u8],
            value in prop::collection::vec(any::<u8>(), 0..255),
        ) {
            let unknown = [&[kind, value.len() as u8][..], &value].concat();
            let known = encode(&options);
            for bytes in [[&unknown[..], &known].concat(), [&known[..], &unknown].concat()] {
                prop_assert_eq!(Options::parse(&bytes), Ok((options, None)));
            }
        }

        #[test]
        fn a_bitmap_names_the_packets_of_its_bits(
            first in prop_oneof![0..100_u16, 65_000..=65_535_u16],
            bitmap in prop::collection::vec(any::<u8>(), 0..BITMAP_BYTES_MAX),
        ) {
            let named: Vec<u16> = Missing::new(first, &bitmap).indices().collect();
            let expected: Vec<u16> = (first..=u16::MAX)
                .zip(bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte << bit & 0x80 != 0)))
                .filter_map(|(index, is_set)| is_set.then_some(index))
                .collect();
            prop_assert_eq!(named, expected);
        }
    }

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        let options = Options {
            session: Some(Session { client: 0x0102_0304_0506_0708, sequence: 9, lowest: 10 }),
            origin: Some(SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 0x1234)),
            request_kind: Some(2),
            identity: Some(Identity { client: 11, sequence: 12 }),
            outcome: Some(3),
            checksum: Some(0xDEAD_BEEF),
            undroppable: true,
            checked: false,
            reason: Some(Reason { reason: 1, node: 0x0203 }),
        };
        let expected: Vec<u8> = [
            &[2, 6, 10, 1, 2, 3, 0x12, 0x34][..],
            &[1, 24, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 10],
            &[5, 1, 2],
            &[7, 16, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 12],
            &[8, 1, 3],
            &[9, 4, 0xDE, 0xAD, 0xBE, 0xEF],
            &[10, 0],
            &[12, 3, 1, 2, 3],
        ]
        .concat();
        assert_eq!(encode(&options), expected);

        let mut missing = Vec::new();
        Missing::new(0x0203, &[0b1000_0001]).encode(&mut missing);
        assert_eq!(missing, [6, 3, 2, 3, 0b1000_0001]);
    }

    #[test]
    fn malformed_options_are_errors() {
        let cases: [(&[u8], OptionsError); 10] = [
            (&[1], OptionsError::Truncated(1)),
            (&[200], OptionsError::Truncated(200)),
            (&[5, 1], OptionsError::Truncated(5)),
            (&[77, 9, 0], OptionsError::Truncated(77)),
            (&[5, 0], OptionsError::BadLength(5)),
            (&[5, 2, 0, 0], OptionsError::BadLength(5)),
            (&[6, 1, 0], OptionsError::BadLength(6)),
            (&[8, 1, 0, 8, 1, 0], OptionsError::Repeated(8)),
            (&[11, 3, 0, 0, 0], OptionsError::BadLength(11)),
            (&[11, 4, 0, 0, 0, 0, 11, 4, 0, 0, 0, 0], OptionsError::Repeated(11)),
        ];
        for (bytes, error) in cases {
            assert_eq!(Options::parse(bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn a_bitmap_that_is_too_long_is_cut_off() {
        let missing = Missing::new(3, &[0xFF; 250]);
        assert_eq!(missing.indices().count(), 8 * BITMAP_BYTES_MAX);
        assert!(Missing::new(3, &[0, 0]).is_empty());
    }
}
