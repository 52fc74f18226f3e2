//! The client's side of R2P2, without I/O.

use std::{collections::HashMap, net::SocketAddrV4, sync::Arc, time::Duration};

use bytes::Bytes;
use foldhash::fast::FixedState;
use slab::Slab;

use crate::{
    Body, CheckSeed, Outbox, Time,
    bypass::{Bypass, Copies},
    options::{Identity, Missing, Options, Reason},
    reassembly::{Inserted, Limits, Reassembler, ReassemblyCounters},
    repair::{SENT_PER_ACK_MAX, WINDOW, ask_for_nothing},
    request_ids::{IN_USE_MAX, RequestIds},
    segments::{BURST_INTERVAL, Envelope, Segments, SendError},
    timers::Timers,
    wire::{MessageType, Packet, Policy, WireError},
};

/// The settings of a [`ClientEndpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long to wait for a reply before a request is sent again. At least 20 ms: servers take
    /// what comes sooner for a datagram that the network doubled.
    pub retry_after: Duration,
    /// The wait doubles with every try, up to this.
    pub retry_after_max: Duration,
    /// Whether each copy of a request goes to the next of its destinations, in their order and
    /// around, instead of to all of them.
    pub one_by_one: bool,
    /// The first destination is a switch, which passes requests on to the others. A request that it
    /// seems to have lost goes to the others too, and while it seems to be gone they get all.
    pub by_switch: bool,
    /// How many requests may be outstanding; at most 32,768.
    pub outstanding_max: usize,
    /// The largest body of a reply, in bytes.
    pub reply_bytes_max: usize,
    /// The memory for all incomplete replies, in bytes; at least one largest reply has room
    /// whatever it says.
    pub reassembly_bytes_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            retry_after: Duration::from_millis(100),
            retry_after_max: Duration::from_secs(1),
            one_by_one: false,
            by_switch: false,
            outstanding_max: 16_384,
            reply_bytes_max: 64 << 20,
            reassembly_bytes_max: 256 << 20,
        }
    }
}

/// The least time between two tries: longer than servers ignore duplicates.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(20);

/// Why a request is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// As many requests are outstanding as may be.
    #[error("{0} requests are outstanding, and no more may be")]
    TooManyOutstanding(usize),
    /// The list of destinations is empty.
    #[error("there is nowhere to send the request to")]
    NoDestination,
    /// A reply could not tell which of the two it answers.
    #[error("a request with the same client id and sequence is outstanding")]
    IdentityInUse,
    /// The request cannot be cut into packets.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// Names an outstanding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestHandle {
    number: usize,
    /// Numbers are used again; this is not.
    serial: u64,
}

impl RequestHandle {
    /// A small number that no other outstanding request has, for a table beside the endpoint. It
    /// is used again once the request has ended.
    pub fn index(&self) -> usize {
        self.number
    }
}

/// Something happened to a request.
#[derive(Debug)]
pub struct ClientEvent<'a> {
    /// Which request.
    pub handle: RequestHandle,
    /// Who sent the datagram that made it happen.
    pub from: SocketAddrV4,
    /// The reason why a request was not admitted, if that is not load.
    pub reason: Option<Reason>,
    /// What happened.
    pub kind: ClientEventKind<'a>,
}

/// What happened to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientEventKind<'a> {
    /// It is answered, and has ended.
    Reply {
        /// The options of the reply's first packet.
        options: Options,
        /// What the server says.
        body: Body<'a>,
    },
    /// It is answered by more than [`ClientConfig::reply_bytes_max`], and has ended.
    ReplyTooLarge,
    /// It was not admitted (P23). It is still outstanding, and will be sent again later than it
    /// would have been; a caller that does not want that forgets it.
    Dropped {
        /// How often the request has been sent. If more than once, or to several destinations,
        /// another copy may have been executed.
        copies_sent: u32,
    },
}

#[derive(Debug)]
struct Request {
    serial: u64,
    destinations: Arc<[SocketAddrV4]>,
    /// The identity of a request with SESSION, by which alone its reply is known.
    identity: Option<Identity>,
    /// It has no options, as the original's.
    is_plain: bool,
    segments: Segments,
    copies_sent: u32,
    /// Which of the retry intervals is running.
    backoff: usize,
    /// How many copies were sent since something was heard of it.
    unheard: u32,
    /// How many ACKs without MISSING may still be answered: one for each first packet sent.
    acks_left: usize,
    /// Of a plain request, who gets the rest of it, and the next packet to send there.
    streams: Vec<(SocketAddrV4, u16)>,
}

impl Request {
    fn copies(&self) -> Copies {
        Copies { serial: self.serial, unheard: self.unheard }
    }
}

/// Sends requests, sends them again until they are answered, and puts replies together.
///
/// The caller owns the overall deadline of a request: it calls [`Self::forget`] when it gives up.
#[derive(Debug)]
pub struct ClientEndpoint {
    outstanding_max: usize,
    one_by_one: bool,
    bypass: Option<Bypass>,
    requests: Slab<Request>,
    ids: RequestIds,
    by_identity: HashMap<Identity, usize, FixedState>,
    retries: Timers,
    retry_intervals: Vec<Duration>,
    /// The retry interval that new requests begin with.
    first_backoff: usize,
    /// When the next packets of plain requests are due.
    streams: Timers,
    replies: Reassembler,
    next_serial: u64,
    /// A packet for several destinations, written once; reused.
    packet: Vec<u8>,
}

impl ClientEndpoint {
    /// An endpoint whose first request id is the low 16 bits of `seed`, by which its hash tables
    /// are seeded too.
    pub fn new(config: ClientConfig, seed: u64) -> Self {
        let limits = Limits {
            message: config.reply_bytes_max,
            peer: config.reassembly_bytes_max,
            total: config.reassembly_bytes_max,
        };
        let first = config.retry_after.max(RETRY_AFTER_MIN);
        let last = config.retry_after_max.max(first);
        let doubled = std::iter::successors(Some(first), |&interval| {
            (interval < last).then(|| last.min(interval * 2))
        });
        let intervals: Vec<Duration> = doubled.collect();
        Self {
            outstanding_max: config.outstanding_max.min(IN_USE_MAX),
            one_by_one: config.one_by_one,
            bypass: config.by_switch.then(Bypass::default),
            requests: Slab::new(),
            ids: RequestIds::new(seed as u16, seed),
            by_identity: HashMap::with_hasher(FixedState::with_seed(seed)),
            retries: Timers::new(intervals.iter().copied()),
            retry_intervals: intervals,
            first_backoff: 0,
            streams: Timers::new([BURST_INTERVAL]),
            replies: Reassembler::new(limits, seed),
            next_serial: 0,
            packet: Vec::new(),
        }
    }

    /// Says how long requests that are sent from now on wait for a reply before they are sent
    /// again: `wait`, rounded up to one of the doubled waits, as far as these go.
    pub fn set_retry_after(&mut self, wait: Duration) {
        let longest = self.retry_intervals.len() - 1;
        let first = self.retry_intervals.iter().position(|&interval| interval >= wait);
        self.first_backoff = first.unwrap_or(longest);
    }

    /// Says what the checks of all packets with options begin with, both ways; [`CheckSeed::NONE`]
    /// before that. Requests that are outstanding keep theirs, and are best forgotten.
    pub fn set_check_seed(&mut self, seed: CheckSeed) {
        self.replies.seed = seed;
    }

    /// Sends a request to every one of `destinations`: a server, a multicast group, or all the
    /// replicas of a group (P3); or to the first of them, if they are to be asked one by one.
    ///
    /// The options are as the caller wants them on every packet, SESSION among them for a
    /// replicated request; none for a server that may be an original one;
    /// [`Options::REPAIRABLE`] for a server of this crate.
    pub fn request(
        &mut self,
        now: Time,
        destinations: &Arc<[SocketAddrV4]>,
        policy: Policy,
        options: Options,
        body: Bytes,
        outbox: &mut Outbox,
    ) -> Result<RequestHandle, RequestError> {
        if self.requests.len() >= self.outstanding_max {
            return Err(RequestError::TooManyOutstanding(self.outstanding_max));
        }
        if destinations.is_empty() {
            return Err(RequestError::NoDestination);
        }
        let identity = options.session.map(|session| session.identity());
        if identity.is_some_and(|identity| self.by_identity.contains_key(&identity)) {
            return Err(RequestError::IdentityInUse);
        }
        let request_id = self.ids.next(now);
        let seed = self.replies.seed;
        let message_type = MessageType::Request;
        let envelope = Envelope { message_type, policy, request_id, options, seed };
        let segments = Segments::new(envelope, body)?;
        let serial = self.next_serial;
        self.next_serial += 1;
        let number = self.requests.insert(Request {
            serial,
            destinations: Arc::clone(destinations),
            identity,
            is_plain: options.is_none(),
            segments,
            copies_sent: 0,
            backoff: self.first_backoff,
            unheard: 0,
            acks_left: 0,
            streams: Vec::new(),
        });
        if let Some(bypass) = &mut self.bypass {
            bypass.begun(now, serial);
        }
        self.ids.take(request_id, number);
        if let Some(identity) = identity {
            self.by_identity.insert(identity, number);
        }
        self.send_first(now, number, outbox);
        Ok(RequestHandle { number, serial })
    }

    /// Takes a datagram of type RESPONSE, ACK or DROP. Datagrams about requests that are not
    /// outstanding are ignored.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &'a [u8],
        outbox: &mut Outbox,
    ) -> Result<Option<ClientEvent<'a>>, WireError> {
        let packet = Packet::open(datagram, self.replies.seed)?;
        match packet.header.message_type {
            MessageType::Response => Ok(self.handle_response(now, from, &packet, outbox)),
            MessageType::Ack => {
                self.handle_ack(now, from, &packet, outbox);
                Ok(None)
            }
            MessageType::Drop => Ok(self.handle_drop(now, from, &packet)),
            other => Err(WireError::Misdirected(other)),
        }
    }

    /// Gives up a request, if it is still outstanding.
    pub fn forget(&mut self, now: Time, handle: RequestHandle) {
        let request = self.requests.get(handle.number);
        if request.is_some_and(|request| request.serial == handle.serial) {
            let request = self.remove(handle.number);
            if let Some(bypass) = &mut self.bypass
                && request.unheard == request.copies_sent
            {
                bypass.given_up(now, request.copies());
            }
            if request.identity.is_none() {
                self.ids.release_later(now, request.segments.request_id());
            }
        }
    }

    /// Sends requests again that have not been answered, sends more of plain requests, and asks
    /// again for packets of replies.
    pub fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        while let Some(number) = self.streams.pop(now) {
            self.stream(now, number, outbox);
        }
        while let Some(number) = self.retries.pop(now) {
            self.back_off(number);
            self.send_first(now, number, outbox);
        }
        self.replies.expire(now);
        while let Some(reply) = self.replies.repair.pop(now) {
            let key = &self.replies.entries[reply].key;
            if self.find(key.identity, key.request_id).is_some() {
                self.replies.pull_again(now, reply, outbox);
            } else {
                self.replies.remove(reply);
            }
        }
    }

    /// When to call [`Self::handle_timeout`]. May change with every call of another method.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timeouts = [self.retries.next(), self.streams.next(), self.replies.next_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// How many requests are outstanding.
    pub fn outstanding_count(&self) -> usize {
        self.requests.len()
    }

    /// What happened to multi-packet replies so far.
    pub fn counters(&self) -> ReassemblyCounters {
        self.replies.counters
    }

    fn handle_response<'a>(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        packet: &Packet<'a>,
        outbox: &mut Outbox,
    ) -> Option<ClientEvent<'a>> {
        let request_id = packet.header.request_id;
        let number = self.find(packet.options.identity, request_id)?;
        let kind = if packet.header.is_single() {
            ClientEventKind::Reply { options: packet.options, body: Body::Borrowed(packet.body) }
        } else {
            match self.replies.insert(now, from, packet, WINDOW) {
                Inserted::Complete(whole) => {
                    if whole.was_pulled {
                        ask_for_nothing(from, request_id, self.replies.seed, outbox);
                    }
                    ClientEventKind::Reply {
                        options: whole.options,
                        body: Body::Shared(whole.body),
                    }
                }
                Inserted::TooLarge => ClientEventKind::ReplyTooLarge,
                Inserted::Fresh(reply) => {
                    if packet.has_options {
                        self.replies.pull(now, reply, outbox);
                    }
                    // A reply that is on its way must not be asked for by a retry.
                    self.retries.arm(now, number, self.requests[number].backoff);
                    return None;
                }
                Inserted::Known(_) | Inserted::Ignored => return None,
            }
        };
        let request = self.remove(number);
        if let Some(bypass) = &mut self.bypass {
            bypass.answered(now, request.copies());
        }
        Some(ClientEvent {
            handle: RequestHandle { number, serial: request.serial },
            from,
            reason: None,
            kind,
        })
    }

    fn handle_ack(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        packet: &Packet<'_>,
        outbox: &mut Outbox,
    ) {
        let Some(number) = self.ids.find(packet.header.request_id) else {
            return;
        };
        let request = &mut self.requests[number];
        if request.segments.count() == 1 {
            return;
        }
        match &packet.missing {
            // Servers that know options name what they miss, to whoever sent some.
            Some(missing) if !request.is_plain => self.send_missing(number, from, missing, outbox),
            // The original asks for all.
            None if request.is_plain && request.acks_left > 0 => {
                request.acks_left -= 1;
                if let Some(next) = request.segments.send_burst(from, 1, outbox) {
                    request.streams.push((from, next));
                    self.streams.arm(now, number, 0);
                }
            }
            Some(_) | None => return,
        }
        self.retries.arm(now, number, self.requests[number].backoff);
    }

    /// Sends the packets of a request that a server misses.
    fn send_missing(
        &self,
        number: usize,
        from: SocketAddrV4,
        missing: &Missing<'_>,
        outbox: &mut Outbox,
    ) {
        let request = &self.requests[number];
        let count = request.segments.count();
        // The replicas that do not acknowledge put the request together too (P4).
        let acknowledger = [from];
        let to_all = request.identity.is_some() && !self.one_by_one;
        let destinations = match &self.bypass {
            _ if !to_all => &acknowledger[..],
            Some(bypass) => bypass.destinations(&request.destinations, request.copies()),
            None => &*request.destinations,
        };
        let there = || missing.indices().filter(|&index| index < count).take(SENT_PER_ACK_MAX);
        for &destination in destinations {
            for index in there() {
                outbox.push(destination, |out| request.segments.write(index, out));
            }
        }
    }

    /// Sends the next packets of a plain request to those who asked for it.
    fn stream(&mut self, now: Time, number: usize, outbox: &mut Outbox) {
        let request = &mut self.requests[number];
        let segments = &request.segments;
        request.streams.retain_mut(|(to, next)| {
            let more = segments.send_burst(*to, *next, outbox);
            more.inspect(|index| *next = *index).is_some()
        });
        if !request.streams.is_empty() {
            self.streams.arm(now, number, 0);
        }
        self.retries.arm(now, number, request.backoff);
    }

    fn handle_drop<'a>(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        packet: &Packet<'_>,
    ) -> Option<ClientEvent<'a>> {
        let number = self.find(packet.options.identity, packet.header.request_id)?;
        self.back_off(number);
        let request = &mut self.requests[number];
        // Whoever refuses is there.
        request.unheard = 0;
        if let Some(bypass) = &mut self.bypass {
            bypass.refused();
        }
        self.retries.arm(now, number, request.backoff);
        Some(ClientEvent {
            handle: RequestHandle { number, serial: request.serial },
            from,
            reason: packet.options.reason,
            kind: ClientEventKind::Dropped { copies_sent: request.copies_sent },
        })
    }

    /// Sends a whole request of one packet, or the first packet of a larger one: a server that
    /// wants the rest says so.
    fn send_first(&mut self, now: Time, number: usize, outbox: &mut Outbox) {
        let request = &mut self.requests[number];
        let destinations = if self.one_by_one {
            let turn = request.copies_sent as usize % request.destinations.len();
            &request.destinations[turn..=turn]
        } else if let Some(bypass) = &self.bypass {
            bypass.destinations(&request.destinations, request.copies())
        } else {
            &*request.destinations
        };
        self.packet.clear();
        request.segments.write(0, &mut self.packet);
        for &destination in destinations {
            outbox.push(destination, |out| out.extend_from_slice(&self.packet));
        }
        request.acks_left = destinations.len();
        request.streams.clear();
        self.streams.cancel(number);
        request.copies_sent = request.copies_sent.saturating_add(1);
        request.unheard = request.unheard.saturating_add(1);
        self.retries.arm(now, number, request.backoff);
    }

    fn back_off(&mut self, number: usize) {
        let request = &mut self.requests[number];
        request.backoff = (request.backoff + 1).min(self.retry_intervals.len() - 1);
    }

    /// The request that a response or DROP is about: by its identity alone if it has one, because
    /// request ids recur, else by its request id if the request has no identity either.
    fn find(&self, identity: Option<Identity>, request_id: u16) -> Option<usize> {
        match identity {
            Some(identity) => self.by_identity.get(&identity).copied(),
            None => {
                self.ids.find(request_id).filter(|&number| self.requests[number].identity.is_none())
            }
        }
    }

    fn remove(&mut self, number: usize) -> Request {
        let request = self.requests.remove(number);
        self.retries.cancel(number);
        self.streams.cancel(number);
        self.ids.release(request.segments.request_id());
        if let Some(identity) = request.identity {
            self.by_identity.remove(&identity);
        }
        request
    }
}
