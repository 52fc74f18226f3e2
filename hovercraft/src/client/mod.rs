//! The client of a replicated service.

mod builder;
mod call;
mod cluster;
mod deadlines;
mod driver;
mod error;
mod route;
mod session;
mod stats;
mod window;

use std::{sync::PoisonError, time::Duration};

use bytes::Bytes;
use r2p2::Clock;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

pub use builder::ClientBuilder;
pub use call::{Call, CallKind};
pub use error::{CallError, CallOutcome, ConnectError};
pub use route::Destinations;
pub use session::Session;
pub use stats::ClientStats;

use driver::{Answer, Stats};

/// Calls a replicated service, which executes every command exactly once, however often messages
/// are lost and replicas change.
///
/// Clones share one session, one socket and one task, which sends together what they call at the
/// same time; any number of calls may be outstanding. They are ordered as it happens: who needs an
/// order awaits one call before making the next.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use hovercraft::Client;
///
/// let members = ["10.0.0.1:7000".parse()?, "10.0.0.2:7000".parse()?, "10.0.0.3:7000".parse()?];
/// let client = Client::builder().members(members).connect().await?;
/// let reply = client.call("a command of the service").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    calls: mpsc::Sender<Call<Answer>>,
    clock: Clock,
    timeout: Duration,
    stats: Stats,
}

impl Client {
    /// Begins to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// The same client with another timeout: for one call, or a clone to keep.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Executes a command on every replica, once, and returns the reply.
    ///
    /// The error says whether it was executed: when the time is up, that is mostly
    /// [unknown](CallOutcome::Unknown). To drop the future is to give the call up: it may be executed
    /// all the same, and harms no other.
    pub async fn call(&self, command: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.submit(CallKind::Command { until_known: false }, command.into()).await
    }

    /// Executes a command as [`Self::call`] does, but when the time is up it cancels the command,
    /// and waits for as long as it takes to learn whether the command or the cancellation came first
    /// (P23).
    ///
    /// So the error is [`CallError::Cancelled`], and the command is never executed; the outcome is
    /// unknown only if the cluster forgets the session, or the client's socket breaks. To wait no
    /// longer, drop the future.
    pub async fn call_until_known(&self, command: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.submit(CallKind::Command { until_known: true }, command.into()).await
    }

    /// Executes a query on one replica, after all that was answered before it was made (P17), and
    /// returns the reply. A query changes nothing, so one that failed can be repeated.
    pub async fn query(&self, query: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.submit(CallKind::Query, query.into()).await
    }

    /// What this client and its clones have seen so far.
    pub fn stats(&self) -> ClientStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn submit(&self, kind: CallKind, body: Bytes) -> Result<Bytes, CallError> {
        let (token, answered) = oneshot::channel();
        let timeout = self.timeout;
        let deadline = self.clock.now() + timeout;
        let call = Call { kind, body, deadline, timeout, token };
        match self.calls.try_send(call) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(CallError::Stopped),
            Err(mpsc::error::TrySendError::Full(call)) => {
                let sent = time::timeout(timeout, self.calls.send(call)).await;
                sent.map_err(|_| CallError::NotSent(timeout))?.map_err(|_| CallError::Stopped)?;
            }
        }
        // The driver answers every call that it takes, unless it ends.
        answered.await.unwrap_or(Err(CallError::Interrupted))
    }
}
