//! Liveness: within a stated time after nothing goes wrong any more, every client has its answers,
//! and every replica is a member, has applied everything, and holds nothing that is not committed.

use hovercraft::Index;

use super::{Violation, broken};
use crate::replica::Replica;

/// Whether a replica has nothing left to do, if this is the last index that is committed.
pub(crate) fn is_settled(replica: &Replica, committed: Index) -> bool {
    let Some(life) = &replica.life else { return false };
    let member = life.core.configuration().member(replica.node);
    let incarnation = life.core.hard_state().incarnation;
    life.applier.applied() == committed
        && life.core.log_bounds().1 == committed
        && member.is_some_and(|member| member.incarnation == incarnation)
}

/// The time is up, and these are not done.
pub(crate) fn fail(patience_us: u64, waiting: Vec<String>, replicas: &[Replica]) -> Violation {
    let states = replicas.iter().map(|replica| match &replica.life {
        Some(life) => format!("{:?}", life.core.status()),
        None => format!("replica {} is down", replica.node),
    });
    let what: Vec<_> = waiting.into_iter().chain(states).collect();
    let patience_ms = patience_us / 1000;
    let what = format!(
        "{patience_ms} ms after all is well again not everything is done:\n{}",
        what.join("\n")
    );
    broken("progress", "liveness", what).expect_err("it was just made")
}
