//! The replicas' processes: what they are given, when they act on it, and what they wait for.

use std::time::Duration;

use r2p2::Time;

use super::{Event, INBOX_MAX, Process, Stepper};
use crate::{disk::Done, faults::Leaves, invariants::Violation, network::up_to_us, replica::Input};

/// No fault stalls a disk for longer; only a replica that is left behind has such a disk.
const STALL_MAX: Duration = Duration::from_hours(2);

impl Stepper {
    pub(super) fn is_running(&self, process: Process) -> bool {
        let replica = &self.replicas[process.at];
        replica.run == process.run && replica.life.is_some()
    }

    pub(super) fn process(&self, at: usize) -> Process {
        Process { at, run: self.replicas[at].run }
    }

    /// Gives something to a replica, whose turn comes soon.
    pub(super) fn input(&mut self, process: Process, input: Input) -> Result<(), Violation> {
        if !self.is_running(process) {
            return Ok(());
        }
        let replica = &mut self.replicas[process.at];
        let Some(life) = &mut replica.life else { return Ok(()) };
        let is_packet = matches!(input, Input::Message(_) | Input::Request(..));
        if is_packet && life.inbox.len() >= INBOX_MAX {
            return Ok(());
        }
        life.inbox.push(input);
        if life.turn_at.is_some() {
            return Ok(());
        }
        let turn_max_us = self.schedule.options.pace.turn_max_us + replica.slow_us;
        let delay = up_to_us(&mut self.rngs[process.at], turn_max_us);
        let turn_at = (self.now + delay).max(replica.paused_until);
        life.turn_at = Some(turn_at);
        if turn_at == self.now {
            return self.turn(process);
        }
        self.agenda.add(turn_at, Event::Turn(process));
        Ok(())
    }

    pub(super) fn turn(&mut self, process: Process) -> Result<(), Violation> {
        if !self.is_running(process) {
            return Ok(());
        }
        let replica = &mut self.replicas[process.at];
        if replica.paused_until > self.now {
            self.agenda.add(replica.paused_until, Event::Turn(process));
            return Ok(());
        }
        let mut effects = std::mem::take(&mut self.effects);
        replica.turn(self.now, &mut effects);
        self.observe(process.at)?;
        self.act(process.at, effects)?;
        self.look_ahead(process);
        Ok(())
    }

    pub(super) fn wake(&mut self, process: Process) -> Result<(), Violation> {
        if !self.is_running(process) || self.wakes[process.at] != Some(self.now) {
            return Ok(());
        }
        self.wakes[process.at] = None;
        let replica = &self.replicas[process.at];
        let Some(life) = &replica.life else { return Ok(()) };
        let local = replica.clock.local(self.now);
        if life.turn_at.is_some() {
            // That turn is soon, and acts on timers too.
            return Ok(());
        }
        if life.core.poll_timeout().is_some_and(|deadline| deadline <= local) {
            return self.turn(process);
        }
        self.look_ahead(process);
        Ok(())
    }

    pub(super) fn disk_done(&mut self, process: Process) -> Result<(), Violation> {
        if !self.is_running(process) {
            return Ok(());
        }
        if let Some(later) = self.disk_moves_later(process.at) {
            self.agenda.add(later, Event::Disk(process));
            return Ok(());
        }
        let disk = &mut self.replicas[process.at].disk;
        if std::mem::take(&mut disk.fails) {
            // The first write that fails stops the node (P38).
            self.coverage.add("stops because a write failed", 1);
            self.kill(process.at, Leaves::Prefix);
            return Ok(());
        }
        let done = disk.complete(self.now);
        // Before what it is less for is said to be stored.
        if disk.is_full() {
            let room = disk.room();
            self.input(process, Input::Room(room))?;
        }
        for done in done {
            match done {
                Done::Stored(number) => self.input(process, Input::Stored(number))?,
                Done::Staged(snapshot) => self.input(process, Input::Staged(snapshot))?,
                Done::Installed => self.input(process, Input::Installed)?,
                Done::ReceivedPostponed => {
                    self.coverage.add("installs put off for want of room", 1);
                    self.input(process, Input::ReceivedPostponed)?;
                }
                Done::Own(snapshot) => self.input(process, Input::OwnSnapshot(snapshot))?,
                Done::SnapshotBegun(snapshot) => {
                    let disk = &mut self.replicas[process.at].disk;
                    let after = disk.duration();
                    disk.busy_until = self.now + after;
                    self.agenda.add(self.now + after, Event::Snapshot(process, snapshot));
                }
            }
        }
        self.look_ahead(process);
        Ok(())
    }

    /// Returns when to look again at a disk that stands still. One that does so for as long as a
    /// watch lasts is looked at again and again.
    pub(super) fn disk_moves_later(&self, at: usize) -> Option<Time> {
        const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);
        let stalled_until = self.replicas[at].disk.stalled_until;
        let is_watched = stalled_until > self.now + STALL_MAX;
        let later = if is_watched { self.now + LOOK_AGAIN_AFTER } else { stalled_until };
        (stalled_until > self.now).then_some(later)
    }

    pub(super) fn apply(&mut self, process: Process) -> Result<(), Violation> {
        if !self.is_running(process) {
            return Ok(());
        }
        let replica = &mut self.replicas[process.at];
        if replica.paused_until > self.now {
            self.agenda.add(replica.paused_until, Event::Apply(process));
            return Ok(());
        }
        if let Some(life) = &mut replica.life {
            life.is_applying = false;
        }
        let mut effects = std::mem::take(&mut self.effects);
        let Some(index) = replica.apply_next(&mut effects) else { return Ok(()) };
        self.act(process.at, effects)?;
        self.input(process, Input::Applied(index))?;
        self.look_ahead(process);
        Ok(())
    }

    /// Sees to it that what a replica waits for will happen.
    pub(super) fn look_ahead(&mut self, process: Process) {
        let replica = &mut self.replicas[process.at];
        if let Some(after) = replica.disk.begin(self.now) {
            replica.disk.busy_until = self.now + after;
            self.agenda.add(self.now + after, Event::Disk(process));
        }
        let Some(life) = &mut replica.life else { return };
        if let Some(apply_max_us) = self.schedule.options.pace.apply_max_us
            && !life.is_applying
            && !life.tasks.is_empty()
        {
            life.is_applying = true;
            let after = up_to_us(&mut self.rngs[process.at], apply_max_us);
            self.agenda.add(self.now + after, Event::Apply(process));
        }
        if let Some(deadline) = life.core.poll_timeout() {
            let at = replica.clock.global(deadline).max(self.now).max(replica.paused_until);
            if self.wakes[process.at].is_none_or(|wake| wake > at || wake < self.now) {
                self.wakes[process.at] = Some(at);
                self.agenda.add(at, Event::Wake(process));
            }
        }
    }
}
