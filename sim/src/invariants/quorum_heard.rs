//! Check-quorum (P31, P33): a leader that no quorum has answered for long has stepped down, whatever
//! an aggregator remembers.
//!
//! From Raft's check-quorum (dissertation §6.2).

use std::{collections::BTreeMap, time::Duration};

use hovercraft::{
    Term,
    core::Core,
    messages::{Envelope, Message},
};
use r2p2::Time;

use super::{Violation, broken};
use crate::replica::Replica;

/// When each replica last answered the leader of a term, itself or by way of an aggregator.
#[derive(Debug)]
pub(crate) struct Heard {
    answered: Vec<BTreeMap<Term, Time>>,
    /// Since when each leads, and in which term.
    leading: Vec<(Term, Time)>,
    /// The end of the pause after which each was granted patience, since a quorum answered it.
    excused: Vec<Option<Time>>,
    /// Clocks go so wrong that times mean nothing.
    pub(super) is_off: bool,
}

impl Heard {
    pub(super) fn new(replicas: usize) -> Self {
        let leading = vec![(0, Time::ZERO); replicas];
        let answered = vec![BTreeMap::new(); replicas];
        Self { answered, leading, excused: vec![None; replicas], is_off: false }
    }

    pub(super) fn note(&mut self, now: Time, at: usize, envelope: &Envelope) {
        let is_answer = matches!(
            envelope.message,
            Message::AppendReply(_) | Message::Acknowledge(_) | Message::NewRun { .. }
        );
        if is_answer {
            self.answered[at].insert(envelope.term, now);
        }
    }

    /// At the end of a replica's turn.
    pub(super) fn check(
        &mut self,
        now: Time,
        replica: &Replica,
        core: &Core,
    ) -> Result<(), Violation> {
        let term = core.hard_state().term;
        let at = crate::history::position(replica.node);
        if !core.is_leader() || self.is_off {
            return Ok(());
        }
        if self.leading[at].0 != term {
            self.leading[at] = (term, now);
            self.excused[at] = None;
        }
        // It looks once every shortest election timeout whether what it sent within the longest was
        // answered. Its clock may be slow, and so may it be.
        let timing = replica.settings.timing;
        let patience = (timing.election_max + timing.election_min) * 6 / 5
            + Duration::from_micros(TURN_MAX_US);
        let is_recent = |since: Time| now.since(since) <= patience;
        if is_recent(self.leading[at].1) {
            return Ok(());
        }
        let answers = |(other, answered): (usize, &BTreeMap<Term, Time>)| {
            other != at && answered.get(&term).is_some_and(|since| is_recent(*since))
        };
        let answered = self.answered.iter().enumerate().filter(|it| answers(*it)).count();
        if answered + 1 >= core.configuration().quorum() {
            self.excused[at] = None;
            return Ok(());
        }
        // After a pause of its own it gives them the time to answer, once. Another pause meanwhile
        // does not take that time from them.
        if self.excused[at].is_some_and(is_recent) {
            return Ok(());
        }
        let pause_end = replica.paused_until;
        let is_first = self.excused[at].is_none_or(|excused| excused == pause_end);
        if pause_end > Time::ZERO && is_recent(pause_end) && is_first {
            self.excused[at] = Some(pause_end);
            return Ok(());
        }
        let node = replica.node;
        let what = format!("{node} leads term {term}, and {answered} have answered of late");
        broken("a leader is heard", "P31", what)
    }
}

/// The longest that a turn is put off, in microseconds.
pub(crate) const TURN_MAX_US: u64 = 50_000;
