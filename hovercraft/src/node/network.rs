//! The network role: one loop over the sockets, the core, and the handles of the other roles.
//!
//! Never blocks but in the link's wait, and never syncs. One turn takes what has arrived, lets the
//! core decide, and sends everything that came of it in as few system calls as it can.

use std::{
    net::SocketAddrV4,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use r2p2::{
    Incoming, Link, MessageReceiver, MessageSender, MessageType, Options, Outbox, ReplyTo,
    ServerEndpoint, Time, WireError,
};

use crate::{
    admin::{Answer, ExchangeStatus, Membership, NetworkStatus, NodeStatus, Question},
    core::{AHEAD_BYTES_MAX, Core, Output, Reading, Refusal, RestoreError},
    digest::DigestKey,
    entry::NodeId,
    messages::{Envelope, Message, PART_BYTES_MAX},
    node::{
        Mode, NodeError,
        application::{Application, Event, Origin, OwnedResponse, Task},
        persistence::{Done, Job},
        roles::{Receiver, Sender},
    },
    request::{Identity, Kind, Outcome, Request, ReturnPath},
    storage::{Birth, HardState, SnapshotMeta},
};

/// How many datagram batches one turn takes before the core acts on them.
const RECEIVES_MAX: usize = 16;

/// The same where the core is about to take silence for a failure: all that the sockets held when
/// that time came (P33). Even of the shortest datagrams, eight a batch, a buffer holds no more.
const DRAINS_MAX: usize = 4096;

/// How many entries one turn applies in the network loop before it looks at the sockets again.
const APPLIES_MAX: usize = 512;

/// Most parts of snapshots that are being read for one replica.
const READS_MAX: usize = 64;

/// Parts of a snapshot are taken while no more bytes than this wait for the disk.
const PARTS_BYTES_MAX: usize = 1 << 20;

/// Counts from its creation, for everything that asks for a [`Time`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    /// The wall clock, in microseconds since 1970.
    pub(crate) fn unix_us() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// R2P2 as a replica speaks it.
pub(crate) struct Endpoints {
    pub(crate) requests: ServerEndpoint,
    pub(crate) receiver: MessageReceiver,
    pub(crate) sender: MessageSender,
    pub(crate) outbox: Outbox,
    /// Who is told of every answer (P19).
    pub(crate) switch: Option<SocketAddrV4>,
    /// Packets whose check was wrong.
    pub(crate) packets_damaged: u64,
}

impl Endpoints {
    /// Answers a client.
    pub(crate) fn respond(&mut self, now: Time, response: OwnedResponse) {
        let OwnedResponse { to, identity, outcome, body } = response;
        let options = Options {
            identity: option_of(identity),
            outcome: (outcome != Outcome::Executed).then_some(outcome as u8),
            ..Options::NONE
        };
        let to = reply_to(to);
        let sent = self.requests.respond(now, to, &options, body, &mut self.outbox);
        if let Err(error) = sent {
            tracing::warn!(%identity, %error, "a reply cannot be sent");
        }
        self.tell_switch(to, option_of(identity));
    }

    /// A request has been answered (P19).
    pub(crate) fn tell_switch(&mut self, request: ReplyTo, identity: Option<r2p2::Identity>) {
        if let Some(switch) = self.switch {
            self.requests.feedback(switch, request, identity, &mut self.outbox);
        }
    }

    /// Tells a client that its request is not admitted now (P23).
    pub(crate) fn drop_request(
        &mut self,
        to: ReturnPath,
        identity: Identity,
        refusal: Option<Refusal>,
    ) {
        let (to, identity) = (reply_to(to), option_of(identity));
        // A client without a session understands no options.
        let refusal = identity.and(refusal);
        let reason = refusal.map(|it| r2p2::Reason { reason: it.reason as u8, node: it.node.0 });
        let options = Options { identity, reason, ..Options::NONE };
        self.requests.drop_request(to, &options, &mut self.outbox);
        self.tell_switch(to, identity);
    }

    /// Sends the birth of this replica to another member of its cluster, under that one's number.
    fn pass_on(&mut self, birth: &Birth, to: NodeId) -> Answer {
        let Some(member) = birth.configuration.member(to) else {
            return Answer::Refused(format!(
                "replica {to} was no member when its cluster was made"
            ));
        };
        let address = member.address;
        let question = Question::Init(Birth { node: to, ..birth.clone() }).encode();
        let outbox = &mut self.outbox;
        match self.sender.send(MessageType::RaftRequest, address, &question, outbox) {
            Ok(()) => Answer::PassedOn,
            Err(error) => Answer::Refused(error.to_string()),
        }
    }

    /// Notes why a datagram was not taken.
    pub(crate) fn refused(&mut self, from: SocketAddrV4, error: WireError) {
        self.packets_damaged += u64::from(error == WireError::Damaged);
        tracing::debug!(%from, %error, "not a packet for this replica");
    }

    /// Answers an operator.
    pub(crate) fn answer(&mut self, to: SocketAddrV4, answer: &Answer) {
        let bytes = answer.encode();
        let sent = self.sender.send(MessageType::RaftReply, to, &bytes, &mut self.outbox);
        if let Err(error) = sent {
            tracing::warn!(%to, %error, "an answer cannot be sent");
        }
    }
}

/// A replica at work.
pub(crate) struct Replica {
    pub(crate) core: Core,
    pub(crate) endpoints: Endpoints,
    pub(crate) application: Application,
    pub(crate) jobs: Sender<Job>,
    pub(crate) done: Receiver<Done>,
    pub(crate) clock: Clock,
    pub(crate) mode: Mode,
    /// Where the aggregator is, in mode `hovercraft++`.
    pub(crate) aggregator: Option<SocketAddrV4>,
    /// What the sockets have done, as of this turn.
    pub(crate) network: NetworkStatus,
    /// What was said to other replicas.
    pub(crate) exchange: ExchangeStatus,
    /// The replicas for which parts of snapshots are being read, once for each part.
    pub(crate) reads: Vec<NodeId>,
    /// Bytes of received parts of snapshots that the storage role has not written yet.
    pub(crate) parts_bytes: usize,
    /// The encoded message, reused.
    pub(crate) buffer: Vec<u8>,
    /// What this run may have lost before it began (P37).
    pub(crate) missing: Option<String>,
}

impl Replica {
    /// One turn. Returns whether there may be more to do at once.
    pub(crate) fn turn(&mut self, link: &mut impl Link) -> Result<bool, NodeError> {
        let mut received = 0;
        let woken = self.clock.now();
        self.core.handle_wake(woken);
        for taken in 0..DRAINS_MAX {
            let now = self.clock.now();
            if taken >= RECEIVES_MAX && !self.core.is_silence_over(woken) {
                break;
            }
            let count = link.receive(&mut |from, datagram| self.datagram(now, from, datagram))?;
            received += count;
            if count == 0 {
                break;
            }
        }
        let now = self.clock.now();
        self.collect(now)?;
        self.core.handle_timeout(now);
        self.endpoints.requests.handle_timeout(now, &mut self.endpoints.outbox);
        let acknowledges = self.core.is_leader() || self.mode == Mode::Raft;
        self.endpoints.requests.set_acknowledging(acknowledges);
        let has_more = self.settle(link, now)?;
        Ok(has_more || received > 0)
    }

    /// When the next turn is due at the latest.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let (core, requests) = (self.core.poll_timeout(), self.endpoints.requests.poll_timeout());
        core.into_iter().chain(requests).min()
    }

    /// Acts on what happened until nothing comes of it any more, or for as long as the sockets and
    /// the timers may wait; returns whether there is more to do. What is to be sent goes out before
    /// entries are applied, so that other replicas need not wait for this one's service.
    fn settle(&mut self, link: &mut impl Link, now: Time) -> Result<bool, NodeError> {
        let mut budget = APPLIES_MAX;
        loop {
            self.core.flush(now, Clock::unix_us());
            while let Some(output) = self.core.poll_output() {
                self.output(now, output)?;
            }
            link.send(&mut self.endpoints.outbox)?;
            if budget == 0 {
                return Ok(true);
            }
            let count = self.apply(now, budget)?;
            if count == 0 {
                return Ok(false);
            }
            budget -= count;
        }
    }

    /// Hands up to `count_max` committed entries to the application, and returns how many.
    fn apply(&mut self, now: Time, count_max: usize) -> Result<usize, NodeError> {
        for count in 0..count_max {
            if !self.application.has_room() {
                return Ok(count);
            }
            let Some(committed) = self.core.poll_apply() else { return Ok(count) };
            self.task(now, Task::Apply(committed))?;
        }
        Ok(count_max)
    }

    fn task(&mut self, now: Time, task: Task) -> Result<(), NodeError> {
        let mut events = Vec::new();
        let (core, endpoints) = (&mut self.core, &mut self.endpoints);
        self.application.handle(task, &mut |event| match event {
            // By far the most frequent ones.
            Event::Respond(response) => endpoints.respond(now, response),
            Event::Applied(index, sessions) => {
                core.note_sessions(sessions);
                core.handle_applied(now, index);
            }
            event => events.push(event),
        });
        events.into_iter().try_for_each(|event| self.event(now, event))
    }

    /// Takes what the other roles have done.
    fn collect(&mut self, now: Time) -> Result<(), NodeError> {
        while let Some(done) = self.done.try_next() {
            match done {
                Done::Stored(number) => {
                    self.exchange.group_commits += 1;
                    self.core.handle_stored(now, number);
                }
                Done::SnapshotTaken(meta) => self.core.handle_snapshot(now, meta.as_ref()),
                Done::SnapshotPostponed => self.core.handle_snapshot_postponed(now),
                Done::ReceivedPostponed => self.core.handle_received_postponed(now),
                Done::Room(room) => self.core.handle_room(room),
                Done::SnapshotPart { read, part } => {
                    if let Some(at) = self.reads.iter().position(|reader| *reader == read.to) {
                        self.reads.swap_remove(at);
                    }
                    if let Some((meta, offset, data)) = part {
                        self.core.send_snapshot_part(read, meta, offset, data);
                    }
                }
                Done::PartKept(bytes) => self.parts_bytes -= bytes,
                Done::Staged(None) => self.core.handle_staged(now, Reading::Refused),
                Done::Staged(Some((meta, source))) => {
                    self.task(now, Task::Restore(Origin::Received, meta, source))?;
                }
                Done::Installed => self.core.handle_installed(now),
                Done::Own(Some((meta, source))) => {
                    self.task(now, Task::Restore(Origin::Own, meta, source))?;
                }
                Done::Own(None) => {
                    self.application.give_up();
                    self.cannot_go_back(now);
                }
                Done::Failed(error) => return Err(NodeError::Store(error)),
            }
        }
        let mut events = Vec::new();
        self.application.poll(&mut |event| events.push(event));
        events.into_iter().try_for_each(|event| self.event(now, event))
    }

    fn event(&mut self, now: Time, event: Event) -> Result<(), NodeError> {
        match event {
            Event::Applied(index, sessions) => {
                self.core.note_sessions(sessions);
                self.core.handle_applied(now, index);
            }
            Event::Respond(response) => self.endpoints.respond(now, response),
            Event::Retried(_) => {}
            Event::NotKept(..) if planted!("retry-not-ordered-again") => {}
            Event::NotKept(request, path) => self.core.order_again(now, &request, path),
            Event::Snapshot(Some((meta, writer))) => self.job(Job::TakeSnapshot(meta, writer))?,
            Event::Snapshot(None) => self.core.handle_snapshot(now, None),
            Event::Restored(origin, meta, result) => self.restored(now, origin, &meta, result),
            Event::Poisoned(poisoned) => {
                tracing::error!(%poisoned, "the service is stopped");
                self.core.handle_poisoned(now);
            }
        }
        Ok(())
    }

    /// The service has read a snapshot, or could not (P36).
    fn restored(
        &mut self,
        now: Time,
        origin: Origin,
        meta: &SnapshotMeta,
        result: Result<(), RestoreError>,
    ) {
        let index = meta.index;
        if let Err(error) = &result {
            tracing::error!(index, ?origin, %error, "a snapshot cannot be used");
        }
        match (origin, result) {
            (Origin::Received, Ok(())) => self.core.handle_staged(now, Reading::Complete),
            (Origin::Received, Err(_)) if planted!("unread-snapshot-installed") => {
                self.core.handle_staged(now, Reading::Complete);
            }
            (Origin::Received, Err(RestoreError::Refused(_))) => {
                self.core.handle_staged(now, Reading::Refused);
            }
            (Origin::Received, Err(RestoreError::Failed(_))) => {
                self.core.handle_staged(now, Reading::Failed);
            }
            (Origin::Own, Ok(())) => self.core.handle_went_back(now, Some(index)),
            (Origin::Own, Err(_)) => self.cannot_go_back(now),
        }
    }

    /// The service has no state any more, until it reads a snapshot of another replica (P42).
    fn cannot_go_back(&mut self, now: Time) {
        let reason = self.application.poisoned().unwrap_or_default();
        tracing::error!(reason, "the service is stopped");
        self.core.handle_went_back(now, None);
        self.core.handle_poisoned(now);
    }

    fn output(&mut self, now: Time, output: Output) -> Result<(), NodeError> {
        match output {
            Output::Send { to, envelope } => {
                let member = self.core.configuration().member(to);
                if let Some(address) = member.map(|member| member.address) {
                    self.send(address, &envelope);
                }
            }
            Output::Aggregate { envelope } => {
                if let Some(address) = self.aggregator {
                    self.send(address, &envelope);
                }
            }
            Output::Write(write) => self.job(Job::Write(write))?,
            Output::Drop { to, identity, refusal } => {
                self.endpoints.drop_request(to, identity, refusal);
            }
            Output::AnswerRetry { request, to } => {
                self.task(now, Task::AnswerRetry(request, to))?;
            }
            Output::TakeSnapshot => self.task(now, Task::TakeSnapshot)?,
            Output::ReadSnapshot(read) => {
                // Who has so many under way asks again.
                if self.reads.iter().filter(|to| **to == read.to).count() < READS_MAX {
                    self.reads.push(read.to);
                    self.job(Job::ReadSnapshot(read))?;
                }
            }
            Output::KeepSnapshotPart { offset, data } => {
                self.parts_bytes += data.len();
                let bound = PARTS_BYTES_MAX + AHEAD_BYTES_MAX + PART_BYTES_MAX;
                debug_assert!(
                    self.parts_bytes <= bound,
                    "{} bytes of parts wait",
                    self.parts_bytes
                );
                self.job(Job::KeepPart { offset, data })?;
            }
            Output::StageSnapshot { meta } => self.job(Job::Stage(*meta))?,
            Output::InstallSnapshot { meta, keep_tail } => {
                self.job(Job::Install { meta: *meta, keep_tail })?;
            }
            Output::DiscardSnapshot { restores_own } => {
                self.job(Job::Discard { reads_own: restores_own })?;
            }
            Output::Stop(conflict) => return Err(NodeError::Conflict(conflict)),
        }
        Ok(())
    }

    fn send(&mut self, to: SocketAddrV4, envelope: &Envelope) {
        self.buffer.clear();
        envelope.encode(&mut self.buffer);
        self.exchange.count(&envelope.message, self.buffer.len());
        let endpoints = &mut self.endpoints;
        let outbox = &mut endpoints.outbox;
        let sent = endpoints.sender.send(MessageType::RaftMessage, to, &self.buffer, outbox);
        if let Err(error) = sent {
            tracing::warn!(%to, %error, "a message cannot be sent");
        }
    }

    fn job(&self, job: Job) -> Result<(), NodeError> {
        // A storage role that has ended has failed before, and said so.
        self.jobs.send(job).map_err(|_| NodeError::StorageEnded)
    }

    fn datagram(&mut self, now: Time, from: SocketAddrV4, datagram: &[u8]) {
        let result = match r2p2::message_type(datagram) {
            Some(MessageType::Request | MessageType::Ack) => {
                let Endpoints { requests, outbox, .. } = &mut self.endpoints;
                requests
                    .handle_datagram(now, from, datagram, outbox)
                    .map(|incoming| incoming.into_iter().for_each(|it| self.request(now, it)))
            }
            Some(MessageType::RaftMessage | MessageType::RaftRequest) => {
                self.message(now, from, datagram)
            }
            _ => return,
        };
        if let Err(error) = result {
            self.endpoints.refused(from, error);
        }
    }

    fn message(&mut self, now: Time, from: SocketAddrV4, datagram: &[u8]) -> Result<(), WireError> {
        let message = self.endpoints.receiver.handle_datagram(now, from, datagram)?;
        let Some(message) = message else { return Ok(()) };
        if message.message_type == MessageType::RaftRequest {
            match Question::decode(&message.body) {
                Ok(question) => self.question(from, question),
                Err(error) => tracing::debug!(%from, %error, "not a question"),
            }
            return Ok(());
        }
        match Envelope::decode(&message.body) {
            // It says whom to answer, as ORIGIN does, and so is believed of members alone.
            Ok(Envelope { message: Message::Forward { .. }, .. }) if !self.is_member(from) => {
                tracing::debug!(%from, "a request passed on by nobody who may");
            }
            // A disk that is slower than the network: a part that is lost is asked for again, and
            // fewer are.
            Ok(Envelope { message: Message::SnapshotPart { .. }, .. })
                if self.parts_bytes > PARTS_BYTES_MAX =>
            {
                tracing::debug!(%from, "the disk is behind: a part of a snapshot is dropped");
            }
            Ok(envelope) => self.core.handle_message(now, envelope),
            Err(error) => tracing::debug!(%from, %error, "not a message of a replica"),
        }
        Ok(())
    }

    fn is_member(&self, address: SocketAddrV4) -> bool {
        self.core.configuration().members.iter().any(|member| member.address == address)
    }

    fn request(&mut self, now: Time, incoming: Incoming<'_>) {
        let path = ReturnPath {
            address: incoming.reply_to.address,
            request_id: incoming.reply_to.request_id,
        };
        match request_of(self.core.digest_key(), incoming) {
            Ok(request) => self.core.handle_request(now, Arc::new(request), path),
            Err(identity) => self.endpoints.drop_request(path, identity, None),
        }
    }

    fn question(&mut self, from: SocketAddrV4, question: Question) {
        let state = self.core.hard_state();
        let answer = match question {
            Question::Hello => hello(self.core.node(), state, None),
            Question::Init(birth) => initialised(state, &birth),
            Question::Status => Answer::Status(Box::new(self.status())),
            Question::PassOn(to) => match &state.birth {
                Some(birth) => self.endpoints.pass_on(birth, to),
                None => Answer::Refused(NOT_INITIALISED.to_owned()),
            },
        };
        self.endpoints.answer(from, &answer);
    }

    fn status(&self) -> NodeStatus {
        let state = self.core.hard_state();
        let birth = state.birth.as_ref();
        NodeStatus {
            node: self.core.status().node,
            cluster: birth.map(|birth| birth.cluster),
            mode: self.mode.to_string(),
            poisoned: self.application.poisoned().map(ToString::to_string),
            protocol: Some(self.core.status()),
            counters: *self.core.counters(),
            network: self.network,
            exchange: self.exchange,
            incarnation: state.incarnation,
            configuration: Some(self.core.configuration().as_ref().clone()),
            counted_by: None,
            missing: self.missing.clone().or_else(|| {
                let text = "an older copy of its data directory was put in place";
                self.core.is_restored().then(|| text.to_owned())
            }),
        }
    }
}

/// Why a replica before `init` does not pass anything on.
pub(crate) const NOT_INITIALISED: &str = "it belongs to no cluster";

/// Who a replica is, for `init`.
pub(crate) fn hello(node: NodeId, state: &HardState, counted_by: Option<u64>) -> Answer {
    let membership = state.birth.as_ref().map(Membership::from);
    let counted_by = counted_by.filter(|_| membership.is_none());
    let (incarnation, term) = (state.incarnation, state.term);
    Answer::Hello { node, incarnation, membership, counted_by, term }
}

/// The answer of a replica that has been initialised before.
pub(crate) fn initialised(state: &HardState, birth: &Birth) -> Answer {
    if state.birth.as_ref() == Some(birth) {
        Answer::Initialised
    } else {
        Answer::Refused("it belongs to a cluster already".to_owned())
    }
}

/// The request that an R2P2 request stands for; its identity if a cluster does not serve it.
pub(crate) fn request_of(
    digest_key: DigestKey,
    incoming: Incoming<'_>,
) -> Result<Request, Identity> {
    let Incoming { reply_to, policy, options, body } = incoming;
    let (identity, lowest) = match options.session {
        Some(session) => {
            let (client, sequence) = (session.client, session.sequence);
            (Identity::Session { client, sequence }, session.lowest)
        }
        None => {
            let (address, request_id) = (reply_to.address, reply_to.request_id);
            (Identity::Plain { address, request_id }, 0)
        }
    };
    let kind = Kind::of(policy, options.request_kind).ok_or(identity)?;
    Ok(Request::new(digest_key, identity, lowest, kind, body.into_bytes()))
}

fn reply_to(path: ReturnPath) -> ReplyTo {
    ReplyTo { address: path.address, request_id: path.request_id }
}

fn option_of(identity: Identity) -> Option<r2p2::Identity> {
    match identity {
        Identity::Session { client, sequence } => Some(r2p2::Identity { client, sequence }),
        Identity::Plain { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::testing::{DIGEST_KEY, core, elected_at},
        node::run::endpoints,
    };

    fn birth() -> Birth {
        let core = core(crate::core::Settings::default(), Vec::new());
        core.hard_state().birth.clone().expect("it has been initialised")
    }

    /// The words of the key, as they would stand in a message.
    fn tells_the_key(bytes: &[u8]) -> bool {
        let key = rkyv::to_bytes::<rkyv::rancor::Error>(&DIGEST_KEY).expect("16 bytes");
        bytes.windows(key.len()).any(|window| window == &key[..])
    }

    #[test]
    fn hello_and_status_do_not_tell_the_secret() {
        // P2: the birth on its way to a member does, so that the search would find it.
        assert!(tells_the_key(&Question::Init(birth()).encode()));
        let core = core(crate::core::Settings::default(), Vec::new());
        let hello = hello(NodeId(1), core.hard_state(), None);
        assert!(matches!(&hello, Answer::Hello { membership: Some(_), .. }));
        assert!(!tells_the_key(&hello.encode()));
        assert!(!tells_the_key(&rkyv::to_bytes::<rkyv::rancor::Error>(&core.status()).unwrap()));
        let printed = format!("{:?} {:?}", core.hard_state(), core);
        assert!(printed.contains("DigestKey(secret)") && !printed.contains("DigestKey(["));
    }

    #[test]
    fn a_birth_is_passed_on_to_the_addresses_in_it_alone() {
        let mut endpoints = endpoints(1 << 20, 1);
        assert!(matches!(endpoints.pass_on(&birth(), NodeId(4)), Answer::Refused(_)));
        assert!(endpoints.outbox.is_empty());
        assert_eq!(endpoints.pass_on(&birth(), NodeId(2)), Answer::PassedOn);
        let mut receiver = MessageReceiver::new(r2p2::MessageConfig::default(), 1);
        let mut received = Vec::new();
        endpoints.outbox.drain(|batch| {
            for datagram in batch.datagrams() {
                let message = receiver.handle_datagram(elected_at(), batch.destination, datagram);
                let question = Question::decode(&message.unwrap().unwrap().body).unwrap();
                received.push((batch.destination, question));
            }
        });
        let [(to, question)] = &received[..] else { panic!("one message: {received:?}") };
        assert_eq!(*to, birth().configuration.member(NodeId(2)).unwrap().address);
        let expected = Birth { node: NodeId(2), ..birth() };
        assert_eq!(*question, Question::Init(expected));
    }
}
