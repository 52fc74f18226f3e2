//! The instrument: load, statistics, and what replicas cost.
//!
//! Start with [`run`](mod@run), which measures one workload in one mode. `docs/benchmarks.md` says
//! what each figure means.

pub mod count;
pub mod draw;
pub mod floor;
pub mod generator;
pub mod machine;
pub mod mark;
pub mod model;
pub mod netns;
pub mod peers;
mod processes;
pub mod report;
pub mod run;
pub mod self_test;
pub mod stats;
pub mod switch;
pub mod usage;
pub mod wire;
pub mod workload;
mod zipf;

pub use processes::{
    AdmissionSetup, Cluster, ClusterError, Look, Routed, RoutedSetup, Setup, SwitchSetup,
};
