//! What a replica says about itself.

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    core::{Cause, Core, Role, Standstill},
    entry::{Entry, Index, NodeId, Term},
};

/// What a replica is in its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum RoleStatus {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Orders requests.
    Leader,
}

/// The state of one replica's protocol.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Status {
    /// This replica.
    pub node: NodeId,
    /// What it is.
    pub role: RoleStatus,
    /// Whom it follows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// May not vote or be counted until it has caught up (P37).
    pub recovering: bool,
    /// The first index in memory.
    pub first: Index,
    /// The last index.
    pub last: Index,
    /// The highest index that is synced.
    pub durable: Index,
    /// The commit index.
    pub commit: Index,
    /// The highest applied index.
    pub applied: Index,
    /// The index of the latest snapshot.
    pub snapshot: Index,
    /// Bytes of the log in memory.
    pub log_bytes: u64,
    /// Requests without an order.
    pub unordered: u64,
    /// Bytes of their bodies.
    pub unordered_bytes: u64,
    /// Entries whose bodies are missing.
    pub binding: u64,
    /// Identities in the system, at the leader.
    pub admitted: u64,
    /// Microseconds for which the disk has completed nothing although work waits, if that is so long
    /// that this replica should not lead (P38); else 0.
    pub disk_stands_us: u64,
    /// The repliers' queues, at the leader.
    pub replicas: Vec<ReplicaStatus>,
}

/// A replica as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Which.
    pub node: NodeId,
    /// Requests that wait for its reply.
    pub queue: u64,
    /// How far it has applied; none before its first report to this leader.
    pub applied: Option<Index>,
    /// How far it acknowledged.
    pub matched: Index,
    /// The entry that it has not gone beyond for at least the longest election time-out, and the
    /// cause, as it says.
    pub standstill: Option<Standstill>,
    /// An older copy of its data was put in place: it is not counted until it has caught up (P37).
    pub restored: bool,
}

crate::counts::counters! {
    /// Counts what happened since the start.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    #[expect(missing_docs, reason = "the names say what is counted")]
    pub struct Counters {
        pub requests: u64,
        pub requests_ordered: u64,
        pub requests_dropped: u64,
        pub retries_in_log: u64,
        pub retries_answered: u64,
        pub queues_full: u64,
        pub leftovers_adopted: u64,
        pub messages_sent: u64,
        /// They came to be sent while too many waited for a write of the hard state.
        pub messages_lost: u64,
        pub messages_ignored: u64,
        pub messages_refused: u64,
        pub entries_sent: u64,
        pub entries_truncated: u64,
        pub entries_fetched: u64,
        pub appends_rejected: u64,
        pub resends: u64,
        pub commits_announced: u64,
        pub bodies_asked: u64,
        pub bodies_served: u64,
        pub bodies_recovered: u64,
        /// They came with an entry in bulk, or with append-entries.
        pub bodies_carried: u64,
        pub bodies_refused: u64,
        pub metadata_taken_back: u64,
        pub bulk_catch_ups: u64,
        pub snapshots_taken: u64,
        pub snapshots_installed: u64,
        /// A full disk put them off.
        pub snapshots_postponed: u64,
        pub snapshot_parts_sent: u64,
        /// They came twice, or not in their order.
        pub snapshot_parts_unused: u64,
        pub pre_votes_started: u64,
        pub pre_votes_refused: u64,
        pub elections_started: u64,
        pub elections_won: u64,
        pub leaderships_lost: u64,
        /// Leaders that stepped down because their disks stood.
        pub disks_gave_way: u64,
        pub quorums_lost: u64,
        /// This replica did not run when a deadline came.
        pub pauses: u64,
        pub recovered: u64,
        /// Replicas that began with an older copy of their data.
        pub restored_found: u64,
        pub clock_alarms: u64,
        pub appends_aggregated: u64,
        pub durables_announced: u64,
        pub followers_served_directly: u64,
        pub aggregator_found: u64,
        pub aggregator_lost: u64,
    }
}

impl Core {
    /// The state of this replica, for people and for tests.
    pub fn status(&self) -> Status {
        let (role, mut replicas) = match &self.role {
            Role::Follower { .. } => (RoleStatus::Follower, Vec::new()),
            Role::Candidate(_) => (RoleStatus::Candidate, Vec::new()),
            Role::Leader(leader) => {
                let members = &self.configuration().members;
                let status = members.iter().map(|member| {
                    let (queue, applied) = leader.repliers.queue(member.id).unwrap_or_default();
                    let matched = leader.matched(member);
                    let follower = leader.follower(member.id);
                    let standstill = follower.and_then(|follower| follower.watch.standstill());
                    let (node, queue) = (member.id, queue as u64);
                    let restored = leader.disowns(member.id, member.incarnation);
                    ReplicaStatus { node, queue, applied, matched, standstill, restored }
                });
                (RoleStatus::Leader, status.collect())
            }
        };
        if let Some(own) = replicas.iter_mut().find(|replica| replica.node == self.node) {
            own.matched = self.held_index();
            own.standstill = self.standstill().filter(|it| it.cause == Cause::FullDisk);
        }
        Status {
            node: self.node,
            role,
            leader: self.leader(),
            term: self.term(),
            recovering: !self.is_named(),
            first: self.log.first(),
            last: self.log.last(),
            durable: self.log.durable(),
            commit: self.commit.index(),
            applied: self.applied,
            snapshot: self.snapshots.latest(),
            log_bytes: self.log.size_bytes() as u64,
            unordered: self.unordered.len() as u64,
            unordered_bytes: self.unordered.bytes() as u64,
            binding: self.binding.len() as u64,
            admitted: self.admission.len() as u64,
            disk_stands_us: self.disk_stands_for().unwrap_or_default().as_micros() as u64,
            replicas,
        }
    }

    /// The entry at an index, if it is in memory.
    pub fn log_entry(&self, index: Index) -> Option<&Entry> {
        self.log.entry(index)
    }

    /// The first and the last index in memory; the last is one less than the first if there is
    /// none.
    pub fn log_bounds(&self) -> (Index, Index) {
        (self.log.first(), self.log.last())
    }

    /// Everything up to here is on disk as the durability demands; in `interval` and `memory`
    /// nothing rests on it.
    pub fn durable_index(&self) -> Index {
        self.log.durable()
    }

    /// Everything up to here is committed, as far as this replica knows.
    pub fn commit_index(&self) -> Index {
        self.commit.index()
    }

    /// Returns the highest index that is known to be as in the leader's log (P6).
    pub fn verified_index(&self) -> Index {
        self.commit.verified()
    }

    /// Returns the last index whose order is known, with its request or without.
    pub fn ordered_index(&self) -> Index {
        self.ordered_last()
    }

    /// Everything up to here is applied.
    pub fn applied_index(&self) -> Index {
        self.applied
    }

    /// What happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
