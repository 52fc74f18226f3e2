//! Runs an [`Engine`] on sockets, in a thread of its own, and measures what that costs.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU64,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hovercraft::{CallError, client::Destinations};
use r2p2::{BindError, Link as _, Outbox, Time, UdpConfig, UdpLink};
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    time::{ClockId, clock_gettime},
};

use super::{Engine, Plan, Record};

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The sockets broke.
    #[error("the generator's sockets failed: {0}")]
    Io(#[from] io::Error),
    /// A client did not get a session.
    #[error("a client could not connect: {0}; do the replicas run, and is there a leader?")]
    Connect(CallError),
    /// Somebody asked it to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What a generator's thread cost in the measured time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// User and system time.
    pub cpu: Duration,
    /// The measured time by the clock.
    pub wall: Duration,
}

impl Cost {
    /// The share of one core.
    pub fn share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// What a generator returns.
#[derive(Debug)]
pub struct Driven {
    /// What it has seen.
    pub record: Record,
    /// What it cost.
    pub cost: Cost,
    /// How often requests were not admitted (P23).
    pub dropped: u64,
}

/// What a generator's thread shares with whoever watches it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Set to end the run early.
    pub stop: AtomicBool,
    /// Requests completed in the measured time so far.
    pub completed: AtomicU64,
    /// 0 before the measured time, 1 in it, 2 after it.
    pub stage: AtomicU64,
}

/// Where requests go, and by which interface if that is a multicast group.
#[derive(Debug, Clone)]
pub struct Route {
    /// Where to.
    pub destinations: Destinations,
    /// The interface of this host that reaches a group.
    pub interface: Option<Ipv4Addr>,
}

/// Runs a generator until its plan is done. Blocks: give it a thread.
pub fn drive(plan: Plan, route: &Route, watch: &Watch) -> Result<Driven, DriveError> {
    // The kernel's default of 50 µs would show as lateness, and so as latency.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut sockets = Sockets::open(plan.clients, route.interface)?;
    let origin = Instant::now();
    let clock = || Time::ZERO + origin.elapsed();
    let mut engine = Engine::new(plan, &route.destinations, clock());
    let mut outbox = Outbox::new();
    let mut meter = Meter::default();
    while !engine.is_finished(clock()) {
        if watch.stop.load(Ordering::Relaxed) {
            return Err(DriveError::Interrupted);
        }
        let now = clock();
        sockets.receive(&mut outbox, |client, from, datagram, outbox| {
            engine.handle_datagram(client, now, from, datagram, outbox);
        })?;
        engine.turn(clock());
        while let Some(client) = engine.poll_touched() {
            engine.flush(client, clock(), &mut outbox);
            sockets.links[client].send(&mut outbox)?;
        }
        meter.look(engine.measured(), engine.progress(), now, watch);
        if engine.is_finished(clock()) {
            break;
        }
        let due = engine.poll_timeout().unwrap_or(now + WAIT_MAX);
        sockets.wait(due.since(clock()).min(WAIT_MAX))?;
    }
    meter.look(engine.measured(), engine.progress(), clock(), watch);
    let dropped = engine.dropped();
    let record = engine.finish().map_err(DriveError::Connect)?;
    Ok(Driven { record, cost: meter.cost(), dropped })
}

/// The longest wait, so that a stop is noticed.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(50);

/// One socket for each client, and what watches all of them.
pub(super) struct Sockets {
    pub(super) links: Vec<UdpLink>,
    epoll: rustix::fd::OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Sockets {
    pub(super) fn open(clients: usize, interface: Option<Ipv4Addr>) -> Result<Self, DriveError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let mut config = UdpConfig::new(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        if let Some(interface) = interface {
            config.interface = interface;
        }
        let mut links = Vec::with_capacity(clients);
        for client in 0..clients {
            let link = UdpLink::bind(&config)?;
            let data = epoll::EventData::new_u64(client as u64);
            epoll::add(&epoll, link.as_fd(), data, epoll::EventFlags::IN)
                .map_err(io::Error::from)?;
            links.push(link);
        }
        Ok(Self { links, epoll, ready: Vec::with_capacity(256) })
    }

    /// Takes what the last wait found.
    pub(super) fn receive(
        &mut self,
        outbox: &mut Outbox,
        mut each: impl FnMut(usize, SocketAddrV4, &[u8], &mut Outbox),
    ) -> io::Result<()> {
        for event in self.ready.drain(..) {
            let client = event.data.u64() as usize;
            let link = &mut self.links[client];
            while link.receive(&mut |from, datagram| {
                each(client, from, datagram, outbox);
            })? > 0
            {}
            link.send(outbox)?;
        }
        Ok(())
    }

    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let buffer = rustix::buffer::spare_capacity(&mut self.ready);
        match epoll::wait(&self.epoll, buffer, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Takes the thread's processor time at the beginning and the end of the measured time.
#[derive(Default)]
pub(super) struct Meter {
    from: Option<(Duration, Instant)>,
    to: Option<(Duration, Instant)>,
}

impl Meter {
    pub(super) fn look(
        &mut self,
        measured: Option<(Time, Time)>,
        progress: u64,
        now: Time,
        watch: &Watch,
    ) {
        let Some((from, to)) = measured else { return };
        if self.from.is_none() && now >= from {
            self.from = Some((thread_cpu(), Instant::now()));
            watch.stage.store(1, Ordering::Relaxed);
        }
        if self.to.is_none() && now >= to {
            self.to = Some((thread_cpu(), Instant::now()));
            watch.stage.store(2, Ordering::Relaxed);
        }
        watch.completed.store(progress, Ordering::Relaxed);
    }

    pub(super) fn cost(&self) -> Cost {
        match (self.from, self.to) {
            (Some((cpu, at)), Some((cpu_after, after))) => {
                Cost { cpu: cpu_after.saturating_sub(cpu), wall: after - at }
            }
            _ => Cost::default(),
        }
    }
}

/// User and system time of the calling thread so far.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanos = u32::try_from(time.tv_nsec).expect("nanoseconds are below a second");
    Duration::new(time.tv_sec.unsigned_abs(), nanos)
}
