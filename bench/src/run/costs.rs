//! What a request cost, by role: from the kernel's counts and from the replicas' own.

use std::time::Duration;

use hovercraft::{
    admin::{ExchangeStatus, NetworkStatus, Sent},
    switch::SwitchStatus,
};
use serde::Serialize;

use crate::{processes::Look, usage::Usage};

/// A replica's share of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RoleCost {
    /// Processor time in user mode, in µs; 0 where the process is not ours to look at.
    pub cpu_user_us_per_op: f64,
    /// In the kernel, in µs.
    pub cpu_system_us_per_op: f64,
    /// Datagrams received.
    pub datagrams_in_per_op: f64,
    /// Bytes in them.
    pub bytes_in_per_op: f64,
    /// Datagrams sent.
    pub datagrams_out_per_op: f64,
    /// Bytes in them.
    pub bytes_out_per_op: f64,
    /// System calls to receive, to send and to wait.
    pub system_calls_per_op: f64,
    /// Context switches, of its own accord and forced.
    pub context_switches_per_op: f64,
    /// Bytes that it caused to be written to a disk.
    pub disk_bytes_per_op: f64,
    /// Finished batches of the storage role: in the durability `sync`, with one sync each.
    pub group_commits_per_op: f64,
    /// Of what it sent: metadata or, in mode `raft`, bodies.
    pub ordering: Share,
    /// Heartbeats, and the commit index alone.
    pub announcements: Share,
    /// What followers hold, and how far they are.
    pub acknowledgements: Share,
    /// Bodies and entries that somebody lacked.
    pub recovery: Share,
    /// Replies, elections, headers.
    pub replies_and_rest: Share,
}

/// What one purpose takes of what a replica sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    /// Messages a request; a message is a datagram unless it is large.
    pub messages_per_op: f64,
    /// Bytes a request.
    pub bytes_per_op: f64,
}

/// What a request cost everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PerOperation {
    /// The leader, or the only server.
    pub leader: RoleCost,
    /// The mean of the followers; none if there are none.
    pub follower: Option<RoleCost>,
    /// The switch; none if there is none.
    pub switch: Option<RoleCost>,
    /// Processor time of all replicas, in µs.
    pub replicas_cpu_us_per_op: f64,
    /// Processor time of the generators, in µs.
    pub client_cpu_us_per_op: f64,
    /// The lead changed hands while it was measured: the roles' figures are mixed.
    pub leader_changed: bool,
}

/// The switch at the ends of a time, and what its process took in it.
#[derive(Debug, Default)]
pub(super) struct SwitchSpan {
    pub(super) before: Option<SwitchStatus>,
    pub(super) after: Option<SwitchStatus>,
    pub(super) spent: Option<Usage>,
}

/// From the requests completed in a time, what each cost the generators (µs), what the replicas'
/// processes took in it, and how the replicas were at its ends.
pub(super) fn per_operation(
    completed: u64,
    client_cpu_us_per_op: f64,
    spent: &[Option<Usage>],
    (before, after): &(Vec<Look>, Vec<Look>),
    switch: &SwitchSpan,
) -> PerOperation {
    let count = completed.max(1) as f64;
    let cpu: Duration = spent.iter().flatten().map(Usage::cpu).sum();
    let mut result = PerOperation {
        replicas_cpu_us_per_op: cpu.as_secs_f64() * 1e6 / count,
        client_cpu_us_per_op,
        ..PerOperation::default()
    };
    let mut followers = Vec::new();
    for (place, later) in after.iter().enumerate() {
        let Some(earlier) = before.iter().find(|look| look.id == later.id) else { continue };
        let usage = spent.get(place).copied().flatten().unwrap_or_default();
        let cost = role_cost(count, usage, earlier, later);
        result.leader_changed |= earlier.leads() != later.leads();
        if later.leads() {
            result.leader = cost;
            result.switch = switch_cost(count, requests_between(earlier, later), switch);
        } else {
            followers.push(cost);
        }
    }
    result.follower = mean(&followers);
    result
}

/// What the leader has seen through between two looks.
fn requests_between(earlier: &Look, later: &Look) -> f64 {
    later.requests().saturating_sub(earlier.requests()).max(1) as f64
}

fn switch_cost(count: f64, requests: f64, switch: &SwitchSpan) -> Option<RoleCost> {
    let (from, to) = (switch.before.as_ref()?.network, switch.after.as_ref()?.network);
    let network = NetworkShare { from, to, requests };
    Some(RoleCost::of_process(count, switch.spent.unwrap_or_default(), &network))
}

/// What sockets did between two looks.
struct NetworkShare {
    from: NetworkStatus,
    to: NetworkStatus,
    requests: f64,
}

impl NetworkShare {
    fn each(&self, of: fn(&NetworkStatus) -> u64) -> f64 {
        of(&self.to).saturating_sub(of(&self.from)) as f64 / self.requests
    }
}

fn role_cost(count: f64, usage: Usage, earlier: &Look, later: &Look) -> RoleCost {
    // A replica is asked how it is a little after the measured time begins and ends, so what it
    // counts is divided by the requests that it counts.
    let own = requests_between(earlier, later);
    let (from, to) = (earlier.status.network, later.status.network);
    let network = NetworkShare { from, to, requests: own };
    let (from, to) = (&earlier.status.exchange, &later.status.exchange);
    let exchange = |of: fn(&ExchangeStatus) -> Sent| {
        let (from, to) = (of(from), of(to));
        Share {
            messages_per_op: to.messages.saturating_sub(from.messages) as f64 / own,
            bytes_per_op: to.bytes.saturating_sub(from.bytes) as f64 / own,
        }
    };
    let mut cost = RoleCost {
        group_commits_per_op: to.group_commits.saturating_sub(from.group_commits) as f64 / own,
        ordering: exchange(|it| it.ordering),
        announcements: exchange(|it| it.announcements),
        acknowledgements: exchange(|it| it.acknowledgements),
        recovery: exchange(|it| it.recovery),
        ..RoleCost::of_process(count, usage, &network)
    };
    let known = [cost.ordering, cost.announcements, cost.acknowledgements, cost.recovery];
    let messages: f64 = known.iter().map(|share| share.messages_per_op).sum();
    let bytes: f64 = known.iter().map(|share| share.bytes_per_op).sum();
    cost.replies_and_rest = Share {
        messages_per_op: (cost.datagrams_out_per_op - messages).max(0.0),
        bytes_per_op: (cost.bytes_out_per_op - bytes).max(0.0),
    };
    cost
}

fn mean(costs: &[RoleCost]) -> Option<RoleCost> {
    let count = costs.len() as f64;
    let of = |field: fn(&RoleCost) -> f64| costs.iter().map(field).sum::<f64>() / count;
    let share = |field: fn(&RoleCost) -> Share| Share {
        messages_per_op: costs.iter().map(|it| field(it).messages_per_op).sum::<f64>() / count,
        bytes_per_op: costs.iter().map(|it| field(it).bytes_per_op).sum::<f64>() / count,
    };
    (!costs.is_empty()).then(|| RoleCost {
        cpu_user_us_per_op: of(|it| it.cpu_user_us_per_op),
        cpu_system_us_per_op: of(|it| it.cpu_system_us_per_op),
        datagrams_in_per_op: of(|it| it.datagrams_in_per_op),
        bytes_in_per_op: of(|it| it.bytes_in_per_op),
        datagrams_out_per_op: of(|it| it.datagrams_out_per_op),
        bytes_out_per_op: of(|it| it.bytes_out_per_op),
        system_calls_per_op: of(|it| it.system_calls_per_op),
        context_switches_per_op: of(|it| it.context_switches_per_op),
        disk_bytes_per_op: of(|it| it.disk_bytes_per_op),
        group_commits_per_op: of(|it| it.group_commits_per_op),
        ordering: share(|it| it.ordering),
        announcements: share(|it| it.announcements),
        acknowledgements: share(|it| it.acknowledgements),
        recovery: share(|it| it.recovery),
        replies_and_rest: share(|it| it.replies_and_rest),
    })
}

impl RoleCost {
    /// What can be said of any process.
    fn of_process(count: f64, usage: Usage, network: &NetworkShare) -> Self {
        let switches = usage.switches_voluntary + usage.switches_forced;
        Self {
            cpu_user_us_per_op: usage.user.as_secs_f64() * 1e6 / count,
            cpu_system_us_per_op: usage.system.as_secs_f64() * 1e6 / count,
            datagrams_in_per_op: network.each(|it| it.datagrams_in),
            bytes_in_per_op: network.each(|it| it.bytes_in),
            datagrams_out_per_op: network.each(|it| it.datagrams_out),
            bytes_out_per_op: network.each(|it| it.bytes_out),
            system_calls_per_op: network.each(|it| it.calls_in + it.calls_out + it.calls_wait),
            context_switches_per_op: switches as f64 / count,
            disk_bytes_per_op: usage.disk_bytes as f64 / count,
            ..Self::default()
        }
    }

    /// User and system time, in µs.
    pub fn cpu_us_per_op(&self) -> f64 {
        self.cpu_user_us_per_op + self.cpu_system_us_per_op
    }
}
