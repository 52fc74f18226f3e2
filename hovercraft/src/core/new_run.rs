//! The entries that an earlier run of this replica may have answered, and a new one does not (P17).
//!
//! The leader says it, in answer to a number that this run has drawn: what anyone said before the
//! run began may come late, and know less.

use r2p2::Time;

use crate::{
    core::{Core, Role},
    entry::NodeId,
    messages::Message,
};

/// The question of this run.
#[derive(Debug, Default)]
pub(crate) struct NewRun {
    nonce: Option<u64>,
    asked_at: Option<Time>,
}

impl Core {
    /// The leader of this term was heard of: ask it, unless it has answered. At most once a
    /// heartbeat.
    pub(super) fn ask_what_was_answered(&mut self, now: Time, leader: NodeId) {
        let pause = self.settings.timing.heartbeat;
        let is_early = self.new_run.asked_at.is_some_and(|at| now.since(at) < pause);
        if self.commit.knows_what_was_answered() || is_early {
            return;
        }
        self.new_run.asked_at = Some(now);
        let nonce = *self.new_run.nonce.get_or_insert_with(|| self.rng.u64(..));
        self.send(leader, Message::NewRun { nonce });
    }

    /// A run has begun: whatever an earlier one answered was committed before, and is in this
    /// leader's log.
    pub(super) fn new_run_asked(&mut self, from: NodeId, nonce: u64) {
        if let Role::Leader(_) = self.role {
            let index = self.log.last();
            self.send(from, Message::AnsweredUpTo { nonce, index });
        }
    }

    /// The leader of this term has answered.
    pub(super) fn answered_up_to_came(&mut self, nonce: u64, index: u64) {
        if self.new_run.nonce == Some(nonce) {
            self.commit.answer_after(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        Output, Settings,
        testing::{append_noops, core, envelope, settle},
    };

    #[test]
    fn only_an_answer_to_this_run_says_what_may_be_answered() {
        // P17.
        let now = Time::ZERO;
        let mut core = core(Settings::default(), Vec::new());
        // It may have been under way since before the run began.
        let append = Message::AppendEntries(append_noops((0, 0), 1, 1));
        core.handle_message(now, envelope(2, 1, append));
        let asked = settle(&mut core, now).into_iter().find_map(|output| match output {
            Output::Send { to: NodeId(2), envelope } => match envelope.message {
                Message::NewRun { nonce } => Some(nonce),
                _ => None,
            },
            _ => None,
        });
        let nonce = asked.expect("it asks the leader");
        assert!(!core.commit.may_answer(2));
        let says = |nonce, index| envelope(2, 1, Message::AnsweredUpTo { nonce, index });
        core.handle_message(now, says(nonce ^ 1, 1));
        assert!(!core.commit.may_answer(2), "that is for another run");
        core.handle_message(now, says(nonce, 5));
        assert!(!core.commit.may_answer(5) && core.commit.may_answer(6));
    }
}
