//! A cluster of `hovercraft` processes on loopback, and what they cost.

mod process;
mod routed;
mod setup;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use hovercraft::{
    ClusterLimits, Mode, NodeId,
    admin::{self, AdminError, NodeStatus},
    client::Destinations,
    switch::SwitchStatus,
};

pub use routed::{Routed, RoutedSetup};
pub use setup::{AdmissionSetup, Setup, SwitchSetup};

use crate::{
    generator::Route,
    netns::{Namespaces, NetnsError},
    usage::Usage,
};
use process::{Process, failed};

/// Why a cluster did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The `hovercraft` command cannot be executed.
    #[error("cannot start {}: {source}", binary.display())]
    Binary {
        /// What was named.
        binary: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Processes, files or sockets.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The replicas do not answer, or refuse.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// No network namespaces.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A replica runs in a mode that this version does not know.
    #[error("the replicas run in the mode {0}, which cannot be measured")]
    UnknownMode(String),
    /// Nobody became leader.
    #[error("no leader within {0:?}")]
    NoLeader(Duration),
    /// A process ended by itself.
    #[error("{name} ended at once ({status}); is {} the hovercraft command?", binary.display())]
    Ended {
        /// Which.
        name: String,
        /// How.
        status: ExitStatus,
        /// What was started.
        binary: PathBuf,
    },
    /// Some of the replicas of a running cluster were not named.
    #[error(
        "{named} replicas are named, but {}; name the addresses of all replicas",
        members.map_or("none of them leads".to_owned(), |count| format!("the cluster has {count}"))
    )]
    NotAll {
        /// How many were.
        named: usize,
        /// How many there are; none if no leader was among them to say so.
        members: Option<usize>,
    },
}

impl ClusterError {
    /// Whether what the user named is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Binary { .. } | Self::Ended { .. } | Self::NotAll { .. })
    }
}

/// Replicas as processes; killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    replicas: Vec<Process>,
    members: Vec<(NodeId, SocketAddrV4)>,
    mode: Mode,
    switch: Option<Switch>,
    /// Removed after the processes are gone.
    _data: Option<tempfile::TempDir>,
    netns: Option<Namespaces>,
}

#[derive(Debug)]
struct Switch {
    process: Process,
    address: SocketAddrV4,
    disseminates: bool,
}

impl Cluster {
    /// Starts and initialises a cluster with the `hovercraft` command at `binary`, and waits for a
    /// leader.
    pub async fn start(binary: &Path, setup: &Setup) -> Result<Self, ClusterError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut cluster = Self::spawn(binary, setup)?;
        let (members, mode) = (cluster.members.clone(), cluster.mode);
        let begin = async {
            if mode != Mode::Unreplicated {
                admin::init(&members, ClusterLimits::default(), PATIENCE).await?;
            }
            wait_for_leader(&members, PATIENCE).await
        };
        tokio::select! {
            biased;
            (name, status) = cluster.ended() => {
                return Err(ClusterError::Ended { name, status, binary: binary.to_owned() });
            }
            begun = begin => begun?,
        }
        Ok(cluster)
    }

    /// Starts the processes.
    fn spawn(binary: &Path, setup: &Setup) -> Result<Self, ClusterError> {
        let data = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
        let path = data.path().to_owned();
        let switch = setup.switch();
        let hosts = setup.replicas + u16::from(switch.is_some());
        let netns = setup.netns.map(|loss| Namespaces::new(hosts, loss)).transpose()?;
        let mut addresses = match &netns {
            Some(netns) => (1..=hosts).map(|host| netns.host(host)).collect(),
            None => free_addresses(hosts).map_err(failed("find free ports"))?,
        };
        let switch_at = switch.and_then(|_| addresses.pop());
        let mut cluster = Self {
            replicas: Vec::new(),
            members: (1..).map(NodeId).zip(addresses).collect(),
            mode: setup.mode,
            switch: None,
            _data: Some(data),
            netns,
        };
        if let Some((switch, address)) = switch.zip(switch_at) {
            let text = switch.text(address, &cluster.members, setup.spin_us);
            let command = cluster.command(hosts, binary);
            let process = Process::start(command, binary, "switch", (&path, "switch", &text))?;
            let disseminates = switch.disseminates;
            cluster.switch = Some(Switch { process, address, disseminates });
        }
        for (id, _) in &cluster.members {
            let data = path.join(id.to_string());
            let text = setup.node_text(*id, &cluster.members, switch_at, &data);
            let command = cluster.command(id.0, binary);
            let file = (&*path, id.to_string(), &*text);
            cluster.replicas.push(Process::start(command, binary, "node", file)?);
        }
        Ok(cluster)
    }

    /// What runs a program on a host, counted from 1.
    fn command(&self, host: u16, binary: &Path) -> Command {
        match &self.netns {
            Some(netns) => netns.command(host, binary),
            None => Command::new(binary),
        }
    }

    /// Returns when a process has ended.
    async fn ended(&mut self) -> (String, ExitStatus) {
        loop {
            for (replica, (id, _)) in self.replicas.iter_mut().zip(&self.members) {
                if let Some(status) = replica.ended() {
                    return (format!("replica {id}"), status);
                }
            }
            if let Some(status) = self.switch.as_mut().and_then(|it| it.process.ended()) {
                return ("the switch".to_owned(), status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A cluster that runs already, and goes on after this.
    pub async fn attach(addresses: &[SocketAddrV4]) -> Result<Self, ClusterError> {
        let mut members = Vec::new();
        let mut mode = Mode::HovercRaft;
        let mut cluster = None;
        for address in addresses {
            let status = admin::status(*address, STATUS_PATIENCE).await?;
            mode = mode_of(&status.mode).ok_or(ClusterError::UnknownMode(status.mode))?;
            members.push((status.node, *address));
            let leader = status.protocol.filter(|it| it.leader == Some(it.node));
            cluster = cluster.or(leader.map(|it| it.replicas.len()));
        }
        let named = members.len();
        if mode != Mode::Unreplicated && cluster != Some(named) {
            return Err(ClusterError::NotAll { named, members: cluster });
        }
        Ok(Self { replicas: Vec::new(), members, mode, switch: None, _data: None, netns: None })
    }

    /// What the replicas do with requests.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many replicas there are.
    pub fn replicas(&self) -> usize {
        self.members.len()
    }

    /// Where a client's requests go.
    pub fn route(&self) -> Route {
        let addresses = self.addresses().collect();
        let destinations = match (self.mode, &self.switch) {
            (_, Some(Switch { address, disseminates: true, .. })) => {
                Destinations::BySwitch { switch: *address, members: addresses }
            }
            (Mode::Raft, _) => Destinations::OneByOne(addresses),
            _ => Destinations::All(addresses),
        };
        Route { destinations, interface: None }
    }

    /// Where the switch is, if one was started here.
    pub fn switch(&self) -> Option<SocketAddrV4> {
        self.switch.as_ref().map(|switch| switch.address)
    }

    /// What the switch says of itself; none if there is none, or it does not answer.
    pub async fn switch_status(&self) -> Option<SwitchStatus> {
        admin::switch_status(self.switch()?, STATUS_PATIENCE).await.ok()
    }

    /// What the switch's process has cost so far.
    pub fn switch_usage(&self) -> Option<Usage> {
        self.switch.as_ref()?.process.usage()
    }

    /// What every replica says of itself, and what its process has cost, if it was started here.
    /// One that does not answer is left out.
    pub async fn look(&self) -> Vec<Look> {
        let mut looks = Vec::new();
        for (place, (id, address)) in self.members.iter().enumerate() {
            let usage = self.usage(place);
            if let Ok(status) = admin::status(*address, STATUS_PATIENCE).await {
                looks.push(Look { id: *id, status, usage });
            }
        }
        looks
    }

    /// What each replica's process has cost, in order of their numbers.
    pub fn usages(&self) -> Vec<Option<Usage>> {
        (0..self.members.len()).map(|place| self.usage(place)).collect()
    }

    fn usage(&self, place: usize) -> Option<Usage> {
        self.replicas.get(place)?.usage()
    }

    /// Kills the leader's process without warning.
    pub async fn kill_leader(&mut self) -> Result<Option<NodeId>, AdminError> {
        let Some(leader) = self.leader().await?.map(|status| status.node) else { return Ok(None) };
        let place = self.members.iter().position(|(id, _)| *id == leader);
        if let Some(replica) = place.and_then(|place| self.replicas.get_mut(place)) {
            replica.kill();
        }
        Ok(Some(leader))
    }

    /// Where the replicas are.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddrV4> {
        self.members.iter().map(|member| member.1)
    }

    /// The status of the leader; of the only server in mode `unreplicated`.
    pub async fn leader(&self) -> Result<Option<NodeStatus>, AdminError> {
        leader(&self.members).await
    }

    /// User and system time of all replicas so far.
    pub fn cpu_time(&self) -> Duration {
        let usages = self.replicas.iter().filter_map(Process::usage);
        usages.map(|usage| usage.cpu()).sum()
    }
}

async fn leader(members: &[(NodeId, SocketAddrV4)]) -> Result<Option<NodeStatus>, AdminError> {
    for (_, address) in members {
        let status = admin::status(*address, STATUS_PATIENCE).await?;
        let leads = status.protocol.as_ref().is_none_or(|it| it.leader == Some(it.node));
        if leads {
            return Ok(Some(status));
        }
    }
    Ok(None)
}

async fn wait_for_leader(
    members: &[(NodeId, SocketAddrV4)],
    patience: Duration,
) -> Result<(), ClusterError> {
    let start = std::time::Instant::now();
    while start.elapsed() < patience {
        // One that is not up yet does not answer.
        if matches!(leader(members).await, Ok(Some(_))) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(ClusterError::NoLeader(patience))
}

/// How long a replica may take to say how it is: it may be very busy.
const STATUS_PATIENCE: Duration = Duration::from_secs(3);

/// A replica at one moment.
#[derive(Debug)]
pub struct Look {
    /// Which.
    pub id: NodeId,
    /// What it says.
    pub status: NodeStatus,
    /// What its process has cost.
    pub usage: Option<Usage>,
}

impl Look {
    /// Whether it leads, or is the only server.
    pub fn leads(&self) -> bool {
        self.status.protocol.as_ref().is_none_or(|it| it.leader == Some(it.node))
    }

    /// The requests that it has seen through so far.
    pub fn requests(&self) -> u64 {
        self.status.protocol.as_ref().map_or(self.status.counters.requests, |it| it.applied)
    }
}

fn mode_of(name: &str) -> Option<Mode> {
    [Mode::Unreplicated, Mode::Raft, Mode::HovercRaft, Mode::HovercRaftPlusPlus]
        .into_iter()
        .find(|mode| mode.to_string() == name)
}

fn free_addresses(count: u16) -> io::Result<Vec<SocketAddrV4>> {
    // All are held until all are found, so that no port is found twice.
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind(any)).collect::<Result<_, _>>()?;
    let address = |socket: &UdpSocket| {
        Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, socket.local_addr()?.port()))
    };
    sockets.iter().map(address).collect()
}
