//! Reads the log back, and tells what a crash has left from damage (P38).
//!
//! Records follow each other: each names the number of the one before it. Where the chain ends in
//! a segment that is not the last, the next segment's header must say so. Where it ends in the last
//! one there is, behind the end, what was written and never synced, or nothing, or what a spare
//! held. If a write is missing there that is known to have been synced, then
//!
//! - it is *damage before the tail* if an intact later record stands behind it: an error;
//! - else the *tail is torn*: the log ends earlier than it did, and the replica is recovering.
//!
//! That a write was synced is known from the mark, and from later records and segments.
//!
//! What is cut off stays where it is. It is never taken for a part of the log later, because the
//! next record gets a number above all that were ever seen, and what is cut names another one.

use std::{collections::VecDeque, path::PathBuf};

use bytes::Bytes;

use super::{
    format::{
        ALIGNMENT, HeaderError, NUMBER_MAX, RECORD_HEADER_BYTES, RecordHeader, RecordKind,
        SEGMENT_HEADER_BYTES, SegmentHeader, VERSION, decode_entries,
    },
    segment::{Listing, Sealed, segment_name},
};
use crate::{
    entry::{Entry, Index},
    storage::{
        StoreError,
        directory::{damaged, failed},
        disk::{Disk, DiskFile},
    },
};

/// Far above one with the largest request; bounds what a stray file can make us read.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A record as it is read, for whoever wants to see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) header: RecordHeader,
    pub(super) entries: &'a [Entry],
}

/// The segment that is written on.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) header: SegmentHeader,
    pub(super) file: Box<dyn DiskFile>,
    pub(super) offset: u64,
    pub(super) size_bytes: u64,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Found {
    /// The index of the first entry, or of the next one.
    pub(super) first_index: Index,
    pub(super) entries: Vec<Entry>,
    /// All but the last.
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) last: Option<Last>,
    /// The number of the last record; 0 if there is none.
    pub(super) last_number: u64,
    /// The highest number of any record, those that are cut off too.
    pub(super) highest_number: u64,
    /// A write is missing at the end that is known to have been synced.
    pub(super) torn: bool,
}

impl Found {
    pub(super) fn next_index(&self) -> Index {
        self.first_index + self.entries.len() as u64
    }
}

/// Reads every segment in order; `synced` is the number that the mark says. Changes nothing.
pub(super) fn read_log(
    disk: &dyn Disk,
    listing: &Listing,
    synced: u64,
    each: &mut dyn FnMut(Seen<'_>),
) -> Result<Found, StoreError> {
    let found = Found {
        first_index: 1,
        entries: Vec::new(),
        sealed: VecDeque::new(),
        last: None,
        last_number: 0,
        highest_number: synced,
        torn: false,
    };
    let mut reader = Reader { disk, found, synced, is_first: true, has_begun: false, each };
    let mut segments = listing.segments.iter().peekable();
    while let Some(&number) = segments.next() {
        let segment = Segment::read(disk, number)?;
        reader.follow(&segment)?;
        let offset = reader.take_records(&segment)?;
        if segments.peek().is_none() {
            reader.close(segment, offset)?;
        } else {
            // Ends are lowered by what comes after: see `lower_ends`.
            let end = reader.found.next_index();
            let size_bytes = segment.bytes.len() as u64;
            reader.found.sealed.push_back(Sealed { number, end, size_bytes });
        }
    }
    let mut found = reader.found;
    // No log gets there; what follows may count on from all of these.
    if found.highest_number.max(found.next_index()) > NUMBER_MAX / 2 {
        return Err(damaged(disk.path(), "an index or a write number (it is out of range)"));
    }
    found.torn = found.last_number < synced && !planted!("torn-tail-not-told");
    Ok(found)
}

/// A segment, read whole.
struct Segment {
    path: PathBuf,
    header: SegmentHeader,
    file: Box<dyn DiskFile>,
    bytes: Bytes,
}

impl Segment {
    fn read(disk: &dyn Disk, number: u64) -> Result<Self, StoreError> {
        let name = segment_name(number);
        let path = disk.path().join(&name);
        let file = disk.open(&name).map_err(failed("open", &path))?;
        let size_bytes = file.size_bytes().map_err(failed("read", &path))?;
        if size_bytes > SEGMENT_BYTES_MAX {
            return Err(damaged(&path, "this segment (it is larger than any)"));
        }
        let mut bytes = vec![0; size_bytes as usize];
        let count = file.read_at(0, &mut bytes).map_err(failed("read", &path))?;
        bytes.truncate(count);
        let header = match SegmentHeader::decode(&bytes) {
            Ok(header) if header.number == number => header,
            Ok(_) | Err(HeaderError::Damaged) => {
                return Err(damaged(&path, "the header of this segment"));
            }
            Err(HeaderError::Version(found)) => {
                let place = path.display().to_string();
                return Err(StoreError::Version { place, found, expected: VERSION });
            }
        };
        Ok(Self { path, header, file, bytes: bytes.into() })
    }

    fn record(&self, offset: usize) -> Option<RecordHeader> {
        RecordHeader::read(&self.bytes, self.header.salt, offset)
    }

    /// The intact records at or behind an offset, wherever they begin.
    fn records_from(&self, offset: usize) -> impl Iterator<Item = RecordHeader> {
        let mut offset = offset;
        std::iter::from_fn(move || {
            while offset + RECORD_HEADER_BYTES <= self.bytes.len() {
                if let Some(header) = self.record(offset) {
                    offset += header.size_bytes();
                    return Some(header);
                }
                offset += ALIGNMENT;
            }
            None
        })
    }
}

struct Reader<'a> {
    disk: &'a dyn Disk,
    found: Found,
    /// All up to this number was synced, as far as is known yet.
    synced: u64,
    /// The next segment is the first one.
    is_first: bool,
    /// A record was taken.
    has_begun: bool,
    each: &'a mut dyn FnMut(Seen<'_>),
}

impl Reader<'_> {
    /// Compares a segment's header with where the chain has come to.
    fn follow(&mut self, segment: &Segment) -> Result<(), StoreError> {
        let previous = segment.header.previous;
        if std::mem::take(&mut self.is_first) {
            // Older segments have been trimmed.
            self.found.last_number = previous;
        }
        if self.found.last_number != previous {
            let before = self.disk.path().join(segment_name(segment.header.number - 1));
            let last = self.found.last_number;
            return Err(damaged(&before, format!("what follows write {last}, up to {previous},")));
        }
        self.synced = self.synced.max(previous);
        self.found.highest_number = self.found.highest_number.max(previous);
        Ok(())
    }

    /// Takes the records of a segment that continue the chain; returns where they end.
    fn take_records(&mut self, segment: &Segment) -> Result<usize, StoreError> {
        let mut offset = SEGMENT_HEADER_BYTES;
        while let Some(header) = segment.record(offset)
            && header.previous == self.found.last_number
        {
            self.take(segment, offset, header)?;
            offset += header.size_bytes();
        }
        Ok(offset)
    }

    fn take(
        &mut self,
        segment: &Segment,
        offset: usize,
        header: RecordHeader,
    ) -> Result<(), StoreError> {
        let damaged_here =
            |why: &str| damaged(&segment.path, format!("the record at offset {offset} ({why})"));
        let first = header.first;
        // The first record stands for those before it, which have been trimmed.
        let begins = !std::mem::replace(&mut self.has_begun, true);
        if header.kind == RecordKind::Restart || begins {
            self.restart(first);
        } else if first > self.found.next_index() {
            let next = self.found.next_index();
            return Err(damaged_here(&format!("it leaves a gap from {next} to {first}")));
        } else if first < self.found.next_index() {
            self.truncate(first);
        }
        let start = offset + RECORD_HEADER_BYTES;
        let bytes = segment.bytes.slice(start..start + header.length_bytes as usize);
        let count = self.found.entries.len();
        decode_entries(&header, &bytes, &mut self.found.entries)
            .map_err(|error| damaged_here(&error.to_string()))?;
        self.found.last_number = header.number;
        self.found.highest_number = self.found.highest_number.max(header.number);
        (self.each)(Seen {
            segment: segment.header.number,
            offset: offset as u64,
            header,
            entries: &self.found.entries[count..],
        });
        Ok(())
    }

    fn restart(&mut self, first: Index) {
        self.found.entries.clear();
        self.found.first_index = first;
        self.found.sealed.iter_mut().for_each(|sealed| sealed.end = 0);
    }

    fn truncate(&mut self, first: Index) {
        lower_ends(&mut self.found.sealed, first);
        // What came before in the log was trimmed with older segments.
        self.found.first_index = self.found.first_index.min(first);
        self.found.entries.truncate((first - self.found.first_index) as usize);
    }

    /// Judges what is behind the last record of the last segment.
    fn close(&mut self, segment: Segment, offset: usize) -> Result<(), StoreError> {
        let last = self.found.last_number;
        let mut is_followed = false;
        for later in segment.records_from(offset) {
            self.found.highest_number = self.found.highest_number.max(later.number);
            if later.number > last {
                is_followed = true;
                self.synced = self.synced.max(later.synced);
            }
        }
        if is_followed && self.synced > last {
            let what = format!(
                "the record at offset {offset} (writes up to {} were synced, and \
                what follows write {last} is not intact)",
                self.synced
            );
            return Err(damaged(&segment.path, what));
        }
        let (header, size_bytes) = (segment.header, segment.bytes.len() as u64);
        let offset = offset as u64;
        self.found.last = Some(Last { header, file: segment.file, offset, size_bytes });
        Ok(())
    }
}

/// Entries from `first` on stand no more.
pub(super) fn lower_ends(sealed: &mut VecDeque<Sealed>, first: Index) {
    for sealed in sealed.iter_mut().rev().take_while(|sealed| sealed.end > first) {
        sealed.end = first;
    }
}
