//! The durable index (P37): in `sync` the disk holds what the core takes as durable, at the same
//! (index, term).

use hovercraft::{core::Core, storage::Durability};

use super::{Violation, broken};
use crate::{history::term_in, replica::Replica};

/// Looks at the highest durable entry.
pub(super) fn check(replica: &Replica, core: &Core) -> Result<(), Violation> {
    let durable = core.durable_index();
    let Some(term) = term_in(core, durable) else { return Ok(()) };
    if replica.settings.durability != Durability::Sync || replica.disk.holds(durable, term) {
        return Ok(());
    }
    let what =
        format!("{} takes {durable}@{term} as durable, which its disk does not hold", replica.node);
    broken("durable index", "P37", what)
}

/// Looks at every durable entry.
pub(super) fn check_all(replica: &Replica, core: &Core) -> Result<(), Violation> {
    if replica.settings.durability != Durability::Sync {
        return Ok(());
    }
    let is_missing =
        |index: &u64| term_in(core, *index).is_some_and(|term| !replica.disk.holds(*index, term));
    let (first, durable) = (core.log_bounds().0, core.durable_index());
    match (first..=durable).find(is_missing) {
        None => Ok(()),
        Some(index) => {
            let what = format!(
                "{} takes everything up to {durable} as durable, and its disk does not hold {index}",
                replica.node
            );
            broken("durable index", "P37", what)
        }
    }
}
