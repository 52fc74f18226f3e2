//! What stands between clients and replicas: the roles of the paper's switch, each without I/O, and
//! a process that has any of them.

mod admission;
mod aggregator;
#[cfg(test)]
mod cluster;
mod front;
mod heard;
mod members;
mod process;
mod status;

pub use admission::{AdmissionConfig, AdmissionCounters, SwitchAdmission};
pub use aggregator::{Aggregator, AggregatorCounters, AggregatorStatus};
pub use front::{Switch, SwitchConfig};
pub use process::RunningSwitch;
pub use r2p2::{RouterConfig, Routing};
pub use status::{AdmissionStatus, FanOutCounters, RouterStatus, SwitchStatus};
