//! Runs a replica with one of the services, and with the Redis gateway beside it.

use std::{io, net::SocketAddr, pin::pin};

use hovercraft::{Client, ConnectError, Node, NodeBuilder, NodeError, Stopper};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    config::{Cluster, Config, Dissemination, Service},
    kv::KvService,
    resp::Gateway,
    synthetic::SyntheticService,
};

/// Why a replica did not run, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The node did not start, or failed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The address for the Redis protocol cannot be used.
    #[error("resp: cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Only the kv service speaks the Redis protocol.
    #[error("resp: only the service \"kv\" speaks the Redis protocol")]
    RespNeedsKv,
    /// The gateway's client failed.
    #[error("resp: {0}")]
    Gateway(#[from] ConnectError),
    /// The operating system has no thread or no signal handler for it.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

impl RunError {
    /// Whether another configuration would do, and nothing was tried with this one.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Node(NodeError::Setting { .. } | NodeError::Bind(_))
            | Self::Listen { .. }
            | Self::RespNeedsKv => true,
            Self::Node(_) | Self::Gateway(_) | Self::System(_) => false,
        }
    }
}

/// Runs a replica until it fails, or until the process gets SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<(), RunError> {
    // The node has threads of its own; this one is for signals and the gateway.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before anything is started, so that a signal at any later time stops it in order.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = listen(config).await?;
        let node = start(config)?;
        let (id, address, mode) = (config.id, node.address(), config.cluster.mode);
        tracing::info!(node = %id, %address, %mode, "the replica runs");
        let stopper = node.stopper();
        let mut ended = watch_end(node)?;
        let (stop_gateway, stopping) = oneshot::channel();
        let mut gateway = pin!(speak_resp(config, listener, stopping));
        let mut end = None;
        tokio::select! {
            biased;
            node = &mut ended => end = Some(node.expect("the watcher says how the node ended")),
            failed = &mut gateway => return failed,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // It may be waiting for no more than this.
        let _ = stop_gateway.send(());
        gateway.await?;
        if end.is_none() {
            stop(&stopper, ended).await?;
        }
        Ok(end.transpose().map(|_| ())?)
    })
}

/// Takes the address for the Redis protocol, if there is one.
async fn listen(config: &Config) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = config.resp else { return Ok(None) };
    if config.service != Service::Kv {
        return Err(RunError::RespNeedsKv);
    }
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| RunError::Listen { address, source })
}

/// Starts the node with the service that the configuration names.
fn start(config: &Config) -> Result<Node, NodeError> {
    let builder = builder(config);
    match config.service {
        Service::Kv => builder.start(KvService::default()),
        Service::Synthetic => builder.start(SyntheticService::new()),
    }
}

fn builder(config: &Config) -> NodeBuilder {
    let Cluster { members, multicast, mode, limits, switch, dissemination } = &config.cluster;
    let (_, address) = *members
        .iter()
        .find(|(id, _)| *id == config.id)
        .expect("a configuration's id is one of its members");
    let mut builder = Node::builder(config.id, address)
        .mode(*mode)
        .durability(config.durability)
        .sync_interval(config.sync_interval)
        .store(config.store)
        .policy(config.policy, config.queue_bound)
        .timing(config.timing)
        .admission_limit(config.admission_limit)
        .log_bytes_max(config.log_bytes_max)
        .execution(config.execution)
        .spin(config.spin)
        .limits(*limits);
    if let Some(data) = &config.data {
        builder = builder.data(data);
    }
    if let Some(multicast) = multicast {
        builder = builder.multicast(multicast.group, multicast.interface);
    }
    if let Some(switch) = switch {
        builder = builder.aggregator(*switch);
        // Who does not pass requests on does not count them (P19).
        if *dissemination == Dissemination::Switch {
            builder = builder.switch(*switch);
        }
    }
    builder
}

/// Serves the Redis protocol until `stopping` completes; does nothing until then without a
/// listener.
async fn speak_resp(
    config: &Config,
    listener: Option<TcpListener>,
    mut stopping: oneshot::Receiver<()>,
) -> Result<(), RunError> {
    let Some(listener) = listener else {
        // Also ends when the sender is gone.
        let _ = stopping.await;
        return Ok(());
    };
    let client = tokio::select! {
        biased;
        _ = &mut stopping => return Ok(()),
        client = connect(&config.cluster) => client?,
    };
    let gateway = Gateway::new(listener, client, config.cluster.limits.request_bytes_max)?;
    gateway
        .serve(async {
            // Also ends when the sender is gone.
            let _ = stopping.await;
        })
        .await;
    Ok(())
}

/// Becomes a client of the cluster, which may take until there is one; those who connect meanwhile
/// wait.
async fn connect(cluster: &Cluster) -> Result<Client, ConnectError> {
    loop {
        match cluster.client().connect().await {
            Err(ConnectError::TimedOut(_)) => {
                tracing::info!("the Redis gateway waits for the cluster to have a leader");
            }
            done => return done,
        }
    }
}

type End = oneshot::Receiver<Result<(), NodeError>>;

/// Waits in a thread for the node to end, because that blocks.
fn watch_end(node: Node) -> io::Result<End> {
    let (say, ended) = oneshot::channel();
    std::thread::Builder::new().name("node-end".to_owned()).spawn(move || {
        // Nobody waits any more if the process is about to end.
        let _ = say.send(node.join());
    })?;
    Ok(ended)
}

async fn stop(stopper: &Stopper, ended: End) -> Result<(), NodeError> {
    stopper.stop();
    ended.await.expect("the watcher says how the node ended")
}
