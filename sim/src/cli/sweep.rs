//! `sweep`: many seeds.

use std::{
    collections::BTreeMap, fmt::Write, ops::Range, path::PathBuf, sync::Arc, time::Duration,
};

use crate::{Failure, Report, Sweep, Workload};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{BAD, CliError, GOOD, Tier, minutes, print, runner, seeds, write_json};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which seeds, as A..B, B excluded
    #[arg(long, value_parser = seeds, value_name = "A..B")]
    pub(super) seeds: Range<u64>,
    /// With a planted bug; the sweep ends at the first seed that finds it
    #[arg(long, value_name = "NAME")]
    pub(super) bug: Option<String>,
    /// End after so many minutes, whatever is left
    #[arg(long, value_name = "M", value_parser = minutes)]
    pub(super) minutes: Option<Duration>,
    /// So many threads; all cores by default
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
    /// Faults go beyond what the protocol promises to survive
    #[arg(long)]
    pub(super) beyond: bool,
    /// With thousands of operations a seed, and faults as long as these take
    #[arg(long)]
    pub(super) large: bool,
    /// Write what was found as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Found<'a> {
    /// How many seeds were run.
    seeds: u64,
    from: u64,
    /// Excluded.
    to: u64,
    bug: Option<&'a str>,
    beyond: bool,
    large: bool,
    failures: &'a [Failure],
    coverage: BTreeMap<&'a str, u64>,
    /// Things that the proof rests on and that were seen too rarely.
    too_rare: &'a [String],
    seconds: f64,
    seeds_per_s: f64,
    deliveries_per_s: f64,
}

pub(super) fn sweep(
    arguments: &Arguments,
    tier: Tier,
    workload: &Arc<dyn Workload>,
) -> Result<u8, CliError> {
    let runner = runner(workload, tier, arguments.bug.as_deref(), arguments.large)?;
    let mut sweep = Sweep::new(arguments.seeds.clone());
    sweep.beyond = arguments.beyond;
    sweep.first_only = arguments.bug.is_some();
    sweep.jobs = arguments.jobs.map_or(sweep.jobs, usize::from);
    sweep.time_max = arguments.minutes;
    let bar = ProgressBar::new(arguments.seeds.end - arguments.seeds.start);
    let style = ProgressStyle::with_template(
        "{bar:40} {pos}/{len} seeds, {per_sec}, {elapsed} of {duration}{msg}",
    );
    bar.set_style(style.expect("the template is right"));
    let report = sweep.run(&runner, |done, failed| {
        bar.set_position(done);
        if failed > 0 {
            bar.set_message(format!(", {failed} failed"));
        }
    });
    bar.finish_and_clear();
    let too_rare = too_rare(arguments, tier, &report, workload.as_ref());
    print(&text(arguments, tier, &report, &too_rare))?;
    let found = Found {
        seeds: report.seeds,
        from: arguments.seeds.start,
        to: arguments.seeds.end,
        bug: arguments.bug.as_deref(),
        beyond: arguments.beyond,
        large: arguments.large,
        failures: &report.failures,
        coverage: report.coverage.counts().collect(),
        too_rare: &too_rare,
        seconds: report.took.as_secs_f64(),
        seeds_per_s: report.seeds_per_s(),
        deliveries_per_s: report.deliveries_per_s(),
    };
    write_json(arguments.json.as_ref(), &found)?;
    Ok(if report.failures.is_empty() && too_rare.is_empty() { GOOD } else { BAD })
}

/// Returns what the stepper must see and has seen too rarely, if nothing in the sweep keeps it from
/// that.
fn too_rare(
    arguments: &Arguments,
    tier: Tier,
    report: &Report,
    workload: &dyn Workload,
) -> Vec<String> {
    let is_plain = arguments.bug.is_none() && !arguments.beyond && !arguments.large;
    let is_asked = is_plain && tier.has_thresholds() && workload.has_thresholds();
    if is_asked { report.coverage.too_rare(report.seeds) } else { Vec::new() }
}

fn text(arguments: &Arguments, tier: Tier, report: &Report, too_rare: &[String]) -> String {
    let mut text = format!("{report}\n");
    let never: Vec<_> = report.coverage.never().collect();
    if !never.is_empty() {
        let _ = writeln!(text, "never happened: {}", never.join(", "));
    }
    for what in too_rare {
        let _ = writeln!(text, "too rare: {what}");
    }
    if let Some(first) = report.failures.first() {
        let bug = arguments.bug.as_ref().map_or(String::new(), |bug| format!(" --bug {bug}"));
        let beyond = if arguments.beyond { " --beyond" } else { "" };
        let large = if arguments.large { " --large" } else { "" };
        let which = format!("--seed {}{bug}{beyond}{large}", first.seed);
        let _ = writeln!(text, "{}   # its whole story", tier.replay(&which));
        let _ = writeln!(text, "{}   # the shortest", tier.shrink(&which));
    }
    text
}
