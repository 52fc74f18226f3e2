//! The files of segments: made, grown, and used again.
//!
//! | name in `log/` | what it is |
//! |---|---|
//! | `segment-<number>` | a segment; they are numbered without gaps |
//! | `spare-<number>` | a segment that was trimmed, to be used again |
//! | `blank-<number>` | a file with the room for a segment, which never was one |
//!
//! **Room.** A segment is made of a spare or a blank, whose room on the disk is reserved before,
//! and no record begins without: so no record finds the disk full. One is always there, and is not
//! given back; while another cannot be had, the log has no more room than the rest of its last
//! segment.
//!
//! **Growth.** Where writes are small, a segment grows ahead of its records, by zeros, in larger
//! steps: to write over blocks that have been written before costs a sync no change of the file
//! system's own records, which is what makes it cheap. A spare has been written all over already.
//!
//! **A segment gets its name** when its header is on disk, so a named file without an intact header
//! is damage. Everything before it is on disk by then, so only the last segment can be torn.

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc};

use super::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::{
    entry::Index,
    storage::{
        StoreError,
        directory::{failed, failed_or_full, rename_durably, sync_names},
        disk::{Disk, DiskFile, is_full},
    },
};

/// The first step of growth; each is as large as what is there, up to the largest.
const GROWTH_BYTES_MIN: u64 = 64 << 10;
const GROWTH_BYTES_MAX: u64 = 1 << 20;

/// A write of so many bytes grows the file by itself: to write zeros first, as many again, would
/// cost more than it saves.
const LARGE_WRITE_BYTES: usize = 32 << 10;

/// How many trimmed segments are kept to be used again.
const SPARE_COUNT_MAX: usize = 2;

/// A file to make a segment of.
#[derive(Debug)]
struct Spare {
    name: String,
    /// Room that is reserved for it; 0 until that is asked for.
    reserved_bytes: u64,
}

/// A segment that is written no more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) number: u64,
    /// Every entry in it that still stands has an index below this.
    pub(super) end: Index,
    pub(super) size_bytes: u64,
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) header: SegmentHeader,
    pub(super) file: Box<dyn DiskFile>,
    /// Where the next record goes.
    pub(super) offset: u64,
    /// The file's size: what is beyond the records was written before.
    pub(super) size_bytes: u64,
    /// Room that is reserved for it; records do not go beyond.
    pub(super) capacity_bytes: u64,
}

impl Active {
    /// The bytes that there is still room for.
    pub(super) fn room_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.offset)
    }

    /// Writes records behind the others; `bytes` is of no use afterwards.
    pub(super) fn write(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let end = self.offset + bytes.len() as u64;
        let mut size_bytes = self.size_bytes;
        if end > size_bytes {
            size_bytes = end;
            if bytes.len() < LARGE_WRITE_BYTES {
                let step = self.size_bytes.next_power_of_two();
                let step = step.clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX);
                size_bytes = end.next_multiple_of(step).min(self.capacity_bytes.max(end));
                bytes.resize((size_bytes - self.offset) as usize, 0);
            }
        }
        self.file.write_at(self.offset, bytes)?;
        self.offset = end;
        self.size_bytes = size_bytes;
        Ok(())
    }
}

/// The directory of the segments, and the files in it that are none.
#[derive(Debug)]
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    rng: fastrand::Rng,
    /// Those with the most room reserved come first.
    spares: Vec<Spare>,
    /// Counts the blanks, to name them.
    blank_count: u64,
    /// A spare has been given its name, which may not be durable.
    has_new_spares: bool,
    /// To be removed, one with each sync: that may take the file system milliseconds.
    doomed: VecDeque<String>,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In ascending order.
    pub(super) segments: Vec<u64>,
    pub(super) spares: Vec<String>,
    /// Segments that are of no use.
    pub(super) rest: Vec<String>,
}

impl Listing {
    pub(super) fn of(disk: &dyn Disk) -> Result<Self, StoreError> {
        let mut listing = Self::default();
        for name in disk.list().map_err(failed("list", disk.path()))? {
            let number = |prefix| name.strip_prefix(prefix).and_then(|rest| rest.parse().ok());
            if let Some(number) = number("segment-") {
                listing.segments.push(number);
            } else if number("spare-").or(number("blank-")).is_some() {
                listing.spares.push(name);
            }
        }
        listing.segments.sort_unstable();
        listing.spares.sort_unstable();
        Ok(listing)
    }

    /// Keeps the segments up to the last that have no gap, and moves the others to the rest: a
    /// crash may undo the removal of a segment, and not that of a later one.
    pub(super) fn drop_before_gaps(&mut self) {
        let pairs = self.segments.windows(2).rev();
        let unbroken = 1 + pairs.take_while(|pair| pair[0] + 1 == pair[1]).count();
        let count = self.segments.len().saturating_sub(unbroken);
        self.rest.extend(self.segments.drain(..count).map(segment_name));
    }
}

/// The place of the smallest spare of at least this capacity, the largest first.
pub(super) fn smallest(reserved_bytes: &[u64], capacity_bytes: u64) -> Option<usize> {
    reserved_bytes.iter().rposition(|bytes| *bytes >= capacity_bytes)
}

pub(super) fn segment_name(number: u64) -> String {
    format!("segment-{number}")
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, seed: u64, segment_bytes: u64) -> Self {
        Self {
            disk,
            segment_bytes,
            rng: fastrand::Rng::with_seed(seed),
            spares: Vec::new(),
            blank_count: 0,
            has_new_spares: false,
            doomed: VecDeque::new(),
        }
    }

    /// Takes over what was found: spares, with the room that earlier runs have reserved for them,
    /// and what crashes have left.
    pub(super) fn adopt(&mut self, listing: Listing) -> Result<(), StoreError> {
        self.doomed = listing.rest.into();
        for name in listing.spares {
            let number = name.strip_prefix("blank-").and_then(|rest| rest.parse().ok());
            self.blank_count = self.blank_count.max(number.unwrap_or(0));
            let reserved_bytes = match self.reserve_in(&name, false, self.segment_bytes) {
                Ok(()) => self.segment_bytes,
                Err(StoreError::Full { .. }) => 0,
                Err(error) => return Err(error),
            };
            self.keep(Spare { name, reserved_bytes });
        }
        // Those that have the most room stay.
        let rest = self.spares.drain(SPARE_COUNT_MAX.min(self.spares.len())..);
        self.doomed.extend(rest.map(|spare| spare.name));
        self.has_new_spares = true;
        Ok(())
    }

    /// Reserves room for segments of these capacities. If the disk is full there may be more than
    /// before, and less than was asked for.
    pub(super) fn reserve(&mut self, capacities: &[u64]) -> Result<(), StoreError> {
        let mut wanted = capacities.to_vec();
        wanted.sort_unstable_by(|a, b| b.cmp(a));
        for (position, &capacity_bytes) in wanted.iter().enumerate() {
            if self.spares.get(position).is_none_or(|it| it.reserved_bytes < capacity_bytes) {
                self.reserve_another(position, capacity_bytes)?;
            }
        }
        Ok(())
    }

    /// Makes one of the spares from a position on large enough; a new one if there is none.
    fn reserve_another(&mut self, position: usize, capacity_bytes: u64) -> Result<(), StoreError> {
        // The last one has the least: it costs the least to make it large enough. But an earlier
        // run may have reserved more for another one, which a full disk has room for.
        let mut refusal = None;
        for at in (position..self.spares.len()).rev() {
            match self.reserve_in(&self.spares[at].name, false, capacity_bytes) {
                Ok(()) => {
                    let spare = self.spares.remove(at);
                    self.keep(Spare { reserved_bytes: capacity_bytes, ..spare });
                    return Ok(());
                }
                Err(error @ StoreError::Full { .. }) => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let name = format!("blank-{}", self.blank_count + 1);
        self.reserve_in(&name, true, capacity_bytes)?;
        self.blank_count += 1;
        self.keep(Spare { name, reserved_bytes: capacity_bytes });
        Ok(())
    }

    /// The same; if the disk is full, what is of no use is removed first.
    pub(super) fn reserve_at_any_cost(&mut self, capacities: &[u64]) -> Result<(), StoreError> {
        // Almost always there is what is asked for.
        if let &[capacity_bytes] = capacities
            && self.spares.first().is_some_and(|it| it.reserved_bytes >= capacity_bytes)
        {
            return Ok(());
        }
        let reserved = self.reserve(capacities);
        if !matches!(reserved, Err(StoreError::Full { .. })) || self.doomed.is_empty() {
            return reserved;
        }
        while !self.doomed.is_empty() {
            self.remove_one()?;
        }
        sync_names(&*self.disk)?;
        self.reserve(capacities)
    }

    /// Reserves room in a file, durably. One that is made for it and has none is removed: nothing
    /// rests on it.
    fn reserve_in(&self, name: &str, is_new: bool, size_bytes: u64) -> Result<(), StoreError> {
        let reserve = || {
            let mut file = if is_new { self.disk.create(name)? } else { self.disk.open(name)? };
            file.reserve(size_bytes)?;
            file.sync()?;
            // A crash must not give it back.
            if is_new { self.disk.sync() } else { Ok(()) }
        };
        reserve().map_err(|error| {
            if is_new {
                // What cannot be removed now is a spare of the next start.
                let _ = self.disk.remove(name);
            }
            failed_or_full("reserve room for the log", &self.path_of(name))(error)
        })
    }

    fn keep(&mut self, spare: Spare) {
        let at = self.spares.partition_point(|it| it.reserved_bytes >= spare.reserved_bytes);
        self.spares.insert(at, spare);
    }

    /// The room that is reserved for each spare, the most first.
    pub(super) fn reserved_bytes(&self) -> Vec<u64> {
        self.spares.iter().map(|spare| spare.reserved_bytes).collect()
    }

    /// The bytes of records that the largest spare has room for.
    pub(super) fn spare_room_bytes(&self) -> u64 {
        let reserved = self.spares.first().map_or(0, |spare| spare.reserved_bytes);
        reserved.saturating_sub(SEGMENT_HEADER_BYTES as u64)
    }

    /// The capacity of a segment whose first record has this size.
    pub(super) fn capacity_bytes(&self, record_bytes: u64) -> u64 {
        self.segment_bytes.max(SEGMENT_HEADER_BYTES as u64 + record_bytes)
    }

    /// Makes a segment, durably, with room for a first record of this size.
    pub(super) fn create(
        &mut self,
        number: u64,
        previous: u64,
        record_bytes: u64,
    ) -> Result<Active, StoreError> {
        let capacity_bytes = self.capacity_bytes(record_bytes);
        // It was reserved before anything changed. After that a full disk is an error like any
        // other.
        self.reserve(&[capacity_bytes]).map_err(|error| match error {
            StoreError::Full { action, place } => {
                StoreError::Io { action, place, source: io::ErrorKind::StorageFull.into() }
            }
            error => error,
        })?;
        let at = smallest(&self.reserved_bytes(), capacity_bytes);
        let spare = self.spares.remove(at.expect("it was reserved"));
        // All of what it has: that is the room which the store has promised.
        let reserved_bytes = spare.reserved_bytes;
        let capacity_bytes = if planted!("spare-cut") { capacity_bytes } else { reserved_bytes };
        // A segment must not be written over while a crash may bring back its old name.
        if std::mem::take(&mut self.has_new_spares) {
            sync_names(&*self.disk)?;
        }
        let path = self.path_of(&spare.name);
        let header = SegmentHeader { number, salt: self.rng.u64(..), previous };
        let mut file = self.disk.open(&spare.name).map_err(failed("open", &path))?;
        file.write_at(0, &header.encode()).map_err(failed("write", &path))?;
        file.sync().map_err(failed("sync", &path))?;
        let size_bytes = file.size_bytes().map_err(failed("read", &path))?;
        rename_durably(&*self.disk, &spare.name, &segment_name(number))?;
        let offset = SEGMENT_HEADER_BYTES as u64;
        Ok(Active { header, file, offset, size_bytes, capacity_bytes })
    }

    /// Goes on with a segment that was found: as far as room can be reserved for it.
    pub(super) fn reopen(
        &self,
        header: SegmentHeader,
        mut file: Box<dyn DiskFile>,
        (offset, size_bytes): (u64, u64),
    ) -> Result<Active, StoreError> {
        // A copy of a file may have gaps where the original has room.
        let mut capacity_bytes = offset;
        for wanted_bytes in [self.segment_bytes.max(size_bytes), size_bytes] {
            match file.reserve(wanted_bytes) {
                Ok(()) => {
                    capacity_bytes = wanted_bytes;
                    break;
                }
                Err(error) if is_full(&error) => {}
                Err(error) => {
                    let path = self.path_of(&segment_name(header.number));
                    return Err(failed("reserve room for the log", &path)(error));
                }
            }
        }
        Ok(Active { header, file, offset, size_bytes, capacity_bytes })
    }

    /// Gives up a segment. Its name may come back in a crash.
    pub(super) fn retire(&mut self, sealed: Sealed) -> Result<(), StoreError> {
        let name = segment_name(sealed.number);
        if self.spares.len() >= SPARE_COUNT_MAX || sealed.size_bytes > self.segment_bytes {
            self.doomed.push_back(name);
            return Ok(());
        }
        let spare = format!("spare-{}", sealed.number);
        match self.disk.rename(&name, &spare) {
            Ok(()) => {}
            // Not even for the name is there room, and to remove it needs none.
            Err(error) if is_full(&error) => {
                self.doomed.push_back(name);
                return Ok(());
            }
            Err(error) => return Err(failed("rename", &self.path_of(&name))(error)),
        }
        self.keep(Spare { name: spare, reserved_bytes: 0 });
        self.has_new_spares = true;
        Ok(())
    }

    /// Removes one file that is of no use.
    pub(super) fn remove_one(&mut self) -> Result<(), StoreError> {
        let Some(name) = self.doomed.pop_front() else {
            return Ok(());
        };
        self.disk.remove(&name).map_err(failed("remove", &self.path_of(&name)))
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim_disk::{Crash, SimDisk};

    fn names(disk: &SimDisk) -> Vec<String> {
        disk.files().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_segment_has_its_name_only_with_its_header() {
        for operations in 0..6 {
            let disk = SimDisk::new(operations);
            disk.break_after(operations);
            let mut files = Files::new(disk.root(), 1, 1 << 16);
            let made = files.create(1, 0, 100).is_ok();
            disk.crash(Crash::Random);
            let listing = Listing::of(&*disk.root()).unwrap();
            if listing.segments.is_empty() {
                assert!(!made, "what was made is there");
                continue;
            }
            let mut page = vec![0; SEGMENT_HEADER_BYTES];
            disk.root().open("segment-1").unwrap().read_at(0, &mut page).unwrap();
            assert_eq!(SegmentHeader::decode(&page).unwrap().number, 1);
        }
    }

    #[test]
    fn a_segment_grows_in_steps_and_holds_a_record_that_is_larger() {
        let disk = SimDisk::new(1);
        let mut files = Files::new(disk.root(), 1, 1 << 20);
        let mut active = files.create(1, 0, 100).unwrap();
        active.write(&mut vec![7; 100]).unwrap();
        assert_eq!((active.offset, active.size_bytes), (4_196, 64 << 10));
        active.write(&mut vec![7; 30_000]).unwrap();
        assert_eq!((active.offset, active.size_bytes), (34_196, 64 << 10));
        active.write(&mut vec![7; 100_000]).unwrap();
        assert_eq!((active.offset, active.size_bytes), (134_196, 134_196));
        active.write(&mut vec![7; 100]).unwrap();
        assert_eq!((active.offset, active.size_bytes), (134_296, 262_144));
        assert_eq!(active.room_bytes(), (1 << 20) - 134_296);
        let mut large = files.create(2, 0, 3 << 20).unwrap();
        assert_eq!(large.room_bytes(), 3 << 20);
        large.write(&mut vec![7; 3 << 20]).unwrap();
        assert_eq!(large.size_bytes, (3 << 20) + 4_096);
    }

    #[test]
    fn trimmed_segments_are_used_again_and_the_others_removed() {
        let disk = SimDisk::new(1);
        let mut files = Files::new(disk.root(), 1, 1 << 16);
        for number in 1..=5 {
            files.create(number, 0, 100).unwrap();
        }
        let large = Sealed { number: 1, end: 0, size_bytes: 1 << 20 };
        files.retire(large).unwrap();
        for number in 2..=4 {
            files.retire(Sealed { number, end: 0, size_bytes: 4_096 }).unwrap();
        }
        files.create(6, 0, 100).unwrap();
        for _ in 0..3 {
            files.remove_one().unwrap();
        }
        assert_eq!(names(&disk), ["segment-5", "segment-6", "spare-2"]);
    }

    #[test]
    fn room_that_is_reserved_outlives_a_full_disk_and_what_cannot_be_had_leaves_nothing() {
        let disk = SimDisk::new(1);
        let mut files = Files::new(disk.root(), 1, 1 << 16);
        files.reserve(&[1 << 16]).unwrap();
        disk.limit(Some(disk.size_bytes() + 4_096));
        let is_full = |result| matches!(result, Err(StoreError::Full { .. }));
        assert!(is_full(files.reserve(&[1 << 16, 1 << 16])));
        assert_eq!(names(&disk), ["blank-1"]);
        let mut active = files.create(1, 0, 100).unwrap();
        active.write(&mut vec![7; (1 << 16) - 4_096]).unwrap();
        active.file.sync().unwrap();
        assert_eq!((active.room_bytes(), files.spare_room_bytes()), (0, 0));
        assert!(is_full(files.reserve(&[1 << 16])));
        assert!(matches!(files.create(2, 0, 100), Err(StoreError::Io { .. })));
        assert_eq!(names(&disk), ["segment-1"]);
        disk.limit(None);
        files.create(2, 0, 100).unwrap();
    }

    #[test]
    fn what_an_earlier_run_reserved_is_found_on_a_full_disk() {
        let disk = SimDisk::new(1);
        Files::new(disk.root(), 1, 1 << 16).reserve(&[1 << 17]).unwrap();
        disk.root().create("spare-9").unwrap().sync().unwrap();
        disk.crash(Crash::KeepAll);
        disk.limit(Some(disk.size_bytes()));
        let mut files = Files::new(disk.root(), 2, 1 << 16);
        files.adopt(Listing::of(&*disk.root()).unwrap()).unwrap();
        assert_eq!(files.spare_room_bytes(), (1 << 16) - 4_096);
        files.reserve(&[1 << 17]).unwrap();
        assert_eq!(files.spare_room_bytes(), (1 << 17) - 4_096);
    }

    fn header_of(disk: &SimDisk, name: &str) -> Option<SegmentHeader> {
        let mut page = vec![0; SEGMENT_HEADER_BYTES];
        disk.root().open(name).ok()?.read_at(0, &mut page).unwrap();
        SegmentHeader::decode(&page).ok()
    }

    /// A crash that brings back the old name of a spare must not find another segment under it.
    #[test]
    fn a_spare_is_written_over_only_when_its_old_name_is_gone() {
        for operations in 0..8 {
            let disk = SimDisk::new(operations);
            let mut files = Files::new(disk.root(), 1, 1 << 16);
            files.create(1, 0, 100).unwrap();
            files.create(2, 0, 100).unwrap();
            disk.break_after(operations);
            let _ = files
                .retire(Sealed { number: 1, end: 0, size_bytes: 4_096 })
                .and_then(|()| files.create(3, 0, 100));
            disk.crash(Crash::Prefix(0));
            for number in 1..=3 {
                let header = header_of(&disk, &segment_name(number));
                assert!(header.is_none_or(|header| header.number == number), "after {operations}");
            }
        }
    }

    /// What lies in a spare, or in a client's request, is never a record of the file's next life.
    #[test]
    fn every_life_of_a_file_has_a_salt_of_its_own() {
        let disk = SimDisk::new(1);
        let mut files = Files::new(disk.root(), 1, 1 << 16);
        let first = files.create(1, 0, 100).unwrap().header.salt;
        files.retire(Sealed { number: 1, end: 0, size_bytes: 4_096 }).unwrap();
        let second = files.create(2, 0, 100).unwrap().header.salt;
        assert_eq!(header_of(&disk, "segment-2").unwrap().salt, second);
        assert_ne!(first, second);
    }

    #[test]
    fn what_is_before_a_gap_is_left_over() {
        let disk = SimDisk::new(1);
        for name in ["segment-2", "segment-4", "segment-5", "spare-3", "blank-1", "other"] {
            disk.root().create(name).unwrap();
        }
        let mut listing = Listing::of(&*disk.root()).unwrap();
        listing.drop_before_gaps();
        assert_eq!(listing.segments, [4, 5]);
        assert_eq!(listing.spares, ["blank-1", "spare-3"]);
        assert_eq!(listing.rest, ["segment-2"]);
    }
}
