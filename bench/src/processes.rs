//! A cluster of `hovercraft node` processes on loopback, and what they cost.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hovercraft::{
    ClusterLimits, NodeId,
    admin::{self, AdminError, NodeStatus},
};

/// How the replicas of a cluster run.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// How many.
    pub replicas: u16,
    /// As in a configuration file.
    pub mode: &'a str,
    /// As in a configuration file.
    pub durability: &'a str,
    /// As in a configuration file.
    pub service: &'a str,
    /// B (P15).
    pub queue_bound: usize,
    /// As in a configuration file.
    pub spin_us: u32,
}

/// Why a cluster did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
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
    /// Nobody became leader.
    #[error("no leader within {0:?}")]
    NoLeader(Duration),
}

/// Replicas as processes; killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    children: Vec<Child>,
    members: Vec<(NodeId, SocketAddrV4)>,
    data: tempfile::TempDir,
}

impl Cluster {
    /// Starts and initialises a cluster with the `hovercraft` command at `binary`, and waits for a
    /// leader.
    pub async fn start(binary: &Path, setup: Setup<'_>) -> Result<Self, ClusterError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source| ClusterError::Io { action, source }
        };
        let data = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
        let members = free_addresses(setup.replicas).map_err(failed("find free ports"))?;
        let mut cluster = Self { children: Vec::new(), members, data };
        for (id, _) in &cluster.members {
            let directory = cluster.data.path().join(id.to_string());
            let config = cluster.data.path().join(format!("{id}.toml"));
            fs::write(&config, config_text(*id, &cluster.members, &directory, setup))
                .map_err(failed("write a configuration"))?;
            let child = Command::new(binary)
                .arg("node")
                .arg("--config")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::inherit())
                .env("HOVERCRAFT_LOG", "warn")
                .spawn()
                .map_err(failed(&format!("start {}", binary.display())))?;
            cluster.children.push(child);
        }
        if setup.mode != "unreplicated" {
            admin::init(&cluster.members, ClusterLimits::default(), PATIENCE).await?;
            cluster.wait_for_leader(PATIENCE).await?;
        }
        Ok(cluster)
    }

    /// Where the replicas are.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddrV4> {
        self.members.iter().map(|member| member.1)
    }

    /// The status of the leader; of the only server in mode `unreplicated`.
    pub async fn leader(&self) -> Result<Option<NodeStatus>, AdminError> {
        for address in self.addresses() {
            let status = admin::status(address, Duration::from_secs(2)).await?;
            let leads = status.protocol.as_ref().is_none_or(|it| it.leader == Some(it.node));
            if leads {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// User and system time of all replicas so far.
    pub fn cpu_time(&self) -> Duration {
        self.children.iter().map(|child| cpu_time(child.id())).sum()
    }

    async fn wait_for_leader(&self, patience: Duration) -> Result<(), ClusterError> {
        let start = std::time::Instant::now();
        while start.elapsed() < patience {
            if self.leader().await?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(ClusterError::NoLeader(patience))
    }
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

/// User and system time of a process so far; zero if it is gone.
pub(crate) fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{process}/stat")));
    let ticks = stat.ok().and_then(|stat| {
        // The second field is the name in parentheses, and may hold anything.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (user, system): (u64, u64) =
            (fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?);
        Some(user + system)
    });
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks.unwrap_or(0) as f64 / per_second as f64)
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
    setup: Setup<'_>,
) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|(id, address)| format!("{{ id = {id}, address = \"{address}\" }}"))
        .collect();
    let Setup { mode, durability, service, queue_bound, spin_us, .. } = setup;
    format!(
        "id = {id}\nmembers = [{}]\ndata = {:?}\nmode = \"{mode}\"\ndurability = \"{durability}\"\n\
         service = \"{service}\"\nqueue_bound = {queue_bound}\nspin_us = {spin_us}\n",
        members.join(", "),
        data.display().to_string(),
    )
}
