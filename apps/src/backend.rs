//! What carries a service's requests: the seam between the services here and the cluster.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hovercraft::{CallError, Client, Context, StateMachine};

/// Executes the requests of one service, each exactly once if it returns a reply.
///
/// Requests that are outstanding at the same time are ordered as it happens: who needs an order
/// awaits one before sending the next.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Executes a command on every replica and returns the reply.
    fn call(&self, command: Bytes) -> impl Future<Output = Result<Bytes, CallError>> + Send;

    /// Executes a query, linearizably, and returns the reply.
    fn query(&self, query: Bytes) -> impl Future<Output = Result<Bytes, CallError>> + Send;
}

impl Backend for Client {
    async fn call(&self, command: Bytes) -> Result<Bytes, CallError> {
        Self::call(self, command).await
    }

    async fn query(&self, query: Bytes) -> Result<Bytes, CallError> {
        Self::query(self, query).await
    }
}

/// A service in this process, without a cluster: for trying a service out, and for tests.
#[derive(Debug)]
pub struct InProcess<S> {
    inner: Arc<Mutex<Inner<S>>>,
}

#[derive(Debug)]
struct Inner<S> {
    service: S,
    index: u64,
}

impl<S: StateMachine> InProcess<S> {
    /// Serves requests by `service`, one at a time.
    pub fn new(service: S) -> Self {
        let inner = Arc::new(Mutex::new(Inner { service, index: 0 }));
        Self { inner }
    }

    fn run(&self, execute: impl FnOnce(&mut S, &Context, &mut Vec<u8>)) -> Bytes {
        let mut inner = self.inner.lock().expect("no service panicked (P42)");
        inner.index += 1;
        let context = Context {
            index: inner.index,
            time_us: inner.index,
            seed: inner.index.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        };
        let mut reply = Vec::new();
        execute(&mut inner.service, &context, &mut reply);
        reply.into()
    }
}

impl<S> Clone for InProcess<S> {
    fn clone(&self) -> Self {
        let inner = Arc::clone(&self.inner);
        Self { inner }
    }
}

impl<S: StateMachine> Backend for InProcess<S> {
    async fn call(&self, command: Bytes) -> Result<Bytes, CallError> {
        Ok(self.run(|service, context, reply| service.execute(context, &command, reply)))
    }

    async fn query(&self, query: Bytes) -> Result<Bytes, CallError> {
        Ok(self.run(|service, context, reply| service.query(context, &query, reply)))
    }
}
