//! Admission by the switch (P23–P25): how many requests may be in the system, and whose.
//!
//! The threshold bounds the identities that are admitted and not answered. Above seven eighths of it
//! only those clients are admitted that have less than an equal share, so that whoever sends the most
//! starves nobody. The SLO policy moves that bound. A request that is not to be dropped is admitted up to
//! twice the limit.

use std::{net::SocketAddrV4, time::Duration};

use r2p2::Time;

use crate::{
    core::{admission::Admission, lookup::Lookup},
    request::Identity,
};

/// What a switch admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// How many requests may be in the system (P24).
    pub limit: usize,
    /// A request that no FEEDBACK was heard of for so long does not count any more; the limit rises
    /// from 0 over as long after a start.
    pub age_max: Duration,
    /// With the SLO policy: 99 % of requests are to be answered within this (P25).
    pub slo: Option<Duration>,
}

crate::counts::counters! {
    /// Counts what happened since the start.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    #[expect(missing_docs, reason = "the names say what is counted")]
    pub struct AdmissionCounters {
        pub admitted: u64,
        /// Copies of requests that are in the system.
        pub retries: u64,
        pub answered: u64,
        /// FEEDBACK about what is not in the system: a second one, or of before the start.
        pub feedback_unknown: u64,
        /// Left the system by age.
        pub healed: u64,
        pub refused_full: u64,
        /// Their clients had more than an equal share.
        pub refused_unfair: u64,
        /// The SLO policy had lowered the limit.
        pub refused_slo: u64,
    }
}

/// The SLO policy decides anew when this has passed and enough has been answered, or much more time (P25).
const PERIOD: Duration = Duration::from_millis(20);
const PERIOD_MAX: Duration = Duration::from_secs(1);
const ANSWERED_MIN: u64 = 100;

/// The share of requests, in hundredths, that must meet the SLO, and the share of those that must take at
/// most three quarters of it: where requests wait for each other they all wait, so this is exceeded first.
const MEETS_MIN: u64 = 99;
const EARLY_MIN: u64 = 90;

/// When that is missed the limit is lowered by one such part; when it is met and the limit keeps requests
/// away, it is raised by one of the others.
const LOWERED_PART: usize = 8;
const RAISED_PART: usize = 64;

/// The policy does not lower the limit below this: a slow request or a lost FEEDBACK is no reason to refuse
/// everybody else.
const LIMIT_MIN: usize = 8;

/// The last part of the limit, for clients with less than an equal share.
const RESERVED_PART: usize = 8;

/// Decides which requests a switch passes on.
#[derive(Debug)]
pub struct SwitchAdmission {
    config: AdmissionConfig,
    /// With whose each is.
    system: Admission<SocketAddrV4>,
    /// How many requests each client has in the system.
    clients: Lookup<SocketAddrV4, usize>,
    started: Option<Time>,
    slo: Slo,
    counters: AdmissionCounters,
}

/// Requests wait about as long as there are others in the system, so the policy bounds how many there
/// are (P25). To drop a share of them would be to steer how fast a queue grows, and not how long it is: it
/// swings between far too many and nobody.
#[derive(Debug)]
struct Slo {
    /// How many may be in the system.
    limit: usize,
    /// When the present period began.
    since: Option<Time>,
    answered: u64,
    met: u64,
    /// Within three quarters of the SLO.
    early: u64,
    /// It kept a request away in this period.
    is_reached: bool,
    /// The most that were in the system in this period.
    here_max: usize,
}

impl Slo {
    fn begin(limit: usize, since: Option<Time>, here_max: usize) -> Self {
        Self { limit, since, answered: 0, met: 0, early: 0, is_reached: false, here_max }
    }

    fn answered(&mut self, slo: Duration, took: Duration) {
        self.answered += 1;
        self.met += u64::from(took <= slo);
        self.early += u64::from(took <= three_quarters(slo));
    }
}

impl SwitchAdmission {
    /// Nothing is in the system. Hash tables are seeded by `seed`.
    pub fn new(config: AdmissionConfig, seed: u64) -> Self {
        Self {
            config,
            system: Admission::new(config.limit, config.age_max, seed),
            clients: Lookup::new(seed),
            started: None,
            slo: Slo::begin(config.limit, None, 0),
            counters: AdmissionCounters::default(),
        }
    }

    /// Whether a request of a client may pass; `undroppable` if load is no reason to refuse it.
    pub fn admit(
        &mut self,
        now: Time,
        identity: Identity,
        client: SocketAddrV4,
        undroppable: bool,
    ) -> bool {
        self.handle_timeout(now);
        self.decide(now);
        if self.system.contains(&identity) {
            self.counters.retries += 1;
            return true;
        }
        if !self.has_room(now, client, undroppable) {
            return false;
        }
        self.counters.admitted += 1;
        self.system.insert(now, identity, client);
        self.slo.here_max = self.slo.here_max.max(self.system.len());
        let count = self.clients.get(&client).copied().unwrap_or(0);
        self.clients.insert(client, count + 1);
        true
    }

    /// Somebody has answered a request (P19).
    pub fn answered(&mut self, now: Time, identity: &Identity) {
        self.decide(now);
        let Some((admitted, client)) = self.system.release(identity) else {
            self.counters.feedback_unknown += 1;
            return;
        };
        self.counters.answered += 1;
        if let Some(slo) = self.config.slo {
            self.slo.answered(slo, now.since(admitted));
        }
        leave(&mut self.clients, client);
    }

    /// How many requests are in the system.
    pub fn len(&self) -> usize {
        self.system.len()
    }

    /// Whether nothing is in the system.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many requests the SLO policy lets into the system; without it the configured limit.
    pub fn slo_limit(&self) -> usize {
        self.slo.limit
    }

    /// What happened since the start.
    pub fn counters(&self) -> &AdmissionCounters {
        &self.counters
    }

    fn has_room(&mut self, now: Time, client: SocketAddrV4, undroppable: bool) -> bool {
        let here = self.system.len();
        if undroppable {
            let has_room = here < 2 * self.config.limit;
            self.counters.refused_full += u64::from(!has_room);
            return has_room;
        }
        let configured = self.limit(now);
        if here >= configured {
            self.counters.refused_full += 1;
            return false;
        }
        let limit = configured.min(self.slo.limit);
        if here >= limit {
            self.slo.is_reached = true;
            self.counters.refused_slo += 1;
            return false;
        }
        let own = self.clients.get(&client).copied().unwrap_or(0);
        // There is always room for one more client who may come.
        let share = limit / (self.clients.len() + 1);
        if here >= limit - limit / RESERVED_PART && own >= share.max(1) {
            self.slo.is_reached |= limit < configured;
            self.counters.refused_unfair += 1;
            return false;
        }
        true
    }

    /// What was admitted before the start is in the system and not known: after one age it is not
    /// any more (P24).
    fn limit(&mut self, now: Time) -> usize {
        let since = now.since(*self.started.get_or_insert(now));
        let age = self.config.age_max;
        if since >= age {
            return self.config.limit;
        }
        let part = since.as_nanos() * self.config.limit as u128 / age.as_nanos().max(1);
        // The first one must pass, or nothing would begin before a part of the age is over.
        (part as usize).max(1)
    }

    /// Forgets what is too old (P24).
    pub fn handle_timeout(&mut self, now: Time) {
        if planted!("feedback-leaks") {
            return;
        }
        let (clients, counters) = (&mut self.clients, &mut self.counters);
        self.system.expire(now, |client| {
            counters.healed += 1;
            leave(clients, client);
        });
    }

    /// At the end of every period the SLO policy lowers or raises its limit (P25).
    fn decide(&mut self, now: Time) {
        let Some(slo) = self.config.slo else {
            return;
        };
        let Slo { limit, answered, met, early, is_reached, here_max, .. } = self.slo;
        let passed = now.since(*self.slo.since.get_or_insert(now));
        if passed < PERIOD || (answered < ANSWERED_MIN && passed < PERIOD_MAX) {
            return;
        }
        let is_missed = if answered > 0 {
            early * 100 < answered * EARLY_MIN || (is_reached && met * 100 < answered * MEETS_MIN)
        } else {
            // Nothing is answered at all.
            self.system.oldest().is_some_and(|at| now.since(at) > slo)
        };
        let limit = if is_missed {
            // Of what was there: the limit may never have been reached.
            let from = limit.min(here_max);
            limit.min((from - from.div_ceil(LOWERED_PART)).max(LIMIT_MIN))
        } else if is_reached {
            limit + limit.div_ceil(RAISED_PART)
        } else {
            limit
        };
        self.slo = Slo::begin(limit.min(self.config.limit), Some(now), self.system.len());
    }
}

fn three_quarters(slo: Duration) -> Duration {
    slo / 4 * 3
}

fn leave(clients: &mut Lookup<SocketAddrV4, usize>, client: SocketAddrV4) {
    match clients.get(&client).copied() {
        Some(count) if count > 1 => {
            clients.insert(client, count - 1);
        }
        _ => {
            clients.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, net::Ipv4Addr};

    use super::*;

    const AGE: Duration = Duration::from_secs(5);

    struct Bench {
        admission: SwitchAdmission,
        now: Time,
        next: u64,
    }

    impl Bench {
        /// After the first age, so that the limit is the whole one.
        fn new(limit: usize, slo: Option<Duration>) -> Self {
            let config = AdmissionConfig { limit, age_max: AGE, slo };
            let mut bench =
                Self { admission: SwitchAdmission::new(config, 1), now: Time::ZERO, next: 0 };
            assert!(bench.admission.admit(bench.now, identity(0), client(0), false));
            bench.admission.answered(bench.now, &identity(0));
            bench.now += AGE;
            bench
        }

        /// A new request of a client; its number if it was admitted.
        fn ask(&mut self, number: u16) -> Option<u64> {
            self.next += 1;
            let admitted =
                self.admission.admit(self.now, identity(self.next), client(number), false);
            admitted.then_some(self.next)
        }

        fn answer(&mut self, number: u64) {
            self.admission.answered(self.now, &identity(number));
        }
    }

    fn identity(sequence: u64) -> Identity {
        Identity::Session { client: 1, sequence }
    }

    fn client(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    #[test]
    fn a_retry_adds_nothing_and_feedback_removes_once() {
        // P24.
        let mut bench = Bench::new(8, None);
        for sequence in 101..=108 {
            let port = sequence as u16;
            assert!(bench.admission.admit(bench.now, identity(sequence), client(port), false));
            assert!(bench.admission.admit(bench.now, identity(sequence), client(port), false));
        }
        assert_eq!((bench.ask(1), bench.admission.len()), (None, 8));
        bench.answer(101);
        bench.answer(101);
        assert_eq!(bench.admission.len(), 7);
        assert!(bench.ask(1).is_some());
        assert_eq!((bench.ask(2), bench.admission.counters().feedback_unknown), (None, 1));
    }

    #[test]
    fn lost_feedback_leaks_nothing() {
        // P24.
        let mut bench = Bench::new(4, None);
        let asked: Vec<_> = (1..=5).map(|port| bench.ask(port).is_some()).collect();
        assert_eq!(asked, [true, true, true, true, false]);
        bench.now += AGE;
        assert!(bench.ask(5).is_some());
        assert_eq!((bench.admission.len(), bench.admission.counters().healed), (1, 4));
        assert_eq!(bench.admission.clients.len(), 1);
    }

    #[test]
    fn the_limit_rises_from_nothing_over_one_age() {
        // P24: what was admitted before a restart is still in the system.
        let config = AdmissionConfig { limit: 100, age_max: AGE, slo: None };
        let mut admission = SwitchAdmission::new(config, 1);
        let mut admitted = Vec::new();
        let mut next = 0;
        for tenth in 0..=10_u32 {
            let now = Time::ZERO + AGE * tenth / 10;
            for port in 0..200 {
                next += 1;
                admission.admit(now, identity(next), client(port), false);
            }
            admitted.push(admission.len());
        }
        // At the end the very first one is too old.
        assert_eq!(admitted, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
    }

    #[test]
    fn nobody_starves_beside_a_greedy_client() {
        let mut bench = Bench::new(80, None);
        let mut theirs: [Vec<u64>; 3] = Default::default();
        while let Some(number) = bench.ask(0) {
            theirs[0].push(number);
        }
        assert_eq!(theirs[0].len(), 70);
        // The others get places at once, and as many as anyone when some have become free.
        for _ in 0..200 {
            for port in [0, 1, 2] {
                if let Some(number) = bench.ask(port) {
                    theirs[usize::from(port)].push(number);
                }
            }
            if let Some(number) = theirs[0].pop() {
                bench.answer(number);
            }
        }
        let counts = theirs.each_ref().map(Vec::len);
        assert!(counts.iter().all(|count| *count >= 20), "{counts:?}");
        assert!(bench.admission.counters().refused_unfair > 100);
    }

    /// A service that does one request after the other, in so many µs each.
    struct Service {
        bench: Bench,
        takes: Duration,
        /// With when each was admitted.
        queue: VecDeque<(u64, Time)>,
        done_at: Time,
    }

    /// What came of a load.
    struct Outcome {
        asked: usize,
        /// How long each took, in ascending order.
        took: Vec<Duration>,
    }

    impl Service {
        /// Somebody asks once every so often, for a time.
        fn serve(&mut self, every: Duration, time: Duration) -> Outcome {
            let mut outcome = Outcome { asked: 0, took: Vec::new() };
            let end = self.bench.now + time;
            while self.bench.now < end {
                let now = self.bench.now;
                outcome.asked += 1;
                if let Some(number) = self.bench.ask(outcome.asked as u16 % 8) {
                    self.queue.push_back((number, now));
                }
                self.bench.now = now + every;
                while let Some((number, since)) = self.queue.front().copied() {
                    let done_at = self.done_at.max(since) + self.takes;
                    if done_at > now + every {
                        break;
                    }
                    self.queue.pop_front();
                    self.done_at = done_at;
                    self.bench.admission.answered(done_at, &identity(number));
                    outcome.took.push(done_at.since(since));
                }
            }
            outcome.took.sort_unstable();
            outcome
        }
    }

    #[test]
    fn the_slo_policy_keeps_what_it_admits_in_time_and_the_service_busy() {
        // P25: 4000 requests a second can be done, and 99 % are to take 10 ms at most.
        let (slo, takes) = (Duration::from_millis(10), Duration::from_micros(250));
        let second = Duration::from_secs(1);
        let bench = Bench::new(2000, Some(slo));
        let done_at = bench.now;
        let mut service = Service { bench, takes, queue: VecDeque::new(), done_at };
        let half = service.serve(takes * 2, second);
        assert_eq!((half.took.len(), service.bench.admission.slo_limit()), (half.asked, 2000));
        for overload in [2, 5] {
            service.serve(takes / overload, second);
            let held = service.serve(takes / overload, second * 5);
            let p99 = held.took[held.took.len() * 99 / 100];
            assert!(p99 <= slo, "{p99:?} at {overload} times what can be done");
            assert!(held.took.len() > 19_000, "{} of 20,000", held.took.len());
        }
        // The service stands still for a while, and everything goes on soon after.
        service.done_at = service.bench.now + Duration::from_millis(300);
        service.serve(takes / 2, second * 2);
        let after = service.serve(takes / 2, second);
        assert!(after.took.len() > 3800, "{} of 4000", after.took.len());
        let counters = *service.bench.admission.counters();
        assert!(counters.refused_slo > 0 && counters.refused_full == 0, "{counters:?}");
        // When the load has gone there is room again.
        let calm = service.serve(takes * 2, second);
        assert!(calm.took.len() + 1 >= calm.asked, "{} of {}", calm.took.len(), calm.asked);
    }

    #[test]
    fn what_is_never_answered_is_late_too() {
        let mut bench = Bench::new(1000, Some(Duration::from_millis(2)));
        for _ in 0..400 {
            bench.ask(1);
            bench.now += Duration::from_millis(10);
        }
        assert!(bench.admission.slo_limit() < 400, "{}", bench.admission.slo_limit());
    }

    #[test]
    fn what_is_slow_alone_keeps_nobody_away() {
        // P25: a FEEDBACK is lost, and there are few requests.
        let mut bench = Bench::new(2000, Some(Duration::from_millis(20)));
        bench.ask(1).expect("the first one");
        for _ in 0..40 {
            bench.now += Duration::from_millis(100);
            let number = bench.ask(1).expect("nobody else is there");
            bench.now += Duration::from_millis(1);
            bench.answer(number);
        }
        // One in a hundred takes long, whatever the load.
        let mut bench = Bench::new(2000, Some(Duration::from_millis(20)));
        let mut slow = VecDeque::new();
        for number in 0..20_000 {
            bench.now += Duration::from_micros(500);
            let asked = bench.ask(number % 8).expect("the load is low");
            if number % 100 == 0 {
                slow.push_back((asked, bench.now + Duration::from_millis(50)));
            } else {
                bench.answer(asked);
            }
            if let Some((asked, _)) = slow.pop_front_if(|(_, at)| *at <= bench.now) {
                bench.answer(asked);
            }
        }
        assert_eq!(bench.admission.slo_limit(), 2000);
    }

    #[test]
    fn what_is_not_to_be_dropped_is_admitted_up_to_twice_the_limit() {
        let mut bench = Bench::new(8, None);
        for port in 1..=8 {
            assert!(bench.ask(port).is_some());
        }
        assert_eq!(bench.ask(9), None);
        for sequence in 201..=208 {
            assert!(bench.admission.admit(bench.now, identity(sequence), client(9), true));
        }
        assert!(!bench.admission.admit(bench.now, identity(209), client(9), true));
    }
}
