//! Bodies of entries that are ordered and whose requests did not arrive (P9): asking for them,
//! giving them, and metadata that no body fits.
//!
//! A body is asked for by its index and its key. Donors look at the index first, because the keys
//! of old entries are forgotten. The leader refuses what its own log does not have there, and that
//! answer alone makes a follower take metadata back: a silent leader may be slow, or cut off.

use r2p2::Time;

use crate::{
    core::{
        Core, Role, Timer,
        binding::Missing,
        recovery::{ASK_AGAIN_AFTER, WANTS_MAX},
    },
    entry::{Entry, Index, NodeId},
    messages::{
        BodyPart, BodyRefusal, BodyWant, Message, PART_BYTES_MAX, RefusalReason, WholeRequest,
    },
    request::{Request, ReturnPath},
};

/// Most bytes of bodies in all answers to one question.
const ANSWER_BYTES_MAX: usize = 8 * PART_BYTES_MAX;

/// Bytes that a part counts for beside its body.
const PART_OVERHEAD_BYTES: usize = 64;

/// Bodies that this replica has asked for.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// Index and offset of the first body in the last question.
    first: Option<(Index, u32)>,
    /// Number of questions in a row that began with `first`.
    attempts: usize,
    /// Bytes that the last question should bring and that have not come.
    expected_bytes: usize,
    /// First index that the leader still has, as far as it said so.
    leader_first: Index,
}

impl Asking {
    /// Number of questions in a row that brought nothing of the first missing body.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts
    }

    /// Returns whether an answer is still to come.
    pub(crate) fn is_waiting(&self) -> bool {
        self.expected_bytes > 0
    }

    /// Forgets how often it asked: nothing is missing.
    pub(crate) fn rest(&mut self) {
        *self = Self { leader_first: self.leader_first, ..Self::default() };
    }

    /// Notes the first index that the leader has.
    pub(crate) fn note_leader_first(&mut self, first: Index) {
        self.leader_first = self.leader_first.max(first);
    }
}

/// The donor's half.
impl Core {
    /// Sends the bodies that another replica lacks, as many as fit. As leader it says which of
    /// them do not belong to its log.
    pub(super) fn bodies_asked(&mut self, from: NodeId, wants: &[BodyWant]) {
        let mut answer = Answer::default();
        let mut refusals = Vec::new();
        for want in wants.iter().take(WANTS_MAX) {
            if let Some(reason) = self.refuses(want) {
                refusals.push(BodyRefusal { want: *want, reason });
            } else if let Some((request, path)) = self.wanted_body(want) {
                answer.add(want, request, path);
                self.counters.bodies_served += 1;
            }
            if answer.is_full() {
                break;
            }
        }
        for parts in answer.into_messages() {
            self.send(from, Message::Bodies { parts });
        }
        if !refusals.is_empty() {
            self.counters.bodies_refused += refusals.len() as u64;
            self.send(from, Message::BodiesRefused { refusals });
        }
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
    pub(super) fn bodies_came(&mut self, now: Time, parts: Vec<BodyPart>) {
        for part in parts {
            let BodyPart { index, offset, request, .. } = part;
            let len = request.body.len();
            let done = self.fill(index, offset, &request);
            self.counters.bodies_recovered += u64::from(done);
            let asking = &mut self.recovery.bodies;
            asking.expected_bytes = asking.expected_bytes.saturating_sub(len);
        }
        self.bind();
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        if !self.recovery.bodies.is_waiting() {
            self.ask_for_bodies(leader);
            self.timers.set(Timer::Recovery, now + ASK_AGAIN_AFTER);
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
            self.timers.set(Timer::Recovery, now);
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
        self.send_append_reply(leader, Some(self.ordered_last().min(want.index - 1)));
    }

    /// Removes metadata from an index on: never anything in the log, which may be acknowledged.
    pub(super) fn drop_metadata(&mut self, now: Time, index: Index) {
        let last = self.log.last();
        let position = index.saturating_sub(last + 1) as usize;
        let unordered = &mut self.unordered;
        self.binding.truncate(position, |request| {
            unordered.insert_evicting(now, request, None);
        });
        // What comes in its place may be of another origin than this leader (P6).
        if !planted!("refusal-keeps-verified") {
            self.commit.unverify(last);
        }
    }

    /// Asks for the bodies that are missing, lowest first, as many as there is room for.
    pub(super) fn ask_for_bodies(&mut self, leader: NodeId) {
        let mut budget = self.binding.room_bytes();
        let first = self.log.last() + 1;
        let mut wants = Vec::new();
        let mut expected = 0;
        for Missing { position, term, key, here, body_len } in self.binding.missing() {
            let missing = (body_len - here.min(body_len)) as usize;
            // The lowest index always has room (P9).
            let has_room = missing <= budget || position == 0;
            if wants.len() >= WANTS_MAX || !has_room || expected >= ANSWER_BYTES_MAX {
                break;
            }
            if self.unordered.get(&key).is_some() {
                continue;
            }
            budget = budget.saturating_sub(missing);
            expected += missing;
            wants.push(BodyWant::new(first + position as Index, term, key, body_len, here));
        }
        let Some(front) = wants.first().map(|want| (want.index, want.offset)) else {
            return;
        };
        let asking = &mut self.recovery.bodies;
        asking.attempts = if asking.first == Some(front) { asking.attempts + 1 } else { 0 };
        asking.first = Some(front);
        asking.expected_bytes = expected.min(ANSWER_BYTES_MAX);
        self.counters.bodies_asked += wants.len() as u64;
        let to = self.donor_of_bodies(leader, front.0);
        self.send(to, Message::FetchBodies { wants });
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

/// Parts of bodies on their way into messages.
#[derive(Debug, Default)]
struct Answer {
    messages: Vec<Vec<BodyPart>>,
    /// Parts of the message that is being filled, and their bytes.
    parts: Vec<BodyPart>,
    bytes: usize,
    bytes_in_all: usize,
}

impl Answer {
    fn is_full(&self) -> bool {
        self.bytes_in_all >= ANSWER_BYTES_MAX
    }

    /// Adds what a want lacks of a body, cut where a message is full.
    fn add(&mut self, want: &BodyWant, request: &Request, path: Option<ReturnPath>) {
        let body = request.body();
        let mut offset = (want.offset as usize).min(body.len());
        loop {
            let part = &body[offset..body.len().min(offset + PART_BYTES_MAX)];
            if self.bytes > 0 && self.bytes + part.len() > PART_BYTES_MAX {
                self.messages.push(std::mem::take(&mut self.parts));
                self.bytes = 0;
            }
            let mut whole = WholeRequest::without_body(request, path);
            whole.body = part.to_vec();
            let (index, body_len) = (want.index, body.len() as u32);
            self.parts.push(BodyPart { index, body_len, offset: offset as u32, request: whole });
            self.bytes += part.len() + PART_OVERHEAD_BYTES;
            self.bytes_in_all += part.len() + PART_OVERHEAD_BYTES;
            offset += part.len();
            if offset >= body.len() || self.is_full() {
                return;
            }
        }
    }

    fn into_messages(mut self) -> Vec<Vec<BodyPart>> {
        if !self.parts.is_empty() {
            self.messages.push(self.parts);
        }
        self.messages
    }
}
