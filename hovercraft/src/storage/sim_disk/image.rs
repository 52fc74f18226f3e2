//! What is on a simulated disk: durable, and as the process sees it.

use std::collections::BTreeMap;

use super::{Crash, contents::Contents};

/// The unit that a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    File(usize),
    Directory(usize),
}

/// A change, in the order in which the process made them.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    /// Bytes, and so many zeros behind them.
    Write {
        file: usize,
        offset: usize,
        bytes: Vec<u8>,
        zeros: usize,
    },
    /// Room for the first bytes of a file.
    Reserve {
        file: usize,
        size_bytes: usize,
    },
    Bind {
        directory: usize,
        name: String,
        node: Node,
    },
    Unbind {
        directory: usize,
        name: String,
    },
    Rename {
        directory: usize,
        from: String,
        to: String,
    },
}

impl Operation {
    /// The file whose contents it changes.
    pub(super) fn file(&self) -> Option<usize> {
        match self {
            Self::Write { file, .. } | Self::Reserve { file, .. } => Some(*file),
            Self::Bind { .. } | Self::Unbind { .. } | Self::Rename { .. } => None,
        }
    }

    /// The directory whose names it changes.
    pub(super) fn directory(&self) -> Option<usize> {
        match self {
            Self::Write { .. } | Self::Reserve { .. } => None,
            Self::Bind { directory, .. }
            | Self::Unbind { directory, .. }
            | Self::Rename { directory, .. } => Some(*directory),
        }
    }
}

type Names = BTreeMap<String, Node>;

/// Files and names, as they are or as they would be after a crash.
#[derive(Debug, Clone, Default)]
struct View {
    files: BTreeMap<usize, Contents>,
    directories: BTreeMap<usize, Names>,
}

/// The disk.
#[derive(Debug, Clone)]
pub(super) struct Image {
    live: View,
    durable: View,
    /// What is in `live` and not in `durable`.
    pub(super) unsynced: Vec<Operation>,
    /// How many have each file open.
    holders: BTreeMap<usize, usize>,
    next_node: usize,
}

impl Image {
    pub(super) const ROOT: usize = 0;

    pub(super) fn new() -> Self {
        let mut view = View::default();
        view.directories.insert(Self::ROOT, Names::new());
        Self {
            live: view.clone(),
            durable: view,
            unsynced: Vec::new(),
            holders: BTreeMap::new(),
            next_node: 1,
        }
    }

    pub(super) fn new_file(&mut self) -> usize {
        let file = self.next_node;
        self.next_node += 1;
        self.live.files.insert(file, Contents::default());
        self.durable.files.insert(file, Contents::default());
        file
    }

    pub(super) fn new_directory(&mut self) -> usize {
        let directory = self.next_node;
        self.next_node += 1;
        self.live.directories.insert(directory, Names::new());
        self.durable.directories.insert(directory, Names::new());
        directory
    }

    /// Somebody opened a file, which therefore outlives its name.
    pub(super) fn hold(&mut self, file: usize) {
        *self.holders.entry(file).or_insert(0) += 1;
    }

    pub(super) fn release(&mut self, file: usize) {
        let holders = self.holders.get_mut(&file).expect("it was held");
        *holders -= 1;
        if *holders == 0 {
            self.holders.remove(&file);
        }
    }

    pub(super) fn live(&self, file: usize) -> &Contents {
        &self.live.files[&file]
    }

    pub(super) fn live_node(&self, directory: usize, name: &str) -> Option<Node> {
        self.live.directories[&directory].get(name).copied()
    }

    pub(super) fn live_names(&self, directory: usize) -> Vec<String> {
        self.live.directories[&directory].keys().cloned().collect()
    }

    /// Returns what all files take that have a name or are open.
    pub(super) fn size_bytes(&self) -> u64 {
        self.live.files.values().map(|bytes| bytes.taken() as u64).sum()
    }

    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        self.live.walk(Self::ROOT, "", &mut |path, file| {
            found.push((path.to_owned(), self.live.files[&file].len() as u64));
        });
        found.sort();
        found
    }

    pub(super) fn flip_bit(&mut self, path: &str, offset: u64, bit: u8) -> bool {
        let mut found = None;
        self.live.walk(Self::ROOT, "", &mut |other, file| {
            if other == path {
                found = Some(file);
            }
        });
        let Some(file) = found else { return false };
        let mut hit = false;
        for view in [&mut self.live, &mut self.durable] {
            let contents = view.files.get_mut(&file).expect("it has a name");
            hit |= contents.flip_bit(offset as usize, bit);
        }
        hit
    }

    pub(super) fn operate(&mut self, operation: Operation) {
        self.live.apply(&operation);
        self.unsynced.push(operation);
    }

    /// Makes some of the operations durable.
    pub(super) fn settle(&mut self, covered: impl Fn(&Operation) -> bool) {
        let durable = &mut self.durable;
        let mut names_changed = false;
        self.unsynced.retain(|operation| {
            if covered(operation) {
                durable.apply(operation);
                names_changed |= operation.directory().is_some();
                return false;
            }
            true
        });
        if names_changed {
            self.forget_nameless();
        }
    }

    /// A sync failed: of what it should have covered some is durable, and the rest never will be.
    pub(super) fn lose_some(
        &mut self,
        covered: impl Fn(&Operation) -> bool,
        rng: &mut fastrand::Rng,
    ) {
        let durable = &mut self.durable;
        self.unsynced.retain(|operation| {
            if covered(operation) {
                if rng.bool() {
                    durable.apply(operation);
                }
                return false;
            }
            true
        });
    }

    /// See [`super::SimDisk::crash`].
    pub(super) fn crash(&mut self, crash: Crash, rng: &mut fastrand::Rng) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let count = unsynced.len();
        let (whole, chance_per_cent) = match crash {
            Crash::KeepAll => (count, 0),
            Crash::Prefix(kept) => (kept.min(count), 0),
            Crash::Random => match rng.u32(..8) {
                0 => (0, 0),
                1 => (count, 0),
                2 | 3 => (rng.usize(..=count), 0),
                _ => (rng.usize(..=count), *rng.choice([10, 50, 50, 90].iter()).unwrap_or(&50)),
            },
        };
        // In half of the crashes that tear, nothing before the torn part is certain either.
        let whole = if chance_per_cent > 0 && rng.bool() { 0 } else { whole };
        for operation in &unsynced[..whole] {
            self.durable.apply(operation);
        }
        if let Some(next) = unsynced.get(whole)
            && crash == Crash::Random
        {
            self.durable.apply_torn(next, 50, rng);
        }
        for operation in unsynced.iter().skip(whole + 1).filter(|_| chance_per_cent > 0) {
            self.durable.apply_torn(operation, chance_per_cent, rng);
        }
        self.live = self.durable.clone();
        self.holders.clear();
        self.forget_nameless();
    }

    /// Frees the files that have no name, in either view or to come, and that nobody has open.
    fn forget_nameless(&mut self) {
        let mut named: Vec<usize> = self.holders.keys().copied().collect();
        let mut keep = |node: &Node| {
            if let Node::File(file) = node {
                named.push(*file);
            }
        };
        for view in [&self.live, &self.durable] {
            view.directories.values().flat_map(Names::values).for_each(&mut keep);
        }
        for operation in &self.unsynced {
            if let Operation::Bind { node, .. } = operation {
                keep(node);
            }
        }
        named.sort_unstable();
        let keeps = |file: &usize| named.binary_search(file).is_ok();
        self.live.files.retain(|file, _| keeps(file));
        self.durable.files.retain(|file, _| keeps(file));
        self.unsynced.retain(|operation| operation.file().is_none_or(|file| keeps(&file)));
    }
}

impl View {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Write { file, offset, bytes, zeros } => {
                self.write(*file, *offset, bytes, *zeros);
            }
            Operation::Reserve { file, size_bytes } => {
                if let Some(contents) = self.files.get_mut(file) {
                    contents.reserve(*size_bytes);
                }
            }
            Operation::Bind { directory, name, node } => {
                self.names(*directory).insert(name.clone(), *node);
            }
            Operation::Unbind { directory, name } => {
                self.names(*directory).remove(name);
            }
            Operation::Rename { directory, from, to } => {
                // After a crash the name may never have come about.
                let names = self.names(*directory);
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }

    /// Applies some sectors of a write, each with a chance; another operation whole, or not.
    fn apply_torn(&mut self, operation: &Operation, chance_per_cent: u32, rng: &mut fastrand::Rng) {
        let mut happens = || rng.u32(..100) < chance_per_cent;
        let Operation::Write { file, offset, bytes, zeros } = operation else {
            if happens() {
                self.apply(operation);
            }
            return;
        };
        let (len, mut start) = (bytes.len(), 0);
        while start < len + zeros {
            let to_boundary = SECTOR_BYTES - (offset + start) % SECTOR_BYTES;
            let end = (len + zeros).min(start + to_boundary);
            if happens() {
                let part = &bytes[start.min(len)..end.min(len)];
                self.write(*file, offset + start, part, end - start - part.len());
            }
            start = end;
        }
    }

    fn write(&mut self, file: usize, offset: usize, bytes: &[u8], zeros: usize) {
        if let Some(contents) = self.files.get_mut(&file) {
            contents.write(offset, bytes, zeros);
        }
    }

    fn names(&mut self, directory: usize) -> &mut Names {
        self.directories.get_mut(&directory).expect("directories are never removed")
    }

    /// Calls `each` with every file below a directory.
    fn walk(&self, directory: usize, prefix: &str, each: &mut impl FnMut(&str, usize)) {
        for (name, node) in &self.directories[&directory] {
            let path = format!("{prefix}{name}");
            match node {
                Node::File(file) => each(&path, *file),
                Node::Directory(inner) => self.walk(*inner, &format!("{path}/"), each),
            }
        }
    }
}
