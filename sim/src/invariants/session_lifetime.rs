//! A session that is used within its lifetime is there (P21, P22): where a client hears that its
//! session has expired, session time moved on by more than the lifetime between two of its
//! requests.

use hovercraft::{ClusterLimits, Entry, Identity, Index, Kind, Outcome};

use super::{Violation, broken};
use crate::{client::Completion, history::History};

pub(super) fn check(completion: &Completion, history: &History) -> Result<(), Violation> {
    let Identity::Session { client, .. } = completion.identity else { return Ok(()) };
    let limits = &history.configuration.limits;
    // With little room, sessions that are not idle may go too (P21).
    let usual = ClusterLimits::default();
    let has_room = limits.session_bytes_max >= usual.session_bytes_max
        && limits.sessions_max >= usual.sessions_max;
    if completion.outcome != Outcome::SessionExpired || !has_room {
        return Ok(());
    }
    let lifetime_us = limits.session_lifetime.as_micros();
    let (mut time_us, mut used_us) = (0, None);
    let mut longest_us = 0;
    // Requests that the client made after that answer say nothing. Any of several copies of the
    // request may have been answered.
    let is_asked = |entry: &Entry| {
        entry.request().is_some_and(|request| request.identity() == completion.identity)
    };
    let copies = history.all_committed().filter(|recorded| is_asked(&recorded.entry));
    let last = copies.map(|recorded| recorded.index).max().unwrap_or(Index::MAX);
    for recorded in history.all_committed().take_while(|recorded| recorded.index <= last) {
        let entry = &recorded.entry;
        time_us += u128::from(entry.session_delta_us);
        let Some(request) = entry.request() else { continue };
        let is_opened = recorded.index == client && request.kind() == Kind::OpenSession;
        let is_used = matches!(request.identity(), Identity::Session { client: user, .. }
            if user == client && request.kind() != Kind::OpenSession);
        if is_opened || is_used {
            longest_us = longest_us.max(used_us.map_or(0, |used_us| time_us - used_us));
            used_us = Some(time_us);
        }
    }
    if used_us.is_some() && longest_us > lifetime_us {
        return Ok(());
    }
    let what = format!(
        "the session {client} has expired, and was never unused for more than {longest_us} us of \
         session time, of which {lifetime_us} are its lifetime"
    );
    broken("sessions in use are kept", "P21, P22", what)
}
