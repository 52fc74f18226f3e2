//! Faults begin and end here; what they may break is decided in `atlas`.

use std::{sync::Arc, time::Duration};

use madsim::time::TimeHandle;
use r2p2::Time;

use super::{STEP, World, disk::Damage, pass, switches, wrong};
use crate::{
    agenda::Agenda,
    faults::{Fault, Leaves, Sides, Switches, Target, Ways},
    invariants::Violation,
    network::Cause,
    trace::Place,
};

/// What a fault did ends.
#[derive(Debug, Clone, Copy)]
enum Relief {
    Nothing,
    Restart(usize),
    RestartAll,
    Repair(usize),
    Resume(usize),
    QuickDisk(usize),
    QuickNode(usize),
    StartSwitch,
    Mend(Cause),
    /// The cuts of a flapping link come or go.
    Flap(Cause, bool),
}

impl World {
    /// Injects the faults of the schedule, and takes them back.
    pub(super) async fn go_wrong(&mut self) -> Result<(), Violation> {
        let begin = TimeHandle::current().elapsed();
        let faults = Arc::clone(&self.plan.faults);
        let mut faults = faults.iter().enumerate().peekable();
        let mut reliefs = Agenda::new();
        loop {
            let now = TimeHandle::current().elapsed().saturating_sub(begin);
            if now >= self.plan.chaos() {
                return Ok(());
            }
            self.look()?;
            let is_due = |at: Time| at <= Time::ZERO + now;
            while reliefs.next_at().is_some_and(is_due)
                && let Some((_, relief)) = reliefs.next()
            {
                self.relieve(relief, now, &mut reliefs);
            }
            while let Some((number, timed)) =
                faults.next_if(|(_, timed)| Duration::from_micros(timed.at_us) <= now)
            {
                self.inject(number, &timed.fault, now, &mut reliefs)?;
            }
            let next = faults.peek().map(|(_, timed)| Duration::from_micros(timed.at_us));
            let relief = reliefs.next_at().map(|at| at.since(Time::ZERO));
            let due = next.into_iter().chain(relief).min().unwrap_or(Duration::MAX);
            pass(due.saturating_sub(now).min(STEP)).await;
        }
    }

    /// The fault with this number comes up.
    fn inject(
        &mut self,
        number: Cause,
        fault: &Fault,
        now: Duration,
        reliefs: &mut Agenda<Relief>,
    ) -> Result<(), Violation> {
        if !self.may_happen(fault) {
            return Ok(());
        }
        self.coverage.add(fault.kind().name(), 1);
        let place = fault.target().map_or(Place::World, |target| Place::At(self.find(target)));
        self.watcher.tell(place, format!("fault {number}: {fault}"));
        let length = Duration::from_micros(fault.length_us().unwrap_or_default());
        let (after, relief) = match fault {
            Fault::Loss { .. }
            | Fault::Duplication { .. }
            | Fault::Reordering { .. }
            | Fault::Corruption { .. }
            | Fault::DelayTail { .. }
            | Fault::Echo { .. }
            | Fault::Mtu { .. } => {
                self.fabric.disturb(number, fault.clone());
                (length, Relief::Mend(number))
            }
            Fault::Partition { sides, ways, eats, switches, .. } => {
                self.part(number, sides, *ways, *eats);
                self.part_switch(number, sides, *ways, *switches);
                (length, Relief::Mend(number))
            }
            Fault::Flapping { .. } => (Duration::ZERO, Relief::Flap(number, true)),
            Fault::Deafen { target, .. } | Fault::Mute { target, .. } => {
                let is_deaf = matches!(fault, Fault::Deafen { .. });
                self.cut_off_clients(number, self.find(*target), is_deaf);
                (length, Relief::Mend(number))
            }
            Fault::Blackout { leaves, .. } => {
                (0..self.replicas.len()).for_each(|at| self.kill(at, *leaves));
                (length, Relief::RestartAll)
            }
            Fault::KillAggregator { for_good, .. } => {
                self.switch.iter_mut().for_each(|switch| switch.kill(*for_good));
                (length, Relief::StartSwitch)
            }
            Fault::CutAggregator { replica, ways, for_good, .. } => {
                let at = self.find(Target::Replica(*replica));
                self.cut_off_switch(number, at, *ways, *for_good);
                (length, Relief::Mend(number))
            }
            other => (length, self.hit(other, length)?),
        };
        reliefs.add(Time::ZERO + now + after, relief);
        Ok(())
    }

    /// A fault of one replica; what ends it.
    fn hit(&mut self, fault: &Fault, length: Duration) -> Result<Relief, Violation> {
        let at = self.find(fault.target().expect("the others have been taken care of"));
        Ok(match *fault {
            Fault::Kill { leaves, .. } => {
                self.kill(at, leaves);
                Relief::Restart(at)
            }
            Fault::Restart { .. } => {
                self.replicas[at].stop();
                Relief::Restart(at)
            }
            Fault::Damage { .. } => {
                self.kill(at, Leaves::Prefix);
                let damage = self.replicas[at].disk.damage();
                let damage = damage.map_err(|what| wrong("damage is found", "P38", what))?;
                self.coverage
                    .add("disks refused because of damage", u64::from(damage == Damage::Found));
                Relief::Repair(at)
            }
            Fault::WriteError { .. } => {
                self.replicas[at].disk.break_soon();
                self.replicas[at].is_wanted = false;
                Relief::Restart(at)
            }
            Fault::FullDisk { .. } => {
                self.replicas[at].disk.fill();
                Relief::Repair(at)
            }
            Fault::SyncStall { .. } => {
                self.replicas[at].disk.stall(length);
                Relief::Nothing
            }
            Fault::SlowDisk { times, .. } => {
                self.replicas[at].disk.set_slowness(times);
                Relief::QuickDisk(at)
            }
            Fault::Pause { .. } => {
                self.replicas[at].pause(length);
                Relief::Resume(at)
            }
            Fault::SlowNode { turn_us, .. } => {
                self.replicas[at].set_slow(turn_us);
                Relief::QuickNode(at)
            }
            _ => unreachable!("the others have been taken care of"),
        })
    }

    /// What a fault did ends.
    fn relieve(&mut self, relief: Relief, now: Duration, reliefs: &mut Agenda<Relief>) {
        match relief {
            Relief::Nothing => {}
            // Once it has ended, if it is still about to stop.
            Relief::Restart(at) => self.replicas[at].is_wanted = true,
            Relief::RestartAll => self.want_all(),
            Relief::Repair(at) => {
                self.replicas[at].disk.repair();
                self.replicas[at].is_wanted = true;
            }
            Relief::Resume(at) => self.replicas[at].resume(),
            Relief::QuickDisk(at) => self.replicas[at].disk.set_slowness(1),
            Relief::QuickNode(at) => self.replicas[at].set_slow(0),
            Relief::StartSwitch => self.start_switch(),
            Relief::Mend(number) => {
                self.watcher.tell(Place::World, format!("fault {number} is over"));
                self.fabric.mend(number);
            }
            Relief::Flap(number, is_cut) => {
                let timed = self.plan.faults[number].clone();
                let Fault::Flapping { sides, ways, period_us, for_us } = timed.fault else {
                    return;
                };
                self.fabric.mend(number);
                let end = Duration::from_micros(timed.at_us + for_us);
                if now >= end {
                    return;
                }
                if is_cut {
                    self.part(number, &sides, ways, false);
                }
                let next = now + Duration::from_micros(period_us.max(1));
                reliefs.add(Time::ZERO + next.min(end), Relief::Flap(number, !is_cut));
            }
        }
    }

    fn kill(&mut self, at: usize, leaves: Leaves) {
        self.replicas[at].lost |= !self.survives_blackouts();
        self.replicas[at].kill(leaves);
        self.watcher.bury(self.replicas[at].id, &mut self.coverage);
    }

    pub(super) fn find(&self, target: Target) -> usize {
        match target {
            Target::Leader => self.watcher.leader().unwrap_or(0),
            Target::Replica(number) => (number - 1) % self.replicas.len(),
        }
    }

    /// Cuts the links between two sides.
    fn part(&mut self, number: Cause, sides: &Sides, ways: Ways, eats: bool) {
        let name = if ways == Ways::Both { "two-way cuts" } else { "one-way cuts" };
        self.coverage.add(name, 1);
        self.coverage.add("cuts that eat packets", u64::from(eats));
        let count = self.replicas.len();
        let ip = |at: usize| *self.replicas[at].address.ip();
        for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))) {
            let is_cut = sides.part(a, b, count, |target| self.find(target));
            if is_cut && ways != Ways::In {
                self.fabric.cut(number, ip(a), ip(b), eats);
            }
            if is_cut && ways != Ways::Out {
                self.fabric.cut(number, ip(b), ip(a), eats);
            }
        }
    }

    /// Cuts the links from clients to a replica, or those from it to clients.
    fn cut_off_clients(&mut self, number: Cause, at: usize, is_deaf: bool) {
        let replica = *self.replicas[at].address.ip();
        for client in &self.client_hosts {
            let (from, to) = if is_deaf { (*client, replica) } else { (replica, *client) };
            self.fabric.cut(number, from, to, false);
        }
    }

    /// Cuts the links between the switch and the side where it is not.
    fn part_switch(&mut self, number: Cause, sides: &Sides, ways: Ways, switches: Switches) {
        // What is out of the first side is in to the second.
        let (is_cut_from_first, ways) = match (switches, ways) {
            (Switches::Between, _) => return,
            (Switches::Second, ways) => (true, ways),
            (Switches::First, Ways::Out) => (false, Ways::In),
            (Switches::First, Ways::In) => (false, Ways::Out),
            (Switches::First, Ways::Both) => (false, Ways::Both),
        };
        if *sides == Sides::Ring {
            return;
        }
        for at in 0..self.replicas.len() {
            if sides.is_first(at, |target| self.find(target)) == is_cut_from_first {
                self.cut_off_switch(number, at, ways, false);
            }
        }
    }

    /// Cuts the links between the switch and a replica, whose ways they are.
    fn cut_off_switch(&mut self, number: Cause, at: usize, ways: Ways, for_good: bool) {
        let (switch, replica) = (*switches::ADDRESS.ip(), *self.replicas[at].address.ip());
        let out = (ways != Ways::In).then_some((replica, switch));
        let into = (ways != Ways::Out).then_some((switch, replica));
        for (from, to) in [out, into].into_iter().flatten() {
            if for_good {
                self.fabric.kill_line(from, to);
            } else {
                self.fabric.cut(number, from, to, false);
            }
        }
    }
}
