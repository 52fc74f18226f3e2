//! `hovercraft-bench self-test`.

use std::path::PathBuf;

use hovercraft_bench::self_test::{Outcome, cases, in_real_time, in_virtual_time};

use super::{Failure, Verdict, progress, writable, write_json};

/// Three servers: one with exponential latencies, one that loses requests, one that stands still for
/// 100 ms each second. The true p99 must lie in the reported 95 % interval in at least 93 of 100 runs.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How many runs of each.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// With real sockets and a real clock, which takes 4 seconds a run; otherwise in virtual time.
    #[arg(long)]
    real: bool,
    /// Where the outcomes are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        // In a thread that may be left alone, so that an interrupt ends it.
        let judged = tokio::task::spawn_blocking(|| self.judge()).await;
        judged.unwrap_or_else(|panic| Err(Failure::Other(panic.to_string())))
    }

    fn judge(self) -> Verdict {
        writable(self.json.as_deref())?;
        let runs = self.runs as usize;
        let mut outcomes = Vec::new();
        println!(
            "{:<32} {:>5} {:>11} {:>11} {:>8} {:>22} {:>7} {:>14}",
            "case",
            "runs",
            "true p99",
            "reported",
            "covered",
            "errors p50/p99/p99.9",
            "passed",
            "closed loop"
        );
        for case in cases() {
            let bar = progress(format!("{}: {runs} runs", case.name));
            let outcome = if self.real {
                in_real_time(&case, runs).map_err(|error| Failure::Other(error.to_string()))?
            } else {
                in_virtual_time(&case, runs)
            };
            bar.finish_and_clear();
            print(&outcome);
            outcomes.push(outcome);
        }
        println!(
            "covered: runs in which the true p99 was in the reported 95 % interval; passed: runs whose \
             sample passed all tests; closed loop: the p99 that one request at a time would have shown."
        );
        if let Some(path) = self.json {
            write_json(&path, &outcomes)?;
        }
        let good = outcomes.iter().all(Outcome::passed);
        println!("verdict: {}", if good { "ok" } else { "the instrument does not tell the truth" });
        Ok(good)
    }
}

fn print(outcome: &Outcome) {
    let [half, p99, p999] = outcome.errors.map(|error| error * 100.0);
    println!(
        "{:<32} {:>5} {:>8.0} µs {:>8.0} µs {:>8} {:>20} % {:>7} {:>11.0} µs",
        outcome.case,
        outcome.runs,
        outcome.p99_truth_us,
        outcome.p99_reported_us,
        outcome.p99_covered,
        format!("{half:.1}/{p99:.1}/{p999:.1}"),
        outcome.tests_passed,
        outcome.p99_closed_loop_us,
    );
}
