//! What the death of the leader costs those that go on without it.

use std::time::Duration;

use hovercraft_sim::{ClientOptions, Options, Schedule, Stepper, Violation};

const PATIENCE: Duration = Duration::from_secs(5);

/// How many answers clients get in 50 ms.
fn answers(stepper: &mut Stepper) -> Result<u64, Violation> {
    let before = stepper.coverage().count("answers");
    stepper.run_for(Duration::from_millis(50))?;
    Ok(stepper.coverage().count("answers") - before)
}

#[test]
fn two_replicas_of_three_answer_as_much_as_before_soon_after_the_election() -> Result<(), Violation>
{
    // Syncs all take equally long, or a quorum of two out of two would have to wait for the slower.
    let mut options = Options::calm(11, 3);
    for _ in 0..8 {
        options.clients.push(ClientOptions {
            operations: 20_000,
            window: 4,
            // A read waits for its client to ask again.
            reads_per_mille: 0,
            body_max: 100,
            retry_after_us: 25_000,
            ..ClientOptions::OBEDIENT
        });
    }
    let mut stepper = Stepper::new(Schedule::calm(options));
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some())?;
    let leader = stepper.leader().expect("run_until() has waited for one");
    answers(&mut stepper)?;
    let before = answers(&mut stepper)?;
    stepper.kill_replica(leader);
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some())?;
    // The new leader answers what the dead one was to answer (P18).
    stepper.run_for(Duration::from_millis(5))?;
    let after = answers(&mut stepper)?;
    assert!(after * 10 >= before * 9, "{after} answers in 50 ms, and {before} before");
    Ok(())
}
