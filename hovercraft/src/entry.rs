//! Log entries, and who the members of a cluster are.

use std::{fmt, net::SocketAddrV4, sync::Arc, time::Duration};

use rkyv::{Archive, Deserialize, Serialize};

use crate::request::{Request, ReturnPath};

/// A position in the log. The first entry has index 1; 0 stands for "before the log".
pub type Index = u64;

/// A Raft term. 0 stands for "before the first election".
pub type Term = u64;

/// The number of a replica within its cluster, at least 1; 0 in metadata stands for "no replier".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct NodeId(pub u16);

impl NodeId {
    /// Not a replica: what the aggregator says comes from here (P26).
    pub const AGGREGATOR: Self = Self(0);
}

/// Where the item of a replica is in a list. Replicas are mostly numbered from one, and lists are in
/// their order, perhaps without one of them: so it is looked for there first.
pub(crate) fn position_of<T>(
    items: &[T],
    node: NodeId,
    node_of: impl Fn(&T) -> NodeId,
) -> Option<usize> {
    let is_it = |item: &T| node_of(item) == node;
    let at = usize::from(node.0).wrapping_sub(1);
    let near = [at, at.wrapping_sub(1)];
    near.into_iter()
        .find(|at| items.get(*at).is_some_and(is_it))
        .or_else(|| items.iter().position(is_it))
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One life of a replica's disk: drawn at random on an empty disk or after an unclean start (P39).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

/// A replica of the cluster, as a configuration names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub id: NodeId,
    /// The life of its disk that may vote and be counted.
    pub incarnation: Incarnation,
    /// Where its UDP socket is.
    pub address: SocketAddrV4,
}

/// Limits that all replicas must share, because apply decides by them (P20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ClusterLimits {
    /// A session that was idle for longer than this much session time expires.
    pub session_lifetime: Duration,
    /// How many sequences from the lowest unacknowledged one a client may use.
    pub session_window: u32,
    /// The bytes that the kept replies of all sessions may take together.
    pub session_bytes_max: u64,
    /// Highest number of sessions; each takes 192 bytes beside its replies.
    pub sessions_max: u32,
    /// The largest body of a request, in bytes (P4).
    pub request_bytes_max: u32,
}

impl ClusterLimits {
    /// Names the limit that no client or replica could work with, if there is one.
    pub fn check(&self) -> Result<(), String> {
        const WINDOW_MAX: u32 = 1 << 20;
        const REQUEST_BYTES_MIN: u32 = 1024;
        const SESSIONS_MAX: u32 = 1 << 24;
        let Self { session_window, request_bytes_max, sessions_max, .. } = *self;
        // A call and its cancellation need one sequence each (P23).
        if !(2..=WINDOW_MAX).contains(&session_window) {
            return Err(format!(
                "session_window is {session_window}; allowed is 2 to {WINDOW_MAX}"
            ));
        }
        if !(1..=SESSIONS_MAX).contains(&sessions_max) {
            return Err(format!("sessions_max is {sessions_max}; allowed is 1 to {SESSIONS_MAX}"));
        }
        if request_bytes_max < REQUEST_BYTES_MIN {
            return Err(format!(
                "request_bytes_max is {request_bytes_max}; at least {REQUEST_BYTES_MIN} are needed"
            ));
        }
        Ok(())
    }
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self {
            session_lifetime: Duration::from_mins(10),
            session_window: 4096,
            session_bytes_max: 256 << 20,
            sessions_max: 65_536,
            request_bytes_max: 8 << 20,
        }
    }
}

/// A cluster has no more members than this: a hard state that names them has a bounded size.
pub(crate) const MEMBERS_MAX: usize = 64;

/// Who the members are, and the limits that they share. Takes effect when it is appended.
///
/// All members are voters.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Configuration {
    /// Counts the configurations of this cluster from 1.
    pub id: u64,
    /// In ascending order of their numbers, each number once.
    pub members: Vec<Member>,
    /// What apply decides by.
    pub limits: ClusterLimits,
    /// Further members as a later version encodes them: the other half of a joint configuration,
    /// and learners (P34). Empty in this version, which refuses any other, because it could not
    /// count by it.
    pub extension: Vec<u8>,
}

impl Configuration {
    /// Creates a configuration of voters.
    pub fn new(id: u64, members: Vec<Member>, limits: ClusterLimits) -> Self {
        Self { id, members, limits, extension: Vec::new() }
    }

    /// The member with this number.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        position_of(&self.members, id, |member| member.id).map(|at| &self.members[at])
    }

    /// Says what makes the configuration unusable, if anything does.
    pub fn check(&self) -> Result<(), String> {
        const ID_MAX: u64 = 1 << 62;
        if self.members.len() > MEMBERS_MAX {
            let count = self.members.len();
            return Err(format!("it names {count} members; at most {MEMBERS_MAX} are possible"));
        }
        if self.members.is_empty() || !self.members.is_sorted_by(|a, b| a.id < b.id) {
            return Err("it needs members in ascending order, each once".to_owned());
        }
        if self.members.iter().any(|member| member.id.0 == 0) {
            return Err("replicas are numbered from 1".to_owned());
        }
        if !self.extension.is_empty() {
            return Err("it names joint members or learners; this version knows none".to_owned());
        }
        if self.id > ID_MAX {
            return Err(format!("its id is at most {ID_MAX}, so that others can follow"));
        }
        self.limits.check()
    }

    /// How many members make a majority.
    pub fn quorum(&self) -> usize {
        let more = if planted!("quorum-of-half") { self.members.len() % 2 } else { 1 };
        self.members.len() / 2 + more
    }
}

/// What an entry asks the replicas to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A new leader's first entry (P10).
    Noop,
    /// The members from here on.
    Configuration(Arc<Configuration>),
    /// A client's request.
    Request {
        /// Who answers the client (P15). Fixed when the entry is appended (P7).
        replier: NodeId,
        /// The body is here, always (P6).
        request: Arc<Request>,
    },
}

/// Most bytes that an entry takes beside its body.
const OVERHEAD_BYTES: usize = 128;

/// A log entry. Never changes after it is appended (P7), but for the return path beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that appended it.
    pub term: Term,
    /// Log time: the greatest clock of any leader so far, in microseconds since the Unix epoch
    /// (P22).
    pub log_time_us: u64,
    /// The leader's monotonic time since its previous append, at most one second (P22).
    pub session_delta_us: u32,
    /// What to do.
    pub payload: Payload,
    /// Where the reply goes; none for what the leader makes itself, or when it is not known.
    pub return_path: Option<ReturnPath>,
}

impl Entry {
    /// The request, if the entry is one.
    pub fn request(&self) -> Option<&Arc<Request>> {
        match &self.payload {
            Payload::Request { request, .. } => Some(request),
            Payload::Noop | Payload::Configuration(_) => None,
        }
    }

    /// Who answers the client, if the entry is a request.
    pub fn replier(&self) -> Option<NodeId> {
        match &self.payload {
            Payload::Request { replier, .. } => Some(*replier),
            Payload::Noop | Payload::Configuration(_) => None,
        }
    }

    /// Returns what the entry counts for against limits in bytes: its body and a flat sum for the
    /// rest. A store takes no more than that for it.
    pub fn size_bytes(&self) -> usize {
        const MEMBER_BYTES: usize = 32;
        match &self.payload {
            Payload::Noop => OVERHEAD_BYTES,
            Payload::Configuration(configuration) => {
                3 * OVERHEAD_BYTES + configuration.members.len() * MEMBER_BYTES
            }
            Payload::Request { request, .. } => Self::size_bytes_of_body(request.body().len()),
        }
    }

    /// Returns what an entry with a request of this size counts for.
    pub(crate) fn size_bytes_of_body(body_bytes: usize) -> usize {
        OVERHEAD_BYTES + body_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_found_wherever_it_is() {
        let is_found = |numbers: &[u16]| {
            let places = numbers.iter().enumerate().map(|(at, node)| (NodeId(*node), Some(at)));
            let absent = (0..100).map(NodeId).filter(|node| !numbers.contains(&node.0));
            places
                .chain(absent.map(|node| (node, None)))
                .all(|(node, at)| position_of(numbers, node, |number| NodeId(*number)) == at)
        };
        assert!(is_found(&[1, 2, 3, 4]) && is_found(&[1, 2, 4, 5]) && is_found(&[2, 3, 4]));
        assert!(is_found(&[7, 3, 90, 1]) && is_found(&[0, 5]) && is_found(&[]));
    }

    #[test]
    fn limits_that_nothing_could_work_with_are_named() {
        let configuration = |session_window, request_bytes_max| {
            let usual = ClusterLimits::default();
            let limits = ClusterLimits { session_window, request_bytes_max, ..usual };
            let members = crate::core::testing::configuration(3).members;
            Configuration::new(1, members, limits).check()
        };
        assert_eq!(configuration(2, 1024), Ok(()));
        assert!(configuration(1, 1024).unwrap_err().starts_with("session_window is 1;"));
        assert!(configuration(2 << 20, 1024).unwrap_err().starts_with("session_window is"));
        assert!(configuration(2, 1023).unwrap_err().starts_with("request_bytes_max is 1023;"));
    }

    /// An `init` from anywhere may name any number: a hard state has room for so many.
    #[test]
    fn a_configuration_has_a_bounded_number_of_members() {
        let configuration = |count| {
            let one = crate::core::testing::configuration(1).members[0];
            let members = (1..=count).map(|number| Member { id: NodeId(number), ..one });
            Configuration::new(1, members.collect(), ClusterLimits::default()).check()
        };
        assert_eq!(configuration(64), Ok(()));
        assert!(configuration(65).unwrap_err().contains("65 members"));
    }
}
