//! The clients: when they act, and whom they ask.

use std::{sync::Arc, time::Duration};

use hovercraft::{
    Member, Request, ReturnPath,
    core::Mode,
    messages::{Envelope, Message, WholeRequest},
};

use super::{Event, Packet, Stepper};
use crate::{
    client::Outgoing,
    trace::{self, Place},
};

impl Stepper {
    pub(super) fn client_turn(&mut self, position: usize) {
        let endpoint = self.replicas.len() + position;
        if self.wakes[endpoint] != Some(self.now) {
            // An answer came first, and with it an earlier turn.
            return;
        }
        self.wakes[endpoint] = None;
        let floor = self.invariants.floor();
        for outgoing in self.clients[position].turn(self.now, floor) {
            self.send_request(position, outgoing);
        }
        self.wake_client(position);
    }

    pub(super) fn wake_client(&mut self, position: usize) {
        let endpoint = self.replicas.len() + position;
        let Some(at) = self.clients[position].next_turn() else { return };
        let at = at.max(self.now);
        if self.wakes[endpoint].is_none_or(|wake| wake > at) {
            self.wakes[endpoint] = Some(at);
            self.agenda.add(at, Event::Client(position));
        }
    }

    /// Sends a request to the leader as if a replica had passed it on, which nobody's intake has
    /// seen: what apply says of it counts (P21).
    fn forge(&mut self, position: usize, request: &Request, path: ReturnPath) {
        let count = self.replicas.len();
        let Some(leader) = self.leader().filter(|_| count > 1) else { return };
        let Some(life) = &self.replicas[leader].life else { return };
        let state = life.core.hard_state();
        let Some(birth) = &state.birth else { return };
        let Member { id, incarnation, .. } = birth.configuration.members[(leader + 1) % count];
        let envelope = Box::new(Envelope {
            cluster: birth.cluster,
            from: id,
            incarnation,
            term: state.term,
            message: Message::Forward { request: WholeRequest::new(request, Some(path)) },
        });
        self.send(count + position, leader, Packet::Message(envelope));
    }

    /// Something has happened after which the clients leave the replicas alone for a while.
    pub(super) fn be_quiet(&mut self) {
        let quiet_us = self.schedule.options.quiet_us;
        if quiet_us == 0 || self.now < self.quiet_again_at {
            return;
        }
        let until = self.now + Duration::from_micros(quiet_us);
        // As long again they are not kept from working.
        self.quiet_again_at = until + Duration::from_micros(quiet_us);
        self.quiet_from = self.quiet_from.max(until);
        self.coverage.add("quiet windows", 1);
        for client in &mut self.clients {
            client.quiet_until = until;
        }
    }

    fn send_request(&mut self, position: usize, outgoing: Outgoing) {
        let Outgoing { request, path, attempt, is_forged } = outgoing;
        let count = self.replicas.len();
        self.tally.retries += u64::from(attempt > 0);
        let place = Place::At(count + position);
        self.trace.tell(self.now, place, || {
            let again = if attempt > 0 { " again" } else { "" };
            let request = trace::request(&request, self.workload.as_ref());
            format!("client {position} asks{again}: {request}")
        });
        if is_forged {
            self.forge(position, &request, path);
            return;
        }
        // A switch that is dead or refuses must not keep a request for ever.
        if self.schedule.options.cluster.by_switch && attempt < 2 {
            let switch = self.first_aggregator();
            self.send(count + position, switch, Packet::Request(request, path));
            return;
        }
        let is_raft = self.schedule.options.cluster.mode == Mode::Raft;
        let to = if is_raft {
            let preferred = &mut self.preferred[position];
            *preferred += usize::from(attempt > 0);
            *preferred % count..*preferred % count + 1
        } else {
            0..count
        };
        for to in to {
            self.send(count + position, to, Packet::Request(Arc::clone(&request), path));
        }
    }
}
