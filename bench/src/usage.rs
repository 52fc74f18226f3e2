//! What a process has cost so far, as the kernel counts it.

use std::{ops::Sub, time::Duration};

use procfs::process::Process;
use serde::Serialize;

/// Processor time, context switches and disk writes of a process, over all its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// In user mode. The sum with `system` is exact where the kernel keeps scheduler statistics, and
    /// otherwise counted in ticks, mostly of 10 ms; how it is split between the two is always.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
    /// Gave up its core, to wait for something.
    pub switches_voluntary: u64,
    /// Had to give it up.
    pub switches_forced: u64,
    /// Bytes that it caused to be written to a disk.
    pub disk_bytes: u64,
}

impl Usage {
    /// Of a process so far; none if it is gone.
    pub fn of(process: u32) -> Option<Self> {
        let process = Process::new(i32::try_from(process).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let tick = 1.0 / procfs::ticks_per_second() as f64;
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 * tick);
        let mut usage = Self {
            user: time(stat.utime),
            system: time(stat.stime),
            // What only a privileged user may read counts as nothing.
            disk_bytes: process.io().map_or(0, |io| io.write_bytes),
            ..Self::default()
        };
        let mut exact = Duration::ZERO;
        for task in process.tasks().ok()?.flatten() {
            exact += task
                .schedstat()
                .map_or(Duration::ZERO, |it| Duration::from_nanos(it.sum_exec_runtime));
            if let Ok(status) = task.status() {
                usage.switches_voluntary += status.voluntary_ctxt_switches.unwrap_or(0);
                usage.switches_forced += status.nonvoluntary_ctxt_switches.unwrap_or(0);
            }
        }
        // Threads that have ended are in the ticks only.
        let ticks = usage.cpu();
        if exact > ticks {
            let user = usage.user.as_secs_f64() / ticks.as_secs_f64();
            usage.user = exact.mul_f64(if ticks.is_zero() { 1.0 } else { user });
            usage.system = exact.saturating_sub(usage.user);
        }
        Some(usage)
    }

    /// User and system time.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

impl Sub for Usage {
    type Output = Self;

    /// What happened between two looks; the later one first.
    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            switches_voluntary: self.switches_voluntary.saturating_sub(earlier.switches_voluntary),
            switches_forced: self.switches_forced.saturating_sub(earlier.switches_forced),
            disk_bytes: self.disk_bytes.saturating_sub(earlier.disk_bytes),
        }
    }
}

/// User and system time of a process so far; zero if it is gone.
pub(crate) fn cpu_time(process: u32) -> Duration {
    Usage::of(process).map_or(Duration::ZERO, |usage| usage.cpu())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows_as_processor_time_and_a_process_that_is_gone_as_none() {
        let before = Usage::of(std::process::id()).expect("this process");
        let start = Instant::now();
        let mut sum = 0u64;
        // Beside others it may have to wait for a processor.
        loop {
            for _ in 0..1_000_000 {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
            let spent = Usage::of(std::process::id()).expect("this process") - before;
            if spent.cpu() >= Duration::from_millis(10) {
                break;
            }
            assert!(start.elapsed() < Duration::from_mins(1), "{spent:?}");
        }
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
