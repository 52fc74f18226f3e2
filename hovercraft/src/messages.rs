//! What replicas say to each other, and its form on the wire (P5, P40).
//!
//! A message is an rkyv record, validated on arrival, in the body of an R2P2 message of type
//! `RAFT_MSG`. Integers are little-endian and unaligned. The first two bytes of the R2P2 body are
//! the protocol version (big-endian), so that a later version may change all of the rest.

#![expect(missing_docs, reason = "what rkyv derives for the fields of variants has no docs")]

use std::fmt;

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize, rancor};

use crate::{
    core::{Run, Standstill},
    digest::{Digest, DigestKey},
    entry::{Configuration, Entry, Incarnation, Index, Member, NodeId, Payload, Term},
    request::{Identity, Key, Kind, Request, ReturnPath},
    storage::SnapshotMeta,
};

/// The version of the messages between replicas that this build speaks.
pub const PROTOCOL_VERSION: u16 = 2;

/// The most bytes of bodies or snapshots that one message carries: a message may take several
/// packets, and is lost if one of them is.
pub(crate) const PART_BYTES_MAX: usize = 32 << 10;

/// What every message carries, and the message.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct Envelope {
    /// The cluster; messages of another one are ignored.
    pub cluster: u64,
    /// Who sent it.
    pub from: NodeId,
    /// The sender's life; what it grants and acknowledges counts only if the configuration names
    /// this one (P39).
    pub incarnation: Incarnation,
    /// The sender's term; a higher one is adopted first (P40).
    pub term: Term,
    /// What it says.
    pub message: Message,
}

/// What one replica says to another.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of Raft's RPCs; what is ours is described")]
pub enum Message {
    /// Would you vote for me in `proposed`? Changes nobody's term (P33).
    PreVote { proposed: Term, last_index: Index, last_term: Term },
    /// Answers [`Message::PreVote`] for the term that it proposed.
    PreVoteReply { proposed: Term, granted: bool },
    /// Vote for me in this message's term.
    Vote { last_index: Index, last_term: Term },
    /// Answers [`Message::Vote`].
    VoteReply { granted: bool },
    /// The leader's entries, as metadata; empty as a heartbeat or to announce the commit index.
    AppendEntries(AppendEntries),
    /// What a follower holds, and how far it is.
    AppendReply(AppendReply),
    /// Bodies that a follower has metadata for (P9).
    FetchBodies { wants: Vec<BodyWant>, question: u64, bytes: u32 },
    /// Bodies, or parts of one, up to as many bytes as were asked for.
    Bodies { parts: Vec<BodyPart>, question: u64 },
    /// About so many bytes of whole entries after `after`, for a replica far behind (P9).
    FetchEntries { after: Index, question: u64, bytes: u32 },
    /// Whole entries after (`after`, `after_term`), all of them committed. The whole answer, perhaps
    /// in several messages, goes up to `until`.
    Entries {
        after: Index,
        after_term: Term,
        entries: Vec<WholeEntry>,
        question: u64,
        until: Index,
    },
    /// The donor does not hold what comes after the asked index, but a snapshot at this index; at
    /// 0, none that would help: it has less than the asker.
    SnapshotAvailable { index: Index, question: u64 },
    /// So many bytes of the snapshot at an index. A donor that has it no more answers from the start
    /// of its latest.
    FetchSnapshot { index: Index, offset: u64, question: u64, bytes: u32 },
    /// A part of a snapshot (P36).
    SnapshotPart { meta: Box<SnapshotMeta>, offset: u64, data: Vec<u8>, question: u64 },
    /// A request that reached a replica that does not lead, with its return path (mode `raft`).
    Forward { request: WholeRequest },
    /// A recovering replica asks the leader up to where it must catch up (P37).
    Recovering { nonce: u64 },
    /// Answers [`Message::Recovering`], after a confirmation round begun on its receipt.
    CatchUpTo { nonce: u64, index: Index, round: u64 },
    /// The recovering replica has caught up: name its incarnation in a configuration (P37). It says
    /// the round of the answer, which an earlier life of it cannot have known.
    CaughtUp { nonce: u64, round: u64 },
    /// The leader's entries for everyone: the aggregator passes it on as it is (P26).
    Aggregate(Box<Aggregate>),
    /// A follower answers [`Message::Aggregate`], to the aggregator (P28).
    Acknowledge(Acknowledge),
    /// The aggregator tells everyone what a quorum holds (P26).
    AggCommit(AggCommit),
    /// The leader's log does not have what a follower asked for (P9).
    BodiesRefused { refusals: Vec<BodyRefusal> },
    /// A run that the leader does not know in this term, and the highest round that it has heard of
    /// (P17, P37).
    NewRun { run: Run, round: u64 },
    /// Answers [`Message::NewRun`]: the run acknowledges rounds from this one on, and earlier runs
    /// may have answered clients up to the index, the last one of the leader's log.
    RunKnown { run: u64, index: Index, first_round: u64 },
    /// The leader does not count this incarnation any more, since a run of it began with less than an
    /// earlier one had acknowledged (P37).
    Disowned { incarnation: Incarnation },
}

impl Message {
    /// Whether it comes from the aggregator, not from a replica.
    pub(crate) fn is_of_aggregator(&self) -> bool {
        matches!(self, Self::AggCommit(_))
    }

    /// Whether it carries bodies, entries with bodies, or a part of a snapshot.
    pub(crate) fn is_bulky(&self) -> bool {
        matches!(
            self,
            Self::Bodies { .. }
                | Self::Entries { .. }
                | Self::SnapshotPart { .. }
                | Self::Forward { .. }
        )
    }
}

/// See [`Message::AppendEntries`].
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct AppendEntries {
    /// The entry before the first one here.
    pub previous_index: Index,
    /// That entry's term.
    pub previous_term: Term,
    /// The leader's commit index.
    pub commit: Index,
    /// The first index of the leader's term: its no-op (P10, P17).
    pub noop: Index,
    /// The first index that the leader still has; a follower that lacks more fetches a snapshot.
    pub first_index: Index,
    /// The round in which it was sent; a follower answers the highest it has seen (P31).
    pub round: u64,
    /// The term of all entries here (P5).
    pub entries_term: Term,
    /// Log time of the first entry; each entry has its distance from it.
    pub log_time_us: u64,
    /// One for each entry.
    pub entries: Vec<Metadata>,
    /// The configurations among the entries, in their order (P5).
    pub configurations: Vec<Configuration>,
    /// In mode `raft`, the requests among the entries, by position; large ones are fetched (P9).
    pub requests: Vec<(u16, WholeRequest)>,
}

/// See [`Message::AppendReply`].
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct AppendReply {
    /// The highest round that this replica has seen of this leader in this term.
    pub round: u64,
    /// The highest index that this replica acknowledges (P6).
    pub acknowledged: Index,
    /// The highest index that is applied (P15).
    pub applied: Index,
    /// Its service has stopped: it answers nothing, and should not lead (P42).
    pub poisoned: bool,
    /// Set if the last append-entries did not match: the leader should go on after this index.
    pub rejected_after: Option<Index>,
    /// The index at which this replica waits for something, and the cause.
    pub standstill: Option<Standstill>,
    /// Longest wait of late for its disk to complete anything, in microseconds (P38).
    pub disk_wait_us: u64,
    /// Its disk has no room for what comes next (P38).
    pub lacks_room: bool,
}

/// See [`Message::Aggregate`]. With the round and the first index of the term, which are in
/// `append`, it is all that an aggregator needs to begin anew (P27).
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct Aggregate {
    /// The id of the configuration that governs all entries here.
    pub configuration: u64,
    /// Its voters.
    pub voters: Vec<Member>,
    /// Up to here the leader itself holds its log, as its durability promises.
    pub durable: Index,
    /// Acknowledgements of earlier rounds do not count: they may be of runs that are over (P37).
    pub first_round: u64,
    /// What the followers are told.
    pub append: AppendEntries,
}

impl Aggregate {
    /// The last index that it is about; an answer acknowledges nothing above it (P28).
    pub fn last(&self) -> Index {
        self.append.previous_index.saturating_add(self.append.entries.len() as Index)
    }
}

/// See [`Message::Acknowledge`].
#[derive(Debug, Clone, Copy, PartialEq, Archive, Serialize, Deserialize)]
pub struct Acknowledge {
    /// As in the message that it answers, and so is the term.
    pub configuration: u64,
    /// The highest round that came through the aggregator and matched.
    pub round: u64,
    /// What this replica holds, at most the last index of the message that it answers.
    pub acknowledged: Index,
    /// The highest index that is applied (P15).
    pub applied: Index,
    /// As in [`AppendReply`].
    pub poisoned: bool,
    /// As in [`AppendReply`].
    pub disk_wait_us: u64,
    /// As in [`AppendReply`].
    pub lacks_room: bool,
}

/// See [`Message::AggCommit`].
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct AggCommit {
    /// The configuration by which it was counted.
    pub configuration: u64,
    /// A quorum holds everything up to here; 0 if that is not known in this term.
    pub commit: Index,
    /// The highest round that a quorum has answered (P31).
    pub round: u64,
    /// How far each follower is that was heard of.
    pub replicas: Vec<Progress>,
}

/// How far a follower is, as far as the aggregator has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Progress {
    /// Which.
    pub node: NodeId,
    /// What it acknowledged.
    pub matched: Index,
    /// What it has applied.
    pub applied: Index,
    /// The round that it answered last.
    pub round: u64,
    /// As in [`AppendReply`].
    pub poisoned: bool,
    /// As in [`AppendReply`].
    pub disk_wait_us: u64,
    /// As in [`AppendReply`].
    pub lacks_room: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            node: NodeId::AGGREGATOR,
            matched: 0,
            applied: 0,
            round: 0,
            poisoned: false,
            disk_wait_us: 0,
            lacks_room: false,
        }
    }
}

/// What orders one entry: 40 bytes, whatever the size of its body (P5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Metadata {
    identity: [u64; 2],
    digest: u64,
    /// Bytes.
    body_len: u32,
    /// From the log time of the message's first entry.
    log_time_offset_us: u32,
    session_delta_us: u32,
    /// 0 for what the leader makes itself.
    replier: u16,
    /// A [`Kind`], or one of the `KIND_` constants.
    kind: u8,
    /// 1 for a plain identity.
    plain: u8,
}

const KIND_NOOP: u8 = 255;
const KIND_CONFIGURATION: u8 = 254;

/// What metadata stands for, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ordered {
    Noop,
    Configuration,
    Request { key: Key, body_len: u32, replier: NodeId },
}

impl Metadata {
    /// None if the entry's log time is too far from `base_time_us` for one message.
    pub(crate) fn of(entry: &Entry, base_time_us: u64) -> Option<Self> {
        let offset = entry.log_time_us.checked_sub(base_time_us)?;
        let mut metadata = Self {
            identity: [0; 2],
            digest: 0,
            body_len: 0,
            log_time_offset_us: u32::try_from(offset).ok()?,
            session_delta_us: entry.session_delta_us,
            replier: 0,
            kind: KIND_NOOP,
            plain: 0,
        };
        match &entry.payload {
            Payload::Noop => {}
            Payload::Configuration(_) => metadata.kind = KIND_CONFIGURATION,
            Payload::Request { replier, request } => {
                let (first, second, plain) = request.identity().to_words();
                metadata.identity = [first, second];
                metadata.digest = request.digest().0;
                metadata.body_len = request.body().len() as u32;
                metadata.replier = replier.0;
                metadata.kind = request.kind() as u8;
                metadata.plain = u8::from(plain);
            }
        }
        Some(metadata)
    }

    /// None if a field has no meaning.
    pub(crate) fn ordered(&self) -> Option<Ordered> {
        match self.kind {
            KIND_NOOP => Some(Ordered::Noop),
            KIND_CONFIGURATION => Some(Ordered::Configuration),
            kind => {
                Kind::from_number(kind)?;
                let [first, second] = self.identity;
                let identity = Identity::from_words(first, second, self.plain == 1);
                if self.replier == 0 || self.plain > 1 {
                    return None;
                }
                Some(Ordered::Request {
                    key: Key { identity, digest: Digest(self.digest) },
                    body_len: self.body_len,
                    replier: NodeId(self.replier),
                })
            }
        }
    }

    /// With fields of any value, as they may arrive.
    #[cfg(test)]
    pub(crate) fn of_fields(words: [u64; 3], numbers: [u32; 3], replier: u16, kind: u8) -> Self {
        let [first, second, digest] = words;
        let [body_len, log_time_offset_us, session_delta_us] = numbers;
        let identity = [first, second];
        let plain = (digest % 3) as u8;
        Self {
            identity,
            digest,
            body_len,
            log_time_offset_us,
            session_delta_us,
            replier,
            kind,
            plain,
        }
    }

    /// Flips one bit of digest, identity or body length: the entry becomes one that no request
    /// fits. For simulations of memory that fails where no checksum of a packet looks.
    pub fn flip_bit(&mut self, bit: u32) {
        match bit % (64 + 128 + 32) {
            bit @ 0..64 => self.digest ^= 1 << bit,
            bit @ 64..128 => self.identity[0] ^= 1 << (bit - 64),
            bit @ 128..192 => self.identity[1] ^= 1 << (bit - 128),
            bit => self.body_len ^= 1 << (bit - 192),
        }
    }

    pub(crate) fn log_time_us(&self, base_time_us: u64) -> u64 {
        base_time_us.saturating_add(u64::from(self.log_time_offset_us))
    }

    pub(crate) fn session_delta_us(&self) -> u32 {
        self.session_delta_us
    }
}

/// A body that a follower lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BodyWant {
    /// Where the leader ordered it.
    pub index: Index,
    identity: [u64; 2],
    digest: u64,
    plain: bool,
    /// The byte to go on from, if a part is here already.
    pub offset: u32,
    /// Term of the entry.
    pub term: Term,
    /// Bytes of the whole body.
    pub body_len: u32,
}

impl BodyWant {
    pub(crate) fn new(index: Index, term: Term, key: Key, body_len: u32, offset: u32) -> Self {
        let (first, second, plain) = key.identity.to_words();
        let (identity, digest) = ([first, second], key.digest.0);
        Self { index, identity, digest, plain, offset, term, body_len }
    }

    pub(crate) fn key(&self) -> Key {
        let [first, second] = self.identity;
        let identity = Identity::from_words(first, second, self.plain);
        Key { identity, digest: Digest(self.digest) }
    }
}

/// A want that the leader refuses, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BodyRefusal {
    /// The want, as the follower sent it.
    pub want: BodyWant,
    /// The difference between the want and the leader's log.
    pub reason: RefusalReason,
}

/// The difference between what a follower asks for and the leader's log at that index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum RefusalReason {
    /// The log ends below the index.
    NoEntry,
    /// The entry is trimmed, and the same request is nowhere else.
    Trimmed,
    /// The entry is of another term.
    Term,
    /// The entry is no request.
    Kind,
    /// The entry is another request.
    Request,
    /// The body has another length.
    Length,
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEntry => "no entry",
            Self::Trimmed => "no entry any more",
            Self::Term => "an entry of another term",
            Self::Kind => "no request",
            Self::Request => "another request",
            Self::Length => "a body of another length",
        })
    }
}

/// A body, or the part of it from `offset`.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct BodyPart {
    /// As in [`BodyWant::index`].
    pub index: Index,
    /// The size of the whole body, in bytes.
    pub body_len: u32,
    /// Where the part lies in the body.
    pub offset: u32,
    /// The request; its body is the part.
    pub request: WholeRequest,
}

/// A request with its body, as it travels between replicas.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct WholeRequest {
    identity: [u64; 2],
    plain: bool,
    kind: u8,
    lowest: u64,
    return_path: Option<(core::net::SocketAddrV4, u16)>,
    /// The body, or a part of it.
    pub body: Vec<u8>,
}

impl WholeRequest {
    /// The form of a request on its way to another replica.
    pub fn new(request: &Request, return_path: Option<ReturnPath>) -> Self {
        let mut whole = Self::without_body(request, return_path);
        whole.body = request.body().to_vec();
        whole
    }

    pub(crate) fn without_body(request: &Request, return_path: Option<ReturnPath>) -> Self {
        let (first, second, plain) = request.identity().to_words();
        Self {
            identity: [first, second],
            plain,
            kind: request.kind() as u8,
            lowest: request.lowest(),
            return_path: return_path.map(|path| (path.address, path.request_id)),
            body: Vec::new(),
        }
    }

    pub(crate) fn return_path(&self) -> Option<ReturnPath> {
        self.return_path.map(|(address, request_id)| ReturnPath { address, request_id })
    }

    /// The request with `body`, its digest computed; none if its kind has no meaning.
    pub(crate) fn with_body(&self, digest_key: DigestKey, body: Bytes) -> Option<Request> {
        let [first, second] = self.identity;
        let identity = Identity::from_words(first, second, self.plain);
        let kind = Kind::from_number(self.kind)?;
        Some(Request::new(digest_key, identity, self.lowest, kind, body))
    }
}

/// An entry with its body, as it travels in bulk catch-up (P9).
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct WholeEntry {
    /// The entry's term.
    pub term: Term,
    /// The entry's log time.
    pub log_time_us: u64,
    /// What it is.
    pub metadata: Metadata,
    /// The configuration, if it is one.
    pub configuration: Option<Configuration>,
    /// The request, if it is one and small; a large body is fetched in parts.
    pub request: Option<WholeRequest>,
}

impl WholeEntry {
    /// Bytes that an entry counts for beside its body.
    const OVERHEAD_BYTES: usize = 128;

    /// The entry, with its request if the body has at most `body_max` bytes.
    pub(crate) fn new(entry: &Entry, body_max: usize) -> Self {
        let metadata = Metadata::of(entry, entry.log_time_us).expect("the base is the entry's own");
        let (mut configuration, mut request) = (None, None);
        match &entry.payload {
            Payload::Noop => {}
            Payload::Configuration(content) => configuration = Some(content.as_ref().clone()),
            Payload::Request { request: content, .. } => {
                let is_small = content.body().len() <= body_max;
                request = is_small.then(|| WholeRequest::new(content, entry.return_path));
            }
        }
        let (term, log_time_us) = (entry.term, entry.log_time_us);
        Self { term, log_time_us, metadata, configuration, request }
    }

    /// Returns about how many bytes an entry takes on its way.
    pub(crate) fn size_bytes(entry: &Entry, body_max: usize) -> usize {
        let len = entry.request().map_or(0, |request| request.body().len());
        Self::OVERHEAD_BYTES + if len > body_max { 0 } else { len }
    }

    /// Returns the same, of what came.
    pub(crate) fn bytes(&self) -> usize {
        Self::OVERHEAD_BYTES + self.request.as_ref().map_or(0, |request| request.body.len())
    }
}

/// Why a message of another replica was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Shorter than its version field.
    #[error("a message of {0} bytes is too short")]
    Short(usize),
    /// Sent by a build that speaks another version.
    #[error("a message has protocol version {0}; this build speaks {PROTOCOL_VERSION}")]
    Version(u16),
    /// The record does not validate.
    #[error("a message is not a valid record: {0}")]
    Invalid(String),
}

impl Envelope {
    /// Appends the message's form on the wire to `buffer`.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&PROTOCOL_VERSION.to_be_bytes());
        rkyv::api::high::to_bytes_in::<_, rancor::Error>(self, buffer)
            .expect("serialising into memory fails only for lack of it");
    }

    /// Reads what [`Self::encode`] wrote; validates everything.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        rkyv::deserialize::<Self, rancor::Error>(Self::access(bytes)?)
            .map_err(|error| invalid(&error))
    }

    /// The same where it lies: for whoever looks at a part of it and keeps nothing.
    pub(crate) fn access(bytes: &[u8]) -> Result<&ArchivedEnvelope, MessageError> {
        let (version, record) =
            bytes.split_first_chunk::<2>().ok_or(MessageError::Short(bytes.len()))?;
        let version = u16::from_be_bytes(*version);
        if version != PROTOCOL_VERSION {
            return Err(MessageError::Version(version));
        }
        rkyv::access::<ArchivedEnvelope, rancor::Error>(record).map_err(|error| invalid(&error))
    }
}

fn invalid(error: &rancor::Error) -> MessageError {
    MessageError::Invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{DIGEST_KEY, noop, write};

    fn append(entries: Vec<Metadata>) -> Envelope {
        Envelope {
            cluster: 1,
            from: NodeId(1),
            incarnation: Incarnation(2),
            term: 3,
            message: Message::AppendEntries(AppendEntries {
                previous_index: 0,
                previous_term: 0,
                commit: 0,
                noop: 1,
                first_index: 1,
                round: 0,
                entries_term: 3,
                log_time_us: 0,
                entries,
                configurations: Vec::new(),
                requests: Vec::new(),
            }),
        }
    }

    #[test]
    fn an_entry_costs_40_bytes_of_metadata() {
        let metadata = Metadata::of(&write(3, 1, 1), 0).unwrap();
        let mut one = Vec::new();
        append(vec![metadata]).encode(&mut one);
        let mut three = Vec::new();
        append(vec![metadata; 3]).encode(&mut three);
        assert_eq!(three.len() - one.len(), 2 * 40);
    }

    #[test]
    fn metadata_keeps_what_it_stands_for() {
        let entry = write(3, 9, 4);
        let request = entry.request().unwrap();
        let ordered = Metadata::of(&entry, 0).unwrap().ordered().unwrap();
        let expected = Ordered::Request { key: request.key(), body_len: 4, replier: NodeId(1) };
        assert_eq!(ordered, expected);
        assert_eq!(Metadata::of(&noop(1), 0).unwrap().ordered(), Some(Ordered::Noop));
    }

    #[test]
    fn a_whole_request_keeps_everything() {
        let entry = write(3, 9, 4);
        let request = entry.request().unwrap();
        let path = Some(crate::core::testing::return_path(7));
        let whole = WholeRequest::new(request, path);
        assert_eq!(whole.return_path(), path);
        let body = Bytes::from(whole.body.clone());
        assert_eq!(whole.with_body(DIGEST_KEY, body).as_ref(), Some(request.as_ref()));
    }

    #[test]
    fn what_the_modes_without_an_aggregator_say_keeps_its_form() {
        // The bytes of version 2: another layout would need another version.
        let metadata = Metadata::of(&write(3, 1, 1), 0).unwrap();
        let reply = AppendReply { round: 3, acknowledged: 5, applied: 4, ..AppendReply::default() };
        let vote = Message::Vote { last_index: 4, last_term: 2 };
        let messages = [append(vec![metadata]).message, Message::AppendReply(reply), vote];
        let digests = messages.map(|message| {
            let mut bytes = Vec::new();
            Envelope { message, ..append(Vec::new()) }.encode(&mut bytes);
            (bytes.len(), xxhash_rust::xxh3::xxh3_64(&bytes))
        });
        assert_eq!(
            digests,
            [
                (157, 14_062_132_811_331_891_448),
                (117, 9_741_454_171_550_288_527),
                (117, 12_843_723_547_219_441_210),
            ]
        );
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = Vec::new();
        append(Vec::new()).encode(&mut bytes);
        assert!(Envelope::decode(&bytes).is_ok());
        bytes[1] = 9;
        assert_eq!(Envelope::decode(&bytes), Err(MessageError::Version(9)));
        assert_eq!(Envelope::decode(&[]), Err(MessageError::Short(0)));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>) {
            let _ = Envelope::decode(&bytes);
            if bytes.len() > 1 {
                bytes[..2].copy_from_slice(&PROTOCOL_VERSION.to_be_bytes());
                let _ = Envelope::decode(&bytes);
            }
        }

        #[test]
        fn damage_never_panics(at: proptest::sample::Index, to: u8) {
            let mut bytes = Vec::new();
            append(vec![Metadata::of(&write(3, 1, 1), 0).unwrap()]).encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(envelope) = Envelope::decode(&bytes)
                && let Message::AppendEntries(append) = envelope.message
            {
                for metadata in append.entries {
                    let _ = metadata.ordered();
                }
            }
        }
    }
}
