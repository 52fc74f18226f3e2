//! A closed loop: so many callers, each with one request outstanding, over one client.

use std::{
    cell::RefCell,
    net::SocketAddrV4,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hovercraft::{Client, ConnectError};

/// What is asked of a cluster.
#[derive(Debug, Clone)]
pub struct Load {
    /// How many requests are outstanding.
    pub outstanding: usize,
    /// The command, the same each time.
    pub command: Bytes,
    /// Requests of this first part are not counted.
    pub warm_up: Duration,
    /// How long is measured.
    pub duration: Duration,
}

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// What came of it.
#[derive(Debug)]
pub struct Measured {
    /// Acknowledged requests.
    pub count: u64,
    /// Requests that failed, or whose outcome is unknown.
    pub failed: u64,
    /// How long was measured.
    pub duration: Duration,
    /// Of each acknowledged request, in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// The processor time that the replicas took.
    pub replicas_cpu: Duration,
    /// The processor time that the client itself took.
    pub client_cpu: Duration,
}

impl Measured {
    /// Acknowledged requests a second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.duration.as_secs_f64()
    }

    /// A quantile of the latency, in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1000.0
    }
}

#[derive(Debug)]
struct Shared {
    latency_ns: Histogram<u64>,
    failed: u64,
    measures_from: Instant,
    ends: Instant,
}

impl Load {
    /// Runs the load over one client. Needs a [`tokio::task::LocalSet`].
    ///
    /// `cpu_time` tells what the replicas have taken so far.
    pub async fn run(
        &self,
        members: impl IntoIterator<Item = SocketAddrV4>,
        mode: hovercraft::Mode,
        cpu_time: impl Fn() -> Duration,
    ) -> Result<Measured, LoadError> {
        let client = Client::builder().members(members).mode(mode).connect().await?;
        let measures_from = Instant::now() + self.warm_up;
        let shared = Rc::new(RefCell::new(Shared {
            latency_ns: latencies(),
            failed: 0,
            measures_from,
            ends: measures_from + self.duration,
        }));
        let callers: Vec<_> = (0..self.outstanding)
            .map(|_| {
                let (client, command) = (client.clone(), self.command.clone());
                tokio::task::spawn_local(call_until_the_end(client, command, Rc::clone(&shared)))
            })
            .collect();
        tokio::time::sleep_until(measures_from.into()).await;
        let own_cpu_time = || crate::processes::cpu_time(std::process::id());
        let before = (cpu_time(), own_cpu_time());
        tokio::time::sleep(self.duration).await;
        let after = (cpu_time(), own_cpu_time());
        for caller in callers {
            // A caller ends by itself soon after the end.
            let _ = caller.await;
        }
        let shared = Rc::try_unwrap(shared).expect("all callers have ended").into_inner();
        Ok(Measured {
            count: shared.latency_ns.len(),
            failed: shared.failed,
            duration: self.duration,
            latency_ns: shared.latency_ns,
            replicas_cpu: after.0.saturating_sub(before.0),
            client_cpu: after.1.saturating_sub(before.1),
        })
    }
}

/// For latencies from a nanosecond to a minute, with three digits.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are fixed and valid")
}

async fn call_until_the_end(client: Client, command: Bytes, shared: Rc<RefCell<Shared>>) {
    loop {
        let start = Instant::now();
        let result = client.call(command.clone()).await;
        let end = Instant::now();
        let mut shared = shared.borrow_mut();
        if end >= shared.ends {
            return;
        }
        if start < shared.measures_from {
            continue;
        }
        match result {
            Ok(_) => {
                let nanos = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
                shared.latency_ns.saturating_record(nanos);
            }
            Err(_) => shared.failed += 1,
        }
    }
}
