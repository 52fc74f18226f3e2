//! A service that panics on one replica and not on the others, by a fault of its host (P42).

use std::time::Duration;

use hovercraft_sim::{ClientOptions, Options, Schedule, Stepper, Violation};

const PATIENCE: Duration = Duration::from_secs(5);

const LOG_BYTES: usize = 1 << 16;

/// Many more bytes than a log may hold.
fn busy_cluster() -> Result<(Stepper, usize), Violation> {
    let mut options = Options::calm(3, 3);
    options.cluster.log_bytes_max = vec![LOG_BYTES; 3];
    options.clients.push(ClientOptions {
        operations: 3000,
        window: 64,
        reads_per_mille: 300,
        body_max: 500,
        retry_after_us: 20_000,
        ..ClientOptions::OBEDIENT
    });
    let mut stepper = Stepper::new(Schedule::calm(options));
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some())?;
    let leader = stepper.leader().expect("run_until() has waited for one");
    stepper.run_for(Duration::from_millis(5))?;
    Ok((stepper, leader))
}

#[test]
fn a_leader_that_is_poisoned_gives_way_and_what_it_was_to_answer_is_answered()
-> Result<(), Violation> {
    let (mut stepper, leader) = busy_cluster()?;
    stepper.poison_replica(leader);
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some_and(|now| now != leader))?;
    stepper.run_until(PATIENCE, Stepper::clients_are_done)?;
    // It does not come back to the lead.
    assert_ne!(stepper.leader(), Some(leader));
    assert!(stepper.coverage().count("snapshots taken") > 1);
    Ok(())
}

#[test]
fn a_follower_that_is_poisoned_is_given_nothing_to_answer_and_is_healed_by_a_snapshot()
-> Result<(), Violation> {
    let (mut stepper, leader) = busy_cluster()?;
    let poisoned = (leader + 1) % 3;
    stepper.poison_replica(poisoned);
    stepper.run_for(Duration::from_millis(30))?;
    let queue = |stepper: &Stepper| {
        let status = stepper.status(leader).expect("it was not killed");
        status.replicas[poisoned].queue
    };
    let before = queue(&stepper);
    stepper.run_for(Duration::from_millis(10))?;
    assert_eq!(queue(&stepper), before);
    stepper.run_until(PATIENCE, Stepper::clients_are_done)?;
    // Its log fills, so others trim what it would need, and it has the state of one of them.
    stepper.run()?;
    assert!(stepper.coverage().count("snapshots installed") > 0);
    Ok(())
}

#[test]
fn where_every_service_is_poisoned_there_is_still_a_leader() -> Result<(), Violation> {
    let (mut stepper, leader) = busy_cluster()?;
    (0..3).for_each(|at| stepper.poison_replica(at));
    stepper.run_for(Duration::from_millis(500))?;
    assert_eq!(stepper.leader(), Some(leader));
    // Its end would need none: an operator's word must still be ordered.
    stepper.kill_replica(leader);
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some())
}
