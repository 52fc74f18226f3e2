//! The server's side of R2P2, without I/O.

use std::net::SocketAddrV4;

use crate::{
    Body, CheckSeed, Outbox, Time,
    options::{Identity, Options},
    reassembly::{Inserted, Limits, Reassembler, ReassemblyCounters},
    repair::send_ack,
    replies::Replies,
    segments::{Envelope, Segments, SendError, least_request_bytes},
    wire::{DROP_BODY, Feedback, Header, MessageType, Packet, Policy, WireError},
};

/// The limits of a [`ServerEndpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerConfig {
    /// The largest body of a request, in bytes. A larger one gets a DROP.
    pub request_bytes_max: usize,
    /// The memory for incomplete requests of one peer, in bytes; at least one largest request has
    /// room whatever it says.
    pub peer_bytes_max: usize,
    /// The memory for all incomplete requests, in bytes; at least that for one peer.
    pub reassembly_bytes_max: usize,
    /// The memory for multi-packet replies that are kept to be repaired, in bytes; the newest is
    /// kept whatever it says.
    pub reply_bytes_max: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            request_bytes_max: 8 << 20,
            peer_bytes_max: 64 << 20,
            reassembly_bytes_max: 256 << 20,
            reply_bytes_max: 128 << 20,
        }
    }
}

/// Where the reply to a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplyTo {
    /// The client's address.
    pub address: SocketAddrV4,
    /// The client's number for the request.
    pub request_id: u16,
}

/// A request that is complete.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// Whose request it is; what ORIGIN says has been applied.
    pub reply_to: ReplyTo,
    /// Who may serve it.
    pub policy: Policy,
    /// The options of its first packet.
    pub options: Options,
    /// What the client asks.
    pub body: Body<'a>,
}

impl Incoming<'_> {
    /// The options that a reply begins with: IDENTITY if the request has SESSION, and none at all
    /// if the client sent none.
    pub fn reply_options(&self) -> Options {
        reply_options(&self.options)
    }
}

fn reply_options(of_request: &Options) -> Options {
    Options {
        identity: of_request.session.map(|session| session.identity()),
        checked: of_request.checked,
        ..Options::NONE
    }
}

/// Puts requests together, and sends replies.
///
/// Requests arrive by [`Self::handle_datagram`]; the caller answers them by [`Self::respond`] at
/// any time, in any order, or not at all. Nothing is known here of requests that are complete.
#[derive(Debug)]
pub struct ServerEndpoint {
    config: ServerConfig,
    acknowledging: bool,
    /// Addresses whose ORIGIN is believed.
    switches: Vec<SocketAddrV4>,
    requests: Reassembler,
    replies: Replies,
}

impl ServerEndpoint {
    /// An endpoint whose hash tables are seeded by `seed`, so that nobody outside can fill them
    /// with collisions.
    pub fn new(config: ServerConfig, seed: u64) -> Self {
        let limits = Limits {
            message: config.request_bytes_max,
            peer: config.peer_bytes_max,
            total: config.reassembly_bytes_max,
        };
        Self {
            config,
            acknowledging: true,
            switches: Vec::new(),
            requests: Reassembler::new(limits, seed),
            replies: Replies::new(config.reply_bytes_max, seed),
        }
    }

    /// Says whether to answer the packets of requests: to acknowledge first packets, to ask for
    /// missing ones, to refuse requests that are too large. An endpoint does; but of the replicas
    /// of a group only the leader may (P4), and the others put together what they get.
    pub fn set_acknowledging(&mut self, acknowledging: bool) {
        self.acknowledging = acknowledging;
    }

    /// Says what the checks of all packets with options begin with, both ways; [`CheckSeed::NONE`]
    /// before that.
    pub fn set_check_seed(&mut self, seed: CheckSeed) {
        self.requests.seed = seed;
    }

    /// Says whose ORIGIN is believed: the addresses of switches. Nobody's before that, because
    /// whoever says ORIGIN has others answered.
    pub fn set_switches(&mut self, switches: Vec<SocketAddrV4>) {
        self.switches = switches;
    }

    /// Takes a datagram of type REQUEST or ACK. Returns a request if this completes one.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &'a [u8],
        outbox: &mut Outbox,
    ) -> Result<Option<Incoming<'a>>, WireError> {
        let packet = Packet::open(datagram, self.requests.seed)?;
        if packet.options.origin.is_some() && !self.switches.contains(&from) {
            return Err(WireError::UntrustedOrigin);
        }
        let reply_to = ReplyTo {
            address: packet.options.origin.unwrap_or(from),
            request_id: packet.header.request_id,
        };
        match packet.header.message_type {
            MessageType::Request => Ok(self.handle_request(now, reply_to, &packet, outbox)),
            MessageType::Ack => {
                if let Some(missing) = &packet.missing {
                    self.replies.send_missing(now, reply_to, missing, outbox);
                }
                Ok(None)
            }
            other => Err(WireError::Misdirected(other)),
        }
    }

    /// Answers a request. `options` are those of [`Incoming::reply_options`], perhaps with an
    /// outcome; a client that sent none must be sent none.
    ///
    /// A reply with options that takes several packets is kept for a while, so that the client can
    /// ask for packets that were lost. One without options is streamed, as in the original, but in
    /// bursts: [`Self::handle_timeout`] sends the rest.
    pub fn respond<'a>(
        &mut self,
        now: Time,
        to: ReplyTo,
        options: &Options,
        body: impl Into<Body<'a>>,
        outbox: &mut Outbox,
    ) -> Result<(), SendError> {
        let body = body.into();
        let mut envelope = Envelope {
            message_type: MessageType::Response,
            // The original says FIXED in replies, whatever the request said.
            policy: Policy::Fixed,
            request_id: to.request_id,
            options: *options,
            seed: self.requests.seed,
        };
        let cut = envelope.cut(&body)?;
        if cut.count() == 1 {
            outbox.push(to.address, |out| envelope.write(&cut, &body, 0, out));
            return Ok(());
        }
        let segments = Segments::from_cut(envelope, cut, body.into_bytes());
        if envelope.options.is_none() {
            self.replies.stream(now, to, segments, outbox);
        } else {
            self.replies.send(now, to, segments, outbox);
        }
        Ok(())
    }

    /// Tells a client that its request is not admitted now (P23). `options` are those of a reply.
    pub fn drop_request(&self, to: ReplyTo, options: &Options, outbox: &mut Outbox) {
        let header = Header::single(MessageType::Drop, Policy::Fixed, to.request_id);
        self.send_about(to.address, header, *options, DROP_BODY, outbox);
    }

    /// Tells a switch that a client's request has been answered. `identity` is that of a request
    /// with SESSION.
    pub fn feedback(
        &self,
        switch: SocketAddrV4,
        request: ReplyTo,
        identity: Option<Identity>,
        outbox: &mut Outbox,
    ) {
        let header = Header::single(MessageType::Feedback, Policy::Fixed, request.request_id);
        let feedback = Feedback { request_id: request.request_id, client: request.address };
        let options = Options { identity, ..Options::NONE };
        self.send_about(switch, header, options, &feedback.to_bytes(), outbox);
    }

    /// Asks again for packets that were lost, sends more of plain replies, and forgets what is too
    /// old.
    pub fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        self.requests.expire(now);
        self.replies.handle_timeout(now, outbox);
        while let Some(number) = self.requests.repair.pop(now) {
            if self.acknowledging {
                self.requests.pull_again(now, number, outbox);
            }
        }
    }

    /// When to call [`Self::handle_timeout`]. May change with every call of another method.
    pub fn poll_timeout(&self) -> Option<Time> {
        [self.requests.next_timeout(), self.replies.next_timeout()].into_iter().flatten().min()
    }

    /// What happened to multi-packet requests so far.
    pub fn counters(&self) -> ReassemblyCounters {
        self.requests.counters
    }

    fn handle_request<'a>(
        &mut self,
        now: Time,
        reply_to: ReplyTo,
        packet: &Packet<'a>,
        outbox: &mut Outbox,
    ) -> Option<Incoming<'a>> {
        if self.is_too_large(packet) {
            self.requests.refuse_too_large();
            self.refuse(reply_to, packet, outbox);
            return None;
        }
        if packet.header.is_single() {
            return Some(Incoming {
                reply_to,
                policy: packet.header.policy,
                options: packet.options,
                body: Body::Borrowed(packet.body),
            });
        }
        match self.requests.insert(now, reply_to.address, packet, 0) {
            Inserted::Complete(whole) => Some(Incoming {
                reply_to,
                policy: whole.header.policy,
                options: whole.options,
                body: Body::Shared(whole.body),
            }),
            Inserted::Fresh(number) if self.acknowledging => {
                self.ask_for_more(now, number, packet, outbox);
                None
            }
            // The client asks again: perhaps this replica was not the leader the first time.
            Inserted::Known(number)
                if self.acknowledging
                    && packet.has_options
                    && !self.requests.repair.is_armed(number) =>
            {
                self.ask_for_more(now, number, packet, outbox);
                None
            }
            Inserted::TooLarge => {
                self.refuse(reply_to, packet, outbox);
                None
            }
            Inserted::Fresh(_) | Inserted::Known(_) | Inserted::Ignored => None,
        }
    }

    /// Answers a request that is too large.
    fn refuse(&self, to: ReplyTo, packet: &Packet<'_>, outbox: &mut Outbox) {
        if self.acknowledging {
            self.drop_request(to, &reply_options(&packet.options), outbox);
        }
    }

    /// Answers a packet of a request that is not complete.
    fn ask_for_more(&mut self, now: Time, number: usize, packet: &Packet<'_>, outbox: &mut Outbox) {
        let entry = &self.requests.entries[number];
        if !entry.partial.has_head() {
            // Packets that come before the first one are late duplicates more often than not:
            // nothing is asked of the client until it says that it has this request to send.
            return;
        }
        if packet.has_options {
            self.requests.pull(now, number, outbox);
        } else if packet.header.first {
            send_ack(entry.key.sender, entry.key.request_id, None, CheckSeed::NONE, outbox);
        }
    }

    /// Whether a request is known to be too large by this packet alone.
    fn is_too_large(&self, packet: &Packet<'_>) -> bool {
        let least = if packet.header.first && !packet.header.last {
            least_request_bytes(packet)
        } else {
            packet.body.len()
        };
        least > self.config.request_bytes_max
    }

    /// Sends a message of one packet about a request.
    fn send_about(
        &self,
        to: SocketAddrV4,
        header: Header,
        options: Options,
        body: &[u8],
        outbox: &mut Outbox,
    ) {
        let packet = Packet { options, ..Packet::new(header, body) };
        outbox.push(to, |out| packet.encode(self.requests.seed, out));
    }
}
