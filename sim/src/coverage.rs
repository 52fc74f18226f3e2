//! What happened in a run, or in many: a sweep that never sees an election proves little about
//! elections.

use std::{collections::BTreeMap, fmt};

use hovercraft::core::Counters;
use serde::Serialize;

/// How often each thing happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Coverage(BTreeMap<&'static str, u64>);

/// Things that the proof rests on, and in how many of 10,000 seeds' runs, together, it must be seen
/// at least so often. About half of what was measured.
const EXPECTED: &[(&str, u64)] = &[
    ("snapshots installed below a tail", 5),
    ("snapshots installed", 2500),
    ("bulk catch-ups", 8000),
    ("cores that went on alone", 2300),
    ("elections won", 15_000),
    ("entries truncated", 9000),
    ("incarnations recovered", 1300),
    ("services that went back", 150),
    ("sessions lost", 4000),
    ("torn tails cut", 25),
    ("bodies recovered", 150_000),
    ("metadata taken back", 7000),
    ("old copies found", 100),
    ("old copies with acknowledgements on their way", 8),
    ("retries answered from the session table", 25_000),
];

impl Coverage {
    /// Returns what was seen less often than so many seeds must show it, in words.
    pub fn too_rare(&self, seeds: u64) -> Vec<String> {
        // A few seeds say little of how often something is seen.
        const SEEDS_MIN: u64 = 2000;
        if seeds < SEEDS_MIN {
            return Vec::new();
        }
        let least = |per_10_000: u64| per_10_000 * seeds / 10_000;
        let is_rare = |what: &str, per_10_000| self.count(what) < least(per_10_000);
        EXPECTED
            .iter()
            .filter(|(what, per_10_000)| is_rare(what, *per_10_000))
            .map(|(what, per_10_000)| {
                let (seen, least) = (self.count(what), least(*per_10_000));
                format!("{what}: {seen} in {seeds} seeds, and {least} are expected")
            })
            .collect()
    }

    /// Something happened.
    pub(crate) fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    /// Adds what another run saw.
    pub fn merge(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            self.add(what, *count);
        }
    }

    /// How often something happened.
    pub fn count(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Everything that was counted.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(what, count)| (*what, *count))
    }

    /// What was counted, and never happened.
    pub fn never(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|(_, count)| **count == 0).map(|(what, _)| *what)
    }

    /// What a core counted in one of its runs.
    pub(crate) fn add_core(&mut self, counters: &Counters) {
        let counted = [
            ("requests", counters.requests),
            ("requests ordered", counters.requests_ordered),
            ("requests dropped", counters.requests_dropped),
            ("retries found in the log", counters.retries_in_log),
            ("retries answered from the session table", counters.retries_answered),
            ("queues full", counters.queues_full),
            ("leftovers adopted", counters.leftovers_adopted),
            ("messages sent", counters.messages_sent),
            ("entries truncated", counters.entries_truncated),
            ("entries fetched in bulk", counters.entries_fetched),
            ("appends rejected", counters.appends_rejected),
            ("resends", counters.resends),
            ("commits announced", counters.commits_announced),
            ("bodies asked for", counters.bodies_asked),
            ("bodies recovered", counters.bodies_recovered),
            ("bodies carried by entries", counters.bodies_carried),
            ("bodies refused by the leader", counters.bodies_refused),
            ("metadata taken back", counters.metadata_taken_back),
            ("bulk catch-ups", counters.bulk_catch_ups),
            ("parts of snapshots sent", counters.snapshot_parts_sent),
            ("parts of snapshots that were not used", counters.snapshot_parts_unused),
            ("snapshots taken", counters.snapshots_taken),
            ("snapshots installed", counters.snapshots_installed),
            ("pre-votes refused", counters.pre_votes_refused),
            ("elections started", counters.elections_started),
            ("elections won", counters.elections_won),
            ("leaderships lost", counters.leaderships_lost),
            ("quorums lost", counters.quorums_lost),
            ("leaders gave way because of their disks", counters.disks_gave_way),
            ("pauses noticed", counters.pauses),
            ("incarnations recovered", counters.recovered),
            ("appends by the aggregator", counters.appends_aggregated),
            ("aggregators found", counters.aggregator_found),
            ("aggregators lost", counters.aggregator_lost),
            ("followers served directly", counters.followers_served_directly),
        ];
        for (what, count) in counted {
            self.add(what, count);
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in self.0.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "{count:>12}  {what}")?;
        }
        Ok(())
    }
}
