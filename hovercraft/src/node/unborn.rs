//! A replica before `init`: it knows who it is, answers operators, and takes part in nothing (P39).

use std::time::Duration;

use r2p2::{MessageType, Time, WaitLink};

use crate::{
    admin::{Answer, ExchangeStatus, NetworkStatus, NodeStatus, Question, lost_disk},
    core::Counters,
    entry::NodeId,
    messages::Envelope,
    node::{
        Mode, NodeError, Stopper,
        network::{Clock, Endpoints, NOT_INITIALISED, hello, initialised},
    },
    storage::{Birth, HardState, LogStore},
};

/// A cluster counts this replica as a member if it has spoken to it within this time: far more
/// than the pause between two elections without a leader.
const COUNTED_FOR: Duration = Duration::from_secs(10);

/// The cluster whose replicas speak to this one as to a member. It has no data of that cluster, so
/// its disk was lost, or `init` has not come to it yet.
#[derive(Debug, Default)]
struct Counted {
    by: Option<(u64, Time)>,
}

impl Counted {
    /// A replica of a cluster spoke to this one. Of several clusters the first is kept while it
    /// speaks.
    fn hear(&mut self, now: Time, node: NodeId, cluster: u64) {
        let known = self.cluster(now);
        if known.is_some_and(|known| known != cluster) {
            return;
        }
        if known.is_none() {
            tracing::warn!(
                %node,
                "the data directory is empty, and cluster {cluster:016x} counts this replica as a \
                 member: unless its init is not finished, the disk was lost; make no new cluster \
                 of this replica, the other one goes on while a majority of it is well"
            );
        }
        self.by = Some((cluster, now));
    }

    fn cluster(&self, now: Time) -> Option<u64> {
        self.by.filter(|(_, at)| now.since(*at) < COUNTED_FOR).map(|(cluster, _)| cluster)
    }
}

/// Waits until `init` has named this replica, and its word is on disk. None if it was stopped
/// before.
pub(crate) async fn wait_for_init(
    node: NodeId,
    mode: Mode,
    mut state: HardState,
    store: &mut dyn LogStore,
    link: &mut impl WaitLink,
    endpoints: &mut Endpoints,
    stopper: &Stopper,
) -> Result<Option<HardState>, NodeError> {
    let clock = Clock::new();
    tracing::info!(%node, "the data directory is empty: waiting for init");
    let mut counted = Counted::default();
    while !stopper.is_stopped() {
        link.wait(None, Duration::ZERO).await?;
        let now = clock.now();
        let mut questions = Vec::new();
        link.receive(&mut |from, datagram| {
            let message_type = r2p2::message_type(datagram);
            if !matches!(message_type, Some(MessageType::RaftRequest | MessageType::RaftMessage)) {
                return;
            }
            let message = endpoints.receiver.handle_datagram(now, from, datagram);
            let Ok(Some(message)) = message else { return };
            if message.message_type == MessageType::RaftMessage {
                if let Ok(envelope) = Envelope::access(&message.body) {
                    counted.hear(now, node, envelope.cluster.to_native());
                }
            } else if let Ok(question) = Question::decode(&message.body) {
                questions.push((from, question));
            }
        })?;
        for (from, question) in questions {
            let counted_by = counted.cluster(now);
            let answer = match question {
                Question::Hello => hello(node, &state, counted_by),
                Question::Init(birth) => {
                    let was_born = state.birth.is_some();
                    let answer = take_birth(node, &mut state, &birth, counted_by);
                    if !was_born && state.birth.is_some() {
                        store.save_hard_state(&state).map_err(NodeError::Store)?;
                    }
                    answer
                }
                Question::Status => {
                    Answer::Status(Box::new(status(&state, node, mode, counted_by)))
                }
                Question::PassOn(_) => Answer::Refused(NOT_INITIALISED.to_owned()),
            };
            endpoints.answer(from, &answer);
        }
        link.send(&mut endpoints.outbox)?;
        if state.birth.is_some() {
            return Ok(Some(state));
        }
    }
    Ok(None)
}

/// Becomes a member of the cluster, unless it is one already, another cluster counts it as a member,
/// or `birth` names another disk.
pub(crate) fn take_birth(
    node: NodeId,
    state: &mut HardState,
    birth: &Birth,
    counted_by: Option<u64>,
) -> Answer {
    if state.birth.is_some() {
        return initialised(state, birth);
    }
    if let Some(cluster) = counted_by.filter(|cluster| *cluster != birth.cluster) {
        return Answer::Refused(lost_disk(cluster));
    }
    let names_me = birth
        .configuration
        .member(node)
        .is_some_and(|member| birth.node == node && member.incarnation == state.incarnation);
    if !names_me {
        return Answer::Refused(format!(
            "it is replica {node}, and its disk is another one than the configuration names: it \
             was emptied since it was asked, or it was lost"
        ));
    }
    if let Err(reason) = birth.configuration.check() {
        return Answer::Refused(reason);
    }
    state.birth = Some(birth.clone());
    Answer::Initialised
}

fn status(state: &HardState, node: NodeId, mode: Mode, counted_by: Option<u64>) -> NodeStatus {
    NodeStatus {
        node,
        cluster: None,
        mode: mode.to_string(),
        poisoned: None,
        protocol: None,
        counters: Counters::default(),
        network: NetworkStatus::default(),
        exchange: ExchangeStatus::default(),
        incarnation: state.incarnation,
        configuration: None,
        counted_by,
        missing: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_clusters_that_count_a_replica_the_first_is_named_while_it_speaks() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let mut counted = Counted::default();
        assert_eq!(counted.cluster(at(0)), None);
        for second in 0..8 {
            counted.hear(at(second), NodeId(1), 5);
            counted.hear(at(second), NodeId(1), 6);
            assert_eq!(counted.cluster(at(second)), Some(5));
        }
        counted.hear(at(16), NodeId(1), 6);
        assert_eq!(counted.cluster(at(16)), Some(5), "it spoke nine seconds ago");
        counted.hear(at(17), NodeId(1), 6);
        assert_eq!(counted.cluster(at(17)), Some(6));
        assert_eq!(counted.cluster(at(27)), None);
    }
}
