//! Multi-packet replies that are kept so that packets of them can be sent again.

use std::{collections::HashMap, time::Duration};

use foldhash::fast::FixedState;
use slab::Slab;

use crate::{
    Outbox, Time,
    options::Missing,
    repair::{SENT_PER_ACK_MAX, WINDOW},
    segments::Segments,
    server::ReplyTo,
    timers::Timers,
};

/// A reply that nobody asks for is kept this long.
const LIFETIME: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Kept {
    to: ReplyTo,
    segments: Segments,
}

/// The replies, within a bound on the bytes of their bodies.
#[derive(Debug)]
pub(crate) struct Replies {
    kept: Slab<Kept>,
    by_request: HashMap<ReplyTo, usize, FixedState>,
    expiry: Timers,
    bytes: usize,
    bytes_max: usize,
}

impl Replies {
    pub(crate) fn new(bytes_max: usize, seed: u64) -> Self {
        Self {
            kept: Slab::new(),
            by_request: HashMap::with_hasher(FixedState::with_seed(seed)),
            expiry: Timers::new([LIFETIME]),
            bytes: 0,
            bytes_max,
        }
    }

    /// Sends the first window of a reply, and keeps it for the receiver to ask for the rest.
    pub(crate) fn send(&mut self, now: Time, to: ReplyTo, segments: Segments, outbox: &mut Outbox) {
        self.expire(now);
        for index in 0..segments.count().min(WINDOW) {
            outbox.push(to.address, |out| segments.write(index, out));
        }
        if let Some(&number) = self.by_request.get(&to) {
            self.remove(number);
        }
        self.bytes += segments.body_bytes();
        let number = self.kept.insert(Kept { to, segments });
        self.by_request.insert(to, number);
        // The oldest make room. The newest stays even if it exceeds the bound alone, since
        // otherwise it could not be delivered at all.
        while self.bytes > self.bytes_max {
            let oldest = self.expiry.oldest(0).next();
            let Some(oldest) = oldest else { break };
            self.remove(oldest);
        }
        self.expiry.arm(now, number, 0);
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
        if missing.is_empty() {
            self.remove(number);
            return;
        }
        let segments = &self.kept[number].segments;
        let there = missing.indices().filter(|&index| index < segments.count());
        for index in there.take(SENT_PER_ACK_MAX) {
            outbox.push(to.address, |out| segments.write(index, out));
        }
        self.expiry.arm(now, number, 0);
    }

    /// Forgets the replies that nobody asked for during their lifetime.
    pub(crate) fn expire(&mut self, now: Time) {
        while let Some(number) = self.expiry.pop(now) {
            self.remove(number);
        }
    }

    /// When [`Self::expire`] is due next.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.expiry.next()
    }

    fn remove(&mut self, number: usize) {
        let kept = self.kept.remove(number);
        self.by_request.remove(&kept.to);
        self.expiry.cancel(number);
        self.bytes -= kept.segments.body_bytes();
    }
}
