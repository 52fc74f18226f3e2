//! Short runs that read as stories, compared with transcripts in `stories/`.
//!
//! `UPDATE_STORIES=1 cargo test -p hovercraft-sim --test stories` writes the transcripts anew; read
//! the difference before you keep it.

use std::{env, fs, path::Path, time::Duration};

use hovercraft_sim::{ClientOptions, Operation, Options, Stepper, Violation};

const PATIENCE: Duration = Duration::from_secs(2);

/// A client that does what it is told, one request after the other.
const OBEDIENT: ClientOptions = ClientOptions::OBEDIENT;

/// Three replicas that have elected a leader, and a client with a session.
fn beginning(client: ClientOptions) -> Result<(Stepper, usize), Violation> {
    let mut options = Options::calm(1, 3);
    options.clients.push(client);
    let mut story = Stepper::with_story(options);
    story.narrate("A leader is elected, and a client opens a session and writes.");
    story.run_until(PATIENCE, |story| story.leader().is_some())?;
    let leader = story.leader().expect("run_until() has waited for one");
    story.tell(0, Operation::Set { key: 1, value: 10 });
    finish(&mut story)?;
    Ok((story, leader))
}

/// The same, but not told.
fn told_before(title: &str, client: ClientOptions) -> Result<(Stepper, usize), Violation> {
    let (mut story, leader) = beginning(client)?;
    story.forget_story();
    story.narrate(title);
    Ok((story, leader))
}

/// Until the client has all its answers, and everybody knows what there is to know.
fn finish(story: &mut Stepper) -> Result<(), Violation> {
    story.run_until(PATIENCE, Stepper::clients_are_done)?;
    story.run_for(Duration::from_millis(25))
}

fn compare(name: &str, story: &Stepper) {
    let told: Vec<_> = story.story().collect();
    let told = told.join("\n") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/stories/{name}.txt"));
    if env::var_os("UPDATE_STORIES").is_some() {
        fs::write(&path, &told).expect("the transcripts can be written");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        known == told,
        "the story differs from {}; with UPDATE_STORIES=1 it is written anew:\n{told}",
        path.display()
    );
}

#[test]
fn a_request_is_ordered_and_answered() -> Result<(), Violation> {
    let (mut story, _) = beginning(OBEDIENT)?;
    story.narrate("Then it writes and reads at once: two replicas answer.");
    story.tell(0, Operation::Add { key: 1, value: 5 });
    story.tell(0, Operation::Get { key: 1 });
    finish(&mut story)?;
    compare("ordered_and_answered", &story);
    Ok(())
}

#[test]
fn a_missing_body_is_recovered() -> Result<(), Violation> {
    let title = "A request reaches all replicas but one, which asks the leader for its body.";
    let (mut story, leader) = told_before(title, OBEDIENT)?;
    let deaf = (leader + 1) % 3;
    story.cut_client(0, deaf);
    story.tell(0, Operation::Add { key: 1, value: 5 });
    finish(&mut story)?;
    assert_eq!(story.coverage().count("bodies recovered"), 1);
    compare("missing_body", &story);
    Ok(())
}

#[test]
fn a_new_leader_orders_what_is_left() -> Result<(), Violation> {
    let patient = ClientOptions { retry_after_us: 400_000, ..OBEDIENT };
    let title = "A request reaches all replicas but the leader, and then the leader dies.";
    let (mut story, leader) = told_before(title, patient)?;
    story.cut_client(0, leader);
    story.tell(0, Operation::Add { key: 1, value: 5 });
    story.run_for(Duration::from_micros(200))?;
    story.kill_replica(leader);
    story.narrate("Whoever is elected orders the request, without being asked again.");
    finish(&mut story)?;
    assert_eq!(story.coverage().count("leftovers adopted"), 1);
    compare("leftovers", &story);
    Ok(())
}

#[test]
fn a_retry_is_answered_from_the_session_table() -> Result<(), Violation> {
    let (mut story, _) = told_before("A write is executed, and its answer is lost.", OBEDIENT)?;
    for replica in 0..3 {
        story.cut_replies(replica, 0);
    }
    story.tell(0, Operation::Add { key: 1, value: 5 });
    story.run_for(Duration::from_millis(2))?;
    story.mend_links();
    story.narrate("The client asks again: the leader has kept the answer, and executes nothing.");
    finish(&mut story)?;
    assert_eq!(story.coverage().count("retries answered from the session table"), 1);
    compare("retry_after_execution", &story);
    Ok(())
}

#[test]
fn a_retry_of_what_is_in_the_log_is_answered_by_the_leader_too() -> Result<(), Violation> {
    let title = "A write is ordered, but the leader hears of no follower that holds it.";
    let (mut story, leader) = told_before(title, OBEDIENT)?;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for other in others {
        story.cut_replicas(other, leader);
        story.cut_replies(other, 0);
    }
    story.tell(0, Operation::Add { key: 1, value: 5 });
    story.run_for(Duration::from_millis(8))?;
    story
        .narrate("The client has asked again. Now the followers are heard, but not by the client.");
    story.mend_links();
    for other in others {
        story.cut_replies(other, 0);
    }
    finish(&mut story)?;
    assert!(story.coverage().count("retries found in the log") > 0);
    compare("retry_in_the_log", &story);
    Ok(())
}
