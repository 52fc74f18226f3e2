//! The story of a run: who sent what, what was decided.

use std::collections::{BTreeMap, VecDeque};

use hovercraft::{
    Entry, Identity, Index, Kind, NodeId, Payload, Request,
    messages::{Envelope, Message},
};
use r2p2::Time;

use crate::service::Operation;

/// What is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    Nothing,
    /// What moves things on.
    Story,
    /// Everything.
    All,
}

#[derive(Debug)]
pub(crate) struct Trace {
    detail: Detail,
    lines: VecDeque<String>,
    lines_max: usize,
    /// The highest commit index that was told to each replica, and acknowledged by it.
    known: BTreeMap<(NodeId, bool), Index>,
}

impl Trace {
    pub(crate) fn off() -> Self {
        Self {
            detail: Detail::Nothing,
            lines: VecDeque::new(),
            lines_max: 0,
            known: BTreeMap::new(),
        }
    }

    /// Keeps the last lines of everything.
    pub(crate) fn last(lines_max: usize) -> Self {
        Self { detail: Detail::All, lines_max, ..Self::off() }
    }

    /// Keeps what a story needs.
    pub(crate) fn story() -> Self {
        Self { detail: Detail::Story, lines_max: usize::MAX, ..Self::off() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.detail != Detail::Nothing
    }

    /// Tells something that moves things on.
    pub(crate) fn tell(&mut self, now: Time, line: impl FnOnce() -> String) {
        if self.is_on() {
            if self.lines.len() >= self.lines_max {
                self.lines.pop_front();
            }
            let millis = now.as_nanos() as f64 / 1e6;
            self.lines.push_back(format!("{millis:>10.3}  {}", line()));
        }
    }

    /// Tells something that a story leaves out.
    pub(crate) fn mention(&mut self, now: Time, line: impl FnOnce() -> String) {
        if self.detail == Detail::All {
            self.tell(now, line);
        }
    }

    /// Tells of a message between replicas, unless it says nothing new.
    pub(crate) fn message(&mut self, now: Time, to: NodeId, envelope: &Envelope) {
        if !self.is_on() {
            return;
        }
        let from = envelope.from;
        let is_news = match &envelope.message {
            Message::AppendEntries(append) => {
                let known = self.known.entry((to, true)).or_default();
                let before = std::mem::replace(known, append.commit.max(*known));
                !append.entries.is_empty() || append.commit > before
            }
            Message::AppendReply(reply) => {
                let known = self.known.entry((from, false)).or_default();
                let before = std::mem::replace(known, reply.acknowledged);
                reply.rejected_after.is_some() || reply.acknowledged > before
            }
            _ => true,
        };
        let line = || format!("{from} → {to}  {}", describe(envelope));
        if is_news { self.tell(now, line) } else { self.mention(now, line) }
    }

    /// A line of the narrator.
    pub(crate) fn narrate(&mut self, line: &str) {
        if !self.lines.is_empty() {
            self.lines.push_back(String::new());
        }
        self.lines.push_back(format!("# {line}"));
    }

    pub(crate) fn forget(&mut self) {
        self.lines.clear();
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// A request in a few words.
pub(crate) fn request(request: &Request) -> String {
    let identity = request.identity();
    let lowest = request.lowest();
    match request.kind() {
        Kind::OpenSession => "open a session".to_owned(),
        Kind::Cancel => {
            let target = <[u8; 8]>::try_from(&request.body()[..]).map(u64::from_be_bytes);
            format!("{identity} cancel {} (lowest {lowest})", target.unwrap_or_default())
        }
        Kind::Write | Kind::Read => {
            let operation = Operation::decode(request.body());
            let operation = operation.map_or("?".to_owned(), |operation| operation.to_string());
            format!("{} {operation}", identity_of(&identity))
        }
    }
}

pub(crate) fn identity_of(identity: &Identity) -> String {
    match identity {
        Identity::Session { client: 0, .. } => "opening".to_owned(),
        identity => identity.to_string(),
    }
}

/// An entry in a few words.
pub(crate) fn entry(index: Index, entry: &Entry) -> String {
    let what = match &entry.payload {
        Payload::Noop => "no-op".to_owned(),
        Payload::Configuration(configuration) => format!("configuration {}", configuration.id),
        Payload::Request { replier, request: content } => {
            format!("{}, replier {replier}", request(content))
        }
    };
    format!("{index}@{}: {what}", entry.term)
}

fn describe(envelope: &Envelope) -> String {
    let term = envelope.term;
    match &envelope.message {
        Message::PreVote { proposed, last_index, .. } => {
            format!("would you vote for me in term {proposed}? (log to {last_index})")
        }
        Message::PreVoteReply { proposed, granted } => {
            format!("{} in term {proposed}", if *granted { "I would" } else { "I would not" })
        }
        Message::Vote { last_index, .. } => {
            format!("vote for me in term {term} (log to {last_index})")
        }
        Message::VoteReply { granted } => {
            format!("{} in term {term}", if *granted { "my vote" } else { "no vote" })
        }
        Message::AppendEntries(append) => {
            let first = append.previous_index + 1;
            let entries = match append.entries.len() as Index {
                0 => format!("I lead term {term}, after {}", append.previous_index),
                1 => format!("order {first}@{}", append.entries_term),
                count => format!("order {first}..{}@{}", first + count - 1, append.entries_term),
            };
            format!("{entries}, commit {}", append.commit)
        }
        Message::AppendReply(reply) => match reply.rejected_after {
            Some(after) => format!("that does not fit: go on after {after}"),
            None => format!("I hold {}, applied {}", reply.acknowledged, reply.applied),
        },
        Message::FetchBodies { wants } => {
            let wants: Vec<_> = wants.iter().map(|want| want.index.to_string()).collect();
            format!("send me the bodies of {}", wants.join(", "))
        }
        Message::Bodies { parts } => {
            let parts: Vec<_> = parts.iter().map(|part| part.index.to_string()).collect();
            format!("the bodies of {}", parts.join(", "))
        }
        Message::FetchEntries { after } => format!("send me what comes after {after}"),
        Message::Entries { after, entries, .. } => {
            format!("{} entries after {after}", entries.len())
        }
        Message::SnapshotAvailable { index } => format!("I have a snapshot of {index}"),
        Message::FetchSnapshot { index, offset } => {
            format!("send me the snapshot of {index} from byte {offset}")
        }
        Message::SnapshotPart { meta, offset, data } => {
            let end = offset + data.len() as u64;
            format!("the snapshot of {}, bytes {offset}..{end}", meta.index)
        }
        Message::Forward { .. } => "a client's request for you".to_owned(),
        Message::Recovering { .. } => "I may have forgotten: up to where?".to_owned(),
        Message::CatchUpTo { index, .. } => format!("catch up to {index}"),
        Message::CaughtUp { .. } => "I have caught up".to_owned(),
    }
}
