//! Room on the disk: a replica hands over no entry that its log has no room for, and says so (P38).
//!
//! A full disk thus stops the order of requests and nothing else: the process lives, elections and
//! heartbeats go on, and the order goes on by itself when there is room again.

use r2p2::Time;

use crate::{
    core::{Core, Role},
    entry::{Entry, Member, NodeId},
    storage::Room,
};

/// A log that has no room for an entry of this size has none for any.
const SMALL_ENTRY_BYTES: usize = 256;

/// The room that the log has on the disk, as of the last write that is complete.
#[derive(Debug)]
pub(crate) struct LogRoom {
    room: Room,
    /// Bytes of the entries of this turn, which are not handed over yet.
    unwritten_bytes: usize,
    /// An entry waits for room that the disk does not have.
    is_blocked: bool,
}

impl Default for LogRoom {
    fn default() -> Self {
        Self { room: Room::UNLIMITED, unwritten_bytes: 0, is_blocked: false }
    }
}

impl LogRoom {
    /// Returns whether nothing is left on a full disk, so that appends wait.
    pub(crate) fn is_used_up(&self) -> bool {
        self.room.is_full && self.room.bytes == 0
    }

    /// An entry goes to the storage role at the end of this turn.
    pub(crate) fn take(&mut self, entry: &Entry) {
        self.unwritten_bytes += entry.size_bytes();
    }

    /// The entries of this turn are handed over.
    pub(crate) fn handed_over(&mut self) {
        self.unwritten_bytes = 0;
    }

    /// No entry waits.
    pub(crate) fn unblock(&mut self) {
        self.is_blocked = false;
    }
}

impl Core {
    /// Takes the room that the log has, before the writes which it is less for are said to be
    /// complete: what is handed over counts against it until then.
    pub fn handle_room(&mut self, room: Room) {
        self.room.room = room;
        self.room.is_blocked &= room.is_full;
        self.acknowledging.mark();
    }

    /// Returns whether an entry of this size can be handed over; if the disk is full, notes that
    /// one waits.
    pub(super) fn has_room_for(&mut self, entry_bytes: usize) -> bool {
        let fits = self.fits_room(entry_bytes);
        let is_blocked = self.room.room.is_full && !fits;
        if is_blocked != std::mem::replace(&mut self.room.is_blocked, is_blocked) {
            self.acknowledging.mark();
        }
        fits
    }

    /// Returns whether a request of any size can be handed over.
    pub(super) fn has_room_for_any(&self) -> bool {
        let body_bytes = self.configuration().limits.request_bytes_max as usize;
        self.fits_room(Entry::size_bytes_of_body(body_bytes))
    }

    /// Returns whether a small request can be handed over; if not, none can.
    pub(super) fn has_room_for_small(&self) -> bool {
        self.fits_room(SMALL_ENTRY_BYTES)
    }

    /// Returns whether what the leader makes itself can be handed over: a part of the room is kept
    /// for that and for truncations, or no leader could bring the log back into motion.
    pub(super) fn has_room_for_own(&self) -> bool {
        self.room_left() >= self.room.room.spare_bytes / 2
    }

    /// Returns whether entries wait for room on this replica's disk: for the log itself, or for the
    /// snapshot without which the log cannot be trimmed.
    pub(super) fn lacks_room(&self) -> bool {
        let is_used_up = self.room.room.is_full && !self.has_room_for_small();
        self.room.is_blocked
            || is_used_up
            || self.snapshots.is_refused() && self.recovery.is_bulk()
            || self.snapshots.is_postponed() && self.is_log_full()
    }

    /// Returns whether the log is at its hard limit.
    pub(super) fn is_log_full(&self) -> bool {
        self.log.size_bytes() >= 2 * self.settings.log_bytes_max
    }

    /// Returns a replica whose full disk keeps a leader from having anything more committed.
    /// Members that do not answer lack room too, but a disk that is full must be among them.
    pub(super) fn without_room(&self, now: Time) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else {
            return None;
        };
        if self.lacks_room() {
            return Some(self.node);
        }
        // Almost always nobody does.
        let lacking = leader.lacking_room?;
        let since = now - self.settings.timing.election_min;
        let has_room = |member: &&Member| {
            let answers = leader.answered_since(member, since) && !leader.lacks_room(member);
            member.id == self.node || answers
        };
        let configuration = self.configurations.current();
        let with_room = configuration.members.iter().filter(has_room).count();
        (with_room < configuration.quorum()).then_some(lacking)
    }

    fn fits_room(&self, entry_bytes: usize) -> bool {
        let needed = self.room.room.spare_bytes + (entry_bytes + Room::APPEND_BYTES) as u64;
        self.room_left() >= needed || planted!("full-disk-ignored")
    }

    /// The bytes of room that no entry has been given yet.
    fn room_left(&self) -> u64 {
        let writing_bytes = if planted!("room-given-twice") { 0 } else { self.writing_bytes };
        let given = writing_bytes + self.room.unwritten_bytes;
        self.room.room.bytes.saturating_sub(given as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        core::{
            Cause, Mode, Output, Reason, Refusal, Settings, Standstill,
            testing::{elected_at, envelope, leader, request, return_path, settle},
        },
        messages::{AggCommit, AppendReply, Message, Progress},
    };

    /// Room for one small entry, beside what is for no-ops.
    const ONE: Room = Room { bytes: 4096 + 300, spare_bytes: 4096, is_full: true };

    fn refusals(outputs: &[Output]) -> Vec<Option<Refusal>> {
        let refusals = outputs.iter().filter_map(|output| match output {
            Output::Drop { refusal, .. } => Some(*refusal),
            _ => None,
        });
        refusals.collect()
    }

    fn ask(core: &mut Core, sequence: u64) -> Vec<Output> {
        core.handle_request(elected_at(), request(9, sequence), return_path(1));
        settle(core, elected_at())
    }

    /// P38: it says so before it hands over anything that has no room, and goes on by itself.
    #[test]
    fn a_leader_without_room_refuses_and_goes_on_when_there_is_room() {
        let mut core = leader(Settings::default());
        settle(&mut core, elected_at());
        core.handle_room(Room { bytes: 4096 + 400, ..ONE });
        assert_eq!(refusals(&ask(&mut core, 1)), []);
        assert_eq!(core.counters().requests_ordered, 1);
        core.handle_room(Room { bytes: 4096 + 100, ..ONE });
        let refusal = Refusal { reason: Reason::NoRoom, node: NodeId(1) };
        assert_eq!(refusals(&ask(&mut core, 2)), [Some(refusal)]);
        assert_eq!(core.counters().requests_ordered, 1);
        let own = core.status().replicas[0].standstill;
        assert_eq!(own.map(|it| it.cause), Some(Cause::FullDisk));
        core.handle_room(Room { bytes: 1 << 20, is_full: false, ..ONE });
        assert_eq!(refusals(&ask(&mut core, 2)), []);
        assert_eq!(core.counters().requests_ordered, 2);
    }

    /// A request that waits already takes the room, and those behind it are refused.
    #[test]
    fn what_is_handed_over_takes_room_until_it_is_stored() {
        let mut core = leader(Settings::default());
        settle(&mut core, elected_at());
        core.handle_room(Room { is_full: false, ..ONE });
        for sequence in 1..=3 {
            core.handle_request(elected_at(), request(9, sequence), return_path(1));
        }
        core.flush(elected_at(), 0);
        assert_eq!(core.counters().requests_ordered, 1);
        let written = std::iter::from_fn(|| core.poll_output()).find_map(|output| match output {
            Output::Write(crate::core::Write::Append { number, .. }) => Some(number),
            _ => None,
        });
        core.handle_stored(elected_at(), written.unwrap());
        core.handle_room(Room { is_full: false, ..ONE });
        core.flush(elected_at(), 0);
        assert_eq!(core.counters().requests_ordered, 2);
    }

    /// Two of three have no room: nothing more can be committed.
    #[test]
    fn a_leader_whose_quorum_has_no_room_names_who_lacks_it() {
        let mut core = leader(Settings::default());
        settle(&mut core, elected_at());
        let says = |core: &mut Core, node, cause| {
            let standstill = Some(Standstill { index: 2, cause });
            let lacks_room = cause == Cause::FullDisk;
            let reply =
                AppendReply { acknowledged: 1, standstill, lacks_room, ..AppendReply::default() };
            core.handle_message(elected_at(), envelope(node, 1, Message::AppendReply(reply)));
        };
        says(&mut core, 2, Cause::FullDisk);
        says(&mut core, 3, Cause::Room);
        assert_eq!(refusals(&ask(&mut core, 1)), []);
        says(&mut core, 3, Cause::FullDisk);
        let refusal = |node| Refusal { reason: Reason::NoRoom, node: NodeId(node) };
        assert_eq!(refusals(&ask(&mut core, 2)), [Some(refusal(2))]);
        says(&mut core, 2, Cause::Body);
        assert_eq!(refusals(&ask(&mut core, 3)), []);
        // The other one has room, and is silent.
        core.heartbeat(elected_at());
        let later = elected_at() + Settings::default().timing.election_min;
        core.heartbeat(later);
        let round = 2;
        let reply = AppendReply { round, lacks_room: true, ..AppendReply::default() };
        core.handle_message(later, envelope(3, 1, Message::AppendReply(reply)));
        core.handle_request(later + Duration::from_millis(1), request(9, 4), return_path(1));
        let outputs = settle(&mut core, later);
        assert_eq!(refusals(&outputs), [Some(refusal(3))]);
    }

    /// P38: where acknowledgements go by an aggregator, the news that there is room does too.
    #[test]
    fn a_leader_hears_of_room_by_the_aggregator() {
        let mode = Mode::HovercRaftPlusPlus;
        let mut core = leader(Settings { mode, ..Settings::default() });
        settle(&mut core, elected_at());
        let configuration = core.configuration().id;
        for lacks_room in [true, false] {
            let round = 1 + u64::from(!lacks_room);
            core.heartbeat(elected_at());
            let progress = |node| {
                let node = NodeId(node);
                Progress { node, matched: 1, round, lacks_room, ..Progress::default() }
            };
            let replicas = vec![progress(2), progress(3)];
            let commit = AggCommit { configuration, commit: 0, round, replicas };
            let from = NodeId::AGGREGATOR.0;
            core.handle_message(elected_at(), envelope(from, 1, Message::AggCommit(commit)));
            assert_eq!(core.without_room(elected_at()).is_some(), lacks_room);
        }
    }

    /// P38: what is for no-ops lets a leader be elected on a full disk.
    #[test]
    fn a_replica_with_room_for_a_no_op_alone_is_a_candidate() {
        for (bytes, candidacies) in [(4096, 1), (2048, 1), (2047, 0)] {
            let settings = Settings::default();
            let mut core = crate::core::testing::core(settings, Vec::new());
            core.handle_room(Room { bytes, ..ONE });
            core.handle_timeout(Time::ZERO + settings.timing.election_max);
            assert_eq!(core.counters().pre_votes_started, candidacies, "{bytes} bytes");
        }
    }
}
