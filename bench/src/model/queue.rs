//! Queues with servers: what links, network cards, processors and services are made of here.

use std::time::Duration;

use r2p2::Time;

/// Servers with one queue in order of arrival.
#[derive(Debug, Clone)]
pub struct Queue {
    /// When each server has done what it has been given so far.
    free_at: Vec<Time>,
}

impl Queue {
    /// With so many servers, all of them idle.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn new(servers: usize) -> Self {
        assert!(servers > 0, "somebody serves");
        Self { free_at: vec![Time::ZERO; servers] }
    }

    /// Takes work that arrives now, which must not be before what arrived last; when it is done.
    pub fn serve(&mut self, now: Time, work: Duration) -> Time {
        let server = self.free_at.iter_mut().min().expect("somebody serves");
        let done = now.max(*server) + work;
        *server = done;
        done
    }

    /// Holds the only server up until then, though it has nothing to do.
    pub fn hold_until(&mut self, time: Time) {
        for server in &mut self.free_at {
            *server = time.max(*server);
        }
    }
}

/// A link of so many bits a second: what it carries leaves it one after the other.
#[derive(Debug, Clone)]
pub struct Link {
    queue: Queue,
    ns_per_byte: f64,
}

/// Ethernet, IP and UDP headers, preamble and gap of a frame, in bytes.
const FRAME_BYTES: usize = 66;
/// What a datagram carries at most.
const PAYLOAD_BYTES: usize = 1472;

impl Link {
    /// Of so many gigabits a second.
    pub fn new(gbit_per_s: f64) -> Self {
        Self { queue: Queue::new(1), ns_per_byte: 8.0 / gbit_per_s }
    }

    /// Carries a message of so many bytes, in as many frames as it takes; when the last bit has left.
    pub fn carry(&mut self, now: Time, bytes: usize) -> Time {
        let on_wire = bytes + frames(bytes) * FRAME_BYTES;
        #[expect(clippy::cast_sign_loss, reason = "a size times a positive number")]
        let nanos = (on_wire as f64 * self.ns_per_byte) as u64;
        self.queue.serve(now, Duration::from_nanos(nanos))
    }
}

/// How many frames a message of so many bytes takes.
pub fn frames(bytes: usize) -> usize {
    bytes.div_ceil(PAYLOAD_BYTES).max(1)
}

/// Mean waiting time before service, by simulation, with Poisson arrivals; for the check against
/// what is known in closed form.
pub fn mean_wait(
    servers: usize,
    load: f64,
    count: u64,
    seed: u64,
    mut service_us: impl FnMut(&mut fastrand::Rng) -> f64,
    mean_service_us: f64,
) -> f64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut queue = Queue::new(servers);
    let rate = load * servers as f64 / mean_service_us;
    let (mut now_us, mut waited) = (0.0, Duration::ZERO);
    for _ in 0..count {
        now_us += -(1.0 - rng.f64()).ln() / rate;
        #[expect(clippy::cast_sign_loss, reason = "time does not go backwards")]
        let now = Time::from_nanos((now_us * 1000.0) as u64);
        let work = Duration::from_secs_f64(service_us(&mut rng) * 1e-6);
        waited += queue.serve(now, work).since(now + work);
    }
    waited.as_secs_f64() * 1e6 / count as f64
}

/// Erlang's C formula: the mean wait in an M/M/k queue, in the unit of the mean service time.
pub fn mmk_wait(servers: usize, load: f64) -> f64 {
    let offered = load * servers as f64;
    let mut term = 1.0;
    let mut sum = 1.0;
    for place in 1..servers {
        term *= offered / place as f64;
        sum += term;
    }
    let last = term * offered / servers as f64 / (1.0 - load);
    last / (sum + last) / (servers as f64 * (1.0 - load))
}

/// Pollaczek and Khinchine: the mean wait in an M/D/1 queue, in the unit of the service time.
pub fn md1_wait(load: f64) -> f64 {
    load / (2.0 * (1.0 - load))
}

/// A known result and what the simulation makes of it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Check {
    /// Which queue.
    pub queue: String,
    /// The mean wait if nothing else is said, in units of the mean service time.
    pub known: f64,
    /// The same by simulation.
    pub simulated: f64,
}

impl Check {
    /// How far the simulation is off, as a share.
    pub fn error(&self) -> f64 {
        (self.simulated / self.known - 1.0).abs()
    }

    /// In a line.
    pub fn line(&self) -> String {
        format!(
            "  {:<44} known {:.4}, simulated {:.4}, off by {:.2} %",
            self.queue,
            self.known,
            self.simulated,
            self.error() * 100.0
        )
    }
}

/// Simulates queues whose results are known, with so many customers each.
pub fn checks(count: u64) -> Vec<Check> {
    let mut checks = Vec::new();
    for (seed, (servers, load)) in (17..).zip([(1, 0.5), (1, 0.7), (2, 0.7), (4, 0.7), (8, 0.7)]) {
        let exponential = |rng: &mut fastrand::Rng| -10.0 * (1.0 - rng.f64()).ln();
        let simulated = mean_wait(servers, load, count, seed, exponential, 10.0) / 10.0;
        let queue = format!("M/M/{servers} at {load}");
        checks.push(Check { queue, known: mmk_wait(servers, load), simulated });
    }
    for load in [0.3, 0.5, 0.7] {
        let simulated = mean_wait(1, load, count, 19, |_| 10.0, 10.0) / 10.0;
        checks.push(Check { queue: format!("M/D/1 at {load}"), known: md1_wait(load), simulated });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_queues_come_out_as_known() {
        for check in checks(4_000_000) {
            assert!(check.error() < 0.02, "{check:?}");
        }
    }

    #[test]
    fn the_formula_of_erlang_has_its_known_values() {
        // M/M/1: load / (1 − load).
        assert!((mmk_wait(1, 0.5) - 1.0).abs() < 1e-12);
        // M/M/2: load² / (1 − load²).
        assert!((mmk_wait(2, 0.5) - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_link_carries_frames_one_after_the_other() {
        let mut link = Link::new(8.0);
        let first = link.carry(Time::ZERO, 934);
        assert_eq!(first, Time::from_nanos(1000));
        assert_eq!(link.carry(Time::ZERO, 934), Time::from_nanos(2000));
        assert_eq!(frames(6000), 5);
    }
}
