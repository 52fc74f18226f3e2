//! The replicated service: registers that are set, increased and read, and that remember how they
//! came to be what they are.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use hovercraft::{Context, SnapshotWriter, StateMachine};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a client asks of the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write a register.
    Set {
        /// Which register.
        key: u8,
        /// Its new value.
        value: u64,
    },
    /// Add to a register: shows at once if it is executed twice.
    Add {
        /// Which register.
        key: u8,
        /// How much.
        value: u64,
    },
    /// Read a register.
    Get {
        /// Which register.
        key: u8,
    },
}

impl Operation {
    /// The operation as a request's body of at least `len` bytes.
    pub(crate) fn encode(self, len: usize) -> Vec<u8> {
        let (tag, key, value) = match self {
            Self::Set { key, value } => (0, key, value),
            Self::Add { key, value } => (1, key, value),
            Self::Get { key } => (2, key, 0),
        };
        let mut bytes = vec![tag, key];
        bytes.extend_from_slice(&value.to_be_bytes());
        bytes.resize(len.max(bytes.len()), tag ^ key);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[tag, key], rest) = bytes.split_first_chunk::<2>()?;
        let value = u64::from_be_bytes(*rest.first_chunk::<8>()?);
        match tag {
            0 => Some(Self::Set { key, value }),
            1 => Some(Self::Add { key, value }),
            2 => Some(Self::Get { key }),
            _ => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { key, value } => write!(f, "set r{key} to {value}"),
            Self::Add { key, value } => write!(f, "add {value} to r{key}"),
            Self::Get { key } => write!(f, "read r{key}"),
        }
    }
}

/// What the registers answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Where in the log the operation was executed.
    pub(crate) index: u64,
    /// The register, after the operation.
    pub(crate) value: u64,
}

impl Answer {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (index, rest) = bytes.split_first_chunk::<8>()?;
        let value = u64::from_be_bytes(rest.try_into().ok()?);
        Some(Self { index: u64::from_be_bytes(*index), value })
    }

    fn encode(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.index.to_be_bytes());
        to.extend_from_slice(&self.value.to_be_bytes());
    }
}

/// One call of the service by the framework.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) context: Context,
    pub(crate) is_query: bool,
    pub(crate) reply: Vec<u8>,
    /// Digest of everything that was executed so far, this call included.
    pub(crate) history: u64,
}

/// What a replica's service was called for; shared with whoever watches it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, call: Call) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

/// The service.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    values: BTreeMap<u8, u64>,
    /// Digest of every command, its context and its reply, in their order.
    history: u64,
    /// Its snapshots have so many bytes more than they need, so that they travel in parts.
    ballast: usize,
    calls: Calls,
}

impl Registers {
    pub(crate) fn new(calls: Calls, ballast: usize) -> Self {
        Self { ballast, calls, ..Self::default() }
    }

    fn note(&self, context: &Context, is_query: bool, reply: &[u8]) {
        let history = self.history;
        self.calls.add(Call { context: *context, is_query, reply: reply.to_vec(), history });
    }
}

impl StateMachine for Registers {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        if let Some(operation) = Operation::decode(command) {
            let value = match operation {
                Operation::Set { key, value } => {
                    self.values.insert(key, value);
                    value
                }
                Operation::Add { key, value } => {
                    let register = self.values.entry(key).or_default();
                    *register = register.wrapping_add(value);
                    *register
                }
                Operation::Get { key } => self.values.get(&key).copied().unwrap_or_default(),
            };
            Answer { index: context.index, value }.encode(reply);
        }
        let executed = [context.index, context.time_us, context.seed].map(u64::to_le_bytes);
        self.history = xxh3_64_with_seed(executed.as_flattened(), self.history);
        self.history = xxh3_64_with_seed(command, self.history);
        self.history = xxh3_64_with_seed(reply, self.history);
        self.note(context, false, reply);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut Vec<u8>) {
        if let Some(Operation::Get { key }) = Operation::decode(query) {
            let value = self.values.get(&key).copied().unwrap_or_default();
            Answer { index: context.index, value }.encode(reply);
        }
        self.note(context, true, reply);
    }

    fn snapshot(&self) -> SnapshotWriter {
        let (values, history) = (self.values.clone(), self.history);
        let ballast = vec![history as u8; self.ballast];
        Box::new(move |to: &mut dyn Write| {
            to.write_all(&history.to_le_bytes())?;
            to.write_all(&ballast)?;
            for (key, value) in values {
                to.write_all(&[key])?;
                to.write_all(&value.to_le_bytes())?;
            }
            Ok(())
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let (history, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let (records, rest) = rest.get(self.ballast..).ok_or_else(short)?.as_chunks::<9>();
        if !rest.is_empty() {
            return Err(short());
        }
        self.history = u64::from_le_bytes(*history);
        self.values =
            records.iter().map(|[key, value @ ..]| (*key, u64::from_le_bytes(*value))).collect();
        Ok(())
    }
}
