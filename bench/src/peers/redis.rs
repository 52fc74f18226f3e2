//! Redis, alone or with replicas: SET, and with replicas WAIT 1, which is replication without
//! consensus.

use std::{process::Command, time::Duration};

use redis::aio::MultiplexedConnection;

use super::{
    Concurrency, PeerError, Sample, Servers,
    callers::{Caller, closed_loops},
    free_ports,
};

/// A primary and its replicas; killed when this is dropped.
pub(crate) struct Redis {
    servers: Servers,
    port: u16,
}

const NAME: &str = "Redis";

impl Redis {
    pub(crate) async fn start(replicas: usize) -> Result<Self, PeerError> {
        let mut servers = Servers::new(false)?;
        let ports = free_ports(1 + replicas)?;
        let primary = ports[0];
        for port in &ports {
            let directory = servers.data.path().join(port.to_string());
            let action = "make a directory".to_owned();
            std::fs::create_dir(&directory).map_err(|source| PeerError::Io { action, source })?;
            let mut command = Command::new("redis-server");
            command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"])
                .arg("--dir")
                .arg(&directory);
            if *port != primary {
                command.args(["--replicaof", "127.0.0.1", &primary.to_string()]);
            }
            servers.spawn(&mut command, "redis-server", "redis-server")?;
        }
        let redis = Self { servers, port: primary };
        redis.wait(replicas).await?;
        Ok(redis)
    }

    /// Runs closed loops of SET, each followed by WAIT 1 if it `waits`.
    pub(crate) async fn measure(
        &self,
        waits: bool,
        concurrency: Concurrency,
        duration: Duration,
    ) -> Result<Sample, PeerError> {
        let port = self.port;
        let connect =
            move |_| async move { Ok(RedisCaller { connection: connect(port).await?, waits }) };
        closed_loops(NAME, &self.servers, concurrency, duration, connect).await
    }

    async fn wait(&self, replicas: usize) -> Result<(), PeerError> {
        let mut last = "it did not start".to_owned();
        for _ in 0..200 {
            match connected_replicas(self.port).await {
                Ok(connected) if connected >= replicas => return Ok(()),
                Ok(connected) => last = format!("{connected} of {replicas} replicas connected"),
                Err(message) => last = message,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(PeerError::Refused { system: NAME, message: last })
    }
}

async fn connect(port: u16) -> Result<MultiplexedConnection, String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))
        .map_err(|error| error.to_string())?;
    client.get_multiplexed_async_connection().await.map_err(|error| error.to_string())
}

async fn connected_replicas(port: u16) -> Result<usize, String> {
    let mut connection = connect(port).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg("key").arg("value").ignore().cmd("WAIT").arg(9).arg(50);
    let (count,): (usize,) =
        pipe.query_async(&mut connection).await.map_err(|error| error.to_string())?;
    Ok(count)
}

/// One connection; clones share it.
#[derive(Clone)]
struct RedisCaller {
    connection: MultiplexedConnection,
    waits: bool,
}

impl Caller for RedisCaller {
    async fn call(&mut self) -> Result<(), String> {
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg("key:0000").arg("value-of-16-byte").ignore();
        let done = if self.waits {
            pipe.cmd("WAIT").arg(1).arg(0);
            pipe.query_async::<(usize,)>(&mut self.connection).await.map(|_| ())
        } else {
            pipe.query_async::<()>(&mut self.connection).await
        };
        done.map_err(|error| error.to_string())
    }
}
