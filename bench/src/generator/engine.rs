//! The generator without I/O: arrivals become calls of sessions, and their results a [`Record`].

use std::{collections::VecDeque, net::SocketAddrV4, time::Duration};

use bytes::Bytes;
use hovercraft::{
    CallError,
    client::{Call, CallKind, Destinations, Session},
};
use r2p2::{Outbox, Time};

use super::{Poisson, Record, recorder::Measured};
use crate::workload::{Operation, Requests};

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Open loop: so many a second in the mean, whatever becomes of them.
    Open {
        /// Arrivals.
        per_second: f64,
    },
    /// Closed loop: so many are outstanding over all clients, shared out as evenly as can be, and each
    /// answer begins the next.
    Closed {
        /// Requests.
        outstanding: usize,
    },
}

/// What one generator does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How requests come: all of this generator's.
    pub pace: Pace,
    /// How many clients, each with a session and a socket of its own.
    pub clients: usize,
    /// What is asked.
    pub requests: Requests,
    /// Requests of this first part are not counted.
    pub warm_up: Duration,
    /// How long is measured.
    pub duration: Duration,
    /// How long a request may take.
    pub timeout: Duration,
    /// Of all that is random.
    pub seed: u64,
}

/// How long a client may take to open its session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Token {
    Connect,
    /// When the request was meant to be sent.
    Request {
        intended: Time,
    },
}

#[derive(Debug)]
enum Phase {
    /// So many clients have no session yet.
    Connecting(usize),
    Running {
        measured: Measured,
        arrivals: Option<Arrivals>,
    },
    Failed(CallError),
}

#[derive(Debug)]
struct Arrivals {
    schedule: Poisson,
    previous: Time,
}

/// One generator.
#[derive(Debug)]
pub struct Engine {
    plan: Plan,
    sessions: Vec<Session<Token>>,
    phase: Phase,
    /// Clients that have something to send or to be told.
    touched: VecDeque<usize>,
    is_touched: Vec<bool>,
    /// When each session wants to be called.
    due: Vec<Option<Time>>,
    /// The time of the last turn.
    turned_at: Time,
    /// Which client the next arrival goes to.
    next_client: usize,
    /// Requests begun in the measured time that have not ended.
    measured_left: u64,
    record: Record,
}

impl Engine {
    /// A generator whose clients begin to connect at once.
    ///
    /// # Panics
    ///
    /// If there are no clients.
    pub fn new(plan: Plan, destinations: &Destinations, now: Time) -> Self {
        assert!(plan.clients > 0, "a generator has clients");
        let mut seeds = fastrand::Rng::with_seed(plan.seed);
        let sessions: Vec<_> =
            (0..plan.clients).map(|_| Session::new(destinations, seeds.u64(..))).collect();
        let count = plan.clients;
        let mut engine = Self {
            plan,
            sessions,
            phase: Phase::Connecting(count),
            touched: VecDeque::new(),
            is_touched: vec![false; count],
            due: vec![None; count],
            turned_at: now,
            next_client: 0,
            measured_left: 0,
            record: Record::default(),
        };
        for client in 0..count {
            engine.submit(client, CallKind::Connect, Bytes::new(), now, now, Token::Connect);
        }
        engine
    }

    /// A datagram came to a client.
    pub fn handle_datagram(
        &mut self,
        client: usize,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        // What is not for this client is lost time, and no more.
        let _ = self.sessions[client].handle_datagram(now, from, datagram, outbox);
        self.touch(client);
    }

    /// Hands over what is due by `now`.
    pub fn turn(&mut self, now: Time) {
        self.turned_at = now;
        for client in 0..self.due.len() {
            if self.due[client].is_some_and(|due| due <= now) {
                self.touch(client);
            }
        }
        while let Some(intended) = self.next_arrival().filter(|next| *next <= now) {
            // A full session stops the hand-over, not the schedule: what waits here is late.
            let Some(client) = self.client_with_room() else { return };
            let Phase::Running { measured, arrivals: Some(arrivals) } = &mut self.phase else {
                return;
            };
            let gap = intended.since(arrivals.previous);
            arrivals.previous = intended;
            arrivals.schedule.advance();
            if measured.contains(intended) {
                self.record.arrived(gap, now.since(intended));
            }
            self.begin(client, intended, now);
        }
    }

    /// The next client that has something to send; [`Self::flush`] it.
    pub fn poll_touched(&mut self) -> Option<usize> {
        let client = self.touched.pop_front()?;
        self.is_touched[client] = false;
        Some(client)
    }

    /// Writes what a client has to send, and takes its results.
    pub fn flush(&mut self, client: usize, now: Time, outbox: &mut Outbox) {
        loop {
            let session = &mut self.sessions[client];
            if session.poll_timeout().is_some_and(|due| due <= now) {
                session.handle_timeout(now, outbox);
            }
            session.flush(now, outbox);
            let mut any = false;
            while let Some((token, result)) = self.sessions[client].poll_result() {
                any = true;
                self.ended(client, now, token, result.err());
            }
            if !any {
                break;
            }
        }
        self.due[client] = self.sessions[client].poll_timeout();
    }

    /// When [`Self::turn`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let sessions = self.due.iter().copied().flatten().min();
        // Where no client has room, an answer must come first.
        let arrival = self.next_arrival().filter(|_| self.sessions.iter().any(Session::has_room));
        sessions.into_iter().chain(arrival).chain(self.ends()).min()
    }

    /// When the measured time begins and ends; none before all clients have connected.
    pub fn measured(&self) -> Option<(Time, Time)> {
        match &self.phase {
            Phase::Running { measured, .. } => Some((measured.from, measured.to)),
            _ => None,
        }
    }

    /// Whether everything that counts has ended, or has run out of time.
    pub fn is_finished(&self, now: Time) -> bool {
        match &self.phase {
            Phase::Connecting(_) => false,
            Phase::Failed(_) => true,
            Phase::Running { measured, .. } => {
                let grace = measured.to + self.plan.timeout;
                now >= measured.to && (self.measured_left == 0 || now >= grace)
            }
        }
    }

    /// Requests that have ended or failed so far in the measured time.
    pub fn progress(&self) -> u64 {
        self.record.completed
    }

    /// How often requests were not admitted (P23).
    pub fn dropped(&self) -> u64 {
        self.sessions.iter().map(|session| session.stats().dropped).sum()
    }

    /// What came of it; the error that kept a client from connecting.
    pub fn finish(mut self) -> Result<Record, CallError> {
        if let Phase::Failed(error) = self.phase {
            return Err(error);
        }
        self.record.failed += self.measured_left;
        for _ in 0..self.measured_left {
            let latency = self.plan.timeout;
            self.record.ended(self.plan.duration, latency);
        }
        Ok(self.record)
    }
}

impl Engine {
    /// When the measured time ends and, after that, the wait for what is still outstanding.
    fn ends(&self) -> Option<Time> {
        let (_, to) = self.measured()?;
        Some(if self.turned_at < to { to } else { to + self.plan.timeout })
    }

    fn next_arrival(&self) -> Option<Time> {
        match &self.phase {
            Phase::Running { measured, arrivals: Some(arrivals) } => {
                Some(arrivals.schedule.next()).filter(|next| *next < measured.to)
            }
            _ => None,
        }
    }

    /// The next client in turn, or the first after it that has room.
    fn client_with_room(&mut self) -> Option<usize> {
        let count = self.sessions.len();
        let client = (0..count)
            .map(|step| (self.next_client + step) % count)
            .find(|client| self.sessions[*client].has_room())?;
        self.next_client = (client + 1) % count;
        Some(client)
    }

    fn begin(&mut self, client: usize, intended: Time, now: Time) {
        let Operation { is_query, body } = self.plan.requests.next();
        let kind =
            if is_query { CallKind::Query } else { CallKind::Command { until_known: false } };
        if self.measured().is_some_and(|(from, to)| from <= intended && intended < to) {
            self.measured_left += 1;
        }
        self.submit(client, kind, body, intended, now, Token::Request { intended });
    }

    fn submit(
        &mut self,
        client: usize,
        kind: CallKind,
        body: Bytes,
        begun: Time,
        now: Time,
        token: Token,
    ) {
        let timeout = match token {
            Token::Connect => CONNECT_TIMEOUT,
            Token::Request { .. } => self.plan.timeout,
        };
        let deadline = (begun + timeout).max(now);
        self.sessions[client].submit(Call { kind, body, deadline, timeout, token });
        self.touch(client);
    }

    fn touch(&mut self, client: usize) {
        if !std::mem::replace(&mut self.is_touched[client], true) {
            self.touched.push_back(client);
        }
    }

    fn ended(&mut self, client: usize, now: Time, token: Token, error: Option<CallError>) {
        let Token::Request { intended } = token else {
            return self.connected(now, error);
        };
        if let Some(error @ CallError::TooLarge { .. }) = error {
            // It would be asked again at once, for ever.
            self.phase = Phase::Failed(error);
            return;
        }
        let Phase::Running { measured, .. } = &self.phase else { return };
        let measured = *measured;
        if measured.contains(intended) {
            self.measured_left -= 1;
            self.record.failed += u64::from(error.is_some());
            self.record.ended(intended.since(measured.from), now.since(intended));
        }
        if error.is_none() && measured.contains(now) {
            self.record.completed += 1;
        }
        if matches!(self.plan.pace, Pace::Closed { .. }) && now < measured.to {
            self.begin(client, now, now);
        }
    }

    fn connected(&mut self, now: Time, error: Option<CallError>) {
        match (&mut self.phase, error) {
            (_, Some(error)) => self.phase = Phase::Failed(error),
            (Phase::Connecting(left), None) if *left > 1 => *left -= 1,
            (Phase::Connecting(_), None) => self.start(now),
            _ => {}
        }
    }

    fn start(&mut self, now: Time) {
        let from = now + self.plan.warm_up;
        let measured = Measured { from, to: from + self.plan.duration };
        let arrivals = match self.plan.pace {
            Pace::Open { per_second } => {
                let schedule = Poisson::new(now, per_second, self.plan.seed ^ 0x5EED);
                Some(Arrivals { schedule, previous: now })
            }
            Pace::Closed { .. } => None,
        };
        self.phase = Phase::Running { measured, arrivals };
        if let Pace::Closed { outstanding } = self.plan.pace {
            let clients = self.sessions.len();
            for request in 0..outstanding {
                self.begin(request % clients, now, now);
            }
        }
    }
}
