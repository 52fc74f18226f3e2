//! `hovercraft-bench run`.

use std::{
    net::SocketAddrV4,
    path::{Path, PathBuf},
    time::Duration,
};

use hovercraft::Mode;
use hovercraft_bench::{
    Cluster, SwitchSetup, draw,
    generator::Pace,
    netns::NetnsError,
    report::append_trend,
    run::{self, Outcome, RunError, Spec, find_max},
    workload::Workload,
};

use super::{
    Failure, Verdict, hovercraft, percent, positive, progress, rate, seconds, time, writable,
    write_json_line,
};

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
    /// Clients send to a switch, which passes on, instead of to all replicas. In mode hovercraft++ there
    /// is a switch in any case, which aggregates.
    #[arg(long)]
    by_switch: bool,
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
    #[arg(long, value_parser = rate, conflicts_with_all = ["outstanding", "find_max"])]
    rate: Option<f64>,
    /// Closed loop: so many requests outstanding over all clients. The default, with one for each.
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
    #[arg(long, value_parser = seconds, default_value = "5")]
    seconds: f64,
    /// How long may be measured in all, if p99 is not known narrowly enough before; by default four
    /// times --seconds.
    #[arg(long, value_parser = seconds)]
    seconds_max: Option<f64>,
    /// How wide the 95 % interval of p99 may be, as a share of p99.
    #[arg(long, value_parser = positive, default_value = "0.1")]
    p99_width: f64,
    /// Of all that is random in the load.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Each replica in a network namespace of its own, behind a bridge; needs root. The workload loss
    /// always has them.
    #[arg(long)]
    netns: bool,
    /// The percentage of datagrams that is lost, which takes --netns; 1 for the workload loss.
    #[arg(long, value_parser = percent)]
    loss: Option<f64>,
    /// How long the replicas look for work before they sleep, in microseconds.
    #[arg(long, default_value_t = 0)]
    spin_us: u32,
    /// A cluster that runs already, by the addresses of its replicas, instead of one started here.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["netns", "loss", "bin", "by_switch"])]
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
    #[value(name = "hovercraft++")]
    HovercraftPlusPlus,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Unreplicated => Self::Unreplicated,
            ModeName::Raft => Self::Raft,
            ModeName::Hovercraft => Self::HovercRaft,
            ModeName::HovercraftPlusPlus => Self::HovercRaftPlusPlus,
        }
    }
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        self.check()?;
        match self.measure(self.spec()).await {
            Err(Stop::Run(RunError::Cluster(hovercraft_bench::ClusterError::Netns(error)))) => {
                skip(&error);
                Ok(true)
            }
            Err(Stop::Run(error)) => Err(error.into()),
            Err(Stop::Failure(failure)) => Err(failure),
            Ok(()) => Ok(true),
        }
    }

    /// What the types of the arguments cannot say.
    fn check(&self) -> Result<(), Failure> {
        let outputs = [&self.json, &self.trend, &self.svg];
        outputs.into_iter().try_for_each(|path| writable(path.as_deref()))?;
        let usage = |message: &str| Err(Failure::Usage(message.to_owned()));
        if self.svg.as_ref().is_some_and(|path| path.extension().is_none_or(|it| it != "svg")) {
            return usage(
                "--svg: the name of the picture must end in .svg; a PNG is put beside it",
            );
        }
        if self.outstanding.is_some_and(|outstanding| outstanding < self.clients) {
            return usage("--outstanding is below --clients; each client has at least one request");
        }
        if self.by_switch && matches!(self.mode, ModeName::Unreplicated | ModeName::Raft) {
            return usage("--by-switch is for the modes hovercraft and hovercraft++");
        }
        match self.workload {
            Workload::Loss | Workload::Failover if !self.attach.is_empty() => usage(
                "the workloads loss and failover start their own replicas: leave out --attach",
            ),
            Workload::Failover if self.mode == ModeName::Unreplicated => {
                usage("the workload failover kills a leader; the mode unreplicated has none")
            }
            Workload::Failover if self.find_max || self.outstanding.is_some() => usage(
                "the workload failover is an open loop: say --rate, or nothing to offer 70 % of \
                 what the replicas do at most",
            ),
            _ => Ok(()),
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
        let switch = SwitchSetup { disseminates: true, admission: None };
        setup.switch = self.by_switch.then_some(switch);
        let loss = self.loss.or((self.workload == Workload::Loss).then_some(1.0));
        setup.netns = (self.netns || loss.is_some()).then_some(loss);
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
                let outstanding = outstanding.unwrap_or(self.clients);
                Pace::Closed { outstanding: outstanding as usize }
            }
        }
    }

    async fn measure(&self, mut spec: Spec) -> Result<(), Stop> {
        let bar = progress(format!("{} in mode {}", self.workload.name(), spec.setup.mode));
        spec.progress = bar.clone();
        let outcome = if self.workload == Workload::Failover {
            run::failover(&hovercraft(self.bin.clone())?, &spec, self.rate).await?
        } else {
            self.run(spec).await?
        };
        bar.finish_and_clear();
        print!("{}", outcome.table());
        println!("  {} (commit {})", outcome.machine.describe(), outcome.commit);
        if outcome.machine.was_busy() {
            println!("  the machine was busy before the run: compare only within one run");
        }
        Ok(self.write(&outcome)?)
    }

    async fn run(&self, spec: Spec) -> Result<Outcome, Stop> {
        let (cluster, spec) = self.cluster(spec).await?;
        run::prepare(&cluster, spec.workload).await?;
        if !self.find_max {
            return Ok(run::run(&cluster, &spec, self.pace()).await?);
        }
        let found = find_max(&cluster, &spec, self.slo).await?;
        // The figures beside it are those at half of it, where nothing queues for long.
        let per_second = found.max_per_s.map_or(1000.0, |max| max.median / 2.0);
        let outcome = run::run(&cluster, &spec, Pace::Open { per_second }).await?;
        Ok(Outcome { max_under_slo: Some(found), ..outcome })
    }

    fn write(&self, outcome: &Outcome) -> Result<(), Failure> {
        if let Some(path) = &self.json {
            write_json_line(path, outcome)?;
        }
        if let Some(path) = &self.trend {
            append_trend(path, outcome).map_err(|error| super::cannot_write(path, &error))?;
        }
        self.svg.as_ref().map_or(Ok(()), |path| draw(path, outcome))
    }

    /// The cluster to be measured, and the description of what it is.
    async fn cluster(&self, mut spec: Spec) -> Result<(Cluster, Spec), Stop> {
        if self.attach.is_empty() {
            let binary = hovercraft(self.bin.clone())?;
            let cluster = Cluster::start(&binary, &spec.setup).await.map_err(RunError::from)?;
            return Ok((cluster, spec));
        }
        let cluster = Cluster::attach(&self.attach).await.map_err(RunError::from)?;
        // How it was set up cannot be asked; what the command line says of it is believed.
        let unknown = || "unknown".to_owned();
        spec.setup.durability = self.durability.clone().unwrap_or_else(unknown);
        spec.setup.policy = self.policy.clone().unwrap_or_else(unknown);
        spec.setup.queue_bound = self.queue_bound.map_or(0, |it| it as usize);
        spec.setup.mode = cluster.mode();
        spec.setup.replicas = cluster.replicas() as u16;
        Ok((cluster, spec))
    }
}

fn draw(path: &Path, outcome: &Outcome) -> Result<(), Failure> {
    let title = format!(
        "{}, mode {}, {} replicas, {}",
        outcome.workload.name(),
        outcome.mode,
        outcome.replicas,
        outcome.durability
    );
    let svg = match (&outcome.failover, &outcome.max_under_slo) {
        (Some(run), _) => draw::failover(&title, outcome.offered_per_s.unwrap_or_default(), run),
        (None, Some(found)) => draw::throughput_and_p99(&title, found),
        (None, None) => draw::latency_distribution(&title, &outcome.histogram_ns),
    };
    draw::write(path, &svg).map_err(|error| super::cannot_write(path, &error))
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
