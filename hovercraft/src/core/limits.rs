//! Internal bounds of the core, in one place with the relations that must hold between them.

/// Bounds on what a core keeps, sends and waits for. Internal: nodes run [`Limits::DEFAULT`], and
/// no configuration names them. The simulation draws smaller ones, so that a short run meets every
/// bound. All replicas of a cluster must have equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of applied entries that a retry still finds by its key. A retry of an older one gets
    /// a place in the order, and its reply from the session table (P21).
    pub keys_kept: u64,
    /// Entries between a follower and the commit index, from which on it fetches in bulk (P9).
    pub bulk_distance: u64,
    /// Entries sent to a follower and not acknowledged.
    pub pipeline_entries: u64,
    /// Bytes of bodies sent to a follower and not acknowledged, in mode `raft`.
    pub pipeline_bytes: u64,
    /// Entries in one message.
    pub message_entries: usize,
    /// Entries ordered and not committed; at this many the leader orders nothing new.
    pub uncommitted_entries: u64,
    /// Requests in the unordered set (P8).
    pub unordered_count: usize,
    /// Bytes of bodies in the unordered set (P8).
    pub unordered_bytes: usize,
    /// Entries of which a follower remembers metadata without a body (P8).
    pub binding_count: usize,
    /// Bytes of fetched bodies that wait for their place in the log (P9).
    pub fetched_bytes: usize,
    /// Bytes handed to the storage role and not complete: a stalled disk stops ordering, not
    /// heartbeats.
    pub writing_bytes: usize,
    /// Messages that wait for a write of the hard state; further ones are lost, as on a network.
    pub held_count: usize,
    /// Entries removed from the front of the log in one turn.
    pub trim_count: usize,
}

impl Limits {
    /// The bounds of nodes.
    pub const DEFAULT: Self = Self {
        keys_kept: 8192,
        bulk_distance: 4096,
        pipeline_entries: 16_384,
        pipeline_bytes: 8 << 20,
        message_entries: 128,
        uncommitted_entries: 65_536,
        unordered_count: 65_536,
        unordered_bytes: 64 << 20,
        binding_count: 65_536,
        fetched_bytes: 16 << 20,
        writing_bytes: 32 << 20,
        held_count: 1024,
        trim_count: 1024,
    };

    /// Largest bound that is added to an index.
    const ADDED_MAX: u64 = 1 << 40;

    /// Returns the relation that does not hold, if any, in a cluster of `replicas` whose requests
    /// have up to `request_bytes_max` bytes.
    pub fn check(&self, replicas: usize, request_bytes_max: usize) -> Result<(), &'static str> {
        let added = self.bulk_distance.max(self.pipeline_entries).max(self.uncommitted_entries);
        let relations = [
            (added <= Self::ADDED_MAX, "a bound is added to an index"),
            (self.message_entries >= 1, "a message carries an entry"),
            (u16::try_from(self.message_entries).is_ok(), "a message numbers its entries"),
            (self.pipeline_entries >= 1, "an entry may be in flight"),
            (self.pipeline_bytes >= 1, "a body may be in flight"),
            (self.bulk_distance >= 1, "a follower that lacks nothing is not behind"),
            (self.uncommitted_entries >= 1, "an entry may wait for its commit"),
            (self.unordered_count >= 1, "a request may wait for its order"),
            (self.unordered_bytes >= request_bytes_max, "the largest request may wait"),
            // Else a follower takes as many as have room, and the rest at the next heartbeat.
            (self.binding_count >= self.message_entries, "a message's entries may wait for bodies"),
            (self.fetched_bytes >= 1, "a body may be fetched"),
            (self.writing_bytes >= 1, "a write may be under way"),
            // A candidate asks every other member while its own vote is written, and is asked.
            (self.held_count >= 4 * replicas, "an election's messages wait for the vote"),
            (self.trim_count >= 1, "an entry is trimmed"),
        ];
        relations.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterLimits;

    #[test]
    fn what_nodes_run_keeps_every_relation() {
        let largest = ClusterLimits::default().request_bytes_max as usize;
        assert_eq!(Limits::DEFAULT.check(9, largest), Ok(()));
        let few = Limits { held_count: 8, ..Limits::DEFAULT };
        assert_eq!(few.check(3, largest), Err("an election's messages wait for the vote"));
    }
}
