//! `hovercraft-bench floor`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hovercraft::Mode;
use hovercraft_bench::{
    Cluster,
    floor::{Floors, measure},
    generator::Pace,
    run::{Outcome, RunError, Spec, run},
    workload::Workload,
};

use super::{Failure, Verdict, hovercraft, progress, time, writable, write_json};

/// Datagrams alone, in trains and by multicast, and synced appends; beside them what a request costs
/// our replicas.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How long each of five turns of each line takes.
    #[arg(long, value_parser = time, default_value = "150ms")]
    turn: Duration,
    /// The directory whose disk is measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Measure the kernel alone.
    #[arg(long)]
    alone: bool,
    /// Where the figures are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The `hovercraft` command; by default the one beside this one.
    #[arg(long)]
    bin: Option<PathBuf>,
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        writable(self.json.as_deref())?;
        if !self.directory.is_dir() {
            let message =
                format!("--directory: there is no directory {}", self.directory.display());
            return Err(Failure::Usage(message));
        }
        let (turn, directory) = (self.turn, self.directory.clone());
        let binary = if self.alone { None } else { Some(hovercraft(self.bin)?) };
        let bar = progress("what the kernel charges");
        let measured = tokio::task::spawn_blocking(move || measure(turn, &directory)).await;
        bar.finish_and_clear();
        let floors = measured
            .map_err(|panic| Failure::Other(panic.to_string()))?
            .map_err(|error| Failure::Other(error.to_string()))?;
        print(&floors);
        if let Some(binary) = binary {
            for outstanding in [1, 50, 1000] {
                ours(&binary, outstanding, &floors).await?;
            }
        }
        if let Some(path) = self.json {
            write_json(&path, &floors)?;
        }
        Ok(true)
    }
}

fn print(floors: &Floors) {
    println!("{}", floors.machine.describe());
    println!("{:<60} {:>8} {:>16} {:>8}", "µs each", "CPU", "(least … most)", "wall");
    for line in &floors.lines {
        let wall = line.wall_us.map_or("-".to_owned(), |wall| format!("{wall:.2}"));
        let range = format!("({:.2} … {:.2})", line.low_high_us.0, line.low_high_us.1);
        println!("{:<60} {:>8.2} {:>16} {:>8}", line.name, line.cpu_us, range, wall);
    }
    for reason in &floors.skipped {
        println!("skipped: {reason}");
    }
}

/// Our cost of a write beside what its datagrams alone would cost.
async fn ours(binary: &Path, outstanding: usize, floors: &Floors) -> Result<(), Failure> {
    let bar = progress(format!("a replicated write, {outstanding} outstanding"));
    let mut spec = Spec::new(Workload::Tiny, Mode::HovercRaft, 3);
    spec.duration = Duration::from_secs(2);
    spec.duration_max = spec.duration;
    let cluster = Cluster::start(binary, &spec.setup).await.map_err(RunError::from)?;
    let outcome = run(&cluster, &spec, Pace::Closed { outstanding }).await?;
    bar.finish_and_clear();
    let Outcome { leader, follower, cpu_us_per_op, .. } = outcome;
    let follower = follower.unwrap_or_default();
    let datagrams = leader.datagrams_in_per_op
        + leader.datagrams_out_per_op
        + 2.0 * (follower.datagrams_in_per_op + follower.datagrams_out_per_op);
    let price = |key: &str| {
        floors.lines.iter().find(|line| line.key == key).map_or(0.0, |line| line.cpu_us / 2.0)
    };
    println!(
        "a replicated write, {outstanding:>4} outstanding: {:.2} µs of CPU over three replicas, \
         {datagrams:.2} datagrams; as single ones {:.2} µs, in trains of 16 {:.2} µs, 1 µs × 3 of \
         service",
        cpu_us_per_op.replicas_total,
        datagrams * price("train_1_64"),
        datagrams * price("train_16_64"),
    );
    Ok(())
}
