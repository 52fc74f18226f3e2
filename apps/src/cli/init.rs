//! `hovercraft init`: makes a cluster of replicas that run with empty disks.

use std::time::Duration;

use hovercraft::admin;

use super::{ClusterArguments, Exit, fail, runtime};

/// Make a cluster of running replicas that have empty data directories.
///
/// All of them must be running: they are told who the members are, and the command ends when each
/// has that on its disk. Doing it again does no harm. A replica with an empty directory that was
/// never part of the cluster's first configuration does not join by itself.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,

    /// How long to wait for each replica, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u16,
}

pub(super) fn run(arguments: Arguments) -> Exit {
    let cluster = match arguments.cluster.resolve() {
        Ok(cluster) => cluster,
        Err(error) => return fail(Exit::Usage, error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Bad, error),
    };
    let timeout = Duration::from_secs(arguments.timeout.into());
    match runtime.block_on(admin::init(&cluster.members, cluster.limits, timeout)) {
        Ok(number) => {
            println!("cluster {number:016x} of {} replicas", cluster.members.len());
            Exit::Good
        }
        Err(error @ admin::AdminError::Members(_)) => fail(Exit::Usage, error),
        // Some replicas may have it already; doing it again completes it.
        Err(error) => fail(Exit::Bad, error),
    }
}
