//! The protocol as a value that is fed events and asked what to do.
//!
//! No I/O, no clock, no randomness but a seed. A driver calls `handle_*` for what happened, then
//! [`Core::flush`], then takes [`Core::poll_output`] and [`Core::poll_apply`] until they are empty,
//! and calls again at [`Core::poll_timeout`] at the latest, [`Core::handle_wake`] first. Nothing is
//! sent or written before `flush`, so batches grow with what happened in one turn and never wait.

pub(crate) mod admission;
mod aggregation;
mod ahead;
mod apply;
mod arrival;
mod binding;
mod bodies;
#[cfg(test)]
mod catching_up;
mod commit;
mod configuration;
mod disk_pace;
mod election;
mod follower;
mod install;
mod limits;
mod log;
pub(crate) mod lookup;
mod openings;
mod ordering;
mod output;
mod pacing;
mod patience;
mod recovering;
mod recovery;
mod replication;
mod replier;
mod room;
mod runs;
mod sessions;
mod settings;
mod snapshot;
mod standstill;
mod status;
#[cfg(test)]
pub(crate) mod testing;
mod timer;
mod unordered;
#[cfg(test)]
mod unsound;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use r2p2::Time;

pub(crate) use ahead::AHEAD_BYTES_MAX;
pub use apply::{Applier, Committed, Poisoned, Response, RestoreError, SessionGrant};
pub use install::{InstallStep, Reading};
pub use limits::Limits;
pub use log::WriteNumber;
pub use output::{Conflict, Output, Reason, Refusal, SnapshotRead, Write};
pub use replier::Policy;
pub use runs::Run;
pub use settings::{Mode, Settings, Timing};
pub use standstill::{Cause, Standstill};
pub use status::{Counters, ReplicaStatus, RoleStatus, Status};

use crate::{
    digest::DigestKey,
    entry::{Configuration, Entry, Incarnation, Index, NodeId, Payload, Term},
    messages::{Envelope, Message, WholeRequest},
    request::{Request, ReturnPath},
    storage::{Durability, HardState, Loaded, Room},
};
use binding::Binding;
use commit::Commit;
use configuration::Configurations;
use disk_pace::Pace;
use election::Role;
use follower::Acknowledging;
use log::Log;
use patience::Patience;
use recovering::Recovering;
use recovery::Recovery;
use room::LogRoom;
use runs::OwnRun;
use snapshot::Snapshots;
use timer::{Timer, Timers};
use unordered::Unordered;

/// What a core starts from.
#[derive(Debug)]
pub struct Start {
    /// The hard state, as it is on disk: initialised, and with this run's incarnation.
    pub hard_state: HardState,
    /// The log and the snapshot on disk.
    pub loaded: Loaded,
    /// What may differ from replica to replica.
    pub settings: Settings,
    /// Of all that is random.
    pub seed: u64,
}

/// The consensus protocol of one replica.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    node: NodeId,
    cluster: u64,
    digest_key: DigestKey,
    hard_state: HardState,
    role: Role,
    log: Log,
    configurations: Configurations,
    commit: Commit,
    unordered: Unordered,
    binding: Binding,
    acknowledging: Acknowledging,
    recovery: Recovery,
    recovering: Recovering,
    own_run: OwnRun,
    snapshots: Snapshots,
    admission: admission::Admission,
    openings: openings::Openings,
    timers: Timers,
    patience: Patience,
    pace: Pace,
    rng: fastrand::Rng,
    outputs: VecDeque<Output>,
    /// Messages that say what is not on disk yet: the term and the vote (P37).
    held: Vec<Output>,
    /// The write of the hard state that `held` waits for.
    hard_state_write: Option<WriteNumber>,
    /// The number of the next write; entries appended in this turn carry it.
    next_write: WriteNumber,
    /// The lowest index that was changed in this turn.
    unwritten_from: Option<Index>,
    /// Writes handed over and not complete: (number, bytes).
    writing: VecDeque<(WriteNumber, usize)>,
    writing_bytes: usize,
    /// Room of the log on the disk (P38).
    room: LogRoom,
    /// The highest index handed to the application.
    dispatched: Index,
    /// The highest index that the application has applied.
    applied: Index,
    /// The application applies nothing more (P42).
    is_poisoned: bool,
    counters: Counters,
}

/// Longest wait of a request for its order (P8).
const UNORDERED_AGE_MAX: Duration = Duration::from_secs(2);

/// How long an identity stays in the system unless it is answered (P24).
const ADMISSION_AGE_MAX: Duration = Duration::from_secs(5);

impl Core {
    /// A follower that has heard of nobody yet.
    ///
    /// # Panics
    ///
    /// If the hard state is of a disk before `init`.
    pub fn new(start: Start, now: Time) -> Self {
        let Start { hard_state, loaded, settings, seed } = start;
        let birth = hard_state.birth.as_ref().expect("a core is made after init");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (node, cluster, digest_key) = (birth.node, birth.cluster, birth.digest_key);
        let (index, term, log_time_us, configuration) = match &loaded.snapshot {
            Some(meta) => (meta.index, meta.term, meta.log_time_us, &meta.configuration),
            None => (0, 0, 0, &birth.configuration),
        };
        let limits = &settings.limits;
        let unordered = unordered::Limits {
            count: limits.unordered_count,
            bytes: limits.unordered_bytes,
            age: UNORDERED_AGE_MAX,
        };
        let (binding, fetched) = (limits.binding_count, limits.fetched_bytes);
        let mut core = Self {
            settings,
            node,
            cluster,
            digest_key,
            role: Role::new(),
            log: Log::new(index, term, log_time_us, rng.u64(..)),
            configurations: Configurations::new(Arc::new(configuration.clone())),
            commit: Commit::new(index),
            unordered: Unordered::new(unordered, rng.u64(..)),
            binding: Binding::new(binding, fetched, rng.u64(..)),
            acknowledging: Acknowledging::default(),
            recovery: Recovery::new(settings.timing.election_max),
            recovering: Recovering::default(),
            own_run: OwnRun::new(seed),
            snapshots: Snapshots::new(index),
            admission: admission::Admission::new(
                settings.admission_limit,
                ADMISSION_AGE_MAX,
                rng.u64(..),
            ),
            // Without a draw, so that what is drawn later stays what it was.
            openings: openings::Openings::new(seed),
            timers: Timers::default(),
            patience: Patience::default(),
            pace: Pace::default(),
            rng,
            outputs: VecDeque::new(),
            held: Vec::new(),
            hard_state_write: None,
            next_write: 1,
            unwritten_from: None,
            writing: VecDeque::new(),
            writing_bytes: 0,
            room: LogRoom::default(),
            dispatched: index,
            applied: index,
            is_poisoned: false,
            counters: Counters::default(),
            hard_state,
        };
        core.load(loaded);
        core.restart_election_timer(now);
        core
    }

    /// A client's request arrived, from the client itself or passed on by another replica.
    pub fn handle_request(&mut self, now: Time, request: Arc<Request>, path: ReturnPath) {
        self.counters.requests += 1;
        if !request.is_sound() {
            self.refuse_unsound(&request, path);
        } else if self.is_leader() {
            self.request_at_leader(now, request, path);
        } else if self.settings.mode == Mode::Raft {
            if let Some(to) = self.leader() {
                let request = WholeRequest::new(&request, Some(path));
                self.send(to, Message::Forward { request });
            }
        } else {
            self.request_at_follower(now, request, path);
        }
        self.ensure_expiry_timer();
    }

    /// A message of another replica arrived.
    pub fn handle_message(&mut self, now: Time, envelope: Envelope) {
        let is_member = self.configurations.current().member(envelope.from).is_some();
        let is_aggregator = envelope.from == NodeId::AGGREGATOR;
        let is_other = is_member && envelope.from != self.node;
        let is_known = if envelope.message.is_of_aggregator() { is_aggregator } else { is_other };
        if envelope.cluster != self.cluster || !is_known {
            self.counters.messages_ignored += 1;
            return;
        }
        if !self.is_credible(&envelope) {
            tracing::debug!(from = %envelope.from, "a message breaks the rules: refused");
            self.counters.messages_refused += 1;
            return;
        }
        let Envelope { from, incarnation, term, message, .. } = envelope;
        if term > self.term() {
            self.adopt_term(now, term);
        }
        let is_stale_pre_vote = matches!(message, Message::PreVoteReply { .. });
        if term < self.term() && !(planted!("stale-pre-vote") && is_stale_pre_vote) {
            self.refuse_old_term(from, &message);
            return;
        }
        match message {
            Message::PreVote { proposed, last_index, last_term } => {
                self.pre_vote_asked(now, from, proposed, (last_term, last_index));
            }
            Message::PreVoteReply { proposed, granted } => {
                self.pre_vote_answered(now, from, incarnation, proposed, granted);
            }
            Message::Vote { last_index, last_term } => {
                self.vote_asked(now, from, (last_term, last_index));
            }
            Message::VoteReply { granted } => self.vote_answered(now, from, incarnation, granted),
            Message::AppendEntries(append) => self.append_entries(now, from, append, None),
            Message::Aggregate(aggregate) => self.aggregate_came(now, from, *aggregate),
            Message::AggCommit(commit) => self.agg_commit_came(now, &commit),
            // It is for the aggregator.
            Message::Acknowledge(_) => self.counters.messages_ignored += 1,
            Message::AppendReply(reply) => self.append_replied(now, from, incarnation, &reply),
            Message::FetchBodies { wants, question, bytes } => {
                self.bodies_asked(from, question, &wants, bytes);
            }
            Message::Bodies { parts, question } => self.bodies_came(now, question, parts),
            Message::BodiesRefused { refusals } => self.bodies_refused(now, from, &refusals),
            Message::FetchEntries { after, question, bytes } => {
                self.entries_asked(now, (from, question), after, bytes);
            }
            Message::Entries { after, after_term, entries, question, until } => {
                self.entries_came(now, (question, until), (after, after_term), entries);
            }
            Message::SnapshotAvailable { index, question } => {
                self.recovery.answered(now, question);
                self.snapshot_offered(now, from, index);
            }
            Message::FetchSnapshot { index, offset, question, bytes } => {
                let part = SnapshotRead { to: from, index, offset, bytes, question };
                self.snapshot_asked(now, part);
            }
            Message::SnapshotPart { meta, offset, data, question } => {
                self.snapshot_part_came(now, (from, question), *meta, offset, data);
            }
            Message::Recovering { nonce } => self.recovering_asked(now, from, incarnation, nonce),
            Message::Forward { request } => self.forwarded_request_came(now, &request),
            Message::CatchUpTo { nonce, index, round } => {
                self.catch_up_target_came(nonce, index, round);
            }
            Message::CaughtUp { nonce, round } => {
                self.caught_up_came(now, from, incarnation, (nonce, round));
            }
            Message::NewRun { run, round } => {
                self.new_run_came(now, (from, incarnation), run, round);
            }
            Message::RunKnown { run, index, first_round } => {
                self.run_known_came(run, index, first_round);
            }
            Message::Disowned { incarnation } => self.disowned(from, incarnation),
        }
    }

    /// Everything up to write `number` is done, and synced where that was asked.
    pub fn handle_stored(&mut self, now: Time, number: WriteNumber) {
        self.disk_moved(now);
        while let Some((_, bytes)) = self.writing.pop_front_if(|(write, _)| *write <= number) {
            self.writing_bytes -= bytes;
        }
        if self.log.complete(number) {
            self.acknowledging.mark();
            self.advance_commit();
        }
        if self.hard_state_write.is_some_and(|waited| waited <= number) {
            self.hard_state_write = None;
            // Somebody else may have been elected meanwhile, who makes an old vote useless.
            let is_candidate = matches!(self.role, Role::Candidate(_));
            let asks_in_vain = |output: &Output| {
                let Output::Send { envelope, .. } = output else { return false };
                !is_candidate && matches!(envelope.message, Message::Vote { .. })
            };
            self.outputs.extend(self.held.drain(..).filter(|output| !asks_in_vain(output)));
            self.tally_votes(now);
        }
    }

    /// The application has applied everything up to `index`.
    pub fn handle_applied(&mut self, now: Time, index: Index) {
        assert!(index <= self.dispatched, "only what was handed over");
        if index <= self.applied {
            // The service went back to the own snapshot, and is not yet where it was.
            return;
        }
        self.applied = index;
        self.log.forget_keys(index.saturating_sub(self.settings.limits.keys_kept));
        self.report_applied(now);
    }

    /// The service has panicked: nothing above the applied index will ever be applied, unless a
    /// snapshot comes that replaces it (P42).
    pub fn handle_poisoned(&mut self, now: Time) {
        self.is_poisoned = true;
        self.acknowledging.mark();
        // As a follower it now waits longer than others before it tries to lead.
        if self.is_leader() {
            self.give_way(now);
        } else {
            self.restart_election_timer(now);
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.expire(now) {
            match timer {
                Timer::Election => self.election_timeout(now),
                Timer::Heartbeat => self.heartbeat(now),
                Timer::CheckQuorum => self.check_quorum(now),
                Timer::Resend => self.resend(now),
                Timer::Recovery => self.recovery_timeout(now),
                Timer::Expiry => self.expire_unordered(now),
                Timer::Report => self.acknowledging.mark(),
                Timer::Snapshot => self.snapshot_timeout(now),
                Timer::Aggregator => self.aggregator_timeout(now),
                Timer::Look => self.look_again(now),
            }
            // Nothing would end this loop.
            debug_assert!(!self.timers.is_due(timer, now), "{timer:?} is due again at once");
        }
    }

    /// Ends a turn: orders what waits, sends what is to be sent, and hands over what is to be
    /// written. `unix_us` is the wall clock, for log time (P22).
    pub fn flush(&mut self, now: Time, unix_us: u64) {
        if self.is_leader() {
            self.order_waiting(now, unix_us);
            self.replicate(now);
        } else {
            // There may be room again, in the log or on the way to the disk.
            self.bind();
            self.acknowledge(now);
            self.ask_for_what_is_missing(now);
        }
        self.write_changes();
        self.ask_for_snapshot(now);
        self.observe_disk(now);
    }

    /// What the driver must do next. Changes with every verb.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next committed entry for the application, at most one each call; the driver decides
    /// how many it has under way. Changes with every verb.
    pub fn poll_apply(&mut self) -> Option<Committed> {
        let index = self.dispatched + 1;
        let is_early_read = planted!("read-too-early") && self.log.is_read(index);
        let is_committed = index <= self.commit.index() || is_early_read;
        if self.snapshots.is_installing() || !is_committed {
            return None;
        }
        let slot = self.log.slot(index).expect("what is committed and not applied is in the log");
        let entry = slot.entry.clone();
        let is_replier = entry.replier() == Some(self.node) && self.commit.may_answer(index);
        let is_silent = self.snapshots.installs.is_silent(index);
        let answers = (is_replier || slot.asked_again) && !is_silent;
        let answer_to = if answers { entry.return_path } else { None };
        self.dispatched = index;
        let executes_read = (is_replier && answer_to.is_some()) || planted!("read-by-everyone");
        Some(Committed { index, entry, executes_read, answer_to })
    }

    /// When [`Self::handle_timeout`] has something to do. Changes with every verb.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// Whether this replica leads its term.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The replica that leads, as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(_) => Some(self.node),
            Role::Follower { leader } => *leader,
            Role::Candidate(_) => None,
        }
    }

    /// The configuration in force.
    pub fn configuration(&self) -> &Arc<Configuration> {
        self.configurations.current()
    }

    /// This replica's number.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The cluster's secret, for the digests of requests that arrive (P2).
    pub fn digest_key(&self) -> DigestKey {
        self.digest_key
    }

    /// The hard state, as last handed to the storage role.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Whether a stop now can be clean. It cannot while a snapshot replaces the log: the store may
    /// have switched, and this core has not (P37).
    pub fn may_stop_clean(&self) -> bool {
        self.install_step() != Some(InstallStep::Switching)
    }

    /// The write that puts the log into a store which has been given none of it, for a clean stop
    /// in the durability `memory` (P37). None in the others, whose store has everything.
    pub fn log_for_clean_stop(&mut self) -> Option<Write> {
        if self.settings.durability != Durability::Memory {
            return None;
        }
        let first = self.log.first().max(self.snapshots.latest() + 1);
        let entries = self.log.entries_from(first).map(|(_, entry)| entry.clone()).collect();
        Some(Write::Append { number: self.take_write_number(), first, entries })
    }

    fn load(&mut self, loaded: Loaded) {
        let skip = (self.log.last() + 1).saturating_sub(loaded.first_index) as usize;
        for entry in loaded.entries.into_iter().skip(skip) {
            self.append_to_log(entry);
        }
        self.log.complete_all();
        self.commit.began_with(self.log.last());
        self.unwritten_from = None;
        self.room.handed_over();
        self.own_run.loaded(self.log.last(), self.log.last_term());
    }

    /// Appends one entry; the rest of the turn writes it.
    fn append_to_log(&mut self, entry: Entry) -> Index {
        let configuration = match &entry.payload {
            Payload::Configuration(configuration) => Some(Arc::clone(configuration)),
            Payload::Noop | Payload::Request { .. } => None,
        };
        self.room.take(&entry);
        let index = self.log.append(entry);
        if let Some(configuration) = configuration {
            self.configurations.append(index, configuration);
        }
        self.touch(index);
        index
    }

    /// Removes everything at or above `from`; bodies go back to the unordered set (P8).
    fn truncate_log(&mut self, now: Time, from: Index) {
        assert!(from > self.commit.index(), "what is committed is never truncated");
        self.counters.entries_truncated += self.log.last() + 1 - from;
        let unordered = &mut self.unordered;
        self.log.truncate(from, |entry| {
            if let Payload::Request { request, .. } = entry.payload {
                unordered.insert_evicting(now, request, entry.return_path);
            }
        });
        self.configurations.truncate(from);
        self.touch(from);
    }

    fn touch(&mut self, index: Index) {
        self.unwritten_from = Some(self.unwritten_from.map_or(index, |from| from.min(index)));
    }

    /// Hands what was appended and truncated in this turn to the storage role, as one write.
    fn write_changes(&mut self) {
        self.room.handed_over();
        let Some(first) = self.unwritten_from.take() else {
            return;
        };
        if self.settings.durability == Durability::Memory {
            return;
        }
        let number = self.take_write_number();
        self.log.hand_over(first, number);
        let entries: Vec<_> = self.log.entries_from(first).map(|(_, e)| e.clone()).collect();
        let bytes = Room::taken_by(&entries) as usize;
        self.writing.push_back((number, bytes));
        self.writing_bytes += bytes;
        self.outputs.push_back(Output::Write(Write::Append { number, first, entries }));
    }

    fn write_hard_state(&mut self) {
        let number = self.take_write_number();
        let state = Box::new(self.hard_state.clone());
        self.hard_state_write = Some(number);
        self.outputs.push_back(Output::Write(Write::HardState { number, state }));
    }

    fn take_write_number(&mut self) -> WriteNumber {
        let number = self.next_write;
        self.next_write += 1;
        number
    }

    fn send(&mut self, to: NodeId, message: Message) {
        let is_held = self.hard_state_write.is_some();
        // What is large somebody will ask for again.
        if is_held && message.is_bulky() {
            self.counters.messages_lost += 1;
            return;
        }
        let envelope = self.envelope(message);
        self.output(Output::Send { to, envelope });
    }

    fn envelope(&self, message: Message) -> Box<Envelope> {
        Box::new(Envelope {
            cluster: self.cluster,
            from: self.node,
            incarnation: self.hard_state.incarnation,
            term: self.term(),
            message,
        })
    }

    /// Sends a message, as soon as what it says is on disk (P37).
    fn output(&mut self, output: Output) {
        let is_held = self.hard_state_write.is_some();
        if is_held && self.held.len() >= self.settings.limits.held_count {
            self.counters.messages_lost += 1;
            return;
        }
        self.counters.messages_sent += 1;
        if is_held && !planted!("vote-not-synced") {
            self.held.push(output);
        } else {
            self.outputs.push_back(output);
        }
    }

    fn others(&self) -> Vec<NodeId> {
        let members = &self.configurations.current().members;
        members.iter().map(|member| member.id).filter(|id| *id != self.node).collect()
    }

    fn term(&self) -> Term {
        self.hard_state.term
    }

    fn incarnation(&self) -> Incarnation {
        self.hard_state.incarnation
    }

    /// The highest index that this replica itself holds as its durability promises.
    fn held_index(&self) -> Index {
        match self.settings.durability {
            Durability::Sync => self.log.durable(),
            Durability::Interval | Durability::Memory => self.log.last(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{core, envelope, write};

    #[test]
    fn what_waits_for_the_hard_state_is_bounded() {
        let entries = (0..100).map(|sequence| write(1, 9, sequence)).collect();
        let mut core = core(Settings::default(), entries);
        // A new term, whose write takes for ever.
        let ask = |message| envelope(2, 2, message);
        let vote = Message::Vote { last_index: 100, last_term: 1 };
        core.handle_message(Time::ZERO, ask(vote.clone()));
        assert_eq!(core.held.len(), 1);
        core.handle_message(
            Time::ZERO,
            ask(Message::FetchEntries { after: 0, question: 1, bytes: 1000 }),
        );
        assert_eq!((core.held.len(), core.counters.messages_lost), (1, 1));
        for _ in 0..2 * Limits::DEFAULT.held_count {
            core.handle_message(Time::ZERO, ask(vote.clone()));
        }
        assert_eq!(core.held.len(), Limits::DEFAULT.held_count);
    }
}
