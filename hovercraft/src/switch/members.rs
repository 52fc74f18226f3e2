//! The replicas behind a switch, and of which cluster they are.

use std::{net::SocketAddrV4, time::Duration};

use r2p2::{CheckSeed, Outbox, Time, WireError};

use crate::cluster_id::{ClusterId, Disagreement, Verdict};

/// Pauses between two questions to the members, before they have answered and after that.
const ASKS_EVERY: Duration = Duration::from_millis(100);
const ASKS_AGAIN_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Members {
    addresses: Vec<SocketAddrV4>,
    asked: ClusterId,
    ask_at: Time,
    /// None while nobody has said it, or none of two that they name is the word of most.
    cluster: Option<u64>,
    /// The last one that was reported.
    disagreement: Option<Disagreement>,
}

impl Members {
    pub(super) fn new(addresses: Vec<SocketAddrV4>, seed: u64) -> Self {
        let asked = ClusterId::new(addresses.clone(), seed);
        Self { addresses, asked, ask_at: Time::ZERO, cluster: None, disagreement: None }
    }

    pub(super) fn addresses(&self) -> &[SocketAddrV4] {
        &self.addresses
    }

    /// Number of their cluster, if they or most of them agree.
    pub(super) fn cluster(&self) -> Option<u64> {
        self.cluster
    }

    /// The seed of what is said to them and by them, if that is known.
    pub(super) fn seed(&self) -> Option<CheckSeed> {
        self.cluster.map(CheckSeed::of)
    }

    /// Takes a datagram of type `RAFT_REP`.
    pub(super) fn handle_answer(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
    ) -> Result<(), WireError> {
        if !self.asked.handle_datagram(now, from, datagram)? {
            return Ok(());
        }
        match self.asked.verdict() {
            Verdict::Unknown => self.cluster = None,
            Verdict::Agreed(cluster) => {
                self.cluster = Some(cluster);
                self.disagreement = None;
            }
            Verdict::Disagreed(disagreement) => {
                self.cluster = self.asked.named_by_most();
                if self.disagreement.replace(disagreement) != Some(disagreement) {
                    self.report(disagreement);
                }
            }
        }
        Ok(())
    }

    fn report(&self, Disagreement { odd, odd_cluster, cluster }: Disagreement) {
        let until = match self.cluster {
            Some(_) => "its replies are refused by clients",
            None => "nothing is checked",
        };
        tracing::error!(
            "{odd} is of cluster {odd_cluster:016x}, and the other members are of {cluster:016x}: \
             {until} until the list of members is corrected"
        );
    }

    pub(super) fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        if !self.addresses.is_empty() && self.ask_at <= now {
            self.asked.ask(outbox);
            let is_told = self.cluster.is_some();
            self.ask_at = now + if is_told { ASKS_AGAIN_EVERY } else { ASKS_EVERY };
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        (!self.addresses.is_empty()).then_some(self.ask_at)
    }
}
