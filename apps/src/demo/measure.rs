//! What a history says about speed: exact percentiles over any span of time, and the longest pause.

use std::ops::Range;

use hovercraft_jepsen::History;

/// The acknowledged operations of a history, by when they were.
#[derive(Debug)]
pub(super) struct Acknowledged {
    /// When each was acknowledged and how long it took, in nanoseconds; in order of time.
    operations: Vec<(u64, u64)>,
}

/// The acknowledged operations of a span of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    /// From when to when, in nanoseconds since the load began.
    pub(super) time_ns: Range<u64>,
    /// How many.
    pub(super) count: usize,
    /// How long they took; none if there was none.
    pub(super) latency: Option<Latency>,
}

/// Percentiles, in nanoseconds. Each was really seen: the smallest one that at least so many
/// operations did not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Latency {
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) p999_ns: u64,
}

impl Acknowledged {
    pub(super) fn new(history: &History) -> Self {
        let acknowledged = history.operations.iter().filter(|it| it.is_acknowledged());
        let mut operations: Vec<_> = acknowledged
            .filter_map(|it| {
                Some((it.completed_ns?, it.completed_ns?.saturating_sub(it.invoked_ns)))
            })
            .collect();
        operations.sort_unstable();
        Self { operations }
    }

    pub(super) fn span(&self, time_ns: Range<u64>) -> Span {
        let operations = self.within(&time_ns);
        let mut latencies: Vec<u64> = operations.iter().map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        let percentile = |per_mille: usize| {
            let rank = (latencies.len() * per_mille).div_ceil(1000).max(1);
            latencies.get(rank - 1).copied()
        };
        let latency = percentile(500).zip(percentile(990)).zip(percentile(999));
        let latency =
            latency.map(|((p50_ns, p99_ns), p999_ns)| Latency { p50_ns, p99_ns, p999_ns });
        Span { time_ns, count: operations.len(), latency }
    }

    /// Equal spans that together are `time_ns`.
    pub(super) fn spans(&self, time_ns: &Range<u64>, count: u64) -> Vec<Span> {
        let length = time_ns.end - time_ns.start;
        let at = |number: u64| time_ns.start + length * number / count;
        (0..count).map(|number| self.span(at(number)..at(number + 1))).collect()
    }

    /// The longest time without an acknowledgement that ended within `time_ns`, or with it.
    pub(super) fn longest_pause(&self, time_ns: &Range<u64>) -> Range<u64> {
        let first = self.operations.partition_point(|(time, _)| *time < time_ns.start);
        // A pause begins with the last acknowledgement before.
        let mut last = first.checked_sub(1).map_or(0, |before| self.operations[before].0);
        let mut longest = last..last;
        let times = self.within(time_ns).iter().map(|(time, _)| *time);
        for time in times.chain([time_ns.end]) {
            if time - last > longest.end - longest.start {
                longest = last..time;
            }
            last = time;
        }
        longest
    }

    fn within(&self, time_ns: &Range<u64>) -> &[(u64, u64)] {
        let first = self.operations.partition_point(|(time, _)| *time < time_ns.start);
        let end = self.operations.partition_point(|(time, _)| *time < time_ns.end);
        &self.operations[first..end]
    }
}

impl Span {
    /// Acknowledged operations a second.
    pub(super) fn per_second(&self) -> u64 {
        let nanos = self.time_ns.end.saturating_sub(self.time_ns.start).max(1);
        (self.count as u128 * 1_000_000_000 / u128::from(nanos)) as u64
    }
}

#[cfg(test)]
mod tests {
    use hovercraft_jepsen::{Operation, Outcome, Value};

    use super::*;

    /// Operations that took as long as the time at which they completed, and one that failed.
    fn acknowledged(times: &[u64]) -> Acknowledged {
        let operation = |time, outcome| Operation {
            process: 0,
            f: "get".into(),
            key: "k".into(),
            argument: Value::Nil,
            invoked_ns: 0,
            completed_ns: Some(time),
            outcome,
            line: 0,
        };
        let mut operations: Vec<_> =
            times.iter().map(|time| operation(*time, Outcome::Ok(Value::Nil))).collect();
        operations.push(operation(1, Outcome::Fail));
        Acknowledged::new(&History::new(operations))
    }

    #[test]
    fn percentiles_are_those_of_the_span() {
        let times: Vec<_> = (1..=2000).rev().collect();
        let all = acknowledged(&times);
        let Span { count, latency, .. } = all.span(1..1001);
        let expected = Latency { p50_ns: 500, p99_ns: 990, p999_ns: 999 };
        assert_eq!((count, latency), (1000, Some(expected)));
        let one = all.span(7..8).latency.expect("one operation");
        assert_eq!((one.p50_ns, one.p999_ns), (7, 7));
        assert_eq!(all.span(3000..4000).latency, None);
    }

    #[test]
    fn spans_cover_the_time_without_gaps() {
        let all = acknowledged(&(0..100).collect::<Vec<_>>());
        let spans = all.spans(&(0..100), 7);
        assert_eq!(spans.iter().map(|span| span.count).sum::<usize>(), 100);
        assert!(spans.windows(2).all(|pair| pair[0].time_ns.end == pair[1].time_ns.start));
        assert_eq!(all.span(0..50).per_second(), 1_000_000_000);
    }

    #[test]
    fn the_longest_pause_may_begin_before_and_last_to_the_end() {
        let all = acknowledged(&[10, 20, 60, 70]);
        assert_eq!(all.longest_pause(&(0..75)), 20..60);
        assert_eq!(all.longest_pause(&(30..75)), 20..60);
        assert_eq!(all.longest_pause(&(61..75)), 60..70);
        assert_eq!(all.longest_pause(&(61..100)), 70..100);
        assert_eq!(acknowledged(&[]).longest_pause(&(5..9)), 0..9);
    }
}
