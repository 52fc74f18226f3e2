//! Notes on a replica that several answers together tell: whether its disk was lost, and who else
//! may not be counted.
//!
//! A module of its own because an operator acts on these sentences, and a wrong step loses data.

use std::net::SocketAddrV4;

use hovercraft::{
    Configuration,
    admin::{NodeStatus, lost_disk},
};

/// The address and the answer of each replica that gave one.
pub(super) type Answers<'a> = &'a [(SocketAddrV4, &'a NodeStatus)];

/// Says why a replica without a cluster has none, and what is safe to do.
pub(super) fn without_cluster(address: SocketAddrV4, own: &NodeStatus, all: Answers<'_>) -> String {
    let counting = all.iter().filter_map(|(_, status)| {
        let (cluster, configuration) = (status.cluster?, status.configuration.as_ref()?);
        let member = configuration.members.iter().find(|member| member.address == address)?;
        Some((cluster, configuration, member))
    });
    // Not every replica has the newest configuration; and two clusters may count an address.
    let counted = counting.max_by_key(|(cluster, configuration, _)| {
        (Some(*cluster) == own.counted_by, *cluster, configuration.id)
    });
    match (counted, own.counted_by) {
        (Some((cluster, _, member)), _) if member.incarnation == own.incarnation => {
            format!("init of cluster {cluster:016x} is not finished: run `hovercraft init` again")
        }
        (Some((cluster, configuration, _)), _) => {
            let members = count(cluster, configuration, all);
            format!("{}; do not run init; {members}", lost_disk(cluster))
        }
        (None, Some(cluster)) => format!(
            "{} or its init is not finished; do not make another cluster of it; ask its other \
             members with `hovercraft status`",
            lost_disk(cluster)
        ),
        (None, None) => {
            "no cluster yet; `hovercraft init` makes one, of replicas that never were in one".into()
        }
    }
}

/// Says what a recovering replica may have lost, who else is recovering, and what is safe to do.
pub(super) fn recovering(own: &NodeStatus, all: Answers<'_>) -> String {
    let missing = own.missing.as_deref().unwrap_or(
        "an earlier run may have lost what it acknowledged, and it has not caught up since",
    );
    let text = format!("recovering: {missing}; leave its data directory as it is");
    let Some(cluster) = own.cluster else { return text };
    // Its own configuration may be older than that of others.
    let known = all.iter().filter(|(_, status)| status.cluster == Some(cluster));
    let known = known.filter_map(|(_, status)| status.configuration.as_ref());
    let known = known.chain(&own.configuration);
    let Some(configuration) = known.max_by_key(|it| it.id) else { return text };
    let others: Vec<String> = all
        .iter()
        .filter(|(_, it)| it.cluster == Some(cluster) && it.node != own.node && is_recovering(it))
        .map(|(_, it)| it.node.to_string())
        .collect();
    let others = match &others[..] {
        [] => String::new(),
        [other] => format!("; replica {other} is recovering too"),
        [..] => format!("; replicas {} are recovering too", others.join(", ")),
    };
    format!("{text}{others}; {}", count(cluster, configuration, all))
}

fn is_recovering(status: &NodeStatus) -> bool {
    status.protocol.as_ref().is_some_and(|protocol| protocol.recovering)
}

/// Says whether enough members are here that count.
fn count(cluster: u64, configuration: &Configuration, all: Answers<'_>) -> String {
    let counts = |(_, status): &&(SocketAddrV4, &NodeStatus)| {
        let member = configuration.member(status.node);
        status.cluster == Some(cluster)
            && member.is_some_and(|member| member.incarnation == status.incarnation)
    };
    let (here, members) = (all.iter().filter(counts).count(), configuration.members.len());
    let quorum = configuration.quorum();
    if here >= quorum {
        return format!("the cluster goes on with {here} of {members}");
    }
    format!(
        "only {here} of {members} members answer and count, and {quorum} are needed: nothing is \
         served until others are back; do not run init, and empty or replace no data directory"
    )
}

#[cfg(test)]
pub(super) mod tests {
    use hovercraft::{
        ClusterLimits, Incarnation, Member, Mode, NodeId,
        admin::{ExchangeStatus, NetworkStatus},
        core::{Counters, Status},
    };

    use super::*;

    fn address(node: u16) -> SocketAddrV4 {
        SocketAddrV4::new([10, 0, 0, node as u8].into(), 7000)
    }

    /// An answer of a replica before `init`, in this life of its disk.
    pub(in crate::cli) fn unborn(node: u16, incarnation: u64) -> NodeStatus {
        NodeStatus {
            node: NodeId(node),
            cluster: None,
            mode: Mode::HovercRaft.to_string(),
            poisoned: None,
            protocol: None,
            counters: Counters::default(),
            network: NetworkStatus::default(),
            exchange: ExchangeStatus::default(),
            incarnation: Incarnation(incarnation),
            configuration: None,
            counted_by: None,
            missing: None,
        }
    }

    /// An answer of a member of a cluster of three, whose disks are 1 to 3.
    fn member(node: u16, incarnation: u64, protocol: &Status) -> NodeStatus {
        let member = |node: u16| Member {
            id: NodeId(node),
            incarnation: Incarnation(node.into()),
            address: address(node),
        };
        let members = (1..=3).map(member).collect();
        NodeStatus {
            cluster: Some(0xAB),
            protocol: Some(Status {
                recovering: incarnation != u64::from(node),
                ..protocol.clone()
            }),
            configuration: Some(Configuration::new(1, members, ClusterLimits::default())),
            ..unborn(node, incarnation)
        }
    }

    fn protocol() -> Status {
        super::super::status::tests::protocol(1, None)
    }

    fn notes_of(position: usize, all: &[NodeStatus]) -> String {
        let answers: Vec<_> = all.iter().map(|it| (address(it.node.0), it)).collect();
        let own = &all[position];
        match own.protocol {
            Some(_) => recovering(own, &answers),
            None => without_cluster(address(own.node.0), own, &answers),
        }
    }

    #[test]
    fn a_lost_disk_is_named_and_nobody_is_sent_to_init() {
        let protocol = protocol();
        let (one, two) = (member(1, 1, &protocol), member(2, 2, &protocol));
        let text = notes_of(2, &[one.clone(), two, unborn(3, 77)]);
        assert_eq!(
            text,
            "it was a member of cluster 00000000000000ab, and its disk is empty; do not run init; \
             the cluster goes on with 2 of 3"
        );
        // Two are lost: a majority is gone.
        let text = notes_of(1, &[one, unborn(2, 78), unborn(3, 77)]);
        assert!(text.contains("only 1 of 3") && text.contains("do not run init"), "{text}");
        // Only the lost one is asked.
        let text = notes_of(0, &[NodeStatus { counted_by: Some(0xAB), ..unborn(3, 77) }]);
        assert!(text.contains("00000000000000ab") && !text.contains("run `hovercraft init`"));
    }

    #[test]
    fn init_is_named_where_it_is_safe() {
        let text =
            notes_of(2, &[member(1, 1, &protocol()), member(2, 2, &protocol()), unborn(3, 3)]);
        assert!(text.contains("not finished: run `hovercraft init` again"), "{text}");
        let text = notes_of(0, &[unborn(1, 1), unborn(2, 2)]);
        assert!(text.contains("no cluster yet") && text.contains("never were in one"), "{text}");
    }

    #[test]
    fn a_recovering_replica_says_what_is_missing_and_who_else() {
        let protocol = protocol();
        let lost = |node: u16| NodeStatus {
            missing: Some("the mark `synced` is missing".into()),
            ..member(node, 100 + u64::from(node), &protocol)
        };
        let text = notes_of(1, &[member(1, 1, &protocol), lost(2), member(3, 3, &protocol)]);
        assert_eq!(
            text,
            "recovering: the mark `synced` is missing; leave its data directory as it is; the \
             cluster goes on with 2 of 3"
        );
        let text = notes_of(0, &[lost(1), lost(2), lost(3)]);
        assert!(text.contains("replicas 2, 3 are recovering too; only 0 of 3"), "{text}");
        assert!(text.contains("do not run init, and empty or replace no data directory"), "{text}");
    }
}
