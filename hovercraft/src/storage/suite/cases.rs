//! The cases, each a promise of the traits.

use std::io::Read;

use super::subject::Subject;
use crate::storage::{Room, StoreError};

/// A name, which can be a file name, and what checks the promise.
pub(super) struct Case(pub(super) &'static str, pub(super) fn(Subject));

pub(super) const ALL: &[Case] = &[
    Case("hard-state", hard_state),
    Case("append", append),
    Case("overwrite", overwrite),
    Case("truncate", truncate),
    Case("large-entries", large_entries),
    Case("crash", crash),
    Case("trim", trim),
    Case("snapshot", snapshot),
    Case("snapshot-mismatch", snapshot_mismatch),
    Case("snapshot-beyond-the-log", snapshot_beyond_the_log),
    Case("stale-tail", stale_tail),
    Case("stale-tail-after-a-crash", stale_tail_after_a_crash),
    Case("tail-behind-the-snapshot", tail_behind_the_snapshot),
    Case("contradiction", contradiction),
    Case("install-keeping-the-tail", install_keeping_the_tail),
    Case("install-dropping-the-log", install_dropping_the_log),
    Case("install-voids", install_voids),
    Case("full-disk", full_disk),
    Case("random", random),
];

/// P37: a hard state is on disk when `save_hard_state` returns, with every field.
fn hard_state(mut subject: Subject) {
    subject.reopen();
    for _ in 0..8 {
        subject.save(false);
        subject.save(false);
        subject.crash();
    }
}

fn append(mut subject: Subject) {
    for count in [1, 1, 7, 256, 1] {
        subject.extend(count);
    }
    subject.reopen();
    for _ in 0..20 {
        subject.extend(1);
        subject.sync();
    }
    subject.append(subject.model.next_index(), 0);
    subject.reopen();
    subject.reopen();
}

/// P8: a conflict replaces the entries from some index on, which may be in the middle of what one
/// append brought.
fn overwrite(mut subject: Subject) {
    for (first, count) in [(1, 100), (51, 10), (61, 5), (61, 20), (30, 100), (80, 1), (1, 3)] {
        subject.append(first, count);
        subject.reopen();
        subject.extend(2);
    }
}

/// P8: a conflict truncates at once, bodies or not.
fn truncate(mut subject: Subject) {
    subject.extend(30);
    subject.extend(30);
    for first in [61, 50, 31, 31, 5] {
        subject.append(first, 0);
        subject.reopen();
    }
    subject.extend(3);
    subject.append(6, 0);
    subject.append(6, 0);
    subject.extend(4);
    subject.reopen();
    subject.append(1, 0);
    subject.reopen();
    subject.extend(1);
    subject.reopen();
}

/// P4: bodies of up to 8 MiB.
fn large_entries(mut subject: Subject) {
    for size in [100_000, 8 << 20, 1_000_000] {
        let entry = subject.large_entry(size);
        let first = subject.model.next_index();
        subject.append_these(first, &[entry]);
    }
    subject.extend(5);
    let entries: Vec<_> = (0..20).map(|_| subject.large_entry(70_000)).collect();
    let first = subject.model.next_index();
    subject.append_these(first, &entries);
    subject.reopen();
    subject.append(first + 7, 2);
    subject.reopen();
    subject.append(2, 1);
    subject.reopen();
}

/// What a sync has covered is there after a crash; of the rest, a prefix.
fn crash(mut subject: Subject) {
    subject.extend(20);
    subject.sync();
    subject.crash();
    if !subject.survives_crashes() {
        return;
    }
    for round in 0..6 {
        subject.extend(1 + round);
        subject.extend(300);
        if round % 2 == 0 {
            subject.sync();
        }
        subject.append(subject.model.next_index() - 150, 40);
        subject.extend(3);
        subject.crash();
        subject.extend(2);
        subject.sync();
        subject.crash();
    }
}

/// Entries that a snapshot holds the effect of may go, and no others.
fn trim(mut subject: Subject) {
    for _ in 0..20 {
        subject.extend(5);
    }
    subject.trim(50);
    subject.extend(1);
    subject.extend(1);
    subject.reopen();
    subject.publish(60);
    subject.trim(31);
    subject.reopen();
    subject.trim(1_000);
    subject.extend(1);
    subject.extend(1);
    subject.reopen();
    subject.append(80, 3);
    subject.trim(61);
    subject.publish(82);
    subject.trim(83);
    subject.reopen();
    subject.extend(10);
    subject.reopen();
}

fn snapshot(mut subject: Subject) {
    subject.check_snapshot();
    subject.extend(50);
    drop(subject.snapshot(10, 1_000));
    subject.check_snapshot();
    subject.reopen();
    for index in [10, 20, 21] {
        subject.publish(index);
        subject.check_snapshot();
    }
    subject.reopen();

    // One that is not newer than the latest is dropped.
    for index in [20, 21] {
        let (sink, meta, _) = subject.snapshot(index, 100);
        let published = subject.snapshots().publish(sink, &meta);
        subject.expect("publish", published);
        subject.check_snapshot();
    }

    // One that is open stays readable when a newer one takes its place.
    let opened = subject.snapshots().open();
    let mut open = subject.expect("open the snapshot", opened).expect("it was checked");
    let data = subject.model.snapshot.clone().expect("it was published").1;
    drop(subject.snapshot(30, 1_000));
    subject.publish(40);
    let mut read = Vec::new();
    let result = open.source.read_to_end(&mut read);
    subject.expect("read a snapshot that is not the latest", result);
    if read != data {
        subject.fail("a snapshot that was open changed");
    }
    subject.reopen();
}

/// A snapshot is refused if its data is not what its meta says, and nothing has changed.
fn snapshot_mismatch(mut subject: Subject) {
    subject.extend(20);
    subject.publish(5);
    for damage in 0..4 {
        let (sink, mut meta, _) = subject.snapshot(10, 1_000);
        if damage % 2 == 0 {
            meta.size_bytes += 1;
        } else {
            meta.checksum ^= 1;
        }
        let result = if damage < 2 {
            subject.snapshots().publish(sink, &meta)
        } else {
            subject.store().install(sink, &meta, false)
        };
        if !matches!(result, Err(StoreError::SnapshotMismatch { .. })) {
            subject.fail(&format!("a snapshot that is not what its meta says gives {result:?}"));
        }
        subject.check_snapshot();
    }
    subject.extend(1);
    subject.reopen();
}

/// The log's end is not synced before a snapshot is: the log may come back shorter than that.
fn snapshot_beyond_the_log(mut subject: Subject) {
    subject.extend(10);
    subject.sync();
    subject.publish(20);
    subject.reopen();
    subject.extend(10);
    subject.reopen();
    subject.publish(30);
    subject.reopen();
    subject.extend(1);
    subject.reopen();
}

/// P36: a log that has reached the snapshot with another entry is older than the snapshot. All of it
/// goes, and none of it comes back, whether its terms ascend to the snapshot's or not.
fn stale_tail(mut subject: Subject) {
    subject.extend(17);
    subject.extend(1);
    subject.extend(87);
    subject.sync();
    let term = subject.model.term(19).expect("it was appended");
    subject.publish_of((18, term));
    subject.reopen();
    subject.reopen();
    subject.extend(3);
    subject.reopen();
    // The snapshot's entry is the last one of a stale log, or one in its middle.
    for back in [0, 2] {
        subject.extend(4);
        let (last, term) = (subject.model.next_index() - 1, subject.term() + 1);
        subject.publish_of((last - back, term));
        subject.reopen();
        subject.append(last - back + 1, 0);
        subject.reopen();
    }
    subject.extend(5);
    if subject.survives_crashes() {
        subject.sync();
        subject.crash();
    }
    subject.reopen();
}

/// P36: the truncation that a snapshot rests on is not synced, as on a disk whose syncs lie.
fn stale_tail_after_a_crash(mut subject: Subject) {
    if !subject.survives_crashes() {
        return;
    }
    for _ in 0..3 {
        let first = subject.model.next_index();
        subject.extend(100);
        subject.sync();
        subject.append(first + 94, 3);
        subject.publish(first + 96);
        subject.crash();
        subject.extend(2);
        subject.sync();
        subject.crash();
    }
}

/// P36: a log that begins right behind the snapshot holds no entry to compare, and keeps its tail.
fn tail_behind_the_snapshot(mut subject: Subject) {
    subject.extend(30);
    subject.install(40, false);
    for _ in 0..3 {
        subject.extend(4);
        subject.reopen();
    }
    if subject.survives_crashes() {
        subject.sync();
        subject.crash();
    }
    // What a clean stop in the durability `memory` writes: the log from there on.
    subject.publish(45);
    subject.append(46, 9);
    subject.reopen();
    // And where entries that an earlier stop wrote were replaced below the snapshot.
    if !subject.survives_crashes() {
        subject.publish_of((50, subject.term() + 1));
        subject.model.restart_log(51);
        subject.append(51, 4);
        subject.reopen();
    }
}

/// P38: a log whose terms go back is none.
fn contradiction(mut subject: Subject) {
    subject.extend(3);
    let mut entries = subject.sample.entries(9, 2);
    entries.extend(subject.sample.entries(8, 2));
    subject.append_these(4, &entries);
    subject.refuses_to_load("a log whose terms go back");
}

/// P36: entries above an installed snapshot stay if the log holds its last entry.
fn install_keeping_the_tail(mut subject: Subject) {
    subject.extend(40);
    subject.extend(40);
    for index in [10, 40, 41, 70, 80] {
        subject.install(index, true);
        subject.check_snapshot();
        subject.reopen();
    }
    subject.extend(10);
    subject.install(85, true);
    subject.extend(10);
    subject.append(90, 2);
    subject.reopen();
}

/// P36, P38: else all go, also when a diverged replica reinstalls at a lower index.
fn install_dropping_the_log(mut subject: Subject) {
    for index in [100, 90, 90, 3] {
        subject.extend(20);
        subject.sync();
        subject.extend(20);
        subject.install(index, false);
        subject.check_snapshot();
        if index != 90 && subject.survives_crashes() {
            subject.crash();
        }
        subject.reopen();
        subject.extend(5);
        subject.append(index + 3, 4);
        subject.reopen();
        subject.append(index + 1, 0);
        subject.reopen();
    }
}

/// A snapshot that was begun before an install is of a state that is gone.
fn install_voids(mut subject: Subject) {
    subject.extend(50);
    let (sink, meta, _) = subject.snapshot(45, 100);
    subject.install(30, false);
    let published = subject.snapshots().publish(sink, &meta);
    subject.expect("publish", published);
    subject.check_snapshot();
    subject.reopen();
}

/// P38: on a full disk there is room for what was said, hard states are saved, snapshots are put
/// off, and nothing is lost by what found no room.
fn full_disk(mut subject: Subject) {
    subject.extend(30);
    subject.sync();
    let room = subject.store().room(1_000);
    let room = subject.expect("ask for room", room);
    if !subject.set_full(true) {
        return;
    }
    let mut taken_bytes = 0;
    loop {
        let first = subject.model.next_index();
        let entries = subject.entries(10);
        let bytes = Room::taken_by(&entries);
        if taken_bytes + bytes > room.bytes {
            break;
        }
        taken_bytes += bytes;
        subject.append_these(first, &entries);
        subject.sync();
        subject.save(false);
    }
    if !matches!(subject.try_publish(20), Err(StoreError::Full { .. })) {
        subject.fail("a snapshot that finds the disk full is not put off");
    }
    subject.check_snapshot();
    subject.reopen();
    subject.crash();
    subject.set_full(false);
    subject.publish(20);
    subject.extend(100);
    subject.reopen();
}

/// Anything after anything, against the model.
fn random(mut subject: Subject) {
    for _ in 0..300 {
        let next = subject.model.next_index();
        let uncovered = subject.model.next_uncovered();
        match subject.sample.between(0, 99) {
            0..40 => {
                let count = subject.sample.between(0, 20);
                subject.extend(count);
            }
            40..55 => {
                let first = subject.sample.between(uncovered.max(next.saturating_sub(50)), next);
                let count = subject.sample.between(0, 30);
                subject.append(first, count);
            }
            55..70 => subject.sync(),
            70..78 => {
                let first = subject.sample.between(1, next + 1);
                subject.trim(first);
            }
            78..84 if uncovered < next => {
                let index = subject.sample.between(uncovered, next - 1);
                subject.publish(index);
            }
            84..86 if uncovered < next => {
                let index = subject.sample.between(uncovered, next - 1);
                subject.install(index, true);
            }
            86..88 => {
                let index = subject.sample.between(uncovered, next + 10);
                subject.install(index, false);
            }
            88..90 => subject.save(false),
            90..95 => subject.reopen(),
            95..100 if subject.survives_crashes() => subject.crash(),
            _ => subject.check_snapshot(),
        }
    }
    subject.reopen();
}
