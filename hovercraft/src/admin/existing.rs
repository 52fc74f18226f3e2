//! Finds the cluster that the replicas asked by `init` belong to already, if any (P39).
//!
//! A module of its own because a wrong answer here destroys data: a second cluster made of a
//! replica whose disk was lost would begin empty.

use std::net::SocketAddrV4;

use super::AdminError;
use crate::{entry::Member, storage::Birth};

/// What a replica said of itself.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) member: Member,
    /// The cluster that its disk belongs to.
    pub(super) birth: Option<Birth>,
    /// The cluster whose replicas speak to it as to a member, although its disk is empty.
    pub(super) counted_by: Option<u64>,
}

/// Returns the birth that some of the replicas have, which the others may be given too; none if
/// there is no cluster yet. Refuses whatever would make a second cluster of a member's remains.
pub(super) fn existing(found: &[Found]) -> Result<Option<&Birth>, AdminError> {
    let mut born = found.iter().filter_map(|it| Some((it.member.address, it.birth.as_ref()?)));
    let Some((first, birth)) = born.next() else {
        return match found.iter().find_map(|it| Some((it.member, it.counted_by?))) {
            None => Ok(None),
            Some((member, cluster)) => Err(lost(member, cluster)),
        };
    };
    for (address, other) in born {
        if other.cluster != birth.cluster {
            let clusters = [(first, birth.cluster), (address, other.cluster)];
            return Err(AdminError::TwoClusters { clusters });
        }
    }
    let members = &birth.configuration.members;
    let place = |member: &Member| (member.id, member.address);
    if !members.iter().map(place).eq(found.iter().map(|it| place(&it.member))) {
        let members = members.iter().map(|it| it.address.to_string()).collect::<Vec<_>>();
        return Err(AdminError::OtherCluster {
            address: first,
            cluster: birth.cluster,
            members: members.join(","),
        });
    }
    for (it, named) in found.iter().zip(members) {
        let is_empty = it.birth.is_none();
        if is_empty && it.member.incarnation != named.incarnation {
            return Err(lost(it.member, birth.cluster));
        }
        if let Some(cluster) = it.counted_by.filter(|by| is_empty && *by != birth.cluster) {
            return Err(lost(it.member, cluster));
        }
    }
    Ok(Some(birth))
}

fn lost(Member { id: node, address, .. }: Member, cluster: u64) -> AdminError {
    AdminError::LostDisk { address, node, cluster }
}

/// A sentence about a replica with an empty disk that a cluster counts as a member.
pub fn lost_disk(cluster: u64) -> String {
    format!("it was a member of cluster {cluster:016x}, and its disk is empty")
}

/// The address of a replica and its cluster, for a message.
pub(super) fn of_cluster((address, cluster): &(SocketAddrV4, u64)) -> String {
    format!("{address} to {cluster:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        entry::{ClusterLimits, Configuration, Incarnation, NodeId},
        storage::Birth,
    };

    fn member(node: u16, incarnation: u64) -> Member {
        let address = SocketAddrV4::new([10, 0, 0, node as u8].into(), 7000);
        Member { id: NodeId(node), incarnation: Incarnation(incarnation), address }
    }

    fn empty(node: u16, incarnation: u64) -> Found {
        Found { member: member(node, incarnation), birth: None, counted_by: None }
    }

    /// A replica of a cluster of replicas 1 to 3, whose disks were 10 to 12 when it was made.
    fn of_cluster(node: u16, incarnation: u64, cluster: u64) -> Found {
        let members = (1..=3).map(|node| member(node, 9 + u64::from(node))).collect();
        let configuration = Configuration { id: 1, members, limits: ClusterLimits::default() };
        let birth = Some(Birth { cluster, node: NodeId(node), configuration });
        Found { birth, ..empty(node, incarnation) }
    }

    fn refused(found: &[Found]) -> String {
        existing(found).unwrap_err().to_string()
    }

    #[test]
    fn a_cluster_is_made_of_replicas_that_no_cluster_counts() {
        assert_eq!(existing(&[empty(1, 10), empty(2, 11), empty(3, 12)]).unwrap(), None);
    }

    /// The first try has reached one or two of three.
    #[test]
    fn what_an_earlier_try_has_begun_is_finished() {
        let found =
            [of_cluster(1, 10, 7), empty(2, 11), Found { counted_by: Some(7), ..empty(3, 12) }];
        assert_eq!(existing(&found).unwrap().unwrap().cluster, 7);
        // Replica 1 has drawn another incarnation since, as it does in `interval`.
        let found = [of_cluster(1, 99, 7), of_cluster(2, 11, 7), of_cluster(3, 12, 7)];
        assert_eq!(existing(&found).unwrap().unwrap().cluster, 7);
    }

    #[test]
    fn a_lost_disk_is_named_and_makes_no_second_cluster() {
        let text = refused(&[of_cluster(1, 10, 7), of_cluster(2, 11, 7), empty(3, 13)]);
        assert!(text.contains("10.0.0.3:7000") && text.contains("its disk is empty"), "{text}");
        // The two lost ones alone; the third still speaks to one of them.
        let text = refused(&[empty(2, 20), Found { counted_by: Some(7), ..empty(3, 13) }]);
        assert!(text.contains("0000000000000007") && text.contains("10.0.0.3:7000"), "{text}");
        // A member of another cluster is not taken into this one.
        let elsewhere = Found { counted_by: Some(8), ..empty(3, 12) };
        let text = refused(&[of_cluster(1, 10, 7), of_cluster(2, 11, 7), elsewhere]);
        assert!(text.contains("0000000000000008"), "{text}");
    }

    #[test]
    fn other_members_and_other_clusters_are_refused_by_name() {
        let text = refused(&[of_cluster(1, 10, 7), of_cluster(2, 11, 7), of_cluster(3, 12, 8)]);
        assert!(text.contains("10.0.0.1:7000") && text.contains("10.0.0.3:7000"), "{text}");
        let text = refused(&[of_cluster(1, 10, 7), of_cluster(2, 11, 7), empty(4, 13)]);
        assert!(text.contains("10.0.0.1:7000,10.0.0.2:7000,10.0.0.3:7000"), "{text}");
        assert!(!text.contains("empty data directories"), "{text}");
    }
}
