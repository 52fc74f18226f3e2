//! Entries, hard states and snapshots to store, drawn from a seed.

use std::{net::SocketAddrV4, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    digest::DigestKey,
    entry::{
        ClusterLimits, Configuration, Entry, Incarnation, Index, Member, NodeId, Payload, Term,
    },
    request::{Identity, Kind, Request, ReturnPath},
    storage::{Birth, Durability, HardState, SnapshotMeta},
};

/// A generator of numbers that need not be good, only the same everywhere (`SplitMix64`).
pub(in crate::storage) struct Sample(u64);

impl Sample {
    /// The secret of the cluster that a sample is of.
    pub(in crate::storage) const DIGEST_KEY: DigestKey = DigestKey::new([8, 9]);

    pub(in crate::storage) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(in crate::storage) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least `low` and at most `high`.
    pub(in crate::storage) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low + 1)
    }

    pub(in crate::storage) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// An entry of any payload; mostly requests, of any identity and kind, most of them small.
    pub(in crate::storage) fn entry(&mut self, term: Term) -> Entry {
        let size = match self.between(0, 19) {
            0 => self.between(5_000, 70_000),
            1..=3 => 0,
            _ => self.between(1, 200),
        };
        let payload = match self.between(0, 9) {
            0 => Payload::Noop,
            1 => Payload::Configuration(Arc::new(self.configuration())),
            _ => self.request(size as usize),
        };
        let is_request = matches!(payload, Payload::Request { .. });
        Entry {
            term,
            log_time_us: self.number(),
            session_delta_us: self.between(0, 1_000_000) as u32,
            payload,
            return_path: is_request.then(|| self.return_path()),
        }
    }

    pub(in crate::storage) fn entries(&mut self, term: Term, count: u64) -> Vec<Entry> {
        (0..count).map(|_| self.entry(term)).collect()
    }

    /// An entry with a body of `size` bytes.
    pub(in crate::storage) fn large_entry(&mut self, term: Term, size: usize) -> Entry {
        Entry {
            term,
            log_time_us: 1,
            session_delta_us: 2,
            payload: self.request(size),
            return_path: None,
        }
    }

    fn request(&mut self, size: usize) -> Payload {
        let (identity, lowest) = match self.between(0, 2) {
            0 => {
                let ReturnPath { address, request_id } = self.return_path();
                (Identity::Plain { address, request_id }, 0)
            }
            1 => (Identity::Session { client: 0, sequence: self.number() }, 0),
            _ => {
                let (client, sequence) = (self.number(), self.number());
                (Identity::Session { client, sequence }, self.number())
            }
        };
        let kind = Kind::from_number(self.between(0, 3) as u8).expect("there are four kinds");
        let body = Bytes::from(self.bytes(size));
        Payload::Request {
            replier: NodeId(self.between(0, 9) as u16),
            request: Arc::new(Request::new(Self::DIGEST_KEY, identity, lowest, kind, body)),
        }
    }

    fn return_path(&mut self) -> ReturnPath {
        ReturnPath { address: self.address(), request_id: self.number() as u16 }
    }

    fn address(&mut self) -> SocketAddrV4 {
        SocketAddrV4::new((self.number() as u32).into(), self.number() as u16)
    }

    pub(in crate::storage) fn configuration(&mut self) -> Configuration {
        let members = (1..=self.between(1, 7) as u16)
            .map(|id| Member {
                id: NodeId(id),
                incarnation: Incarnation(self.number()),
                address: self.address(),
            })
            .collect();
        let id = self.number();
        let limits = ClusterLimits {
            session_lifetime: Duration::from_nanos(self.number()),
            session_window: self.number() as u32,
            session_bytes_max: self.number(),
            sessions_max: self.number() as u32,
            request_bytes_max: self.number() as u32,
        };
        Configuration::new(id, members, limits)
    }

    /// Any hard state of a run that has not been stopped.
    pub(in crate::storage) fn hard_state(&mut self) -> HardState {
        let birth = Birth {
            cluster: self.number(),
            node: NodeId(self.number() as u16),
            configuration: self.configuration(),
            digest_key: Self::DIGEST_KEY,
        };
        let durability = match self.between(0, 2) {
            0 => Durability::Sync,
            1 => Durability::Interval,
            _ => Durability::Memory,
        };
        HardState {
            term: self.number(),
            vote: (self.between(0, 1) == 0).then(|| NodeId(self.number() as u16)),
            incarnation: Incarnation(self.number()),
            birth: (self.between(0, 3) > 0).then_some(birth),
            durability,
            clean: false,
        }
    }

    /// What stands for a snapshot of `data`.
    pub(in crate::storage) fn meta(
        &mut self,
        index: Index,
        term: Term,
        data: &[u8],
    ) -> SnapshotMeta {
        SnapshotMeta {
            index,
            term,
            configuration: self.configuration(),
            log_time_us: self.number(),
            size_bytes: data.len() as u64,
            checksum: crc32fast::hash(data),
            digest_key: Self::DIGEST_KEY,
        }
    }
}
