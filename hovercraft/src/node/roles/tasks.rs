//! Roles as tasks of a simulated node, which die with it: every wait suspends.

use std::{
    fmt,
    future::Future,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

use super::{Next, Panicked};
use crate::storage::LogStore;

pub(crate) use tokio::sync::mpsc::UnboundedSender as Sender;

/// How long a role may be held up between two pieces of work.
const BREATH_MAX_NS: u64 = 20_000;

/// A role at work.
pub(crate) struct Role<T>(JoinHandle<T>);

/// Starts a role in a task of its own.
#[expect(clippy::unnecessary_wraps, reason = "a thread may not start")]
pub(crate) fn spawn<T: Send + 'static>(
    _name: &str,
    role: impl Future<Output = T> + Send + 'static,
) -> io::Result<Role<T>> {
    Ok(Role(tokio::spawn(role)))
}

impl<T> Role<T> {
    /// Waits until the role has ended.
    pub(crate) async fn join(self) -> Result<T, Panicked> {
        self.0.await.map_err(|_| Panicked)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> fmt::Debug for Role<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Role")
    }
}

/// A channel from one role to another. What is in it is bounded by what the core has under way.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Receiver(receiver))
}

pub(crate) struct Receiver<T>(mpsc::UnboundedReceiver<T>);

impl<T> Receiver<T> {
    pub(crate) fn try_next(&mut self) -> Option<T> {
        self.0.try_recv().ok()
    }

    /// Waits for the next message, for `timeout` at most if there is one.
    pub(crate) async fn next(&mut self, timeout: Option<Duration>) -> Next<T> {
        let Some(timeout) = timeout else {
            return self.0.recv().await.map_or(Next::Closed, Next::Message);
        };
        tokio::select! {
            biased;
            message = self.0.recv() => message.map_or(Next::Closed, Next::Message),
            () = pass(timeout) => Next::TimedOut,
        }
    }
}

/// Lets the other roles run, and the network, for a time that the seed decides.
pub(crate) async fn breathe() {
    let nanos = madsim::rand::random::<u64>() % BREATH_MAX_NS;
    pass(Duration::from_nanos(nanos)).await;
}

/// The time that a simulated disk takes for what is asked of it next.
pub(crate) fn disk_time(store: &mut dyn LogStore) -> impl Future<Output = ()> + Send + use<> {
    pass(store.simulated_latency())
}

/// Lets time pass. A plain `sleep` of madsim lasts for a millisecond at least.
async fn pass(time: Duration) {
    let mut sleep = pin!(sleep(time));
    sleep.as_mut().reset(Instant::now() + time);
    sleep.await;
}
