//! How the roles of a node run: the one place where a real node and a simulated one differ.
//!
//! A role is an async function, and so are its loop and whatever in it waits. In a real node it has
//! a thread of its own, and everything that it waits for blocks that thread: its future is ready
//! when it is first polled, there is no executor, and it costs nothing. In the madsim world
//! (`--cfg madsim`), where a thread would make a run unrepeatable, a role is a task, and waiting
//! suspends it. What the roles do is the same code in both.
//!
//! The clock needs no seam: madsim answers `Instant::now` and `SystemTime::now` with its own time.

#[cfg(madsim)]
mod tasks;
#[cfg(not(madsim))]
mod threads;

#[cfg(madsim)]
pub(crate) use tasks::*;
#[cfg(not(madsim))]
pub(crate) use threads::*;

/// What came of waiting for the next message of a channel.
pub(crate) enum Next<T> {
    Message(T),
    TimedOut,
    /// Nobody can send any more.
    Closed,
}

/// A role ended by a panic: a bug.
#[derive(Debug)]
pub(crate) struct Panicked;
