//! A small file that is written in place: two slots of a fixed size, written in turn.
//!
//! Nothing of it grows, so a disk that is full does not keep a replica from saving its vote. A
//! crash in the middle of a write leaves the other slot whole, which holds what was saved before.
//! Of what must not be lost to a single flaw of the disk, a slot holds two copies.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | slot | a record, see [`record`](super::record), and, in the middle of the slot, its copy |
//! | slot | slot | the same |

use std::{path::PathBuf, sync::Arc};

use super::{
    StoreError,
    directory::{failed, failed_or_full, sync_names},
    disk::{Disk, DiskFile},
    record::{RecordError, size_bytes},
};

/// The places of what is in the slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) name: &'static str,
    pub(super) slot_bytes: u64,
    pub(super) copy_count: u64,
}

impl Layout {
    fn copy_bytes(self) -> u64 {
        self.slot_bytes / self.copy_count
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Slots {
    disk: Arc<dyn Disk>,
    layout: Layout,
    /// None until there is a file.
    file: Option<Box<dyn DiskFile>>,
    /// The slot that the next record goes to.
    next: u64,
}

/// The contents of a file that is there.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// There is no file.
    Nothing,
    /// The newest record that is intact.
    Newest(T),
    /// No record is intact; why the first of them is not.
    Damaged(RecordError),
}

impl Slots {
    /// Opens the file, and finds its newest record: `decode` gives a record's number, which grows
    /// with each, and what it holds.
    pub(super) fn open<T>(
        disk: Arc<dyn Disk>,
        layout: Layout,
        decode: impl Fn(&[u8]) -> Result<(u64, T), RecordError>,
    ) -> Result<(Self, Found<T>), StoreError> {
        let mut slots = Self { disk, layout, file: None, next: 0 };
        let file = match slots.disk.open(layout.name) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((slots, Found::Nothing));
            }
            Err(error) => return Err(failed("open", &slots.path())(error)),
        };
        let mut bytes = vec![0; layout.slot_bytes as usize * 2];
        let count = file.read_at(0, &mut bytes).map_err(failed("read", &slots.path()))?;
        bytes.truncate(count);
        let is_whole = bytes.len() as u64 == layout.slot_bytes * 2;
        let mut newest: Option<(u64, u64, T)> = None;
        let mut first_error = None;
        for (at, copy) in (0..).zip(bytes.chunks(layout.copy_bytes() as usize)) {
            match record_in(copy).and_then(&decode).and_then(countable) {
                Ok((number, value)) => {
                    let is_newer = |known| number > known && !planted!("older-slot");
                    if newest.as_ref().is_none_or(|(known, ..)| is_newer(*known)) {
                        newest = Some((number, at / layout.copy_count, value));
                    }
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        // One that is not whole is made anew.
        slots.file = is_whole.then_some(file);
        let Some((_, slot, value)) = newest.filter(|_| is_whole) else {
            return Ok((slots, Found::Damaged(first_error.unwrap_or(RecordError::Short))));
        };
        slots.next = 1 - slot;
        Ok((slots, Found::Newest(value)))
    }

    /// Makes what was found durable: it may have been written and not synced, by a run that was
    /// killed. The next record takes the place of the other slot, which may be the only durable one.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let path = self.path();
        self.file.as_mut().map_or(Ok(()), |file| file.sync().map_err(failed("sync", &path)))
    }

    /// Writes a record to the slot whose turn it is. Durable with `is_synced`, and when the file is
    /// made by it.
    pub(super) fn write(&mut self, record: &[u8], is_synced: bool) -> Result<(), StoreError> {
        let Layout { slot_bytes, copy_count, .. } = self.layout;
        let copy_bytes = self.layout.copy_bytes();
        assert!(record.len() as u64 <= copy_bytes, "a record of {} bytes fits", record.len());
        let path = self.path();
        let Some(file) = &mut self.file else {
            return self.make(record);
        };
        let start = self.next * slot_bytes;
        for copy in 0..copy_count {
            file.write_at(start + copy * copy_bytes, record).map_err(failed("write", &path))?;
        }
        if is_synced {
            file.sync().map_err(failed("sync", &path))?;
        }
        self.next = 1 - self.next;
        Ok(())
    }

    /// Makes the file, whole and durably. If the disk is full there is none, and nothing rests on
    /// what was written.
    fn make(&mut self, record: &[u8]) -> Result<(), StoreError> {
        let Layout { name, slot_bytes, copy_count } = self.layout;
        let mut bytes = vec![0; slot_bytes as usize * 2];
        for copy in 0..copy_count {
            let start = (copy * self.layout.copy_bytes()) as usize;
            bytes[start..start + record.len()].copy_from_slice(record);
        }
        let fresh = format!("{name}.new");
        let write = || {
            let mut file = self.disk.create(&fresh)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            Ok(file)
        };
        let fresh_path = self.disk.path().join(&fresh);
        let file = write().map_err(failed_or_full("write", &fresh_path))?;
        let renamed = self.disk.rename(&fresh, name);
        renamed.map_err(failed_or_full("rename", &fresh_path))?;
        sync_names(&*self.disk)?;
        self.file = Some(file);
        self.next = 1;
        Ok(())
    }

    pub(super) fn path(&self) -> PathBuf {
        self.disk.path().join(self.layout.name)
    }
}

/// Refuses a number that no writer counts to: what follows may count on.
fn countable<T>((number, value): (u64, T)) -> Result<(u64, T), RecordError> {
    if number <= u64::MAX / 2 { Ok((number, value)) } else { Err(RecordError::Number) }
}

/// The record at the beginning of a copy.
fn record_in(copy: &[u8]) -> Result<&[u8], RecordError> {
    let size = size_bytes(copy).ok_or(RecordError::Short)?;
    usize::try_from(size).ok().and_then(|size| copy.get(..size)).ok_or(RecordError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        record::{decode_synced, encode_synced},
        sim_disk::{Crash, SimDisk},
    };

    const LAYOUT: Layout = Layout { name: "file", slot_bytes: 4_096, copy_count: 2 };

    fn opened(disk: &SimDisk) -> (Slots, Found<u64>) {
        let decode = |record: &[u8]| decode_synced(record).map(|number| (number, number));
        Slots::open(disk.root(), LAYOUT, decode).unwrap()
    }

    fn newest(disk: &SimDisk) -> Option<u64> {
        match opened(disk).1 {
            Found::Newest(number) => Some(number),
            Found::Nothing | Found::Damaged(_) => None,
        }
    }

    #[test]
    fn a_crash_leaves_the_last_record_or_the_one_before() {
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let (mut slots, _) = opened(&disk);
            slots.write(&encode_synced(1), true).unwrap();
            for number in 2..6 {
                slots.write(&encode_synced(number), true).unwrap();
            }
            slots.write(&encode_synced(6), false).unwrap();
            disk.crash(Crash::Random);
            assert!(matches!(newest(&disk), Some(5 | 6)), "seed {seed}");
        }
    }

    /// A run is killed between the write and the sync, and the next one writes on what it found.
    #[test]
    fn a_record_that_was_read_back_outlives_a_crash_in_the_write_after_it() {
        for seed in 0..500 {
            let disk = SimDisk::new(seed);
            let (mut slots, _) = opened(&disk);
            slots.write(&encode_synced(5), true).unwrap();
            slots.write(&encode_synced(6), false).unwrap();
            let (mut slots, found) = opened(&disk);
            assert!(matches!(found, Found::Newest(6)));
            slots.sync().unwrap();
            slots.write(&encode_synced(7), false).unwrap();
            disk.crash(Crash::Random);
            assert!(matches!(newest(&disk), Some(6 | 7)), "seed {seed}: {:?}", newest(&disk));
        }
    }

    #[test]
    fn a_number_out_of_range_does_not_hide_the_other_slot() {
        let disk = SimDisk::new(1);
        let (mut slots, _) = opened(&disk);
        slots.write(&encode_synced(1), true).unwrap();
        slots.write(&encode_synced(u64::MAX), true).unwrap();
        assert_eq!(newest(&disk), Some(1));
    }

    #[test]
    fn a_full_disk_takes_records_and_a_flaw_takes_none() {
        let disk = SimDisk::new(1);
        let (mut slots, _) = opened(&disk);
        slots.write(&encode_synced(1), true).unwrap();
        disk.limit(Some(disk.size_bytes()));
        for number in 2..6 {
            slots.write(&encode_synced(number), true).unwrap();
            for offset in 0..2 * LAYOUT.slot_bytes {
                let flawed = disk.fork(offset);
                flawed.flip_bit("file", offset, offset as u8);
                assert_eq!(newest(&flawed), Some(number), "byte {offset}");
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_is_damaged() {
        let disk = SimDisk::new(1);
        let (mut slots, _) = opened(&disk);
        slots.write(&encode_synced(1), true).unwrap();
        let mut bytes = vec![0; 2 * LAYOUT.slot_bytes as usize];
        disk.root().open("file").unwrap().read_at(0, &mut bytes).unwrap();
        for length in [0, 5, 100, 4_096, bytes.len() - 1] {
            let root = disk.root();
            root.create("file").unwrap().write_at(0, &bytes[..length]).unwrap();
            assert!(matches!(opened(&disk).1, Found::Damaged(_)), "{length} bytes");
        }
    }
}
