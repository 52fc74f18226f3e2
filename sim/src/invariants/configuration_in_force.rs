//! The configuration in force (P34, P39): the last one in the log, committed or not; without one
//! there, the last one that was committed before the log begins.

use hovercraft::{NodeId, core::Core};

use super::{Violation, broken};
use crate::history::{History, Mirror};

pub(super) fn check(
    history: &History,
    mirror: &Mirror,
    node: NodeId,
    core: &Core,
) -> Result<(), Violation> {
    let base = || history.configuration_at(mirror.first - 1);
    let (index, expected) = mirror.configuration().unwrap_or_else(base);
    let found = core.configuration();
    if found == expected {
        return Ok(());
    }
    let what = format!(
        "{node} goes by configuration {}, and {} at {index} is the last one in its log",
        found.id, expected.id
    );
    broken("configuration in force", "P34, P39", what)
}
