//! Any bytes as messages of a replica, which a core then takes; as a question or an answer of an
//! operator, and as a session's grant.

#![no_main]

use std::{net::Ipv4Addr, net::SocketAddrV4, time::Duration};

use hovercraft::{
    ClusterLimits, Configuration, DigestKey, Incarnation, Member, NodeId,
    admin::{Answer, Question},
    core::{Core, Mode, Output, Reading, SessionGrant, Settings, Start, Write},
    messages::{Envelope, Message, PROTOCOL_VERSION},
    storage::{Birth, Durability, HardState, Loaded},
    switch::Aggregator,
};
use libfuzzer_sys::fuzz_target;
use r2p2::Time;

const CLUSTER: u64 = 7;

/// Replica 1 of three, which has just started.
fn core() -> Core {
    let member = |number| Member {
        id: NodeId(number),
        incarnation: Incarnation(u64::from(number)),
        address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, number),
    };
    let members = (1..=3).map(member).collect();
    let configuration = Configuration::new(1, members, ClusterLimits::default());
    let hard_state = HardState {
        term: 0,
        vote: None,
        incarnation: Incarnation(1),
        birth: Some(Birth {
            cluster: CLUSTER,
            node: NodeId(1),
            configuration,
            digest_key: DigestKey::new([1, 2]),
        }),
        durability: Durability::Sync,
        clean: false,
    };
    let loaded = Loaded {
        hard_state: None,
        snapshot: None,
        first_index: 1,
        entries: Vec::new(),
        torn: None,
    };
    let settings = Settings { mode: Mode::HovercRaftPlusPlus, ..Settings::default() };
    Core::new(Start { hard_state, loaded, settings, seed: 1 }, Time::ZERO)
}

/// One turn of a driver whose disk and service take no time; false at its end.
fn turn(core: &mut Core, now: Time) -> bool {
    core.handle_timeout(now);
    core.flush(now, 0);
    while let Some(output) = core.poll_output() {
        match output {
            Output::Write(Write::HardState { number, .. } | Write::Append { number, .. }) => {
                core.handle_stored(now, number);
            }
            Output::StageSnapshot { .. } => core.handle_staged(now, Reading::Complete),
            Output::InstallSnapshot { .. } => core.handle_installed(now),
            Output::TakeSnapshot => core.handle_snapshot(now, None),
            Output::AnswerRetry { request, to } => core.order_again(now, &request, to),
            Output::Stop(_) => return false,
            _ => {}
        }
    }
    while let Some(committed) = core.poll_apply() {
        core.handle_applied(now, committed.index);
    }
    true
}

fuzz_target!(|bytes: &[u8]| {
    let mut core = core();
    let mut aggregator = Aggregator::new();
    let mut now = Time::ZERO;
    let mut input = bytes;
    // Each message is {wait u8, length u16, record}, and comes from a member of the cluster.
    while let Some((&[wait, high, low], rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (record, rest) = rest.split_at(rest.len().min(length));
        input = rest;
        now += Duration::from_millis(u64::from(wait));
        // Behind a right version, so that no input is spent on that.
        let mut versioned = PROTOCOL_VERSION.to_be_bytes().to_vec();
        versioned.extend_from_slice(record);
        if let Ok(mut envelope) = Envelope::decode(&versioned) {
            let mut again = Vec::new();
            envelope.encode(&mut again);
            assert_eq!(Envelope::decode(&again).as_ref(), Ok(&envelope));
            let from = NodeId(2 + envelope.from.0 % 2);
            (envelope.cluster, envelope.from) = (CLUSTER, from);
            aggregator.handle_message(now, &envelope);
            if let Some(announcement) = aggregator.poll_announcement() {
                core.handle_message(now, announcement);
            }
            if matches!(envelope.message, Message::AggCommit(_)) {
                envelope.from = NodeId::AGGREGATOR;
            }
            core.handle_message(now, envelope);
        }
        if !turn(&mut core, now) {
            break;
        }
    }
    let mut versioned = PROTOCOL_VERSION.to_be_bytes().to_vec();
    versioned.extend_from_slice(bytes);
    let _ = Question::decode(&versioned);
    let _ = Answer::decode(&versioned);
    let _ = SessionGrant::decode(bytes);
});
