//! What is stored in the tests of the segmented store.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod crashes;

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use hovercraft::{
    ClusterLimits, Configuration, DigestKey, Entry, Identity, Incarnation, Index, Kind, NodeId,
    Payload, Request, Term,
    storage::{
        Durability, HardState, Loaded, LogStore, SegmentedStore, SimDisk, SnapshotMeta,
        SnapshotSink, StoreError,
    },
};

/// The smallest segments there are, so that a test fills many.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;

/// The secret of the cluster that the log is of.
pub(crate) const DIGEST_KEY: DigestKey = DigestKey::new([1, 2]);

/// An entry that says where it belongs, so that one in another place is seen.
pub(crate) fn entry(index: Index, term: Term) -> Entry {
    // Quick to make: a test that compares all it finds makes millions.
    let mut body = vec![(index ^ term) as u8; 16 + (index * 37 + term * 101) as usize % 700];
    body[..8].copy_from_slice(&index.to_le_bytes());
    body[8..16].copy_from_slice(&term.to_le_bytes());
    entry_of(index, term, body)
}

/// An entry whose request has this body.
pub(crate) fn entry_of(index: Index, term: Term, body: Vec<u8>) -> Entry {
    let body = Bytes::from(body);
    let identity = Identity::Session { client: 1, sequence: index };
    let request = Request::new(DIGEST_KEY, identity, 1, Kind::Write, body);
    Entry {
        term,
        log_time_us: index,
        session_delta_us: 0,
        payload: Payload::Request { replier: NodeId(1), request: Arc::new(request) },
        return_path: None,
    }
}

pub(crate) fn entries(first: Index, count: u64, term: Term) -> Vec<Entry> {
    (first..first + count).map(|index| entry(index, term)).collect()
}

pub(crate) fn hard_state(term: Term) -> HardState {
    HardState {
        term,
        vote: Some(NodeId(2)),
        incarnation: Incarnation(99),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    }
}

/// A snapshot at (index, term) that is written and not published.
pub(crate) fn sink(
    store: &dyn LogStore,
    (index, term): (Index, Term),
) -> Result<(Box<dyn SnapshotSink>, SnapshotMeta), StoreError> {
    let mut sink = store.snapshots().create()?;
    // What cannot be written is found when it is published.
    let _ = sink.write_all(&vec![index as u8; 3_000]);
    let configuration = Configuration::new(1, Vec::new(), ClusterLimits::default());
    let (size_bytes, checksum) = sink.written();
    let meta = SnapshotMeta {
        index,
        term,
        configuration,
        log_time_us: 5,
        size_bytes,
        checksum,
        digest_key: DIGEST_KEY,
    };
    Ok((sink, meta))
}

pub(crate) fn publish(store: &dyn LogStore, at: (Index, Term)) -> Result<(), StoreError> {
    let (sink, meta) = sink(store, at)?;
    store.snapshots().publish(sink, &meta)
}

pub(crate) fn opened(disk: &SimDisk, seed: u64) -> Result<(SegmentedStore, Loaded), StoreError> {
    let mut store = SegmentedStore::open_on(&disk.root(), seed, SEGMENT_BYTES)?;
    let loaded = store.load()?;
    Ok((store, loaded))
}
