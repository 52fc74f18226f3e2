//! The directory of one replica: held by one process, and changed in steps that survive a crash.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    StoreError,
    disk::{Disk, FileDisk, is_full},
};

/// A step that loses nothing, after damage that a replica cannot repair (P38, P39).
pub(super) const WAY_OUT: &str = "leave the directory as it is, and put no older copy in its \
    place, because that forgets acknowledged writes; the cluster goes on without this replica \
    while a majority of the others is well (see `hovercraft status`)";

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

    /// Takes the lock of a directory that a store has been in; none if none has.
    pub(super) fn open_existing(path: &Path) -> Result<Option<Self>, StoreError> {
        let is_there = path.join("lock").exists();
        is_there.then(|| Self::open(path)).transpose()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        FileDisk::new(&self.path)
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

/// The same for what nothing rests on yet: that the disk is full is an error by itself.
pub(super) fn failed_or_full(action: &str, place: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| {
        if is_full(&source) { full(action, place) } else { failed(action, place)(source) }
    }
}

pub(super) fn full(action: &str, place: &Path) -> StoreError {
    StoreError::Full { action: action.to_owned(), place: place.display().to_string() }
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

/// Renames a file; the new name is durable when this returns.
pub(super) fn rename_durably(disk: &dyn Disk, from: &str, to: &str) -> Result<(), StoreError> {
    disk.rename(from, to).map_err(failed("rename", &disk.path().join(from)))?;
    if planted!("name-not-synced") { Ok(()) } else { sync_names(disk) }
}

/// Makes the names on a disk durable.
pub(super) fn sync_names(disk: &dyn Disk) -> Result<(), StoreError> {
    disk.sync().map_err(failed("sync the directory", disk.path()))
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
