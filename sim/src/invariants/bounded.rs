//! Bounded memory (P8, P36): the log and the sets of a replica stay within their limits.

use hovercraft::core::Core;

use super::{Violation, broken};
use crate::replica::Replica;

pub(super) fn check(replicas: &[Replica], replica: &Replica, core: &Core) -> Result<(), Violation> {
    let status = core.status();
    let largest = replica.entry_bytes_max;
    // Beside what it holds itself comes what a leader with a larger one has ordered. The last entry
    // of each has any size.
    let log_bytes_max = replicas.iter().map(|replica| replica.settings.log_bytes_max).max();
    let ordered = 2 * log_bytes_max.unwrap_or_default() as u64 + largest;
    let log_max = 2 * replica.settings.log_bytes_max as u64 + largest + ordered;
    let limits = &replica.settings.limits;
    let (unordered, binding) = (limits.unordered_count as u64, limits.binding_count as u64);
    let found = [
        ("bytes in the log", status.log_bytes, log_max),
        ("requests without an order", status.unordered, unordered),
        ("entries without a body", status.binding, binding),
    ];
    for (what, count, max) in found {
        if count > max {
            let what = format!("{} has {count} {what}, and {max} are allowed", replica.node);
            return broken("bounded memory", "P8, P36", what);
        }
    }
    Ok(())
}
