//! The Redis protocol at a replica that survives its leader.

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Output, Stdio},
};

use hovercraft::NodeId;
use support::{Cluster, PATIENCE, until};
use tokio::time::timeout;

/// What `redis-benchmark` increments.
const KEY: &str = "counter:__rand_int__";

const REQUESTS: i64 = 6000;

/// Sets, gets and increments as many times, in this order; none if it is not installed.
fn start_benchmark(port: u16) -> Option<Child> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-t", "set,get,incr", "-c", "16", "--csv"]);
    command.args(["-p", &port.to_string(), "-n", &REQUESTS.to_string()]);
    match command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            eprintln!("skipped: cannot run redis-benchmark: {error}");
            None
        }
    }
}

/// Its output when it has ended.
async fn end(benchmark: Child) -> Output {
    let process = benchmark.id().to_string();
    let output = tokio::task::spawn_blocking(|| benchmark.wait_with_output());
    match timeout(PATIENCE, output).await {
        Ok(output) => output.expect("waiting does not panic").expect("its output can be read"),
        Err(_) => {
            // So that the test can end.
            let _ = Command::new("kill").arg(process).status();
            panic!("redis-benchmark does not end");
        }
    }
}

#[tokio::test]
async fn increments_at_a_survivor_are_executed_once_while_the_leader_dies() {
    // Held until all are found, so that they differ.
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    let addresses: [SocketAddr; 3] =
        listeners.each_ref().map(|listener| listener.local_addr().expect("bound"));
    drop(listeners);
    let settings = |id: NodeId| format!("resp = \"{}\"", addresses[usize::from(id.0) - 1]);
    let mut cluster = Cluster::start(settings).await;
    let leader = cluster.replicas.leader(PATIENCE).await.expect("a leader");
    let survivor = addresses[(leader + 1) % 3];
    let Some(benchmark) = start_benchmark(survivor.port()) else { return };

    let kv = cluster.kv();
    let total = async || {
        let value = kv.get(KEY).await.expect("there is a majority").unwrap_or_else(|| "0".into());
        str::from_utf8(&value).expect("a number").parse::<i64>().expect("a number")
    };
    let is_under_way = until(async || total().await > REQUESTS / 4);
    timeout(PATIENCE, is_under_way).await.expect("redis-benchmark increments");
    cluster.replicas.kill(leader).await.expect("it runs");
    let output = end(benchmark).await;

    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for test in ["\"SET\"", "\"GET\"", "\"INCR\""] {
        assert!(said.contains(test), "{said}");
    }
    // It would have ended with the first error: all increments are acknowledged, and none is unknown.
    assert_eq!(total().await, REQUESTS, "{said}");
}
