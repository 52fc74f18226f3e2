//! The story of a run: who sent what, what was decided.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use hovercraft::{
    Entry, Identity, Index, Kind, NodeId, Payload, Request,
    messages::{Envelope, Message},
};
use r2p2::Time;

use crate::{history::position, network::Endpoint, workload::Workload};

/// What is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    Nothing,
    /// What moves things on.
    Story,
    /// Everything.
    All,
}

/// Where something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// To several, or to none in particular.
    World,
    /// To a replica or a client, by its position among all endpoints.
    At(Endpoint),
    /// From one to another; with the time at which it was sent.
    Between(Endpoint, Endpoint, Time),
    /// A line of the narrator, who stands outside time.
    Narrator,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) at: Time,
    pub(crate) place: Place,
    /// It is something that goes wrong, or that ends what went wrong.
    pub(crate) is_fault: bool,
    pub(crate) text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Narrator if self.text.is_empty() => Ok(()),
            Place::Narrator => write!(f, "# {}", self.text),
            _ => write!(f, "{:>10.3}  {}", self.at.as_nanos() as f64 / 1e6, self.text),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Trace {
    detail: Detail,
    lines: VecDeque<Line>,
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
    pub(crate) fn tell(&mut self, at: Time, place: Place, text: impl FnOnce() -> String) {
        if self.is_on() {
            self.add(Line { at, place, is_fault: false, text: text() });
        }
    }

    /// Tells that something goes wrong, or is mended.
    pub(crate) fn fault(&mut self, at: Time, place: Place, text: impl FnOnce() -> String) {
        if self.is_on() {
            self.add(Line { at, place, is_fault: true, text: text() });
        }
    }

    /// Tells something that a story leaves out.
    pub(crate) fn mention(&mut self, at: Time, place: Place, text: impl FnOnce() -> String) {
        if self.detail == Detail::All {
            self.tell(at, place, text);
        }
    }

    /// Tells of a message between replicas, unless it says nothing new.
    pub(crate) fn message(&mut self, at: Time, sent: Time, to: NodeId, envelope: &Envelope) {
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
            Message::Aggregate(aggregate) => !aggregate.append.entries.is_empty(),
            _ => true,
        };
        if from == NodeId::AGGREGATOR {
            let text = || format!("aggregator → {to}  {}", describe(envelope));
            return self.tell(at, Place::At(position(to)), text);
        }
        let text = || format!("{from} → {to}  {}", describe(envelope));
        let place = Place::Between(position(from), position(to), sent);
        if is_news { self.tell(at, place, text) } else { self.mention(at, place, text) }
    }

    /// A line of the narrator.
    pub(crate) fn narrate(&mut self, at: Time, text: &str) {
        let line = |text: &str| Line {
            at,
            place: Place::Narrator,
            is_fault: false,
            text: text.to_owned(),
        };
        if !self.lines.is_empty() {
            self.add(line(""));
        }
        self.add(line(text));
    }

    pub(crate) fn forget(&mut self) {
        self.lines.clear();
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }

    pub(crate) fn into_lines(self) -> Vec<Line> {
        self.lines.into()
    }

    fn add(&mut self, line: Line) {
        if self.lines.len() >= self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// A request in a few words.
pub(crate) fn request(request: &Request, workload: &dyn Workload) -> String {
    let identity = request.identity();
    let lowest = request.lowest();
    match request.kind() {
        Kind::OpenSession => "open a session".to_owned(),
        Kind::Cancel => {
            let target = <[u8; 8]>::try_from(&request.body()[..]).map(u64::from_be_bytes);
            format!("{identity} cancel {} (lowest {lowest})", target.unwrap_or_default())
        }
        Kind::Write | Kind::Read => {
            let operation = workload.describe(request.body());
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
pub(crate) fn entry(index: Index, entry: &Entry, workload: &dyn Workload) -> String {
    let what = match &entry.payload {
        Payload::Noop => "no-op".to_owned(),
        Payload::Configuration(configuration) => format!("configuration {}", configuration.id),
        Payload::Request { replier, request: content } => {
            format!("{}, replier {replier}", request(content, workload))
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
        Message::FetchBodies { wants, .. } => {
            let wants: Vec<_> = wants.iter().map(|want| want.index.to_string()).collect();
            format!("send me the bodies of {}", wants.join(", "))
        }
        Message::Bodies { parts, .. } => {
            let parts: Vec<_> = parts.iter().map(|part| part.index.to_string()).collect();
            format!("the bodies of {}", parts.join(", "))
        }
        Message::BodiesRefused { refusals } => {
            let refusals = refusals.iter();
            let refusals: Vec<_> =
                refusals.map(|it| format!("{} ({})", it.want.index, it.reason)).collect();
            format!("my log does not have what you ask for: {}", refusals.join(", "))
        }
        Message::Disowned { .. } => "your disk is an older copy: I do not count you".to_owned(),
        Message::FetchEntries { after, .. } => format!("send me what comes after {after}"),
        Message::Entries { after, entries, .. } => {
            format!("{} entries after {after}", entries.len())
        }
        Message::SnapshotAvailable { index, .. } => format!("I have a snapshot of {index}"),
        Message::FetchSnapshot { index, offset, .. } => {
            format!("send me the snapshot of {index} from byte {offset}")
        }
        Message::SnapshotPart { meta, offset, data, .. } => {
            let end = offset + data.len() as u64;
            format!("the snapshot of {}, bytes {offset}..{end}", meta.index)
        }
        Message::Forward { .. } => "a client's request for you".to_owned(),
        Message::Recovering { .. } => "I may have forgotten: up to where?".to_owned(),
        Message::CatchUpTo { index, .. } => format!("catch up to {index}"),
        Message::CaughtUp { .. } => "I have caught up".to_owned(),
        Message::NewRun { run, .. } => format!("I have begun with {}", run.loaded_index),
        Message::RunKnown { index, first_round, .. } => {
            format!("I know you from round {first_round}; all up to {index} may be answered")
        }
        Message::Aggregate(aggregate) => {
            let (first, last) = (aggregate.append.previous_index + 1, aggregate.last());
            let round = aggregate.append.round;
            format!(
                "to everyone: order {first}..{last}, round {round}, I hold {}",
                aggregate.durable
            )
        }
        Message::Acknowledge(answer) => {
            format!("I hold {}, round {}", answer.acknowledged, answer.round)
        }
        Message::AggCommit(commit) => {
            format!("a quorum holds {}, and answered round {}", commit.commit, commit.round)
        }
    }
}
