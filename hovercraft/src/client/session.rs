//! The client's side of exactly-once sessions, without I/O (P1, P2, P20–P23).
//!
//! Calls come in by [`Session::submit`], datagrams by [`Session::handle_datagram`], and at
//! [`Session::poll_timeout`] at the latest comes [`Session::handle_timeout`]. After each round of
//! these [`Session::flush`] sends what may be sent, and [`Session::poll_result`] is to be asked
//! until it has nothing more.

use std::{collections::VecDeque, net::SocketAddrV4, time::Duration};

use bytes::Bytes;
use r2p2::{
    Body, CheckSeed, ClientConfig, ClientEndpoint, ClientEventKind, MessageType, Options, Outbox,
    PACKETS_MAX, Policy, RequestHandle, Session as SessionOption, Time, WireError,
};
use slab::Slab;

use super::{
    CallError, ClientStats, Destinations,
    call::{Call, CallKind, Pending, Sent, Stage},
    cluster::{Cluster, Learned},
    deadlines::Deadlines,
    route::Route,
    window::Window,
};
use crate::{
    Kind, NodeId, Outcome,
    cluster_id::Disagreement,
    core::{Reason, SessionGrant},
};

/// The shortest wait for a reply before a request is sent again, and the longest. Where a message
/// was lost, the shortest decides how long its caller waits; after an election, the longest does.
const RETRY_AFTER: Duration = Duration::from_millis(25);
const RETRY_AFTER_MAX: Duration = Duration::from_millis(200);

/// A request is sent again when its reply takes this many times the usual time: what is merely slow
/// must not be made slower by retries.
const RETRY_AFTER_ROUND_TRIPS: u32 = 4;

/// After an answer that lets a request be sent again "later" (P21), it is sent this much later.
const SEND_LATER: Duration = Duration::from_millis(50);

/// A client of which nothing is answered for so long asks whether its cluster is still the one that
/// it knows.
const UNHEARD_MAX: Duration = Duration::from_secs(1);

/// How many calls may be here at a time: more than any window, so that its room is used at once.
const CALLS_MAX: usize = 16_384;

/// A larger request may not fit the packets of one message, whatever the cluster takes.
const REQUEST_BYTES_MAX: usize = 1024 * PACKETS_MAX;

/// A client's session with a cluster, and all the calls in it. `T` is what a caller knows its call
/// by.
///
/// Every call has exactly one result. A session is opened when a call needs one, and anew when the
/// cluster has forgotten the last one, or may have.
#[derive(Debug)]
pub struct Session<T> {
    endpoint: ClientEndpoint,
    route: Route,
    /// Learns of which cluster the replicas are.
    cluster: Cluster,
    /// The number of it, once known; 0 is none. All packets carry checks that begin with it.
    known: Option<u64>,
    /// When something was answered, or nothing was outstanding.
    heard: Time,
    phase: Phase,
    calls: Slab<Pending<T>>,
    next_serial: u64,
    /// By the index of a request's handle.
    owners: Vec<Owner>,
    /// In order of arrival; some have ended meanwhile.
    waiting: VecDeque<CallId>,
    deadlines: Deadlines<CallId>,
    /// What must not be sent before a time, in order of the times.
    postponed: VecDeque<(Time, CallId)>,
    results: VecDeque<(T, Result<Bytes, CallError>)>,
    /// Smoothed over about eight replies.
    round_trip: Duration,
    nonces: fastrand::Rng,
    stats: ClientStats,
}

#[derive(Debug)]
enum Phase {
    /// No session; none is to be opened before this time.
    Closed(Time),
    Opening(RequestHandle),
    Open {
        window: Window,
        grant: SessionGrant,
        /// When the session was certainly in use.
        active: Time,
    },
}

/// Names a call that may have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct CallId {
    /// Grows from call to call.
    serial: u64,
    place: usize,
}

/// Whose an outstanding request of the endpoint is.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Opening,
    Call(CallId),
}

impl<T> Session<T> {
    /// A session that is not open yet. `seed` must differ from that of every other client: the
    /// request that opens the session is told apart by what is drawn from it.
    ///
    /// # Panics
    ///
    /// If there are no destinations.
    pub fn new(destinations: &Destinations, seed: u64) -> Self {
        let config = ClientConfig {
            retry_after: RETRY_AFTER,
            retry_after_max: RETRY_AFTER_MAX,
            outstanding_max: CALLS_MAX + 1,
            one_by_one: matches!(destinations, Destinations::OneByOne(_)),
            by_switch: matches!(destinations, Destinations::BySwitch { members, .. } if !members.is_empty()),
            ..ClientConfig::default()
        };
        let mut nonces = fastrand::Rng::with_seed(seed);
        Self {
            endpoint: ClientEndpoint::new(config, nonces.u64(..)),
            route: Route::new(destinations),
            cluster: Cluster::new(destinations, nonces.u64(..)),
            known: None,
            heard: Time::ZERO,
            phase: Phase::Closed(Time::ZERO),
            calls: Slab::new(),
            next_serial: 0,
            owners: Vec::new(),
            waiting: VecDeque::new(),
            deadlines: Deadlines::new(),
            postponed: VecDeque::new(),
            results: VecDeque::new(),
            round_trip: Duration::ZERO,
            nonces,
            stats: ClientStats::default(),
        }
    }

    /// Whether another call may be submitted.
    pub fn has_room(&self) -> bool {
        self.calls.len() < CALLS_MAX
    }

    /// Takes a call.
    ///
    /// # Panics
    ///
    /// If there is no room.
    pub fn submit(&mut self, call: Call<T>) {
        assert!(self.has_room(), "the caller checks for room");
        let serial = self.next_serial;
        self.next_serial += 1;
        let deadline = call.deadline;
        let place = self.calls.insert(Pending { serial, call, stage: Stage::Waiting });
        let id = CallId { serial, place };
        let calls = &self.calls;
        self.deadlines.push(deadline, id, calls.len(), |id| find(calls, *id).is_some());
        if self.waiting.len() > 2 * calls.len() {
            self.waiting.retain(|id| is_waiting(calls, *id));
        }
        self.waiting.push_back(id);
    }

    /// Takes a datagram of type RESPONSE, ACK, DROP or `RAFT_REP`.
    pub fn handle_datagram(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let taken = match r2p2::message_type(datagram) {
            Some(MessageType::RaftReply) => {
                self.cluster.handle_datagram(now, from, datagram).map(|()| self.learn(now))
            }
            _ => self.message(now, from, datagram, outbox),
        };
        self.stats.packets_damaged += u64::from(taken == Err(WireError::Damaged));
        taken
    }

    fn message(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let Some(event) = self.endpoint.handle_datagram(now, from, datagram, outbox)? else {
            return Ok(());
        };
        self.heard = now;
        let reply = match event.kind {
            ClientEventKind::Reply { options, body } => Some((options.outcome.unwrap_or(0), body)),
            ClientEventKind::ReplyTooLarge => None,
            // The endpoint keeps the identity and sends it again later (P23).
            _ => {
                self.stats.dropped += 1;
                self.note_refusal(event.handle, event.reason);
                return Ok(());
            }
        };
        self.route.answered_by(from);
        self.stats.count_answer(from);
        match self.owners[event.handle.index()] {
            Owner::Opening => self.opened(now, reply),
            Owner::Call(id) => self.answered(now, id, reply),
        }
        Ok(())
    }

    /// Sends again what was not answered, and ends calls that have run out of time.
    pub fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        while let Some((_, id)) = self.postponed.pop_front_if(|(time, _)| *time <= now) {
            self.transmit(now, id, outbox);
        }
        while let Some(id) = self.deadlines.pop(now) {
            self.run_out_of_time(now, id, outbox);
        }
        if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now, outbox);
        }
        if self.unheard_at().is_some_and(|due| due <= now) {
            self.cluster.ask(now, outbox);
        }
        if self.endpoint.outstanding_count() == 0 && self.waiting.is_empty() {
            self.cluster.stop();
        }
        self.cluster.handle_timeout(now, outbox);
        self.learn(now);
    }

    /// When to call [`Self::handle_timeout`] and [`Self::flush`]. May change with every call of
    /// another method.
    pub fn poll_timeout(&self) -> Option<Time> {
        let reopening = match self.phase {
            Phase::Closed(not_before)
                if !self.waiting.is_empty()
                    && (self.known.is_some() || !self.cluster.is_asking()) =>
            {
                Some(not_before)
            }
            _ => None,
        };
        let postponed = self.postponed.front().map(|(time, _)| *time);
        let cluster = [self.cluster.poll_timeout(), self.unheard_at()];
        [self.endpoint.poll_timeout(), self.deadlines.next(), postponed, reopening]
            .into_iter()
            .chain(cluster)
            .flatten()
            .min()
    }

    /// Sends the requests of waiting calls, oldest first, as far as the window has room (P20).
    pub fn flush(&mut self, now: Time, outbox: &mut Outbox) {
        self.endpoint.set_retry_after(self.round_trip * RETRY_AFTER_ROUND_TRIPS);
        while let Some(&id) = self.waiting.front() {
            if is_waiting(&self.calls, id) && !self.start(now, id, outbox) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// The result of a call that has ended.
    pub fn poll_result(&mut self) -> Option<(T, Result<Bytes, CallError>)> {
        self.results.pop_front()
    }

    /// Whether calls wait for room in the window, or for a session.
    pub fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives up the calls whose callers are gone. They may be executed all the same.
    pub fn abandon(&mut self, now: Time, is_gone: impl Fn(&T) -> bool) {
        let gone: Vec<_> = (self.calls.iter())
            .filter(|(_, pending)| is_gone(&pending.call.token))
            .map(|(place, pending)| CallId { serial: pending.serial, place })
            .collect();
        for id in gone {
            self.withdraw(now, id);
            self.calls.remove(id.place);
        }
    }

    /// What the client has seen so far.
    pub fn stats(&self) -> &ClientStats {
        &self.stats
    }
}

/// Sending.
impl<T> Session<T> {
    /// Sends the request of a waiting call, or sees that it needs none. False if it must wait on.
    fn start(&mut self, now: Time, id: CallId, outbox: &mut Outbox) -> bool {
        self.expect_expiry(now);
        let Phase::Open { window, grant, .. } = &mut self.phase else {
            self.open(now, outbox);
            return false;
        };
        let call = &self.calls[id.place].call;
        let may_be_cancelled = call.kind.may_be_cancelled();
        let bytes = call.body.len();
        let bytes_max = REQUEST_BYTES_MAX.min(grant.request_bytes_max as usize);
        if call.kind == CallKind::Connect {
            self.end(id, Ok(Bytes::new()));
        } else if bytes > bytes_max {
            self.end(id, Err(CallError::TooLarge { bytes, bytes_max }));
        } else if window.has_room(may_be_cancelled) {
            let option = window.begin(may_be_cancelled);
            self.send(now, id, option, None, outbox);
        } else {
            return false;
        }
        true
    }

    /// Leaves an idle session that may have expired: to open another one costs a round trip, and to
    /// find it expired would leave the outcome of a command unknown.
    fn expect_expiry(&mut self, now: Time) {
        if let Phase::Open { window, grant, active } = &self.phase
            && window.is_idle()
            && now.since(*active) > grant.lifetime / 2
        {
            self.phase = Phase::Closed(now);
        }
    }

    /// Asks for a session, if that is not under way (P1); first of all, for which cluster it is.
    fn open(&mut self, now: Time, outbox: &mut Outbox) {
        if let Phase::Closed(not_before) = self.phase
            && not_before <= now
        {
            if self.known.is_none() {
                self.cluster.ask(now, outbox);
                return;
            }
            let session = SessionOption { client: 0, sequence: self.nonces.u64(..), lowest: 0 };
            let (session, request_kind) = (Some(session), Kind::OpenSession.option());
            let options = Options { session, request_kind, ..Options::NONE };
            let message = (Policy::Replicated, options, Bytes::new());
            self.phase = Phase::Opening(self.request(now, message, Owner::Opening, outbox));
        }
    }

    /// Sends a call's request, or its cancellation, for the first time.
    fn send(
        &mut self,
        now: Time,
        id: CallId,
        option: SessionOption,
        cancels: Option<u64>,
        outbox: &mut Outbox,
    ) {
        let sent = Sent { option, cancels, handle: None, first_sent: now, without_room: None };
        self.calls[id.place].stage = Stage::Sent(sent);
        self.transmit(now, id, outbox);
    }

    /// Hands the request of a call to the endpoint, if it is not there.
    fn transmit(&mut self, now: Time, id: CallId, outbox: &mut Outbox) {
        if let Some(pending) = find(&self.calls, id)
            && let Stage::Sent(sent @ Sent { handle: None, .. }) = pending.stage
        {
            let message = pending.message(&sent);
            let handle = Some(self.request(now, message, Owner::Call(id), outbox));
            self.calls[id.place].stage = Stage::Sent(Sent { handle, ..sent });
        }
    }

    /// Has the endpoint send a message, again and again until it is answered.
    fn request(
        &mut self,
        now: Time,
        (policy, options, body): (Policy, Options, Bytes),
        owner: Owner,
        outbox: &mut Outbox,
    ) -> RequestHandle {
        if self.endpoint.outstanding_count() == 0 {
            self.heard = now;
        }
        let destinations = self.route.destinations();
        let handle = (self.endpoint)
            .request(now, destinations, policy, options, body, outbox)
            .expect("one of at most CALLS_MAX calls, with an identity of its own, not too large");
        let index = handle.index();
        if index >= self.owners.len() {
            self.owners.resize(index + 1, owner);
        }
        self.owners[index] = owner;
        handle
    }
}

/// What comes of requests.
impl<T> Session<T> {
    /// The request that asked for a session has been answered.
    fn opened(&mut self, now: Time, reply: Option<(u8, Body<'_>)>) {
        let grant = reply
            .filter(|(outcome, _)| *outcome == Outcome::Executed as u8)
            .and_then(|(_, body)| SessionGrant::decode(&body));
        self.phase = match grant {
            Some(grant) => {
                self.stats.sessions_opened += 1;
                let window = Window::new(grant.client, grant.window);
                Phase::Open { window, grant, active: now }
            }
            None => Phase::Closed(now + SEND_LATER),
        };
    }

    /// The request of a call, or its cancellation, has been answered.
    fn answered(&mut self, now: Time, id: CallId, reply: Option<(u8, Body<'_>)>) {
        let pending = &mut self.calls[id.place];
        let Stage::Sent(sent) = &mut pending.stage else {
            unreachable!("a request that is outstanding was sent");
        };
        sent.handle = None;
        let (sent, call) = (*sent, &pending.call);
        let (kind, timeout) = (call.kind, call.timeout);
        self.observe(now, &sent);
        let Some((outcome, body)) = reply else {
            return self.finish(now, id, Err(CallError::ReplyTooLarge));
        };
        let result = match Outcome::from_number(outcome) {
            Some(Outcome::Executed) => Ok(body.into_bytes()),
            Some(Outcome::SessionExpired) => {
                self.lose(now, sent.option.client);
                if kind == CallKind::Query {
                    // It changes nothing, so it may be executed again.
                    self.calls[id.place].stage = Stage::Waiting;
                    return self.waiting.push_front(id);
                }
                Err(CallError::SessionExpired)
            }
            // As open as after a DROP: another copy may be executed yet (P21).
            Some(Outcome::OutsideWindow) if sent.cancels.is_none() => {
                return self.postponed.push_back((now + SEND_LATER, id));
            }
            Some(Outcome::QueryFailed) if kind == CallKind::Query => Err(CallError::QueryFailed),
            Some(Outcome::Refused) if sent.cancels.is_some() => Err(CallError::Cancelled(timeout)),
            Some(Outcome::IdentityReused) => Err(CallError::IdentityReused),
            // A cancellation that is outside the window stays there for as long as its target is the
            // lowest: the cluster has made the window smaller since it granted the session.
            Some(Outcome::OutsideWindow) => {
                return self.finish(now, id, Err(CallError::Unexpected(outcome)));
            }
            // A client that is not done with a sequence keeps the lowest at or below it (P20), and
            // nobody else cancels what it asks.
            Some(Outcome::Stale | Outcome::QueryFailed | Outcome::Refused) | None => {
                Err(CallError::Unexpected(outcome))
            }
        };
        match result {
            Err(error @ (CallError::IdentityReused | CallError::Unexpected(_))) => {
                self.leave(now, id, sent.option.client, &error);
            }
            result => self.finish(now, id, result),
        }
    }

    fn run_out_of_time(&mut self, now: Time, id: CallId, outbox: &mut Outbox) {
        let Some(pending) = find(&self.calls, id) else { return };
        let Call { kind, timeout, .. } = pending.call;
        let error = match (&pending.stage, kind) {
            (_, CallKind::Query) => CallError::QueryTimedOut(timeout),
            (Stage::Waiting, _) => CallError::NotSent(timeout),
            (Stage::Sent(sent), CallKind::Command { until_known: true }) => {
                let sent = *sent;
                return self.cancel(now, id, &sent, outbox);
            }
            (Stage::Sent(Sent { without_room: Some(node), .. }), _) => {
                CallError::NoRoom { node: *node, waited: timeout }
            }
            (Stage::Sent(_), _) => CallError::TimedOut(timeout),
        };
        self.finish(now, id, Err(error));
    }

    /// Orders the cancellation of a call, which tells what became of it (P23).
    fn cancel(&mut self, now: Time, id: CallId, sent: &Sent, outbox: &mut Outbox) {
        let Some(window) = self.window_of(sent.option.client) else {
            return self.finish(now, id, Err(CallError::SessionExpired));
        };
        let option = window.begin_cancellation();
        if let Some(handle) = sent.handle {
            self.endpoint.forget(now, handle);
        }
        self.send(now, id, option, Some(sent.option.sequence), outbox);
    }

    /// Leaves a session in which an answer came that only somebody else can have caused: by a
    /// damaged or forged request, or by using the same session. What is outstanding in it may be
    /// executed or not, so commands end as unknown and are never sent again; queries change nothing
    /// and are asked again in the next session.
    fn leave(&mut self, now: Time, told: CallId, client: u64, error: &CallError) {
        let is_of = |sent: &Sent| sent.option.client == client;
        let error = |id| if id == told { error.clone() } else { CallError::SessionLeft };
        self.end_sent(now, is_of, error);
        self.lose(now, client);
    }

    /// Ends the commands that were sent, of those that are asked for; queries wait to be sent again.
    fn end_sent(
        &mut self,
        now: Time,
        is_of: impl Fn(&Sent) -> bool,
        error: impl Fn(CallId) -> CallError,
    ) {
        let is_meant = |pending: &Pending<T>| match &pending.stage {
            Stage::Sent(sent) => is_of(sent),
            Stage::Waiting => false,
        };
        let mut outstanding: Vec<_> = (self.calls.iter())
            .filter(|(_, pending)| is_meant(pending))
            .map(|(place, pending)| CallId { serial: pending.serial, place })
            .collect();
        outstanding.sort_unstable();
        for id in outstanding.into_iter().rev() {
            self.withdraw(now, id);
            if self.calls[id.place].call.kind == CallKind::Query {
                self.calls[id.place].stage = Stage::Waiting;
                self.waiting.push_front(id);
            } else {
                self.end(id, Err(error(id)));
            }
        }
    }

    /// A request was not admitted: remembers why, for the caller whose time runs out.
    fn note_refusal(&mut self, handle: RequestHandle, reason: Option<r2p2::Reason>) {
        let Owner::Call(id) = self.owners[handle.index()] else { return };
        if let Some(pending) = self.calls.get_mut(id.place).filter(|it| it.serial == id.serial)
            && let Stage::Sent(sent) = &mut pending.stage
        {
            let lacks = reason.filter(|it| it.reason == Reason::NoRoom as u8);
            sent.without_room = lacks.map(|it| NodeId(it.node));
        }
    }

    /// The cluster has forgotten the client.
    fn lose(&mut self, now: Time, client: u64) {
        if self.window_of(client).is_some() {
            self.phase = Phase::Closed(now);
        }
    }

    /// Notes when a request of the session was certainly applied, and how long that took.
    fn observe(&mut self, now: Time, sent: &Sent) {
        let sample = now.since(sent.first_sent);
        self.round_trip = (self.round_trip * 7 + sample) / 8;
        if let Phase::Open { window, active, .. } = &mut self.phase
            && window.client() == sent.option.client
        {
            *active = sent.first_sent.max(*active);
        }
    }

    /// Ends a call, and what it has in the endpoint and in the window.
    fn finish(&mut self, now: Time, id: CallId, result: Result<Bytes, CallError>) {
        self.withdraw(now, id);
        self.end(id, result);
    }

    /// Takes what a call has in the endpoint and in the window out of them. Requests that were sent
    /// may still be executed, until another one raises *lowest* above them (P21).
    fn withdraw(&mut self, now: Time, id: CallId) {
        let pending = &self.calls[id.place];
        let Stage::Sent(sent) = pending.stage else { return };
        let reserved = pending.call.kind.may_be_cancelled() && sent.cancels.is_none();
        if let Some(handle) = sent.handle {
            self.endpoint.forget(now, handle);
        }
        if let Some(window) = self.window_of(sent.option.client) {
            window.end(sent.option.sequence, reserved);
            if let Some(target) = sent.cancels {
                window.end(target, false);
            }
        }
    }

    fn end(&mut self, id: CallId, result: Result<Bytes, CallError>) {
        let pending = self.calls.remove(id.place);
        self.results.push_back((pending.call.token, result));
    }

    /// The window of a client, if its session is the present one.
    fn window_of(&mut self, client: u64) -> Option<&mut Window> {
        match &mut self.phase {
            Phase::Open { window, .. } if window.client() == client => Some(window),
            _ => None,
        }
    }
}

/// Which cluster it is.
impl<T> Session<T> {
    /// When nothing was answered for so long that the cluster may be another one.
    fn unheard_at(&self) -> Option<Time> {
        let waits = self.endpoint.outstanding_count() > 0 && !self.cluster.is_asking();
        waits.then_some(self.heard + UNHEARD_MAX)
    }

    /// Acts on what the replicas say of their cluster.
    fn learn(&mut self, now: Time) {
        let Some(learned) = self.cluster.poll_learned(now) else { return };
        self.heard = now;
        match learned {
            Learned::Cluster(cluster) if self.known == Some(cluster) => {}
            // One address may have been given to another cluster's replica.
            Learned::Cluster(_) if self.known.is_some() && !self.cluster.is_said_by_most() => {}
            Learned::Cluster(cluster) => {
                self.leave_cluster(now);
                self.known = Some(cluster);
                self.endpoint.set_check_seed(CheckSeed::of(cluster));
            }
            Learned::Disagreement(it) => {
                let Disagreement { odd, odd_cluster, cluster } = it;
                let error = CallError::TwoClusters { odd, odd_cluster, cluster };
                tracing::error!(%error, "this client's addresses are of two clusters");
                // A session that is open stays with its cluster.
                if self.known.is_none() {
                    for id in std::mem::take(&mut self.waiting) {
                        if is_waiting(&self.calls, id) {
                            self.end(id, Err(error.clone()));
                        }
                    }
                }
            }
        }
    }

    /// Ends everything that is under way in a cluster that is no more.
    fn leave_cluster(&mut self, now: Time) {
        if let Phase::Opening(handle) = self.phase {
            self.endpoint.forget(now, handle);
        }
        self.end_sent(now, |_| true, |_| CallError::ClusterChanged);
        self.phase = Phase::Closed(now);
    }
}

fn find<T>(calls: &Slab<Pending<T>>, id: CallId) -> Option<&Pending<T>> {
    calls.get(id.place).filter(|pending| pending.serial == id.serial)
}

fn is_waiting<T>(calls: &Slab<Pending<T>>, id: CallId) -> bool {
    find(calls, id).is_some_and(|pending| matches!(pending.stage, Stage::Waiting))
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
