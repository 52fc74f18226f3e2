//! Deterministic simulation of HovercRaft.
//!
//! The [`Stepper`] runs the protocol core of every replica, its application and its disk, clients
//! and a hostile network in one event loop on one thread. Everything derives from one number, so a
//! run that fails fails again; after every step a set of invariants is checked, each a file in
//! `invariants/` that names the rule it stands for.

mod agenda;
mod bounds;
pub mod bugs;
mod cli;
mod client;
mod clock;
mod coverage;
mod disk;
mod faults;
mod history;
mod html;
mod invariants;
mod limits;
mod network;
mod observed;
mod options;
mod replaced;
mod replica;
mod runner;
mod schedule;
mod seed;
mod service;
mod shrink;
mod stepper;
mod survivors;
mod sweep;
mod trace;
mod view;
mod workload;
#[cfg(madsim)]
mod world;
mod wrapped;

pub use cli::command_line;
pub use coverage::Coverage;
pub use faults::{Fault, FaultKind, Leaves, Sides, Target, Ways};
pub use html::html;
pub use invariants::Violation;
pub use observed::{Answered, Observed};
pub use options::{ClientOptions, ClusterOptions, DiskOptions, NetworkOptions, Options, Pace};
pub use runner::{Run, Runner};
pub use schedule::{Schedule, ScheduleError, Timed};
pub use seed::Seed;
pub use shrink::{Shrunk, shrink};
pub use stepper::Stepper;
pub use survivors::{Others, Shape, Survivors};
pub use sweep::{Failure, QUIET_THREAD, Report, Sweep};
pub use workload::{Command, Model, Operation, Planned, Registers, Workload};
pub use wrapped::Wrapped;
