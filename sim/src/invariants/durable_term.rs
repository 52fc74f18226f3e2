//! Durable term and vote (P37): both are synced before they are used.

use hovercraft::{
    NodeId,
    messages::{Envelope, Message},
};

use super::{Violation, broken};
use crate::replica::Replica;

pub(super) fn check(replica: &Replica, to: NodeId, envelope: &Envelope) -> Result<(), Violation> {
    let state = replica.disk.durable_hard_state();
    let (node, term) = (replica.node, envelope.term);
    if term > state.term {
        let what = format!("{node} speaks of term {term}, and its disk of term {}", state.term);
        return broken("durable term", "P37", what);
    }
    let vote = match envelope.message {
        Message::Vote { .. } => node,
        Message::VoteReply { granted: true } => to,
        _ => return Ok(()),
    };
    if term == state.term && state.vote != Some(vote) {
        let what = format!("{node} votes for {vote}, and its disk says {:?}", state.vote);
        return broken("durable vote", "P37", what);
    }
    Ok(())
}
