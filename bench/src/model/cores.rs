//! Real cores, without a disk and without a network: what the model and the instruction count drive.

use std::net::{Ipv4Addr, SocketAddrV4};

use bytes::Bytes;
use hovercraft::{
    ClusterLimits, Configuration, DigestKey, Identity, Incarnation, Kind, Member, NodeId, Request,
    ReturnPath,
    core::{Core, Mode, Policy, Settings, Start},
    storage::{Birth, Durability, HardState, Loaded},
};
use r2p2::Time;

/// What the cores of a cluster have in common.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// How many.
    pub replicas: u16,
    /// What they do with requests.
    pub mode: Mode,
    /// Who replies.
    pub policy: Policy,
    /// B (P15).
    pub queue_bound: usize,
    /// Of all that is random.
    pub seed: u64,
}

impl Cores {
    /// The cores of a new cluster, all of them followers.
    pub fn start(&self, now: Time) -> Vec<Core> {
        let address = |id: u16| SocketAddrV4::new(Ipv4Addr::LOCALHOST, id);
        let members: Vec<_> = (1..=self.replicas)
            .map(|id| Member {
                id: NodeId(id),
                incarnation: Incarnation(id.into()),
                address: address(id),
            })
            .collect();
        let configuration = Configuration::new(1, members, ClusterLimits::default());
        (1..=self.replicas).map(|id| self.core(NodeId(id), configuration.clone(), now)).collect()
    }

    fn core(&self, node: NodeId, configuration: Configuration, now: Time) -> Core {
        let hard_state = HardState {
            term: 0,
            vote: None,
            incarnation: Incarnation(node.0.into()),
            birth: Some(Birth { cluster: 1, node, configuration, digest_key: DIGEST_KEY }),
            durability: Durability::Memory,
            clean: false,
        };
        let loaded = Loaded {
            hard_state: Some(hard_state.clone()),
            snapshot: None,
            first_index: 1,
            entries: Vec::new(),
            torn: None,
        };
        let settings = Settings {
            mode: self.mode,
            policy: self.policy,
            queue_bound: self.queue_bound,
            durability: Durability::Memory,
            // What is measured ends before a snapshot would be due.
            log_bytes_max: 1 << 32,
            ..Settings::default()
        };
        let seed = self.seed ^ u64::from(node.0) << 32;
        Core::new(Start { hard_state, loaded, settings, seed }, now)
    }
}

/// The secret of the cluster: any one costs the same.
const DIGEST_KEY: DigestKey = DigestKey::new([1, 2]);

/// The request with a number, of one client.
pub fn request(number: u64, is_read: bool, body: Bytes) -> Request {
    const CLIENT: u64 = 1 << 40;
    let identity = Identity::Session { client: CLIENT, sequence: number };
    let kind = if is_read { Kind::Read } else { Kind::Write };
    Request::new(DIGEST_KEY, identity, number, kind, body)
}

/// Where replies to it go.
pub fn return_path(number: u64) -> ReturnPath {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
    ReturnPath { address, request_id: number as u16 }
}
