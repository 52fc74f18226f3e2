//! The command line: reads files, asks the library, and says what it found.

mod arguments;
mod json;
mod table;

use std::{
    cell::Cell,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use hovercraft_jepsen::{
    History, HistoryError,
    check::{Limit, Limits, Verdict},
    html,
    named::{Found, check_named},
};

use arguments::{Arguments, Check, Command};

/// What came of a file.
pub(crate) struct Checked {
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) result: FileResult,
}

pub(crate) enum FileResult {
    /// It was checked.
    Found { history: History, found: Found },
    /// It does not fit into memory.
    TooLarge(String),
    /// It is not a history that the model understands.
    Bad(String),
}

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // If nobody can read it there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { BAD_INPUT.into() } else { ExitCode::SUCCESS };
        }
    };
    let Command::Check(check) = arguments.command;
    match run(&check) {
        Ok(code) => code.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "hovercraft-jepsen: {error}");
            BAD_INPUT.into()
        }
    }
}

const BAD_INPUT: u8 = 3;

/// A file of results cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}")]
struct WriteError {
    path: String,
    source: io::Error,
}

/// Checks all files, says what it found, and returns the exit code.
fn run(check: &Check) -> Result<u8, WriteError> {
    // A mistake in a name shows before anything runs.
    for path in check.json.iter().chain(&check.html) {
        File::create(path).map_err(|source| cannot_write(path, source))?;
    }
    let checked: Vec<_> = check.files.iter().map(|path| check_file(check, path)).collect();
    let _ = io::stdout().write_all(table::render(check, &checked).as_bytes());
    if let Some(path) = &check.json {
        let text = json::render(check, &checked);
        fs::write(path, text).map_err(|source| cannot_write(path, source))?;
    }
    if let Some(path) = &check.html {
        fs::write(path, page(check, &checked)).map_err(|source| cannot_write(path, source))?;
    }
    Ok(exit_code(&checked))
}

fn cannot_write(path: &Path, source: io::Error) -> WriteError {
    WriteError { path: path.display().to_string(), source }
}

fn check_file(check: &Check, path: &Path) -> Checked {
    let started = Instant::now();
    let name = path.display().to_string();
    let result = find(check, path, started);
    Checked { name, took: started.elapsed(), result }
}

fn find(check: &Check, path: &Path, started: Instant) -> FileResult {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return FileResult::Bad(format!("cannot open it: {error}")),
    };
    let history = match History::read_within(file, check.memory_limit.0) {
        Ok(history) => history,
        Err(error @ HistoryError::TooLarge { .. }) => {
            return FileResult::TooLarge(error.to_string());
        }
        Err(error) => return FileResult::Bad(error.to_string()),
    };
    // The clock is looked at more rarely than the search asks.
    let asked = Cell::new(0_u32);
    let is_time_up = || {
        asked.set(asked.get().wrapping_add(1));
        asked.get() % 8 == 1 && started.elapsed() >= check.time_limit.0
    };
    let limits = Limits {
        steps_max: check.step_limit.unwrap_or(u64::MAX),
        bytes_max: check.memory_limit.0,
        is_time_up: &is_time_up,
    };
    match check_named(check.model.0, check.semantics.into(), &history, &limits) {
        Ok(found) => FileResult::Found { history, found },
        Err(error) => FileResult::Bad(error.to_string()),
    }
}

impl Checked {
    /// None if the input was bad.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        match &self.result {
            FileResult::Found { found, .. } => Some(found.verdict()),
            FileResult::TooLarge(_) => Some(Verdict::Unknown(Limit::Memory)),
            FileResult::Bad(_) => None,
        }
    }
}

/// Of many files: 3 if any is bad input, else 1 if any is not linearizable, else 2 if any is unknown.
fn exit_code(checked: &[Checked]) -> u8 {
    let has = |which: fn(Option<Verdict>) -> bool| checked.iter().any(|it| which(it.verdict()));
    if has(|verdict| verdict.is_none()) {
        BAD_INPUT
    } else if has(|verdict| verdict == Some(Verdict::NotLinearizable)) {
        1
    } else if has(|verdict| matches!(verdict, Some(Verdict::Unknown(_)))) {
        2
    } else {
        0
    }
}

fn page(check: &Check, checked: &[Checked]) -> String {
    let files = checked.iter().filter_map(|it| match &it.result {
        FileResult::Found { history, found } => {
            Some(html::File { name: &it.name, model: check.model.0.name(), history, found })
        }
        FileResult::TooLarge(_) | FileResult::Bad(_) => None,
    });
    html::render(&files.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(result: FileResult) -> Checked {
        Checked { name: String::new(), took: Duration::ZERO, result }
    }

    fn found(text: &str) -> FileResult {
        let history = History::read(text.as_bytes()).expect("a history");
        let found = check_named(
            hovercraft_jepsen::named::ModelName::Register,
            hovercraft_jepsen::model::Semantics::Knossos,
            &history,
            &Limits::steps(100),
        );
        FileResult::Found { history, found: found.expect("known") }
    }

    #[test]
    fn the_worst_file_decides() {
        let good = || checked(found("[]"));
        let not = || checked(found("[0 :invoke :read nil] [0 :ok :read 7]"));
        let unknown = || checked(FileResult::TooLarge(String::new()));
        let bad = || checked(FileResult::Bad(String::new()));
        assert_eq!(exit_code(&[good(), good()]), 0);
        assert_eq!(exit_code(&[good(), unknown()]), 2);
        assert_eq!(exit_code(&[unknown(), not(), good()]), 1);
        assert_eq!(exit_code(&[unknown(), not(), bad(), good()]), 3);
    }
}
