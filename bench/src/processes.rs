//! A cluster of `hovercraft node` processes on loopback, and what they cost.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use hovercraft::{
    ClusterLimits, Mode, NodeId,
    admin::{self, AdminError, NodeStatus},
    client::Destinations,
};

use crate::{
    generator::Route,
    netns::{Namespaces, NetnsError},
    usage::{self, Usage},
};

/// How the replicas of a cluster run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many.
    pub replicas: u16,
    /// What they do with requests.
    pub mode: Mode,
    /// As in a configuration file.
    pub durability: String,
    /// As in a configuration file.
    pub service: String,
    /// Who replies, as in a configuration file.
    pub policy: String,
    /// B (P15).
    pub queue_bound: usize,
    /// As in a configuration file.
    pub admission_limit: usize,
    /// As in a configuration file.
    pub spin_us: u32,
    /// A network namespace for each, and the percentage of datagrams that is lost there.
    pub netns: Option<Option<f64>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            replicas: 3,
            mode: Mode::HovercRaft,
            durability: "memory".to_owned(),
            service: "synthetic".to_owned(),
            policy: "jbsq".to_owned(),
            queue_bound: 1024,
            admission_limit: 16_384,
            spin_us: 0,
            netns: None,
        }
    }
}

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
    /// A replica's process ended by itself.
    #[error("replica {id} ended at once ({status}); is {} the hovercraft command?", binary.display())]
    Ended {
        /// Which.
        id: NodeId,
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
    children: Vec<Child>,
    members: Vec<(NodeId, SocketAddrV4)>,
    mode: Mode,
    /// Removed after the processes are gone.
    _data: Option<tempfile::TempDir>,
    netns: Option<Namespaces>,
}

impl Cluster {
    /// Starts and initialises a cluster with the `hovercraft` command at `binary`, and waits for a
    /// leader.
    pub async fn start(binary: &Path, setup: &Setup) -> Result<Self, ClusterError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source| ClusterError::Io { action, source }
        };
        let data = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
        let path = data.path().to_owned();
        let netns = setup.netns.map(|loss| Namespaces::new(setup.replicas, loss)).transpose()?;
        let members = match &netns {
            Some(netns) => (1..=setup.replicas).map(|id| (NodeId(id), netns.replica(id))).collect(),
            None => free_addresses(setup.replicas).map_err(failed("find free ports"))?,
        };
        let mode = setup.mode;
        let mut cluster = Self { children: Vec::new(), members, mode, _data: Some(data), netns };
        for (id, _) in &cluster.members {
            let config = path.join(format!("{id}.toml"));
            let text = config_text(*id, &cluster.members, &path.join(id.to_string()), setup);
            fs::write(&config, text).map_err(failed("write a configuration"))?;
            let mut command = match &cluster.netns {
                Some(netns) => netns.command(id.0, binary),
                None => Command::new(binary),
            };
            let child = command
                .arg("node")
                .arg("--config")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::inherit())
                .env("HOVERCRAFT_LOG", "error")
                .spawn()
                .map_err(|source| ClusterError::Binary { binary: binary.to_owned(), source })?;
            cluster.children.push(child);
        }
        let members = cluster.members.clone();
        let begin = async {
            if mode != Mode::Unreplicated {
                admin::init(&members, ClusterLimits::default(), PATIENCE).await?;
            }
            wait_for_leader(&members, PATIENCE).await
        };
        tokio::select! {
            biased;
            (id, status) = cluster.ended() => {
                return Err(ClusterError::Ended { id, status, binary: binary.to_owned() });
            }
            begun = begin => begun?,
        }
        Ok(cluster)
    }

    /// Returns when a replica's process has ended.
    async fn ended(&mut self) -> (NodeId, ExitStatus) {
        loop {
            for (child, (id, _)) in self.children.iter_mut().zip(&self.members) {
                if let Ok(Some(status)) = child.try_wait() {
                    return (*id, status);
                }
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
        Ok(Self { children: Vec::new(), members, mode, _data: None, netns: None })
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
        let destinations = match self.mode {
            Mode::Raft => Destinations::OneByOne(addresses),
            _ => Destinations::All(addresses),
        };
        Route { destinations, interface: None }
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
        Usage::of(self.children.get(place)?.id())
    }

    /// Kills the leader's process without warning.
    pub async fn kill_leader(&mut self) -> Result<Option<NodeId>, AdminError> {
        let Some(leader) = self.leader().await?.map(|status| status.node) else { return Ok(None) };
        let place = self.members.iter().position(|(id, _)| *id == leader);
        if let Some(child) = place.and_then(|place| self.children.get_mut(place)) {
            // One that has ended already is as dead.
            let _ = child.kill();
            let _ = child.wait();
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
        self.children.iter().map(|child| usage::cpu_time(child.id())).sum()
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

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already is only waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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
    [Mode::Unreplicated, Mode::Raft, Mode::HovercRaft]
        .into_iter()
        .find(|mode| mode.to_string() == name)
}

fn free_addresses(count: u16) -> io::Result<Vec<(NodeId, SocketAddrV4)>> {
    // All are held until all are found, so that no port is found twice.
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind(any)).collect::<Result<_, _>>()?;
    let ports = sockets.iter().map(|socket| Ok(socket.local_addr()?.port()));
    let numbered = (1..).map(NodeId).zip(ports);
    numbered
        .map(|(id, port): (_, io::Result<u16>)| {
            Ok((id, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port?)))
        })
        .collect()
}

fn config_text(
    id: NodeId,
    members: &[(NodeId, SocketAddrV4)],
    data: &Path,
    setup: &Setup,
) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|(id, address)| format!("{{ id = {id}, address = \"{address}\" }}"))
        .collect();
    let Setup { mode, durability, service, policy, queue_bound, admission_limit, spin_us, .. } =
        setup;
    format!(
        "id = {id}\nmembers = [{}]\ndata = {:?}\nmode = \"{mode}\"\ndurability = \"{durability}\"\n\
         service = \"{service}\"\npolicy = \"{policy}\"\nqueue_bound = {queue_bound}\n\
         admission_limit = {admission_limit}\nspin_us = {spin_us}\n",
        members.join(", "),
        data.display().to_string(),
    )
}
