//! Mode `unreplicated`: one server, no consensus, nothing on disk. What replication costs is
//! measured against this.

use std::{collections::VecDeque, net::SocketAddrV4, sync::Arc, time::Duration};

use r2p2::{Incoming, Link, MessageType, Options, Policy, ReplyTo, Time};

use crate::{
    admin::{Answer, ExchangeStatus, NetworkStatus, NodeStatus, Question},
    core::{Applier, Committed, Counters},
    digest::DigestKey,
    entropy::random_key,
    entry::{ClusterLimits, Configuration, Entry, Incarnation, NodeId, Payload},
    node::{
        Mode, NodeError,
        network::{Clock, Endpoints, request_of},
    },
    request::{Outcome, Request, ReturnPath},
    state_machine::StateMachine,
};

/// Answers wait for those of other requests that arrived with them for about this long: what can be sent
/// together costs less, and behind a slow service nobody should wait for anybody else's turn.
const SENDS_EVERY: Duration = Duration::from_micros(100);

/// A request that is to be executed.
struct Arrived {
    now: Time,
    request: Request,
    path: ReturnPath,
    /// Of the reply.
    options: Options,
}

/// One server.
pub(crate) struct Unreplicated {
    node: NodeId,
    /// Of this run alone: digests are told to nobody and kept nowhere else.
    digest_key: DigestKey,
    applier: Applier,
    endpoints: Endpoints,
    pub(crate) clock: Clock,
    previous: Time,
    /// What the last look at the sockets has brought, in its order.
    arrived: VecDeque<Arrived>,
    /// The service panicked: nothing more is executed (P42).
    poisoned: Option<String>,
    pub(crate) network: NetworkStatus,
    counters: Counters,
}

impl Unreplicated {
    pub(crate) fn new(
        node: NodeId,
        service: Box<dyn StateMachine>,
        limits: ClusterLimits,
        endpoints: Endpoints,
    ) -> Self {
        let configuration = Configuration::new(1, Vec::new(), limits);
        let clock = Clock::new();
        let digest_key = random_key();
        Self {
            node,
            applier: Applier::new(service, 0, digest_key, Arc::new(configuration)),
            digest_key,
            endpoints,
            clock,
            previous: clock.now(),
            arrived: VecDeque::new(),
            poisoned: None,
            network: NetworkStatus::default(),
            counters: Counters::default(),
        }
    }

    /// One turn: executes and answers what has arrived.
    pub(crate) fn turn(&mut self, link: &mut impl Link) -> Result<bool, NodeError> {
        let now = self.clock.now();
        let count = link.receive(&mut |from, datagram| self.datagram(now, from, datagram))?;
        let mut sent = now;
        while let Some(arrived) = self.arrived.pop_front() {
            self.execute(arrived);
            let now = self.clock.now();
            if now.since(sent) >= SENDS_EVERY {
                link.send(&mut self.endpoints.outbox)?;
                sent = now;
            }
        }
        let Endpoints { requests, outbox, .. } = &mut self.endpoints;
        requests.handle_timeout(now, outbox);
        link.send(&mut self.endpoints.outbox)?;
        Ok(count > 0)
    }

    pub(crate) fn packets_damaged(&self) -> u64 {
        self.endpoints.packets_damaged
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.endpoints.requests.poll_timeout()
    }

    fn datagram(&mut self, now: Time, from: SocketAddrV4, datagram: &[u8]) {
        match r2p2::message_type(datagram) {
            Some(MessageType::Request | MessageType::Ack) => {
                let Endpoints { requests, outbox, .. } = &mut self.endpoints;
                match requests.handle_datagram(now, from, datagram, outbox) {
                    Ok(Some(incoming)) => self.request(now, incoming),
                    Ok(None) => {}
                    Err(error) => self.endpoints.refused(from, error),
                }
            }
            Some(MessageType::RaftRequest) => {
                let message = self.endpoints.receiver.handle_datagram(now, from, datagram);
                if let Ok(Some(message)) = message
                    && let Ok(question) = Question::decode(&message.body)
                {
                    let answer = self.answer(&question);
                    self.endpoints.answer(from, &answer);
                }
            }
            _ => {}
        }
    }

    fn request(&mut self, now: Time, mut incoming: Incoming<'_>) {
        self.counters.requests += 1;
        let path = ReturnPath {
            address: incoming.reply_to.address,
            request_id: incoming.reply_to.request_id,
        };
        // Here the plain policies are served too, as commands (§1).
        if !incoming.policy.is_replicated() {
            incoming.policy = Policy::Replicated;
        }
        let options = incoming.reply_options();
        let request = match request_of(self.digest_key, incoming) {
            Ok(request) => request,
            Err(identity) => return self.endpoints.drop_request(path, identity, None),
        };
        if !request.is_sound() {
            return self.endpoints.drop_request(path, request.identity(), None);
        }
        self.arrived.push_back(Arrived { now, request, path, options });
    }

    fn execute(&mut self, Arrived { now, request, path, options }: Arrived) {
        if self.poisoned.is_some() {
            return self.endpoints.drop_request(path, request.identity(), None);
        }
        let is_read = !request.kind().is_write();
        let committed = Committed {
            index: self.applier.applied() + 1,
            entry: Entry {
                term: 1,
                log_time_us: Clock::unix_us(),
                session_delta_us: now.since(self.previous).as_micros().min(1_000_000) as u32,
                payload: Payload::Request { replier: self.node, request: Arc::new(request) },
                return_path: Some(path),
            },
            executes_read: is_read,
            answer_to: Some(path),
        };
        self.previous = now;
        let endpoints = &mut self.endpoints;
        let result = self.applier.apply(&committed, &mut |response| {
            let outcome = response.outcome;
            let outcome = (outcome != Outcome::Executed).then_some(outcome as u8);
            let options = Options { outcome, ..options };
            let to = ReplyTo { address: path.address, request_id: path.request_id };
            let outbox = &mut endpoints.outbox;
            let sent = endpoints.requests.respond(now, to, &options, response.body, outbox);
            if let Err(error) = sent {
                tracing::warn!(%error, "a reply cannot be sent");
            }
            endpoints.tell_switch(to, options.identity);
        });
        if let Err(poisoned) = result {
            tracing::error!(%poisoned, "the service is stopped");
            self.poisoned = Some(poisoned.to_string());
        }
    }

    fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Status => Answer::Status(Box::new(NodeStatus {
                node: self.node,
                cluster: None,
                mode: Mode::Unreplicated.to_string(),
                poisoned: self.poisoned.clone(),
                protocol: None,
                counters: self.counters,
                network: self.network,
                exchange: ExchangeStatus::default(),
                incarnation: Incarnation(0),
                configuration: None,
                counted_by: None,
                missing: None,
            })),
            // Its packets have the seed of no cluster: several of them may be behind one switch.
            Question::Hello => Answer::Cluster(0),
            Question::Init(_) | Question::PassOn(_) => {
                Answer::Refused("a server in mode unreplicated has no cluster".to_owned())
            }
        }
    }
}
