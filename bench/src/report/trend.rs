//! How figures move from commit to commit: a file with a line of JSON for each run.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::run::Outcome;

/// A run in few words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrendLine {
    /// Runs of one name are compared.
    pub name: String,
    /// Of what.
    pub commit: String,
    /// Where.
    pub processor: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// Requests a second: the highest under the SLO if that was searched.
    pub per_s: f64,
    /// In µs.
    pub p50_us: f64,
    /// In µs.
    pub p99_us: f64,
    /// Processor time of all replicas a request, in µs.
    pub replicas_cpu_us: f64,
}

impl From<&Outcome> for TrendLine {
    fn from(outcome: &Outcome) -> Self {
        let searched = outcome.max_under_slo.as_ref().and_then(|found| found.max_per_s);
        let load = match (&outcome.max_under_slo, outcome.outstanding, outcome.offered_per_s) {
            (Some(found), ..) => format!("p99 ≤ {:.0} µs", found.slo_us),
            (None, Some(outstanding), _) => format!("{outstanding} outstanding"),
            (None, None, offered) => format!("{:.0}/s", offered.unwrap_or_default()),
        };
        let workload = outcome.workload.name();
        Self {
            name: format!(
                "{workload} {} B, {} × {}, {}, {load}",
                outcome.request_bytes, outcome.mode, outcome.replicas, outcome.durability
            ),
            commit: outcome.commit.clone(),
            processor: outcome.machine.processor.clone(),
            unix_seconds: outcome.unix_seconds,
            per_s: searched.map_or(outcome.achieved_per_s, |max| max.median),
            p50_us: outcome.p50_us,
            p99_us: outcome.p99_us,
            replicas_cpu_us: outcome.cpu_us_per_op.replicas_total,
        }
    }
}

/// Adds a run to the trend.
pub fn append(path: &Path, outcome: &Outcome) -> io::Result<()> {
    let line = serde_json::to_string(&TrendLine::from(outcome)).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}")
}

/// All lines that can be read; none if there is no file.
pub(super) fn read(path: &Path) -> io::Result<Vec<TrendLine>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // A line of another version is left out.
        other => Ok(other?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
    }
}
