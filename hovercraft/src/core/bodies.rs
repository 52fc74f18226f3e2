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
    /// Index of the first missing body when the round began, and the bytes of it that were here.
    first: Option<(Index, usize)>,
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

    fn begin_round(&mut self, front: (Index, usize)) {
        self.attempts = if self.first == Some(front) { self.attempts + 1 } else { 0 };
        (self.first, self.asked_to) = (Some(front), (front.0, 0));
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
        // All but the last are asked for to their ends. One that is not sent leaves no more for the
        // last, of which the rest may be here.
        let whole = |want: &BodyWant| {
            want.body_len.saturating_sub(want.offset) as usize + PART_OVERHEAD_BYTES
        };
        for want in wants.iter().take(WANTS_MAX) {
            if let Some(reason) = self.refuses(want) {
                refusals.push(BodyRefusal { want: *want, reason });
                left = left.saturating_sub(whole(want));
                continue;
            }
            let Some((request, path)) = self.wanted_body(want) else {
                left = left.saturating_sub(whole(want));
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
        let at_index = at_index.filter(|_| !planted!("bodies-by-key-only"));
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

    /// Returns the index of the first body that is missing, and the bytes of it that are here.
    fn first_missing(&self) -> Option<(Index, usize)> {
        let mut missing = self.binding.missing_from(0);
        let first = missing.find(|missing| self.unordered.get(&missing.key).is_none())?;
        Some((self.log.last() + 1 + first.position as Index, first.here()))
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
        for missing in self.binding.missing_from(skip) {
            let Missing { position, term, key, body_len, .. } = missing;
            let index = first + position as Index;
            let asked = if index == asking.asked_to.0 { asking.asked_to.1 } else { 0 };
            let gap = missing.gap(asked);
            let part = gap.len().min(unit.saturating_sub(bytes + PART_OVERHEAD_BYTES));
            // The lowest index always has room (P9).
            let has_room = position == 0 || bytes + part <= budget;
            let is_full = wants.len() >= WANTS_MAX || bytes + PART_OVERHEAD_BYTES >= unit;
            if is_full || !has_room {
                break;
            }
            if self.unordered.get(&key).is_some() {
                continue;
            }
            let end = gap.start + part as u32;
            let is_to_the_end = end == body_len;
            if part > 0 || body_len == 0 {
                bytes += part + PART_OVERHEAD_BYTES;
                asking.asked_to = if is_to_the_end { (index + 1, 0) } else { (index, end) };
                wants.push(BodyWant::new(index, term, key, body_len, gap.start));
            }
            // An answer has as much of the last body as there is room for: what is behind a gap is
            // asked for by another question, and what is too far ahead when the gap is closed.
            if !is_to_the_end {
                break;
            }
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;

    use super::*;
    use crate::{
        core::{
            Output, Settings,
            testing::{DIGEST_KEY, core_of, elected_at, leader, return_path, settle},
        },
        messages::Envelope,
        request::{Identity, Kind},
    };

    /// Time of a message on its way, which an answer takes as well.
    const TICK: Duration = Duration::from_millis(12);

    /// A leader and a follower, which fetches a body of the leader over a way that brings messages
    /// in any order.
    struct Way {
        cores: [Core; 2],
        queue: Vec<Envelope>,
        rng: fastrand::Rng,
        /// One of so many answers is lost.
        losses: Option<usize>,
        /// Bytes of the body that the leader sent, and those of them that were lost.
        sent: usize,
        lost: usize,
    }

    impl Way {
        fn new(len: usize, losses: Option<usize>, seed: u64) -> Self {
            let settings = Settings::default();
            let cores = [leader(settings), core_of((2, 3), settings, Vec::new(), 1)];
            let rng = fastrand::Rng::with_seed(seed);
            let mut way = Self { cores, queue: Vec::new(), rng, losses, sent: 0, lost: 0 };
            let identity = Identity::Session { client: 9, sequence: 1 };
            let body = (0..len).map(|_| way.rng.u8(..)).collect::<Vec<_>>();
            let request = Request::new(DIGEST_KEY, identity, 1, Kind::Write, Bytes::from(body));
            way.cores[0].handle_request(elected_at(), Arc::new(request), return_path(1));
            way
        }

        /// Returns the number of ticks in which the body came.
        fn ticks(&mut self) -> usize {
            let mut now = elected_at();
            for tick in 0..2000 {
                now += TICK;
                let mut arriving = std::mem::take(&mut self.queue);
                self.rng.shuffle(&mut arriving);
                for envelope in arriving {
                    let to = usize::from(envelope.from.0 == 1);
                    self.cores[to].handle_message(now, envelope);
                }
                for at in 0..2 {
                    self.cores[at].handle_timeout(now);
                    for output in settle(&mut self.cores[at], now) {
                        self.send(at, output);
                    }
                }
                if self.cores[1].log.last() == 2 {
                    return tick;
                }
            }
            panic!("it never came: {:?}", self.cores[1].status());
        }

        fn send(&mut self, from: usize, output: Output) {
            let Output::Send { to, envelope } = output else { return };
            if usize::from(to.0) != 2 - from {
                return;
            }
            if let Message::Bodies { parts, .. } = &envelope.message {
                let bytes: usize = parts.iter().map(|part| part.request.body.len()).sum();
                self.sent += bytes;
                if self.losses.is_some_and(|one_of| self.rng.usize(..one_of) == 0) {
                    self.lost += bytes;
                    return;
                }
            }
            self.queue.push(*envelope);
        }
    }

    #[test]
    fn no_part_of_a_body_is_sent_twice_in_whatever_order_they_come() {
        for seed in 0..20 {
            let mut way = Way::new(86_070, None, seed);
            let ticks = way.ticks();
            assert_eq!(way.sent, 86_070, "seed {seed}");
            // 4 KiB, and then a window of 32 KiB and more each round trip.
            assert!(ticks <= 14, "{ticks} ticks, seed {seed}");
        }
        // Nothing is asked for so far ahead that it is not kept.
        let mut way = Way::new(8 << 20, None, 1);
        way.ticks();
        assert_eq!(way.sent, 8 << 20);
    }

    #[test]
    fn a_body_of_which_parts_are_lost_is_not_sent_twice() {
        let mut lost = 0;
        for seed in 0..20 {
            let mut way = Way::new(1 << 20, Some(10), seed);
            way.ticks();
            // A time-out takes all that is on its way then as lost, so at most a window for each.
            assert!(way.sent < 2 << 20, "{} sent, {} lost, seed {seed}", way.sent, way.lost);
            lost += way.lost;
        }
        assert!(lost > 1 << 20, "{lost} bytes");
    }
}
