//! A client for many calls at a time.

use std::{collections::VecDeque, io, net::Ipv4Addr, net::SocketAddrV4, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::ToSocketAddrs,
    sync::{mpsc, oneshot},
};

use super::{resolve, seed};
use crate::{
    Alarm, AsyncLink, AsyncUdpLink, BindError, ClientConfig, ClientEndpoint, ClientEvent,
    ClientEventKind, Clock, Link, Options, Outbox, Policy, RequestError, RequestHandle, Time,
    UdpConfig,
};

/// How many calls may wait for the driver to take them; more wait in [`Client::call`].
const QUEUE: usize = 1024;

/// How many requests may be outstanding.
const OUTSTANDING_MAX: usize = 8192;

/// How many calls the driver takes before it looks at the link again.
const CALLS_A_TURN: usize = 256;

/// How often the driver looks for callers that are gone, when all requests are outstanding.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// How a [`Client`] calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSettings {
    /// How long a call may take in all. By default 1 s.
    pub timeout: Duration,
    /// Whether to send a request again that has not been answered for so long (at least 20 ms), with
    /// doubled waits. Such a request may be executed more than once, so it is off by default.
    pub retry_after: Option<Duration>,
    /// Whether any server behind the address may answer, or the one that the address names. By
    /// default the latter.
    pub policy: Policy,
    /// The server is an original R2P2 one. It gets no options, which it does not know; without
    /// them a message of several packets is lost if one of its packets is. By default it is not.
    pub original_server: bool,
}

impl Default for CallSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            retry_after: None,
            policy: Policy::Fixed,
            original_server: false,
        }
    }
}

/// Whether a call that failed was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was not, and never will be.
    NotExecuted,
    /// It was, but its reply is lost.
    Executed,
    /// It may have been, or may still be.
    Unknown,
}

/// Why a call has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server has as much to do as it takes on (P23).
    #[error("not executed: the server did not admit the request")]
    NotAdmitted,
    /// The request cannot be put into packets.
    #[error("not executed: {0}")]
    Invalid(RequestError),
    /// So many calls were outstanding that this one's turn did not come in time.
    #[error("not executed: the request was not sent within {0:?}")]
    NotSent(Duration),
    /// The client's sockets broke before the request was sent.
    #[error("not executed: the client has stopped")]
    Stopped,
    /// The reply exceeds what a client takes.
    #[error("executed, but the reply is too large")]
    ReplyTooLarge,
    /// The request, its execution or the reply took too long or was lost.
    #[error("outcome unknown: no reply within {0:?}")]
    TimedOut(Duration),
    /// The client's sockets broke while the request was outstanding.
    #[error("outcome unknown: the client stopped before the reply came")]
    Interrupted,
}

impl CallError {
    /// Whether the request was executed.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotAdmitted | Self::Invalid(_) | Self::NotSent(_) | Self::Stopped => {
                Outcome::NotExecuted
            }
            Self::ReplyTooLarge => Outcome::Executed,
            Self::TimedOut(_) | Self::Interrupted => Outcome::Unknown,
        }
    }
}

/// Calls a [`Server`](super::Server), or an original R2P2 one. Clones share one socket and one
/// driver task, which sends what they call together; it ends with the last of them.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use r2p2::Client;
///
/// let client = Client::connect("127.0.0.1:9000").await?;
/// let reply = client.call("hello").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    calls: mpsc::Sender<Call>,
    clock: Clock,
    timeout: Duration,
}

#[derive(Debug)]
struct Call {
    body: Bytes,
    deadline: Time,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<Bytes, CallError>>;

impl Client {
    /// A client of the server at `address`. Nothing is sent yet.
    pub async fn connect(address: impl ToSocketAddrs) -> Result<Self, BindError> {
        Self::connect_with(address, CallSettings::default()).await
    }

    /// The same as [`Self::connect`], with other settings.
    pub async fn connect_with(
        address: impl ToSocketAddrs,
        settings: CallSettings,
    ) -> Result<Self, BindError> {
        Self::with_outstanding(resolve(address).await?, settings, OUTSTANDING_MAX)
    }

    pub(super) fn with_outstanding(
        server: SocketAddrV4,
        settings: CallSettings,
        outstanding_max: usize,
    ) -> Result<Self, BindError> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let link = AsyncUdpLink::bind(&UdpConfig::new(any))?;
        let (sender, calls) = mpsc::channel(QUEUE);
        let clock = Clock::start();
        tokio::spawn(Driver::new(link, server, settings, outstanding_max, clock).drive(calls));
        Ok(Self { calls: sender, clock, timeout: settings.timeout })
    }

    /// Sends a request and waits for its reply.
    ///
    /// To drop the future gives the call up: it may be executed all the same, and harms no other.
    pub async fn call(&self, request: impl Into<Bytes>) -> Result<Bytes, CallError> {
        let (answer, answered) = oneshot::channel();
        let call = Call { body: request.into(), deadline: self.clock.now() + self.timeout, answer };
        self.calls.send(call).await.map_err(|_| CallError::Stopped)?;
        // The driver answers every call that it takes, unless it ends.
        answered.await.unwrap_or(Err(CallError::Interrupted))
    }
}

/// A call whose request has been sent.
#[derive(Debug)]
struct Waiting {
    handle: RequestHandle,
    answer: Answer,
}

/// The task behind the clones of a client.
#[derive(Debug)]
struct Driver {
    link: AsyncUdpLink,
    endpoint: ClientEndpoint,
    outbox: Outbox,
    clock: Clock,
    settings: CallSettings,
    server: Arc<[SocketAddrV4]>,
    outstanding_max: usize,
    /// By the index of the request's handle.
    waiting: Vec<Option<Waiting>>,
    /// In the order of the calls, which is nearly that of the deadlines; some are of calls answered
    /// long since.
    deadlines: VecDeque<(Time, RequestHandle)>,
    next_sweep: Time,
}

impl Driver {
    fn new(
        link: AsyncUdpLink,
        server: SocketAddrV4,
        settings: CallSettings,
        outstanding_max: usize,
        clock: Clock,
    ) -> Self {
        // Twice the timeout is never: the call has been given up by then.
        let retry_after = settings.retry_after.unwrap_or(settings.timeout * 2);
        let config = ClientConfig {
            retry_after,
            retry_after_max: retry_after.max(settings.timeout),
            outstanding_max,
            ..ClientConfig::default()
        };
        Self {
            link,
            endpoint: ClientEndpoint::new(config, seed()),
            outbox: Outbox::new(),
            clock,
            settings,
            server: Arc::new([server]),
            outstanding_max,
            waiting: Vec::new(),
            deadlines: VecDeque::new(),
            next_sweep: Time::ZERO,
        }
    }

    async fn drive(mut self, mut calls: mpsc::Receiver<Call>) {
        match self.run(&mut calls).await {
            Ok(()) => tracing::debug!("the last client is gone"),
            Err(error) => tracing::error!(%error, "the client's link broke"),
        }
    }

    /// Takes calls and their replies until there are no clients any more, and so nobody who waits.
    async fn run(&mut self, calls: &mut mpsc::Receiver<Call>) -> io::Result<()> {
        let mut alarm = Alarm::new();
        loop {
            let has_room = self.has_room(self.clock.now());
            let mut next = None;
            tokio::select! {
                biased;
                readable = self.link.readable() => readable?,
                call = calls.recv(), if has_room => match call {
                    Some(call) => next = Some(call),
                    None => return Ok(()),
                },
                () = alarm.ring() => {}
            }
            let now = self.clock.now();
            self.receive(now)?;
            if let Some(call) = next {
                self.start(now, call);
            }
            for _ in 0..CALLS_A_TURN {
                if !self.has_room(now) {
                    break;
                }
                let Ok(call) = calls.try_recv() else { break };
                self.start(now, call);
            }
            self.give_up(now);
            if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
                self.endpoint.handle_timeout(now, &mut self.outbox);
            }
            self.link.send(&mut self.outbox)?;
            let first = self.deadlines.front().map(|&(deadline, _)| deadline);
            let sweep = (!self.has_room(now)).then_some(self.next_sweep);
            let dues = [first, self.endpoint.poll_timeout(), sweep];
            let due = dues.into_iter().flatten().min();
            alarm.ring_by(due.map(|due| self.clock.instant(due)));
        }
    }

    /// Whether another request may be sent. If not, requests are forgotten whose callers are gone.
    fn has_room(&mut self, now: Time) -> bool {
        if self.endpoint.outstanding_count() < self.outstanding_max {
            return true;
        }
        if now < self.next_sweep {
            return false;
        }
        self.next_sweep = now + SWEEP_INTERVAL;
        for waiting in &mut self.waiting {
            if let Some(gone) = waiting.take_if(|waiting| waiting.answer.is_closed()) {
                self.endpoint.forget(now, gone.handle);
            }
        }
        self.endpoint.outstanding_count() < self.outstanding_max
    }

    fn start(&mut self, now: Time, call: Call) {
        let Call { body, deadline, answer } = call;
        if answer.is_closed() {
            return;
        }
        if deadline <= now {
            tell(answer, Err(CallError::NotSent(self.settings.timeout)));
            return;
        }
        let options =
            if self.settings.original_server { Options::NONE } else { Options::REPAIRABLE };
        let policy = self.settings.policy;
        let sent =
            self.endpoint.request(now, &self.server, policy, options, body, &mut self.outbox);
        match sent {
            Ok(handle) => {
                let index = handle.index();
                if index >= self.waiting.len() {
                    self.waiting.resize_with(index + 1, || None);
                }
                self.waiting[index] = Some(Waiting { handle, answer });
                self.remember(deadline, handle);
            }
            Err(error) => tell(answer, Err(CallError::Invalid(error))),
        }
    }

    /// Notes a deadline, and drops those of calls that have been answered once they are the most.
    fn remember(&mut self, deadline: Time, handle: RequestHandle) {
        if self.deadlines.len() >= 2 * self.outstanding_max {
            let waiting = &self.waiting;
            self.deadlines.retain(|(_, handle)| is_waiting(waiting, *handle));
        }
        self.deadlines.push_back((deadline, handle));
    }

    fn receive(&mut self, now: Time) -> io::Result<()> {
        let Self { link, endpoint, outbox, waiting, .. } = self;
        link.receive(&mut |from, datagram| match endpoint
            .handle_datagram(now, from, datagram, outbox)
        {
            Ok(Some(event)) => settle(now, event, endpoint, waiting),
            Ok(None) => {}
            Err(error) => tracing::debug!(%from, %error, "ignored a datagram"),
        })?;
        Ok(())
    }

    fn give_up(&mut self, now: Time) {
        while let Some((_, handle)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now)
        {
            if is_waiting(&self.waiting, handle) {
                self.endpoint.forget(now, handle);
                let timeout = self.settings.timeout;
                end(&mut self.waiting, handle, Err(CallError::TimedOut(timeout)));
            }
        }
    }
}

/// Tells a caller what came of its call, if that is certain.
fn settle(
    now: Time,
    event: ClientEvent<'_>,
    endpoint: &mut ClientEndpoint,
    waiting: &mut [Option<Waiting>],
) {
    let result = match event.kind {
        ClientEventKind::Reply { body, .. } => Ok(body.into_bytes()),
        ClientEventKind::ReplyTooLarge => Err(CallError::ReplyTooLarge),
        ClientEventKind::Dropped { copies_sent: 1 } => {
            endpoint.forget(now, event.handle);
            Err(CallError::NotAdmitted)
        }
        // An earlier copy may have been executed, and its reply be on the way.
        ClientEventKind::Dropped { .. } => return,
    };
    end(waiting, event.handle, result);
}

fn is_waiting(waiting: &[Option<Waiting>], handle: RequestHandle) -> bool {
    let slot = waiting.get(handle.index());
    slot.is_some_and(|slot| slot.as_ref().is_some_and(|waiting| waiting.handle == handle))
}

fn end(waiting: &mut [Option<Waiting>], handle: RequestHandle, result: Result<Bytes, CallError>) {
    if is_waiting(waiting, handle)
        && let Some(waiting) = waiting[handle.index()].take()
    {
        tell(waiting.answer, result);
    }
}

fn tell(answer: Answer, result: Result<Bytes, CallError>) {
    // A caller that has gone does not want to know.
    let _ = answer.send(result);
}
