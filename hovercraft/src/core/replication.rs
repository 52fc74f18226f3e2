//! The leader's half of replication: who holds what, and what to send to whom (P5, P14).

use std::{collections::VecDeque, time::Duration};

use r2p2::Time;

use crate::{
    core::{
        Core, Mode, Role, Timer,
        aggregation::{Aggregation, Direct},
        pacing::RoundTrip,
        recovering::Confirmations,
        replier::Repliers,
        runs::Runs,
        standstill::Watch,
    },
    entry::{Entry, Incarnation, Index, Member, NodeId, Payload, Term, position_of},
    messages::{
        AppendEntries, AppendReply, Message, Metadata, PART_BYTES_MAX, Progress, WholeRequest,
    },
};

/// Session time moves by at most this much from one entry to the next (P22).
const SESSION_DELTA_MAX: Duration = Duration::from_secs(1);

/// What only a leader keeps.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) followers: Vec<Follower>,
    pub(crate) repliers: Repliers,
    /// The no-op of this term (P10).
    pub(crate) noop: Index,
    /// When the previous entry was appended, as far as session time counts it (P22).
    appended_at: Time,
    /// When it last said that log time is ahead of its clock (P22).
    pub(crate) alarmed_at: Option<Time>,
    pub(crate) confirmations: Confirmations,
    pub(crate) aggregation: Aggregation,
    /// How often what a follower has acknowledged may have changed.
    pub(crate) moves: u64,
    /// A follower whose disk has no room for what comes next, if there is one (P38).
    pub(crate) lacking_room: Option<NodeId>,
    pub(crate) round: u64,
    /// The first one whose answers an aggregator counts (P37).
    pub(crate) first_round: u64,
    /// When each round that may still be answered was sent.
    rounds: VecDeque<(u64, Time)>,
}

/// The leader's view of another replica's log.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) node: NodeId,
    /// The life that `matched` is of.
    pub(crate) incarnation: Option<Incarnation>,
    /// The highest index that it acknowledged in this term.
    pub(crate) matched: Index,
    /// Its service has stopped (P42).
    is_poisoned: bool,
    /// Longest wait of late for its disk, as it last said (P38).
    disk_wait: Duration,
    /// Its disk has no room for what comes next (P38).
    lacks_room: bool,
    /// The leader's knowledge of its runs (P37).
    pub(crate) runs: Runs,
    /// The next index to send.
    pub(crate) next: Index,
    /// The highest commit index that was sent.
    pub(crate) commit_sent: Index,
    /// The newest round that it answered.
    pub(crate) round: u64,
    /// When the newest round that it answered was sent.
    pub(crate) answered: Time,
    /// When it last answered a newer round, whichever incarnation did; and how long that takes.
    heard: Time,
    round_trip: RoundTrip,
    /// What was sent was sent again: one message at a time, until `matched` moves.
    is_probed: bool,
    /// When `matched` last moved, or something was first sent after it caught up.
    pub(crate) progressed: Time,
    /// Where it says that it waits.
    pub(crate) watch: Watch,
    /// None if it gets everything by way of the aggregator (P26).
    pub(crate) direct: Option<Direct>,
    /// Entries last sent again because it said so: what was on its way meanwhile is rejected too,
    /// and must not make the leader send everything again.
    rewound: Option<Rewound>,
}

/// Entries that are sent again, and since when.
#[derive(Debug, Clone, Copy)]
struct Rewound {
    from: Index,
    to: Index,
    at: Time,
}

impl Follower {
    /// Goes back to the entry that it says is next, unless that is on its way again. Messages that
    /// overtake each other are rejected with different indices, the older ones after the newer. If
    /// each made the leader send everything from there, each rejected message would bring many.
    fn rewind(&mut self, now: Time, next: Index, pause: Duration) {
        let sent = self.next - 1;
        let recent = self.rewound.filter(|it| now.since(it.at) < pause);
        if recent.is_some_and(|it| (it.from..=it.to).contains(&next)) {
            return;
        }
        let (from, to) = recent.map_or((next, next), |it| (it.from, it.to));
        let (from, to) = (from.min(next), to.max(next).max(sent));
        self.rewound = Some(Rewound { from, to, at: now });
        self.next = next;
        self.is_probed = false;
    }
}

impl Leader {
    pub(crate) fn new(
        now: Time,
        others: impl Iterator<Item = NodeId>,
        repliers: Repliers,
        noop: Index,
    ) -> Self {
        let follower = |node| Follower {
            node,
            incarnation: None,
            matched: 0,
            is_poisoned: false,
            disk_wait: Duration::ZERO,
            lacks_room: false,
            runs: Runs::default(),
            next: noop,
            commit_sent: 0,
            round: 0,
            answered: now,
            heard: now,
            round_trip: RoundTrip::default(),
            is_probed: false,
            progressed: now,
            watch: Watch::default(),
            direct: Some(Direct::UNTIL_HEARD),
            rewound: None,
        };
        Self {
            followers: others.map(follower).collect(),
            repliers,
            noop,
            appended_at: now,
            alarmed_at: None,
            confirmations: Confirmations::default(),
            aggregation: Aggregation::default(),
            moves: 0,
            lacking_room: None,
            round: 0,
            first_round: 0,
            rounds: VecDeque::new(),
        }
    }

    /// The session time of an entry that is appended now, in whole microseconds. What it lacks of the
    /// true time the next one has, so that session time does not stand still under load (P22).
    pub(crate) fn session_delta_us(&mut self, now: Time) -> u32 {
        let since = now.since(self.appended_at);
        if since >= SESSION_DELTA_MAX {
            self.appended_at = now;
            return SESSION_DELTA_MAX.as_micros() as u32;
        }
        let delta_us = since.as_micros() as u32;
        self.appended_at += Duration::from_micros(delta_us.into());
        delta_us
    }

    /// What a member acknowledged, if it was this life of it (P39).
    pub(crate) fn matched(&self, member: &Member) -> Index {
        let follower = self.follower(member.id);
        follower
            .filter(|follower| follower.incarnation == Some(member.incarnation))
            .map_or(0, |follower| follower.matched)
    }

    /// Whether a member answered a round that was sent after `since`.
    pub(crate) fn answered_since(&self, member: &Member, since: Time) -> bool {
        self.follower(member.id).is_some_and(|follower| follower.answered >= since)
    }

    /// Whether a member last said that its service has stopped (P42).
    pub(crate) fn is_poisoned(&self, member: &Member) -> bool {
        self.follower(member.id).is_some_and(|follower| follower.is_poisoned)
    }

    /// Returns whether a member last said that its disk has no room for what comes next (P38).
    pub(crate) fn lacks_room(&self, member: &Member) -> bool {
        self.follower(member.id).is_some_and(|follower| follower.lacks_room)
    }

    /// A follower has said that it lacks room, or that it does no more.
    fn note_lacking_room(&mut self) {
        let mut lacking = self.followers.iter().filter(|follower| follower.lacks_room);
        self.lacking_room = lacking.next().map(|follower| follower.node);
    }

    /// Longest wait of late for a member's disk, as it last said (P38).
    pub(crate) fn disk_wait(&self, member: &Member) -> Duration {
        self.follower(member.id).map_or(Duration::MAX, |follower| follower.disk_wait)
    }

    /// Begins a round: whoever answers it has heard of the leader after `now`.
    pub(crate) fn begin_round(&mut self, now: Time) -> u64 {
        const ROUNDS_MAX: usize = 256;
        self.round += 1;
        self.rounds.push_back((self.round, now));
        if self.rounds.len() > ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.round
    }

    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    pub(crate) fn round_sent_at(&self, round: u64) -> Option<Time> {
        // Rounds are counted without gaps.
        let (first, _) = self.rounds.front()?;
        let position = usize::try_from(round.checked_sub(*first)?).ok()?;
        self.rounds.get(position).map(|(_, at)| *at)
    }

    pub(crate) fn follower(&self, node: NodeId) -> Option<&Follower> {
        position_of(&self.followers, node, |it| it.node).map(|at| &self.followers[at])
    }

    pub(crate) fn follower_mut(&mut self, node: NodeId) -> Option<&mut Follower> {
        position_of(&self.followers, node, |it| it.node).map(|at| &mut self.followers[at])
    }
}

impl Follower {
    /// It has heard of the leader; if it counts, of a round that was sent then.
    pub(crate) fn has_heard(&mut self, now: Time, sent_at: Option<Time>) {
        self.heard = now;
        self.answered = sent_at.map_or(self.answered, |sent_at| self.answered.max(sent_at));
    }

    /// It acknowledges everything up to an index; returns whether that is news.
    pub(crate) fn hold(&mut self, now: Time, index: Index) -> bool {
        let has_moved = index > self.matched;
        if has_moved {
            self.matched = index;
            self.next = self.next.max(index + 1);
            self.progressed = now;
            self.is_probed = false;
            self.watch.passed(now, self.node, index);
        }
        has_moved
    }

    /// Whether it has said all of this but how far it is.
    pub(crate) fn has_said(&self, incarnation: Incarnation, progress: &Progress) -> bool {
        let Progress { round, poisoned, lacks_room, .. } = *progress;
        self.incarnation == Some(incarnation)
            && (self.round, self.is_poisoned, self.lacks_room) == (round, poisoned, lacks_room)
    }
}

impl Core {
    pub(super) fn become_leader(&mut self, now: Time) {
        let noop = self.log.last() + 1;
        tracing::info!(term = self.term(), noop, "leader");
        self.counters.elections_won += 1;
        // Its own log is this term's log by definition (P6).
        self.commit.verify(self.log.last());
        self.answer_for_the_dead();
        self.commit.state_as_leader(noop);
        let members = self.configurations.current().members.clone();
        let lag_max = self.lag_max();
        let settings = &self.settings;
        let repliers = Repliers::from_log(
            members.iter().map(|member| member.id),
            self.node,
            &self.log,
            if settings.mode == Mode::Raft { super::Policy::Leader } else { settings.policy },
            settings.queue_bound,
            lag_max,
        );
        let others = members.iter().map(|member| member.id).filter(|id| *id != self.node);
        let leader = Leader::new(now, others, repliers, noop);
        self.role = Role::Leader(Box::new(leader));
        self.timers.stop(Timer::Election);
        self.timers.stop(Timer::Report);
        self.patience.renew();
        self.timers.set(Timer::CheckQuorum, now + self.settings.timing.election_max);
        self.timers.set(Timer::Resend, now + self.resend_after());
        if !planted!("no-noop") {
            self.append_own(now, Payload::Noop);
        }
        self.adopt_leftovers(now);
        self.report_own(now);
        self.heartbeat(now);
    }

    pub(super) fn stop_leading(&mut self) {
        self.timers.stop(Timer::Heartbeat);
        self.timers.stop(Timer::CheckQuorum);
        self.timers.stop(Timer::Resend);
        self.timers.stop(Timer::Aggregator);
        self.admission.clear();
    }

    /// Begins a round and tells every follower that the leader is there.
    pub(super) fn heartbeat(&mut self, now: Time) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.begin_round(now);
        self.timers.set(Timer::Heartbeat, now + self.settings.timing.heartbeat);
        if self.is_quorum_heard(now) {
            self.patience.renew();
        }
        self.exclude_silent_repliers(now);
        self.give_way_to_disks(now);
        self.serve_the_unreached(now);
        self.send_round();
    }

    /// Sends an empty append-entries, which carries the round and the commit index, to everyone.
    pub(super) fn send_round(&mut self) {
        self.send_round_by_aggregator();
        for position in 0.. {
            let Role::Leader(leader) = &self.role else {
                return;
            };
            let Some(follower) = leader.followers.get(position) else {
                return;
            };
            let node = follower.node;
            if leader.is_served_by_aggregator(node) {
                continue;
            }
            // What one that is far behind has fetched from others only it knows: a message from
            // above its log makes it say where to go on. If it needs what is trimmed, the first
            // place where the two logs can be compared is what it must hear of.
            let next = follower.next;
            let is_trimmed = next < self.log.first();
            let is_above = !is_trimmed && self.is_far_behind(next);
            self.send_entries(node, if is_above { self.log.last() + 1 } else { next }, 0);
        }
    }

    /// Sends what each follower lacks, and the commit index to whom it matters now (P14).
    pub(super) fn replicate(&mut self, now: Time) {
        self.replicate_by_aggregator(now);
        let mut position = 0;
        loop {
            let Role::Leader(leader) = &self.role else {
                return;
            };
            // Mostly nobody lacks anything, above all where the aggregator serves them.
            let (last, commit) = (self.log.last(), self.commit.index());
            let lacks = |it: &Follower| it.next <= last || it.commit_sent < commit;
            let Some(after) = leader.followers[position..].iter().position(lacks) else {
                return;
            };
            position += after;
            while self.send_next(now, position) {}
            let Role::Leader(leader) = &self.role else {
                return;
            };
            let follower = &leader.followers[position];
            // A replica that answers none of what was committed learns of it with the next
            // entries or the next heartbeat.
            let (node, next, sent) = (follower.node, follower.next, follower.commit_sent);
            let commit = self.commit.index();
            if sent < commit && leader.repliers.has_between(node, sent, commit) {
                self.counters.commits_announced += 1;
                self.send_entries(node, next, 0);
            }
            position += 1;
        }
    }

    pub(super) fn append_replied(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        reply: &AppendReply,
    ) {
        if self.is_of_earlier_run((from, incarnation), reply.round) {
            return;
        }
        if let Some(after) = reply.rejected_after {
            self.serve_directly(from, after);
        }
        let patience = self.settings.timing.election_max;
        if let Role::Leader(leader) = &mut self.role
            && let Some(follower) = leader.follower_mut(from)
        {
            follower.watch.note(now, from, reply.standstill, patience);
        }
        if self.take_reply(now, from, incarnation, reply) {
            self.advance_commit();
        }
        self.give_way(now);
    }

    /// Takes note of what a follower says; returns whether that may move the commit index.
    pub(super) fn take_reply(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        reply: &AppendReply,
    ) -> bool {
        // An incarnation that is disowned does not get here.
        let counted = self.is_member(from, incarnation);
        let last = self.log.last();
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let sent_at = leader.round_sent_at(reply.round);
        leader.moves += 1;
        let Some(follower) = leader.follower_mut(from) else {
            return false;
        };
        let before = follower.incarnation.replace(incarnation);
        if before.is_some_and(|before| before != incarnation) {
            // Another life of the disk: nothing that the earlier one acknowledged holds (P37).
            follower.matched = 0;
            follower.next = follower.next.min(reply.acknowledged + 1);
        }
        // What was said before comes again, perhaps by way of an aggregator.
        let is_old = reply.round < follower.round;
        let is_new_round = reply.round > follower.round;
        let is_news_of_room = !is_old && follower.lacks_room != reply.lacks_room;
        if !is_old {
            (follower.is_poisoned, follower.round) = (reply.poisoned, reply.round);
            follower.disk_wait = Duration::from_micros(reply.disk_wait_us);
            follower.lacks_room = reply.lacks_room;
        }
        if let Some(sent_at) = sent_at {
            if is_new_round {
                // On a slow link a round is old when its answer comes, and the follower alive.
                follower.heard = now;
                follower.round_trip.sample(now.since(sent_at));
            }
            if counted {
                let dated = if planted!("answers-dated-by-arrival") { now } else { sent_at };
                follower.answered = follower.answered.max(dated);
            }
        }
        // A follower cannot hold more than the leader; if it says so, it is not believed.
        let has_moved = follower.hold(now, reply.acknowledged.min(last));
        if let Some(after) = reply.rejected_after {
            self.counters.appends_rejected += 1;
            let next = (after.min(last) + 1).max(follower.matched + 1);
            // What was sent again needs a round trip to be of use.
            let round_trip = follower.round_trip.smoothed();
            let pause = (self.settings.timing.heartbeat / 4).max(round_trip);
            follower.rewind(now, next, pause);
        }
        if is_news_of_room {
            leader.note_lacking_room();
        }
        if counted {
            let admission = &mut self.admission;
            if !is_old {
                leader.repliers.exclude(from, reply.poisoned);
            }
            let release = |identity: &_| {
                admission.release(identity);
            };
            // Nor has it applied more than that.
            let report = (reply.round, reply.applied.min(last));
            leader.repliers.report(now, from, report, release);
        }
        self.round_answered(from, incarnation, reply.round);
        has_moved && counted
    }

    /// Sends again from where the acknowledgements of a follower stopped.
    pub(super) fn resend(&mut self, now: Time) {
        let (last, after) = (self.log.last(), self.resend_after());
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        for follower in &mut leader.followers {
            let is_waiting = follower.matched + 1 < follower.next.min(last + 1);
            let is_left_alone = planted!("agg-dead-link") && follower.direct.is_none();
            let after = after.max(follower.round_trip.smoothed() * 2);
            if is_waiting && now.since(follower.progressed) >= after && !is_left_alone {
                self.counters.resends += 1;
                if planted!("rechoose-replier")
                    && let Some(slot) = self.log.slot_mut(follower.matched + 1)
                    && let Payload::Request { replier, .. } = &mut slot.entry.payload
                {
                    *replier = follower.node;
                }
                follower.next = follower.matched + 1;
                follower.progressed = now;
                follower.is_probed = true;
            }
        }
        self.timers.set(Timer::Resend, now + after);
    }

    /// How long acknowledgements may stand still. What was lost is usually noticed by the follower,
    /// which rejects what comes after it.
    fn resend_after(&self) -> Duration {
        self.settings.timing.heartbeat * 4
    }

    fn exclude_silent_repliers(&mut self, now: Time) {
        let silence = self.settings.timing.election_min;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        for member in &self.configurations.current().members {
            let Some(follower) = leader.follower(member.id) else {
                continue;
            };
            let is_recovering = follower.incarnation != Some(member.incarnation);
            let is_silent = now.since(follower.answered) > silence;
            let answers = !is_recovering && !is_silent && !follower.is_poisoned;
            leader.repliers.exclude(member.id, !answers);
        }
    }

    /// Whether a follower that needs the entries from `next` on is to fetch them elsewhere (P9).
    fn is_far_behind(&self, next: Index) -> bool {
        next + self.settings.limits.bulk_distance <= self.commit.index() || next < self.log.first()
    }

    /// Sends the next entries to the follower at a position; false if there is nothing to send.
    fn send_next(&mut self, now: Time, position: usize) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        let Follower { node, next, matched, heard, is_probed, .. } = leader.followers[position];
        if next > self.log.last() {
            return false;
        }
        // One that answers no heartbeat gets nothing else; nor does one get everything again and
        // again whose disk is slow.
        let is_silent = now.since(heard) > self.settings.timing.election_min;
        let limits = &self.settings.limits;
        let is_full = if is_probed {
            next > matched + 1
        } else {
            next > matched + limits.pipeline_entries
                || self.bodies_between(matched, next) > limits.pipeline_bytes
        };
        if is_silent || is_full || self.is_far_behind(next) {
            return false;
        }
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        if matched + 1 == next {
            leader.followers[position].progressed = now;
        }
        let sent = self.send_entries(node, next, self.settings.limits.message_entries);
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        leader.followers[position].next += sent as Index;
        sent > 0
    }

    /// The bytes of the bodies that were sent to a follower and not acknowledged.
    fn bodies_between(&self, matched: Index, next: Index) -> u64 {
        match self.settings.mode {
            Mode::Raft => self.log.bytes_through(next - 1) - self.log.bytes_through(matched),
            Mode::HovercRaft | Mode::HovercRaftPlusPlus => 0,
        }
    }

    /// Sends up to `count_max` entries from `next` on; returns how many.
    fn send_entries(&mut self, to: NodeId, next: Index, count_max: usize) -> usize {
        let Some(append) = self.append_from(next, count_max) else {
            return 0;
        };
        if let Role::Leader(leader) = &mut self.role
            && let Some(follower) = leader.follower_mut(to)
        {
            follower.commit_sent = follower.commit_sent.max(append.commit);
        }
        let count = append.entries.len();
        self.send(to, Message::AppendEntries(append));
        count
    }

    /// Up to `count_max` entries from `next` on; nothing if this replica does not lead.
    pub(super) fn append_from(&mut self, next: Index, count_max: usize) -> Option<AppendEntries> {
        // Below the trim point nothing can be compared; a message from above the follower's log
        // makes it say where it is and fetch what it lacks (P9).
        let next = next.max(self.log.first());
        let previous_term = self.log.term(next - 1).expect("next is in the log or right behind it");
        let with_bodies = self.settings.mode == Mode::Raft;
        let count = count_max.min((self.log.last() + 1 - next) as usize);
        let mut batch = Batch::new(with_bodies.then_some(PART_BYTES_MAX), count);
        for (_, entry) in self.log.entries_from(next).take(count) {
            if !batch.push(entry) {
                break;
            }
        }
        let Role::Leader(leader) = &self.role else {
            return None;
        };
        let (round, noop) = (leader.round(), leader.noop);
        self.counters.entries_sent += batch.entries.len() as u64;
        Some(AppendEntries {
            previous_index: next - 1,
            previous_term,
            commit: self.commit.index(),
            noop,
            first_index: self.log.first(),
            round,
            entries_term: batch.term.unwrap_or(self.term()),
            log_time_us: batch.log_time_us,
            entries: batch.entries,
            configurations: batch.configurations,
            requests: batch.requests,
        })
    }
}

/// Entries of one term, on their way into a message.
struct Batch {
    term: Option<Term>,
    log_time_us: u64,
    entries: Vec<Metadata>,
    configurations: Vec<crate::entry::Configuration>,
    requests: Vec<(u16, WholeRequest)>,
    /// Bytes of bodies in one message; none if bodies travel otherwise.
    bodies_max: Option<usize>,
    bytes: usize,
}

impl Batch {
    /// With room for so many entries.
    fn new(bodies_max: Option<usize>, count: usize) -> Self {
        Self {
            term: None,
            log_time_us: 0,
            entries: Vec::with_capacity(count),
            configurations: Vec::new(),
            requests: Vec::new(),
            bodies_max,
            bytes: 0,
        }
    }

    /// Returns false if the entry must go into another message.
    fn push(&mut self, entry: &Entry) -> bool {
        if self.term.is_none() {
            self.log_time_us = entry.log_time_us;
        }
        if *self.term.get_or_insert(entry.term) != entry.term {
            return false;
        }
        let Some(metadata) = Metadata::of(entry, self.log_time_us) else {
            return false;
        };
        match &entry.payload {
            Payload::Configuration(configuration) => {
                self.configurations.push(configuration.as_ref().clone());
            }
            Payload::Request { request, .. } => {
                let len = request.body().len();
                if self.bodies_max.is_some_and(|max| self.bytes > 0 && self.bytes + len > max) {
                    return false;
                }
                if self.bodies_max.is_some_and(|max| len <= max) {
                    let position = self.entries.len() as u16;
                    let whole = WholeRequest::new(request, entry.return_path);
                    self.requests.push((position, whole));
                    self.bytes += len;
                }
            }
            Payload::Noop => {}
        }
        self.entries.push(metadata);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        Limits, Output, Settings,
        testing::{elected_at, envelope, leader, request, return_path, settle},
    };

    /// What the leader sends, with a follower 2 that acknowledges everything; returns how many
    /// entries go to follower 3.
    fn exchange(core: &mut Core, now: Time) -> usize {
        let mut count = 0;
        loop {
            core.handle_timeout(now);
            let appends: Vec<_> = settle(core, now)
                .into_iter()
                .filter_map(|output| match output {
                    Output::Send { to, envelope } => match envelope.message {
                        Message::AppendEntries(append) => Some((to, append)),
                        _ => None,
                    },
                    _ => None,
                })
                .collect();
            if appends.is_empty() {
                return count;
            }
            for (to, append) in appends {
                if to == NodeId(3) {
                    count += append.entries.len();
                    continue;
                }
                let acknowledged = append.previous_index + append.entries.len() as Index;
                let round = append.round;
                let reply = AppendReply { round, acknowledged, ..AppendReply::default() };
                core.handle_message(now, envelope(2, 1, Message::AppendReply(reply)));
            }
        }
    }

    #[test]
    fn session_time_keeps_up_however_many_entries_there_are_in_a_microsecond() {
        let mut core = leader(Settings::default());
        let Role::Leader(leader) = &mut core.role else { panic!("it leads") };
        let mut now = leader.appended_at;
        let mut sum_us = 0;
        for _ in 0..10_000 {
            now += Duration::from_nanos(300);
            sum_us += leader.session_delta_us(now);
        }
        assert_eq!(sum_us, 3000);
        assert_eq!(leader.session_delta_us(now + Duration::from_secs(9)), 1_000_000);
        assert_eq!(leader.session_delta_us(now + Duration::from_secs(9)), 0);
    }

    #[test]
    fn rejections_of_messages_that_overtook_each_other_bring_the_entries_once() {
        let mut core = leader(Settings::default());
        let now = elected_at();
        exchange(&mut core, now);
        for sequence in 1..=1000 {
            core.handle_request(now, request(9, sequence), return_path(1));
        }
        exchange(&mut core, now);
        let mut again = 0;
        for after in [10, 12].into_iter().cycle().take(100) {
            let Role::Leader(leader) = &core.role else { panic!("it leads") };
            let (round, rejected_after) = (leader.round(), Some(after));
            let reply = AppendReply { round, rejected_after, ..AppendReply::default() };
            core.handle_message(now, envelope(3, 1, Message::AppendReply(reply)));
            again += exchange(&mut core, now);
        }
        assert!(again <= 1000, "{again} entries again");
        // What was sent since is new.
        core.handle_request(now, request(9, 1001), return_path(1));
        core.handle_request(now, request(9, 1002), return_path(1));
        exchange(&mut core, now);
        let Role::Leader(leader) = &core.role else { panic!("it leads") };
        let (round, after) = (leader.round(), core.log.last() - 1);
        let reply = AppendReply { round, rejected_after: Some(after), ..AppendReply::default() };
        core.handle_message(now, envelope(3, 1, Message::AppendReply(reply)));
        assert_eq!(exchange(&mut core, now), 1);
    }

    #[test]
    fn a_follower_that_does_not_acknowledge_is_not_sent_everything_again_and_again() {
        for answers_rounds in [false, true] {
            let mut core = leader(Settings { mode: Mode::Raft, ..Settings::default() });
            let mut now = elected_at();
            exchange(&mut core, now);
            for sequence in 1..=1000 {
                core.handle_request(now, request(9, sequence), return_path(1));
            }
            exchange(&mut core, now);
            let mut again = 0;
            for _ in 0..100 {
                now += Duration::from_millis(20);
                again += exchange(&mut core, now);
                if answers_rounds {
                    let Role::Leader(leader) = &core.role else { panic!("it leads") };
                    let reply = AppendReply { round: leader.round(), ..AppendReply::default() };
                    core.handle_message(now, envelope(3, 1, Message::AppendReply(reply)));
                }
            }
            // At most a message each time that acknowledgements have stood still for long.
            let (resends, entries_max) = (2000 / 80, Limits::DEFAULT.message_entries);
            let sends_max = if answers_rounds { resends * entries_max } else { 2 * entries_max };
            assert!(again <= sends_max, "{again} entries again");
        }
    }
}
