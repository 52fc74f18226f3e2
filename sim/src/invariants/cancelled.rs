//! Cancellation (P23): what was reported as not executed never is.

use std::collections::BTreeSet;

use hovercraft::{Identity, Kind, Outcome};

use super::{Application, Violation, broken, exactly_once::Executed};
use crate::client::Completion;

const NAME: &str = "what was cancelled is not executed";

/// What clients were told is not executed.
#[derive(Debug, Default)]
pub(crate) struct Cancelled(BTreeSet<Identity>);

impl Cancelled {
    /// A client has an answer.
    pub(super) fn note(
        &mut self,
        completion: &Completion,
        executed: &Executed,
    ) -> Result<(), Violation> {
        let refused = match (completion.identity, completion.outcome, completion.target) {
            (Identity::Session { client, .. }, Outcome::Refused, Some(sequence)) => {
                Identity::Session { client, sequence }
            }
            (identity, Outcome::Refused, None) if completion.kind == Kind::Write => identity,
            _ => return Ok(()),
        };
        if executed.find(&refused).is_some() {
            return broken(NAME, "P23", format!("{refused} was executed and then refused"));
        }
        self.0.insert(refused);
        Ok(())
    }

    pub(super) fn check_executed(&self, application: &Application<'_>) -> Result<(), Violation> {
        let Some(request) = application.committed.entry.request() else { return Ok(()) };
        let is_write = application.call.is_some_and(|call| !call.is_query);
        if is_write && self.0.contains(&request.identity()) {
            let what = format!("{} is executed after it was refused", request.identity());
            return broken(NAME, "P23", what);
        }
        Ok(())
    }
}
