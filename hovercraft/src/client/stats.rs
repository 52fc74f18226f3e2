//! What a client has seen so far.

use std::net::SocketAddrV4;

/// Beyond so many addresses replies are not told apart: clusters are far smaller.
const REPLIERS_MAX: usize = 64;

/// What a client has seen so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientStats {
    /// How many requests each replica has answered, in order of their first answers.
    pub answered_by: Vec<(SocketAddrV4, u64)>,
    /// How often a request was not admitted, and so sent again later (P23).
    pub dropped: u64,
    /// How many sessions were opened; more than one if the cluster forgot the client (P22), or may
    /// have.
    pub sessions_opened: u64,
    /// Packets that were not as they were sent, or of another cluster: they count as lost.
    pub packets_damaged: u64,
}

impl ClientStats {
    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.answered_by.iter().map(|(_, count)| count).sum()
    }

    pub(super) fn count_answer(&mut self, from: SocketAddrV4) {
        if let Some((_, count)) = self.answered_by.iter_mut().find(|(replier, _)| *replier == from)
        {
            *count += 1;
        } else if self.answered_by.len() < REPLIERS_MAX {
            self.answered_by.push((from, 1));
        }
    }
}
