//! `speed`: simulated deliveries a second, on one core.
//!
//! A second is one of the thread's own CPU time, so that what else the machine does is left out.

use std::path::PathBuf;

use crate::{Schedule, Stepper};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{BAD, CliError, GOOD, print, write_json};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// For about so many seconds of CPU time each
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Figures {
    /// Simulated deliveries a second with the invariants off.
    deliveries_per_s_off: f64,
    /// And with every one on.
    deliveries_per_s_on: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, CliError> {
    let (Some(off), Some(on)) = (measure(arguments, false), measure(arguments, true)) else {
        print("a seed fails, so there is nothing to measure: see `hovercraft-sim sweep`\n")?;
        return Ok(BAD);
    };
    print(&format!(
        "{off:.0} deliveries/s with the invariants off, {on:.0} with every one on, \
         a second of one core's time\n"
    ))?;
    let figures = Figures { deliveries_per_s_off: off, deliveries_per_s_on: on };
    write_json(arguments.json.as_ref(), &figures)?;
    Ok(GOOD)
}

/// The seeds of a sweep, one after the other, as long as there is time.
fn measure(arguments: &Arguments, with_invariants: bool) -> Option<f64> {
    let started = cpu_seconds();
    let mut deliveries = 0;
    for seed in 0.. {
        let stepper = Stepper::new(Schedule::from_seed(seed));
        let mut stepper = if with_invariants { stepper } else { stepper.without_invariants() };
        stepper.run().ok()?;
        deliveries += stepper.deliveries();
        if cpu_seconds() - started >= arguments.seconds {
            break;
        }
    }
    Some(deliveries as f64 / (cpu_seconds() - started))
}

/// CPU time of this thread.
fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
