//! What a switch is worth: the messages at the leader (the paper's Table 1), overload with and without
//! admission, and what choosing workers by their queues does to the tail.

mod jbsq;
mod overload;
mod pictures;
mod table1;

use std::{
    net::SocketAddrV4,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

pub use jbsq::{Jbsq, JbsqPlan, Point as JbsqPoint, jbsq};
pub use overload::{Overload, OverloadPlan, Point as OverloadPoint, overload};
pub use pictures::instructions;
pub use table1::{Row, Table1, Table1Plan, table1};

use crate::{
    ClusterError,
    generator::{Cost, DriveError, PlainPlan, PlainRecord, Watch, drive_plain},
    netns::NetnsError,
    run::RunError,
    wire::CaptureError,
};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The replicas, or the load.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No network of our own to look at.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Packets cannot be seen.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Nobody leads, or it changed, again and again.
    #[error("the leader changed while it was measured, {0} times in a row")]
    NoLeader(usize),
}

impl From<ClusterError> for SwitchError {
    fn from(error: ClusterError) -> Self {
        Self::Run(error.into())
    }
}

impl From<DriveError> for SwitchError {
    fn from(error: DriveError) -> Self {
        Self::Run(error.into())
    }
}

impl From<hovercraft::admin::AdminError> for SwitchError {
    fn from(error: hovercraft::admin::AdminError) -> Self {
        Self::Run(error.into())
    }
}

/// Stops the generator of whoever stops waiting for it.
struct Stop(Arc<Watch>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs a generator in a thread of its own.
async fn drive(plan: PlainPlan, to: SocketAddrV4) -> Result<(PlainRecord, Cost), SwitchError> {
    let stop = Stop(Arc::default());
    let watch = Arc::clone(&stop.0);
    let driven = tokio::task::spawn_blocking(move || drive_plain(plan, to, &watch)).await;
    Ok(driven.expect("a generator does not panic")?)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
