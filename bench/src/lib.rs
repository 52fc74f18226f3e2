//! Load and measurements: replicas as processes, closed-loop callers, and what both cost.

mod load;
pub mod mark;
mod processes;
mod redis;

pub use load::{Load, LoadError, Measured};
pub use processes::{Cluster, ClusterError, Setup};
