//! What replicas do to the world, and what the invariants say to it.

use bytes::Bytes;
use hovercraft::{
    Identity, Index, Kind, Outcome, ReturnPath,
    core::{Committed, Conflict},
    messages::{Envelope, Message},
};
use r2p2::Time;

use super::{Packet, Reply, Stepper, USUAL_MESSAGE_BYTES};
use crate::{
    client::Client,
    disk::Snapshot,
    faults::Leaves,
    history::{Change, Mirror, position},
    invariants::{Application, OF_SERVICE, Violation},
    network::Endpoint,
    replica::{Effect, Input},
    service::Call,
    trace::{self, Place},
    view::View,
};

impl Stepper {
    /// A packet reaches its end.
    pub(super) fn deliver(
        &mut self,
        from: Endpoint,
        to: Endpoint,
        sent: Time,
        packet: Packet,
    ) -> Result<(), Violation> {
        if !self.network.delivers(sent, from, to) {
            return Ok(());
        }
        if to >= self.first_aggregator() {
            return self.deliver_to_aggregator(to, packet);
        }
        if to >= self.replicas.len() {
            return self.deliver_to_client(to - self.replicas.len(), packet);
        }
        if self.replicas[to].life.is_none() {
            return Ok(());
        }
        let envelope = match packet {
            Packet::Request(request, path) => {
                let sender = Client::position_of(path);
                let place = Place::Between(from, to, sent);
                self.trace.mention(self.now, place, || {
                    let request = trace::request(&request, self.workload.as_ref());
                    format!("client {sender} → {}  {request}", to + 1)
                });
                return self.input(self.process(to), Input::Request(request, path));
            }
            Packet::Message(envelope) => envelope,
            Packet::Encoded(bytes) => {
                Box::new(Envelope::decode(&bytes).expect("a replica understands another one"))
            }
            Packet::Reply(_) | Packet::Drop | Packet::Feedback(_) => return Ok(()),
        };
        self.trace.message(self.now, sent, self.replicas[to].node, &envelope);
        self.input(self.process(to), Input::Message(envelope))
    }

    /// Does what a replica asked for, in its order.
    pub(super) fn act(&mut self, at: usize, mut effects: Vec<Effect>) -> Result<(), Violation> {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, mut envelope } => {
                    self.count_message(at, &envelope);
                    self.invariants.sent(self.now, &self.replicas, at, to, &envelope)?;
                    self.old_copies.note(at, to, &envelope);
                    let to = position(to);
                    self.network.flip(at, to, &mut envelope.message);
                    self.network.damage(at, to, &mut envelope.message);
                    self.send(at, to, self.packet(envelope));
                }
                Effect::Aggregate { envelope } => self.send_to_aggregators(at, envelope)?,
                Effect::Reply { to, identity, outcome, body } => {
                    self.tell_switch(at, identity);
                    self.answer(at, to, identity, outcome, body);
                }
                Effect::Drop { to, identity, refusal } => {
                    self.coverage
                        .add("requests refused for want of room", u64::from(refusal.is_some()));
                    self.tell_switch(at, identity);
                    self.trace.tell(self.now, Place::At(at), || {
                        let identity = trace::identity_of(&identity);
                        format!("{} has no room for {identity}", at + 1)
                    });
                    self.send(at, self.endpoint_of(to), Packet::Drop);
                }
                Effect::Applied { committed, call, state } => {
                    let node = self.replicas[at].node;
                    self.trace.tell(self.now, Place::At(at), || {
                        let what = match &call {
                            Some(call) if call.is_query => "reads for",
                            Some(_) => "executes",
                            None => "passes",
                        };
                        format!("{node} {what} {}", committed.index)
                    });
                    let (committed, call) = (&committed, call.as_ref());
                    self.count_application(committed, call);
                    let state = state.as_ref();
                    self.invariants.applied(&Application { node, committed, call, state })?;
                }
                Effect::Restored(snapshot, state) => self.restored(at, &snapshot, state)?,
                Effect::WentBack(snapshot, state) => self.went_back(at, &snapshot, state)?,
                Effect::RefusedSnapshot => self.coverage.add("snapshots refused", 1),
                Effect::TookSnapshot(index, lost) => {
                    self.took_snapshot(at, index, lost)?;
                    self.replicas[at].disk.snapshot_since = Some(self.now);
                    self.trace.tell(self.now, Place::At(at), || {
                        format!("{} takes a snapshot of {index}", at + 1)
                    });
                }
                Effect::Stop(conflict) => return self.stopped(at, &conflict),
            }
        }
        // The next turn uses its room again.
        self.effects = effects;
        Ok(())
    }

    /// A snapshot holds everything that later replies depend on.
    fn took_snapshot(
        &mut self,
        at: usize,
        index: Index,
        lost: Option<String>,
    ) -> Result<(), Violation> {
        self.be_quiet();
        let Some(lost) = lost else { return Ok(()) };
        let what = format!(
            "A snapshot of the service's state does not hold all of it. At {index}: {lost} \
             (replica {})",
            at + 1
        );
        Err(Violation { invariant: "snapshots hold the whole state", rule: OF_SERVICE, what })
    }

    fn restored(
        &mut self,
        at: usize,
        snapshot: &Snapshot,
        state: Option<View>,
    ) -> Result<(), Violation> {
        let (node, index) = (self.replicas[at].node, snapshot.meta.index);
        let last = self.invariants.mirror(at).map_or(0, Mirror::last);
        self.coverage.add("snapshots installed below a tail", u64::from(last > index));
        let what = || format!("{node} reads a snapshot of {index}");
        self.trace.tell(self.now, Place::At(at), what);
        self.be_quiet();
        self.invariants.restored(node, snapshot, state)
    }

    fn went_back(
        &mut self,
        at: usize,
        snapshot: &Snapshot,
        state: Option<View>,
    ) -> Result<(), Violation> {
        let (node, index) = (self.replicas[at].node, snapshot.meta.index);
        self.coverage.add("services that went back", 1);
        self.coverage.add("services that went back to the empty state", u64::from(index == 0));
        self.trace.tell(self.now, Place::At(at), || format!("{node} goes back to {index}"));
        self.invariants.restored(node, snapshot, state)
    }

    /// A replica says that its log contradicts what is committed. Beyond the promises that is loud
    /// and safe: it stops, and an operator must look at it.
    fn stopped(&mut self, at: usize, conflict: &Conflict) -> Result<(), Violation> {
        let what = conflict.to_string();
        if !self.schedule.beyond {
            return Err(Violation { invariant: "no conflict", rule: "P38", what });
        }
        self.trace.fault(self.now, Place::At(at), || format!("{} stops: {what}", at + 1));
        self.coverage.add("stops because of a conflict", 1);
        self.kill(at, Leaves::Prefix);
        self.replicas[at].disk.is_damaged = true;
        Ok(())
    }

    /// What the sweep must have seen of messages.
    fn count_message(&mut self, at: usize, envelope: &Envelope) {
        match &envelope.message {
            Message::Bodies { parts, .. } if !parts.is_empty() => {
                self.tally.bodies[usize::from(parts.len() > 1)] += 1;
                let leads = self.replicas[at].life.as_ref().is_some_and(|it| it.core.is_leader());
                self.tally.bodies_by_follower += u64::from(!leads);
            }
            Message::Vote { .. } => {
                let candidates = self.candidates.entry(envelope.term).or_default();
                if !candidates.contains(&at) {
                    candidates.push(at);
                    self.coverage.add("votes split", u64::from(candidates.len() == 2));
                }
            }
            _ => {}
        }
    }

    /// What the sweep must have seen of the application.
    fn count_application(&mut self, committed: &Committed, call: Option<&Call>) {
        match call {
            Some(call) if call.is_query => self.tally.reads += 1,
            Some(_) => self.tally.writes += 1,
            None => {
                let request = committed.entry.request();
                let is_write = request.is_some_and(|request| request.kind() == Kind::Write);
                self.tally.duplicates += u64::from(is_write);
            }
        }
    }

    /// Looks at what a replica's turn did to its log.
    pub(super) fn observe(&mut self, at: usize) -> Result<(), Violation> {
        let led = if self.trace.is_on() { self.leader() } else { None };
        let commit = self.invariants.mirror(at).map_or(0, |mirror| mirror.commit);
        let change = self.invariants.turn_ended(self.now, &self.replicas, at)?;
        self.counts_of_old_copy(at)?;
        if let Some(life) = self.replicas[at].life.as_ref().filter(|life| life.core.is_leader())
            && life.core.hard_state().term > self.led
        {
            self.led = life.core.hard_state().term;
            self.be_quiet();
        }
        if let Some(change) = change.filter(|_| self.trace.is_on()) {
            self.tell_change(at, commit, &change);
            if led != self.leader()
                && let Some(leader) = self.leader()
                && let Some(life) = &self.replicas[leader].life
            {
                let term = life.core.hard_state().term;
                self.trace
                    .tell(self.now, Place::At(at), || format!("{} leads term {term}", leader + 1));
            }
        }
        Ok(())
    }

    fn tell_change(&mut self, at: usize, commit: u64, change: &Change) {
        let replica = &self.replicas[at];
        let Some(life) = &replica.life else { return };
        let (node, core) = (replica.node, &life.core);
        if change.truncated > 0 {
            let count = change.truncated;
            self.trace.tell(self.now, Place::At(at), || {
                format!("{node} takes back its last {count} entries")
            });
        }
        let verb = if core.is_leader() { "orders" } else { "logs" };
        for index in change.appended.clone() {
            if let Some(entry) = core.log_entry(index) {
                let text = || {
                    let entry = trace::entry(index, entry, self.workload.as_ref());
                    format!("{node} {verb} {entry}")
                };
                self.trace.tell(self.now, Place::At(at), text);
            }
        }
        let now = core.commit_index();
        if now > commit {
            self.trace
                .tell(self.now, Place::At(at), || format!("{node} knows that {now} is committed"));
        }
    }

    pub(super) fn packet(&self, envelope: Box<Envelope>) -> Packet {
        if !self.schedule.options.network.encodes {
            return Packet::Message(envelope);
        }
        let mut bytes = Vec::with_capacity(USUAL_MESSAGE_BYTES);
        envelope.encode(&mut bytes);
        Packet::Encoded(Bytes::from(bytes))
    }

    fn answer(
        &mut self,
        at: usize,
        to: ReturnPath,
        identity: Identity,
        outcome: Outcome,
        body: Bytes,
    ) {
        let client = Client::position_of(to);
        self.trace.tell(self.now, Place::At(at), || {
            let identity = trace::identity_of(&identity);
            format!("{} answers client {client}: {identity} {outcome:?}", at + 1)
        });
        let reply = Box::new(Reply { identity, outcome, body });
        self.send(at, self.endpoint_of(to), Packet::Reply(reply));
    }

    pub(super) fn endpoint_of(&self, to: ReturnPath) -> Endpoint {
        self.replicas.len() + Client::position_of(to)
    }

    fn deliver_to_client(&mut self, at: usize, packet: Packet) -> Result<(), Violation> {
        let Packet::Reply(reply) = packet else {
            // Not admitted: its next try comes when it would have come anyway.
            return Ok(());
        };
        let Reply { identity, outcome, body } = *reply;
        self.tally.reused += u64::from(outcome == Outcome::IdentityReused);
        let Some(completion) = self.clients[at].reply(self.now, identity, outcome, body) else {
            self.tally.unawaited += 1;
            return Ok(());
        };
        self.tally.answers += 1;
        let is_refusal = completion.target.is_some() && outcome == Outcome::Refused;
        self.tally.refusals += u64::from(is_refusal);
        let place = Place::At(self.replicas.len() + at);
        self.trace.tell(self.now, place, || {
            format!("client {at} has its answer: {} {outcome:?}", trace::identity_of(&identity))
        });
        self.invariants.completed(&completion)?;
        self.wake_client(at);
        Ok(())
    }
}
