//! Many seeds, and what to show of one that fails.

use std::{
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{coverage::Coverage, invariants::Violation, options::Options, stepper::Stepper};

/// How many lines of the story of a failed seed are shown.
const LINES_MAX: usize = 60;

/// A seed that fails, and how.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed: running it again fails again.
    pub seed: u64,
    /// What broke.
    pub violation: Violation,
    /// The last lines of its story.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.story {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.violation)
    }
}

/// Runs one seed; what it saw, or how it fails.
pub fn run_seed(seed: u64) -> Result<Coverage, Box<Failure>> {
    let mut stepper = Stepper::new(Options::from_seed(seed));
    if guarded(&mut stepper).is_ok() {
        return Ok(stepper.coverage());
    }
    // The same again, this time listening.
    Err(Box::new(replay(seed, LINES_MAX)))
}

/// Runs one seed and keeps the last lines of its story.
pub fn replay(seed: u64, lines_max: usize) -> Failure {
    let mut stepper = Stepper::traced(Options::from_seed(seed), lines_max);
    let violation = guarded(&mut stepper).err().unwrap_or_else(|| Violation {
        invariant: "none",
        rule: "none",
        what: "this seed does not fail".to_owned(),
    });
    Failure { seed, violation, story: stepper.story().map(str::to_owned).collect() }
}

/// Runs seeds until one fails.
pub fn run_seeds(seeds: Range<u64>) -> Result<Coverage, Box<Failure>> {
    let mut coverage = Coverage::default();
    for seed in seeds {
        coverage.merge(&run_seed(seed)?);
    }
    Ok(coverage)
}

/// An assertion of the product that fails is a violation too.
fn guarded(stepper: &mut Stepper) -> Result<(), Violation> {
    let result = catch_unwind(AssertUnwindSafe(|| stepper.run()));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let what = text.unwrap_or_else(|| "no message".to_owned());
        Err(Violation { invariant: "no assertion fails", rule: "panic", what })
    })
}
