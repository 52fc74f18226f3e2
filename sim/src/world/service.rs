//! The service of a run, watched: what every replica executes is compared with what the others
//! execute, while it happens.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use hovercraft::{Context, Index, NodeId, SnapshotWriter, StateMachine};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{invariants::Violation, network::happens};

/// What an operation is called: its client, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OperationId {
    pub(super) client: u32,
    pub(super) number: u32,
}

impl OperationId {
    /// An operation's body, with its name in front.
    pub(super) fn mark(self, body: &[u8]) -> Bytes {
        let name = [self.client, self.number].map(u32::to_be_bytes);
        [name.as_flattened(), body].concat().into()
    }

    fn unmark(body: &[u8]) -> Option<(Self, &[u8])> {
        let (client, rest) = body.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (client, number) = (u32::from_be_bytes(*client), u32::from_be_bytes(*number));
        Some((Self { client, number }, rest))
    }
}

/// One entry's effect, as the first replica had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Execution {
    pub(super) id: OperationId,
    pub(super) is_query: bool,
    pub(super) body: Bytes,
    pub(super) reply: Bytes,
    /// Of everything that was executed so far; a query has that of the command before it.
    history: u64,
    pub(super) context: Context,
    by: NodeId,
}

/// What all replicas together have executed.
#[derive(Debug, Clone, Default)]
pub(super) struct Witness(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) executions: BTreeMap<Index, Execution>,
    /// Where each command was executed.
    pub(super) commands: BTreeMap<OperationId, Index>,
    /// The last command of each replica.
    pub(super) last: BTreeMap<NodeId, Index>,
    /// The first thing that was wrong.
    pub(super) wrong: Option<Violation>,
}

impl Witness {
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        // The one thread that there is panicked: whatever it was, the run has failed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no service is left that it sees.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Seen {
    fn see(&mut self, execution: Execution) {
        let (index, id) = (execution.context.index, execution.id);
        if !execution.is_query {
            self.last.insert(execution.by, index);
        }
        let wrong = match self.executions.get(&index) {
            None => {
                let before = (!execution.is_query).then(|| self.commands.insert(id, index));
                self.executions.insert(index, execution);
                before.flatten().map(|before| {
                    let what = format!("{id:?} was executed at {before}, and again at {index}");
                    Violation { invariant: "exactly once", rule: "P21", what }
                })
            }
            Some(first) if first.is_query && execution.is_query && first.by != execution.by => {
                let (first, second) = (first.by, execution.by);
                let what = format!("the query at {index} was executed by {first} and by {second}");
                Some(Violation { invariant: "read-only by its replier", rule: "P17", what })
            }
            // The same replica, which has been restarted.
            Some(first) => {
                let first = Execution { by: execution.by, ..first.clone() };
                (first != execution).then(|| {
                    let what = format!("replicas differ at {index}: {first:?} and {execution:?}");
                    Violation { invariant: "state machine safety", rule: "Raft §5.4.3", what }
                })
            }
        };
        self.wrong = self.wrong.take().or(wrong);
    }
}

/// A service whose executions a [`Witness`] sees.
pub(super) struct Watched {
    service: Box<dyn StateMachine>,
    node: NodeId,
    witness: Witness,
    history: u64,
    /// Snapshots have so many bytes more than they need, so that they travel in parts.
    ballast: usize,
    spoiling: Spoiling,
    /// The snapshots of other replicas that it cannot read.
    unreadable: Spoiling,
    /// It could not read the last one, and has no state.
    is_void: bool,
}

/// Which snapshots cannot be written, or read: so many of a thousand.
#[derive(Debug, Clone)]
pub(super) struct Spoiling(Arc<Mutex<(u32, fastrand::Rng)>>);

impl Spoiling {
    pub(super) fn new(per_mille: u32, rng: fastrand::Rng) -> Self {
        Self(Arc::new(Mutex::new((per_mille, rng))))
    }

    /// From now on all can be.
    pub(super) fn end(&self) {
        self.state().0 = 0;
    }

    fn happens(&self) -> bool {
        let (per_mille, rng) = &mut *self.state();
        happens(rng, *per_mille)
    }

    fn state(&self) -> MutexGuard<'_, (u32, fastrand::Rng)> {
        // The one thread that there is panicked: whatever it was, the run has failed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    pub(super) fn new(
        service: Box<dyn StateMachine>,
        node: NodeId,
        witness: Witness,
        ballast: usize,
        spoiling: Spoiling,
        unreadable: Spoiling,
    ) -> Self {
        Self { service, node, witness, history: 0, ballast, spoiling, unreadable, is_void: false }
    }

    fn tell(&self, context: &Context, is_query: bool, marked: &[u8], reply: &[u8]) {
        let Some((id, body)) = OperationId::unmark(marked) else { return };
        let execution = Execution {
            id,
            is_query,
            body: Bytes::copy_from_slice(body),
            reply: Bytes::copy_from_slice(reply),
            history: self.history,
            context: *context,
            by: self.node,
        };
        self.witness.seen().see(execution);
    }
}

impl StateMachine for Watched {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        if let Some((_, body)) = OperationId::unmark(command) {
            self.service.execute(context, body, reply);
        }
        let numbers = [context.index, context.time_us, context.seed].map(u64::to_le_bytes);
        self.history = xxh3_64_with_seed(numbers.as_flattened(), self.history);
        self.history = xxh3_64_with_seed(command, self.history);
        self.history = xxh3_64_with_seed(reply, self.history);
        self.tell(context, false, command, reply);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut Vec<u8>) {
        if let Some((_, body)) = OperationId::unmark(query) {
            self.service.query(context, body, reply);
        }
        self.tell(context, true, query, reply);
    }

    fn snapshot(&self) -> SnapshotWriter {
        let (history, write) = (self.history, self.service.snapshot());
        let ballast = vec![history as u8; self.ballast];
        let is_spoiled = self.spoiling.happens();
        Box::new(move |to: &mut dyn Write| {
            to.write_all(&history.to_le_bytes())?;
            to.write_all(&ballast)?;
            if is_spoiled {
                return Err(io::Error::other("a fault of the schedule"));
            }
            write(to)
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut history = [0; 8];
        snapshot.read_exact(&mut history)?;
        let mut ballast = vec![0; self.ballast];
        snapshot.read_exact(&mut ballast)?;
        // One that has executed nothing yet reads its own; and so does one without a state.
        let is_received = self.history != 0 && !self.is_void;
        self.is_void = is_received && self.unreadable.happens();
        if self.is_void {
            // Whatever it executes from here on is seen to be wrong.
            self.history = !self.history;
            return Err(io::Error::other("a fault of the schedule"));
        }
        self.history = u64::from_le_bytes(history);
        self.service.restore(snapshot)
    }
}
