//! One message of which some packets have arrived.

use std::collections::BTreeMap;

use crate::{
    options::Options,
    wire::{Header, Packet},
};

/// What is held of a message, in memory proportional to the bytes that arrived.
///
/// Packets usually arrive in order, so those from the start on are kept back to back, ready to be
/// the body; what comes after a gap waits beside them until the gap is filled.
#[derive(Debug, Default)]
pub(crate) struct Partial {
    /// The packet count, as the first or the last packet tells it.
    count: Option<u16>,
    /// Header and options of packet 0, once it is here.
    head: Option<(Header, Options)>,
    /// The bodies of the packets below `next`.
    prefix: Vec<u8>,
    /// The bytes of `prefix` that packet 0 brought.
    head_bytes: usize,
    /// The lowest index that has not arrived.
    next: u16,
    /// The lowest index above all that have arrived.
    end: u16,
    /// The bodies of the packets above `next`.
    stash: BTreeMap<u16, Box<[u8]>>,
    stash_bytes: usize,
}

/// What a packet meant for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was missing.
    Fresh,
    /// It is there already.
    Known,
    /// It cannot belong to the same message as the packets before it.
    Contradiction,
}

impl Partial {
    /// What a stashed packet takes beside its bytes.
    const STASHED_OVERHEAD_BYTES: usize = 64;

    /// For how many more packets there is room at first: most multi-packet messages are small.
    const PACKETS_AHEAD: usize = 5;

    /// The index of a packet that belongs to a multi-packet message, if there is such a packet.
    pub(crate) fn index(header: Header) -> Option<u16> {
        match (header.first, header.order) {
            (true, 0 | 1) | (false, 0 | u16::MAX) => None,
            (true, _) => Some(0),
            (false, index) => Some(index),
        }
    }

    /// Takes in the packet with this index, as [`Self::index`] told it.
    pub(crate) fn take(&mut self, packet: &Packet<'_>, index: u16) -> Taken {
        let header = &packet.header;
        let count = match (header.first, header.last) {
            (true, _) => Some(header.order),
            (false, true) => Some(index + 1),
            (false, false) => self.count,
        };
        let contradicts = self.count.is_some() && self.count != count
            || count.is_some_and(|count| count < self.end || count <= index);
        if contradicts {
            return Taken::Contradiction;
        }
        self.count = count;
        if index < self.next || self.stash.contains_key(&index) {
            return Taken::Known;
        }
        self.end = self.end.max(index + 1);
        if index > self.next {
            self.stash_bytes += packet.body.len();
            self.stash.insert(index, packet.body.into());
            return Taken::Fresh;
        }
        if index == 0 {
            self.head = Some((*header, packet.options));
            self.head_bytes = packet.body.len();
        }
        self.append(packet.body);
        while let Some(body) = self.stash.remove(&self.next) {
            self.stash_bytes -= body.len();
            self.append(&body);
        }
        Taken::Fresh
    }

    /// Appends the body of packet `next`.
    fn append(&mut self, body: &[u8]) {
        let needed = self.prefix.len() + body.len();
        if needed > self.prefix.capacity() {
            // Room for a few packets more, or for doubling, makes appending cheap, and is bounded by
            // what has arrived. The packet count is a claim, so it may lower what is allocated but
            // never raise it.
            let left = usize::from(self.count.unwrap_or(u16::MAX).saturating_sub(self.next));
            let claimed = self.prefix.len() + left * body.len();
            let ahead = needed.max(Self::PACKETS_AHEAD * body.len());
            let capacity = (needed + ahead).min(claimed).max(needed);
            self.prefix.reserve_exact(capacity - self.prefix.len());
        }
        self.prefix.extend_from_slice(body);
        self.next += 1;
    }

    /// Whether nothing is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.count == Some(self.next)
    }

    /// The message, which must be complete: header and options of its first packet, and its body.
    pub(crate) fn into_whole(mut self) -> (Header, Options, Vec<u8>) {
        debug_assert!(self.is_complete() && self.stash.is_empty());
        if self.prefix.capacity() - self.prefix.len() > self.prefix.len() / 4 {
            self.prefix.shrink_to_fit();
        }
        let (header, options) = self.head.expect("a complete message has a first packet");
        (header, options, self.prefix)
    }

    /// Whether a first packet with this body is the one that is here.
    pub(crate) fn begins_with(&self, body: &[u8]) -> bool {
        self.head.is_some() && self.prefix[..self.head_bytes] == *body
    }

    /// Whether packet 0 is here.
    pub(crate) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// The packet count, if it is known.
    pub(crate) fn count(&self) -> Option<u16> {
        self.count
    }

    /// The lowest index above all that have arrived.
    pub(crate) fn end(&self) -> u16 {
        self.end
    }

    /// Whether the packet with this index is not here.
    pub(crate) fn is_missing(&self, index: u16) -> bool {
        index >= self.next && !self.stash.contains_key(&index)
    }

    /// How many packets below `limit`, which is not below [`Self::end`], are missing.
    pub(crate) fn missing_count(&self, limit: u16) -> usize {
        debug_assert!(limit >= self.end);
        usize::from(limit - self.next) - self.stash.len()
    }

    /// The indices below `limit` of the packets that are missing, ascending.
    pub(crate) fn missing(&self, limit: u16) -> impl Iterator<Item = u16> {
        let mut stashed = self.stash.keys().copied().peekable();
        (self.next..limit).filter(move |index| stashed.next_if_eq(index).is_none())
    }

    /// The bytes of body that are here.
    pub(crate) fn body_bytes(&self) -> usize {
        self.prefix.len() + self.stash_bytes
    }

    /// The bytes of memory that it takes, but for a constant.
    pub(crate) fn held_bytes(&self) -> usize {
        self.prefix.capacity() + self.stash_bytes + self.stash.len() * Self::STASHED_OVERHEAD_BYTES
    }
}
