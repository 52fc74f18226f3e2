//! Clusters behind a switch that dies.

mod support;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::{Duration, Instant},
};

use hovercraft::{
    Client, Mode, Node, NodeId,
    admin::{self, NodeStatus},
    switch::{AdmissionConfig, RouterConfig, Routing, RunningSwitch, SwitchConfig, SwitchStatus},
};
use r2p2::{CallSettings, Policy};
use support::{Cluster, Journal, PATIENCE, PATIENT, is_level};

/// Three replicas behind a switch that does everything for them.
struct Bench {
    cluster: Cluster,
    switch: Option<RunningSwitch>,
    address: SocketAddrV4,
    config: SwitchConfig,
}

impl Bench {
    async fn start(data: &Path, limit: usize) -> Self {
        // First without replicas, because they must know where it is.
        let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let alone = SwitchConfig { aggregates: true, ..SwitchConfig::default() };
        let switch = RunningSwitch::start(any_port, alone, Duration::ZERO).unwrap();
        let address = switch.address();
        let cluster = Cluster::start(3, data, |builder| {
            let builder = builder.mode(Mode::HovercRaftPlusPlus).timing(PATIENT);
            builder.aggregator(address).switch(address)
        })
        .await;
        switch.stop().unwrap();
        let age_max = Duration::from_millis(200);
        let config = SwitchConfig {
            members: cluster.addresses().collect(),
            admission: Some(AdmissionConfig { limit, age_max, slo: None }),
            aggregates: true,
            router: None,
        };
        let mut bench = Self { cluster, switch: None, address, config };
        bench.start_switch();
        bench
    }

    fn start_switch(&mut self) {
        let started = RunningSwitch::start(self.address, self.config.clone(), Duration::ZERO);
        self.switch = Some(started.unwrap());
    }

    /// A client of a cluster with a leader: while there is none it cannot tell that from a dead
    /// switch, and goes around it.
    async fn client(&self) -> Client {
        self.cluster.leader().await;
        let client = Client::builder().members(self.cluster.addresses()).switch(self.address);
        client.timeout(PATIENCE).connect().await.unwrap()
    }

    async fn status(&self) -> SwitchStatus {
        admin::switch_status(self.address, PATIENCE).await.unwrap()
    }

    /// Waits until the leader sends by the aggregator.
    async fn until_aggregated(&self) {
        let found =
            |node: &NodeStatus| node.counters.aggregator_found > node.counters.aggregator_lost;
        self.cluster.until("an aggregator that is used", |all| all.iter().any(found)).await;
    }
}

#[tokio::test]
async fn everything_goes_by_the_switch_and_around_it_when_it_is_gone() {
    let data = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(data.path(), 100).await;
    bench.until_aggregated().await;
    let client = bench.client().await;
    let mut count = 0_u64;
    let mut call = async |what: &'static str| {
        count += 1;
        assert_eq!(client.call(what).await.unwrap().as_ref(), count.to_be_bytes());
    };
    // A client that has waited for long goes around it too, so on a busy machine it may take more.
    let goes_by_switch = |status: &SwitchStatus| {
        let admission = status.admission.expect("it admits");
        let (serving, counters) = status.aggregator.expect("it aggregates");
        let fan_out = status.fan_out.expect("it passes on");
        let is_used = serving.commit >= 50 && counters.commits_announced >= 50;
        is_used && admission.counters.admitted >= 50 && fan_out.packets_out >= 3 * 50
    };
    let since = Instant::now();
    while !goes_by_switch(&bench.status().await) {
        call("a").await;
        assert!(since.elapsed() < PATIENCE, "{:?}", bench.status().await);
    }

    let terms = |status: &[NodeStatus]| -> Vec<_> {
        status.iter().filter_map(|node| Some(node.protocol.as_ref()?.term)).collect()
    };
    let before = terms(&bench.cluster.status().await);
    bench.switch.take().unwrap().stop().unwrap();
    for _ in 0..50 {
        call("b").await;
    }
    // P32: without an election.
    assert_eq!(terms(&bench.cluster.status().await), before);
    bench.start_switch();
    bench.until_aggregated().await;
    bench.cluster.until("equal logs", is_level).await;
    for _ in 0..10 {
        call("c").await;
    }
}

#[tokio::test]
async fn what_is_too_much_waits_and_nothing_leaks() {
    // P24: room for two, and many callers.
    let data = tempfile::tempdir().unwrap();
    let bench = Bench::start(data.path(), 2).await;
    let client = bench.client().await;
    let calls = (0..40).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.call("a").await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let admission = bench.status().await.admission.expect("it admits");
    let counters = admission.counters;
    assert!(counters.refused_full + counters.refused_unfair > 0, "{counters:?}");
    let reply = client.query("count").await.unwrap();
    assert_eq!(reply.as_ref(), 40_u64.to_be_bytes());
}

#[tokio::test]
async fn large_requests_and_replies_pass_a_switch() {
    // P4: the first packet is admitted, and the leader asks for the rest.
    let data = tempfile::tempdir().unwrap();
    let bench = Bench::start(data.path(), 100).await;
    let client = bench.client().await;
    for count in 1..=5_u64 {
        let command = vec![count as u8; 100_000];
        assert_eq!(client.call(command).await.unwrap().as_ref(), count.to_be_bytes());
    }
    bench.cluster.until("equal logs", is_level).await;
}

#[tokio::test]
async fn a_router_gives_requests_to_workers_and_does_without_a_dead_one() {
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let alone = SwitchConfig { aggregates: true, ..SwitchConfig::default() };
    let switch = RunningSwitch::start(any_port, alone, Duration::ZERO).unwrap();
    let address = switch.address();
    switch.stop().unwrap();
    let worker = |id| {
        let worker = Node::builder(NodeId(id), any_port).mode(Mode::Unreplicated).switch(address);
        worker.start(Journal::default()).unwrap()
    };
    let mut workers = vec![worker(1), worker(2)];
    let router = RouterConfig {
        workers: workers.iter().map(Node::address).collect(),
        routing: Routing::Jbsq(2),
        // Longer than a worker that lives takes, even on a busy machine.
        age_max: Duration::from_secs(3),
        waiting_max: 100,
    };
    let config = SwitchConfig { router: Some(router), ..SwitchConfig::default() };
    let switch = RunningSwitch::start(address, config, Duration::ZERO).unwrap();
    let settings = CallSettings {
        timeout: PATIENCE,
        retry_after: Some(Duration::from_millis(200)),
        policy: Policy::LoadBalance,
        original_server: true,
    };
    let client = r2p2::Client::connect_with(address, settings).await.unwrap();
    for _ in 0..20 {
        client.call("a").await.unwrap();
    }
    // A large one: the worker asks the client itself for the rest.
    client.call(vec![1; 20_000]).await.unwrap();
    let router = |status: SwitchStatus| status.router.expect("it routes");
    // A worker answers the client first, and tells the switch then.
    let told = async {
        let asked = || admin::switch_status(address, PATIENCE);
        while router(asked().await.unwrap()).answered < 21 {}
    };
    tokio::time::timeout(PATIENCE, told).await.expect("all of it is told");
    workers.pop().unwrap().stop().unwrap();
    for _ in 0..20 {
        client.call("b").await.unwrap();
    }
    let asked = router(admin::switch_status(address, PATIENCE).await.unwrap());
    assert_eq!(asked.workers_lost, 1, "{asked:?}");
    switch.stop().unwrap();
    workers.pop().unwrap().stop().unwrap();
}
