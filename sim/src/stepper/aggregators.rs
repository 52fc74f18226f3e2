//! The aggregators of `hovercraft++`: processes without a disk, which die and forget (P27).

use hovercraft::{messages::Envelope, switch::Aggregator};

use super::{Event, Packet, Stepper};
use crate::{
    faults::{Target, Ways},
    history::position,
    invariants::Violation,
    network::{Cause, Endpoint},
    trace::Place,
};

impl Stepper {
    /// Aggregators come last among the endpoints.
    pub(super) fn first_aggregator(&self) -> Endpoint {
        self.replicas.len() + self.clients.len()
    }

    fn find_aggregator(&self, number: usize) -> usize {
        number.saturating_sub(1) % self.aggregators.len()
    }

    /// A replica has something for the aggregator; if there are two by a mistake, for both.
    pub(super) fn send_to_aggregators(
        &mut self,
        at: usize,
        envelope: &Envelope,
    ) -> Result<(), Violation> {
        let nobody = hovercraft::NodeId::AGGREGATOR;
        self.invariants.sent(&self.replicas, at, nobody, envelope)?;
        for to in 0..self.aggregators.len() {
            let packet = self.packet(Box::new(envelope.clone()), false);
            self.send(at, self.first_aggregator() + to, packet);
        }
        Ok(())
    }

    pub(super) fn deliver_to_aggregator(&mut self, to: Endpoint, packet: &Packet) {
        let number = to - self.first_aggregator();
        let envelope = match packet {
            Packet::Message(envelope) => envelope.as_ref().clone(),
            Packet::Encoded(bytes) => {
                Envelope::decode(bytes).expect("an aggregator understands what a replica says")
            }
            _ => return,
        };
        let Some(aggregator) = &mut self.aggregators[number] else { return };
        let followers: Vec<_> = if aggregator.handle_message(self.now, &envelope) {
            aggregator.followers().map(|member| position(member.id)).collect()
        } else {
            Vec::new()
        };
        let announcement = aggregator.poll_announcement();
        let members: Vec<_> = aggregator.members().map(|member| position(member.id)).collect();
        for at in followers {
            self.send(to, at, packet.clone());
        }
        if let Some(envelope) = announcement {
            self.announce(to, &members, &envelope);
        }
    }

    fn announce(&mut self, from: Endpoint, members: &[usize], envelope: &Envelope) {
        self.coverage.add("announcements of aggregators", 1);
        for &at in members {
            let packet = self.packet(Box::new(envelope.clone()), false);
            if let Some(late) = self.network.echo(self.now, from, at) {
                let (sent, packet) = (self.now, packet.clone());
                self.coverage.add("announcements heard again", 1);
                self.agenda.add(late, Event::Deliver { from, to: at, sent, packet });
            }
            self.send(from, at, packet);
        }
    }

    pub(super) fn kill_aggregator(&mut self, number: usize) {
        let at = self.find_aggregator(number);
        self.aggregators[at] = None;
    }

    pub(super) fn start_aggregator(&mut self, number: usize) {
        let at = self.find_aggregator(number);
        let what = || format!("aggregator {number} starts again and knows nothing");
        self.trace.fault(self.now, Place::World, what);
        self.aggregators[at] = Some(Aggregator::new());
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
