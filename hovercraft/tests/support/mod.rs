//! A cluster in this process, for tests.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::{Duration, Instant},
};

use hovercraft::{
    ClusterLimits, Context, Node, NodeBuilder, NodeId, SnapshotWriter, StateMachine,
    admin::{self, NodeStatus},
    core::Timing,
};

/// Longer than anything here takes, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// For clusters that no election may disturb, however busy the machine is.
pub(crate) const PATIENT: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_secs(3),
    election_max: Duration::from_secs(5),
};

/// Appends every command to its state, and answers with how many there were.
#[derive(Default)]
pub(crate) struct Journal {
    commands: Vec<Vec<u8>>,
}

impl StateMachine for Journal {
    fn execute(&mut self, _: &Context, command: &[u8], reply: &mut Vec<u8>) {
        assert_ne!(command, b"panic", "the command that breaks this service");
        // On one replica alone, by the name of its thread.
        if let Some(name) = command.strip_prefix(b"panic ") {
            let thread = std::thread::current();
            assert_ne!(thread.name().map(str::as_bytes), Some(name), "the replica that breaks");
        }
        if let Some(millis) = command.strip_prefix(b"sleep ") {
            let millis = std::str::from_utf8(millis).unwrap().parse().unwrap();
            std::thread::sleep(Duration::from_millis(millis));
        }
        self.commands.push(command.to_vec());
        reply.extend_from_slice(&(self.commands.len() as u64).to_be_bytes());
    }

    fn query(&self, _: &Context, query: &[u8], reply: &mut Vec<u8>) {
        assert_ne!(query, b"panic", "the query that breaks this service");
        reply.extend_from_slice(&(self.commands.len() as u64).to_be_bytes());
    }

    fn snapshot(&self) -> SnapshotWriter {
        let commands = self.commands.clone();
        Box::new(move |to: &mut dyn Write| {
            for command in commands {
                to.write_all(&(command.len() as u32).to_le_bytes())?;
                to.write_all(&command)?;
            }
            Ok(())
        })
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        self.commands.clear();
        let mut rest = &bytes[..];
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let (command, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
            self.commands.push(command.to_vec());
            rest = tail;
        }
        Ok(())
    }
}

/// Replicas 1 … n on loopback, each with a directory of its own below `data`.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) members: Vec<(NodeId, SocketAddrV4)>,
    builders: Vec<NodeBuilder>,
}

impl Cluster {
    /// Starts and initialises a cluster.
    pub(crate) async fn start(
        count: u16,
        data: &Path,
        with: impl Fn(NodeBuilder) -> NodeBuilder,
    ) -> Self {
        let mut cluster = Self { nodes: Vec::new(), members: Vec::new(), builders: Vec::new() };
        for id in (1..=count).map(NodeId) {
            let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
            let directory = data.join(id.to_string());
            let build = |address| with(Node::builder(id, address).data(directory.clone()));
            let node = build(any_port).start(Journal::default()).unwrap();
            cluster.builders.push(build(node.address()));
            cluster.members.push((id, node.address()));
            cluster.nodes.push(Some(node));
        }
        admin::init(&cluster.members, ClusterLimits::default(), PATIENCE).await.unwrap();
        cluster
    }

    /// Stops the replica at a position gracefully.
    pub(crate) fn stop(&mut self, position: usize) {
        self.nodes[position].take().unwrap().stop().unwrap();
    }

    /// Starts the replica at a position again.
    pub(crate) fn restart(&mut self, position: usize) {
        let node = self.builders[position].clone().start(Journal::default()).unwrap();
        self.nodes[position] = Some(node);
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddrV4> {
        self.members.iter().map(|member| member.1)
    }

    /// The status of the replicas that run.
    pub(crate) async fn status(&self) -> Vec<NodeStatus> {
        let mut all = Vec::new();
        for (node, (_, address)) in self.nodes.iter().zip(&self.members) {
            if node.is_some() {
                all.push(admin::status(*address, PATIENCE).await.unwrap());
            }
        }
        all
    }

    /// Waits until `condition` holds for the status of the replicas that run.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&[NodeStatus]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if condition(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} did not come about: {status:#?}");
            tokio::task::yield_now().await;
        }
    }

    /// The position of the leader, once there is one that a majority follows.
    pub(crate) async fn leader(&self) -> usize {
        let mut found = None;
        while found.is_none() {
            let status = self.status().await;
            let protocols: Vec<_> = status.iter().flat_map(|node| &node.protocol).collect();
            let leader = protocols.iter().find_map(|protocol| {
                let followers =
                    protocols.iter().filter(|other| other.leader == Some(protocol.node));
                (followers.count() > self.members.len() / 2).then_some(protocol.node)
            });
            found = leader.and_then(|id| self.members.iter().position(|member| member.0 == id));
        }
        found.unwrap()
    }
}

/// Whether all replicas have applied the same, and everything that is committed.
pub(crate) fn is_level(status: &[NodeStatus]) -> bool {
    let applied = |node: &NodeStatus| {
        let protocol = node.protocol.as_ref()?;
        (protocol.applied == protocol.last).then_some(protocol.applied)
    };
    let first = applied(&status[0]);
    first.is_some() && status.iter().all(|node| applied(node) == first)
}

/// Copies a directory with all that is in it to a place where there is none.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}
