//! The core's internal bounds as a part of a run's options: in many seeds very small, so that a
//! short run meets them.

use hovercraft::core::Limits;
use serde::{Deserialize, Serialize};

/// The form of [`Limits`] in a schedule.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits", deny_unknown_fields)]
pub(crate) struct LimitFields {
    keys_kept: u64,
    bulk_distance: u64,
    pipeline_entries: u64,
    pipeline_bytes: u64,
    message_entries: usize,
    uncommitted_entries: u64,
    unordered_count: usize,
    unordered_bytes: usize,
    binding_count: usize,
    fetched_bytes: usize,
    writing_bytes: usize,
    held_count: usize,
    trim_count: usize,
}

/// Those that nodes run.
pub(crate) fn usual() -> Limits {
    Limits::DEFAULT
}

pub(crate) fn are_usual(limits: &Limits) -> bool {
    *limits == Limits::DEFAULT
}

/// Draws the bounds of a run: in a quarter of the runs those that nodes run, in the others each
/// from very small to that. `request_bytes_max` is the cluster's.
pub(crate) fn draw(rng: &mut fastrand::Rng, request_bytes_max: usize) -> Limits {
    let usual = Limits::DEFAULT;
    if rng.u8(..4) == 0 {
        return usual;
    }
    let mut count = |small: &[u64], usual: u64| {
        let at = rng.usize(..=small.len());
        small.get(at).copied().unwrap_or(usual)
    };
    let mut size = |small: &[u64], usual: usize| count(small, usual as u64) as usize;
    let request_bytes_max = request_bytes_max as u64;
    let message_entries = size(&[1, 2, 8], usual.message_entries);
    Limits {
        message_entries,
        unordered_count: size(&[1, 4, 64], usual.unordered_count),
        unordered_bytes: size(
            &[request_bytes_max, 4 * request_bytes_max],
            usual.unordered_bytes.max(request_bytes_max as usize),
        ),
        binding_count: size(&[1, 4, 64], usual.binding_count).max(message_entries),
        fetched_bytes: size(&[1, 1000, 100_000], usual.fetched_bytes),
        writing_bytes: size(&[1, 1000, 100_000], usual.writing_bytes),
        held_count: size(&[36, 128], usual.held_count),
        trim_count: size(&[1, 16], usual.trim_count),
        keys_kept: count(&[0, 1, 16, 128], usual.keys_kept),
        bulk_distance: count(&[1, 4, 32], usual.bulk_distance),
        pipeline_entries: count(&[1, 4, 64], usual.pipeline_entries),
        pipeline_bytes: count(&[1, 1000, 100_000], usual.pipeline_bytes),
        uncommitted_entries: count(&[1, 8, 64], usual.uncommitted_entries),
    }
}
