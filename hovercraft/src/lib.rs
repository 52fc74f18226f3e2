//! HovercRaft: replicate any deterministic RPC service across N machines.

#[macro_use]
#[doc(hidden)]
pub mod planted;

pub mod admin;
pub mod client;
mod cluster_id;
pub mod core;
mod counts;
mod digest;
mod entropy;
mod entry;
pub mod messages;
pub mod node;
mod request;
mod state_machine;
pub mod storage;
pub mod switch;

pub use client::{CallError, CallOutcome, Client, ClientBuilder, ClientStats, ConnectError};
pub use counts::Counts;
pub use digest::{Digest, DigestKey};
pub use entry::{
    ClusterLimits, Configuration, Entry, Incarnation, Index, Member, NodeId, Payload, Term,
};
pub use node::{Execution, Mode, Multicast, Node, NodeBuilder, NodeError, Stopper};
pub use request::{Identity, Key, Kind, Outcome, Request, ReturnPath};
pub use state_machine::{Context, SnapshotWriter, StateMachine};
