//! A replica that may have forgotten what it acknowledged finds its way back (P37).
//!
//! It is recovering as long as the configuration in force does not name its incarnation.

use r2p2::Time;

use crate::{
    core::{Core, Role},
    entry::{Configuration, Incarnation, Index, NodeId, Payload},
    messages::Message,
};

/// The recovering replica's half; void in a new term.
#[derive(Debug, Default)]
pub(crate) struct Recovering {
    nonce: Option<u64>,
    /// It must hold what this leader has up to here.
    target: Option<Index>,
    asked_at: Option<Time>,
}

impl Recovering {
    pub(crate) fn forget_term(&mut self) {
        *self = Self::default();
    }
}

/// The leader's half: questions that wait for a confirmation round, and those answered.
#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    questions: Vec<Question>,
}

#[derive(Debug)]
struct Question {
    node: NodeId,
    incarnation: Incarnation,
    nonce: u64,
    /// Begun on receipt.
    round: u64,
    confirmed_by: Vec<NodeId>,
    /// The answer, once a quorum without the asker has confirmed the round.
    index: Option<Index>,
}

impl Core {
    /// The leader of this term was heard of: ask it up to where to catch up, or say that it is
    /// done. At most once a heartbeat.
    pub(super) fn ask_where_to_catch_up(&mut self, now: Time, leader: NodeId) {
        let pause = self.settings.timing.heartbeat;
        if self.is_named() || self.recovering.asked_at.is_some_and(|at| now.since(at) < pause) {
            return;
        }
        self.recovering.asked_at = Some(now);
        let nonce = *self.recovering.nonce.get_or_insert_with(|| self.rng.u64(..));
        let held = self.commit.verified().min(self.log.last());
        let message = match self.recovering.target {
            Some(target) if held >= target => Message::CaughtUp { nonce },
            Some(_) => return,
            None => Message::Recovering { nonce },
        };
        self.send(leader, message);
    }

    /// The leader named the index that this replica must hold.
    pub(super) fn catch_up_target_came(&mut self, nonce: u64, index: Index) {
        if self.recovering.nonce == Some(nonce) && self.recovering.target.is_none() {
            tracing::info!(index, "recovering: catching up to the leader's log");
            self.recovering.target = Some(index);
            self.recovering.asked_at = None;
        }
    }

    /// A recovering replica asks; the leader makes sure that it still is one first.
    pub(super) fn recovering_asked(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        nonce: u64,
    ) {
        if self.is_counted(from, incarnation) {
            return;
        }
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let questions = &mut leader.confirmations.questions;
        let known =
            questions.iter().find(|question| question.node == from && question.nonce == nonce);
        match known.map(|question| question.index) {
            Some(Some(index)) => self.send(from, Message::CatchUpTo { nonce, index }),
            Some(None) => {}
            None => {
                questions.retain(|question| question.node != from);
                let round = leader.begin_round(now);
                leader.confirmations.questions.push(Question {
                    node: from,
                    incarnation,
                    nonce,
                    round,
                    confirmed_by: vec![self.node],
                    index: None,
                });
                self.send_round();
            }
        }
    }

    /// A replica answered a round.
    pub(super) fn round_answered(&mut self, from: NodeId, incarnation: Incarnation, round: u64) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if leader.confirmations.questions.is_empty() || !self.is_counted(from, incarnation) {
            return;
        }
        let (quorum, last) = (self.configuration().quorum(), self.log.last());
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let mut answers = Vec::new();
        for question in &mut leader.confirmations.questions {
            let confirms = question.index.is_none()
                && question.round <= round
                && question.node != from
                && !question.confirmed_by.contains(&from);
            if confirms {
                question.confirmed_by.push(from);
                if question.confirmed_by.len() >= quorum {
                    question.index = Some(last);
                    let (nonce, index) = (question.nonce, last);
                    answers.push((question.node, Message::CatchUpTo { nonce, index }));
                }
            }
        }
        for (to, message) in answers {
            self.send(to, message);
        }
    }

    /// A recovering replica holds what it must: name its incarnation in a new configuration, one
    /// such change at a time and after the term's no-op.
    pub(super) fn caught_up_came(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        nonce: u64,
    ) {
        let commit = self.commit.index();
        let is_settled = self.configurations.current_index() <= commit;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let is_confirmed = leader.confirmations.questions.iter().any(|question| {
            question.node == from
                && question.incarnation == incarnation
                && question.nonce == nonce
                && question.index.is_some()
        });
        if !is_confirmed || !is_settled || leader.noop > commit {
            return;
        }
        leader.confirmations.questions.retain(|question| question.node != from);
        if self.is_counted(from, incarnation) {
            return;
        }
        let mut configuration: Configuration = self.configuration().as_ref().clone();
        configuration.id += 1;
        for member in &mut configuration.members {
            if member.id == from {
                member.incarnation = incarnation;
            }
        }
        tracing::info!(node = %from, "recovered: naming its new incarnation");
        self.counters.recovered += 1;
        self.append_own(now, Payload::Configuration(configuration.into()));
    }
}
