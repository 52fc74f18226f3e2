//! What the client itself costs: calls of 24 bytes to a server in mode `unreplicated` on the same
//! host, from one client whose tasks share a thread.

use std::{
    error::Error,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use hovercraft::{Client, Context, Mode, Node, NodeId, SnapshotWriter, StateMachine};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

/// Answers everything with 8 bytes.
struct Null;

impl StateMachine for Null {
    fn execute(&mut self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&[0; 8]);
    }

    fn query(&self, _: &Context, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&[0; 8]);
    }

    fn snapshot(&self) -> SnapshotWriter {
        Box::new(|_| Ok(()))
    }

    fn restore(&mut self, _: &mut dyn Read) -> io::Result<()> {
        Ok(())
    }
}

/// The CPU time of this thread, in which the client is alone.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

async fn measure(
    client: &Client,
    outstanding: usize,
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    let (start, cpu_before) = (Instant::now(), cpu());
    let mut callers = JoinSet::new();
    for _ in 0..outstanding {
        let client = client.clone();
        callers.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let called = Instant::now();
                client.call(&[7; 24][..]).await?;
                latencies.push(called.elapsed());
            }
            Ok::<_, hovercraft::CallError>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(caller) = callers.join_next().await {
        latencies.extend(caller??);
    }
    let (elapsed, cpu) = (start.elapsed(), cpu().saturating_sub(cpu_before));
    latencies.sort_unstable();
    let count = latencies.len();
    println!(
        "{outstanding:5} outstanding: {:8.0} calls/s, {:6.2} µs of the client's CPU a call, \
         p50 {:?}, p99 {:?}",
        count as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / count as f64,
        latencies[count / 2],
        latencies[count * 99 / 100],
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let node = Node::builder(NodeId(1), any_port).mode(Mode::Unreplicated).start(Null)?;
    let client = Client::builder().members([node.address()]).connect().await?;
    for outstanding in [1, 50, 1000] {
        measure(&client, outstanding, Duration::from_secs(2)).await?;
    }
    node.stop()?;
    Ok(())
}
