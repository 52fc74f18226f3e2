//! The typed client of the key-value service.

use bytes::Bytes;
use hovercraft::{CallError, CallOutcome};

use super::record::{
    Condition, Operation, Page, Refusal, Reply, Request, Response, decode_response, encode_request,
};
use crate::backend::Backend;

/// Calls a replicated key-value service.
#[derive(Debug, Clone)]
pub struct Kv<B> {
    backend: B,
}

/// Why an operation has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// There is no reply; the error says whether the operation was executed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The service did not do it, and nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The reply is not one of the kv service of this version.
    #[error("the reply is not one of this version of the kv service")]
    Reply,
}

impl KvError {
    /// Whether the operation was executed.
    pub fn outcome(&self) -> CallOutcome {
        match self {
            Self::Call(error) => error.outcome(),
            Self::Refused(_) => CallOutcome::NotExecuted,
            Self::Reply => CallOutcome::Unknown,
        }
    }
}

impl<B: Backend> Kv<B> {
    /// A client that sends its requests by `backend`.
    pub fn new(backend: B) -> Self {
        Self { backend }
    }

    /// The value of a key; none if it does not exist.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, KvError> {
        match self.one(Operation::Get { key: key.into() }).await? {
            Reply::Nil => Ok(None),
            Reply::Value(value) => Ok(Some(value)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// The values of keys, in their order, as they were at one moment.
    pub async fn get_many(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, KvError> {
        match self.one(Operation::GetMany { keys }).await? {
            Reply::Values(values) => Ok(values),
            reply => Err(unexpected(&reply)),
        }
    }

    /// How many of the keys exist, counted as often as they are named.
    pub async fn exists(&self, keys: Vec<Bytes>) -> Result<i64, KvError> {
        self.integer(Operation::Exists { keys }).await
    }

    /// Keys and values in ascending order from `start`, up to `end` or the last, at most `limit`
    /// (and [`PAGE_KEYS_MAX`](super::PAGE_KEYS_MAX)).
    pub async fn scan(
        &self,
        start: impl Into<Bytes>,
        end: Option<Bytes>,
        limit: u32,
    ) -> Result<Page, KvError> {
        let operation = Operation::Scan { start: start.into(), end, limit, keys_only: false };
        match self.one(operation).await? {
            Reply::Page(page) => Ok(*page),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Sets a key; false if the condition did not hold.
    pub async fn set(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        condition: Condition,
    ) -> Result<bool, KvError> {
        let operation = Operation::Set { key: key.into(), value: value.into(), condition };
        self.done(operation).await
    }

    /// Deletes keys, and returns how many there were.
    pub async fn delete(&self, keys: Vec<Bytes>) -> Result<i64, KvError> {
        self.integer(Operation::Delete { keys }).await
    }

    /// Sets a key if its value is `expected` (none: if it does not exist); false if it is not.
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<bool, KvError> {
        let operation = Operation::CompareAndSet { key: key.into(), expected, value: value.into() };
        self.done(operation).await
    }

    /// Adds to a decimal integer, which is 0 if the key does not exist, and returns the sum.
    pub async fn increment(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, KvError> {
        let key = key.into();
        self.integer(Operation::Increment { key, by }).await
    }

    /// Executes operations in order as one request, with nothing between them. Returns fewer
    /// replies than operations if the reply would be too large; the rest were not executed.
    pub async fn batch(&self, operations: Vec<Operation>) -> Result<Vec<Reply>, KvError> {
        let read_only = operations.iter().all(Operation::is_read_only);
        match self.send(&Request::Batch(operations), read_only).await? {
            Response::Batch(replies) => Ok(replies),
            Response::One(reply) => Err(unexpected(&reply)),
        }
    }

    async fn integer(&self, operation: Operation) -> Result<i64, KvError> {
        match self.one(operation).await? {
            Reply::Integer(value) => Ok(value),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn done(&self, operation: Operation) -> Result<bool, KvError> {
        match self.one(operation).await? {
            Reply::Done(done) => Ok(done),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn one(&self, operation: Operation) -> Result<Reply, KvError> {
        let read_only = operation.is_read_only();
        match self.send(&Request::One(operation), read_only).await? {
            Response::One(reply) => Ok(reply),
            Response::Batch(_) => Err(KvError::Reply),
        }
    }

    async fn send(&self, request: &Request, read_only: bool) -> Result<Response, KvError> {
        let bytes = encode_request(request);
        let reply = if read_only {
            self.backend.query(bytes).await?
        } else {
            self.backend.call(bytes).await?
        };
        decode_response(&reply).ok_or(KvError::Reply)
    }
}

/// The error for a reply that is a refusal, or not to the operation that was sent.
fn unexpected(reply: &Reply) -> KvError {
    match reply {
        Reply::Refused(refusal) => KvError::Refused(*refusal),
        _ => KvError::Reply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::InProcess, kv::KvService};

    #[tokio::test]
    async fn every_operation_round_trips() -> Result<(), KvError> {
        let kv = Kv::new(InProcess::new(KvService::default()));
        let keys = || vec![Bytes::from("a"), Bytes::from("b")];
        assert_eq!(kv.get("a").await?, None);
        assert!(kv.set("a", "1", Condition::Always).await?);
        assert_eq!(kv.get("a").await?, Some("1".into()));
        assert!(kv.compare_and_set("a", Some("1".into()), "2").await?);
        assert_eq!(kv.increment("a", 40).await?, 42);
        assert_eq!(kv.get_many(keys()).await?, [Some("42".into()), None]);
        assert_eq!(kv.exists(keys()).await?, 1);
        let page = kv.scan("", None, 10).await?;
        assert_eq!(page.entries, [("a".into(), "42".into())]);
        assert_eq!(page.next, None);
        let get = Operation::Get { key: "a".into() };
        assert_eq!(kv.batch(vec![get]).await?, [Reply::Value("42".into())]);
        assert_eq!(kv.delete(keys()).await?, 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_refusal_says_that_nothing_was_executed() {
        let kv = Kv::new(InProcess::new(KvService::default()));
        kv.set("a", "x", Condition::Always).await.expect("a good set");
        let error = kv.increment("a", 1).await.expect_err("x is no integer");
        assert_eq!(error, KvError::Refused(Refusal::NotAnInteger));
        assert_eq!(error.outcome(), CallOutcome::NotExecuted);
    }
}
