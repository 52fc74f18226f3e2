//! The state machine of the key-value service.

use std::{
    io::{self, Read, Write},
    ops::Bound,
};

use bytes::Bytes;
use hovercraft::{Context, SnapshotWriter, StateMachine};
use imbl::OrdMap;
use rkyv::{option::ArchivedOption, vec::ArchivedVec};

use super::{
    KEY_BYTES_MAX, PAGE_KEYS_MAX, REPLY_BYTES_MAX, REQUEST_ITEMS_MAX, VALUE_BYTES_MAX,
    blob::Blob,
    record::{
        ArchivedCondition, ArchivedOperation, ArchivedRequest, Page, Refusal, Reply, Response,
        access_request, encode_response,
    },
    snapshot,
};

/// The replicated map. Its clone is O(1), so a snapshot stops nothing.
#[derive(Debug, Clone, Default)]
pub struct KvService {
    map: OrdMap<Blob, Blob>,
}

impl StateMachine for KvService {
    fn execute(&mut self, _: &Context, command: &[u8], reply: &mut Vec<u8>) {
        let response = respond(command, |operation| self.run(operation));
        encode_response(&response, reply);
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        let response = respond(query, |operation| {
            self.read(operation).unwrap_or(Reply::Refused(Refusal::WriteInQuery))
        });
        encode_response(&response, reply);
    }

    fn snapshot(&self) -> SnapshotWriter {
        let map = self.map.clone();
        Box::new(move |output: &mut dyn Write| snapshot::write(&map, output))
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        self.map = snapshot::read(snapshot)?;
        Ok(())
    }
}

/// What the replies to one request may take together; the rest is for what is around them.
const REPLIES_BYTES_MAX: usize = REPLY_BYTES_MAX - 64;

/// Runs a request's operations in order, and as many of a batch as fit one reply.
fn respond(request: &[u8], mut run: impl FnMut(&ArchivedOperation) -> Reply) -> Response {
    let request = match access_request(request) {
        Ok(request) if items(request) <= REQUEST_ITEMS_MAX => request,
        Ok(_) => return Response::One(Reply::Refused(Refusal::TooManyItems)),
        Err(refusal) => return Response::One(Reply::Refused(refusal)),
    };
    match request {
        ArchivedRequest::One(operation) => {
            let reply = run(operation);
            if reply.size_bytes() > REPLIES_BYTES_MAX {
                return Response::One(Reply::Refused(Refusal::ReplyTooLarge));
            }
            Response::One(reply)
        }
        ArchivedRequest::Batch(operations) => Response::Batch(respond_to_all(operations, run)),
    }
}

/// Runs operations until the next reply would not fit. An operation whose reply is larger than
/// [`Reply::FIXED_BYTES`] only reads, so running it and leaving its reply out changes nothing.
fn respond_to_all(
    operations: &[ArchivedOperation],
    mut run: impl FnMut(&ArchivedOperation) -> Reply,
) -> Vec<Reply> {
    let mut replies = Vec::with_capacity(operations.len());
    let mut budget = REPLIES_BYTES_MAX;
    for operation in operations {
        if budget < Reply::FIXED_BYTES {
            break;
        }
        let mut reply = run(operation);
        if reply.size_bytes() > budget {
            if !replies.is_empty() {
                break;
            }
            reply = Reply::Refused(Refusal::ReplyTooLarge);
        }
        budget -= reply.size_bytes();
        replies.push(reply);
    }
    replies
}

/// How many operations and keys a request holds.
fn items(request: &ArchivedRequest) -> usize {
    let keys = |operation: &ArchivedOperation| match operation {
        ArchivedOperation::GetMany { keys }
        | ArchivedOperation::Exists { keys }
        | ArchivedOperation::Delete { keys } => keys.len(),
        ArchivedOperation::SetMany { pairs } => pairs.len(),
        _ => 1,
    };
    match request {
        ArchivedRequest::One(operation) => keys(operation),
        ArchivedRequest::Batch(operations) => operations.iter().map(|o| 1 + keys(o)).sum(),
    }
}

impl KvService {
    /// Executes any operation.
    fn run(&mut self, operation: &ArchivedOperation) -> Reply {
        let written = match operation {
            ArchivedOperation::Set { key, value, condition } => self.set(key, value, condition),
            ArchivedOperation::SetMany { pairs } => self.set_many(pairs),
            ArchivedOperation::Delete { keys } => Ok(self.delete(keys)),
            ArchivedOperation::CompareAndSet { key, expected, value } => {
                self.compare_and_set(key, expected, value)
            }
            ArchivedOperation::Increment { key, by } => self.increment(key, by.to_native()),
            _ => Ok(self.read(operation).expect("what is no write above is a read")),
        };
        written.unwrap_or_else(Reply::Refused)
    }

    /// Executes an operation that changes nothing; none if it is not one.
    fn read(&self, operation: &ArchivedOperation) -> Option<Reply> {
        let value = |key: &ArchivedVec<u8>| self.map.get(key.as_slice());
        Some(match operation {
            ArchivedOperation::Get { key } => {
                value(key).map(Blob::to_bytes).map_or(Reply::Nil, Reply::Value)
            }
            ArchivedOperation::GetMany { keys } => {
                Reply::Values(keys.iter().map(|key| value(key).map(Blob::to_bytes)).collect())
            }
            ArchivedOperation::Exists { keys } => {
                integer(keys.iter().filter(|key| value(key).is_some()).count())
            }
            ArchivedOperation::Length { key } => integer(value(key).map_or(0, Blob::len)),
            ArchivedOperation::Count => integer(self.map.len()),
            ArchivedOperation::Scan { start, end, limit, keys_only } => {
                Reply::Page(Box::new(self.page(
                    start,
                    end.as_ref().map(ArchivedVec::as_slice),
                    limit.to_native(),
                    *keys_only,
                )))
            }
            ArchivedOperation::Set { .. }
            | ArchivedOperation::SetMany { .. }
            | ArchivedOperation::Delete { .. }
            | ArchivedOperation::CompareAndSet { .. }
            | ArchivedOperation::Increment { .. } => return None,
        })
    }

    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: u32, keys_only: bool) -> Page {
        let limit = limit.clamp(1, PAGE_KEYS_MAX) as usize;
        let mut page = Page { entries: Vec::new(), next: None };
        if end.is_some_and(|end| end <= start) {
            return page;
        }
        let range = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        // The page must fit the reply with the key of the next page beside it.
        let mut budget = REPLY_BYTES_MAX - KEY_BYTES_MAX - 256;
        for (key, value) in self.map.range::<_, [u8]>(range) {
            let key = key.to_bytes();
            let value = if keys_only { Bytes::new() } else { value.to_bytes() };
            let size = 16 + key.len() + value.len();
            if page.entries.len() == limit || size > budget {
                page.next = Some(key);
                break;
            }
            budget -= size;
            page.entries.push((key, value));
        }
        page
    }

    fn set(
        &mut self,
        key: &[u8],
        value: &[u8],
        condition: &ArchivedCondition,
    ) -> Result<Reply, Refusal> {
        let met = match condition {
            ArchivedCondition::Always => true,
            ArchivedCondition::IfAbsent => !self.map.contains_key(key),
            ArchivedCondition::IfPresent => self.map.contains_key(key),
        };
        check(key, value)?;
        if met {
            self.insert(key, value);
        }
        Ok(Reply::Done(met))
    }

    fn set_many(
        &mut self,
        pairs: &[rkyv::tuple::ArchivedTuple2<ArchivedVec<u8>, ArchivedVec<u8>>],
    ) -> Result<Reply, Refusal> {
        for pair in pairs {
            check(&pair.0, &pair.1)?;
        }
        for pair in pairs {
            self.insert(&pair.0, &pair.1);
        }
        Ok(Reply::Done(true))
    }

    fn delete(&mut self, keys: &[ArchivedVec<u8>]) -> Reply {
        let removed = |key: &&ArchivedVec<u8>| self.map.remove(key.as_slice()).is_some();
        integer(keys.iter().filter(removed).count())
    }

    fn compare_and_set(
        &mut self,
        key: &[u8],
        expected: &ArchivedOption<ArchivedVec<u8>>,
        value: &[u8],
    ) -> Result<Reply, Refusal> {
        check(key, value)?;
        let expected = expected.as_ref().map(ArchivedVec::as_slice);
        let met = self.map.get(key).map(Blob::as_ref) == expected;
        if met {
            self.insert(key, value);
        }
        Ok(Reply::Done(met))
    }

    fn increment(&mut self, key: &[u8], by: i64) -> Result<Reply, Refusal> {
        check(key, &[])?;
        let value = match self.map.get(key) {
            Some(value) => parse_integer(value.as_ref()).ok_or(Refusal::NotAnInteger)?,
            None => 0,
        };
        let sum = value.checked_add(by).ok_or(Refusal::Overflow)?;
        self.insert(key, sum.to_string().as_bytes());
        Ok(Reply::Integer(sum))
    }

    /// Copies, because a slice of the request would keep all of it in memory.
    fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.map.insert(Blob::from(key), Blob::from(value));
    }
}

fn check(key: &[u8], value: &[u8]) -> Result<(), Refusal> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::KeyTooLong);
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(Refusal::ValueTooLong);
    }
    Ok(())
}

fn integer(count: usize) -> Reply {
    Reply::Integer(i64::try_from(count).expect("a count in memory is below 2^63"))
}

/// Reads the one way to write an integer: no sign but a minus, no leading zeros, no spaces. So a
/// value that can be incremented by 0 stays as it is.
fn parse_integer(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let canonical = match digits {
        [b'0'] => digits.len() == value.len(),
        [first, ..] => matches!(first, b'1'..=b'9'),
        [] => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::{
        super::record::{Condition, Operation, Request, decode_response, encode_request},
        *,
    };

    const CONTEXT: Context = Context { index: 1, time_us: 1, seed: 1 };

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn execute(service: &mut KvService, request: &Request) -> Response {
        let mut reply = Vec::new();
        service.execute(&CONTEXT, &encode_request(request), &mut reply);
        assert!(reply.len() <= REPLY_BYTES_MAX);
        decode_response(&reply).expect("a reply of this version")
    }

    fn one(service: &mut KvService, operation: Operation) -> Reply {
        match execute(service, &Request::One(operation)) {
            Response::One(reply) => reply,
            Response::Batch(_) => panic!("a batch of replies to one operation"),
        }
    }

    fn set(key: &str, value: &str, condition: Condition) -> Operation {
        Operation::Set { key: bytes(key), value: bytes(value), condition }
    }

    fn get(key: &str) -> Operation {
        Operation::Get { key: bytes(key) }
    }

    #[test]
    fn conditions_decide_whether_a_key_is_set() {
        let mut kv = KvService::default();
        let present = set("a", "1", Condition::IfPresent);
        assert_eq!(one(&mut kv, present), Reply::Done(false));
        assert_eq!(one(&mut kv, get("a")), Reply::Nil);
        let absent = set("a", "2", Condition::IfAbsent);
        assert_eq!(one(&mut kv, absent.clone()), Reply::Done(true));
        assert_eq!(one(&mut kv, absent), Reply::Done(false));
        let present = set("a", "3", Condition::IfPresent);
        assert_eq!(one(&mut kv, present), Reply::Done(true));
        assert_eq!(one(&mut kv, get("a")), Reply::Value(bytes("3")));
    }

    #[test]
    fn compare_and_set_takes_absence_for_a_value() {
        let mut kv = KvService::default();
        let mut cas = |expected: Option<&str>, value: &str| {
            let operation = Operation::CompareAndSet {
                key: bytes("a"),
                expected: expected.map(bytes),
                value: bytes(value),
            };
            one(&mut kv, operation)
        };
        assert_eq!(cas(Some(""), "x"), Reply::Done(false));
        assert_eq!(cas(None, "1"), Reply::Done(true));
        assert_eq!(cas(None, "2"), Reply::Done(false));
        assert_eq!(cas(Some("1"), "2"), Reply::Done(true));
        assert_eq!(cas(Some("1"), "3"), Reply::Done(false));
    }

    #[test]
    fn increment_takes_canonical_integers_only() {
        let mut kv = KvService::default();
        let mut from = |value: &str, by: i64| {
            one(&mut kv, set("n", value, Condition::Always));
            let key = bytes("n");
            one(&mut kv, Operation::Increment { key, by })
        };
        assert_eq!(from("41", 1), Reply::Integer(42));
        assert_eq!(from("0", -5), Reply::Integer(-5));
        assert_eq!(from(&i64::MIN.to_string(), 0), Reply::Integer(i64::MIN));
        for value in ["", "-", "-0", "+1", "01", " 1", "1 ", "1.0", "9223372036854775808", "x"] {
            assert_eq!(from(value, 1), Reply::Refused(Refusal::NotAnInteger), "{value:?}");
        }
        let max = i64::MAX.to_string();
        assert_eq!(from(&max, 1), Reply::Refused(Refusal::Overflow));
        assert_eq!(one(&mut kv, get("n")), Reply::Value(bytes(&max)));
        let key = bytes("new");
        assert_eq!(one(&mut kv, Operation::Increment { key, by: 7 }), Reply::Integer(7));
    }

    #[test]
    fn pages_follow_one_another_and_end() {
        let mut kv = KvService::default();
        for n in 0..25 {
            one(&mut kv, set(&format!("k{n:02}"), "v", Condition::Always));
        }
        let mut start = bytes("k03");
        let mut seen = Vec::new();
        loop {
            let scan =
                Operation::Scan { start, end: Some(bytes("k20")), limit: 5, keys_only: true };
            let Reply::Page(page) = one(&mut kv, scan) else {
                panic!("not a page");
            };
            assert!(page.entries.len() <= 5);
            seen.extend(page.entries.into_iter().map(|(key, _)| key));
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
        let expected: Vec<Bytes> = (3..20).map(|n| format!("k{n:02}").into()).collect();
        assert_eq!(seen, expected);
        let backwards =
            Operation::Scan { start: bytes("b"), end: Some(bytes("a")), limit: 5, keys_only: true };
        assert!(matches!(one(&mut kv, backwards), Reply::Page(page) if page.entries.is_empty()));
    }

    #[test]
    fn a_query_may_not_write() {
        let mut kv = KvService::default();
        let request = Request::Batch(vec![set("a", "1", Condition::Always), get("a")]);
        let mut reply = Vec::new();
        kv.query(&CONTEXT, &encode_request(&request), &mut reply);
        let refused = Reply::Refused(Refusal::WriteInQuery);
        let expected = Response::Batch(vec![refused, Reply::Nil]);
        assert_eq!(decode_response(&reply), Some(expected));
        assert_eq!(one(&mut kv, Operation::Count), Reply::Integer(0));
    }

    #[test]
    fn a_batch_stops_before_the_reply_that_does_not_fit() {
        let mut kv = KvService::default();
        let large = "x".repeat(3 << 20);
        one(&mut kv, set("a", &large, Condition::Always));
        let batch = vec![get("a"), get("a"), get("a"), set("b", "written", Condition::Always)];
        let Response::Batch(replies) = execute(&mut kv, &Request::Batch(batch)) else {
            panic!("not a batch");
        };
        assert_eq!(replies.len(), 2);
        assert_eq!(one(&mut kv, get("b")), Reply::Nil, "what has no reply was not executed");
    }

    #[test]
    fn a_reply_that_can_never_fit_is_refused_and_the_batch_goes_on() {
        let mut kv = KvService::default();
        one(&mut kv, set("a", &"x".repeat(1 << 20), Condition::Always));
        let all = Operation::GetMany { keys: vec![bytes("a"); 9] };
        let too_large = Reply::Refused(Refusal::ReplyTooLarge);
        assert_eq!(one(&mut kv, all.clone()), too_large);
        let batch = vec![all, set("b", "1", Condition::Always)];
        let expected = Response::Batch(vec![too_large, Reply::Done(true)]);
        assert_eq!(execute(&mut kv, &Request::Batch(batch)), expected);
    }

    #[test]
    fn limits_are_refused_before_anything_changes() {
        let mut kv = KvService::default();
        let long = Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1]);
        let operation =
            Operation::SetMany { pairs: vec![(bytes("a"), bytes("1")), (long, bytes("2"))] };
        assert_eq!(one(&mut kv, operation), Reply::Refused(Refusal::KeyTooLong));
        let operation = Operation::Set {
            key: bytes("a"),
            value: Bytes::from(vec![0; VALUE_BYTES_MAX + 1]),
            condition: Condition::Always,
        };
        assert_eq!(one(&mut kv, operation), Reply::Refused(Refusal::ValueTooLong));
        let keys = vec![Bytes::new(); REQUEST_ITEMS_MAX + 1];
        let refused = Reply::Refused(Refusal::TooManyItems);
        assert_eq!(one(&mut kv, Operation::Delete { keys }), refused);
        assert_eq!(one(&mut kv, Operation::Count), Reply::Integer(0));
    }

    #[test]
    fn the_longest_value_can_be_read_by_get_and_by_scan() {
        let mut kv = KvService::default();
        let key = Bytes::from(vec![b'k'; KEY_BYTES_MAX]);
        let value = Bytes::from(vec![1; VALUE_BYTES_MAX]);
        let pairs = vec![(key.clone(), value.clone()), (bytes("z"), bytes("1"))];
        assert_eq!(one(&mut kv, Operation::SetMany { pairs }), Reply::Done(true));
        let get = Operation::Get { key: key.clone() };
        assert_eq!(one(&mut kv, get), Reply::Value(value));
        let scan = Operation::Scan { start: Bytes::new(), end: None, limit: 10, keys_only: false };
        let Reply::Page(page) = one(&mut kv, scan) else {
            panic!("not a page");
        };
        assert_eq!(page.entries[0].0, key);
    }

    #[test]
    fn a_snapshot_holds_the_state_of_its_moment() {
        let mut kv = KvService::default();
        one(&mut kv, set("a", "1", Condition::Always));
        let writer = kv.snapshot();
        one(&mut kv, set("a", "2", Condition::Always));
        let mut written = Vec::new();
        writer(&mut written).expect("writing to a vector");
        let mut restored = KvService::default();
        one(&mut restored, set("gone", "1", Condition::Always));
        restored.restore(&mut written.as_slice()).expect("our own snapshot");
        assert_eq!(one(&mut restored, get("a")), Reply::Value(bytes("1")));
        assert_eq!(one(&mut restored, Operation::Count), Reply::Integer(1));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_get_a_reply(command in vec(any::<u8>(), 0..100)) {
            let mut reply = Vec::new();
            KvService::default().execute(&CONTEXT, &command, &mut reply);
            prop_assert!(decode_response(&reply).is_some());
        }

        #[test]
        fn sets_and_deletes_agree_with_a_map(
            steps in vec((0u8..12, 0u8..3, any::<u8>()), 0..200),
        ) {
            let mut kv = KvService::default();
            let mut model: BTreeMap<String, String> = BTreeMap::new();
            for (key, action, value) in steps {
                let (key, value) = (format!("k{key}"), value.to_string());
                let (operation, expected) = match action {
                    0 => {
                        let removed = model.remove(&key).is_some();
                        let keys = vec![bytes(&key)];
                        (Operation::Delete { keys }, Reply::Integer(i64::from(removed)))
                    }
                    1 => {
                        let absent = !model.contains_key(&key);
                        model.entry(key.clone()).or_insert_with(|| value.clone());
                        (set(&key, &value, Condition::IfAbsent), Reply::Done(absent))
                    }
                    _ => {
                        model.insert(key.clone(), value.clone());
                        (set(&key, &value, Condition::Always), Reply::Done(true))
                    }
                };
                prop_assert_eq!(one(&mut kv, operation), expected);
            }
            let held: Vec<_> = kv.map.iter().collect();
            let expected: Vec<_> = model
                .iter()
                .map(|(key, value)| (bytes(key), bytes(value)))
                .collect();
            prop_assert_eq!(held.len(), expected.len());
            for (held, expected) in held.into_iter().zip(&expected) {
                prop_assert_eq!((held.0.to_bytes(), held.1.to_bytes()), expected.clone());
            }
        }
    }
}
