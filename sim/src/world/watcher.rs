//! What is seen of the replicas from outside, and the story of the run.

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hovercraft::{
    NodeId, admin,
    core::{Counters, RoleStatus, Status},
};
use madsim::time::{TimeHandle, sleep};
use r2p2::Time;

use super::{fabric::Fabric, host, observer_link};
use crate::{
    coverage::Coverage,
    trace::{Line, Place},
};

/// How long it waits for an answer, and between two questions to a replica.
const INTERVAL: Duration = Duration::from_millis(20);

/// What is told of the run.
pub(super) type Story = Arc<Mutex<Vec<Line>>>;

/// Asks every replica how it is, again and again.
pub(super) struct Watcher {
    members: Vec<(NodeId, SocketAddrV4)>,
    latest: Arc<Mutex<Latest>>,
    story: Story,
}

/// What the replicas said last.
#[derive(Default)]
struct Latest {
    seen: BTreeMap<NodeId, Seen>,
    /// How many processes have ended: what an earlier one said must not be taken for the word of the
    /// next.
    ended: BTreeMap<NodeId, u32>,
}

/// The last answer of a replica.
struct Seen {
    status: Status,
    counters: Counters,
}

impl Watcher {
    pub(super) fn new(members: Vec<(NodeId, SocketAddrV4)>, story: Story) -> Self {
        Self { members, latest: Arc::default(), story }
    }

    /// Begins to ask.
    pub(super) fn watch(&self) {
        let watcher = host("watcher");
        for (node, address) in self.members.clone() {
            let latest = Arc::clone(&self.latest);
            watcher.spawn(async move {
                loop {
                    sleep(INTERVAL).await;
                    ask(node, address, &latest).await;
                }
            });
        }
    }

    /// Asks every replica once.
    pub(super) async fn ask_all(&self) -> Vec<Option<Status>> {
        let mut answers = Vec::new();
        for (node, address) in &self.members {
            answers.push(ask(*node, *address, &self.latest).await);
        }
        answers
    }

    /// Keeps the counts of a process that is no more, and forgets what else it said.
    pub(super) fn bury(&self, node: NodeId, coverage: &mut Coverage) {
        let mut latest = lock(&self.latest);
        *latest.ended.entry(node).or_default() += 1;
        if let Some(seen) = latest.seen.remove(&node) {
            coverage.add_core(&seen.counters);
        }
    }

    /// The position of the replica that leads, as far as is known.
    pub(super) fn leader(&self) -> Option<usize> {
        let latest = lock(&self.latest);
        let leads = latest.seen.iter().filter(|(_, seen)| seen.status.role == RoleStatus::Leader);
        let (node, _) = leads.max_by_key(|(_, seen)| seen.status.term)?;
        self.members.iter().position(|(member, _)| member == node)
    }

    /// What a replica said last.
    pub(super) fn status(&self, node: NodeId) -> Option<Status> {
        lock(&self.latest).seen.get(&node).map(|seen| seen.status.clone())
    }

    /// The counters of all processes that run.
    pub(super) fn cover(&self, coverage: &mut Coverage) {
        for seen in lock(&self.latest).seen.values() {
            coverage.add_core(&seen.counters);
        }
    }

    /// Tells something, and makes it part of the digest.
    pub(super) fn tell(&self, place: Place, text: String) {
        Fabric::current().note(text.as_bytes());
        let at = Time::ZERO + TimeHandle::current().elapsed();
        lock(&self.story).push(Line { at, place, is_fault: true, text });
    }
}

async fn ask(node: NodeId, address: SocketAddrV4, latest: &Mutex<Latest>) -> Option<Status> {
    let ended = lock(latest).ended.get(&node).copied();
    let answer = admin::status_on(observer_link(), address, INTERVAL).await.ok()?;
    let status = answer.protocol?;
    let seen = Seen { status: status.clone(), counters: answer.counters };
    let mut latest = lock(latest);
    if latest.ended.get(&node).copied() != ended {
        return None;
    }
    latest.seen.insert(node, seen);
    Some(status)
}

pub(super) fn lock<T>(latest: &Mutex<T>) -> MutexGuard<'_, T> {
    // The one thread that there is panicked: whatever it was, the run has failed.
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}
