//! Whole entries for a replica far behind, and when to ask for what is missing (P9).

use std::time::Duration;

use r2p2::Time;

use crate::{
    core::{Core, Role, Timer, bodies::Asking, follower::ordered, pacing::Pacer},
    entry::{Index, NodeId, Term},
    messages::{Message, Ordered as Meaning, PART_BYTES_MAX, WholeEntry},
};

/// A body that is not here yet is usually on its way from the client: wait this long before
/// asking.
const ASK_AFTER: Duration = Duration::from_micros(500);

/// Pause before asking again for what nobody has yet, or there is no room for.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// After everybody was asked, it is asked half as often each time, this many times.
const ASK_AGAIN_DOUBLINGS_MAX: usize = 4;

/// Most bytes of entries that answer one question.
const ANSWER_BYTES_MAX: usize = 8 * PART_BYTES_MAX;

/// What this replica has asked for.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Bodies that it asked for.
    pub(super) bodies: Asking,
    /// Entries that it fetches in bulk.
    bulk: Option<Bulk>,
    pacer: Pacer,
}

/// Whole entries on their way here.
#[derive(Debug)]
struct Bulk {
    /// Commit index that the leader stated: the end.
    to: Index,
    /// Index up to which the log agrees with what is fetched, or where that is tried next.
    after: Index,
    /// Number of entries to go back if it does not agree there; doubled each time.
    step_back: u64,
    donor: Option<NodeId>,
    /// Index after which the last question asked.
    began_after: Option<Index>,
    /// Number of donors that brought nothing in a row.
    attempts: usize,
}

impl Recovery {
    /// Makes one that has asked for nothing; for `back_off_max` see [`Pacer::new`].
    pub(crate) fn new(back_off_max: Duration) -> Self {
        let pacer = Pacer::new(back_off_max);
        Self { bodies: Asking::new(back_off_max), bulk: None, pacer }
    }

    pub(crate) fn forget_term(&mut self) {
        self.end_bulk();
        self.bodies.forget_term();
    }

    /// The donor is of no use: whoever comes next is asked, when the timer expires.
    pub(crate) fn ask_another_donor(&mut self) {
        if let Some(bulk) = &mut self.bulk {
            bulk.donor = None;
        }
    }

    /// Entries are being fetched in bulk.
    pub(crate) fn is_bulk(&self) -> bool {
        self.bulk.is_some()
    }

    fn begin_bulk(&mut self, after: Index, to: Index) {
        self.pacer.forget();
        self.bulk =
            Some(Bulk { to, after, step_back: 1, donor: None, began_after: None, attempts: 0 });
    }

    fn end_bulk(&mut self) {
        self.pacer.forget();
        self.bulk = None;
    }

    /// Nothing more comes of a question.
    pub(super) fn answered(&mut self, now: Time, question: u64) {
        self.pacer.came(now, question, 0, true);
    }
}

impl Core {
    /// The leader's message tells how far behind this replica is.
    pub(super) fn note_distance(
        &mut self,
        now: Time,
        from: NodeId,
        first_index: Index,
        commit: Index,
    ) {
        self.recovery.bodies.note_leader_first(first_index);
        if self.snapshots.is_receiving() {
            return;
        }
        let next = self.log.last() + 1;
        // What the leader has trimmed it has no body of any more. If, after they were asked in
        // turn, nobody else has either, the metadata is of no use.
        let asked_all = || self.recovery.bodies.attempts() > 2 * self.others().len();
        let is_needed = first_index > next && commit >= next;
        let is_lost = is_needed && self.binding.len() > 0 && asked_all() && !self.has_front();
        // Nor is it where only a snapshot helps.
        let is_stuck = is_needed && self.needs_snapshot();
        if is_lost || is_stuck {
            self.drop_metadata(now, next);
        }
        if self.recovery.is_bulk() && !is_lost {
            if is_stuck {
                // The leader is asked next.
                self.recovery.ask_another_donor();
            }
            return;
        }
        let last = self.ordered_last();
        let is_trimmed = is_needed && self.binding.len() == 0;
        if is_trimmed || commit > last + self.settings.limits.bulk_distance {
            tracing::info!(last, commit, "far behind: fetching entries in bulk");
            self.counters.bulk_catch_ups += 1;
            self.recovery.begin_bulk(last, commit);
            self.ask_for_entries(now, from);
        }
    }

    /// Bodies or entries may be missing: look again soon. Without a leader there is nobody to say
    /// what is missing.
    pub(super) fn ask_for_what_is_missing(&mut self, now: Time) {
        // A snapshot that is on its way replaces all of it.
        let is_led = self.leader().is_some() && !self.is_snapshot_coming(now);
        if is_led && self.recovery.is_bulk() {
            self.timers.ensure(Timer::Recovery, now + ASK_AGAIN_AFTER);
        } else if is_led && self.binding.len() > 0 {
            self.timers.ensure(Timer::Recovery, now + ASK_AFTER);
        } else {
            self.timers.stop(Timer::Recovery);
            self.recovery.bodies.rest();
        }
    }

    /// Asks for what is due, and for what did not come.
    pub(super) fn recovery_timeout(&mut self, now: Time) {
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        self.ask_for_entries(now, leader);
        // Large bodies do not come in bulk, and without them what does come piles up behind.
        self.ask_for_bodies(now, leader);
        if planted!("silence-is-refusal") && self.recovery.bodies.attempts() > 8 {
            self.remove_from(now, self.commit.index() + 1);
            self.send_append_reply(now, leader, Some(self.commit.index()));
        }
        self.set_recovery_timer(now);
    }

    /// Looks again when an answer is overdue, or after a pause: perhaps nobody has yet what is
    /// missing, or there is no room for it here.
    pub(super) fn set_recovery_timer(&mut self, now: Time) {
        // A snapshot that is on its way replaces all of it, and no question expires meanwhile.
        if self.is_snapshot_coming(now) {
            self.timers.stop(Timer::Recovery);
            return;
        }
        let Recovery { bodies, bulk, pacer } = &self.recovery;
        let attempts = bodies.attempts().max(bulk.as_ref().map_or(0, |bulk| bulk.attempts));
        let rounds = attempts / self.configuration().members.len();
        let pause = ASK_AGAIN_AFTER * (1 << rounds.min(ASK_AGAIN_DOUBLINGS_MAX));
        let deadlines = [pacer.deadline(), bodies.pacer.deadline(), Some(now + pause)];
        let next = deadlines.into_iter().flatten().min().unwrap_or(now + pause);
        self.timers.set(Timer::Recovery, next);
    }

    /// Another replica is far behind: sends it entries that are committed here, from where its log
    /// can be compared with what is committed, about as many bytes as it asks for.
    pub(super) fn entries_asked(
        &mut self,
        now: Time,
        (from, question): (NodeId, u64),
        after: Index,
        bytes: u32,
    ) {
        let commit = self.commit.index();
        if after > commit {
            // The asker turns to another donor at once.
            self.send(from, Message::SnapshotAvailable { index: 0, question });
            return;
        }
        self.keep_above(now, from, after);
        if self.log.term(after).is_none() {
            let index = self.snapshots.latest();
            self.send(from, Message::SnapshotAvailable { index, question });
            return;
        }
        let bytes_max = (bytes as usize).min(ANSWER_BYTES_MAX);
        // A message is lost if one of its packets is, so it is not larger than it need be.
        let part_max = (bytes_max / 4).min(PART_BYTES_MAX);
        let (mut until, mut bytes) = (after, 0);
        for (index, entry) in self.log.entries_from(after + 1) {
            let ends = index > commit && !planted!("donor-sends-uncommitted");
            if ends || bytes >= bytes_max {
                break;
            }
            bytes += WholeEntry::size_bytes(entry, part_max);
            until = index;
        }
        let mut after = after;
        loop {
            let after_term = self.log.term(after).expect("it is in the log or right before it");
            let mut bytes = 0;
            let next = self.log.entries_from(after + 1).take_while(|(index, entry)| {
                let is_first = bytes == 0;
                bytes += WholeEntry::size_bytes(entry, part_max);
                *index <= until && (is_first || bytes <= part_max)
            });
            let entries: Vec<_> = next.map(|(_, entry)| WholeEntry::new(entry, part_max)).collect();
            let reached = after + entries.len() as Index;
            let answer = Message::Entries { after, after_term, entries, question, until };
            self.send(from, answer);
            if reached >= until {
                return;
            }
            after = reached;
        }
    }

    /// Entries came in bulk. They are committed, so they replace what contradicts them, and are
    /// committed here too (P12). If the log waited for the leader to say so, it would grow without
    /// a bound behind a leader that has trimmed what it lacks.
    pub(super) fn entries_came(
        &mut self,
        now: Time,
        (question, until): (u64, Index),
        (after, after_term): (Index, Term),
        entries: Vec<WholeEntry>,
    ) {
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        let reached = after + entries.len() as Index;
        let bytes = entries.iter().map(WholeEntry::bytes).sum();
        self.recovery.pacer.came(now, question, bytes, reached >= until);
        if !self.recovery.is_bulk() {
            return;
        }
        let commit = self.commit.index();
        if self.snapshots.is_installing() || after > self.ordered_last() {
            return;
        }
        if after > commit && self.ordered_term(after) != Some(after_term) {
            // The end of the log was never committed. Few entries were not, so it is not far back
            // to where it agrees; what is known to be committed agrees (P9).
            self.step_back(now, leader, after);
            return;
        }
        let terms = entries.iter().map(|entry| entry.term);
        let mut committed = (after..=commit).zip([after_term].into_iter().chain(terms));
        if committed.any(|(index, term)| self.log.term(index).is_some_and(|here| here != term)) {
            // The leader will say whose log is wrong.
            self.counters.messages_refused += 1;
            return;
        }
        for (position, whole) in entries.into_iter().enumerate() {
            let index = after + 1 + position as Index;
            if index <= commit {
                continue;
            }
            let here = self.ordered_term(index);
            if here == Some(whole.term) || (planted!("bulk-terms-not-compared") && here.is_some()) {
                // Its body may be what is missing.
                self.fill_carried(index, whole.request.map(|request| (0, request)));
                self.commit.donate(index);
                continue;
            }
            if index <= self.ordered_last() {
                self.remove_from(now, index);
            }
            if !self.remember_whole(index, whole) {
                break;
            }
            self.commit.donate(index);
            self.counters.entries_fetched += 1;
        }
        self.bind();
        self.go_on_in_bulk(now, leader, reached);
    }

    /// Goes further back in the log, to where it may agree with the donor's.
    fn step_back(&mut self, now: Time, leader: NodeId, after: Index) {
        let Recovery { bulk: Some(bulk), pacer, .. } = &mut self.recovery else {
            return;
        };
        if after == bulk.after {
            bulk.after = after.saturating_sub(bulk.step_back);
            bulk.step_back = bulk.step_back.saturating_mul(2);
            // What is on its way begins too high.
            pacer.forget();
            self.ask_for_entries(now, leader);
            self.set_recovery_timer(now);
        }
    }

    /// The log agrees up to `reached`, as far as there was room.
    fn go_on_in_bulk(&mut self, now: Time, leader: NodeId, reached: Index) {
        let last = self.ordered_last();
        let Some(bulk) = &mut self.recovery.bulk else {
            return;
        };
        let before = bulk.after;
        bulk.after = before.max(reached).min(last);
        let has_moved = bulk.after > before;
        if last >= bulk.to {
            tracing::info!(last, "caught up in bulk");
            self.recovery.end_bulk();
        } else if has_moved {
            bulk.attempts = 0;
            self.ask_for_entries(now, leader);
        }
        // Large bodies do not come in bulk.
        self.ask_for_bodies(now, leader);
        self.set_recovery_timer(now);
    }

    fn remember_whole(&mut self, index: Index, whole: WholeEntry) -> bool {
        let WholeEntry { term, log_time_us, metadata, configuration, request } = whole;
        let Some(meaning) = metadata.ordered() else {
            return false;
        };
        if meaning == Meaning::Configuration && configuration.is_none() {
            return false;
        }
        let ordered = ordered(&metadata, meaning, configuration, term, log_time_us);
        self.remember(index, ordered, request.map(|request| (0, request)))
    }

    /// Returns whether a log that is full waits for a service that is poisoned: entries do not heal
    /// that one (P42).
    fn needs_snapshot(&self) -> bool {
        self.is_poisoned && !self.has_room_to_bind()
    }

    /// Asks for the next entries, as far as the pace allows and there is room for them.
    fn ask_for_entries(&mut self, now: Time, leader: NodeId) {
        let (commit, last) = (self.commit.index(), self.ordered_last());
        let others = self.others();
        // The leader has trimmed what this replica lacks, so it offers one.
        let needs_snapshot = self.needs_snapshot();
        let has_snapshot = self.snapshots.is_receiving();
        let Recovery { bulk: Some(bulk), pacer, .. } = &mut self.recovery else {
            return;
        };
        pacer.expire(now);
        // Only the whole answer to the last question tells where the next one begins. While a
        // snapshot is fetched, its donor has offered that in place of entries.
        if pacer.is_waiting() || has_snapshot || !self.binding.has_room() {
            return;
        }
        // Both may have moved since: the log is shorter, or more of it is committed.
        let after = bulk.after.max(commit).min(last);
        bulk.after = after;
        // A donor that was silent, or had nothing, is followed by another.
        if bulk.began_after.replace(after) == Some(after) {
            bulk.attempts += 1;
            bulk.donor = None;
        }
        let donor = *bulk.donor.get_or_insert_with(|| {
            if needs_snapshot {
                return leader;
            }
            // Not the leader, which has other things to do, unless nobody else answers.
            let donors = others.into_iter().filter(|node| *node != leader);
            let donors: Vec<_> = donors.chain([leader]).collect();
            donors[bulk.attempts % donors.len()]
        });
        let bytes = pacer.room();
        let question = pacer.ask(now, bytes);
        self.send(donor, Message::FetchEntries { after, question, bytes: bytes as u32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            Output, Settings,
            testing::{append_noops, core, core_of, envelope, write},
        },
        messages::AppendEntries,
    };

    #[test]
    fn a_poisoned_replica_with_a_full_log_asks_the_leader_in_one_bulk() {
        let entries = (0..1100).map(|sequence| write(1, 9, sequence)).collect();
        let mut core = core(Settings { log_bytes_max: 1 << 16, ..Settings::default() }, entries);
        core.handle_poisoned(Time::ZERO);
        let (mut now, mut asked) = (Time::ZERO, Vec::new());
        for _ in 0..20 {
            now += core.settings.timing.heartbeat;
            let append = append_noops((1100, 1), 1, 3);
            let append = AppendEntries { commit: 6000, first_index: 5000, ..append };
            core.handle_message(now, envelope(2, 1, Message::AppendEntries(append)));
            core.handle_timeout(now);
            core.flush(now, 0);
            while let Some(output) = core.poll_output() {
                if let Output::Send { to, envelope } = output
                    && matches!(envelope.message, Message::FetchEntries { .. })
                {
                    asked.push(to);
                }
            }
        }
        // Before it knows that much is committed its log may grow, and another replica is asked.
        assert!(asked.len() > 2 && asked[1..].iter().all(|to| *to == NodeId(2)), "{asked:?}");
        assert_eq!(core.counters().bulk_catch_ups, 1);
    }

    #[test]
    fn a_donor_that_has_less_says_so_and_the_next_one_is_asked() {
        let mut now = Time::ZERO;
        let settings = Settings::default();
        let mut asker = core(settings, (0..5).map(|sequence| write(1, 9, sequence)).collect());
        let append =
            AppendEntries { commit: 6000, first_index: 5000, ..append_noops((5, 1), 1, 0) };
        asker.handle_message(now, envelope(2, 1, Message::AppendEntries(append)));
        asker.flush(now, 0);
        let asked = |core: &mut Core| {
            let outputs = std::iter::from_fn(|| core.poll_output());
            let sent = outputs.filter_map(|output| match output {
                Output::Send { to, envelope } => Some((to, envelope.message)),
                _ => None,
            });
            sent.filter(|(_, message)| matches!(message, Message::FetchEntries { .. }))
                .collect::<Vec<_>>()
        };
        let first = asked(&mut asker);
        let [(NodeId(3), question)] = &first[..] else { panic!("{first:?}") };

        let mut donor = core_of((3, 3), settings, vec![write(1, 9, 0)], 3);
        donor.handle_message(now, envelope(1, 1, question.clone()));
        donor.flush(now, 0);
        let answer = std::iter::from_fn(|| donor.poll_output()).find_map(|output| match output {
            Output::Send { to: NodeId(1), envelope } => Some(envelope.message),
            _ => None,
        });
        let answer = answer.expect("it says that it has nothing");
        asker.handle_message(now, envelope(3, 1, answer));
        now += ASK_AGAIN_AFTER;
        asker.handle_timeout(now);
        asker.flush(now, 0);
        let next = asked(&mut asker);
        assert!(matches!(next[..], [(NodeId(2), _)]), "{next:?}");
        assert!(!asker.snapshots.is_receiving());
    }
}
