//! Pacing of what a replica fetches from others: bodies, entries in bulk, parts of snapshots
//! (P9, P36).
//!
//! The asker alone decides how much is on its way, because it alone sees what arrives. Questions
//! carry numbers, and answers repeat them, so each round trip is measured exactly. The window grows
//! while round trips stay short, as in TCP Vegas, so that a narrow link's queue is not filled to
//! the point where it drops. A part of a snapshot that later ones have overtaken is lost: the window
//! shrinks, and nothing else is asked for again (as in RFC 6675). A time-out, by RFC 6298, halves
//! the window. One message is at most an eighth of it: a message is lost if one of its packets is.

use std::{collections::VecDeque, time::Duration};

use r2p2::Time;

use crate::messages::PART_BYTES_MAX;

/// Bytes of the smallest question: they fit into one packet, with what the message has beside them.
const UNIT_BYTES_MIN: usize = 1024;

/// Window at the start, and the lowest that long round trips alone make of it.
const WINDOW_START: usize = 32 << 10;

/// Largest window: a socket's usual receive buffer.
pub(crate) const WINDOW_MAX: usize = 256 << 10;

/// A message is at most this part of the window.
const MESSAGES: usize = 8;

/// Answers to later questions that make one count as lost.
const OVERTAKEN_MAX: u32 = 3;

/// Above the threshold a window that is not small grows by this part of itself in a round trip.
const GROWTH: usize = 16;

/// Time-out while no round trip was measured, and bounds of it afterwards.
const TIMEOUT_START: Duration = Duration::from_millis(50);
const TIMEOUT_MIN: Duration = Duration::from_millis(5);
const TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// Each time-out in a row doubles the next one, up to this many times.
const DOUBLINGS_MAX: u32 = 5;

/// Round trips that are longer than the shortest by no more than this say nothing about queues:
/// hosts and disks have pauses too.
const SLACK: Duration = Duration::from_millis(10);

/// Before any round trip was measured, so many time-outs in a row are taken for a long way, not for
/// losses.
const TIMEOUTS_OF_LONG_WAY: u32 = 2;

/// Questions that are remembered after their time-out, to recognise late answers.
const LATE_MAX: usize = 64;

/// The round trips to a peer: smoothed, their variation, and the shortest (RFC 6298).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    shortest: Duration,
}

impl RoundTrip {
    /// Takes a measurement.
    pub(crate) fn sample(&mut self, took: Duration) {
        // A host that stood still says nothing about the way to it.
        let took = took.min(TIMEOUT_MAX);
        let Some(smoothed) = self.smoothed else {
            *self = Self { smoothed: Some(took), variation: took / 2, shortest: took };
            return;
        };
        self.variation = (self.variation * 3 + smoothed.abs_diff(took)) / 4;
        self.smoothed = Some((smoothed * 7 + took) / 8);
        self.shortest = self.shortest.min(took);
    }

    /// Returns the smoothed round trip, zero if none was measured.
    pub(crate) fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or_default()
    }

    /// Returns how long an answer may take; none if no round trip was measured.
    fn timeout(&self) -> Option<Duration> {
        let smoothed = self.smoothed?;
        // Round trips that hardly varied vary all the same when others share the link.
        let timeout = smoothed + (self.variation * 4).max(smoothed / 2);
        Some(timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX))
    }
}

/// A question on its way, or its answer.
#[derive(Debug)]
struct Question {
    number: u64,
    sent: Time,
    /// When it was sent, or when a part of its answer last came.
    moved: Time,
    /// Bytes that were asked for, and that have not come.
    asked: usize,
    bytes: usize,
    /// Later questions that were answered.
    overtaken: u32,
    /// Its time is out, or it was overtaken; an answer would be late.
    is_late: bool,
}

/// The amount that may be asked for now, and the time at which an answer is overdue.
#[derive(Debug)]
pub(crate) struct Pacer {
    round_trip: RoundTrip,
    /// Longest time-out that doubling makes of a shorter one.
    back_off_max: Duration,
    /// Bytes that may be on their way.
    window: usize,
    /// Above this the window grows slowly.
    threshold: usize,
    /// Time-outs in a row.
    timeouts: u32,
    questions: VecDeque<Question>,
    /// Number of the last question.
    last: u64,
    /// Questions up to this one were sent before the window last shrank for a loss.
    shrunk_at: u64,
}

impl Pacer {
    /// Makes a pacer that has measured nothing. Time-outs are not doubled beyond `back_off_max`,
    /// the election time-out: the next donor may be alive, and a cluster that waits for what is
    /// asked cannot wait longer than for a leader.
    pub(crate) fn new(back_off_max: Duration) -> Self {
        Self {
            round_trip: RoundTrip::default(),
            back_off_max: back_off_max.min(TIMEOUT_MAX),
            window: WINDOW_START,
            threshold: WINDOW_MAX,
            timeouts: 0,
            questions: VecDeque::new(),
            last: 0,
            shrunk_at: 0,
        }
    }

    /// Returns the largest number of bytes for one message.
    pub(crate) fn unit(&self) -> usize {
        (self.window / MESSAGES).clamp(UNIT_BYTES_MIN, PART_BYTES_MAX)
    }

    /// Returns how many bytes may be asked for now: nothing, or at least one unit.
    pub(crate) fn room(&self) -> usize {
        let is_measured = self.round_trip.smoothed.is_some();
        let room = self.window.saturating_sub(self.in_flight());
        if !self.is_waiting() {
            if is_measured { room.max(self.unit()) } else { self.unit() }
        } else if room < self.unit() || !is_measured {
            0
        } else {
            room
        }
    }

    /// Notes a question for so many bytes; returns its number.
    pub(crate) fn ask(&mut self, now: Time, bytes: usize) -> u64 {
        self.last += 1;
        self.questions.push_back(Question {
            number: self.last,
            sent: now,
            moved: now,
            asked: bytes,
            bytes,
            overtaken: 0,
            is_late: false,
        });
        self.last
    }

    /// Notes bytes that came for a question; with `is_last` nothing else will. The round trip ends
    /// with the last of them.
    pub(crate) fn came(&mut self, now: Time, number: u64, bytes: usize, is_last: bool) {
        let Some(at) = self.questions.iter().position(|it| it.number == number) else {
            return;
        };
        self.timeouts = 0;
        let question = &mut self.questions[at];
        question.moved = now;
        question.bytes = question.bytes.saturating_sub(bytes);
        if !is_last && question.bytes > 0 {
            return;
        }
        let Question { sent, asked, bytes: left, is_late, .. } = *question;
        self.round_trip.sample(now.since(sent));
        // An answer with nothing in it says nothing of the way.
        if !is_late && left < asked {
            self.adapt(now.since(sent), asked);
        }
        self.questions.remove(at);
        self.questions.iter_mut().take(at).for_each(|question| question.overtaken += 1);
    }

    /// Takes as lost what answers to later questions have overtaken, for an asker that can ask for
    /// just that again.
    pub(crate) fn drop_overtaken(&mut self) {
        let mut lost = None;
        for question in self.questions.iter_mut().filter(|question| !question.is_late) {
            if question.overtaken >= OVERTAKEN_MAX {
                question.is_late = true;
                lost = Some(question.number);
            }
        }
        // What else was sent before the window shrank is of the same loss.
        if lost.is_some_and(|lost| lost > self.shrunk_at) {
            self.shrunk_at = self.last;
            self.window = (self.window * 3 / 4).max(UNIT_BYTES_MIN);
            self.threshold = self.window;
        }
        self.drop_late();
    }

    /// Returns when the answers that are due count as lost; none if nothing was asked.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let timeout = self.round_trip.timeout();
        let timeout = timeout.unwrap_or(TIMEOUT_START.min(self.back_off_max));
        let doubled = timeout * 2u32.pow(self.timeouts.min(DOUBLINGS_MAX));
        Some(self.oldest()?.moved + doubled.min(self.back_off_max).max(timeout))
    }

    /// Takes everything that is on its way as lost if the deadline has passed. Returns whether it
    /// did.
    pub(crate) fn expire(&mut self, now: Time) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.timeouts += 1;
        if self.round_trip.smoothed.is_some() || self.timeouts > TIMEOUTS_OF_LONG_WAY {
            self.threshold = (self.window / 2).max(UNIT_BYTES_MIN);
            self.window = self.threshold;
        }
        self.forget();
        true
    }

    /// Stops waiting for what was asked; answers are late from now on.
    pub(crate) fn forget(&mut self) {
        self.questions.iter_mut().for_each(|question| question.is_late = true);
        self.drop_late();
    }

    /// Answers to questions that are long late are not recognised.
    fn drop_late(&mut self) {
        let late = self.questions.iter().take_while(|question| question.is_late).count();
        self.questions.drain(..late.min(self.questions.len().saturating_sub(LATE_MAX)));
    }

    /// Returns how many bytes a question asked for, if it was not answered and is not forgotten.
    pub(crate) fn asked(&self, number: u64) -> Option<usize> {
        Some(self.questions.iter().find(|question| question.number == number)?.asked)
    }

    /// Returns whether the answer to a question is due.
    pub(crate) fn is_due(&self, number: u64) -> bool {
        self.questions.iter().any(|question| question.number == number && !question.is_late)
    }

    /// Returns whether an answer is due.
    pub(crate) fn is_waiting(&self) -> bool {
        self.oldest().is_some()
    }

    /// The oldest question whose answer is due.
    fn oldest(&self) -> Option<&Question> {
        self.questions.iter().find(|question| !question.is_late)
    }

    /// Returns the bytes that were asked for and have not come.
    pub(crate) fn in_flight(&self) -> usize {
        let due = self.questions.iter().filter(|question| !question.is_late);
        due.map(|question| question.bytes).sum()
    }

    /// The whole answer to a question for so many bytes took so long. A window below the start
    /// grows whatever round trips take: the shortest one may be of a way or of a donor that is not
    /// there any more.
    fn adapt(&mut self, took: Duration, bytes: usize) {
        let shortest = self.round_trip.shortest;
        let is_short = took <= shortest + shortest / 2 + SLACK;
        if !is_short {
            // There is a queue: what fills the way is found.
            self.threshold = self.threshold.min(self.window);
        }
        // A window that is not used says nothing about a larger one.
        let is_used = (self.in_flight() + bytes) * 2 >= self.window;
        if is_used && (is_short || self.window < WINDOW_START) {
            // A round trip of a small window adds the smallest question, as in TCP.
            let slow = (bytes / GROWTH).max(bytes * UNIT_BYTES_MIN / self.window);
            let gain = if self.window < self.threshold { bytes } else { slow };
            let largest = if is_short { WINDOW_MAX } else { WINDOW_START };
            self.window = (self.window + gain).min(largest);
        } else if took > shortest * 2 + SLACK && self.window > WINDOW_START {
            self.window = (self.window - bytes / 4).max(WINDOW_START);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Timing;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn the_time_out_follows_what_was_measured_and_backs_off() {
        let mut pacer = Pacer::new(Timing::LAN.election_max);
        let number = pacer.ask(at(0), 1000);
        assert_eq!(pacer.deadline(), Some(at(50)));
        assert!(!pacer.expire(at(49)) && pacer.expire(at(50)));
        assert_eq!(pacer.deadline(), None);
        pacer.ask(at(50), 1000);
        assert_eq!(pacer.deadline(), Some(at(150)));
        // The first answer is late, and tells how long one takes.
        pacer.came(at(120), number, 1000, true);
        assert_eq!(pacer.round_trip.smoothed(), Duration::from_millis(120));
        assert_eq!(pacer.deadline(), Some(at(50 + 120 + 4 * 60)));
        // It comes twice.
        pacer.came(at(121), number, 1000, true);
        assert_eq!(pacer.round_trip.smoothed(), Duration::from_millis(120));
    }

    #[test]
    fn the_back_off_ends_at_the_election_time_out_but_not_below_what_was_measured() {
        let mut pacer = Pacer::new(Timing::LAN.election_max);
        let mut now = at(0);
        for timeout in [50, 100, 200, 300, 300, 300, 300] {
            let number = pacer.ask(now, 1000);
            assert_eq!(pacer.deadline(), Some(now + Duration::from_millis(timeout)));
            now += Duration::from_millis(timeout);
            assert!(pacer.expire(now) && pacer.asked(number).is_some());
        }
        let number = pacer.ask(now, 1000);
        now += Duration::from_millis(800);
        pacer.came(now, number, 1000, true);
        pacer.ask(now, 1000);
        assert_eq!(pacer.deadline(), Some(now + TIMEOUT_MAX));
        // Nothing was measured, and elections take less than the first time-out.
        let timing = Timing::DATACENTER;
        let mut pacer = Pacer::new(timing.election_max);
        pacer.ask(now, 1000);
        assert_eq!(pacer.deadline(), Some(now + timing.election_max));
    }

    #[test]
    fn round_trips_that_did_not_vary_leave_half_of_one_for_the_next() {
        let mut round_trip = RoundTrip::default();
        (0..100).for_each(|_| round_trip.sample(Duration::from_millis(400)));
        assert_eq!(round_trip.timeout(), Some(Duration::from_millis(600)));
        round_trip = RoundTrip::default();
        (0..100).for_each(|_| round_trip.sample(Duration::from_micros(80)));
        assert_eq!(round_trip.timeout(), Some(TIMEOUT_MIN));
    }

    #[test]
    fn the_window_grows_while_round_trips_are_short_and_shrinks_when_nothing_comes() {
        let mut pacer = Pacer::new(Timing::LAN.election_max);
        let mut now = 0;
        for _ in 0..200 {
            let mut asked = Vec::new();
            while pacer.room() > 0 {
                let bytes = pacer.unit().min(pacer.room());
                asked.push((pacer.ask(at(now), bytes), bytes));
            }
            now += 1;
            for (number, bytes) in asked {
                pacer.came(at(now), number, bytes, true);
            }
        }
        assert_eq!((pacer.window, pacer.unit()), (WINDOW_MAX, PART_BYTES_MAX));
        for _ in 0..20 {
            pacer.ask(at(now), pacer.unit());
            now += 5000;
            assert!(pacer.expire(at(now)));
        }
        assert_eq!((pacer.window, pacer.unit()), (UNIT_BYTES_MIN, UNIT_BYTES_MIN));
        assert!(pacer.questions.len() <= LATE_MAX && pacer.room() == UNIT_BYTES_MIN);
    }

    #[test]
    fn a_small_window_grows_again_on_a_way_that_has_become_longer() {
        let mut pacer = Pacer::new(Timing::LAN.election_max);
        let mut now = 0;
        let exchange = |pacer: &mut Pacer, now: &mut u64, took: u64| {
            let mut asked = Vec::new();
            while pacer.room() > 0 {
                let bytes = pacer.unit().min(pacer.room());
                asked.push((pacer.ask(at(*now), bytes), bytes));
            }
            *now += took;
            for (number, bytes) in asked {
                pacer.came(at(*now), number, bytes, true);
            }
        };
        exchange(&mut pacer, &mut now, 1);
        while pacer.window > UNIT_BYTES_MIN {
            pacer.ask(at(now), pacer.unit());
            now += 1000;
            assert!(pacer.expire(at(now)));
        }
        // Whoever answers has become slow, or somebody else answers.
        let is_grown = (0..64).any(|_| {
            exchange(&mut pacer, &mut now, 50);
            pacer.window == WINDOW_START
        });
        assert!(is_grown, "{} bytes", pacer.window);
        // Such round trips may as well be of a queue, and do not make more of it.
        (0..50).for_each(|_| exchange(&mut pacer, &mut now, 50));
        assert_eq!(pacer.window, WINDOW_START);
    }

    /// A link of so many bytes a millisecond, with 100 ms of delay each way and a queue. Returns how
    /// long a transfer takes, and how many bytes were dropped.
    fn transfer(total: usize, rate: u64, queue: u64) -> (u64, usize) {
        let mut pacer = Pacer::new(Timing::LAN.election_max);
        let (mut here, mut dropped, mut free_at_us) = (0, 0, 0);
        let mut arrivals = VecDeque::new();
        let (mut now, mut asked_to) = (0, 0);
        while here < total {
            while let Some(&(due, number, offset, bytes)) = arrivals.front() {
                if due > now {
                    break;
                }
                arrivals.pop_front();
                pacer.came(at(now), number, bytes, true);
                if offset <= here {
                    here = here.max(offset + bytes);
                }
            }
            if pacer.expire(at(now)) {
                asked_to = here;
            }
            asked_to = asked_to.max(here);
            while pacer.room() > 0 && asked_to < total {
                let bytes = pacer.unit().min(pacer.room()).min(total - asked_to);
                let number = pacer.ask(at(now), bytes);
                let reaches_us = (now + 100) * 1000;
                let waits_us = u64::saturating_sub(free_at_us, reaches_us);
                if waits_us * rate / 1000 + bytes as u64 > queue {
                    dropped += bytes;
                } else {
                    free_at_us = free_at_us.max(reaches_us) + bytes as u64 * 1000 / rate;
                    arrivals.push_back((free_at_us / 1000 + 100, number, asked_to, bytes));
                }
                asked_to += bytes;
            }
            now += 1;
        }
        (now, dropped)
    }

    #[test]
    fn a_narrow_link_is_filled_and_not_flooded() {
        // 2 Mbit/s are 250 bytes a millisecond.
        let total = 12 << 20;
        let (took_ms, dropped) = transfer(total, 250, 100_000);
        assert!(took_ms < 3 * total as u64 / 250 / 2, "{took_ms} ms");
        assert!(dropped * 20 <= total, "{dropped} bytes dropped");
        // A queue of a few packets, a fifth of what is on its way when the link is filled.
        let (took_ms, dropped) = transfer(1 << 20, 250, 10_000);
        assert!(took_ms < 6 * (1 << 20) / 250, "{took_ms} ms");
        assert!(dropped < 1 << 19, "{dropped} bytes dropped");
    }
}
