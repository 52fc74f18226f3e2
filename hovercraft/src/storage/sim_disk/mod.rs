//! A simulated disk: deterministic, and as treacherous as the [`Disk`] seam allows.
//!
//! It keeps what is durable apart from what was only written. [`SimDisk::crash`] decides what
//! becomes of the difference, by a seed or as it is told; [`SimDisk::break_after`],
//! [`SimDisk::limit`] and [`SimDisk::flip_bit`] make it fail, fill up and rot.
//!
//! ```
//! use hovercraft::storage::{Crash, Disk, LogStore, SegmentedStore, SimDisk};
//!
//! let disk = SimDisk::new(1);
//! let mut store = SegmentedStore::open_on(&disk.root(), 7, 64 << 10)?;
//! let loaded = store.load()?;
//! // … append, sync …
//! drop(store);
//! disk.crash(Crash::Random);
//! let store = SegmentedStore::open_on(&disk.root(), 8, 64 << 10)?;
//! # Ok::<(), hovercraft::storage::StoreError>(())
//! ```

mod contents;
mod image;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::{
    contents::zeros_at_end,
    image::{Image, Node, Operation, SECTOR_BYTES},
};
use super::disk::{Disk, DiskFile};

/// A disk in memory, with a root directory.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What becomes, in a crash, of the operations that no sync has covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All are kept: the process died, the machine did not.
    KeepAll,
    /// The first ones are kept whole, the rest is lost.
    Prefix(usize),
    /// Drawn from the disk's seed: none, all, a prefix whose last write is torn, or any part of
    /// them in any order, whole or torn into sectors.
    Random,
}

/// What a disk was asked to do, for whoever says how long that takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// How many syncs, of files and of directories.
    pub sync_count: u64,
    /// How many bytes were written.
    pub written_bytes: u64,
}

#[derive(Debug, Clone)]
struct State {
    image: Image,
    rng: fastrand::Rng,
    /// Counts the crashes: what was opened before one is of no use after it.
    life: u64,
    /// So many operations that change something succeed; the rest fail.
    good_operations: Option<u64>,
    size_bytes_max: Option<u64>,
    work: Work,
}

impl SimDisk {
    /// An empty disk, whose crashes and failures are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            image: Image::new(),
            rng: fastrand::Rng::with_seed(seed),
            life: 0,
            good_operations: None,
            size_bytes_max: None,
            work: Work::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The root directory.
    pub fn root(&self) -> Arc<dyn Disk> {
        let life = self.state().life;
        Arc::new(SimDirectory {
            disk: self.clone(),
            life,
            node: Image::ROOT,
            path: PathBuf::from("simulated"),
        })
    }

    /// A copy of everything as it is, durable or not, that goes its own way with another seed.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let mut state = self.state().clone();
        state.rng = fastrand::Rng::with_seed(seed);
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// How many operations no sync has covered.
    pub fn unsynced_count(&self) -> usize {
        self.state().image.unsynced.len()
    }

    /// Everything stops; what is there afterwards is durable. What was open is of no use any more.
    /// A broken or full disk has been replaced by one that is not, with the same contents.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state();
        let State { image, rng, .. } = &mut *state;
        image.crash(crash, rng);
        state.life += 1;
        state.good_operations = None;
        state.size_bytes_max = None;
    }

    /// Lets so many more operations that change something succeed, then fails all. The first to
    /// fail may have happened in part; a failed sync loses some of what it should have covered,
    /// for ever, as real ones do.
    pub fn break_after(&self, operations: u64) {
        self.state().good_operations = Some(operations);
    }

    /// Bounds what all files take together, with what they have reserved: beyond, the disk is full.
    /// None lifts the bound.
    pub fn limit(&self, size_bytes_max: Option<u64>) {
        self.state().size_bytes_max = size_bytes_max;
    }

    /// Returns what all files take together, with what they have reserved.
    pub fn size_bytes(&self) -> u64 {
        self.state().image.size_bytes()
    }

    /// The paths of all files below the root, in order, with their sizes.
    pub fn files(&self) -> Vec<(String, u64)> {
        self.state().image.files()
    }

    /// Flips a bit, durably: damage that nobody was told of. False if the file is shorter.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) -> bool {
        self.state().image.flip_bit(path, offset, bit)
    }

    /// What was done since this was last asked.
    pub fn take_work(&self) -> Work {
        std::mem::take(&mut self.state().work)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock is over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if no crash came between.
    fn alive(&self, life: u64) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.life == life {
            Ok(state)
        } else {
            Err(io::Error::other("the machine has crashed since this was opened"))
        }
    }

    /// The state, for an operation that changes something, and whether it is to fail.
    fn change(&self, life: u64) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.alive(life)?;
        let fails = match &mut state.good_operations {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        Ok((state, fails))
    }
}

impl fmt::Debug for SimDisk {
    /// Without the contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("files", &self.files()).finish_non_exhaustive()
    }
}

impl State {
    /// Returns whether a file may take so many bytes.
    fn has_room(&self, file: usize, size_bytes: u64) -> bool {
        let growth = size_bytes.saturating_sub(self.image.live(file).taken() as u64);
        growth == 0
            || self.size_bytes_max.is_none_or(|most| self.image.size_bytes() + growth <= most)
    }
}

fn failure() -> io::Error {
    io::Error::other("a simulated input/output error")
}

#[derive(Debug)]
struct SimDirectory {
    disk: SimDisk,
    life: u64,
    node: usize,
    path: PathBuf,
}

impl SimDirectory {
    fn operate(&self, operation: Operation) -> io::Result<()> {
        let (mut state, fails) = self.disk.change(self.life)?;
        if fails {
            return Err(failure());
        }
        state.image.operate(operation);
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<Node> {
        let state = self.disk.alive(self.life)?;
        state.image.live_node(self.node, name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn handle(&self, node: Node) -> io::Result<Box<dyn DiskFile>> {
        match node {
            Node::File(file) => {
                self.disk.alive(self.life)?.image.hold(file);
                Ok(Box::new(SimFile { disk: self.disk.clone(), life: self.life, file }))
            }
            Node::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }
}

impl Disk for SimDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.alive(self.life)?.image.live_names(self.node))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.handle(self.file(name)?)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk.alive(self.life)?.image.new_file();
        let node = Node::File(file);
        self.operate(Operation::Bind { directory: self.node, name: name.to_owned(), node })?;
        self.handle(node)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.file(from)?;
        let (directory, from, to) = (self.node, from.to_owned(), to.to_owned());
        self.operate(Operation::Rename { directory, from, to })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.operate(Operation::Unbind { directory: self.node, name: name.to_owned() })
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, fails) = self.disk.change(self.life)?;
        let State { image, rng, work, .. } = &mut *state;
        work.sync_count += 1;
        if fails {
            image.lose_some(|operation| operation.directory() == Some(self.node), rng);
            return Err(failure());
        }
        image.settle(|operation| operation.directory() == Some(self.node));
        Ok(())
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Disk>> {
        let found = self.disk.alive(self.life)?.image.live_node(self.node, name);
        let node = match found {
            Some(Node::Directory(node)) => node,
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => {
                let node = self.disk.alive(self.life)?.image.new_directory();
                let (directory, name) = (self.node, name.to_owned());
                self.operate(Operation::Bind { directory, name, node: Node::Directory(node) })?;
                node
            }
        };
        self.sync()?;
        let path = self.path.join(name);
        Ok(Arc::new(Self { disk: self.disk.clone(), life: self.life, node, path }))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

struct SimFile {
    disk: SimDisk,
    life: u64,
    file: usize,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("file", &self.file).finish_non_exhaustive()
    }
}

impl DiskFile for SimFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.alive(self.life)?.image.live(self.file).len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.alive(self.life)?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(state.image.live(self.file).read(offset, buffer))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut state, fails) = self.disk.change(self.life)?;
        let end = offset + bytes.len() as u64;
        let full = !state.has_room(self.file, end);
        let State { image, rng, work, .. } = &mut *state;
        let (kept, result) = if fails {
            // A part of it may have come about, up to the end of a sector.
            let end = rng.u64(offset..=end) / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
            (end.saturating_sub(offset) as usize, Err(failure()))
        } else if full {
            (0, Err(io::ErrorKind::StorageFull.into()))
        } else {
            (bytes.len(), Ok(()))
        };
        work.written_bytes += kept as u64;
        if kept > 0 {
            let zeros = zeros_at_end(&bytes[..kept]);
            let bytes = bytes[..kept - zeros].to_vec();
            let (file, offset) = (self.file, offset as usize);
            image.operate(Operation::Write { file, offset, bytes, zeros });
        }
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        let (mut state, fails) = self.disk.change(self.life)?;
        let State { image, rng, work, .. } = &mut *state;
        work.sync_count += 1;
        if fails {
            image.lose_some(|operation| operation.file() == Some(self.file), rng);
            return Err(failure());
        }
        image.settle(|operation| operation.file() == Some(self.file));
        Ok(())
    }

    fn reserve(&mut self, size_bytes: u64) -> io::Result<()> {
        let (mut state, fails) = self.disk.change(self.life)?;
        if fails {
            return Err(failure());
        }
        if !state.has_room(self.file, size_bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (file, size_bytes) = (self.file, size_bytes as usize);
        if state.image.live(file).taken() < size_bytes {
            state.image.operate(Operation::Reserve { file, size_bytes });
        }
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.disk.alive(self.life) {
            state.image.release(self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &SimDisk, name: &str) -> Vec<u8> {
        let file = disk.root().open(name).unwrap();
        let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        bytes
    }

    fn with_file(name: &str, bytes: &[u8]) -> (SimDisk, Box<dyn DiskFile>) {
        let disk = SimDisk::new(5);
        let root = disk.root();
        let mut file = root.create(name).unwrap();
        file.write_at(0, bytes).unwrap();
        file.sync().unwrap();
        root.sync().unwrap();
        (disk, file)
    }

    #[test]
    fn it_is_a_disk() {
        super::super::disk::tests::a_disk_keeps_files(&*SimDisk::new(1).root());
    }

    #[test]
    fn a_crash_takes_what_was_not_synced() {
        let (disk, mut file) = with_file("a", b"old");
        file.write_at(0, b"NEW").unwrap();
        disk.root().rename("a", "b").unwrap();
        assert_eq!(read(&disk, "b"), b"NEW");
        let fork = disk.fork(1);
        fork.crash(Crash::KeepAll);
        assert_eq!(read(&fork, "b"), b"NEW");
        disk.crash(Crash::Prefix(0));
        assert_eq!(read(&disk, "a"), b"old");
        file.sync().unwrap_err();
    }

    /// Neither the contents nor the name of a file are durable by the other's sync.
    #[test]
    fn a_name_and_its_contents_are_synced_apart() {
        let disk = SimDisk::new(1);
        let root = disk.root();
        let mut named = root.create("named").unwrap();
        named.write_at(0, b"x").unwrap();
        root.sync().unwrap();
        let mut synced = root.create("synced").unwrap();
        synced.write_at(0, b"y").unwrap();
        synced.sync().unwrap();
        disk.crash(Crash::Prefix(0));
        assert_eq!(disk.files(), [("named".to_owned(), 0)]);
    }

    /// Every outcome that the seam allows comes about, and none that it does not.
    #[test]
    fn a_random_crash_tears_and_reorders() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let (disk, mut file) = with_file("a", &[0; 1_536]);
            file.write_at(0, &[1; 1_024]).unwrap();
            file.write_at(512, &[2; 1_024]).unwrap();
            let disk = disk.fork(seed);
            disk.crash(Crash::Random);
            let bytes = read(&disk, "a");
            let sectors = [bytes[0], bytes[512], bytes[1_024]];
            for (sector, byte) in bytes.chunks(512).zip(sectors) {
                assert!(sector.iter().all(|other| *other == byte), "a sector is old or new");
            }
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 2 * 3 * 2, "{seen:?}");
    }

    #[test]
    fn the_same_seed_crashes_the_same() {
        let (disk, mut file) = with_file("a", &[0; 10_000]);
        for at in 0..20 {
            file.write_at(at * 400, &[at as u8; 700]).unwrap();
        }
        let crashed = |seed| {
            let disk = disk.fork(seed);
            disk.crash(Crash::Random);
            read(&disk, "a")
        };
        assert_eq!(crashed(3), crashed(3));
        assert!((0..20).any(|seed| crashed(seed) != crashed(seed + 1)));
    }

    #[test]
    fn a_broken_disk_stays_broken_and_a_failed_sync_loses() {
        let mut lost = 0;
        for seed in 0..50 {
            let (disk, _) = with_file("a", b"old");
            let disk = disk.fork(seed);
            disk.break_after(1);
            let mut file = disk.root().open("a").unwrap();
            file.write_at(0, b"NEW").unwrap();
            file.sync().unwrap_err();
            file.sync().unwrap_err();
            disk.state().good_operations = None;
            file.sync().unwrap();
            disk.crash(Crash::Prefix(0));
            lost += u32::from(read(&disk, "a") == b"old");
        }
        assert!((1..50).contains(&lost), "{lost} of 50 syncs lost what the next did not bring");
    }

    #[test]
    fn a_full_disk_says_so() {
        let (disk, mut file) = with_file("a", b"four");
        disk.limit(Some(6));
        file.write_at(0, b"FOUR").unwrap();
        let error = file.write_at(4, b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.size_bytes(), 4);
        disk.limit(None);
        file.write_at(4, b"more").unwrap();
        assert_eq!(disk.take_work().written_bytes, 4 + 4 + 4);
    }

    #[test]
    fn rot_is_durable_and_silent() {
        let (disk, _) = with_file("a", b"abc");
        assert!(disk.flip_bit("a", 1, 0));
        assert!(!disk.flip_bit("a", 3, 0) && !disk.flip_bit("b", 0, 0));
        disk.crash(Crash::Prefix(0));
        assert_eq!(read(&disk, "a"), b"acc");
    }
}
