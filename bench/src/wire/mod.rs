//! What the leader says and hears, counted from the packets on the wire.
//!
//! The replicas' own counters are not asked: a socket of the kernel's packet family sees every datagram
//! on the loopback, and its R2P2 header and message say what it was for.

mod capture;
mod tally;

pub use capture::{Capture, CaptureError};
pub use tally::{Direction, Purpose, Tally};
