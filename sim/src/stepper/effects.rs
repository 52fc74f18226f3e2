//! What replicas do to the world, and what the invariants say to it.

use bytes::Bytes;
use hovercraft::{Identity, Outcome, ReturnPath, messages::Envelope};
use r2p2::Time;

use super::{Event, Packet, Stepper};
use crate::{
    client::Client,
    history::{Change, Mirror, position},
    invariants::{Application, Violation},
    network::Endpoint,
    replica::{Effect, Input},
    trace,
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
        if to >= self.replicas.len() {
            return self.deliver_to_client(to - self.replicas.len(), packet);
        }
        if self.replicas[to].life.is_none() {
            return Ok(());
        }
        let envelope = match packet {
            Packet::Request(request, path) => {
                let sender = from - self.replicas.len();
                self.trace.mention(self.now, || {
                    let request = trace::request(&request);
                    format!("client {sender} → {}  {request}", to + 1)
                });
                return self.input(self.process(to), Input::Request(request, path));
            }
            Packet::Message(envelope) => *envelope,
            Packet::Encoded(bytes) => {
                Envelope::decode(&bytes).expect("a replica understands what another one says")
            }
            Packet::Reply { .. } | Packet::Drop => return Ok(()),
        };
        self.trace.message(self.now, self.replicas[to].node, &envelope);
        self.input(self.process(to), Input::Message(envelope))
    }

    /// Does what a replica asked for, in its order.
    pub(super) fn act(&mut self, at: usize, effects: Vec<Effect>) -> Result<(), Violation> {
        for effect in effects {
            match effect {
                Effect::Send { to, mut envelope } => {
                    self.invariants.sent(&self.replicas, at, to, &envelope)?;
                    self.network.damage(at, position(to), &mut envelope.message);
                    self.send(at, position(to), self.packet(envelope));
                }
                Effect::Reply { to, identity, outcome, body } => {
                    self.answer(at, to, identity, outcome, body);
                }
                Effect::Drop { to, identity } => {
                    self.trace.tell(self.now, || {
                        let identity = trace::identity_of(&identity);
                        format!("{} has no room for {identity}", at + 1)
                    });
                    self.send(at, self.endpoint_of(to), Packet::Drop);
                }
                Effect::Applied { committed, call, state } => {
                    let node = self.replicas[at].node;
                    self.trace.tell(self.now, || {
                        let what = match &call {
                            Some(call) if call.is_query => "reads for",
                            Some(_) => "executes",
                            None => "passes",
                        };
                        format!("{node} {what} {}", committed.index)
                    });
                    let (committed, call) = (&committed, call.as_ref());
                    self.coverage
                        .add("writes executed", u64::from(call.is_some_and(|c| !c.is_query)));
                    self.coverage
                        .add("reads executed", u64::from(call.is_some_and(|c| c.is_query)));
                    self.invariants.applied(&Application { node, committed, call, state })?;
                }
                Effect::Restored(snapshot, state) => {
                    let node = self.replicas[at].node;
                    let index = snapshot.meta.index;
                    let last = self.invariants.mirror(at).map_or(0, Mirror::last);
                    self.coverage.add("snapshots installed below a tail", u64::from(last > index));
                    self.trace.tell(self.now, || format!("{node} installs a snapshot of {index}"));
                    self.invariants.restored(node, &snapshot, state)?;
                }
                Effect::RefusedSnapshot => self.coverage.add("snapshots refused", 1),
                Effect::TookSnapshot(snapshot) => {
                    let after = self.replicas[at].disk.duration();
                    let index = snapshot.meta.index;
                    self.trace.tell(self.now, || format!("{} takes a snapshot of {index}", at + 1));
                    let event = Event::Snapshot(self.process(at), Box::new(snapshot));
                    self.agenda.add(self.now + after, event);
                }
                Effect::Stop(conflict) => {
                    let what = conflict.to_string();
                    return Err(Violation { invariant: "no conflict", rule: "P38", what });
                }
            }
        }
        Ok(())
    }

    /// Looks at what a replica's turn did to its log.
    pub(super) fn observe(&mut self, at: usize) -> Result<(), Violation> {
        let led = self.leader();
        let commit = self.invariants.mirror(at).map_or(0, |mirror| mirror.commit);
        let change = self.invariants.turn_ended(&self.replicas, at)?;
        if let Some(change) = change.filter(|_| self.trace.is_on()) {
            self.tell_change(at, commit, &change);
            if led != self.leader()
                && let Some(leader) = self.leader()
                && let Some(life) = &self.replicas[leader].life
            {
                let term = life.core.hard_state().term;
                self.trace.tell(self.now, || format!("{} leads term {term}", leader + 1));
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
            self.trace.tell(self.now, || format!("{node} takes back its last {count} entries"));
        }
        let verb = if core.is_leader() { "orders" } else { "logs" };
        for index in change.appended.clone() {
            if let Some(entry) = core.log_entry(index) {
                self.trace
                    .tell(self.now, || format!("{node} {verb} {}", trace::entry(index, entry)));
            }
        }
        let now = core.commit_index();
        if now > commit {
            self.trace.tell(self.now, || format!("{node} knows that {now} is committed"));
        }
    }

    fn packet(&self, envelope: Envelope) -> Packet {
        if !self.options.encodes {
            return Packet::Message(Box::new(envelope));
        }
        let mut bytes = Vec::new();
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
        self.trace.tell(self.now, || {
            let identity = trace::identity_of(&identity);
            format!("{} answers client {client}: {identity} {outcome:?}", at + 1)
        });
        self.send(at, self.endpoint_of(to), Packet::Reply { identity, outcome, body });
    }

    fn endpoint_of(&self, to: ReturnPath) -> Endpoint {
        self.replicas.len() + Client::position_of(to)
    }

    fn deliver_to_client(&mut self, at: usize, packet: Packet) -> Result<(), Violation> {
        let Packet::Reply { identity, outcome, body } = packet else {
            // Not admitted: its next try comes when it would have come anyway.
            return Ok(());
        };
        let is_reuse = outcome == Outcome::IdentityReused;
        self.coverage.add("identities reused", u64::from(is_reuse));
        let Some(completion) = self.clients[at].reply(identity, outcome, body) else {
            self.coverage.add("replies that nobody waited for", 1);
            return Ok(());
        };
        self.coverage.add("answers", 1);
        self.coverage.add(
            "cancellations that refused",
            u64::from(completion.target.is_some() && outcome == Outcome::Refused),
        );
        self.trace.tell(self.now, || {
            format!("client {at} has its answer: {} {outcome:?}", trace::identity_of(&identity))
        });
        self.invariants.completed(&completion)?;
        self.wake_client(at);
        Ok(())
    }
}
