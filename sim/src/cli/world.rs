//! `world`: what `sweep`, `run` and `shrink` do, on the real shells of nodes and clients.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use super::{CliError, Which, minutes, seeds};
use crate::Workload;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run all of these seeds, A..B, B excluded
    #[arg(long, value_parser = seeds, value_name = "A..B", conflicts_with_all = ["seed", "schedule"])]
    seeds: Option<Range<u64>>,
    /// Or one of them, and tell its story: with --seed, --schedule, or both
    #[command(flatten)]
    which: Which,
    /// Write the smallest schedule that still breaks what the one breaks
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    shrink: Option<PathBuf>,
    /// End after so many minutes, whatever is left
    #[arg(long, value_name = "M", value_parser = minutes)]
    minutes: Option<Duration>,
    /// So many threads; all cores by default
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Write what was found as JSON
    #[arg(long, value_name = "FILE", conflicts_with = "shrink")]
    json: Option<PathBuf>,
}

#[cfg(not(madsim))]
pub(super) fn run(_: Arguments, _: &Arc<dyn Workload>) -> Result<u8, CliError> {
    Err(CliError::NoWorld)
}

#[cfg(madsim)]
pub(super) fn run(arguments: Arguments, workload: &Arc<dyn Workload>) -> Result<u8, CliError> {
    use super::{Tier, run, shrink, sweep};

    let Arguments { seeds, which, shrink, minutes, jobs, json } = arguments;
    match (seeds, shrink) {
        (Some(seeds), _) => {
            let Which { beyond, bug, large, .. } = which;
            let arguments = sweep::Arguments { seeds, bug, minutes, jobs, beyond, large, json };
            sweep::sweep(&arguments, Tier::World, workload)
        }
        (None, Some(out)) => {
            shrink::smallest(&shrink::Arguments { which, out }, Tier::World, workload)
        }
        (None, None) => {
            let arguments = run::Arguments { which, trace: true, html: None, json, save: None };
            run::replay(&arguments, Tier::World, workload)
        }
    }
}
