//! A replica before `init`: it knows who it is, answers operators, and takes part in nothing (P39).

use r2p2::{MessageType, WaitLink};

use crate::{
    admin::{Answer, ExchangeStatus, NetworkStatus, NodeStatus, Question},
    core::Counters,
    entry::NodeId,
    node::{
        Mode, NodeError, Stopper,
        network::{Clock, Endpoints, initialised},
    },
    storage::{Birth, HardState, LogStore},
};

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
    tracing::info!(%node, "waiting for init");
    while !stopper.is_stopped() {
        link.wait(None, std::time::Duration::ZERO).await?;
        let mut questions = Vec::new();
        link.receive(&mut |from, datagram| {
            if r2p2::message_type(datagram) != Some(MessageType::RaftRequest) {
                return;
            }
            let message = endpoints.receiver.handle_datagram(clock.now(), from, datagram);
            if let Ok(Some(message)) = message
                && let Ok(question) = Question::decode(&message.body)
            {
                questions.push((from, question));
            }
        })?;
        for (from, question) in questions {
            let answer = match question {
                Question::Hello => {
                    let incarnation = state.incarnation;
                    Answer::Hello { node, incarnation, birth: state.birth.clone() }
                }
                Question::Init(birth) => init(node, &mut state, &birth, store)?,
                Question::Status => Answer::Status(Box::new(status(node, mode))),
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

fn init(
    node: NodeId,
    state: &mut HardState,
    birth: &Birth,
    store: &mut dyn LogStore,
) -> Result<Answer, NodeError> {
    if state.birth.is_some() {
        return Ok(initialised(state, birth));
    }
    let names_me = birth
        .configuration
        .member(node)
        .is_some_and(|member| birth.node == node && member.incarnation == state.incarnation);
    if !names_me {
        return Ok(Answer::Refused(format!(
            "it is replica {node} with another incarnation than the configuration names"
        )));
    }
    if let Err(reason) = birth.configuration.check() {
        return Ok(Answer::Refused(reason));
    }
    state.birth = Some(birth.clone());
    store.save_hard_state(state).map_err(NodeError::Store)?;
    Ok(Answer::Initialised)
}

fn status(node: NodeId, mode: Mode) -> NodeStatus {
    NodeStatus {
        node,
        cluster: None,
        mode: mode.to_string(),
        poisoned: None,
        protocol: None,
        counters: Counters::default(),
        network: NetworkStatus::default(),
        exchange: ExchangeStatus::default(),
    }
}
