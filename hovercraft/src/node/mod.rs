//! A replica as a part of a process: threads, sockets and a data directory around the core.

mod application;
mod network;
mod persistence;
mod startup;
mod unborn;
mod unreplicated;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use r2p2::{
    MessageConfig, MessageReceiver, MessageSender, Outbox, ServerConfig, ServerEndpoint, UdpConfig,
    UdpLink, Waker,
};

pub use application::Execution;
pub use startup::{begin_run, end_run};

use crate::{
    admin::{ExchangeStatus, NetworkStatus},
    core::{self, Applier, Conflict, Core, Policy, Settings, Start, Timing},
    entry::{ClusterLimits, Incarnation, NodeId},
    state_machine::StateMachine,
    storage::{self, Durability, HardState, Loaded, LogStore, StoreError, StoreKind},
};
use application::Application;
use network::{Clock, Endpoints, Replica};
use persistence::{Done, Job, Persistence, Syncing};
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
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreplicated => "unreplicated",
            Self::Raft => "raft",
            Self::HovercRaft => "hovercraft",
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
    #[error("the data directory is that of replica {found}, and this is replica {expected}")]
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
        self.launch(Box::new(service), store)
    }

    /// Starts the node as [`Self::start`] does, with a log store of the caller's, which must have
    /// passed [`storage::suite`]. What the builder says about a data directory does not count.
    pub fn start_with_store(
        self,
        service: impl StateMachine,
        store: Box<dyn LogStore>,
    ) -> Result<Node, NodeError> {
        self.check()?;
        self.launch(Box::new(service), Some(store))
    }

    /// Opens the sockets and loads what there is; the rest happens in the node's thread.
    fn launch(
        self,
        service: Box<dyn StateMachine>,
        store: Option<Box<dyn LogStore>>,
    ) -> Result<Node, NodeError> {
        let mut config = UdpConfig::new(self.address);
        if let Some(Multicast { group, interface }) = self.multicast {
            config.group = Some(group);
            config.interface = interface;
        }
        let mut link = UdpLink::bind(&config)?;
        let address = link.local_address()?;
        let stopper = Stopper { stopped: Arc::default(), waker: link.waker() };
        let handle = stopper.clone();
        let name = format!("node-{}", self.id);
        let seed = fastrand::Rng::new().u64(..);
        let endpoints = endpoints(self.limits.request_bytes_max as usize, seed);
        let run: Box<dyn FnOnce() -> Result<(), NodeError> + Send> = match store {
            None => {
                let server = Unreplicated::new(self.id, service, self.limits, endpoints);
                Box::new(move || self.run_unreplicated(server, &mut link, &stopper))
            }
            Some(store) => {
                let (store, loaded, state) = self.load(store)?;
                let prepared =
                    Prepared { service, store, loaded, state, link, endpoints, stopper, seed };
                Box::new(move || self.run(prepared))
            }
        };
        let thread = thread::Builder::new().name(name).spawn(run)?;
        Ok(Node { address, stopper: handle, thread })
    }

    /// Reads the store, and begins a run in it.
    fn load(
        &self,
        mut store: Box<dyn LogStore>,
    ) -> Result<(Box<dyn LogStore>, Loaded, HardState), NodeError> {
        let loaded = store.load().map_err(NodeError::Store)?;
        let drawn = Incarnation(fastrand::Rng::new().u64(1..));
        let state = begin_run(&loaded, self.settings.durability, drawn);
        let found = state.birth.as_ref().map_or(self.id, |birth| birth.node);
        if found != self.id {
            return Err(NodeError::WrongNode { found, expected: self.id });
        }
        // On disk before this run takes part in anything (P37, P39).
        store.save_hard_state(&state).map_err(NodeError::Store)?;
        Ok((store, loaded, state))
    }

    fn run_unreplicated(
        &self,
        mut server: Unreplicated,
        link: &mut UdpLink,
        stopper: &Stopper,
    ) -> Result<(), NodeError> {
        while !stopper.is_stopped() {
            server.network = network_status(link);
            if !server.turn(link)? {
                let now = server.clock.now();
                link.wait(server.deadline().map(|at| at.since(now)), self.spin)?;
            }
        }
        Ok(())
    }

    fn run(self, prepared: Prepared) -> Result<(), NodeError> {
        let Prepared { service, mut store, loaded, mut state, mut link, .. } = prepared;
        let Prepared { mut endpoints, stopper, seed, .. } = prepared;
        if state.birth.is_none() {
            let named = unborn::wait_for_init(
                self.id,
                self.mode,
                state,
                store.as_mut(),
                &mut link,
                &mut endpoints,
                &stopper,
            )?;
            let Some(named) = named else { return Ok(()) };
            state = named;
        }
        let birth = state.birth.as_ref().expect("init has named it");
        // The cluster's limits, not the builder's, which are for a server without a cluster.
        let limits = birth.configuration.limits;
        endpoints.requests = request_endpoint(limits.request_bytes_max as usize, seed);
        let mut applier =
            Applier::new(service, birth.cluster, Arc::new(birth.configuration.clone()));
        if let Some(open) = store.snapshots().open().map_err(NodeError::Store)? {
            let mut data = io::BufReader::with_capacity(1 << 16, open.source);
            let index = open.meta.index;
            applier
                .restore(&open.meta, &mut data)
                .map_err(|source| NodeError::Restore { index, source })?;
        }
        let clock = Clock::new();
        let settings = Settings {
            mode: if self.mode == Mode::Raft { core::Mode::Raft } else { core::Mode::HovercRaft },
            ..self.settings
        };
        let core = Core::new(Start { hard_state: state, loaded, settings, seed }, clock.now());
        let application = Application::new(applier, self.execution, link.waker())?;
        let (jobs, to_do) = channel();
        let (tell, done) = channel();
        let syncing = Syncing { durability: settings.durability, interval: self.sync_interval };
        let persistence = Persistence::new(store, syncing, tell, link.waker());
        let storage = thread::Builder::new()
            .name(format!("storage-{}", self.id))
            .spawn(move || persistence.run(&to_do))?;
        let mut replica = Replica {
            core,
            endpoints,
            application,
            jobs,
            done,
            clock,
            mode: self.mode,
            network: NetworkStatus::default(),
            exchange: ExchangeStatus::default(),
            reads: Vec::new(),
            buffer: Vec::new(),
        };
        let result = self.drive(&mut replica, &mut link, &stopper);
        let Replica { mut core, application, jobs, done, .. } = replica;
        if result.is_ok() && core.may_stop_clean() {
            if let Some(log) = core.log_for_clean_stop() {
                let _ = jobs.send(Job::Write(log));
            }
            // Everything else is complete: the marker of a clean stop comes last (P37). A storage
            // role that has failed meanwhile leaves the stop unclean, which is what it is.
            let _ = jobs.send(Job::Stop(end_run(core.hard_state())));
        }
        drop(jobs);
        application.stop();
        storage.join().map_err(|_| NodeError::Panicked)?;
        // What failed at the very end was told to nobody else.
        let failed = done.try_iter().find_map(|done| match done {
            Done::Failed(error) => Some(NodeError::Store(error)),
            _ => None,
        });
        result.and(failed.map_or(Ok(()), Err))
    }

    fn drive(
        &self,
        replica: &mut Replica,
        link: &mut UdpLink,
        stopper: &Stopper,
    ) -> Result<(), NodeError> {
        while !stopper.is_stopped() {
            replica.network = network_status(link);
            if !replica.turn(link)? {
                let now = replica.clock.now();
                link.wait(replica.deadline().map(|at| at.since(now)), self.spin)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), NodeError> {
        let wrong =
            |setting, reason: &str| Err(NodeError::Setting { setting, reason: reason.to_owned() });
        let Timing { heartbeat, election_min, election_max } = self.settings.timing;
        if self.id.0 == 0 {
            return wrong("id", "replicas are numbered from 1");
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
        if self.sync_interval.is_zero() {
            return wrong("sync_interval", "it must not be zero; use the durability sync");
        }
        Ok(())
    }
}

/// What was loaded, on its way into the node's thread.
struct Prepared {
    service: Box<dyn StateMachine>,
    store: Box<dyn LogStore>,
    loaded: Loaded,
    state: HardState,
    link: UdpLink,
    endpoints: Endpoints,
    stopper: Stopper,
    seed: u64,
}

/// A replica that runs in threads of its own until it is stopped or fails.
#[derive(Debug)]
pub struct Node {
    address: SocketAddrV4,
    stopper: Stopper,
    thread: JoinHandle<Result<(), NodeError>>,
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
    pub fn stop(self) -> Result<(), NodeError> {
        self.stopper.stop();
        self.join()
    }

    /// Waits until the node ends: because a [`Stopper`] was used, or because it failed.
    pub fn join(self) -> Result<(), NodeError> {
        self.thread.join().map_err(|_| NodeError::Panicked)?
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
        self.thread.is_finished()
    }
}

/// Tells a node to stop.
#[derive(Debug, Clone)]
pub struct Stopper {
    stopped: Arc<AtomicBool>,
    waker: Waker,
}

impl Stopper {
    /// The node stops gracefully, soon.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

fn endpoints(request_bytes_max: usize, seed: u64) -> Endpoints {
    Endpoints {
        requests: request_endpoint(request_bytes_max, seed),
        receiver: MessageReceiver::new(MessageConfig::default(), seed),
        sender: MessageSender::new(seed),
        outbox: Outbox::new(),
    }
}

fn request_endpoint(request_bytes_max: usize, seed: u64) -> ServerEndpoint {
    let config = ServerConfig { request_bytes_max, ..ServerConfig::default() };
    ServerEndpoint::new(config, seed)
}

fn network_status(link: &UdpLink) -> NetworkStatus {
    let statistics = link.statistics();
    NetworkStatus {
        datagrams_in: statistics.datagrams_in,
        bytes_in: statistics.bytes_in,
        calls_in: statistics.calls_in,
        datagrams_out: statistics.datagrams_out,
        bytes_out: statistics.bytes_out,
        calls_out: statistics.calls_out,
        calls_wait: statistics.calls_wait,
        datagrams_lost: statistics.lost_full + statistics.lost_refused,
    }
}
