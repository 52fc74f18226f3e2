//! The load generator: arrivals, sessions, and what came of each request.
//!
//! [`Engine`] is without I/O: the time and the datagrams are passed in, so the self-test runs it in
//! virtual time. [`drive`] runs it on sockets.

mod drive;
mod engine;
mod plain;
mod recorder;
mod schedule;

pub use drive::{Cost, DriveError, Driven, Route, Watch, drive};
pub use engine::{Engine, Pace, Plan};
pub use plain::{PlainPlan, PlainRecord, drive_plain};
pub use recorder::{Record, Sample, latencies};
pub use schedule::Poisson;
