//! The formats of a history, told apart by how it begins.
//!
//! - JSON lines: an object a line.
//! - EDN: maps, records, or the short `[process type f value]`, one after another or in a vector.
//! - Jepsen's logs and its `history.txt`: lines with `process type f value`.

use super::{
    History, HistoryError,
    edn::{EdnError, Reader},
    event::Events,
};
use crate::Value;

/// Reads a history into so much memory.
pub(super) fn read(text: &str, bytes_max: usize) -> Result<History, HistoryError> {
    let mut events = Events::new(bytes_max);
    let mut start = Reader::new(text, 1);
    match start.peek()? {
        None => return Err(HistoryError::Empty),
        Some('{') if start.peek_behind_bracket()? == Some('"') => read_json(text, &mut events)?,
        Some('[' | '(' | '{' | '#' | '^') => read_edn(text, &mut events)?,
        Some(_) => read_log(text, &mut events)?,
    }
    events.finish()
}

impl From<EdnError> for HistoryError {
    fn from(EdnError { line, what }: EdnError) -> Self {
        Self::Syntax { line, what }
    }
}

fn read_json(text: &str, events: &mut Events) -> Result<(), HistoryError> {
    for (line, json) in (1..).zip(text.lines()) {
        if json.trim().is_empty() {
            continue;
        }
        let event: Value = serde_json::from_str(json).map_err(|error| HistoryError::Syntax {
            line,
            what: format!("not JSON at column {}: {error}", error.column()),
        })?;
        events.push(&event, line)?;
    }
    Ok(())
}

fn read_edn(text: &str, events: &mut Events) -> Result<(), HistoryError> {
    let mut reader = Reader::new(text, 1);
    // The brackets around events that are open.
    let mut around = Vec::new();
    while let Some(next) = reader.peek()? {
        let line = reader.line();
        let close = if next == '[' { ']' } else { ')' };
        if around.last() == Some(&next) {
            reader.skip(next);
            around.pop();
        } else if matches!(next, '[' | '(')
            && matches!(
                reader.peek_behind_bracket()?,
                Some('{' | '[' | '(' | '#' | '^' | ']' | ')')
            )
        {
            if !around.is_empty() {
                let what = "a vector of events is inside of another".to_owned();
                return Err(HistoryError::Syntax { line, what });
            }
            reader.skip(next);
            around.push(close);
        } else {
            let event = reader.form()?;
            events.push(&event, line)?;
        }
    }
    match around.last() {
        None => Ok(()),
        Some(close) => {
            let what = format!("the history ends without the {close} of its vector");
            Err(HistoryError::Syntax { line: reader.line(), what })
        }
    }
}

/// Reads lines of a log; those that are not of operations are passed over.
fn read_log(text: &str, events: &mut Events) -> Result<(), HistoryError> {
    for (line, log) in (1..).zip(text.lines()) {
        let Some(said) = said_by_jepsen(log) else { continue };
        let mut reader = Reader::new(said, line);
        let mut parts = Vec::new();
        // An error may follow the value, in words that are no EDN.
        while parts.len() < 4 && reader.peek()?.is_some() {
            parts.push(reader.form()?);
        }
        let is_event = parts.len() >= 3 && matches!(parts[1], Value::Keyword(_));
        if is_event {
            events.push(&Value::list(parts), line)?;
        }
    }
    if events.is_empty() {
        let what = "this is neither JSON lines nor EDN nor a log of Jepsen's".to_owned();
        return Err(HistoryError::Syntax { line: 1, what });
    }
    Ok(())
}

/// What a line says: all of it in `history.txt`, and what `jepsen.util` logs.
fn said_by_jepsen(line: &str) -> Option<&str> {
    let said = match line.split_once("jepsen.util") {
        Some((_, said)) => {
            let said = said.trim_start();
            said.strip_prefix('-').unwrap_or(said).trim_start()
        }
        None => line,
    };
    // An operation begins with the number of its process.
    let (process, rest) = said.split_once(char::is_whitespace)?;
    let is_process = process.parse::<i64>().is_ok();
    (is_process && rest.trim_start().starts_with(':')).then_some(said)
}
