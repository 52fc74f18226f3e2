//! What an operator says to replicas: make a cluster of them, and ask how they are (P39).
//!
//! Questions are rkyv records in R2P2 messages of type `RAFT_REQ`, answers in `RAFT_REP`, each
//! behind the protocol version (u16, big-endian) as in [`crate::messages`].

#![expect(missing_docs, reason = "what rkyv derives for the fields of variants has no docs")]

mod existing;
mod init;

use std::{net::SocketAddrV4, time::Duration};

use r2p2::{AsyncLink, MessageReceiver, MessageSender, MessageType, Outbox, Time};
use rkyv::{Archive, Deserialize, Serialize, rancor};
use tokio::time::Instant;

use crate::{
    core::{Counters, Status},
    counts::{Counts, Named},
    entropy::random_u64,
    entry::{Configuration, Incarnation, NodeId, Term},
    messages::{Message, MessageError, PROTOCOL_VERSION},
    storage::Birth,
    switch::SwitchStatus,
};

pub use self::existing::lost_disk;
use self::existing::{of_addresses, of_clusters};
#[cfg(not(madsim))]
pub use self::init::init;
pub use self::init::init_on;

/// A question to a replica.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum Question {
    /// Who are you?
    Hello,
    /// Be a member of this cluster. Answered when it is on disk.
    Init(Birth),
    /// How are you?
    Status,
    /// Send your birth to this member of your cluster, which may lack it. Only replicas know the
    /// cluster's secret, so a repeated `init` has one of them pass it on (P2, P39).
    PassOn(NodeId),
}

/// The cluster that a disk belongs to, as anybody may know it: a birth without its secret (P2).
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster.
    pub cluster: u64,
    /// The first configuration, which stands before the log.
    pub configuration: Configuration,
}

impl From<&Birth> for Membership {
    fn from(birth: &Birth) -> Self {
        Self { cluster: birth.cluster, configuration: birth.configuration.clone() }
    }
}

/// A replica's answer.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub enum Answer {
    /// Answers [`Question::Hello`].
    Hello {
        /// The number that it was started with.
        node: NodeId,
        /// The life of its disk.
        incarnation: Incarnation,
        /// The cluster that its disk belongs to; none before `init`.
        membership: Option<Membership>,
        /// The cluster whose replicas speak to it as to a member, if its disk belongs to none.
        counted_by: Option<u64>,
        /// The highest term that it has seen: with 0 it holds nothing that anybody could miss.
        term: Term,
    },
    /// Answers [`Question::Init`]: it is on disk, now or since an earlier one that was the same.
    Initialised,
    /// It belongs to another cluster, or has another number or incarnation.
    Refused(String),
    /// Answers [`Question::Status`].
    Status(Box<NodeStatus>),
    /// The same, by a switch.
    Switch(Box<SwitchStatus>),
    /// Answers [`Question::PassOn`]: the birth is on its way, and may be lost.
    PassedOn,
    /// Answers [`Question::Hello`], by a switch: the cluster of its members; and by a server in mode
    /// `unreplicated`: 0, no cluster.
    Cluster(u64),
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub node: NodeId,
    /// Its cluster; none before `init`.
    pub cluster: Option<u64>,
    /// The mode that it runs in, as in its settings.
    pub mode: String,
    /// Why its service stopped applying, if it did (P42).
    pub poisoned: Option<String>,
    /// The protocol; none before `init` and in mode `unreplicated`.
    pub protocol: Option<Status>,
    /// What happened since its start.
    #[rkyv(with = Named)]
    pub counters: Counters,
    /// Datagrams received and sent, bytes received and sent, system calls to do so.
    #[rkyv(with = Named)]
    pub network: NetworkStatus,
    /// What it has said to other replicas, and how often entries went to the disk.
    #[rkyv(with = Named)]
    pub exchange: ExchangeStatus,
    /// This life of its disk (P39).
    pub incarnation: Incarnation,
    /// The configuration in force there; none before `init`.
    pub configuration: Option<Configuration>,
    /// Before `init`: the cluster whose replicas speak to it as to a member. Its disk was lost.
    pub counted_by: Option<u64>,
    /// Losses that are possible, if this run began with a new incarnation (P37).
    pub missing: Option<String>,
}

crate::counts::counters! {
    /// Counts of a replica's sockets.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    #[expect(missing_docs, reason = "the names say what is counted")]
    pub struct NetworkStatus {
        pub datagrams_in: u64,
        pub bytes_in: u64,
        pub calls_in: u64,
        pub datagrams_out: u64,
        pub bytes_out: u64,
        pub calls_out: u64,
        pub calls_wait: u64,
        /// Datagrams that the kernel had no room for.
        pub datagrams_lost: u64,
        /// Packets that were not as they were sent, or of another cluster: they count as lost.
        pub packets_damaged: u64,
    }
}

/// What a replica has said to the others, by purpose, and its group commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExchangeStatus {
    /// Append-entries with entries (P5).
    pub ordering: Sent,
    /// Append-entries without: heartbeats, and the commit index that moved (P14).
    pub announcements: Sent,
    /// What followers hold and how far they are (P6, P15).
    pub acknowledgements: Sent,
    /// Bodies, entries and snapshots that somebody lacks (P9, P36).
    pub recovery: Sent,
    /// Elections, and requests passed on to the leader.
    pub other: Sent,
    /// How often the storage role finished a batch: in the durability `sync`, with one sync each.
    pub group_commits: u64,
}

/// Messages to other replicas, before they are cut into packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say what is counted")]
pub struct Sent {
    pub messages: u64,
    pub bytes: u64,
}

impl Counts for ExchangeStatus {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let Self { ordering, announcements, acknowledgements, recovery, other, group_commits } =
            self;
        vec![
            ("ordering_messages", ordering.messages),
            ("ordering_bytes", ordering.bytes),
            ("announcements_messages", announcements.messages),
            ("announcements_bytes", announcements.bytes),
            ("acknowledgements_messages", acknowledgements.messages),
            ("acknowledgements_bytes", acknowledgements.bytes),
            ("recovery_messages", recovery.messages),
            ("recovery_bytes", recovery.bytes),
            ("other_messages", other.messages),
            ("other_bytes", other.bytes),
            ("group_commits", *group_commits),
        ]
    }

    fn set_count(&mut self, name: &str, value: u64) {
        let count = match name {
            "ordering_messages" => &mut self.ordering.messages,
            "ordering_bytes" => &mut self.ordering.bytes,
            "announcements_messages" => &mut self.announcements.messages,
            "announcements_bytes" => &mut self.announcements.bytes,
            "acknowledgements_messages" => &mut self.acknowledgements.messages,
            "acknowledgements_bytes" => &mut self.acknowledgements.bytes,
            "recovery_messages" => &mut self.recovery.messages,
            "recovery_bytes" => &mut self.recovery.bytes,
            "other_messages" => &mut self.other.messages,
            "other_bytes" => &mut self.other.bytes,
            "group_commits" => &mut self.group_commits,
            _ => return,
        };
        *count = value;
    }
}

impl ExchangeStatus {
    /// Counts a message of so many bytes.
    pub(crate) fn count(&mut self, message: &Message, bytes: usize) {
        let sent = match message {
            Message::AppendEntries(append) if append.entries.is_empty() => &mut self.announcements,
            Message::Aggregate(it) if it.append.entries.is_empty() => &mut self.announcements,
            Message::AppendEntries(_) | Message::Aggregate(_) => &mut self.ordering,
            Message::AppendReply(_) | Message::Acknowledge(_) => &mut self.acknowledgements,
            Message::FetchBodies { .. }
            | Message::Bodies { .. }
            | Message::FetchEntries { .. }
            | Message::Entries { .. }
            | Message::SnapshotAvailable { .. }
            | Message::FetchSnapshot { .. }
            | Message::SnapshotPart { .. } => &mut self.recovery,
            _ => &mut self.other,
        };
        sent.messages += 1;
        sent.bytes += bytes as u64;
    }
}

impl Question {
    fn is_answered_by(&self, answer: &Answer) -> bool {
        matches!(
            (self, answer),
            (_, Answer::Refused(_))
                | (Self::Hello, Answer::Hello { .. } | Answer::Cluster(_))
                | (Self::Init(_), Answer::Initialised)
                | (Self::Status, Answer::Status(_) | Answer::Switch(_))
                | (Self::PassOn(_), Answer::PassedOn)
        )
    }
}

macro_rules! wire_form {
    ($type:ty) => {
        impl $type {
            /// The form on the wire.
            pub fn encode(&self) -> Vec<u8> {
                let mut bytes = PROTOCOL_VERSION.to_be_bytes().to_vec();
                let record = rkyv::to_bytes::<rancor::Error>(self)
                    .expect("serialising into memory fails only for lack of it");
                bytes.extend_from_slice(&record);
                bytes
            }

            /// Reads what [`Self::encode`] wrote; validates everything.
            pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
                let (version, record) =
                    bytes.split_first_chunk::<2>().ok_or(MessageError::Short(bytes.len()))?;
                let version = u16::from_be_bytes(*version);
                if version != PROTOCOL_VERSION {
                    return Err(MessageError::Version(version));
                }
                rkyv::from_bytes::<Self, rancor::Error>(record)
                    .map_err(|error| MessageError::Invalid(error.to_string()))
            }
        }
    };
}

wire_form!(Question);
wire_form!(Answer);

/// Why an operator's request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// No socket to ask with.
    #[error(transparent)]
    Bind(#[from] r2p2::BindError),
    /// The socket failed.
    #[error("the network failed: {0}")]
    Network(#[from] std::io::Error),
    /// The replica did not answer in time.
    #[error("{address} did not answer within {waited:?}; is the replica running there?")]
    Silent {
        /// Who.
        address: SocketAddrV4,
        /// How long.
        waited: Duration,
    },
    /// The replica does not do what it was asked.
    #[error("{address} refused: {reason}")]
    Refused {
        /// Who.
        address: SocketAddrV4,
        /// Why.
        reason: String,
    },
    /// The replica at this address has another number than the caller thinks.
    #[error("{address} is replica {found}, not {expected}; correct the list of members")]
    WrongNode {
        /// Who.
        address: SocketAddrV4,
        /// The number that it has.
        found: NodeId,
        /// The number that the caller gave.
        expected: NodeId,
    },
    /// Some replicas belong to a cluster already that is not the one asked for.
    #[error(
        "{address} already belongs to cluster {cluster:016x}, whose members are {members}; nothing \
         was changed; name exactly these, or make another cluster of other replicas, with other \
         addresses and data directories, and keep these"
    )]
    OtherCluster {
        /// Who.
        address: SocketAddrV4,
        /// The cluster.
        cluster: u64,
        /// The addresses of its members, separated by commas.
        members: String,
    },
    /// The replicas belong to different clusters, and more than one of these may hold data.
    #[error(
        "these replicas belong to different clusters: {}; nothing was changed; correct the list of \
         members",
        of_clusters(clusters)
    )]
    TwoClusters {
        /// The address of each that belongs to one, with the cluster.
        clusters: Vec<(SocketAddrV4, u64)>,
    },
    /// An earlier `init` was not finished and cannot be, and what it has begun holds nothing.
    #[error(
        "an earlier init was not finished: {}; stop and empty the data directory of {}, which \
         {} nothing, and run init again",
        of_clusters(clusters),
        of_addresses(to_empty),
        if to_empty.len() == 1 { "holds" } else { "hold" }
    )]
    Unfinished {
        /// The address of each that belongs to a cluster, with the cluster.
        clusters: Vec<(SocketAddrV4, u64)>,
        /// Those that have never taken part in anything.
        to_empty: Vec<SocketAddrV4>,
    },
    /// A replica has an empty disk, and a cluster counts it as a member.
    #[error(
        "{address} is replica {node}: {}; nothing was changed; do not empty other directories to \
         begin anew, because that loses what is acknowledged: see `hovercraft status`",
        lost_disk(*cluster)
    )]
    LostDisk {
        /// Who.
        address: SocketAddrV4,
        /// Its number.
        node: NodeId,
        /// The cluster.
        cluster: u64,
    },
    /// The list of members is empty, too long, or names a number or an address twice.
    #[error("the list of members is not usable: {0}")]
    Members(String),
}

/// Asks a replica how it is.
#[cfg(not(madsim))]
pub async fn status(address: SocketAddrV4, timeout: Duration) -> Result<NodeStatus, AdminError> {
    status_on(bind()?, address, timeout).await
}

/// Asks a replica how it is, over a link of the caller's: a simulated network, for example.
pub async fn status_on(
    link: impl AsyncLink,
    address: SocketAddrV4,
    timeout: Duration,
) -> Result<NodeStatus, AdminError> {
    let mut asker = Asker::new(link, timeout);
    match asker.ask(address, &Question::Status).await? {
        Answer::Status(status) => Ok(*status),
        answer => Err(unexpected(address, &answer)),
    }
}

/// Asks a switch how it is.
#[cfg(not(madsim))]
pub async fn switch_status(
    address: SocketAddrV4,
    timeout: Duration,
) -> Result<SwitchStatus, AdminError> {
    switch_status_on(bind()?, address, timeout).await
}

/// Asks a switch how it is, over a link of the caller's: a simulated network, for example.
pub async fn switch_status_on(
    link: impl AsyncLink,
    address: SocketAddrV4,
    timeout: Duration,
) -> Result<SwitchStatus, AdminError> {
    let mut asker = Asker::new(link, timeout);
    match asker.ask(address, &Question::Status).await? {
        Answer::Switch(status) => Ok(*status),
        answer => Err(unexpected(address, &answer)),
    }
}

fn unexpected(address: SocketAddrV4, answer: &Answer) -> AdminError {
    let reason = match answer {
        Answer::Refused(reason) => reason.clone(),
        Answer::Cluster(0) => "it runs in mode unreplicated, and has no cluster".to_owned(),
        Answer::Cluster(_) | Answer::Switch(_) => "it is a switch, and no replica".to_owned(),
        Answer::Status(_) => "it is a replica, and no switch".to_owned(),
        _ => "it answered another question".to_owned(),
    };
    AdminError::Refused { address, reason }
}

#[cfg(not(madsim))]
fn bind() -> Result<r2p2::AsyncUdpLink, r2p2::BindError> {
    let any = SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
    r2p2::AsyncUdpLink::bind(&r2p2::UdpConfig::new(any))
}

/// Asks one question at a time, again and again until it is answered.
struct Asker<L> {
    link: L,
    sender: MessageSender,
    receiver: MessageReceiver,
    timeout: Duration,
}

impl<L: AsyncLink> Asker<L> {
    fn new(link: L, timeout: Duration) -> Self {
        let seed = random_u64();
        Self {
            link,
            sender: MessageSender::new(seed),
            receiver: MessageReceiver::new(r2p2::MessageConfig::default(), seed),
            timeout,
        }
    }

    async fn ask(
        &mut self,
        address: SocketAddrV4,
        question: &Question,
    ) -> Result<Answer, AdminError> {
        const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            let mut outbox = Outbox::new();
            let bytes = question.encode();
            let sent = self.sender.send(MessageType::RaftRequest, address, &bytes, &mut outbox);
            sent.map_err(|error| std::io::Error::other(error.to_string()))?;
            self.link.send(&mut outbox)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = left.min(ASK_AGAIN_AFTER);
            if let Ok(answer) = tokio::time::timeout(wait, self.receive(address, question)).await {
                return Ok(answer?);
            }
        }
        Err(AdminError::Silent { address, waited: self.timeout })
    }

    /// The next answer to `question` from `address`; what is none is passed over, also an answer to an
    /// earlier question that was late, or came twice.
    async fn receive(
        &mut self,
        address: SocketAddrV4,
        question: &Question,
    ) -> std::io::Result<Answer> {
        let mut answers = Vec::new();
        loop {
            self.link.readable().await?;
            let receiver = &mut self.receiver;
            self.link.receive(&mut |from, datagram| {
                if from != address {
                    return;
                }
                let message = receiver.handle_datagram(Time::ZERO, from, datagram);
                if let Ok(Some(message)) = message
                    && message.message_type == MessageType::RaftReply
                    && let Ok(answer) = Answer::decode(&message.body)
                    && question.is_answered_by(&answer)
                {
                    answers.push(answer);
                }
            })?;
            if let Some(answer) = answers.drain(..).next() {
                return Ok(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_the_status_comes_back() {
        fn fill(counts: &mut impl Counts) {
            for (value, (name, _)) in (1..).zip(counts.counts()) {
                counts.set_count(name, value);
            }
        }
        let (mut network, mut exchange) = (NetworkStatus::default(), ExchangeStatus::default());
        let mut counters = Counters::default();
        fill(&mut network);
        fill(&mut exchange);
        fill(&mut counters);
        assert!(exchange.counts().iter().map(|(_, value)| *value).eq(1..=11));
        let status = NodeStatus {
            node: NodeId(1),
            cluster: None,
            mode: String::new(),
            poisoned: None,
            protocol: None,
            counters,
            network,
            exchange,
            incarnation: Incarnation(1),
            configuration: None,
            counted_by: None,
            missing: None,
        };
        let answer = Answer::Status(Box::new(status));
        assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
    }
}
