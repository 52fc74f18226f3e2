//! `init`: makes one cluster of replicas with empty disks, once (P39).
//!
//! Several may run at a time, and each may be killed anywhere. Births are sent in ascending order
//! of the replicas' numbers, each when the one before is on disk: of two for the same members only
//! one gets past the first replica. The other one, and any later one, has a replica that belongs to
//! the cluster pass its birth on, because only replicas know the cluster's secret (P2).

use std::{net::SocketAddrV4, time::Duration};

use r2p2::AsyncLink;
use tokio::time::Instant;

use super::{
    AdminError, Answer, Asker, Question,
    existing::{Found, existing},
    unexpected,
};
use crate::{
    entropy::{random_key, random_number},
    entry::{ClusterLimits, Configuration, MEMBERS_MAX, Member, NodeId},
    storage::Birth,
};

/// Makes a cluster of replicas that were started with empty disks: collects their incarnations,
/// sends all of them the first configuration, and returns when it is on every disk (P39).
///
/// Doing it again does no harm: if some have it already, the others get the same. A replica that a
/// cluster counts as a member is never put into another one, even if its disk is empty. Returns the
/// cluster's number. `timeout` bounds the wait for each answer.
#[cfg(not(madsim))]
pub async fn init(
    members: &[(NodeId, SocketAddrV4)],
    limits: ClusterLimits,
    timeout: Duration,
) -> Result<u64, AdminError> {
    init_on(super::bind()?, members, limits, timeout).await
}

/// Makes a cluster as [`init()`] does, over a link of the caller's: a simulated network, for example.
pub async fn init_on(
    link: impl AsyncLink,
    members: &[(NodeId, SocketAddrV4)],
    limits: ClusterLimits,
    timeout: Duration,
) -> Result<u64, AdminError> {
    check_members(members)?;
    let mut members = members.to_vec();
    members.sort_by_key(|(id, _)| *id);
    let mut asker = Asker::new(link, timeout);
    let mut found = survey(&mut asker, &members).await?;
    if existing(&found)?.is_none() {
        let refusal = match create(&mut asker, &found, limits).await {
            Ok(cluster) => return Ok(cluster),
            Err(refusal @ AdminError::Refused { .. }) => refusal,
            Err(error) => return Err(error),
        };
        // Another init may have been first. It is what counts from here on.
        found = survey(&mut asker, &members).await?;
        if existing(&found)?.is_none() {
            return Err(refusal);
        }
    }
    complete(&mut asker, &found).await
}

async fn survey(
    asker: &mut Asker<impl AsyncLink>,
    members: &[(NodeId, SocketAddrV4)],
) -> Result<Vec<Found>, AdminError> {
    let mut found = Vec::new();
    for (id, address) in members {
        found.push(hello(asker, *id, *address).await?);
    }
    Ok(found)
}

async fn hello(
    asker: &mut Asker<impl AsyncLink>,
    expected: NodeId,
    address: SocketAddrV4,
) -> Result<Found, AdminError> {
    match asker.ask(address, &Question::Hello).await? {
        Answer::Hello { node, .. } if node != expected => {
            Err(AdminError::WrongNode { address, found: node, expected })
        }
        Answer::Hello { node: id, incarnation, membership, counted_by, term } => {
            let member = Member { id, incarnation, address };
            Ok(Found { member, membership, counted_by, term })
        }
        answer => Err(unexpected(address, &answer)),
    }
}

/// Draws a cluster, and gives it to one replica after another. The first refusal ends it.
async fn create(
    asker: &mut Asker<impl AsyncLink>,
    found: &[Found],
    limits: ClusterLimits,
) -> Result<u64, AdminError> {
    let (cluster, digest_key) = (random_number(), random_key());
    let members: Vec<_> = found.iter().map(|replica| replica.member).collect();
    let configuration = Configuration::new(1, members, limits);
    if let Err(reason) = configuration.check() {
        return Err(AdminError::Members(reason));
    }
    for Member { id: node, address, .. } in configuration.members.clone() {
        let configuration = configuration.clone();
        let birth = Birth { cluster, node, configuration, digest_key };
        match asker.ask(address, &Question::Init(birth)).await? {
            Answer::Initialised => {}
            answer => return Err(unexpected(address, &answer)),
        }
    }
    Ok(cluster)
}

/// Has a replica that belongs to the cluster pass its birth on to those that belong to none.
async fn complete(asker: &mut Asker<impl AsyncLink>, found: &[Found]) -> Result<u64, AdminError> {
    let existing = existing(found)?;
    let (holder, membership) = existing.expect("somebody belongs to a cluster");
    for replica in found.iter().filter(|replica| replica.membership.is_none()) {
        pass_on(asker, holder, membership.cluster, replica.member).await?;
    }
    Ok(membership.cluster)
}

/// Asks the holder to pass its birth on until `to` has it on disk.
async fn pass_on(
    asker: &mut Asker<impl AsyncLink>,
    holder: SocketAddrV4,
    cluster: u64,
    to: Member,
) -> Result<(), AdminError> {
    const LOOK_AFTER: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + asker.timeout;
    loop {
        match asker.ask(holder, &Question::PassOn(to.id)).await? {
            Answer::PassedOn => {}
            answer => return Err(unexpected(holder, &answer)),
        }
        let replica = hello(asker, to.id, to.address).await?;
        match &replica.membership {
            Some(membership) if membership.cluster == cluster => return Ok(()),
            Some(_) => {
                let reason = "another init has made it a member of another cluster meanwhile; \
                    run init again to see which replicas belong to which";
                let reason = reason.to_owned();
                return Err(AdminError::Refused { address: to.address, reason });
            }
            // It is under way, or was lost.
            None if Instant::now() < deadline => tokio::time::sleep(LOOK_AFTER).await,
            None => {
                let reason = format!(
                    "it answers, but has not become a member of cluster {cluster:016x} within \
                     {:?}, although {holder} passed the cluster's birth on to it: look at its log, \
                     and at what lies between the two; then run init again",
                    asker.timeout
                );
                return Err(AdminError::Refused { address: to.address, reason });
            }
        }
    }
}

fn check_members(members: &[(NodeId, SocketAddrV4)]) -> Result<(), AdminError> {
    if members.is_empty() || members.len() > MEMBERS_MAX {
        let what = format!("it has {} members; 1 to {MEMBERS_MAX} are possible", members.len());
        return Err(AdminError::Members(what));
    }
    for (position, (node, address)) in members.iter().enumerate() {
        if node.0 == 0 {
            return Err(AdminError::Members("replicas are numbered from 1".to_owned()));
        }
        let before = &members[..position];
        if before.iter().any(|(other, _)| other == node) {
            return Err(AdminError::Members(format!("replica {node} is there twice")));
        }
        if before.iter().any(|(_, other)| other == address) {
            return Err(AdminError::Members(format!("the address {address} is there twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
