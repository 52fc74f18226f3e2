//! Bodies of entries that are ordered and whose requests did not arrive (P9): asking for them,
//! giving them, and metadata that no body fits.
//!
//! A body is asked for by its index and its key. Donors look at the index first, because the keys
//! of old entries are forgotten. The leader refuses what its own log does not have there, and that
//! answer alone makes a follower take metadata back: a silent leader may be slow, or cut off.

use std::time::Duration;

use r2p2::Time;

use crate::{
    core::{Core, Role, binding::Missing, pacing::Pacer},
    entry::{Entry, Index, NodeId},
    messages::{
        BodyPart, BodyRefusal, BodyWant, Message, PART_BYTES_MAX, RefusalReason, WholeRequest,
    },
    request::{Request, ReturnPath},
};

/// Most bodies in one question.
const WANTS_MAX: usize = 128;

/// Bytes that a part counts for beside its body.
const PART_OVERHEAD_BYTES: usize = 64;

/// Bodies that this replica has asked for. A round of questions begins at the first one that is
/// missing, and ends when all are answered or their time is out.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(super) pacer: Pacer,
    /// Index and offset of the first missing body when the round began.
    first: Option<(Index, u32)>,
    /// Index and offset below which the round has asked for everything.
    asked_to: (Index, u32),
    /// Number of rounds in a row that began with `first`, after the first one.
    attempts: usize,
    /// First index that the leader still has, as far as it said so.
    leader_first: Index,
}

impl Asking {
    /// Makes one that has asked for nothing; for `back_off_max` see [`Pacer::new`].
    pub(crate) fn new(back_off_max: Duration) -> Self {
        let pacer = Pacer::new(back_off_max);
        Self { pacer, first: None, asked_to: (0, 0), attempts: 0, leader_first: 0 }
    }

    /// Number of rounds in a row that brought nothing of the first missing body.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts
    }

    /// Forgets what was asked: nothing is missing, or other things are.
    pub(crate) fn rest(&mut self) {
        self.pacer.forget();
        (self.first, self.attempts) = (None, 0);
    }

    /// Forgets what is of one term.
    pub(crate) fn forget_term(&mut self) {
        self.rest();
        self.leader_first = 0;
    }

    /// Notes the first index that the leader has.
    pub(crate) fn note_leader_first(&mut self, first: Index) {
        self.leader_first = self.leader_first.max(first);
    }

    fn begin_round(&mut self, front: (Index, u32)) {
        self.attempts = if self.first == Some(front) { self.attempts + 1 } else { 0 };
        (self.first, self.asked_to) = (Some(front), front);
    }
}

/// The donor's half.
impl Core {
    /// Sends the bodies that another replica lacks, as many as it asks for, in one message. As
    /// leader it says which of them do not belong to its log.
    pub(super) fn bodies_asked(
        &mut self,
        from: NodeId,
        question: u64,
        wants: &[BodyWant],
        bytes: u32,
    ) {
        let mut left = (bytes as usize).min(PART_BYTES_MAX);
        let (mut parts, mut refusals) = (Vec::new(), Vec::new());
        for want in wants.iter().take(WANTS_MAX) {
            if let Some(reason) = self.refuses(want) {
                refusals.push(BodyRefusal { want: *want, reason });
                continue;
            }
            let Some((request, path)) = self.wanted_body(want) else {
                continue;
            };
            let rest = request.body().slice((want.offset as usize).min(request.body().len())..);
            let len = rest.len().min(left.saturating_sub(PART_OVERHEAD_BYTES));
            if len == 0 && !rest.is_empty() {
                break;
            }
            left = left.saturating_sub(len + PART_OVERHEAD_BYTES);
            let mut whole = WholeRequest::without_body(request, path);
            whole.body = rest[..len].to_vec();
            let (index, body_len) = (want.index, request.body().len() as u32);
            parts.push(BodyPart { index, body_len, offset: want.offset, request: whole });
            self.counters.bodies_served += 1;
        }
        if !refusals.is_empty() {
            self.counters.bodies_refused += refusals.len() as u64;
            self.send(from, Message::BodiesRefused { refusals });
        }
        // Perhaps with nothing in it: then someone else is asked sooner.
        self.send(from, Message::Bodies { parts, question });
    }

    /// Returns the request for a want: the one at its index, or the same one elsewhere.
    fn wanted_body(&self, want: &BodyWant) -> Option<(&Request, Option<ReturnPath>)> {
        let key = want.key();
        let of_entry = |entry: &'_ Entry| entry.request().is_some_and(|it| it.key() == key);
        let at_index = self.log.entry(want.index).filter(|entry| of_entry(entry));
        let in_log = || self.log.find(&key).and_then(|index| self.log.entry(index));
        if let Some(entry) = at_index.or_else(in_log) {
            let request = entry.request().expect("only requests are found by key");
            return Some((request, entry.return_path));
        }
        let waiting = self.unordered.get(&key)?;
        Some((&waiting.request, waiting.return_path))
    }

    /// Returns why the leader's log does not have what a follower asks for; none if it does, or if
    /// this replica does not lead.
    fn refuses(&self, want: &BodyWant) -> Option<RefusalReason> {
        if !self.is_leader() {
            return None;
        }
        let Some(entry) = self.log.entry(want.index) else {
            if want.index >= self.log.first() {
                return Some(RefusalReason::NoEntry);
            }
            let is_elsewhere = self.wanted_body(want).is_some();
            return (!is_elsewhere).then_some(RefusalReason::Trimmed);
        };
        if entry.term != want.term {
            return Some(RefusalReason::Term);
        }
        match entry.request() {
            None => Some(RefusalReason::Kind),
            Some(request) if request.key() != want.key() => Some(RefusalReason::Request),
            Some(request) if request.body().len() != want.body_len as usize => {
                Some(RefusalReason::Length)
            }
            Some(_) => None,
        }
    }
}

/// The asker's half.
impl Core {
    /// Takes bodies; each goes straight to its index.
    pub(super) fn bodies_came(&mut self, now: Time, question: u64, parts: Vec<BodyPart>) {
        let bytes = |part: &BodyPart| part.request.body.len() + PART_OVERHEAD_BYTES;
        let bytes = parts.iter().map(bytes).sum();
        let is_due = self.recovery.bodies.pacer.is_due(question);
        self.recovery.bodies.pacer.came(now, question, bytes, true);
        let last = self.log.last();
        let is_of_use =
            parts.iter().any(|part| self.binding.has_length(last, part.index, part.body_len));
        for BodyPart { index, offset, request, .. } in parts {
            let done = self.fill(index, offset, &request);
            self.counters.bodies_recovered += u64::from(done);
        }
        self.bind();
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        let asking = &mut self.recovery.bodies;
        if is_due && !is_of_use {
            // The donor has nothing of it. Damaged metadata may say that a body is so long that
            // there would be no end of questions.
            asking.pacer.forget();
            self.set_recovery_timer(now);
            return;
        }
        // A round that brought nothing of the first body is followed by another after a pause.
        if asking.pacer.is_waiting() || self.first_missing() != self.recovery.bodies.first {
            self.ask_for_bodies(now, leader);
            self.set_recovery_timer(now);
        }
    }

    /// Puts a part of a body where metadata waits for it; returns whether the body is complete.
    pub(super) fn fill(&mut self, index: Index, offset: u32, part: &WholeRequest) -> bool {
        let Some(position) = index.checked_sub(self.log.last() + 1) else {
            return false;
        };
        let path = part.return_path();
        let request_of = |body| part.with_body(self.digest_key, body);
        self.binding.fill(position as usize, offset, &part.body, path, request_of)
    }

    /// Takes the leader's word that its log does not have what this replica asked for.
    pub(super) fn bodies_refused(&mut self, now: Time, from: NodeId, refusals: &[BodyRefusal]) {
        let is_leaders = matches!(self.role, Role::Follower { leader } if leader == Some(from));
        if !is_leaders || self.snapshots.is_installing() {
            return;
        }
        let mut unfit: Option<&BodyRefusal> = None;
        let mut is_trimmed = false;
        for refusal in refusals {
            let BodyRefusal { want, reason } = refusal;
            // An answer may be late: it counts only for metadata that is still here.
            let is_here = self.binding.has(self.log.last(), want);
            if !is_here && !planted!("refusal-truncates-log") {
                continue;
            }
            match reason {
                // Others may have kept it, and are asked next.
                RefusalReason::Trimmed => {
                    self.recovery.bodies.note_leader_first(want.index + 1);
                    is_trimmed = true;
                }
                RefusalReason::NoEntry
                | RefusalReason::Term
                | RefusalReason::Kind
                | RefusalReason::Request
                | RefusalReason::Length => {
                    if unfit.is_none_or(|lowest| want.index < lowest.want.index) {
                        unfit = Some(refusal);
                    }
                }
            }
        }
        if let Some(refusal) = unfit {
            self.take_back_unfit(now, from, refusal);
        } else if is_trimmed && self.recovery.bodies.attempts() == 0 {
            self.recovery.bodies.pacer.forget();
            self.ask_for_bodies(now, from);
        }
    }

    /// Removes metadata that no body fits, with what is behind it. The leader is told at once, and
    /// directly, to send it again (P30).
    fn take_back_unfit(&mut self, now: Time, leader: NodeId, refusal: &BodyRefusal) {
        let BodyRefusal { want, reason } = refusal;
        tracing::warn!(
            index = want.index,
            %leader,
            "the leader's log has {reason} at an index whose request is missing here: asking for \
             its order again"
        );
        self.counters.metadata_taken_back += 1;
        if planted!("refusal-truncates-log") {
            self.remove_from(now, want.index.max(self.commit.index() + 1));
        }
        self.drop_metadata(now, want.index);
        self.recovery.bodies.rest();
        self.send_append_reply(now, leader, Some(self.ordered_last().min(want.index - 1)));
    }

    /// Removes metadata from an index on: never anything in the log, which may be acknowledged.
    pub(super) fn drop_metadata(&mut self, now: Time, index: Index) {
        let last = self.log.last();
        let position = index.saturating_sub(last + 1) as usize;
        let unordered = &mut self.unordered;
        self.binding.truncate(position, |request| {
            unordered.insert_evicting(now, request, None);
        });
        // The metadata that replaces it may come from another replica than this leader (P6).
        if !planted!("refusal-keeps-verified") {
            self.commit.unverify(last);
        }
    }

    /// Returns index and offset of the first body that is missing.
    fn first_missing(&self) -> Option<(Index, u32)> {
        let mut missing = self.binding.missing_from(0);
        let first = missing.find(|missing| self.unordered.get(&missing.key).is_none())?;
        Some((self.log.last() + 1 + first.position as Index, first.here))
    }

    /// Asks for the bodies that are missing, lowest first, as far as the pace allows. A snapshot
    /// that is on its way replaces all of them; then nothing is on its way here either, so that
    /// each late answer would bring questions that nothing bounds.
    pub(super) fn ask_for_bodies(&mut self, now: Time, leader: NodeId) {
        if self.is_snapshot_coming(now) {
            return;
        }
        let asking = &mut self.recovery.bodies;
        asking.pacer.expire(now);
        if !asking.pacer.is_waiting() {
            let Some(front) = self.first_missing() else {
                return;
            };
            self.recovery.bodies.begin_round(front);
        }
        while self.recovery.bodies.pacer.room() > 0 {
            let (wants, bytes) = self.next_wants();
            let Some(first) = wants.first() else {
                return;
            };
            let to = self.donor_of_bodies(leader, first.index);
            let question = self.recovery.bodies.pacer.ask(now, bytes);
            self.counters.bodies_asked += wants.len() as u64;
            self.send(to, Message::FetchBodies { wants, question, bytes: bytes as u32 });
        }
    }

    /// Takes the next wants of the round, as many as one message answers, and the bytes of that.
    fn next_wants(&mut self) -> (Vec<BodyWant>, usize) {
        let asking = &mut self.recovery.bodies;
        let unit = asking.pacer.unit();
        let budget = self.binding.room_bytes().saturating_sub(asking.pacer.in_flight());
        let first = self.log.last() + 1;
        let skip = asking.asked_to.0.saturating_sub(first) as usize;
        let (mut wants, mut bytes) = (Vec::new(), 0);
        for Missing { position, term, key, here, body_len } in self.binding.missing_from(skip) {
            let index = first + position as Index;
            let asked = if index == asking.asked_to.0 { asking.asked_to.1 } else { 0 };
            let offset = here.max(asked).min(body_len);
            let rest = (body_len - offset) as usize;
            let part = rest.min(unit.saturating_sub(bytes + PART_OVERHEAD_BYTES));
            // The lowest index always has room (P9).
            let has_room = position == 0 || bytes + part <= budget;
            let is_full = wants.len() >= WANTS_MAX || bytes + PART_OVERHEAD_BYTES >= unit;
            if is_full || !has_room {
                break;
            }
            if self.unordered.get(&key).is_some() {
                continue;
            }
            bytes += part + PART_OVERHEAD_BYTES;
            let is_whole = part == rest;
            asking.asked_to = if is_whole { (index + 1, 0) } else { (index, offset + part as u32) };
            wants.push(BodyWant::new(index, term, key, body_len, offset));
        }
        (wants, bytes)
    }

    /// Chooses whom to ask: the leader first, and after a time-out anyone (P9), but the leader only
    /// for what it still has.
    fn donor_of_bodies(&self, leader: NodeId, index: Index) -> NodeId {
        let Asking { attempts, leader_first, .. } = self.recovery.bodies;
        let is_trimmed = index < leader_first;
        let mut others = self.others();
        if is_trimmed && others.len() > 1 {
            others.retain(|node| *node != leader);
        }
        let is_turn_of_others = attempts > 1 || is_trimmed;
        match others.len() {
            count if count > 0 && is_turn_of_others => others[attempts % count],
            _ => leader,
        }
    }
}
