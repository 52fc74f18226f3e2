//! What a [`MemoryStore`](super::MemoryStore) writes when it is stopped in good order.
//!
//! A directory `memory` with a file `log` (records of runs one after another, the last one empty,
//! which is how the end is told from a cut) and the snapshot, if there is one, as a file of its own.
//! It is valid only under a hard state that says `clean`, which is saved after it (P37).

use std::{
    io::{Read, Write},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    SnapshotMeta, SnapshotStore, StoreError,
    directory::{damaged, failed, sync_names},
    disk::{Disk, DiskFile},
    record::{self, HEADER_BYTES, Run, decode_run, encode_run, split_into_runs},
    snapshots::SnapshotFiles,
};
use crate::entry::{Entry, Index};

/// The name of the directory.
const NAME: &str = "memory";

/// The name of the log in it.
const LOG: &str = "log";

/// The log and the snapshot of a [`MemoryStore`](super::MemoryStore).
#[derive(Debug, PartialEq)]
pub(super) struct Image<E> {
    pub(super) first_index: Index,
    pub(super) entries: E,
    pub(super) snapshot: Option<(SnapshotMeta, Bytes)>,
}

/// On disk when this returns.
pub(super) fn write(home: &dyn Disk, image: &Image<&mut [Entry]>) -> Result<(), StoreError> {
    remove(home)?;
    let disk = directory(home)?;
    if let Some((meta, data)) = &image.snapshot {
        let snapshots = SnapshotFiles::open(Arc::clone(&disk), Arc::default())?;
        let mut sink = snapshots.create()?;
        sink.write_all(data).map_err(failed("write the snapshot", disk.path()))?;
        snapshots.publish(sink, meta)?;
    }
    write_log(&*disk, image.first_index, image.entries)?;
    sync_names(&*disk)
}

fn write_log(disk: &dyn Disk, first_index: Index, entries: &[Entry]) -> Result<(), StoreError> {
    let path = disk.path().join(LOG);
    let mut file = disk.create(LOG).map_err(failed("create", &path))?;
    let (mut first, mut offset, mut number) = (first_index, 0, 0);
    // An empty log still gets the empty run that ends it.
    let runs = split_into_runs(entries).into_iter().filter(|run| !run.is_empty());
    for run in runs.chain([&[] as &[Entry]]) {
        number += 1;
        let bytes = encode_run(first, number, number - 1, run);
        file.write_at(offset, &bytes).map_err(failed("write", &path))?;
        offset += bytes.len() as u64;
        first += run.len() as u64;
    }
    file.sync().map_err(failed("sync", &path))
}

/// Reads back what [`write()`] wrote.
pub(super) fn read(home: &dyn Disk) -> Result<Image<Vec<Entry>>, StoreError> {
    let disk = directory(home)?;
    let snapshots = SnapshotFiles::open(Arc::clone(&disk), Arc::default())?;
    let snapshot = match snapshots.open()? {
        None => None,
        Some(mut open) => {
            let mut data = Vec::new();
            let read = open.source.read_to_end(&mut data);
            read.map_err(failed("read the snapshot", disk.path()))?;
            Some((open.meta, data.into()))
        }
    };
    let (first_index, entries) = read_log(&*disk)?;
    Ok(Image { first_index, entries, snapshot })
}

fn read_log(disk: &dyn Disk) -> Result<(Index, Vec<Entry>), StoreError> {
    let path = disk.path().join(LOG);
    let file = disk.open(LOG).map_err(failed("open", &path))?;
    let mut first_index = None;
    let mut entries = Vec::new();
    let (mut number, mut offset) = (0, 0);
    loop {
        number += 1;
        let run = read_run(&*file, disk, number, &mut offset)?;
        let first = *first_index.get_or_insert(run.first);
        if (run.number, run.previous) != (number, number - 1)
            || run.first.checked_sub(first) != Some(entries.len() as u64)
        {
            return Err(damaged(
                &path,
                format!("run {number} (it does not follow the one before)"),
            ));
        }
        if run.entries.is_empty() {
            return Ok((first, entries));
        }
        entries.extend(run.entries);
    }
}

fn read_run(
    file: &dyn DiskFile,
    disk: &dyn Disk,
    number: u64,
    offset: &mut u64,
) -> Result<Run, StoreError> {
    let path = disk.path().join(LOG);
    let mut read = |size_bytes: u64| {
        // Bounds what is allocated by what the file holds, whatever a length says.
        let held = file.size_bytes()?.saturating_sub(*offset);
        let mut bytes = vec![0; size_bytes.min(held) as usize];
        let count = file.read_at(*offset, &mut bytes)?;
        bytes.truncate(count);
        *offset += count as u64;
        Ok(bytes)
    };
    let mut bytes = read(HEADER_BYTES as u64).map_err(failed("read", &path))?;
    if let Some(size_bytes) = record::size_bytes(&bytes) {
        let rest = read(size_bytes - HEADER_BYTES as u64).map_err(failed("read", &path))?;
        bytes.extend_from_slice(&rest);
    }
    decode_run(&bytes).map_err(|error| error.at(&path, &format!("run {number}")))
}

/// Leaves an empty directory, if there was one. *Because* a log that is gone is an error to whoever
/// reads it, half of an image is none.
pub(super) fn remove(home: &dyn Disk) -> Result<(), StoreError> {
    if !home.list().map_err(failed("list", home.path()))?.iter().any(|name| name == NAME) {
        return Ok(());
    }
    let disk = directory(home)?;
    let names = disk.list().map_err(failed("list", disk.path()))?;
    for name in &names {
        disk.remove(name).map_err(failed("remove", &disk.path().join(name)))?;
    }
    if names.is_empty() { Ok(()) } else { sync_names(&*disk) }
}

fn directory(home: &dyn Disk) -> Result<Arc<dyn Disk>, StoreError> {
    home.directory(NAME).map_err(failed("create the directory", &home.path().join(NAME)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::{disk::FileDisk, suite::sample::Sample};

    fn written(home: &dyn Disk, count: u64) -> Image<Vec<Entry>> {
        let mut sample = Sample::new(3);
        let mut entries = sample.entries(2, count);
        for entry in &mut entries {
            entry.return_path = None;
        }
        let data = Bytes::from_static(b"some data");
        let snapshot = Some((sample.meta(4, 1, &data), data));
        let image = Image { first_index: 5, entries: &mut entries[..], snapshot };
        write(home, &image).unwrap();
        let snapshot = image.snapshot.clone();
        Image { first_index: 5, entries, snapshot }
    }

    #[test]
    fn an_image_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let home = FileDisk::new(directory.path());
        for count in [300, 0, 1] {
            let image = written(&*home, count);
            assert_eq!(read(&*home).unwrap(), image);
        }
        remove(&*home).unwrap();
        assert_eq!(fs::read_dir(directory.path().join(NAME)).unwrap().count(), 0);
        read(&*home).unwrap_err();
    }

    #[test]
    fn every_cut_of_the_log_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let home = FileDisk::new(directory.path());
        written(&*home, 3);
        let log = directory.path().join(NAME).join(LOG);
        let whole = fs::read(&log).unwrap();
        for length in 0..whole.len() {
            fs::write(&log, &whole[..length]).unwrap();
            let error = read(&*home).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "cut at {length}: {error}");
        }
    }
}
