//! A replica behind a narrow link that needs a snapshot: it gets it, and floods nothing.

use std::time::Duration;

use hovercraft_sim::{ClientOptions, Options, Schedule, Stepper, Violation};

const PATIENCE: Duration = Duration::from_secs(20);

/// A link both ways.
#[derive(Debug, Clone, Copy)]
struct Link {
    kbit_per_s: u32,
    queue_bytes: u32,
    delay: Duration,
}

const LINKS: [Link; 4] = [
    Link { kbit_per_s: 2000, queue_bytes: 100_000, delay: Duration::from_millis(100) },
    Link { kbit_per_s: 5000, queue_bytes: 60_000, delay: Duration::from_millis(40) },
    Link { kbit_per_s: 10_000, queue_bytes: 30_000, delay: Duration::from_millis(20) },
    Link { kbit_per_s: 20_000, queue_bytes: 200_000, delay: Duration::from_millis(10) },
];

const SNAPSHOT_BYTES: usize = 12 << 20;

/// Clients that are soon done, and one that writes all the time.
fn options(seed: u64) -> Options {
    let mut options = Options::calm(seed, 3);
    options.cluster.log_bytes_max = vec![512 << 10; 3];
    options.pace.ballast_bytes = SNAPSHOT_BYTES;
    options.patience_us = 600_000_000;
    let busy =
        ClientOptions { operations: 4000, window: 32, body_max: 500, ..ClientOptions::OBEDIENT };
    let steady = ClientOptions {
        operations: 20_000,
        think_max_us: 40_000,
        body_max: 100,
        retry_after_us: 20_000,
        ..ClientOptions::OBEDIENT
    };
    options.clients.extend([busy, steady]);
    options
}

/// Returns how many answers clients get in a second.
fn answers(stepper: &mut Stepper) -> Result<u64, Violation> {
    let before = stepper.coverage().count("answers");
    stepper.run_for(Duration::from_secs(1))?;
    Ok(stepper.coverage().count("answers") - before)
}

#[test]
fn a_snapshot_comes_through_a_narrow_link_and_nobody_else_notices() -> Result<(), Violation> {
    for link in LINKS {
        for seed in 13..17 {
            catch_up(link, seed)?;
        }
    }
    Ok(())
}

fn catch_up(link: Link, seed: u64) -> Result<(), Violation> {
    let Link { kbit_per_s, queue_bytes, delay } = link;
    let mut stepper = Stepper::new(Schedule::calm(options(seed)));
    stepper.run_until(PATIENCE, |stepper| stepper.leader().is_some())?;
    let leader = stepper.leader().expect("run_until() has waited for one");
    let behind = (leader + 1) % 3;
    for other in [leader, (leader + 2) % 3] {
        stepper.cut_replicas(other, behind);
        stepper.cut_replicas(behind, other);
    }
    // Until the others have trimmed what it needs.
    let status = |stepper: &Stepper, at| stepper.status(at).expect("nobody is down");
    let has_trimmed =
        |stepper: &Stepper, at| status(stepper, at).first > status(stepper, behind).last + 1;
    stepper.run_until(PATIENCE, |stepper| {
        has_trimmed(stepper, leader) && has_trimmed(stepper, (leader + 2) % 3)
    })?;
    stepper.run_for(Duration::from_secs(1))?;
    let before = answers(&mut stepper)?;
    stepper.mend_links();
    stepper.narrow_replica(behind, kbit_per_s, queue_bytes, delay);
    let target = status(&stepper, leader).commit;
    let term = status(&stepper, leader).term;
    let taken = stepper.coverage().count("snapshots taken");

    let size_ms = SNAPSHOT_BYTES as u64 * 8 / u64::from(kbit_per_s);
    let (mut took_s, mut fewest) = (0, u64::MAX);
    while status(&stepper, behind).applied < target {
        fewest = fewest.min(answers(&mut stepper)?);
        took_s += 1;
        assert!(took_s * 1000 < 3 * size_ms, "{took_s} s: {}", stepper.coverage());
    }
    let coverage = stepper.coverage();
    println!("{link:?}: {took_s} s, {fewest} answers a second, {before} before\n{coverage}");
    let (sent, unused) = (
        coverage.count("parts of snapshots sent"),
        coverage.count("parts of snapshots that were not used"),
    );
    assert!(unused * 20 <= sent, "{unused} parts of {sent} were sent again");
    let lost = coverage.count("bytes that narrow links lost");
    assert!(lost * 20 <= coverage.count("bytes through narrow links"), "{coverage}");
    // Where it takes long, a newer one was taken meanwhile, and did not make it begin anew.
    assert!(took_s < 40 || coverage.count("snapshots taken") > taken, "{coverage}");
    assert_eq!(coverage.count("snapshots installed"), 1, "{coverage}");
    assert_eq!((coverage.count("elections won"), status(&stepper, leader).term), (1, term));
    // The client thinks for a random time: one second in sixty has a quarter fewer.
    assert!(fewest * 10 >= before * 6, "{fewest} answers a second, and {before} before");
    // And it stays with the others.
    stepper.run_for(Duration::from_secs(5))?;
    let (there, here) = (status(&stepper, leader), status(&stepper, behind));
    assert!(here.applied + 100 >= there.commit, "{} of {}", here.applied, there.commit);
    Ok(())
}
