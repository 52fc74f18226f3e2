//! The log in segments: appended to in batches, synced once for many, trimmed by whole segments.
//!
//! Appends are encoded into a buffer; one write takes all of it to the file at the next sync, or
//! when it has become large. So an append costs no system call, and a batch of appends one write
//! and one sync, however many there are.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use super::{
    format::{RECORD_HEADER_BYTES, RecordHeader, RecordKind, SEGMENT_HEADER_BYTES, encode_entry},
    recovery::{Found, Last, Seen, lower_ends, read_log},
    segment::{Active, Files, Listing, Sealed, segment_name, smallest},
};
use crate::{
    entry::{Entry, Index},
    storage::{Room, StoreError, directory::failed, disk::Disk},
};

/// A record is closed when its entries take this many bytes, or a quarter of a segment; a larger
/// entry is one by itself.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// A part of a segment like this is for what a leader makes itself, and for truncations.
const SPARE_SHARE: u64 = 8;

/// The buffer goes to the file when it holds this much, sync or no sync.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// The entries of one replica.
#[derive(Debug)]
pub(super) struct SegmentedLog {
    files: Files,
    segment_bytes: u64,
    record_bytes_max: usize,
    sealed: VecDeque<Sealed>,
    /// None until the first record.
    active: Option<Active>,
    /// The number of the last segment.
    segment_number: u64,
    first_index: Index,
    next_index: Index,
    /// The next record removes all that is there.
    restarts: bool,
    last_number: u64,
    next_number: u64,
    /// All up to this number is on disk.
    synced_number: u64,
    /// Records that go to the active segment, behind what is there.
    buffer: Vec<u8>,
}

impl SegmentedLog {
    /// Reads back the log on `disk`, of which all up to write `synced` was on disk once. Puts on
    /// disk what it found; else it changes nothing before the first record.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        synced: u64,
        seed: u64,
        segment_bytes: u64,
    ) -> Result<(Self, Opened), StoreError> {
        let mut listing = Listing::of(&*disk)?;
        listing.drop_before_gaps();
        let mut found = read_log(&*disk, &listing, synced, &mut |_: Seen<'_>| {})?;
        let segment_number = listing.segments.last().copied().unwrap_or(0);
        let mut files = Files::new(disk, seed, segment_bytes);
        files.adopt(listing)?;
        let last = found.last.take();
        let reopen =
            |last: Last| files.reopen(last.header, last.file, (last.offset, last.size_bytes));
        let active = last.map(reopen).transpose()?;
        let mut log = Self {
            files,
            segment_bytes,
            record_bytes_max: RECORD_BYTES_MAX.min(segment_bytes / 4) as usize,
            active,
            segment_number,
            first_index: found.first_index,
            next_index: found.next_index(),
            restarts: false,
            last_number: found.last_number,
            next_number: found.highest_number + 1,
            synced_number: 0,
            buffer: Vec::new(),
            sealed: std::mem::take(&mut found.sealed),
        };
        // What was found may have been written and not synced, and the caller will build on it.
        log.sync_active()?;
        let Found { first_index, entries, torn, .. } = found;
        Ok((log, Opened { first_index, entries, torn }))
    }

    /// Makes the first segment, if there is none, durably.
    pub(super) fn prepare(&mut self) -> Result<(), StoreError> {
        if self.active.is_none() {
            self.files.reserve(&[self.files.capacity_bytes(0)])?;
            self.roll(0)?;
        }
        Ok(())
    }

    /// See [`LogStore::room`](crate::storage::LogStore::room).
    pub(super) fn room(&mut self, entry_bytes_max: u64) -> Result<Room, StoreError> {
        let spare_bytes = self.segment_bytes / SPARE_SHARE;
        let record_bytes = entry_bytes_max + Room::APPEND_BYTES as u64 + spare_bytes;
        let capacities = [self.files.capacity_bytes(record_bytes)];
        let is_full = match self.files.reserve_at_any_cost(&capacities) {
            Ok(()) => false,
            Err(StoreError::Full { .. }) => true,
            Err(error) => return Err(error),
        };
        // They go to the segment that is written, or else from some record on to the spare.
        let bytes = self.rest_bytes().max(self.files.spare_room_bytes());
        Ok(Room { bytes, spare_bytes, is_full })
    }

    /// Reserves room for an append of these entries, before anything changes.
    pub(super) fn make_room(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if Room::taken_by(entries) <= self.rest_bytes() {
            return Ok(());
        }
        // More spares may be used in another order: that shows when it is tried again.
        while let Some(capacities) = self.lacking(entries) {
            self.files.reserve_at_any_cost(&capacities)?;
        }
        Ok(())
    }

    /// Finds the segments for records of these entries, as [`Self::append`] makes them. Returns the
    /// capacities up to that of the first one for which no spare is large enough.
    fn lacking(&self, entries: &[Entry]) -> Option<Vec<u64>> {
        let mut rest_bytes = self.rest_bytes();
        let (mut spares, mut used) = (self.files.reserved_bytes(), Vec::new());
        let mut rest = entries;
        loop {
            let (record, after) = rest.split_at(self.record_length(rest));
            let record_bytes = Room::taken_by(record);
            if record_bytes > rest_bytes {
                let capacity_bytes = self.files.capacity_bytes(record_bytes);
                let Some(at) = smallest(&spares, capacity_bytes) else {
                    used.push(capacity_bytes);
                    return Some(used);
                };
                let spare_bytes = spares.remove(at);
                used.push(spare_bytes);
                rest_bytes = spare_bytes - SEGMENT_HEADER_BYTES as u64;
            }
            rest_bytes -= record_bytes;
            rest = after;
            if rest.is_empty() {
                return None;
            }
        }
    }

    /// The bytes of records that the segment which is written has still room for.
    fn rest_bytes(&self) -> u64 {
        let room_bytes = self.active.as_ref().map_or(0, Active::room_bytes);
        room_bytes.saturating_sub(self.buffer.len() as u64)
    }

    /// See [`LogStore::append`](crate::storage::LogStore::append).
    pub(super) fn append(&mut self, first: Index, entries: &[Entry]) -> Result<(), StoreError> {
        let (start, next) = (self.first_index, self.next_index);
        assert!((start..=next).contains(&first), "append at {first} to a log of {start}..{next}");
        let is_unrecorded = planted!("truncation-not-recorded") && entries.is_empty();
        if entries.is_empty() && (first == next || is_unrecorded) {
            return Ok(());
        }
        self.make_room(entries)?;
        if first < next {
            lower_ends(&mut self.sealed, first);
            self.next_index = first;
        }
        let mut rest = entries;
        // A truncation is a record by itself where nothing follows.
        loop {
            rest = self.push_record(rest)?;
            if rest.is_empty() {
                break;
            }
        }
        if self.buffer.len() >= BUFFER_BYTES_MAX { self.write_out() } else { Ok(()) }
    }

    /// Removes everything; the next entry will have index `next`. On disk when this returns.
    pub(super) fn restart(&mut self, next: Index) -> Result<(), StoreError> {
        self.skip_to(next);
        self.push_record(&[])?;
        if !planted!("restart-not-synced") {
            self.sync()?;
        }
        self.trim(next)
    }

    /// The same with the next record.
    pub(super) fn skip_to(&mut self, next: Index) {
        self.restarts = true;
        self.sealed.iter_mut().for_each(|sealed| sealed.end = 0);
        (self.first_index, self.next_index) = (next, next);
    }

    /// Puts everything on disk. False if there was nothing to do.
    pub(super) fn sync(&mut self) -> Result<bool, StoreError> {
        self.files.remove_one()?;
        self.write_out()?;
        if self.synced_number == self.last_number {
            return Ok(false);
        }
        self.sync_active()?;
        Ok(true)
    }

    /// Gives up the segments that hold nothing at or above `first`.
    pub(super) fn trim(&mut self, first: Index) -> Result<(), StoreError> {
        self.first_index = self.first_index.max(first.min(self.next_index));
        if self.sealed.front().is_some_and(|sealed| sealed.end <= first) {
            // What a segment held may stand no more because of a record that is not on disk yet.
            self.write_out()?;
            self.sync_active()?;
        }
        while let Some(sealed) = self.sealed.pop_front_if(|sealed| sealed.end <= first) {
            self.files.retire(sealed)?;
        }
        Ok(())
    }

    /// The index of the first entry, or of the next one if there are none.
    pub(super) fn first_index(&self) -> Index {
        self.first_index
    }

    /// The index that comes after the last entry.
    pub(super) fn next_index(&self) -> Index {
        self.next_index
    }

    /// The number of the last record.
    pub(super) fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Encodes a record of as many entries as it takes, at the end; returns the rest.
    fn push_record<'a>(&mut self, entries: &'a [Entry]) -> Result<&'a [Entry], StoreError> {
        let start = self.buffer.len();
        self.buffer.resize(start + RECORD_HEADER_BYTES, 0);
        let count = self.record_length(entries);
        entries[..count].iter().for_each(|entry| encode_entry(entry, &mut self.buffer));
        let length_bytes = self.buffer.len() - start - RECORD_HEADER_BYTES;
        let kind = if self.restarts { RecordKind::Restart } else { RecordKind::Append };
        let header = RecordHeader {
            kind,
            number: self.next_number,
            previous: self.last_number,
            // A roll, which syncs, comes before it is sealed.
            synced: self.synced_number,
            first: self.next_index,
            entry_count: u32::try_from(count).expect("a record is bounded in bytes"),
            length_bytes: u32::try_from(length_bytes).expect("a request is far below 4 GiB"),
        };
        self.buffer.resize(start + header.size_bytes(), 0);
        self.place(start, header)?;
        self.restarts = false;
        self.last_number = header.number;
        self.next_number = header.number + 1;
        self.next_index += count as u64;
        Ok(&entries[count..])
    }

    /// Returns how many of these entries the next record takes.
    fn record_length(&self, entries: &[Entry]) -> usize {
        let mut size_bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = size_bytes == 0;
            size_bytes += entry.size_bytes();
            is_first || size_bytes <= self.record_bytes_max
        };
        entries.iter().take_while(fits).count()
    }

    /// Seals the record at the end of the buffer, in a new segment if the present one is full.
    fn place(&mut self, start: usize, header: RecordHeader) -> Result<(), StoreError> {
        let end = self.buffer.len() as u64;
        let mut start = start;
        if self.active.as_ref().is_none_or(|active| active.room_bytes() < end) {
            let record = self.buffer.split_off(start);
            self.write_out()?;
            if self.synced_number < self.last_number && !planted!("roll-before-sync") {
                self.sync_active()?;
            }
            self.roll(record.len() as u64)?;
            self.buffer = record;
            start = 0;
        }
        let active = self.active.as_ref().expect("one was made if there was none");
        let offset = active.offset + start as u64;
        header.seal(active.header.salt, offset, &mut self.buffer[start..]);
        Ok(())
    }

    /// Begins a segment. All that is in the one before is on disk.
    fn roll(&mut self, record_bytes: u64) -> Result<(), StoreError> {
        let number = self.segment_number + 1;
        let active = self.files.create(number, self.last_number, record_bytes)?;
        if let Some(full) = self.active.replace(active) {
            let (number, end) = (self.segment_number, self.next_index);
            self.sealed.push_back(Sealed { number, end, size_bytes: full.size_bytes });
        }
        self.segment_number = number;
        Ok(())
    }

    /// Gives the buffer to the file.
    fn write_out(&mut self) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let active = self.active.as_mut().expect("what is in the buffer has a place");
        let written = active.write(&mut self.buffer);
        written.map_err(|source| failed("append to the log", &self.active_path())(source))?;
        self.buffer.clear();
        // A large batch does not keep its memory for ever.
        self.buffer.shrink_to(BUFFER_BYTES_MAX);
        Ok(())
    }

    fn active_path(&self) -> PathBuf {
        self.files.path_of(&segment_name(self.segment_number))
    }

    fn sync_active(&mut self) -> Result<(), StoreError> {
        if let Some(active) = self.active.as_mut().filter(|_| !planted!("log-not-synced")) {
            let synced = active.file.sync();
            synced.map_err(|source| failed("sync", &self.active_path())(source))?;
        }
        self.synced_number = self.last_number;
        Ok(())
    }
}

/// What [`SegmentedLog::open`] found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) first_index: Index,
    pub(super) entries: Vec<Entry>,
    /// A write is missing at the end that was on disk once.
    pub(super) torn: bool,
}
