//! What is committed, and what a follower knows of its leader's log (P6, P12–P14, P17).

use r2p2::Time;

use crate::{
    core::{Core, Role},
    entry::Index,
};

/// The commit index of one replica, and what bounds it.
#[derive(Debug)]
pub(crate) struct Commit {
    index: Index,
    /// The highest index known to match this leader's log in this term (P6).
    verified: Index,
    /// The highest commit index that a leader of this term stated.
    stated: Index,
    /// In this run, entries above this are answered; none before a leader stated a commit index
    /// to this replica (P17).
    answers_above: Option<Index>,
}

impl Commit {
    /// Everything up to `index` is in a snapshot.
    pub(crate) fn new(index: Index) -> Self {
        Self { index, verified: index, stated: 0, answers_above: None }
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

    /// A leader states its commit index.
    pub(crate) fn state(&mut self, index: Index) {
        self.stated = self.stated.max(index);
        self.answers_above.get_or_insert(index);
    }

    /// This replica has become leader: it answers what comes after its no-op (P17).
    pub(crate) fn state_as_leader(&mut self, noop: Index) {
        self.answers_above.get_or_insert(noop);
    }

    /// In a new term nothing is known of the leader's log but what is committed.
    pub(crate) fn forget_term(&mut self) {
        self.verified = self.index;
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
            let own = self.held_index();
            let mut matched: Vec<Index> = configuration
                .members
                .iter()
                .map(|member| if member.id == self.node { own } else { leader.matched(member) })
                .collect();
            matched.sort_unstable_by(|a, b| b.cmp(a));
            let by_quorum = matched[configuration.quorum() - 1];
            // Only an entry of its own term is committed by counting (P13).
            if by_quorum > before && self.log.term(by_quorum) == Some(self.term()) {
                self.commit.raise(by_quorum);
            }
        } else {
            // Never by its own last index (P12).
            let bound = self.commit.verified.min(self.log.last());
            self.commit.raise(self.commit.stated.min(bound));
        }
        assert!(self.commit.index <= self.log.last(), "what is committed is in the log (P6)");
    }

    /// Everything that this replica knew of its leader's log is void (P6, P8).
    pub(super) fn forget_term(&mut self, now: Time) {
        self.commit.forget_term();
        self.acknowledging.forget_term();
        self.recovery.forget_term();
        self.recovering.forget_term();
        // Remembered metadata is dropped on any change of term; its bodies are kept (P8).
        let unordered = &mut self.unordered;
        self.binding.truncate(0, |request| unordered.insert_evicting(now, request, None));
    }
}
