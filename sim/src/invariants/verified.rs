//! Verified entries (P6): what a replica takes as its leader's is in its log, or known to it by the
//! leader's order. What is not here may come from somewhere else, and would be acknowledged.

use hovercraft::core::Core;

use super::{Violation, broken};
use crate::replica::Replica;

pub(super) fn check(replica: &Replica, core: &Core) -> Result<(), Violation> {
    let (verified, known) = (core.verified_index(), core.ordered_index());
    if verified <= known {
        return Ok(());
    }
    let node = replica.node;
    let what = format!("{node} takes its log as verified up to {verified}, and knows {known}");
    broken("verified entries", "P6", what)
}
