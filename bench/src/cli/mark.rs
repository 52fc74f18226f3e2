//! `hovercraft-bench mark`.

use std::{path::PathBuf, time::Duration};

use hovercraft_bench::mark::{self, Row};

use super::{Failure, Verdict, hovercraft, write_json};

/// Closed loop: so many requests are outstanding at any time. What is measured is what this machine
/// does with all of them and the client on it; compare within one run.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How long each line is measured.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The `hovercraft` command; by default the one beside this one.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Where the lines are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long the replicas look for work before they sleep, in microseconds.
    #[arg(long, default_value_t = 0)]
    spin_us: u32,
    /// Only the lines whose name, requests outstanding and size contain this.
    #[arg(long)]
    only: Option<String>,
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        let binary = hovercraft(self.bin)?;
        println!(
            "{:<22} {:>6} {:>6} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}",
            "system",
            "outst.",
            "bytes",
            "requests/s",
            "p50 us",
            "p99 us",
            "CPU us",
            "client us",
            "leader B",
            "datagr.",
            "failed"
        );
        let duration = Duration::from_secs(self.seconds.max(1));
        let rows = mark::run(&binary, duration, self.spin_us, self.only.as_deref(), print).await;
        let rows = rows.map_err(|error| Failure::Other(error.to_string()))?;
        println!(
            "CPU us: user and system time of all replicas a request; leader B, datagr.: bytes and \
             datagrams that the leader sends a request."
        );
        if let Some(path) = self.json {
            write_json(&path, &rows)?;
        }
        Ok(true)
    }
}

fn print(row: &Row) {
    let optional = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.2}"));
    println!(
        "{:<22} {:>6} {:>6} {:>10.0} {:>9.1} {:>9.1} {:>9.2} {:>9} {:>9} {:>9} {:>7}",
        row.system,
        row.outstanding,
        row.request_bytes,
        row.per_second,
        row.p50_us,
        row.p99_us,
        row.replicas_cpu_us,
        optional(row.client_cpu_us),
        optional(row.leader_bytes_out),
        optional(row.leader_datagrams_out),
        row.failed,
    );
}
