//! Which faults a seed has: swarm testing. Each seed turns on some sorts, so that what would hide
//! something else is absent in other seeds.

use std::time::Duration;

use hovercraft::storage::Durability;

use super::{Fault, FaultKind, Leaves, Sides, Switches, Target, Ways};
use crate::{
    options::{ClusterOptions, Options},
    schedule::Timed,
    seed::Seed,
};

/// Which faults there are in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FaultOptions {
    /// Any of these; nothing goes wrong if there are none.
    kinds: Vec<FaultKind>,
    /// The time from one to the next is up to this long.
    pause_max_us: u64,
    /// They last up to this long.
    length_max_us: u64,
    /// Packet faults last for the whole run.
    steady: bool,
    /// Nothing goes wrong but this.
    only: Option<FaultKind>,
    beyond: bool,
}

/// Longest delay of packets that are late beside older copies.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(100);

/// In how many runs of a hundred each sort is.
const SHARES: [(FaultKind, u8); 22] = [
    (FaultKind::Loss, 50),
    (FaultKind::Duplication, 40),
    (FaultKind::Reordering, 40),
    (FaultKind::Corruption, 40),
    (FaultKind::DelayTail, 40),
    (FaultKind::Mtu, 15),
    (FaultKind::Partition, 70),
    (FaultKind::Flapping, 20),
    (FaultKind::Deafen, 33),
    (FaultKind::Mute, 25),
    (FaultKind::Kill, 50),
    (FaultKind::Blackout, 25),
    (FaultKind::Restart, 33),
    (FaultKind::Pause, 33),
    (FaultKind::SlowNode, 20),
    (FaultKind::ClockJump, 33),
    (FaultKind::ClockDrift, 25),
    (FaultKind::SlowDisk, 25),
    (FaultKind::SyncStall, 25),
    (FaultKind::WriteError, 20),
    (FaultKind::FullDisk, 15),
    (FaultKind::Damage, 15),
];

/// The same for those with a stream of their own, so that other seeds stay what they are.
const APART: [(FaultKind, u8); 2] = [(FaultKind::BitFlip, 20), (FaultKind::Narrow, 15)];

/// The same for those that need an aggregator.
const OF_AGGREGATORS: [(FaultKind, u8); 3] =
    [(FaultKind::KillAggregator, 50), (FaultKind::CutAggregator, 60), (FaultKind::Echo, 40)];

impl FaultOptions {
    pub(crate) fn from_seed(options: &Options, beyond: bool) -> Self {
        let mut rng = Seed(options.seed).stream("fault kinds", 0);
        let scale = if options.cluster.is_quick() { 10 } else { 1 };
        let pick =
            |rng: &mut fastrand::Rng, millis: [u64; 3]| millis[rng.usize(..3)] * 1000 / scale;
        let pause_max_us = pick(&mut rng, [100, 300, 1000]);
        let mut length_max_us = pick(&mut rng, [100, 500, 1500]);
        let kinds = SHARES.into_iter().filter(|(_, share)| rng.u8(..100) < *share);
        let mut kinds: Vec<_> = kinds.map(|(kind, _)| kind).collect();
        let steady = rng.bool();
        for (kind, share) in APART {
            let mut rng = Seed(options.seed).stream("fault kinds apart", kind as u64);
            if rng.u8(..100) < share {
                kinds.push(kind);
            }
        }
        if options.cluster.aggregators > 0 {
            let own = OF_AGGREGATORS.into_iter().filter(|(_, share)| rng.u8(..100) < *share);
            kinds.extend(own.map(|(kind, _)| kind));
            leave_the_rest_alone(&mut kinds, options);
        }
        let only = only_one_sort(options, beyond);
        if let Some(kind) = only {
            kinds = vec![kind];
        }
        if only == Some(FaultKind::OldCopy) && copies_are_late(options) {
            // So short that the last acknowledgements are often on their way at its end.
            length_max_us = [1000, 5000, 20_000][rng.usize(..3)];
            if options.cluster.aggregators > 0 {
                kinds.extend([FaultKind::KillAggregator, FaultKind::Echo]);
            }
        }
        if only == Some(FaultKind::SyncStall) {
            // Two election time-outs must go by before anything comes of it.
            length_max_us = [3, 10][rng.usize(..2)] * options.cluster.election_max_us;
        }
        Self { kinds, pause_max_us, length_max_us, steady, only, beyond }
    }

    /// Returns whether nothing goes wrong but with aggregators.
    fn are_of_aggregators(&self, options: &Options) -> bool {
        let has_any = options.cluster.aggregators > 0;
        has_any && self.kinds.iter().all(|kind| kind.is_of_aggregators())
    }

    /// Returns whether nothing goes wrong but with aggregators, or one sort of fault alone.
    pub(crate) fn are_watched_alone(&self, options: &Options) -> bool {
        self.are_of_aggregators(options) || self.only.is_some()
    }

    /// The faults of a run, in order of time. Each sort has a stream of its own.
    pub(crate) fn plan(&self, options: &Options) -> Vec<Timed> {
        let mut faults = Vec::new();
        let seed = Seed(options.seed);
        // What fills one of several equal disks fills all of them.
        let are_disks_equal = seed.stream("equal disks", 0).bool();
        for kind in &self.kinds {
            let mut rng = seed.stream("fault", *kind as u64);
            if kind.is_of_packets() && self.steady {
                let fault = self.draw(*kind, &mut rng, options, options.chaos_us);
                faults.push(Timed { at_us: 0, fault });
                continue;
            }
            // The more sorts there are, the rarer is each.
            let pause_max_us = self.pause_max_us * self.kinds.len() as u64;
            let mut at_us = rng.u64(..=pause_max_us);
            while at_us < options.chaos_us {
                let length_us = rng.u64(1..=self.length_max_us);
                let fault = self.draw(*kind, &mut rng, options, length_us);
                let all = (1..=usize::from(options.cluster.replicas)).map(Target::Replica);
                match fault {
                    // They are on one host.
                    Fault::Pause { for_us, .. } if self.only == Some(FaultKind::Pause) => {
                        let pause = |target| Fault::Pause { target, for_us };
                        faults.extend(all.map(|target| Timed { at_us, fault: pause(target) }));
                    }
                    Fault::FullDisk { for_us, .. } if are_disks_equal => {
                        let full = |target| Fault::FullDisk { target, for_us };
                        faults.extend(all.map(|target| Timed { at_us, fault: full(target) }));
                    }
                    fault => faults.push(Timed { at_us, fault }),
                }
                at_us += 1 + rng.u64(..=pause_max_us);
            }
        }
        if self.only == Some(FaultKind::OldCopy) && copies_are_late(options) {
            let (late_us, for_us) = (LATE_MAX.as_micros() as u64, options.chaos_us);
            let fault = Fault::DelayTail { per_mille: 500, late_us, for_us };
            faults.push(Timed { at_us: 0, fault });
        }
        if options.is_lasting {
            faults.extend(long_fault(options));
        }
        if !self.are_watched_alone(options) {
            faults.extend(depositions(options));
        }
        faults.sort_by_key(|timed| timed.at_us);
        faults
    }

    fn draw(
        &self,
        kind: FaultKind,
        rng: &mut fastrand::Rng,
        options: &Options,
        for_us: u64,
    ) -> Fault {
        let replicas = usize::from(options.cluster.replicas);
        // Who leads has the most to lose.
        let anyone = Target::Replica(rng.usize(1..=replicas));
        let target = if rng.bool() { Target::Leader } else { anyone };
        let down_us = for_us;
        let quick = if options.cluster.is_quick() { 10 } else { 1 };
        match kind {
            FaultKind::Loss => Fault::Loss { per_mille: [10, 100, 250][rng.usize(..3)], for_us },
            FaultKind::Duplication => {
                Fault::Duplication { per_mille: [10, 200][rng.usize(..2)], for_us }
            }
            FaultKind::Reordering => {
                Fault::Reordering { spread_us: [300, 3000][rng.usize(..2)] / quick, for_us }
            }
            FaultKind::Corruption => {
                Fault::Corruption { per_mille: [10, 200][rng.usize(..2)], for_us }
            }
            FaultKind::DelayTail => {
                let late_us = [2000, 50_000, 500_000][rng.usize(..3)];
                Fault::DelayTail { per_mille: [10, 100][rng.usize(..2)], late_us, for_us }
            }
            FaultKind::Narrow => {
                let kbit_per_s = [200, 2000, 20_000][rng.usize(..3)] * quick as u32;
                let queue_bytes = [10_000, 40_000, 100_000][rng.usize(..3)];
                let delay_us = [0, 2000, 50_000][rng.usize(..3)] / quick;
                Fault::Narrow { target, kbit_per_s, queue_bytes, delay_us, for_us }
            }
            FaultKind::BitFlip => Fault::BitFlip { per_mille: [20, 300][rng.usize(..2)], for_us },
            FaultKind::OldCopy => Fault::OldCopy { target: anyone, for_us },
            FaultKind::Mtu => Fault::Mtu { bytes: [300, 600, 1400][rng.usize(..3)], for_us },
            FaultKind::Partition => Fault::Partition {
                sides: sides(rng, target, replicas),
                ways: ways(rng),
                eats: rng.bool(),
                for_us,
                switches: switches(rng, options),
            },
            FaultKind::Flapping => {
                let sides = sides(rng, target, replicas);
                let period_us = rng.u64(1000..100_000) / quick;
                Fault::Flapping { sides, ways: ways(rng), period_us, for_us }
            }
            FaultKind::Deafen => Fault::Deafen { target, for_us },
            FaultKind::Mute => Fault::Mute { target, for_us },
            FaultKind::Kill => Fault::Kill { target, down_us, leaves: leaves(rng) },
            FaultKind::Blackout => Fault::Blackout { down_us, leaves: leaves(rng) },
            FaultKind::Restart => Fault::Restart { target, down_us },
            FaultKind::Pause => Fault::Pause { target, for_us },
            FaultKind::SlowNode => {
                Fault::SlowNode { target, turn_us: rng.u64(100..20_000) / quick, for_us }
            }
            FaultKind::ClockJump => {
                let two_hours_us = 7_200_000_000;
                Fault::ClockJump { target, by_us: rng.i64(-two_hours_us..two_hours_us) }
            }
            FaultKind::ClockDrift => {
                // What a cheap crystal does, and what a bad virtual machine does.
                let ppm_max = if self.beyond { 800_000 } else { [200, 100_000][rng.usize(..2)] };
                Fault::ClockDrift { target, ppm: rng.i32(-ppm_max..=ppm_max), for_us }
            }
            FaultKind::SlowDisk => Fault::SlowDisk { target, times: rng.u32(2..200), for_us },
            FaultKind::SyncStall => Fault::SyncStall { target, for_us },
            FaultKind::WriteError => Fault::WriteError { target, down_us },
            FaultKind::FullDisk => Fault::FullDisk { target, for_us },
            FaultKind::Damage => Fault::Damage { target, down_us },
            FaultKind::KillAggregator | FaultKind::CutAggregator | FaultKind::Echo => {
                draw_of_aggregators(kind, rng, options, for_us)
            }
        }
    }
}

/// Something asymmetric that begins under load and lasts to the end.
fn long_fault(options: &Options) -> Option<Timed> {
    let mut rng = Seed(options.seed).stream("long fault", 0);
    let replicas = usize::from(options.cluster.replicas);
    let at_us = rng.u64(..=options.chaos_us / 2);
    let for_us = options.chaos_us - at_us;
    let anyone = Target::Replica(rng.usize(1..=replicas));
    let target = if rng.bool() { Target::Leader } else { anyone };
    let ways = if rng.bool() { Ways::Out } else { Ways::In };
    let quick = if options.cluster.is_quick() { 10 } else { 1 };
    let fault = match rng.u8(..6) {
        0 => return None,
        1 => Fault::Deafen { target, for_us },
        2 => Fault::Mute { target, for_us },
        3 => Fault::SlowNode { target, turn_us: 20_000 / quick, for_us },
        4 => Fault::SlowDisk { target, times: 100, for_us },
        _ => {
            let (sides, eats) = (sides(&mut rng, target, replicas), false);
            Fault::Partition { sides, ways, eats, for_us, switches: Switches::Between }
        }
    };
    Some(Timed { at_us, fault })
}

/// In some runs leaders are cut off under load, one after the other. Each orders what the others
/// order otherwise, while these commit, take snapshots and trim.
fn depositions(options: &Options) -> Vec<Timed> {
    let mut faults = Vec::new();
    if !Options::deposes_leaders(options.seed) {
        return faults;
    }
    let mut rng = Seed(options.seed).stream("depositions", 0);
    let longest_us = options.cluster.election_max_us;
    let mut at_us = rng.u64(..=longest_us);
    while at_us < options.chaos_us {
        let sides = Sides::Alone(Target::Leader);
        let (ways, eats) = (ways(&mut rng), rng.bool());
        let for_us = longest_us + rng.u64(..=longest_us);
        let switches = switches(&mut rng, options);
        let fault = Fault::Partition { sides, ways, eats, for_us, switches };
        faults.push(Timed { at_us, fault });
        at_us += for_us + rng.u64(1..=longest_us);
    }
    faults
}

/// In some runs nothing goes wrong but with aggregators, which costs no election (P32).
fn leave_the_rest_alone(kinds: &mut Vec<FaultKind>, options: &Options) {
    let mut rng = Seed(options.seed).stream("only aggregators", 0);
    if rng.u8(..4) == 0 {
        kinds.retain(|kind| kind.is_of_aggregators());
        if kinds.is_empty() {
            kinds.push(FaultKind::KillAggregator);
        }
    }
}

/// In some runs nothing goes wrong but that disks stand still (P38), that all replicas do (P33), or
/// that directories are restored from copies: another leader could not tell (P37). Beyond what is
/// promised nobody is asked whether it did.
fn only_one_sort(options: &Options, beyond: bool) -> Option<FaultKind> {
    let mut rng = Seed(options.seed).stream("only one sort", 0);
    match rng.u8(..24) {
        0 => Some(FaultKind::SyncStall),
        1 => Some(FaultKind::Pause),
        _ => {
            let ClusterOptions { replicas, durability, .. } = options.cluster;
            let is_possible = !beyond && replicas > 2 && durability == Durability::Sync;
            let mut rng = Seed(options.seed).stream("only old copies", 0);
            (is_possible && rng.u8(..100) < 6).then_some(FaultKind::OldCopy)
        }
    }
}

/// Returns whether, in a run of older copies, half of all packets are late and aggregators die:
/// acknowledgements of runs that are over are among them.
fn copies_are_late(options: &Options) -> bool {
    Seed(options.seed).stream("late old copies", 0).bool()
}

/// A cut where there is no aggregator is drawn as ever.
fn switches(rng: &mut fastrand::Rng, options: &Options) -> Switches {
    if options.cluster.aggregators == 0 {
        return Switches::Between;
    }
    [Switches::Between, Switches::First, Switches::Second, Switches::Second][rng.usize(..4)]
}

fn draw_of_aggregators(
    kind: FaultKind,
    rng: &mut fastrand::Rng,
    options: &Options,
    for_us: u64,
) -> Fault {
    let number = rng.usize(1..=usize::from(options.cluster.aggregators.max(1)));
    // Without it, or with a link that stays dead, everything must go on for ever.
    let for_good = rng.u8(..4) == 0;
    match kind {
        FaultKind::KillAggregator => Fault::KillAggregator { number, down_us: for_us, for_good },
        FaultKind::CutAggregator => {
            let replica = rng.usize(1..=usize::from(options.cluster.replicas));
            Fault::CutAggregator { number, replica, ways: ways(rng), for_us, for_good }
        }
        _ => {
            let late_us = [2000, 50_000, 2_000_000][rng.usize(..3)];
            Fault::Echo { per_mille: [50, 500][rng.usize(..2)], late_us, for_us }
        }
    }
}

impl FaultKind {
    /// Whether it happens to aggregators alone.
    pub(crate) fn is_of_aggregators(self) -> bool {
        matches!(self, Self::KillAggregator | Self::CutAggregator | Self::Echo)
    }

    /// Whether it happens to packets here and there, rather than to somebody.
    fn is_of_packets(self) -> bool {
        self <= Self::Mtu || self == Self::BitFlip
    }
}

fn sides(rng: &mut fastrand::Rng, target: Target, replicas: usize) -> Sides {
    match rng.u8(..8) {
        0 => Sides::Ring,
        1..4 => Sides::Alone(target),
        _ => {
            let mut all: Vec<_> = (1..=replicas).collect();
            rng.shuffle(&mut all);
            all.truncate(rng.usize(1..=replicas.div_ceil(2)));
            all.sort_unstable();
            Sides::Halves(all)
        }
    }
}

fn ways(rng: &mut fastrand::Rng) -> Ways {
    [Ways::Both, Ways::Both, Ways::Out, Ways::In][rng.usize(..4)]
}

fn leaves(rng: &mut fastrand::Rng) -> Leaves {
    use Leaves::{Everything, Nothing, Prefix, Reordered, Torn};
    [Nothing, Everything, Prefix, Torn, Reordered][rng.usize(..5)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sort_of_fault_that_is_left_out_does_not_move_the_others() {
        let options = Options::from_seed(3);
        let every = FaultOptions {
            kinds: vec![FaultKind::Kill, FaultKind::Pause],
            pause_max_us: 100_000,
            length_max_us: 1000,
            steady: false,
            only: None,
            beyond: false,
        };
        let all = every.plan(&options);
        let pauses: Vec<_> = all.iter().filter(|it| it.fault.kind() == FaultKind::Pause).collect();
        assert!(!pauses.is_empty() && pauses.len() < all.len());
        let mut fewer = FaultOptions { kinds: vec![FaultKind::Pause], ..every };
        // As rare as before.
        fewer.pause_max_us *= 2;
        assert_eq!(fewer.plan(&options).iter().collect::<Vec<_>>(), pauses);
    }
}
