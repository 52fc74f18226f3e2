//! The command line.

mod bugs;
mod run;
mod shrink;
mod speed;
mod sweep;
mod world;

use std::{
    fs, io,
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use crate::{
    QUIET_THREAD, Runner, Schedule, ScheduleError, Workload,
    bugs::{ARE_PLANTED, Bug},
};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Nothing broke.
const GOOD: u8 = 0;
/// Something broke.
const BAD: u8 = 1;
/// It cannot be told.
const UNKNOWN: u8 = 2;
/// Bad input or usage.
const USAGE: u8 = 3;

/// Runs HovercRaft through hostile schedules, and tells the story of one that breaks it
#[derive(Debug, Parser)]
#[command(name = "hovercraft-sim", version)]
#[command(after_help = "Exit codes: 0 nothing broke, 1 something did, 2 it cannot be told, \
                        3 bad input or usage.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one seed or one schedule, and tell what happened
    Run(run::Arguments),
    /// Find the smallest schedule that still breaks what a seed breaks
    Shrink(shrink::Arguments),
    /// Run many seeds, with every invariant after every step
    Sweep(sweep::Arguments),
    /// Run seeds on the real shells of nodes and clients; needs a build of its own
    World(world::Arguments),
    /// List the planted bugs
    Bugs(bugs::Arguments),
    /// Measure simulated deliveries a second, with the invariants off and on
    Speed(speed::Arguments),
}

/// What goes wrong in the command itself.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("there is no planted bug `{0}`; `hovercraft-sim bugs` lists them")]
    NoSuchBug(String),
    #[cfg_attr(
        not(madsim),
        error(
            "this build has no planted bugs: build it with `cargo build --release \
             -p hovercraft-sim --features planted`"
        )
    )]
    #[cfg_attr(
        madsim,
        error("this build has no planted bugs: `cargo world-planted` builds it with them")
    )]
    NotPlanted,
    #[cfg(not(madsim))]
    #[error(
        "the world needs a build of its own: `cargo world --seeds 0..1000` in the project's directory \
         builds it, with `--cfg madsim`, and runs it"
    )]
    NoWorld,
    #[error("give a seed with --seed, or a schedule with --schedule")]
    NothingToRun,
}

/// Runs the command line of `hovercraft-sim` for a service of one's own: `sweep`, `run`, `shrink`
/// and the rest, from a binary of one's own.
pub fn command_line(workload: impl Workload) -> ExitCode {
    let workload: Arc<dyn Workload> = Arc::new(workload);
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { GOOD });
        }
    };
    silence_simulated_panics();
    let result = match arguments.command {
        Command::Run(arguments) => run::replay(&arguments, Tier::Stepper, &workload),
        Command::Shrink(arguments) => shrink::smallest(&arguments, Tier::Stepper, &workload),
        Command::Sweep(arguments) => sweep::sweep(&arguments, Tier::Stepper, &workload),
        Command::World(arguments) => world::run(arguments, &workload),
        Command::Bugs(arguments) => bugs::run(&arguments),
        Command::Speed(arguments) => speed::run(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(USAGE)
        }
    }
}

/// A panic of the product within a run is caught and reported as what broke; a message of its own
/// in the middle of a progress bar helps nobody.
fn silence_simulated_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(QUIET_THREAD) {
            usual(info);
        }
    }));
}

/// Does something in a thread whose panics are not shown.
fn quietly<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name(QUIET_THREAD.to_owned());
        let thread = builder.spawn_scoped(scope, work).expect("the system has threads");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The command that builds the world as this build is.
#[cfg(madsim)]
const WORLD: &str = if ARE_PLANTED { "cargo world-planted" } else { "cargo world" };

/// Where schedules run.
#[derive(Debug, Clone, Copy)]
enum Tier {
    Stepper,
    #[cfg(madsim)]
    World,
}

impl Tier {
    /// Returns whether it is known how often things are seen there.
    fn has_thresholds(self) -> bool {
        match self {
            Self::Stepper => true,
            #[cfg(madsim)]
            Self::World => false,
        }
    }

    /// What tells the story of a schedule.
    fn replay(self, which: &str) -> String {
        match self {
            Self::Stepper => format!("{} run {which} --trace", program()),
            #[cfg(madsim)]
            Self::World => format!("{WORLD} {which}"),
        }
    }

    /// What makes a schedule as small as it can be.
    fn shrink(self, which: &str) -> String {
        match self {
            Self::Stepper => format!("{} shrink {which} --out smallest.json", program()),
            #[cfg(madsim)]
            Self::World => format!("{WORLD} {which} --shrink smallest.json"),
        }
    }
}

/// The name of this binary, for the next command.
fn program() -> String {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(Path::file_name).map(|name| name.display().to_string());
    name.unwrap_or_else(|| "hovercraft-sim".to_owned())
}

/// What runs, where, and with which defect.
fn runner(
    workload: &Arc<dyn Workload>,
    tier: Tier,
    bug: Option<&str>,
    is_large: bool,
) -> Result<Runner, CliError> {
    let bug = bug.map(find_bug).transpose()?;
    let runner = Runner::of(Arc::clone(workload)).with_bug(bug).large(is_large);
    Ok(match tier {
        Tier::Stepper => runner,
        #[cfg(madsim)]
        Tier::World => runner.in_world(),
    })
}

fn find_bug(name: &str) -> Result<&'static Bug, CliError> {
    let bug = crate::bugs::find(name);
    let bug = bug.ok_or_else(|| CliError::NoSuchBug(name.to_owned()))?;
    if ARE_PLANTED { Ok(bug) } else { Err(CliError::NotPlanted) }
}

/// Which schedule is meant: a file, with another seed if there is one, or that of a seed.
#[derive(Debug, clap::Args)]
struct Which {
    /// The seed that everything derives from
    #[arg(long)]
    seed: Option<u64>,
    /// Take cluster, faults and operations from this file instead
    #[arg(long, value_name = "FILE")]
    schedule: Option<PathBuf>,
    /// Faults go beyond what the protocol promises to survive
    #[arg(long)]
    beyond: bool,
    /// Of the seed with thousands of operations
    #[arg(long)]
    large: bool,
    /// With a planted bug
    #[arg(long, value_name = "NAME")]
    bug: Option<String>,
}

impl Which {
    /// Returns the schedule, and what runs it.
    fn open(
        &self,
        workload: &Arc<dyn Workload>,
        tier: Tier,
    ) -> Result<(Runner, Schedule), CliError> {
        let runner = runner(workload, tier, self.bug.as_deref(), self.large)?;
        let schedule = self.schedule(&runner)?;
        Ok((runner, schedule))
    }

    fn schedule(&self, runner: &Runner) -> Result<Schedule, CliError> {
        let mut schedule = match (&self.schedule, self.seed) {
            (Some(path), _) => Schedule::load(path)?,
            (None, Some(seed)) => runner.schedule(seed, self.beyond),
            (None, None) => return Err(CliError::NothingToRun),
        };
        if let Some(seed) = self.seed {
            schedule.options.seed = seed;
        }
        schedule.beyond |= self.beyond;
        Ok(schedule)
    }
}

/// `A..B`, B excluded.
fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("seeds are given as A..B, B excluded")?;
    let number = |text: &str| {
        let digits = text.replace('_', "");
        digits.parse::<u64>().map_err(|_| format!("`{text}` is not a seed"))
    };
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err(format!("there is no seed in {text}")) } else { Ok(range) }
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes =
        text.parse::<f64>().map_err(|_| format!("`{text}` is not a number of minutes"))?;
    let duration = Duration::try_from_secs_f64(minutes * 60.0);
    duration.map_err(|_| format!("{text} minutes cannot be"))
}

fn write_file(path: &Path, text: &str) -> Result<(), CliError> {
    let error = |source| CliError::File { path: path.display().to_string(), source };
    fs::write(path, text).map_err(error)
}

/// Writes JSON; `-` is the standard output.
fn write_json(path: Option<&PathBuf>, value: &impl Serialize) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(value).expect("plain data") + "\n";
    if path.as_os_str() == "-" { print(&text) } else { write_file(path, &text) }
}

/// Prints, and does not mind a reader that has gone away.
fn print(text: &str) -> Result<(), CliError> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::File { path: "standard output".to_owned(), source: error })
        }
        _ => Ok(()),
    }
}
