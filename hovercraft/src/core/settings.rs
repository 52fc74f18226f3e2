//! What may differ from replica to replica, and from cluster to cluster.

use std::time::Duration;

use crate::{
    core::{Limits, Policy},
    storage::Durability,
};

/// How requests reach the replicas and who answers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bodies travel in append-entries and the leader answers: the baseline.
    Raft,
    /// Only metadata travels in append-entries; replies and reads are balanced.
    HovercRaft,
    /// As HovercRaft; and an aggregator carries append-entries to the followers and counts their
    /// answers (P26).
    HovercRaftPlusPlus,
}

/// How often the leader is heard of, and how long a silence means that it is gone (P33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The leader says that it is there this often.
    pub heartbeat: Duration,
    /// A follower waits at least this long for it.
    pub election_min: Duration,
    /// And at most this long: the wait is drawn anew each time.
    pub election_max: Duration,
}

impl Timing {
    /// For replicas in one room or one cloud zone: the default.
    pub const LAN: Self = Self {
        heartbeat: Duration::from_millis(20),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(300),
    };

    /// For replicas behind one switch with cores of their own, as in the paper.
    pub const DATACENTER: Self = Self {
        heartbeat: Duration::from_millis(1),
        election_min: Duration::from_millis(10),
        election_max: Duration::from_millis(20),
    };
}

/// What may differ from replica to replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How requests reach the replicas.
    pub mode: Mode,
    /// Who answers them.
    pub policy: Policy,
    /// B: how many requests may wait for one replier (P15).
    pub queue_bound: usize,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// How many requests may be in the system before the leader refuses new ones (P24).
    pub admission_limit: usize,
    /// Entries are kept in memory and on disk up to about this many bytes, for replicas that are
    /// behind; then a snapshot is taken. The hard limit on memory is twice as much.
    pub log_bytes_max: usize,
    /// Internal bounds, equal on all replicas: [`Limits::DEFAULT`] outside of simulations.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::HovercRaft,
            policy: Policy::Jbsq,
            queue_bound: 128,
            timing: Timing::LAN,
            durability: Durability::Sync,
            admission_limit: 16_384,
            log_bytes_max: 64 << 20,
            limits: Limits::DEFAULT,
        }
    }
}
