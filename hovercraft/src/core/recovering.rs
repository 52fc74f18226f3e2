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
    /// It must hold what this leader has up to here, as it said after this round.
    target: Option<(Index, u64)>,
    asked_at: Option<Time>,
    /// How often it said in vain that it has caught up.
    claims: u32,
}

/// A replica that has said so often in vain that it has caught up asks again: the leader may have forgotten
/// its question over one of an earlier life, which was on its way for long.
const CLAIMS_MAX: u32 = 16;

impl Recovering {
    pub(crate) fn forget(&mut self) {
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
        if self.recovering.claims >= CLAIMS_MAX {
            self.recovering.forget();
        }
        self.recovering.asked_at = Some(now);
        let nonce = *self.recovering.nonce.get_or_insert_with(|| self.rng.u64(..));
        let held = self.commit.verified().min(self.log.last());
        let message = match self.recovering.target {
            Some((target, round)) if held >= target => {
                self.recovering.claims += 1;
                Message::CaughtUp { nonce, round }
            }
            Some(_) => return,
            None => Message::Recovering { nonce },
        };
        self.send(leader, message);
    }

    /// The leader named the index that this replica must hold.
    pub(super) fn catch_up_target_came(&mut self, nonce: u64, index: Index, round: u64) {
        if self.recovering.nonce == Some(nonce) && self.recovering.target.is_none() {
            tracing::info!(index, "recovering: catching up to the leader's log");
            self.recovering.target = Some((index, round));
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
        if leader.disowns(from, incarnation) {
            // It is told so, and draws another one, which may be named.
            return;
        }
        let questions = &mut leader.confirmations.questions;
        let known =
            questions.iter().find(|question| question.node == from && question.nonce == nonce);
        match known.map(|question| (question.index, question.round)) {
            Some((Some(index), round)) => {
                self.send(from, Message::CatchUpTo { nonce, index, round });
            }
            Some((None, _)) => {}
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
                    let (nonce, round) = (question.nonce, question.round);
                    answers.push((question.node, Message::CatchUpTo { nonce, index: last, round }));
                }
            }
        }
        for (to, message) in answers {
            self.send(to, message);
        }
    }

    /// A recovering replica holds what it must: name its incarnation in a new configuration, one
    /// such change at a time and after the term's no-op. What a life that has died asked and claimed
    /// may come only now: it cannot claim what this question was answered with.
    pub(super) fn caught_up_came(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: Incarnation,
        (nonce, round): (u64, u64),
    ) {
        let commit = self.commit.index();
        let is_settled = self.configurations.current_index() <= commit && self.has_room_for_own();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let is_confirmed = leader.confirmations.questions.iter().any(|question| {
            question.node == from
                && question.incarnation == incarnation
                && (question.nonce, question.round) == (nonce, round)
                && question.index.is_some()
        });
        let is_disowned = leader.disowns(from, incarnation);
        if !is_confirmed || is_disowned || !is_settled || leader.noop > commit {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        core::{
            Output, Settings,
            testing::{append_noops, core, elected_at, envelope, leader, settle},
        },
        messages::{AppendEntries, AppendReply, Envelope},
        storage::Durability,
    };

    fn settings() -> Settings {
        Settings { durability: Durability::Interval, ..Settings::default() }
    }

    /// What replica 3 says in a life that no configuration names.
    fn says(core: &mut Core, life: u64, message: Message) -> Vec<Output> {
        let incarnation = Incarnation(life);
        core.handle_message(elected_at(), Envelope { incarnation, ..envelope(3, 1, message) });
        settle(core, elected_at())
    }

    /// Replica 2 has heard of the newest round, and holds everything.
    fn confirms(core: &mut Core) -> Vec<Output> {
        let Role::Leader(leader) = &core.role else { panic!("it leads") };
        let reply = AppendReply {
            round: leader.round(),
            acknowledged: core.log.last(),
            applied: 0,
            ..AppendReply::default()
        };
        core.handle_message(elected_at(), envelope(2, 1, Message::AppendReply(reply)));
        settle(core, elected_at())
    }

    fn sent<T>(outputs: &[Output], of: impl Fn(&Message) -> Option<T>) -> Vec<T> {
        let messages = outputs.iter().filter_map(|output| match output {
            Output::Send { envelope, .. } => Some(&envelope.message),
            _ => None,
        });
        messages.filter_map(of).collect()
    }

    fn answers(outputs: &[Output]) -> Vec<(u64, u64)> {
        sent(outputs, |message| match *message {
            Message::CatchUpTo { nonce, round, .. } => Some((nonce, round)),
            _ => None,
        })
    }

    #[test]
    fn a_life_that_has_died_is_not_named_by_what_it_said() {
        // P37: its question and its claim are late, both.
        let mut core = leader(settings());
        confirms(&mut core);
        assert_eq!(answers(&says(&mut core, 77, Message::Recovering { nonce: 5 })), []);
        let first = answers(&confirms(&mut core));
        assert!(matches!(first[..], [(5, _)]), "{first:?}");
        // Another life asks meanwhile, and then the first one's question comes again.
        says(&mut core, 88, Message::Recovering { nonce: 6 });
        confirms(&mut core);
        says(&mut core, 77, Message::Recovering { nonce: 5 });
        let second = answers(&confirms(&mut core));
        let (old, new) = (first[0].1, second[0].1);
        assert!(new > old);
        let id = |core: &Core| core.configuration().id;
        says(&mut core, 77, Message::CaughtUp { nonce: 5, round: old });
        assert_eq!(id(&core), 1);
        says(&mut core, 77, Message::CaughtUp { nonce: 5, round: new });
        assert_eq!(id(&core), 2);
        assert!(core.is_counted(NodeId(3), Incarnation(77)));
    }

    #[test]
    fn who_is_not_heard_asks_again() {
        let mut core = core(settings(), Vec::new());
        core.hard_state.incarnation = Incarnation(99);
        let (mut now, mut questions, mut claims) = (Time::ZERO, Vec::new(), 0);
        for round in 1..60 {
            now += Duration::from_millis(20);
            // The first entry, and then nothing but heartbeats.
            let noops =
                append_noops(if round == 1 { (0, 0) } else { (1, 1) }, 1, usize::from(round == 1));
            let append = AppendEntries { round, commit: 1, ..noops };
            core.handle_message(now, envelope(2, 1, Message::AppendEntries(append)));
            let outputs = settle(&mut core, now);
            for nonce in sent(&outputs, |message| match *message {
                Message::Recovering { nonce } => Some(nonce),
                _ => None,
            }) {
                questions.push(nonce);
                let answer = Message::CatchUpTo { nonce, index: 1, round };
                core.handle_message(now, envelope(2, 1, answer));
            }
            claims += sent(&outputs, |message| match message {
                Message::CaughtUp { .. } => Some(()),
                _ => None,
            })
            .len();
        }
        questions.dedup();
        assert!((2..=5).contains(&questions.len()) && claims > 30, "{questions:?}, {claims}");
    }
}
