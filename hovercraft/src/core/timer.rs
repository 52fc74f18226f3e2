//! The deadlines of the core.

use r2p2::Time;

/// What the core may be waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Nothing was heard of a leader: begin a pre-vote (P33).
    Election,
    /// The leader tells the followers that it is there, and begins a round.
    Heartbeat,
    /// The leader looks whether a quorum answered its rounds (P33).
    CheckQuorum,
    /// A follower's acknowledgements stand still: send again from where they stopped.
    Resend,
    /// Bodies or entries are missing: ask, or ask someone else (P9).
    Recovery,
    /// Requests in the unordered set grow old (P8), and so do identities at admission (P24).
    Expiry,
    /// The leader has not been told how far this replica has applied (P15).
    Report,
    /// A chunk of a snapshot did not come (P36).
    Snapshot,
    /// The aggregator may have been silent for too long (P32).
    Aggregator,
    /// Nothing is heard of the leader: does this replica run at all (P33)?
    Look,
}

const TIMERS: [Timer; 10] = [
    Timer::Election,
    Timer::Heartbeat,
    Timer::CheckQuorum,
    Timer::Resend,
    Timer::Recovery,
    Timer::Expiry,
    Timer::Report,
    Timer::Snapshot,
    Timer::Aggregator,
    Timer::Look,
];

/// One deadline for each timer.
#[derive(Debug)]
pub(crate) struct Timers {
    /// [`NEVER`] where a timer is stopped: what is asked after every event is the lowest of numbers.
    deadlines: [Time; TIMERS.len()],
}

const NEVER: Time = Time::from_nanos(u64::MAX);

impl Default for Timers {
    fn default() -> Self {
        Self { deadlines: [NEVER; TIMERS.len()] }
    }
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, deadline: Time) {
        self.deadlines[timer as usize] = deadline;
    }

    /// Sets the deadline unless there is one already.
    pub(crate) fn ensure(&mut self, timer: Timer, deadline: Time) {
        let current = &mut self.deadlines[timer as usize];
        if *current == NEVER {
            *current = deadline;
        }
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = NEVER;
    }

    /// Takes a timer whose deadline has come.
    pub(crate) fn expire(&mut self, now: Time) -> Option<Timer> {
        let due = TIMERS.into_iter().find(|timer| self.is_due(*timer, now))?;
        self.stop(due);
        Some(due)
    }

    /// Returns whether a timer's deadline has come.
    pub(crate) fn is_due(&self, timer: Timer, now: Time) -> bool {
        let deadline = self.deadlines[timer as usize];
        deadline <= now && deadline < NEVER
    }

    pub(crate) fn next(&self) -> Option<Time> {
        let next = self.deadlines.iter().fold(NEVER, |next, deadline| next.min(*deadline));
        (next < NEVER).then_some(next)
    }
}
