//! The follower's half of replication: metadata in, acknowledgements out (P6, P8, P12, P15).

use std::{sync::Arc, time::Duration};

use r2p2::Time;

use crate::{
    core::{
        Conflict, Core, Output, Role, Timer,
        aggregation::{ByAggregator, Owed},
        binding::{Body, Content, Ordered},
        unordered::Waiting,
    },
    entry::{Configuration, Entry, Index, NodeId, Payload, Term},
    messages::{AppendEntries, AppendReply, Message, Metadata, Ordered as Meaning, WholeRequest},
    request::{Key, Request, ReturnPath},
};

/// A report of executions that nothing else carries is held back this long, so that the next
/// acknowledgement can carry it (P15).
const REPORT_AFTER: Duration = Duration::from_millis(1);

/// What this replica owes its leader.
#[derive(Debug, Default)]
pub(crate) struct Acknowledging {
    /// Something changed that the leader should know.
    is_due: bool,
    /// The last append-entries did not match: where the leader should go on.
    rejected_after: Option<Index>,
    /// The highest round seen of this leader.
    round: u64,
    /// The highest one that it sent to this replica itself; and the highest that was answered to it.
    round_sent: u64,
    round_answered: u64,
    /// What is owed to the aggregator (P28).
    pub(crate) owed: Option<Owed>,
    /// The acknowledged index that was last sent.
    sent: Index,
    /// The applied index that was last sent, and whether the service had stopped there.
    reported: Index,
    reported_poisoned: bool,
    reported_room: bool,
    leader_heard: Option<Time>,
}

impl Acknowledging {
    /// The acknowledged index may have moved, or a report is due.
    pub(crate) fn mark(&mut self) {
        self.is_due = true;
    }

    /// Notes what was said: the applied index, and what the service and the disk lack.
    pub(crate) fn reported(&mut self, applied: Index, poisoned: bool, lacks_room: bool) {
        (self.reported, self.reported_poisoned, self.reported_room) =
            (applied, poisoned, lacks_room);
    }

    pub(crate) fn leader_heard(&self) -> Option<Time> {
        self.leader_heard
    }

    /// The highest round of the leader that was heard of.
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// The leader gave a sign of life.
    pub(crate) fn heard(&mut self, now: Time) {
        self.leader_heard = Some(now);
    }

    pub(crate) fn forget_term(&mut self) {
        let Self { reported, reported_poisoned, reported_room, leader_heard, .. } = *self;
        *self =
            Self { reported, reported_poisoned, reported_room, leader_heard, ..Self::default() };
    }
}

impl Core {
    /// A client's request, whose order this replica does not know (P8).
    pub(super) fn request_at_follower(
        &mut self,
        now: Time,
        request: Arc<Request>,
        path: ReturnPath,
    ) {
        if !self.fits(&request) {
            return;
        }
        if let Some(index) = self.log.find(&request.key())
            && (!request.is_plain() || index > self.applied)
        {
            self.log.set_return_path(index, path);
            return;
        }
        let is_wanted = self.binding.wants(&request.key());
        self.unordered.insert_evicting(now, request, Some(path));
        if is_wanted {
            self.bind();
        }
    }

    /// The leader of this term sends entries, or says that it is there.
    pub(super) fn append_entries(
        &mut self,
        now: Time,
        from: NodeId,
        append: AppendEntries,
        by_aggregator: Option<ByAggregator>,
    ) {
        if self.is_leader() {
            // Two leaders of one term cannot be (a vote is synced before it is given).
            self.counters.messages_ignored += 1;
            return;
        }
        self.become_follower(now, Some(from));
        self.hear_leader(now);
        let round = append.round;
        let due = &mut self.acknowledging;
        due.round = due.round.max(round);
        if by_aggregator.is_none() {
            due.round_sent = due.round_sent.max(round);
            due.owed.iter_mut().for_each(Owed::leader_sent_directly);
        }
        self.ask_where_to_catch_up(now, from);
        self.tell_of_own_run(now, from);
        if self.snapshots.is_installing() {
            return;
        }
        let commit = append.commit;
        if planted!("answers-by-any-statement") {
            self.commit.answer_after(commit.max(append.noop));
        }
        if self.contradicts(append.previous_index, append.previous_term) {
            return;
        }
        self.note_distance(now, from, append.first_index, commit);
        match self.reject(now, &append) {
            Some(after) => {
                self.acknowledging.rejected_after = Some(after);
                self.acknowledging.is_due = true;
            }
            None => {
                self.acknowledging.rejected_after = None;
                self.accept(now, append);
                if let Some(by) = by_aggregator {
                    let owed = self.acknowledging.owed;
                    self.acknowledging.owed = Some(Owed::after(owed, by, round));
                }
            }
        }
        self.commit.state(commit);
        self.bind();
    }

    /// Moves entries from the front of the binding to the log while their bodies are here (P6).
    pub(super) fn bind(&mut self) {
        // The log stands still while a snapshot replaces it.
        if self.snapshots.is_installing() {
            return;
        }
        let before = self.log.last();
        if self.binding.front().is_none() {
            self.room.unblock();
        }
        while self.has_room_to_bind() && self.has_front() && self.has_room_for_front() {
            let ordered = self.binding.pop().expect("has_front() has seen it");
            let entry = self.complete(ordered);
            self.append_to_log(entry);
            if self.is_log_full() {
                // Perhaps this entry is known to be committed: then the others wait for it.
                self.advance_commit();
            }
        }
        if self.log.last() > before {
            self.acknowledging.is_due = true;
        }
        self.advance_commit();
    }

    /// Whether the entry that comes next in the log is here, with its body.
    pub(super) fn has_front(&self) -> bool {
        match self.binding.front().map(|front| &front.content) {
            None => false,
            Some(Content::Request { key, body: Body::Unknown, .. }) => {
                self.unordered.get(key).is_some() || self.log.find(key).is_some()
            }
            Some(Content::Request { key, body: Body::Partial(_), .. }) => {
                self.unordered.get(key).is_some()
            }
            Some(_) => true,
        }
    }

    /// Returns whether the log may grow. A full log waits for the application, for a snapshot or
    /// for the rest of a trim, which will make room; if there is nothing to wait for it grows on,
    /// because the entries of an old term that fill it are not committed before the no-op behind
    /// them is here. They are bounded by what a leader orders.
    pub(super) fn has_room_to_bind(&self) -> bool {
        let makes_room = self.applied < self.commit.index()
            || self.snapshots.makes_room()
            || self.snapshots.has_failed() && self.would_free_much();
        self.writing_bytes < self.settings.limits.writing_bytes
            && !(self.is_log_full() && makes_room)
    }

    /// Returns whether the disk has room for the entry that comes next, whose body is here: what
    /// metadata says of its length may be damaged. What a leader makes itself is behind all that
    /// stands in its way, and has room of its own (P38).
    fn has_room_for_front(&mut self) -> bool {
        // Mostly there is room for the largest one, and nothing is looked up.
        if self.has_room_for_any() {
            return self.has_room_for(0);
        }
        let request = match self.binding.front().map(|front| &front.content) {
            None => return false,
            Some(Content::Noop | Content::Configuration(_)) => return self.has_room_for_own(),
            Some(Content::Request { body: Body::Here(request, _), .. }) => Some(&**request),
            Some(Content::Request { key, .. }) => self.known_request(key),
        };
        let body_bytes = request.map_or(0, |request| request.body().len());
        self.has_room_for(Entry::size_bytes_of_body(body_bytes))
    }

    /// Returns a request that is in the unordered set or in the log.
    fn known_request(&self, key: &Key) -> Option<&Request> {
        let waiting = self.unordered.get(key).map(|waiting| &*waiting.request);
        waiting.or_else(|| Some(&**self.log.entry(self.log.find(key)?)?.request()?))
    }

    /// Sends what the leader should know, once for everything in this turn.
    pub(super) fn acknowledge(&mut self, now: Time) {
        let Role::Follower { leader: Some(leader) } = self.role else {
            return;
        };
        if !self.may_acknowledge() {
            return;
        }
        self.acknowledge_to_aggregator(now);
        let due = &mut self.acknowledging;
        let is_news = std::mem::take(&mut due.is_due);
        let rejected_after = due.rejected_after.take();
        let is_round = due.round_sent > due.round_answered;
        let told = due.owed.map_or(due.sent, |owed| due.sent.max(owed.covers()));
        let has_moved = self.acknowledged() > told;
        let has_applied = self.applied > self.acknowledging.reported
            || self.is_poisoned != self.acknowledging.reported_poisoned
            || self.lacks_room() != self.acknowledging.reported_room;
        if is_round || rejected_after.is_some() || (is_news && (has_moved || has_applied)) {
            self.send_append_reply(now, leader, rejected_after);
        }
    }

    pub(super) fn send_append_reply(
        &mut self,
        now: Time,
        to: NodeId,
        rejected_after: Option<Index>,
    ) {
        if !self.may_acknowledge() {
            // It is said when the leader knows this run.
            let due = &mut self.acknowledging;
            due.rejected_after = rejected_after.or(due.rejected_after);
            return;
        }
        let acknowledged = self.acknowledged();
        let round = self.acknowledging.round;
        let (applied, poisoned, lacks_room) = (self.applied, self.is_poisoned, self.lacks_room());
        self.acknowledging.sent = acknowledged;
        self.acknowledging.reported(applied, poisoned, lacks_room);
        self.acknowledging.round_answered = round;
        self.timers.stop(Timer::Report);
        let standstill = self.standstill();
        let disk_wait_us = self.disk_wait_us(now);
        let reply = AppendReply {
            round,
            acknowledged,
            applied,
            poisoned,
            rejected_after,
            standstill,
            disk_wait_us,
            lacks_room,
        };
        self.send(to, Message::AppendReply(reply));
    }

    /// The application has moved: tell the leader now, soon, or with the next acknowledgement.
    pub(super) fn report_applied(&mut self, now: Time) {
        if self.is_leader() {
            self.report_own(now);
            return;
        }
        let unreported = self.applied - self.acknowledging.reported.min(self.applied);
        if unreported >= (self.settings.queue_bound as u64 / 4).max(1) {
            self.acknowledging.is_due = true;
        } else if unreported > 0 {
            self.timers.ensure(Timer::Report, now + REPORT_AFTER);
        }
    }

    /// Whether a request is small enough to be replicated (P4).
    pub(super) fn fits(&self, request: &Request) -> bool {
        let max = self.configurations.current().limits.request_bytes_max;
        request.body().len() <= max as usize
    }

    /// The end of the metadata that follows the log.
    pub(super) fn ordered_last(&self) -> Index {
        self.log.last() + self.binding.len() as Index
    }

    /// The highest index that this replica may acknowledge (P6).
    pub(super) fn acknowledged(&self) -> Index {
        if planted!("ack-before-body") {
            return self.commit.verified();
        }
        if planted!("ack-before-sync") {
            return self.commit.verified().min(self.log.last());
        }
        self.commit.verified().min(self.log.last()).min(self.held_index())
    }

    /// Where the leader should go on if its message does not match.
    fn reject(&mut self, now: Time, append: &AppendEntries) -> Option<Index> {
        let previous = append.previous_index;
        if previous > self.ordered_last() {
            return Some(self.ordered_last());
        }
        let commit = self.commit.index();
        if previous <= commit {
            return None;
        }
        let term = self.ordered_term(previous);
        if term == Some(append.previous_term) {
            return None;
        }
        // Everything of the term that differs is suspect; what is committed is not.
        let mut after = previous - 1;
        while after > commit && self.ordered_term(after) == term {
            after -= 1;
        }
        // What is known to differ goes at once (P8). If it stayed, and the leader had trimmed all
        // that is below it, the two logs could never be compared.
        if !planted!("suspects-stay") {
            self.remove_from(now, previous);
        }
        Some(after)
    }

    /// The term at an index of the log or of the metadata behind it.
    pub(super) fn ordered_term(&self, index: Index) -> Option<Term> {
        if index <= self.log.last() {
            return self.log.term(index);
        }
        self.binding.term((index - self.log.last() - 1) as usize)
    }

    /// Takes the entries of a message that matched.
    fn accept(&mut self, now: Time, append: AppendEntries) {
        let mut configurations = append.configurations.into_iter();
        let mut requests = append.requests.into_iter().peekable();
        let mut last = append.previous_index;
        for (position, metadata) in append.entries.iter().enumerate() {
            let index = append.previous_index + 1 + position as Index;
            let request = requests.next_if(|(at, _)| usize::from(*at) == position);
            let Some(meaning) = metadata.ordered() else {
                break;
            };
            let configuration = match meaning {
                Meaning::Configuration => {
                    let Some(configuration) = configurations.next() else {
                        break;
                    };
                    Some(configuration)
                }
                Meaning::Noop | Meaning::Request { .. } => None,
            };
            let term = append.entries_term;
            match self.ordered_term(index) {
                _ if index <= self.commit.index() => {
                    if self.contradicts(index, term) {
                        return;
                    }
                }
                Some(known) if known == term => self.fill_carried(index, request),
                Some(_) => {
                    self.remove_from(now, index);
                    let ordered =
                        ordered(metadata, meaning, configuration, term, append.log_time_us);
                    self.remember(index, ordered, request);
                }
                None => {
                    let ordered =
                        ordered(metadata, meaning, configuration, term, append.log_time_us);
                    if !self.remember(index, ordered, request) {
                        break;
                    }
                }
            }
            last = index;
        }
        self.commit.verify(last);
    }

    /// Whether the leader has an entry of another term at an index that is committed here: then
    /// this replica stops (P38).
    fn contradicts(&mut self, index: Index, term: Term) -> bool {
        let here = self.log.term(index).filter(|_| index <= self.commit.index());
        let contradicts = here.is_some_and(|here| here != term);
        if contradicts {
            let conflict = Conflict { index, term: self.term() };
            self.outputs.push_back(Output::Stop(conflict));
        }
        contradicts
    }

    /// Puts metadata behind the log; false if there is no room.
    pub(super) fn remember(
        &mut self,
        index: Index,
        ordered: Ordered,
        request: Option<(u16, WholeRequest)>,
    ) -> bool {
        assert_eq!(index, self.ordered_last() + 1, "metadata follows the log without a gap");
        let position = self.binding.len();
        if position == 0 && self.append_at_once(&ordered) {
            return true;
        }
        if !self.binding.push(index, ordered) {
            return false;
        }
        self.fill_carried(index, request);
        true
    }

    /// Takes the request that came with metadata, if its body is missing.
    pub(super) fn fill_carried(&mut self, index: Index, request: Option<(u16, WholeRequest)>) {
        if let Some((_, whole)) = request {
            let done = self.fill(index, 0, &whole);
            self.counters.bodies_carried += u64::from(done);
        }
    }

    /// What comes next in the log and has its body here, as almost always, needs no place in the
    /// binding (P6). Returns whether it was that.
    fn append_at_once(&mut self, ordered: &Ordered) -> bool {
        let Content::Request { key, replier, .. } = ordered.content else {
            return false;
        };
        if !self.has_room_to_bind() || !self.has_room_for_any() {
            return false;
        }
        let Some(Waiting { request, return_path, .. }) = self.unordered.take(&key) else {
            return false;
        };
        let Ordered { term, log_time_us, session_delta_us, .. } = *ordered;
        let payload = Payload::Request { replier, request };
        self.append_to_log(Entry { term, log_time_us, session_delta_us, payload, return_path });
        self.acknowledging.is_due = true;
        true
    }

    /// Truncates at a conflict at once, bodies or not (P8).
    pub(super) fn remove_from(&mut self, now: Time, index: Index) {
        let last = self.log.last();
        let position = index.saturating_sub(last + 1) as usize;
        let unordered = &mut self.unordered;
        self.binding.truncate(position, |request| {
            unordered.insert_evicting(now, request, None);
        });
        self.commit.unverify(index - 1);
        let index = if planted!("truncate-off-by-one") { index + 1 } else { index };
        if index <= last {
            self.truncate_log(now, index);
        }
    }

    /// An entry whose body is here.
    fn complete(&mut self, ordered: Ordered) -> Entry {
        let Ordered { term, log_time_us, session_delta_us, content } = ordered;
        let term = if planted!("metadata-across-terms") { self.term() } else { term };
        let mut return_path = None;
        let payload = match content {
            Content::Noop => Payload::Noop,
            Content::Configuration(configuration) => Payload::Configuration(configuration),
            Content::Request { key, replier, body, .. } => {
                let request = match (body, self.unordered.take(&key)) {
                    (_, Some(waiting)) => {
                        return_path = waiting.return_path;
                        waiting.request
                    }
                    (Body::Here(request, path), None) => {
                        return_path = path;
                        request
                    }
                    (Body::Unknown | Body::Partial(_), None) => {
                        // The same request was ordered twice.
                        let index = self.log.find(&key).expect("the caller has seen it");
                        let entry = self.log.entry(index).expect("find() names what is there");
                        return_path = entry.return_path;
                        Arc::clone(entry.request().expect("only requests are found by key"))
                    }
                };
                Payload::Request { replier, request }
            }
        };
        Entry { term, log_time_us, session_delta_us, payload, return_path }
    }
}

/// Metadata as it is remembered.
pub(super) fn ordered(
    metadata: &Metadata,
    meaning: Meaning,
    configuration: Option<Configuration>,
    term: Term,
    base_time_us: u64,
) -> Ordered {
    let content = match (meaning, configuration) {
        (Meaning::Request { key, body_len, replier }, _) => {
            Content::Request { key, body_len, replier, body: Body::Unknown }
        }
        (Meaning::Configuration, Some(configuration)) => {
            Content::Configuration(Arc::new(configuration))
        }
        (Meaning::Noop | Meaning::Configuration, _) => Content::Noop,
    };
    Ordered {
        term,
        log_time_us: metadata.log_time_us(base_time_us),
        session_delta_us: metadata.session_delta_us(),
        content,
    }
}
