//! The session table as its rules say it (P20–P22), by a model that shares nothing with the product:
//! which writes are executed, and which sessions there are.
//!
//! Equal tables are not enough: replicas that evict the wrong session do so alike.

use std::collections::BTreeMap;

use hovercraft::{ClusterLimits, Entry, Identity, Index, Kind, Payload, Request};

use super::{Application, Violation, broken};
use crate::replica::Replica;

const NAME: &str = "session rules";
const RULES: &str = "P20–P22";

/// What P21 charges for the kept replies: pages of so many sequences, with so many bytes beside the
/// replies in each.
const PAGE_SLOTS: u64 = 4;
const PAGE_BYTES: u64 = 224;

/// The indices at which bytes are evicted.
const EVICT_BYTES_EVERY: Index = 256;

#[derive(Debug)]
struct Session {
    active_us: u64,
    used: Index,
    lowest: u64,
    /// The size of each kept reply, by sequence.
    kept: BTreeMap<u64, u64>,
}

impl Session {
    fn size_bytes(&self) -> u64 {
        let mut pages: Vec<_> = self.kept.keys().map(|sequence| sequence / PAGE_SLOTS).collect();
        pages.dedup();
        pages.len() as u64 * PAGE_BYTES + self.kept.values().sum::<u64>()
    }
}

/// The table after every entry that any replica has applied.
#[derive(Debug)]
pub(crate) struct SessionRules {
    limits: ClusterLimits,
    index: Index,
    time_us: u64,
    sessions: BTreeMap<u64, Session>,
    /// True for each index, from 1, whose write is executed.
    executed: Vec<bool>,
    /// Sessions that went for one of the two budgets.
    pub(crate) evicted_for_count: u64,
    pub(crate) evicted_for_bytes: u64,
}

impl SessionRules {
    pub(crate) fn new(limits: ClusterLimits) -> Self {
        Self {
            limits,
            index: 0,
            time_us: 0,
            sessions: BTreeMap::new(),
            executed: Vec::new(),
            evicted_for_count: 0,
            evicted_for_bytes: 0,
        }
    }

    pub(super) fn check(&mut self, application: &Application<'_>) -> Result<(), Violation> {
        let index = application.committed.index;
        let entry = &application.committed.entry;
        if index == self.index + 1 {
            let reply_bytes = application.call.map_or(0, |call| call.reply.len() as u64);
            let is_executed = self.apply(index, entry, reply_bytes);
            self.executed.push(is_executed);
        }
        let Some(request) = entry.request().filter(|request| request.kind() == Kind::Write) else {
            return Ok(());
        };
        let Some(expected) = self.executed.get(index as usize - 1) else { return Ok(()) };
        if application.call.is_some() == *expected {
            return Ok(());
        }
        let (is, should) =
            if *expected { ("is not", "should be") } else { ("is", "should not be") };
        let (node, identity) = (application.node, request.identity());
        broken(NAME, RULES, format!("{identity} at {index} {is} executed by {node}, and {should}"))
    }

    /// The sessions of replicas that have applied everything are those of the model.
    pub(super) fn check_all(&self, replicas: &[Replica]) -> Result<(), Violation> {
        for replica in replicas {
            let Some(life) = &replica.life else { continue };
            if life.applier.applied() != self.index {
                continue;
            }
            let found: Vec<_> = life.applier.session_clients().collect();
            let expected: Vec<_> = self.sessions.keys().copied().collect();
            if found != expected {
                let (node, index) = (replica.node, self.index);
                let what = format!("{node} has the sessions {found:?} at {index}, and should have");
                return broken(NAME, RULES, format!("{what} {expected:?}"));
            }
        }
        Ok(())
    }

    /// Applies the next entry; true if it is a write that is executed.
    fn apply(&mut self, index: Index, entry: &Entry, reply_bytes: u64) -> bool {
        self.index = index;
        self.time_us += u64::from(entry.session_delta_us);
        self.expire();
        if index.is_multiple_of(EVICT_BYTES_EVERY) {
            self.evict_bytes();
        }
        match &entry.payload {
            Payload::Noop => false,
            Payload::Configuration(configuration) => {
                self.limits = configuration.limits;
                false
            }
            Payload::Request { request, .. } => self.request(request, reply_bytes),
        }
    }

    fn expire(&mut self) {
        let lifetime_us = self.limits.session_lifetime.as_micros();
        let now_us = u128::from(self.time_us);
        self.sessions.retain(|_, session| now_us - u128::from(session.active_us) <= lifetime_us);
    }

    fn evict_bytes(&mut self) {
        let total = |sessions: &BTreeMap<u64, Session>| -> u64 {
            sessions.values().map(Session::size_bytes).sum()
        };
        while total(&self.sessions) > self.limits.session_bytes_max {
            let class = |session: &Session| session.size_bytes().checked_ilog2();
            // Of the largest class the one that was not used for longest.
            let largest = self
                .sessions
                .iter()
                .max_by_key(|(_, session)| (class(session), std::cmp::Reverse(session.used)));
            let client = *largest.expect("somebody keeps what is kept").0;
            self.sessions.remove(&client);
            self.evicted_for_bytes += 1;
        }
    }

    fn request(&mut self, request: &Request, reply_bytes: u64) -> bool {
        let (client, sequence) = match request.identity() {
            Identity::Plain { .. } => return request.kind() == Kind::Write,
            Identity::Session { client: 0, .. } => {
                if request.kind() == Kind::OpenSession {
                    self.open();
                }
                return false;
            }
            Identity::Session { client, sequence } => (client, sequence),
        };
        let (time_us, index, window) = (self.time_us, self.index, self.limits.session_window);
        let Some(session) = self.sessions.get_mut(&client) else { return false };
        (session.active_us, session.used) = (time_us, index);
        if request.lowest() > sequence {
            return false;
        }
        session.lowest = session.lowest.max(request.lowest());
        session.kept = session.kept.split_off(&session.lowest);
        let is_inside = sequence >= session.lowest && sequence - session.lowest < u64::from(window);
        if !is_inside || session.kept.contains_key(&sequence) {
            return false;
        }
        match request.kind() {
            Kind::Write => {
                session.kept.insert(sequence, reply_bytes);
                true
            }
            Kind::Cancel => {
                let target = <[u8; 8]>::try_from(&request.body()[..]).map(u64::from_be_bytes);
                let answer = target.ok().filter(|it| (session.lowest..sequence).contains(it));
                let kept = answer.map_or(0, |target| *session.kept.entry(target).or_insert(0));
                session.kept.insert(sequence, kept);
                false
            }
            Kind::Read | Kind::OpenSession => false,
        }
    }

    fn open(&mut self) {
        while self.sessions.len() >= self.limits.sessions_max as usize {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let client = *oldest.expect("at least one may be there").0;
            self.sessions.remove(&client);
            self.evicted_for_count += 1;
        }
        let (active_us, used) = (self.time_us, self.index);
        let session = Session { active_us, used, lowest: 1, kept: BTreeMap::new() };
        self.sessions.insert(self.index, session);
    }
}
