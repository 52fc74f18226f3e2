//! `hovercraft-bench count`.

use std::path::PathBuf;

use hovercraft_bench::count::{self, CountError, Counted, count, growth, rises};

use super::{Failure, Verdict, writable, write_json};

/// Instructions of the core a request, of the leader and of a follower, by callgrind. Exit code 1 if
/// one rose by more than 3 % over --baseline.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What --json wrote before.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Where the counts are written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Arguments {
    pub(super) async fn execute(self) -> Verdict {
        writable(self.json.as_deref())?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::Other(format!("this program cannot be found: {error}")))?;
        let baseline = self.baseline.as_ref().map(|path| {
            let wrong = |error: &dyn std::fmt::Display| {
                Failure::Usage(format!("cannot read {}: {error}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
            serde_json::from_str::<Counted>(&text).map_err(|error| wrong(&error))
        });
        let baseline = baseline.transpose()?;
        let counted = count(&program, |name, instructions| {
            println!("{name:<28} {instructions:>10.1} instructions a request");
        })
        .await;
        let counted = match counted {
            Ok(counted) => counted,
            Err(error @ CountError::NoValgrind) => {
                println!("skipped: {error}");
                return Ok(true);
            }
            Err(error) => return Err(Failure::Other(error.to_string())),
        };
        if let Some(growth) = growth(&counted.instructions) {
            println!("hovercraft++: the leader of 9 does {growth:.3} times what that of 3 does");
        }
        if let Some(path) = &self.json {
            write_json(path, &counted)?;
        }
        let Some(baseline) = baseline else { return Ok(true) };
        if baseline.rustc != counted.rustc {
            println!("note: the baseline was counted with {}", baseline.rustc);
        }
        let rises = rises(&baseline.instructions, &counted.instructions);
        for (name, before, now) in &rises {
            println!("{name}: {before:.1} before, {now:.1} now: a rise above 3 %");
        }
        Ok(rises.is_empty())
    }
}

/// What `count` runs under callgrind.
#[derive(Debug, clap::Args)]
pub(super) struct Turns {
    /// Whose turns are counted.
    #[arg(value_parser = ["leader", "follower"])]
    role: String,
    /// How many replicas.
    #[arg(value_parser = clap::value_parser!(u16).range(2..=64))]
    replicas: u16,
    /// How many requests.
    requests: u64,
    /// In mode hovercraft++.
    #[arg(long)]
    aggregator: bool,
}

impl Turns {
    pub(super) fn execute(&self) {
        let turns = count::Turns {
            replicas: self.replicas,
            requests: self.requests,
            counts_leader: self.role == "leader",
            has_aggregator: self.aggregator,
        };
        turns.take();
    }
}
