//! Missing bodies, and whole entries for a replica far behind (P9).

use std::time::Duration;

use r2p2::Time;

use crate::{
    core::{Core, Role, Timer, follower::ordered, replication::BULK_DISTANCE},
    entry::{Index, NodeId, Term},
    messages::{
        BodyPart, BodyWant, Message, Ordered as Meaning, PART_BYTES_MAX, WholeEntry, WholeRequest,
    },
};

/// A body that is not here yet is usually on its way from the client: wait this long before
/// asking.
const ASK_AFTER: Duration = Duration::from_micros(500);

/// Then ask again, and someone else, after this long without an answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// After everybody was asked, it is asked half as often each time, this many times.
const ASK_AGAIN_DOUBLINGS_MAX: usize = 4;

/// How many bodies are asked for at once.
const WANTS_MAX: usize = 128;

/// How many bytes of bodies answer one question.
const ANSWER_BYTES_MAX: usize = 8 * PART_BYTES_MAX;

/// What this replica has asked for.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// How often it asked since it last got something.
    attempts: usize,
    /// Bytes that the last question should bring and that have not come.
    expected_bytes: usize,
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
        if self.recovery.is_bulk() || self.snapshots.is_receiving() {
            return;
        }
        let next = self.log.last() + 1;
        // What the leader has trimmed it has no body of any more. If, after they were asked in
        // turn, nobody else has either, the metadata is of no use.
        let asked_all = || self.recovery.attempts > 2 * self.others().len();
        let is_lost = || self.binding.len() == 0 || (asked_all() && !self.has_front());
        let is_trimmed = first_index > next && commit >= next && is_lost();
        if is_trimmed {
            self.remove_from(now, next);
        }
        let last = self.ordered_last();
        if is_trimmed || commit > last + BULK_DISTANCE {
            tracing::info!(last, commit, "far behind: fetching entries in bulk");
            self.counters.bulk_catch_ups += 1;
            let bulk_to = Some(commit);
            self.recovery = Recovery { bulk_to, after: last, step_back: 1, ..Recovery::default() };
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
        }
    }

    pub(super) fn recovery_timeout(&mut self, now: Time) {
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        self.recovery.attempts += 1;
        if self.recovery.is_bulk() {
            self.recovery.donor = None;
            self.ask_for_entries(leader);
        }
        // Large bodies do not come in bulk, and without them what does come piles up behind.
        self.ask_for_bodies(leader);
        // Perhaps nobody has it yet, or there is no room for it here.
        let rounds = self.recovery.attempts / self.configuration().members.len();
        let pause = ASK_AGAIN_AFTER * (1 << rounds.min(ASK_AGAIN_DOUBLINGS_MAX));
        self.timers.set(Timer::Recovery, now + pause);
    }

    /// Another replica lacks bodies: send those that are here, as many as fit.
    pub(super) fn bodies_asked(&mut self, from: NodeId, wants: &[BodyWant]) {
        let (mut outgoing, mut parts) = (Vec::new(), Vec::new());
        let (mut bytes, mut bytes_in_all) = (0, 0);
        for want in wants.iter().take(WANTS_MAX) {
            let key = want.key();
            let (request, path) = if let Some(waiting) = self.unordered.get(&key) {
                (&waiting.request, waiting.return_path)
            } else if let Some(entry) = self.log.find(&key).and_then(|at| self.log.entry(at)) {
                let request = entry.request().expect("only requests are found by key");
                (request, entry.return_path)
            } else {
                continue;
            };
            let body = request.body();
            let mut offset = (want.offset as usize).min(body.len());
            loop {
                let part = &body[offset..body.len().min(offset + PART_BYTES_MAX)];
                if bytes > 0 && bytes + part.len() > PART_BYTES_MAX {
                    let message = Message::Bodies { parts: std::mem::take(&mut parts) };
                    outgoing.push(message);
                    bytes = 0;
                }
                let mut whole = WholeRequest::without_body(request, path);
                whole.body = part.to_vec();
                let (index, body_len) = (want.index, body.len() as u32);
                parts.push(BodyPart { index, body_len, offset: offset as u32, request: whole });
                // What a part counts for beside its bytes.
                bytes += part.len() + 64;
                bytes_in_all += part.len() + 64;
                offset += part.len();
                if offset >= body.len() || bytes_in_all >= ANSWER_BYTES_MAX {
                    break;
                }
            }
            self.counters.bodies_served += 1;
            if bytes_in_all >= ANSWER_BYTES_MAX {
                break;
            }
        }
        if !parts.is_empty() {
            outgoing.push(Message::Bodies { parts });
        }
        for message in outgoing {
            self.send(from, message);
        }
    }

    /// Bodies came; each goes straight to its index.
    pub(super) fn bodies_came(&mut self, now: Time, parts: Vec<BodyPart>) {
        for part in parts {
            let Some(position) = part.index.checked_sub(self.log.last() + 1) else {
                continue;
            };
            let BodyPart { offset, request, .. } = part;
            let path = request.return_path();
            let len = request.body.len();
            let done = self.binding.fill(position as usize, offset, &request.body, path, |body| {
                request.with_body(body)
            });
            self.counters.bodies_recovered += u64::from(done);
            self.recovery.expected_bytes = self.recovery.expected_bytes.saturating_sub(len);
            self.recovery.attempts = 0;
        }
        self.bind();
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        if self.recovery.expected_bytes == 0 && self.recovery.bulk_to.is_none() {
            self.ask_for_bodies(leader);
            self.timers.set(Timer::Recovery, now + ASK_AGAIN_AFTER);
        }
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
            if index <= commit || self.ordered_term(index) == Some(whole.term) {
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

    fn ask_for_bodies(&mut self, leader: NodeId) {
        let mut budget = self.binding.room_bytes();
        let first = self.log.last() + 1;
        let mut wants = Vec::new();
        let mut expected = 0;
        for (position, key, here, body_len) in self.binding.missing() {
            let missing = (body_len - here.min(body_len)) as usize;
            if wants.len() >= WANTS_MAX || (!wants.is_empty() && missing > budget) {
                break;
            }
            if self.unordered.get(&key).is_some() {
                continue;
            }
            budget = budget.saturating_sub(missing);
            expected += missing;
            wants.push(BodyWant::new(first + position as Index, key, here));
            if expected >= ANSWER_BYTES_MAX {
                break;
            }
        }
        if wants.is_empty() {
            return;
        }
        self.recovery.expected_bytes = expected.min(ANSWER_BYTES_MAX);
        self.counters.bodies_asked += wants.len() as u64;
        // The leader first; after a timeout anyone else (P9).
        let others = self.others();
        let to = match self.recovery.attempts {
            attempts if attempts > 1 && !others.is_empty() => others[attempts % others.len()],
            _ => leader,
        };
        self.send(to, Message::FetchBodies { wants });
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
