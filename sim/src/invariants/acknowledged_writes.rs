//! Acknowledged writes are never lost, and answers are in order (P21, linearizability by witness):
//! an answer is what was executed at the index that it names, and that index is above every one
//! that a client knew an answer from when the request began.

use hovercraft::{Identity, Index, Kind, Outcome};

use super::{Violation, broken, exactly_once::Executed};
use crate::{client::Completion, history::History, replica::Replica, service::Answer};

const NAME: &str = "acknowledged writes are kept";

/// What clients know.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    last: Index,
}

impl Acknowledged {
    /// The highest index that any client has an answer from.
    pub(super) fn last(&self) -> Index {
        self.last
    }

    pub(super) fn check(
        &mut self,
        completion: &Completion,
        executed: &Executed,
        history: &History,
    ) -> Result<(), Violation> {
        let identity = completion.identity;
        match (completion.outcome, completion.kind) {
            (Outcome::Executed, Kind::Write | Kind::Read) => {}
            (Outcome::Executed, Kind::OpenSession)
            | (Outcome::Executed | Outcome::Refused | Outcome::Stale, Kind::Cancel)
            | (Outcome::SessionExpired, _) => return Ok(()),
            (Outcome::Refused, Kind::Write) if completion.cancelled => return Ok(()),
            // The answer to somebody else's request.
            (Outcome::Stale | Outcome::IdentityReused, _) if completion.is_impersonated => {
                return Ok(());
            }
            (outcome, kind) => {
                let what = format!("{identity} ({kind:?}) of a client in good order: {outcome:?}");
                return broken("answers fit requests", "P21", what);
            }
        }
        let Some(answer) = Answer::decode(&completion.body) else {
            let what = format!("{identity} has the answer {:?}", completion.body);
            return broken("answers fit requests", "P18", what);
        };
        let committed = history.committed(answer.index).and_then(|known| known.entry.request());
        let is_same = committed.is_some_and(|request| request.identity() == identity);
        let is_session_write =
            completion.kind == Kind::Write && matches!(identity, Identity::Session { .. });
        let is_executed = !is_session_write
            || executed
                .find(&identity)
                .is_some_and(|(index, reply)| *index == answer.index && completion.body == **reply);
        if !is_same || !is_executed {
            let what = format!("{identity} was answered from {}, which is not its", answer.index);
            return broken(NAME, "P21", what);
        }
        if answer.index <= completion.floor {
            let what = format!(
                "{identity} took effect at {}, and began after an answer from {}",
                answer.index, completion.floor
            );
            return broken("answers are in order", "P17", what);
        }
        self.last = self.last.max(answer.index);
        Ok(())
    }

    /// Every replica has every write that was acknowledged.
    pub(super) fn check_all(&self, replicas: &[Replica]) -> Result<(), Violation> {
        for replica in replicas {
            let applied = replica.life.as_ref().map_or(0, |life| life.applier.applied());
            if applied < self.last {
                let what = format!(
                    "{} has applied {applied}, and {} was acknowledged",
                    replica.node, self.last
                );
                return broken(NAME, "P21", what);
            }
        }
        Ok(())
    }
}
