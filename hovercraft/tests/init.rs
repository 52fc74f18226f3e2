//! `init` of real nodes (P39): a birth that only some of the members have is passed on by them.

use std::{net::SocketAddrV4, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use hovercraft::{
    Client, ClusterLimits, Configuration, DigestKey, Member, Node, NodeId,
    admin::{self, Answer, Membership, Question},
    storage::Birth,
};
use r2p2::{
    AsyncLink, AsyncUdpLink, Link, MessageConfig, MessageReceiver, MessageSender, MessageType,
    Outbox, Time, UdpConfig,
};

mod support;

use support::Journal;

const PATIENCE: Duration = Duration::from_mins(1);

fn any_port() -> SocketAddrV4 {
    SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)
}

/// Asks a replica until it answers.
async fn ask(to: SocketAddrV4, question: &Question) -> Answer {
    let mut link = AsyncUdpLink::bind(&UdpConfig::new(any_port())).unwrap();
    let mut receiver = MessageReceiver::new(MessageConfig::default(), 1);
    let mut sender = MessageSender::new(1);
    loop {
        let mut outbox = Outbox::new();
        sender.send(MessageType::RaftRequest, to, &question.encode(), &mut outbox).unwrap();
        link.send(&mut outbox).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(200), link.readable()).await;
        let mut answers = Vec::new();
        link.receive(&mut |from, datagram| {
            let message = receiver.handle_datagram(Time::ZERO, from, datagram);
            if let Ok(Some(message)) = message {
                answers.push(Answer::decode(&message.body).unwrap());
            }
        })
        .unwrap();
        if let Some(answer) = answers.pop() {
            return answer;
        }
    }
}

async fn hello(to: SocketAddrV4) -> (Member, Option<Membership>) {
    let Answer::Hello { node: id, incarnation, membership, .. } = ask(to, &Question::Hello).await
    else {
        panic!("HELLO was answered with something else");
    };
    (Member { id, incarnation, address: to }, membership)
}

fn start(id: u16, data: &Path) -> Node {
    let builder = Node::builder(NodeId(id), any_port()).data(data.join(id.to_string()));
    builder.start(Journal::default()).unwrap()
}

/// An `init` that was killed has left one replica with a birth. The next one does not know the
/// secret in it, and yet gives all of them the same.
#[tokio::test]
async fn a_later_init_has_the_holder_pass_its_birth_on() {
    let data = tempfile::tempdir().unwrap();
    let nodes: Vec<_> = (1..=3).map(|id| start(id, data.path())).collect();
    let mut named = Vec::new();
    for node in &nodes {
        named.push(hello(node.address()).await.0);
    }
    let members: Vec<_> = named.iter().map(|member| (member.id, member.address)).collect();
    let configuration = Configuration::new(1, named, ClusterLimits::default());
    let digest_key = DigestKey::new([0x5ec2_e7aa, 0x5ec2_e7bb]);
    let birth = Birth { cluster: 77, node: NodeId(2), configuration, digest_key };
    let answer = ask(members[1].1, &Question::Init(birth.clone())).await;
    assert_eq!(answer, Answer::Initialised);

    let cluster = admin::init(&members, ClusterLimits::default(), PATIENCE).await.unwrap();
    assert_eq!(cluster, 77);
    for (_, address) in &members {
        assert_eq!(hello(*address).await.1, Some(Membership::from(&birth)));
    }
    // With different keys no follower would bind a body, and nothing would be committed.
    let addresses: Vec<_> = members.iter().map(|(_, address)| *address).collect();
    let client = Client::builder().members(addresses).connect().await.unwrap();
    for _ in 0..20 {
        client.call(&b"written"[..]).await.unwrap();
    }
    for id in 1..=3 {
        let state = data.path().join(format!("{id}/hard-state"));
        let mode = std::fs::metadata(state).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds the cluster's secret");
    }
    for node in nodes {
        node.stop().unwrap();
    }
}

/// The log of a replica is of the cluster that its hard state names: the digests say so.
#[tokio::test]
async fn a_log_of_another_cluster_is_refused_at_the_start() {
    let data = tempfile::tempdir().unwrap();
    for cluster in ["one", "other"] {
        let node = start(1, &data.path().join(cluster));
        let members = [(NodeId(1), node.address())];
        admin::init(&members, ClusterLimits::default(), PATIENCE).await.unwrap();
        let client = Client::builder().members([node.address()]).connect().await.unwrap();
        client.call(&b"written"[..]).await.unwrap();
        node.stop().unwrap();
    }
    let file = |cluster: &str| data.path().join(cluster).join("1/hard-state");
    std::fs::copy(file("other"), file("one")).unwrap();
    let builder = Node::builder(NodeId(1), any_port()).data(data.path().join("one/1"));
    let error = builder.start(Journal::default()).unwrap_err().to_string();
    assert!(error.contains("its digest is not that of its request"), "{error}");
}
