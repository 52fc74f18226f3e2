//! Roles in threads: every wait blocks, and returns a future that is ready.

use std::{
    future::{Future, Ready, ready},
    io,
    pin::pin,
    sync::mpsc::{self, RecvTimeoutError},
    task::{Context, Poll, Waker},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Next, Panicked};
use crate::storage::LogStore;

pub(crate) use std::sync::mpsc::Sender;

/// A role at work.
#[derive(Debug)]
pub(crate) struct Role<T>(JoinHandle<T>);

/// Starts a role in a thread of its own.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    role: impl Future<Output = T> + Send + 'static,
) -> io::Result<Role<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(|| finish(role)).map(Role)
}

/// Runs what a role does, in this thread.
pub(crate) fn finish<T>(role: impl Future<Output = T>) -> T {
    match pin!(role).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("what a role waits for blocks its thread"),
    }
}

impl<T> Role<T> {
    /// Waits until the role has ended.
    pub(crate) fn join(self) -> Ready<Result<T, Panicked>> {
        ready(self.0.join().map_err(|_| Panicked))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

/// A channel from one role to another. What is in it is bounded by what the core has under way.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    (sender, Receiver(receiver))
}

pub(crate) struct Receiver<T>(mpsc::Receiver<T>);

impl<T> Receiver<T> {
    pub(crate) fn try_next(&mut self) -> Option<T> {
        self.0.try_recv().ok()
    }

    /// Waits for the next message, for `timeout` at most if there is one.
    pub(crate) fn next(&mut self, timeout: Option<Duration>) -> Ready<Next<T>> {
        let received = match timeout {
            Some(timeout) => self.0.recv_timeout(timeout),
            None => self.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        ready(match received {
            Ok(message) => Next::Message(message),
            Err(RecvTimeoutError::Timeout) => Next::TimedOut,
            Err(RecvTimeoutError::Disconnected) => Next::Closed,
        })
    }
}

/// The kernel lets the other roles run when it likes.
pub(crate) fn breathe() -> Ready<()> {
    ready(())
}

/// A real disk takes its time itself.
pub(crate) fn disk_time(_: &mut dyn LogStore) -> Ready<()> {
    ready(())
}
