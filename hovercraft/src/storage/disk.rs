//! The disk seam: a directory and the files in it, real or simulated.
//!
//! What the segmented log, the hard state and the snapshots need of a disk, and no more.
//! [`FileDisk`] is the real one; [`SimDisk`](super::SimDisk) forgets, tears and reorders what was
//! not synced.
//!
//! What everything above builds on, and a disk must keep:
//!
//! - a file's contents are durable when [`DiskFile::sync`] returns, and its name when
//!   [`Disk::sync`] of its directory does; neither implies the other;
//! - a rename happens whole or not at all;
//! - of what was not synced, a crash may keep any part, in any order, down to single sectors of 512
//!   bytes, each of which is old or new;
//! - a write below what [`DiskFile::reserve`] has reserved does not find the disk full;
//! - after a failed write or sync nothing can be told of what was not synced before. Whoever sees
//!   one stops, but where the disk is full and nothing rests on the file yet (P38).

use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A directory, and the files in it. A name is one component of a path.
pub trait Disk: Send + Sync + fmt::Debug {
    /// The names in the directory, of files and of directories, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file that is there, to read and to write.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Creates an empty file; one that has the name is replaced.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name; one that has that name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Whoever has it open goes on reading it.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names in the directory durable.
    fn sync(&self) -> io::Result<()>;

    /// A directory in this one, which is created, durably, if it is not there.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Disk>>;

    /// Where it is, for messages.
    fn path(&self) -> &Path;
}

/// An open file.
pub trait DiskFile: Send + fmt::Debug {
    /// How long it is, in bytes.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Reads at an offset until the buffer is full or the file ends; returns the bytes read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all the bytes at an offset. A file that is shorter grows, with zeros in between.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable, and the file's size.
    fn sync(&mut self) -> io::Result<()>;

    /// Reserves room for the first `size_bytes` of the file: writes there do not find the disk
    /// full. The file may grow, by zeros. Durable after the next [`Self::sync`], which may be what
    /// finds the disk full.
    fn reserve(&mut self, size_bytes: u64) -> io::Result<()> {
        write_zeros(self, size_bytes)
    }
}

/// Returns whether an error says that the disk, or the share of it that this user may have, is used
/// up.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a file at least so long, by zeros that are written.
fn write_zeros(file: &mut (impl DiskFile + ?Sized), size_bytes: u64) -> io::Result<()> {
    const STEP_BYTES: usize = 1 << 20;
    let mut end = file.size_bytes()?;
    let zeros = vec![0; STEP_BYTES.min(usize::try_from(size_bytes).unwrap_or(STEP_BYTES))];
    while end < size_bytes {
        let count = zeros.len().min(usize::try_from(size_bytes - end).unwrap_or(STEP_BYTES));
        file.write_at(end, &zeros[..count])?;
        end += count as u64;
    }
    Ok(())
}

/// A directory of the file system.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
}

impl FileDisk {
    /// The directory at `path`, which is there.
    pub fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned() })
    }
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        // A name that is not UTF-8 is none of ours.
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        let entries = fs::read_dir(&self.path)?;
        entries.filter_map(|entry| entry.map(name).transpose()).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::options().read(true).write(true).open(self.path.join(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        // For this user alone: the hard state and snapshots hold the cluster's secret (P2).
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(options.open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Disk>> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // One that is there may be what a process left that was killed before it came to this.
        self.sync()?;
        Ok(Self::new(&path))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl DiskFile for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn reserve(&mut self, size_bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        // Some file systems keep what they found for a reservation that fails, and a snapshot may
        // need that room.
        let missing = size_bytes.saturating_sub(self.metadata()?.blocks() * 512);
        let left = rustix::fs::fstatvfs(&*self)?;
        if left.f_blocks > 0 && missing > left.f_bavail.saturating_mul(left.f_frsize) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        loop {
            match fallocate(&*self, FallocateFlags::KEEP_SIZE, 0, size_bytes) {
                Err(rustix::io::Errno::INTR) => {}
                // Not every file system can: there the room is taken by zeros.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    return write_zeros(self, size_bytes);
                }
                result => return Ok(result?),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the real disk and the simulated one must both do.
    pub(in crate::storage) fn a_disk_keeps_files(disk: &dyn Disk) {
        assert!(disk.list().unwrap().is_empty());
        assert_eq!(disk.open("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.remove("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.rename("a", "b").unwrap_err().kind(), io::ErrorKind::NotFound);

        let mut file = disk.create("a").unwrap();
        file.write_at(3, b"three").unwrap();
        file.write_at(4, b"HR").unwrap();
        file.sync().unwrap();
        let mut buffer = [9; 10];
        assert_eq!(file.read_at(1, &mut buffer).unwrap(), 7);
        assert_eq!(&buffer, b"\0\0tHRee\x09\x09\x09");
        assert_eq!(file.read_at(100, &mut buffer).unwrap(), 0);

        disk.rename("a", "b").unwrap();
        disk.sync().unwrap();
        assert_eq!(disk.list().unwrap(), ["b"]);
        assert_eq!(disk.open("b").unwrap().size_bytes().unwrap(), 8);
        disk.create("c").unwrap().write_at(0, b"c").unwrap();
        disk.rename("c", "b").unwrap();
        assert_eq!(disk.open("b").unwrap().size_bytes().unwrap(), 1);
        disk.remove("b").unwrap();
        assert_eq!(file.size_bytes().unwrap(), 8, "an open file outlives its name");

        let mut reserved = disk.create("r").unwrap();
        reserved.write_at(0, b"r").unwrap();
        reserved.reserve(9_000).unwrap();
        reserved.sync().unwrap();
        let mut buffer = vec![7; 9_000];
        let count = reserved.read_at(0, &mut buffer).unwrap();
        assert!(buffer[0] == b'r' && buffer[1..count].iter().all(|byte| *byte == 0));
        disk.remove("r").unwrap();

        let inner = disk.directory("d").unwrap();
        inner.create("x").unwrap();
        assert_eq!(disk.directory("d").unwrap().list().unwrap(), ["x"]);
        assert_eq!(disk.list().unwrap(), ["d"]);
        assert!(inner.path().ends_with("d"));
    }

    #[test]
    fn a_directory_of_the_file_system_is_a_disk() {
        let directory = tempfile::tempdir().unwrap();
        a_disk_keeps_files(&*FileDisk::new(directory.path()));
    }
}
