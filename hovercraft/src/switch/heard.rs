//! What an aggregator looks at in a message: a part of it, which is read where the message lies, so
//! that nothing is allocated for it.

use rkyv::rancor;

use crate::{
    entry::{Incarnation, Index, Member, NodeId, Term},
    messages::{
        Acknowledge, Aggregate, ArchivedAggregate, ArchivedMessage, Envelope, Message, MessageError,
    },
};

/// Who says something, and in which term.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speaker {
    pub(super) cluster: u64,
    pub(super) from: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) term: Term,
}

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Heard {
    /// By a leader; the voters are told apart.
    Stated(Stated),
    /// By a follower.
    Acknowledged(Acknowledge),
    /// Not for an aggregator.
    Other,
}

/// What a leader says beside the entries and the voters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stated {
    pub(super) configuration: u64,
    pub(super) durable: Index,
    pub(super) first_round: u64,
    pub(super) previous: Index,
    pub(super) count: Index,
    pub(super) noop: Index,
    pub(super) round: u64,
}

impl Stated {
    /// The last index that it is about (P28).
    pub(super) fn last(&self) -> Index {
        self.previous.saturating_add(self.count)
    }

    fn of(aggregate: &Aggregate) -> Self {
        Self {
            configuration: aggregate.configuration,
            durable: aggregate.durable,
            first_round: aggregate.first_round,
            previous: aggregate.append.previous_index,
            count: aggregate.append.entries.len() as Index,
            noop: aggregate.append.noop,
            round: aggregate.append.round,
        }
    }

    fn of_record(aggregate: &ArchivedAggregate) -> Self {
        Self {
            configuration: aggregate.configuration.to_native(),
            durable: aggregate.durable.to_native(),
            first_round: aggregate.first_round.to_native(),
            previous: aggregate.append.previous_index.to_native(),
            count: aggregate.append.entries.len() as Index,
            noop: aggregate.append.noop.to_native(),
            round: aggregate.append.round.to_native(),
        }
    }
}

/// Reads a message; its voters, if it has any, into `voters`.
pub(super) fn read(envelope: &Envelope, voters: &mut Vec<Member>) -> (Speaker, Heard) {
    let Envelope { cluster, from, incarnation, term, .. } = *envelope;
    voters.clear();
    let heard = match &envelope.message {
        Message::Aggregate(aggregate) => {
            voters.extend_from_slice(&aggregate.voters);
            Heard::Stated(Stated::of(aggregate))
        }
        Message::Acknowledge(acknowledge) => Heard::Acknowledged(*acknowledge),
        _ => Heard::Other,
    };
    (Speaker { cluster, from, incarnation, term }, heard)
}

/// Reads a message in its form on the wire, as [`read`] does; keeps at most so many voters.
pub(super) fn read_record(
    bytes: &[u8],
    voters: &mut Vec<Member>,
    voters_max: usize,
) -> Result<(Speaker, Heard), MessageError> {
    let record = Envelope::access(bytes)?;
    let speaker = Speaker {
        cluster: record.cluster.to_native(),
        from: NodeId(record.from.0.to_native()),
        incarnation: Incarnation(record.incarnation.0.to_native()),
        term: record.term.to_native(),
    };
    voters.clear();
    let heard = match &record.message {
        ArchivedMessage::Aggregate(aggregate) => {
            for member in aggregate.voters.iter().take(voters_max + 1) {
                voters.push(plain::<Member>(member)?);
            }
            Heard::Stated(Stated::of_record(aggregate))
        }
        ArchivedMessage::Acknowledge(answer) => Heard::Acknowledged(plain::<Acknowledge>(answer)?),
        _ => Heard::Other,
    };
    Ok((speaker, heard))
}

/// Of something that holds no memory.
fn plain<T>(
    record: &impl rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<rancor::Error>>,
) -> Result<T, MessageError> {
    rkyv::deserialize::<T, rancor::Error>(record)
        .map_err(|error| MessageError::Invalid(error.to_string()))
}
