//! A run as data: what the cluster is like, what goes wrong and when, and what clients ask.
//!
//! A seed gives a schedule, and a schedule gives the same run every time, here and in every other
//! tier that runs it. Saved as JSON it can be read, shrunk, and kept as a regression test.

use std::{collections::BTreeSet, fs, io, path::Path, time::Duration};

use hovercraft::core::Limits;
use r2p2::Time;
use serde::{Deserialize, Serialize};

use crate::{
    bounds,
    faults::{Fault, FaultKind, Target, plan::FaultOptions},
    options::Options,
    workload::{Planned, Registers, Workload},
};

/// Everything that a run derives from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Cluster, clients, network and disks; with the seed of what is drawn during the run.
    pub options: Options,
    /// Faults may go beyond what the protocol promises to survive. Then nothing is asked but that
    /// the failure is loud and safe: a stop with an error, never a wrong answer.
    #[serde(default)]
    pub beyond: bool,
    /// What goes wrong, in order of time.
    pub faults: Vec<Timed>,
    /// What clients ask, in order of time.
    pub operations: Vec<Planned>,
}

/// A fault and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Microseconds of simulated time from the start of the run.
    pub at_us: u64,
    /// What goes wrong then.
    #[serde(flatten)]
    pub fault: Fault,
}

/// A schedule that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not a schedule.
    #[error("{path}: line {line}, column {column}: {what}", line = source.line(),
        column = source.column(), what = describe(source))]
    Json {
        /// Which one.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// What it says is impossible.
    #[error("{path}: {what}")]
    Impossible {
        /// Which one.
        path: String,
        /// Why.
        what: String,
    },
}

/// What is wrong, without the place, which is told apart.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
}

impl Schedule {
    /// The schedule of a seed, for the registers that the simulation comes with.
    pub fn from_seed(seed: u64) -> Self {
        Self::of_workload(seed, &Registers, false)
    }

    /// The schedule of a seed whose faults go beyond what the protocol promises to survive.
    pub fn beyond(seed: u64) -> Self {
        Self::of_workload(seed, &Registers, true)
    }

    /// The schedule of a seed for a service of one's own.
    pub fn of_workload(seed: u64, workload: &dyn Workload, beyond: bool) -> Self {
        Self::of_options(Options::from_seed(seed), workload, beyond)
    }

    /// The schedule of a seed with thousands of operations (see [`Options::large`]).
    pub fn large(seed: u64, workload: &dyn Workload, beyond: bool) -> Self {
        Self::of_options(Options::large(seed), workload, beyond)
    }

    fn of_options(options: Options, workload: &dyn Workload, beyond: bool) -> Self {
        let kinds = FaultOptions::from_seed(&options, beyond);
        let mut options = options;
        if kinds.are_watched_alone(&options) {
            options.leave_alone();
        }
        let faults = kinds.plan(&options);
        let operations = crate::workload::plan(&options, workload);
        Self { options, beyond, faults, operations }
    }

    /// A schedule in which nothing goes wrong.
    pub fn calm(options: Options) -> Self {
        let operations = crate::workload::plan(&options, &Registers);
        Self { options, beyond: false, faults: Vec::new(), operations }
    }

    /// The sorts of faults in it.
    pub fn fault_kinds(&self) -> BTreeSet<FaultKind> {
        self.faults.iter().map(|timed| timed.fault.kind()).collect()
    }

    /// When the last operation comes up: it cannot be done before.
    pub(crate) fn last_planned(&self) -> Time {
        let at_us = self.operations.iter().map(|planned| planned.at_us).max().unwrap_or_default();
        Time::ZERO + Duration::from_micros(at_us)
    }

    /// Whether nothing goes wrong but with aggregators.
    pub(crate) fn is_of_aggregators(&self) -> bool {
        self.options.cluster.aggregators > 0
            && self.is_left_alone()
            && self.faults.iter().all(|timed| timed.fault.kind().is_of_aggregators())
    }

    /// Returns whether nothing else goes wrong than the faults say, and nothing has little room.
    fn is_left_alone(&self) -> bool {
        let Options { cluster, survivors, .. } = &self.options;
        survivors.is_none() && cluster.limits == Limits::DEFAULT
    }

    /// Returns whether nothing goes wrong but that all replicas stand still together.
    pub(crate) fn is_of_held_hosts(&self) -> bool {
        let replicas = usize::from(self.options.cluster.replicas);
        let all_pause = |timed: &Timed| {
            let Fault::Pause { for_us, .. } = timed.fault else { return false };
            let at_us = timed.at_us;
            (1..=replicas).all(|number| {
                let fault = Fault::Pause { target: Target::Replica(number), for_us };
                self.faults.contains(&Timed { at_us, fault })
            })
        };
        let are_any = !self.faults.is_empty();
        are_any && self.is_left_alone() && self.faults.iter().all(all_pause)
    }

    /// Returns whether nothing goes wrong but that disks stand still.
    pub(crate) fn is_of_stalled_disks(&self) -> bool {
        let mut kinds = self.faults.iter().map(|timed| timed.fault.kind());
        let are_any = !self.faults.is_empty();
        are_any && self.is_left_alone() && kinds.all(|kind| kind == FaultKind::SyncStall)
    }

    /// Reads a schedule from a file, where faults and operations may stand in any order.
    pub fn load(path: &Path) -> Result<Self, ScheduleError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path)
            .map_err(|source| ScheduleError::File { path: name.clone(), source })?;
        let mut schedule: Self = serde_json::from_str(&text)
            .map_err(|source| ScheduleError::Json { path: name.clone(), source })?;
        if let Err(what) = bounds::check(&schedule) {
            return Err(ScheduleError::Impossible { path: name, what });
        }
        schedule.faults.sort_by_key(|timed| timed.at_us);
        schedule.operations.sort_by_key(|planned| planned.at_us);
        Ok(schedule)
    }

    /// Writes it to a file, one fault and one operation a line.
    pub fn save(&self, path: &Path) -> Result<(), ScheduleError> {
        let error = |source| ScheduleError::File { path: path.display().to_string(), source };
        fs::write(path, self.to_json()).map_err(error)
    }

    /// Its form in a file.
    pub fn to_json(&self) -> String {
        let lines = |items: Vec<String>| {
            if items.is_empty() {
                return "[]".to_owned();
            }
            format!(
                "[
    {}
  ]",
                items.join(
                    ",
    "
                )
            )
        };
        let faults = self.faults.iter().map(line).collect();
        let operations = self.operations.iter().map(line).collect();
        let options = serde_json::to_string_pretty(&self.options).expect("options are plain data");
        format!(
            "{{\n  \"options\": {},\n  \"beyond\": {},\n  \"faults\": {},\n  \"operations\": {}\n}}\n",
            options.replace('\n', "\n  "),
            self.beyond,
            lines(faults),
            lines(operations)
        )
    }
}

/// A value that stands on a line of its own.
fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("schedules are plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_comes_back_from_its_file_as_it_was() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("schedule.json");
        for seed in 0..50 {
            let schedule = Schedule::of_workload(seed, &Registers, seed % 2 == 1);
            schedule.save(&path).expect("it can be written");
            assert_eq!(Schedule::load(&path).expect("it can be read"), schedule);
        }
    }

    #[test]
    fn a_file_that_is_no_schedule_is_refused_with_its_place() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("schedule.json");
        let good = Schedule::from_seed(1).to_json();
        let cases = [
            (good.replacen("\"faults\"", "\"vaults\"", 1), "vaults"),
            (good.replacen("\"replicas\": ", "\"replicas\": 1", 1), "replicas"),
            (good.replacen('}', "", 1), "line"),
            (good.replacen("\"chaos_us\": ", "\"chaos_us\": 9999999", 1), "chaos_us"),
            (good.replacen("\"for_us\"", "\"for_so_long\"", 1), "for_so_long"),
            (String::new(), "line 1"),
        ];
        for (text, expected) in cases {
            fs::write(&path, text).expect("it can be written");
            let error = Schedule::load(&path).expect_err("it is wrong").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
