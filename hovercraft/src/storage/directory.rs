//! The directory of one replica: held by one process, and changed in steps that survive a crash.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::StoreError;

/// What an operator can do about damage that a replica cannot repair (P38, P39).
pub(super) const WAY_OUT: &str =
    "restore this directory from a copy, or empty it and add the replica to the cluster again";

/// A data directory, held against other processes for as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// The lock goes when the file is closed, by the kernel too.
    _lock: File,
}

impl Directory {
    /// Creates the directory if it is not there, and takes its lock.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        create_directory(path)?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open the lock", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::Locked { place: path.display().to_string() })
            }
            Err(TryLockError::Error(source)) => Err(failed("lock", &lock_path)(source)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Turns what the operating system says into a [`StoreError`] that names the action and the place.
pub(super) fn failed(action: &str, place: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        action: action.to_owned(),
        place: place.display().to_string(),
        source,
    }
}

pub(super) fn damaged(place: &Path, what: impl Into<String>) -> StoreError {
    StoreError::Damaged {
        place: place.display().to_string(),
        what: what.into(),
        way_out: WAY_OUT.to_owned(),
    }
}

/// Creates a directory so that it is still there after a crash; one that exists is left alone.
pub(super) fn create_directory(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed("create the directory", path))?;
    // A relative path of one component has the empty path as its parent.
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_directory(parent),
        None => sync_directory(Path::new(".")),
    }
}

/// Makes the names in a directory durable: what was created, renamed and removed in it.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory", path))
}

/// Gives a file new contents, atomically and durably.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    File::create(&fresh)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(failed("write", &fresh))?;
    rename_durably(&fresh, path)
}

/// Renames a file within its directory; the new name is durable when this returns.
pub(super) fn rename_durably(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(failed("rename", from))?;
    sync_directory(to.parent().expect("a file of ours is in a directory of ours"))
}

/// Reads a small file; none if there is no such file.
pub(super) fn read_small_file(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    /// Far above what a configuration takes; bounds what a stray file can make us read.
    const SIZE_BYTES_MAX: u64 = 4 << 20;
    match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(SIZE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed("read", path))?;
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("open", path)(error)),
    }
}

/// Removes a directory and all that is in it; none is fine.
pub(super) fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_directory(path.parent().expect("a directory of ours is in another")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove the directory", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a").join("b");
        let held = Directory::open(&path).unwrap();
        assert!(matches!(Directory::open(&path), Err(StoreError::Locked { .. })));
        drop(held);
        assert_eq!(Directory::open(&path).unwrap().path(), path);
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("file");
        assert_eq!(read_small_file(&path).unwrap(), None);
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        assert_eq!(read_small_file(&path).unwrap().unwrap(), b"two");
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("gone");
        remove_directory(&path).unwrap();
        create_directory(&path).unwrap();
        fs::write(path.join("file"), b"x").unwrap();
        remove_directory(&path).unwrap();
        assert!(!path.exists());
    }
}
