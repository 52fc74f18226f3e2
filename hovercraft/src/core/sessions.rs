//! The session table: exactly once (P20–P22).
//!
//! Part of the replicated state: every replica decides the same from the same log, by session time
//! and the entries' indices, and never by a clock.
//!
//! Two budgets bound it. The number of sessions is bounded when one is opened: the least recently
//! used one goes. The bytes of kept replies are bounded at every 256th entry: the largest sessions
//! go. So whoever opens many sessions takes them from others that nobody uses, and whoever keeps
//! much loses it first.

mod replies;
mod snapshot;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    digest::Digest,
    entry::{ClusterLimits, Index},
    request::{Kind, Outcome, Request},
};
use replies::{Kept, Replies};

/// Bytes are evicted at the indices that this divides, and at no other: what is applied between two
/// of them evicts nothing for its size, in whatever batches.
const EVICT_BYTES_EVERY: Index = 256;

/// One client.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    /// Session time of its last request.
    active_us: u64,
    /// Index of its last request: no two sessions have the same.
    used: Index,
    /// The client holds every reply below this sequence.
    lowest: u64,
    /// From `lowest` on, at most a window long.
    replies: Replies,
}

/// A session's place in the table, and in the list of those of its size.
#[derive(Debug, Clone)]
struct Slot {
    /// Shared with snapshots that are being written; copied when changed meanwhile.
    session: Arc<Session>,
    class: usize,
    /// The clients before and after it in the list of its class; 0 for none.
    before: u64,
    after: u64,
}

/// The sessions of one size class, least recently used first; 0 for none.
#[derive(Debug, Clone, Copy, Default)]
struct List {
    first: u64,
    last: u64,
}

/// Class 0 keeps nothing; class k + 1 keeps from 2^k bytes on, and less than twice as many.
const CLASSES: usize = 65;

fn class_of(size_bytes: u64) -> usize {
    size_bytes.checked_ilog2().map_or(0, |log| log as usize + 1)
}

/// What P21 says about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Execute it; a write is then recorded with [`Sessions::record`].
    Execute,
    /// Answer this instead.
    Answer(Outcome, Bytes),
}

/// All sessions, with session time.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    slots: BTreeMap<u64, Slot>,
    lists: [List; CLASSES],
    /// No session was active before this session time.
    oldest_us: u64,
    /// The sum of the leaders' monotonic time between appends (P22).
    time_us: u64,
    /// Index of the entry that is being applied.
    index: Index,
    /// Charge for all kept replies, in bytes.
    kept_bytes: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            slots: BTreeMap::new(),
            lists: [List::default(); CLASSES],
            oldest_us: 0,
            time_us: 0,
            index: 0,
            kept_bytes: 0,
        }
    }
}

impl Sessions {
    /// Begins with the entry at `index`: moves session time on, expires idle sessions, and at every
    /// 256th index evicts the largest while the kept replies exceed their budget (P21).
    pub(crate) fn advance(&mut self, index: Index, delta_us: u32, limits: &ClusterLimits) {
        self.index = index;
        // A snapshot that was made by hand may have brought it to the end of time.
        self.time_us = self.time_us.saturating_add(u64::from(delta_us));
        let lifetime_us = u64::try_from(limits.session_lifetime.as_micros()).unwrap_or(u64::MAX);
        let lifetime_us =
            lifetime_us - if planted!("session-ends-early") { lifetime_us / 64 } else { 0 };
        while self.time_us.saturating_sub(self.oldest_us) > lifetime_us {
            let Some((client, active_us)) = self.least_recent() else {
                self.oldest_us = self.time_us;
                break;
            };
            self.oldest_us = active_us;
            if self.time_us - active_us > lifetime_us {
                self.remove(client);
            }
        }
        let is_due = index.is_multiple_of(EVICT_BYTES_EVERY) || planted!("bytes-evicted-early");
        while is_due && self.kept_bytes > limits.session_bytes_max {
            let largest = self.lists[1..].iter().rev().find(|list| list.first != 0);
            let largest = largest.expect("somebody keeps what is kept").first;
            let oldest = self.least_recent().map(|(client, _)| client);
            let evicted = if planted!("evicts-the-oldest") { oldest } else { None };
            self.remove(evicted.unwrap_or(largest));
        }
    }

    /// Opens a session for the entry that is being applied, whose index becomes the client id (P1).
    /// While there are as many as may be, the least recently used one goes.
    pub(crate) fn open(&mut self, limits: &ClusterLimits) -> u64 {
        let client = self.index;
        let more = usize::from(planted!("one-session-too-many"));
        while self.slots.len() >= limits.sessions_max.max(1) as usize + more {
            let (oldest, _) = self.least_recent().expect("there is at least one");
            let newest = self.newest();
            self.remove(if planted!("evicts-the-newest") { newest } else { oldest });
        }
        let session = Session {
            active_us: self.time_us,
            used: client,
            lowest: 1,
            replies: Replies::default(),
        };
        self.insert(client, session);
        client
    }

    /// Decides about a request of a client, after [`Self::advance`] (P21).
    pub(crate) fn check(
        &mut self,
        client: u64,
        sequence: u64,
        request: &Request,
        limits: &ClusterLimits,
    ) -> Verdict {
        let refuse = |outcome| Verdict::Answer(outcome, Bytes::new());
        let is_unsound = request.lowest() > sequence;
        let believes = !is_unsound || planted!("lowest-checked-late");
        let (time_us, index) = (self.time_us, self.index);
        let found = self.change(client, |session| {
            if !(planted!("reads-keep-no-session") && request.kind() == Kind::Read) {
                session.active_us = time_us;
            }
            session.used = index;
            // Not of an unsound one: it would end the session for its client.
            if believes && request.lowest() > session.lowest {
                session.lowest = request.lowest();
                session.replies.remove_below(request.lowest());
            }
        });
        let Some(session) = found else {
            return refuse(Outcome::SessionExpired);
        };
        if is_unsound || sequence < session.lowest {
            return refuse(Outcome::Stale);
        }
        if sequence - session.lowest >= u64::from(limits.session_window) {
            return refuse(Outcome::OutsideWindow);
        }
        match session.replies.get(sequence) {
            None => Verdict::Execute,
            Some(kept) if kept.answers(request.digest()) => {
                Verdict::Answer(kept.outcome, kept.body.clone())
            }
            Some(_) => refuse(Outcome::IdentityReused),
        }
    }

    /// Keeps the reply of a write that [`Self::check`] let execute.
    pub(crate) fn record(
        &mut self,
        client: u64,
        sequence: u64,
        digest: Digest,
        outcome: Outcome,
        body: Bytes,
    ) {
        self.keep(client, sequence, Kept::new(Some(digest), outcome, body));
    }

    /// Executes a cancellation, which [`Self::check`] let execute: the outcome of the target, made
    /// final (P23).
    pub(crate) fn cancel(
        &mut self,
        client: u64,
        sequence: u64,
        request: &Request,
    ) -> (Outcome, Bytes) {
        assert_eq!(request.kind(), Kind::Cancel);
        let session = &self.slots[&client].session;
        let target = <[u8; 8]>::try_from(&request.body()[..]).map(u64::from_be_bytes);
        let (outcome, body) = match target {
            Ok(target) if (session.lowest..sequence).contains(&target) => {
                if let Some(kept) = session.replies.get(target) {
                    (kept.outcome, kept.body.clone())
                } else {
                    if !planted!("cancel-not-kept") {
                        let kept = Kept::new(None, Outcome::Refused, Bytes::new());
                        self.keep(client, target, kept);
                    }
                    (Outcome::Refused, Bytes::new())
                }
            }
            // The client holds the target's reply, or the body names no request of its past.
            _ => (Outcome::Stale, Bytes::new()),
        };
        self.record(client, sequence, request.digest(), outcome, body.clone());
        (outcome, body)
    }

    /// The kept reply of an executed write, for a retry that was not ordered again (P18).
    pub(crate) fn kept_reply(
        &self,
        client: u64,
        sequence: u64,
        digest: Digest,
    ) -> Option<(Outcome, Bytes)> {
        let kept = self.slots.get(&client)?.session.replies.get(sequence)?;
        kept.answers(digest).then(|| (kept.outcome, kept.body.clone()))
    }

    /// The highest client id; 0 if there is none.
    pub(crate) fn newest(&self) -> u64 {
        self.slots.last_key_value().map_or(0, |(client, _)| *client)
    }

    /// Session time (P22).
    pub(crate) fn time_us(&self) -> u64 {
        self.time_us
    }

    /// The clients with a session, in ascending order.
    pub(crate) fn clients(&self) -> impl Iterator<Item = u64> {
        self.slots.keys().copied()
    }

    /// What a planted bug does when a leader changes.
    pub(crate) fn forget_replies(&mut self) {
        for slot in self.slots.values_mut() {
            Arc::make_mut(&mut slot.session).replies.forget();
        }
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns what is charged for all kept replies.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    fn keep(&mut self, client: u64, sequence: u64, kept: Kept) {
        let session = self.change(client, |session| session.replies.keep(sequence, kept));
        assert!(session.is_some(), "check() found the session");
    }
}

/// The lists.
impl Sessions {
    /// Changes a session that is in use by the present entry, and so is the last of its list.
    fn change(&mut self, client: u64, change: impl FnOnce(&mut Session)) -> Option<&Session> {
        let slot = self.slots.get_mut(&client)?;
        let before = slot.session.replies.size_bytes();
        let (class, after) = (slot.class, slot.after);
        let session = Arc::make_mut(&mut slot.session);
        change(session);
        let size_bytes = session.replies.size_bytes();
        self.kept_bytes = self.kept_bytes - before + size_bytes;
        let class_now = class_of(size_bytes);
        if class_now != class || after != 0 {
            self.unlink(client);
            self.link_last(client, class_now);
        }
        Some(&self.slots[&client].session)
    }

    /// The session that was not used for longest: its client, and when it was.
    fn least_recent(&self) -> Option<(u64, u64)> {
        let firsts = self.lists.iter().filter(|list| list.first != 0);
        let sessions = firsts.map(|list| (list.first, &self.slots[&list.first].session));
        let oldest = sessions.min_by_key(|(_, session)| session.used);
        oldest.map(|(client, session)| (client, session.active_us))
    }

    fn insert(&mut self, client: u64, session: Session) {
        let size_bytes = session.replies.size_bytes();
        self.kept_bytes += size_bytes;
        let class = class_of(size_bytes);
        let slot = Slot { session: Arc::new(session), class, before: 0, after: 0 };
        let before = self.slots.insert(client, slot);
        assert!(before.is_none(), "a log index opens one session");
        self.link_last(client, class);
    }

    fn remove(&mut self, client: u64) {
        self.unlink(client);
        let slot = self.slots.remove(&client).expect("lists name only sessions");
        self.kept_bytes -= slot.session.replies.size_bytes();
    }

    fn unlink(&mut self, client: u64) {
        let Slot { class, before, after, .. } = self.slots[&client];
        match self.slots.get_mut(&before) {
            Some(slot) => slot.after = after,
            None => self.lists[class].first = after,
        }
        match self.slots.get_mut(&after) {
            Some(slot) => slot.before = before,
            None => self.lists[class].last = before,
        }
    }

    fn link_last(&mut self, client: u64, class: usize) {
        let before = std::mem::replace(&mut self.lists[class].last, client);
        match self.slots.get_mut(&before) {
            Some(slot) => slot.after = client,
            None => self.lists[class].first = client,
        }
        let slot = self.slots.get_mut(&client).expect("only sessions are linked");
        (slot.class, slot.before, slot.after) = (class, before, 0);
    }
}

impl PartialEq for Sessions {
    fn eq(&self, other: &Self) -> bool {
        let is_same = |(one, other): ((&u64, &Slot), (&u64, &Slot))| {
            one.0 == other.0 && one.1.session == other.1.session
        };
        self.time_us == other.time_us
            && self.slots.len() == other.slots.len()
            && self.slots.iter().zip(&other.slots).all(is_same)
    }
}

#[cfg(test)]
mod tests;
