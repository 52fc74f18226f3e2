//! Why a call has no reply, and whether it was executed.

use std::{net::SocketAddrV4, time::Duration};

use r2p2::BindError;

use crate::NodeId;

/// Whether a call that has no reply was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    /// It has changed nothing, and never will.
    NotExecuted,
    /// It was executed, once; only its reply is lost.
    Executed,
    /// It may have been executed, or may still be; never more than once.
    Unknown,
}

/// Why a call has no reply. [`Self::outcome`] says whether it was executed all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request is larger than the cluster takes (P4).
    #[error("not executed: a request of {bytes} bytes, and the cluster takes {bytes_max}")]
    TooLarge {
        /// The size of the request.
        bytes: usize,
        /// The largest that is taken.
        bytes_max: usize,
    },
    /// Too many requests were outstanding, or no session could be opened, for as long as the call
    /// had time.
    #[error("not executed: the request could not be sent within {0:?}")]
    NotSent(Duration),
    /// A query was not answered in time. It changes nothing, so it may be repeated.
    #[error("no reply to the query within {0:?}")]
    QueryTimedOut(Duration),
    /// The service panicked on the query. It has changed nothing, and would panic again (P42).
    #[error("the service panicked on the query; the replica's log says where")]
    QueryFailed,
    /// The command was not executed in time, and then was cancelled, for ever (P23).
    #[error("not executed: it was cancelled after {0:?}")]
    Cancelled(Duration),
    /// Two of the client's addresses belong to different clusters.
    #[error(
        "not executed: {odd} is of cluster {odd_cluster:016x}, and the others are of cluster \
         {cluster:016x}; correct the list of members"
    )]
    TwoClusters {
        /// The address that says otherwise than most do.
        odd: SocketAddrV4,
        /// Its cluster; 0 is none.
        odd_cluster: u64,
        /// The cluster of the others.
        cluster: u64,
    },
    /// The client's socket broke before the request was sent.
    #[error("not executed: the client has stopped")]
    Stopped,
    /// The reply exceeds what a client takes.
    #[error("executed, but the reply is too large")]
    ReplyTooLarge,
    /// The command was not answered in time.
    #[error("outcome unknown: no reply within {0:?}")]
    TimedOut(Duration),
    /// The command was not admitted in time, because a replica has no room on its disk; an earlier
    /// copy of it may have been ordered (P23, P38).
    #[error(
        "outcome unknown: not admitted within {waited:?}, because the disk of replica {node} is full; \
         make room on it, and the cluster goes on by itself"
    )]
    NoRoom {
        /// The replica.
        node: NodeId,
        /// Time that the call had.
        waited: Duration,
    },
    /// The cluster has forgotten this client, and so whether the command was executed: it was
    /// silent for too long, or the cluster had no room for its replies (P22).
    #[error("outcome unknown: the session expired")]
    SessionExpired,
    /// The replicas belong to another cluster than when the command was sent.
    #[error("outcome unknown: the replicas belong to another cluster now")]
    ClusterChanged,
    /// The client's socket broke while the request was outstanding.
    #[error("outcome unknown: the client stopped before the reply came")]
    Interrupted,
    /// Another request was executed under this one's identity (P2): the network changed it on its
    /// way, or something else uses this client's session. The client has left the session.
    #[error("outcome unknown: another request has the same identity in this session")]
    IdentityReused,
    /// The cluster gave an answer that it never gives to a client alone in its session. The client
    /// has left the session.
    #[error("outcome unknown: the cluster gave the unexpected answer {0}")]
    Unexpected(u8),
    /// The call was outstanding when the client left its session, because of an answer to another
    /// call that something else in the session must have caused.
    #[error("outcome unknown: the session was left because something else uses it")]
    SessionLeft,
}

impl CallError {
    /// Whether the call was executed.
    pub fn outcome(&self) -> CallOutcome {
        match self {
            Self::TooLarge { .. }
            | Self::NotSent(_)
            | Self::QueryTimedOut(_)
            | Self::QueryFailed
            | Self::Cancelled(_)
            | Self::TwoClusters { .. }
            | Self::Stopped => CallOutcome::NotExecuted,
            Self::ReplyTooLarge => CallOutcome::Executed,
            Self::TimedOut(_)
            | Self::NoRoom { .. }
            | Self::SessionExpired
            | Self::IdentityReused
            | Self::Unexpected(_)
            | Self::SessionLeft
            | Self::ClusterChanged
            | Self::Interrupted => CallOutcome::Unknown,
        }
    }

    /// Whether the same call can be made again without being executed twice, and may succeed then.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::QueryTimedOut(_) | Self::Cancelled(_) => true,
            Self::TooLarge { .. }
            | Self::QueryFailed
            | Self::Stopped
            | Self::ReplyTooLarge
            | Self::TimedOut(_)
            | Self::NoRoom { .. }
            | Self::SessionExpired
            | Self::IdentityReused
            | Self::Unexpected(_)
            | Self::SessionLeft
            | Self::TwoClusters { .. }
            | Self::ClusterChanged
            | Self::Interrupted => false,
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting is not usable.
    #[error("{setting}: {reason}")]
    Setting {
        /// Its name, as the builder's method is called.
        setting: &'static str,
        /// What is wrong, and what is allowed.
        reason: &'static str,
    },
    /// The socket could not be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Two of the addresses belong to different clusters.
    #[error(
        "{odd} is of cluster {odd_cluster:016x}, and the others are of cluster {cluster:016x}; \
         correct the list of members"
    )]
    TwoClusters {
        /// The address that says otherwise than most do.
        odd: SocketAddrV4,
        /// Its cluster; 0 is none.
        odd_cluster: u64,
        /// The cluster of the others.
        cluster: u64,
    },
    /// No replica opened a session.
    #[error("the cluster opened no session within {0:?}")]
    TimedOut(Duration),
    /// The socket broke meanwhile; the log says how.
    #[error("the network failed before a session was opened")]
    Stopped,
}
