//! The clients: sessions with a window, retries, cancellations, and plain clients without any of
//! these.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hovercraft::{
    DigestKey, Identity, Index, Kind, Outcome, Request, ReturnPath, core::SessionGrant,
};
use r2p2::Time;

use crate::{
    network::up_to,
    observed::{Answered, Observed},
    options::ClientOptions,
    seed::Seed,
    service::Answer,
    trace,
    workload::{Command, Planned, Workload},
};

/// A client that begins with a shorter pause waits no longer than this between two tries.
const RETRY_AFTER_MAX: Duration = Duration::from_millis(400);

/// A request on its way to the replicas.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) request: Arc<Request>,
    pub(crate) path: ReturnPath,
    /// 0 for the first copy.
    pub(crate) attempt: u32,
    /// It does not go through a replica's intake, but as if a replica had passed it on.
    pub(crate) is_forged: bool,
}

/// A request that has an answer.
#[derive(Debug, Clone)]
pub(crate) struct Completion {
    pub(crate) identity: Identity,
    pub(crate) kind: Kind,
    pub(crate) outcome: Outcome,
    pub(crate) body: Bytes,
    /// The client knew of an answer from this index when it began.
    pub(crate) floor: Index,
    /// What the request was to cancel.
    pub(crate) target: Option<u64>,
    /// A cancellation of it was sent.
    pub(crate) cancelled: bool,
    /// Somebody else has sent another request under its identity.
    pub(crate) is_impersonated: bool,
}

#[derive(Debug)]
struct Waiting {
    request: Arc<Request>,
    floor: Index,
    attempts: u32,
    retry_at: Time,
    target: Option<u64>,
    cancelled: bool,
    /// Its identity is used again once it is answered.
    steals: bool,
    /// Its place in what was observed; none if it is not of the service.
    place: Option<usize>,
}

/// Something to ask.
#[derive(Debug)]
struct Job {
    at: Time,
    command: Command,
    steals: bool,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    client: u64,
    next: u64,
    window: u64,
}

#[derive(Debug)]
pub(crate) struct Client {
    options: ClientOptions,
    address: SocketAddrV4,
    digest_key: DigestKey,
    rng: fastrand::Rng,
    session: Option<Session>,
    waiting: BTreeMap<Identity, Waiting>,
    /// What it will ask, in order of time.
    jobs: VecDeque<Job>,
    request_id: u16,
    /// What somebody else sends in its name: another write under the identity of one that is
    /// answered, and one with a damaged *lowest*.
    stolen: Vec<Outgoing>,
    /// The identities that others have used before it did.
    impersonated: BTreeSet<Identity>,
    position: usize,
    /// It begins nothing before.
    pub(crate) quiet_until: Time,
    /// What it asked of the service, and saw.
    pub(crate) observed: Vec<Observed>,
    pub(crate) sessions_lost: u64,
}

/// Clients have the ports from here on.
const PORT_BASE: u16 = 10_000;

impl Client {
    pub(crate) fn new(position: usize, options: ClientOptions, seed: Seed) -> Self {
        // Each on a machine of its own: openings are counted by address (P23).
        let host = Ipv4Addr::new(127, 0, 1, position as u8 + 1);
        let address = SocketAddrV4::new(host, PORT_BASE + position as u16);
        Self {
            options,
            address,
            digest_key: seed.digest_key(),
            rng: seed.stream("client", position as u64),
            session: None,
            waiting: BTreeMap::new(),
            jobs: VecDeque::new(),
            request_id: 0,
            stolen: Vec::new(),
            impersonated: BTreeSet::new(),
            position,
            quiet_until: Time::ZERO,
            observed: Vec::new(),
            sessions_lost: 0,
        }
    }

    /// The position of the client that a reply is for.
    pub(crate) fn position_of(path: ReturnPath) -> usize {
        usize::from(path.address.port() - PORT_BASE)
    }

    /// Gives it something to ask, not before what it was given earlier.
    pub(crate) fn plan(&mut self, planned: &Planned) {
        let at = Time::ZERO + Duration::from_micros(planned.at_us);
        let command = Command { is_read: planned.read, body: planned.whole_body() };
        self.jobs.push_back(Job { at, command, steals: planned.steals });
    }

    /// Tells it to ask something now.
    pub(crate) fn tell(&mut self, command: Command) {
        self.jobs.push_back(Job { at: Time::ZERO, command, steals: false });
    }

    /// What it waits for.
    pub(crate) fn describe(&self, workload: &dyn Workload) -> String {
        let (address, left) = (self.address, self.jobs.len());
        let mut text = format!("client at {address} has {left} operations left, and waits for");
        for Waiting { request, attempts, .. } in self.waiting.values() {
            let request = trace::request(request, workload);
            let _ = write!(text, " [{request}, asked {attempts} times]");
        }
        text
    }

    /// What it waits before the second try of each operation, all together.
    pub(crate) fn first_waits_us(&self) -> u64 {
        let first_us = self.options.retry_after_us;
        (self.observed.len() + self.jobs.len()) as u64 * first_us
    }

    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.jobs.is_empty()
    }

    /// When [`Self::turn`] has something to do.
    pub(crate) fn next_turn(&self) -> Option<Time> {
        let retry = self.waiting.values().map(|waiting| waiting.retry_at).min();
        let begin = self.next_begin();
        let stolen = (!self.stolen.is_empty()).then_some(Time::ZERO);
        retry.into_iter().chain(begin).chain(stolen).min()
    }

    /// What is to be sent now. `floor` is the highest index that any client has an answer from.
    pub(crate) fn turn(&mut self, now: Time, floor: Index) -> Vec<Outgoing> {
        let mut outgoing = std::mem::take(&mut self.stolen);
        let due = self.waiting.iter().filter(|(_, waiting)| waiting.retry_at <= now);
        let due: Vec<_> = due.map(|(identity, _)| *identity).collect();
        for identity in due {
            self.cancel_if_tired(now, identity, floor, &mut outgoing);
            self.send(now, identity, &mut outgoing);
        }
        while self.next_begin().is_some_and(|at| at <= now) {
            let identity = self.begin(now, floor);
            self.send(now, identity, &mut outgoing);
        }
        outgoing
    }

    /// A reply came; what it completes, if the client still waits for that.
    pub(crate) fn reply(
        &mut self,
        now: Time,
        identity: Identity,
        outcome: Outcome,
        body: Bytes,
    ) -> Option<Completion> {
        let waiting = self.waiting.remove(&identity)?;
        let kind = waiting.request.kind();
        if let Some(place) = waiting.place {
            self.see(now, place, outcome, &body);
        }
        if kind == Kind::OpenSession {
            let grant = SessionGrant::decode(&body)?;
            let window = u64::from(grant.window);
            self.session = Some(Session { client: grant.client, next: 1, window });
        }
        if waiting.steals {
            self.steal(&waiting.request);
        }
        if leaves_the_session(outcome, &waiting) {
            // What became of the other requests will never be known.
            self.session = None;
            self.waiting.clear();
            self.sessions_lost += 1;
        }
        Some(Completion {
            identity,
            kind,
            outcome,
            body,
            floor: waiting.floor,
            target: waiting.target,
            cancelled: waiting.cancelled,
            is_impersonated: self.impersonated.contains(&identity),
        })
    }

    /// Notes what came of an operation.
    fn see(&mut self, now: Time, place: usize, outcome: Outcome, body: &Bytes) {
        let observed = &mut self.observed[place];
        observed.answered = match (outcome, Answer::decode(body)) {
            (Outcome::Executed, Some(answer)) => Answered::With(body.slice_ref(answer.reply)),
            (Outcome::Refused, _) => Answered::NotExecuted,
            // Nobody will ever know.
            _ => return,
        };
        observed.ended = Some(now);
    }

    /// Uses the identity of a write again, for another one, which must never be executed; and that
    /// of the next request, with a *lowest* that would end the session if it were believed (P21).
    fn steal(&mut self, answered: &Request) {
        let Identity::Session { client, sequence } = answered.identity() else { return };
        let lowest = answered.lowest();
        let body = Bytes::from([answered.body(), &b"stolen"[..]].concat());
        let next = Identity::Session { client, sequence: sequence + 1 };
        let path = ReturnPath { address: self.address, request_id: self.request_id };
        self.impersonated.insert(next);
        let forged = sequence + 1 + (1 << self.rng.u32(0..40));
        for (identity, lowest, is_forged) in
            [(answered.identity(), lowest, false), (next, forged, false), (next, forged, true)]
        {
            let request =
                Request::new(self.digest_key, identity, lowest, Kind::Write, body.clone());
            let request = Arc::new(request);
            self.stolen.push(Outgoing { request, path, attempt: 0, is_forged });
        }
    }

    /// When it may ask the next thing, if it may.
    fn next_begin(&self) -> Option<Time> {
        let at = self.jobs.front()?.at.max(self.quiet_until);
        let outstanding = self.waiting.len() as u64;
        let may_begin = match &self.session {
            _ if self.options.plain => outstanding < self.options.window,
            None => outstanding == 0,
            Some(session) => {
                let is_inside = session.next - self.lowest(session) < session.window;
                outstanding < self.options.window && is_inside
            }
        };
        may_begin.then_some(at)
    }

    /// The lowest sequence whose reply it does not hold.
    fn lowest(&self, session: &Session) -> u64 {
        // Identities are in order: of one client by sequence.
        let mut sequences = self.waiting.keys().filter_map(|identity| match identity {
            Identity::Session { client, sequence } if *client == session.client => Some(*sequence),
            _ => None,
        });
        sequences.next().unwrap_or(session.next)
    }

    /// Begins with a session, or with the next operation in it.
    fn begin(&mut self, now: Time, floor: Index) -> Identity {
        if self.session.is_none() && !self.options.plain {
            let sequence = self.rng.u64(1..);
            let identity = Identity::Session { client: 0, sequence };
            let request =
                Request::new(self.digest_key, identity, 0, Kind::OpenSession, Bytes::new());
            return self.wait_for(now, floor, None, request);
        }
        let Job { command, steals, .. } = self.jobs.pop_front().expect("next_begin() has seen it");
        let kind = if command.is_read { Kind::Read } else { Kind::Write };
        let (identity, lowest) = self.next_identity();
        let request = Request::new(self.digest_key, identity, lowest, kind, command.body.clone());
        let identity = self.wait_for(now, floor, None, request);
        let waiting = self.waiting.get_mut(&identity).expect("it was just put there");
        waiting.steals = steals;
        waiting.place = Some(self.observed.len());
        self.observed.push(Observed {
            client: self.position,
            plain: self.options.plain,
            command,
            began: now,
            ended: None,
            answered: Answered::Unknown,
        });
        identity
    }

    fn next_identity(&mut self) -> (Identity, u64) {
        let Some(session) = self.session.filter(|_| !self.options.plain) else {
            self.request_id = self.request_id.wrapping_add(1);
            let (address, request_id) = (self.address, self.request_id);
            return (Identity::Plain { address, request_id }, 0);
        };
        let (client, sequence) = (session.client, session.next);
        let lowest = self.lowest(&session);
        self.session = Some(Session { next: sequence + 1, ..session });
        (Identity::Session { client, sequence }, lowest)
    }

    /// Waits for the answer of a request that is about to be sent.
    fn wait_for(
        &mut self,
        now: Time,
        floor: Index,
        target: Option<u64>,
        request: Request,
    ) -> Identity {
        let identity = request.identity();
        let request = Arc::new(request);
        let waiting = Waiting {
            request,
            floor,
            attempts: 0,
            retry_at: now,
            target,
            cancelled: false,
            steals: false,
            place: None,
        };
        self.waiting.insert(identity, waiting);
        identity
    }

    /// After enough retries of a write it asks for the outcome to be made final (P23).
    fn cancel_if_tired(
        &mut self,
        now: Time,
        identity: Identity,
        floor: Index,
        outgoing: &mut Vec<Outgoing>,
    ) {
        let (Some(limit), Some(session)) = (self.options.cancels_after, self.session) else {
            return;
        };
        let is_inside = session.next - self.lowest(&session) < session.window;
        let Some(waiting) = self.waiting.get_mut(&identity) else { return };
        let is_tired = waiting.attempts > limit && waiting.request.kind() == Kind::Write;
        let Identity::Session { sequence: target, .. } = identity else { return };
        if !is_tired || waiting.cancelled || !is_inside {
            return;
        }
        waiting.cancelled = true;
        let (cancel, lowest) = self.next_identity();
        let body = Bytes::copy_from_slice(&target.to_be_bytes());
        let request = Request::new(self.digest_key, cancel, lowest, Kind::Cancel, body);
        self.wait_for(now, floor, Some(target), request);
        self.send(now, cancel, outgoing);
    }

    /// Sends a request, the same bytes each time.
    fn send(&mut self, now: Time, identity: Identity, outgoing: &mut Vec<Outgoing>) {
        let Some(waiting) = self.waiting.get_mut(&identity) else { return };
        let attempt = waiting.attempts;
        waiting.attempts += 1;
        let retry_after = Duration::from_micros(self.options.retry_after_us);
        let longest = retry_after.max(RETRY_AFTER_MAX);
        let pause = (retry_after * (1 << attempt.min(6))).min(longest);
        waiting.retry_at = now + pause + up_to(&mut self.rng, pause / 4);
        let request_id = match identity {
            Identity::Plain { request_id, .. } => request_id,
            Identity::Session { .. } => {
                self.request_id = self.request_id.wrapping_add(1);
                self.request_id
            }
        };
        let path = ReturnPath { address: self.address, request_id };
        let request = Arc::clone(&waiting.request);
        outgoing.push(Outgoing { request, path, attempt, is_forged: false });
    }
}

/// Whether the answer tells that the cluster has forgotten the client, or that somebody else is in
/// its session.
fn leaves_the_session(outcome: Outcome, waiting: &Waiting) -> bool {
    match outcome {
        Outcome::SessionExpired | Outcome::IdentityReused => true,
        // A cancellation of what is answered already gets this too.
        Outcome::Stale => waiting.target.is_none(),
        Outcome::Executed | Outcome::Refused | Outcome::OutsideWindow | Outcome::QueryFailed => {
            false
        }
    }
}
