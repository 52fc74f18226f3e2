//! Entries never change (P7): an entry of an index and a term is the same in every log and over all
//! time, byte for byte, its body and its replier included.

use hovercraft::{Entry, NodeId, Payload};

use super::{Violation, broken};
use crate::history::Recorded;

pub(super) fn check(node: NodeId, known: &Recorded, entry: &Entry) -> Result<(), Violation> {
    let before = &known.entry;
    // The return path is not part of an entry (P5).
    let is_same = before.term == entry.term
        && before.log_time_us == entry.log_time_us
        && before.session_delta_us == entry.session_delta_us
        && before.payload == entry.payload;
    if is_same {
        return Ok(());
    }
    let place = format!("{}@{}", known.index, entry.term);
    let (was, is) = (describe(before), describe(entry));
    let what = format!("{place} was [{was}], and is [{is}] at replica {node}");
    broken("entries never change", "P7", what)
}

fn describe(entry: &Entry) -> String {
    let time = format!("log time {} µs, {} µs later", entry.log_time_us, entry.session_delta_us);
    match &entry.payload {
        Payload::Noop => format!("no-op, {time}"),
        Payload::Configuration(configuration) => {
            format!("configuration {}, {time}", configuration.id)
        }
        Payload::Request { replier, request } => {
            let (identity, digest, len) =
                (request.identity(), request.digest().0, request.body().len());
            format!("{identity} digest {digest:016x}, {len} bytes, replier {replier}, {time}")
        }
    }
}
