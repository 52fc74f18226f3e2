//! `run`: one seed or one schedule.

use std::{fmt::Write, path::PathBuf, sync::Arc};

use crate::{Run, Schedule, Workload};
use serde::Serialize;

use super::{BAD, CliError, GOOD, Tier, Which, print, quietly, write_file, write_json};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) which: Which,
    /// Tell the whole story, not only its end
    #[arg(long)]
    pub(super) trace: bool,
    /// Draw the run as a page: a timeline by replica
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Write the verdict as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write the schedule, to be edited and run again with --schedule
    #[arg(long, value_name = "FILE")]
    pub(super) save: Option<PathBuf>,
}

/// How many lines are told of a run that fails.
const LINES: usize = 60;

#[derive(Serialize)]
struct Verdict<'a> {
    seed: u64,
    failed: bool,
    invariant: Option<&'a str>,
    rule: Option<&'a str>,
    message: Option<&'a str>,
    digest: String,
    coverage: &'a crate::Coverage,
}

pub(super) fn replay(
    arguments: &Arguments,
    tier: Tier,
    workload: &Arc<dyn Workload>,
) -> Result<u8, CliError> {
    let (runner, schedule) = arguments.which.open(workload, tier)?;
    if let Some(path) = &arguments.save {
        schedule.save(path)?;
    }
    let run = quietly(|| runner.replay(&schedule, usize::MAX));
    let mut text = String::new();
    if arguments.trace || run.violation.is_some() {
        let count = run.story().count();
        let skipped = if arguments.trace { 0 } else { count.saturating_sub(LINES) };
        if skipped > 0 {
            let _ = writeln!(text, "… {skipped} lines before these; --trace tells all of them");
        }
        for line in run.story().skip(skipped) {
            let _ = writeln!(text, "{line}");
        }
        text.push('\n');
    }
    print(&(text + &summary(&schedule, &run)))?;
    if let Some(path) = &arguments.html {
        write_file(path, &crate::html(&schedule, &run))?;
    }
    let violation = run.violation.as_ref();
    let verdict = Verdict {
        seed: schedule.options.seed,
        failed: violation.is_some(),
        invariant: violation.map(|it| it.invariant),
        rule: violation.map(|it| it.rule),
        message: violation.map(|it| it.what.as_str()),
        digest: format!("{:016x}", run.digest),
        coverage: &run.coverage,
    };
    write_json(arguments.json.as_ref(), &verdict)?;
    Ok(if violation.is_some() { BAD } else { GOOD })
}

/// What the run was like and how it ended.
fn summary(schedule: &Schedule, run: &Run) -> String {
    let cluster = &schedule.options.cluster;
    let mut text = format!(
        "seed {}: {} replicas, mode {:?}, policy {:?}, durability {:?}; {} clients, {} operations, \
         {}\n",
        schedule.options.seed,
        cluster.replicas,
        cluster.mode,
        cluster.policy,
        cluster.durability,
        schedule.options.clients.len(),
        schedule.operations.len(),
        faults(schedule, run),
    );
    let count = |what| run.coverage.count(what);
    let _ = writeln!(
        text,
        "{} deliveries, {} elections won, {} entries committed, {} answers; digest {:016x}",
        count("deliveries"),
        count("elections won"),
        count("entries committed"),
        count("answers"),
        run.digest,
    );
    match &run.violation {
        None => text.push_str("nothing broke\n"),
        Some(violation) => {
            let _ = writeln!(text, "BROKEN: {violation}");
        }
    }
    text
}

/// How many there were, and how many of them came up: some come after all is done or broken, or
/// would go beyond what is promised.
fn faults(schedule: &Schedule, run: &Run) -> String {
    let planned = schedule.faults.len() as u64;
    let kinds = schedule.fault_kinds();
    let came = kinds.iter().map(|kind| run.coverage.count(kind.name())).sum::<u64>();
    if came == planned {
        format!("{planned} faults")
    } else {
        format!("{came} of {planned} faults")
    }
}
