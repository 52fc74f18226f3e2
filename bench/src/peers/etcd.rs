//! etcd with three members, called by gRPC (tonic), which is its protocol.
//!
//! The messages are those of etcd's `rpc.proto`, as far as they are used, so that nothing has to be
//! generated when this is built.

use std::{process::Command, time::Duration};

use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    Concurrency, PeerError, Sample, Servers,
    callers::{Caller, closed_loops},
    free_ports,
};

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// Of both: what is answered is not looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyResponse {}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EtcdCall {
    Put,
    /// Linearizable, which is its default.
    Get,
}

/// Three members; killed when this is dropped.
pub(super) struct Etcd {
    servers: Servers,
    ports: Vec<u16>,
}

const MEMBERS: usize = 3;
const NAME: &str = "etcd";

impl Etcd {
    pub(super) async fn start(on_disk: bool) -> Result<Self, PeerError> {
        let mut servers = Servers::new(on_disk)?;
        let ports = free_ports(2 * MEMBERS)?;
        let (clients, peers) = ports.split_at(MEMBERS);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<_> =
            (0..MEMBERS).map(|member| format!("m{member}={}", url(peers[member]))).collect();
        for member in 0..MEMBERS {
            let data = servers.data.path().join(format!("m{member}"));
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("m{member}"), "--log-level", "error"])
                .arg("--data-dir")
                .arg(data)
                .args(["--listen-client-urls", &url(clients[member])])
                .args(["--advertise-client-urls", &url(clients[member])])
                .args(["--listen-peer-urls", &url(peers[member])])
                .args(["--initial-advertise-peer-urls", &url(peers[member])])
                .args(["--initial-cluster", &cluster.join(",")]);
            servers.spawn(&mut command, "etcd", "etcd-server")?;
        }
        let etcd = Self { servers, ports: clients.to_vec() };
        etcd.wait().await?;
        Ok(etcd)
    }

    /// Runs closed loops; clients spread over the members, as etcd's own client does.
    pub(super) async fn measure(
        &self,
        call: EtcdCall,
        concurrency: Concurrency,
        duration: Duration,
    ) -> Result<Sample, PeerError> {
        let ports = self.ports.clone();
        let connect = move |client: usize| EtcdCaller::connect(ports[client % MEMBERS], call);
        closed_loops(NAME, &self.servers, concurrency, duration, connect).await
    }

    async fn wait(&self) -> Result<(), PeerError> {
        let mut last = "it did not start".to_owned();
        for _ in 0..200 {
            let put = async {
                for port in &self.ports {
                    EtcdCaller::connect(*port, EtcdCall::Put).await?.call().await?;
                }
                Ok::<_, String>(())
            };
            match put.await {
                Ok(()) => return Ok(()),
                Err(message) => last = message,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(PeerError::Refused { system: NAME, message: last })
    }
}

/// One connection; clones share it.
#[derive(Clone)]
struct EtcdCaller {
    grpc: Grpc<Channel>,
    call: EtcdCall,
}

impl EtcdCaller {
    async fn connect(port: u16, call: EtcdCall) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))
            .map_err(|error| error.to_string())?;
        let channel = endpoint.tcp_nodelay(true).connect().await;
        Ok(Self { grpc: Grpc::new(channel.map_err(|error| error.to_string())?), call })
    }
}

impl Caller for EtcdCaller {
    async fn call(&mut self) -> Result<(), String> {
        self.grpc.ready().await.map_err(|error| error.to_string())?;
        let key = b"key:0000".to_vec();
        let answer = match self.call {
            EtcdCall::Put => {
                let request = PutRequest { key, value: b"value-of-16-byte".to_vec() };
                let codec = ProstCodec::<PutRequest, AnyResponse>::default();
                let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
                self.grpc.unary(tonic::Request::new(request), path, codec).await
            }
            EtcdCall::Get => {
                let codec = ProstCodec::<RangeRequest, AnyResponse>::default();
                let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
                let request = tonic::Request::new(RangeRequest { key });
                self.grpc.unary(request, path, codec).await
            }
        };
        answer.map(|_| ()).map_err(|status| status.to_string())
    }
}
