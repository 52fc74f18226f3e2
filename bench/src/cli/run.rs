//! `hovercraft-bench run`.

use std::{
    net::SocketAddrV4,
    path::{Path, PathBuf},
    time::Duration,
};

use hovercraft::Mode;
use hovercraft_bench::{
    Cluster, draw,
    generator::Pace,
    netns::NetnsError,
    report::append_trend,
    run::{self, Outcome, RunError, Spec, find_max},
    workload::Workload,
};

use super::{Failure, Verdict, hovercraft, positive, progress, time, write_json};

/// Starts the replicas as processes, loads them, tests the sample, and prints what everybody cost.
/// Figures whose tests failed are printed with what failed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What is asked.
    #[arg(long, value_enum, default_value_t = Workload::Tiny)]
    workload: Workload,
    /// What the replicas do with it.
    #[arg(long, value_enum, default_value_t = ModeName::Hovercraft)]
    mode: ModeName,
    /// How many replicas; one in mode unreplicated.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    replicas: u16,
    /// What an acknowledgement promises; by default what the workload asks for.
    #[arg(long, value_parser = ["sync", "interval", "memory"])]
    durability: Option<String>,
    /// Who replies; by default what the workload asks for.
    #[arg(long, value_parser = ["jbsq", "random", "leader"])]
    policy: Option<String>,
    /// B, how many requests may wait for one replier; by default what the workload asks for.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    queue_bound: Option<u32>,
    /// Bytes of a request; by default what the workload asks for.
    #[arg(long, value_parser = clap::value_parser!(u32).range(24..=8_388_608))]
    request_bytes: Option<u32>,
    /// Open loop: so many arrivals a second, Poisson.
    #[arg(long, value_parser = positive, conflicts_with_all = ["outstanding", "find_max"])]
    rate: Option<f64>,
    /// Closed loop: so many requests outstanding over all clients. The default, with 1.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    outstanding: Option<u32>,
    /// Searches the highest rate that keeps --slo.
    #[arg(long, conflicts_with = "outstanding")]
    find_max: bool,
    /// The bound on p99 for --find-max.
    #[arg(long, value_parser = time, default_value = "500us")]
    slo: Duration,
    /// How many clients, each with a session and a socket.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,
    /// How many threads generate load; their histograms are merged.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    generators: u32,
    /// How long is measured.
    #[arg(long, value_parser = positive, default_value = "5")]
    seconds: f64,
    /// How long may be measured in all, if p99 is not known narrowly enough before; by default four
    /// times --seconds.
    #[arg(long, value_parser = positive)]
    seconds_max: Option<f64>,
    /// How wide the 95 % interval of p99 may be, as a share of p99.
    #[arg(long, value_parser = positive, default_value = "0.1")]
    p99_width: f64,
    /// Of all that is random in the load.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Each replica in a network namespace of its own, behind a bridge; needs root.
    #[arg(long)]
    netns: bool,
    /// With --netns: the percentage of datagrams that is lost; 1 for the workload loss.
    #[arg(long, value_parser = positive, requires = "netns")]
    loss: Option<f64>,
    /// How long the replicas look for work before they sleep, in microseconds.
    #[arg(long, default_value_t = 0)]
    spin_us: u32,
    /// A cluster that runs already, by the addresses of its replicas, instead of one started here.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["netns", "bin"])]
    attach: Vec<SocketAddrV4>,
    /// Where the figures are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A file to which the run is added in a line.
    #[arg(long)]
    trend: Option<PathBuf>,
    /// Where a picture is written; beside it the same as PNG.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// The `hovercraft` command; by default the one beside this one.
    #[arg(long)]
    bin: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeName {
    Unreplicated,
    Raft,
    Hovercraft,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Unreplicated => Self::Unreplicated,
            ModeName::Raft => Self::Raft,
            ModeName::Hovercraft => Self::HovercRaft,
        }
    }
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        if self.workload == Workload::Loss && !self.netns && self.attach.is_empty() {
            return Err(Failure::Usage("the workload loss needs --netns (and root)".to_owned()));
        }
        let spec = self.spec();
        let result = if self.workload == Workload::Failover {
            self.failover(&spec).await
        } else {
            self.measure(&spec).await
        };
        match result {
            Err(Stop::Run(RunError::Cluster(hovercraft_bench::ClusterError::Netns(error)))) => {
                skip(&error);
                Ok(true)
            }
            Err(Stop::Run(error)) => Err(error.into()),
            Err(Stop::Failure(failure)) => Err(failure),
            Ok(()) => Ok(true),
        }
    }

    fn spec(&self) -> Spec {
        let mut spec = Spec::new(self.workload, self.mode.into(), self.replicas);
        let setup = &mut spec.setup;
        if let Some(durability) = &self.durability {
            setup.durability.clone_from(durability);
        }
        if let Some(policy) = &self.policy {
            setup.policy.clone_from(policy);
        }
        setup.queue_bound = self.queue_bound.map_or(setup.queue_bound, |it| it as usize);
        setup.spin_us = self.spin_us;
        let loss = self.loss.or((self.workload == Workload::Loss).then_some(1.0));
        setup.netns = self.netns.then_some(loss);
        spec.request_bytes = self.request_bytes.map_or(spec.request_bytes, |it| it as usize);
        spec.clients = self.clients as usize;
        spec.generators = self.generators as usize;
        spec.duration = Duration::from_secs_f64(self.seconds);
        let seconds_max = self.seconds_max.unwrap_or(4.0 * self.seconds);
        spec.duration_max = Duration::from_secs_f64(seconds_max);
        spec.asked.p99_width = self.p99_width;
        spec.seed = self.seed;
        spec
    }

    fn pace(&self) -> Pace {
        match (self.rate, self.outstanding) {
            (Some(per_second), _) => Pace::Open { per_second },
            (None, outstanding) => {
                let outstanding = outstanding.unwrap_or(1).div_ceil(self.clients);
                Pace::Closed { outstanding: outstanding as usize }
            }
        }
    }

    async fn measure(&self, spec: &Spec) -> Result<(), Stop> {
        let bar = progress(format!("{:?} in mode {}", self.workload, spec.setup.mode));
        let (cluster, spec) = self.cluster(spec).await?;
        run::prepare(&cluster, spec.workload).await?;
        let mut pace = self.pace();
        let found = if self.find_max {
            let found = find_max(&cluster, &spec, self.slo).await?;
            // The figures beside it are those at half of it, where nothing queues for long.
            let half = found.max_per_s.map_or(1000.0, |max| max.median / 2.0);
            pace = Pace::Open { per_second: half };
            Some(found)
        } else {
            None
        };
        let mut outcome = run::run(&cluster, &spec, pace).await?;
        outcome.max_under_slo = found;
        drop(cluster);
        bar.finish_and_clear();
        print!("{}", outcome.table());
        println!("  {} (commit {})", outcome.machine.describe(), outcome.commit);
        if outcome.machine.was_busy() {
            println!("  the machine was busy before the run: compare only within one run");
        }
        if let Some(path) = &self.json {
            write_json(path, &outcome)?;
        }
        if let Some(path) = &self.trend {
            append_trend(path, &outcome).map_err(|error| super::cannot_write(path, &error))?;
        }
        if let Some(path) = &self.svg {
            draw(path, &outcome)?;
        }
        Ok(())
    }

    /// The cluster to be measured, and the description of what it is.
    async fn cluster(&self, spec: &Spec) -> Result<(Cluster, Spec), Stop> {
        let mut spec = spec.clone();
        if self.attach.is_empty() {
            let binary = hovercraft(self.bin.clone())?;
            let cluster = Cluster::start(&binary, &spec.setup).await.map_err(RunError::from)?;
            return Ok((cluster, spec));
        }
        let cluster = Cluster::attach(&self.attach).await.map_err(RunError::from)?;
        spec.setup.mode = cluster.mode();
        spec.setup.replicas = cluster.replicas() as u16;
        Ok((cluster, spec))
    }

    async fn failover(&self, spec: &Spec) -> Result<(), Stop> {
        if !self.attach.is_empty() || spec.setup.mode == Mode::Unreplicated {
            let message = "the workload failover kills a leader: it starts its own replicas, in mode \
                           raft or hovercraft";
            return Err(Failure::Usage(message.to_owned()).into());
        }
        let Some(rate) = self.rate else {
            let message = "the workload failover needs --rate, above what two replicas can serve";
            return Err(Failure::Usage(message.to_owned()).into());
        };
        let bar = progress("failover: the leader is killed after a third of the time");
        let binary = hovercraft(self.bin.clone())?;
        let run = run::failover(&binary, spec, rate).await?;
        bar.finish_and_clear();
        println!(
            "Failover, {} replicas, {:.0} requests/s offered: {:.0} answered before, {:.0} in the \
             last third; the longest silence was {:.0} ms; {} failed, {} not admitted and sent again",
            spec.setup.replicas,
            run.offered_per_s,
            run.before_per_s,
            run.after_per_s,
            run.silent_ms,
            run.failed,
            run.dropped
        );
        if let Some(path) = &self.json {
            write_json(path, &run)?;
        }
        if let Some(path) = &self.svg {
            let title = "The leader is killed";
            write_picture(path, &draw::failover(title, &run))?;
        }
        Ok(())
    }
}

fn draw(path: &Path, outcome: &Outcome) -> Result<(), Failure> {
    let title = format!(
        "{:?}, mode {}, {} replicas, {}",
        outcome.workload, outcome.mode, outcome.replicas, outcome.durability
    );
    let svg = match &outcome.max_under_slo {
        Some(found) => draw::throughput_and_p99(&title, found),
        None => draw::latency_distribution(&title, &outcome.histogram_ns),
    };
    write_picture(path, &svg)
}

fn write_picture(path: &Path, svg: &str) -> Result<(), Failure> {
    draw::write(path, svg).map_err(|error| super::cannot_write(path, &error))
}

fn skip(error: &NetnsError) {
    println!("skipped: {error}");
}

/// Why a run ended without a verdict.
enum Stop {
    Run(RunError),
    Failure(Failure),
}

impl From<RunError> for Stop {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}
