//! The program that is counted: real cores that hand messages to each other in one process. Only the
//! turns of one core are counted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hovercraft::{
    NodeId, Request,
    core::{Core, Mode, Output, Policy, Write},
    messages::Envelope,
    switch::Aggregator,
};
use r2p2::Time;

use crate::model::cores::{Cores, request, return_path};

/// How many requests come in a turn.
const BATCH: u64 = 10;

/// Some heartbeats.
const SETTLING_MS: u32 = 100;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// How many replicas.
    pub replicas: u16,
    /// How many requests they are given.
    pub requests: u64,
    /// The turns of the leader, and not of one follower.
    pub counts_leader: bool,
    /// In mode `hovercraft++`.
    pub has_aggregator: bool,
}

impl Turns {
    /// Gives a cluster its requests, for callgrind to count.
    pub fn take(self) {
        Cluster::start(self).run(self.requests, self.counts_leader);
    }

    /// As the hidden command `take-turns` has them.
    pub(super) fn arguments(self) -> Vec<String> {
        let role = if self.counts_leader { "leader" } else { "follower" };
        let mut arguments =
            vec![role.to_owned(), self.replicas.to_string(), self.requests.to_string()];
        if self.has_aggregator {
            arguments.push("--aggregator".to_owned());
        }
        arguments
    }
}

struct Cluster {
    cores: Vec<Core>,
    /// What each core has been sent, as bytes.
    inboxes: Vec<Vec<Vec<u8>>>,
    aggregator: Option<Aggregator>,
    now: Time,
}

impl Cluster {
    /// A cluster with a leader.
    fn start(turns: Turns) -> Self {
        let has_aggregator = turns.has_aggregator;
        let cores = Cores {
            replicas: turns.replicas,
            mode: if has_aggregator { Mode::HovercRaftPlusPlus } else { Mode::HovercRaft },
            policy: Policy::Jbsq,
            queue_bound: 128,
            seed: 1,
        };
        let now = Time::ZERO;
        let cores = cores.start(now);
        let inboxes = cores.iter().map(|_| Vec::new()).collect();
        let aggregator = has_aggregator.then(Aggregator::new);
        let mut cluster = Self { cores, inboxes, aggregator, now };
        let is_ready = |cluster: &Self| {
            let is_used = |core: &Core| core.counters().aggregator_found > 0;
            cluster.cores.iter().any(|core| core.is_leader() && (is_used(core) || !has_aggregator))
        };
        while !is_ready(&cluster) {
            cluster.now += Duration::from_millis(1);
            cluster.settle(&[], None);
        }
        // Until the aggregator has shown that it reaches everybody, followers are served directly.
        for _ in 0..SETTLING_MS {
            cluster.now += Duration::from_millis(1);
            cluster.settle(&[], None);
        }
        cluster
    }

    fn run(&mut self, requests: u64, counts_leader: bool) {
        let leads = |core: &Core| core.is_leader() == counts_leader;
        let counted = self.cores.iter().position(leads).expect("there are both roles");
        let body = Bytes::from(vec![7; 24]);
        for batch in 0..requests / BATCH {
            // Slower than a heartbeat would make its share of the count depend on the batches.
            self.now += Duration::from_micros(50);
            let numbers = batch * BATCH + 1..=(batch + 1) * BATCH;
            let requests: Vec<_> =
                numbers.map(|number| Arc::new(request(number, false, body.clone()))).collect();
            self.settle(&requests, Some(counted));
        }
    }

    /// Gives every core the requests, and hands messages around until nobody says anything more.
    fn settle(&mut self, requests: &[Arc<Request>], counted: Option<usize>) {
        let mut requests = requests;
        loop {
            let mut sent = Vec::new();
            for place in 0..self.cores.len() {
                let inbox = std::mem::take(&mut self.inboxes[place]);
                let core = &mut self.cores[place];
                let out = if counted == Some(place) {
                    counted_turn(core, self.now, requests, &inbox)
                } else {
                    turn(core, self.now, requests, &inbox)
                };
                sent.extend(out);
            }
            requests = &[];
            if sent.is_empty() {
                return;
            }
            self.deliver(sent);
        }
    }

    /// Puts what was sent, and what the aggregator makes of it, into the inboxes.
    fn deliver(&mut self, sent: Sent) {
        for (to, bytes) in sent {
            match (to, &mut self.aggregator) {
                (Some(NodeId(to)), _) => self.inboxes[usize::from(to) - 1].push(bytes),
                (None, Some(aggregator)) => {
                    let envelope = Envelope::decode(&bytes).expect("what a core has encoded");
                    if aggregator.handle_message(self.now, &envelope) {
                        for follower in aggregator.followers() {
                            self.inboxes[usize::from(follower.id.0) - 1].push(bytes.clone());
                        }
                    }
                }
                (None, None) => unreachable!("only the mode hovercraft++ has it"),
            }
        }
        let announcement = self.aggregator.as_mut().and_then(Aggregator::poll_announcement);
        if let (Some(aggregator), Some(announcement)) = (&self.aggregator, announcement) {
            let mut bytes = Vec::new();
            announcement.encode(&mut bytes);
            for member in aggregator.members() {
                self.inboxes[usize::from(member.id.0) - 1].push(bytes.clone());
            }
        }
    }
}

/// Messages and whom to; none is the aggregator.
type Sent = Vec<(Option<NodeId>, Vec<u8>)>;

/// callgrind knows what to count by the name of this function.
#[inline(never)]
fn counted_turn(core: &mut Core, now: Time, requests: &[Arc<Request>], inbox: &[Vec<u8>]) -> Sent {
    // Or the compiler would make one function of this and the one that it calls.
    let core = std::hint::black_box(core);
    turn(core, now, requests, inbox)
}

/// A turn as the network role has it: take what came, decide, apply, decide again.
fn turn(core: &mut Core, now: Time, requests: &[Arc<Request>], inbox: &[Vec<u8>]) -> Sent {
    let mut sent = Vec::new();
    for request in requests {
        core.handle_request(now, Arc::clone(request), return_path(request.lowest()));
    }
    for bytes in inbox {
        let envelope = Envelope::decode(bytes).expect("what a core has encoded");
        core.handle_message(now, envelope);
    }
    core.handle_timeout(now);
    loop {
        core.flush(now, now.as_micros());
        while let Some(output) = core.poll_output() {
            match output {
                Output::Send { to, envelope } => sent.push((Some(to), encoded(&envelope))),
                Output::Aggregate { envelope } => sent.push((None, encoded(&envelope))),
                Output::Write(Write::HardState { number, .. } | Write::Append { number, .. }) => {
                    core.handle_stored(now, number);
                }
                _ => {}
            }
        }
        let mut applied = None;
        while let Some(committed) = core.poll_apply() {
            applied = Some(committed.index);
        }
        match applied {
            Some(index) => core.handle_applied(now, index),
            None => return sent,
        }
    }
}

fn encoded(envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope.encode(&mut bytes);
    bytes
}
