//! A replica that is far behind, with more to fetch than the sweep's short runs ever have.

use std::time::Duration;

use hovercraft_sim::{ClientOptions, Options, Schedule, Stepper, Violation};

/// More entries than a leader sends to a follower itself (P9).
const OPERATIONS: u32 = 6000;

fn options() -> Options {
    let mut options = Options::calm(7, 3);
    options.clients.push(ClientOptions {
        operations: OPERATIONS,
        window: 64,
        reads_per_mille: 100,
        body_max: 500,
        retry_after_us: 20_000,
        ..ClientOptions::OBEDIENT
    });
    options
}

/// One follower hears nothing until the others have done everything.
fn leave_one_behind(options: Options) -> Result<Stepper, Violation> {
    let mut stepper = Stepper::new(Schedule::calm(options));
    let patience = Duration::from_secs(10);
    stepper.run_until(patience, |stepper| stepper.leader().is_some())?;
    let leader = stepper.leader().expect("run_until() has waited for one");
    let behind = (leader + 1) % 3;
    for other in [leader, (leader + 2) % 3] {
        stepper.cut_replicas(other, behind);
        stepper.cut_replicas(behind, other);
    }
    stepper.cut_client(0, behind);
    stepper.run_until(patience, Stepper::clients_are_done)?;
    stepper.mend_links();
    stepper.run()?;
    Ok(stepper)
}

#[test]
fn entries_are_fetched_in_bulk() -> Result<(), Violation> {
    let coverage = leave_one_behind(options())?.coverage();
    assert!(coverage.count("entries fetched in bulk") > 4096, "{coverage}");
    assert_eq!(coverage.count("snapshots installed"), 0, "{coverage}");
    Ok(())
}

#[test]
fn a_snapshot_is_installed_where_the_entries_are_trimmed() -> Result<(), Violation> {
    let mut options = options();
    options.cluster.log_bytes_max = vec![1 << 16; 3];
    let coverage = leave_one_behind(options)?.coverage();
    assert_eq!(coverage.count("snapshots installed"), 1, "{coverage}");
    Ok(())
}

#[test]
fn a_deposed_leader_fetches_in_bulk_what_replaced_the_end_of_its_log() -> Result<(), Violation> {
    let mut stepper = Stepper::new(Schedule::calm(options()));
    let patience = Duration::from_secs(10);
    stepper.run_until(patience, |stepper| stepper.leader().is_some())?;
    let leader = stepper.leader().expect("run_until() has waited for one");
    // Time for more entries than come at once.
    stepper.run_for(Duration::from_millis(5))?;
    for other in [(leader + 1) % 3, (leader + 2) % 3] {
        stepper.cut_replicas(leader, other);
        stepper.cut_replicas(other, leader);
    }
    // What it orders now is never committed.
    stepper.run_for(Duration::from_millis(1))?;
    stepper.kill_replica(leader);
    stepper.mend_links();
    stepper.run_until(patience, Stepper::clients_are_done)?;
    // In its new run it does not know what is committed.
    stepper.start_replica(leader);
    stepper.run()?;
    let coverage = stepper.coverage();
    assert!(coverage.count("entries truncated") > 0, "{coverage}");
    assert!(coverage.count("entries fetched in bulk") > 4096, "{coverage}");
    Ok(())
}
