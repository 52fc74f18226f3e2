//! The pace of this replica's disk, and a leader that gives way because its disk stands (P38).
//!
//! Followers can commit without a leader's disk only until what is unwritten reaches its bound. So a
//! leader whose storage role has completed nothing for two election time-outs, while work waits,
//! steps down if a quorum of the others can go on: they answer, and their disks have moved all the
//! time of late. Where every disk is slow nobody gives way, so that leadership never flaps.

use std::time::Duration;

use r2p2::Time;

use crate::{
    core::{Core, Role},
    entry::Member,
    storage::Durability,
};

/// A disk stands when it has completed nothing for so many of the longest election time-outs. One
/// that did so for one of them, even if it went on, does not move.
const STANDS_AFTER: u32 = 2;

/// For so many of the longest election time-outs a disk is remembered by its longest wait.
const REMEMBERED_FOR: u32 = 4;

/// Waits for the storage role, as the core sees it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When work began to wait, or when the storage role last completed something.
    waiting_since: Option<Time>,
    /// Longest wait of late that is over, and when it ended.
    longest: Option<(Duration, Time)>,
    /// The present wait, as of the last turn.
    waited: Duration,
    /// True if a log line said that the disk stands.
    is_said: bool,
}

impl Pace {
    /// The storage role completed something.
    fn complete(&mut self, now: Time, remembered_for: Duration) {
        let Some(since) = &mut self.waiting_since else { return };
        let wait = now.since(*since);
        *since = now;
        if self.longest_of_late(now, remembered_for) <= wait {
            self.longest = Some((wait, now));
        }
    }

    fn waited(&self, now: Time) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    fn longest_of_late(&self, now: Time, remembered_for: Duration) -> Duration {
        let of_late = self.longest.filter(|(_, at)| now.since(*at) <= remembered_for);
        of_late.map_or(Duration::ZERO, |(wait, _)| wait)
    }
}

impl Core {
    /// The storage role completed something.
    pub(super) fn disk_moved(&mut self, now: Time) {
        let remembered_for = self.settings.timing.election_max * REMEMBERED_FOR;
        self.pace.complete(now, remembered_for);
    }

    /// Looks at the end of a turn whether anything waits for the disk. A snapshot may take its time,
    /// unless the log is full and only that makes room.
    pub(super) fn observe_disk(&mut self, now: Time) {
        // An append that waits for room says nothing of the disk's pace.
        let waits = (!self.writing.is_empty() && !self.room.is_used_up())
            || self.hard_state_write.is_some()
            || (self.is_log_full() && self.snapshots.is_taking());
        if waits {
            self.pace.waiting_since.get_or_insert(now);
        } else {
            self.pace.waiting_since = None;
        }
        self.pace.waited = self.pace.waited(now);
        let stands = self.disk_stands(now);
        if stands != self.pace.is_said {
            self.pace.is_said = stands;
            if stands {
                let waited = self.pace.waited;
                tracing::warn!(?waited, "the disk completes nothing: look at it");
            } else {
                tracing::info!("the disk completes what it is asked to do again");
            }
        }
    }

    /// Returns whether the disk has completed nothing for so long that this replica should not
    /// lead.
    pub(super) fn disk_stands(&self, now: Time) -> bool {
        let patience = self.settings.timing.election_max * STANDS_AFTER;
        self.pace.waited(now) >= patience
    }

    /// The time for which the disk completes nothing, if it stands.
    pub(super) fn disk_stands_for(&self) -> Option<Duration> {
        let patience = self.settings.timing.election_max * STANDS_AFTER;
        Some(self.pace.waited).filter(|waited| *waited >= patience)
    }

    /// Returns what the leader is told of the disk: the longest wait of late, in microseconds.
    pub(super) fn disk_wait_us(&self, now: Time) -> u64 {
        let remembered_for = self.settings.timing.election_max * REMEMBERED_FOR;
        let longest = self.pace.longest_of_late(now, remembered_for);
        self.pace.waited(now).max(longest).as_micros() as u64
    }

    /// A leader whose disk stands steps down if a quorum of the others can go on without it. They need
    /// not hold all of this log: they elect who has the most of it, and the rest is not committed.
    pub(super) fn give_way_to_disks(&mut self, now: Time) {
        let at_once = planted!("disk-gives-way-at-once") && self.pace.waiting_since.is_some();
        let stands = self.disk_stands(now) && !planted!("disk-keeps-office");
        if !self.is_leader() || !(stands || at_once) {
            return;
        }
        if self.movers(now) < self.configuration().quorum() && !planted!("disk-gives-way-alone") {
            return;
        }
        let waited = self.pace.waited(now);
        tracing::warn!(term = self.term(), ?waited, "the disk stands: another replica is to lead");
        self.counters.disks_gave_way += 1;
        self.step_down(now);
    }

    /// Number of other replicas that answer and whose disks move and have room.
    fn movers(&self, now: Time) -> usize {
        let Role::Leader(leader) = &self.role else { return 0 };
        let timing = self.settings.timing;
        let moves = |member: &&Member| {
            member.id != self.node
                && leader.answered_since(member, now - timing.election_min)
                && !leader.is_poisoned(member)
                && !leader.lacks_room(member)
                && leader.disk_wait(member) < timing.election_max
        };
        self.configuration().members.iter().filter(moves).count()
    }

    /// Returns whether check-quorum counts the leader itself. One whose disk stands is none of a
    /// quorum that can commit, so without another quorum it steps down; but not where no other disk
    /// is better, where every quorum needs this one, or while the durability lets it commit what
    /// only memory holds.
    pub(super) fn counts_itself(&self, now: Time) -> bool {
        let configuration = self.configuration();
        let has_room = self.has_room_to_order() && self.has_room_for_small();
        let commits = self.settings.durability != Durability::Sync && has_room;
        let is_needed = configuration.members.len() <= configuration.quorum();
        !self.disk_stands(now) || commits || is_needed || self.movers(now) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            Output, Settings, Timing,
            testing::{elected_at, envelope, leader, request, return_path},
        },
        entry::Index,
        messages::{AppendReply, Message},
        storage::Room,
    };

    const LAN: Timing = Timing::LAN;
    const MILLISECOND: Duration = Duration::from_millis(1);

    /// When both time-outs have gone by.
    const STANDS: Duration = Duration::from_millis(600);

    /// A leader whose disk stands since [`elected_at`], with a request that waits for it.
    fn stalled(settings: Settings) -> Core {
        let mut core = leader(settings);
        core.handle_request(elected_at(), request(9, 1), return_path(1));
        core.flush(elected_at(), 0);
        core
    }

    /// Goes on from one time after the election to another, a turn every five milliseconds, while
    /// nothing is written. Followers 2 and 3 answer and say how long they waited for their disks; none
    /// does not answer.
    fn go_on(core: &mut Core, from: Duration, to: Duration, waits: [Option<Duration>; 2]) {
        let mut now = elected_at() + from;
        while now < elected_at() + to {
            now += 5 * MILLISECOND;
            core.handle_timeout(now);
            core.flush(now, 0);
            let outputs: Vec<_> = std::iter::from_fn(|| core.poll_output()).collect();
            for output in outputs {
                let Output::Send { to, envelope: sent } = output else { continue };
                let Message::AppendEntries(append) = sent.message else { continue };
                let Some(wait) = waits[usize::from(to.0) - 2] else { continue };
                let reply = AppendReply {
                    round: append.round,
                    acknowledged: append.previous_index + append.entries.len() as Index,
                    disk_wait_us: wait.as_micros() as u64,
                    ..AppendReply::default()
                };
                core.handle_message(now, envelope(to.0, 1, Message::AppendReply(reply)));
            }
        }
    }

    /// P38: nobody gives way to a full disk, however long an append waits for room there.
    #[test]
    fn an_append_that_waits_for_room_is_no_sign_of_a_disk_that_stands() {
        let mut core = stalled(Settings::default());
        core.handle_room(Room { bytes: 0, spare_bytes: 4096, is_full: true });
        go_on(&mut core, Duration::ZERO, 2 * STANDS, [Some(MILLISECOND); 2]);
        assert!(core.is_leader() && core.status().disk_stands_us == 0);
        // There is room again, and then nothing is written.
        core.handle_room(Room { bytes: 8192, spare_bytes: 4096, is_full: true });
        go_on(&mut core, 2 * STANDS, 3 * STANDS + LAN.heartbeat, [Some(MILLISECOND); 2]);
        assert!(!core.is_leader());
    }

    #[test]
    fn a_leader_whose_disk_stands_gives_way_to_disks_that_move() {
        let mut core = stalled(Settings::default());
        let quick = [Some(MILLISECOND); 2];
        go_on(&mut core, Duration::ZERO, Duration::from_millis(595), quick);
        assert!(core.is_leader() && core.status().disk_stands_us == 0);
        let mut core = stalled(Settings::default());
        go_on(&mut core, Duration::ZERO, STANDS + LAN.heartbeat, quick);
        assert!(!core.is_leader() && core.counters().disks_gave_way == 1);
        assert!(core.status().disk_stands_us >= STANDS.as_micros() as u64);
        // It asks for no votes, nor promises one that its disk would not keep.
        let mut now = elected_at() + STANDS + LAN.heartbeat;
        for _ in 0..10 {
            now += LAN.election_max;
            core.handle_timeout(now);
            core.flush(now, 0);
        }
        assert_eq!(core.counters().pre_votes_started, 1, "to be elected");
        let ask = Message::PreVote { proposed: 9, last_index: 99, last_term: 1 };
        core.handle_message(now, envelope(2, 1, ask));
        let refuses = |output: Output| match output {
            Output::Send { envelope, .. } => {
                envelope.message == Message::PreVoteReply { proposed: 9, granted: false }
            }
            _ => false,
        };
        assert!(std::iter::from_fn(|| core.poll_output()).any(refuses));
    }

    #[test]
    fn a_leader_keeps_its_office_if_no_quorum_of_the_others_has_disks_that_move() {
        let slow = Some(LAN.election_max);
        let quick = Some(MILLISECOND);
        for waits in [[quick, slow], [slow, slow], [slow, None]] {
            let mut core = stalled(Settings::default());
            go_on(&mut core, Duration::ZERO, 10 * STANDS, waits);
            assert!(core.is_leader(), "{waits:?}");
        }
    }

    #[test]
    fn check_quorum_does_not_count_a_leader_whose_disk_stands() {
        // The other one may be there for the rest, and then they can commit without this one.
        let waits = [Some(MILLISECOND), None];
        let mut core = stalled(Settings::default());
        let before = Duration::from_millis(450);
        go_on(&mut core, Duration::ZERO, before, waits);
        assert!(core.is_leader());
        go_on(&mut core, before, STANDS + LAN.election_max, waits);
        assert!(!core.is_leader() && core.counters().quorums_lost == 1);
        // Where memory is what counts, these two commit, until there is no more room in it.
        let interval = Settings { durability: Durability::Interval, ..Settings::default() };
        let mut core = stalled(interval);
        go_on(&mut core, Duration::ZERO, 10 * STANDS, waits);
        assert!(core.is_leader());
    }

    #[test]
    fn a_disk_is_remembered_by_its_longest_wait_of_late() {
        let mut pace = Pace::default();
        let (mut now, late) = (Time::ZERO, 4 * LAN.election_max);
        for wait in [1, 400, 2, 3] {
            pace.waiting_since = Some(now);
            now += wait * MILLISECOND;
            pace.complete(now, late);
        }
        assert_eq!(pace.longest_of_late(now, late), 400 * MILLISECOND);
        assert_eq!(pace.longest_of_late(now + late, late), Duration::ZERO);
    }
}
