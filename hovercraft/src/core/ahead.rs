//! Parts of a body or of a snapshot that came before those in front of them (P9, P36).

use std::{collections::BTreeMap, ops::Range};

use crate::core::pacing::WINDOW_MAX;

/// Most bytes of parts that came too early, and how far ahead parts are asked for.
pub(crate) const AHEAD_BYTES_MAX: usize = 4 * WINDOW_MAX;

/// Most parts that came too early.
const AHEAD_COUNT_MAX: usize = 2048;

/// Parts that came before those in front of them, by offset.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    parts: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Ahead {
    /// Keeps a part, if it is not here; and if there is room, unless it goes on at `here` and is
    /// taken at once. Returns whether it did.
    pub(crate) fn keep(&mut self, here: u64, offset: u64, data: Vec<u8>) -> bool {
        let is_new = !self.parts.contains_key(&offset);
        let has_room =
            self.parts.len() < AHEAD_COUNT_MAX && self.bytes + data.len() <= AHEAD_BYTES_MAX;
        let has_room = has_room || offset <= here;
        let is_kept = is_new && has_room;
        if is_kept {
            self.bytes += data.len();
            self.parts.insert(offset, data);
        }
        is_kept
    }

    /// Takes the part that goes on at `here`, without what lies before that.
    pub(crate) fn take(&mut self, here: u64) -> Option<Vec<u8>> {
        while let Some(first) = self.parts.first_entry().filter(|first| *first.key() <= here) {
            let (offset, mut data) = first.remove_entry();
            self.bytes -= data.len();
            let known = (here - offset) as usize;
            if known < data.len() {
                data.drain(..known);
                return Some(data);
            }
        }
        None
    }

    /// Returns the first gap at or above an offset, beside what is due.
    pub(crate) fn gap(&self, from: u64, due: impl Iterator<Item = Range<u64>>) -> Range<u64> {
        let here = self.parts.iter().map(|(offset, data)| *offset..offset + data.len() as u64);
        let mut ranges: Vec<_> = here.chain(due).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut start = from;
        for range in ranges {
            if range.start > start {
                return start..range.start;
            }
            start = start.max(range.end);
        }
        start..u64::MAX
    }

    /// Returns the number of parts, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.parts.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_come_too_early_are_kept_and_only_gaps_are_left() {
        let mut ahead = Ahead::default();
        assert!(ahead.keep(10, 20, vec![2; 10]) && ahead.keep(10, 40, vec![4; 10]));
        assert!(!ahead.keep(10, 20, vec![2; 10]), "it came twice");
        assert!(!ahead.keep(10, 99, vec![0; AHEAD_BYTES_MAX]), "there is no room for it");
        let gaps = |ahead: &Ahead, due: &[Range<u64>], from: &[u64]| {
            let gap = |from: &u64| ahead.gap(*from, due.iter().cloned());
            from.iter().map(gap).collect::<Vec<_>>()
        };
        assert_eq!(gaps(&ahead, &[], &[0, 20, 50]), [0..20, 30..40, 50..u64::MAX]);
        // Nor is a part that is on its way a gap, in whatever order it was asked for.
        assert_eq!(gaps(&ahead, &[50..60, 0..15], &[0, 50]), [15..20, 60..u64::MAX]);
        assert_eq!(ahead.take(10), None);
        // A part that overlaps what is here gives the rest.
        assert_eq!(ahead.take(25), Some(vec![2; 5]));
        assert_eq!(ahead.take(30), None);
        assert_eq!((ahead.take(60), ahead.size()), (None, (0, 0)));
        // A part that goes on where the others end always has room.
        assert!(ahead.keep(60, 70, vec![0; AHEAD_BYTES_MAX]));
        assert!(ahead.keep(60, 60, vec![6; 10]));
        assert_eq!(ahead.take(60), Some(vec![6; 10]));
    }
}
