//! Histories of operations on a replicated service, and what is checked of them.
//!
//! A history says what clients did and saw, and when. The checks are pure functions over it: they
//! know nothing of how the operations were done, on real processes or in a simulation.

mod checks;
mod history;

pub use checks::{FinalState, Findings, check};
pub use history::{Function, History, HistoryError, Operation, Outcome};
