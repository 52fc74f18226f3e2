//! A host's link to the fabric, as clients and nodes use it.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddrV4,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use madsim::time::sleep;
use r2p2::{AsyncLink, Link, Outbox, UdpStatistics, WaitLink};

use super::{fabric::Fabric, pass};
use crate::network::up_to_us;

/// How many datagrams one receive takes, as with the real one.
const BATCH: usize = 8;

/// A socket on the fabric.
pub(super) struct SimLink {
    fabric: Arc<Fabric>,
    address: SocketAddrV4,
    number: u64,
    bell: Arc<Bell>,
    pace: Pace,
    statistics: UdpStatistics,
}

/// How long its owner takes to wake up; what arrives meanwhile is taken in the same turn.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    max_us: u64,
    /// While a fault makes it slower; shared with whoever does that.
    extra_us: Arc<AtomicU64>,
    pub(super) rng: fastrand::Rng,
}

impl Pace {
    pub(super) fn new(max_us: u64, rng: fastrand::Rng) -> Self {
        Self { max_us, extra_us: Arc::default(), rng }
    }

    /// It takes no time.
    pub(super) fn instant() -> Self {
        Self::new(0, fastrand::Rng::with_seed(0))
    }

    pub(super) fn set_extra_us(&self, extra_us: u64) {
        self.extra_us.store(extra_us, Ordering::Relaxed);
    }

    fn delay(&mut self) -> Duration {
        up_to_us(&mut self.rng, self.max_us + self.extra_us.load(Ordering::Relaxed))
    }
}

impl SimLink {
    /// Opens a socket of the present host; port 0 takes a free one.
    pub(super) fn bind(address: SocketAddrV4, group: Option<SocketAddrV4>, pace: Pace) -> Self {
        let fabric = Fabric::current();
        let (number, address) = fabric.bind(address, group);
        let (bell, statistics) = (Arc::default(), UdpStatistics::default());
        Self { fabric, address, number, bell, pace, statistics }
    }

    /// Whether something waits, or somebody has called; if not, the task will be woken.
    fn poll_ready(&self, context: &Context<'_>) -> bool {
        // Both must know the waker.
        let is_readable = self.fabric.poll_readable(self.address, context.waker());
        self.bell.poll_rung(context.waker()) || is_readable
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.fabric.close(self.address, self.number);
    }
}

impl Link for SimLink {
    fn send(&mut self, outbox: &mut Outbox) -> io::Result<()> {
        outbox.drain(|batch| {
            for datagram in batch.datagrams() {
                self.statistics.datagrams_out += 1;
                self.statistics.bytes_out += datagram.len() as u64;
                self.fabric.send(self.address, batch.destination, datagram);
            }
        });
        Ok(())
    }

    fn receive(&mut self, each: &mut dyn FnMut(SocketAddrV4, &[u8])) -> io::Result<usize> {
        let taken = self.fabric.take(self.address, BATCH);
        for (from, datagram) in &taken {
            self.statistics.datagrams_in += 1;
            self.statistics.bytes_in += datagram.len() as u64;
            each(*from, datagram);
        }
        Ok(taken.len())
    }
}

impl AsyncLink for SimLink {
    async fn readable(&mut self) -> io::Result<()> {
        poll_fn(|context| if self.poll_ready(context) { Poll::Ready(()) } else { Poll::Pending })
            .await;
        Ok(())
    }
}

impl WaitLink for SimLink {
    async fn wait(&mut self, timeout: Option<Duration>, _: Duration) -> io::Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut alarm = pin!(sleep(Duration::ZERO));
        if let Some(deadline) = deadline {
            alarm.as_mut().reset(deadline);
        }
        let mut is_armed = deadline.is_some();
        poll_fn(|context| {
            if self.poll_ready(context) || deadline.is_some_and(|due| due <= Instant::now()) {
                return Poll::Ready(());
            }
            // Each poll of madsim's `Sleep` adds a timer: once is enough, for the task is the same.
            if std::mem::take(&mut is_armed) && alarm.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        let delay = self.pace.delay();
        if !delay.is_zero() {
            pass(delay).await;
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    fn local_address(&self) -> io::Result<SocketAddrV4> {
        Ok(self.address)
    }

    fn statistics(&self) -> UdpStatistics {
        self.statistics
    }
}

/// Ends a wait from elsewhere. A call is never lost: one that finds nobody waiting ends the next
/// wait at once.
#[derive(Debug, Default)]
struct Bell(Mutex<Ringing>);

#[derive(Debug, Default)]
struct Ringing {
    is_rung: bool,
    sleeper: Option<Waker>,
}

impl Bell {
    fn poll_rung(&self, sleeper: &Waker) -> bool {
        let mut ringing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ringing.sleeper = Some(sleeper.clone());
        std::mem::take(&mut ringing.is_rung)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let mut ringing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ringing.is_rung = true;
        if let Some(sleeper) = ringing.sleeper.take() {
            sleeper.wake();
        }
    }
}
