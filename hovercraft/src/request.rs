//! A replicated request: its identity, its digest, and what kind of request it is.

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
};

use bytes::Bytes;
use r2p2::Policy;

use crate::digest::{Digest, DigestKey};

/// Who sent a request and which of their requests it is; never reused within a session (P1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A request with the SESSION option. Client id 0 opens a session, with a random nonce as its
    /// sequence.
    Session {
        /// The log index of the request that opened the session.
        client: u64,
        /// Counts the requests of this client from 1.
        sequence: u64,
    },
    /// A request of a plain R2P2 client, which gets the order and the agreement, not exactly-once:
    /// the identity recurs as the 16-bit request id wraps.
    Plain {
        /// The client's address.
        address: SocketAddrV4,
        /// The R2P2 request id.
        request_id: u16,
    },
}

impl Identity {
    /// The two words that travel in metadata, and whether the identity is a plain one.
    pub fn to_words(self) -> (u64, u64, bool) {
        match self {
            Self::Session { client, sequence } => (client, sequence, false),
            Self::Plain { address, request_id } => {
                let endpoint = u64::from(address.ip().to_bits()) << 16 | u64::from(address.port());
                (endpoint, u64::from(request_id), true)
            }
        }
    }

    /// The inverse of [`Self::to_words`]; bits that no identity sets are ignored.
    pub fn from_words(first: u64, second: u64, plain: bool) -> Self {
        if plain {
            let ip = Ipv4Addr::from_bits((first >> 16) as u32);
            let address = SocketAddrV4::new(ip, first as u16);
            Self::Plain { address, request_id: second as u16 }
        } else {
            Self::Session { client: first, sequence: second }
        }
    }
}

impl Hash for Identity {
    /// Two words, where the derived one would feed an address byte by byte: every request is looked
    /// up several times.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (first, second, _) = self.to_words();
        state.write_u64(first);
        state.write_u64(second);
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session { client, sequence } => write!(f, "{client}.{sequence}"),
            Self::Plain { address, request_id } => write!(f, "{address}#{request_id}"),
        }
    }
}

/// Values of the option `REQUEST_KIND` (§1).
const OPEN_SESSION: u8 = 1;
const CANCEL: u8 = 2;

/// What a request asks of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A command: every replica executes it (P17).
    Write = 0,
    /// A query: its replier alone executes it (P17).
    Read = 1,
    /// Opens a session (P1). The body is empty.
    OpenSession = 2,
    /// Makes the outcome of an earlier request known (P23). The body is its sequence, u64
    /// big-endian.
    Cancel = 3,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Write),
            1 => Some(Self::Read),
            2 => Some(Self::OpenSession),
            3 => Some(Self::Cancel),
            _ => None,
        }
    }

    /// The kind of an R2P2 request with this policy and option `REQUEST_KIND` (§1); none if a cluster
    /// serves no such request.
    pub(crate) fn of(policy: Policy, request_kind: Option<u8>) -> Option<Self> {
        match (policy, request_kind) {
            (Policy::Replicated, None) => Some(Self::Write),
            (Policy::ReplicatedRead, None) => Some(Self::Read),
            (Policy::Replicated, Some(OPEN_SESSION)) => Some(Self::OpenSession),
            (Policy::Replicated, Some(CANCEL)) => Some(Self::Cancel),
            _ => None,
        }
    }

    /// What the option `REQUEST_KIND` says of it; none if the policy says all (§1).
    pub(crate) fn option(self) -> Option<u8> {
        match self {
            Self::Write | Self::Read => None,
            Self::OpenSession => Some(OPEN_SESSION),
            Self::Cancel => Some(CANCEL),
        }
    }

    /// Whether every replica executes it.
    pub fn is_write(self) -> bool {
        self != Self::Read
    }
}

/// What a request is found by in the unordered set and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Whose request, and which.
    pub identity: Identity,
    /// Of everything that execution reads.
    pub digest: Digest,
}

/// Everything that the execution of a request reads; equal on all replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Identity and digest. The digest is computed here, or comes from this replica's own log;
    /// never from outside.
    key: Key,
    /// The client holds the replies of every sequence below this one (P20). 0 for plain requests.
    lowest: u64,
    kind: Kind,
    body: Bytes,
}

impl Request {
    /// What the digest is over begins with so many bytes; the body follows.
    pub(crate) const HEAD_BYTES: usize = 26;

    /// Number of bytes before the body in the log: the digest and the head.
    pub(crate) const STORED_HEAD_BYTES: usize = 8 + Self::HEAD_BYTES;

    /// Creates a request; computes its digest under the cluster's key (P2).
    pub fn new(
        digest_key: DigestKey,
        identity: Identity,
        lowest: u64,
        kind: Kind,
        body: Bytes,
    ) -> Self {
        let digest = digest_key.digest(&head(identity, lowest, kind), &body);
        Self { key: Key { identity, digest }, lowest, kind, body }
    }

    /// Reads what [`Self::stored_head`] and the body are in the log, at `range`; none if those bytes
    /// are no request's. The digest is taken as it was stored. The body shares the memory of
    /// `bytes`.
    pub(crate) fn from_stored(bytes: &Bytes, range: Range<usize>) -> Option<Self> {
        let request = bytes.get(range.clone())?;
        let (stored, _) = request.split_first_chunk::<{ Self::STORED_HEAD_BYTES }>()?;
        let word =
            |at: usize| u64::from_le_bytes(stored[at..at + 8].try_into().expect("eight bytes"));
        let (first, second, lowest) = (word(8), word(16), word(24));
        let (kind, plain) = (stored[32], stored[33]);
        let identity = Identity::from_words(first, second, plain == 1);
        // Bits that no identity sets would be in the digest, and not in the identity.
        if plain > 1 || identity.to_words() != (first, second, plain == 1) {
            return None;
        }
        let key = Key { identity, digest: Digest(word(0)) };
        let body = bytes.slice(range.start + Self::STORED_HEAD_BYTES..range.end);
        Some(Self::from_parts(key, lowest, Kind::from_number(kind)?, body))
    }

    /// A request from this replica's own log, with its digest as it was stored.
    pub(crate) fn from_parts(key: Key, lowest: u64, kind: Kind, body: Bytes) -> Self {
        Self { key, lowest, kind, body }
    }

    /// Returns the bytes that precede the body in the log.
    pub(crate) fn stored_head(&self) -> [u8; Self::STORED_HEAD_BYTES] {
        let mut stored = [0; Self::STORED_HEAD_BYTES];
        stored[..8].copy_from_slice(&self.key.digest.0.to_le_bytes());
        stored[8..].copy_from_slice(&self.head());
        stored
    }

    /// Tells whether the digest is the one under this key.
    pub fn has_digest_of(&self, digest_key: DigestKey) -> bool {
        digest_key.digest(&self.head(), &self.body) == self.key.digest
    }

    /// Everything that the digest is over, but for the body.
    fn head(&self) -> [u8; Self::HEAD_BYTES] {
        head(self.identity(), self.lowest, self.kind)
    }

    /// Tells whether it keeps the rules that can be told from the request alone; one that does not
    /// is refused where it comes from outside, and nowhere else (P21).
    ///
    /// Without a session nothing but the opening of one has an identity that is used once.
    pub(crate) fn is_sound(&self) -> bool {
        match self.key.identity {
            Identity::Session { client: 0, .. } => self.kind == Kind::OpenSession,
            Identity::Session { sequence, .. } => self.lowest <= sequence,
            Identity::Plain { .. } => true,
        }
    }

    /// Identity and digest.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Whose request, and which.
    pub fn identity(&self) -> Identity {
        self.key.identity
    }

    /// Whether it is of a plain R2P2 client, whose identities recur (P1).
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.key.identity, Identity::Plain { .. })
    }

    /// Of everything that execution reads (P2).
    pub fn digest(&self) -> Digest {
        self.key.digest
    }

    /// The lowest sequence whose reply the client does not hold; 0 for plain requests.
    pub fn lowest(&self) -> u64 {
        self.lowest
    }

    /// What the request asks.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The bytes for the service.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

fn head(identity: Identity, lowest: u64, kind: Kind) -> [u8; Request::HEAD_BYTES] {
    let (first, second, plain) = identity.to_words();
    let mut head = [0; Request::HEAD_BYTES];
    head[..8].copy_from_slice(&first.to_le_bytes());
    head[8..16].copy_from_slice(&second.to_le_bytes());
    head[16..24].copy_from_slice(&lowest.to_le_bytes());
    head[24] = kind as u8;
    head[25] = u8::from(plain);
    head
}

/// What became of a request that was ordered, as its reply says (P21, P23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// Executed, now or by an earlier copy; the body is the service's reply.
    Executed = 0,
    /// The session is not known: it expired, or never was. Whether an earlier copy was executed is
    /// unknown.
    SessionExpired = 1,
    /// The sequence is below the lowest unacknowledged one: the client had its reply before.
    Stale = 2,
    /// The sequence was used for another request, which was executed; this one was not.
    IdentityReused = 3,
    /// A cancellation came first; this request is never executed.
    Refused = 4,
    /// The sequence is too far above the lowest unacknowledged one; it may be sent again later.
    OutsideWindow = 5,
    /// The service panicked on this query, which has changed nothing (P42).
    QueryFailed = 6,
}

impl Outcome {
    /// The outcome with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Executed),
            1 => Some(Self::SessionExpired),
            2 => Some(Self::Stale),
            3 => Some(Self::IdentityReused),
            4 => Some(Self::Refused),
            5 => Some(Self::OutsideWindow),
            6 => Some(Self::QueryFailed),
            _ => None,
        }
    }
}

/// Where the reply to one copy of a request goes.
///
/// Kept beside a request, outside its digest and outside the replicated state; the newest copy of
/// a request wins (P5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnPath {
    /// The client's address.
    pub address: SocketAddrV4,
    /// The R2P2 request id that the client waits on.
    pub request_id: u16,
}
