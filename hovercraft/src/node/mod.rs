//! A replica as a part of a process: roles, sockets and a data directory around the core.

mod application;
pub(crate) mod network;
mod persistence;
pub(crate) mod roles;
mod room_watch;
mod run;
mod startup;
pub(crate) mod unborn;
mod unreplicated;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

use r2p2::{UdpConfig, UdpLink, WaitLink};

pub use application::Execution;
pub use startup::{begin_run, end_run};

use crate::{
    core::{Conflict, Policy, Settings, Timing},
    entropy::{random_number, random_u64},
    entry::{ClusterLimits, Incarnation, NodeId},
    state_machine::StateMachine,
    storage::{self, Durability, HardState, Loaded, LogStore, StoreError, StoreKind},
};
pub(crate) use network::Clock;
pub(crate) use run::network_status;

use roles::{Panicked, Role};
use run::{Prepared, endpoints};
use unreplicated::Unreplicated;

/// What a node does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// One server, no consensus, nothing on disk.
    Unreplicated,
    /// Raft: bodies in append-entries, and the leader answers. The baseline.
    Raft,
    /// HovercRaft: metadata in append-entries, replies and reads balanced.
    #[default]
    HovercRaft,
    /// HovercRaft with an aggregator: what the leader sends and receives does not grow with the
    /// cluster.
    HovercRaftPlusPlus,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreplicated => "unreplicated",
            Self::Raft => "raft",
            Self::HovercRaft => "hovercraft",
            Self::HovercRaftPlusPlus => "hovercraft++",
        })
    }
}

/// A multicast group, and the interface by which it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multicast {
    /// Where clients send requests to.
    pub group: SocketAddrV4,
    /// The address of an interface of this host.
    pub interface: Ipv4Addr,
}

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting is not usable.
    #[error("{setting}: {reason}")]
    Setting {
        /// Its name, as the builder's method is called.
        setting: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// The sockets could not be opened.
    #[error(transparent)]
    Bind(#[from] r2p2::BindError),
    /// The sockets failed.
    #[error("the network failed: {0}")]
    Network(#[from] io::Error),
    /// The log store failed; the node does nothing more (P38).
    #[error(transparent)]
    Store(StoreError),
    /// The storage role has ended before the node.
    #[error("the storage thread has ended")]
    StorageEnded,
    /// The service could not read a snapshot.
    #[error("the service cannot read the snapshot at index {index}: {source}")]
    Restore {
        /// The snapshot's index.
        index: u64,
        /// What the service said.
        source: io::Error,
    },
    /// The data directory belongs to another replica.
    #[error(
        "the data directory is that of replica {found}, and this is replica {expected}; correct \
         `id` or `data` in the configuration"
    )]
    WrongNode {
        /// Whose it is.
        found: NodeId,
        /// Who this is.
        expected: NodeId,
    },
    /// The leader's log contradicts what is committed here (P38).
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The node's thread panicked: a bug.
    #[error("the node's thread panicked; this is a bug")]
    Panicked,
}

/// Builds a [`Node`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct NodeBuilder {
    id: NodeId,
    address: SocketAddrV4,
    data: Option<PathBuf>,
    mode: Mode,
    aggregator: Option<SocketAddrV4>,
    switch: Option<SocketAddrV4>,
    multicast: Option<Multicast>,
    settings: Settings,
    store: StoreKind,
    sync_interval: Duration,
    execution: Execution,
    limits: ClusterLimits,
    spin: Duration,
}

impl NodeBuilder {
    /// Where everything that must outlive the process is kept. Needed in every mode but
    /// `unreplicated`, in every durability.
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data = Some(directory.into());
        self
    }

    /// What the node does with requests. Equal on all replicas.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Where the switch aggregates, in mode `hovercraft++`: equal on all replicas.
    pub fn aggregator(mut self, address: SocketAddrV4) -> Self {
        self.aggregator = Some(address);
        self
    }

    /// The switch that admits requests, or gives them to the workers of an unreplicated service:
    /// whoever answers tells it so (P19).
    pub fn switch(mut self, address: SocketAddrV4) -> Self {
        self.switch = Some(address);
        self
    }

    /// A multicast group by which requests come too, beside the node's own address.
    pub fn multicast(mut self, group: SocketAddrV4, interface: Ipv4Addr) -> Self {
        self.multicast = Some(Multicast { group, interface });
        self
    }

    /// What an acknowledgement promises; `sync` unless said otherwise (P37).
    pub fn durability(mut self, durability: Durability) -> Self {
        self.settings.durability = durability;
        self
    }

    /// How often entries are synced in the durability `interval`; 100 ms unless said otherwise.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// Who answers requests, and how many may wait for one replier: `jbsq` and 128 unless said
    /// otherwise; 32 is better for services with long or uneven service times (P15, P16).
    pub fn policy(mut self, policy: Policy, queue_bound: usize) -> Self {
        self.settings.policy = policy;
        self.settings.queue_bound = queue_bound;
        self
    }

    /// Which store keeps the log, but for the durability `memory`; the segmented one unless said
    /// otherwise.
    pub fn store(mut self, kind: StoreKind) -> Self {
        self.store = kind;
        self
    }

    /// Heartbeats and elections; [`Timing::LAN`] unless said otherwise (P33).
    pub fn timing(mut self, timing: Timing) -> Self {
        self.settings.timing = timing;
        self
    }

    /// How many requests may be in the system before the leader refuses new ones (P24).
    pub fn admission_limit(mut self, requests: usize) -> Self {
        self.settings.admission_limit = requests;
        self
    }

    /// About how many bytes of entries are kept for replicas that are behind, before a snapshot
    /// replaces them.
    pub fn log_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.log_bytes_max = bytes;
        self
    }

    /// Where the service runs; in the network loop unless said otherwise.
    pub fn execution(mut self, execution: Execution) -> Self {
        self.execution = execution;
        self
    }

    /// How long the network loop looks for work before it sleeps: halves the latency of a lone
    /// request where the node has a core to spare, and is zero unless said otherwise.
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// The session limits in mode `unreplicated`; a cluster has those that `init` was given.
    pub fn limits(mut self, limits: ClusterLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts the node in threads of its own. Returns once its sockets are open and its data is
    /// loaded; a node with an empty disk then waits for [`crate::admin::init`].
    pub fn start(self, service: impl StateMachine) -> Result<Node, NodeError> {
        self.check()?;
        let store = match &self.data {
            Some(data) if self.mode != Mode::Unreplicated => {
                let store = storage::open(data, self.settings.durability, self.store);
                Some(store.map_err(NodeError::Store)?)
            }
            None if self.mode != Mode::Unreplicated => {
                let reason = "a replica needs a data directory, whatever its durability";
                return Err(NodeError::Setting { setting: "data", reason: reason.to_owned() });
            }
            _ => None,
        };
        let link = self.bind()?;
        self.launch(link, Box::new(service), store)
    }

    /// Starts the node as [`Self::start`] does, with a log store of the caller's, which must have
    /// passed [`storage::suite`]. What the builder says about a data directory does not count.
    pub fn start_with_store(
        self,
        service: impl StateMachine,
        store: Box<dyn LogStore>,
    ) -> Result<Node, NodeError> {
        self.check()?;
        let link = self.bind()?;
        self.launch(link, Box::new(service), Some(store))
    }

    /// Starts the node as [`Self::start_with_store`] does, on a link of the caller's: a simulated
    /// network, for example. Its address, and that of a multicast group, are the link's affair. With
    /// no store the node is a server in mode `unreplicated`.
    pub fn start_on(
        self,
        link: impl WaitLink + 'static,
        service: impl StateMachine,
        store: Option<Box<dyn LogStore>>,
    ) -> Result<Node, NodeError> {
        self.check()?;
        self.launch(link, Box::new(service), store)
    }

    fn bind(&self) -> Result<UdpLink, NodeError> {
        let mut config = UdpConfig::new(self.address);
        if let Some(Multicast { group, interface }) = self.multicast {
            config.group = Some(group);
            config.interface = interface;
        }
        Ok(UdpLink::bind(&config)?)
    }

    /// Loads what there is; the rest happens in the network role.
    fn launch(
        self,
        link: impl WaitLink + 'static,
        service: Box<dyn StateMachine>,
        store: Option<Box<dyn LogStore>>,
    ) -> Result<Node, NodeError> {
        let address = link.local_address()?;
        let stopper = Stopper { stopped: Arc::default(), waker: link.waker() };
        let name = format!("node-{}", self.id);
        let seed = random_u64();
        let mut endpoints = endpoints(self.limits.request_bytes_max as usize, seed);
        endpoints.switch = self.switch;
        endpoints.requests.set_switches(self.switch.into_iter().collect());
        let handle = stopper.clone();
        let role = match store {
            None => {
                let server = Unreplicated::new(self.id, service, self.limits, endpoints);
                roles::spawn(&name, run::serve(server, link, self.spin, stopper))?
            }
            Some(store) => {
                let (store, loaded, state) = self.load(store)?;
                let missing = startup::missing(&loaded, &state);
                if let Some(missing) = &missing {
                    tracing::warn!(
                        node = %self.id,
                        "this replica may have lost what it acknowledged: {missing}; it votes and \
                         is counted again when it has caught up with a leader; leave its data \
                         directory as it is"
                    );
                }
                let prepared = Prepared {
                    service,
                    store,
                    loaded,
                    state,
                    missing,
                    link,
                    endpoints,
                    stopper,
                    seed,
                };
                roles::spawn(&name, run::replicate(self, prepared))?
            }
        };
        Ok(Node { address, stopper: handle, role })
    }

    /// Reads the store, and begins a run in it.
    fn load(
        &self,
        mut store: Box<dyn LogStore>,
    ) -> Result<(Box<dyn LogStore>, Loaded, HardState), NodeError> {
        let loaded = store.load().map_err(NodeError::Store)?;
        // The stores of this crate have refused it themselves; another one may not have.
        let place = self.data.as_deref().unwrap_or(Path::new("the log store"));
        loaded.check().map_err(|contradiction| NodeError::Store(contradiction.at(place)))?;
        loaded.check_digests(place).map_err(NodeError::Store)?;
        let drawn = Incarnation(random_number());
        let state = begin_run(&loaded, self.settings.durability, drawn);
        let found = state.birth.as_ref().map_or(self.id, |birth| birth.node);
        if found != self.id {
            return Err(NodeError::WrongNode { found, expected: self.id });
        }
        // On disk before this run takes part in anything (P37, P39).
        store.save_hard_state(&state).map_err(NodeError::Store)?;
        Ok((store, loaded, state))
    }

    fn check(&self) -> Result<(), NodeError> {
        let wrong =
            |setting, reason: &str| Err(NodeError::Setting { setting, reason: reason.to_owned() });
        let Timing { heartbeat, election_min, election_max } = self.settings.timing;
        if self.id.0 == 0 {
            return wrong("id", "replicas are numbered from 1");
        }
        if self.mode == Mode::HovercRaftPlusPlus && self.aggregator.is_none() {
            return wrong("aggregator", "mode hovercraft++ needs the address of the aggregator");
        }
        if self.settings.queue_bound == 0 {
            return wrong("policy", "the bound of the queues is at least 1");
        }
        if self.settings.admission_limit == 0 {
            return wrong("admission_limit", "with a limit of 0 no request is ever admitted");
        }
        if self.settings.log_bytes_max < 1 << 16 {
            return wrong("log_bytes_max", "at least 65536 bytes are needed");
        }
        if heartbeat.is_zero() || election_min < heartbeat * 2 || election_max < election_min {
            return wrong(
                "timing",
                "the shortest election time is at least two heartbeats, and at most the longest",
            );
        }
        if let Err(reason) = self.limits.check() {
            return wrong("limits", &reason);
        }
        if self.sync_interval.is_zero() {
            return wrong("sync_interval", "it must not be zero; use the durability sync");
        }
        Ok(())
    }
}

/// A replica that runs in threads of its own until it is stopped or fails.
#[derive(Debug)]
pub struct Node {
    address: SocketAddrV4,
    stopper: Stopper,
    role: Role<Result<(), NodeError>>,
}

impl Node {
    /// Begins to build replica `id`, which receives and sends at `address`. Port 0 takes a free
    /// one.
    pub fn builder(id: NodeId, address: SocketAddrV4) -> NodeBuilder {
        NodeBuilder {
            id,
            address,
            data: None,
            mode: Mode::default(),
            aggregator: None,
            switch: None,
            multicast: None,
            settings: Settings::default(),
            store: StoreKind::default(),
            sync_interval: Duration::from_millis(100),
            execution: Execution::default(),
            limits: ClusterLimits::default(),
            spin: Duration::ZERO,
        }
    }

    /// Stops gracefully: what is acknowledged is on disk when this returns, in every durability
    /// but `memory`.
    #[cfg(not(madsim))]
    pub fn stop(self) -> Result<(), NodeError> {
        self.stopper.stop();
        self.join()
    }

    /// Waits until the node ends: because a [`Stopper`] was used, or because it failed.
    #[cfg(not(madsim))]
    pub fn join(self) -> Result<(), NodeError> {
        roles::finish(self.ended())
    }

    /// Waits until the node ends: because a [`Stopper`] was used, or because it failed.
    #[cfg(madsim)]
    pub async fn join(self) -> Result<(), NodeError> {
        self.ended().await
    }

    async fn ended(self) -> Result<(), NodeError> {
        self.role.join().await.map_err(|Panicked| NodeError::Panicked)?
    }

    /// Where it receives, with the port that was chosen.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Stops the node from elsewhere: a signal handler, for example.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Whether the node has ended; [`Self::join`] then says why, at once.
    pub fn has_ended(&self) -> bool {
        self.role.has_ended()
    }
}

/// Tells a node to stop.
#[derive(Debug, Clone)]
pub struct Stopper {
    stopped: Arc<AtomicBool>,
    waker: Waker,
}

impl Stopper {
    pub(crate) fn new(stopped: Arc<AtomicBool>, waker: Waker) -> Self {
        Self { stopped, waker }
    }

    /// The node stops gracefully, soon.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}
