//! Histories of operations on a replicated service, and what is checked of them.
//!
//! A history says what clients did and saw, and when. The checks are pure functions over it: they
//! know nothing of how the operations were done, on real processes or in a simulation.

pub mod check;
pub mod explain;
mod history;
pub mod html;
pub mod list_append;
pub mod model;
pub mod named;
mod value;
pub mod versions;
mod witness;

pub use check::{CheckError, check};
pub use history::{History, HistoryError, Operation, Outcome};
pub use model::Model;
pub use value::Value;
pub use witness::{WitnessError, check_witness};
