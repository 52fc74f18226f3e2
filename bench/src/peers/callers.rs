//! Closed loops of peers' clients, in one thread whose processor time is theirs.

use std::{
    cell::RefCell,
    future::Future,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use super::{Concurrency, PeerError, Servers};
use crate::generator::latencies;

/// What a closed loop has seen.
#[derive(Debug, Clone)]
pub struct Sample {
    /// In ns.
    pub latency_ns: Histogram<u64>,
    /// Operations in the measured time.
    pub completed: u64,
    /// How long was measured.
    pub duration: Duration,
    /// What all replicas took in it.
    pub replicas_cpu: Duration,
    /// What the client took in it.
    pub client_cpu: Duration,
}

impl Sample {
    /// Operations a second.
    pub fn ops_per_s(&self) -> f64 {
        self.completed as f64 / self.duration.as_secs_f64()
    }

    /// A quantile of the latency, in µs.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Processor time of all replicas an operation, in µs.
    pub fn replicas_cpu_us(&self) -> f64 {
        self.replicas_cpu.as_secs_f64() * 1e6 / self.completed.max(1) as f64
    }

    /// Processor time of the client an operation, in µs.
    pub fn client_cpu_us(&self) -> f64 {
        self.client_cpu.as_secs_f64() * 1e6 / self.completed.max(1) as f64
    }
}

/// A client of a peer: connects, and does one operation after the other.
pub(super) trait Caller: Clone + 'static {
    /// Does one operation.
    fn call(&mut self) -> impl Future<Output = Result<(), String>>;
}

/// Requests of this first part are not counted.
const WARM_UP: Duration = Duration::from_millis(500);

/// Runs the loops of so many clients, each made by `connect`, in a thread of their own.
pub(super) async fn closed_loops<C, F>(
    system: &'static str,
    servers: &Servers,
    concurrency: Concurrency,
    duration: Duration,
    connect: impl Fn(usize) -> F + Send + 'static,
) -> Result<Sample, PeerError>
where
    C: Caller,
    F: Future<Output = Result<C, String>>,
{
    let (stages, staged) = mpsc::channel();
    let thread = std::thread::spawn(move || -> Result<Seen, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, run(concurrency, duration, connect, stages))
    });
    // The thread says when the measured time begins and ends; the other end of this only looks.
    let mut replicas = Vec::new();
    while !thread.is_finished() {
        if staged.try_recv().is_ok() {
            replicas.push(servers.cpu_time());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    replicas.extend(staged.try_iter().map(|()| servers.cpu_time()));
    let seen = thread.join().expect("the clients do not panic");
    let seen = seen.map_err(|message| PeerError::Refused { system, message })?;
    let replicas_cpu = match replicas[..] {
        [before, after, ..] => after.saturating_sub(before),
        _ => Duration::ZERO,
    };
    Ok(Sample {
        completed: seen.latency_ns.len(),
        latency_ns: seen.latency_ns,
        duration,
        replicas_cpu,
        client_cpu: seen.cpu,
    })
}

struct Seen {
    latency_ns: Histogram<u64>,
    cpu: Duration,
}

async fn run<C, F>(
    concurrency: Concurrency,
    duration: Duration,
    connect: impl Fn(usize) -> F,
    stages: mpsc::Sender<()>,
) -> Result<Seen, String>
where
    C: Caller,
    F: Future<Output = Result<C, String>>,
{
    let mut clients = Vec::new();
    for client in 0..concurrency.clients {
        clients.push(connect(client).await?);
    }
    let from = Instant::now() + WARM_UP;
    let to = from + duration;
    let seen = Rc::new(RefCell::new(latencies()));
    let loops: Vec<_> = (0..concurrency.outstanding)
        .map(|number| {
            let caller = clients[number % clients.len()].clone();
            tokio::task::spawn_local(call_until(caller, from, to, Rc::clone(&seen)))
        })
        .collect();
    tokio::time::sleep_until(from.into()).await;
    let before = thread_cpu();
    // Nobody may listen any more, when the run was given up.
    let _ = stages.send(());
    tokio::time::sleep_until(to.into()).await;
    let cpu = thread_cpu().saturating_sub(before);
    let _ = stages.send(());
    for one in loops {
        one.await.map_err(|error| error.to_string())??;
    }
    let latency_ns = seen.borrow().clone();
    Ok(Seen { latency_ns, cpu })
}

async fn call_until<C: Caller>(
    mut caller: C,
    from: Instant,
    to: Instant,
    seen: Rc<RefCell<Histogram<u64>>>,
) -> Result<(), String> {
    loop {
        let start = Instant::now();
        if start >= to {
            return Ok(());
        }
        caller.call().await?;
        let end = Instant::now();
        if from <= end && end < to {
            let nanos = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
            seen.borrow_mut().saturating_record(nanos);
        }
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanos = u32::try_from(time.tv_nsec).expect("nanoseconds are below a second");
    Duration::new(time.tv_sec.unsigned_abs(), nanos)
}
