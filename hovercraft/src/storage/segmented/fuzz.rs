//! Any bytes in the place of the records, for the fuzz target.

use super::{
    SegmentedStore,
    format::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, seal_checksum},
};
use crate::{
    entry::{Entry, Incarnation, Index, Payload, Term},
    storage::{Durability, HardState, LogStore, SimDisk},
};

/// Opens a log whose records are these bytes, with the checksums put right where a record may begin
/// if the first byte says so, which a fuzzer would not guess. What can be opened can be gone on
/// from: nothing comes back later that was not there.
#[doc(hidden)]
pub fn fuzz_recovery(bytes: &[u8]) {
    const SEGMENT_BYTES: u64 = 64 << 10;
    let Some((&options, bytes)) = bytes.split_first() else { return };
    let disk = SimDisk::new(0);
    let open = |seed| SegmentedStore::open_on(&disk.root(), seed, SEGMENT_BYTES);
    let mut store = open(1).expect("the disk is empty");
    store.save_hard_state(&hard_state()).expect("the disk is good");
    drop(store);
    write_records(&disk, bytes, options & 1 == 1);
    if options & 2 == 2 {
        disk.root().remove("synced").expect("it is there");
    }
    let Ok(loaded) = open(2).and_then(|mut store| store.load()) else { return };
    let next = loaded.first_index + loaded.entries.len() as Index;
    let term = loaded.entries.last().map_or(9, |entry| entry.term);
    let gone_on = open(3).and_then(|mut store| {
        store.load()?;
        store.append(next, &[noop(term)])?;
        store.sync()
    });
    gone_on.expect("what was opened once can be appended to");
    let after = open(4).and_then(|mut store| store.load()).expect("and opened again");
    assert_eq!(after.first_index, loaded.first_index);
    let count = loaded.entries.len();
    assert!(after.entries[..count] == loaded.entries && after.entries[count..] == [noop(term)]);
}

fn write_records(disk: &SimDisk, bytes: &[u8], put_right: bool) {
    let log = disk.root().directory("log").expect("it is there");
    let mut file = log.open("segment-1").expect("it is there");
    let mut segment = vec![0; SEGMENT_HEADER_BYTES];
    file.read_at(0, &mut segment).expect("the disk is good");
    let header = SegmentHeader::decode(&segment).expect("it was just made");
    segment.extend_from_slice(bytes);
    let mut offset = SEGMENT_HEADER_BYTES;
    while put_right && segment.len() - offset >= RECORD_HEADER_BYTES {
        offset = seal_checksum(header.salt, offset, &mut segment);
    }
    file.write_at(0, &segment).expect("the disk is good");
}

fn hard_state() -> HardState {
    HardState {
        term: 1,
        vote: None,
        incarnation: Incarnation(1),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    }
}

fn noop(term: Term) -> Entry {
    Entry { term, log_time_us: 9, session_delta_us: 0, payload: Payload::Noop, return_path: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            fuzz_recovery(&bytes);
        }

        /// Headers that are nearly right, of records with nothing in them or with anything.
        #[test]
        fn records_of_a_hostile_writer_never_panic(
            records in prop::collection::vec((0..4_u64, 0..4_u64, 0..4_u64, 0..3_u8, 0..9_u8), 0..9),
            options in 0..4_u8,
        ) {
            let mut bytes = vec![options];
            for (number, previous, first, kind, length) in records {
                bytes.extend_from_slice(&[0; 8]);
                bytes.extend_from_slice(&u32::from(length).to_le_bytes());
                bytes.extend_from_slice(&u32::from(length / 8).to_le_bytes());
                for word in [number, previous, 0, first, kind.into()] {
                    bytes.extend_from_slice(&word.to_le_bytes());
                }
                bytes.resize(bytes.len() + usize::from(length).next_multiple_of(8), 0);
            }
            fuzz_recovery(&bytes);
        }
    }
}
