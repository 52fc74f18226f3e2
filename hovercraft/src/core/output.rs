//! What a core wants of its driver.

use std::sync::Arc;

use crate::{
    core::WriteNumber,
    entry::{Entry, Index, NodeId, Term},
    messages::Envelope,
    request::{Identity, Request, ReturnPath},
    storage::{HardState, SnapshotMeta},
};

/// What the driver is asked to do.
#[derive(Debug)]
pub enum Output {
    /// Send a message to another replica.
    Send {
        /// Whom.
        to: NodeId,
        /// What; messages are large, and what goes through queues is not.
        envelope: Box<Envelope>,
    },
    /// Send a message to the aggregator (P26).
    Aggregate {
        /// What.
        envelope: Box<Envelope>,
    },
    /// Hand this to the storage role; [`super::Core::handle_stored`] answers.
    Write(Write),
    /// Tell a client that its request is not admitted now (P23).
    Drop {
        /// Where the client is.
        to: ReturnPath,
        /// Whose request.
        identity: Identity,
        /// The reason, if it is not load.
        refusal: Option<Refusal>,
    },
    /// Answer a retry with the kept reply; if there is none, call [`super::Core::order_again`] (P18).
    AnswerRetry {
        /// The request.
        request: Arc<Request>,
        /// Where the reply goes.
        to: ReturnPath,
    },
    /// Take a snapshot of what is applied; [`super::Core::handle_snapshot`] answers (P36).
    TakeSnapshot,
    /// Read a part of a snapshot and send it with [`super::Core::send_snapshot_part`].
    ReadSnapshot(SnapshotRead),
    /// Keep a part of a snapshot that is being received; offset 0 begins a new one.
    KeepSnapshotPart {
        /// Where it lies.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// All parts are here: check them, and let the service read them; nothing else changes.
    /// [`super::Core::handle_staged`] answers (P36).
    StageSnapshot {
        /// The snapshot that the parts must be.
        meta: Box<SnapshotMeta>,
    },
    /// Make the parts the latest snapshot of the store; [`super::Core::handle_installed`] answers
    /// (P36).
    InstallSnapshot {
        /// The snapshot that the parts are.
        meta: Box<SnapshotMeta>,
        /// The entries above it stay.
        keep_tail: bool,
    },
    /// Delete the received parts, which are of no use.
    DiscardSnapshot {
        /// The service reads the latest own snapshot again; [`super::Core::handle_went_back`]
        /// answers.
        restores_own: bool,
    },
    /// The replica must stop and be reinstalled (P38).
    Stop(Conflict),
}

/// A part of a snapshot that another replica asks for. One that is being read stays readable when a
/// newer one replaces it; of any other, the reader gets the latest one from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotRead {
    /// The replica that asks.
    pub to: NodeId,
    /// Index of the snapshot.
    pub index: Index,
    /// Offset of the part, in bytes.
    pub offset: u64,
    /// Most bytes that it may have.
    pub bytes: u32,
    /// Number of the question, for the answer.
    pub question: u64,
}

/// The reason why no request is admitted, and the replica at fault. Another copy of a request that
/// was refused may still be ordered (P23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The thing it lacks.
    pub reason: Reason,
    /// The replica that lacks it.
    pub node: NodeId,
}

/// Things that a replica may lack to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Room on its disk (P38).
    NoRoom = 1,
}

/// What the storage role must do, in this order.
#[derive(Debug, Clone)]
pub enum Write {
    /// Replace the hard state, synced.
    HardState {
        /// Named by the completion.
        number: WriteNumber,
        /// The new one.
        state: Box<HardState>,
    },
    /// Remove what is at or above `first`, then append.
    Append {
        /// Named by the completion.
        number: WriteNumber,
        /// The first index that changes.
        first: Index,
        /// May be empty, if only a truncation is due.
        entries: Vec<Entry>,
    },
    /// Remove what is below `first`.
    Trim {
        /// The first index that stays.
        first: Index,
    },
}

/// The leader's log contradicts what this replica has committed: its disk lies, or the promise of
/// its durability was broken (P38).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the leader of term {term} has another entry at index {index}, which is committed here: one of \
     the two has lost acknowledged writes, because an older copy of its disk was put in place or \
     its durability promised less; copy the data directories of all replicas before this one is \
     started again, and remove none, because this one may be the last that holds those writes"
)]
pub struct Conflict {
    /// The index that differs.
    pub index: Index,
    /// The leader's term.
    pub term: Term,
}
