//! The program that is counted: real cores that hand messages to each other in one process. Only the
//! turns of one core are counted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hovercraft::{
    NodeId, Request,
    core::{Core, Mode, Output, Policy, Write},
    messages::Envelope,
};
use r2p2::Time;

use crate::model::cores::{Cores, request, return_path};

/// How many requests come in a turn.
const BATCH: u64 = 10;

/// Gives a cluster so many requests. callgrind counts the turns of its leader, or of one follower.
pub fn take_turns(replicas: u16, requests: u64, counts_leader: bool) {
    Cluster::start(replicas).run(requests, counts_leader);
}

struct Cluster {
    cores: Vec<Core>,
    /// What each core has been sent, as bytes.
    inboxes: Vec<Vec<Vec<u8>>>,
    now: Time,
}

impl Cluster {
    /// A cluster with a leader.
    fn start(replicas: u16) -> Self {
        let cores = Cores {
            replicas,
            mode: Mode::HovercRaft,
            policy: Policy::Jbsq,
            queue_bound: 128,
            seed: 1,
        };
        let now = Time::ZERO;
        let cores = cores.start(now);
        let inboxes = cores.iter().map(|_| Vec::new()).collect();
        let mut cluster = Self { cores, inboxes, now };
        while !cluster.cores.iter().any(Core::is_leader) {
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
            for (NodeId(to), bytes) in sent {
                self.inboxes[usize::from(to) - 1].push(bytes);
            }
        }
    }
}

type Sent = Vec<(NodeId, Vec<u8>)>;

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
                Output::Send { to, envelope } => {
                    let mut bytes = Vec::new();
                    envelope.encode(&mut bytes);
                    sent.push((to, bytes));
                }
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
