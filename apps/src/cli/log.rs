//! `hovercraft log`: looks at the log of a replica that is stopped.

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
};

use hovercraft::{
    Entry, Index, Kind, Payload,
    storage::{Inspection, RecordView, StoreError, inspect},
};
use serde_json::{Value, json};

use super::{Exit, fail};

const KEYS: &str = "\
With --json each line is an object. One for each entry, in the order in which they were written:

  segment, offset  where its record begins: in the file log/segment-N, at that byte
  write            the number of that record
  index, term      of the entry
  kind             no-op, configuration, write, read, open-session or cancel
  identity         whose request, and which
  replier          who answers it
  body_bytes       the size of its body
  log_time_us      log time, in microseconds since 1970

One with the key `cut` where entries from that index on are replaced, or only removed; with the key
`restart` where the log begins anew at that index, behind a snapshot. The last one is of `check`.";

const CHECK_KEYS: &str = "\
With --json the output is one object:

  term, vote, clean   what the replica saved last; null if it never ran
  snapshot_index      the last entry that the snapshot holds the effect of, or null
  first_index, next_index
                      the first entry in the log, and the one after the last
  segments            how many files the log takes
  write, synced       the number of the last record, and that up to which all are known to have
                      been on disk; null if that is lost
  torn                whether records that were on disk are missing at the end, so that the replica
                      will take no part until it has caught up with a leader

Exit codes: 0 if all is there; 1 if it is torn or damaged; 2 if it cannot be read; 3 if this is not
the directory of a stopped replica with the store \"segmented\", or bad usage.";

/// Look at the log of a replica that is stopped. Nothing is changed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print every entry of the log, those that were replaced too
    #[command(after_long_help = KEYS, after_help = "--help tells the keys of --json.")]
    Dump(Target),
    /// Check all that is in the directory: hard state, snapshot, log
    #[command(after_long_help = CHECK_KEYS, after_help = "--help tells the keys of --json.")]
    Check(Target),
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The data directory of the replica
    directory: PathBuf,

    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let (target, dumps) = match &arguments.command {
        Command::Dump(target) => (target, true),
        Command::Check(target) => (target, false),
    };
    let mut printer = Printer {
        out: BufWriter::new(io::stdout().lock()),
        json: target.json,
        next: None,
        result: Ok(()),
    };
    if dumps && !target.json {
        printer.head();
    }
    let inspected = inspect(&target.directory, &mut |record| {
        if dumps {
            printer.record(record);
        }
    });
    if let Ok(inspection) = &inspected {
        printer.summary(inspection);
    }
    printer.finish();
    match inspected {
        Ok(Inspection { torn: Some(torn), .. }) => {
            let next = "leave the directory as it is: the replica takes no part until it has \
                caught up with a leader";
            fail(Exit::Bad, format!("{torn}; {next}"))
        }
        Ok(_) => Exit::Good,
        Err(error) => {
            let exit = match &error {
                StoreError::Damaged { .. } => Exit::Bad,
                StoreError::Io { .. } => Exit::Unknown,
                _ => Exit::Usage,
            };
            fail(exit, error)
        }
    }
}

struct Printer<W: Write> {
    out: W,
    json: bool,
    /// The index after the last entry so far.
    next: Option<Index>,
    /// After the first failure nothing more is printed.
    result: io::Result<()>,
}

impl<W: Write> Printer<W> {
    fn line(&mut self, line: &str) {
        if self.result.is_ok() {
            self.result = writeln!(self.out, "{line}");
        }
    }

    fn head(&mut self) {
        self.line(&format!(
            "{:>8} {:>10} {:>10} {:>10} {:>8} {:<14} {:>7} {:>10} {}",
            "segment", "offset", "write", "index", "term", "kind", "replier", "bytes", "identity"
        ));
    }

    fn record(&mut self, record: &RecordView<'_>) {
        let first = record.first;
        let cuts = self.next.is_some_and(|next| first < next);
        if record.restarts {
            self.note(record, "restart", "the log begins anew at");
        } else if cuts {
            self.note(record, "cut", "replaced or removed are the entries from");
        }
        for (index, entry) in (first..).zip(record.entries) {
            if self.json {
                self.line(&entry_json(record, index, entry).to_string());
            } else {
                self.line(&entry_line(record, index, entry));
            }
        }
        self.next = Some(first + record.entries.len() as Index);
    }

    fn note(&mut self, record: &RecordView<'_>, key: &str, text: &str) {
        let RecordView { segment, offset, number, first, .. } = record;
        if self.json {
            let line = json!({ "segment": segment, "offset": offset, "write": number, key: first });
            self.line(&line.to_string());
        } else {
            self.line(&format!("{segment:>8} {offset:>10} {number:>10} -- {text} {first}"));
        }
    }

    fn summary(&mut self, inspection: &Inspection) {
        let Inspection { first_index, next_index, segment_count, last_number, .. } = inspection;
        let state = inspection.hard_state.as_ref();
        let snapshot = inspection.snapshot.as_ref().map(|meta| meta.index);
        if self.json {
            let line = json!({
                "term": state.map(|state| state.term),
                "vote": state.and_then(|state| state.vote).map(|vote| vote.0),
                "clean": state.map(|state| state.clean),
                "snapshot_index": snapshot,
                "first_index": first_index,
                "next_index": next_index,
                "segments": segment_count,
                "write": last_number,
                "synced": inspection.synced_number,
                "torn": inspection.torn.is_some(),
            });
            return self.line(&line.to_string());
        }
        let text = |value: Option<u64>| value.map_or("none".to_owned(), |it| it.to_string());
        let vote = state.and_then(|state| state.vote).map(|vote| vote.0.into());
        self.line(&format!("term {}, vote {}", text(state.map(|it| it.term)), text(vote)));
        self.line(&format!("snapshot at {}", text(snapshot)));
        self.line(&format!(
            "entries {first_index} to {} in {segment_count} segments; last write {last_number}, \
             known to have been on disk {}",
            next_index - 1,
            text(inspection.synced_number)
        ));
        if inspection.torn.is_none() {
            self.line("all is there");
        }
    }

    fn finish(mut self) {
        // If nobody can read it there is nobody to tell.
        let _ = self.out.flush();
    }
}

fn entry_line(record: &RecordView<'_>, index: Index, entry: &Entry) -> String {
    let request = entry.request();
    let bytes = request.map_or(0, |request| request.body().len());
    let identity = request.map_or(String::new(), |request| request.identity().to_string());
    let replier = entry.replier().map_or("-".to_owned(), |replier| replier.to_string());
    let RecordView { segment, offset, number, .. } = record;
    let (term, kind) = (entry.term, kind(entry));
    format!(
        "{segment:>8} {offset:>10} {number:>10} {index:>10} {term:>8} {kind:<14} {replier:>7} \
         {bytes:>10} {identity}"
    )
}

fn entry_json(record: &RecordView<'_>, index: Index, entry: &Entry) -> Value {
    let mut line = json!({
        "segment": record.segment,
        "offset": record.offset,
        "write": record.number,
        "index": index,
        "term": entry.term,
        "kind": kind(entry),
        "log_time_us": entry.log_time_us,
    });
    if let Payload::Request { replier, request } = &entry.payload {
        line["identity"] = request.identity().to_string().into();
        line["replier"] = replier.0.into();
        line["body_bytes"] = request.body().len().into();
    }
    line
}

fn kind(entry: &Entry) -> &'static str {
    match &entry.payload {
        Payload::Noop => "no-op",
        Payload::Configuration(_) => "configuration",
        Payload::Request { request, .. } => match request.kind() {
            Kind::Write => "write",
            Kind::Read => "read",
            Kind::OpenSession => "open-session",
            Kind::Cancel => "cancel",
        },
    }
}
