//! What the demo found out: judged, for people to read, and as JSON.

use std::{fmt, ops::Range};

use hovercraft::{Mode, NodeId};
use hovercraft_jepsen::versions::Findings;
use indicatif::HumanCount;
use serde::Serialize;

use super::{
    measure::{Acknowledged, Latency, Span},
    timeline::{Fault, Timeline},
};

/// What the demo saw.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) mode: Mode,
    pub(super) replicas: u16,
    pub(super) clients: u32,
    /// How many operations of the load had which outcome.
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
    pub(super) not_executed: u64,
    /// How many requests each replica answered.
    pub(super) answered_by: Vec<(NodeId, u64)>,
    pub(super) timeline: Timeline,
    /// What the check of the history found; none if it could not be made.
    pub(super) findings: Option<Findings>,
}

/// What that comes to.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) observed: Observed,
    /// The run in parts, with their names.
    phases: Vec<(&'static str, Span)>,
    pub(super) whole: Span,
    /// The longest time without service around the fault.
    pub(super) outage: Option<Range<u64>>,
    /// The longest time without service around the death of the switch.
    pub(super) switch_outage: Option<Range<u64>>,
    /// What is wrong; nothing if all is well.
    wrong: Vec<String>,
}

/// What `--json` writes; the help of the command tells the keys.
#[derive(Debug, Serialize)]
struct Json<'a> {
    mode: String,
    replicas: u16,
    acknowledged: u64,
    unknown: u64,
    lost: Option<u64>,
    duplicated: Option<u64>,
    stale_reads: Option<u64>,
    throughput_per_s: u64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    outage_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    switch_outage_ms: Option<u64>,
    verdict: &'a str,
}

impl Summary {
    pub(super) fn new(observed: Observed, acknowledged: &Acknowledged) -> Self {
        let stopped = observed.timeline.stopped_ns;
        let whole = acknowledged.span(0..stopped);
        let mut summary = Self {
            observed,
            phases: Vec::new(),
            whole,
            outage: None,
            switch_outage: None,
            wrong: Vec::new(),
        };
        summary.wrong.clone_from(&summary.observed.timeline.accidents);
        if summary.observed.acknowledged == 0 {
            summary.wrong.push("nothing was acknowledged".to_owned());
        }
        if let Some((killed_ns, restarted_ns)) = summary.observed.timeline.switch_ns {
            summary.judge_switch(killed_ns, restarted_ns, acknowledged);
        }
        if let Some(fault) = summary.observed.timeline.fault {
            summary.judge_fault(fault, acknowledged);
        } else {
            summary.phases.push(("the whole run", summary.whole.clone()));
        }
        summary.judge_history();
        summary
    }

    /// Nobody needs the switch: there is service before it is back.
    fn judge_switch(&mut self, killed_ns: u64, restarted_ns: u64, acknowledged: &Acknowledged) {
        let end = self
            .observed
            .timeline
            .fault
            .map_or(self.observed.timeline.stopped_ns, |it| it.killed_ns);
        let outage = acknowledged.longest_pause(&(killed_ns..end));
        if outage.end >= restarted_ns {
            self.wrong.push("no service while the switch was down".to_owned());
        }
        self.switch_outage = Some(outage);
    }

    fn judge_fault(&mut self, fault: Fault, acknowledged: &Acknowledged) {
        let Fault { killed_ns, restarted_ns, .. } = fault;
        let stopped = self.observed.timeline.stopped_ns;
        let after = acknowledged.span(restarted_ns..stopped);
        let outage = acknowledged.longest_pause(&(killed_ns..stopped));
        // Without the killed one the others are a majority: they need not wait for it.
        if self.observed.replicas > 2 && outage.end >= restarted_ns {
            self.wrong.push("no service while the leader was down".to_owned());
        }
        if after.count == 0 {
            self.wrong.push("no service after the fault".to_owned());
        }
        self.outage = Some(outage);
        self.phases = vec![
            ("before the fault", acknowledged.span(0..killed_ns)),
            ("with the leader dead", acknowledged.span(killed_ns..restarted_ns)),
            ("after its restart", after),
        ];
    }

    fn judge_history(&mut self) {
        let Some(findings) = &self.observed.findings else { return };
        let counts = [
            (findings.lost, "acknowledged writes lost"),
            (findings.duplicated, "writes executed too often"),
            (findings.stale_reads, "stale reads"),
            (findings.impossible_reads, "reads of what was not written"),
        ];
        let bad = counts.into_iter().filter(|(count, _)| *count > 0);
        self.wrong.extend(bad.map(|(count, what)| format!("{count} {what}")));
    }

    fn outage_ns(&self) -> u64 {
        self.outage.as_ref().map_or(0, |outage| outage.end - outage.start)
    }

    pub(super) fn is_ok(&self) -> bool {
        self.wrong.is_empty()
    }

    pub(super) fn verdict(&self) -> String {
        if self.is_ok() { "ok".to_owned() } else { self.wrong.join("; ") }
    }

    pub(super) fn to_json(&self) -> String {
        let Observed { mode, replicas, acknowledged, unknown, findings, .. } = &self.observed;
        let micros = |nanos: fn(&Latency) -> u64| {
            self.whole.latency.as_ref().map(|latency| nanos(latency).div_ceil(1000))
        };
        let json = Json {
            mode: mode.to_string(),
            replicas: *replicas,
            acknowledged: *acknowledged,
            unknown: *unknown,
            lost: findings.as_ref().map(|findings| findings.lost),
            duplicated: findings.as_ref().map(|findings| findings.duplicated),
            stale_reads: findings.as_ref().map(|findings| findings.stale_reads),
            throughput_per_s: self.whole.per_second(),
            p50_us: micros(|latency| latency.p50_ns),
            p99_us: micros(|latency| latency.p99_ns),
            outage_ms: self.outage_ns().div_ceil(1_000_000),
            switch_outage_ms: (self.switch_outage.as_ref())
                .map(|outage| (outage.end - outage.start).div_ceil(1_000_000)),
            verdict: &self.verdict(),
        };
        let text = serde_json::to_string_pretty(&json);
        text.expect("numbers and strings are always representable") + "\n"
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Observed { mode, replicas, clients, acknowledged, unknown, .. } = &self.observed;
        let Observed { not_executed, answered_by, timeline, findings, .. } = &self.observed;
        writeln!(f, "\nmode {mode}, replicas: {replicas}, callers: {clients}\n")?;
        self.write_phases(f)?;

        writeln!(f)?;
        f.write_str(&line("acknowledged", HumanCount(*acknowledged)))?;
        f.write_str(&line("unknown outcome", HumanCount(*unknown)))?;
        if *not_executed > 0 {
            f.write_str(&line("not executed", HumanCount(*not_executed)))?;
        }
        if let Some(findings) = findings {
            f.write_str(&line("lost", HumanCount(findings.lost)))?;
            f.write_str(&line("duplicated", HumanCount(findings.duplicated)))?;
            f.write_str(&line("stale reads", HumanCount(findings.stale_reads)))?;
        }
        if let Some(fault) = &timeline.fault {
            let outage = Nanos(self.outage_ns());
            f.write_str(&line(
                "without service",
                format_args!("{outage}, around the death of replica {}", fault.node),
            ))?;
        }
        if let Some(outage) = &self.switch_outage {
            let outage = Nanos(outage.end - outage.start);
            let what = format_args!("{outage}, around the death of the switch");
            f.write_str(&line("without service", what))?;
        }
        let total = answered_by.iter().map(|(_, count)| count).sum::<u64>().max(1) as f64;
        let shares = answered_by
            .iter()
            .map(|(node, count)| format!("replica {node} {:.0} %", *count as f64 * 100.0 / total));
        f.write_str(&line("answered by", shares.collect::<Vec<_>>().join(", ")))?;
        for example in findings.iter().flat_map(|findings| &findings.examples) {
            f.write_str(&line("for example", example))?;
        }
        Ok(())
    }
}

impl Summary {
    fn write_phases(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [requests, p50, p99, p999] = ["requests/s", "p50", "p99", "p99.9"];
        writeln!(f, "  {:22}{requests:>12}{p50:>11}{p99:>11}{p999:>11}", "")?;
        for (name, span) in &self.phases {
            let per_second = HumanCount(span.per_second());
            write!(f, "  {name:22}{:>12}", per_second.to_string())?;
            let latency = span.latency.map(|it| [it.p50_ns, it.p99_ns, it.p999_ns]);
            for nanos in latency.into_iter().flatten() {
                write!(f, "{:>11}", Nanos(nanos).to_string())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A line of the summary.
pub(super) fn line(name: &str, value: impl fmt::Display) -> String {
    format!("  {name:22}{value}\n")
}

/// A time for people to read, with three digits.
pub(super) struct Nanos(pub(super) u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            nanos if nanos < 1_000_000 => (nanos as f64 / 1e3, "µs"),
            nanos if nanos < 1_000_000_000 => (nanos as f64 / 1e6, "ms"),
            nanos => (nanos as f64 / 1e9, "s"),
        };
        let decimals = match value {
            value if value < 9.995 => 2,
            value if value < 99.95 => 1,
            _ => 0,
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}

#[cfg(test)]
pub(super) mod samples {
    use hovercraft_jepsen::{History, Operation, Outcome, Value};

    use super::*;

    /// Ten seconds with an operation every millisecond that took two, but none for 250 ms after the
    /// leader's death at 3.3 s.
    pub(crate) fn with_fault() -> (Summary, Acknowledged) {
        let times = (0..10_000).filter(|millis| !(3_300..3_549).contains(millis));
        let fault =
            Fault { node: NodeId(2), killed_ns: 3_300_000_000, restarted_ns: 6_600_000_000 };
        run(times, Some(fault), Vec::new())
    }

    /// A fault and not one operation.
    pub(crate) fn nothing() -> (Summary, Acknowledged) {
        let fault =
            Fault { node: NodeId(2), killed_ns: 3_300_000_000, restarted_ns: 6_600_000_000 };
        run(0..0, Some(fault), vec!["replica 1 has ended by itself".to_owned()])
    }

    pub(crate) fn run(
        times_ms: impl IntoIterator<Item = u64>,
        fault: Option<Fault>,
        accidents: Vec<String>,
    ) -> (Summary, Acknowledged) {
        let operation = |millis: u64| Operation {
            process: 0,
            f: "get".into(),
            key: "k".into(),
            argument: Value::Nil,
            invoked_ns: millis * 1_000_000,
            completed_ns: Some(millis * 1_000_000 + 2_000_000),
            outcome: Outcome::Ok(Value::Nil),
            line: 0,
        };
        let history = History::new(times_ms.into_iter().map(operation).collect());
        let acknowledged = Acknowledged::new(&history);
        let observed = Observed {
            mode: Mode::HovercRaft,
            replicas: 3,
            clients: 32,
            acknowledged: history.operations.len() as u64,
            unknown: 1,
            not_executed: 0,
            answered_by: vec![(NodeId(1), 600), (NodeId(2), 300), (NodeId(3), 100)],
            timeline: Timeline { fault, switch_ns: None, stopped_ns: 10_000_000_000, accidents },
            findings: Some(Findings::default()),
        };
        (Summary::new(observed, &acknowledged), acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn json_of(summary: &Summary) -> Value {
        serde_json::from_str(&summary.to_json()).expect("JSON")
    }

    #[test]
    fn the_json_has_the_keys_that_are_documented() {
        let (summary, _) = samples::with_fault();
        let expected = json!({
            "mode": "hovercraft",
            "replicas": 3,
            "acknowledged": 9751,
            "unknown": 1,
            "lost": 0,
            "duplicated": 0,
            "stale_reads": 0,
            "throughput_per_s": 974,
            "p50_us": 2000,
            "p99_us": 2000,
            "outage_ms": 250,
            "verdict": "ok",
        });
        assert_eq!(json_of(&summary), expected);
    }

    #[test]
    fn people_read_the_phases_and_the_verdict() {
        let (summary, _) = samples::with_fault();
        let text = summary.to_string();
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        let has = |line: &str| words.contains(&line.split_whitespace().collect());
        assert!(has("before the fault 999 2.00 ms 2.00 ms 2.00 ms"), "{text}");
        assert!(has("without service 250 ms, around the death of replica 2"), "{text}");
        assert!(has("answered by replica 1 60 %, replica 2 30 %, replica 3 10 %"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_the_verdict() {
        let verdict = |(summary, _): (Summary, Acknowledged)| summary.verdict();
        let fault =
            Fault { node: NodeId(2), killed_ns: 3_000_000_000, restarted_ns: 6_000_000_000 };
        let never = "nothing was acknowledged; no service while the leader was down; no service \
                     after the fault";
        assert_eq!(verdict(samples::run([], Some(fault), vec![])), never);
        let until = |millis| samples::run(0..millis, Some(fault), vec![]);
        let dead = "no service while the leader was down; no service after the fault";
        assert_eq!(verdict(until(2990)), dead);
        let only_by_restart = samples::run((0..2990).chain(7000..9000), Some(fault), vec![]);
        assert_eq!(verdict(only_by_restart), "no service while the leader was down");
        let accident = samples::run(0..9000, None, vec!["replica 1 has ended".to_owned()]);
        assert_eq!(json_of(&accident.0)["outage_ms"], 0);
        assert_eq!(verdict(accident), "replica 1 has ended");

        let (summary, acknowledged) = samples::with_fault();
        let findings = Findings { lost: 2, stale_reads: 1, ..Findings::default() };
        let observed = Observed { findings: Some(findings), ..summary.observed };
        let summary = Summary::new(observed, &acknowledged);
        assert_eq!(summary.verdict(), "2 acknowledged writes lost; 1 stale reads");
        assert_eq!((&json_of(&summary)["lost"], summary.is_ok()), (&json!(2), false));
    }

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let times = [(1_500, "1.50 µs"), (99_960, "100 µs"), (12_345_678, "12.3 ms")];
        for (nanos, text) in times {
            assert_eq!(Nanos(nanos).to_string(), text);
        }
        assert_eq!(Nanos(3_201_000_000).to_string(), "3.20 s");
    }
}
