//! Redis with two replicas as a yardstick: SET, then WAIT 1. That is replication without consensus.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::load::latencies;

/// A primary and two replicas; killed when this is dropped.
pub(crate) struct Redis {
    children: Vec<Child>,
    port: u16,
    data: tempfile::TempDir,
}

impl Redis {
    /// None if `redis-server` is not installed.
    pub(crate) async fn start() -> io::Result<Option<Self>> {
        let data = tempfile::tempdir()?;
        let listeners: Vec<_> = (0..3)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let ports: Vec<_> = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<io::Result<_>>()?;
        drop(listeners);
        let mut redis = Self { children: Vec::new(), port: ports[0], data };
        for port in &ports {
            let directory = redis.data.path().join(port.to_string());
            std::fs::create_dir(&directory)?;
            let mut command = Command::new("redis-server");
            command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"])
                .arg("--dir")
                .arg(&directory)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if *port != redis.port {
                command.args(["--replicaof", "127.0.0.1", &redis.port.to_string()]);
            }
            match command.spawn() {
                Ok(child) => redis.children.push(child),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        redis.wait_for_replicas().await?;
        Ok(Some(redis))
    }

    /// Runs `connections` closed loops of SET and WAIT 1 of 24 bytes in all, and returns their
    /// latencies in nanoseconds.
    pub(crate) async fn run(
        &self,
        connections: usize,
        duration: Duration,
    ) -> io::Result<Histogram<u64>> {
        const COMMAND: &[u8] = b"*3\r\n$3\r\nSET\r\n$8\r\nkey:0000\r\n$16\r\nvalue-of-16-byte\r\n\
              *3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n";
        let ends = Instant::now() + duration;
        let mut loops = Vec::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
            stream.set_nodelay(true)?;
            loops.push(tokio::spawn(async move {
                let mut latency_ns = latencies();
                let mut buffer = [0; 256];
                while Instant::now() < ends {
                    let start = Instant::now();
                    stream.write_all(COMMAND).await?;
                    // Two lines: +OK, and the number of replicas.
                    let (mut lines, mut len) = (0, 0);
                    while lines < 2 {
                        len += stream.read(&mut buffer[len..]).await?;
                        lines = buffer[..len].split(|byte| *byte == b'\n').count() - 1;
                    }
                    let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    latency_ns.saturating_record(nanos);
                }
                Ok::<_, io::Error>(latency_ns)
            }));
        }
        let mut merged = latencies();
        for one in loops {
            let latency_ns = one.await.map_err(io::Error::other)??;
            merged.add(latency_ns).map_err(io::Error::other)?;
        }
        Ok(merged)
    }

    /// User and system time of all three so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.children.iter().map(|child| crate::processes::cpu_time(child.id())).sum()
    }

    async fn wait_for_replicas(&self) -> io::Result<()> {
        let patience = Instant::now() + Duration::from_secs(10);
        while Instant::now() < patience {
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await {
                stream.write_all(b"SET key value\r\nWAIT 2 100\r\n").await?;
                let mut reply = [0; 9];
                stream.read_exact(&mut reply).await?;
                if reply.ends_with(b":2\r\n") {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(io::Error::other("the replicas of Redis did not connect"))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already is only waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
