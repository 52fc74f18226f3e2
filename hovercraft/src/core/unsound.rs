//! Tests of requests that contradict themselves: they are refused at the intake of every replica, and
//! decided about at apply if they were ordered all the same (P1, P21).

use std::{
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use r2p2::Time;

use super::{Applier, Committed, Core, Output, Settings, testing::*};
use crate::{
    entry::{Entry, Index, NodeId, Payload},
    messages::{BodyPart, Message, Metadata, WholeEntry, WholeRequest},
    request::{Identity, Kind, Outcome, Request},
    state_machine::{Context, SnapshotWriter, StateMachine},
};

const KINDS: [Kind; 3] = [Kind::Write, Kind::Read, Kind::Cancel];

/// Each contradicts itself.
fn unsound() -> Vec<Arc<Request>> {
    let believed = KINDS.map(|kind| request_of(9, 5, 6, kind, b"12345678"));
    let far = request_of(9, 5, u64::MAX, Kind::Write, b"body");
    let without_session = KINDS.map(|kind| request_of(0, 5, 0, kind, b"12345678"));
    believed.into_iter().chain([far]).chain(without_session).collect()
}

fn sound() -> Vec<Arc<Request>> {
    let mut sound = vec![request_of(0, 77, 0, Kind::OpenSession, b"")];
    sound.extend(KINDS.map(|kind| request_of(9, 5, 5, kind, b"12345678")));
    let identity = Identity::Plain { address: return_path(1).address, request_id: 0 };
    let plain = Request::new(DIGEST_KEY, identity, 0, Kind::Write, Bytes::new());
    sound.push(Arc::new(plain));
    sound
}

fn hand_over(core: &mut Core, request: &Arc<Request>) -> Vec<Output> {
    core.handle_request(elected_at(), Arc::clone(request), return_path(7));
    settle(core, elected_at())
}

#[test]
fn every_replica_refuses_them_at_its_intake_and_the_leader_says_so() {
    for request in unsound() {
        let mut leader = leader(Settings::default());
        let last = leader.log_bounds().1;
        let outputs = hand_over(&mut leader, &request);
        let is_drop = |output: &Output| matches!(output, Output::Drop { .. });
        assert_eq!(outputs.iter().filter(|output| is_drop(output)).count(), 1, "{request:?}");
        assert_eq!(leader.log_bounds().1, last, "{request:?}");
        for mode in [super::Mode::Raft, super::Mode::HovercRaft] {
            let mut follower = follower(mode);
            assert!(hand_over(&mut follower, &request).is_empty(), "{request:?}");
            assert_eq!(follower.unordered.len(), 0, "{request:?}");
        }
    }
    for request in sound() {
        let mut leader = leader(Settings::default());
        let last = leader.log_bounds().1;
        hand_over(&mut leader, &request);
        assert_eq!(leader.log_bounds().1, last + 1, "{request:?}");
    }
}

/// Replica 1 of three, which knows replica 2 as its leader.
fn follower(mode: super::Mode) -> Core {
    let mut core = core(Settings { mode, ..Settings::default() }, vec![noop(1)]);
    let heartbeat = append_noops((1, 1), 1, 0);
    core.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(heartbeat)));
    settle(&mut core, Time::ZERO);
    core
}

fn ordered(request: &Arc<Request>) -> Entry {
    let (replier, request) = (NodeId(2), Arc::clone(request));
    entry(1, Payload::Request { replier, request })
}

/// The leader was of another mind: to refuse it now would be to stop for ever.
#[test]
fn what_is_ordered_is_bound_whichever_way_its_body_comes() {
    for request in unsound() {
        let ordered = ordered(&request);
        let metadata = Metadata::of(&ordered, 0).expect("the base is the entry's own");
        let mut append = append_noops((1, 1), 1, 0);
        append.entries = vec![metadata];

        let mut follower = follower(super::Mode::HovercRaft);
        follower.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(append.clone())));
        settle(&mut follower, Time::ZERO);
        assert_eq!(follower.log_bounds().1, 1, "the body is not here");
        let body_len = request.body().len() as u32;
        let part =
            BodyPart { index: 2, body_len, offset: 0, request: WholeRequest::new(&request, None) };
        let bodies = Message::Bodies { parts: vec![part], question: 1 };
        follower.handle_message(Time::ZERO, envelope(2, 1, bodies));
        settle(&mut follower, Time::ZERO);
        assert_eq!(follower.log_bounds().1, 2, "by Bodies: {request:?}");

        let mut follower = self::follower(super::Mode::Raft);
        append.requests = vec![(0, WholeRequest::new(&request, None))];
        follower.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(append)));
        settle(&mut follower, Time::ZERO);
        assert_eq!(follower.log_bounds().1, 2, "with the metadata: {request:?}");

        let mut follower = self::follower(super::Mode::HovercRaft);
        let mut ahead = append_noops((9_000_000, 1), 1, 0);
        ahead.commit = 9_000_000;
        follower.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(ahead)));
        settle(&mut follower, Time::ZERO);
        assert!(follower.recovery.is_bulk());
        let entries = vec![WholeEntry::new(&ordered, 1000)];
        let bulk = Message::Entries { after: 1, after_term: 1, entries, question: 1, until: 2 };
        follower.handle_message(Time::ZERO, envelope(2, 1, bulk));
        settle(&mut follower, Time::ZERO);
        assert_eq!(follower.log_bounds().1, 2, "by Entries: {request:?}");

        let loaded = core(Settings::default(), vec![noop(1), ordered]);
        assert_eq!(loaded.log_bounds().1, 2, "by the load: {request:?}");
    }
}

/// Counts what it is called for.
#[derive(Default)]
struct Counting(u64);

impl StateMachine for Counting {
    fn execute(&mut self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
        self.0 += 1;
        reply.push(self.0 as u8);
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
        reply.push(self.0 as u8);
    }

    fn snapshot(&self) -> SnapshotWriter {
        unreachable!("the test takes none")
    }

    fn restore(&mut self, _: &mut dyn Read) -> io::Result<()> {
        unreachable!("the test reads none")
    }
}

/// What the replier answers to the entry after `index`.
fn apply(applier: &mut Applier, request: &Arc<Request>) -> (Outcome, Vec<u8>) {
    let index: Index = applier.applied() + 1;
    let entry = ordered(request);
    let answer_to = Some(return_path(7));
    let committed = Committed { index, entry, executes_read: true, answer_to };
    let mut answers = Vec::new();
    applier
        .apply(&committed, &mut |response| {
            answers.push((response.outcome, response.body.to_vec()));
        })
        .expect("the service is in good order");
    let [answer] = &answers[..] else { panic!("one answer: {answers:?}") };
    answer.clone()
}

fn applier() -> Applier {
    Applier::new(Box::new(Counting::default()), CLUSTER, DIGEST_KEY, configuration(3).into())
}

#[test]
fn a_lowest_above_the_sequence_raises_nothing() {
    let mut applier = applier();
    let opened = apply(&mut applier, &request_of(0, 3, 0, Kind::OpenSession, b""));
    assert_eq!(opened.0, Outcome::Executed);
    let ask = |applier: &mut Applier, sequence, lowest, kind, body| {
        apply(applier, &request_of(1, sequence, lowest, kind, body))
    };
    assert_eq!(ask(&mut applier, 1, 1, Kind::Write, b"a"), (Outcome::Executed, vec![1]));
    for (sequence, lowest) in [(2, 3), (1, 2), (3, 1 << 62), (u64::MAX - 1, u64::MAX)] {
        for kind in [Kind::Write, Kind::Read, Kind::Cancel] {
            let answer = ask(&mut applier, sequence, lowest, kind, b"12345678");
            assert_eq!(answer, (Outcome::Stale, Vec::new()), "{sequence} {lowest} {kind:?}");
        }
    }
    // The session goes on as if they had never been, its kept replies included.
    assert_eq!(ask(&mut applier, 1, 1, Kind::Write, b"a"), (Outcome::Executed, vec![1]));
    assert_eq!(ask(&mut applier, 2, 1, Kind::Write, b"b"), (Outcome::Executed, vec![2]));
    assert_eq!(ask(&mut applier, 3, 3, Kind::Read, b""), (Outcome::Executed, vec![2]));
    assert_eq!(ask(&mut applier, 4, 4, Kind::Write, b"c"), (Outcome::Executed, vec![3]));
}

#[test]
fn without_a_session_nothing_but_the_opening_of_one_is_executed() {
    let mut applier = applier();
    for kind in KINDS {
        for _ in 0..2 {
            let answer = apply(&mut applier, &request_of(0, 5, 0, kind, b"12345678"));
            assert_eq!(answer, (Outcome::Refused, Vec::new()), "{kind:?}");
        }
    }
    let identity = Identity::Plain { address: return_path(1).address, request_id: 0 };
    let plain = Arc::new(Request::new(DIGEST_KEY, identity, 0, Kind::Write, Bytes::new()));
    assert_eq!(apply(&mut applier, &plain), (Outcome::Executed, vec![1]));
}
