//! The bytes of our own records on disk.
//!
//! Every record is framed alike. Integers are little-endian and unaligned.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32 (IEEE) of everything after it |
//! | 4 | 4 | length of the archive, in bytes |
//! | 8 | 1 | kind: 1 hard state, 2 run of entries, 3 snapshot meta, 4 synced mark |
//! | 9 | 1 | format version: 2 |
//! | 10 | 2 | zero |
//! | 12 | length | the archive: an rkyv 0.8 record, its root at the end |
//!
//! The archives, by kind (rkyv places what has no fixed size before the root that points to it):
//!
//! | kind | archive |
//! |---|---|
//! | hard state | which store wrote it, its number u64, [`HardState`](super::HardState) |
//! | run | first index u64, number u64, number of the run before u64, entries |
//! | – entry | term u64, log time u64 (µs), session delta u32 (µs), payload |
//! | – payload | nothing, or a [`Configuration`], or a request |
//! | – request | replier u16, identity 2 × u64, plain u8, digest u64, lowest u64, kind u8, body |
//! | snapshot meta | [`SnapshotMeta`] |
//! | synced mark | the number of the last run known to be on disk, u64 |
//!
//! A *run* is the unit of the log on disk: neighbouring entries of one append. Runs are numbered as
//! they are written, and each names the number of the run before it, so that a run that an older
//! version of itself has taken the place of is found out.
//!
//! Reading never trusts a byte: length, checksum, kind and version are compared first, then
//! bytecheck validates the archive. Digests are taken as they were stored; a node that has loaded
//! its log compares them (P2). Damaged or hostile bytes give an error, and nothing is allocated
//! beyond the size of what was read.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use rkyv::{
    Archive, Deserialize, Portable, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator, to_bytes_in},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
};

use super::{HardState, SnapshotMeta, StoreError, directory::damaged};
use crate::{
    digest::Digest,
    entry::{Configuration, Entry, Index, NodeId, Payload},
    request::{Identity, Key, Kind, Request},
};

/// The format that this build writes, and the only one that it reads.
const VERSION: u8 = 2;

pub(super) const HEADER_BYTES: usize = 12;

/// A run is closed when its entries count for this many bytes; a larger entry is a run by itself.
pub(super) const RUN_BYTES_MAX: usize = 256 << 10;

/// What a record is, so that one is never taken for another.
#[derive(Clone, Copy)]
#[repr(u8)]
enum RecordKind {
    HardState = 1,
    Run = 2,
    SnapshotMeta = 3,
    Synced = 4,
}

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// The record ends before its length says; a write that was cut looks like this.
    #[error("it is cut short")]
    Short,
    /// More bytes than the length says.
    #[error("something follows it")]
    Long,
    /// The bytes are not those that were written.
    #[error("its checksum is wrong")]
    Checksum,
    /// It is intact, and of another kind.
    #[error("it is a record of kind {0}")]
    Kind(u8),
    /// It is intact, and of another format.
    #[error("it has format version {0}")]
    Version(u8),
    /// A number is higher than any writer counts.
    #[error("its number is out of range")]
    Number,
    /// The archive is not well-formed.
    #[error("its archive is malformed: {0}")]
    Archive(String),
    /// A field holds what no writer puts there.
    #[error("it holds a request of unknown kind {0}")]
    RequestKind(u8),
    /// A field holds what no writer puts there.
    #[error("it holds an entry of unknown kind {0}")]
    Payload(u8),
    /// Not the bytes of a request.
    #[error("one of its requests is malformed")]
    Request,
}

impl RecordError {
    /// The error of a store that found `what` so at `place`.
    pub(super) fn at(self, place: &Path, what: &str) -> StoreError {
        match self {
            Self::Version(found) => StoreError::Version {
                place: place.display().to_string(),
                found: found.into(),
                expected: VERSION.into(),
            },
            other => damaged(place, format!("{what} ({other})")),
        }
    }
}

/// Frames `value`, whose archive takes about `size_bytes`, as a record.
fn encode(
    kind: RecordKind,
    size_bytes: usize,
    value: &impl for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, rancor::Error>>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + size_bytes);
    bytes.resize(HEADER_BYTES, 0);
    let mut bytes = to_bytes_in::<_, rancor::Error>(value, bytes)
        .expect("a record is far below the 2 GiB that relative pointers reach");
    let length = u32::try_from(bytes.len() - HEADER_BYTES)
        .expect("a record is far below the 4 GiB that its length can say");
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8] = kind as u8;
    bytes[9] = VERSION;
    let checksum = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The size in bytes of the record that begins with `bytes`; none if the header is not all there.
pub(super) fn size_bytes(bytes: &[u8]) -> Option<u64> {
    let length = bytes.get(..HEADER_BYTES)?[4..8].try_into().expect("four bytes");
    Some(HEADER_BYTES as u64 + u64::from(u32::from_le_bytes(length)))
}

/// The archive of a record of this kind, validated.
fn archive<A>(kind: RecordKind, bytes: &[u8]) -> Result<&A, RecordError>
where
    A: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    let size = size_bytes(bytes).ok_or(RecordError::Short)?;
    match size.cmp(&(bytes.len() as u64)) {
        std::cmp::Ordering::Greater => return Err(RecordError::Short),
        std::cmp::Ordering::Less => return Err(RecordError::Long),
        std::cmp::Ordering::Equal => {}
    }
    let (checksum, rest) = bytes.split_at(4);
    if checksum != crc32fast::hash(rest).to_le_bytes() {
        return Err(RecordError::Checksum);
    }
    // The version comes first: the meaning of all that follows depends on it.
    if bytes[9] != VERSION {
        return Err(RecordError::Version(bytes[9]));
    }
    if bytes[8] != kind as u8 {
        return Err(RecordError::Kind(bytes[8]));
    }
    rkyv::access(&bytes[HEADER_BYTES..])
        .map_err(|error: rancor::Error| RecordError::Archive(error.to_string()))
}

fn deserialize<T>(
    archived: &impl Deserialize<T, HighDeserializer<rancor::Error>>,
) -> Result<T, RecordError> {
    rkyv::deserialize(archived)
        .map_err(|error: rancor::Error| RecordError::Archive(error.to_string()))
}

pub(super) fn encode_hard_state(record: &HardStateRecord) -> Vec<u8> {
    encode(RecordKind::HardState, 256, record)
}

pub(super) fn encode_snapshot_meta(meta: &SnapshotMeta) -> Vec<u8> {
    encode(RecordKind::SnapshotMeta, 256, meta)
}

/// The record of the number of the last run that is known to be on disk.
pub(super) fn encode_synced(number: u64) -> Vec<u8> {
    encode(RecordKind::Synced, 8, &number)
}

pub(super) fn decode_hard_state(bytes: &[u8]) -> Result<HardStateRecord, RecordError> {
    deserialize(archive::<ArchivedHardStateRecord>(RecordKind::HardState, bytes)?)
}

pub(super) fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, RecordError> {
    deserialize(archive::<rkyv::Archived<SnapshotMeta>>(RecordKind::SnapshotMeta, bytes)?)
}

pub(super) fn decode_synced(bytes: &[u8]) -> Result<u64, RecordError> {
    deserialize(archive::<rkyv::Archived<u64>>(RecordKind::Synced, bytes)?)
}

/// The archive of a configuration, without a frame: for a record that has one.
pub(super) fn encode_configuration(configuration: &Configuration) -> Vec<u8> {
    to_bytes_in::<_, rancor::Error>(configuration, Vec::new())
        .expect("a configuration is far below the 2 GiB that relative pointers reach")
}

pub(super) fn decode_configuration(bytes: &[u8]) -> Result<Configuration, RecordError> {
    let archived = rkyv::access::<rkyv::Archived<Configuration>, rancor::Error>(bytes)
        .map_err(|error| RecordError::Archive(error.to_string()))?;
    deserialize(archived)
}

/// Which store wrote a hard state: the log that goes with it is in that store, and in no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) enum WrittenBy {
    /// [`SledStore`](super::SledStore).
    Sled,
    /// [`MemoryStore`](super::MemoryStore).
    Memory,
    /// [`SegmentedStore`](super::SegmentedStore).
    Segmented,
}

/// The hard state, and which log goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct HardStateRecord {
    pub(super) written_by: WrittenBy,
    /// Grows with every record, so that the newest of two is known.
    pub(super) number: u64,
    pub(super) state: HardState,
}

/// Neighbouring entries, as they are stored together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The index of the first entry, or the one that it will have in an empty run.
    pub(super) first: Index,
    /// Runs are numbered from 1 in the order in which they are written.
    pub(super) number: u64,
    /// The number of the run before it in the log when it was written; 0 if there was none.
    pub(super) previous: u64,
    pub(super) entries: Vec<Entry>,
}

/// The record of a run of `entries` from index `first` on.
pub(super) fn encode_run(first: Index, number: u64, previous: u64, entries: &[Entry]) -> Vec<u8> {
    let size_bytes: usize = entries.iter().map(Entry::size_bytes).sum();
    let record =
        RunRecord { first, number, previous, entries: entries.iter().map(stored).collect() };
    encode(RecordKind::Run, size_bytes, &record)
}

/// The inverse of [`encode_run`]; return paths are not kept.
pub(super) fn decode_run(bytes: &[u8]) -> Result<Run, RecordError> {
    let archived: &ArchivedRunRecord = archive(RecordKind::Run, bytes)?;
    Ok(Run {
        first: archived.first.to_native(),
        number: archived.number.to_native(),
        previous: archived.previous.to_native(),
        entries: archived.entries.iter().map(restored).collect::<Result<_, _>>()?,
    })
}

/// Cuts entries into runs: at least one, each of one entry or of [`RUN_BYTES_MAX`] at most.
pub(super) fn split_into_runs(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut size_bytes = 0;
    for (at, entry) in entries.iter().enumerate() {
        if at > start && size_bytes + entry.size_bytes() > RUN_BYTES_MAX {
            runs.push(&entries[start..at]);
            start = at;
            size_bytes = 0;
        }
        size_bytes += entry.size_bytes();
    }
    runs.push(&entries[start..]);
    runs
}

#[derive(Archive, Serialize)]
struct RunRecord {
    first: u64,
    number: u64,
    previous: u64,
    entries: Vec<EntryRecord>,
}

#[derive(Archive, Serialize)]
struct EntryRecord {
    term: u64,
    log_time_us: u64,
    session_delta_us: u32,
    payload: PayloadRecord,
}

#[derive(Archive, Serialize)]
enum PayloadRecord {
    Noop,
    Configuration(Configuration),
    Request {
        replier: u16,
        identity: [u64; 2],
        plain: bool,
        digest: u64,
        lowest: u64,
        kind: u8,
        body: Bytes,
    },
}

fn stored(entry: &Entry) -> EntryRecord {
    let payload = match &entry.payload {
        Payload::Noop => PayloadRecord::Noop,
        Payload::Configuration(configuration) => {
            PayloadRecord::Configuration(Configuration::clone(configuration))
        }
        Payload::Request { replier, request } => {
            let (first, second, plain) = request.identity().to_words();
            PayloadRecord::Request {
                replier: replier.0,
                identity: [first, second],
                plain,
                digest: request.digest().0,
                lowest: request.lowest(),
                kind: request.kind() as u8,
                body: request.body().clone(),
            }
        }
    };
    EntryRecord {
        term: entry.term,
        log_time_us: entry.log_time_us,
        session_delta_us: entry.session_delta_us,
        payload,
    }
}

fn restored(archived: &ArchivedEntryRecord) -> Result<Entry, RecordError> {
    let payload = match &archived.payload {
        ArchivedPayloadRecord::Noop => Payload::Noop,
        ArchivedPayloadRecord::Configuration(configuration) => {
            Payload::Configuration(Arc::new(deserialize(configuration)?))
        }
        ArchivedPayloadRecord::Request {
            replier,
            identity: [first, second],
            plain,
            digest,
            lowest,
            kind,
            body,
        } => {
            let identity = Identity::from_words(first.to_native(), second.to_native(), *plain);
            let kind = Kind::from_number(*kind).ok_or(RecordError::RequestKind(*kind))?;
            let body = Bytes::copy_from_slice(body);
            let key = Key { identity, digest: Digest(digest.to_native()) };
            let request = Request::from_parts(key, lowest.to_native(), kind, body);
            Payload::Request { replier: NodeId(replier.to_native()), request: Arc::new(request) }
        }
    };
    Ok(Entry {
        term: archived.term.to_native(),
        log_time_us: archived.log_time_us.to_native(),
        session_delta_us: archived.session_delta_us.to_native(),
        payload,
        return_path: None,
    })
}

/// Decodes bytes as every kind of record, with their checksum, kind and version put right: for the
/// fuzz targets, which would not guess them.
#[doc(hidden)]
pub fn fuzz_records(bytes: &[u8]) {
    let mut bytes = [&[0; HEADER_BYTES], bytes].concat();
    let length = (bytes.len() - HEADER_BYTES) as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = VERSION;
    for kind in [RecordKind::HardState, RecordKind::Run, RecordKind::SnapshotMeta] {
        bytes[8] = kind as u8;
        let checksum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        let _ = decode_hard_state(&bytes);
        let _ = decode_run(&bytes);
        let _ = decode_snapshot_meta(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::suite::sample::Sample;

    fn without_return_paths(entries: &[Entry]) -> Vec<Entry> {
        let without = |entry: &Entry| Entry { return_path: None, ..entry.clone() };
        entries.iter().map(without).collect()
    }

    fn put_checksum_right(record: &mut [u8]) {
        let checksum = crc32fast::hash(&record[4..]);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    proptest! {
        #[test]
        fn a_run_comes_back(seed: u64, first: u64, number: u64, previous: u64, count in 0..9_u64) {
            let entries = Sample::new(seed).entries(7, count);
            let run = decode_run(&encode_run(first, number, previous, &entries)).unwrap();
            let entries = without_return_paths(&entries);
            prop_assert_eq!(run, Run { first, number, previous, entries });
        }

        #[test]
        fn a_hard_state_and_a_meta_come_back(seed: u64) {
            let mut sample = Sample::new(seed);
            let state = sample.hard_state();
            let record = HardStateRecord { written_by: WrittenBy::Memory, number: 7, state };
            prop_assert_eq!(decode_hard_state(&encode_hard_state(&record)).unwrap(), record);
            let meta = sample.meta(seed, 3, b"data");
            prop_assert_eq!(decode_snapshot_meta(&encode_snapshot_meta(&meta)).unwrap(), meta);
            prop_assert_eq!(decode_synced(&encode_synced(seed)), Ok(seed));
        }

        #[test]
        fn one_changed_byte_is_found(seed: u64, at: prop::sample::Index, change in 1..=u8::MAX) {
            let mut record = encode_run(1, 2, 1, &Sample::new(seed).entries(7, 3));
            let at = at.index(record.len());
            record[at] ^= change;
            prop_assert!(decode_run(&record).is_err());
        }

        #[test]
        fn a_cut_is_found(seed: u64, at: prop::sample::Index) {
            let record = encode_run(1, 2, 1, &Sample::new(seed).entries(7, 3));
            let at = at.index(record.len());
            prop_assert_eq!(decode_run(&record[..at]), Err(RecordError::Short));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = (decode_run(&bytes), decode_synced(&bytes));
            fuzz_records(&bytes);
        }

        /// Hostile bytes: an archive that was changed by somebody who puts the checksum right.
        #[test]
        fn a_changed_archive_never_panics(seed: u64, at: prop::sample::Index, to: u8) {
            let mut record = encode_run(1, 2, 1, &Sample::new(seed).entries(7, 3));
            let at = HEADER_BYTES + at.index(record.len() - HEADER_BYTES);
            record[at] = to;
            put_checksum_right(&mut record);
            let _ = decode_run(&record);
        }
    }

    /// P2: another body does not have the digest that comes back, which a node compares.
    #[test]
    fn another_body_keeps_the_digest_that_was_stored() {
        let entry = Sample::new(1).large_entry(1, 100);
        let digest = entry.request().unwrap().digest();
        let body = entry.request().unwrap().body().clone();
        let mut record = encode_run(1, 1, 0, &[entry]);
        let at = record.windows(100).position(|window| *window == body).unwrap();
        record[at + 50] ^= 1;
        assert_eq!(decode_run(&record), Err(RecordError::Checksum));
        put_checksum_right(&mut record);
        let run = decode_run(&record).unwrap();
        let changed = run.entries[0].request().unwrap();
        assert_eq!(changed.digest(), digest);
        assert!(!changed.has_digest_of(Sample::DIGEST_KEY));
    }

    #[test]
    fn other_kinds_and_versions_are_named() {
        let mut record = encode_synced(5);
        assert_eq!(decode_run(&record), Err(RecordError::Kind(4)));
        record.push(0);
        assert_eq!(decode_synced(&record), Err(RecordError::Long));
        record.pop();
        record[9] = 1;
        put_checksum_right(&mut record);
        let error = decode_synced(&record).unwrap_err();
        assert_eq!(error, RecordError::Version(1));
        let error = error.at(Path::new("here"), "the mark").to_string();
        assert!(error.starts_with("here has format version 1, and this build reads version 2;"));
    }

    /// If this fails the bytes on disk have changed, which must not happen without a new
    /// [`VERSION`]: what this build wrote would no longer be read.
    #[test]
    fn the_bytes_are_those_of_version_2() {
        let mut sample = Sample::new(2026);
        let entries: Vec<_> = (0..40).map(|_| sample.entry(3)).collect();
        let state = sample.hard_state();
        let meta = sample.meta(9, 8, b"data");
        let records = [
            encode_run(5, 6, 4, &entries),
            encode_hard_state(&HardStateRecord { written_by: WrittenBy::Sled, number: 7, state }),
            encode_snapshot_meta(&meta),
            encode_synced(77),
        ];
        let checksums = records.map(|record| (record.len(), crc32fast::hash(&record)));
        let version_2 = [
            (77_965, 1_903_708_156),
            (125, 1_119_800_340),
            (184, 1_687_959_970),
            (20, 2_332_075_135),
        ];
        assert_eq!(checksums, version_2);
    }

    #[test]
    fn runs_are_cut_at_the_bound() {
        let mut sample = Sample::new(1);
        let sizes = [10, RUN_BYTES_MAX, 10, RUN_BYTES_MAX - 500, 10, 10, 1_000];
        let entries: Vec<_> = sizes.map(|size| sample.large_entry(1, size)).into();
        let counts: Vec<_> = split_into_runs(&entries).iter().map(|run| run.len()).collect();
        assert_eq!(counts, [1, 1, 3, 2]);
        assert_eq!(split_into_runs(&[]).len(), 1);
    }
}
