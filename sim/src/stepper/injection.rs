//! Faults, kept within what the protocol promises to survive.
//!
//! In the durability `sync` everybody may die at any time. In `interval` and `memory` fewer than a
//! quorum may have lost what they acknowledged and not be back in the configuration (P37).

use std::time::Duration;

use hovercraft::storage::Durability;
use r2p2::Time;

use super::{Event, Relief, Stepper};
use crate::{
    faults::{Cut, Fault, Target},
    network::Endpoint,
    replica::Replica,
};

impl Stepper {
    pub(super) fn inject(&mut self, fault: Fault) {
        if self.healed_at.is_some() {
            return;
        }
        match fault {
            Fault::Kill(target, length) => {
                let at = self.find(target);
                if self.may_lose(at) {
                    self.coverage.add("kills", 1);
                    self.kill(at);
                    self.later(length, Relief::Restart(at));
                }
            }
            Fault::KillAll(length) => {
                if self.durability() == Durability::Sync {
                    self.coverage.add("blackouts", 1);
                    for at in 0..self.replicas.len() {
                        self.kill(at);
                        self.later(length, Relief::Restart(at));
                    }
                }
            }
            Fault::Stop(target, length) => {
                let at = self.find(target);
                self.coverage.add("stops in good order", 1);
                self.stop(at);
                self.later(length, Relief::Restart(at));
            }
            Fault::Pause(target, length) => {
                let at = self.find(target);
                self.coverage.add("pauses", 1);
                self.trace.tell(self.now, || format!("{} stands still for {length:?}", at + 1));
                let replica = &mut self.replicas[at];
                replica.paused_until = replica.paused_until.max(self.now + length);
            }
            Fault::Isolate(target, length, cut) => {
                let at = self.find(target);
                self.part(|replica| replica == at, length, cut);
            }
            Fault::Part(target, count, length, cut) => {
                let (from, all) = (self.find(target), self.replicas.len());
                self.part(|replica| (replica + all - from) % all < count, length, cut);
            }
            Fault::Deafen(target, length) => self.deafen(self.find(target), length),
            Fault::Jump(target, by_us) => {
                self.coverage.add("clock jumps", 1);
                let at = self.find(target);
                self.trace
                    .tell(self.now, || format!("the clock of {} jumps by {by_us} µs", at + 1));
                self.replicas[at].clock.jump(by_us);
            }
            Fault::SlowDisk(target, times, length) => {
                self.coverage.add("slow disks", 1);
                let at = self.find(target);
                self.trace.tell(self.now, || format!("the disk of {} is slow", at + 1));
                self.replicas[at].disk.set_slowness(times);
                self.later(length, Relief::QuickDisk(at));
            }
        }
    }

    /// What a fault did ends.
    pub(super) fn relieve(&mut self, relief: Relief) {
        match relief {
            Relief::Restart(at) => self.restart(at),
            Relief::QuickDisk(at) => self.replicas[at].disk.set_slowness(1),
            Relief::Mend => {
                self.trace.tell(self.now, || "all links are mended".to_owned());
                self.network.mend();
            }
            Relief::Heal => self.heal(),
        }
    }

    /// Nothing goes wrong from here on.
    pub(super) fn heal(&mut self) {
        if self.healed_at.is_some() {
            return;
        }
        self.healed_at = Some(self.now);
        if !self.faults.is_empty() {
            self.trace.tell(self.now, || "nothing goes wrong any more".to_owned());
        }
        self.network.calm();
        for at in 0..self.replicas.len() {
            self.replicas[at].disk.set_slowness(1);
            self.restart(at);
        }
    }

    pub(super) fn kill(&mut self, at: usize) {
        if self.replicas[at].life.is_some() {
            self.trace.tell(self.now, || format!("{} dies", at + 1));
            self.bury(at);
            self.replicas[at].kill();
        }
    }

    pub(super) fn restart(&mut self, at: usize) {
        if self.replicas[at].life.is_none() {
            self.coverage.add("restarts", 1);
            self.trace.tell(self.now, || format!("{} starts again", at + 1));
            self.start(at);
        }
    }

    pub(super) fn start(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.paused_until = Time::ZERO;
        replica.start(self.now, self.options.pace);
        self.wakes.remove(&at);
        self.invariants.started(&self.replicas[at]);
        let process = self.process(at);
        if self.durability() == Durability::Interval {
            self.agenda.add(self.now, Event::Sync(process));
        }
        self.agenda.add(self.now, Event::Turn(process));
    }

    fn stop(&mut self, at: usize) {
        if self.replicas[at].life.is_some() {
            self.trace.tell(self.now, || format!("{} stops", at + 1));
            self.bury(at);
            self.replicas[at].stop();
        }
    }

    /// Keeps the counts of a run that ends.
    fn bury(&mut self, at: usize) {
        if let Some(life) = &self.replicas[at].life {
            self.coverage.add_core(life.core.counters());
        }
    }

    fn later(&mut self, length: Duration, relief: Relief) {
        self.agenda.add(self.now + length, Event::Relief(relief));
    }

    fn durability(&self) -> Durability {
        self.replicas[0].settings.durability
    }

    fn find(&self, target: Target) -> usize {
        match target {
            Target::Leader => self.leader().unwrap_or(0),
            Target::Position(position) => position % self.replicas.len(),
        }
    }

    /// Whether a replica may lose what it has acknowledged.
    fn may_lose(&self, at: usize) -> bool {
        if self.durability() == Durability::Sync {
            return true;
        }
        let configuration = &self.invariants.history.configuration;
        let is_lost = |replica: &Replica| {
            let incarnation = replica.disk.durable_hard_state().incarnation;
            let named = configuration.member(replica.node).map(|member| member.incarnation);
            replica.lost || named != Some(incarnation)
        };
        let others = self.replicas.iter().enumerate().filter(|(other, _)| *other != at);
        let lost = others.filter(|(_, replica)| is_lost(replica)).count();
        lost + 1 < configuration.quorum()
    }

    /// Cuts the links between the replicas for which `is_inside` and all others.
    fn part(&mut self, is_inside: impl Fn(usize) -> bool, length: Duration, cut: Cut) {
        let Cut { leaves_out, leaves_in, eats } = cut;
        let one_way = leaves_out || leaves_in;
        self.coverage.add(if one_way { "one-way cuts" } else { "two-way cuts" }, 1);
        self.coverage.add("cuts that eat packets", u64::from(eats));
        let count = self.replicas.len();
        let (inside, outside): (Vec<_>, Vec<_>) = (0..count).partition(|at| is_inside(*at));
        self.trace.tell(self.now, || {
            let name = |side: &[usize]| side.iter().map(|at| at + 1).collect::<Vec<_>>();
            let (inside, outside) = (name(&inside), name(&outside));
            format!("{inside:?} and {outside:?} are cut off from each other: {cut:?}")
        });
        for a in &inside {
            for b in &outside {
                if !leaves_out {
                    self.network.cut(self.now, *a, *b, eats);
                }
                if !leaves_in {
                    self.network.cut(self.now, *b, *a, eats);
                }
            }
        }
        self.later(length, Relief::Mend);
    }

    /// Multicast reaches some replicas and not others.
    fn deafen(&mut self, at: Endpoint, length: Duration) {
        self.coverage.add("multicasts that do not reach all", 1);
        self.trace.tell(self.now, || format!("{} hears no client", at + 1));
        for client in self.replicas.len()..self.replicas.len() + self.clients.len() {
            self.network.cut(self.now, client, at, false);
        }
        self.later(length, Relief::Mend);
    }
}
