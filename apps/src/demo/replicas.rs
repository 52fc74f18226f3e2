//! Replicas as processes of their own on loopback, which can be killed and started again.
//!
//! None of them outlives this process: each is killed when [`Replicas`] is dropped, and stops by
//! itself when its standard input ends, which it does however this process ends.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use hovercraft::{
    ClusterLimits, NodeId,
    admin::{self, AdminError, NodeStatus},
};
use tokio::{task::JoinSet, time::Instant};

/// Why replicas do not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicasError {
    /// The operating system refused something.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// One has ended by itself.
    #[error("replica {id} has ended by itself: {status}")]
    Ended {
        /// Which.
        id: NodeId,
        /// How.
        status: ExitStatus,
    },
    /// They do not answer, or refuse.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// They elect no leader.
    #[error("the replicas have had no leader for {0:?}")]
    NoLeader(Duration),
    /// They do not all apply the same.
    #[error("the replicas are not level after {waited:?}: {indices}")]
    NotLevel {
        /// How long that took.
        waited: Duration,
        /// What each has applied.
        indices: String,
    },
}

pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> ReplicasError {
    let action = action.into();
    move |source| ReplicasError::System { action, source }
}

/// Replicas on loopback, by their positions: replica 1 is at position 0.
#[derive(Debug)]
pub struct Replicas {
    binary: PathBuf,
    replicas: Vec<Replica>,
}

#[derive(Debug)]
struct Replica {
    id: NodeId,
    address: SocketAddrV4,
    /// Holds its configuration, its data and what it logs.
    directory: PathBuf,
    child: Option<Child>,
}

impl Replicas {
    /// Prepares replicas 1 … `count` that run the `hovercraft` command at `binary`, each with a
    /// directory of its own below `directory`. `settings` are further lines of a replica's
    /// configuration. None of them runs yet.
    pub fn prepare(
        binary: &Path,
        directory: &Path,
        count: u16,
        settings: impl Fn(NodeId) -> String,
    ) -> Result<Self, ReplicasError> {
        let addresses = free_addresses(count).map_err(failed("find free UDP ports"))?;
        let members: Vec<_> = (1..).map(NodeId).zip(addresses).collect();
        let mut replicas = Vec::new();
        for &(id, address) in &members {
            let directory = directory.join(format!("replica-{id}"));
            let text = configuration(id, &members, &settings(id));
            fs::create_dir_all(&directory)
                .and_then(|()| fs::write(directory.join(CONFIGURATION), text))
                .map_err(failed(format!("write to {}", directory.display())))?;
            replicas.push(Replica { id, address, directory, child: None });
        }
        Ok(Self { binary: binary.to_owned(), replicas })
    }

    /// Starts all of them, which have empty disks, and makes them a cluster with a leader.
    pub async fn start_and_initialise(&mut self) -> Result<(), ReplicasError> {
        const PATIENCE: Duration = Duration::from_secs(20);
        for position in 0..self.replicas.len() {
            self.start(position)?;
        }
        let members = self.members();
        tokio::select! {
            biased;
            done = admin::init(&members, ClusterLimits::default(), PATIENCE) => done?,
            (id, status) = self.end() => return Err(ReplicasError::Ended { id, status }),
        };
        self.leader(PATIENCE).await?;
        Ok(())
    }

    /// Starts one that does not run. What it logs is appended to what it logged before.
    pub fn start(&mut self, position: usize) -> Result<(), ReplicasError> {
        let Replica { id, directory, child, .. } = &mut self.replicas[position];
        assert!(child.is_none(), "replica {id} runs already");
        let log = File::options().create(true).append(true).open(directory.join(LOG));
        let log = log.map_err(failed(format!("write to {}", directory.display())))?;
        let started = Command::new(&self.binary)
            .args(["node", "--until-stdin-ends", "--config"])
            .arg(directory.join(CONFIGURATION))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // What is typed at the terminal is meant for this process.
            .process_group(0)
            .spawn();
        *child = Some(started.map_err(failed(format!("run {}", self.binary.display())))?);
        Ok(())
    }

    /// Kills one that runs with SIGKILL. The future is done when it is gone.
    pub async fn kill(&mut self, position: usize) -> Result<(), ReplicasError> {
        let Replica { id, child, .. } = &mut self.replicas[position];
        let mut child = child.take().expect("the caller knows that it runs");
        let killed = child.kill();
        // Who else runs on this thread does not wait for the operating system to clean up.
        let gone = tokio::task::spawn_blocking(move || child.wait()).await;
        let gone = gone.expect("waiting does not panic, and the runtime still runs");
        killed.and(gone).map_err(failed(format!("kill replica {id}")))?;
        Ok(())
    }

    /// Waits until one ends without being killed.
    async fn end(&mut self) -> (NodeId, ExitStatus) {
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            pause().await;
        }
    }

    /// One that has ended without being killed, and how. Each is told once.
    pub fn ended(&mut self) -> Option<(NodeId, ExitStatus)> {
        self.replicas.iter_mut().find_map(|Replica { id, child, .. }| {
            let status = child.as_mut()?.try_wait().ok()??;
            *child = None;
            Some((*id, status))
        })
    }

    /// The ids and addresses of all, whether they run or not.
    pub fn members(&self) -> Vec<(NodeId, SocketAddrV4)> {
        self.replicas.iter().map(|replica| (replica.id, replica.address)).collect()
    }

    /// Where the one at a position keeps its data.
    pub fn data(&self, position: usize) -> PathBuf {
        self.replicas[position].directory.join(DATA)
    }

    /// The status of each that runs and answers soon.
    pub async fn status(&self) -> Vec<NodeStatus> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let mut asking = JoinSet::new();
        for replica in self.replicas.iter().filter(|replica| replica.child.is_some()) {
            asking.spawn(admin::status(replica.address, PATIENCE));
        }
        let mut answers: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
        answers.sort_by_key(|status| status.node);
        answers
    }

    /// The position of the leader, once there is one that a majority follows.
    pub async fn leader(&self, patience: Duration) -> Result<usize, ReplicasError> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let followed: Vec<_> = (self.status().await.iter())
                .filter_map(|status| status.protocol.as_ref()?.leader)
                .collect();
            let leader = self.replicas.iter().position(|replica| {
                let followers = followed.iter().filter(|leader| **leader == replica.id);
                replica.child.is_some() && followers.count() > self.replicas.len() / 2
            });
            if let Some(position) = leader {
                return Ok(position);
            }
            pause().await;
        }
        Err(ReplicasError::NoLeader(patience))
    }

    /// Waits until all run, and have executed the same and everything that there is.
    pub async fn level(&self, patience: Duration) -> Result<(), ReplicasError> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status().await;
            let indices: Vec<_> = (status.iter())
                .filter_map(|status| Some((status.node, status.protocol.as_ref()?)))
                .map(|(node, protocol)| (node, protocol.applied, protocol.last))
                .collect();
            let is_level = indices.len() == self.replicas.len()
                && indices
                    .iter()
                    .all(|(_, applied, last)| applied == last && *applied == indices[0].1);
            if is_level {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let indices = (self.replicas.iter())
                    .map(|Replica { id, .. }| match indices.iter().find(|(node, ..)| node == id) {
                        Some((_, applied, last)) => {
                            format!("replica {id} has applied {applied} of {last}")
                        }
                        None => format!("replica {id} does not answer"),
                    })
                    .collect::<Vec<_>>();
                let indices = indices.join(", ");
                return Err(ReplicasError::NotLevel { waited: patience, indices });
            }
            pause().await;
        }
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        let mut running: Vec<_> =
            self.replicas.iter_mut().filter_map(|replica| replica.child.take()).collect();
        // One that has ended already cannot be killed, and is only waited for.
        for child in &mut running {
            let _ = child.kill();
        }
        for child in &mut running {
            let _ = child.wait();
        }
    }
}

const CONFIGURATION: &str = "hovercraft.toml";
const DATA: &str = "data";
const LOG: &str = "log.txt";

/// Between two questions to replicas that have work to do.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn configuration(id: NodeId, members: &[(NodeId, SocketAddrV4)], settings: &str) -> String {
    let member = |(id, address): &(NodeId, SocketAddrV4)| {
        format!("    {{ id = {id}, address = \"{address}\" }},")
    };
    let members = members.iter().map(member).collect::<Vec<_>>().join("\n");
    format!("id = {id}\ndata = \"{DATA}\"\nmembers = [\n{members}\n]\n{settings}\n")
}

/// Ports that stay free while a replica is down: the operating system gives none of them to a socket
/// that does not name its port.
pub(super) fn free_addresses(count: u16) -> io::Result<Vec<SocketAddrV4>> {
    const ATTEMPTS: usize = 1000;
    let dynamic = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let dynamic_first = dynamic
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|first| *first > 2 * PORT_FIRST)
        .unwrap_or(32_768);
    // All are held until all are found, so that none is found twice.
    let mut held = Vec::new();
    let mut error = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        if held.len() == usize::from(count) {
            break;
        }
        let port = fastrand::u16(PORT_FIRST..dynamic_first);
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(socket) => held.push((socket, port)),
            Err(refused) => error = refused,
        }
    }
    if held.len() < usize::from(count) {
        return Err(error);
    }
    Ok(held.iter().map(|(_, port)| SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port)).collect())
}

/// Below are the ports of services that are well known.
const PORT_FIRST: u16 = 10_240;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configurations_are_good_and_name_each_other() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let settings = |id: NodeId| format!("queue_bound = {}", 30 + id.0);
        let binary = Path::new("hovercraft");
        let replicas =
            Replicas::prepare(binary, directory.path(), 3, settings).expect("free ports");
        let members = replicas.members();
        let ports: HashSet<_> = members.iter().map(|(_, address)| address.port()).collect();
        assert_eq!(ports.len(), 3);
        for (position, (id, _)) in members.iter().enumerate() {
            let path = replicas.replicas[position].directory.join(CONFIGURATION);
            let config = Config::read(&path).expect("a good configuration");
            assert_eq!((config.id, &config.cluster.members), (*id, &members));
            assert_eq!(config.queue_bound, 30 + usize::from(id.0));
            assert_eq!(config.data, Some(replicas.data(position)));
        }
    }

    #[tokio::test]
    async fn replicas_that_end_at_once_are_not_waited_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let prepare = |binary| {
            let replicas =
                Replicas::prepare(Path::new(binary), directory.path(), 2, |_| String::new());
            replicas.expect("free ports")
        };
        // Not a replica: it ends at once.
        let error = prepare("/bin/false").start_and_initialise().await.expect_err("none runs");
        let ReplicasError::Ended { id, status } = error else { panic!("{error}") };
        assert!([1, 2].contains(&id.0) && status.code() == Some(1));
        let error = prepare("/nonexistent").start(0).expect_err("there is no such program");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
