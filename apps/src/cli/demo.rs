//! `hovercraft demo`: see a cluster lose its leader.

use std::{io, path::PathBuf, time::Duration};

use clap::ValueEnum;
use hovercraft::Mode;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, fail, runtime};
use crate::demo::{self, DemoError, Plan};

const KEYS: &str = "\
With --json the file holds one object:

  mode, replicas       what was run
  acknowledged         operations that were acknowledged, reads included
  unknown              writes of which the callers do not know whether they were executed
  lost                 acknowledged writes that are not there in the end
  duplicated           writes that were executed more often than they should
  stale_reads          operations that saw less than others had seen before; these three are null
                       if the end could not be read
  throughput_per_s     acknowledged operations a second, over the whole run
  p50_us, p99_us       percentiles of their latency in microseconds; null if there was none
  outage_ms            the longest time around the fault without an acknowledgement, in
                       milliseconds; 0 with --no-fault
  switch_outage_ms     the same around the death of the switch; only in the mode hovercraft++
  verdict              \"ok\", or what is wrong

Exit codes: 0 if the verdict is ok; 1 if not, or if the replicas could not be run; 2 if it was
interrupted; 3 bad input or usage.";

/// Start a cluster on this machine, kill its leader under load, and check that nothing is lost.
///
/// The replicas are processes of their own on loopback that sync every write to disk. Callers read
/// and write the key-value service. After a third of the time the leader is killed with SIGKILL, after
/// two thirds it is started again. In the mode hovercraft++ the switch is killed before that, after a
/// sixth of the time, and started again after a quarter. Then everything is read and compared with what was acknowledged.
/// Throughput and latency over time are drawn in hovercraft-demo.svg, or demo.svg in the kept
/// directory.
#[derive(Debug, clap::Args)]
#[command(after_long_help = KEYS, after_help = "--help tells the keys of --json and the exit codes.")]
pub(super) struct Arguments {
    /// How many replicas; 3 unless said otherwise, and always 1 in the mode unreplicated
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=15))]
    replicas: Option<u16>,

    /// What the replicas do with requests
    #[arg(long, value_enum, default_value_t = ModeArgument::Hovercraft)]
    mode: ModeArgument,

    /// How long the load lasts
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,

    /// How many callers there are, each with one request outstanding
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,

    /// Kill nobody; always so in the mode unreplicated, which keeps nothing on disk
    #[arg(long)]
    no_fault: bool,

    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write what every caller did and saw as JSON lines in the form of Jepsen's
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,

    /// Keep the replicas' configurations, data and logs, and the picture; a new or empty directory
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// Only metadata in the log's messages; replies and reads balanced
    Hovercraft,
    /// The same with a switch that passes requests on and aggregates; it is killed too
    #[value(name = "hovercraft++")]
    HovercraftPlusPlus,
    /// The baseline: the leader sends requests on and answers them
    Raft,
    /// One server without consensus and without a disk
    Unreplicated,
}

pub(super) fn run(arguments: Arguments) -> Exit {
    let plan = match arguments.plan() {
        Ok(plan) => plan,
        Err(problem) => return fail(Exit::Usage, problem),
    };
    match runtime() {
        Ok(runtime) => runtime.block_on(demonstrate(&plan)),
        Err(error) => fail(Exit::Bad, error),
    }
}

impl Arguments {
    fn plan(self) -> Result<Plan, &'static str> {
        let Self { seconds, clients, json, history, keep, .. } = self;
        let (mode, most) = match self.mode {
            ModeArgument::Hovercraft => (Mode::HovercRaft, 3),
            ModeArgument::HovercraftPlusPlus => (Mode::HovercRaftPlusPlus, 3),
            ModeArgument::Raft => (Mode::Raft, 3),
            ModeArgument::Unreplicated => (Mode::Unreplicated, 1),
        };
        let replicas = self.replicas.unwrap_or(most);
        let is_replicated = mode != Mode::Unreplicated;
        if !is_replicated && replicas > 1 {
            return Err("the mode unreplicated has one server; leave --replicas away");
        }
        let with_fault = is_replicated && !self.no_fault;
        let duration = Duration::from_secs(seconds);
        Ok(Plan { mode, replicas, clients, duration, with_fault, json, history, keep })
    }
}

/// Ends early, and orderly, if it is interrupted: all that is dropped then kills the replicas.
async fn demonstrate(plan: &Plan) -> Exit {
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [mut interrupt, mut terminate, mut hangup] = match signals.map(signal) {
        [Ok(interrupt), Ok(terminate), Ok(hangup)] => [interrupt, terminate, hangup],
        [Err(error), ..] | [_, Err(error), _] | [.., Err(error)] => return fail(Exit::Bad, error),
    };
    let mut output = io::stdout();
    tokio::select! {
        biased;
        _ = interrupt.recv() => fail(Exit::Unknown, "interrupted; there is no verdict"),
        _ = terminate.recv() => fail(Exit::Unknown, "terminated; there is no verdict"),
        _ = hangup.recv() => fail(Exit::Unknown, "the terminal is gone; there is no verdict"),
        done = demo::run(plan, &mut output) => match done {
            Ok(true) => Exit::Good,
            Ok(false) => Exit::Bad,
            Err(error) => fail(exit(&error), error),
        },
    }
}

fn exit(error: &DemoError) -> Exit {
    if error.is_bad_input() { Exit::Usage } else { Exit::Bad }
}
