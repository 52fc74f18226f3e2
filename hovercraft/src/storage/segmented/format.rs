//! The bytes of a segment: its header, its records, and the entries in them.
//!
//! `docs/log.md` has them as tables. Integers are little-endian. Reading never trusts a byte:
//! nothing is taken before its checksum, and nothing is allocated beyond what was read.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    entry::{Entry, Index, NodeId, Payload},
    request::Request,
    storage::record::{RecordError, decode_configuration, encode_configuration},
};

const MAGIC: &[u8; 8] = b"HVCRSEGM";

/// The format that this build writes, and the only one that it reads.
pub(super) const VERSION: u32 = 2;

/// The header has a page of its own: no later write touches it, torn or not.
pub(super) const SEGMENT_HEADER_BYTES: usize = 4096;

pub(super) const RECORD_HEADER_BYTES: usize = 56;

/// Records begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

const ENTRY_HEADER_BYTES: usize = 28;

/// No index and no number gets there.
pub(super) const NUMBER_MAX: u64 = u64::MAX / 2;

/// The first page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Segments are numbered from 1, without gaps.
    pub(super) number: u64,
    /// Drawn at random for each life of a file, so that records of an earlier one, or bytes that a
    /// client has sent, are never taken for records of this one.
    pub(super) salt: u64,
    /// The number of the last write before this segment; all up to it was synced before.
    pub(super) previous: u64,
}

/// Why the first page of a file is not a segment's header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    Version(u32),
}

impl SegmentHeader {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut page = vec![0; SEGMENT_HEADER_BYTES];
        page[..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..24].copy_from_slice(&self.number.to_le_bytes());
        page[24..32].copy_from_slice(&self.salt.to_le_bytes());
        page[32..40].copy_from_slice(&self.previous.to_le_bytes());
        let checksum = xxh3_64(&page[..40]);
        page[40..48].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < SEGMENT_HEADER_BYTES
            || bytes[..8] != *MAGIC
            || u64_at(bytes, 40) != xxh3_64(&bytes[..40])
        {
            return Err(HeaderError::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let (number, salt, previous) = (u64_at(bytes, 16), u64_at(bytes, 24), u64_at(bytes, 32));
        if number.max(previous) > NUMBER_MAX {
            return Err(HeaderError::Damaged);
        }
        Ok(Self { number, salt, previous })
    }
}

/// What a record does to the log before it appends its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RecordKind {
    /// Removes the entries from its first index on.
    Append = 1,
    /// Removes all entries: the log begins anew at its first index.
    Restart = 2,
}

/// What stands before the entries of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: RecordKind,
    /// The write number: grows from record to record, and is never used again.
    pub(super) number: u64,
    /// The number of the record before it in the log when it was written; 0 if there was none.
    pub(super) previous: u64,
    /// All up to this number was known to be on disk when it was written.
    pub(super) synced: u64,
    /// The index of the first entry, or the one that the next entry will have.
    pub(super) first: Index,
    pub(super) entry_count: u32,
    /// Of the entries.
    pub(super) length_bytes: u32,
}

impl RecordHeader {
    /// The size of the record in bytes, with what aligns the next one.
    pub(super) fn size_bytes(self) -> usize {
        (RECORD_HEADER_BYTES + self.length_bytes as usize).next_multiple_of(ALIGNMENT)
    }

    /// Fills in the header of a record that lies whole, and aligned, at an offset of a segment.
    pub(super) fn seal(self, salt: u64, offset: u64, record: &mut [u8]) {
        record[8..12].copy_from_slice(&self.length_bytes.to_le_bytes());
        record[12..16].copy_from_slice(&self.entry_count.to_le_bytes());
        record[16..24].copy_from_slice(&self.number.to_le_bytes());
        record[24..32].copy_from_slice(&self.previous.to_le_bytes());
        record[32..40].copy_from_slice(&self.synced.to_le_bytes());
        record[40..48].copy_from_slice(&self.first.to_le_bytes());
        record[48..56].copy_from_slice(&u64::from(self.kind as u8).to_le_bytes());
        let checksum = checksum(salt, offset, record);
        record[..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The record that begins at an offset of a segment, of which these are all the bytes; none if
    /// there is no intact one.
    pub(super) fn read(segment: &[u8], salt: u64, offset: usize) -> Option<Self> {
        let rest = segment.get(offset..).filter(|rest| rest.len() >= RECORD_HEADER_BYTES)?;
        let kind = match u64_at(rest, 48) {
            1 => RecordKind::Append,
            2 => RecordKind::Restart,
            _ => return None,
        };
        let header = Self {
            kind,
            length_bytes: u32_at(rest, 8),
            entry_count: u32_at(rest, 12),
            number: u64_at(rest, 16),
            previous: u64_at(rest, 24),
            synced: u64_at(rest, 32),
            first: u64_at(rest, 40),
        };
        let is_sound = header.previous < header.number
            && header.synced < header.number
            && (1..=NUMBER_MAX).contains(&header.first)
            && header.number <= NUMBER_MAX;
        let record = rest.get(..header.size_bytes()).filter(|_| is_sound)?;
        let is_right = u64_at(record, 0) == checksum(salt, offset as u64, record);
        (is_right || planted!("checksum-not-checked")).then_some(header)
    }
}

/// Over everything behind itself; the offset is in it, so that a record is valid in one place only.
fn checksum(salt: u64, offset: u64, record: &[u8]) -> u64 {
    xxh3_64_with_seed(&record[8..], salt ^ offset)
}

/// Puts the checksum of what may be a record at an offset right; returns where the next may begin.
pub(super) fn seal_checksum(salt: u64, offset: usize, segment: &mut [u8]) -> usize {
    let length = u32_at(segment, offset + 8) as usize;
    let end = (offset + RECORD_HEADER_BYTES + length).next_multiple_of(ALIGNMENT);
    let end = end.min(segment.len());
    let checksum = checksum(salt, offset as u64, &segment[offset..end]);
    segment[offset..offset + 8].copy_from_slice(&checksum.to_le_bytes());
    end
}

/// Appends the bytes of an entry.
pub(super) fn encode_entry(entry: &Entry, to: &mut Vec<u8>) {
    let (kind, replier, length) = match &entry.payload {
        Payload::Noop => (0_u8, 0, 0),
        Payload::Configuration(configuration) => {
            let archive = encode_configuration(configuration);
            push_header(entry, 1, 0, archive.len(), to);
            to.extend_from_slice(&archive);
            return;
        }
        Payload::Request { replier, request } => {
            (2, replier.0, Request::STORED_HEAD_BYTES + request.body().len())
        }
    };
    push_header(entry, kind, replier, length, to);
    if let Payload::Request { request, .. } = &entry.payload {
        to.extend_from_slice(&request.stored_head());
        to.extend_from_slice(request.body());
    }
}

fn push_header(entry: &Entry, kind: u8, replier: u16, length: usize, to: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("a request is far below 4 GiB");
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4] = kind;
    header[6..8].copy_from_slice(&replier.to_le_bytes());
    header[8..16].copy_from_slice(&entry.term.to_le_bytes());
    header[16..24].copy_from_slice(&entry.log_time_us.to_le_bytes());
    header[24..28].copy_from_slice(&entry.session_delta_us.to_le_bytes());
    to.extend_from_slice(&header);
}

/// Takes the entries out of the bytes of a record whose checksum is right. What they hold shares
/// the memory of `bytes`.
pub(super) fn decode_entries(
    header: &RecordHeader,
    bytes: &Bytes,
    entries: &mut Vec<Entry>,
) -> Result<(), RecordError> {
    let mut offset = 0;
    // An entry takes at least its header, so the count cannot ask for more than there is.
    entries.reserve((header.entry_count as usize).min(bytes.len() / ENTRY_HEADER_BYTES));
    for _ in 0..header.entry_count {
        let rest = bytes.get(offset..offset + ENTRY_HEADER_BYTES).ok_or(RecordError::Short)?;
        let start = offset + ENTRY_HEADER_BYTES;
        let end = start + u32_at(rest, 0) as usize;
        if end > bytes.len() {
            return Err(RecordError::Short);
        }
        let payload = match rest[4] {
            0 if end == start => Payload::Noop,
            1 => Payload::Configuration(Arc::new(decode_configuration(&bytes[start..end])?)),
            2 => {
                let request = Request::from_stored(bytes, start..end);
                let request = Arc::new(request.ok_or(RecordError::Request)?);
                Payload::Request {
                    replier: NodeId(u16::from_le_bytes([rest[6], rest[7]])),
                    request,
                }
            }
            other => return Err(RecordError::Payload(other)),
        };
        entries.push(Entry {
            term: u64_at(rest, 8),
            log_time_us: u64_at(rest, 16),
            session_delta_us: u32_at(rest, 24),
            payload,
            return_path: None,
        });
        offset = end;
    }
    if offset == bytes.len() { Ok(()) } else { Err(RecordError::Long) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::suite::sample::Sample;

    const SALT: u64 = 0x5a17;

    /// A segment with a record of these entries at an offset.
    fn record(offset: usize, number: u64, entries: &[Entry]) -> (Vec<u8>, RecordHeader) {
        let mut segment = vec![0; offset + RECORD_HEADER_BYTES];
        for entry in entries {
            encode_entry(entry, &mut segment);
        }
        let header = RecordHeader {
            kind: RecordKind::Append,
            number,
            previous: number - 1,
            synced: number / 2,
            first: 3,
            entry_count: entries.len() as u32,
            length_bytes: (segment.len() - offset - RECORD_HEADER_BYTES) as u32,
        };
        segment.resize(offset + header.size_bytes(), 0);
        header.seal(SALT, offset as u64, &mut segment[offset..]);
        (segment, header)
    }

    fn decoded(segment: &[u8], offset: usize) -> Option<Result<Vec<Entry>, RecordError>> {
        let header = RecordHeader::read(segment, SALT, offset)?;
        let start = offset + RECORD_HEADER_BYTES;
        let bytes = Bytes::copy_from_slice(&segment[start..start + header.length_bytes as usize]);
        let mut entries = Vec::new();
        Some(decode_entries(&header, &bytes, &mut entries).map(|()| entries))
    }

    proptest! {
        #[test]
        fn a_record_comes_back(seed: u64, number in 1..1_000_u64, count in 0..9_u64) {
            let mut entries = Sample::new(seed).entries(7, count);
            let (segment, header) = record(64, number, &entries);
            for entry in &mut entries {
                entry.return_path = None;
            }
            prop_assert_eq!(RecordHeader::read(&segment, SALT, 64), Some(header));
            prop_assert_eq!(decoded(&segment, 64), Some(Ok(entries)));
        }

        #[test]
        fn one_changed_byte_is_found(seed: u64, at: prop::sample::Index, change in 1..=u8::MAX) {
            let (mut segment, _) = record(0, 2, &Sample::new(seed).entries(7, 3));
            let at = at.index(segment.len());
            segment[at] ^= change;
            prop_assert_eq!(RecordHeader::read(&segment, SALT, 0), None);
        }

        /// Hostile bytes: a record that was changed by somebody who puts the checksum right.
        #[test]
        fn a_changed_record_never_panics(seed: u64, at: prop::sample::Index, to: u8) {
            let (mut segment, _) = record(0, 2, &Sample::new(seed).entries(7, 3));
            let at = 8 + at.index(segment.len() - 8);
            segment[at] = to;
            let checksum = checksum(SALT, 0, &segment);
            segment[..8].copy_from_slice(&checksum.to_le_bytes());
            let _ = decoded(&segment, 0);
        }

        #[test]
        fn a_segment_header_comes_back_and_damage_is_found(
            number in 0..NUMBER_MAX, salt: u64, previous in 0..NUMBER_MAX, at in 0..48_usize,
        ) {
            let header = SegmentHeader { number, salt, previous };
            let mut page = header.encode();
            prop_assert_eq!(SegmentHeader::decode(&page), Ok(header));
            page[at] ^= 1;
            prop_assert!(SegmentHeader::decode(&page).is_err());
        }
    }

    #[test]
    fn a_record_is_valid_in_one_place_of_one_life_only() {
        let (segment, header) = record(64, 5, &Sample::new(1).entries(7, 3));
        assert_eq!(RecordHeader::read(&segment, SALT, 64), Some(header));
        assert_eq!(RecordHeader::read(&segment, SALT + 1, 64), None);
        assert_eq!(RecordHeader::read(&segment[8..], SALT, 56), None);
        for length in 0..segment.len() {
            assert_eq!(RecordHeader::read(&segment[..length], SALT, 64), None);
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut page = SegmentHeader { number: 1, salt: 2, previous: 0 }.encode();
        page[8] = 1;
        assert_eq!(SegmentHeader::decode(&page), Err(HeaderError::Damaged));
        let checksum = xxh3_64(&page[..40]);
        page[40..48].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&page), Err(HeaderError::Version(1)));
    }

    /// If this fails the bytes on disk have changed, which must not happen without a new
    /// [`VERSION`]: what this build wrote would no longer be read.
    #[test]
    fn the_bytes_are_those_of_version_2() {
        let page = SegmentHeader { number: 3, salt: 4, previous: 5 }.encode();
        let mut sample = Sample::new(2026);
        let entries: Vec<_> = (0..40).map(|_| sample.entry(3)).collect();
        let (segment, _) = record(0, 9, &entries);
        let found = [xxh3_64(&page), segment.len() as u64, xxh3_64(&segment)];
        assert_eq!(found, [14_278_361_860_744_847_938, 77_200, 1_977_801_429_847_079_978]);
    }
}
