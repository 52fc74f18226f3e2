//! Bounded memory (P8, P36): the log and the sets of a replica stay within their limits.

use hovercraft::core::Core;

use super::{Violation, broken};
use crate::replica::Replica;

/// The unordered set and the remembered metadata hold at most so many.
const COUNT_MAX: u64 = 65_536;

pub(super) fn check(replica: &Replica, core: &Core) -> Result<(), Violation> {
    let status = core.status();
    let largest = u64::from(core.configuration().limits.request_bytes_max) + 4096;
    let log_max = 2 * replica.settings.log_bytes_max as u64 + largest;
    let found = [
        ("bytes in the log", status.log_bytes, log_max),
        ("requests without an order", status.unordered, COUNT_MAX),
        ("entries without a body", status.binding, COUNT_MAX),
    ];
    for (what, count, max) in found {
        if count > max {
            let what = format!("{} has {count} {what}, and {max} are allowed", replica.node);
            return broken("bounded memory", "P8, P36", what);
        }
    }
    Ok(())
}
