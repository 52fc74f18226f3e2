//! Exactly once (P21): over the whole run a write of a session is executed at one index at most.

use std::{collections::BTreeMap, sync::Arc};

use hovercraft::{Identity, Index};

use super::{Application, Violation, broken};

/// Where each write of a session was executed, and its reply.
#[derive(Debug, Default)]
pub(crate) struct Executed(BTreeMap<Identity, (Index, Arc<[u8]>)>);

impl Executed {
    pub(crate) fn find(&self, identity: &Identity) -> Option<&(Index, Arc<[u8]>)> {
        self.0.get(identity)
    }

    pub(crate) fn check(&mut self, application: &Application<'_>) -> Result<(), Violation> {
        let Some(call) = application.call.filter(|call| !call.is_query) else { return Ok(()) };
        let Some(request) = application.committed.entry.request() else { return Ok(()) };
        let identity = request.identity();
        if matches!(identity, Identity::Plain { .. }) {
            return Ok(());
        }
        let index = application.committed.index;
        let (known, _) = self.0.entry(identity).or_insert_with(|| (index, Arc::clone(&call.reply)));
        if *known == index {
            return Ok(());
        }
        let what = format!("{identity} is executed at {known} and at {index}");
        broken("exactly once", "P21", what)
    }
}
