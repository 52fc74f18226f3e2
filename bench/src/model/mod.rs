//! The paper's Figures 7 to 11 on modelled machines: the real core, and links, network cards and
//! processors as queues. The costs of the machines are printed with every result.
//!
//! `HovercRaft++` is not modelled.

pub mod cores;
mod costs;
mod figures;
pub mod queue;
pub mod routing;
mod world;

pub use costs::Costs;
pub use figures::{Bar, Curve, Figure, Model, figures};
pub use world::{Load, Modelled, Service, System, model};
