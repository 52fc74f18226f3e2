//! A client learns of which cluster the replicas are, before it says anything that executes.

use std::{net::SocketAddrV4, time::Duration};

use r2p2::{Outbox, Time, WireError};

use super::Destinations;
use crate::cluster_id::{ClusterId, Disagreement, Verdict};

/// The others are waited for by this many times what the first answer took, and how long at least
/// and at most: two that differ are found before anything is executed.
const OTHERS_WITHIN_ANSWERS: u32 = 4;
const OTHERS_WITHIN_MIN: Duration = Duration::from_millis(5);
const OTHERS_WITHIN_MAX: Duration = Duration::from_millis(50);

/// The waits before everyone is asked again, the first and the longest.
const ASKS_AGAIN_AFTER: Duration = Duration::from_millis(25);
const ASKS_AGAIN_AFTER_MAX: Duration = Duration::from_millis(400);

/// The result of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learned {
    /// All who answered are of this cluster; 0 is none.
    Cluster(u64),
    Disagreement(Disagreement),
}

#[derive(Debug)]
pub(super) struct Cluster {
    asked: ClusterId,
    /// Its word suffices: it has asked all the replicas.
    switch: Option<SocketAddrV4>,
    asking: Option<Asking>,
}

#[derive(Debug, Clone, Copy)]
struct Asking {
    asked_at: Time,
    ask_at: Time,
    wait: Duration,
    /// When what was answered so far decides.
    decide_at: Option<Time>,
}

impl Cluster {
    pub(super) fn new(destinations: &Destinations, seed: u64) -> Self {
        let (addresses, switch) = match destinations {
            Destinations::All(addresses) | Destinations::OneByOne(addresses) => {
                (addresses.clone(), None)
            }
            Destinations::BySwitch { switch, members } => {
                ([&[*switch][..], members].concat(), Some(*switch))
            }
        };
        Self { asked: ClusterId::new(addresses, seed), switch, asking: None }
    }

    /// Asks everyone anew, unless that is under way.
    pub(super) fn ask(&mut self, now: Time, outbox: &mut Outbox) {
        if self.asking.is_none() {
            self.asked.forget();
            let wait = ASKS_AGAIN_AFTER;
            self.asking = Some(Asking { asked_at: now, ask_at: now, wait, decide_at: None });
            self.handle_timeout(now, outbox);
        }
    }

    pub(super) fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// Takes a datagram of type `RAFT_REP`.
    pub(super) fn handle_datagram(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
    ) -> Result<(), WireError> {
        let is_answer = self.asked.handle_datagram(now, from, datagram)?;
        if let Some(asking) = self.asking.as_mut().filter(|_| is_answer) {
            let is_enough = self.asked.is_complete() || self.switch == Some(from);
            let others = (now.since(asking.asked_at) * OTHERS_WITHIN_ANSWERS)
                .clamp(OTHERS_WITHIN_MIN, OTHERS_WITHIN_MAX);
            let by = if is_enough { now } else { now + others };
            asking.decide_at = Some(asking.decide_at.map_or(by, |before| before.min(by)));
        }
        Ok(())
    }

    /// Stops asking.
    pub(super) fn stop(&mut self) {
        self.asking = None;
    }

    /// Asks again, if it is time to.
    pub(super) fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        if let Some(asking) = self.asking.as_mut().filter(|asking| asking.ask_at <= now) {
            self.asked.ask(outbox);
            asking.ask_at = now + asking.wait;
            asking.wait = (asking.wait * 2).min(ASKS_AGAIN_AFTER_MAX);
        }
    }

    /// Returns what came of asking, once, if it is time to decide.
    pub(super) fn poll_learned(&mut self, now: Time) -> Option<Learned> {
        self.asking.and_then(|asking| asking.decide_at).filter(|at| *at <= now)?;
        self.asking = None;
        match self.asked.verdict() {
            Verdict::Unknown => None,
            Verdict::Agreed(cluster) => Some(Learned::Cluster(cluster)),
            Verdict::Disagreed(disagreement) => Some(Learned::Disagreement(disagreement)),
        }
    }

    /// Returns whether what was learned is the word of the switch, or of more than half of the
    /// replicas.
    pub(super) fn is_said_by_most(&self) -> bool {
        let by_switch = self.switch.is_some_and(|switch| self.asked.has_answered(switch));
        by_switch || self.asked.named_by_most().is_some()
    }

    /// When [`Self::handle_timeout`] and [`Self::poll_learned`] have something to do.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let asking = self.asking?;
        Some(asking.decide_at.map_or(asking.ask_at, |at| at.min(asking.ask_at)))
    }
}
