//! Entries and requests for the tests of this crate.

use std::{net::Ipv4Addr, net::SocketAddrV4, sync::Arc};

use bytes::Bytes;

use r2p2::Time;

use crate::{
    core::{Core, Output, Settings, Start, Timing, Write},
    digest::DigestKey,
    entry::{
        ClusterLimits, Configuration, Entry, Incarnation, Index, Member, NodeId, Payload, Term,
    },
    messages::{AggCommit, Aggregate, AppendEntries, Envelope, Message, Metadata},
    request::{Identity, Kind, Request, ReturnPath},
    storage::{Birth, HardState, Loaded},
};

/// The cluster of [`core`].
pub(crate) const CLUSTER: u64 = 7;

/// Its secret.
pub(crate) const DIGEST_KEY: DigestKey = DigestKey::new([5, 6]);

pub(crate) fn request(client: u64, sequence: u64) -> Arc<Request> {
    request_of(client, sequence, 1, Kind::Write, b"body")
}

pub(crate) fn request_of(
    client: u64,
    sequence: u64,
    lowest: u64,
    kind: Kind,
    body: &'static [u8],
) -> Arc<Request> {
    let identity = Identity::Session { client, sequence };
    Arc::new(Request::new(DIGEST_KEY, identity, lowest, kind, Bytes::from_static(body)))
}

pub(crate) fn return_path(port: u16) -> ReturnPath {
    ReturnPath { address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), request_id: port }
}

pub(crate) fn entry(term: Term, payload: Payload) -> Entry {
    Entry { term, log_time_us: 0, session_delta_us: 0, payload, return_path: None }
}

pub(crate) fn noop(term: Term) -> Entry {
    entry(term, Payload::Noop)
}

/// A write of `client` in `term`, with replier 1.
pub(crate) fn write(term: Term, client: u64, sequence: u64) -> Entry {
    let payload = Payload::Request { replier: NodeId(1), request: request(client, sequence) };
    entry(term, payload)
}

/// The first configuration of [`core`]: replicas 1 to `count`, with their numbers as incarnations.
pub(crate) fn configuration(count: u16) -> Configuration {
    let member = |number| Member {
        id: NodeId(number),
        incarnation: Incarnation(u64::from(number)),
        address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, number),
    };
    let limits = ClusterLimits::default();
    Configuration::new(1, (1..=count).map(member).collect(), limits)
}

/// Replica 1 of three, which has just started with these entries on its disk.
pub(crate) fn core(settings: Settings, entries: Vec<Entry>) -> Core {
    core_of((1, 3), settings, entries, 1)
}

/// Replica `node` of `count`, as [`core`].
pub(crate) fn core_of(
    (node, count): (u16, u16),
    settings: Settings,
    entries: Vec<Entry>,
    seed: u64,
) -> Core {
    let configuration = configuration(count);
    let node = NodeId(node);
    let birth = Birth { cluster: CLUSTER, node, configuration, digest_key: DIGEST_KEY };
    let hard_state = HardState {
        term: entries.last().map_or(0, |entry| entry.term),
        vote: None,
        incarnation: Incarnation(u64::from(node.0)),
        birth: Some(birth),
        durability: settings.durability,
        clean: false,
    };
    let loaded = Loaded { hard_state: None, snapshot: None, first_index: 1, entries, torn: None };
    let mut core = Core::new(Start { hard_state, loaded, settings, seed }, Time::ZERO);
    core.own_run.be_known_to_everybody();
    core
}

/// Append-entries of `count` no-ops of `term` after (`index`, `term`), with nothing committed.
pub(crate) fn append_noops(after: (Index, Term), term: Term, count: usize) -> AppendEntries {
    let metadata = Metadata::of(&noop(term), 0).expect("the base is the entry's own");
    AppendEntries {
        previous_index: after.0,
        previous_term: after.1,
        commit: 0,
        noop: 1,
        first_index: 1,
        round: 1,
        entries_term: term.max(after.1),
        log_time_us: 0,
        entries: vec![metadata; count],
        configurations: Vec::new(),
        requests: Vec::new(),
    }
}

/// The same by way of the aggregator, from replica 1 of three, which holds up to `durable`.
pub(crate) fn aggregate(durable: Index, append: AppendEntries) -> Aggregate {
    let Configuration { id, members, .. } = configuration(3);
    Aggregate { configuration: id, voters: members, durable, first_round: 0, append }
}

/// What the aggregator says.
pub(crate) fn announcement(term: Term, commit: AggCommit) -> Envelope {
    let message = Message::AggCommit(commit);
    Envelope { from: NodeId::AGGREGATOR, ..envelope(0, term, message) }
}

/// What another replica says.
pub(crate) fn envelope(from: u16, term: Term, message: Message) -> Envelope {
    let incarnation = Incarnation(u64::from(from));
    Envelope { cluster: CLUSTER, from: NodeId(from), incarnation, term, message }
}

/// Ends a turn: what is written is on disk at once, and what is committed is applied. Returns what
/// else the core wants.
pub(crate) fn settle(core: &mut Core, now: Time) -> Vec<Output> {
    let mut outputs = Vec::new();
    loop {
        core.flush(now, 0);
        let mut is_quiet = true;
        while let Some(output) = core.poll_output() {
            match output {
                Output::Write(Write::HardState { number, .. } | Write::Append { number, .. }) => {
                    core.handle_stored(now, number);
                    is_quiet = false;
                }
                output => outputs.push(output),
            }
        }
        while let Some(committed) = core.poll_apply() {
            core.handle_applied(now, committed.index);
            is_quiet = false;
        }
        if is_quiet {
            return outputs;
        }
    }
}

/// When [`leader`] was elected.
pub(crate) fn elected_at() -> Time {
    Time::ZERO + Timing::LAN.election_max
}

/// Replica 1 of three as the leader of term 1.
pub(crate) fn leader(settings: Settings) -> Core {
    elected(settings, Vec::new(), |_| ())
}

/// Replica 1 of three, which starts with these entries, goes through what comes `before`, and is
/// elected by replica 2.
pub(crate) fn elected(
    settings: Settings,
    entries: Vec<Entry>,
    before: impl FnOnce(&mut Core),
) -> Core {
    elect(core(settings, entries), before)
}

/// The same of any replica 1.
pub(crate) fn elect(mut core: Core, before: impl FnOnce(&mut Core)) -> Core {
    let (now, term) = (elected_at(), core.hard_state().term);
    before(&mut core);
    core.handle_timeout(now);
    settle(&mut core, now);
    let pre_vote = Message::PreVoteReply { proposed: term + 1, granted: true };
    core.handle_message(now, envelope(2, term, pre_vote));
    settle(&mut core, now);
    core.handle_message(now, envelope(2, term + 1, Message::VoteReply { granted: true }));
    settle(&mut core, now);
    assert!(core.is_leader());
    core
}
