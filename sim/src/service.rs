//! Watches a replicated service: what it is called for, and how its state came to be what it is.

use std::{
    io::{self, Read, Write},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hovercraft::{Context, SnapshotWriter, StateMachine};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a service answers, and where in the log it did so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    /// Where in the log the operation was executed.
    pub(crate) index: u64,
    /// The service's own reply.
    pub(crate) reply: &'a [u8],
}

impl<'a> Answer<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (index, reply) = bytes.split_first_chunk::<8>()?;
        Some(Self { index: u64::from_be_bytes(*index), reply })
    }
}

/// One call of the service by the framework.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) context: Context,
    pub(crate) is_query: bool,
    /// An [`Answer`], encoded.
    pub(crate) reply: Arc<[u8]>,
    /// Digest of everything that was executed so far, this call included.
    pub(crate) history: u64,
}

/// What a replica's service was called for; shared with whoever watches it. One entry calls it once
/// at most.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    call: Option<Call>,
    /// The next snapshot cannot be read.
    breaks_restore: bool,
    /// Somebody looks at the state: what is asked then is not noted, and answered as it is.
    is_looked_at: bool,
}

impl Calls {
    /// Does something with the service that nothing comes of.
    pub(crate) fn look<T>(&self, look: impl FnOnce() -> T) -> T {
        self.shared().is_looked_at = true;
        let seen = look();
        self.shared().is_looked_at = false;
        seen
    }

    fn is_looked_at(&self) -> bool {
        self.shared().is_looked_at
    }

    pub(crate) fn take(&self) -> Option<Call> {
        self.shared().call.take()
    }

    /// The service cannot read the next snapshot, and its state is no state any more.
    pub(crate) fn break_restore(&self) {
        self.shared().breaks_restore = true;
    }

    fn add(&self, call: Call) {
        let before = self.shared().call.replace(call);
        assert!(before.is_none(), "one entry calls the service once at most");
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service, watched. Its replies begin with the log index at which they were given.
pub(crate) struct Watched {
    service: Box<dyn StateMachine>,
    /// Digest of every command, its context and its reply, in their order.
    history: u64,
    calls: Calls,
}

impl Watched {
    pub(crate) fn new(service: Box<dyn StateMachine>, calls: Calls) -> Self {
        Self { service, history: 0, calls }
    }

    fn note(&self, context: &Context, is_query: bool, reply: &[u8]) {
        let history = self.history;
        self.calls.add(Call { context: *context, is_query, reply: reply.into(), history });
    }
}

impl StateMachine for Watched {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&context.index.to_be_bytes());
        self.service.execute(context, command, reply);
        let executed = [context.index, context.time_us, context.seed].map(u64::to_le_bytes);
        self.history = xxh3_64_with_seed(executed.as_flattened(), self.history);
        self.history = xxh3_64_with_seed(command, self.history);
        self.history = xxh3_64_with_seed(reply, self.history);
        self.note(context, false, reply);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut Vec<u8>) {
        if self.calls.is_looked_at() {
            self.service.query(context, query, reply);
            return;
        }
        reply.extend_from_slice(&context.index.to_be_bytes());
        self.service.query(context, query, reply);
        self.note(context, true, reply);
    }

    fn snapshot(&self) -> SnapshotWriter {
        let history = self.history;
        if self.calls.is_looked_at() {
            return Box::new(move |to: &mut dyn Write| to.write_all(&history.to_le_bytes()));
        }
        let service = self.service.snapshot();
        Box::new(move |to: &mut dyn Write| {
            to.write_all(&history.to_le_bytes())?;
            service(to)
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut history = [0; 8];
        snapshot.read_exact(&mut history)?;
        if mem::take(&mut self.calls.shared().breaks_restore) {
            // Whatever it executes from here on is seen to be wrong.
            self.history = !self.history;
            return Err(io::Error::other("a fault of the schedule"));
        }
        self.history = u64::from_le_bytes(history);
        self.service.restore(snapshot)
    }

    fn digest(&self) -> Option<u64> {
        self.service.digest()
    }
}
