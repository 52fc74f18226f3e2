//! What clients ask, as data, and the service that they ask it of.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
};

use bytes::Bytes;
use hovercraft::{Context, SnapshotWriter, StateMachine};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    observed::{self, Judgement, Observed},
    options::Options,
    replaced,
    seed::Seed,
};

/// What a client asks of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// It does not change the state.
    pub is_read: bool,
    /// What the service gets.
    pub body: Bytes,
}

impl Command {
    /// Something that changes the state.
    pub fn write(body: impl Into<Bytes>) -> Self {
        Self { is_read: false, body: body.into() }
    }

    /// Something that does not.
    pub fn read(body: impl Into<Bytes>) -> Self {
        Self { is_read: true, body: body.into() }
    }
}

/// A service, what is asked of it, and what it ought to answer.
pub trait Workload: Send + Sync + 'static {
    /// The service; every replica has one.
    fn service(&self) -> Box<dyn StateMachine>;

    /// Something that a client may ask; `reads_per_mille` of a thousand should be reads.
    fn command(&self, rng: &mut fastrand::Rng, reads_per_mille: u32) -> Command;

    /// The service as one replica that never fails would be: it is shown every command that was
    /// executed, in the order of the log, with its reply, and says what is wrong with that.
    fn model(&self) -> Model;

    /// Judges what clients saw, by itself: no order of the log is known. False if that could not be
    /// decided. What the default leaves to [`Self::model`] is enough; this sees the same with other
    /// eyes.
    fn judge(&self, observed: &[Observed]) -> Result<bool, String> {
        let _ = observed;
        Ok(true)
    }

    /// Queries that every replica must answer alike after equal commands: asked of all of them from
    /// time to time, and of a fresh service that each snapshot is restored into.
    fn samples(&self) -> Vec<Bytes> {
        let mut rng = fastrand::Rng::with_seed(0);
        let drawn = (0..SAMPLES).map(|_| self.command(&mut rng, 1000));
        let mut bodies: Vec<_> = drawn.filter(|it| it.is_read).map(|it| it.body).collect();
        bodies.sort();
        bodies.dedup();
        bodies
    }

    /// Returns whether a sweep fails that saw too rarely what the proof rests on. How often things
    /// are seen was measured with [`Registers`]; other commands may make snapshots or retries rarer.
    fn has_thresholds(&self) -> bool {
        false
    }

    /// A command in a few words: as it is, if it is a short text.
    fn describe(&self, body: &[u8]) -> String {
        in_words(body)
    }
}

/// Bytes for people: as they are, if they are a short text.
pub(crate) fn in_words(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if text.len() < 80 && !text.contains(char::is_control) => text.to_owned(),
        _ => format!("{} bytes {}", bytes.len(), hex(&bytes[..bytes.len().min(16)])),
    }
}

/// Number of queries that are drawn as samples.
const SAMPLES: usize = 8;

/// Judges the replies to commands; see [`Workload::model`].
pub type Model = Box<dyn FnMut(&Command, &[u8]) -> Result<(), String>>;

/// An operation of a client, and when it comes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Microseconds of simulated time: not before this.
    pub at_us: u64,
    /// Whose it is, counted from 0.
    pub client: usize,
    /// For readers.
    #[serde(default)]
    pub what: String,
    /// It does not change the state.
    #[serde(default)]
    pub read: bool,
    /// What the service gets, in hexadecimal.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub body: Bytes,
    /// So many bytes of zeros follow the body.
    #[serde(default)]
    pub padding: usize,
    /// When it is answered, the client uses its identity again, for another write.
    #[serde(default)]
    pub steals: bool,
}

impl Planned {
    /// The body with its padding.
    pub(crate) fn whole_body(&self) -> Bytes {
        if self.padding == 0 {
            return self.body.clone();
        }
        let mut bytes = self.body.to_vec();
        bytes.resize(bytes.len() + self.padding, 0);
        Bytes::from(bytes)
    }
}

/// What the clients of a run ask, in order of time. Each client has a stream of its own.
pub(crate) fn plan(options: &Options, workload: &dyn Workload) -> Vec<Planned> {
    let mut planned = Vec::new();
    for (client, it) in options.clients.iter().enumerate() {
        let mut rng = Seed(options.seed).stream("operations", client as u64);
        let mut at_us = 0;
        for _ in 0..it.operations {
            let Command { is_read, body } = workload.command(&mut rng, it.reads_per_mille);
            // Few bodies are large, as is usual.
            let is_large = rng.u8(..8) == 0;
            let padding = if is_large { rng.usize(..=it.body_max) } else { 0 };
            let steals = !is_read && !it.plain && rng.u32(..1000) < it.steals_per_mille;
            let what = workload.describe(&body);
            planned.push(Planned { at_us, client, what, read: is_read, body, padding, steals });
            at_us += rng.u64(..=it.think_max_us);
        }
    }
    planned.sort_by_key(|planned| planned.at_us);
    planned
}

fn to_hex<S: Serializer>(body: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex(body))
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(from)?;
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    let bytes = bytes.filter(|_| rest.is_empty());
    bytes.map(Bytes::from).ok_or_else(|| serde::de::Error::custom("`body` is not hexadecimal"))
}

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
    /// The operation as a command of the service.
    pub fn command(self) -> Command {
        let (tag, key, value) = match self {
            Self::Set { key, value } => (0, key, value),
            Self::Add { key, value } => (1, key, value),
            Self::Get { key } => (2, key, 0),
        };
        let mut body = vec![tag, key];
        body.extend_from_slice(&value.to_be_bytes());
        Command { is_read: matches!(self, Self::Get { .. }), body: Bytes::from(body) }
    }

    /// The register that it is about.
    pub(crate) fn key(self) -> u8 {
        match self {
            Self::Set { key, .. } | Self::Add { key, .. } | Self::Get { key } => key,
        }
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

/// The workload that the simulation comes with: registers that are set, increased and read.
#[derive(Debug, Clone, Copy)]
pub struct Registers;

/// Number of registers: few, so that clients meet.
const REGISTERS: u8 = 8;

impl Workload for Registers {
    fn service(&self) -> Box<dyn StateMachine> {
        Box::new(Values::default())
    }

    fn command(&self, rng: &mut fastrand::Rng, reads_per_mille: u32) -> Command {
        let (key, value) = (rng.u8(..REGISTERS), rng.u64(..1000));
        let is_read = rng.u32(..1000) < reads_per_mille;
        match (is_read, rng.bool()) {
            (true, _) => Operation::Get { key },
            (false, true) => Operation::Set { key, value },
            (false, false) => Operation::Add { key, value },
        }
        .command()
    }

    fn model(&self) -> Model {
        let mut values = Values::default();
        Box::new(move |command, reply| {
            let expected = if command.is_read {
                values.query_one(&command.body)
            } else {
                // Only the log knows where a write has its place.
                let index = Stamp::decode(reply).map_or(0, |stamp| stamp.index);
                values.execute_one(index, &command.body)
            };
            let expected = expected.unwrap_or_default();
            if reply == expected { Ok(()) } else { Err(format!("{expected:?} is right")) }
        })
    }

    fn judge(&self, observed: &[Observed]) -> Result<bool, String> {
        replaced::judge(observed)?;
        match observed::judge(observed) {
            Judgement::Linearizable => Ok(true),
            Judgement::Undecided => Ok(false),
            Judgement::NotLinearizable(what) => Err(what),
        }
    }

    fn has_thresholds(&self) -> bool {
        true
    }

    fn samples(&self) -> Vec<Bytes> {
        (0..REGISTERS).map(|key| Operation::Get { key }.command().body).collect()
    }

    fn describe(&self, body: &[u8]) -> String {
        Operation::decode(body).map_or("?".to_owned(), |operation| operation.to_string())
    }
}

/// The index at which a register was written, and the write that it replaced: the part of a reply
/// behind the value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Of the last write of the register, this one included; 0 if there is none.
    pub(crate) index: u64,
    /// Of the write before it; 0 in a read.
    pub(crate) replaced: u64,
}

impl Stamp {
    pub(crate) fn reply(self, value: u64) -> Vec<u8> {
        [value, self.index, self.replaced].map(u64::to_be_bytes).concat()
    }

    pub(crate) fn decode(reply: &[u8]) -> Option<Self> {
        let (numbers, _) = reply.as_chunks::<8>();
        let &[_, index, replaced] = numbers else { return None };
        let [index, replaced] = [index, replaced].map(u64::from_be_bytes);
        Some(Self { index, replaced })
    }
}

/// The service: of each register the value, and the index of its last write.
#[derive(Debug, Default)]
struct Values(BTreeMap<u8, (u64, u64)>);

impl Values {
    fn read(&self, key: u8) -> (u64, u64) {
        self.0.get(&key).copied().unwrap_or_default()
    }

    /// The register, if that is what is asked for.
    fn query_one(&self, query: &[u8]) -> Option<Vec<u8>> {
        match Operation::decode(query)? {
            Operation::Get { key } => {
                let (value, index) = self.read(key);
                Some(Stamp { index, replaced: 0 }.reply(value))
            }
            Operation::Set { .. } | Operation::Add { .. } => None,
        }
    }

    /// The register after the operation, which stands at an index of the log.
    fn execute_one(&mut self, index: u64, command: &[u8]) -> Option<Vec<u8>> {
        let operation = Operation::decode(command)?;
        let (before, replaced) = self.read(operation.key());
        let value = match operation {
            Operation::Get { .. } => {
                return Some(Stamp { index: replaced, replaced: 0 }.reply(before));
            }
            Operation::Set { value, .. } => value,
            Operation::Add { value, .. } => before.wrapping_add(value),
        };
        self.0.insert(operation.key(), (value, index));
        Some(Stamp { index, replaced }.reply(value))
    }
}

impl StateMachine for Values {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.execute_one(context.index, command).into_iter().flatten());
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        reply.extend(self.query_one(query).into_iter().flatten());
    }

    fn snapshot(&self) -> SnapshotWriter {
        let values = self.0.clone();
        Box::new(move |to: &mut dyn Write| {
            for (key, (value, index)) in values {
                to.write_all(&[key])?;
                to.write_all([value, index].map(u64::to_le_bytes).as_flattened())?;
            }
            Ok(())
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        let (records, rest) = bytes.as_chunks::<17>();
        if !rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let register = |[key, register @ ..]: &[u8; 17]| {
            let (numbers, _) = register.as_chunks::<8>();
            (*key, (u64::from_le_bytes(numbers[0]), u64::from_le_bytes(numbers[1])))
        };
        self.0 = records.iter().map(register).collect();
        Ok(())
    }
}
