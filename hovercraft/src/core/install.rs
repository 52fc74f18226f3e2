//! Installs a received snapshot in steps, so that one that is of no use costs nothing (P36).
//!
//! The service reads the snapshot before it replaces anything: until the store has switched, the
//! own snapshot, the log and the commit index stay as they are.
//!
//! 1. [`InstallStep::TakingOwn`]: a replica without a snapshot of its own takes one of what it has
//!    applied, so that there is something to go back to.
//! 2. [`InstallStep::Reading`]: the storage role checks the received parts, and the service reads them.
//! 3. [`InstallStep::Switching`]: the store makes them its latest snapshot, synced; then the core moves.
//! 4. [`InstallStep::GoingBack`]: if the service could not read them, it reads the own snapshot instead,
//!    and the log above that is applied again, without answers (P17).
//!
//! Where the disk has no room for the received snapshot, the first three steps end as if it were of
//! no use, but it is fetched again after a pause, of any donor (P38).
//!
//! A crash between any two steps leaves the own snapshot and the log, or the received snapshot.

use std::{collections::VecDeque, time::Duration};

use r2p2::Time;

use crate::{
    core::{Core, Output, Role},
    entry::{Index, NodeId},
    storage::SnapshotMeta,
};

/// Number of snapshots remembered as of no use.
const REFUSED_COUNT_MAX: usize = 16;

/// A replica without a snapshot of its own tries so often to take one before it reads another's.
const OWN_TRIES: u32 = 3;

/// After a snapshot of no use none is fetched for this long, then for twice as long. The same one is
/// not taken from its donor for as long again, so that the others are asked first. Then it may be:
/// perhaps nobody else has one, and the reason was this replica's own.
const PAUSE: Duration = Duration::from_millis(100);

/// And so on, up to this many times twice as long.
const PAUSE_DOUBLINGS_MAX: u32 = 6;

/// The snapshot that is being installed, and those that could not be.
#[derive(Debug, Default)]
pub(super) struct Installs {
    current: Option<Install>,
    /// The oldest first.
    refused: VecDeque<Refused>,
    /// Number of snapshots of no use since one was installed.
    failures: u32,
    /// No snapshot is fetched before this time.
    not_before: Time,
    /// The service has applied and answered everything up to here, and went back since (P17).
    silent_to: Index,
}

#[derive(Debug)]
struct Install {
    donor: NodeId,
    meta: Box<SnapshotMeta>,
    step: InstallStep,
    /// The disk had no room for it, and what was kept of it is gone (P38).
    lacks_room: bool,
}

/// The steps of an install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallStep {
    /// The replica takes a snapshot of its own first, to have something to go back to.
    TakingOwn,
    /// The received parts are checked, and the service reads them.
    Reading,
    /// The store makes the received snapshot its latest one.
    Switching,
    /// The service reads the replica's own snapshot again.
    GoingBack,
}

/// The end of reading a received snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The service has the state of the snapshot.
    Complete,
    /// The snapshot is not what it claimed to be. The service has not seen it.
    Refused,
    /// The service could not read it: its state is undefined.
    Failed,
}

#[derive(Debug)]
struct Refused {
    donor: NodeId,
    index: Index,
    checksum: u32,
    until: Time,
}

impl Installs {
    pub(super) fn is_under_way(&self) -> bool {
        self.current.is_some()
    }

    /// Whether the entry at `index` was applied before the service went back: it was answered then.
    pub(super) fn is_silent(&self, index: Index) -> bool {
        index <= self.silent_to && !planted!("going-back-answers")
    }

    /// Whether a snapshot may be fetched now.
    pub(super) fn may_fetch(&self, now: Time) -> bool {
        now >= self.not_before
    }

    /// Whether this snapshot of this donor was of no use a while ago.
    pub(super) fn refuses(&self, now: Time, donor: NodeId, meta: &SnapshotMeta) -> bool {
        self.refused.iter().any(|refused| {
            (refused.donor, refused.index, refused.checksum) == (donor, meta.index, meta.checksum)
                && now < refused.until
        })
    }

    fn step(&self) -> Option<InstallStep> {
        self.current.as_ref().map(|install| install.step)
    }
}

impl Core {
    /// The step of the install that is under way.
    pub fn install_step(&self) -> Option<InstallStep> {
        self.snapshots.installs.step()
    }

    /// All parts of a snapshot are here.
    pub(super) fn begin_install(&mut self, now: Time, donor: NodeId, meta: SnapshotMeta) {
        // A leader has everything that is committed.
        if self.is_leader() {
            return;
        }
        // An installing replica is no candidate: until its store has switched, its log may lack
        // what its service has.
        if matches!(self.role, Role::Candidate(_)) {
            self.become_follower(now, None);
        }
        self.write_changes();
        let has_own = self.snapshots.latest() > 0 || self.is_poisoned;
        let step = if has_own { InstallStep::Reading } else { InstallStep::TakingOwn };
        let meta = Box::new(meta);
        self.snapshots.installs.current = Some(Install { donor, meta, step, lacks_room: false });
        if has_own {
            self.read_received();
        } else if !self.snapshots.is_taking() {
            self.take_snapshot();
        }
    }

    /// The own snapshot was taken, or could not be. If it cannot be had at all, a failure of the
    /// received one ends in P42.
    pub(super) fn own_snapshot_ended(&mut self, is_taken: bool) {
        if self.waits_for_own() && (is_taken || self.snapshots.failures() >= OWN_TRIES) {
            self.read_received();
        }
    }

    /// Returns whether the own snapshot has to be there before the received one is read.
    pub(super) fn waits_for_own(&self) -> bool {
        self.snapshots.installs.step() == Some(InstallStep::TakingOwn)
    }

    /// The disk has no room for the own snapshot, and so not for what is to replace it.
    pub(super) fn own_snapshot_postponed(&mut self, now: Time) {
        if self.waits_for_own() {
            self.install_lacks_room();
            self.outputs.push_back(Output::DiscardSnapshot { restores_own: false });
            self.give_up_install(now);
        }
    }

    /// The disk had no room for the received snapshot (P38). Returns whether one is being
    /// installed: then the end of the present step ends that.
    pub(super) fn install_lacks_room(&mut self) -> bool {
        let Some(install) = &mut self.snapshots.installs.current else { return false };
        install.lacks_room = true;
        match install.step {
            InstallStep::TakingOwn | InstallStep::Reading | InstallStep::GoingBack => {}
            // The service has read it, and is to have the state that the store has.
            InstallStep::Switching => {
                install.step = InstallStep::GoingBack;
                self.outputs.push_back(Output::DiscardSnapshot { restores_own: true });
            }
        }
        true
    }

    fn read_received(&mut self) {
        let Some(install) = &mut self.snapshots.installs.current else { return };
        install.step = InstallStep::Reading;
        self.outputs.push_back(Output::StageSnapshot { meta: install.meta.clone() });
    }

    /// The service has read the snapshot that [`Output::StageSnapshot`] named, or could not.
    pub fn handle_staged(&mut self, now: Time, reading: Reading) {
        let Some(install) = &mut self.snapshots.installs.current else { return };
        match reading {
            Reading::Failed if planted!("not-gone-back") => self.give_up_install(now),
            Reading::Complete => {
                install.step = InstallStep::Switching;
                let meta = install.meta.clone();
                // The log has stood still meanwhile, so this holds until the store has switched.
                let keep_tail = self.keeps_tail(&meta);
                self.outputs.push_back(Output::InstallSnapshot { meta, keep_tail });
            }
            Reading::Refused => {
                self.outputs.push_back(Output::DiscardSnapshot { restores_own: false });
                self.give_up_install(now);
            }
            Reading::Failed => {
                install.step = InstallStep::GoingBack;
                self.outputs.push_back(Output::DiscardSnapshot { restores_own: true });
            }
        }
    }

    /// The snapshot that [`Output::InstallSnapshot`] named is the latest one, in the store too.
    pub fn handle_installed(&mut self, now: Time) {
        let Some(Install { meta, .. }) = self.snapshots.installs.current.take() else { return };
        self.snapshots.installs.failures = 0;
        self.snapshots.installed(meta.index);
        self.counters.snapshots_installed += 1;
        let (index, term) = (meta.index, meta.term);
        let unordered = &mut self.unordered;
        self.binding.truncate(0, |request| unordered.insert_evicting(now, request, None));
        if self.keeps_tail(&meta) {
            self.log.trim(index);
            self.configurations.trim(index);
        } else {
            self.log.reset(index, term, meta.log_time_us);
            self.configurations.reset(meta.configuration.into());
        }
        self.commit.installed(index);
        self.commit.unverify(self.log.last());
        (self.dispatched, self.applied) = (index, index);
        self.is_poisoned = false;
        self.recovery.forget_term();
        self.acknowledging.mark();
        self.report_applied(now);
    }

    /// Returns whether the log holds the snapshot's last entry, so that what follows it stays.
    fn keeps_tail(&self, meta: &SnapshotMeta) -> bool {
        let here = self.log.term(meta.index);
        here == Some(meta.term) || (planted!("tail-kept-unlike-snapshot") && here.is_some())
    }

    /// The service has the state of the own snapshot at `index` again, for which
    /// [`Output::DiscardSnapshot`] asked; none if it could not read that either. Then the driver
    /// calls [`Self::handle_poisoned`] (P42).
    pub fn handle_went_back(&mut self, now: Time, index: Option<Index>) {
        if let Some(index) = index {
            // To others it has applied what it had applied: it will be there again at once.
            self.dispatched = index + Index::from(planted!("going-back-skips-one"));
            self.snapshots.installs.silent_to = self.applied;
            self.is_poisoned = false;
        }
        self.give_up_install(now);
    }

    /// Remembers that the snapshot was of no use, and another donor is asked next; but it is no
    /// fault of the snapshot that there was no room for it.
    fn give_up_install(&mut self, now: Time) {
        let installs = &mut self.snapshots.installs;
        let Some(Install { donor, meta, lacks_room, .. }) = installs.current.take() else { return };
        if lacks_room {
            self.put_off_receiving(now);
            return;
        }
        let (index, checksum) = (meta.index, meta.checksum);
        let pause = PAUSE * 2u32.pow(installs.failures.min(PAUSE_DOUBLINGS_MAX));
        tracing::error!(
            index, %donor, ?pause,
            "a received snapshot is of no use and was deleted; another one will be fetched"
        );
        installs.failures += 1;
        installs.not_before = now + pause;
        installs.refused.retain(|refused| now < refused.until);
        if installs.refused.len() >= REFUSED_COUNT_MAX {
            installs.refused.pop_front();
        }
        let until = now + pause * 2;
        installs.refused.push_back(Refused { donor, index, checksum, until });
        self.recovery.ask_another_donor();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            Settings,
            testing::{
                DIGEST_KEY, append_noops, configuration, core, envelope, return_path, settle, write,
            },
        },
        messages::{AppendEntries, Message},
    };

    const DATA_BYTES: usize = 1000;

    /// Append-entries of replica 2, the leader, without entries.
    fn heartbeat(last: Index, commit: Index, first_index: Index) -> Message {
        let append = append_noops((last, 1), 1, 0);
        Message::AppendEntries(AppendEntries { commit, first_index, ..append })
    }

    fn meta(index: Index, checksum: u32) -> SnapshotMeta {
        let (configuration, size_bytes) = (configuration(3), DATA_BYTES as u64);
        SnapshotMeta {
            index,
            term: 1,
            configuration,
            log_time_us: 0,
            digest_key: DIGEST_KEY,
            size_bytes,
            checksum,
        }
    }

    /// Replica 1 with twelve entries, of which it has applied ten.
    fn follower() -> Core {
        let entries = (0..12).map(|sequence| write(1, 9, sequence)).collect();
        let mut core = core(Settings::default(), entries);
        core.handle_message(Time::ZERO, envelope(2, 1, heartbeat(10, 10, 1)));
        settle(&mut core, Time::ZERO);
        core
    }

    /// The same with a snapshot of its own, of the first four.
    fn follower_with_snapshot() -> Core {
        let mut core = follower();
        core.handle_snapshot(Time::ZERO, Some(&meta(4, 0)));
        settle(&mut core, Time::ZERO);
        core
    }

    /// A donor offers a snapshot and sends all of it. Returns what the core wants then.
    fn fetch(core: &mut Core, now: Time, donor: u16, checksum: u32) -> Vec<Output> {
        core.handle_message(now, envelope(2, 1, heartbeat(20_000, 20_000, 9000)));
        let offer = Message::SnapshotAvailable { index: 9500, question: 1 };
        core.handle_message(now, envelope(donor, 1, offer));
        settle(core, now);
        let (meta, data) = (meta(9500, checksum), vec![7; DATA_BYTES]);
        let part = Message::SnapshotPart { meta: Box::new(meta), offset: 0, data, question: 1 };
        core.handle_message(now, envelope(donor, 1, part));
        settle(core, now)
    }

    fn stages(outputs: &[Output]) -> bool {
        outputs.iter().any(|output| matches!(output, Output::StageSnapshot { .. }))
    }

    #[test]
    fn nothing_moves_before_the_store_has_switched() {
        let (mut core, now) = (follower_with_snapshot(), Time::ZERO);
        let standing = |core: &Core| {
            (core.log_bounds(), core.commit_index(), core.applied_index(), core.commit.verified())
        };
        let before = standing(&core);
        assert!(stages(&fetch(&mut core, now, 3, 1)));
        core.handle_message(now, envelope(2, 1, heartbeat(12, 12, 1)));
        settle(&mut core, now);
        assert_eq!(standing(&core), before);
        core.handle_staged(now, Reading::Complete);
        let outputs = settle(&mut core, now);
        let installs =
            |output: &Output| matches!(output, Output::InstallSnapshot { keep_tail: false, .. });
        assert!(outputs.iter().any(installs) && !core.may_stop_clean());
        assert_eq!(standing(&core), before);
        core.handle_installed(now);
        assert_eq!(standing(&core), ((9501, 9500), 9500, 9500, 9500));
        assert!(core.may_stop_clean());
    }

    #[test]
    fn a_replica_without_a_snapshot_takes_one_first() {
        let takes = |outputs: &[Output]| {
            outputs.iter().any(|output| matches!(output, Output::TakeSnapshot))
        };
        for failures in 0..=OWN_TRIES {
            let (mut core, mut now) = (follower(), Time::ZERO);
            let mut outputs = fetch(&mut core, now, 3, 1);
            for _ in 0..failures {
                assert!(takes(&outputs) && !stages(&outputs));
                core.handle_snapshot(now, None);
                outputs = settle(&mut core, now);
                if !stages(&outputs) {
                    assert!(!takes(&outputs), "it is tried again later");
                    now += Duration::from_secs(1);
                    outputs = settle(&mut core, now);
                }
            }
            if failures < OWN_TRIES {
                assert!(takes(&outputs) && !stages(&outputs));
                core.handle_snapshot(now, Some(&meta(10, 0)));
                outputs = settle(&mut core, now);
            }
            assert!(stages(&outputs) && !takes(&outputs));
        }
    }

    #[test]
    fn a_log_is_not_trimmed_while_the_service_goes_back() {
        let now = Time::ZERO;
        let entries = (0..12).map(|sequence| write(1, 9, sequence)).collect();
        let mut core = core(Settings { log_bytes_max: 512, ..Settings::default() }, entries);
        core.handle_message(now, envelope(2, 1, heartbeat(10, 10, 1)));
        settle(&mut core, now);
        core.handle_snapshot(now, Some(&meta(4, 0)));
        // Another one is being written meanwhile.
        let outputs = settle(&mut core, now);
        assert!(outputs.iter().any(|output| matches!(output, Output::TakeSnapshot)));
        assert!(stages(&fetch(&mut core, now, 3, 1)));
        core.handle_staged(now, Reading::Failed);
        settle(&mut core, now);
        core.handle_snapshot(now, Some(&meta(10, 0)));
        settle(&mut core, now);
        core.handle_went_back(now, Some(4));
        core.flush(now, 0);
        assert_eq!(core.poll_apply().map(|committed| committed.index), Some(5));
        assert_eq!(core.log.first(), 5);
    }

    #[test]
    fn a_service_that_went_back_answers_nothing_again() {
        let (mut core, now) = (follower_with_snapshot(), Time::ZERO);
        for index in 1..=12 {
            core.log.set_return_path(index, return_path(7));
            core.log.slot_mut(index).unwrap().asked_again = true;
        }
        fetch(&mut core, now, 3, 1);
        core.handle_staged(now, Reading::Failed);
        let goes_back =
            |output: &Output| matches!(output, Output::DiscardSnapshot { restores_own: true });
        assert!(settle(&mut core, now).iter().any(goes_back));
        assert!(core.poll_apply().is_none());
        core.handle_went_back(now, Some(4));
        core.handle_message(now, envelope(2, 1, heartbeat(12, 12, 1)));
        core.flush(now, 0);
        let mut answered = Vec::new();
        while let Some(committed) = core.poll_apply() {
            core.handle_applied(now, committed.index);
            assert_eq!(core.applied_index(), committed.index.max(10));
            answered.push((committed.index, committed.answer_to.is_some()));
        }
        let expected: Vec<_> = (5..=12).map(|index| (index, index > 10)).collect();
        assert_eq!(answered, expected);
    }

    #[test]
    fn a_snapshot_of_no_use_is_not_taken_again_and_pauses_grow() {
        let (mut core, mut now) = (follower_with_snapshot(), Time::ZERO);
        for failures in 0..4 {
            // Each time the donor has another one.
            assert!(stages(&fetch(&mut core, now, 3, failures)), "{failures}");
            core.handle_staged(now, Reading::Refused);
            settle(&mut core, now);
            let pause = PAUSE * 2u32.pow(failures);
            assert!(!stages(&fetch(&mut core, now + pause / 2, 3, 99)), "{failures}");
            now += pause;
        }
        // Its last one again, and the same one of another donor.
        assert!(!stages(&fetch(&mut core, now, 3, 3)));
        assert!(stages(&fetch(&mut core, now, 2, 3)));
        // Later the reason may be gone.
        core.handle_staged(now, Reading::Refused);
        settle(&mut core, now);
        let pause = PAUSE * 2u32.pow(4);
        assert!(!stages(&fetch(&mut core, now + pause, 2, 3)));
        assert!(stages(&fetch(&mut core, now + pause * 2, 2, 3)));
    }

    #[test]
    fn an_installing_replica_is_no_candidate() {
        let (mut core, now) = (follower_with_snapshot(), Time::ZERO);
        let asks = |core: &mut Core, now: Time| {
            core.handle_timeout(now);
            settle(core, now).iter().any(|output| match output {
                Output::Send { envelope, .. } => {
                    matches!(envelope.message, Message::PreVote { .. })
                }
                _ => false,
            })
        };
        fetch(&mut core, now, 3, 1);
        let later = now + Settings::default().timing.election_max;
        assert!(!asks(&mut core, later));
        core.handle_staged(later, Reading::Refused);
        settle(&mut core, later);
        assert!(asks(&mut core, later + Settings::default().timing.election_max));
    }

    fn discards(outputs: &[Output]) -> Vec<bool> {
        let discards = outputs.iter().filter_map(|output| match output {
            Output::DiscardSnapshot { restores_own } => Some(*restores_own),
            _ => None,
        });
        discards.collect()
    }

    /// P38: for want of room the same snapshot is fetched again of the same donor, after a pause.
    #[test]
    fn a_snapshot_without_room_is_no_fault_of_its_donor() {
        let pause = Duration::from_millis(100);
        for step in [InstallStep::TakingOwn, InstallStep::Reading, InstallStep::Switching] {
            let now = Time::ZERO;
            let has_own = step != InstallStep::TakingOwn;
            let mut core = if has_own { follower_with_snapshot() } else { follower() };
            fetch(&mut core, now, 3, 1);
            match step {
                InstallStep::TakingOwn => {
                    core.handle_snapshot_postponed(now);
                    assert_eq!(discards(&settle(&mut core, now)), [false]);
                }
                InstallStep::Reading => {
                    core.handle_received_postponed(now);
                    core.handle_staged(now, Reading::Refused);
                    assert_eq!(discards(&settle(&mut core, now)), [false]);
                }
                InstallStep::Switching | InstallStep::GoingBack => {
                    core.handle_staged(now, Reading::Complete);
                    settle(&mut core, now);
                    core.handle_received_postponed(now);
                    // The service has the state of the received one.
                    assert_eq!(discards(&settle(&mut core, now)), [true]);
                    assert_eq!(core.install_step(), Some(InstallStep::GoingBack));
                    core.handle_went_back(now, Some(4));
                }
            }
            assert_eq!((core.install_step(), core.applied_index()), (None, 10), "{step:?}");
            assert!(core.counters().snapshots_postponed > 0);
            fetch(&mut core, now, 3, 1);
            assert_eq!(core.install_step(), None, "at once it would find as little room");
            fetch(&mut core, now + pause, 3, 1);
            assert!(core.install_step().is_some(), "{step:?}");
        }
    }
}
