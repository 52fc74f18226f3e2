//! What a stalled disk, a slow service, a panic and a restart do to a cluster, and what they must
//! not do.

mod support;

use std::{
    io::{self, Read},
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use hovercraft::{
    CallError, Client, Context, Execution, Node, NodeId, SnapshotWriter, StateMachine,
    admin::NodeStatus,
    core::RoleStatus,
    node::NodeBuilder,
    storage::{
        Durability, HardState, Loaded, LogStore, SegmentedStore, SnapshotMeta, SnapshotSink,
        SnapshotStore, StoreError,
    },
};
use support::{Cluster, Journal, PATIENCE, PATIENT, copy_directory, is_level};

async fn client(cluster: &Cluster) -> Client {
    let client = Client::builder().members(cluster.addresses()).timeout(PATIENCE);
    client.connect().await.unwrap()
}

/// The terms that the replicas are in, for tests that no election may disturb.
async fn terms(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status().await;
    status.iter().map(|node| node.protocol.as_ref().unwrap().term).collect()
}

/// A gate that a test closes to stall a disk.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.is_closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let closed = self.is_closed.lock().unwrap();
        drop(self.changed.wait_while(closed, |closed| *closed).unwrap());
    }
}

/// A store whose syncs wait at a gate.
struct Stalling {
    store: Box<dyn LogStore>,
    gate: Arc<Gate>,
}

impl LogStore for Stalling {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.store.load()
    }

    fn save_hard_state(&mut self, state: &HardState) -> Result<(), StoreError> {
        self.gate.pass();
        self.store.save_hard_state(state)
    }

    fn append(&mut self, first: u64, entries: &[hovercraft::Entry]) -> Result<(), StoreError> {
        self.store.append(first, entries)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.gate.pass();
        self.store.sync()
    }

    fn trim(&mut self, first: u64) -> Result<(), StoreError> {
        self.store.trim(first)
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        self.store.snapshots()
    }

    fn install(
        &mut self,
        sink: Box<dyn SnapshotSink>,
        meta: &SnapshotMeta,
        keep_tail: bool,
    ) -> Result<(), StoreError> {
        self.store.install(sink, meta, keep_tail)
    }
}

/// A cluster whose disks can be stalled.
async fn stallable(
    data: &Path,
    with: impl Fn(NodeBuilder) -> NodeBuilder,
) -> (Cluster, Vec<Arc<Gate>>) {
    let mut cluster = Cluster::start(3, data, &with).await;
    (0..3).for_each(|position| cluster.stop(position));
    let gates: Vec<_> = (0..3).map(|_| Arc::new(Gate::default())).collect();
    for (position, gate) in gates.iter().enumerate() {
        let (id, address) = cluster.members[position];
        let store = SegmentedStore::open(&data.join(id.to_string())).map(Box::new).unwrap();
        let store = Box::new(Stalling { store, gate: Arc::clone(gate) });
        let node = with(Node::builder(id, address)).start_with_store(Journal::default(), store);
        cluster.nodes[position] = Some(node.unwrap());
    }
    (cluster, gates)
}

#[tokio::test]
async fn a_short_stall_of_a_disk_stops_no_heartbeat_and_causes_no_election() {
    let data = tempfile::tempdir().unwrap();
    let (cluster, gates) = stallable(data.path(), |builder| builder.timing(PATIENT)).await;
    let client = client(&cluster).await;
    client.call("before").await.unwrap();
    let leader = cluster.leader().await;
    cluster.until("equal logs", is_level).await;

    let before = terms(&cluster).await;
    let gate = &gates[leader];
    gate.set(true);
    // A majority with healthy disks goes on.
    let start = Instant::now();
    let mut count = 1_u64;
    while start.elapsed() < Duration::from_secs(1) {
        count += 1;
        let reply = client.call("during").await.unwrap();
        assert_eq!(reply.as_ref(), count.to_be_bytes());
    }
    assert_eq!(terms(&cluster).await, before);
    gate.set(false);
    cluster.until("equal logs", is_level).await;
    assert_eq!(terms(&cluster).await, before);
}

#[tokio::test]
async fn a_leader_whose_disk_stalls_for_long_gives_way() {
    for durability in [Durability::Sync, Durability::Interval] {
        let data = tempfile::tempdir().unwrap();
        let durable = |builder: NodeBuilder| builder.durability(durability);
        let (cluster, gates) = stallable(data.path(), durable).await;
        let client = client(&cluster).await;
        client.call("before").await.unwrap();
        let leader = cluster.leader().await;
        let stalled = NodeId(leader as u16 + 1);
        gates[leader].set(true);
        let mut count = 1_u64;
        let mut has_given_way = false;
        while !has_given_way {
            count += 1;
            let reply = client.call("during").await.unwrap();
            assert_eq!(reply.as_ref(), count.to_be_bytes());
            has_given_way = cluster.status().await.iter().all(|node| {
                let protocol = node.protocol.as_ref().unwrap();
                let stands = protocol.disk_stands_us > 0;
                let follows_another = protocol.leader.is_some_and(|leader| leader != stalled);
                follows_another && stands == (node.node == stalled)
            });
        }
        gates[leader].set(false);
        cluster.until("equal logs", is_level).await;
        let moves = |node: &NodeStatus| node.protocol.as_ref().unwrap().disk_stands_us == 0;
        cluster.until("disks that move", |nodes| nodes.iter().all(moves)).await;
        assert_eq!(client.query("").await.unwrap().as_ref(), count.to_be_bytes());
    }
}

#[tokio::test]
async fn a_slow_request_in_a_thread_causes_no_election() {
    let data = tempfile::tempdir().unwrap();
    let threaded = |builder: NodeBuilder| builder.execution(Execution::Thread).timing(PATIENT);
    let cluster = Cluster::start(3, data.path(), threaded).await;
    let client = client(&cluster).await;
    let before = terms(&cluster).await;
    let slow = PATIENT.election_max + Duration::from_millis(500);
    client.call(format!("sleep {}", slow.as_millis())).await.unwrap();
    let reply = client.call("after").await.unwrap();
    assert_eq!(reply.as_ref(), 2_u64.to_be_bytes());
    assert_eq!(terms(&cluster).await, before);
}

#[tokio::test]
async fn a_service_that_panics_stops_applying_and_says_where() {
    for execution in [Execution::Inline, Execution::Thread] {
        let data = tempfile::tempdir().unwrap();
        let cluster = Cluster::start(3, data.path(), |builder| builder.execution(execution)).await;
        let client = client(&cluster).await;
        client.call("fine").await.unwrap();
        // Every replica panics at this entry, so nobody answers (P42). Their cores go on.
        let stopped = |node: &NodeStatus| {
            let leader = node.protocol.as_ref().and_then(|protocol| protocol.leader);
            node.poisoned.is_some() && leader.is_some()
        };
        tokio::select! {
            biased;
            answer = client.call("panic") => panic!("nobody answers: {answer:?}"),
            () = cluster.until("poison", |status| status.iter().all(stopped)) => {}
        }
        for node in cluster.status().await {
            let poisoned = node.poisoned.unwrap();
            assert!(poisoned.contains("the command that breaks this service"), "{poisoned}");
        }
    }
}

#[tokio::test]
async fn a_leader_whose_service_panics_alone_gives_way() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, data.path(), |builder| builder).await;
    let client = client(&cluster).await;
    client.call("before").await.unwrap();
    let leader = NodeId(cluster.leader().await as u16 + 1);
    // Whoever was to answer it, it is answered, and so is what follows (P18, P42).
    for count in 2..20_u64 {
        let command = if count == 2 { format!("panic node-{leader}") } else { count.to_string() };
        assert_eq!(client.call(command).await.unwrap().as_ref(), count.to_be_bytes());
    }
    cluster
        .until("another leader", |status| {
            status.iter().all(|node| {
                let leads = node.protocol.as_ref().and_then(|protocol| protocol.leader);
                leads.is_some_and(|now| now != leader)
                    && node.poisoned.is_some() == (node.node == leader)
            })
        })
        .await;
}

#[tokio::test]
async fn a_query_that_panics_is_answered_and_the_service_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, data.path(), |builder| builder).await;
    let client = client(&cluster).await;
    client.call("fine").await.unwrap();
    for _ in 0..5 {
        assert_eq!(client.query("panic").await.unwrap_err(), CallError::QueryFailed);
    }
    assert_eq!(client.query("").await.unwrap().as_ref(), 1_u64.to_be_bytes());
    assert!(cluster.status().await.iter().all(|node| node.poisoned.is_none()));
}

#[tokio::test]
async fn a_cluster_that_was_stopped_goes_on_where_it_was() {
    for durability in [Durability::Sync, Durability::Interval, Durability::Memory] {
        let data = tempfile::tempdir().unwrap();
        let durable = |builder: NodeBuilder| builder.durability(durability);
        let mut cluster = Cluster::start(3, data.path(), durable).await;
        let before = client(&cluster).await;
        for count in 1..=50_u64 {
            assert_eq!(before.call("x").await.unwrap().as_ref(), count.to_be_bytes());
        }
        (0..3).for_each(|position| cluster.stop(position));
        (0..3).for_each(|position| cluster.restart(position));
        let after = client(&cluster).await;
        assert_eq!(after.query("").await.unwrap().as_ref(), 50_u64.to_be_bytes());
        assert_eq!(after.call("x").await.unwrap().as_ref(), 51_u64.to_be_bytes());
    }
}

#[tokio::test]
async fn a_replica_that_forgot_everything_recovers_before_it_votes() {
    // P37: in `memory` a restarted replica is another incarnation, until the leader names it.
    let data = tempfile::tempdir().unwrap();
    let in_memory = |builder: NodeBuilder| builder.durability(Durability::Memory);
    let mut cluster = Cluster::start(3, data.path(), in_memory).await;
    let client = client(&cluster).await;
    for _ in 0..50 {
        client.call("x").await.unwrap();
    }
    // Each of them once, so that in the end nobody has the incarnation of `init`.
    for position in 0..3 {
        cluster.leader().await;
        // What a killed process would have left: the disk as it was before the stop.
        let directory = data.path().join((position + 1).to_string());
        let image = data.path().join("image");
        copy_directory(&directory, &image);
        cluster.stop(position);
        std::fs::remove_dir_all(&directory).unwrap();
        std::fs::rename(&image, &directory).unwrap();
        cluster.restart(position);
        client.call("x").await.unwrap();
        cluster
            .until("recovery", |status| {
                is_level(status)
                    && status.iter().all(|node| !node.protocol.as_ref().unwrap().recovering)
            })
            .await;
    }
    assert_eq!(client.query("").await.unwrap().as_ref(), 53_u64.to_be_bytes());
}

#[tokio::test]
async fn a_late_replica_catches_up_by_log_and_by_snapshot() {
    let small = 1 << 16;
    for (log_bytes, by_snapshot) in [(64 << 20, false), (small, true)] {
        let data = tempfile::tempdir().unwrap();
        let sized = |builder: NodeBuilder| builder.log_bytes_max(log_bytes);
        let mut cluster = Cluster::start(3, data.path(), sized).await;
        let leader = cluster.leader().await;
        let late = (leader + 1) % 3;
        cluster.stop(late);
        let client = client(&cluster).await;
        for _ in 0..300 {
            client.call(vec![b'x'; 1000]).await.unwrap();
        }
        cluster.restart(late);
        cluster.until("equal logs", is_level).await;
        let id = NodeId(late as u16 + 1);
        let status = cluster.status().await;
        let late = status.iter().find(|node| node.node == id).unwrap();
        assert_eq!(late.counters.snapshots_installed > 0, by_snapshot, "{late:#?}");
        let protocol = late.protocol.as_ref().unwrap();
        assert_ne!(protocol.role, RoleStatus::Candidate);
        assert_eq!(client.query("").await.unwrap().as_ref(), 300_u64.to_be_bytes());
        for node in &status {
            assert!(node.protocol.as_ref().unwrap().log_bytes <= 2 * log_bytes as u64);
        }
    }
}

/// A journal whose first and third snapshot cannot be read: an error, then a panic, and each time
/// nothing is left of its state.
struct Unwilling {
    journal: Journal,
    reads: Arc<AtomicU32>,
}

impl StateMachine for Unwilling {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        self.journal.execute(context, command, reply);
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut Vec<u8>) {
        self.journal.query(context, query, reply);
    }

    fn snapshot(&self) -> SnapshotWriter {
        self.journal.snapshot()
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        if read == 0 || read == 2 {
            self.journal = Journal::default();
            assert_eq!(read, 0, "a service that panics while it reads a snapshot");
            return Err(io::Error::other("a service that cannot read a snapshot"));
        }
        self.journal.restore(snapshot)
    }
}

/// P36: it goes back to its own snapshot and log, and fetches another one.
#[tokio::test]
async fn a_replica_whose_service_cannot_read_a_snapshot_lives_and_catches_up() {
    for execution in [Execution::Inline, Execution::Thread] {
        let data = tempfile::tempdir().unwrap();
        let small = |builder: NodeBuilder| builder.log_bytes_max(1 << 16).execution(execution);
        let mut cluster = Cluster::start(3, data.path(), small).await;
        let leader = cluster.leader().await;
        let client = client(&cluster).await;
        for _ in 0..5 {
            client.call("early").await.unwrap();
        }
        cluster.until("equal logs", is_level).await;
        let late = (leader + 1) % 3;
        cluster.stop(late);
        for _ in 0..300 {
            client.call(vec![b'x'; 1000]).await.unwrap();
        }
        let (id, address) = cluster.members[late];
        let reads = Arc::new(AtomicU32::new(0));
        let service = Unwilling { journal: Journal::default(), reads: Arc::clone(&reads) };
        let builder = small(Node::builder(id, address).data(data.path().join(id.to_string())));
        cluster.nodes[late] = Some(builder.start(service).unwrap());
        cluster.until("equal logs", is_level).await;
        // Two that it could not read, each followed by its own, and one that it could.
        assert!(reads.load(Ordering::Relaxed) >= 5, "{reads:?}");
        assert_eq!(client.query("").await.unwrap().as_ref(), 305_u64.to_be_bytes());
        assert!(cluster.status().await.iter().all(|node| node.poisoned.is_none()));
    }
}
