//! One call on its way through a session.

use std::time::Duration;

use bytes::Bytes;
use r2p2::{Options, Policy, RequestHandle, Session as SessionOption, Time};

use crate::{entry::NodeId, request::Kind};

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// That there is a session. The body is not sent, and the reply is empty.
    Connect,
    /// To execute a command, which may change the state.
    Command {
        /// If there is no reply in time, to cancel it and so to learn what became of it (P23).
        until_known: bool,
    },
    /// To execute a query, which changes nothing.
    Query,
}

/// What a caller hands over.
#[derive(Debug)]
pub struct Call<T> {
    /// What it wants.
    pub kind: CallKind,
    /// What it asks the service.
    pub body: Bytes,
    /// When it runs out of time.
    pub deadline: Time,
    /// How much time it had, for people to read.
    pub timeout: Duration,
    /// By what the caller knows its call when it has ended.
    pub token: T,
}

/// A call that has not ended.
#[derive(Debug)]
pub(super) struct Pending<T> {
    /// Places in the table are used again; this is not.
    pub(super) serial: u64,
    pub(super) call: Call<T>,
    pub(super) stage: Stage,
}

/// How far a call has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// It has no sequence yet.
    Waiting,
    Sent(Sent),
}

/// The request of a call, or the cancellation of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// A retry is the same (P2).
    pub(super) option: SessionOption,
    /// The sequence that this cancels.
    pub(super) cancels: Option<u64>,
    /// None while it is not to be sent.
    pub(super) handle: Option<RequestHandle>,
    pub(super) first_sent: Time,
    /// The replica for want of whose room it was refused last.
    pub(super) without_room: Option<NodeId>,
}

impl<T> Pending<T> {
    /// What is sent for it. A retry of it is the same bytes in all that execution reads (P2).
    pub(super) fn message(&self, sent: &Sent) -> (Policy, Options, Bytes) {
        let options = Options { session: Some(sent.option), ..Options::NONE };
        match (sent.cancels, self.call.kind) {
            (Some(target), _) => {
                let options = Options { request_kind: Kind::Cancel.option(), ..options };
                let body = Bytes::copy_from_slice(&target.to_be_bytes());
                (Policy::Replicated, options, body)
            }
            (None, CallKind::Query) => (Policy::ReplicatedRead, options, self.call.body.clone()),
            (None, _) => (Policy::Replicated, options, self.call.body.clone()),
        }
    }
}

impl CallKind {
    /// Whether a cancellation may follow.
    pub(super) fn may_be_cancelled(self) -> bool {
        self == Self::Command { until_known: true }
    }
}
