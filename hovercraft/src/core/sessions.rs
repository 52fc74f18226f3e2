//! The session table: exactly once (P20–P22).
//!
//! Part of the replicated state: every replica decides the same from the same log, by session time
//! and never by a clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize, rancor};

use crate::{
    digest::Digest,
    entry::ClusterLimits,
    request::{Kind, Outcome, Request},
};

/// What a session counts for against the limit in bytes, beside its replies.
const SESSION_OVERHEAD_BYTES: u64 = 256;
/// What each sequence from the lowest to the highest kept one counts for, beside the reply: room
/// is taken for all of them.
const SLOT_BYTES: u64 = 64;

/// A reply that may be asked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// None if every digest gets this reply: the sequence was refused for ever (P23).
    digest: Option<Digest>,
    pub(crate) outcome: Outcome,
    pub(crate) body: Bytes,
}

/// One client.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    /// Session time of its last request.
    active_us: u64,
    /// The client holds every reply below this sequence.
    lowest: u64,
    /// Position i is sequence `lowest` + i. At most a window long.
    kept: VecDeque<Option<Kept>>,
    size_bytes: u64,
}

impl Session {
    fn raise_lowest(&mut self, lowest: u64) {
        while self.lowest < lowest {
            let Some(kept) = self.kept.pop_front() else {
                self.lowest = lowest;
                return;
            };
            self.size_bytes -= SLOT_BYTES + kept.map_or(0, |kept| kept.body.len() as u64);
            self.lowest += 1;
        }
    }

    fn kept(&self, sequence: u64) -> Option<&Kept> {
        let offset = sequence.checked_sub(self.lowest)?;
        self.kept.get(usize::try_from(offset).ok()?)?.as_ref()
    }

    /// Keeps a reply; `sequence` is within the window.
    fn keep(&mut self, sequence: u64, kept: Kept) {
        let offset = (sequence - self.lowest) as usize;
        if self.kept.len() <= offset {
            self.size_bytes += SLOT_BYTES * (offset + 1 - self.kept.len()) as u64;
            self.kept.resize(offset + 1, None);
        }
        self.size_bytes += kept.body.len() as u64;
        let before = self.kept[offset].replace(kept);
        assert!(before.is_none(), "a sequence is executed or refused once (P21)");
    }
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
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    /// Shared with snapshots that are being written; copied when changed meanwhile.
    sessions: BTreeMap<u64, Arc<Session>>,
    /// (last active, client), for expiry.
    by_age: BTreeSet<(u64, u64)>,
    /// The sum of the leaders' monotonic time between appends (P22).
    time_us: u64,
    size_bytes: u64,
}

impl Sessions {
    /// Moves session time on and expires sessions: the idle ones, then the least recently used
    /// while over the limit in bytes, ties by client id (P21).
    pub(crate) fn advance(&mut self, delta_us: u32, limits: &ClusterLimits) {
        // A snapshot that was made by hand may have brought it to the end of time.
        self.time_us = self.time_us.saturating_add(u64::from(delta_us));
        let lifetime_us = u64::try_from(limits.session_lifetime.as_micros()).unwrap_or(u64::MAX);
        while let Some((active_us, client)) = self.by_age.first().copied() {
            let is_idle = self.time_us - active_us > lifetime_us;
            if !is_idle && self.size_bytes <= limits.session_bytes_max {
                return;
            }
            self.by_age.pop_first();
            let session = self.sessions.remove(&client).expect("by_age names only sessions");
            self.size_bytes -= session.size_bytes;
        }
    }

    /// Opens a session; `client` is the index of the opening entry, never used before (P1).
    pub(crate) fn open(&mut self, client: u64) {
        let session = Session {
            active_us: self.time_us,
            lowest: 1,
            kept: VecDeque::new(),
            size_bytes: SESSION_OVERHEAD_BYTES,
        };
        self.size_bytes += session.size_bytes;
        self.by_age.insert((self.time_us, client));
        let before = self.sessions.insert(client, Arc::new(session));
        assert!(before.is_none(), "a log index opens one session");
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
        let time_us = self.time_us;
        let Some(session) = self.sessions.get_mut(&client) else {
            return refuse(Outcome::SessionExpired);
        };
        let session = Arc::make_mut(session);
        if session.active_us != time_us {
            self.by_age.remove(&(session.active_us, client));
            self.by_age.insert((time_us, client));
            session.active_us = time_us;
        }
        let is_unsound = request.lowest() > sequence;
        // Before *lowest* is raised: else one such request would end the session for its client.
        if is_unsound && !planted!("lowest-checked-late") {
            return refuse(Outcome::Stale);
        }
        let size_before = session.size_bytes;
        session.raise_lowest(request.lowest());
        self.size_bytes -= size_before - session.size_bytes;
        if is_unsound || sequence < session.lowest {
            return refuse(Outcome::Stale);
        }
        if sequence - session.lowest >= u64::from(limits.session_window) {
            return refuse(Outcome::OutsideWindow);
        }
        match session.kept(sequence) {
            None => Verdict::Execute,
            Some(kept) if kept.digest.is_none_or(|digest| digest == request.digest()) => {
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
        self.keep(client, sequence, Kept { digest: Some(digest), outcome, body });
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
        let session = &self.sessions[&client];
        let target = <[u8; 8]>::try_from(&request.body()[..]).map(u64::from_be_bytes);
        let (outcome, body) = match target {
            Ok(target) if (session.lowest..sequence).contains(&target) => {
                if let Some(kept) = session.kept(target) {
                    (kept.outcome, kept.body.clone())
                } else {
                    let refused = Bytes::new();
                    let kept = Kept { digest: None, outcome: Outcome::Refused, body: refused };
                    if !planted!("cancel-not-kept") {
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
        let kept = self.sessions.get(&client)?.kept(sequence)?;
        let is_same = kept.digest.is_none_or(|kept| kept == digest);
        is_same.then(|| (kept.outcome, kept.body.clone()))
    }

    /// The highest client id; 0 if there is none.
    pub(crate) fn newest(&self) -> u64 {
        self.sessions.last_key_value().map_or(0, |(client, _)| *client)
    }

    /// Session time (P22).
    pub(crate) fn time_us(&self) -> u64 {
        self.time_us
    }

    /// What a planted bug does when a leader changes.
    pub(crate) fn forget_replies(&mut self) {
        for session in self.sessions.values_mut() {
            Arc::make_mut(session).kept.iter_mut().for_each(|kept| *kept = None);
        }
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// What they count for against the limit.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn keep(&mut self, client: u64, sequence: u64, kept: Kept) {
        let session = self.sessions.get_mut(&client).expect("check() found the session");
        let session = Arc::make_mut(session);
        let size_before = session.size_bytes;
        session.keep(sequence, kept);
        self.size_bytes += session.size_bytes - size_before;
    }
}

/// A session in a snapshot.
#[derive(Archive, Serialize, Deserialize)]
struct SessionRecord {
    client: u64,
    active_us: u64,
    lowest: u64,
    /// (offset from lowest, digest, outcome, body).
    kept: Vec<(u32, Option<u64>, u8, Vec<u8>)>,
}

/// The form in a snapshot: session time, the number of sessions, then each as a length and an
/// rkyv record; integers are little-endian.
impl Sessions {
    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.time_us.to_le_bytes())?;
        to.write_all(&(self.sessions.len() as u64).to_le_bytes())?;
        for (client, session) in &self.sessions {
            let kept = session.kept.iter().enumerate().filter_map(|(offset, kept)| {
                let kept = kept.as_ref()?;
                let digest = kept.digest.map(|digest| digest.0);
                Some((offset as u32, digest, kept.outcome as u8, kept.body.to_vec()))
            });
            let record = SessionRecord {
                client: *client,
                active_us: session.active_us,
                lowest: session.lowest,
                kept: kept.collect(),
            };
            let bytes = rkyv::to_bytes::<rancor::Error>(&record).map_err(io::Error::other)?;
            to.write_all(&(bytes.len() as u32).to_le_bytes())?;
            to.write_all(&bytes)?;
        }
        Ok(())
    }

    pub(crate) fn read(from: &mut dyn Read) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut word = [0; 8];
        from.read_exact(&mut word)?;
        let mut sessions = Self { time_us: u64::from_le_bytes(word), ..Self::default() };
        from.read_exact(&mut word)?;
        for _ in 0..u64::from_le_bytes(word) {
            let mut len = [0; 4];
            from.read_exact(&mut len)?;
            let len = u64::from(u32::from_le_bytes(len));
            // Grows with what is there, not with what the length claims.
            let mut bytes = Vec::new();
            if from.take(len).read_to_end(&mut bytes)? as u64 != len {
                return Err(invalid("the session table ends early"));
            }
            let record = rkyv::from_bytes::<SessionRecord, rancor::Error>(&bytes)
                .map_err(|_| invalid("a session's record is damaged"))?;
            sessions.add(record).ok_or_else(|| invalid("a session's fields contradict"))?;
        }
        Ok(sessions)
    }

    fn add(&mut self, record: SessionRecord) -> Option<()> {
        let mut session = Session {
            active_us: record.active_us,
            lowest: record.lowest,
            kept: VecDeque::new(),
            size_bytes: SESSION_OVERHEAD_BYTES,
        };
        if record.active_us > self.time_us || self.sessions.contains_key(&record.client) {
            return None;
        }
        for (offset, digest, outcome, body) in record.kept {
            let sequence = record.lowest.checked_add(u64::from(offset))?;
            // A window is at most 2^20 (see `ClusterLimits`), so neither is what is kept.
            if session.kept(sequence).is_some() || offset >= 1 << 20 {
                return None;
            }
            let outcome = Outcome::from_number(outcome)?;
            let kept = Kept { digest: digest.map(Digest), outcome, body: Bytes::from(body) };
            session.keep(sequence, kept);
        }
        self.size_bytes += session.size_bytes;
        self.by_age.insert((session.active_us, record.client));
        self.sessions.insert(record.client, Arc::new(session));
        Some(())
    }
}

impl PartialEq for Sessions {
    fn eq(&self, other: &Self) -> bool {
        self.time_us == other.time_us && self.sessions == other.sessions
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::testing::request_of;

    fn limits() -> ClusterLimits {
        ClusterLimits { session_window: 4, ..ClusterLimits::default() }
    }

    fn with_client(client: u64) -> Sessions {
        let mut sessions = Sessions::default();
        sessions.open(client);
        sessions
    }

    /// Checks a write and, if it is to be executed, records `reply`.
    fn write(sessions: &mut Sessions, sequence: u64, lowest: u64, body: &'static [u8]) -> Verdict {
        let request = request_of(1, sequence, lowest, Kind::Write, body);
        let verdict = sessions.check(1, sequence, &request, &limits());
        if verdict == Verdict::Execute {
            let reply = Bytes::from(format!("reply {sequence}"));
            sessions.record(1, sequence, request.digest(), Outcome::Executed, reply);
        }
        verdict
    }

    fn answer(outcome: Outcome, body: &'static str) -> Verdict {
        Verdict::Answer(outcome, Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn a_write_is_executed_once_in_any_order() {
        let mut sessions = with_client(1);
        assert_eq!(write(&mut sessions, 2, 1, b"b"), Verdict::Execute);
        assert_eq!(write(&mut sessions, 1, 1, b"a"), Verdict::Execute);
        assert_eq!(write(&mut sessions, 2, 1, b"b"), answer(Outcome::Executed, "reply 2"));
        assert_eq!(write(&mut sessions, 2, 1, b"x"), answer(Outcome::IdentityReused, ""));
        assert_eq!(write(&mut sessions, 3, 3, b"c"), Verdict::Execute);
        assert_eq!(write(&mut sessions, 2, 1, b"b"), answer(Outcome::Stale, ""));
        assert_eq!(write(&mut sessions, 7, 3, b"d"), answer(Outcome::OutsideWindow, ""));
        assert_eq!(write(&mut sessions, 6, 3, b"d"), Verdict::Execute);
    }

    #[test]
    fn an_unknown_client_is_refused() {
        let request = request_of(2, 1, 1, Kind::Write, b"");
        let verdict = with_client(1).check(2, 1, &request, &limits());
        assert_eq!(verdict, answer(Outcome::SessionExpired, ""));
    }

    #[test]
    fn a_cancelled_sequence_answers_refused_to_every_digest() {
        let mut sessions = with_client(1);
        write(&mut sessions, 1, 1, b"a");
        let cancel = |sessions: &mut Sessions, sequence, target: &'static [u8]| {
            let request = request_of(1, sequence, 1, Kind::Cancel, target);
            assert_eq!(sessions.check(1, sequence, &request, &limits()), Verdict::Execute);
            sessions.cancel(1, sequence, &request)
        };
        let executed = cancel(&mut sessions, 3, &[0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(executed, (Outcome::Executed, Bytes::from_static(b"reply 1")));
        let refused = cancel(&mut sessions, 4, &[0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(refused, (Outcome::Refused, Bytes::new()));
        assert_eq!(write(&mut sessions, 2, 1, b"b"), answer(Outcome::Refused, ""));
        assert_eq!(write(&mut sessions, 2, 1, b"x"), answer(Outcome::Refused, ""));
    }

    #[test]
    fn idle_sessions_expire_by_session_time_and_the_used_ones_stay() {
        let limits = ClusterLimits { session_lifetime: Duration::from_secs(2), ..limits() };
        let mut sessions = with_client(1);
        sessions.open(2);
        sessions.advance(1_000_000, &limits);
        write(&mut sessions, 1, 1, b"a");
        sessions.advance(1_000_000, &limits);
        assert_eq!(sessions.len(), 2);
        sessions.advance(1, &limits);
        assert_eq!(sessions.sessions.keys().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn over_the_byte_limit_the_least_recently_used_goes_first_and_ties_go_by_client() {
        let limits = ClusterLimits { session_bytes_max: 2 * SESSION_OVERHEAD_BYTES, ..limits() };
        let mut sessions = with_client(7);
        sessions.open(3);
        sessions.open(5);
        sessions.advance(0, &limits);
        assert_eq!(sessions.sessions.keys().copied().collect::<Vec<_>>(), [5, 7]);
        assert_eq!(sessions.size_bytes(), limits.session_bytes_max);
    }

    #[test]
    fn a_snapshot_keeps_everything() {
        let mut sessions = with_client(1);
        sessions.open(9);
        sessions.advance(5, &limits());
        write(&mut sessions, 1, 1, b"a");
        write(&mut sessions, 3, 1, b"c");
        let mut bytes = Vec::new();
        sessions.write(&mut bytes).unwrap();
        let read = Sessions::read(&mut &bytes[..]).unwrap();
        assert_eq!(read, sessions);
        assert_eq!(read.by_age, sessions.by_age);
        assert_eq!(read.size_bytes, sessions.size_bytes);
        for len in 0..bytes.len() {
            assert!(Sessions::read(&mut &bytes[..len]).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Sessions::read(&mut &bytes[..]);
        }
    }
}
