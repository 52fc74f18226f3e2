//! Runs schedules of one workload: alone, or with everything that is told of them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    bugs::{self, Bug},
    coverage::Coverage,
    invariants::Violation,
    schedule::Schedule,
    stepper::Stepper,
    trace::Line,
    workload::{Registers, Workload},
};

/// Runs schedules of one workload.
#[derive(Clone)]
pub struct Runner {
    workload: Arc<dyn Workload>,
    bug: Option<&'static Bug>,
    is_large: bool,
    #[cfg(madsim)]
    is_in_world: bool,
}

/// What a run was like.
pub struct Run {
    /// What broke, if anything.
    pub violation: Option<Violation>,
    /// What happened, how often.
    pub coverage: Coverage,
    /// Digest of everything that happened: equal for equal schedules.
    pub digest: u64,
    pub(crate) lines: Vec<Line>,
    pub(crate) replicas: usize,
    pub(crate) clients: usize,
}

impl Run {
    /// Its story, line by line, as far as it was kept.
    pub fn story(&self) -> impl Iterator<Item = String> {
        self.lines.iter().map(ToString::to_string)
    }
}

impl Runner {
    /// Runs schedules of a service of one's own.
    pub fn new(workload: impl Workload) -> Self {
        Self::of(Arc::new(workload))
    }

    pub(crate) fn of(workload: Arc<dyn Workload>) -> Self {
        Self {
            workload,
            bug: None,
            is_large: false,
            #[cfg(madsim)]
            is_in_world: false,
        }
    }

    /// Runs schedules of the registers that the simulation comes with.
    pub fn registers() -> Self {
        Self::new(Registers)
    }

    /// With a defect in the product; none is as without (see [`bugs`]).
    #[must_use]
    pub fn with_bug(self, bug: Option<&'static Bug>) -> Self {
        Self { bug, ..self }
    }

    /// Schedules of seeds have thousands of operations.
    #[must_use]
    pub fn large(self, is_large: bool) -> Self {
        Self { is_large, ..self }
    }

    /// In the world, on the real shells of nodes and clients, instead of in the stepper.
    #[cfg(madsim)]
    #[must_use]
    pub fn in_world(self) -> Self {
        Self { is_in_world: true, ..self }
    }

    /// The schedule of a seed.
    pub fn schedule(&self, seed: u64, beyond: bool) -> Schedule {
        let schedule = if self.is_large { Schedule::large } else { Schedule::of_workload };
        schedule(seed, self.workload.as_ref(), beyond)
    }

    /// Runs a schedule and tells nothing of it.
    pub fn run(&self, schedule: &Schedule) -> Run {
        #[cfg(madsim)]
        if self.is_in_world {
            return crate::world::run(schedule, &self.workload, self.bug);
        }
        self.go(Stepper::with_workload(schedule.clone(), Arc::clone(&self.workload)))
    }

    /// Runs a schedule and keeps the last lines of its story.
    pub fn replay(&self, schedule: &Schedule, lines_max: usize) -> Run {
        #[cfg(madsim)]
        if self.is_in_world {
            return crate::world::run(schedule, &self.workload, self.bug);
        }
        self.go(Stepper::traced(schedule.clone(), Arc::clone(&self.workload), lines_max))
    }

    /// An assertion of the product that fails is a violation too.
    fn go(&self, mut stepper: Stepper) -> Run {
        bugs::plant(self.bug);
        let result = catch_unwind(AssertUnwindSafe(|| stepper.run()));
        bugs::plant(None);
        let violation = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let what = text.unwrap_or_else(|| "no message".to_owned());
            Err(Violation { invariant: "no assertion fails", rule: "panic", what })
        });
        let (replicas, clients) = stepper.endpoints();
        Run {
            violation: violation.err(),
            coverage: stepper.coverage(),
            digest: stepper.digest(),
            lines: stepper.into_lines(),
            replicas,
            clients,
        }
    }
}
