//! How many instructions the core executes for a request: a count that repeats, on any machine.
//!
//! The `hovercraft-bench` command runs itself under valgrind's callgrind, drives real cores in that one
//! process, and what one of them does is counted.

mod turns;

pub use turns::Turns;

use std::{collections::BTreeMap, io, path::Path, process::Stdio};

use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// Instructions a request, by what was counted: `leader of 3`, `follower of 3`, … in mode `hovercraft`,
/// `hovercraft++ leader of 3`, … with an aggregator, whose own instructions are not among them.
pub type Counts = BTreeMap<String, f64>;

/// What was counted, and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Instructions a request.
    pub instructions: Counts,
    /// The compiler changes them.
    pub rustc: String,
}

/// The sizes of clusters that are counted.
pub const REPLICAS: [u16; 4] = [3, 5, 7, 9];

/// How many requests each core is given, and how many of them in a turn.
pub const REQUESTS: u64 = 2000;

/// The share by which a count may rise without an explanation.
pub const RISE_MAX: f64 = 0.03;

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CountError {
    /// valgrind is not there.
    #[error("valgrind is not installed; on Debian: apt-get install valgrind")]
    NoValgrind,
    /// It did not run.
    #[error("cannot run valgrind: {0}")]
    Io(#[from] io::Error),
    /// It ran, and did not count.
    #[error("valgrind did not count: {0}")]
    Output(String),
}

/// Counts, with the program at `program`; `each` sees every count as it comes.
pub async fn count(program: &Path, mut each: impl FnMut(&str, f64)) -> Result<Counted, CountError> {
    let mut instructions = Counts::new();
    for mode in ["", "hovercraft++ "] {
        for (replicas, role) in REPLICAS.iter().flat_map(|it| [(it, "leader"), (it, "follower")]) {
            let name = format!("{mode}{role} of {replicas}");
            let turns = |requests| Turns {
                replicas: *replicas,
                requests,
                counts_leader: role == "leader",
                has_aggregator: !mode.is_empty(),
            };
            // What is done before the first request and after the last one falls out.
            let few = callgrind(program, turns(REQUESTS / 2)).await?;
            let many = callgrind(program, turns(REQUESTS)).await?;
            let each_request = (many - few) as f64 / (REQUESTS - REQUESTS / 2) as f64;
            each(&name, each_request);
            instructions.insert(name, each_request);
        }
    }
    Ok(Counted { instructions, rustc: rustc().await })
}

/// How much more the leader of nine replicas does for a request than that of three, with an aggregator:
/// 1.1 at most, if its work is not to grow with the cluster.
pub fn growth(counts: &Counts) -> Option<f64> {
    let of = |replicas: u16| counts.get(&format!("hovercraft++ leader of {replicas}"));
    Some(of(9)? / of(3)?)
}

/// What rose by more than [`RISE_MAX`], with both counts.
pub fn rises(before: &Counts, now: &Counts) -> Vec<(String, f64, f64)> {
    now.iter()
        .filter_map(|(name, now)| Some((name, *before.get(name)?, *now)))
        .filter(|(_, before, now)| *now > before * (1.0 + RISE_MAX))
        .map(|(name, before, now)| (name.clone(), before, now))
        .collect()
}

async fn callgrind(program: &Path, turns: Turns) -> Result<u64, CountError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*counted_turn*")
        .arg(program)
        .arg("take-turns")
        .args(turns.arguments())
        // The environment lies on the stack, and what lies there may move a count.
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CountError::NoValgrind);
        }
        other => other?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    let count = collected.and_then(|text| text.trim().parse().ok());
    count.filter(|count| *count > 0).ok_or_else(|| {
        let last = said.lines().next_back().unwrap_or("nothing was said").to_owned();
        CountError::Output(last)
    })
}

async fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output().await;
    output.map_or("unknown".to_owned(), |it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_rose_by_more_than_the_limit_is_named() {
        let counts = |leader: f64, follower: f64| {
            Counts::from([("leader of 3".into(), leader), ("follower of 3".into(), follower)])
        };
        assert_eq!(rises(&counts(100.0, 100.0), &counts(102.9, 50.0)), []);
        let rises = rises(&counts(100.0, 100.0), &counts(103.1, 50.0));
        assert_eq!(rises, [("leader of 3".to_owned(), 100.0, 103.1)]);
    }
}
