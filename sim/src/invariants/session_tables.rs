//! Equal session tables (P20, P22): replicas that have applied the same entries keep the same
//! sessions, log time and configuration.

use super::{Violation, broken};
use crate::replica::Replica;

pub(super) fn check(replicas: &[Replica]) -> Result<(), Violation> {
    let mut alive =
        replicas.iter().filter_map(|replica| Some((replica.node, replica.life.as_ref()?)));
    let Some((first, known)) = alive.next() else { return Ok(()) };
    for (node, life) in alive {
        let is_as_far = life.applier.applied() == known.applier.applied();
        if is_as_far && !life.applier.agrees_with(&known.applier) {
            let index = life.applier.applied();
            let what = format!("the session tables of {first} and {node} differ at {index}");
            return broken("equal session tables", "P20, P22", what);
        }
    }
    Ok(())
}
