//! A run's figures, as JSON and as a table.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Failover, Found, Measurement, PerOperation, RoleCost, Spec};
use crate::{
    generator::Pace,
    machine::{Machine, commit, unix_seconds},
    stats::{Interval, Tests},
    workload::Workload,
};

/// Everything that a run says.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What was asked.
    pub workload: Workload,
    /// What the replicas did with it.
    pub mode: String,
    /// How many there were.
    pub replicas: u16,
    /// What an acknowledgement promised.
    pub durability: String,
    /// Who replied.
    pub policy: String,
    /// B (P15): with the replicas, it bounds what is in flight.
    pub queue_bound: usize,
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Each replica had a network namespace of its own.
    pub netns: bool,
    /// Requests outstanding, over all clients; none in an open loop.
    pub outstanding: Option<usize>,
    /// Sessions, each with a socket.
    pub clients: usize,
    /// Threads that generated load.
    pub generators: usize,
    /// How long was measured.
    pub seconds: f64,
    /// Arrivals a second; none in a closed loop.
    pub offered_per_s: Option<f64>,
    /// Answers a second.
    pub achieved_per_s: f64,
    /// Median latency, in µs, from the time that a request was meant to be sent.
    pub p50_us: f64,
    /// In µs.
    pub p99_us: f64,
    /// In µs.
    pub p999_us: f64,
    /// The 95 % confidence interval of p99, in µs.
    pub p99_interval_us: Option<Interval>,
    /// Requests that failed.
    pub failed: u64,
    /// How often requests were not admitted, and so sent again (P23).
    pub dropped: u64,
    /// Whether the figures may be believed.
    pub tests: Tests,
    /// Processor time a request, in µs.
    pub cpu_us_per_op: CpuPerOp,
    /// What a request cost the leader.
    pub leader: RoleCost,
    /// What it cost a follower, in the mean; none if there are none.
    pub follower: Option<RoleCost>,
    /// What it cost the switch; none if there is none.
    pub switch: Option<RoleCost>,
    /// Clients sent to the switch, which passed on.
    pub by_switch: bool,
    /// The lead changed hands meanwhile: the roles' figures are mixed.
    pub leader_changed: bool,
    /// The generator.
    pub generator: Generator,
    /// The search for the highest throughput under a bound, if there was one.
    pub max_under_slo: Option<Found>,
    /// What happened when the leader was killed, in the workload failover.
    pub failover: Option<Failover>,
    /// Latencies in ns and how often: the raw histogram.
    pub histogram_ns: Vec<(u64, u64)>,
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub commit: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// Processor time a request, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CpuPerOp {
    /// The leader.
    pub leader: f64,
    /// The mean of the followers.
    pub followers: f64,
    /// The generators.
    pub client: f64,
    /// All replicas together.
    pub replicas_total: f64,
    /// The switch; 0 if there is none.
    pub switch: f64,
}

/// The generator's own figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generator {
    /// The largest share of a core that one of its threads used.
    pub core_share: f64,
    /// How late requests were handed over, in µs; 0 in a closed loop.
    pub lateness_p50_us: f64,
    /// In µs.
    pub lateness_p99_us: f64,
    /// Why it was the bottleneck, if it was.
    pub bottleneck: Option<String>,
}

impl Outcome {
    pub(super) fn new(spec: &Spec, pace: Pace, measured: &Measurement, machine: Machine) -> Self {
        let Measurement { record, costs, .. } = measured;
        let PerOperation { leader, follower, switch, leader_changed, .. } = *costs;
        let (outstanding, offered_per_s) = match pace {
            Pace::Open { per_second } => (None, Some(per_second)),
            Pace::Closed { outstanding } => (Some(outstanding), None),
        };
        let late =
            |quantile| if offered_per_s.is_some() { record.lateness_us(quantile) } else { 0.0 };
        Self {
            workload: spec.workload,
            mode: spec.setup.mode.to_string(),
            replicas: spec.setup.replicas,
            durability: spec.setup.durability.clone(),
            policy: spec.setup.policy.clone(),
            queue_bound: spec.setup.queue_bound,
            request_bytes: spec.request_bytes,
            netns: spec.setup.netns.is_some(),
            outstanding,
            clients: spec.clients,
            generators: spec.generators.clamp(1, spec.clients),
            seconds: measured.duration.as_secs_f64(),
            offered_per_s,
            achieved_per_s: measured.achieved_per_s,
            p50_us: record.quantile_us(0.5),
            p99_us: record.quantile_us(0.99),
            p999_us: record.quantile_us(0.999),
            p99_interval_us: measured.p99_interval_us,
            failed: record.failed,
            dropped: measured.dropped,
            tests: measured.tests.clone(),
            cpu_us_per_op: CpuPerOp {
                leader: leader.cpu_us_per_op(),
                followers: follower.map_or(0.0, |it| it.cpu_us_per_op()),
                client: costs.client_cpu_us_per_op,
                replicas_total: costs.replicas_cpu_us_per_op,
                switch: switch.map_or(0.0, |it| it.cpu_us_per_op()),
            },
            leader,
            follower,
            switch,
            by_switch: spec.setup.switch().is_some_and(|it| it.disseminates),
            leader_changed,
            generator: Generator {
                core_share: measured.generator_share,
                lateness_p50_us: late(0.5),
                lateness_p99_us: late(0.99),
                bottleneck: measured.bottleneck.clone(),
            },
            max_under_slo: None,
            failover: None,
            histogram_ns: record
                .latency_ns
                .iter_recorded()
                .map(|it| (it.value_iterated_to(), it.count_at_value()))
                .collect(),
            machine,
            commit: commit(),
            unix_seconds: unix_seconds(),
        }
    }

    /// What a person wants to know.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Self { mode, replicas, durability, policy, clients, .. } = self;
        writeln!(
            text,
            "{}, {mode}, {replicas} replicas, {durability}, {policy} replies, B = {}, {}-byte \
             requests, {clients} clients, {:.1} s",
            self.workload.name(),
            self.queue_bound,
            self.request_bytes,
            self.seconds
        )?;
        match (self.offered_per_s, self.outstanding) {
            (Some(offered), _) => write!(text, "  open loop, {offered:.0} offered")?,
            (None, outstanding) => {
                write!(text, "  closed loop, {} outstanding", outstanding.unwrap_or_default())?;
            }
        }
        writeln!(text, ": {:.0} requests/s", self.achieved_per_s)?;
        write!(
            text,
            "  latency p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs",
            self.p50_us, self.p99_us, self.p999_us
        )?;
        match self.p99_interval_us {
            Some(Interval { low, high }) => {
                writeln!(text, "; p99 is in {low:.1} … {high:.1} with 95 % confidence")?;
            }
            None => writeln!(text, "; too few samples for an interval of p99")?,
        }
        writeln!(text, "  {} failed, {} not admitted and sent again", self.failed, self.dropped)?;
        let cpu = &self.cpu_us_per_op;
        writeln!(
            text,
            "  CPU a request: leader {:.2} µs, follower {:.2}, all replicas {:.2}, switch {:.2}, client \
             {:.2}",
            cpu.leader, cpu.followers, cpu.replicas_total, cpu.switch, cpu.client
        )?;
        self.write_roles(text)?;
        let generator = &self.generator;
        writeln!(
            text,
            "  generator: {:.0} % of a core, late by {:.1} µs (p50) and {:.1} µs (p99)",
            generator.core_share * 100.0,
            generator.lateness_p50_us,
            generator.lateness_p99_us
        )?;
        if self.leader_changed {
            writeln!(text, "  the leader changed meanwhile: figures by role are mixed")?;
        }
        if self.tests.passed {
            writeln!(text, "  tests of the sample: all passed")?;
        }
        for failure in &self.tests.failures {
            writeln!(text, "  NOT TO BE TRUSTED: {failure}")?;
        }
        if let Some(failover) = &self.failover {
            writeln!(text, "  {}", failover.describe())?;
        }
        if let Some(found) = &self.max_under_slo {
            match found.max_per_s {
                Some(max) => writeln!(
                    text,
                    "  at most {:.0} requests/s ({:.0} … {:.0}) with p99 ≤ {:.0} µs",
                    max.median, max.low, max.high, found.slo_us
                )?,
                None => writeln!(text, "  p99 ≤ {:.0} µs was never kept", found.slo_us)?,
            }
        }
        Ok(())
    }
}

impl Outcome {
    fn write_roles(&self, text: &mut String) -> std::fmt::Result {
        let head = ["a request", "leader", "follower", "switch"];
        writeln!(text, "  {:<24} {:>10} {:>10} {:>10}", head[0], head[1], head[2], head[3])?;
        for (name, of) in LINES {
            let other = |cost: Option<RoleCost>| {
                cost.map_or("-".to_owned(), |cost| format!("{:.3}", of(&cost)))
            };
            let (follower, switch) = (other(self.follower), other(self.switch));
            writeln!(text, "  {name:<24} {:>10.3} {follower:>10} {switch:>10}", of(&self.leader))?;
        }
        Ok(())
    }
}

type Field = fn(&RoleCost) -> f64;

/// The lines by role.
const LINES: &[(&str, Field)] = &[
    ("CPU user, µs", |it| it.cpu_user_us_per_op),
    ("CPU system, µs", |it| it.cpu_system_us_per_op),
    ("datagrams in", |it| it.datagrams_in_per_op),
    ("datagrams out", |it| it.datagrams_out_per_op),
    ("bytes in", |it| it.bytes_in_per_op),
    ("bytes out", |it| it.bytes_out_per_op),
    ("  ordering", |it| it.ordering.bytes_per_op),
    ("  announcements", |it| it.announcements.bytes_per_op),
    ("  acknowledgements", |it| it.acknowledgements.bytes_per_op),
    ("  recovery", |it| it.recovery.bytes_per_op),
    ("  replies and the rest", |it| it.replies_and_rest.bytes_per_op),
    ("system calls", |it| it.system_calls_per_op),
    ("context switches", |it| it.context_switches_per_op),
    ("disk bytes", |it| it.disk_bytes_per_op),
    ("group commits", |it| it.group_commits_per_op),
];
