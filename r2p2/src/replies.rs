//! Multi-packet replies that are kept: those with options so that packets of them can be sent again,
//! plain ones until all of their packets are sent.

use std::{collections::HashMap, time::Duration};

use foldhash::fast::FixedState;
use slab::Slab;

use crate::{
    Outbox, Time,
    options::Missing,
    repair::{SENT_PER_ACK_MAX, WINDOW},
    segments::{BURST_INTERVAL, Segments},
    server::ReplyTo,
    timers::Timers,
};

/// A reply that nobody asks for is kept this long.
const LIFETIME: Duration = Duration::from_secs(2);

/// Positions of the intervals of the timers.
const EXPIRY: usize = 0;
const BURST: usize = 1;

#[derive(Debug)]
struct Kept {
    to: ReplyTo,
    segments: Segments,
    /// Of a plain reply, the next packet to send.
    next: Option<u16>,
}

/// The replies, within a bound on the bytes of their bodies.
#[derive(Debug)]
pub(crate) struct Replies {
    kept: Slab<Kept>,
    by_request: HashMap<ReplyTo, usize, FixedState>,
    /// When a reply expires or, if it is plain, goes on.
    timers: Timers,
    bytes: usize,
    bytes_max: usize,
}

impl Replies {
    pub(crate) fn new(bytes_max: usize, seed: u64) -> Self {
        Self {
            kept: Slab::new(),
            by_request: HashMap::with_hasher(FixedState::with_seed(seed)),
            timers: Timers::new([LIFETIME, BURST_INTERVAL]),
            bytes: 0,
            bytes_max,
        }
    }

    /// Sends the first window of a reply with options, and keeps it for the receiver to ask for the
    /// rest.
    pub(crate) fn send(&mut self, now: Time, to: ReplyTo, segments: Segments, outbox: &mut Outbox) {
        for index in 0..segments.count().min(WINDOW) {
            outbox.push(to.address, |out| segments.write(index, out));
        }
        self.keep(now, Kept { to, segments, next: None });
    }

    /// Sends the first burst of a plain reply, and the rest later.
    pub(crate) fn stream(
        &mut self,
        now: Time,
        to: ReplyTo,
        segments: Segments,
        outbox: &mut Outbox,
    ) {
        let next = segments.send_burst(to.address, 0, outbox);
        if next.is_some() {
            self.keep(now, Kept { to, segments, next });
        }
    }

    fn keep(&mut self, now: Time, kept: Kept) {
        if let Some(&number) = self.by_request.get(&kept.to) {
            self.remove(number);
        }
        let (to, interval) = (kept.to, if kept.next.is_some() { BURST } else { EXPIRY });
        self.bytes += kept.segments.body_bytes();
        let number = self.kept.insert(kept);
        self.by_request.insert(to, number);
        // The oldest make room. The newest stays even if it exceeds the bound alone, since
        // otherwise it could not be delivered at all.
        while self.bytes > self.bytes_max {
            let oldest = [EXPIRY, BURST].into_iter().find_map(|it| self.timers.oldest(it).next());
            let Some(oldest) = oldest else { break };
            self.remove(oldest);
        }
        self.timers.arm(now, number, interval);
    }

    /// Sends the packets of a reply that its receiver misses.
    pub(crate) fn send_missing(
        &mut self,
        now: Time,
        to: ReplyTo,
        missing: &Missing<'_>,
        outbox: &mut Outbox,
    ) {
        let Some(&number) = self.by_request.get(&to) else {
            return;
        };
        let Kept { segments, next: None, .. } = &self.kept[number] else {
            return;
        };
        if missing.is_empty() {
            self.remove(number);
            return;
        }
        let there = missing.indices().filter(|&index| index < segments.count());
        for index in there.take(SENT_PER_ACK_MAX) {
            outbox.push(to.address, |out| segments.write(index, out));
        }
        self.timers.arm(now, number, EXPIRY);
    }

    /// Sends more of plain replies, and forgets those that nobody asked for during their lifetime.
    pub(crate) fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        while let Some(number) = self.timers.pop(now) {
            let Kept { to, segments, next } = &mut self.kept[number];
            *next = next.and_then(|from| segments.send_burst(to.address, from, outbox));
            if next.is_some() {
                self.timers.arm(now, number, BURST);
            } else {
                self.remove(number);
            }
        }
    }

    /// When [`Self::handle_timeout`] is due next.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    fn remove(&mut self, number: usize) {
        let kept = self.kept.remove(number);
        self.by_request.remove(&kept.to);
        self.timers.cancel(number);
        self.bytes -= kept.segments.body_bytes();
    }
}
