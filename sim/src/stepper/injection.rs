//! Faults begin and end here; what they may break is decided in `atlas`.

use std::time::Duration;

use hovercraft::{core::InstallStep, storage::Durability};
use r2p2::Time;

use super::{Event, Relief, Stepper};
use crate::{
    faults::{Fault, Leaves, Sides, Target, Ways},
    network::{Cause, Endpoint, Pipe},
    trace::Place,
};

/// The cause of what a story cuts by hand.
pub(super) const BY_HAND: Cause = Cause::MAX;

impl Stepper {
    /// The fault with this number in the schedule comes up.
    pub(super) fn inject(&mut self, number: Cause) {
        let fault = self.schedule.faults[number].fault.clone();
        if self.healed_at.is_some() || self.watch.is_some() || !self.may_happen(&fault) {
            return;
        }
        self.coverage.add(fault.kind().name(), 1);
        let place = self.place_of(&fault);
        self.trace.fault(self.now, place, || format!("fault {number}: {fault}"));
        let ends = fault.length_us().map(|us| self.now + Duration::from_micros(us));
        let relief = match &fault {
            Fault::Loss { .. }
            | Fault::Duplication { .. }
            | Fault::Reordering { .. }
            | Fault::Corruption { .. }
            | Fault::DelayTail { .. }
            | Fault::Echo { .. }
            | Fault::BitFlip { .. }
            | Fault::Mtu { .. } => {
                self.network.disturb(number, fault.clone());
                Some(Relief::Mend(number))
            }
            Fault::Partition { sides, ways, eats, switches, .. } => {
                self.part(number, sides, *ways, *eats);
                self.part_aggregators(number, sides, *ways, *switches);
                Some(Relief::Mend(number))
            }
            Fault::Flapping { .. } => {
                self.flap(number, true);
                None
            }
            Fault::Deafen { target, .. } | Fault::Mute { target, .. } => {
                let is_deaf = matches!(fault, Fault::Deafen { .. });
                self.cut_off_clients(number, self.find(*target), is_deaf);
                Some(Relief::Mend(number))
            }
            Fault::Blackout { leaves, .. } => {
                for at in 0..self.replicas.len() {
                    self.kill(at, *leaves);
                }
                Some(Relief::RestartAll)
            }
            Fault::KillAggregator { number, for_good, .. } => {
                self.kill_aggregator(*number);
                (!for_good).then_some(Relief::StartAggregator(*number))
            }
            Fault::CutAggregator { number: aggregator, replica, ways, for_good, .. } => {
                self.cut_aggregator(number, *aggregator, *replica, *ways, *for_good);
                (!for_good).then_some(Relief::Mend(number))
            }
            Fault::Narrow { target, kbit_per_s, queue_bytes, delay_us, .. } => {
                let (place, delay) = (self.find(*target), Duration::from_micros(*delay_us));
                let pipe = Pipe::new((number, place), *kbit_per_s, *queue_bytes, delay);
                self.network.narrow(pipe);
                Some(Relief::Mend(number))
            }
            Fault::ClockJump { target, by_us } => {
                let at = self.find(*target);
                self.replicas[at].clock.jump(*by_us);
                None
            }
            other => Some(self.hit(other)),
        };
        if let (Some(relief), Some(at)) = (relief, ends) {
            self.agenda.add(at, Event::Relief(relief));
        }
    }

    /// A fault of one replica; what ends it.
    fn hit(&mut self, fault: &Fault) -> Relief {
        let now = self.now;
        match *fault {
            Fault::Kill { target, leaves, .. } => {
                let at = self.find(target);
                self.kill(at, leaves);
                Relief::Restart(at)
            }
            Fault::Restart { target, .. } => {
                let at = self.find(target);
                self.stop(at);
                Relief::Restart(at)
            }
            Fault::Damage { target, .. } => {
                let at = self.find(target);
                self.damage(at);
                Relief::Repair(at)
            }
            Fault::WriteError { target, .. } => {
                let at = self.find(target);
                self.replicas[at].disk.fails = true;
                Relief::Restart(at)
            }
            Fault::FullDisk { target, .. } => {
                let at = self.find(target);
                self.replicas[at].disk.fill();
                self.tell_room(at);
                Relief::MakeRoom(at)
            }
            Fault::OldCopy { target, .. } => {
                let at = self.find(target);
                self.copy_disk(at);
                Relief::PutBack(at)
            }
            Fault::SyncStall { target, for_us } => {
                let at = self.find(target);
                let until = now + Duration::from_micros(for_us);
                self.replicas[at].disk.stall(now, until);
                self.quiet_from = self.quiet_from.max(until);
                Relief::Nothing
            }
            Fault::SlowDisk { target, times, .. } => {
                let at = self.find(target);
                self.replicas[at].disk.set_slowness(times);
                Relief::QuickDisk(at)
            }
            Fault::Pause { target, for_us } => {
                let replica = self.find(target);
                let replica = &mut self.replicas[replica];
                let until = now + Duration::from_micros(for_us);
                replica.paused_until = replica.paused_until.max(until);
                self.invariants.paused(now, until);
                self.quiet_from = self.quiet_from.max(until);
                Relief::Nothing
            }
            Fault::SlowNode { target, turn_us, .. } => {
                let at = self.find(target);
                self.replicas[at].slow_us = turn_us;
                Relief::QuickNode(at)
            }
            Fault::ClockDrift { target, ppm, .. } => {
                let at = self.find(target);
                self.drift(at, i64::from(ppm));
                Relief::Drift(at, -i64::from(ppm))
            }
            _ => Relief::Nothing,
        }
    }

    /// What a fault did ends.
    pub(super) fn relieve(&mut self, relief: Relief) {
        match relief {
            Relief::Nothing => {}
            Relief::Restart(at) => self.restart(at),
            Relief::RestartAll => (0..self.replicas.len()).for_each(|at| self.restart(at)),
            Relief::Repair(at) => {
                self.replicas[at].disk.is_damaged = false;
                self.restart(at);
            }
            Relief::PutBack(at) => self.put_copy_back(at),
            Relief::MakeRoom(at) => {
                self.replicas[at].disk.empty();
                self.tell_room(at);
            }
            Relief::QuickDisk(at) => self.replicas[at].disk.set_slowness(1),
            Relief::QuickNode(at) => self.replicas[at].slow_us = 0,
            Relief::StartAggregator(number) => self.start_aggregator(number),
            Relief::Drift(at, ppm) => self.drift(at, ppm),
            Relief::Mend(number) => {
                let what = || format!("fault {number} is over");
                self.trace.fault(self.now, Place::World, what);
                self.network.mend(number);
            }
            Relief::Flap(number, is_cut) => self.flap(number, is_cut),
            Relief::Heal => self.heal(),
        }
    }

    /// Nothing goes wrong from here on.
    pub(super) fn heal(&mut self) {
        if self.healed_at.is_some() || self.watch.is_some() || self.leave_survivors_alone() {
            return;
        }
        self.healed_at = Some(self.now);
        if !self.schedule.faults.is_empty() {
            let what = || "nothing goes wrong any more".to_owned();
            self.trace.fault(self.now, Place::World, what);
        }
        self.network.calm();
        for at in 0..self.replicas.len() {
            self.replicas[at].slow_us = 0;
            self.replicas[at].disk.repair();
            self.tell_room(at);
            self.restart(at);
        }
    }

    /// A process hears what room its log has.
    fn tell_room(&mut self, at: usize) {
        let room = self.replicas[at].disk.room();
        self.agenda.add(self.now, Event::Room(self.process(at), room));
    }

    pub(super) fn kill(&mut self, at: usize, leaves: Leaves) {
        if self.replicas[at].life.is_some() {
            self.trace.fault(self.now, Place::At(at), || format!("{} dies", at + 1));
            self.count_killed_install(at);
            self.bury(at);
            let is_torn = self.replicas[at].kill(leaves);
            self.coverage.add("torn tails cut", u64::from(is_torn));
        }
    }

    /// A crash may come between any two steps of an install.
    fn count_killed_install(&mut self, at: usize) {
        let step = self.replicas[at].life.as_ref().and_then(|life| life.core.install_step());
        let what = match step {
            None => return,
            Some(InstallStep::TakingOwn) => "killed while taking the own snapshot",
            Some(InstallStep::Reading) => "killed while reading a snapshot",
            Some(InstallStep::Switching) => "killed while switching to a snapshot",
            Some(InstallStep::GoingBack) => "killed while going back to the own snapshot",
        };
        self.coverage.add(what, 1);
    }

    /// The process dies, not the machine: what its store notes without a sync is there, by which
    /// damage at the end of the log is told from a torn tail (P38).
    fn damage(&mut self, at: usize) {
        let ran = self.replicas[at].life.is_some();
        self.kill(at, Leaves::Everything);
        let disk = &mut self.replicas[at].disk;
        disk.is_damaged = true;
        if ran && let Some(damage) = disk.look_at_damage() {
            self.coverage.add(damage.name(), 1);
        }
        // It is noticed when it tries to start.
        self.restart(at);
    }

    pub(super) fn restart(&mut self, at: usize) {
        if self.replicas[at].life.is_some() || self.forsaken[at] {
            return;
        }
        if !self.replicas[at].disk.is_usable() {
            self.coverage.add("starts refused by the disk", 1);
            let what = || format!("{} cannot start: its disk is damaged", at + 1);
            self.trace.fault(self.now, Place::At(at), what);
            return;
        }
        self.coverage.add("restarts", 1);
        self.trace.fault(self.now, Place::At(at), || format!("{} starts again", at + 1));
        self.start(at);
    }

    pub(super) fn start(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.paused_until = Time::ZERO;
        replica.start(self.now, self.schedule.options.pace, &self.workload);
        let stale_logs = std::mem::take(&mut replica.disk.stale_logs);
        self.coverage.add("stale logs dropped at a start", stale_logs);
        self.wakes[at] = None;
        self.invariants.started(&self.replicas[at]);
        let process = self.process(at);
        if self.durability() == Durability::Interval {
            self.agenda.add(self.now, Event::Sync(process));
        }
        self.agenda.add(self.now, Event::Turn(process));
    }

    pub(super) fn stop(&mut self, at: usize) {
        if self.replicas[at].life.is_some() {
            self.trace.fault(self.now, Place::At(at), || format!("{} stops", at + 1));
            self.bury(at);
            self.replicas[at].stop();
        }
    }

    /// Every replica dies, or stops where that would lose something, and starts again.
    pub(super) fn restart_all(&mut self) {
        let what = || "everybody starts again: is everything still there?".to_owned();
        self.trace.fault(self.now, Place::World, what);
        self.healed_at = Some(self.now);
        for at in 0..self.replicas.len() {
            match self.durability() {
                Durability::Sync => self.kill(at, Leaves::Nothing),
                Durability::Interval | Durability::Memory => self.stop(at),
            }
        }
        (0..self.replicas.len()).for_each(|at| self.restart(at));
    }

    /// Keeps the counts of a run that ends.
    fn bury(&mut self, at: usize) {
        if let Some(life) = &self.replicas[at].life {
            self.coverage.add_core(life.core.counters());
        }
    }

    pub(super) fn find(&self, target: Target) -> usize {
        match target {
            Target::Leader => self.leader().unwrap_or(0),
            Target::Replica(number) => (number - 1) % self.replicas.len(),
        }
    }

    fn place_of(&self, fault: &Fault) -> Place {
        fault.target().map_or(Place::World, |target| Place::At(self.find(target)))
    }

    fn drift(&mut self, at: usize, ppm: i64) {
        self.replicas[at].clock.drift(self.now, ppm);
        // Its deadlines are at other times now.
        self.wakes[at] = None;
        if self.replicas[at].life.is_some() {
            self.look_ahead(self.process(at));
        }
    }

    fn flap(&mut self, number: Cause, is_cut: bool) {
        let timed = &self.schedule.faults[number];
        let Fault::Flapping { sides, ways, period_us, for_us } = timed.fault.clone() else {
            return;
        };
        let end = Time::ZERO + Duration::from_micros(timed.at_us + for_us);
        if self.healed_at.is_some() || self.watch.is_some() || self.now >= end {
            self.network.mend(number);
            return;
        }
        if is_cut {
            self.part(number, &sides, ways, false);
        } else {
            self.network.mend(number);
        }
        let next = self.now + Duration::from_micros(period_us.max(1));
        self.agenda.add(next.min(end), Event::Relief(Relief::Flap(number, !is_cut)));
    }

    /// Cuts the links between two sides.
    fn part(&mut self, number: Cause, sides: &Sides, ways: Ways, eats: bool) {
        let name = if ways == Ways::Both { "two-way cuts" } else { "one-way cuts" };
        self.coverage.add(name, 1);
        self.coverage.add("cuts that eat packets", u64::from(eats));
        let count = self.replicas.len();
        for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))) {
            let is_cut = sides.part(a, b, count, |target| self.find(target));
            if is_cut {
                if ways != Ways::In {
                    self.network.cut(self.now, number, a, b, eats);
                }
                if ways != Ways::Out {
                    self.network.cut(self.now, number, b, a, eats);
                }
            }
        }
    }

    /// Cuts the links from clients to a replica, or those from it to clients.
    fn cut_off_clients(&mut self, number: Cause, at: Endpoint, is_deaf: bool) {
        for client in self.replicas.len()..self.replicas.len() + self.clients.len() {
            let (from, to) = if is_deaf { (client, at) } else { (at, client) };
            self.network.cut(self.now, number, from, to, false);
        }
    }
}
