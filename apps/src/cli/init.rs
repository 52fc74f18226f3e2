//! `hovercraft init`: makes a cluster of replicas that run with empty disks.

use std::{io::Write, time::Duration};

use hovercraft::{admin, storage::Durability};

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
    let (cluster, durability) = match arguments.cluster.resolve_with_durability() {
        Ok(resolved) => resolved,
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
            if let Some(warning) = warning(cluster.members.len(), durability) {
                // If nobody can read it there is nobody to warn.
                let _ = writeln!(std::io::stderr(), "hovercraft: warning: {warning}");
            }
            Exit::Good
        }
        Err(error @ admin::AdminError::Members(_)) => fail(Exit::Usage, error),
        // Some replicas may have it already; doing it again completes it.
        Err(error) => fail(Exit::Bad, error),
    }
}

/// Warns of a cluster that bears fewer unclean stops than its size promises (P37). Without a
/// configuration file the durability is unknown.
fn warning(replicas: usize, durability: Option<Durability>) -> Option<String> {
    let is_fragile = replicas == 1 || replicas.is_multiple_of(2);
    if !is_fragile || durability == Some(Durability::Sync) {
        return None;
    }
    let size = match replicas {
        1 => "a cluster of 1 replica".to_owned(),
        _ => format!("a cluster of {replicas} replicas"),
    };
    let bears = match replicas.saturating_sub(1) / 2 {
        0 => "does not survive one unclean stop".to_owned(),
        most => format!(
            "survives {most} unclean stop{} at a time, as one of {} does",
            if most == 1 { "" } else { "s" },
            replicas - 1
        ),
    };
    Some(format!(
        "in the durabilities \"interval\" and \"memory\" {size} {bears}; run an odd number of \
         replicas, 3 at least, or set durability = \"sync\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_bears_less_than_its_size_promises_is_warned_of() {
        use Durability::{Interval, Memory, Sync};
        let says = |replicas, durability, what: &str| {
            warning(replicas, durability).is_some_and(|warning| warning.contains(what))
        };
        assert!(says(1, Some(Memory), "1 replica does not survive one unclean stop"));
        assert!(says(2, Some(Interval), "2 replicas does not survive one unclean stop"));
        assert!(says(4, None, "4 replicas survives 1 unclean stop at a time, as one of 3 does"));
        assert!(says(6, Some(Memory), "6 replicas survives 2 unclean stops at a time"));
        for replicas in [3, 5, 7] {
            assert_eq!(warning(replicas, Some(Memory)), None);
        }
        for replicas in 1..8 {
            assert_eq!(warning(replicas, Some(Sync)), None);
        }
    }
}
