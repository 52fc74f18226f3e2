//! The session table in a snapshot.

use std::io::{self, Read, Write};

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize, rancor};

use super::{
    Session, Sessions,
    replies::{Kept, Replies},
};
use crate::{digest::Digest, entry::Index, request::Outcome};

/// A session in a snapshot.
#[derive(Archive, Serialize, Deserialize)]
struct SessionRecord {
    client: u64,
    active_us: u64,
    /// The order of use, which eviction goes by.
    used: Index,
    lowest: u64,
    /// (offset from lowest, digest, outcome, body).
    kept: Vec<(u32, Option<u64>, u8, Vec<u8>)>,
}

impl SessionRecord {
    fn new(client: u64, session: &Session) -> Self {
        let kept = session.replies.iter().map(|(sequence, kept)| {
            let offset = (sequence - session.lowest) as u32;
            let digest = kept.digest().map(|digest| digest.0);
            (offset, digest, kept.outcome as u8, kept.body.to_vec())
        });
        Self {
            client,
            active_us: session.active_us,
            used: session.used,
            lowest: session.lowest,
            kept: kept.collect(),
        }
    }

    /// None if the fields contradict each other.
    fn into_session(self) -> Option<Session> {
        let mut replies = Replies::default();
        for (offset, digest, outcome, body) in self.kept {
            let sequence = self.lowest.checked_add(u64::from(offset))?;
            // A window is at most 2^20 (see `ClusterLimits`), so neither is what is kept.
            if replies.get(sequence).is_some() || offset >= 1 << 20 {
                return None;
            }
            let outcome = Outcome::from_number(outcome)?;
            replies.keep(sequence, Kept::new(digest.map(Digest), outcome, Bytes::from(body)));
        }
        let Self { active_us, used, lowest, .. } = self;
        Some(Session { active_us, used, lowest, replies })
    }
}

/// The form in a snapshot: session time, the number of sessions, then each as a length and an
/// rkyv record, by client; integers are little-endian.
impl Sessions {
    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.time_us.to_le_bytes())?;
        to.write_all(&(self.slots.len() as u64).to_le_bytes())?;
        for (client, slot) in &self.slots {
            let mut record = SessionRecord::new(*client, &slot.session);
            if planted!("snapshot-renews-sessions") {
                record.active_us = self.time_us;
            }
            let bytes = rkyv::to_bytes::<rancor::Error>(&record).map_err(io::Error::other)?;
            to.write_all(&(bytes.len() as u32).to_le_bytes())?;
            to.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Reads what [`Self::write`] wrote, of a snapshot of the entry at `index`.
    pub(crate) fn read(index: Index, from: &mut dyn Read) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut word = [0; 8];
        from.read_exact(&mut word)?;
        let mut sessions = Self { time_us: u64::from_le_bytes(word), index, ..Self::default() };
        from.read_exact(&mut word)?;
        let mut found = Vec::new();
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
            let client = record.client;
            let session = record.into_session();
            found.push((client, session.ok_or_else(|| invalid("a session's fields contradict"))?));
        }
        // Each becomes the last of its list, so that the lists come out as they were.
        found.sort_by_key(|(client, session)| {
            let used = if planted!("order-of-use-not-restored") { 0 } else { session.used };
            (used, *client)
        });
        for (client, session) in found {
            let is_sound = (1..=session.used).contains(&client)
                && session.used <= index
                && session.active_us <= sessions.time_us
                && !sessions.slots.contains_key(&client);
            if !is_sound {
                return Err(invalid("the sessions' fields contradict each other"));
            }
            sessions.insert(client, session);
        }
        Ok(sessions)
    }
}
