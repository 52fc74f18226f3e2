//! A counter, replicated on three machines: everything that wrapping a service takes.
//!
//! For this example the three replicas share a process and a temporary directory.

use std::{
    error::Error,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use hovercraft::{
    Client, ClusterLimits, Context, Node, NodeId, SnapshotWriter, StateMachine, admin,
};

/// The service: adds what commands say, and tells the sum to queries.
#[derive(Default)]
struct Counter {
    sum: i64,
}

impl StateMachine for Counter {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        // What a client sends is not to be trusted: anything but 8 bytes adds nothing.
        if let Ok(amount) = command.try_into() {
            self.sum = self.sum.wrapping_add(i64::from_be_bytes(amount));
        }
        self.query(context, b"", reply);
    }

    fn query(&self, _: &Context, _query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.sum.to_be_bytes());
    }

    fn snapshot(&self) -> SnapshotWriter {
        let sum = self.sum;
        Box::new(move |to: &mut dyn Write| to.write_all(&sum.to_be_bytes()))
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut sum = [0; 8];
        snapshot.read_exact(&mut sum)?;
        self.sum = i64::from_be_bytes(sum);
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let data = tempfile::tempdir()?;
    let (mut nodes, mut members) = (Vec::new(), Vec::new());
    for id in [1, 2, 3].map(NodeId) {
        let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let directory = data.path().join(id.to_string());
        let node = Node::builder(id, any_port).data(directory).start(Counter::default())?;
        members.push((id, node.address()));
        nodes.push(node);
    }
    // Once in the life of a cluster.
    admin::init(&members, ClusterLimits::default(), Duration::from_secs(5)).await?;

    let client = Client::builder().members(members.iter().map(|member| member.1)).connect().await?;
    for amount in 1..=10_i64 {
        client.call(amount.to_be_bytes().to_vec()).await?;
    }
    let sum = client.query("").await?;
    println!("1 + 2 + … + 10 = {}", i64::from_be_bytes(sum.as_ref().try_into()?));
    nodes.into_iter().try_for_each(Node::stop)?;
    Ok(())
}
