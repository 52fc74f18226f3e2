//! `hovercraft-bench peers`.

use std::{path::PathBuf, time::Duration};

use hovercraft_bench::peers::{Concurrency, Plan, Sample, measure};

use super::{Failure, Verdict, hovercraft, seconds, writable, write_json};

/// etcd, Redis and our modes in one run, in turns, at 1, 50 and 200 clients with one request each and
/// at 1000 requests of one client. What is not installed is skipped.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How long each figure is measured.
    #[arg(long, value_parser = seconds, default_value = "2")]
    seconds: f64,
    /// How often each system has its turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only the systems whose name contains this.
    #[arg(long)]
    only: Option<String>,
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
        let plan = Plan {
            binary: hovercraft(self.bin)?,
            duration: Duration::from_secs_f64(self.seconds),
            rounds: self.rounds as usize,
            only: self.only,
        };
        println!(
            "{:<32} {:>7} {:>6} {:>10} {:>10} {:>10} {:>12} {:>10}",
            "system", "clients", "outst.", "ops/s", "p50 us", "p99 us", "CPU replicas", "client"
        );
        let peers = measure(&plan, print).await;
        let peers = peers.map_err(|error| Failure::Other(error.to_string()))?;
        for reason in &peers.skipped {
            println!("skipped: {reason}");
        }
        if peers.rows.is_empty() && peers.skipped.is_empty() {
            let message = "--only: no system's name contains it; they are those of the table that \
                           `peers` prints without it";
            return Err(Failure::Usage(message.to_owned()));
        }
        println!("\nours over theirs, pair by pair: operations a second, and CPU of the replicas");
        for ratio in &peers.ratios {
            println!(
                "  {:<26} over {:<32} {:>4} clients, {:>4} outstanding: {:>6.2} {:<16} CPU {}",
                ratio.system,
                ratio.over,
                ratio.clients,
                ratio.outstanding,
                ratio.ops_per_s_mean,
                listed(&ratio.ops_per_s),
                listed(&ratio.replicas_cpu)
            );
        }
        println!("CPU: µs of user and system time an operation. {}", peers.machine.describe());
        if let Some(path) = self.json {
            write_json(&path, &peers)?;
        }
        Ok(true)
    }
}

fn listed(figures: &[f64]) -> String {
    let figures: Vec<_> = figures.iter().map(|figure| format!("{figure:.2}")).collect();
    format!("({})", figures.join(", "))
}

fn print(system: &str, concurrency: Concurrency, sample: &Sample) {
    println!(
        "{system:<32} {:>7} {:>6} {:>10.0} {:>10.1} {:>10.1} {:>12.2} {:>10.2}",
        concurrency.clients,
        concurrency.outstanding,
        sample.ops_per_s(),
        sample.quantile_us(0.5),
        sample.quantile_us(0.99),
        sample.replicas_cpu_us(),
        sample.client_cpu_us(),
    );
}
