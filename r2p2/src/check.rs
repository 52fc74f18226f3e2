//! The check of a whole packet: option 11, *ours* (protocol §1).
//!
//! A CRC-32C over every byte of the packet: magic number, header size, type, policy, flags, request
//! id, order, all options and the body. The check's own value counts as zero. ORIGIN counts as
//! absent, in the header size too, because a switch inserts it without computing anything. The check
//! is the first option, but for ORIGIN, so that it is found without trusting what it covers.

use crate::{
    options::{CHECK, ORIGIN, ORIGIN_BYTES},
    wire::HEADER_BYTES,
};

/// The bytes that the check adds to a header.
pub(crate) const CHECK_BYTES: usize = 6;

/// The bytes from the start of a packet without ORIGIN to the end of its check.
const HEAD_BYTES: usize = HEADER_BYTES + CHECK_BYTES;

/// The number that the checks of packets begin with: packets that belong elsewhere do not have the
/// right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CheckSeed(u32);

impl CheckSeed {
    /// The seed of packets that belong to no cluster.
    pub const NONE: Self = Self(0);

    /// The seed of everything that belongs to the cluster of this number: its packets are checked
    /// as if the number's eight bytes, big-endian, stood before them. 0 is no cluster.
    pub fn of(cluster: u64) -> Self {
        if cluster == 0 { Self::NONE } else { Self(crc32c::crc32c(&cluster.to_be_bytes())) }
    }
}

/// A packet as its check sees it.
struct Covered<'a> {
    /// Up to the end of the check, without ORIGIN, and with zeros in the check's place.
    head: [u8; HEAD_BYTES],
    /// The check.
    value: [u8; 4],
    /// Everything behind the check.
    rest: &'a [u8],
}

impl<'a> Covered<'a> {
    /// None if there is no check where it has to be.
    fn of(datagram: &'a [u8]) -> Option<Self> {
        let (fixed, mut options) = datagram.split_first_chunk::<HEADER_BYTES>()?;
        let mut size = fixed[1];
        if let [ORIGIN, length, ..] = *options
            && usize::from(length) == ORIGIN_BYTES - 2
        {
            size = size.checked_sub(ORIGIN_BYTES as u8)?;
            options = options.get(ORIGIN_BYTES..)?;
        }
        let (&[CHECK, 4, ref value @ ..], rest) = options.split_first_chunk::<CHECK_BYTES>()?
        else {
            return None;
        };
        if usize::from(size) < HEAD_BYTES {
            return None;
        }
        let mut head = [0; HEAD_BYTES];
        head[..HEADER_BYTES].copy_from_slice(fixed);
        head[1] = size;
        head[HEADER_BYTES..][..2].copy_from_slice(&[CHECK, 4]);
        Some(Self { head, value: *value, rest })
    }

    fn compute(&self, seed: CheckSeed) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(seed.0, &self.head), self.rest)
    }
}

/// Returns whether a packet has a check, and the right one.
pub(crate) fn is_right(seed: CheckSeed, datagram: &[u8]) -> bool {
    Covered::of(datagram)
        .is_some_and(|covered| covered.compute(seed) == u32::from_be_bytes(covered.value))
}

/// Writes the check of a packet into its place, which must be there.
pub(crate) fn seal(seed: CheckSeed, datagram: &mut [u8]) {
    let covered = Covered::of(datagram).expect("whoever seals a packet made room for the check");
    let value = covered.compute(seed).to_be_bytes();
    let end = datagram.len() - covered.rest.len();
    datagram[end - 4..end].copy_from_slice(&value);
}

/// Gives a datagram that must have a check the right one, inserting it if there is none: for fuzzers,
/// which would guess none.
#[doc(hidden)]
pub fn put_check_right(seed: CheckSeed, datagram: &mut Vec<u8>) {
    let &[_, size, type_and_policy, _, _, _, _, _, ref options @ ..] = &datagram[..] else {
        return;
    };
    let is_for_replicas = matches!(type_and_policy >> 4, 5..=7);
    if usize::from(size) < HEADER_BYTES || usize::from(size) == HEADER_BYTES && !is_for_replicas {
        return;
    }
    if Covered::of(datagram).is_none() {
        let has_origin = options.starts_with(&[ORIGIN, ORIGIN_BYTES as u8 - 2]);
        let at = HEADER_BYTES + if has_origin { ORIGIN_BYTES } else { 0 };
        datagram[1] = datagram[1].saturating_add(CHECK_BYTES as u8);
        if at <= datagram.len() {
            datagram.splice(at..at, [CHECK, CHECK_BYTES as u8 - 2, 0, 0, 0, 0]);
        }
    }
    if Covered::of(datagram).is_some() {
        seal(seed, datagram);
    }
}

/// Returns how many bytes of padding a checked header of so many bytes, without ORIGIN, needs: then
/// no flipped bit of its size makes a header without options of it, with or without ORIGIN.
pub(crate) fn padding_bytes(size: usize) -> usize {
    let is_far = |size: usize, other: usize| (size ^ other).count_ones() > 1;
    let is_safe = |size: usize| {
        let with_origin = size + ORIGIN_BYTES;
        is_far(size, HEADER_BYTES)
            && is_far(with_origin, HEADER_BYTES)
            && is_far(with_origin, HEADER_BYTES + ORIGIN_BYTES)
    };
    let mut padding = 0;
    while !is_safe(size + padding) {
        padding += 2;
    }
    padding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_one_flipped_bit_makes_plain_are_padded() {
        for size in HEAD_BYTES..=255 {
            let padded = size + padding_bytes(size);
            assert!(padded <= size + 4, "{size}");
            for bit in 0..8 {
                assert_ne!(padded ^ 1 << bit, 8);
                assert_ne!((padded + ORIGIN_BYTES) ^ 1 << bit, 8);
                assert_ne!((padded + ORIGIN_BYTES) ^ 1 << bit, 16);
            }
        }
        // The sizes of a request with SESSION, of its reply, and of a message between replicas.
        let padded = [40, 32, 14].map(|size| size + padding_bytes(size));
        assert_eq!(padded, [42, 34, 14]);
    }

    #[test]
    fn the_value_is_that_of_the_protocol() {
        // CRC-32C of "123456789", from its definition (RFC 3720).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        let mut packet =
            [&[0xCC, 14, 0x01, 0xC0, 0, 7, 0, 1, CHECK, 4, 0, 0, 0, 0][..], b"body"].concat();
        let number = 0x0102_0304_0506_0708_u64;
        let seeded = crc32c::crc32c(&[&number.to_be_bytes()[..], &packet].concat());
        let plain = crc32c::crc32c(&packet);
        seal(CheckSeed::of(number), &mut packet);
        assert_eq!(packet[10..14], seeded.to_be_bytes());
        seal(CheckSeed::NONE, &mut packet);
        assert_eq!(packet[10..14], plain.to_be_bytes());
        assert_eq!(CheckSeed::of(0), CheckSeed::NONE);
    }
}
