use super::*;
use crate::{
    core::{
        Limits, Settings,
        testing::{DIGEST_KEY, configuration, core, envelope, noop, settle, write},
    },
    messages::{AppendEntries, Metadata},
};

/// Bytes of the first questions.
const UNIT: usize = 4 << 10;

const SETTINGS: Settings = Settings {
    mode: crate::core::Mode::HovercRaft,
    policy: crate::core::Policy::Jbsq,
    queue_bound: 128,
    timing: crate::core::Timing::LAN,
    durability: crate::storage::Durability::Sync,
    admission_limit: 100,
    log_bytes_max: 1 << 16,
    limits: Limits::DEFAULT,
};

fn append(after: Index, count: usize, commit: Index, first_index: Index) -> Message {
    let metadata = Metadata::of(&noop(1), 0).expect("the base is the entry's own");
    Message::AppendEntries(AppendEntries {
        previous_index: after,
        previous_term: u64::from(after > 0),
        commit,
        noop: 1,
        first_index,
        round: 0,
        entries_term: 1,
        log_time_us: 0,
        entries: vec![metadata; count],
        configurations: Vec::new(),
        requests: Vec::new(),
    })
}

fn meta(index: Index, checksum: u32) -> SnapshotMeta {
    let size_bytes = 40 * PART_BYTES_MAX as u64;
    let configuration = configuration(3);
    SnapshotMeta {
        index,
        term: 1,
        configuration,
        log_time_us: 0,
        size_bytes,
        checksum,
        digest_key: DIGEST_KEY,
    }
}

fn after(time: Duration) -> Time {
    Time::ZERO + time
}

/// Replica 1 with 600 entries of replica 2, the leader, committed and applied.
fn follower() -> Core {
    let entries = (0..600).map(|sequence| write(1, 9, sequence)).collect();
    let mut core = core(SETTINGS, entries);
    core.handle_message(Time::ZERO, envelope(2, 1, append(600, 0, 600, 1)));
    core
}

fn takes_snapshot(core: &mut Core, now: Time) -> bool {
    settle(core, now).iter().any(|output| matches!(output, Output::TakeSnapshot))
}

#[test]
fn a_snapshot_that_cannot_be_taken_is_tried_again_later_and_later() {
    let mut core = follower();
    assert!(takes_snapshot(&mut core, Time::ZERO));
    core.handle_snapshot(Time::ZERO, None);
    assert!(!takes_snapshot(&mut core, after(TAKE_AGAIN_AFTER / 2)));
    assert!(takes_snapshot(&mut core, after(TAKE_AGAIN_AFTER)));
    core.handle_snapshot(after(TAKE_AGAIN_AFTER), None);
    assert!(!takes_snapshot(&mut core, after(TAKE_AGAIN_AFTER * 2)));
    assert!(takes_snapshot(&mut core, after(TAKE_AGAIN_AFTER * 3)));
}

#[test]
fn what_follows_a_snapshot_that_is_being_read_stays_for_a_while() {
    let mut core = follower();
    takes_snapshot(&mut core, Time::ZERO);
    core.handle_snapshot(Time::ZERO, Some(&meta(600, 0)));
    settle(&mut core, Time::ZERO);
    let (index, offset, question, bytes) = (600, 0, 1, 1000);
    let asked = Message::FetchSnapshot { index, offset, question, bytes };
    core.handle_message(Time::ZERO, envelope(3, 1, asked));
    core.handle_message(Time::ZERO, envelope(2, 1, append(600, 550, 1150, 1)));
    assert!(takes_snapshot(&mut core, Time::ZERO));
    core.handle_snapshot(Time::ZERO, Some(&meta(1150, 0)));
    settle(&mut core, Time::ZERO);
    assert_eq!((core.snapshots.latest, core.log.first()), (1150, 601));
    core.handle_message(after(PIN_FOR), envelope(2, 1, append(1150, 10, 1160, 1)));
    settle(&mut core, after(PIN_FOR));
    assert!(core.log.first() > 601);
}

#[test]
fn the_log_is_trimmed_some_entries_a_turn() {
    let entries = (0..3 * Limits::DEFAULT.trim_count as u64).map(|sequence| write(1, 9, sequence));
    let mut core = core(SETTINGS, entries.collect());
    let last = core.log.last();
    core.handle_message(Time::ZERO, envelope(2, 1, append(last, 0, last, 1)));
    assert!(takes_snapshot(&mut core, Time::ZERO));
    core.handle_snapshot(Time::ZERO, Some(&meta(last, 0)));
    let mut firsts = Vec::new();
    while firsts.last() != Some(&core.log.first()) {
        firsts.push(core.log.first());
        core.flush(Time::ZERO, 0);
    }
    assert_eq!(firsts[..3], [1, 1025, 2049]);
    assert!(core.log.size_bytes() <= SETTINGS.log_bytes_max / 2);
    assert!(!core.snapshots.is_taking);
}

/// The core's question for a part of a snapshot, if it asks, and the donor.
fn asked(core: &mut Core, now: Time) -> Option<(NodeId, Index, u64)> {
    settle(core, now).into_iter().find_map(|output| match output {
        Output::Send { to, envelope } => match envelope.message {
            Message::FetchSnapshot { index, offset, .. } => Some((to, index, offset)),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn a_transfer_goes_on_with_another_donor_where_it_stopped() {
    let mut core = follower();
    let mut now = Time::ZERO;
    let part = |meta, offset, question| {
        let meta = Box::new(meta);
        let data = vec![7; UNIT];
        Message::SnapshotPart { meta, offset, data, question }
    };
    // The leader has trimmed what this replica needs.
    let heartbeat = || envelope(2, 1, append(20_000, 0, 20_000, 9000));
    let offer = |from| envelope(from, 1, Message::SnapshotAvailable { index: 9500, question: 1 });
    core.handle_message(now, heartbeat());
    core.handle_message(now, offer(3));
    assert_eq!(asked(&mut core, now), Some((NodeId(3), 9500, 0)));
    let here = 2 * UNIT as u64;
    for (offset, question) in [(0, 1), (UNIT as u64, 2)] {
        core.handle_message(now, envelope(3, 1, part(meta(9500, 1), offset, question)));
        let asked = asked(&mut core, now).expect("it asks for more");
        assert!(asked.0 == NodeId(3) && asked.2 > offset, "what came is not asked for again");
    }
    // Then nothing comes for a while, and at last it is given up.
    let mut questions = 0;
    while core.snapshots.is_receiving() {
        now += SETTINGS.timing.heartbeat;
        core.handle_message(now, heartbeat());
        core.handle_timeout(now);
        if core.snapshots.is_receiving()
            && let Some(asked) = asked(&mut core, now)
        {
            assert_eq!(asked, (NodeId(3), 9500, here));
            questions += 1;
        }
    }
    assert_eq!(now.since(Time::ZERO), DONOR_PATIENCE);
    assert!((3..40).contains(&questions), "{questions} questions in vain");
    // Another donor is asked, not the same one again and again. It has a newer snapshot, and
    // perhaps this one still.
    core.handle_message(now, heartbeat());
    assert_eq!(asked(&mut core, now), None);
    now += Duration::from_millis(5);
    core.handle_timeout(now);
    let donor = settle(&mut core, now).into_iter().find_map(|output| match output {
        Output::Send { to, envelope } => {
            matches!(envelope.message, Message::FetchEntries { .. }).then_some(to)
        }
        _ => None,
    });
    assert_eq!(donor, Some(NodeId(2)));
    core.handle_message(now, offer(2));
    assert_eq!(asked(&mut core, now), Some((NodeId(2), 9500, here)));
    // Its snapshot at that index turns out to have other bytes.
    core.handle_message(now, envelope(2, 1, part(meta(9500, 2), here, 1)));
    assert_eq!(asked(&mut core, now), Some((NodeId(2), 9500, 0)));
}

/// The leader's metadata of eight requests that are nowhere.
fn append_of_what_nobody_has() -> Message {
    let mut order = append(600, 0, 600, 1);
    if let Message::AppendEntries(append) = &mut order {
        let requests = (0..8).map(|sequence| write(1, 9, 1000 + sequence));
        append.entries = requests.map(|it| Metadata::of(&it, 0).unwrap()).collect();
    }
    order
}

#[test]
fn late_answers_bring_no_questions_for_bodies_while_a_snapshot_comes() {
    let mut core = follower();
    let now = Time::ZERO;
    core.handle_message(now, envelope(2, 1, append_of_what_nobody_has()));
    core.handle_message(now, envelope(2, 1, append(20_000, 0, 20_000, 9000)));
    let offer = Message::SnapshotAvailable { index: 9500, question: 1 };
    core.handle_message(now, envelope(3, 1, offer));
    settle(&mut core, now);
    assert!(core.snapshots.is_receiving() && core.binding.len() > 0);
    for question in 0..8 {
        let parts = Vec::new();
        core.handle_message(now, envelope(2, 1, Message::Bodies { parts, question }));
        for output in settle(&mut core, now) {
            let Output::Send { envelope, .. } = output else { continue };
            let is_question = matches!(envelope.message, Message::FetchBodies { .. });
            assert!(!is_question, "{:?}", envelope.message);
        }
    }
}

/// P9: the leader has them, and may need this replica for a quorum.
#[test]
fn bodies_are_asked_for_while_the_donor_of_a_snapshot_is_silent() {
    let mut core = follower();
    core.handle_message(Time::ZERO, envelope(2, 1, append_of_what_nobody_has()));
    core.handle_message(Time::ZERO, envelope(2, 1, append(20_000, 0, 20_000, 9000)));
    let offer = Message::SnapshotAvailable { index: 9500, question: 1 };
    core.handle_message(Time::ZERO, envelope(3, 1, offer));
    let mut asks = |from: u64, to: u64| {
        (from..to).any(|ms| {
            let now = after(Duration::from_millis(ms));
            core.handle_message(now, envelope(2, 1, append(20_000, 0, 20_000, 9000)));
            core.handle_timeout(now);
            assert!(core.snapshots.is_receiving());
            settle(&mut core, now).iter().any(|output| {
                matches!(output, Output::Send { envelope, .. }
                    if matches!(envelope.message, Message::FetchBodies { .. }))
            })
        })
    };
    let silence = SETTINGS.timing.election_max.as_millis() as u64;
    assert!(!asks(0, silence) && asks(silence, silence + 50));
}

#[test]
fn a_question_for_bodies_that_a_snapshot_overtook_is_never_due() {
    let mut core = follower();
    let now = Time::ZERO;
    core.handle_message(now, envelope(2, 1, append_of_what_nobody_has()));
    settle(&mut core, now);
    let asked = now + Duration::from_millis(1);
    core.handle_timeout(asked);
    let outputs = settle(&mut core, asked);
    let is_question = |output: &Output| {
        matches!(output, Output::Send { envelope, .. }
            if matches!(envelope.message, Message::FetchBodies { .. }))
    };
    assert!(outputs.iter().any(is_question), "{outputs:?}");
    core.handle_message(asked, envelope(2, 1, append(20_000, 0, 20_000, 9000)));
    let offer = Message::SnapshotAvailable { index: 9500, question: 1 };
    core.handle_message(asked, envelope(3, 1, offer));
    assert!(core.snapshots.is_receiving());
    // The timer is looked at before the turn ends, as it is on a machine that is busy.
    let late = asked + Duration::from_millis(60);
    core.handle_message(late, envelope(2, 1, Message::Bodies { parts: vec![], question: 7 }));
    core.handle_timeout(late);
    assert!(!core.timers.is_due(Timer::Recovery, late));
}
