//! What a schedule from a file may say: nothing that a run cannot compute with, and nothing that
//! leaves no room for progress in a cluster with which nothing is wrong.

use std::{fmt::Display, ops::RangeInclusive};

use hovercraft::core::Mode;

use crate::{
    faults::{Fault, Sides, Target},
    invariants::TURN_MAX_US,
    options::{ClientOptions, ClusterOptions, Options},
    schedule::Schedule,
    workload::Planned,
};

const MIB: usize = 1 << 20;

/// No time is longer.
const HOUR_US: u64 = 3_600_000_000;

/// What comes up again and again does so no more often.
const PERIOD_MIN_US: u64 = 100;

const ELECTION_MAX_US: u64 = 10_000_000;

/// A shorter life ends before the first request comes, and clients would open sessions for ever.
const SESSION_US_MIN: u64 = 10_000;

/// Below it every session that keeps a reply is evicted at every 256th entry.
const SESSION_BYTES_MIN: u64 = 512;

/// Operations, and faults.
const COUNT_MAX: usize = 100_000;

/// Of all operations together: every replica may hold each.
const BODIES_BYTES_MAX: usize = 256 * MIB;

const BALLAST_BYTES_MAX: usize = 16 * MIB;

/// How much slower or faster than right a clock may be in all: what the invariants allow for.
const DRIFT_PPM_MAX: u32 = 160_000;

/// Says what cannot be, if anything.
pub(crate) fn check(schedule: &Schedule) -> Result<(), String> {
    let Schedule { options, faults, operations, .. } = schedule;
    check_cluster(&options.cluster)?;
    check_times(options)?;
    within("pace.ballast_bytes", options.pace.ballast_bytes, 0..=BALLAST_BYTES_MAX)?;
    within("drift_ppm_max", options.drift_ppm_max, 0..=DRIFT_PPM_MAX)?;
    within("disk.spoiled_per_mille", options.disk.spoiled_per_mille, 0..=1000)?;
    within("disk.unreadable_per_mille", options.disk.unreadable_per_mille, 0..=1000)?;
    within("the number of clients", options.clients.len(), 0..=64)?;
    // With fewer, sessions in use would evict each other, and nobody would get on.
    let sessions_min = options.clients.len().max(1);
    within("sessions_max", options.cluster.sessions_max as usize, sessions_min..=1 << 24)?;
    for (number, client) in options.clients.iter().enumerate() {
        check_client(client).map_err(|what| format!("clients[{number}]: {what}"))?;
    }
    if let Some(survivors) = &options.survivors {
        survivors.check(&options.cluster)?;
        if options.clients.last().is_none_or(|client| !client.plain || client.window < 32) {
            return Err("`survivors` are asked by the last client, which must be `plain`, with a \
                        `window` of at least 32"
                .to_owned());
        }
    }
    check_operations(options, operations)?;
    within("the number of faults", faults.len(), 0..=COUNT_MAX)?;
    for (number, timed) in faults.iter().enumerate() {
        within("at_us", timed.at_us, 0..=HOUR_US)
            .and_then(|()| check_fault(&timed.fault, options, schedule.beyond))
            .map_err(|what| format!("faults[{number}] ({}): {what}", timed.fault))?;
    }
    Ok(())
}

fn within<T: PartialOrd + Display + Copy>(
    name: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = range.into_inner();
    Err(format!("`{name}` is {value}, and must be {least} to {most}"))
}

fn check_cluster(cluster: &ClusterOptions) -> Result<(), String> {
    within("replicas", cluster.replicas, 1..=9)?;
    let logs = cluster.log_bytes_max.len();
    if logs != usize::from(cluster.replicas) {
        return Err(format!(
            "`log_bytes_max` has {logs} numbers for {} replicas",
            cluster.replicas
        ));
    }
    for bytes in &cluster.log_bytes_max {
        within("log_bytes_max", *bytes, 1024..=1 << 40)?;
    }
    within("aggregators", cluster.aggregators, 0..=2)?;
    if (cluster.mode == Mode::HovercRaftPlusPlus) != (cluster.aggregators > 0) {
        return Err("`aggregators` belong to mode `hovercraft++`, which needs one".to_owned());
    }
    if cluster.by_switch && cluster.aggregators == 0 {
        return Err("clients send `by_switch`, and there are no `aggregators`".to_owned());
    }
    within("queue_bound", cluster.queue_bound, 1..=1 << 20)?;
    within("request_bytes_max", cluster.request_bytes_max, 1..=64 << 20)?;
    let largest = cluster.request_bytes_max as usize;
    let bounds = cluster.limits.check(usize::from(cluster.replicas), largest);
    bounds.map_err(|what| format!("`limits` leave no room for progress: {what}"))?;
    within("admission_limit", cluster.admission_limit, 1..=1 << 24)?;
    within("session_window", cluster.session_window, 2..=1 << 20)?;
    within("session_lifetime_us", cluster.session_lifetime_us, SESSION_US_MIN..=HOUR_US)?;
    within("session_bytes_max", cluster.session_bytes_max, SESSION_BYTES_MIN..=u64::MAX)?;
    let (heartbeat_us, most_us) = (cluster.heartbeat_us, cluster.election_max_us);
    within("election_max_us", most_us, 2 * PERIOD_MIN_US..=ELECTION_MAX_US)?;
    within("heartbeat_us", heartbeat_us, PERIOD_MIN_US..=most_us / 2)?;
    within("election_min_us", cluster.election_min_us, 2 * heartbeat_us..=most_us)
}

/// Lengths of time, and that they leave room for progress.
fn check_times(options: &Options) -> Result<(), String> {
    let Options { cluster, network, disk, pace, .. } = options;
    let apply_max_us = pace.apply_max_us.unwrap_or_default();
    for (name, us) in [
        ("network.delay_min_us", network.delay_min_us),
        ("network.delay_spread_us", network.delay_spread_us),
        ("disk.sync_min_us", disk.sync_min_us),
        ("disk.sync_spread_us", disk.sync_spread_us),
        ("pace.apply_max_us", apply_max_us),
        ("chaos_us", options.chaos_us),
        ("quiet_us", options.quiet_us),
    ] {
        within(name, us, 0..=HOUR_US)?;
    }
    within("disk.interval_us", disk.interval_us, PERIOD_MIN_US..=HOUR_US)?;
    within("pace.turn_max_us", pace.turn_max_us, 0..=TURN_MAX_US)?;
    within("patience_us", options.patience_us, 4 * cluster.election_max_us..=HOUR_US)?;
    let answered_us = options.answered_us();
    if cluster.replicas > 1 && cluster.heartbeat_us + answered_us > cluster.election_min_us {
        return Err(format!(
            "packets there and back, turns and syncs may take {answered_us} us: with a \
             `heartbeat_us` of {} that is more than an `election_min_us` of {}, and who leads may \
             not be heard in time",
            cluster.heartbeat_us, cluster.election_min_us
        ));
    }
    Ok(())
}

fn check_client(client: &ClientOptions) -> Result<(), String> {
    within("window", client.window, 1..=4096)?;
    within("retry_after_us", client.retry_after_us, PERIOD_MIN_US..=HOUR_US)?;
    within("think_max_us", client.think_max_us, 0..=HOUR_US)?;
    within("operations", client.operations, 0..=COUNT_MAX as u32)?;
    within("body_max", client.body_max, 0..=BODIES_BYTES_MAX)?;
    within("reads_per_mille", client.reads_per_mille, 0..=1000)?;
    within("steals_per_mille", client.steals_per_mille, 0..=1000)
}

fn check_operations(options: &Options, operations: &[Planned]) -> Result<(), String> {
    within("the number of operations", operations.len(), 0..=COUNT_MAX)?;
    let apply_us = options.pace.apply_max_us.unwrap_or_default() * operations.len() as u64;
    within("apply_max_us, for all operations,", apply_us, 0..=options.patience_us)?;
    let of = |client| operations.iter().filter(|it| it.client == client).count() as u64;
    let most = (0..options.clients.len()).map(of).max().unwrap_or_default().max(1);
    let name = "packets there and back with turns and syncs, for all operations of a client,";
    within(name, most * options.answered_us(), 0..=options.patience_us)?;
    let mut bytes_left = BODIES_BYTES_MAX;
    for (number, planned) in operations.iter().enumerate() {
        check_operation(options, planned, &mut bytes_left).map_err(|what| {
            let described = if planned.what.is_empty() { "" } else { " " };
            format!("operations[{number}]{described}{}: {what}", planned.what)
        })?;
    }
    Ok(())
}

fn check_operation(
    options: &Options,
    planned: &Planned,
    bytes_left: &mut usize,
) -> Result<(), String> {
    within("at_us", planned.at_us, 0..=HOUR_US)?;
    let clients = options.clients.len();
    let client = options.clients.get(planned.client).ok_or_else(|| {
        format!("it is of client {}, and there are {clients}, counted from 0", planned.client)
    })?;
    let bytes = planned.body.len().saturating_add(planned.padding);
    let bytes_max = options.cluster.limits().request_bytes_max as usize;
    within("the size of body and padding", bytes, 0..=bytes_max)?;
    *bytes_left = bytes_left.checked_sub(bytes).ok_or_else(|| {
        format!("with it all operations have more than {BODIES_BYTES_MAX} bytes together")
    })?;
    if planned.steals && (planned.read || client.plain) {
        return Err("it `steals`, and only a write in a session has an identity that may not be \
                    used again"
            .to_owned());
    }
    Ok(())
}

fn check_fault(fault: &Fault, options: &Options, beyond: bool) -> Result<(), String> {
    let replicas = usize::from(options.cluster.replicas);
    for number in replicas_named(fault) {
        within("the replica's number", number, 1..=replicas)?;
    }
    within("its length", fault.length_us().unwrap_or_default(), 0..=HOUR_US)?;
    match *fault {
        Fault::Loss { per_mille, .. }
        | Fault::Duplication { per_mille, .. }
        | Fault::Corruption { per_mille, .. }
        | Fault::BitFlip { per_mille, .. } => within("per_mille", per_mille, 0..=1000),
        Fault::Narrow { kbit_per_s, queue_bytes, delay_us, .. } => {
            within("kbit_per_s", kbit_per_s, 1..=100_000_000)?;
            within("queue_bytes", queue_bytes, 1..=1 << 30)?;
            within("delay_us", delay_us, 0..=HOUR_US)
        }
        Fault::Reordering { spread_us, .. } => within("spread_us", spread_us, 0..=HOUR_US),
        Fault::DelayTail { per_mille, late_us, .. } | Fault::Echo { per_mille, late_us, .. } => {
            within("per_mille", per_mille, 0..=1000)?;
            within("late_us", late_us, 0..=HOUR_US)
        }
        Fault::Flapping { period_us, .. } => {
            within("period_us", period_us, PERIOD_MIN_US..=HOUR_US)
        }
        Fault::SlowNode { turn_us, .. } => {
            within("turn_us", turn_us, 0..=TURN_MAX_US - options.pace.turn_max_us)
        }
        Fault::SlowDisk { times, .. } => {
            let sync_us = options.disk.sync_min_us + options.disk.sync_spread_us;
            let times_max = options.patience_us / 2 / sync_us.max(1);
            within("times", u64::from(times), 1..=times_max)
        }
        Fault::ClockDrift { ppm, .. } if beyond => within("ppm", ppm, -900_000..=9_000_000),
        Fault::ClockDrift { ppm, .. } => {
            let most = (DRIFT_PPM_MAX - options.drift_ppm_max).cast_signed();
            within("ppm", ppm, -most..=most)
        }
        Fault::ClockJump { by_us, .. } => {
            let most = HOUR_US.cast_signed() * 1000;
            within("by_us", by_us, -most..=most)
        }
        Fault::KillAggregator { number, .. } | Fault::CutAggregator { number, .. } => {
            let aggregators = usize::from(options.cluster.aggregators);
            if aggregators == 0 {
                return Err("the cluster has no `aggregators`".to_owned());
            }
            within("number", number, 1..=aggregators)
        }
        _ => Ok(()),
    }
}

fn replicas_named(fault: &Fault) -> Vec<usize> {
    let mut named = Vec::new();
    if let Fault::CutAggregator { replica, .. } = fault {
        named.push(*replica);
    }
    if let Some(Target::Replica(number)) = fault.target() {
        named.push(number);
    }
    if let Fault::Partition { sides: Sides::Halves(side), .. }
    | Fault::Flapping { sides: Sides::Halves(side), .. } = fault
    {
        named.extend(side);
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Registers;

    #[test]
    fn every_seed_has_a_schedule_that_can_be() {
        for seed in 0..2000 {
            let schedule = Schedule::from_seed(seed);
            assert_eq!(check(&schedule), Ok(()), "seed {seed}");
            assert_eq!(check(&Schedule::beyond(seed)), Ok(()), "seed {seed}, beyond");
        }
        for seed in 0..20 {
            assert_eq!(check(&Schedule::large(seed, &Registers, false)), Ok(()), "seed {seed}");
        }
    }

    /// The first schedule with an aggregator, a session, operations and faults.
    fn sample() -> Value {
        let has_all = |schedule: &Schedule| {
            let is_of = |fault: &Fault| matches!(fault, Fault::KillAggregator { .. });
            schedule.faults.first().is_some_and(|timed| is_of(&timed.fault))
                && schedule.operations[0].client == 0
        };
        let schedule = (0..1000).map(Schedule::from_seed).find(has_all).expect("some seed has all");
        serde_json::to_value(schedule).expect("schedules are plain data")
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let max = u64::MAX;
        let cases = [
            ("/options/cluster/replicas", json!(10), "`replicas` is 10, and must be 1 to 9"),
            ("/options/cluster/aggregators", json!(0), "`hovercraft++`, which needs one"),
            ("/options/cluster/mode", json!("raft"), "`aggregators` belong to mode"),
            ("/options/cluster/log_bytes_max/0", json!(0), "`log_bytes_max` is 0"),
            ("/options/cluster/queue_bound", json!(max), "`queue_bound` is"),
            ("/options/cluster/admission_limit", json!(0), "`admission_limit` is 0"),
            ("/options/cluster/heartbeat_us", json!(9), "`heartbeat_us` is 9"),
            ("/options/cluster/election_min_us", json!(1), "`election_min_us` is 1"),
            ("/options/cluster/election_max_us", json!(30_000_000), "`election_max_us` is"),
            ("/options/network/delay_min_us", json!(900_000), "may not be heard in time"),
            ("/options/disk/interval_us", json!(0), "`disk.interval_us` is 0"),
            ("/options/pace/turn_max_us", json!(60_000), "`pace.turn_max_us`"),
            ("/options/pace/apply_max_us", json!(1_000_000_000), "`apply_max_us, for all"),
            ("/options/patience_us", json!(1), "`patience_us` is 1"),
            ("/options/chaos_us", json!(max), "`chaos_us` is"),
            ("/options/drift_ppm_max", json!(500_000), "`drift_ppm_max`"),
            ("/options/clients/0/window", json!(max), "clients[0]: `window`"),
            ("/options/clients/0/retry_after_us", json!(0), "clients[0]: `retry_after_us` is 0"),
            ("/operations/0/at_us", json!(max), "operations[0]"),
            ("/operations/0/client", json!(64), "it is of client 64, and there are"),
            ("/operations/0/padding", json!(8 << 20), "the size of body and padding"),
            ("/faults/0/at_us", json!(max), "faults[0]"),
            ("/faults/0/number", json!(3), "`number` is 3, and must be 1 to"),
            ("/faults/0/down_us", json!(max), "`its length` is"),
        ];
        for (place, value, expected) in cases {
            let mut schedule = sample();
            *schedule.pointer_mut(place).expect("the sample has it") = value;
            let schedule = serde_json::from_value(schedule).expect("it is a schedule");
            let error = check(&schedule).expect_err("it cannot be");
            assert!(error.contains(expected), "{place}: {error}");
        }
    }

    #[test]
    fn a_fault_that_cannot_be_is_refused() {
        let cases = [
            (json!({"fault": "pause", "target": {"replica": 9}, "for_us": 1}), "replica's number"),
            (json!({"fault": "loss", "per_mille": 1001, "for_us": 1}), "`per_mille` is 1001"),
            (
                json!({"fault": "flapping", "sides": "ring", "ways": "both", "period_us": u64::MAX,
                    "for_us": 1000}),
                "`period_us`",
            ),
            (
                json!({"fault": "slow_node", "target": "leader", "turn_us": 3_600_000, "for_us": 1}),
                "`turn_us`",
            ),
            (
                json!({"fault": "slow_disk", "target": "leader", "times": 3_600_000, "for_us": 1}),
                "`times`",
            ),
            (
                json!({"fault": "clock_drift", "target": "leader", "ppm": -900_000, "for_us": 1}),
                "`ppm`",
            ),
            (
                json!({"fault": "cut_aggregator", "number": 1, "replica": 1, "ways": "both",
                    "for_us": 1, "for_good": false}),
                "no `aggregators`",
            ),
        ];
        let calm = Schedule::calm(Options::calm(1, 3));
        for (fault, expected) in cases {
            let mut schedule = serde_json::to_value(&calm).expect("schedules are plain data");
            let mut timed = fault.clone();
            timed["at_us"] = json!(0);
            schedule["faults"] = json!([timed]);
            let schedule = serde_json::from_value(schedule).expect("it is a schedule");
            let error = check(&schedule).expect_err("it cannot be");
            assert!(error.contains(expected), "{fault}: {error}");
        }
    }

    /// One replica needs no heartbeat, but its disk must keep up with what clients ask.
    #[test]
    fn a_disk_that_is_too_slow_for_the_patience_is_refused() {
        let mut schedule = Schedule::calm(Options::calm(1, 1));
        schedule.options.disk.sync_min_us = 1_000_000;
        assert_eq!(check(&schedule), Ok(()));
        schedule.options.disk.sync_min_us = 5_000_000;
        let error = check(&schedule).expect_err("nothing is synced in time");
        assert!(error.contains("for all operations of a client,"), "{error}");
    }

    #[test]
    fn only_a_write_in_a_session_can_be_stolen_from() {
        let has_reads = |schedule: &Schedule| schedule.operations.iter().any(|it| it.read);
        let mut schedule =
            (0..1000).map(Schedule::from_seed).find(has_reads).expect("some seed reads");
        let read = schedule.operations.iter_mut().find(|planned| planned.read);
        read.expect("it was looked for").steals = true;
        let error = check(&schedule).expect_err("a read has nothing to steal");
        assert!(error.contains("`steals`"), "{error}");
    }
}
