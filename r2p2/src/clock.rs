//! Time as a task sees it: the runtime's clock in the endpoints' terms, and one timer.

use std::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::Time;

/// Turns the runtime's time into that of the endpoints which a task drives.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that shows zero now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time since the start.
    pub fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    /// When it will be `time`.
    pub fn instant(&self, time: Time) -> Instant {
        self.start + time.since(Time::ZERO)
    }
}

/// One timer for all the deadlines of a task's loop. It is moved only to ring earlier: deadlines
/// are put off with every datagram, and to ring in vain is cheaper than to tell the runtime each
/// time.
#[derive(Debug)]
pub struct Alarm {
    sleep: Pin<Box<Sleep>>,
    set: bool,
}

impl Alarm {
    /// An alarm that never rings, yet.
    pub fn new() -> Self {
        Self { sleep: Box::pin(sleep_until(Instant::now())), set: false }
    }

    /// Sees to it that the alarm rings at `deadline` at the latest.
    pub fn ring_by(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && (!self.set || deadline < self.sleep.deadline())
        {
            self.sleep.as_mut().reset(deadline);
            self.set = true;
        }
    }

    /// Waits for the next ring. Cancel-safe.
    pub async fn ring(&mut self) {
        if self.set {
            self.sleep.as_mut().await;
            self.set = false;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Alarm {
    fn default() -> Self {
        Self::new()
    }
}
