//! The conformance suite: what every log store must pass.
//!
//! It is exported so that a store written elsewhere can be run against it, in a test:
//!
//! ```
//! use hovercraft::storage::{MemoryStore, suite};
//!
//! let root = tempfile::tempdir().unwrap();
//! suite::run(suite::Survives::CleanStop, &mut |case| {
//!     Box::new(suite::DirectoryPlace::new(root.path().join(case), |directory| {
//!         Ok(Box::new(MemoryStore::open(directory)?))
//!     }))
//! });
//! ```
//!
//! A store that breaks a promise of [`LogStore`] makes [`run`] panic with the name of the case and
//! what was found in place of what: it is made for use in `#[test]` functions. Everything is
//! drawn from fixed seeds, so a failure repeats.

mod cases;
mod model;
pub(super) mod sample;
mod subject;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::subject::Subject;
use super::{LogStore, StoreError};

/// What a store promises to hold when it is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// All that a sync has covered, after any end.
    Sync,
    /// Everything after a clean stop; after any other end, [`torn`](super::Loaded::torn) is set,
    /// and only the hard state must be there. Such a store is given the log at a clean stop only, so
    /// an append right behind the snapshot begins the log anew.
    CleanStop,
}

/// Where one store is kept.
pub trait Place {
    /// Opens the store. The one that was opened before has been dropped.
    fn open(&mut self) -> Result<Box<dyn LogStore>, StoreError>;

    /// Opens what a crash at this moment would leave of the store that is open; it is this one
    /// that later calls of `open` open again. The store that is open is dropped afterwards, and
    /// what it does until then must not show.
    fn open_after_crash(&mut self) -> Result<Box<dyn LogStore>, StoreError>;

    /// Makes the disk full, so that nothing can grow, or gives room again. False if it cannot,
    /// which leaves the case out.
    fn set_full(&mut self, is_full: bool) -> bool {
        let _ = is_full;
        false
    }
}

/// A store in a directory. Its crashes are copies of the directory, so they are those of the
/// process: what the operating system has been given is there.
pub struct DirectoryPlace<F> {
    root: PathBuf,
    crash_count: u32,
    open: F,
}

impl<F> DirectoryPlace<F>
where
    F: FnMut(&Path) -> Result<Box<dyn LogStore>, StoreError>,
{
    /// A store that `open` opens in a directory, somewhere below `root`.
    pub fn new(root: PathBuf, open: F) -> Self {
        Self { root, crash_count: 0, open }
    }

    fn path(&self) -> PathBuf {
        self.root.join(self.crash_count.to_string())
    }
}

impl<F> Place for DirectoryPlace<F>
where
    F: FnMut(&Path) -> Result<Box<dyn LogStore>, StoreError>,
{
    fn open(&mut self) -> Result<Box<dyn LogStore>, StoreError> {
        let path = self.path();
        (self.open)(&path)
    }

    fn open_after_crash(&mut self) -> Result<Box<dyn LogStore>, StoreError> {
        let from = self.path();
        self.crash_count += 1;
        let to = self.path();
        copy_directory(&from, &to).map_err(|source| StoreError::Io {
            action: "copy the directory".to_owned(),
            place: from.display().to_string(),
            source,
        })?;
        (self.open)(&to)
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            match fs::copy(entry.path(), target) {
                // The store that is open may remove a file at any moment, as it may before a crash.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => {
                    other?;
                }
            }
        }
    }
    Ok(())
}

/// Runs every case, each on a store of its own, which is kept in what `new_place` gives for the
/// name of the case.
///
/// # Panics
///
/// If the store breaks a promise.
pub fn run(survives: Survives, new_place: &mut dyn FnMut(&'static str) -> Box<dyn Place>) {
    for cases::Case(name, check) in cases::ALL {
        check(Subject::new(name, survives, new_place(name)));
    }
}
