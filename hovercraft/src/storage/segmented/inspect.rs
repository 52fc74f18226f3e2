//! Looks at the log of a replica that is stopped, and changes nothing.

use std::path::Path;

use super::{
    judge,
    recovery::{Seen, read_log},
    refuse_other_store,
    segment::Listing,
    torn,
};
use crate::{
    entry::{Entry, Index},
    storage::{
        HardState, SnapshotMeta, StoreError, Torn, directory::Directory, disk::FileDisk,
        hard_state::HardStateFile, mark::SyncedMark, record::WrittenBy, snapshots::SnapshotFiles,
    },
};

/// A record of the log: what one append brought, or a part of it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RecordView<'a> {
    /// The segment that it is in.
    pub segment: u64,
    /// Where it begins in that segment, in bytes.
    pub offset: u64,
    /// Its write number.
    pub number: u64,
    /// The index of its first entry: entries that the log had from there on are replaced.
    pub first: Index,
    /// Everything before it is void: the log begins anew.
    pub restarts: bool,
    /// Its entries; none if it only cuts the log.
    pub entries: &'a [Entry],
}

/// What a data directory holds.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// None before the replica has been started.
    pub hard_state: Option<HardState>,
    /// The latest snapshot, whose data has been checked.
    pub snapshot: Option<SnapshotMeta>,
    /// The index of the first entry; it may be one that the snapshot holds the effect of.
    pub first_index: Index,
    /// One past the index of the last entry.
    pub next_index: Index,
    /// How many segments the log takes.
    pub segment_count: usize,
    /// The number of the last write.
    pub last_number: u64,
    /// The number of the last write that is known to have been on disk; none if it is lost.
    pub synced_number: Option<u64>,
    /// Why entries may be lost: the replica will be recovering when it is started (P38).
    pub torn: Option<Torn>,
}

/// Reads the data directory of a replica that is stopped, as the replica would when it starts, and
/// changes nothing; `each` sees the records of the log in order, those that were replaced too.
///
/// # Errors
///
/// [`StoreError::Locked`] if the replica runs, [`StoreError::NoLog`] and
/// [`StoreError::OtherStore`] if this is not the directory of a segmented log, and
/// [`StoreError::Damaged`] where the replica would refuse to start.
pub fn inspect(
    directory: &Path,
    each: &mut dyn FnMut(&RecordView<'_>),
) -> Result<Inspection, StoreError> {
    let no_log = || StoreError::NoLog { place: directory.display().to_string() };
    let directory = Directory::open_existing(directory)?.ok_or_else(no_log)?;
    let disk = directory.disk();
    let mut hard_state = HardStateFile::open(directory.disk(), WrittenBy::Segmented)?;
    let record = hard_state.load();
    refuse_other_store(disk.path(), record.as_ref())?;
    let log = FileDisk::new(&disk.path().join("log"));
    if !disk.path().join("log").is_dir() || !disk.path().join("snapshots").is_dir() {
        return Err(no_log());
    }
    let snapshot = SnapshotFiles::inspect(&*FileDisk::new(&disk.path().join("snapshots")))?;
    let synced_number = SyncedMark::open(directory.disk())?.number();
    let mut listing = Listing::of(&*log)?;
    listing.drop_before_gaps();
    let found = read_log(&*log, &listing, synced_number.unwrap_or(0), &mut |seen| {
        each(&view(&seen));
    })?;
    judge(disk.path(), snapshot.as_ref(), found.first_index, &found.entries)?;
    let is_used = snapshot.is_some() || !found.entries.is_empty();
    if record.is_none() && is_used {
        return Err(hard_state.missing());
    }
    let is_ours = record.as_ref().is_none_or(|it| it.written_by == WrittenBy::Segmented);
    Ok(Inspection {
        snapshot,
        first_index: found.first_index,
        next_index: found.next_index(),
        segment_count: listing.segments.len(),
        last_number: found.last_number,
        synced_number,
        torn: torn(is_ours, synced_number.is_none() && record.is_some(), found.torn),
        hard_state: record.map(|record| record.state),
    })
}

fn view<'a>(seen: &Seen<'a>) -> RecordView<'a> {
    RecordView {
        segment: seen.segment,
        offset: seen.offset,
        number: seen.header.number,
        first: seen.header.first,
        restarts: seen.header.kind == super::format::RecordKind::Restart,
        entries: seen.entries,
    }
}
