//! `shrink`: the smallest schedule that still breaks what a seed breaks.

use std::{fmt::Write, path::PathBuf, sync::Arc, time::Duration};

use crate::{Schedule, Workload, shrink};
use indicatif::ProgressBar;

use super::{CliError, GOOD, Tier, UNKNOWN, Which, print, quietly};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) which: Which,
    /// Where the schedule goes
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
}

pub(super) fn smallest(
    arguments: &Arguments,
    tier: Tier,
    workload: &Arc<dyn Workload>,
) -> Result<u8, CliError> {
    let (runner, schedule) = arguments.which.open(workload, tier)?;
    let before = size(&schedule);
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(200));
    let shrunk = quietly(|| shrink(&runner, schedule, &mut |best| spinner.set_message(size(best))));
    spinner.finish_and_clear();
    let Some(shrunk) = shrunk else {
        print("nothing broke, so there is nothing to shrink\n")?;
        return Ok(UNKNOWN);
    };
    shrunk.schedule.save(&arguments.out)?;
    let run = quietly(|| runner.replay(&shrunk.schedule, usize::MAX));
    let bug = arguments.which.bug.as_ref().map_or(String::new(), |bug| format!(" --bug {bug}"));
    let mut text = String::new();
    for timed in &shrunk.schedule.faults {
        let _ = writeln!(text, "{:>10.3}  {}", timed.at_us as f64 / 1e3, timed.fault);
    }
    for planned in &shrunk.schedule.operations {
        let at_ms = planned.at_us as f64 / 1e3;
        let _ = writeln!(text, "{at_ms:>10.3}  client {}: {}", planned.client, planned.what);
    }
    let violation = run.violation.map_or_else(String::new, |violation| violation.to_string());
    let out = arguments.out.display();
    print(&format!(
        "{text}\n{violation}\nshrunk from {before} to {} in {} runs\n\
         {}   # its story\n",
        size(&shrunk.schedule),
        shrunk.tried,
        tier.replay(&format!("--schedule {out}{bug}")),
    ))?;
    Ok(GOOD)
}

fn size(schedule: &Schedule) -> String {
    let (faults, operations) = (schedule.faults.len(), schedule.operations.len());
    format!("{faults} faults and {operations} operations")
}
