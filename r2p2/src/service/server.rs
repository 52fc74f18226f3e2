//! A server that answers requests by an async function.

use std::{
    future::Future,
    io,
    net::SocketAddrV4,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::ToSocketAddrs,
    task::{JoinError, JoinSet},
};

use super::{resolve, seed};
use crate::{
    Alarm, AsyncLink, AsyncUdpLink, BindError, Clock, Incoming, Link, Options, Outbox, ReplyTo,
    ServerConfig, ServerEndpoint, Time, UdpConfig,
};

/// How many requests are executed at a time unless the user says otherwise.
const CONCURRENCY_DEFAULT: usize = 1024;

/// How long a server that stops waits for clients that still fetch large replies.
const LINGER: Duration = Duration::from_millis(250);

/// Serves requests that are not replicated.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use r2p2::Server;
///
/// let server = Server::bind("127.0.0.1:9000").await?;
/// server.serve(|request| async move { request }).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    link: AsyncUdpLink,
    endpoint: ServerEndpoint,
    outbox: Outbox,
    clock: Clock,
    concurrency: usize,
}

/// What a handler that took its time has come to.
struct Answer {
    to: ReplyTo,
    options: Options,
    body: Bytes,
}

impl Server {
    /// Binds to an address. Port 0 takes a free one, which [`Self::local_address`] tells.
    pub async fn bind(address: impl ToSocketAddrs) -> Result<Self, BindError> {
        let address = resolve(address).await?;
        Ok(Self {
            link: AsyncUdpLink::bind(&UdpConfig::new(address))?,
            endpoint: ServerEndpoint::new(ServerConfig::default(), seed()),
            outbox: Outbox::new(),
            clock: Clock::start(),
            concurrency: CONCURRENCY_DEFAULT,
        })
    }

    /// Executes at most `requests` at a time (1024 by default). Others get a DROP, which tells their
    /// clients at once that they were not executed.
    #[must_use]
    pub fn with_concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests;
        self
    }

    /// The address that clients call.
    pub fn local_address(&self) -> io::Result<SocketAddrV4> {
        self.link.local_address()
    }

    /// Answers every request by what `handler` makes of it, for ever or until the link breaks.
    ///
    /// A handler runs in this task up to its first wait, so that one that does not wait costs no
    /// hand-over, and goes on as a task of its own; many run at a time. One that computes for long
    /// holds up all others, so leave such work to [`tokio::task::spawn_blocking`]. One that panics
    /// gives no reply. Doubled datagrams may be executed twice.
    pub async fn serve<H, F, R>(self, handler: H) -> io::Result<()>
    where
        H: Fn(Bytes) -> F,
        F: Future<Output = R> + Send + 'static,
        R: Into<Bytes> + 'static,
    {
        self.serve_until(handler, std::future::pending()).await
    }

    /// The same as [`Self::serve`], until `stop` completes: then new requests get a DROP, and it
    /// returns when those that are being executed have been answered.
    pub async fn serve_until<H, F, R>(
        mut self,
        handler: H,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()>
    where
        H: Fn(Bytes) -> F,
        F: Future<Output = R> + Send + 'static,
        R: Into<Bytes> + 'static,
    {
        let mut stop = pin!(stop);
        let mut handlers = JoinSet::new();
        let mut alarm = Alarm::new();
        let mut admits = true;
        let mut lingers_until = None;
        while lingers_until.is_none_or(|end| self.clock.now() < end) {
            tokio::select! {
                biased;
                () = &mut stop, if admits => admits = false,
                readable = self.link.readable() => readable?,
                Some(answer) = handlers.join_next() => self.answer(answer),
                () = alarm.ring() => {}
            }
            // First those that are done, for they make room.
            while let Some(answer) = handlers.try_join_next() {
                self.answer(answer);
            }
            self.receive(&handler, &mut handlers, admits)?;
            let now = self.clock.now();
            if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
                self.endpoint.handle_timeout(now, &mut self.outbox);
            }
            self.link.send(&mut self.outbox)?;
            if !admits && handlers.is_empty() && lingers_until.is_none() {
                // Clients may still be fetching large replies.
                let fetched = self.endpoint.poll_timeout().is_none();
                lingers_until = Some(if fetched { now } else { now + LINGER });
            }
            let dues = [self.endpoint.poll_timeout(), lingers_until];
            let next = dues.into_iter().flatten().min();
            alarm.ring_by(next.map(|due| self.clock.instant(due)));
        }
        Ok(())
    }

    /// Takes one batch of datagrams, and starts the handlers of the requests that they complete.
    fn receive<H, F, R>(
        &mut self,
        handler: &H,
        handlers: &mut JoinSet<Answer>,
        admits: bool,
    ) -> io::Result<()>
    where
        H: Fn(Bytes) -> F,
        F: Future<Output = R> + Send + 'static,
        R: Into<Bytes> + 'static,
    {
        let now = self.clock.now();
        let Self { link, endpoint, outbox, concurrency, .. } = self;
        link.receive(&mut |from, datagram| {
            let incoming = match endpoint.handle_datagram(now, from, datagram, outbox) {
                Ok(Some(incoming)) => incoming,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%from, %error, "ignored a datagram");
                    return;
                }
            };
            // Nobody here can execute a request in the order of a replicated log.
            let admitted =
                admits && handlers.len() < *concurrency && !incoming.policy.is_replicated();
            let (to, options) = (incoming.reply_to, incoming.reply_options());
            if !admitted {
                endpoint.drop_request(to, &options, outbox);
            } else if let Some(body) = start(handler, incoming, handlers) {
                respond(endpoint, outbox, now, Answer { to, options, body });
            }
        })?;
        Ok(())
    }

    fn answer(&mut self, answer: Result<Answer, JoinError>) {
        let now = self.clock.now();
        match answer {
            Ok(answer) => respond(&mut self.endpoint, &mut self.outbox, now, answer),
            Err(error) => tracing::error!(%error, "a handler failed, and its client gets no reply"),
        }
    }
}

fn respond(endpoint: &mut ServerEndpoint, outbox: &mut Outbox, now: Time, answer: Answer) {
    let Answer { to, options, body } = answer;
    if let Err(error) = endpoint.respond(now, to, &options, body, outbox) {
        tracing::error!(client = %to.address, %error, "a reply cannot be sent");
    }
}

/// Runs a handler up to its first wait. Returns its reply, or makes it a task of its own.
fn start<H, F, R>(
    handler: &H,
    incoming: Incoming<'_>,
    handlers: &mut JoinSet<Answer>,
) -> Option<Bytes>
where
    H: Fn(Bytes) -> F,
    F: Future<Output = R> + Send + 'static,
    R: Into<Bytes> + 'static,
{
    let to = incoming.reply_to;
    let options = incoming.reply_options();
    let body = incoming.body.into_bytes();
    // What panics here is the user's code, of which nothing is used afterwards.
    let first_run = catch_unwind(AssertUnwindSafe(|| {
        let mut future = Box::pin(handler(body));
        let mut context = Context::from_waker(Waker::noop());
        let poll = future.as_mut().poll(&mut context);
        (future, poll)
    }));
    match first_run {
        Ok((_, Poll::Ready(reply))) => Some(reply.into()),
        Ok((future, Poll::Pending)) => {
            // The task polls it again before it waits, and so replaces the waker that does nothing.
            handlers.spawn(async move { Answer { to, options, body: future.await.into() } });
            None
        }
        Err(_) => {
            tracing::error!(client = %to.address, "a handler panicked, and its client gets no reply");
            None
        }
    }
}
