//! The synthetic service of the paper's evaluation (§7): it burns processor time, or waits, and returns
//! bytes.
//!
//! Each request says what it costs, so one running cluster serves every workload. The share of
//! reads is the client's: it sends a request as a command or as a query. Integers are
//! little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | distribution: 0 fixed, 1 exponential, 2 bimodal; plus 128 to wait instead of burning |
//! | 4 | mean service time in nanoseconds, at most [`MEAN_NS_MAX`] |
//! | 4 | bytes in the reply, at most [`REPLY_BYTES_MAX`] |
//! | … | padding, ignored, to make the request as large as the workload wants |
//!
//! The reply begins with the number of commands executed so far (u64, or as much of it as fits) and
//! is filled up with zeros. What is not a request is answered with [`MALFORMED`].

use std::{
    hint::black_box,
    io::{self, Read, Write},
    num::NonZeroU64,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hovercraft::{Context, SnapshotWriter, StateMachine};

/// The longest mean service time: 100 ms, in nanoseconds.
pub const MEAN_NS_MAX: u32 = 100_000_000;

/// The largest reply, in bytes.
pub const REPLY_BYTES_MAX: u32 = 8 << 20;

/// The reply to bytes that are not a request.
pub const MALFORMED: &[u8] = b"malformed synthetic request";

const VERSION: u8 = 1;
const WAITS: u8 = 128;
const HEADER_BYTES: usize = 10;

/// How the service times of equal requests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// They do not.
    Fixed,
    /// Exponential.
    Exponential,
    /// One in ten takes ten times as long as the others.
    Bimodal,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticRequest {
    /// How service times differ.
    pub distribution: Distribution,
    /// Whether the time is waited, as for a device, and not burned: then servers that share a core do
    /// not slow each other down.
    pub waits: bool,
    /// Their mean, in nanoseconds.
    pub mean_ns: u32,
    /// The size of the reply.
    pub reply_bytes: u32,
}

impl SyntheticRequest {
    /// The bytes of the request, padded to `size` bytes (and never fewer than the 10 it needs).
    pub fn encode(&self, size: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(size.max(HEADER_BYTES));
        bytes.push(VERSION);
        let distribution = match self.distribution {
            Distribution::Fixed => 0,
            Distribution::Exponential => 1,
            Distribution::Bimodal => 2,
        };
        bytes.push(if self.waits { distribution | WAITS } else { distribution });
        bytes.extend(self.mean_ns.to_le_bytes());
        bytes.extend(self.reply_bytes.to_le_bytes());
        bytes.resize(size.max(HEADER_BYTES), 0);
        bytes.into()
    }

    /// Reads a request; none if it is not one, or asks for more than the limits.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let &[VERSION, distribution, m0, m1, m2, m3, r0, r1, r2, r3] = header else {
            return None;
        };
        let request = Self {
            distribution: match distribution & !WAITS {
                0 => Distribution::Fixed,
                1 => Distribution::Exponential,
                2 => Distribution::Bimodal,
                _ => return None,
            },
            waits: distribution & WAITS != 0,
            mean_ns: u32::from_le_bytes([m0, m1, m2, m3]),
            reply_bytes: u32::from_le_bytes([r0, r1, r2, r3]),
        };
        let within = request.mean_ns <= MEAN_NS_MAX && request.reply_bytes <= REPLY_BYTES_MAX;
        within.then_some(request)
    }

    /// The service time that `seed` draws.
    pub fn service_time(&self, seed: u64) -> Duration {
        let mean = Duration::from_nanos(u64::from(self.mean_ns));
        match self.distribution {
            Distribution::Fixed => mean,
            Distribution::Exponential => {
                // 53 bits make a fraction below 1, so the logarithm is finite.
                let fraction = (seed >> 11) as f64 / (1u64 << 53) as f64;
                mean.mul_f64(-(1.0 - fraction).ln())
            }
            Distribution::Bimodal => {
                // With s for nine and 10 s for one, the mean is 1.9 s.
                let short = mean.mul_f64(1.0 / 1.9);
                let long = seed < u64::MAX / 10;
                if long { short * 10 } else { short }
            }
        }
    }
}

/// Burns time and counts. The time that it takes is not state: replicas may differ in it.
#[derive(Debug)]
pub struct SyntheticService {
    spinner: Spinner,
    executed: u64,
}

impl SyntheticService {
    /// A service that has executed nothing. Takes some milliseconds to learn this machine's speed.
    pub fn new() -> Self {
        Self { spinner: Spinner::calibrate(), executed: 0 }
    }

    fn serve(&self, request: SyntheticRequest, context: &Context, reply: &mut Vec<u8>) {
        let time = request.service_time(context.seed);
        if request.waits {
            wait(time);
        } else {
            self.spinner.spin(time);
        }
        let end = reply.len() + request.reply_bytes as usize;
        reply.extend(self.executed.to_le_bytes());
        reply.resize(end, 0);
    }
}

impl Default for SyntheticService {
    fn default() -> Self {
        Self::new()
    }
}

impl StateMachine for SyntheticService {
    fn execute(&mut self, context: &Context, command: &[u8], reply: &mut Vec<u8>) {
        match SyntheticRequest::decode(command) {
            Some(request) => {
                self.executed += 1;
                self.serve(request, context, reply);
            }
            None => reply.extend(MALFORMED),
        }
    }

    fn query(&self, context: &Context, query: &[u8], reply: &mut Vec<u8>) {
        match SyntheticRequest::decode(query) {
            Some(request) => self.serve(request, context, reply),
            None => reply.extend(MALFORMED),
        }
    }

    fn snapshot(&self) -> SnapshotWriter {
        let executed = self.executed;
        Box::new(move |output: &mut dyn Write| output.write_all(&executed.to_le_bytes()))
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut executed = [0; 8];
        snapshot.read_exact(&mut executed)?;
        self.executed = u64::from_le_bytes(executed);
        Ok(())
    }
}

/// Blocks for a time, as exactly as the kernel can.
fn wait(time: Duration) {
    // By default it may add 50 µs to every wait, which is much of a short one. If it refuses, it does.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    thread::sleep(time);
}

/// Burns processor time by counting rounds of arithmetic, not by watching a clock: a replica that
/// loses its core meanwhile then still does the whole work, as a real service would.
#[derive(Debug)]
struct Spinner {
    rounds_per_us: f64,
}

impl Spinner {
    /// Measures how fast this machine counts. Whatever disturbs a measurement makes it slower, so
    /// the fastest of a few is the truest.
    fn calibrate() -> Self {
        const SAMPLES: usize = 10;
        const ROUNDS: u64 = 200_000;
        let fastest = (0..SAMPLES)
            .map(|_| {
                let start = Instant::now();
                count(ROUNDS);
                start.elapsed()
            })
            .min()
            .expect("there are samples");
        Self { rounds_per_us: ROUNDS as f64 / (fastest.as_secs_f64() * 1e6).max(1.0) }
    }

    fn spin(&self, time: Duration) {
        #[allow(clippy::cast_sign_loss, reason = "a duration and a speed are not negative")]
        let rounds = (time.as_secs_f64() * 1e6 * self.rounds_per_us) as u64;
        count(rounds);
    }
}

/// Each round depends on the one before, so that no compiler and no processor skips any.
fn count(rounds: u64) {
    let mut value = black_box(1u64);
    for _ in 0..rounds {
        value = black_box(value.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(seed: u64) -> Context {
        Context { index: 1, time_us: 0, seed }
    }

    fn request(distribution: Distribution, mean_ns: u32) -> SyntheticRequest {
        SyntheticRequest { distribution, waits: false, mean_ns, reply_bytes: 8 }
    }

    /// The times that evenly spread seeds draw.
    fn times(distribution: Distribution) -> impl Iterator<Item = u128> {
        let step = u64::MAX / 100_000;
        (0..100_000).map(move |n| {
            let request = request(distribution, 10_000);
            request.service_time(n * step).as_nanos()
        })
    }

    #[test]
    fn every_distribution_has_the_mean_that_was_asked() {
        for distribution in [Distribution::Fixed, Distribution::Exponential, Distribution::Bimodal]
        {
            let mean = times(distribution).sum::<u128>() / 100_000;
            assert!(mean.abs_diff(10_000) < 100, "{distribution:?} has {mean} ns");
        }
    }

    #[test]
    fn one_in_ten_of_bimodal_is_ten_times_longer() {
        let short = times(Distribution::Bimodal).min().expect("some");
        let long = times(Distribution::Bimodal).filter(|time| *time >= 9 * short);
        assert_eq!(long.count().div_ceil(100), 101);
    }

    #[test]
    fn commands_count_and_queries_do_not() {
        let mut service = SyntheticService::new();
        let bytes = request(Distribution::Fixed, 0).encode(24);
        assert_eq!(bytes.len(), 24);
        let mut reply = Vec::new();
        service.execute(&context(1), &bytes, &mut reply);
        assert_eq!(reply, 1u64.to_le_bytes());
        service.query(&context(1), &bytes, &mut reply);
        assert_eq!(reply[8..], 1u64.to_le_bytes());
        let mut snapshot = Vec::new();
        service.snapshot()(&mut snapshot).expect("writing to a vector");
        let mut other = SyntheticService::new();
        other.restore(&mut snapshot.as_slice()).expect("a snapshot");
        assert_eq!(other.executed, 1);
    }

    #[test]
    fn the_reply_has_the_size_that_was_asked() {
        let mut service = SyntheticService::new();
        for size in [0, 3, 8, 6000] {
            let request = SyntheticRequest { reply_bytes: size, ..request(Distribution::Fixed, 0) };
            let mut reply = Vec::new();
            service.execute(&context(1), &request.encode(0), &mut reply);
            assert_eq!(reply.len(), size as usize);
        }
    }

    #[test]
    fn a_longer_service_time_takes_longer() {
        let service = SyntheticService::new();
        let elapsed = |mean_ns| {
            let bytes = request(Distribution::Fixed, mean_ns).encode(0);
            let start = Instant::now();
            service.query(&context(1), &bytes, &mut Vec::new());
            start.elapsed()
        };
        // Other processes can only lengthen it; a speed measured on a slowed core shortens it.
        assert!(elapsed(4_000_000) >= Duration::from_millis(1));
    }

    #[test]
    fn a_request_that_waits_takes_its_time() {
        let service = SyntheticService::new();
        let waits = SyntheticRequest { waits: true, ..request(Distribution::Fixed, 3_000_000) };
        let bytes = waits.encode(0);
        assert_eq!(SyntheticRequest::decode(&bytes), Some(waits));
        let start = Instant::now();
        service.query(&context(1), &bytes, &mut Vec::new());
        assert!(start.elapsed() >= Duration::from_millis(3));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(request) = SyntheticRequest::decode(&bytes) {
                prop_assert!(request.mean_ns <= MEAN_NS_MAX);
                prop_assert_eq!(&request.encode(10)[..], &bytes[..10]);
            }
        }

        #[test]
        fn no_seed_draws_an_endless_time(seed: u64) {
            let request = request(Distribution::Exponential, MEAN_NS_MAX);
            prop_assert!(request.service_time(seed) < Duration::from_secs(4));
        }
    }
}
