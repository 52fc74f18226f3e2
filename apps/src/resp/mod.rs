//! A gateway from the Redis protocol to the kv service.
//!
//! Every command on data becomes one replicated request, or a part of one; what only reads is a
//! query, linearizable all the same. The answers to requests that failed say what became of them:
//! `-TRYAGAIN` not executed, `-UNKNOWN` perhaps executed, `-ERR executed, …` executed, reply lost.
//!
//! The gateway trusts nothing that a client sends and waits for no client for ever: the number of
//! connections, the size of a request, and the memory of all connections together are bounded.

mod command;
mod connection;
mod cursor;
mod data;
mod glob;
mod local;
mod memory;
mod reply;
mod request;

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

pub use self::request::{RequestError, RequestReader};
use self::{connection::Connection, cursor::Cursors, memory::Pool};
use crate::backend::Backend;

/// The most connections at one time; as in Redis, further ones are told so and closed.
const CONNECTIONS_MAX: usize = 4096;

/// What connections may hold together beyond a little each, in bytes.
const MEMORY_BYTES_MAX: usize = 512 << 20;

/// How long connections may go on with what they have taken up when the gateway stops.
const STOP_MAX: Duration = Duration::from_secs(5);

/// A listening gateway.
#[derive(Debug)]
pub struct Gateway<B> {
    listener: TcpListener,
    backend: B,
    shared: Arc<Shared>,
}

/// What the connections share.
#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    started: Instant,
    request_bytes_max: usize,
    connections: Arc<Semaphore>,
    connections_max: usize,
    accepted_count: AtomicU64,
    command_count: AtomicU64,
    memory: Pool,
    cursors: Mutex<Cursors>,
}

impl<B: Backend> Gateway<B> {
    /// A gateway to the kv service behind `backend`. No request of more than `request_bytes_max`
    /// bytes is sent there, as the cluster would refuse it (P4).
    pub fn new(listener: TcpListener, backend: B, request_bytes_max: u32) -> io::Result<Self> {
        let memory = Pool::new(MEMORY_BYTES_MAX);
        Self::with_limits(listener, backend, request_bytes_max, CONNECTIONS_MAX, memory)
    }

    fn with_limits(
        listener: TcpListener,
        backend: B,
        request_bytes_max: u32,
        connections_max: usize,
        memory: Pool,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            address: listener.local_addr()?,
            started: Instant::now(),
            request_bytes_max: request_bytes_max as usize,
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            accepted_count: AtomicU64::new(0),
            command_count: AtomicU64::new(0),
            memory,
            cursors: Mutex::default(),
        });
        Ok(Self { listener, backend, shared })
    }

    /// Serves connections until `shutdown` completes; then lets each finish the commands that it
    /// has taken up, for a few seconds at most.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                // Also forgets the tasks that have ended.
                Some(_) = tasks.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&self.shared.connections).try_acquire_owned() {
                    Ok(permit) => {
                        let connection = self.connection(stream);
                        tasks.spawn(run(connection, permit, stopping.clone()));
                    }
                    Err(_) => refuse(stream),
                },
                Err(error) => {
                    // Out of descriptors, most likely, which only time and others can mend.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(self.listener);
        stop.send_replace(true);
        let ended = async { while tasks.join_next().await.is_some() {} };
        if timeout(STOP_MAX, ended).await.is_err() {
            tracing::warn!(connections = tasks.len(), "connections were cut off");
        }
    }

    fn connection(&self, stream: TcpStream) -> Connection<B> {
        use std::sync::atomic::Ordering::Relaxed;
        let id = self.shared.accepted_count.fetch_add(1, Relaxed) + 1;
        // An answer is written at once, never kept back for more. Without it, it is only slower.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&self.shared);
        Connection::new(stream, self.backend.clone(), shared, id)
    }
}

async fn run<B: Backend>(
    connection: Connection<B>,
    permit: OwnedSemaphorePermit,
    stopping: watch::Receiver<bool>,
) {
    if let Err(error) = connection.serve(stopping).await {
        tracing::debug!(%error, "a connection ended");
    }
    drop(permit);
}

/// Tells a client that there are too many, if it can be told at once. The socket is taken from
/// tokio, which would not write before it has polled it.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        // A client that cannot be told finds its connection closed all the same.
        let _ = stream.write(b"-ERR max number of clients reached\r\n");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{backend::InProcess, kv::KvService};

    /// Serves until the test ends.
    async fn serve(connections_max: usize, memory: Pool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let backend = InProcess::new(KvService::default());
        let gateway = Gateway::with_limits(listener, backend, 8 << 20, connections_max, memory);
        tokio::spawn(gateway.expect("it is bound").serve(std::future::pending()));
        address
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("listening")
    }

    async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = timeout(Duration::from_secs(30), stream.read_exact(&mut bytes)).await;
        assert!(matches!(read, Ok(Ok(_))), "not {length} bytes");
        bytes
    }

    fn bulk(value: &[u8]) -> Vec<u8> {
        [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
    }

    /// The request that sets `a`.
    fn set(value: &[u8]) -> Vec<u8> {
        [&b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n"[..], &bulk(value)].concat()
    }

    #[tokio::test]
    async fn one_connection_too_many_is_told_so() {
        let address = serve(1, Pool::new(0)).await;
        let mut first = connect(address).await;
        first.write_all(b"PING\r\n").await.expect("writable");
        assert_eq!(read(&mut first, 7).await, b"+PONG\r\n");
        let mut second = connect(address).await;
        let refused = b"-ERR max number of clients reached\r\n";
        assert_eq!(read(&mut second, refused.len()).await, refused);
        first.write_all(b"PING\r\n").await.expect("writable");
        assert_eq!(read(&mut first, 7).await, b"+PONG\r\n");
    }

    #[tokio::test]
    async fn large_requests_share_the_memory_and_small_ones_need_none() {
        const SIZE: usize = 600_000;
        let memory = Pool::new(1 << 20);
        let address = serve(10, memory.clone()).await;
        let mut set = set(&vec![b'x'; SIZE]);
        let end = set.split_off(set.len() - 1);
        let mut first = connect(address).await;
        first.write_all(&set).await.expect("writable");
        // Until it holds more than half of the memory.
        while memory.loan().cover(1 << 19 | 1 << 16) {
            tokio::task::yield_now().await;
        }
        let mut second = connect(address).await;
        // The end of what is sent may find the connection closed.
        let _ = second.write_all(&set).await;
        let refused = b"-TRYAGAIN not executed: the gateway's memory";
        assert_eq!(read(&mut second, refused.len()).await, refused);
        let mut small = connect(address).await;
        small.write_all(b"SET b 1\r\n").await.expect("writable");
        assert_eq!(read(&mut small, 5).await, b"+OK\r\n");
        // The value is in memory twice while it is on its way, and that is more than there is.
        first.write_all(&end).await.expect("writable");
        assert_eq!(read(&mut first, refused.len()).await, refused);
    }

    #[tokio::test]
    async fn a_pipeline_of_large_values_waits_for_its_reader() {
        const SIZE: usize = 2_000_000;
        let address = serve(10, Pool::new(24 << 20)).await;
        let mut stream = connect(address).await;
        let value = vec![b'x'; SIZE];
        stream.write_all(&set(&value)).await.expect("writable");
        assert_eq!(read(&mut stream, 5).await, b"+OK\r\n");
        // Twice what the memory holds, of which nothing is read for now.
        stream.write_all(&b"GET a\r\n".repeat(24)).await.expect("writable");
        let mut other = connect(address).await;
        other.write_all(b"PING\r\n").await.expect("writable");
        assert_eq!(read(&mut other, 7).await, b"+PONG\r\n");
        let one = bulk(&value);
        for _ in 0..24 {
            assert!(read(&mut stream, one.len()).await == one, "another value");
        }
    }
}
