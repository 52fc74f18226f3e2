//! The file of one snapshot: written, read, and checked through.
//!
//! | part of the file | contents |
//! |---|---|
//! | data | what the sink was given |
//! | meta | a record of kind 3, see [`record`](super::record) |
//! | trailer | length of the meta u32 little-endian, then the 8 bytes `HVCRSNAP` |
//!
//! The data comes first so that offsets in it are offsets in the file; what is known only at the
//! end comes last.

use std::{
    any::Any,
    io::{self, BufWriter, Read, Write},
    path::Path,
    sync::Arc,
};

use super::{
    SnapshotMeta, SnapshotSink, SnapshotSource, StoreError,
    directory::{damaged, failed, failed_or_full, sync_names},
    disk::{Disk, DiskFile, is_full},
    record::{decode_snapshot_meta, encode_snapshot_meta},
};

const MAGIC: &[u8; 8] = b"HVCRSNAP";
const TRAILER_BYTES: u64 = 12;

/// Far above what a configuration takes; bounds what a damaged length can make us read.
const META_BYTES_MAX: u64 = 4 << 20;

/// A snapshot being written. Its file goes with it, unless it was given another name.
pub(super) struct Part {
    file: BufWriter<Appender>,
    disk: Arc<dyn Disk>,
    name: String,
    hasher: crc32fast::Hasher,
    size_bytes: u64,
    installs: u64,
    renamed: bool,
}

impl Part {
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        name: String,
        installs: u64,
    ) -> Result<Self, StoreError> {
        let file = disk.create(&name);
        let file = file.map_err(failed_or_full("create", &disk.path().join(&name)))?;
        Ok(Self {
            file: BufWriter::with_capacity(256 << 10, Appender { file, size_bytes: 0 }),
            disk,
            name,
            hasher: crc32fast::Hasher::new(),
            size_bytes: 0,
            installs,
            renamed: false,
        })
    }

    /// Compares what was written with `meta`, appends it, and syncs the file.
    pub(super) fn seal(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        meta.check_written(self.written())?;
        let record = encode_snapshot_meta(meta);
        let length = u32::try_from(record.len()).expect("a configuration is far below 4 GiB");
        self.file
            .write_all(&record)
            .and_then(|()| self.file.write_all(&length.to_le_bytes()))
            .and_then(|()| self.file.write_all(MAGIC))
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_mut().file.sync())
            .map_err(failed_or_full("complete", &self.disk.path().join(&self.name)))
    }

    /// Gives the sealed file its name, durably.
    pub(super) fn rename_to(&mut self, name: &str) -> Result<(), StoreError> {
        // Set before the attempt: after a failed one it cannot be told which name the file has,
        // and to remove it might be to remove what is complete.
        self.renamed = true;
        let renamed = self.disk.rename(&self.name, name);
        renamed.map_err(|error| {
            // Without room for the name nothing has happened.
            self.renamed = !is_full(&error);
            failed_or_full("rename", &self.disk.path().join(&self.name))(error)
        })?;
        if planted!("name-not-synced") { Ok(()) } else { sync_names(&*self.disk) }
    }

    /// How many installs there were when it was begun.
    pub(super) fn installs(&self) -> u64 {
        self.installs
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is removed at the next start.
            let _ = self.disk.remove(&self.name);
        }
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl SnapshotSink for Part {
    fn written(&self) -> (u64, u32) {
        (self.size_bytes, self.hasher.clone().finalize())
    }

    fn read_back(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
        self.file.flush()?;
        // That the disk is full is found now, and not when the service has read it (P36, P38).
        self.file.get_mut().file.sync()?;
        let file = self.disk.open(&self.name)?;
        Ok(Box::new(FileSource { file, size_bytes: self.size_bytes, position: 0 }))
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Writes to the end of a file.
struct Appender {
    file: Box<dyn DiskFile>,
    size_bytes: u64,
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.size_bytes, bytes)?;
        self.size_bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A complete snapshot, open.
pub(super) struct FileSource {
    file: Box<dyn DiskFile>,
    size_bytes: u64,
    position: u64,
}

impl FileSource {
    /// Opens the data, of this size, of a snapshot that has been checked.
    pub(super) fn open(disk: &dyn Disk, name: &str, size_bytes: u64) -> Result<Self, StoreError> {
        let file = disk.open(name).map_err(failed("open", &disk.path().join(name)))?;
        Ok(Self { file, size_bytes, position: 0 })
    }
}

impl SnapshotSource for FileSource {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size_bytes.saturating_sub(offset);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        read_exact_at(&*self.file, offset, &mut buffer[..count])?;
        Ok(count)
    }
}

impl Read for FileSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

fn read_exact_at(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    if file.read_at(offset, buffer)? == buffer.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl SnapshotMeta {
    /// Refuses a snapshot whose data is not what this says, before anything has changed.
    pub(crate) fn check_written(
        &self,
        (written_bytes, written_checksum): (u64, u32),
    ) -> Result<(), StoreError> {
        if (self.size_bytes, self.checksum) == (written_bytes, written_checksum) {
            return Ok(());
        }
        Err(StoreError::SnapshotMismatch {
            index: self.index,
            size_bytes: self.size_bytes,
            checksum: self.checksum,
            written_bytes,
            written_checksum,
        })
    }
}

/// Reads a complete snapshot through and compares everything that can be compared.
pub(super) fn check(disk: &dyn Disk, name: &str) -> Result<SnapshotMeta, StoreError> {
    let path = &disk.path().join(name);
    let file = &*disk.open(name).map_err(failed("open", path))?;
    let size = file.size_bytes().map_err(failed("read", path))?;
    let cut = || damaged(path, "the snapshot (it is cut short)");
    let trailer_at = size.checked_sub(TRAILER_BYTES).ok_or_else(cut)?;
    let mut trailer = [0; TRAILER_BYTES as usize];
    read_exact_at(file, trailer_at, &mut trailer).map_err(failed("read", path))?;
    let (length, magic) = trailer.split_at(4);
    if magic != MAGIC {
        return Err(damaged(path, "the snapshot (it has no trailer)"));
    }
    let length = u64::from(u32::from_le_bytes(length.try_into().expect("four bytes")));
    let data_bytes =
        trailer_at.checked_sub(length).filter(|_| length <= META_BYTES_MAX).ok_or_else(cut)?;
    let mut record = vec![0; length as usize];
    read_exact_at(file, data_bytes, &mut record).map_err(failed("read", path))?;
    let meta = decode_snapshot_meta(&record).map_err(|error| error.at(path, "the meta"))?;
    // No log gets beyond half of all indices; what follows may count on.
    if !name.ends_with(&format!("-{}", meta.index)) || meta.index > u64::MAX / 2 {
        return Err(damaged(path, format!("the snapshot (it is of index {})", meta.index)));
    }
    if meta.size_bytes != data_bytes {
        return Err(damaged(path, "the snapshot (its size is wrong)"));
    }
    if meta.checksum != checksum(file, data_bytes, path)? {
        return Err(damaged(path, "the snapshot (its checksum is wrong)"));
    }
    Ok(meta)
}

/// CRC-32 of the first bytes of a file.
fn checksum(file: &dyn DiskFile, size_bytes: u64, path: &Path) -> Result<u32, StoreError> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut offset = 0;
    while offset < size_bytes {
        let left = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX);
        let part = buffer.len().min(left);
        read_exact_at(file, offset, &mut buffer[..part]).map_err(failed("read", path))?;
        hasher.update(&buffer[..part]);
        offset += part as u64;
    }
    Ok(hasher.finalize())
}
