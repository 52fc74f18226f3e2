//! Whole entries for a replica far behind, and when to ask for what is missing (P9).

use std::time::Duration;

use r2p2::Time;

use crate::{
    core::{Core, Role, Timer, bodies::Asking, follower::ordered, replication::BULK_DISTANCE},
    entry::{Index, NodeId, Term},
    messages::{Message, Ordered as Meaning, PART_BYTES_MAX, WholeEntry},
};

/// A body that is not here yet is usually on its way from the client: wait this long before
/// asking.
const ASK_AFTER: Duration = Duration::from_micros(500);

/// Then ask again, and someone else, after this long without an answer.
pub(super) const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// After everybody was asked, it is asked half as often each time, this many times.
const ASK_AGAIN_DOUBLINGS_MAX: usize = 4;

/// How many bodies are asked for at once.
pub(super) const WANTS_MAX: usize = 128;

/// What this replica has asked for.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Bodies that it asked for.
    pub(super) bodies: Asking,
    /// How often it asked for entries since it last got some.
    attempts: usize,
    /// Entries are fetched in bulk until the log reaches the commit index that the leader stated.
    bulk_to: Option<Index>,
    /// Up to where the log is known to agree with what is fetched; or where that is tried next.
    after: Index,
    /// How far to go back if it does not agree there; doubled each time.
    step_back: u64,
    /// Whom they are fetched from.
    donor: Option<NodeId>,
}

impl Recovery {
    pub(crate) fn forget_term(&mut self) {
        *self = Self::default();
    }

    /// The donor is of no use: whoever comes next is asked, when the timer expires.
    pub(crate) fn ask_another_donor(&mut self) {
        self.donor = None;
    }

    /// Entries are being fetched in bulk.
    pub(crate) fn is_bulk(&self) -> bool {
        self.bulk_to.is_some()
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
        let is_lost = self.binding.len() > 0 && asked_all() && !self.has_front();
        let is_needed = first_index > next && commit >= next;
        if is_needed && is_lost {
            self.drop_metadata(now, next);
        } else if self.recovery.is_bulk() {
            return;
        }
        let last = self.ordered_last();
        let is_trimmed = is_needed && self.binding.len() == 0;
        if is_trimmed || commit > last + BULK_DISTANCE {
            tracing::info!(last, commit, "far behind: fetching entries in bulk");
            self.counters.bulk_catch_ups += 1;
            let bulk_to = Some(commit);
            self.recovery = Recovery { bulk_to, after: last, step_back: 1, ..Recovery::default() };
            self.recovery.bodies.note_leader_first(first_index);
            self.ask_for_entries(from);
        }
    }

    /// Bodies or entries may be missing: look again soon. Without a leader there is nobody to say
    /// what is missing.
    pub(super) fn ask_for_what_is_missing(&mut self, now: Time) {
        let is_led = self.leader().is_some();
        if is_led && self.recovery.is_bulk() {
            self.timers.ensure(Timer::Recovery, now + ASK_AGAIN_AFTER);
        } else if is_led && self.binding.len() > 0 {
            self.timers.ensure(Timer::Recovery, now + ASK_AFTER);
        } else {
            self.timers.stop(Timer::Recovery);
            self.recovery.attempts = 0;
            self.recovery.bodies.rest();
        }
    }

    pub(super) fn recovery_timeout(&mut self, now: Time) {
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        if self.recovery.is_bulk() {
            self.recovery.attempts += 1;
            self.recovery.donor = None;
            self.ask_for_entries(leader);
        }
        // Large bodies do not come in bulk, and without them what does come piles up behind.
        self.ask_for_bodies(leader);
        let waited_for = self.recovery.bodies.attempts();
        if planted!("silence-is-refusal") && waited_for > 8 {
            self.remove_from(now, self.commit.index() + 1);
            self.send_append_reply(leader, Some(self.commit.index()));
        }
        // Perhaps nobody has it yet, or there is no room for it here.
        let attempts = self.recovery.attempts.max(waited_for);
        let rounds = attempts / self.configuration().members.len();
        let pause = ASK_AGAIN_AFTER * (1 << rounds.min(ASK_AGAIN_DOUBLINGS_MAX));
        self.timers.set(Timer::Recovery, now + pause);
    }

    /// Another replica is far behind: send it entries that are committed here, from where its log
    /// can be compared with what is committed.
    pub(super) fn entries_asked(&mut self, from: NodeId, after: Index) {
        let commit = self.commit.index();
        if after > commit {
            return;
        }
        let Some(after_term) = self.log.term(after) else {
            if after < self.log.first() {
                let index = self.snapshots.latest();
                self.send(from, Message::SnapshotAvailable { index });
            }
            return;
        };
        let mut bytes = 0;
        let entries = self
            .log
            .entries_from(after + 1)
            .take_while(|(index, entry)| {
                let fits = bytes < PART_BYTES_MAX;
                let len = entry.request().map_or(0, |request| request.body().len());
                bytes += 128 + if len > PART_BYTES_MAX { 0 } else { len };
                *index <= commit && fits
            })
            .map(|(_, entry)| WholeEntry::new(entry))
            .collect();
        self.send(from, Message::Entries { after, after_term, entries });
    }

    /// Entries came in bulk. They are committed, so they replace what contradicts them; but they
    /// say nothing about this leader's log, so they verify nothing (P6).
    pub(super) fn entries_came(
        &mut self,
        now: Time,
        after: Index,
        after_term: Term,
        entries: Vec<WholeEntry>,
    ) {
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        let Some(bulk_to) = self.recovery.bulk_to else {
            return;
        };
        let commit = self.commit.index();
        if self.snapshots.is_installing() || after > self.ordered_last() {
            return;
        }
        if after > commit && self.ordered_term(after) != Some(after_term) {
            // The end of the log was never committed. Few entries were not, so it is not far back
            // to where it agrees; what is known to be committed agrees (P9).
            if after == self.recovery.after {
                self.recovery.after = after.saturating_sub(self.recovery.step_back);
                self.recovery.step_back *= 2;
                self.ask_for_entries(leader);
            }
            return;
        }
        let terms = entries.iter().map(|entry| entry.term);
        let mut committed = (after..=commit).zip([after_term].into_iter().chain(terms));
        if committed.any(|(index, term)| self.log.term(index).is_some_and(|here| here != term)) {
            // The leader will say whose log is wrong.
            self.counters.messages_refused += 1;
            return;
        }
        let (before, reached) = (self.recovery.after, after + entries.len() as Index);
        for (position, whole) in entries.into_iter().enumerate() {
            let index = after + 1 + position as Index;
            if index <= commit {
                continue;
            }
            if self.ordered_term(index) == Some(whole.term) {
                // Its body may be what is missing.
                self.fill_carried(index, whole.request.map(|request| (0, request)));
                continue;
            }
            if index <= self.ordered_last() {
                self.remove_from(now, index);
            }
            if !self.remember_whole(index, whole) {
                break;
            }
            self.counters.entries_fetched += 1;
        }
        self.bind();
        let last = self.ordered_last();
        self.recovery.after = before.max(reached).min(last);
        if last >= bulk_to {
            tracing::info!(last, "caught up in bulk");
            self.recovery.forget_term();
        } else if self.recovery.after > before {
            self.recovery.attempts = 0;
            self.ask_for_entries(leader);
            // Large bodies do not come in bulk.
            if !self.recovery.bodies.is_waiting() {
                self.ask_for_bodies(leader);
            }
            self.timers.set(Timer::Recovery, now + ASK_AGAIN_AFTER);
        }
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

    fn ask_for_entries(&mut self, leader: NodeId) {
        // Both may have moved since: the log is shorter, or more of it is known to be committed.
        let after = self.recovery.after.max(self.commit.index()).min(self.ordered_last());
        self.recovery.after = after;
        let donor = self.recovery.donor.unwrap_or_else(|| {
            // Not the leader, which has other things to do, unless nobody else answers.
            let attempts = self.recovery.attempts;
            let others = self.others().into_iter().filter(|node| *node != leader);
            let donors: Vec<_> = others.chain([leader]).collect();
            donors[attempts % donors.len()]
        });
        self.recovery.donor = Some(donor);
        self.send(donor, Message::FetchEntries { after });
    }
}
