//! HovercRaft++: replication by way of an aggregator (P26–P32).
//!
//! The leader sends one message for all followers to the aggregator, and gets one back. It merges
//! what comes back with what followers say directly, and commits by its own count, so nothing rests
//! on the aggregator but speed. A follower is served point to point while it needs what the others
//! have (P30), all are while the aggregator is silent (P32).

use std::time::Duration;

use r2p2::Time;

use crate::{
    core::{Core, Mode, Output, Role, Timer},
    entry::{Index, NodeId},
    messages::{Acknowledge, AggCommit, Aggregate, AppendReply, Message, Progress},
};

/// A follower whose answers through the aggregator are so many rounds behind those of a quorum is
/// served directly (P26).
const ROUNDS_BEHIND_MAX: u64 = 2;

/// What a leader knows of the aggregator.
#[derive(Debug, Default)]
pub(crate) struct Aggregation {
    /// The stream through it; none while it is not known to work.
    stream: Option<Stream>,
    /// It works if a quorum answers a later round through it.
    silent_since_round: u64,
}

/// What goes through the aggregator.
#[derive(Debug)]
struct Stream {
    /// The configuration that governs all of it (P28).
    configuration: u64,
    /// The next index to send.
    next: Index,
    /// The durable index that was last stated.
    durable: Index,
    /// The highest round that a quorum has answered, and when that was sent.
    round: u64,
    heard: Time,
}

/// A follower that is served point to point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Direct {
    /// What the aggregator says of it above this index, or of a later round than this, it has
    /// accepted from the aggregator since (P30).
    after: Index,
    round: u64,
}

impl Direct {
    /// Any round that it answers through the aggregator ends it.
    pub(crate) const UNTIL_HEARD: Self = Self { after: Index::MAX, round: 0 };
}

/// What a follower owes to the aggregator: that of the messages which came by it and matched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owed {
    configuration: u64,
    /// The highest last index of them: nothing above it is acknowledged (P28).
    last: Index,
    round: u64,
    round_answered: u64,
    acknowledged: Index,
    /// The leader's last message came by the aggregator: what that is told, the leader need not be.
    is_current: bool,
}

/// How a message of the leader came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByAggregator {
    configuration: u64,
    last: Index,
}

impl Owed {
    /// What the leader will hear of by way of the aggregator.
    pub(crate) fn covers(&self) -> Index {
        if self.is_current { self.last } else { 0 }
    }

    /// The leader itself sends to this replica.
    pub(crate) fn leader_sent_directly(&mut self) {
        self.is_current = false;
    }

    /// A message that came by the aggregator matched.
    pub(crate) fn after(before: Option<Self>, by: ByAggregator, round: u64) -> Self {
        let ByAggregator { configuration, last } = by;
        match before.filter(|before| before.configuration == configuration) {
            Some(before) => Self {
                last: before.last.max(last),
                round: before.round.max(round),
                is_current: true,
                ..before
            },
            None => Self {
                configuration,
                last,
                round,
                round_answered: 0,
                acknowledged: 0,
                is_current: true,
            },
        }
    }
}

/// The leader's half.
impl Core {
    /// Sends through the aggregator what it has not had yet.
    pub(super) fn replicate_by_aggregator(&mut self, now: Time) {
        if self.has_configuration_changed() {
            self.fall_back(now, "the configuration changes");
        }
        let before = self.stream().map(|stream| stream.next);
        while self.send_next_by_aggregator(now) {}
        let Some(stream) = self.stream() else {
            return;
        };
        // That the disk has got further may be what a quorum waits for (P32).
        let held = self.held_index();
        let next = stream.next;
        let is_news = held > stream.durable && held > self.commit.index();
        if is_news && before == Some(next) {
            self.counters.durables_announced += 1;
            self.send_to_aggregator(next, 0);
        }
    }

    /// The round, by way of the aggregator: to everyone if it works, to find out whether it does if
    /// not (P32).
    pub(super) fn send_round_by_aggregator(&mut self) {
        if self.settings.mode != Mode::HovercRaftPlusPlus || self.is_configuration_changing() {
            return;
        }
        // Who has what is committed accepts a probe from there, so that it moves nobody's place.
        let next = self.stream().map_or(self.commit.index() + 1, |stream| stream.next);
        self.send_to_aggregator(next, 0);
    }

    /// Followers that the aggregator does not reach are served directly (P26). Called once a
    /// heartbeat, before the round is sent.
    pub(super) fn serve_the_unreached(&mut self, now: Time) {
        let patience = self.settings.timing.heartbeat * 2;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(stream) = &leader.aggregation.stream else {
            return;
        };
        if planted!("agg-dead-link") {
            return;
        }
        let round = leader.round;
        for follower in leader.followers.iter_mut().filter(|follower| follower.direct.is_none()) {
            let is_behind = follower.round + ROUNDS_BEHIND_MAX <= stream.round;
            let is_waiting = follower.matched + 1 < follower.next;
            let stands_still = is_waiting && now.since(follower.progressed) >= patience;
            if is_behind || stands_still {
                self.counters.followers_served_directly += 1;
                follower.direct = Some(Direct { after: follower.matched, round });
            }
        }
    }

    /// A follower rejected what came by the aggregator or from here (P30).
    pub(super) fn serve_directly(&mut self, node: NodeId, after: Index) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let round = leader.round;
        let has_stream = leader.aggregation.stream.is_some();
        if let Some(follower) = leader.follower_mut(node).filter(|_| has_stream) {
            let is_new = follower.direct.is_none();
            self.counters.followers_served_directly += u64::from(is_new);
            follower.direct = Some(Direct { after, round });
        }
    }

    /// The aggregator has been silent for too long.
    pub(super) fn aggregator_timeout(&mut self, now: Time) {
        let silence = self.silence_max();
        let Some(stream) = self.stream() else {
            return;
        };
        if planted!("agg-no-fallback") {
            return;
        }
        if now.since(stream.heard) >= silence {
            self.fall_back(now, "the aggregator is silent");
        } else {
            self.timers.set(Timer::Aggregator, stream.heard + silence);
        }
    }

    /// The aggregator says what it has counted.
    pub(super) fn agg_commit_came(&mut self, now: Time, commit: &AggCommit) {
        match self.role {
            Role::Leader(_) => self.agg_commit_at_leader(now, commit),
            Role::Follower { leader: Some(_) } if !self.snapshots.is_installing() => {
                if planted!("agg-commit-own-tail") {
                    self.commit.verify(commit.commit.min(self.log.last()));
                }
                if planted!("agg-resets-election") {
                    self.restart_election_timer(now);
                }
                // Never further than its own log is known to be the leader's (P12); and it says
                // nothing of whether the leader is still there (P29).
                self.commit.state(commit.commit);
                self.advance_commit();
            }
            Role::Follower { .. } | Role::Candidate(_) => {}
        }
    }

    fn agg_commit_at_leader(&mut self, now: Time, commit: &AggCommit) {
        // Of its present configuration only (P26), in which it is not to be used while it changes.
        if commit.configuration != self.configurations.current().id
            || self.is_configuration_changing()
            || self.settings.mode != Mode::HovercRaftPlusPlus
        {
            self.counters.messages_ignored += 1;
            return;
        }
        for progress in &commit.replicas {
            // What the aggregator remembers says nothing of who is there now (P31).
            if self.merge(now, progress)
                && planted!("agg-feeds-check-quorum")
                && let Role::Leader(leader) = &mut self.role
                && let Some(follower) = leader.follower_mut(progress.node)
            {
                follower.answered = now;
            }
        }
        self.advance_commit();
        self.give_way(now);
        self.note_aggregator(now, commit.round);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(stream) = &leader.aggregation.stream else {
            return;
        };
        for follower in &mut leader.followers {
            let has_accepted = follower.direct.is_some_and(|direct| {
                let progress = commit.replicas.iter().find(|it| it.node == follower.node);
                progress.is_some_and(|it| it.matched > direct.after || it.round > direct.round)
            });
            // All that comes before the stream must have been sent to it.
            if has_accepted && follower.next >= stream.next {
                follower.direct = None;
            }
            if follower.direct.is_none() {
                follower.commit_sent = follower.commit_sent.max(commit.commit);
            }
        }
    }

    /// Takes what the aggregator says of a follower as if that had said it, if it is of the life
    /// that the configuration names and no other has been heard of (P37); returns whether it is.
    fn merge(&mut self, now: Time, progress: &Progress) -> bool {
        let last = self.log.last();
        let Some(&member) = self.configurations.current().member(progress.node) else {
            return false;
        };
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let Some(follower) = leader.follower_mut(member.id) else {
            return false;
        };
        if follower.incarnation.is_some_and(|known| known != member.incarnation) {
            return false;
        }
        // Mostly this is all that is new, and it is said for each follower in each message.
        if follower.has_said(member.incarnation, progress) {
            let has_moved = follower.hold(now, progress.matched.min(last));
            leader.moves += u64::from(has_moved);
            let (admission, applied) = (&mut self.admission, progress.applied.min(last));
            let release = |identity: &_| {
                admission.release(identity);
            };
            let report = (progress.round, applied);
            leader.repliers.report(now, member.id, report, release);
            return true;
        }
        if self.is_of_earlier_run((member.id, member.incarnation), progress.round) {
            return false;
        }
        let reply = AppendReply {
            round: progress.round,
            acknowledged: progress.matched,
            applied: progress.applied,
            poisoned: progress.poisoned,
            rejected_after: None,
            standstill: None,
            disk_wait_us: progress.disk_wait_us,
            lacks_room: progress.lacks_room,
        };
        self.take_reply(now, member.id, member.incarnation, &reply);
        true
    }

    /// A quorum has answered a round through the aggregator. It is alive as of when that round was
    /// sent, whenever this is heard (P31).
    fn note_aggregator(&mut self, now: Time, round: u64) {
        let (last, silence) = (self.log.last(), self.silence_max());
        let configuration = self.configurations.current().id;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(sent_at) = leader.round_sent_at(round) else {
            return;
        };
        if let Some(stream) = &mut leader.aggregation.stream {
            stream.round = stream.round.max(round);
            stream.heard = stream.heard.max(sent_at);
        } else if round > leader.aggregation.silent_since_round && now.since(sent_at) < silence {
            tracing::info!(term = self.hard_state.term, "the aggregator works: sending by it");
            self.counters.aggregator_found += 1;
            // Everyone is served directly until the aggregator shows that it accepts.
            let next = last + 1;
            let stream = Stream { configuration, next, durable: 0, round, heard: sent_at };
            leader.aggregation.stream = Some(stream);
            self.timers.set(Timer::Aggregator, sent_at + silence);
        }
    }

    /// Serves everyone directly, in the same term (P32).
    fn fall_back(&mut self, now: Time, reason: &str) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let round = leader.round;
        leader.aggregation = Aggregation { stream: None, silent_since_round: round };
        for follower in &mut leader.followers {
            follower.direct = Some(Direct { after: follower.matched, round });
            follower.progressed = now;
        }
        tracing::info!(reason, "not sending by the aggregator");
        self.counters.aggregator_lost += 1;
        self.timers.stop(Timer::Aggregator);
        // What has got lost in it the followers say when they hear of the round.
        self.heartbeat(now);
    }

    /// How old the last sign of the aggregator may be (P32).
    fn silence_max(&self) -> Duration {
        self.settings.timing.election_min / 3
    }

    /// It is not used while a configuration is not committed (P32).
    fn is_configuration_changing(&self) -> bool {
        let configurations = &self.configurations;
        configurations.current_index() > self.commit.index()
            || configurations.current().members.len() < 2
    }

    fn has_configuration_changed(&self) -> bool {
        let id = self.configurations.current().id;
        let is_same = |stream: &Stream| stream.configuration == id;
        self.stream().is_some_and(|stream| !is_same(stream) || self.is_configuration_changing())
    }

    fn send_next_by_aggregator(&mut self, now: Time) -> bool {
        let Some(stream) = self.stream() else {
            return false;
        };
        let next = stream.next;
        if next > self.log.last()
            || next > self.commit.index() + self.settings.limits.pipeline_entries
        {
            return false;
        }
        let count = self.send_to_aggregator(next, self.settings.limits.message_entries) as Index;
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        if let Some(stream) = &mut leader.aggregation.stream {
            stream.next += count;
        }
        for follower in leader.followers.iter_mut().filter(|follower| follower.direct.is_none()) {
            if follower.matched + 1 >= follower.next {
                follower.progressed = now;
            }
            follower.next = follower.next.max(next + count);
        }
        count > 0
    }

    /// Sends up to `count_max` entries from `next` on to the aggregator; returns how many.
    fn send_to_aggregator(&mut self, next: Index, count_max: usize) -> usize {
        let Some(append) = self.append_from(next, count_max) else {
            return 0;
        };
        let (count, held) = (append.entries.len(), self.held_index());
        let durable = if planted!("agg-leader-unsynced") { self.log.last() } else { held };
        let first_round = match &self.role {
            Role::Leader(leader) => leader.first_round,
            Role::Follower { .. } | Role::Candidate(_) => 0,
        };
        let configuration = self.configurations.current();
        let is_governed = next > self.configurations.current_index() || count == 0;
        assert!(is_governed, "only what the configuration governs goes by the aggregator (P28)");
        let aggregate = Aggregate {
            configuration: configuration.id,
            voters: configuration.members.clone(),
            durable,
            first_round,
            append,
        };
        self.counters.appends_aggregated += 1;
        if let Role::Leader(leader) = &mut self.role
            && let Some(stream) = &mut leader.aggregation.stream
        {
            stream.durable = stream.durable.max(durable);
        }
        let envelope = self.envelope(Message::Aggregate(Box::new(aggregate)));
        self.output(Output::Aggregate { envelope });
        count
    }

    fn stream(&self) -> Option<&Stream> {
        match &self.role {
            Role::Leader(leader) => leader.aggregation.stream.as_ref(),
            Role::Follower { .. } | Role::Candidate(_) => None,
        }
    }
}

/// The follower's half.
impl Core {
    /// The leader's entries came by the aggregator.
    pub(super) fn aggregate_came(&mut self, now: Time, from: NodeId, aggregate: Aggregate) {
        let by = ByAggregator { configuration: aggregate.configuration, last: aggregate.last() };
        self.append_entries(now, from, aggregate.append, Some(by));
    }

    /// Answers the aggregator, once for everything in this turn.
    pub(super) fn acknowledge_to_aggregator(&mut self, now: Time) {
        let (disk_wait_us, lacks_room) = (self.disk_wait_us(now), self.lacks_room());
        let held = self.acknowledged();
        let Some(owed) = &mut self.acknowledging.owed else {
            return;
        };
        let all = planted!("agg-acks-last");
        let acknowledged = if all { owed.last } else { held.min(owed.last) };
        if owed.round <= owed.round_answered && acknowledged <= owed.acknowledged {
            return;
        }
        (owed.round_answered, owed.acknowledged) = (owed.round, acknowledged);
        let acknowledge = Acknowledge {
            configuration: owed.configuration,
            round: owed.round,
            acknowledged,
            applied: self.applied,
            poisoned: self.is_poisoned,
            disk_wait_us,
            lacks_room,
        };
        self.acknowledging.reported(self.applied, self.is_poisoned, lacks_room);
        self.timers.stop(Timer::Report);
        let envelope = self.envelope(Message::Acknowledge(acknowledge));
        self.output(Output::Aggregate { envelope });
    }
}

impl super::replication::Leader {
    /// Whether a follower gets everything by way of the aggregator.
    pub(crate) fn is_served_by_aggregator(&self, node: NodeId) -> bool {
        self.aggregation.stream.is_some()
            && self.follower(node).is_some_and(|follower| follower.direct.is_none())
    }
}

#[cfg(test)]
mod tests;
