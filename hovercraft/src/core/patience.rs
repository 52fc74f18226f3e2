//! Patience after this replica itself did not run (P33).
//!
//! On a starved host, or in a virtual machine that was held up, a replica may not run for longer
//! than an election time-out. Silence in that time says nothing of the others: they may have been
//! held up too, and what they sent may not be here yet. So a time-out that expires after such a
//! pause is granted anew, once until the next sign of life: a replica that hardly ever runs must not
//! be patient for ever.

use std::time::Duration;

use r2p2::Time;

use crate::core::{Core, Role, Timer};

/// A deadline that is met later than this share of the shortest election time-out shows that this
/// replica did not run: a shorter pause cannot make a time-out expire.
const LATE_SHARE: u32 = 4;

/// Pause after which a follower that hears nothing looks whether it runs, in heartbeats.
const LOOK_EVERY: u32 = 2;

/// Patience until the next sign of life: of the leader, or for a leader of a quorum.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// This replica did not run for a while since the last sign of life.
    has_paused: bool,
    /// A time-out may still be granted anew.
    is_left: bool,
}

impl Patience {
    /// A sign of life came.
    pub(crate) fn renew(&mut self) {
        *self = Self { has_paused: false, is_left: true };
    }

    /// Returns whether a time-out that has expired is granted anew.
    pub(crate) fn grants(&mut self) -> bool {
        let grants = self.has_paused && self.is_left && !planted!("pause-is-silence");
        self.is_left &= !grants;
        grants
    }
}

impl Core {
    /// Takes note that this replica runs: a driver calls it at the beginning of a turn, before it
    /// hands over what has arrived. A deadline that passed long ago shows that the replica did not
    /// run, so that the silence until now means nothing (P33).
    pub fn handle_wake(&mut self, now: Time) {
        let late = self.timers.next().map_or(Duration::ZERO, |due| now.since(due));
        if late >= self.settings.timing.election_min / LATE_SHARE {
            tracing::debug!(?late, "this replica did not run for a while");
            self.counters.pauses += 1;
            self.patience.has_paused = true;
        }
    }

    /// Returns whether a time-out that takes silence for a failure has expired. Before a driver
    /// lets the core act on it, by [`Self::handle_timeout`], it hands over what has arrived until
    /// then (P33).
    pub fn is_silence_over(&self, now: Time) -> bool {
        let is_due = |timer| self.timers.is_due(timer, now);
        is_due(Timer::Election) || (is_due(Timer::CheckQuorum) && !self.is_quorum_heard(now))
    }

    /// The leader gave a sign of life.
    pub(super) fn hear_leader(&mut self, now: Time) {
        self.acknowledging.heard(now);
        self.patience.renew();
        self.restart_election_timer(now);
        self.look_again(now);
    }

    /// Looks whether this replica runs while it hears nothing: without a deadline nothing would tell
    /// a long sleep from a pause.
    pub(super) fn look_again(&mut self, now: Time) {
        if matches!(self.role, Role::Follower { leader: Some(_) }) && !self.patience.has_paused {
            self.timers.set(Timer::Look, now + self.settings.timing.heartbeat * LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            Output, Settings, Timing,
            testing::{append_noops, core, elected_at, envelope, leader, settle},
        },
        messages::{AppendReply, Message},
    };

    const LAN: Timing = Timing::LAN;

    /// A turn; whether it asks for pre-votes.
    fn asks(core: &mut Core, now: Time) -> bool {
        core.handle_wake(now);
        core.handle_timeout(now);
        let asks = |output: &Output| match output {
            Output::Send { envelope, .. } => matches!(envelope.message, Message::PreVote { .. }),
            _ => false,
        };
        settle(core, now).iter().any(asks)
    }

    /// A follower that has heard its leader.
    fn follower(now: Time) -> Core {
        let mut core = core(Settings::default(), Vec::new());
        hear(&mut core, now);
        core
    }

    fn hear(core: &mut Core, now: Time) {
        let beat = Message::AppendEntries(append_noops((0, 0), 1, 0));
        core.handle_message(now, envelope(2, 1, beat));
        settle(core, now);
    }

    /// When it asks, if it runs whenever something is due.
    fn asks_at(core: &mut Core) -> Time {
        loop {
            let due = core.poll_timeout().expect("a follower waits for its leader");
            if asks(core, due) {
                return due;
            }
        }
    }

    #[test]
    fn who_runs_all_the_time_waits_no_longer_than_ever() {
        for _ in 0..20 {
            let heard = Time::ZERO + LAN.heartbeat;
            let waited = asks_at(&mut follower(heard)).since(heard);
            assert!((LAN.election_min..=LAN.election_max).contains(&waited), "{waited:?}");
        }
    }

    #[test]
    fn who_did_not_run_waits_once_more() {
        let heard = Time::ZERO + LAN.heartbeat;
        let mut core = follower(heard);
        let woken = heard + Duration::from_secs(1);
        assert!(!asks(&mut core, woken));
        let waited = asks_at(&mut core).since(woken);
        assert!((LAN.election_min..=LAN.election_max).contains(&waited), "{waited:?}");

        // Not again and again; but after the next word of the leader it does.
        let mut core = follower(heard);
        assert!(!asks(&mut core, woken));
        assert!(asks(&mut core, woken + Duration::from_secs(1)));
        let mut core = follower(heard);
        assert!(!asks(&mut core, woken));
        hear(&mut core, woken);
        assert!(!asks(&mut core, woken + Duration::from_secs(1)));
    }

    #[test]
    fn a_pause_that_ends_before_the_time_out_counts_too() {
        let heard = Time::ZERO + LAN.heartbeat;
        let mut core = follower(heard);
        let woken = heard + LAN.election_min - Duration::from_millis(1);
        assert!(!asks(&mut core, woken));
        assert!(asks_at(&mut core).since(heard) >= LAN.election_min * 2);
    }

    #[test]
    fn a_leader_that_did_not_run_gives_its_followers_the_time_to_answer() {
        let mut core = leader(Settings::default());
        let woken = elected_at() + Duration::from_secs(1);
        asks(&mut core, woken);
        assert!(core.is_leader());
        // None does.
        let mut now = woken;
        while core.is_leader() {
            now = core.poll_timeout().expect("it leads");
            asks(&mut core, now);
        }
        assert!(now.since(woken) <= LAN.election_max + LAN.election_min, "{:?}", now.since(woken));

        // One does, so that the next pause is as harmless.
        let mut core = leader(Settings::default());
        for seconds in 1..5 {
            let woken = elected_at() + Duration::from_secs(seconds);
            asks(&mut core, woken);
            let Role::Leader(leader) = &core.role else { panic!("it leads") };
            let reply = AppendReply { round: leader.round(), ..AppendReply::default() };
            core.handle_message(woken, envelope(2, 1, Message::AppendReply(reply)));
            asks(&mut core, woken + LAN.heartbeat);
        }
        assert!(core.is_leader());
    }

    #[test]
    fn silence_is_over_when_a_time_out_expires_and_not_while_a_quorum_answers() {
        let heard = Time::ZERO + LAN.heartbeat;
        let core = follower(heard);
        assert!(!core.is_silence_over(heard + LAN.election_min - Duration::from_nanos(1)));
        assert!(core.is_silence_over(heard + LAN.election_max));
        let core = leader(Settings::default());
        assert!(!core.is_silence_over(elected_at() + LAN.election_max));
        assert!(core.is_silence_over(elected_at() + LAN.election_max * 2));
    }
}
