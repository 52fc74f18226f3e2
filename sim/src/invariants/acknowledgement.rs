//! Acknowledgements (P6, P37): what a follower acknowledges is in its log as it is in that of the
//! leader of its term, in `sync` on its disk too; it is sent only in that term, and kept as long as
//! that term is (P36).

use hovercraft::{
    Index, Term,
    core::Core,
    messages::{Envelope, Message},
    storage::Durability,
};

use super::{Violation, broken};
use crate::{history::term_in, replica::Replica};

const NAME: &str = "acknowledgement";

/// What one replica has acknowledged in the term that it was last in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Promise {
    run: u64,
    term: Term,
    index: Index,
}

impl Promise {
    /// It acknowledges something.
    pub(super) fn note(&mut self, replica: &Replica, envelope: &Envelope) {
        if let Some(acknowledged) = acknowledged(envelope) {
            let (run, term) = (replica.run, envelope.term);
            let is_new = (run, term) != (self.run, self.term);
            let before = if is_new { 0 } else { self.index };
            *self = Self { run, term, index: before.max(acknowledged) };
        }
    }

    /// In the same term it still holds all of it.
    pub(super) fn check(&self, replica: &Replica, core: &Core) -> Result<(), Violation> {
        let is_current = (replica.run, core.hard_state().term) == (self.run, self.term);
        let (_, last) = core.log_bounds();
        if is_current && last < self.index {
            let (node, index) = (replica.node, self.index);
            let what = format!("{node} acknowledged {index}, and its log ends at {last}");
            return broken(NAME, "P6, P36", what);
        }
        Ok(())
    }
}

/// What it acknowledges, to the leader or to the aggregator.
fn acknowledged(envelope: &Envelope) -> Option<Index> {
    match &envelope.message {
        Message::AppendReply(reply) => Some(reply.acknowledged),
        Message::Acknowledge(answer) => Some(answer.acknowledged),
        _ => None,
    }
}

pub(super) fn check(replicas: &[Replica], at: usize, envelope: &Envelope) -> Result<(), Violation> {
    let replica = &replicas[at];
    let (Some(index), Some(life)) = (acknowledged(envelope), &replica.life) else {
        return Ok(());
    };
    let node = replica.node;
    if index == 0 {
        return Ok(());
    }
    let here = life.core.hard_state().term;
    if here != envelope.term {
        let what = format!("{node} is in term {here} and acknowledges in term {}", envelope.term);
        return broken(NAME, "P37", what);
    }
    let (first, last) = life.core.log_bounds();
    if index > last {
        let what = format!("{node} acknowledges {index}, and its log ends at {last}");
        return broken(NAME, "P6", what);
    }
    let Some(term) = term_in(&life.core, index) else {
        // Trimmed, so committed, and checked when it was.
        assert!(index < first, "{index} is not above the log");
        return Ok(());
    };
    if replica.settings.durability == Durability::Sync && !replica.disk.holds(index, term) {
        let what = format!("{node} acknowledges {index}@{term}, which is not on its disk");
        return broken(NAME, "P37", what);
    }
    let leaders = replicas
        .iter()
        .filter_map(|replica| replica.life.as_ref())
        .filter(|life| life.core.is_leader() && life.core.hard_state().term == envelope.term);
    for leader in leaders {
        let there = term_in(&leader.core, index);
        if there.is_some_and(|there| there != term) || leader.core.log_bounds().1 < index {
            let what = format!(
                "{node} acknowledges {index}@{term} to the leader of term {here}, which holds \
                 {there:?} there"
            );
            return broken(NAME, "P6", what);
        }
    }
    Ok(())
}
