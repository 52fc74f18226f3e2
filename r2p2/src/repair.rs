//! Selective repeat: a receiver names the packets that it wants, and when.
//!
//! The same mechanism controls the flow of large messages. A sender with options streams at most
//! [`WINDOW`] packets by itself; the receiver asks for the rest, with at most a window of packets
//! on their way at any time, so that they fit a small socket buffer. Packets that were asked for
//! and do not come are asked for again when none has come for a while.

use std::{net::SocketAddrV4, time::Duration};

use crate::{
    CheckSeed, Outbox, Time,
    options::{BITMAP_BYTES_MAX, Missing},
    partial::Partial,
    reassembly::Reassembler,
    timers::Timers,
    wire::{ACK_BODY, Header, MessageType, Packet, Policy},
};

/// How many packets of a message with options are sent unasked, and how many may be on their way.
pub(crate) const WINDOW: u16 = 64;

/// The packets that all messages of a receiver may have on their way, before each one's window
/// gets smaller than [`WINDOW`].
const WINDOW_IN_ALL: u16 = 512;

/// The smallest window, however many messages share.
const WINDOW_MIN: u16 = 8;

/// How many packets one ACK makes a sender send: a little more than an honest receiver asks for.
pub(crate) const SENT_PER_ACK_MAX: usize = 2 * WINDOW as usize;

/// After how long without a packet the missing ones are asked for again, on a fast network. It
/// doubles whenever asking was in vain, and adapts to the time that an answer takes.
const REPAIR_AFTER_MIN: Duration = Duration::from_millis(2);

/// How often it may double: up to 128 ms.
const LEVELS: u8 = 7;

/// How much of a message its receiver has asked for.
#[derive(Debug)]
pub(crate) struct Pull {
    /// The packets that the sender streams by itself.
    unasked: u16,
    /// Every packet below has been asked for, or comes unasked.
    asked_to: u16,
    /// A packet that was asked for once, and when: its arrival tells how long an answer takes.
    probe: Option<(u16, Time)>,
    /// How often the time to wait is doubled.
    level: u8,
    has_asked: bool,
    /// Asking again has not brought a packet so far.
    in_vain: bool,
}

impl Pull {
    /// A message whose sender streams `unasked` packets by itself.
    pub(crate) fn new(unasked: u16) -> Self {
        Self { unasked, asked_to: 0, probe: None, level: 0, has_asked: false, in_vain: false }
    }

    /// Timers with an interval for each level.
    pub(crate) fn timers() -> Timers {
        Timers::new((0..LEVELS).map(|level| REPAIR_AFTER_MIN * (1 << level)))
    }

    /// Whether any packets were asked for.
    pub(crate) fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// A packet has arrived. Returns the range of packets to ask for now, which may be empty.
    fn packet_arrived(&mut self, now: Time, partial: &Partial, window: u16) -> (u16, u16) {
        self.in_vain = false;
        if let Some((index, asked_at)) = self.probe
            && !partial.is_missing(index)
        {
            // Twice the time of an answer leaves room for its variation.
            let enough = |level: &u8| REPAIR_AFTER_MIN * (1 << level) >= now.since(asked_at) * 2;
            self.level = (0..LEVELS).find(enough).unwrap_or(LEVELS - 1);
            self.probe = None;
        }
        let on_their_way = self.on_their_way(partial);
        if on_their_way > usize::from(window / 2) {
            return (self.asked_to, self.asked_to);
        }
        let from = self.asked_to;
        self.extend(partial, window);
        if from < self.asked_to {
            self.probe.get_or_insert((from, now));
        }
        (from, self.asked_to)
    }

    /// No packet came for the time that the level says. Returns how many missing packets to ask
    /// for now.
    fn timed_out(&mut self, partial: &Partial, window: u16) -> u16 {
        self.level = (self.level + 1).min(LEVELS - 1);
        // An answer now might be to either time of asking.
        self.probe = None;
        self.has_asked = true;
        if std::mem::replace(&mut self.in_vain, true) {
            // Either the network is slower than thought, or little comes through: a few packets
            // are enough to find out.
            return WINDOW_MIN / 2;
        }
        self.extend(partial, window);
        window
    }

    /// Moves on the end of what is asked for, as far as the window and the message go.
    fn extend(&mut self, partial: &Partial, window: u16) {
        let on_their_way = self.on_their_way(partial);
        let free = usize::from(window).saturating_sub(on_their_way) as u16;
        let end = partial.count().unwrap_or(self.asked_to);
        self.asked_to = self.asked_to.saturating_add(free).min(end).max(self.asked_to);
    }

    /// How many packets have been asked for, or come unasked, and are not here.
    fn on_their_way(&mut self, partial: &Partial) -> usize {
        let unasked = partial.count().map_or(0, |count| count.min(self.unasked));
        self.asked_to = self.asked_to.max(partial.end()).max(unasked);
        partial.missing_count(self.asked_to)
    }
}

impl Reassembler {
    /// Asks for more of a message that has got further, if its window allows. Only for senders
    /// with options.
    pub(crate) fn pull(&mut self, now: Time, number: usize, outbox: &mut Outbox) {
        let window = self.window();
        let entry = &mut self.entries[number];
        let (from, to) = entry.pull.packet_arrived(now, &entry.partial, window);
        entry.pull.has_asked |= from < to;
        ask(entry.key.sender, entry.key.request_id, from..to, self.seed, outbox);
        let level = usize::from(entry.pull.level);
        self.repair.arm(now, number, level);
    }

    /// Asks again for what is missing of a message that stands still.
    pub(crate) fn pull_again(&mut self, now: Time, number: usize, outbox: &mut Outbox) {
        let window = self.window();
        let entry = &mut self.entries[number];
        let asked_count = entry.pull.timed_out(&entry.partial, window);
        let missing = entry.partial.missing(entry.pull.asked_to);
        let missing = missing.take(usize::from(asked_count));
        ask(entry.key.sender, entry.key.request_id, missing, self.seed, outbox);
        let level = usize::from(entry.pull.level);
        self.repair.arm(now, number, level);
    }

    /// The window of each message.
    fn window(&self) -> u16 {
        let share = usize::from(WINDOW_IN_ALL) / self.entries.len().max(1);
        (share as u16).clamp(WINDOW_MIN, WINDOW)
    }
}

/// Sends ACKs that name these packets, which ascend: one for every stretch that a bitmap holds.
fn ask(
    to: SocketAddrV4,
    request_id: u16,
    indices: impl IntoIterator<Item = u16>,
    seed: CheckSeed,
    outbox: &mut Outbox,
) {
    let mut indices = indices.into_iter().peekable();
    while let Some(&first) = indices.peek() {
        let mut bitmap = [0; BITMAP_BYTES_MAX];
        let mut length = 0;
        while let Some(index) =
            indices.next_if(|&index| usize::from(index - first) < 8 * BITMAP_BYTES_MAX)
        {
            let offset = usize::from(index - first);
            bitmap[offset / 8] |= 0x80 >> (offset % 8);
            length = offset / 8 + 1;
        }
        let missing = Missing::new(first, &bitmap[..length]);
        send_ack(to, request_id, Some(missing), seed, outbox);
    }
}

/// Tells the sender of a message that all of it has arrived.
pub(crate) fn ask_for_nothing(
    to: SocketAddrV4,
    request_id: u16,
    seed: CheckSeed,
    outbox: &mut Outbox,
) {
    send_ack(to, request_id, Some(Missing::new(0, &[])), seed, outbox);
}

/// Sends an ACK; one without MISSING asks for all that follows the first packet.
pub(crate) fn send_ack(
    to: SocketAddrV4,
    request_id: u16,
    missing: Option<Missing<'_>>,
    seed: CheckSeed,
    outbox: &mut Outbox,
) {
    let header = Header::single(MessageType::Ack, Policy::Fixed, request_id);
    let packet = Packet { missing, ..Packet::new(header, ACK_BODY) };
    outbox.push(to, |out| packet.encode(seed, out));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        options::Options,
        reassembly::{Inserted, Limits},
    };

    const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7);

    struct Fixture {
        receiver: Reassembler,
        outbox: Outbox,
        now: Time,
    }

    impl Fixture {
        fn new() -> Self {
            let limits = Limits { message: 1 << 20, peer: 1 << 20, total: 1 << 20 };
            Self { receiver: Reassembler::new(limits, 1), outbox: Outbox::new(), now: Time::ZERO }
        }

        /// Takes packet `index` of a message of 1000 packets.
        fn receive(&mut self, request_id: u16, index: u16) {
            let header = Header {
                message_type: MessageType::Request,
                policy: Policy::Fixed,
                first: index == 0,
                last: false,
                request_id,
                order: if index == 0 { 1000 } else { index },
            };
            let options = Options { checksum: Some(0), ..Options::REPAIRABLE };
            let packet = Packet { options, ..Packet::new(header, b"body") };
            match self.receiver.insert(self.now, PEER, &packet, 0) {
                Inserted::Fresh(number) => self.receiver.pull(self.now, number, &mut self.outbox),
                other => panic!("{other:?}"),
            }
        }

        /// Goes to the next deadline, and returns how long that took.
        fn time_out(&mut self) -> Duration {
            let next = self.receiver.repair.next().expect("a timer runs");
            let waited = next.since(self.now);
            self.now = next;
            let number = self.receiver.repair.pop(next).expect("it is due");
            self.receiver.pull_again(next, number, &mut self.outbox);
            waited
        }

        /// The packets that were asked for.
        fn asked(&mut self) -> Vec<u16> {
            let mut asked = Vec::new();
            self.outbox.drain(|batch| {
                for datagram in batch.datagrams() {
                    let missing = Packet::parse(datagram).unwrap().missing;
                    asked.extend(missing.expect("every ACK names packets").indices());
                }
            });
            asked
        }
    }

    #[test]
    fn a_window_is_on_its_way_at_any_time() {
        let mut it = Fixture::new();
        it.receive(1, 0);
        assert_eq!(it.asked(), (1..65).collect::<Vec<_>>());
        // Half of it comes, but for two packets, before more is asked for.
        for index in (1..=34).filter(|index| ![5, 9].contains(index)) {
            assert_eq!(it.asked(), []);
            it.receive(1, index);
        }
        assert_eq!(it.asked(), (65..97).collect::<Vec<_>>());
        // What was lost is asked for when nothing comes any more, with the rest of the window.
        for index in 35..97 {
            it.receive(1, index);
        }
        it.asked();
        it.time_out();
        let window: Vec<_> = [5, 9].into_iter().chain(97..159).collect();
        assert_eq!(it.asked(), window);
    }

    #[test]
    fn the_wait_doubles_in_vain_and_falls_by_an_answer() {
        let mut it = Fixture::new();
        it.receive(1, 0);
        let waits: Vec<_> = (0..8).map(|_| it.time_out().as_millis()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 128]);
        // Packets that were asked for several times say nothing of how long an answer takes.
        for index in 1..=32 {
            it.receive(1, index);
        }
        assert_eq!(it.receiver.repair.next(), Some(it.now + Duration::from_millis(128)));
        // Packet 65 was asked for just now, for the first time.
        it.now += Duration::from_millis(3);
        it.receive(1, 65);
        assert_eq!(it.receiver.repair.next(), Some(it.now + Duration::from_millis(8)));
    }

    #[test]
    fn in_vain_only_few_packets_are_asked_for() {
        let mut it = Fixture::new();
        it.receive(1, 0);
        let counts: Vec<_> = (0..4)
            .map(|_| {
                let count = it.asked().len();
                it.time_out();
                count
            })
            .collect();
        assert_eq!(counts, [64, 64, 4, 4]);
    }

    #[test]
    fn many_messages_share_what_may_be_on_its_way() {
        let mut it = Fixture::new();
        let windows: Vec<_> = (0..100)
            .map(|request_id| {
                it.receive(request_id, 0);
                it.asked().len()
            })
            .collect();
        assert_eq!([windows[0], windows[7], windows[15], windows[99]], [64, 64, 32, 8]);
    }
}
