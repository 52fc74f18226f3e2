//! Admission by the switch (P23–P25): how many requests may be in the system, and whose.
//!
//! The threshold bounds the identities that are admitted and not answered. Above seven eighths of it
//! only those clients are admitted that have less than an equal share, so that whoever sends the most
//! starves nobody. The SLO policy drops a share of new requests before they queue. A request that is
//! not to be dropped is admitted up to twice the limit.

use std::{net::SocketAddrV4, time::Duration};

use r2p2::Time;
use rkyv::{Archive, Deserialize, Serialize};

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

/// Counts what happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
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
    /// By the SLO policy.
    pub refused_slo: u64,
}

/// How often the SLO policy decides anew (P25).
const PERIOD: Duration = Duration::from_millis(20);

/// The share of requests, in hundredths, that must meet the SLO.
const MEETS_MIN: u64 = 99;

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
    rng: fastrand::Rng,
    counters: AdmissionCounters,
}

#[derive(Debug, Default)]
struct Slo {
    /// The end of the present period.
    decides_at: Option<Time>,
    answered: u64,
    met: u64,
    /// In hundredths.
    drop_share: u64,
}

impl SwitchAdmission {
    /// Nothing is in the system. What is drawn, is drawn from `seed`.
    pub fn new(config: AdmissionConfig, seed: u64) -> Self {
        Self {
            config,
            system: Admission::new(config.limit, config.age_max, seed),
            clients: Lookup::new(seed),
            started: None,
            slo: Slo::default(),
            rng: fastrand::Rng::with_seed(seed),
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
        self.decide_share(now);
        if self.system.contains(&identity) {
            self.counters.retries += 1;
            return true;
        }
        if !self.has_room(now, client, undroppable) {
            return false;
        }
        self.counters.admitted += 1;
        self.system.insert(now, identity, client);
        let count = self.clients.get(&client).copied().unwrap_or(0);
        self.clients.insert(client, count + 1);
        true
    }

    /// Somebody has answered a request (P19).
    pub fn answered(&mut self, now: Time, identity: &Identity) {
        self.decide_share(now);
        let Some((admitted, client)) = self.system.release(identity) else {
            self.counters.feedback_unknown += 1;
            return;
        };
        self.counters.answered += 1;
        self.slo.answered += 1;
        let is_met = self.config.slo.is_none_or(|slo| now.since(admitted) <= slo);
        self.slo.met += u64::from(is_met);
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

    /// The share of new requests that the SLO policy drops, in hundredths.
    pub fn drop_share(&self) -> u64 {
        self.slo.drop_share
    }

    /// What happened since the start.
    pub fn counters(&self) -> &AdmissionCounters {
        &self.counters
    }

    fn has_room(&mut self, now: Time, client: SocketAddrV4, undroppable: bool) -> bool {
        let (limit, here) = (self.limit(now), self.system.len());
        if undroppable {
            let has_room = here < 2 * self.config.limit;
            self.counters.refused_full += u64::from(!has_room);
            return has_room;
        }
        if here >= limit {
            self.counters.refused_full += 1;
            return false;
        }
        let own = self.clients.get(&client).copied().unwrap_or(0);
        // There is always room for one more client who may come.
        let share = limit / (self.clients.len() + 1);
        if here >= limit - limit / RESERVED_PART && own >= share.max(1) {
            self.counters.refused_unfair += 1;
            return false;
        }
        if self.rng.u64(..100) < self.slo.drop_share {
            self.counters.refused_slo += 1;
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

    /// Every period the share grows or shrinks by one hundredth (P25).
    fn decide_share(&mut self, now: Time) {
        let Some(slo) = self.config.slo else {
            return;
        };
        let decides_at = *self.slo.decides_at.get_or_insert(now + PERIOD);
        if now < decides_at {
            return;
        }
        // When nothing is answered at all, what waits too long counts.
        let is_late = self.system.oldest().is_some_and(|at| now.since(at) > slo);
        let Slo { answered, met, drop_share, .. } = self.slo;
        let is_missed = match answered {
            0 => is_late,
            _ => met * 100 < answered * MEETS_MIN,
        };
        // Periods without any request were quiet ones.
        let periods = 1 + now.since(decides_at).as_nanos() / PERIOD.as_nanos();
        let quiet = u64::try_from(periods - 1).unwrap_or(u64::MAX);
        let share = if is_missed { drop_share + 1 } else { drop_share.saturating_sub(1) };
        self.slo = Slo {
            decides_at: Some(now + PERIOD),
            answered: 0,
            met: 0,
            drop_share: share.saturating_sub(quiet).min(100),
        };
    }
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
    use std::net::Ipv4Addr;

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

    #[test]
    fn the_slo_policy_drops_what_it_must_and_no_more() {
        // P25: everything takes twice as long as it should, and later half as long.
        let slo = Duration::from_millis(2);
        let mut bench = Bench::new(10_000, Some(slo));
        let mut run = |periods: u32, takes: Duration| {
            for _ in 0..periods * 5 {
                let (number, next) = (bench.ask(1), bench.now + Duration::from_millis(4));
                bench.now += takes;
                if let Some(number) = number {
                    bench.answer(number);
                }
                bench.now = next;
            }
            bench.admission.drop_share()
        };
        assert_eq!(run(10, slo / 2), 0);
        let grown = run(30, slo * 2);
        assert!((25..=31).contains(&grown), "{grown}");
        assert!(run(100, slo / 2) <= 1);
        // What is never answered is late too.
        for _ in 0..50 {
            bench.ask(1);
            bench.now += PERIOD;
        }
        assert!(bench.admission.drop_share() > 20);
        assert!(bench.admission.counters().refused_slo > 0);
        // It is forgotten when nobody asks.
        bench.now += Duration::from_secs(10);
        bench.ask(1);
        bench.ask(1);
        assert_eq!(bench.admission.drop_share(), 0);
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
