//! Received snapshots that a service cannot read, and crashes between the steps of an install (P36).

use std::time::Duration;

use hovercraft::core::InstallStep;
use hovercraft_sim::{ClientOptions, Options, Schedule, Stepper, Violation};

const PATIENCE: Duration = Duration::from_secs(8);

/// The replica that is behind.
const BEHIND: usize = 2;

/// Three replicas with small logs, of which the last is cut off until it needs a snapshot.
fn behind(unreadable_per_mille: u32, thread: bool) -> Result<Stepper, Violation> {
    let mut options = Options::calm(5, 3);
    // Until then, what goes wrong goes on.
    options.chaos_us = 6_000_000;
    options.cluster.log_bytes_max = vec![1 << 14; 3];
    options.disk.unreadable_per_mille = unreadable_per_mille;
    options.pace.apply_max_us = thread.then_some(50);
    options.clients.push(ClientOptions {
        operations: 1500,
        window: 16,
        reads_per_mille: 200,
        body_max: 200,
        retry_after_us: 20_000,
        ..ClientOptions::OBEDIENT
    });
    let mut stepper = Stepper::new(Schedule::calm(options));
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some())?;
    if stepper.leader() == Some(BEHIND) {
        stepper.kill_replica(BEHIND);
        stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some_and(|at| at != BEHIND))?;
        stepper.start_replica(BEHIND);
    }
    for other in [0, 1] {
        stepper.cut_replicas(other, BEHIND);
        stepper.cut_replicas(BEHIND, other);
    }
    stepper.run_until(PATIENCE, Stepper::clients_are_done)?;
    stepper.mend_links();
    Ok(stepper)
}

#[test]
fn a_crash_between_any_two_steps_of_an_install_loses_nothing() -> Result<(), Violation> {
    let steps = [
        (InstallStep::TakingOwn, 0, "killed while taking the own snapshot"),
        (InstallStep::Reading, 0, "killed while reading a snapshot"),
        (InstallStep::Switching, 0, "killed while switching to a snapshot"),
        (InstallStep::GoingBack, 1000, "killed while going back to the own snapshot"),
    ];
    for thread in [false, true] {
        for (step, unreadable_per_mille, what) in steps {
            let mut stepper = behind(unreadable_per_mille, thread)?;
            stepper.run_until(PATIENCE, |stepper| stepper.install_step(BEHIND) == Some(step))?;
            stepper.kill_replica(BEHIND);
            stepper.start_replica(BEHIND);
            // Everything is put right, and must be there.
            stepper.run()?;
            assert_eq!(stepper.coverage().count(what), 1);
        }
    }
    Ok(())
}

#[test]
fn a_service_that_can_read_no_snapshot_goes_back_and_its_replica_lives() -> Result<(), Violation> {
    for thread in [false, true] {
        let mut stepper = behind(1000, thread)?;
        let applied = stepper.status(BEHIND).expect("it runs").applied;
        stepper.run_for(Duration::from_secs(2))?;
        let status = stepper.status(BEHIND).expect("it runs on");
        assert!(status.applied >= applied && status.commit >= applied, "{status:?}");
        let count = stepper.coverage().count("services that went back");
        // It tries again and again, and more and more seldom.
        assert!((3..30).contains(&count), "{count}");
        // When the service can read again, it has the state of the others soon.
        stepper.run()?;
    }
    Ok(())
}
