//! The room that the log has on a disk that may be full: the store is asked again and again, with
//! growing pauses, until there is more (P38).

use std::time::{Duration, Instant};

use crate::{
    entropy::random_u64,
    entry::Entry,
    storage::{LogStore, Room, StoreError},
};

/// The room that the log has, as it was last told; asked for again and again while the disk is
/// full.
#[derive(Debug)]
pub(super) struct RoomWatch {
    /// Bytes of the largest entry that there can be.
    entry_bytes_max: u64,
    told: Room,
    /// Number of times in a row that the disk had no more.
    refusals: u32,
    /// Time from which it is asked again.
    due: Option<Instant>,
    /// Bytes that appends took since it was asked.
    used_bytes: u64,
    rng: fastrand::Rng,
}

impl RoomWatch {
    /// The pause after the disk first had no more; then it doubles.
    const PAUSE_MIN: Duration = Duration::from_millis(50);
    /// Most doublings: the longest pause is 0.8 s.
    const DOUBLINGS_MAX: u32 = 4;

    /// Begins with the room that a store has said it has for entries of up to `entry_bytes_max`.
    pub(super) fn new(entry_bytes_max: u64, room: Room) -> Self {
        let mut watch = Self {
            entry_bytes_max,
            told: Room::UNLIMITED,
            refusals: 0,
            due: None,
            used_bytes: 0,
            rng: fastrand::Rng::with_seed(random_u64()),
        };
        watch.note(room);
        watch
    }

    /// Returns the room that the log has, if that is news; none is left if an append waits for it.
    pub(super) fn look(
        &mut self,
        store: &mut dyn LogStore,
        is_waiting: bool,
    ) -> Result<Option<Room>, StoreError> {
        // The begin of a wait is told at once.
        if self.is_resting() && (!is_waiting || self.is_used_up()) {
            return Ok(self.rest());
        }
        let mut room = store.room(self.entry_bytes_max)?;
        if is_waiting {
            (room.bytes, room.is_full) = (0, true);
        }
        Ok(self.note(room))
    }

    /// Returns whether it was last told that nothing is left.
    pub(super) fn is_used_up(&self) -> bool {
        self.told.bytes == 0
    }

    /// Counts what an append takes while the disk is not asked.
    pub(super) fn take(&mut self, entries: &[Entry]) {
        if self.due.is_some() {
            self.used_bytes += Room::taken_by(entries);
        }
    }

    /// Returns whether the disk is not to be asked yet.
    pub(super) fn is_resting(&self) -> bool {
        self.due.is_some_and(|due| Instant::now() < due)
    }

    /// Returns what there is at least, if appends took any since the disk was asked.
    fn rest(&mut self) -> Option<Room> {
        let used_bytes = std::mem::take(&mut self.used_bytes);
        self.told.bytes = self.told.bytes.saturating_sub(used_bytes);
        (used_bytes > 0).then_some(self.told)
    }

    /// Takes note of what there is; returns it if that is news.
    fn note(&mut self, room: Room) -> Option<Room> {
        self.used_bytes = 0;
        if room.is_full {
            let longest = Self::PAUSE_MIN * 2u32.pow(self.refusals.min(Self::DOUBLINGS_MAX));
            // Drawn, so that replicas that share a disk do not ask at the same time.
            let longest_us = longest.as_micros() as u64;
            let pause = Duration::from_micros(self.rng.u64(longest_us / 2..=longest_us));
            self.due = Some(Instant::now() + pause);
            self.refusals = self.refusals.saturating_add(1);
        } else {
            (self.due, self.refusals) = (None, 0);
        }
        if room.is_full != self.told.is_full {
            if room.is_full {
                tracing::warn!(
                    left_bytes = room.bytes,
                    "the disk is full: requests are refused when the log has used up the room that \
                     is reserved; make room on the disk, and this replica goes on by itself"
                );
            } else {
                tracing::info!("there is room on the disk again");
            }
        }
        (std::mem::replace(&mut self.told, room) != room).then_some(room)
    }

    /// Returns how long it may wait until the disk is asked again; none if there is no need.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStore;

    #[test]
    fn a_full_disk_is_asked_after_growing_pauses_and_what_is_used_counts_meanwhile() {
        let full = Room { bytes: 10_000, spare_bytes: 100, is_full: true };
        let mut watch = RoomWatch::new(1000, full);
        let mut longest = RoomWatch::PAUSE_MIN;
        for _ in 0..8 {
            // The time that this test takes is less of it.
            let pause = watch.pause().expect("it is asked again");
            assert!(pause <= longest, "{pause:?}");
            longest = (longest * 2).min(Duration::from_millis(800));
            assert_eq!(watch.note(full), None, "it is no news");
        }
        watch.take(&[]);
        let left = Room { bytes: full.bytes - Room::APPEND_BYTES as u64, ..full };
        assert_eq!((watch.rest(), watch.rest()), (Some(left), None));
        let more = Room { bytes: 1 << 20, is_full: false, ..full };
        assert_eq!((watch.note(more), watch.pause()), (Some(more), None));
    }

    #[test]
    fn an_append_that_begins_to_wait_is_told_before_the_pause_is_over() {
        let full = Room { bytes: 10_000, spare_bytes: 100, is_full: true };
        let mut watch = RoomWatch::new(1000, full);
        watch.due = Some(Instant::now() + Duration::from_hours(1));
        let mut store = MemoryStore::new();
        assert_eq!(watch.look(&mut store, false).unwrap(), None, "it rests");
        let told = watch.look(&mut store, true).unwrap().expect("that is news");
        assert!(told.bytes == 0 && told.is_full);
    }
}
