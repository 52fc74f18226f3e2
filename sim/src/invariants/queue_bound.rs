//! Hard queue bound (P15): of the entries in the leader's log above what a replier has applied, at
//! most B are for it. What was applied in an earlier run of the replier counts as applied: it is
//! not answered again.

use hovercraft::{
    Index,
    core::{Mode, Policy},
};

use super::{Violation, broken};
use crate::{history::Mirror, replica::Replica};

pub(super) fn check(
    leader: &Replica,
    log: &Mirror,
    applied_max: &[Index],
) -> Result<(), Violation> {
    let settings = &leader.settings;
    // Where the leader answers everything, the lag limit bounds alone.
    if settings.mode == Mode::Raft || settings.policy == Policy::Leader {
        return Ok(());
    }
    for (position, applied) in applied_max.iter().enumerate() {
        let queue = log.queue(position, *applied);
        if queue > settings.queue_bound {
            let what = format!(
                "{queue} entries in the log of {} wait for replica {}, and the bound is {}",
                leader.node,
                position + 1,
                settings.queue_bound
            );
            return broken("hard queue bound", "P15", what);
        }
    }
    Ok(())
}
