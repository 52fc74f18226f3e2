//! The task behind the clones of a client: a session on a socket.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use r2p2::{Alarm, AsyncLink, Clock, Outbox, Time};
use tokio::sync::{mpsc, oneshot};

use super::{Call, CallError, ClientStats, Session};

/// By what a caller learns of its result.
pub(super) type Answer = oneshot::Sender<Result<Bytes, CallError>>;

/// What a client and its driver share beside the calls.
pub(super) type Stats = Arc<Mutex<ClientStats>>;

/// How often the driver looks for callers that are gone, while others wait for their places.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// One turn takes all that has arrived and all that callers want, and sends all of that together,
/// so batches grow with the load and nothing waits.
pub(super) struct Driver<L> {
    pub(super) link: L,
    pub(super) session: Session<Answer>,
    pub(super) clock: Clock,
    pub(super) stats: Stats,
    pub(super) calls: mpsc::Receiver<Call<Answer>>,
}

impl<L: AsyncLink> Driver<L> {
    /// Serves clients until the last of them is gone.
    pub(super) async fn drive(mut self) {
        match self.run().await {
            Ok(()) => tracing::debug!("the last client is gone"),
            Err(error) => tracing::error!(%error, "the client's socket broke"),
        }
    }

    async fn run(&mut self) -> io::Result<()> {
        let mut alarm = Alarm::new();
        let mut outbox = Outbox::new();
        let mut next_sweep = Time::ZERO;
        loop {
            tokio::select! {
                biased;
                readable = self.link.readable() => readable?,
                call = self.calls.recv(), if self.session.has_room() => match call {
                    Some(call) => self.session.submit(call),
                    None => return Ok(()),
                },
                () = alarm.ring() => {}
            }
            let now = self.clock.now();
            self.receive(now, &mut outbox)?;
            while self.session.has_room()
                && let Ok(call) = self.calls.try_recv()
            {
                self.session.submit(call);
            }
            if self.session.poll_timeout().is_some_and(|due| due <= now) {
                self.session.handle_timeout(now, &mut outbox);
            }
            self.session.flush(now, &mut outbox);
            if self.session.is_full() && next_sweep <= now {
                self.session.abandon(now, Answer::is_closed);
                self.session.flush(now, &mut outbox);
                next_sweep = now + SWEEP_INTERVAL;
            }
            self.link.send(&mut outbox)?;
            self.tell();
            let sweep = self.session.is_full().then_some(next_sweep);
            let due = [self.session.poll_timeout(), sweep].into_iter().flatten().min();
            alarm.ring_by(due.map(|due| self.clock.instant(due)));
        }
    }

    fn receive(&mut self, now: Time, outbox: &mut Outbox) -> io::Result<()> {
        let Self { link, session, .. } = self;
        link.receive(&mut |from, datagram| {
            if let Err(error) = session.handle_datagram(now, from, datagram, outbox) {
                tracing::debug!(%from, %error, "ignored a datagram");
            }
        })?;
        Ok(())
    }

    /// Tells callers their results.
    fn tell(&mut self) {
        let mut told = false;
        while let Some((answer, result)) = self.session.poll_result() {
            // A caller that has gone does not want to know.
            let _ = answer.send(result);
            told = true;
        }
        if told {
            // Nobody panics while holding it, and if somebody did, numbers are replaced whole.
            let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.clone_from(self.session.stats());
        }
    }
}
