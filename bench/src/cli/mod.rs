//! The commands.

mod count;
mod floor;
mod mark;
mod model;
mod peers;
mod report;
mod run;
mod self_test;
mod switch;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use hovercraft_bench::run::RunError;
use serde::Serialize;

/// Measures replicas on this machine, and says how far its figures can be trusted.
#[derive(Debug, Parser)]
#[command(name = "hovercraft-bench", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures one workload in one mode.
    Run(Box<run::Arguments>),
    /// Other systems beside ours, in one run and in turns.
    Peers(peers::Arguments),
    /// What the kernel charges for datagrams and syncs on this machine, beside our own cost.
    Floor(floor::Arguments),
    /// The paper's Figures 7 to 11 on modelled machines.
    Model(model::Arguments),
    /// What a switch is worth: messages and instructions at the leader, overload, choosing workers.
    Switch(switch::Arguments),
    /// One page of everything that the other commands wrote.
    Report(report::Arguments),
    /// Instructions of the core a request.
    Count(count::Arguments),
    /// What `count` runs under callgrind.
    #[command(hide = true)]
    TakeTurns(count::Turns),
    /// The generator against a server whose latencies are known: do its figures tell the truth?
    SelfTest(self_test::Arguments),
    /// The first speed mark: three replicas and one client here, beside Redis if it is installed.
    Mark(mark::Arguments),
}

/// What a command says in the end: a good verdict or a bad one.
type Verdict = Result<bool, Failure>;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command line, or a file that it names.
    #[error("{0}")]
    Usage(String),
    /// Something did not work.
    #[error("{0}")]
    Other(String),
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            // What was named is not what it was taken for.
            RunError::Cluster(error) if error.is_usage() => Self::Usage(error.to_string()),
            other => Self::Other(other.to_string()),
        }
    }
}

impl Arguments {
    pub(crate) fn execute(self) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("hovercraft-bench: no runtime: {error}");
                return ExitCode::from(2);
            }
        };
        let local = tokio::task::LocalSet::new();
        let verdict = local.block_on(&runtime, async {
            tokio::select! {
                biased;
                () = interrupted() => Err(Failure::Other("interrupted".to_owned())),
                verdict = self.dispatch() => verdict,
            }
        });
        // Processes and namespaces ended with the command; what still computes need not be waited for.
        drop(local);
        runtime.shutdown_background();
        match verdict {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(failure) => {
                eprintln!("hovercraft-bench: {failure}");
                ExitCode::from(if matches!(failure, Failure::Usage(_)) { 3 } else { 2 })
            }
        }
    }

    async fn dispatch(self) -> Verdict {
        match self.command {
            Command::Run(arguments) => arguments.execute().await,
            Command::Peers(arguments) => arguments.execute().await,
            Command::Floor(arguments) => arguments.execute().await,
            Command::Model(arguments) => arguments.execute().await,
            Command::Switch(arguments) => arguments.execute().await,
            Command::Report(arguments) => arguments.execute(),
            Command::Count(arguments) => arguments.execute().await,
            Command::TakeTurns(arguments) => {
                arguments.execute();
                Ok(true)
            }
            Command::SelfTest(arguments) => arguments.execute().await,
            Command::Mark(arguments) => arguments.execute().await,
        }
    }
}

/// Returns when somebody wants the process to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

/// The `hovercraft` command: the one that is named, or the one beside this one.
fn hovercraft(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let beside = || {
        let path = std::env::current_exe().ok()?.with_file_name("hovercraft");
        path.exists().then_some(path)
    };
    match named {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(Failure::Usage(format!("--bin: there is no file {}", path.display()))),
        None => beside().ok_or_else(|| {
            Failure::Usage(
                "there is no hovercraft command beside this one; build it (cargo build --release), \
                 or name it by --bin"
                    .to_owned(),
            )
        }),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    write_text(path, serde_json::to_string_pretty(value))
}

/// On one line: what has a histogram would have thousands.
fn write_json_line(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    write_text(path, serde_json::to_string(value))
}

fn write_text(path: &Path, text: serde_json::Result<String>) -> Result<(), Failure> {
    let text = text.map_err(|error| Failure::Other(error.to_string()))?;
    std::fs::write(path, text + "\n").map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("cannot write {}: {error}", path.display()))
}

/// A time as people write it: `500us`, `20ms`, `1.5s`.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write it as 500us, 20ms or 1.5s");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("{text:?} is not a time that can be used: it must be above zero"))
}

/// How long something is measured, in seconds.
fn seconds(text: &str) -> Result<f64, String> {
    const DAY: f64 = 86_400.0;
    positive(text)
        .ok()
        .filter(|seconds| (0.1..=DAY).contains(seconds))
        .ok_or_else(|| format!("{text:?} is not a number of seconds from 0.1 to {DAY}"))
}

/// Arrivals a second.
fn rate(text: &str) -> Result<f64, String> {
    const MOST: f64 = 1e8;
    positive(text)
        .ok()
        .filter(|rate| *rate <= MOST)
        .ok_or_else(|| format!("{text:?} is not a rate above 0 and up to {MOST} a second"))
}

/// A share of a hundred.
fn percent(text: &str) -> Result<f64, String> {
    positive(text)
        .ok()
        .filter(|percent| *percent <= 100.0)
        .ok_or_else(|| format!("{text:?} is not a percentage above 0 and up to 100"))
}

/// Says before anything is measured that a result could not be written.
fn writable(path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let reason = |reason: &str| Err(cannot_write(path, &std::io::Error::other(reason)));
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if parent.is_some_and(|parent| !parent.is_dir()) {
        return reason("its directory does not exist");
    }
    if path.is_dir() { reason("it is a directory") } else { Ok(()) }
}

/// A number above zero.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(format!("{text:?} is not a number above zero")),
    }
}

/// Says what is being done, where somebody watches.
fn progress(what: impl Into<String>) -> indicatif::ProgressBar {
    let what = what.into();
    if !std::io::stderr().is_terminal() {
        eprintln!("{what} …");
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{spinner} {prefix}, {elapsed} {msg}")
        .expect("the template is fixed and valid");
    let bar = indicatif::ProgressBar::new_spinner().with_style(style).with_prefix(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn numbers_that_cannot_be_used_are_refused() {
        for wrong in ["0", "-1", "nan", "inf", "1e300", "0.01", "x", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(seconds("0.5"), Ok(0.5));
        assert!(rate("1e9").is_err() && rate("0").is_err());
        assert!(percent("101").is_err() && percent("0.1").is_ok());
    }

    #[test]
    fn a_result_that_could_not_be_written_is_known_before() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(writable(Some(&directory.path().join("a.json"))).is_ok());
        assert!(writable(Some(Path::new("a.json"))).is_ok());
        assert!(writable(Some(&directory.path().join("none/a.json"))).is_err());
        assert!(writable(Some(directory.path())).is_err());
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        for wrong in ["", "5", "ms", "-1ms", "1h", "0s", "1e99s", "1.2.3s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
