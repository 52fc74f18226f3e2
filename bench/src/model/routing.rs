//! Servers behind a router, simulated: how long requests are in the system under each way to choose a
//! server, and what is known of that in closed form.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use super::queue::Check;

/// Who gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// Whoever is free: one queue for all, the best that can be done without knowing service times.
    SingleQueue,
    /// The shortest queue, none longer than so many, the one in service among them; what finds no
    /// room waits before the servers.
    Jbsq(usize),
    /// The shortest queue.
    ShortestQueue,
    /// One after the other.
    RoundRobin,
    /// Anyone.
    Random,
}

/// A service time, in µs.
pub type Draw = fn(&mut fastrand::Rng) -> f64;

/// What is simulated: Poisson arrivals at servers that are equal.
#[derive(Debug, Clone, Copy)]
pub struct Routing {
    /// Who gets a request.
    pub discipline: Discipline,
    /// How many there are.
    pub servers: usize,
    /// The share of the time in which they have something to do.
    pub load: f64,
    /// Of a request.
    pub service_us: Draw,
    /// Its mean.
    pub mean_us: f64,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    arrived_us: f64,
    service_us: f64,
}

/// A time that can be put in order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct At(f64);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Simulation {
    discipline: Discipline,
    /// The first of each queue is in service.
    queues: Vec<VecDeque<Job>>,
    waiting: VecDeque<Job>,
    /// When each server is done with what it serves.
    ends: BinaryHeap<Reverse<(At, usize)>>,
    turn: usize,
    rng: fastrand::Rng,
    /// Times in the system, in µs, in the order of their ends.
    done: Vec<f64>,
}

impl Routing {
    /// The times in the system of so many requests, in µs, after as many as it takes to forget the
    /// beginning.
    ///
    /// # Panics
    ///
    /// If there is no server.
    pub fn sojourns_us(&self, count: usize, seed: u64) -> Vec<f64> {
        assert!(self.servers > 0, "somebody serves");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut simulation = Simulation {
            discipline: self.discipline,
            queues: vec![VecDeque::new(); self.servers],
            waiting: VecDeque::new(),
            ends: BinaryHeap::new(),
            turn: 0,
            rng: rng.fork(),
            done: Vec::with_capacity(count),
        };
        let per_us = self.load * self.servers as f64 / self.mean_us;
        let forgotten = count / 20;
        let mut now_us = 0.0;
        while simulation.done.len() < count + forgotten {
            now_us += exponential(&mut rng) / per_us;
            let service_us = (self.service_us)(&mut rng);
            simulation.end_until(now_us);
            simulation.arrive(Job { arrived_us: now_us, service_us }, now_us);
        }
        simulation.done.drain(..forgotten);
        simulation.done.truncate(count);
        simulation.done
    }
}

impl Simulation {
    fn arrive(&mut self, job: Job, now_us: f64) {
        match self.choose() {
            Some(server) => self.give(server, job, now_us),
            None => self.waiting.push_back(job),
        }
    }

    /// None if all are as busy as they may be.
    fn choose(&mut self) -> Option<usize> {
        let count = self.queues.len();
        match self.discipline {
            Discipline::SingleQueue => self.shortest(1),
            Discipline::Jbsq(bound) => self.shortest(bound),
            Discipline::ShortestQueue => self.shortest(usize::MAX),
            Discipline::RoundRobin => {
                self.turn = (self.turn + 1) % count;
                Some(self.turn)
            }
            Discipline::Random => Some(self.rng.usize(..count)),
        }
    }

    /// The server with the fewest, if it has fewer than `bound`. Of equals each is as likely.
    fn shortest(&mut self, bound: usize) -> Option<usize> {
        let least = self.queues.iter().map(VecDeque::len).min()?;
        let is_least = |server: &usize| self.queues[*server].len() == least;
        let equals = (0..self.queues.len()).filter(is_least).count();
        let chosen = self.rng.usize(..equals);
        let server = (0..self.queues.len()).filter(is_least).nth(chosen);
        server.filter(|_| least < bound)
    }

    fn give(&mut self, server: usize, job: Job, now_us: f64) {
        self.queues[server].push_back(job);
        if self.queues[server].len() == 1 {
            self.ends.push(Reverse((At(now_us + job.service_us), server)));
        }
    }

    fn end_until(&mut self, now_us: f64) {
        while let Some(&Reverse((At(end_us), server))) = self.ends.peek()
            && end_us <= now_us
        {
            self.ends.pop();
            let job = self.queues[server].pop_front().expect("it has served somebody");
            self.done.push(end_us - job.arrived_us);
            if let Some(next) = self.queues[server].front() {
                self.ends.push(Reverse((At(end_us + next.service_us), server)));
            }
            if let Some(job) = self.waiting.pop_front() {
                self.give(server, job, end_us);
            }
        }
    }
}

/// With the mean 1.
fn exponential(rng: &mut fastrand::Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}

/// The mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// A quantile; 0 of nothing.
pub fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_sign_loss, reason = "a share of a count")]
    let place = (sorted.len() as f64 * quantile) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// The mean of all service times here, in µs.
pub const MEAN_US: f64 = 10.0;

fn fixed(_: &mut fastrand::Rng) -> f64 {
    MEAN_US
}

fn exponential_service(rng: &mut fastrand::Rng) -> f64 {
    MEAN_US * exponential(rng)
}

/// One in ten takes ten times as long as the others: the service of the paper's Figure 11.
pub fn bimodal(rng: &mut fastrand::Rng) -> f64 {
    if rng.f64() < 0.1 { 10.0 * MEAN_US / 1.9 } else { MEAN_US / 1.9 }
}

/// One in ten is exponential with a mean ten times that of the others.
fn hyperexponential(rng: &mut fastrand::Rng) -> f64 {
    bimodal(rng) * exponential(rng)
}

/// Known results and what the simulation makes of them, with so many requests each.
pub fn checks(count: usize) -> Vec<Check> {
    let simulate = |discipline, servers, load, service_us, seed| {
        let routing = Routing { discipline, servers, load, service_us, mean_us: MEAN_US };
        routing.sojourns_us(count, seed)
    };
    let wait = |sojourns: &[f64]| mean(sojourns) / MEAN_US - 1.0;
    let mut checks = Vec::new();
    let mut add = |queue: String, known: f64, simulated: f64| {
        checks.push(Check { queue, known, simulated });
    };
    for (servers, load) in [(2, 0.7), (4, 0.8)] {
        let done = simulate(Discipline::SingleQueue, servers, load, fixed, 3);
        add(format!("M/D/{servers} at {load}"), mdk_wait(servers, load), wait(&done));
    }
    for (servers, load, known) in MH2K_WAITS {
        let done = simulate(Discipline::SingleQueue, servers, load, hyperexponential, 5);
        add(format!("M/H2/{servers} at {load}"), known, wait(&done));
    }
    let done = simulate(Discipline::SingleQueue, 4, 0.8, exponential_service, 7);
    let p99 = quantile(&done, 0.99) / MEAN_US;
    add("M/M/4 at 0.8, p99 in the system".to_owned(), mmk_p99(4, 0.8), p99);
    let done = simulate(Discipline::Random, 4, 0.5, bimodal, 9);
    // The second moment of the bimodal time is 10.9 / 1.9² of the squared mean.
    let known = mg1_wait(0.5, 10.9 / (1.9 * 1.9));
    add("4 × M/G/1 (bimodal) at 0.5, by random choice".to_owned(), known, wait(&done));
    let done = simulate(Discipline::RoundRobin, 4, 0.8, exponential_service, 11);
    add("4 × E4/M/1 at 0.8, by turns".to_owned(), ekm1_wait(4, 0.8), wait(&done));
    checks
}

/// Pollaczek and Khinchine: the mean wait in an M/G/1 queue in units of the mean service time, by the
/// second moment in units of its square.
pub fn mg1_wait(load: f64, second_moment: f64) -> f64 {
    load * second_moment / (2.0 * (1.0 - load))
}

/// Crommelin's formula: the mean wait in an M/D/k queue, in units of the service time.
pub fn mdk_wait(servers: usize, load: f64) -> f64 {
    let offered = load * servers as f64;
    let tail = |mean: f64, from: usize| -> f64 {
        // The logarithm of the first term, so that no power overflows.
        let log =
            |n: usize| n as f64 * mean.ln() - mean - (1..=n).map(|i| (i as f64).ln()).sum::<f64>();
        let mut term = log(from).exp();
        let mut sum = 0.0;
        let mut n = from;
        while term > sum * 1e-17 {
            sum += term;
            n += 1;
            term *= mean / n as f64;
        }
        sum
    };
    let mut wait = 0.0;
    for turn in 1..10_000 {
        let mean = turn as f64 * offered;
        let first = turn * servers;
        let part = tail(mean, first) - tail(mean, first + 1) / load;
        wait += part;
        if part.abs() < 1e-12 {
            break;
        }
    }
    wait
}

/// The p99 of the time in the system of an M/M/k queue, in units of the mean service time.
pub fn mmk_p99(servers: usize, load: f64) -> f64 {
    // That somebody waits at all (Erlang's C), and how fast the wait decays.
    let decay = servers as f64 * (1.0 - load);
    let waits = super::queue::mmk_wait(servers, load) * decay;
    let above = |t: f64| {
        let both = (decay * (-t).exp() - (-decay * t).exp()) / (decay - 1.0);
        (1.0 - waits) * (-t).exp() + waits * both
    };
    let (mut low, mut high) = (0.0, 1000.0);
    while high - low > 1e-9 {
        let middle = f64::midpoint(low, high);
        if above(middle) > 0.01 { low = middle } else { high = middle }
    }
    low
}

/// The mean wait where each of several servers with exponential times gets every k-th request, in units of
/// the mean service time: the time between its requests is a sum of k exponential ones.
pub fn ekm1_wait(servers: usize, load: f64) -> f64 {
    let k = servers as f64;
    // sigma = E[exp(-(1 - sigma) × gap)], by iteration.
    let mut sigma = 0.5;
    for _ in 0..10_000 {
        let rate = load * k;
        sigma = (rate / (rate + 1.0 - sigma)).powf(k);
    }
    sigma / (1.0 - sigma)
}

/// Servers, load, and the mean wait of M/H2/k in units of the mean service time, where one in ten requests
/// is exponential with a mean ten times that of the others: solved as a Markov chain by
/// `tests/vectors/queues.py`.
const MH2K_WAITS: [(usize, f64, f64); 2] = [(2, 0.7, 2.712_675), (4, 0.8, 2.056_9)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_results_come_out_as_known() {
        for check in checks(4_000_000) {
            assert!(check.error() < 0.02, "{check:?}");
        }
    }

    #[test]
    fn formulas_have_their_known_values() {
        // M/D/1 is also Pollaczek's and Khinchine's.
        assert!((mdk_wait(1, 0.5) - 0.5).abs() < 1e-9);
        assert!((mdk_wait(1, 0.9) - mg1_wait(0.9, 1.0)).abs() < 1e-6);
        // M/M/1: exponential with the mean 1 / (1 - load).
        let known = 100f64.ln() / 0.3;
        assert!((mmk_p99(1, 0.7 + 1e-12) - known).abs() < 1e-3, "{}", mmk_p99(1, 0.7));
        assert!((ekm1_wait(1, 0.7) - 0.7 / 0.3).abs() < 1e-9);
    }

    #[test]
    fn a_bound_of_one_is_a_single_queue_and_a_large_one_none() {
        let p99 = |discipline| {
            let routing = Routing {
                discipline,
                servers: 4,
                load: 0.8,
                service_us: bimodal,
                mean_us: MEAN_US,
            };
            quantile(&routing.sojourns_us(200_000, 1), 0.99)
        };
        let same = |a, b| assert!((p99(a) - p99(b)).abs() < 1e-6);
        same(Discipline::Jbsq(1), Discipline::SingleQueue);
        same(Discipline::Jbsq(100_000), Discipline::ShortestQueue);
        let order = [
            p99(Discipline::SingleQueue),
            p99(Discipline::Jbsq(3)),
            p99(Discipline::RoundRobin),
            p99(Discipline::Random),
        ];
        assert!(order.is_sorted(), "{order:?}");
    }
}
