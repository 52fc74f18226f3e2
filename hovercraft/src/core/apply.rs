//! The application role: committed entries in, replies out.
//!
//! Owns everything that must be equal on all replicas at equal index: the service, the session
//! table and log time. Runs in the network loop or in a thread of its own; needs nothing of the
//! core.

use std::{
    any::Any,
    io::{self, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    core::sessions::{Sessions, Verdict},
    digest::DigestKey,
    entry::{ClusterLimits, Configuration, Entry, Index, Payload, Term},
    request::{Identity, Key, Kind, Outcome, Request, ReturnPath},
    state_machine::{Context, SnapshotWriter, StateMachine},
    storage::SnapshotMeta,
};

/// A committed entry, and what this replica must do with it beside applying it.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its index; entries come in order, without gaps.
    pub index: Index,
    /// The entry.
    pub entry: Entry,
    /// This replica is the replier of a read that it may answer (P17).
    pub executes_read: bool,
    /// Where the reply goes; none if another replica answers.
    pub answer_to: Option<ReturnPath>,
}

/// A reply to a client.
#[derive(Debug)]
pub struct Response<'a> {
    /// Where it goes.
    pub to: ReturnPath,
    /// Whose request it answers.
    pub identity: Identity,
    /// What became of the request.
    pub outcome: Outcome,
    /// The service's reply; empty unless it was executed.
    pub body: &'a [u8],
}

/// The service panicked on a committed entry; the replica applies nothing more (P42).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the service panicked on entry {index}, request {identity}: {message}; this replica applies \
     nothing more"
)]
pub struct Poisoned {
    /// The entry's index.
    pub index: Index,
    /// Whose request.
    pub identity: Identity,
    /// What the panic said.
    pub message: String,
}

/// A snapshot that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot is of another cluster, or its session table cannot be read. Nothing has
    /// changed.
    #[error("it is refused: {0}")]
    Refused(#[source] io::Error),
    /// The service returned an error or panicked: its state is undefined until it has read another
    /// snapshot.
    #[error("the service cannot read it: {0}")]
    Failed(#[source] io::Error),
}

impl From<RestoreError> for io::Error {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Refused(source) | RestoreError::Failed(source) => source,
        }
    }
}

/// The replicated state of one replica, and the service.
pub struct Applier {
    service: Box<dyn StateMachine>,
    sessions: Sessions,
    configuration: Arc<Configuration>,
    cluster: u64,
    /// Goes into snapshots (P2).
    digest_key: DigestKey,
    applied: Index,
    applied_term: Term,
    log_time_us: u64,
    poisoned: Option<Poisoned>,
    /// The service could not read a snapshot: its state is undefined until it has read another one.
    is_void: bool,
    /// Reused for replies that are not kept.
    reply: Vec<u8>,
}

impl Applier {
    /// An applier with nothing applied.
    pub fn new(
        service: Box<dyn StateMachine>,
        cluster: u64,
        digest_key: DigestKey,
        configuration: Arc<Configuration>,
    ) -> Self {
        Self {
            service,
            sessions: Sessions::default(),
            configuration,
            cluster,
            digest_key,
            applied: 0,
            applied_term: 0,
            log_time_us: 0,
            poisoned: None,
            is_void: false,
            reply: Vec::new(),
        }
    }

    /// Applies one entry (P21) and hands the reply, if this replica gives one, to `respond`.
    pub fn apply(
        &mut self,
        committed: &Committed,
        respond: &mut dyn FnMut(Response<'_>),
    ) -> Result<(), Poisoned> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone());
        }
        assert!(!self.is_void, "a service without a state is handed nothing");
        assert_eq!(committed.index, self.applied + 1, "entries are applied in order, each once");
        let entry = &committed.entry;
        self.log_time_us = self.log_time_us.max(entry.log_time_us);
        let local_delta = crate::planted::clock_us().saturating_sub(self.sessions.time_us());
        let is_local = planted!("expiry-by-local-time");
        let delta_us = if is_local { local_delta as u32 } else { entry.session_delta_us };
        self.sessions.advance(committed.index, delta_us, &self.configuration.limits);
        match &entry.payload {
            Payload::Noop if planted!("replies-forgotten") => self.sessions.forget_replies(),
            Payload::Noop => {}
            Payload::Configuration(configuration) => {
                self.configuration = Arc::clone(configuration);
            }
            Payload::Request { request, .. } => self.request(committed, request, respond)?,
        }
        self.applied = committed.index;
        self.applied_term = entry.term;
        Ok(())
    }

    /// The reply of a write that was executed, for a retry; false if it is not kept (P18).
    pub fn answer_retry(
        &self,
        key: Key,
        to: ReturnPath,
        respond: &mut dyn FnMut(Response<'_>),
    ) -> bool {
        let Identity::Session { client, sequence } = key.identity else {
            return false;
        };
        let kept = self.sessions.kept_reply(client, sequence, key.digest);
        let Some((outcome, body)) = kept else {
            return false;
        };
        respond(Response { to, identity: key.identity, outcome, body: &body });
        true
    }

    /// Takes a snapshot of the state as it is now. The sizes in the meta are for its writer to
    /// fill in. None if the state cannot be kept: a panic has left it half done, or the service
    /// panics over this too.
    pub fn snapshot(&self) -> Option<(SnapshotMeta, SnapshotWriter)> {
        if self.poisoned.is_some() || self.is_void {
            return None;
        }
        let index = self.applied;
        let service = catch_unwind(AssertUnwindSafe(|| self.service.snapshot()))
            .inspect_err(|panic| {
                let message = said(panic.as_ref());
                tracing::error!(index, message, "the service panicked over a snapshot");
            })
            .ok()?;
        let meta = SnapshotMeta {
            index: self.applied,
            term: self.applied_term,
            configuration: self.configuration.as_ref().clone(),
            log_time_us: self.log_time_us,
            size_bytes: 0,
            checksum: 0,
            digest_key: self.digest_key,
        };
        let sessions = self.sessions.clone();
        let writer: SnapshotWriter = Box::new(move |to| {
            sessions.write(to)?;
            service(to)
        });
        Some((meta, writer))
    }

    /// Replaces the state by that of a snapshot (P36): the service's and the session table's
    /// together, or neither. A service that was poisoned has what the others made of that entry,
    /// and goes on (P42).
    pub fn restore(
        &mut self,
        meta: &SnapshotMeta,
        mut data: &mut dyn Read,
    ) -> Result<(), RestoreError> {
        if meta.digest_key != self.digest_key {
            let what = "it is of another cluster: its digest key is another";
            let error = io::Error::new(io::ErrorKind::InvalidData, what);
            return Err(RestoreError::Refused(error));
        }
        let sessions = Sessions::read(meta.index, &mut data).map_err(RestoreError::Refused)?;
        let read = catch_unwind(AssertUnwindSafe(|| self.service.restore(data)))
            .unwrap_or_else(|panic| Err(io::Error::other(said(panic.as_ref()))));
        if let Err(error) = read {
            self.is_void = true;
            return Err(RestoreError::Failed(error));
        }
        self.is_void = false;
        self.poisoned = None;
        self.sessions = sessions;
        if planted!("sessions-not-restored") {
            self.sessions = Sessions::default();
        }
        self.configuration = Arc::new(meta.configuration.clone());
        self.applied = meta.index;
        self.applied_term = meta.term;
        self.log_time_us = meta.log_time_us;
        Ok(())
    }

    /// The highest index that is applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Returns how many sessions are open, and what their kept replies count for against the limit
    /// in bytes.
    pub fn sessions(&self) -> (usize, u64) {
        (self.sessions.len(), self.sessions.kept_bytes())
    }

    /// The clients that have a session, in ascending order.
    pub fn session_clients(&self) -> impl Iterator<Item = u64> {
        self.sessions.clients()
    }

    /// Whether the replicated state that the framework keeps is equal to another's.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.sessions == other.sessions
            && self.log_time_us == other.log_time_us
            && self.configuration == other.configuration
    }

    /// The service.
    pub fn service(&self) -> &dyn StateMachine {
        self.service.as_ref()
    }

    fn request(
        &mut self,
        committed: &Committed,
        request: &Request,
        respond: &mut dyn FnMut(Response<'_>),
    ) -> Result<(), Poisoned> {
        let identity = request.identity();
        let limits = self.configuration.limits;
        let verdict = match identity {
            // Nothing but the opening of a session is executed without one: it would be as often
            // as it arrives (P1).
            Identity::Session { client: 0, .. } if request.kind() != Kind::OpenSession => {
                Verdict::Answer(Outcome::Refused, Bytes::new())
            }
            Identity::Plain { .. } | Identity::Session { client: 0, .. } => Verdict::Execute,
            Identity::Session { client, sequence } => {
                self.sessions.check(client, sequence, request, &limits)
            }
        };
        let mut answer = |outcome, body: &[u8]| {
            if let Some(to) = committed.answer_to {
                respond(Response { to, identity, outcome, body });
            }
        };
        if let Verdict::Answer(outcome, body) = verdict {
            answer(outcome, &body);
            return Ok(());
        }
        match (request.kind(), identity) {
            (Kind::OpenSession, Identity::Session { client: 0, .. }) => {
                let client = self.sessions.open(&limits);
                answer(Outcome::Executed, &SessionGrant::new(client, &limits).encode());
            }
            (Kind::Cancel, Identity::Session { client, sequence }) => {
                let (outcome, body) = self.sessions.cancel(client, sequence, request);
                answer(outcome, &body);
            }
            (Kind::Write, _) => {
                let result = self.call(committed.index, request);
                result.map_err(|message| self.poison(committed.index, identity, message))?;
                if let Identity::Session { client, sequence } = identity {
                    let kept = Bytes::copy_from_slice(&self.reply);
                    let outcome = Outcome::Executed;
                    self.sessions.record(client, sequence, request.digest(), outcome, kept);
                }
                answer(Outcome::Executed, &self.reply);
            }
            (Kind::Read, _) => {
                if committed.executes_read {
                    match self.call(committed.index, request) {
                        Ok(()) => answer(Outcome::Executed, &self.reply),
                        Err(message) => {
                            let index = committed.index;
                            tracing::error!(index, %identity, message, "a query panicked");
                            answer(Outcome::QueryFailed, &[]);
                        }
                    }
                }
            }
            // Opened or cancelled from within no session, or the wrong one.
            (Kind::OpenSession | Kind::Cancel, _) => answer(Outcome::Refused, &[]),
        }
        Ok(())
    }

    /// Runs the service; the reply is in `self.reply`. Fails with what a panic said.
    fn call(&mut self, index: Index, request: &Request) -> Result<(), String> {
        let context = Context {
            index,
            time_us: self.log_time_us,
            seed: xxh3_64_with_seed(&index.to_le_bytes(), self.cluster),
        };
        self.reply.clear();
        // A query changes nothing; and after any other panic the state is never used again, so it
        // does not matter how it was left.
        let result = catch_unwind(AssertUnwindSafe(|| match request.kind() {
            Kind::Read => self.service.query(&context, request.body(), &mut self.reply),
            _ => self.service.execute(&context, request.body(), &mut self.reply),
        }));
        result.map_err(|panic| said(panic.as_ref()))
    }

    fn poison(&mut self, index: Index, identity: Identity, message: String) -> Poisoned {
        let poisoned = Poisoned { index, identity, message };
        self.poisoned = Some(poisoned.clone());
        poisoned
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The reply to a request that opens a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionGrant {
    /// The client id (P1).
    pub client: u64,
    /// How many sequences from the lowest unacknowledged one the client may use (P20).
    pub window: u32,
    /// The largest body of a request, in bytes (P4).
    pub request_bytes_max: u32,
    /// How long the session may be idle before it expires, in whole milliseconds (P20).
    pub lifetime: Duration,
}

impl SessionGrant {
    fn new(client: u64, limits: &ClusterLimits) -> Self {
        Self {
            client,
            window: limits.session_window,
            request_bytes_max: limits.request_bytes_max,
            lifetime: limits.session_lifetime,
        }
    }

    /// 20 bytes, big-endian: client id, window, largest body, lifetime.
    pub fn encode(&self) -> [u8; 20] {
        let lifetime_ms = u32::try_from(self.lifetime.as_millis()).unwrap_or(u32::MAX);
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.client.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.window.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.request_bytes_max.to_be_bytes());
        bytes[16..].copy_from_slice(&lifetime_ms.to_be_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote; further bytes are for later versions.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (client, rest) = bytes.split_first_chunk::<8>()?;
        let (window, rest) = rest.split_first_chunk::<4>()?;
        let (request_bytes_max, rest) = rest.split_first_chunk::<4>()?;
        let (lifetime_ms, _) = rest.split_first_chunk::<4>()?;
        Some(Self {
            client: u64::from_be_bytes(*client),
            window: u32::from_be_bytes(*window),
            request_bytes_max: u32::from_be_bytes(*request_bytes_max),
            lifetime: Duration::from_millis(u32::from_be_bytes(*lifetime_ms).into()),
        })
    }
}
