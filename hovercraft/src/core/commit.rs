//! What is committed, and what a follower knows of its leader's log (P6, P12–P14, P17).

use r2p2::Time;

use crate::{
    core::{Core, Role},
    entry::{Index, Member, Term},
};

/// The commit index of one replica, and what bounds it.
#[derive(Debug)]
pub(crate) struct Commit {
    index: Index,
    /// The highest index known to match this leader's log in this term (P6).
    verified: Index,
    /// The highest commit index that a leader of this term stated.
    stated: Index,
    /// Index up to which donors sent what is here in bulk: it is committed, whatever is known of
    /// the leader's log (P12).
    donated: Index,
    /// The last index that this run began with.
    began_with: Index,
    /// In this run, entries above this are answered; none before a leader has said what earlier
    /// runs may have answered (P17).
    answers_above: Option<Index>,
    /// What the last count was of: while that is the same, so is its result.
    counted: Option<Counted>,
    /// Used again, so that counting allocates nothing.
    matched: Vec<Index>,
}

/// What a leader counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    term: Term,
    configuration: u64,
    /// What this replica holds.
    own: Index,
    /// How often a follower moved.
    moves: u64,
}

impl Commit {
    /// Everything up to `index` is in a snapshot.
    pub(crate) fn new(index: Index) -> Self {
        Self {
            index,
            verified: index,
            stated: 0,
            donated: index,
            began_with: index,
            answers_above: None,
            counted: None,
            matched: Vec::new(),
        }
    }

    pub(crate) fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn verified(&self) -> Index {
        self.verified
    }

    /// Whether this replica may answer the entry at `index` in this run (P17).
    pub(crate) fn may_answer(&self, index: Index) -> bool {
        self.answers_above.is_some_and(|above| index > above)
    }

    /// A message of the leader matched up to `index` (P6).
    pub(crate) fn verify(&mut self, index: Index) {
        self.verified = self.verified.max(index);
    }

    /// What is above `index` is not here any more, or may come from somewhere else (P6).
    pub(crate) fn unverify(&mut self, index: Index) {
        self.verified = self.verified.min(index).max(self.index);
        self.donated = self.donated.min(index).max(self.index);
    }

    /// Everything up to `index` was on disk when this run began.
    pub(crate) fn began_with(&mut self, index: Index) {
        self.began_with = index;
    }

    /// A leader, or an aggregator, states what is committed.
    pub(crate) fn state(&mut self, index: Index) {
        self.stated = self.stated.max(index);
    }

    /// A donor has sent everything up to `index` in bulk, and it is here with the same term.
    pub(crate) fn donate(&mut self, index: Index) {
        self.donated = self.donated.max(index);
    }

    /// This replica has become leader: it answers what comes after its no-op (P17).
    pub(crate) fn state_as_leader(&mut self, noop: Index) {
        self.answer_after(noop);
    }

    /// A leader of this term, which this replica has known of since its run began, has all that
    /// earlier runs may have answered up to `index`.
    pub(crate) fn answer_after(&mut self, index: Index) {
        self.answers_above.get_or_insert(index.max(self.began_with));
    }

    /// In a new term nothing is known of the leader's log but what is committed.
    pub(crate) fn forget_term(&mut self) {
        self.verified = self.index;
        self.donated = self.index;
        self.stated = 0;
    }

    /// A snapshot was installed: what it holds is committed (P36).
    pub(crate) fn installed(&mut self, index: Index) {
        self.index = self.index.max(index);
        self.verified = self.verified.max(self.index);
    }

    fn raise(&mut self, index: Index) {
        self.index = self.index.max(index);
        self.verified = self.verified.max(self.index);
    }
}

impl Core {
    /// Moves the commit index as far as the rules let it.
    pub(super) fn advance_commit(&mut self) {
        let before = self.commit.index;
        if let Role::Leader(leader) = &self.role {
            let configuration = self.configurations.current();
            let unsynced = planted!("leader-counts-unsynced");
            let own = if unsynced { self.log.last() } else { self.held_index() };
            let counted = Counted {
                term: self.term(),
                configuration: configuration.id,
                own,
                moves: leader.moves,
            };
            if self.commit.counted.replace(counted) == Some(counted) {
                return;
            }
            let matched = &mut self.commit.matched;
            matched.clear();
            let of_member = |it: &Member| if it.id == self.node { own } else { leader.matched(it) };
            matched.extend(configuration.members.iter().map(of_member));
            let place = configuration.quorum() - 1;
            let (_, &mut by_quorum, _) = matched.select_nth_unstable_by(place, |a, b| b.cmp(a));
            // Only an entry of its own term is committed by counting (P13).
            let is_own = self.log.term(by_quorum) == Some(self.term());
            if by_quorum > before && (is_own || planted!("commit-old-term")) {
                self.commit.raise(by_quorum);
            }
        } else {
            // Never by its own last index (P12).
            let own_last = planted!("commit-own-last");
            let verified = if own_last { self.log.last() } else { self.commit.verified };
            let known = self.commit.stated.min(verified).max(self.commit.donated);
            self.commit.raise(known.min(self.log.last()));
        }
        assert!(self.commit.index <= self.log.last(), "what is committed is in the log (P6)");
    }

    /// Everything that this replica knew of its leader's log is void (P6, P8).
    pub(super) fn forget_term(&mut self, now: Time) {
        self.commit.forget_term();
        self.acknowledging.forget_term();
        self.recovery.forget_term();
        self.recovering.forget();
        // Remembered metadata is dropped on any change of term; its bodies are kept (P8).
        if planted!("metadata-across-terms") {
            return;
        }
        let unordered = &mut self.unordered;
        self.binding.truncate(0, |request| unordered.insert_evicting(now, request, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_run_answers_nothing_that_an_earlier_one_may_have_answered() {
        // P17: it answered up to 9. What a leader stated of its commit index says nothing of that.
        let mut commit = Commit::new(0);
        commit.state(4);
        assert!(!commit.may_answer(1) && !commit.may_answer(5) && !commit.may_answer(13));
        commit.answer_after(12);
        assert!(!commit.may_answer(9) && !commit.may_answer(12) && commit.may_answer(13));
        // What it had on disk it may have answered too.
        let mut commit = Commit::new(0);
        commit.began_with(10);
        commit.answer_after(4);
        assert!(!commit.may_answer(10) && commit.may_answer(11));
        commit.answer_after(30);
        assert!(commit.may_answer(11));
    }
}
