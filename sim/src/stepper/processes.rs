//! The replicas' processes: what they are given, when they act on it, and what they wait for.

use super::{Event, INBOX_MAX, Process, Stepper};
use crate::{invariants::Violation, network::up_to, replica::Input};

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
        let delay = up_to(&mut self.rngs[process.at], self.options.pace.turn_max);
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
        let effects = replica.turn(self.now);
        self.observe(process.at)?;
        self.act(process.at, effects)?;
        self.schedule(process);
        Ok(())
    }

    pub(super) fn wake(&mut self, process: Process) -> Result<(), Violation> {
        if !self.is_running(process) || self.wakes.get(&process.at) != Some(&self.now) {
            return Ok(());
        }
        self.wakes.remove(&process.at);
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
        self.schedule(process);
        Ok(())
    }

    pub(super) fn disk_done(&mut self, process: Process) -> Result<(), Violation> {
        if !self.is_running(process) {
            return Ok(());
        }
        for done in self.replicas[process.at].disk.complete() {
            self.input(process, done.into())?;
        }
        self.schedule(process);
        Ok(())
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
        let Some((index, effects)) = replica.apply_next() else { return Ok(()) };
        self.act(process.at, effects)?;
        self.input(process, Input::Applied(index))?;
        self.schedule(process);
        Ok(())
    }

    /// Sees to it that what a replica waits for will happen.
    fn schedule(&mut self, process: Process) {
        let replica = &mut self.replicas[process.at];
        if let Some(after) = replica.disk.begin() {
            self.agenda.add(self.now + after, Event::Disk(process));
        }
        let Some(life) = &mut replica.life else { return };
        if let Some(apply_max) = self.options.pace.apply_max
            && !life.is_applying
            && !life.tasks.is_empty()
        {
            life.is_applying = true;
            let after = up_to(&mut self.rngs[process.at], apply_max);
            self.agenda.add(self.now + after, Event::Apply(process));
        }
        if let Some(deadline) = life.core.poll_timeout() {
            let at = replica.clock.global(deadline).max(self.now).max(replica.paused_until);
            if self.wakes.get(&process.at).is_none_or(|wake| *wake > at || *wake < self.now) {
                self.wakes.insert(process.at, at);
                self.agenda.add(at, Event::Wake(process));
            }
        }
    }
}
