//! The clocks of a replica: one that counts from its start, a little too fast or too slow, and one
//! that says what time it is, and may be set.

use r2p2::Time;

const MILLION: u128 = 1_000_000;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// When the replica's process started, or its speed last changed.
    origin: Time,
    /// What it showed then.
    shown_ns: u64,
    /// How fast it goes, in millionths of the true speed.
    speed_ppm: u64,
    /// What the wall clock shows beyond the true time, in microseconds.
    wall_offset_us: i64,
}

/// The wall clock at the beginning of a run: long enough after 1970 for jumps back.
const EPOCH_US: i64 = 1_000_000_000_000_000;

impl Clock {
    pub(crate) fn new(speed_ppm: u64, wall_offset_us: i64) -> Self {
        Self { origin: Time::ZERO, shown_ns: 0, speed_ppm, wall_offset_us }
    }

    /// The process starts: it counts from here.
    pub(crate) fn start(&mut self, now: Time) {
        (self.origin, self.shown_ns) = (now, 0);
    }

    /// It goes faster or slower by so many millionths.
    pub(crate) fn drift(&mut self, now: Time, by_ppm: i64) {
        (self.origin, self.shown_ns) = (now, self.local(now).as_nanos());
        self.speed_ppm = self.speed_ppm.saturating_add_signed(by_ppm).max(1);
    }

    /// Somebody sets the wall clock.
    pub(crate) fn jump(&mut self, by_us: i64) {
        self.wall_offset_us = self.wall_offset_us.saturating_add(by_us);
    }

    /// What the replica takes the time to be.
    pub(crate) fn local(&self, now: Time) -> Time {
        let passed_ns = now.as_nanos() - self.origin.as_nanos();
        if u128::from(self.speed_ppm) == MILLION {
            return Time::from_nanos(self.shown_ns + passed_ns);
        }
        // Most runs take seconds, and a division of 128 bits is a slow one.
        if let Some(scaled) = passed_ns.checked_mul(self.speed_ppm) {
            return Time::from_nanos(self.shown_ns.saturating_add(scaled / MILLION as u64));
        }
        let passed = u128::from(passed_ns);
        let counted = u128::from(self.shown_ns) + passed * u128::from(self.speed_ppm) / MILLION;
        Time::from_nanos(u64::try_from(counted).unwrap_or(u64::MAX))
    }

    /// The first true time at which [`Self::local`] is at least `local`.
    pub(crate) fn global(&self, local: Time) -> Time {
        let counted_ns = local.as_nanos().saturating_sub(self.shown_ns);
        if let Some(scaled) = counted_ns.checked_mul(MILLION as u64) {
            let passed_ns = scaled.div_ceil(self.speed_ppm);
            return Time::from_nanos(self.origin.as_nanos().saturating_add(passed_ns));
        }
        let counted = u128::from(counted_ns);
        let passed = (counted * MILLION).div_ceil(u128::from(self.speed_ppm));
        let at = u128::from(self.origin.as_nanos()) + passed;
        Time::from_nanos(u64::try_from(at).unwrap_or(u64::MAX))
    }

    /// The wall clock, in microseconds since 1970.
    pub(crate) fn wall_us(&self, now: Time) -> u64 {
        let true_us = EPOCH_US.saturating_add_unsigned(now.as_micros());
        u64::try_from(true_us.saturating_add(self.wall_offset_us)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_at_the_time_that_it_maps_to_and_not_before() {
        for speed_ppm in [900_000, 999_983, 1_000_000, 1_000_017, 1_100_000] {
            let mut clock = Clock::new(speed_ppm, 0);
            clock.start(Time::from_nanos(345));
            clock.drift(Time::from_nanos(12_345), 1717);
            for nanos in [0, 1, 7, 999_999, 123_456_789_012, 123_456_789_012_345_678] {
                let local = Time::from_nanos(nanos);
                let at = clock.global(local);
                assert!(clock.local(at) >= local);
                if at > Time::from_nanos(12_345) {
                    assert!(clock.local(Time::from_nanos(at.as_nanos() - 1)) < local);
                }
            }
        }
    }
}
