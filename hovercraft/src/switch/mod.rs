//! What stands between clients and replicas: the roles of the paper's switch, each without I/O.

mod aggregator;
#[cfg(test)]
mod cluster;

pub use aggregator::{Aggregator, AggregatorCounters, AggregatorStatus};
