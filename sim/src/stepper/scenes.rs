//! The stepper by hand, for stories.

use std::time::Duration;

use hovercraft::core::{InstallStep, Status};

use super::{Event, Stepper, injection::BY_HAND};
use crate::{
    faults::Leaves,
    invariants::Violation,
    network::Pipe,
    options::Options,
    schedule::Schedule,
    trace::{Place, Trace},
    workload::Operation,
};

impl Stepper {
    /// A cluster whose story is kept from the start.
    pub fn with_story(options: Options) -> Self {
        Self::build(Schedule::calm(options), std::sync::Arc::new(crate::Registers), Trace::story())
    }

    /// A line between those of the story.
    pub fn narrate(&mut self, line: &str) {
        self.trace.narrate(self.now, line);
    }

    /// What was told so far is not worth telling.
    pub fn forget_story(&mut self) {
        self.trace.forget();
    }

    /// A client does something.
    pub fn tell(&mut self, client: usize, operation: Operation) {
        self.clients[client].tell(operation.command());
        self.wake_client(client);
    }

    /// Goes on for a while.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.now + time;
        while self.agenda.next_at().is_some_and(|at| at <= end) {
            self.step()?;
        }
        self.now = end;
        Ok(())
    }

    /// Goes on until something is the case, for `patience` at most.
    pub fn run_until(
        &mut self,
        patience: Duration,
        is_case: impl Fn(&Self) -> bool,
    ) -> Result<(), Violation> {
        let end = self.now + patience;
        while !is_case(self) {
            self.step()?;
            if self.now > end {
                let what = format!("what was expected within {patience:?} did not happen");
                return Err(Violation { invariant: "progress", rule: "story", what });
            }
        }
        Ok(())
    }

    /// Whether all clients have all their answers.
    pub fn clients_are_done(&self) -> bool {
        self.clients.iter().all(super::Client::is_done)
    }

    /// A replica, by its position, dies.
    pub fn kill_replica(&mut self, at: usize) {
        self.kill(at, Leaves::Prefix);
    }

    /// The service of a replica panics.
    pub fn poison_replica(&mut self, at: usize) {
        let node = at + 1;
        let place = Place::At(at);
        self.trace.fault(self.now, place, || format!("the service of {node} panics"));
        self.replicas[at].poison(self.now);
        self.agenda.add(self.now, Event::Turn(self.process(at)));
    }

    /// What a replica says of itself; none if it is down.
    pub fn status(&self, at: usize) -> Option<Status> {
        self.replicas[at].life.as_ref().map(|life| life.core.status())
    }

    /// The step of the install that a replica is in.
    pub fn install_step(&self, at: usize) -> Option<InstallStep> {
        self.replicas[at].life.as_ref().and_then(|life| life.core.install_step())
    }

    /// A replica that died starts again.
    pub fn start_replica(&mut self, at: usize) {
        self.restart(at);
    }

    /// Nothing gets from one replica to another any more.
    pub fn cut_replicas(&mut self, from: usize, to: usize) {
        self.network.cut(self.now, BY_HAND, from, to, false);
    }

    /// Nothing gets from a client to a replica any more.
    pub fn cut_client(&mut self, client: usize, replica: usize) {
        self.network.cut(self.now, BY_HAND, self.replicas.len() + client, replica, false);
    }

    /// Nothing gets from a replica to a client any more.
    pub fn cut_replies(&mut self, replica: usize, client: usize) {
        self.network.cut(self.now, BY_HAND, replica, self.replicas.len() + client, false);
    }

    /// A replica's one link to all others carries only so much from now on.
    pub fn narrow_replica(
        &mut self,
        at: usize,
        kbit_per_s: u32,
        queue_bytes: u32,
        delay: Duration,
    ) {
        self.network.narrow(Pipe::new((BY_HAND, at), kbit_per_s, queue_bytes, delay));
    }

    /// All links are whole again.
    pub fn mend_links(&mut self) {
        self.network.mend(BY_HAND);
    }
}
