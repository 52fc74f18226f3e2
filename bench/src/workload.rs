//! What is asked of the replicas: the workloads of the paper's evaluation, and ours.

use bytes::Bytes;
use hovercraft_apps::{
    kv::{self, Condition, encode_request},
    synthetic::{Distribution, SyntheticRequest},
};
use serde::Serialize;

use crate::zipf::{Zipf, scramble};

/// A workload by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// 24-byte writes of 1 µs, 8-byte replies; the leader replies (Figure 7).
    Tiny,
    /// The same, with larger requests: say how large by --request-bytes (Figure 8).
    Size,
    /// The same, to be run with 3, 5, 7 and 9 replicas (Figure 9).
    Nodes,
    /// 6 kB replies (Figure 10).
    Replies,
    /// 10 µs bimodal, 75 % reads (Figure 11).
    Reads,
    /// As reads, and the leader is killed a third of the way (Figure 12).
    Failover,
    /// Half reads, half updates of 1 kB records.
    YcsbA,
    /// 95 % reads, 5 % updates.
    YcsbB,
    /// Reads.
    YcsbC,
    /// 95 % reads of the newest records, 5 % inserts.
    YcsbD,
    /// Half reads, half reads followed by an update, which here are one command.
    YcsbF,
    /// As tiny, every entry synced to disk before it is acknowledged.
    Durable,
    /// As tiny, with a share of all datagrams lost: needs --netns, and says how much by --loss.
    Loss,
}

/// What a workload needs of the cluster and asks by default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Needs {
    /// The service, as in a configuration file.
    pub service: &'static str,
    /// Who replies, as in a configuration file.
    pub policy: &'static str,
    /// B (P15).
    pub queue_bound: usize,
    /// As in a configuration file.
    pub durability: &'static str,
    /// Bytes of a request.
    pub request_bytes: usize,
}

/// How many records the key-value workloads have.
pub const RECORDS: u64 = 10_000;

/// The size of a record in YCSB: ten fields of a hundred bytes.
const RECORD_BYTES: usize = 1000;

impl Workload {
    /// As on the command line.
    pub fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self).expect("no workload is skipped");
        value.get_name().to_owned()
    }

    /// What it needs, unless the command line says otherwise.
    pub fn needs(self) -> Needs {
        let synthetic = Needs {
            service: "synthetic",
            policy: "jbsq",
            // What is in flight is bounded by this times the replicas, and that must not be what is
            // measured where the paper does not set it.
            queue_bound: 1024,
            durability: "memory",
            request_bytes: 24,
        };
        match self {
            // "The leader replies" (evaluation.md) makes the leader's work the same in all modes.
            Self::Tiny | Self::Nodes | Self::Loss => Needs { policy: "leader", ..synthetic },
            Self::Size => Needs { policy: "leader", request_bytes: 512, ..synthetic },
            Self::Durable => Needs { policy: "leader", durability: "sync", ..synthetic },
            Self::Replies => Needs { queue_bound: 128, ..synthetic },
            Self::Reads | Self::Failover => Needs { queue_bound: 32, ..synthetic },
            Self::YcsbA | Self::YcsbB | Self::YcsbC | Self::YcsbD | Self::YcsbF => {
                Needs { service: "kv", request_bytes: RECORD_BYTES, ..synthetic }
            }
        }
    }

    /// Whether records must be loaded first.
    pub fn needs_records(self) -> bool {
        self.needs().service == "kv"
    }

    /// Its requests, of so many bytes, drawn from a seed.
    pub fn requests(self, request_bytes: usize, seed: u64) -> Requests {
        let synthetic = |distribution, mean_ns, reply_bytes| {
            let request = SyntheticRequest { distribution, waits: false, mean_ns, reply_bytes };
            Shape::Same(request.encode(request_bytes))
        };
        let (shape, reads) = match self {
            Self::Tiny | Self::Size | Self::Nodes | Self::Durable | Self::Loss => {
                (synthetic(Distribution::Fixed, 1000, 8), 0.0)
            }
            Self::Replies => (synthetic(Distribution::Fixed, 1000, 6000), 0.0),
            Self::Reads | Self::Failover => (synthetic(Distribution::Bimodal, 10_000, 8), 0.75),
            Self::YcsbA => (Shape::records(Update::Set, false), 0.5),
            Self::YcsbB => (Shape::records(Update::Set, false), 0.95),
            Self::YcsbC => (Shape::records(Update::Set, false), 1.0),
            Self::YcsbD => (Shape::records(Update::Insert, true), 0.95),
            Self::YcsbF => (Shape::records(Update::ReadModifyWrite, false), 0.5),
        };
        Requests { shape, reads, rng: fastrand::Rng::with_seed(seed), inserted: 0 }
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Whether it only reads.
    pub is_query: bool,
    /// Its bytes.
    pub body: Bytes,
}

/// An endless sequence of requests.
#[derive(Debug, Clone)]
pub struct Requests {
    shape: Shape,
    /// The share that only reads.
    reads: f64,
    rng: fastrand::Rng,
    inserted: u64,
}

#[derive(Debug, Clone)]
enum Shape {
    /// All are equal.
    Same(Bytes),
    /// Of records.
    Records { zipf: Zipf, update: Update, newest: bool },
}

#[derive(Debug, Clone, Copy)]
enum Update {
    Set,
    Insert,
    ReadModifyWrite,
}

impl Shape {
    fn records(update: Update, newest: bool) -> Self {
        Self::Records { zipf: Zipf::new(RECORDS), update, newest }
    }
}

impl Requests {
    /// Always the same.
    pub fn same(body: Bytes, is_query: bool) -> Self {
        let reads = if is_query { 1.0 } else { 0.0 };
        Self { shape: Shape::Same(body), reads, rng: fastrand::Rng::with_seed(0), inserted: 0 }
    }

    /// The next one.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> Operation {
        let is_query = self.reads > 0.0 && self.rng.f64() < self.reads;
        let Shape::Records { zipf, update, newest } = &self.shape else {
            let Shape::Same(body) = &self.shape else { unreachable!("there are two shapes") };
            return Operation { is_query, body: body.clone() };
        };
        let rank = zipf.draw(&mut self.rng);
        let newest_key = RECORDS - 1 + self.inserted;
        let chosen = if *newest { newest_key - rank } else { scramble(rank) % RECORDS };
        if is_query {
            let one = kv::Operation::Get { key: key(chosen) };
            return Operation { is_query, body: encode_request(&kv::Request::One(one)) };
        }
        let request = match update {
            Update::Set => kv::Request::One(set(chosen)),
            Update::Insert => {
                self.inserted += 1;
                kv::Request::One(set(newest_key + 1))
            }
            Update::ReadModifyWrite => {
                kv::Request::Batch(vec![kv::Operation::Get { key: key(chosen) }, set(chosen)])
            }
        };
        Operation { is_query, body: encode_request(&request) }
    }
}

/// The commands that load the records, a few at a time.
pub fn loading() -> impl Iterator<Item = Bytes> {
    const AT_ONCE: u64 = 20;
    (0..RECORDS.div_ceil(AT_ONCE)).map(|batch| {
        let records = batch * AT_ONCE..((batch + 1) * AT_ONCE).min(RECORDS);
        let pairs = records.map(|record| (key(record), value())).collect();
        encode_request(&kv::Request::One(kv::Operation::SetMany { pairs }))
    })
}

fn key(record: u64) -> Bytes {
    format!("user{record:012}").into()
}

fn value() -> Bytes {
    Bytes::from_static(&[b'x'; RECORD_BYTES])
}

fn set(record: u64) -> kv::Operation {
    kv::Operation::Set { key: key(record), value: value(), condition: Condition::Always }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share_of_queries(workload: Workload) -> f64 {
        let mut requests = workload.requests(24, 9);
        (0..10_000).filter(|_| requests.next().is_query).count() as f64 / 10_000.0
    }

    #[test]
    fn the_mix_is_the_one_of_the_table() {
        for (workload, share) in [
            (Workload::Tiny, 0.0),
            (Workload::Reads, 0.75),
            (Workload::YcsbA, 0.5),
            (Workload::YcsbB, 0.95),
            (Workload::YcsbC, 1.0),
            (Workload::YcsbD, 0.95),
            (Workload::YcsbF, 0.5),
        ] {
            assert!((share_of_queries(workload) - share).abs() < 0.02, "{workload:?}");
        }
    }

    #[test]
    fn a_synthetic_request_has_the_size_that_was_asked() {
        for bytes in [24, 64, 512, 4096, 65_536] {
            assert_eq!(Workload::Size.requests(bytes, 1).next().body.len(), bytes);
        }
        let body = Workload::Reads.requests(24, 1).next().body;
        let request = SyntheticRequest::decode(&body).expect("one of the service's requests");
        assert_eq!(request.distribution, Distribution::Bimodal);
        assert_eq!(request.mean_ns, 10_000);
    }

    #[test]
    fn all_records_are_loaded() {
        assert_eq!(loading().count() as u64, RECORDS / 20);
    }
}
