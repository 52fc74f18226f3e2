//! What happens to the replicas while the load goes on, and when.

use std::{sync::atomic::Ordering, time::Duration};

use hovercraft::NodeId;
use tokio::time::{Instant, sleep_until};

use super::{progress::Progress, replicas::Replicas, switch::Switch, workload::Shared};

/// What happened, in nanoseconds since the load began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Timeline {
    /// The fault, if there was to be one.
    pub(super) fault: Option<Fault>,
    /// When the switch was killed and started again, if there is one.
    pub(super) switch_ns: Option<(u64, u64)>,
    /// When the load was stopped.
    pub(super) stopped_ns: u64,
    /// What was not meant to happen.
    pub(super) accidents: Vec<String>,
}

/// The death of a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) node: NodeId,
    pub(super) killed_ns: u64,
    pub(super) restarted_ns: u64,
}

/// Lets `duration` pass, with or without the fault.
pub(super) async fn play(
    replicas: &mut Replicas,
    switch: &mut Option<Switch>,
    duration: Duration,
    with_fault: bool,
    load: &Shared,
    progress: &mut Progress,
) -> Timeline {
    let mut player = Player { replicas, load, progress, accidents: Vec::new() };
    let at = |part: u32| load.started + duration * part / 3;
    let (mut fault, mut switch_ns) = (None, None);
    if let Some(switch) = switch.as_mut().filter(|_| with_fault) {
        player.watch_until(load.started + duration / 6).await;
        let killed_ns = player.kill_the_switch(switch).await;
        player.watch_until(load.started + duration / 4).await;
        let restarted_ns = player.restart_the_switch(switch);
        switch_ns = Some((killed_ns, restarted_ns));
    }
    if with_fault {
        player.watch_until(at(1)).await;
        let killed = player.kill_the_leader().await;
        player.watch_until(at(2)).await;
        if let Some((position, node, killed_ns)) = killed {
            let restarted_ns = player.restart(position, node);
            fault = Some(Fault { node, killed_ns, restarted_ns });
        }
    }
    player.watch_until(at(3)).await;
    let Player { accidents, .. } = player;
    Timeline { fault, switch_ns, stopped_ns: load.nanos(), accidents }
}

struct Player<'a> {
    replicas: &'a mut Replicas,
    load: &'a Shared,
    progress: &'a mut Progress,
    accidents: Vec<String>,
}

impl Player<'_> {
    /// Shows how it goes on, and sees whether a replica ends that should not.
    async fn watch_until(&mut self, end: Instant) {
        const INTERVAL: Duration = Duration::from_millis(100);
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + INTERVAL)).await;
            while let Some((id, status)) = self.replicas.ended() {
                self.accident(format!("replica {id} has ended by itself: {status}"));
            }
            let acknowledged = self.load.acknowledged.load(Ordering::Relaxed);
            let unknown = self.load.unknown.load(Ordering::Relaxed);
            self.progress.show(self.load.started.elapsed(), acknowledged, unknown);
        }
    }

    /// Returns which it was, and when.
    async fn kill_the_leader(&mut self) -> Option<(usize, NodeId, u64)> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let position = match self.replicas.leader(PATIENCE).await {
            Ok(position) => position,
            Err(error) => {
                self.accident(error.to_string());
                return None;
            }
        };
        let (node, _) = self.replicas.members()[position];
        let killed_ns = self.load.nanos();
        if let Err(error) = self.replicas.kill(position).await {
            self.accident(error.to_string());
            return None;
        }
        self.event(&format!("replica {node}, the leader, is killed with SIGKILL"));
        Some((position, node, killed_ns))
    }

    async fn kill_the_switch(&mut self, switch: &mut Switch) -> u64 {
        let killed_ns = self.load.nanos();
        match switch.kill().await {
            Ok(()) => self.event("the switch is killed with SIGKILL"),
            Err(error) => self.accident(error.to_string()),
        }
        killed_ns
    }

    fn restart_the_switch(&mut self, switch: &mut Switch) -> u64 {
        match switch.start(&self.replicas.members()) {
            Ok(()) => self.event("the switch is started again"),
            Err(error) => self.accident(error.to_string()),
        }
        self.load.nanos()
    }

    fn restart(&mut self, position: usize, node: NodeId) -> u64 {
        if let Err(error) = self.replicas.start(position) {
            self.accident(error.to_string());
        } else {
            self.event(&format!("replica {node} is started again"));
        }
        self.load.nanos()
    }

    fn accident(&mut self, what: String) {
        self.event(&what);
        self.accidents.push(what);
    }

    fn event(&mut self, what: &str) {
        self.progress.event(self.load.started.elapsed(), what);
    }
}
