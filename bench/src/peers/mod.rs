//! Other replicated systems beside ours, in one run: real servers, their usual client libraries.
//!
//! Every system takes its turn in every round, so that what the machine does meanwhile falls on all
//! of them; ratios are of figures of one round.

mod callers;
mod etcd;
mod ours;
mod redis;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

pub(crate) use self::redis::Redis;
pub use callers::Sample;

use crate::{
    machine::{Machine, commit, unix_seconds},
    run::RunError,
    stats::{Spread, geometric_mean, spread},
};
use etcd::{Etcd, EtcdCall};
use ours::Ours;

/// Why a system was not measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Processes, files or sockets.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The program is not there.
    #[error("{program} is not installed; on Debian: apt-get install {package}")]
    NotInstalled {
        /// What was looked for.
        program: &'static str,
        /// What has it.
        package: &'static str,
    },
    /// Ours.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A server did not answer, or refused.
    #[error("{system}: {message}")]
    Refused {
        /// Which.
        system: &'static str,
        /// What it said.
        message: String,
    },
}

/// How many ask, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Concurrency {
    /// Clients, each with a connection or session of its own.
    pub clients: usize,
    /// Requests outstanding over all of them.
    pub outstanding: usize,
}

/// What is tried.
pub const CONCURRENCIES: [Concurrency; 4] = [
    Concurrency { clients: 1, outstanding: 1 },
    Concurrency { clients: 50, outstanding: 50 },
    Concurrency { clients: 200, outstanding: 200 },
    Concurrency { clients: 1, outstanding: 1000 },
];

/// One line: the medians over the rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub system: String,
    /// Clients, each with a connection or session of its own.
    pub clients: usize,
    /// Requests outstanding over all of them.
    pub outstanding: usize,
    /// Operations a second.
    pub ops_per_s: f64,
    /// The least and the most of the rounds.
    pub ops_per_s_range: (f64, f64),
    /// In µs.
    pub p50_us: f64,
    /// In µs.
    pub p99_us: f64,
    /// Of all replicas.
    pub cpu_us_per_op_replicas: f64,
    /// Of the client.
    pub cpu_us_per_op_client: f64,
}

/// Ours over a peer, pair by pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// Ours.
    pub system: String,
    /// The other.
    pub over: String,
    /// As in a row.
    pub clients: usize,
    /// As in a row.
    pub outstanding: usize,
    /// Operations a second, of each round.
    pub ops_per_s: Vec<f64>,
    /// Their geometric mean.
    pub ops_per_s_mean: f64,
    /// Processor time of the replicas an operation, of each round.
    pub replicas_cpu: Vec<f64>,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Peers {
    /// One for each system and concurrency.
    pub rows: Vec<Row>,
    /// Ours over the others.
    pub ratios: Vec<Ratio>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
    /// How long each figure was measured, in seconds.
    pub seconds: f64,
    /// How often each.
    pub rounds: usize,
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub commit: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    Ours(Ours),
    Etcd { call: EtcdCall, on_disk: bool },
    RedisWait,
    RedisAlone,
}

const SYSTEMS: [System; 10] = [
    System::Ours(Ours::MemoryWrite),
    System::RedisWait,
    System::Etcd { call: EtcdCall::Put, on_disk: false },
    System::Ours(Ours::SyncWrite),
    System::Etcd { call: EtcdCall::Put, on_disk: true },
    System::Ours(Ours::MemoryRead),
    System::Etcd { call: EtcdCall::Get, on_disk: false },
    System::Ours(Ours::Raft),
    System::Ours(Ours::Unreplicated),
    System::RedisAlone,
];

/// Ours, and what it is set against.
const PAIRS: [(System, System); 6] = [
    (System::Ours(Ours::MemoryWrite), System::RedisWait),
    (System::Ours(Ours::MemoryWrite), System::Etcd { call: EtcdCall::Put, on_disk: false }),
    (System::Ours(Ours::SyncWrite), System::Etcd { call: EtcdCall::Put, on_disk: true }),
    (System::Ours(Ours::MemoryRead), System::Etcd { call: EtcdCall::Get, on_disk: false }),
    (System::Ours(Ours::MemoryWrite), System::Ours(Ours::Raft)),
    (System::Ours(Ours::Unreplicated), System::RedisAlone),
];

impl System {
    fn name(self) -> String {
        match self {
            Self::Ours(ours) => ours.name().to_owned(),
            Self::Etcd { call, on_disk } => {
                let call = if call == EtcdCall::Put { "put" } else { "linearizable get" };
                format!("etcd {call}, {}", if on_disk { "disk" } else { "tmpfs" })
            }
            Self::RedisWait => "Redis SET + WAIT 1, 2 replicas".to_owned(),
            Self::RedisAlone => "Redis SET, unreplicated".to_owned(),
        }
    }
}

/// What is measured how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `hovercraft` command.
    pub binary: PathBuf,
    /// How long each figure is measured.
    pub duration: Duration,
    /// How often each.
    pub rounds: usize,
    /// Only the systems whose name contains this.
    pub only: Option<String>,
}

struct Measured {
    system: System,
    round: usize,
    concurrency: Concurrency,
    sample: Sample,
}

/// Measures all systems in turns; `each` sees every figure as it comes.
pub async fn measure(
    plan: &Plan,
    mut each: impl FnMut(&str, Concurrency, &Sample),
) -> Result<Peers, PeerError> {
    let machine = Machine::here();
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        for system in SYSTEMS {
            let name = system.name();
            if plan.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            match turn(system, plan, &mut each).await {
                Ok(samples) => {
                    all.extend(samples.into_iter().map(|(concurrency, sample)| Measured {
                        system,
                        round,
                        concurrency,
                        sample,
                    }));
                }
                Err(PeerError::Run(error)) => return Err(error.into()),
                Err(error) => {
                    let reason = format!("{name}: {error}");
                    // What is not installed is missed in every round.
                    if !skipped.contains(&reason) {
                        skipped.push(reason);
                    }
                }
            }
        }
    }
    Ok(Peers {
        rows: rows(&all),
        ratios: ratios(&all),
        skipped,
        seconds: plan.duration.as_secs_f64(),
        rounds: plan.rounds,
        machine,
        commit: commit(),
        unix_seconds: unix_seconds(),
    })
}

/// Starts a system, measures it at every concurrency that its protocol can, and stops it.
async fn turn(
    system: System,
    plan: &Plan,
    each: &mut impl FnMut(&str, Concurrency, &Sample),
) -> Result<Vec<(Concurrency, Sample)>, PeerError> {
    let mut samples = Vec::new();
    let mut done = |concurrency, sample: Sample| {
        each(&system.name(), concurrency, &sample);
        samples.push((concurrency, sample));
    };
    match system {
        System::Ours(ours) => {
            let cluster = ours.start(&plan.binary).await?;
            for concurrency in CONCURRENCIES {
                done(concurrency, ours.measure(&cluster, concurrency, plan.duration).await?);
            }
        }
        System::Etcd { call, on_disk } => {
            let etcd = Etcd::start(on_disk).await?;
            for concurrency in CONCURRENCIES {
                done(concurrency, etcd.measure(call, concurrency, plan.duration).await?);
            }
        }
        System::RedisWait | System::RedisAlone => {
            let waits = system == System::RedisWait;
            let redis = Redis::start(if waits { 2 } else { 0 }).await?;
            for concurrency in CONCURRENCIES {
                // WAIT holds its connection up, so that one client has one request outstanding.
                if !waits || concurrency.clients == concurrency.outstanding {
                    done(concurrency, redis.measure(waits, concurrency, plan.duration).await?);
                }
            }
        }
    }
    Ok(samples)
}

fn rows(all: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for system in SYSTEMS {
        for concurrency in CONCURRENCIES {
            let of = |field: fn(&Sample) -> f64| -> Option<Spread> {
                let samples = all
                    .iter()
                    .filter(|it| it.system == system && it.concurrency == concurrency)
                    .map(|it| field(&it.sample));
                spread(&samples.collect::<Vec<_>>())
            };
            let Some(ops) = of(Sample::ops_per_s) else { continue };
            let middle = |field| of(field).map_or(0.0, |it| it.median);
            rows.push(Row {
                system: system.name(),
                clients: concurrency.clients,
                outstanding: concurrency.outstanding,
                ops_per_s: ops.median,
                ops_per_s_range: (ops.low, ops.high),
                p50_us: middle(|it| it.quantile_us(0.5)),
                p99_us: middle(|it| it.quantile_us(0.99)),
                cpu_us_per_op_replicas: middle(Sample::replicas_cpu_us),
                cpu_us_per_op_client: middle(Sample::client_cpu_us),
            });
        }
    }
    rows
}

fn ratios(all: &[Measured]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for (ours, other) in PAIRS {
        for concurrency in CONCURRENCIES {
            let of = |system, round| {
                all.iter().find(|it| {
                    it.system == system && it.round == round && it.concurrency == concurrency
                })
            };
            let pairs: Vec<_> = (0..)
                .map_while(|round| Some((of(ours, round)?, of(other, round)?)))
                .map(|(ours, other)| (&ours.sample, &other.sample))
                .collect();
            let ops: Vec<_> =
                pairs.iter().map(|(ours, other)| ours.ops_per_s() / other.ops_per_s()).collect();
            let cpu = pairs.iter().map(|(a, b)| a.replicas_cpu_us() / b.replicas_cpu_us());
            if let Some(mean) = geometric_mean(&ops) {
                ratios.push(Ratio {
                    system: ours.name(),
                    over: other.name(),
                    clients: concurrency.clients,
                    outstanding: concurrency.outstanding,
                    ops_per_s_mean: mean,
                    replicas_cpu: cpu.collect(),
                    ops_per_s: ops,
                });
            }
        }
    }
    ratios
}

/// What a started server leaves behind is removed with it.
pub(crate) struct Servers {
    pub(crate) children: Vec<std::process::Child>,
    /// Removed after the processes are gone.
    pub(crate) data: tempfile::TempDir,
}

impl Servers {
    /// With a directory in memory or on the disk of temporary files.
    pub(crate) fn new(on_disk: bool) -> Result<Self, PeerError> {
        let memory = Path::new("/dev/shm");
        let data = if on_disk || !memory.is_dir() {
            tempfile::tempdir()
        } else {
            tempfile::tempdir_in(memory)
        };
        let action = "make a temporary directory".to_owned();
        let data = data.map_err(|source| PeerError::Io { action, source })?;
        Ok(Self { children: Vec::new(), data })
    }

    pub(crate) fn spawn(
        &mut self,
        command: &mut std::process::Command,
        program: &'static str,
        package: &'static str,
    ) -> Result<(), PeerError> {
        use std::process::Stdio;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => {
                self.children.push(child);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(PeerError::NotInstalled { program, package })
            }
            Err(source) => Err(PeerError::Io { action: format!("start {program}"), source }),
        }
    }

    /// User and system time of all of them so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.children.iter().map(|child| crate::usage::cpu_time(child.id())).sum()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already is only waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Free TCP ports on loopback: all are held until all are found, so that none is found twice.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>, PeerError> {
    let find = || -> io::Result<Vec<u16>> {
        let loopback = std::net::Ipv4Addr::LOCALHOST;
        let listeners: Vec<_> = (0..count)
            .map(|_| std::net::TcpListener::bind((loopback, 0)))
            .collect::<Result<_, _>>()?;
        listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
    };
    find().map_err(|source| PeerError::Io { action: "find free ports".to_owned(), source })
}
