//! The files of segments: made, grown, and used again.
//!
//! | name in `log/` | what it is |
//! |---|---|
//! | `segment-<number>` | a segment; they are numbered without gaps |
//! | `spare-<number>` | a segment that was trimmed, to be used again |
//! | `fresh` | a segment that is being made; what a crash left of one is written over |
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
        directory::{failed, rename_durably, sync_names},
        disk::{Disk, DiskFile},
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

const FRESH: &str = "fresh";

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
    /// It is not grown beyond this, but for a record that is larger alone.
    pub(super) capacity_bytes: u64,
}

impl Active {
    pub(super) fn has_room(&self, size_bytes: u64) -> bool {
        self.offset + size_bytes <= self.capacity_bytes
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
    spares: Vec<String>,
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
            } else if number("spare-").is_some() {
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
            has_new_spares: false,
            doomed: VecDeque::new(),
        }
    }

    /// Takes over what was found: spares, and what crashes have left.
    pub(super) fn adopt(&mut self, listing: Listing) {
        self.doomed = listing.rest.into();
        for name in listing.spares {
            if self.spares.len() < SPARE_COUNT_MAX {
                self.spares.push(name);
            } else {
                self.doomed.push_back(name);
            }
        }
        self.has_new_spares = true;
    }

    /// Makes a segment, durably, with room for a first record of this size.
    pub(super) fn create(
        &mut self,
        number: u64,
        previous: u64,
        record_bytes: u64,
    ) -> Result<Active, StoreError> {
        let header = SegmentHeader { number, salt: self.rng.u64(..), previous };
        let header_bytes = SEGMENT_HEADER_BYTES as u64;
        let capacity_bytes = self.segment_bytes.max(header_bytes + record_bytes);
        let (name, mut file) = self.blank(capacity_bytes)?;
        let path = self.disk.path().join(&name);
        file.write_at(0, &header.encode()).map_err(failed("write", &path))?;
        file.sync().map_err(failed("sync", &path))?;
        let size_bytes = file.size_bytes().map_err(failed("read", &path))?;
        rename_durably(&*self.disk, &name, &segment_name(number))?;
        Ok(Active { header, file, offset: header_bytes, size_bytes, capacity_bytes })
    }

    /// A spare if there is one and it is not too small, else an empty file.
    fn blank(&mut self, capacity_bytes: u64) -> Result<(String, Box<dyn DiskFile>), StoreError> {
        if capacity_bytes == self.segment_bytes
            && let Some(name) = self.spares.pop()
        {
            // A segment must not be written over while a crash may bring back its old name.
            if std::mem::take(&mut self.has_new_spares) {
                sync_names(&*self.disk)?;
            }
            let file = self.disk.open(&name).map_err(failed("open", &self.path_of(&name)))?;
            return Ok((name, file));
        }
        let name = FRESH.to_owned();
        let file = self.disk.create(&name).map_err(failed("create", &self.path_of(&name)))?;
        Ok((name, file))
    }

    /// Gives up a segment. Its name may come back in a crash.
    pub(super) fn retire(&mut self, sealed: Sealed) -> Result<(), StoreError> {
        let name = segment_name(sealed.number);
        if self.spares.len() == SPARE_COUNT_MAX || sealed.size_bytes > self.segment_bytes {
            self.doomed.push_back(name);
            return Ok(());
        }
        let spare = format!("spare-{}", sealed.number);
        self.disk.rename(&name, &spare).map_err(failed("rename", &self.path_of(&name)))?;
        self.spares.push(spare);
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
        assert!(active.has_room((1 << 20) - 134_296) && !active.has_room(1 << 20));
        let mut large = files.create(2, 0, 3 << 20).unwrap();
        assert!(large.has_room(3 << 20));
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
        for name in ["segment-2", "segment-4", "segment-5", "spare-3", "fresh", "other"] {
            disk.root().create(name).unwrap();
        }
        let mut listing = Listing::of(&*disk.root()).unwrap();
        listing.drop_before_gaps();
        assert_eq!(listing.segments, [4, 5]);
        assert_eq!(listing.spares, ["spare-3"]);
        assert_eq!(listing.rest, ["segment-2"]);
    }
}
