//! Finds the cluster that the replicas asked by `init` belong to already, if any (P39).
//!
//! A module of its own because a wrong answer here destroys data: a second cluster made of a
//! replica whose disk was lost would begin empty.

use std::net::SocketAddrV4;

use super::{AdminError, Membership};
use crate::entry::{Member, Term};

/// Answer of a replica about itself.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) member: Member,
    /// The cluster that its disk belongs to.
    pub(super) membership: Option<Membership>,
    /// The cluster whose replicas speak to it as to a member, although its disk is empty.
    pub(super) counted_by: Option<u64>,
    /// The highest term that it has seen.
    pub(super) term: Term,
}

impl Found {
    /// Its address and its cluster, if its disk belongs to one.
    fn place(&self) -> Option<(SocketAddrV4, u64)> {
        Some((self.member.address, self.membership.as_ref()?.cluster))
    }

    /// True if it belongs to a cluster and has taken part in an election: before the first one
    /// there is no log.
    fn holds_data(&self) -> bool {
        self.membership.is_some() && self.term > 0
    }
}

/// Returns the cluster that some of the replicas belong to, into which the others may be taken too,
/// and the address of one that does; none if there is no cluster yet. Refuses whatever would make a
/// second cluster of a member's remains.
pub(super) fn existing(found: &[Found]) -> Result<Option<(SocketAddrV4, &Membership)>, AdminError> {
    let born = found.iter().find_map(|it| Some((it.member.address, it.membership.as_ref()?)));
    let Some((holder, membership)) = born else {
        return match found.iter().find_map(|it| Some((it.member, it.counted_by?))) {
            None => Ok(None),
            Some((member, cluster)) => Err(lost(member, cluster)),
        };
    };
    let clusters: Vec<_> = found.iter().filter_map(Found::place).collect();
    let cluster = membership.cluster;
    if clusters.iter().any(|(_, other)| *other != cluster) {
        return Err(several(found, clusters));
    }
    let members = &membership.configuration.members;
    let place = |member: &Member| (member.id, member.address);
    if !members.iter().map(place).eq(found.iter().map(|it| place(&it.member))) {
        let members = members.iter().map(|it| it.address).collect::<Vec<_>>();
        let members = of_addresses(&members);
        return Err(AdminError::OtherCluster { address: holder, cluster, members });
    }
    for (it, named) in found.iter().zip(members).filter(|(it, _)| it.membership.is_none()) {
        if it.member.incarnation != named.incarnation {
            return Err(
                if found.iter().any(Found::holds_data) || may_have_quorum(cluster, found) {
                    lost(it.member, cluster)
                } else {
                    // It was emptied before the others ever met: nobody can miss what they hold.
                    let to_empty = clusters.iter().map(|(address, _)| *address).collect();
                    AdminError::Unfinished { clusters, to_empty }
                },
            );
        }
        if let Some(other) = it.counted_by.filter(|by| *by != cluster) {
            return Err(lost(it.member, other));
        }
    }
    Ok(Some((holder, membership)))
}

/// The error for replicas of several clusters: names those to empty, if that loses nothing.
fn several(found: &[Found], clusters: Vec<(SocketAddrV4, u64)>) -> AdminError {
    let of = |cluster: u64| {
        move |it: &&Found| it.membership.as_ref().is_some_and(|other| other.cluster == cluster)
    };
    // The one to keep: with data, else one that may have a quorum, else that of most replicas.
    let worth = |cluster: u64| {
        let holds_data = found.iter().filter(of(cluster)).any(Found::holds_data);
        (holds_data, may_have_quorum(cluster, found), found.iter().filter(of(cluster)).count())
    };
    let kept = clusters.iter().map(|(_, cluster)| *cluster).max_by_key(|it| worth(*it));
    let others: Vec<_> = found
        .iter()
        .filter(|it| it.membership.as_ref().is_some_and(|other| Some(other.cluster) != kept))
        .collect();
    if others.iter().any(|it| it.holds_data()) {
        return AdminError::TwoClusters { clusters };
    }
    let to_empty = others.iter().map(|it| it.member.address).collect();
    AdminError::Unfinished { clusters, to_empty }
}

/// True if enough replicas may belong to a cluster for it to be at work, counting those that were
/// not asked.
fn may_have_quorum(cluster: u64, found: &[Found]) -> bool {
    let memberships = found.iter().filter_map(|it| it.membership.as_ref());
    let mut holders = memberships.filter(|membership| membership.cluster == cluster).peekable();
    let Some(configuration) = holders.peek().map(|membership| &membership.configuration) else {
        return false;
    };
    let is_asked = |member: &&Member| found.iter().any(|it| it.member.address == member.address);
    let members = &configuration.members;
    let unseen = members.len() - members.iter().filter(is_asked).count();
    holders.count() + unseen >= configuration.quorum()
}

fn lost(Member { id: node, address, .. }: Member, cluster: u64) -> AdminError {
    AdminError::LostDisk { address, node, cluster }
}

/// A sentence about a replica with an empty disk that a cluster counts as a member.
pub fn lost_disk(cluster: u64) -> String {
    format!("it was a member of cluster {cluster:016x}, and its disk is empty")
}

/// The addresses of replicas, each with its cluster, for a message.
pub(super) fn of_clusters(clusters: &[(SocketAddrV4, u64)]) -> String {
    let each = |(address, cluster): &(SocketAddrV4, u64)| format!("{address} to {cluster:016x}");
    clusters.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// The addresses of replicas, for a message.
pub(super) fn of_addresses(addresses: &[SocketAddrV4]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{ClusterLimits, Configuration, Incarnation, NodeId};

    fn member(node: u16, incarnation: u64) -> Member {
        let address = SocketAddrV4::new([10, 0, 0, node as u8].into(), 7000);
        Member { id: NodeId(node), incarnation: Incarnation(incarnation), address }
    }

    fn empty(node: u16, incarnation: u64) -> Found {
        Found { member: member(node, incarnation), membership: None, counted_by: None, term: 0 }
    }

    /// A replica of a cluster of replicas 1 to 3, whose disks were 10 to 12 when it was made.
    fn of_cluster(node: u16, incarnation: u64, cluster: u64) -> Found {
        let members = (1..=3).map(|node| member(node, 9 + u64::from(node))).collect();
        let configuration = Configuration::new(1, members, ClusterLimits::default());
        let membership = Some(Membership { cluster, configuration });
        Found { membership, term: 1, ..empty(node, incarnation) }
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
        assert_eq!(existing(&found).unwrap().unwrap().1.cluster, 7);
        // Replica 1 has drawn another incarnation since, as it does in `interval`.
        let found = [of_cluster(1, 99, 7), of_cluster(2, 11, 7), of_cluster(3, 12, 7)];
        assert_eq!(existing(&found).unwrap().unwrap().1.cluster, 7);
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

    #[test]
    fn what_holds_nothing_may_be_emptied_and_is_named() {
        let unused = |found: Found| Found { term: 0, ..found };
        // Replica 2 was emptied before the first election.
        let text = refused(&[unused(of_cluster(1, 10, 7)), empty(2, 20), empty(3, 12)]);
        assert!(text.contains("empty the data directory of 10.0.0.1:7000, which holds"), "{text}");
        // Two inits for different members: the cluster with data is kept, whatever its place.
        let text = refused(&[unused(of_cluster(1, 10, 8)), of_cluster(2, 11, 7), empty(3, 12)]);
        assert!(text.contains("empty the data directory of 10.0.0.1:7000, which holds"), "{text}");
        let text = refused(&[of_cluster(1, 10, 8), unused(of_cluster(2, 11, 7)), empty(3, 12)]);
        assert!(text.contains("empty the data directory of 10.0.0.2:7000, which holds"), "{text}");
        let text = refused(&[of_cluster(1, 10, 8), of_cluster(2, 11, 7), empty(3, 12)]);
        assert!(!text.contains("empty"), "{text}");
    }
}
