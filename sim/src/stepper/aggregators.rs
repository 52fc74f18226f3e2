//! The switches of `hovercraft++`: processes without a disk, which aggregate, admit and pass on
//! requests, die and forget (P24, P27).

use std::{iter, sync::Arc, time::Duration};

use hovercraft::{
    Identity, Kind, Request, ReturnPath,
    messages::Envelope,
    switch::{AdmissionConfig, Aggregator, SwitchAdmission},
};

use super::{Event, Packet, Stepper};
use crate::{
    faults::{Sides, Switches, Target, Ways},
    history::position,
    invariants::Violation,
    network::{Cause, Endpoint},
    options::Options,
    trace::Place,
};

/// What a switch has in memory.
#[derive(Debug)]
pub(super) struct Machine {
    aggregator: Aggregator,
    admission: SwitchAdmission,
}

/// After so long a request that was admitted does not count any more.
const AGE_MAX: Duration = Duration::from_millis(300);

impl Machine {
    pub(super) fn new(options: &Options) -> Self {
        let limit = options.cluster.admission_limit;
        let config = AdmissionConfig { limit, age_max: AGE_MAX, slo: None };
        let admission = SwitchAdmission::new(config, options.seed);
        Self { aggregator: Aggregator::new(), admission }
    }
}

impl Stepper {
    /// Aggregators come last among the endpoints.
    pub(super) fn first_aggregator(&self) -> Endpoint {
        self.replicas.len() + self.clients.len()
    }

    fn find_aggregator(&self, number: usize) -> usize {
        number.saturating_sub(1) % self.machines.len()
    }

    /// A replica has something for the aggregator; if there are two by a mistake, for both.
    pub(super) fn send_to_aggregators(
        &mut self,
        at: usize,
        mut envelope: Box<Envelope>,
    ) -> Result<(), Violation> {
        let nobody = hovercraft::NodeId::AGGREGATOR;
        self.invariants.sent(self.now, &self.replicas, at, nobody, &envelope)?;
        self.network.flip(at, self.first_aggregator(), &mut envelope.message);
        let copies = iter::repeat_n(self.packet(envelope), self.machines.len());
        for (number, packet) in copies.enumerate() {
            self.send_with_echo(at, self.first_aggregator() + number, packet);
        }
        Ok(())
    }

    pub(super) fn deliver_to_aggregator(
        &mut self,
        to: Endpoint,
        packet: Packet,
    ) -> Result<(), Violation> {
        let number = to - self.first_aggregator();
        let decoded;
        let envelope = match &packet {
            Packet::Message(envelope) => envelope,
            Packet::Encoded(bytes) => {
                decoded = Envelope::decode(bytes);
                decoded.as_ref().expect("an aggregator understands what a replica says")
            }
            Packet::Request(request, path) => {
                self.request_at_switch(to, request, *path);
                return Ok(());
            }
            Packet::Feedback(identity) => {
                if let Some(machine) = &mut self.machines[number] {
                    machine.admission.answered(self.now, identity);
                }
                return Ok(());
            }
            Packet::Reply(_) | Packet::Drop => return Ok(()),
        };
        let Some(Machine { aggregator, .. }) = &mut self.machines[number] else { return Ok(()) };
        let followers: Vec<_> = if aggregator.handle_message(self.now, envelope) {
            aggregator.followers().map(|member| position(member.id)).collect()
        } else {
            Vec::new()
        };
        let announcement = aggregator.poll_announcement();
        let members: Vec<_> = aggregator.members().map(|member| position(member.id)).collect();
        self.send_to_all(to, followers.into_iter(), packet);
        if let Some(envelope) = announcement {
            self.invariants.announced(&self.replicas, &envelope)?;
            self.announce(to, &members, &envelope);
        }
        Ok(())
    }

    fn announce(&mut self, from: Endpoint, members: &[usize], envelope: &Envelope) {
        self.tally.announcements += 1;
        let packet = self.packet(Box::new(envelope.clone()));
        for (&at, packet) in members.iter().zip(iter::repeat_n(packet, members.len())) {
            self.send_with_echo(from, at, packet);
        }
    }

    /// From or to an aggregator; perhaps it is heard again long after.
    fn send_with_echo(&mut self, from: Endpoint, to: Endpoint, packet: Packet) {
        if let Some(late) = self.network.echo(self.now, from, to) {
            let (sent, packet) = (self.now, packet.clone());
            self.coverage.add("packets of aggregators heard again", 1);
            self.agenda.add(late, Event::Deliver { from, to, sent, packet });
        }
        self.send(from, to, packet);
    }

    /// A client's request comes by the switch (P3, P23).
    fn request_at_switch(&mut self, from: Endpoint, request: &Arc<Request>, path: ReturnPath) {
        let number = from - self.first_aggregator();
        let Some(machine) = &mut self.machines[number] else { return };
        let undroppable = request.kind() == Kind::Cancel;
        let (identity, client) = (request.identity(), path.address);
        if !machine.admission.admit(self.now, identity, client, undroppable) {
            self.coverage.add("requests refused by a switch", 1);
            self.send(from, self.endpoint_of(path), Packet::Drop);
            return;
        }
        self.tally.requests_by_switch += 1;
        let packet = Packet::Request(Arc::clone(request), path);
        self.send_to_all(from, 0..self.replicas.len(), packet);
    }

    /// Whoever answers or refuses says so to the switch (P19).
    pub(super) fn tell_switch(&mut self, at: usize, identity: Identity) {
        if self.schedule.options.cluster.by_switch {
            self.send(at, self.first_aggregator(), Packet::Feedback(identity));
        }
    }

    /// When everything is done, nothing is in the system after one age (P24).
    pub(super) fn check_admission(&mut self) -> Result<(), Violation> {
        let later = self.now + AGE_MAX;
        for machine in self.machines.iter_mut().flatten() {
            machine.admission.handle_timeout(later);
            if !machine.admission.is_empty() {
                let what = format!("{} requests count for ever", machine.admission.len());
                return Err(Violation { invariant: "capacity", rule: "P24", what });
            }
        }
        Ok(())
    }

    pub(super) fn kill_aggregator(&mut self, number: usize) {
        let at = self.find_aggregator(number);
        self.machines[at] = None;
    }

    pub(super) fn start_aggregator(&mut self, number: usize) {
        let at = self.find_aggregator(number);
        let what = || format!("aggregator {number} starts again and knows nothing");
        self.trace.fault(self.now, Place::World, what);
        self.machines[at] = Some(Machine::new(&self.schedule.options));
    }

    /// Cuts the links between aggregators and the side where they are not.
    pub(super) fn part_aggregators(
        &mut self,
        cause: Cause,
        sides: &Sides,
        ways: Ways,
        switches: Switches,
    ) {
        // What is out of the first side is in to the second.
        let (is_cut_from_first, out, into) = match switches {
            Switches::Between => return,
            Switches::First => (false, Ways::In, Ways::Out),
            Switches::Second => (true, Ways::Out, Ways::In),
        };
        if *sides == Sides::Ring {
            return;
        }
        for at in 0..self.replicas.len() {
            if sides.is_first(at, |target| self.find(target)) != is_cut_from_first {
                continue;
            }
            let first = self.first_aggregator();
            for aggregator in first..first + self.machines.len() {
                if ways != into {
                    self.network.cut(self.now, cause, at, aggregator, false);
                }
                if ways != out {
                    self.network.cut(self.now, cause, aggregator, at, false);
                }
            }
        }
    }

    /// Cuts the links between an aggregator and a replica, whose ways they are.
    pub(super) fn cut_aggregator(
        &mut self,
        cause: Cause,
        number: usize,
        replica: usize,
        ways: Ways,
        for_good: bool,
    ) {
        let aggregator = self.first_aggregator() + self.find_aggregator(number);
        let at = self.find(Target::Replica(replica));
        let out = (ways != Ways::In).then_some((at, aggregator));
        let into = (ways != Ways::Out).then_some((aggregator, at));
        for (from, to) in [out, into].into_iter().flatten() {
            if for_good {
                self.network.kill_link(from, to);
            } else {
                self.network.cut(self.now, cause, from, to, false);
            }
        }
    }
}
