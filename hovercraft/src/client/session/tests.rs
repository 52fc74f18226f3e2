//! What a session does, message by message.

use std::net::Ipv4Addr;

use r2p2::{Incoming, ReplyTo, ServerConfig, ServerEndpoint};

use super::*;
use crate::{CallOutcome, cluster_id::tests::says};

const REPLICA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 7000);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 7000);
const COMMAND: CallKind = CallKind::Command { until_known: false };
const UNTIL_KNOWN: CallKind = CallKind::Command { until_known: true };
const TIMEOUT: Duration = Duration::from_secs(5);
const INSTANT: Duration = Duration::from_nanos(1);

fn just_before(wait: Duration) -> Duration {
    wait.saturating_sub(INSTANT)
}

/// A session, and what a replica gets of it.
struct Fixture {
    now: Time,
    session: Session<u32>,
    outbox: Outbox,
    replica: ServerEndpoint,
}

/// The cluster that the replica is of.
const CLUSTER: u64 = 0xC1;

fn replica() -> ServerEndpoint {
    let mut replica = ServerEndpoint::new(ServerConfig::default(), 1);
    replica.set_check_seed(CheckSeed::of(CLUSTER));
    replica
}

/// A request as the replica sees it.
#[derive(Debug, Clone, PartialEq)]
struct Request {
    reply_to: ReplyTo,
    policy: Policy,
    options: Options,
    body: Bytes,
}

impl Request {
    fn session(&self) -> SessionOption {
        self.options.session.expect("every request has SESSION")
    }

    /// Its sequence, and the lowest unacknowledged one.
    fn numbers(&self) -> (u64, u64) {
        (self.session().sequence, self.session().lowest)
    }
}

impl Fixture {
    fn new() -> Self {
        Self {
            now: Time::ZERO,
            session: Session::new(&Destinations::All(vec![REPLICA]), 1),
            outbox: Outbox::new(),
            replica: replica(),
        }
    }

    /// With an open session of client 7 and this window.
    fn open(window: u32) -> Self {
        let mut it = Self::new();
        it.submit(CallKind::Connect, 0, "");
        let opening = it.sent();
        it.grant(&opening[0], 7, window);
        assert_eq!(it.result(), Some((0, Ok(Bytes::new()))));
        it
    }

    fn submit(&mut self, kind: CallKind, token: u32, body: &'static str) {
        let deadline = self.now + TIMEOUT;
        let body = Bytes::from_static(body.as_bytes());
        self.session.submit(Call { kind, body, deadline, timeout: TIMEOUT, token });
    }

    /// Returns what the replica gets now, having said of which cluster it is.
    fn sent(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        while self.take(&mut requests) > 0 {
            self.answer_hello(CLUSTER);
        }
        requests
    }

    fn answer_hello(&mut self, cluster: u64) {
        let (session, outbox) = (&mut self.session, &mut self.outbox);
        session.handle_datagram(self.now, REPLICA, &says(cluster), outbox).unwrap();
    }

    /// Returns what the replica gets now; how often it was asked of which cluster it is.
    fn take(&mut self, requests: &mut Vec<Request>) -> usize {
        self.session.flush(self.now, &mut self.outbox);
        let (mut questions, mut answers) = (0, Outbox::new());
        self.outbox.drain(|batch| {
            for datagram in batch.datagrams() {
                if r2p2::message_type(datagram) == Some(MessageType::RaftRequest) {
                    questions += 1;
                    continue;
                }
                let request =
                    self.replica.handle_datagram(self.now, CLIENT, datagram, &mut answers);
                if let Some(Incoming { reply_to, policy, options, body }) = request.unwrap() {
                    requests.push(Request { reply_to, policy, options, body: body.into_bytes() });
                }
            }
        });
        questions
    }

    /// What the replica gets when time has passed.
    fn sent_after(&mut self, time: Duration) -> Vec<Request> {
        let end = self.now + time;
        let mut requests = self.sent();
        while let Some(due) = self.session.poll_timeout()
            && due <= end
        {
            self.now = due.max(self.now);
            self.session.handle_timeout(self.now, &mut self.outbox);
            requests.extend(self.sent());
        }
        self.now = end;
        requests
    }

    fn reply(&mut self, to: &Request, outcome: Outcome, body: &[u8]) {
        let identity = Some(to.session().identity());
        let outcome = (outcome != Outcome::Executed).then_some(outcome as u8);
        let options = Options { identity, outcome, ..Options::NONE };
        let mut answers = Outbox::new();
        self.replica.respond(self.now, to.reply_to, &options, body, &mut answers).unwrap();
        self.deliver(&mut answers);
    }

    fn refuse_admission(&mut self, to: &Request) {
        let mut answers = Outbox::new();
        let options = Options { identity: Some(to.session().identity()), ..Options::NONE };
        self.replica.drop_request(to.reply_to, &options, &mut answers);
        self.deliver(&mut answers);
    }

    fn grant(&mut self, opening: &Request, client: u64, window: u32) {
        let grant = SessionGrant {
            client,
            window,
            request_bytes_max: 100,
            lifetime: Duration::from_mins(10),
        };
        self.reply(opening, Outcome::Executed, &grant.encode());
        self.session.flush(self.now, &mut self.outbox);
    }

    fn deliver(&mut self, answers: &mut Outbox) {
        answers.drain(|batch| {
            for datagram in batch.datagrams() {
                let (session, outbox) = (&mut self.session, &mut self.outbox);
                session.handle_datagram(self.now, REPLICA, datagram, outbox).unwrap();
            }
        });
    }

    fn result(&mut self) -> Option<(u32, Result<Bytes, CallError>)> {
        self.session.poll_result()
    }
}

#[test]
fn the_first_call_opens_a_session_and_then_is_sent() {
    let mut it = Fixture::new();
    it.submit(COMMAND, 1, "add");
    it.submit(CallKind::Query, 2, "get");
    let opening = it.sent();
    assert_eq!(opening.len(), 1);
    assert_eq!(opening[0].session().client, 0);
    assert_eq!((opening[0].options.request_kind, opening[0].policy), (Some(1), Policy::Replicated));
    it.grant(&opening[0], 7, 10);
    let requests = it.sent();
    let seen: Vec<_> = (requests.iter())
        .map(|request| (request.session(), request.policy, request.options.request_kind))
        .collect();
    let session = |sequence| SessionOption { client: 7, sequence, lowest: 1 };
    assert_eq!(
        seen,
        [(session(1), Policy::Replicated, None), (session(2), Policy::ReplicatedRead, None)]
    );
    it.reply(&requests[1], Outcome::Executed, b"got");
    it.reply(&requests[0], Outcome::Executed, b"added");
    assert_eq!(it.result(), Some((2, Ok("got".into()))));
    assert_eq!(it.result(), Some((1, Ok("added".into()))));
    it.reply(&requests[0], Outcome::Executed, b"added");
    assert_eq!(it.result(), None);
    assert_eq!(it.session.stats().answered_by, [(REPLICA, 3)]);
}

#[test]
fn a_retry_keeps_the_lowest_that_it_was_first_sent_with() {
    // P2: with a raised one it would be another request.
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    it.submit(COMMAND, 2, "b");
    let first = it.sent();
    it.reply(&first[0], Outcome::Executed, b"");
    it.submit(COMMAND, 3, "c");
    let third = it.sent();
    assert_eq!(third[0].numbers(), (3, 2));
    assert_eq!(it.sent_after(RETRY_AFTER), [first[1].clone(), third[0].clone()]);
}

#[test]
fn what_is_not_admitted_keeps_its_identity_and_backs_off() {
    // P23.
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    let first = it.sent();
    it.refuse_admission(&first[0]);
    assert_eq!(it.sent_after(just_before(RETRY_AFTER * 2)), []);
    assert_eq!(it.sent_after(INSTANT), first);
    assert_eq!(it.result(), None);
    assert_eq!(it.session.stats().dropped, 1);
}

#[test]
fn a_command_without_reply_is_unknown_and_does_not_hold_up_the_window() {
    let mut it = Fixture::open(1);
    it.submit(COMMAND, 1, "a");
    let first = it.sent();
    it.now += TIMEOUT / 2;
    it.submit(COMMAND, 2, "b");
    let sent = it.sent_after(TIMEOUT / 2);
    let error = CallError::TimedOut(TIMEOUT);
    assert_eq!(error.outcome(), CallOutcome::Unknown);
    assert_eq!(it.result(), Some((1, Err(error))));
    // From here on the first one is never executed, if it was not (P21).
    assert_eq!(sent.last().map(Request::numbers), Some((2, 2)));
    assert!(sent[..sent.len() - 1].iter().all(|retry| *retry == first[0]));
}

#[test]
fn calls_that_find_no_room_wait_in_order_until_their_time_is_up() {
    let mut it = Fixture::open(2);
    for token in 1..=4 {
        it.submit(COMMAND, token, "x");
    }
    let first = it.sent();
    assert_eq!(first.iter().map(Request::numbers).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    // The window begins at the oldest.
    it.reply(&first[1], Outcome::Executed, b"");
    assert_eq!(it.result(), Some((2, Ok(Bytes::new()))));
    assert_eq!(it.sent(), []);
    it.reply(&first[0], Outcome::Executed, b"");
    assert_eq!(it.result(), Some((1, Ok(Bytes::new()))));
    assert_eq!(it.sent().iter().map(Request::numbers).collect::<Vec<_>>(), [(3, 3), (4, 3)]);
    it.submit(COMMAND, 5, "x");
    it.submit(CallKind::Query, 6, "x");
    it.sent_after(TIMEOUT);
    let results: Vec<_> = std::iter::from_fn(|| it.result()).collect();
    let expected = [
        (3, Err(CallError::TimedOut(TIMEOUT))),
        (4, Err(CallError::TimedOut(TIMEOUT))),
        (5, Err(CallError::NotSent(TIMEOUT))),
        (6, Err(CallError::QueryTimedOut(TIMEOUT))),
    ];
    assert_eq!(results, expected);
    assert_eq!(results[2].1.as_ref().unwrap_err().outcome(), CallOutcome::NotExecuted);
    assert!(results[3].1.as_ref().unwrap_err().is_retryable());
}

/// A call whose time is up, and the request that cancels it.
fn cancelled() -> (Fixture, Request, Request) {
    let mut it = Fixture::open(10);
    it.submit(UNTIL_KNOWN, 1, "a");
    it.submit(UNTIL_KNOWN, 2, "b");
    let requests = it.sent();
    it.reply(&requests[1], Outcome::Executed, b"");
    assert_eq!(it.result(), Some((2, Ok(Bytes::new()))));
    let sent = it.sent_after(TIMEOUT);
    assert_eq!(it.result(), None);
    let cancellation = sent.last().unwrap().clone();
    (it, requests[0].clone(), cancellation)
}

#[test]
fn a_cancellation_names_its_target_and_does_not_acknowledge_it() {
    // P23: a sequence of its own, the target in the body, a lowest of at most the target.
    let (mut it, request, cancellation) = cancelled();
    assert_eq!(cancellation.numbers(), (3, 1));
    assert_eq!(cancellation.options.request_kind, Some(2));
    assert_eq!(cancellation.policy, Policy::Replicated);
    assert_eq!(cancellation.body.as_ref(), 1_u64.to_be_bytes());
    assert_eq!(it.sent_after(RETRY_AFTER), [cancellation]);
    // The request is not sent any more, and its late reply is not taken: the cancellation has one.
    it.reply(&request, Outcome::Executed, b"late");
    assert_eq!(it.result(), None);
}

#[test]
fn a_cancellation_that_came_first_means_never_executed() {
    let (mut it, _, cancellation) = cancelled();
    it.reply(&cancellation, Outcome::Refused, b"");
    let error = CallError::Cancelled(TIMEOUT);
    assert_eq!((error.outcome(), error.is_retryable()), (CallOutcome::NotExecuted, true));
    assert_eq!(it.result(), Some((1, Err(error))));
    it.submit(COMMAND, 3, "c");
    assert_eq!(it.sent()[0].numbers(), (4, 4));
}

#[test]
fn a_cancellation_that_came_too_late_brings_the_reply() {
    let (mut it, _, cancellation) = cancelled();
    it.reply(&cancellation, Outcome::Executed, b"kept");
    assert_eq!(it.result(), Some((1, Ok("kept".into()))));
}

#[test]
fn the_window_keeps_room_for_cancellations() {
    let mut it = Fixture::open(4);
    for token in 1..=4 {
        it.submit(UNTIL_KNOWN, token, "x");
    }
    assert_eq!(it.sent().len(), 2);
    let sent = it.sent_after(TIMEOUT);
    let cancellations: Vec<_> = (sent.iter())
        .filter(|request| request.options.request_kind.is_some())
        .map(Request::numbers)
        .collect();
    assert_eq!(cancellations, [(3, 1), (4, 1)]);
}

#[test]
fn an_expired_session_is_replaced() {
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    it.submit(CallKind::Query, 2, "b");
    it.submit(COMMAND, 3, "c");
    it.submit(UNTIL_KNOWN, 4, "d");
    let requests = it.sent();
    it.reply(&requests[0], Outcome::SessionExpired, b"");
    it.reply(&requests[1], Outcome::SessionExpired, b"");
    let error = CallError::SessionExpired;
    assert_eq!(error.outcome(), CallOutcome::Unknown);
    assert_eq!(it.result(), Some((1, Err(error.clone()))));
    // The query changes nothing: it is made again in the new session.
    assert_eq!(it.result(), None);
    let opening = it.sent();
    it.grant(&opening[0], 9, 10);
    let again = it.sent();
    assert_eq!(again.len(), 1);
    let first = SessionOption { client: 9, sequence: 1, lowest: 1 };
    assert_eq!((again[0].session(), again[0].body.as_ref()), (first, &b"b"[..]));
    it.reply(&again[0], Outcome::Executed, b"got");
    assert_eq!(it.result(), Some((2, Ok("got".into()))));
    // One was executed before the session expired, and says so; of the other that is lost.
    it.reply(&requests[2], Outcome::Executed, b"done");
    assert_eq!(it.result(), Some((3, Ok("done".into()))));
    assert_eq!(it.sent_after(TIMEOUT).last(), Some(&requests[3]));
    assert_eq!(it.result(), Some((4, Err(error))));
    it.submit(COMMAND, 5, "e");
    assert_eq!(it.sent()[0].numbers(), (2, 2));
    assert_eq!(it.session.stats().sessions_opened, 2);
}

#[test]
fn a_session_that_was_idle_for_long_is_replaced_before_it_is_found_expired() {
    let mut it = Fixture::open(10);
    it.now += Duration::from_mins(5);
    it.submit(COMMAND, 1, "a");
    let request = it.sent();
    assert_eq!(request[0].session().client, 7);
    it.reply(&request[0], Outcome::Executed, b"");
    it.now += Duration::from_mins(5) + INSTANT;
    it.submit(COMMAND, 2, "b");
    assert_eq!(it.sent()[0].options.request_kind, Kind::OpenSession.option());
}

#[test]
fn what_is_outside_the_window_is_sent_again_later() {
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    let request = it.sent();
    it.reply(&request[0], Outcome::OutsideWindow, b"");
    assert_eq!(it.sent_after(just_before(SEND_LATER)), []);
    let again = it.sent_after(INSTANT);
    assert_eq!((again[0].session(), &again[0].body), (request[0].session(), &request[0].body));
    it.reply(&again[0], Outcome::Executed, b"");
    assert_eq!(it.result(), Some((1, Ok(Bytes::new()))));
}

#[test]
fn a_request_that_is_too_large_is_not_sent() {
    let mut it = Fixture::open(10);
    let large = std::str::from_utf8(&[b'x'; 101]).unwrap();
    it.submit(COMMAND, 1, large);
    it.submit(COMMAND, 2, &large[..100]);
    assert_eq!(it.sent().len(), 1);
    let error = CallError::TooLarge { bytes: 101, bytes_max: 100 };
    assert_eq!(error.outcome(), CallOutcome::NotExecuted);
    assert_eq!(it.result(), Some((1, Err(error))));
}

/// Somebody else in the session: one forged request is enough to make the cluster say such things.
#[test]
fn a_session_that_is_not_the_clients_alone_is_left_and_nothing_is_sent_twice() {
    for (outcome, error) in [
        (Outcome::Stale, CallError::Unexpected(2)),
        (Outcome::IdentityReused, CallError::IdentityReused),
        (Outcome::Refused, CallError::Unexpected(4)),
        (Outcome::QueryFailed, CallError::Unexpected(6)),
    ] {
        let mut it = Fixture::open(10);
        it.submit(COMMAND, 1, "a");
        it.submit(CallKind::Query, 2, "b");
        it.submit(UNTIL_KNOWN, 3, "c");
        it.submit(CallKind::Query, 4, "d");
        let requests = it.sent();
        it.reply(&requests[0], outcome, b"");
        let results = [it.result(), it.result()].map(|result| result.expect("it has ended"));
        assert!(results.contains(&(1, Err(error.clone()))), "{results:?}");
        assert!(results.contains(&(3, Err(CallError::SessionLeft))), "{results:?}");
        assert_eq!(error.outcome(), CallOutcome::Unknown);
        assert_eq!(CallError::SessionLeft.outcome(), CallOutcome::Unknown);
        assert!(!error.is_retryable() && !CallError::SessionLeft.is_retryable());
        // A late reply of the session that was left ends nothing.
        it.reply(&requests[2], Outcome::Executed, b"late");
        assert_eq!(it.result(), None);
        // The queries are asked again in the new session, in their order; the writes never are.
        let opening = it.sent();
        assert_eq!(opening[0].options.request_kind, Kind::OpenSession.option());
        it.grant(&opening[0], 9, 10);
        let again = it.sent();
        let bodies: Vec<_> = again.iter().map(|request| request.body.clone()).collect();
        assert_eq!(bodies, [&b"b"[..], b"d"]);
        assert_eq!(again[0].session(), SessionOption { client: 9, sequence: 1, lowest: 1 });
        it.reply(&again[0], Outcome::Executed, b"got");
        assert_eq!(it.result(), Some((2, Ok("got".into()))));
        it.submit(COMMAND, 5, "e");
        assert_eq!(it.sent()[0].session().client, 9);
    }
}

#[test]
fn a_query_that_is_told_so_is_asked_again_too() {
    let mut it = Fixture::open(10);
    it.submit(CallKind::Query, 1, "a");
    let request = it.sent();
    it.reply(&request[0], Outcome::Stale, b"");
    let opening = it.sent();
    it.grant(&opening[0], 9, 10);
    let again = it.sent();
    it.reply(&again[0], Outcome::Executed, b"got");
    assert_eq!(it.result(), Some((1, Ok("got".into()))));
}

#[test]
fn an_answer_to_an_earlier_session_leaves_the_present_one_alone() {
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    it.submit(COMMAND, 2, "b");
    let requests = it.sent();
    it.reply(&requests[0], Outcome::SessionExpired, b"");
    it.submit(COMMAND, 3, "c");
    let opening = it.sent();
    it.grant(&opening[0], 9, 10);
    let third = it.sent();
    it.reply(&requests[1], Outcome::Stale, b"");
    it.reply(&third[0], Outcome::Executed, b"done");
    let results = [it.result(), it.result(), it.result()];
    assert_eq!(results[1], Some((2, Err(CallError::Unexpected(2)))));
    assert_eq!(results[2], Some((3, Ok("done".into()))));
}

#[test]
fn abandoned_calls_make_room() {
    let mut it = Fixture::open(2);
    for token in 1..=4 {
        it.submit(COMMAND, token, "x");
    }
    let first = it.sent();
    assert!(it.session.is_full());
    it.session.abandon(it.now, |token| *token <= 3);
    assert_eq!(it.sent().iter().map(Request::numbers).collect::<Vec<_>>(), [(3, 3)]);
    assert!(!it.session.is_full());
    it.reply(&first[0], Outcome::Executed, b"");
    assert_eq!(it.result(), None);
}

#[test]
fn no_reply_to_an_opening_that_makes_no_sense_opens_a_session() {
    let mut it = Fixture::new();
    it.submit(COMMAND, 1, "a");
    let opening = it.sent();
    it.reply(&opening[0], Outcome::Executed, b"short");
    assert_eq!(it.sent_after(just_before(SEND_LATER)), []);
    let second = it.sent_after(INSTANT);
    assert_eq!(second[0].options.request_kind, Kind::OpenSession.option());
    assert_ne!(second[0].session().sequence, opening[0].session().sequence);
}

#[test]
fn slow_replicas_are_given_time_before_a_request_is_sent_again() {
    let mut it = Fixture::open(10);
    let slow = just_before(RETRY_AFTER);
    for _ in 0..20 {
        it.submit(COMMAND, 1, "a");
        let request = it.sent();
        assert_eq!(it.sent_after(slow), []);
        it.reply(&request[0], Outcome::Executed, b"");
    }
    it.submit(COMMAND, 1, "a");
    let request = it.sent();
    assert_eq!(it.sent_after(RETRY_AFTER * 3), []);
    assert_eq!(it.sent_after(RETRY_AFTER), request);
}

/// Everything is of another cluster from now on: what the session hears of the replica.
fn move_to(it: &mut Fixture, cluster: u64) {
    it.replica.set_check_seed(CheckSeed::of(cluster));
}

#[test]
fn nothing_is_sent_before_the_cluster_is_known() {
    let mut it = Fixture::new();
    it.submit(COMMAND, 1, "a");
    let mut requests = Vec::new();
    let mut asked = 0;
    asked += it.take(&mut requests);
    while let Some(due) = it.session.poll_timeout() {
        it.now = due.max(it.now);
        it.session.handle_timeout(it.now, &mut it.outbox);
        asked += it.take(&mut requests);
    }
    assert!(requests.is_empty() && asked > 5, "{asked}");
    assert_eq!(it.result(), Some((1, Err(CallError::NotSent(TIMEOUT)))));
    // Nobody waits for anything any more, and it stops asking.
    assert!(it.now < Time::ZERO + TIMEOUT + Duration::from_secs(1));
}

#[test]
fn two_clusters_are_an_error_that_names_the_odd_address() {
    let port = |port| SocketAddrV4::new(*REPLICA.ip(), port);
    let mut it = Fixture::new();
    it.session = Session::new(&Destinations::All(vec![port(1), port(2), port(3)]), 1);
    it.submit(CallKind::Connect, 1, "");
    it.session.flush(it.now, &mut it.outbox);
    for (from, cluster) in [(2, 7), (1, 8), (3, 8)] {
        it.session.handle_datagram(it.now, port(from), &says(cluster), &mut it.outbox).unwrap();
    }
    let error = CallError::TwoClusters { odd: port(2), odd_cluster: 7, cluster: 8 };
    assert!(error.to_string().contains("10.0.0.1:2 is of cluster 0000000000000007"), "{error}");
    assert_eq!(error.outcome(), CallOutcome::NotExecuted);
    assert_eq!(it.result(), Some((1, Err(error))));
}

#[test]
fn one_replica_that_is_down_does_not_keep_a_client_from_its_cluster() {
    let other = SocketAddrV4::new(*REPLICA.ip(), 1);
    let mut it = Fixture::new();
    it.session = Session::new(&Destinations::All(vec![other, REPLICA]), 1);
    it.submit(CallKind::Connect, 1, "");
    it.session.flush(it.now, &mut it.outbox);
    it.answer_hello(CLUSTER);
    let mut requests = Vec::new();
    it.take(&mut requests);
    assert!(requests.is_empty(), "the other may say otherwise");
    while requests.is_empty() {
        it.now = it.session.poll_timeout().unwrap().max(it.now);
        it.session.handle_timeout(it.now, &mut it.outbox);
        it.take(&mut requests);
    }
    assert_eq!(it.now, Time::ZERO + Duration::from_millis(5));
}

#[test]
fn another_cluster_in_the_old_ones_place_ends_the_session() {
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    it.submit(CallKind::Query, 2, "b");
    assert_eq!(it.sent().len(), 2);
    move_to(&mut it, 5);
    // The new replica refuses what it gets, for it is of another cluster, and answers nothing.
    let mut asked = 0;
    while asked == 0 {
        it.now = it.session.poll_timeout().unwrap();
        it.session.handle_timeout(it.now, &mut it.outbox);
        it.outbox.drain(|batch| {
            let datagram = batch.datagrams().next().unwrap();
            if r2p2::message_type(datagram) == Some(MessageType::RaftRequest) {
                asked += 1;
            } else {
                let mut answers = Outbox::new();
                let refused = it.replica.handle_datagram(it.now, CLIENT, datagram, &mut answers);
                assert_eq!(refused.unwrap_err(), WireError::Damaged);
            }
        });
    }
    assert_eq!(it.now, Time::ZERO + UNHEARD_MAX);
    it.answer_hello(5);
    let error = CallError::ClusterChanged;
    assert_eq!(error.outcome(), CallOutcome::Unknown);
    assert_eq!(it.result(), Some((1, Err(error))));
    // The query changes nothing, and is asked in a new session.
    assert_eq!(it.result(), None);
    let opening = it.sent();
    assert_eq!((opening.len(), opening[0].session().client), (1, 0));
    it.grant(&opening[0], 3, 10);
    let query = it.sent();
    assert_eq!((query[0].session().client, query[0].policy), (3, Policy::ReplicatedRead));
    it.reply(&query[0], Outcome::Executed, b"got");
    assert_eq!(it.result(), Some((2, Ok("got".into()))));
}

#[test]
fn a_client_that_is_not_answered_asks_and_goes_on_in_the_same_cluster() {
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    let first = it.sent();
    let retries = it.sent_after(UNHEARD_MAX * 3);
    assert!(retries.iter().all(|retry| *retry == first[0]));
    it.reply(&first[0], Outcome::Executed, b"");
    assert_eq!(it.result(), Some((1, Ok(Bytes::new()))));
    assert_eq!(it.session.stats().sessions_opened, 1);
}

#[test]
fn a_damaged_reply_is_counted_and_lost() {
    let mut it = Fixture::open(10);
    it.submit(COMMAND, 1, "a");
    let request = it.sent();
    let identity = Some(request[0].session().identity());
    let options = Options { identity, ..Options::NONE };
    let mut answers = Outbox::new();
    it.replica.respond(it.now, request[0].reply_to, &options, &b"reply"[..], &mut answers).unwrap();
    answers.drain(|batch| {
        let mut datagram = batch.bytes.clone();
        *datagram.last_mut().unwrap() ^= 4;
        let taken = it.session.handle_datagram(it.now, REPLICA, &datagram, &mut it.outbox);
        assert_eq!(taken, Err(WireError::Damaged));
    });
    assert_eq!(it.result(), None);
    assert_eq!(it.session.stats().packets_damaged, 1);
}
