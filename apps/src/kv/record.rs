//! What is asked of the service and what it answers, as rkyv records.

use bytes::{BufMut, Bytes};
use rkyv::{Archive, Deserialize, Serialize, rancor::Failure};

/// The version of commands, queries and replies; their first byte.
pub const FORMAT_VERSION: u8 = 1;

/// What a command or a query asks for.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Request {
    /// One operation.
    One(Operation),
    /// Several, in order, with nothing between them; a prefix if the reply would be too large.
    Batch(Vec<Operation>),
}

/// The reply to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::One`], and to what is not a request.
    One(Reply),
    /// To [`Request::Batch`]: of the operations that were executed, in order.
    Batch(Vec<Reply>),
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Operation {
    /// The value of a key: [`Reply::Value`] or [`Reply::Nil`].
    Get {
        /// The key.
        key: Bytes,
    },
    /// The values of several keys: [`Reply::Values`].
    GetMany {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// How many of the keys exist, counted as often as they are named: [`Reply::Integer`].
    Exists {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// The bytes of a key's value, 0 if there is none: [`Reply::Integer`].
    Length {
        /// The key.
        key: Bytes,
    },
    /// How many keys there are: [`Reply::Integer`].
    Count,
    /// A page of keys in ascending order: [`Reply::Page`].
    Scan {
        /// The first key that may be on the page.
        start: Bytes,
        /// The first key that may not be; none for no bound.
        end: Option<Bytes>,
        /// The most keys, taken as at least 1 and at most [`PAGE_KEYS_MAX`](super::PAGE_KEYS_MAX).
        limit: u32,
        /// Leave the values empty.
        keys_only: bool,
    },
    /// Sets a key: [`Reply::Done`], false if the condition did not hold.
    Set {
        /// The key.
        key: Bytes,
        /// The new value.
        value: Bytes,
        /// When to.
        condition: Condition,
    },
    /// Sets several keys, all or none: [`Reply::Done`].
    SetMany {
        /// Keys and values; of a key named twice the last value stays.
        pairs: Vec<(Bytes, Bytes)>,
    },
    /// Deletes keys: [`Reply::Integer`], how many there were.
    Delete {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// Sets a key if it has the expected value: [`Reply::Done`].
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// The value it must have; none if it must not exist.
        expected: Option<Bytes>,
        /// The new value.
        value: Bytes,
    },
    /// Adds to a decimal integer, 0 if the key does not exist: [`Reply::Integer`], the sum.
    Increment {
        /// The key.
        key: Bytes,
        /// What to add.
        by: i64,
    },
}

impl Operation {
    /// Whether it changes nothing, and so may be in a query.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Get { .. }
            | Self::GetMany { .. }
            | Self::Exists { .. }
            | Self::Length { .. }
            | Self::Count
            | Self::Scan { .. } => true,
            Self::Set { .. }
            | Self::SetMany { .. }
            | Self::Delete { .. }
            | Self::CompareAndSet { .. }
            | Self::Increment { .. } => false,
        }
    }

    /// About how many bytes it takes in an encoded request; never less than it does.
    pub fn size_bytes(&self) -> usize {
        const FIXED: usize = 32;
        const REFERENCE: usize = 8;
        let all = |keys: &[Bytes]| keys.iter().map(|key| REFERENCE + key.len()).sum();
        FIXED
            + match self {
                Self::Get { key } | Self::Length { key } | Self::Increment { key, .. } => key.len(),
                Self::GetMany { keys } | Self::Exists { keys } | Self::Delete { keys } => all(keys),
                Self::Count => 0,
                Self::Scan { start, end, .. } => start.len() + end.as_ref().map_or(0, Bytes::len),
                Self::Set { key, value, .. } => key.len() + value.len(),
                Self::SetMany { pairs } => {
                    pairs.iter().map(|(key, value)| 2 * REFERENCE + key.len() + value.len()).sum()
                }
                Self::CompareAndSet { key, expected, value } => {
                    key.len() + expected.as_ref().map_or(0, Bytes::len) + value.len()
                }
            }
    }
}

/// When a key is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Condition {
    /// In any case.
    Always,
    /// If it does not exist.
    IfAbsent,
    /// If it exists.
    IfPresent,
}

/// The answer to an [`Operation`].
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Reply {
    /// There is no such key.
    Nil,
    /// The value.
    Value(Bytes),
    /// The values, in the order of the keys asked for.
    Values(Vec<Option<Bytes>>),
    /// Whether it was done; if not, nothing changed.
    Done(bool),
    /// A count or a sum.
    Integer(i64),
    /// A page of keys. Boxed, so that the common replies are small on the wire.
    Page(Box<Page>),
    /// It was not done, and nothing changed.
    Refused(Refusal),
}

impl Reply {
    /// About how many bytes it takes in an encoded response; never less than it does.
    pub(super) fn size_bytes(&self) -> usize {
        const REFERENCE: usize = 8;
        let content = match self {
            Self::Nil | Self::Done(_) | Self::Integer(_) | Self::Refused(_) => 0,
            Self::Value(value) => value.len(),
            Self::Values(values) => values
                .iter()
                .map(|value| 1 + REFERENCE + value.as_ref().map_or(0, Bytes::len))
                .sum(),
            Self::Page(page) => {
                let entries = page.entries.iter();
                let entries: usize =
                    entries.map(|(key, value)| 2 * REFERENCE + key.len() + value.len()).sum();
                2 * REFERENCE + entries + page.next.as_ref().map_or(0, Bytes::len)
            }
        };
        Self::FIXED_BYTES + content
    }

    /// The size of a reply without bytes in it, which is that of every reply to a write.
    pub(super) const FIXED_BYTES: usize = 16;
}

/// A part of the keys, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Page {
    /// Keys with their values, which are empty if only keys were asked for.
    pub entries: Vec<(Bytes, Bytes)>,
    /// Where the next page starts; none after the last one.
    pub next: Option<Bytes>,
}

/// Why the service did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not a request.
    #[error("the request is malformed")]
    Malformed,
    /// The first byte is not [`FORMAT_VERSION`].
    #[error("the request has a format version that the service does not read")]
    Version,
    /// A query asks for something that changes the state.
    #[error("a query may not write")]
    WriteInQuery,
    /// There are more operations and keys than [`REQUEST_ITEMS_MAX`](super::REQUEST_ITEMS_MAX).
    #[error("the request has more than 65536 operations and keys")]
    TooManyItems,
    /// A key is longer than [`KEY_BYTES_MAX`](super::KEY_BYTES_MAX).
    #[error("the key is longer than 64 KiB")]
    KeyTooLong,
    /// A value is longer than [`VALUE_BYTES_MAX`](super::VALUE_BYTES_MAX).
    #[error("the value is too long")]
    ValueTooLong,
    /// The value to increment is not a decimal integer of 64 bits.
    #[error("the value is not an integer of 64 bits")]
    NotAnInteger,
    /// The sum does not fit 64 bits.
    #[error("the sum would overflow 64 bits")]
    Overflow,
    /// The reply would be larger than [`REPLY_BYTES_MAX`](super::REPLY_BYTES_MAX).
    #[error("the reply would be larger than 8 MiB")]
    ReplyTooLarge,
}

/// The bytes of a command or a query.
pub fn encode_request(request: &Request) -> Bytes {
    let mut bytes = vec![FORMAT_VERSION];
    rkyv::api::high::to_bytes_in::<_, Failure>(request, &mut bytes)
        .expect("writing to a vector does not fail");
    bytes.into()
}

/// Reads a command or a query where it lies.
pub(super) fn access_request(bytes: &[u8]) -> Result<&ArchivedRequest, Refusal> {
    match bytes {
        [FORMAT_VERSION, record @ ..] => {
            rkyv::access::<ArchivedRequest, Failure>(record).map_err(|Failure| Refusal::Malformed)
        }
        [_, ..] => Err(Refusal::Version),
        [] => Err(Refusal::Malformed),
    }
}

/// Appends the bytes of a reply.
pub(super) fn encode_response(response: &Response, bytes: &mut Vec<u8>) {
    bytes.put_u8(FORMAT_VERSION);
    rkyv::api::high::to_bytes_in::<_, Failure>(response, bytes)
        .expect("writing to a vector does not fail");
}

/// Reads a reply; none if the bytes are not one of this version.
pub fn decode_response(bytes: &[u8]) -> Option<Response> {
    match bytes {
        [FORMAT_VERSION, record @ ..] => rkyv::from_bytes::<Response, Failure>(record).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn blob() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            blob().prop_map(|key| Operation::Get { key }),
            blob().prop_map(|key| Operation::Length { key }),
            vec(blob(), 0..5).prop_map(|keys| Operation::GetMany { keys }),
            vec(blob(), 0..5).prop_map(|keys| Operation::Exists { keys }),
            vec(blob(), 0..5).prop_map(|keys| Operation::Delete { keys }),
            Just(Operation::Count),
            (blob(), option::of(blob()), any::<u32>(), any::<bool>()).prop_map(
                |(start, end, limit, keys_only)| Operation::Scan { start, end, limit, keys_only }
            ),
            (blob(), blob()).prop_map(|(key, value)| Operation::Set {
                key,
                value,
                condition: Condition::IfPresent
            }),
            vec((blob(), blob()), 0..5).prop_map(|pairs| Operation::SetMany { pairs }),
            (blob(), option::of(blob()), blob()).prop_map(|(key, expected, value)| {
                Operation::CompareAndSet { key, expected, value }
            }),
            (blob(), any::<i64>()).prop_map(|(key, by)| Operation::Increment { key, by }),
        ]
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            Just(Reply::Nil),
            blob().prop_map(Reply::Value),
            vec(option::of(blob()), 0..5).prop_map(Reply::Values),
            any::<bool>().prop_map(Reply::Done),
            any::<i64>().prop_map(Reply::Integer),
            (vec((blob(), blob()), 0..5), option::of(blob()))
                .prop_map(|(entries, next)| Reply::Page(Box::new(Page { entries, next }))),
            Just(Reply::Refused(Refusal::Overflow)),
        ]
    }

    proptest! {
        #[test]
        fn a_request_reads_back_and_is_no_larger_than_stated(operations in vec(operation(), 0..6)) {
            let stated: usize = operations.iter().map(Operation::size_bytes).sum();
            let request = Request::Batch(operations);
            let bytes = encode_request(&request);
            prop_assert!(bytes.len() <= 1 + 32 + stated);
            let archived = access_request(&bytes).expect("our own encoding");
            let back = rkyv::deserialize::<Request, Failure>(archived).expect("validated");
            prop_assert_eq!(back, request);
        }

        #[test]
        fn a_response_reads_back_and_is_no_larger_than_stated(replies in vec(reply(), 0..6)) {
            let stated: usize = replies.iter().map(Reply::size_bytes).sum();
            let response = Response::Batch(replies);
            let mut bytes = Vec::new();
            encode_response(&response, &mut bytes);
            prop_assert!(bytes.len() <= 32 + stated);
            prop_assert_eq!(decode_response(&bytes), Some(response));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..200)) {
            let mut versioned = vec![FORMAT_VERSION];
            versioned.extend_from_slice(&bytes);
            let _ = (access_request(&bytes), access_request(&versioned));
            let _ = (decode_response(&bytes), decode_response(&versioned));
        }

        #[test]
        fn a_damaged_request_is_refused_or_read(
            operations in vec(operation(), 0..4),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = encode_request(&Request::Batch(operations)).to_vec();
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if let Ok(archived) = access_request(&bytes) {
                // What was accepted can be read in full.
                let back = rkyv::deserialize::<Request, Failure>(archived).expect("validated");
                prop_assert!(encode_request(&back).len() <= 2 * bytes.len() + 64);
            }
        }
    }

    #[test]
    fn common_messages_are_small() {
        let set = Request::One(Operation::Set {
            key: Bytes::from_static(b"key00001"),
            value: Bytes::from_static(b"value001"),
            condition: Condition::Always,
        });
        assert_eq!(encode_request(&set).len(), 16 + 28);
        let mut reply = Vec::new();
        encode_response(&Response::One(Reply::Done(true)), &mut reply);
        assert_eq!(reply.len(), 11);
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut bytes = encode_request(&Request::One(Operation::Count)).to_vec();
        bytes[0] = 9;
        assert_eq!(access_request(&bytes).err(), Some(Refusal::Version));
        assert_eq!(access_request(&[]).err(), Some(Refusal::Malformed));
        assert_eq!(access_request(&[FORMAT_VERSION]).err(), Some(Refusal::Malformed));
    }
}
