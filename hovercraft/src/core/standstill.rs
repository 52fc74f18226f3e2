//! Where a replica stands and why, as it says to the leader and as the leader shows it.
//!
//! A follower that waits costs the others nothing, so the leader does not step down for it. But it
//! is one failure less that the cluster survives: the log and `status` name it.

use std::{fmt, time::Duration};

use r2p2::Time;
use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    core::Core,
    entry::{Index, NodeId},
};

/// The index at which a replica waits for something, and the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Standstill {
    /// Index of the first entry that waits.
    pub index: Index,
    /// The cause.
    pub cause: Cause,
}

/// Something that a replica may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Cause {
    /// The entry's request is missing (P9).
    Body,
    /// The disk has not completed the entry's write.
    Disk,
    /// The service has stopped (P42).
    Service,
    /// The log has no room until entries are applied or a snapshot is taken.
    Room,
    /// The disk is full: it has no room for the log, or for a snapshot without which the log cannot
    /// be trimmed (P38).
    FullDisk,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Body => "body",
            Self::Disk => "disk",
            Self::Service => "service",
            Self::Room => "room",
            Self::FullDisk => "the disk is full",
        })
    }
}

/// What the leader knows of a follower that waits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watch {
    /// Its last report, and when it first said the same.
    reported: Option<(Standstill, Time)>,
    is_told: bool,
}

impl Watch {
    /// Takes a report. A wait is told when it has lasted for `patience`, once, and so is its end.
    pub(crate) fn note(
        &mut self,
        now: Time,
        node: NodeId,
        report: Option<Standstill>,
        patience: Duration,
    ) {
        let same = self.reported.filter(|(before, _)| Some(*before) == report);
        let was_told = self.is_told;
        self.is_told &= same.is_some();
        self.reported = report.map(|report| (report, same.map_or(now, |(_, since)| since)));
        match self.reported {
            Some((Standstill { index, cause }, since))
                if !self.is_told && now.since(since) >= patience =>
            {
                self.is_told = true;
                tracing::warn!(%node, index, %cause, "a follower waits and does not go on");
            }
            None if was_told => tracing::info!(%node, "the follower that waited goes on"),
            Some(_) | None => {}
        }
    }

    /// The follower holds everything up to an index: what waited there does not any more.
    pub(crate) fn passed(&mut self, now: Time, node: NodeId, index: Index) {
        let is_over = |(it, _): (Standstill, Time)| it.cause != Cause::Service && it.index <= index;
        if self.reported.is_some_and(is_over) {
            self.note(now, node, None, Duration::ZERO);
        }
    }

    /// Returns where the follower waits, if it has for some time.
    pub(crate) fn standstill(&self) -> Option<Standstill> {
        self.reported.map(|(standstill, _)| standstill).filter(|_| self.is_told)
    }
}

impl Core {
    /// Returns the entry that this replica cannot go beyond at present.
    pub(super) fn standstill(&self) -> Option<Standstill> {
        let (index, cause) = if self.is_poisoned {
            (self.applied + 1, Cause::Service)
        } else if self.lacks_room() {
            (self.log.last() + 1, Cause::FullDisk)
        } else if self.held_index() < self.log.last()
            || self.writing_bytes >= self.settings.limits.writing_bytes
        {
            (self.held_index() + 1, Cause::Disk)
        } else if self.binding.len() == 0 {
            return None;
        } else if self.has_room_to_bind() {
            (self.log.last() + 1, Cause::Body)
        } else {
            (self.log.last() + 1, Cause::Room)
        };
        Some(Standstill { index, cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_once_it_has_lasted() {
        let patience = Duration::from_millis(300);
        let at = |ms| Time::ZERO + Duration::from_millis(ms);
        let body = |index| Some(Standstill { index, cause: Cause::Body });
        let mut watch = Watch::default();
        let mut note = |ms, report| {
            watch.note(at(ms), NodeId(2), report, patience);
            watch.standstill()
        };
        assert_eq!(note(0, body(7)), None);
        assert_eq!(note(200, body(7)), None);
        assert_eq!(note(300, body(7)), body(7));
        assert_eq!(note(310, body(7)), body(7));
        // Another entry: it goes on, however slowly.
        assert_eq!(note(320, body(8)), None);
        assert_eq!(note(700, body(8)), body(8));
        assert_eq!(note(710, None), None);
        assert_eq!(note(2000, body(8)), None);
    }
}
