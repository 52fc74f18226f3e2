//! Waking a thread that waits for datagrams, from any other thread.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Wake, Waker},
};

use rustix::event::{EventfdFlags, eventfd};

/// The sleeper runs, and nobody has called since it last looked.
const AWAKE: u8 = 0;
/// Somebody has called; the sleeper has yet to see it.
const CALLED: u8 = 1;
/// The sleeper blocks in the kernel, or is about to.
const ASLEEP: u8 = 2;

/// What is called.
#[derive(Debug)]
struct Bell {
    state: AtomicU8,
    event: OwnedFd,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(CALLED, Ordering::AcqRel) != ASLEEP {
            return;
        }
        // The counter of an eventfd takes 2^64 - 2 calls before a write can fail, and it is set
        // back to 0 whenever the sleeper rises.
        let written = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "an eventfd refused a call: {written:?}");
    }
}

/// The side of a bell that sleeps; [`Waker`]s ring it.
#[derive(Debug)]
pub(super) struct Sleeper(Arc<Bell>);

impl Sleeper {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Bell { state: AtomicU8::new(AWAKE), event })))
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.0))
    }

    /// Whether somebody has called since [`Sleeper::rise`].
    pub(super) fn is_called(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == CALLED
    }

    /// Announces that the thread is about to block. False if somebody has called already, and then
    /// it must not block.
    pub(super) fn lie_down(&self) -> bool {
        self.0.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Announces that the thread runs again, and takes the calls so far; `rang` says whether the
    /// event was readable.
    ///
    /// A caller that saw the sleeper asleep may write the event only after this. The next wait then
    /// ends at once and without need, which costs a turn but loses nothing.
    pub(super) fn rise(&self, rang: bool) {
        if rang {
            // Only this thread reads, so a readable event has a count; were it gone, nothing is lost.
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.0.event, &mut count);
        }
        self.0.state.swap(AWAKE, Ordering::AcqRel);
    }
}

impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(sleeper: &Sleeper) -> bool {
        let mut count = [0; 8];
        rustix::io::read(sleeper, &mut count).is_ok()
    }

    #[test]
    fn a_thread_that_is_awake_is_called_without_a_system_call() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        assert!(sleeper.is_called());
        assert!(!sleeper.lie_down(), "a call is waiting");
        assert!(!rings(&sleeper), "nobody slept, so nothing was written");
        sleeper.rise(false);
        assert!(sleeper.lie_down(), "the call was taken");
    }

    #[test]
    fn many_calls_to_a_sleeper_write_once() {
        let sleeper = Sleeper::new().unwrap();
        assert!(sleeper.lie_down());
        for _ in 0..5 {
            sleeper.waker().wake();
        }
        let mut count = [0; 8];
        rustix::io::read(&sleeper, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        sleeper.rise(false);
        assert!(!sleeper.is_called());
    }

    #[test]
    fn a_call_between_two_sleeps_ends_the_second() {
        let sleeper = Sleeper::new().unwrap();
        assert!(sleeper.lie_down());
        sleeper.rise(false);
        sleeper.waker().wake();
        assert!(!sleeper.lie_down());
    }
}
