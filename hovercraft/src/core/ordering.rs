//! The leader gives requests an order (P5, P7, P10, P15, P18, P22–P24).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use r2p2::Time;

use crate::{
    core::{Core, Output, Reason, Refusal, Role, Timer, unordered::Waiting},
    entry::{Entry, Index, NodeId, Payload},
    messages::WholeRequest,
    request::{Kind, Request, ReturnPath},
};

/// Log time may be this far ahead of the leader's clock before that is worth an alarm (P22).
const LOG_TIME_AHEAD_MAX: Duration = Duration::from_secs(1);

/// So often at most.
const ALARM_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A read is ordered again at most once in this time, but for the first time that its reply was
/// lost; and while its replier has not executed it, only if that stands still for as long (P18).
const REORDER_READ_AFTER: Duration = Duration::from_secs(1);

impl Core {
    /// A client's request reached the leader.
    pub(super) fn request_at_leader(&mut self, now: Time, request: Arc<Request>, path: ReturnPath) {
        if !self.fits(&request) {
            self.refuse(&request, path);
            return;
        }
        let Some(index) = self.log.find(&request.key()) else {
            if self.opens_too_many(now, &request, path) {
                self.refuse(&request, path);
            } else {
                self.admit(now, &request, path);
            }
            return;
        };
        self.log.set_return_path(index, path);
        let is_plain = request.is_plain();
        if !request.kind().is_write() {
            if index <= self.applied && self.may_reorder_read(now, index) {
                self.admit(now, &request, path);
            }
        } else if index > self.applied {
            self.counters.retries_in_log += 1;
            if let Some(slot) = self.log.slot_mut(index) {
                slot.asked_again = true;
            }
        } else if is_plain {
            // The identity of a plain client recurs (P1).
            self.admit(now, &request, path);
        } else {
            self.counters.retries_answered += 1;
            self.outputs.push_back(Output::AnswerRetry { request, to: path });
        }
    }

    /// A request contradicts itself: a damaged or a forged one (P21). One replica answers, so that a
    /// forger gains nothing.
    pub(super) fn refuse_unsound(&mut self, request: &Request, path: ReturnPath) {
        if self.is_leader() {
            self.refuse(request, path);
        }
    }

    /// The session table holds so many sessions, as the application says after it has applied.
    pub fn note_sessions(&mut self, sessions: usize) {
        self.openings.set_open(sessions);
    }

    /// Returns whether a request would open a session for an address that has opened more than its
    /// share lately (P23). One that waits for its order, byte for byte, counted when it came.
    fn opens_too_many(&mut self, now: Time, request: &Request, path: ReturnPath) -> bool {
        if request.kind() != Kind::OpenSession || self.unordered.get(&request.key()).is_some() {
            return false;
        }
        let sessions_max = self.configuration().limits.sessions_max;
        self.openings.is_above_share(now, *path.address.ip(), sessions_max)
    }

    /// Another replica passed a request on, after a look at it as at any that comes from outside. If
    /// this one does not lead either, it goes no further: the client will try again.
    pub(super) fn forwarded_request_came(&mut self, now: Time, whole: &WholeRequest) {
        let body = Bytes::copy_from_slice(&whole.body);
        if self.is_leader()
            && let (Some(request), Some(path)) =
                (whole.with_body(self.digest_key, body), whole.return_path())
        {
            self.request_at_leader(now, Arc::new(request), path);
            self.ensure_expiry_timer();
        }
    }

    /// The session table no longer has the reply of a retry: order it, and apply decides (P21).
    pub fn order_again(&mut self, now: Time, request: &Arc<Request>, path: ReturnPath) {
        if !self.is_leader() {
            return;
        }
        if self.opens_too_many(now, request, path) {
            self.refuse(request, path);
        } else {
            self.admit(now, request, path);
        }
    }

    /// Orders what waits, oldest first, while there is a replier for it (P7, P15).
    pub(super) fn order_waiting(&mut self, now: Time, unix_us: u64) {
        self.compare_clocks(now, unix_us);
        if self.unordered.peek_next().is_none() {
            self.room.unblock();
        }
        while self.has_room_to_order()
            && let Some(waiting) = self.unordered.peek_next()
        {
            let entry_bytes = Entry::size_bytes_of_body(waiting.request.body().len());
            let key = waiting.request.key();
            let commit = self.commit.index();
            let kind = waiting.request.kind();
            if !self.has_room_for(entry_bytes) {
                break;
            }
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            let repliers = &mut leader.repliers;
            let chosen = repliers.choose(now, (&self.log, commit), kind, &mut self.rng);
            let Some(replier) = chosen else {
                self.counters.queues_full += 1;
                break;
            };
            let waiting = self.unordered.take(&key).expect("peek_next() was there");
            let request = waiting.request;
            let entry = self.new_entry(
                now,
                unix_us,
                Payload::Request { replier, request: Arc::clone(&request) },
                waiting.return_path,
            );
            let index = self.append_to_log(entry);
            if let Some(slot) = self.log.slot_mut(index) {
                slot.ordered_at = Some(now);
            }
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            leader.repliers.add(replier, index, &request);
            self.counters.requests_ordered += 1;
        }
        self.advance_commit();
    }

    /// Raises an alarm if log time stands still because some leader's clock was ahead of this one's
    /// (P22).
    fn compare_clocks(&mut self, now: Time, unix_us: u64) {
        let ahead = Duration::from_micros(self.log.last_log_time_us().saturating_sub(unix_us));
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let is_due = leader.alarmed_at.is_none_or(|at| now.since(at) >= ALARM_AGAIN_AFTER);
        if ahead > LOG_TIME_AHEAD_MAX && is_due {
            leader.alarmed_at = Some(now);
            self.counters.clock_alarms += 1;
            tracing::warn!(?ahead, "log time is ahead of this leader's clock: check the clocks");
        }
    }

    /// Appends what the leader makes itself; it has no replier and never waits (P15).
    pub(super) fn append_own(&mut self, now: Time, payload: Payload) -> Index {
        let log_time_us = self.log.last_log_time_us();
        let entry = self.new_entry(now, log_time_us, payload, None);
        self.append_to_log(entry)
    }

    /// A new leader decides which of the requests that it holds it will order: those with a
    /// session, as far as admission lets it (P10). The others stay until they expire.
    pub(super) fn adopt_leftovers(&mut self, now: Time) {
        self.admission.clear();
        for (index, entry) in self.log.entries_from(self.log.first()) {
            if index > self.applied
                && let Some(request) = entry.request()
            {
                self.admission.admit(now, request.identity());
            }
        }
        let (admission, log, applied) = (&mut self.admission, &self.log, self.applied);
        let adopted = self.unordered.adopt(now, |request| {
            // Ordered by another way: it came again, or by bulk catch-up.
            let is_ordered = log.find(&request.key()).is_some_and(|index| index > applied);
            !request.is_plain() && !is_ordered && admission.admit(now, request.identity())
        });
        self.counters.leftovers_adopted += adopted as u64;
    }

    /// A new leader answers the writes that others were to answer and that it has not applied yet,
    /// as if each had been asked for again: whoever led before is most likely dead, and its clients
    /// have waited for long (P18). Another replier's answer may come twice, which only a client with
    /// a session can tell.
    pub(super) fn answer_for_the_dead(&mut self) {
        for index in self.dispatched + 1..=self.log.last() {
            let may_answer = self.commit.may_answer(index);
            let Some(slot) = self.log.slot_mut(index).filter(|_| may_answer) else {
                continue;
            };
            slot.asked_again |= slot.entry.request().is_some_and(|request| !request.is_plain());
        }
    }

    /// The leader's own queue moves as it applies.
    pub(super) fn report_own(&mut self, now: Time) {
        let (node, applied) = (self.node, self.applied);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let admission = &mut self.admission;
        // It does not start again as a leader: one round is as good as another.
        leader.repliers.report(now, node, (0, applied), |identity| {
            admission.release(identity);
        });
    }

    /// How far behind the commit index a replier may be (P15).
    pub(super) fn lag_max(&self) -> u64 {
        4 * self.settings.queue_bound as u64 + 1024
    }

    pub(super) fn ensure_expiry_timer(&mut self) {
        if let Some(deadline) = self.unordered.next_expiry() {
            self.timers.ensure(Timer::Expiry, deadline);
        }
    }

    pub(super) fn expire_unordered(&mut self, now: Time) {
        let (admission, binding, last) = (&mut self.admission, &mut self.binding, self.log.last());
        self.unordered.expire(now, |Waiting { request, return_path, .. }| {
            admission.release(&request.identity());
            // A replica that is behind would have to fetch it, and would stay as far behind.
            binding.keep(last, request, return_path);
        });
        self.ensure_expiry_timer();
    }

    /// Lets a request into the system, or refuses it (P24).
    fn admit(&mut self, now: Time, request: &Arc<Request>, path: ReturnPath) {
        if let Some(node) = self.without_room(now) {
            self.refuse_for(request, path, Some(Refusal { reason: Reason::NoRoom, node }));
            return;
        }
        let identity = request.identity();
        let is_new = !self.admission.contains(&identity);
        let opens =
            request.kind() == Kind::OpenSession && self.unordered.get(&request.key()).is_none();
        let admitted = !self.is_poisoned && self.admission.admit(now, identity);
        if admitted && self.unordered.insert(now, Arc::clone(request), Some(path)) {
            if opens {
                self.openings.note(now, *path.address.ip());
            }
            return;
        }
        if admitted && is_new {
            self.admission.release(&identity);
        }
        self.refuse(request, path);
    }

    fn refuse(&mut self, request: &Request, to: ReturnPath) {
        self.refuse_for(request, to, None);
    }

    fn refuse_for(&mut self, request: &Request, to: ReturnPath, refusal: Option<Refusal>) {
        self.counters.requests_dropped += 1;
        self.outputs.push_back(Output::Drop { to, identity: request.identity(), refusal });
    }

    pub(super) fn has_room_to_order(&self) -> bool {
        !self.is_poisoned
            && self.writing_bytes < self.settings.limits.writing_bytes
            && !self.is_log_full()
            && self.log.last() < self.commit.index() + self.settings.limits.uncommitted_entries
    }

    fn new_entry(
        &mut self,
        now: Time,
        unix_us: u64,
        payload: Payload,
        return_path: Option<ReturnPath>,
    ) -> Entry {
        let session_delta_us = match &mut self.role {
            Role::Leader(leader) => leader.session_delta_us(now),
            Role::Follower { .. } | Role::Candidate(_) => 0,
        };
        Entry {
            term: self.term(),
            log_time_us: unix_us.max(self.log.last_log_time_us()),
            session_delta_us,
            payload,
            return_path,
        }
    }

    /// Whether a retry of a read may get a new place in the order (P18).
    fn may_reorder_read(&self, now: Time, index: Index) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        let Some(slot) = self.log.slot(index) else {
            return true;
        };
        let Some(replier) = slot.entry.replier() else {
            return true;
        };
        let is_executed = leader.repliers.applied(replier).is_some_and(|applied| applied >= index);
        let is_recent = slot.ordered_at.is_some_and(|at| now.since(at) < REORDER_READ_AFTER);
        // A lost reply must not cost a second; but the reply to a copy that came again is most
        // likely on its way. The identity of a plain client recurs (P1).
        let is_plain = slot.entry.request().is_some_and(|request| request.is_plain());
        let is_patient = is_recent && slot.ordered_again && !is_plain;
        if is_executed { !is_patient } else { !is_recent && self.stands_still(now, replier) }
    }

    /// Whether a replier is silent, gone, or has executed nothing for a while. One that has said
    /// nothing in this term may be what the election was about.
    fn stands_still(&self, now: Time, node: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        match self.configuration().member(node) {
            None => true,
            Some(member) => {
                node != self.node
                    && (leader.is_poisoned(member)
                        || leader.repliers.applied(node).is_none()
                        || !leader.answered_since(member, now - self.settings.timing.election_min)
                        || leader.repliers.stands_still_since(node, now - REORDER_READ_AFTER))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            Settings, UNORDERED_AGE_MAX,
            testing::{
                elected, elected_at, entry, envelope, leader, noop, request, request_of,
                return_path, settle,
            },
            unordered::{Limits, Unordered},
        },
        messages::{AppendReply, Message},
    };

    #[test]
    fn an_address_above_its_share_opens_no_session_while_the_table_is_more_than_half_full() {
        let mut core = leader(Settings::default());
        let (now, sessions_max) = (elected_at(), core.configuration().limits.sessions_max);
        let greedy = return_path(1);
        for _ in 0..sessions_max / 4 {
            core.openings.note(now, *greedy.address.ip());
        }
        let open = |core: &mut Core, nonce, path| {
            let request = request_of(0, nonce, 0, Kind::OpenSession, b"");
            core.handle_request(now, request, path);
            let outputs = settle(core, now);
            outputs.iter().any(|output| matches!(output, Output::Drop { .. }))
        };
        assert!(!open(&mut core, 1, greedy), "there is room for everybody");
        core.note_sessions(sessions_max as usize / 2 + 1);
        assert!(open(&mut core, 2, greedy));
        let mut other = return_path(1);
        other.address.set_ip([10, 0, 0, 1].into());
        assert!(!open(&mut core, 3, other));
        // A retry of one that is ordered, and whatever is no opening, is not refused.
        assert!(!open(&mut core, 1, greedy));
        core.handle_request(now, request(9, 1), greedy);
        assert!(!settle(&mut core, now).iter().any(|it| matches!(it, Output::Drop { .. })));
    }

    #[test]
    fn a_leader_whose_clock_is_behind_says_so_and_log_time_does_not_go_back() {
        let mut core = leader(Settings::default());
        let now = elected_at();
        let mut order = |sequence, now, unix_us| {
            core.handle_request(now, request(9, sequence), return_path(1));
            core.flush(now, unix_us);
            (core.counters().clock_alarms, core.log.last_log_time_us())
        };
        assert_eq!(order(1, now, 9_000_000), (0, 9_000_000));
        assert_eq!(order(2, now, 8_000_000), (0, 9_000_000));
        assert_eq!(order(3, now, 7_999_999), (1, 9_000_000));
        assert_eq!(order(4, now, 7_999_999), (1, 9_000_000));
        assert_eq!(order(5, now + ALARM_AGAIN_AFTER, 7_999_999), (2, 9_000_000));
    }

    /// An entry of term 1 for replica 3, which replica 1, its leader now, has not applied.
    fn inherited(kind: Kind) -> (Core, Arc<Request>) {
        let request = request_of(9, 1, 1, kind, b"");
        let payload = Payload::Request { replier: NodeId(3), request: Arc::clone(&request) };
        let mut core = elected(Settings::default(), vec![noop(1)], |core| {
            // Replica 3 has stated a commit index to it.
            core.commit.answer_after(1);
            core.commit.state(1);
            core.append_to_log(entry(1, payload));
            core.log.set_return_path(2, return_path(1));
        });
        let reply = AppendReply { acknowledged: 3, ..AppendReply::default() };
        core.handle_message(elected_at(), envelope(2, 2, Message::AppendReply(reply)));
        core.flush(elected_at(), 0);
        assert_eq!(core.commit_index(), 3);
        (core, request)
    }

    #[test]
    fn a_new_leader_answers_what_a_dead_one_was_to_answer() {
        let (mut core, _) = inherited(Kind::Write);
        let answers = std::iter::from_fn(|| core.poll_apply());
        let answers: Vec<_> = answers.map(|committed| committed.answer_to).collect();
        assert_eq!(answers, [None, Some(return_path(1)), None]);
    }

    #[test]
    fn a_read_of_a_replier_that_this_leader_has_not_heard_of_is_ordered_again() {
        let (mut core, read) = inherited(Kind::Read);
        settle(&mut core, elected_at());
        core.handle_request(elected_at(), read, return_path(2));
        core.flush(elected_at(), 0);
        assert_eq!(core.counters().requests_ordered, 1);
    }

    #[test]
    fn a_read_that_was_executed_is_ordered_again_once_at_once_and_then_once_a_second() {
        let mut core = leader(Settings::default());
        let mut now = elected_at();
        let read = request_of(9, 1, 1, Kind::Read, b"");
        let mut ordered = Vec::new();
        for _ in 0..110 {
            core.handle_request(now, Arc::clone(&read), return_path(1));
            settle(&mut core, now);
            // Follower 2 holds everything, and the leader has applied it.
            let Role::Leader(leader) = &core.role else { panic!("it leads") };
            let (round, acknowledged) = (leader.round(), core.log.last());
            let applied = acknowledged;
            let reply = AppendReply { round, acknowledged, applied, ..AppendReply::default() };
            core.handle_message(now, envelope(2, 1, Message::AppendReply(reply)));
            settle(&mut core, now);
            ordered.push(core.counters().requests_ordered);
            now += Duration::from_millis(10);
            core.handle_timeout(now);
        }
        assert_eq!((ordered[0], ordered[1], ordered[2]), (1, 2, 2));
        assert_eq!((ordered[99], ordered[109]), (2, 3));
    }

    #[test]
    fn what_leaves_the_unordered_set_without_an_order_leaves_the_system() {
        // P24: two come for which the set has no room, and the others grow old in it.
        let mut core = leader(Settings::default());
        let now = elected_at();
        let limits = Limits { count: 10, bytes: 1 << 20, age: UNORDERED_AGE_MAX };
        core.unordered = Unordered::new(limits, 1);
        for sequence in 1..=12 {
            core.handle_request(now, request(9, sequence), return_path(1));
        }
        assert_eq!((core.unordered.len(), core.status().admitted), (10, 10));
        core.expire_unordered(now + UNORDERED_AGE_MAX);
        assert_eq!((core.unordered.len(), core.status().admitted), (0, 0));
    }
}
