//! Packets to messages, within bounds on memory for each peer and in all.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddrV4,
    time::Duration,
};

use bytes::Bytes;
use foldhash::fast::FixedState;
use slab::Slab;

use crate::{
    CheckSeed, Time,
    options::{Identity, Options},
    partial::{Partial, Taken},
    repair::Pull,
    timers::Timers,
    wire::{Header, MessageType, Packet},
};

/// A message that gets no further for this long is given up.
const LIFETIME: Duration = Duration::from_secs(2);

/// What a message takes beside the bytes of its packets: entries in tables and allocations.
const OVERHEAD_BYTES: usize = 512;

/// A plain message's first packet that comes again this long after the last progress begins it
/// anew: it is a retry, which brings every packet again, or another message that has got the same
/// request id. Sooner, it is a datagram that the network doubled, which must not be answered
/// again: the original client does not survive a second ACK.
const RESTART_AFTER: Duration = Duration::from_millis(5);

/// Packets of a message that is complete are ignored for this long: they are duplicates that the
/// network made. It is shorter than any retry.
const DUPLICATES_IGNORED: Duration = Duration::from_millis(10);

/// How many complete messages are remembered for their duplicates.
const RECENT_MAX: usize = 1024;

/// The bytes that may be held at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of the body of one message; a larger one is refused.
    pub(crate) message: usize,
    /// Of memory for the messages of one peer.
    pub(crate) peer: usize,
    /// Of memory in all.
    pub(crate) total: usize,
}

/// What happened to multi-packet messages on their way in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReassemblyCounters {
    /// Put together.
    pub completed: u64,
    /// Given up because no packet came for two seconds.
    pub expired: u64,
    /// Given up because a newer message needed the room.
    pub evicted: u64,
    /// Refused because they are larger than a message may be.
    pub too_large: u64,
    /// Refused because the checksum was not that of the body.
    pub damaged: u64,
    /// Packets that contradicted the message that they claimed to belong to.
    pub contradictions: u64,
}

/// What sets a message apart from all others.
///
/// The original has sender and request id alone, but a request id recurs. Identity and checksum
/// are there if the packets have options, so that packets of two messages are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MessageKey {
    pub(crate) sender: SocketAddrV4,
    pub(crate) message_type: MessageType,
    pub(crate) request_id: u16,
    pub(crate) identity: Option<Identity>,
    checksum: Option<u32>,
}

impl MessageKey {
    fn of(sender: SocketAddrV4, packet: &Packet<'_>) -> Self {
        let options = &packet.options;
        let session = options.session.map(|session| session.identity());
        Self {
            sender,
            message_type: packet.header.message_type,
            request_id: packet.header.request_id,
            identity: session.or(options.identity),
            checksum: options.checksum,
        }
    }

    /// Whether there is nothing but address and request id.
    fn is_plain(&self) -> bool {
        self.identity.is_none() && self.checksum.is_none()
    }
}

/// A message that is complete.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) header: Header,
    pub(crate) options: Options,
    pub(crate) body: Bytes,
    /// Whether packets of it were asked for.
    pub(crate) was_pulled: bool,
}

/// What became of a packet.
#[derive(Debug)]
pub(crate) enum Inserted {
    /// The message of this number got further, and misses other packets.
    Fresh(usize),
    /// The packet was here already; the message of this number still misses others.
    Known(usize),
    /// The message is complete.
    Complete(Whole),
    /// The message is larger than messages may be, and was given up.
    TooLarge,
    /// The packet was of no use.
    Ignored,
}

/// A message that is not complete.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: MessageKey,
    pub(crate) partial: Partial,
    pub(crate) pull: Pull,
    progress_at: Time,
    /// What it counts for in the budgets.
    charged_bytes: usize,
}

/// The messages that are not complete.
#[derive(Debug)]
pub(crate) struct Reassembler {
    limits: Limits,
    /// Seed of the packets' checks, of those that are asked for too.
    pub(crate) seed: CheckSeed,
    pub(crate) entries: Slab<Entry>,
    by_key: HashMap<MessageKey, usize, FixedState>,
    bytes_by_peer: HashMap<SocketAddrV4, usize, FixedState>,
    bytes: usize,
    expiry: Timers,
    /// When to ask for missing packets; armed by the owner, who knows whether it may ask.
    pub(crate) repair: Timers,
    recent: HashSet<MessageKey, FixedState>,
    recent_order: VecDeque<(Time, MessageKey)>,
    pub(crate) counters: ReassemblyCounters,
}

impl Reassembler {
    /// A reassembler whose hash tables are seeded by `seed`. A peer may always hold one message of
    /// the greatest size, whatever the limits say.
    pub(crate) fn new(limits: Limits, seed: u64) -> Self {
        let least = 2 * limits.message + OVERHEAD_BYTES;
        let peer = limits.peer.max(least);
        let hasher = || FixedState::with_seed(seed);
        Self {
            limits: Limits { peer, total: limits.total.max(peer), ..limits },
            seed: CheckSeed::NONE,
            entries: Slab::new(),
            by_key: HashMap::with_hasher(hasher()),
            bytes_by_peer: HashMap::with_hasher(hasher()),
            bytes: 0,
            expiry: Timers::new([LIFETIME]),
            repair: Pull::timers(),
            recent: HashSet::with_hasher(hasher()),
            recent_order: VecDeque::new(),
            counters: ReassemblyCounters::default(),
        }
    }

    /// Takes in a packet of a multi-packet message from `sender`. `unasked` is how many packets
    /// such a sender streams by itself.
    pub(crate) fn insert(
        &mut self,
        now: Time,
        sender: SocketAddrV4,
        packet: &Packet<'_>,
        unasked: u16,
    ) -> Inserted {
        self.expire(now);
        let Some(index) = Partial::index(packet.header) else {
            self.counters.contradictions += 1;
            return Inserted::Ignored;
        };
        let key = MessageKey::of(sender, packet);
        if self.recent.contains(&key) {
            return Inserted::Ignored;
        }
        let number = match self.by_key.get(&key) {
            Some(&number) if index == 0 && self.begins_anew(now, number, packet) => {
                self.remove(number);
                self.create(now, key, unasked)
            }
            Some(&number) => number,
            None => self.create(now, key, unasked),
        };
        let entry = &mut self.entries[number];
        match entry.partial.take(packet, index) {
            Taken::Fresh => {}
            Taken::Known => return Inserted::Known(number),
            Taken::Contradiction => {
                self.counters.contradictions += 1;
                return Inserted::Ignored;
            }
        }
        entry.progress_at = now;
        if entry.partial.body_bytes() > self.limits.message {
            self.remove(number);
            self.counters.too_large += 1;
            return Inserted::TooLarge;
        }
        if entry.partial.is_complete() {
            return self.complete(now, number);
        }
        self.expiry.arm(now, number, 0);
        self.charge(number);
        self.make_room(number);
        Inserted::Fresh(number)
    }

    /// Counts a message that was refused by its first packet, before any of it was held.
    pub(crate) fn refuse_too_large(&mut self) {
        self.counters.too_large += 1;
    }

    /// Gives up messages that got no further for their lifetime.
    pub(crate) fn expire(&mut self, now: Time) {
        while let Some(number) = self.expiry.pop(now) {
            self.remove(number);
            self.counters.expired += 1;
        }
        while let Some((_, key)) = self.recent_order.pop_front_if(|(until, _)| *until <= now) {
            self.recent.remove(&key);
        }
    }

    /// Forgets a message.
    pub(crate) fn remove(&mut self, number: usize) -> Entry {
        let entry = self.entries.remove(number);
        self.by_key.remove(&entry.key);
        self.expiry.cancel(number);
        self.repair.cancel(number);
        self.bytes -= entry.charged_bytes;
        let peer = entry.key.sender;
        let left =
            self.bytes_by_peer.get_mut(&peer).expect("a peer is there while it has messages");
        *left -= entry.charged_bytes;
        if *left == 0 {
            self.bytes_by_peer.remove(&peer);
        }
        entry
    }

    /// When [`Self::expire`] or a repair is due next.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        [self.expiry.next(), self.repair.next()].into_iter().flatten().min()
    }

    /// Whether a first packet that is there already must displace what is held, because it begins
    /// a message again or another one.
    fn begins_anew(&self, now: Time, number: usize, packet: &Packet<'_>) -> bool {
        let entry = &self.entries[number];
        let count = packet.header.order;
        entry.key.is_plain()
            && entry.partial.has_head()
            && (!entry.partial.begins_with(packet.body)
                || entry.partial.count() != Some(count)
                || now.since(entry.progress_at) > RESTART_AFTER)
    }

    fn create(&mut self, now: Time, key: MessageKey, unasked: u16) -> usize {
        let number = self.entries.insert(Entry {
            key,
            partial: Partial::default(),
            pull: Pull::new(unasked),
            progress_at: now,
            charged_bytes: 0,
        });
        self.by_key.insert(key, number);
        self.bytes_by_peer.entry(key.sender).or_default();
        self.expiry.arm(now, number, 0);
        self.charge(number);
        number
    }

    /// Brings the budgets up to date with what a message holds.
    fn charge(&mut self, number: usize) {
        let entry = &mut self.entries[number];
        let bytes = OVERHEAD_BYTES + entry.partial.held_bytes();
        let before = std::mem::replace(&mut entry.charged_bytes, bytes);
        let of_peer = self.bytes_by_peer.entry(entry.key.sender).or_default();
        *of_peer = *of_peer + bytes - before;
        self.bytes = self.bytes + bytes - before;
    }

    /// Gives up other messages while a budget is exceeded, those without progress for the longest
    /// time first: a message that gets on survives any number that do not.
    fn make_room(&mut self, number: usize) {
        let peer = self.entries[number].key.sender;
        let of_peer = self.bytes_by_peer[&peer];
        if of_peer > self.limits.peer {
            // Looking for the messages of one peer takes a walk through all. Freeing a quarter of
            // the budget at once makes walks rare, whatever the peer sends.
            let goal = of_peer - self.limits.peer / 4 * 3;
            self.evict(number, goal, Some(peer));
        }
        if self.bytes > self.limits.total {
            self.evict(number, self.bytes - self.limits.total, None);
        }
    }

    /// Gives up the messages (of one peer) without progress for the longest time until `goal`
    /// bytes are free, but never the message `kept`.
    fn evict(&mut self, kept: usize, goal: usize, peer: Option<SocketAddrV4>) {
        let mut freed = 0;
        let mut victims = Vec::new();
        for number in self.expiry.oldest(0) {
            if freed >= goal {
                break;
            }
            let entry = &self.entries[number];
            if number != kept && peer.is_none_or(|peer| entry.key.sender == peer) {
                freed += entry.charged_bytes;
                victims.push(number);
            }
        }
        for number in victims {
            self.remove(number);
            self.counters.evicted += 1;
        }
    }

    fn complete(&mut self, now: Time, number: usize) -> Inserted {
        let entry = self.remove(number);
        let was_pulled = entry.pull.has_asked();
        let (header, options, body) = entry.partial.into_whole();
        if options.checksum.is_some_and(|checksum| checksum != crc32fast::hash(&body)) {
            self.counters.damaged += 1;
            return Inserted::Ignored;
        }
        self.counters.completed += 1;
        if self.recent_order.len() == RECENT_MAX
            && let Some((_, oldest)) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        self.recent.insert(entry.key);
        self.recent_order.push_back((now + DUPLICATES_IGNORED, entry.key));
        Inserted::Complete(Whole { header, options, body: body.into(), was_pulled })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        segments::{Envelope, Segments},
        wire::Policy,
    };

    const LIMITS: Limits = Limits { message: 100_000, peer: 400_000, total: 1_000_000 };

    fn peer(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    /// The packets of a message.
    fn packets(request_id: u16, options: Options, body: &[u8]) -> Vec<Vec<u8>> {
        let envelope = Envelope {
            message_type: MessageType::Response,
            policy: Policy::Fixed,
            request_id,
            options,
            seed: CheckSeed::NONE,
        };
        let segments = Segments::new(envelope, Bytes::copy_from_slice(body)).unwrap();
        let write = |index| {
            let mut datagram = Vec::new();
            segments.write(index, &mut datagram);
            datagram
        };
        (0..segments.count()).map(write).collect()
    }

    fn body(size: usize, salt: u8) -> Vec<u8> {
        (0..size).map(|i| (i / 7) as u8 ^ salt).collect()
    }

    fn insert(reassembler: &mut Reassembler, now: Time, from: u16, datagram: &[u8]) -> Inserted {
        let packet = Packet::parse(datagram).unwrap();
        let inserted = reassembler.insert(now, peer(from), &packet, 0);
        check(reassembler);
        inserted
    }

    /// The budgets are what the messages hold, and are kept.
    fn check(reassembler: &Reassembler) {
        let limits = &reassembler.limits;
        let mut by_peer: HashMap<SocketAddrV4, usize> = HashMap::new();
        for (number, entry) in &reassembler.entries {
            assert_eq!(reassembler.by_key[&entry.key], number);
            assert_eq!(entry.charged_bytes, OVERHEAD_BYTES + entry.partial.held_bytes());
            assert!(entry.partial.body_bytes() <= limits.message);
            *by_peer.entry(entry.key.sender).or_default() += entry.charged_bytes;
        }
        assert_eq!(reassembler.by_key.len(), reassembler.entries.len());
        assert_eq!(reassembler.bytes, by_peer.values().sum::<usize>());
        assert!(reassembler.bytes <= limits.total);
        assert!(by_peer.values().all(|&bytes| bytes <= limits.peer));
        assert_eq!(reassembler.bytes_by_peer.len(), by_peer.len());
        for (peer, bytes) in by_peer {
            assert_eq!(reassembler.bytes_by_peer[&peer], bytes);
        }
        assert!(reassembler.recent.len() <= RECENT_MAX);
        assert_eq!(reassembler.recent.len(), reassembler.recent_order.len());
    }

    proptest! {
        /// Against the model: a message is complete when its last missing packet comes, once.
        #[test]
        fn messages_survive_any_order_and_duplicates(
            sizes in prop::collection::vec((1465..12_000_usize, any::<bool>()), 1..6),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..150),
        ) {
            let mut reassembler = Reassembler::new(LIMITS, 1);
            let mut datagrams = Vec::new();
            let mut bodies = Vec::new();
            for (message, &(size, plain)) in sizes.iter().enumerate() {
                let body = body(size, message as u8);
                // Plain messages are told apart by their request ids, the others by checksums.
                let (id, options) = if plain {
                    (message as u16, Options::NONE)
                } else {
                    (100, Options::REPAIRABLE)
                };
                datagrams.extend(packets(id, options, &body).into_iter().map(|d| (message, d)));
                bodies.push(body);
            }
            // Any order with any duplicates first, then whatever that has left out.
            let mut missing: HashSet<usize> = (0..datagrams.len()).collect();
            let mut complete = HashSet::new();
            let any_order = order.iter().map(|index| index.index(datagrams.len()));
            for number in any_order.chain((0..datagrams.len()).rev()) {
                let (message, datagram) = &datagrams[number];
                let is_fresh = missing.remove(&number);
                let is_complete = missing.iter().all(|&other| datagrams[other].0 != *message);
                match insert(&mut reassembler, Time::ZERO, 1, datagram) {
                    Inserted::Complete(whole) => {
                        prop_assert!(is_complete && complete.insert(*message));
                        prop_assert_eq!(&whole.body[..], &bodies[*message][..]);
                    }
                    Inserted::Ignored => prop_assert!(complete.contains(message)),
                    Inserted::Fresh(_) => prop_assert!(is_fresh && !is_complete),
                    Inserted::Known(_) => prop_assert!(!is_fresh && !is_complete),
                    Inserted::TooLarge => prop_assert!(false, "none is"),
                }
            }
            prop_assert_eq!(complete.len(), bodies.len());
            prop_assert!(reassembler.entries.is_empty());
        }

        #[test]
        fn any_packets_are_held_within_bounds(
            packets in prop::collection::vec(
                (
                    (0..6_u16, 0..3_u16, 0..4_u8),
                    prop_oneof![0..6_u16, any::<u16>(), Just(u16::MAX)],
                    (0..2000_usize, 0..20_000_000_u64),
                ),
                0..200,
            )
        ) {
            let limits = Limits {
                message: 10_000,
                peer: 22_000,
                total: 50_000,
            };
            let mut reassembler = Reassembler::new(limits, 1);
            let mut now = Time::ZERO;
            for ((from, request_id, flags), order, (size, wait)) in packets {
                let header = Header {
                    message_type: MessageType::Request,
                    policy: Policy::Fixed,
                    first: flags == 1,
                    last: flags == 2,
                    request_id,
                    order,
                };
                now += Duration::from_nanos(wait);
                let mut datagram = Vec::new();
                Packet::new(header, &vec![7; size]).encode(CheckSeed::NONE, &mut datagram);
                insert(&mut reassembler, now, from, &datagram);
            }
        }
    }

    #[test]
    fn a_message_in_progress_survives_a_flood_from_others_and_from_its_sender() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let mut now = Time::ZERO;
        let wanted = packets(1, Options::NONE, &body(90_000, 0));
        let (last, others) = wanted.split_last().unwrap();
        let flood = packets(0, Options::NONE, &body(90_000, 1));
        for (step, datagram) in others.iter().enumerate() {
            now += Duration::from_millis(1);
            insert(&mut reassembler, now, 1, datagram);
            for number in 0..20 {
                let mut datagram = flood[1].clone();
                datagram[4..6].copy_from_slice(&(step as u16 * 20 + number + 2).to_be_bytes());
                insert(&mut reassembler, now, 1 + number % 4, &datagram);
            }
        }
        assert!(reassembler.counters.evicted > 100);
        let inserted = insert(&mut reassembler, now, 1, last);
        assert!(matches!(inserted, Inserted::Complete(whole) if whole.body.len() == 90_000));
    }

    #[test]
    fn memory_is_in_proportion_to_what_arrived_not_to_what_is_claimed() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let mut header = Header {
            message_type: MessageType::Request,
            policy: Policy::Fixed,
            first: true,
            last: false,
            request_id: 1,
            order: u16::MAX,
        };
        let mut send = |header: Header| {
            let mut datagram = Vec::new();
            Packet::new(header, &[7; 14]).encode(CheckSeed::NONE, &mut datagram);
            insert(&mut reassembler, Time::ZERO, 1, &datagram);
            reassembler.bytes
        };
        assert!(send(header) < OVERHEAD_BYTES + 100);
        header.first = false;
        header.order = 65_534;
        assert!(send(header) < OVERHEAD_BYTES + 200);
    }

    #[test]
    fn a_message_that_stands_still_expires() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let packets = packets(1, Options::NONE, &body(3000, 0));
        insert(&mut reassembler, Time::ZERO, 1, &packets[0]);
        let later = Time::ZERO + Duration::from_secs(1);
        insert(&mut reassembler, later, 1, &packets[1]);
        assert_eq!(reassembler.next_timeout(), Some(later + LIFETIME));
        reassembler.expire(later + LIFETIME);
        assert_eq!(reassembler.counters.expired, 1);
        assert!(reassembler.entries.is_empty() && reassembler.bytes == 0);
    }

    #[test]
    fn a_message_larger_than_its_limit_is_given_up_at_once() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let packets = packets(1, Options::NONE, &body(100_001, 0));
        let (last, others) = packets.split_last().unwrap();
        for datagram in others {
            insert(&mut reassembler, Time::ZERO, 1, datagram);
        }
        let inserted = insert(&mut reassembler, Time::ZERO, 1, last);
        assert!(matches!(inserted, Inserted::TooLarge));
        assert!(reassembler.entries.is_empty());
        assert_eq!(reassembler.counters.too_large, 1);
    }

    #[test]
    fn packets_of_two_plain_messages_with_one_id_are_not_mixed() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let [old, new] = [1, 2].map(|salt| packets(1, Options::NONE, &body(4000, salt)));
        insert(&mut reassembler, Time::ZERO, 1, &old[0]);
        insert(&mut reassembler, Time::ZERO, 1, &old[2]);
        for datagram in &new[..2] {
            let inserted = insert(&mut reassembler, Time::ZERO, 1, datagram);
            assert!(matches!(inserted, Inserted::Fresh(_)));
        }
        let inserted = insert(&mut reassembler, Time::ZERO, 1, &new[2]);
        assert!(matches!(inserted, Inserted::Complete(whole) if *whole.body == body(4000, 2)));
    }

    #[test]
    fn a_plain_retry_brings_every_packet_again() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let packets = packets(1, Options::NONE, &body(4000, 1));
        insert(&mut reassembler, Time::ZERO, 1, &packets[0]);
        insert(&mut reassembler, Time::ZERO, 1, &packets[2]);
        // At once it is a duplicate.
        let inserted = insert(&mut reassembler, Time::ZERO, 1, &packets[0]);
        assert!(matches!(inserted, Inserted::Known(_)));
        let later = Time::ZERO + RESTART_AFTER * 2;
        for datagram in &packets[..2] {
            let inserted = insert(&mut reassembler, later, 1, datagram);
            assert!(matches!(inserted, Inserted::Fresh(_)));
        }
        let inserted = insert(&mut reassembler, later, 1, &packets[2]);
        assert!(matches!(inserted, Inserted::Complete(_)));
    }

    #[test]
    fn a_damaged_body_is_refused() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let mut packets = packets(1, Options::REPAIRABLE, &body(4000, 1));
        *packets[1].last_mut().unwrap() ^= 1;
        for datagram in &packets[..2] {
            insert(&mut reassembler, Time::ZERO, 1, datagram);
        }
        let inserted = insert(&mut reassembler, Time::ZERO, 1, &packets[2]);
        assert!(matches!(inserted, Inserted::Ignored));
        assert_eq!(reassembler.counters.damaged, 1);
    }

    #[test]
    fn duplicates_of_a_complete_message_are_ignored_for_a_while() {
        let mut reassembler = Reassembler::new(LIMITS, 1);
        let packets = packets(1, Options::REPAIRABLE, &body(4000, 1));
        for datagram in &packets {
            insert(&mut reassembler, Time::ZERO, 1, datagram);
        }
        for datagram in &packets {
            let inserted = insert(&mut reassembler, Time::ZERO, 1, datagram);
            assert!(matches!(inserted, Inserted::Ignored));
        }
        let later = Time::ZERO + DUPLICATES_IGNORED;
        let inserted = insert(&mut reassembler, later, 1, &packets[0]);
        assert!(matches!(inserted, Inserted::Fresh(_)));
    }
}
