//! Deterministic simulation of HovercRaft.
//!
//! The [`Stepper`] runs the protocol core of every replica, its application and its disk, clients
//! and a hostile network in one event loop on one thread. Everything derives from one number, so a
//! run that fails fails again; after every step a set of invariants is checked, each a file in
//! `invariants/` that names the rule it stands for.

mod agenda;
mod client;
mod clock;
mod coverage;
mod disk;
mod faults;
mod history;
mod invariants;
mod network;
mod options;
mod replica;
mod seed;
mod service;
mod stepper;
mod sweep;
mod trace;

pub use client::ClientOptions;
pub use coverage::Coverage;
pub use disk::DiskOptions;
pub use faults::{Cut, Fault, FaultKind, FaultOptions, Target};
pub use invariants::Violation;
pub use network::NetworkOptions;
pub use options::Options;
pub use replica::Pace;
pub use seed::Seed;
pub use service::Operation;
pub use stepper::Stepper;
pub use sweep::{Failure, replay, run_seed, run_seeds};
