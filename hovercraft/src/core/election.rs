//! Elections: pre-vote, vote, check-quorum (P33).

use r2p2::Time;

use crate::{
    core::{Core, Output, Timer, replication::Leader},
    entry::{Incarnation, Index, Member, NodeId, Term},
    messages::{AppendReply, Message},
};

/// What this replica is in its term.
#[derive(Debug)]
pub(crate) enum Role {
    /// Follows a leader, or waits for one.
    Follower {
        /// Who was heard of in this term.
        leader: Option<NodeId>,
    },
    /// Asks for votes.
    Candidate(Candidacy),
    /// Orders requests.
    Leader(Box<Leader>),
}

impl Role {
    pub(crate) fn new() -> Self {
        Self::Follower { leader: None }
    }
}

/// Votes so far.
#[derive(Debug)]
pub(crate) struct Candidacy {
    /// Asking whether an election would succeed, for this term; nobody's term changes yet.
    pre_vote_for: Option<Term>,
    granted: Vec<NodeId>,
}

/// A log's last term and index: what makes it at least as complete as another.
type Completeness = (Term, Index);

/// A poisoned replica waits this many times as long for a leader as others do.
const POISONED_PATIENCE: u32 = 8;

impl Core {
    pub(super) fn restart_election_timer(&mut self, now: Time) {
        let timing = self.settings.timing;
        let spread = timing.election_max.saturating_sub(timing.election_min).as_nanos() as u64;
        let wait = timing.election_min + std::time::Duration::from_nanos(self.rng.u64(..=spread));
        // A healthy replica that can lead does so before one that applies nothing tries (P42).
        let patience = if self.is_poisoned { POISONED_PATIENCE } else { 1 };
        self.timers.set(Timer::Election, now + wait * patience);
    }

    pub(super) fn election_timeout(&mut self, now: Time) {
        self.restart_election_timer(now);
        // A replica that is recovering, or was replaced, is no candidate (P37, P39).
        // Nor is one that installs a snapshot: its log may lack what its service has (P36).
        // And votes of an election that waits for the own vote's write are not thrown away. Who has
        // no room for a no-op cannot lead (P38).
        let is_busy = self.hard_state_write.is_some() || self.snapshots.is_installing();
        let may_lead = self.is_named() || planted!("recovering-candidate");
        if self.is_leader() || !may_lead || is_busy || !self.has_room_for_own() {
            return;
        }
        // Its own vote would never be on disk (P38).
        if self.disk_stands(now) && !planted!("disk-stands-and-campaigns") {
            return;
        }
        if self.patience.grants() {
            tracing::debug!("no leader heard of, but this replica did not run: waiting again");
            return;
        }
        self.counters.pre_votes_started += 1;
        let proposed = self.term() + 1;
        tracing::debug!(term = self.term(), proposed, "no leader heard of: asking for pre-votes");
        self.role =
            Role::Candidate(Candidacy { pre_vote_for: Some(proposed), granted: vec![self.node] });
        let (last_term, last_index) = self.completeness();
        for to in self.others() {
            self.send(to, Message::PreVote { proposed, last_index, last_term });
        }
        self.tally_votes(now);
    }

    pub(super) fn pre_vote_asked(
        &mut self,
        now: Time,
        from: NodeId,
        proposed: Term,
        log: Completeness,
    ) {
        // A vote that its disk cannot keep would only use up terms.
        let may_vote = !self.hears_a_leader(now) && !self.disk_stands(now);
        let granted = proposed > self.term() && self.is_complete(log) && may_vote;
        self.counters.pre_votes_refused += u64::from(!granted);
        self.send(from, Message::PreVoteReply { proposed, granted });
    }

    pub(super) fn pre_vote_answered(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        proposed: Term,
        granted: bool,
    ) {
        let counts = self.is_counted(from, incarnation);
        let Role::Candidate(candidacy) = &mut self.role else {
            return;
        };
        let is_current = candidacy.pre_vote_for == Some(proposed);
        if granted && counts && (is_current || planted!("stale-pre-vote")) {
            candidacy.grant(from);
            self.tally_votes(now);
        }
    }

    /// Grants a vote even if this replica is recovering. Whether it counts the candidate decides: its
    /// configuration must name this life of this replica, which it does only after that has caught
    /// up, and that configuration may not have come here yet (P37, P39).
    pub(super) fn vote_asked(&mut self, now: Time, from: NodeId, log: Completeness) {
        let is_free =
            self.hard_state.vote.is_none_or(|vote| vote == from || planted!("vote-twice"));
        let granted = is_free
            && self.is_complete(log)
            && matches!(self.role, Role::Follower { leader: None });
        if granted && self.hard_state.vote.is_none() {
            self.hard_state.vote = Some(from);
            self.write_hard_state();
        }
        if granted {
            self.restart_election_timer(now);
        }
        self.send(from, Message::VoteReply { granted });
    }

    pub(super) fn vote_answered(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        granted: bool,
    ) {
        let counts = self.is_counted(from, incarnation);
        let Role::Candidate(candidacy) = &mut self.role else {
            return;
        };
        if granted && counts && candidacy.pre_vote_for.is_none() {
            candidacy.grant(from);
            self.tally_votes(now);
        }
    }

    /// Goes on if a majority granted what was asked, and the own vote is on disk.
    pub(super) fn tally_votes(&mut self, now: Time) {
        let Role::Candidate(candidacy) = &self.role else {
            return;
        };
        let is_on_disk = self.hard_state_write.is_none();
        let is_half = 2 * candidacy.granted.len() == self.configuration().members.len();
        let by_half = is_half && candidacy.pre_vote_for.is_none() && planted!("elected-by-half");
        let is_granted = candidacy.granted.len() >= self.configuration().quorum() || by_half;
        if !is_on_disk || !is_granted {
            return;
        }
        if candidacy.pre_vote_for.is_some() {
            self.begin_election(now);
        } else {
            self.become_leader(now);
        }
    }

    /// A message shows a higher term: follow in it (P40).
    pub(super) fn adopt_term(&mut self, now: Time, term: Term) {
        assert!(term > self.term(), "terms only grow");
        tracing::debug!(term, "a message shows a higher term");
        self.become_follower(now, None);
        self.enter_term(now, term, None);
    }

    fn enter_term(&mut self, now: Time, term: Term, vote: Option<NodeId>) {
        (self.hard_state.term, self.hard_state.vote) = (term, vote);
        // What was to be said in an earlier term is not said any more: an acknowledgement is sent
        // only while still in the term of the message that it answers (P37). That may already be
        // ready, if the write that it waited for was done in the same turn.
        self.held.clear();
        self.outputs.retain(|output| {
            let (Output::Send { envelope, .. } | Output::Aggregate { envelope }) = output else {
                return true;
            };
            !matches!(envelope.message, Message::AppendReply(_) | Message::Acknowledge(_))
        });
        self.write_hard_state();
        self.forget_term(now);
    }

    pub(super) fn become_follower(&mut self, now: Time, leader: Option<NodeId>) {
        if self.is_leader() {
            tracing::info!(term = self.term(), "no longer the leader");
            self.counters.leaderships_lost += 1;
            self.stop_leading();
            self.restart_election_timer(now);
        }
        self.role = Role::Follower { leader };
    }

    /// Answers a message of an old term, so that its sender learns of this one.
    pub(super) fn refuse_old_term(&mut self, from: NodeId, message: &Message) {
        match message {
            Message::PreVote { proposed, .. } => {
                let proposed = *proposed;
                self.counters.pre_votes_refused += 1;
                self.send(from, Message::PreVoteReply { proposed, granted: false });
            }
            Message::Vote { .. } => self.send(from, Message::VoteReply { granted: false }),
            Message::AppendEntries(_) | Message::Aggregate(_) => {
                // It only shows the term. What this replica holds is for the leader of this term,
                // which would otherwise seem to have been told.
                self.send(from, Message::AppendReply(AppendReply::default()));
            }
            _ => {}
        }
    }

    /// The leader steps down if no quorum has answered a recent round (P31, P33).
    pub(super) fn check_quorum(&mut self, now: Time) {
        let timing = self.settings.timing;
        if !self.is_leader() {
            return;
        }
        if self.is_quorum_heard(now) {
            self.patience.renew();
            self.timers.set(Timer::CheckQuorum, now + timing.election_min);
        } else if self.patience.grants() {
            // What it sends now has the time to be answered.
            self.timers.set(Timer::CheckQuorum, now + timing.election_max);
        } else {
            tracing::warn!(term = self.term(), "no quorum answers: stepping down");
            self.counters.quorums_lost += 1;
            self.step_down(now);
        }
    }

    /// Returns whether a quorum has answered what this leader sent of late; true if it does not
    /// lead.
    pub(super) fn is_quorum_heard(&self, now: Time) -> bool {
        let Role::Leader(leader) = &self.role else {
            return true;
        };
        let since = now - self.settings.timing.election_max;
        let counts_itself = self.counts_itself(now);
        let has_answered = |member: &&Member| {
            if member.id == self.node {
                counts_itself
            } else {
                leader.answered_since(member, since)
            }
        };
        let configuration = self.configurations.current();
        let heard = configuration.members.iter().filter(has_answered).count();
        let by_half = planted!("heard-by-half") && 2 * heard == configuration.members.len();
        heard >= configuration.quorum() || by_half
    }

    /// A leader that applies nothing more steps down as soon as a replica that the same entry has
    /// not stopped holds all that it holds. If there is none it stays, and orders nothing: the
    /// others may need its log (P42).
    pub(super) fn give_way(&mut self, now: Time) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if !self.is_poisoned {
            return;
        }
        let (last, since) = (self.log.last(), now - self.settings.timing.election_min);
        let mut others =
            self.configuration().members.iter().filter(|member| member.id != self.node);
        let has_successor = others.any(|member| {
            leader.matched(member) == last
                && leader.repliers.applied(member.id) > Some(self.applied)
                && leader.answered_since(member, since)
                && !leader.is_poisoned(member)
                && leader.disk_wait(member) < self.settings.timing.election_max
        });
        if has_successor {
            tracing::warn!(
                term = self.term(),
                "the service is stopped: another replica is to lead"
            );
            self.step_down(now);
        }
    }

    pub(super) fn step_down(&mut self, now: Time) {
        self.become_follower(now, None);
        self.forget_term(now);
    }

    /// Whether the configuration in force names this life of this replica (P37, P39).
    pub(super) fn is_named(&self) -> bool {
        self.configurations.names(self.node, self.incarnation())
    }

    /// Whether what another replica grants and acknowledges counts (P39).
    pub(super) fn is_counted(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let is_disowned = match &self.role {
            Role::Leader(leader) => leader.disowns(node, incarnation),
            Role::Follower { .. } | Role::Candidate(_) => false,
        };
        self.is_member(node, incarnation) && !is_disowned
    }

    /// Returns whether the configuration names this incarnation.
    pub(super) fn is_member(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.configurations.names(node, incarnation) || planted!("recovering-counts")
    }

    fn begin_election(&mut self, now: Time) {
        self.counters.elections_started += 1;
        self.enter_term(now, self.term() + 1, Some(self.node));
        tracing::info!(term = self.term(), "asking for votes");
        self.role = Role::Candidate(Candidacy { pre_vote_for: None, granted: vec![self.node] });
        self.restart_election_timer(now);
        let (last_term, last_index) = self.completeness();
        for to in self.others() {
            self.send(to, Message::Vote { last_index, last_term });
        }
    }

    fn hears_a_leader(&self, now: Time) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower { leader: Some(_) } => {
                let heard = self.acknowledging.leader_heard();
                heard.is_some_and(|at| now.since(at) < self.settings.timing.election_min)
            }
            Role::Follower { leader: None } | Role::Candidate(_) => false,
        }
    }

    /// Whether a log is at least as complete as this replica's (Raft §5.4.1).
    fn is_complete(&self, log: Completeness) -> bool {
        log >= self.completeness() || planted!("vote-unseen")
    }

    fn completeness(&self) -> Completeness {
        (self.log.last_term(), self.log.last())
    }
}

impl Candidacy {
    fn grant(&mut self, from: NodeId) {
        if !self.granted.contains(&from) {
            self.granted.push(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        Settings, Write,
        testing::{core, envelope, noop},
    };
    use crate::messages::AppendEntries;

    /// P37: it is ready to be sent, and a higher term comes in the same turn.
    #[test]
    fn an_acknowledgement_is_not_sent_in_a_later_term() {
        let now = Time::ZERO;
        let mut core = core(Settings::default(), vec![noop(1)]);
        let beat = AppendEntries {
            previous_index: 1,
            previous_term: 1,
            commit: 1,
            noop: 1,
            first_index: 1,
            round: 1,
            entries_term: 2,
            log_time_us: 0,
            entries: Vec::new(),
            configurations: Vec::new(),
            requests: Vec::new(),
        };
        core.handle_message(now, envelope(2, 2, Message::AppendEntries(beat)));
        core.flush(now, 0);
        let mut outputs = || std::iter::from_fn(|| core.poll_output()).collect::<Vec<_>>();
        let written = outputs().into_iter().find_map(|output| match output {
            Output::Write(Write::HardState { number, .. }) => Some(number),
            _ => None,
        });
        core.handle_stored(now, written.expect("the term is written"));
        core.handle_message(now, envelope(3, 3, Message::Vote { last_index: 1, last_term: 1 }));
        core.flush(now, 0);
        let acknowledges = |output: Output| match output {
            Output::Send { envelope, .. } => matches!(envelope.message, Message::AppendReply(_)),
            _ => false,
        };
        assert!(!std::iter::from_fn(|| core.poll_output()).any(acknowledges));
    }

    #[test]
    fn a_slow_write_of_the_own_vote_does_not_end_the_candidacy() {
        let settings = Settings::default();
        let mut core = core(settings, Vec::new());
        let mut now = Time::ZERO + settings.timing.election_max;
        core.handle_timeout(now);
        core.flush(now, 0);
        let granted = Message::PreVoteReply { proposed: 1, granted: true };
        core.handle_message(now, envelope(2, 0, granted));
        let written = std::iter::from_fn(|| core.poll_output()).find_map(|output| match output {
            Output::Write(Write::HardState { number, .. }) => Some(number),
            _ => None,
        });
        // The disk takes longer than an election may.
        for _ in 0..3 {
            now += settings.timing.election_max;
            core.handle_timeout(now);
        }
        core.handle_stored(now, written.expect("it votes for itself"));
        core.handle_message(now, envelope(2, 1, Message::VoteReply { granted: true }));
        assert!(core.is_leader());
    }
}
