//! What a [`MemoryStore`](super::MemoryStore) writes when it is stopped in good order.
//!
//! A directory with a file `log` (records of runs one after another, the last one empty, which is
//! how the end is told from a cut) and the snapshot, if there is one, as a file of its own. It is
//! valid only under a hard state that says `clean`, which is saved after it (P37).

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    SnapshotMeta, SnapshotStore, StoreError,
    directory::{create_directory, damaged, failed, remove_directory, sync_directory},
    disk::FileDisk,
    record::{self, HEADER_BYTES, Run, decode_run, encode_run, split_into_runs},
    snapshots::SnapshotFiles,
};
use crate::entry::{Entry, Index};

/// The log and the snapshot of a [`MemoryStore`](super::MemoryStore).
#[derive(Debug, PartialEq)]
pub(super) struct Image<E> {
    pub(super) first_index: Index,
    pub(super) entries: E,
    pub(super) snapshot: Option<(SnapshotMeta, Bytes)>,
}

/// On disk when this returns.
pub(super) fn write(path: &Path, image: &Image<&mut [Entry]>) -> Result<(), StoreError> {
    remove(path)?;
    create_directory(path)?;
    if let Some((meta, data)) = &image.snapshot {
        let snapshots = SnapshotFiles::open(FileDisk::new(path), Arc::default())?;
        let mut sink = snapshots.create()?;
        sink.write_all(data).map_err(failed("write the snapshot", path))?;
        snapshots.publish(sink, meta)?;
    }
    let log = path.join("log");
    write_log(&log, image.first_index, image.entries).map_err(failed("write", &log))?;
    sync_directory(path)
}

fn write_log(path: &Path, first_index: Index, entries: &[Entry]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut first = first_index;
    let mut number = 0;
    // An empty log still gets the empty run that ends it.
    let runs = split_into_runs(entries).into_iter().filter(|run| !run.is_empty());
    for run in runs.chain([&[] as &[Entry]]) {
        number += 1;
        file.write_all(&encode_run(first, number, number - 1, run))?;
        first += run.len() as u64;
    }
    file.flush()?;
    file.get_ref().sync_all()
}

/// Reads back what [`write()`] wrote.
pub(super) fn read(path: &Path) -> Result<Image<Vec<Entry>>, StoreError> {
    let snapshots = SnapshotFiles::open(FileDisk::new(path), Arc::default())?;
    let snapshot = match snapshots.open()? {
        None => None,
        Some(mut open) => {
            let mut data = Vec::new();
            open.source.read_to_end(&mut data).map_err(failed("read the snapshot", path))?;
            Some((open.meta, data.into()))
        }
    };
    let (first_index, entries) = read_log(&path.join("log"))?;
    Ok(Image { first_index, entries, snapshot })
}

fn read_log(path: &Path) -> Result<(Index, Vec<Entry>), StoreError> {
    let mut file = BufReader::new(File::open(path).map_err(failed("open", path))?);
    let mut first_index = None;
    let mut entries = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        let run = read_run(&mut file, path, number)?;
        let first = *first_index.get_or_insert(run.first);
        if (run.number, run.previous) != (number, number - 1)
            || run.first.checked_sub(first) != Some(entries.len() as u64)
        {
            return Err(damaged(path, format!("run {number} (it does not follow the one before)")));
        }
        if run.entries.is_empty() {
            return Ok((first, entries));
        }
        entries.extend(run.entries);
    }
}

fn read_run(file: &mut impl Read, path: &Path, number: u64) -> Result<Run, StoreError> {
    let what = format!("run {number}");
    let mut bytes = Vec::new();
    // `take` bounds what is allocated by what the file holds, whatever the length says.
    file.take(HEADER_BYTES as u64).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if let Some(size_bytes) = record::size_bytes(&bytes) {
        file.take(size_bytes - HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(failed("read", path))?;
    }
    decode_run(&bytes).map_err(|error| error.at(path, &what))
}

pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    remove_directory(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::suite::sample::Sample;

    fn written(path: &Path, count: u64) -> Image<Vec<Entry>> {
        let mut sample = Sample::new(3);
        let mut entries = sample.entries(2, count);
        for entry in &mut entries {
            entry.return_path = None;
        }
        let data = Bytes::from_static(b"some data");
        let snapshot = Some((sample.meta(4, 1, &data), data));
        let image = Image { first_index: 5, entries: &mut entries[..], snapshot };
        write(path, &image).unwrap();
        let snapshot = image.snapshot.clone();
        Image { first_index: 5, entries, snapshot }
    }

    #[test]
    fn an_image_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        for count in [300, 0, 1] {
            let image = written(&path, count);
            assert_eq!(read(&path).unwrap(), image);
        }
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn every_cut_of_the_log_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        written(&path, 3);
        let log = path.join("log");
        let whole = fs::read(&log).unwrap();
        for length in 0..whole.len() {
            fs::write(&log, &whole[..length]).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "cut at {length}: {error}");
        }
    }
}
