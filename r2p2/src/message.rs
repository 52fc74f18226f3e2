//! One-way messages between replicas, of the types `RAFT_*`.
//!
//! Nothing is acknowledged or sent again: the consensus protocol repeats itself what it needs.

use std::net::SocketAddrV4;

use crate::{
    Body, CheckSeed, Outbox, Time,
    options::Options,
    reassembly::{Inserted, Limits, Reassembler, ReassemblyCounters},
    segments::{Envelope, SendError},
    wire::{MessageType, Packet, Policy, WireError},
};

/// Sends messages to other replicas.
#[derive(Debug)]
pub struct MessageSender {
    next_id: u16,
}

impl MessageSender {
    /// A sender whose first request id comes from `seed`: one that differs from run to run keeps
    /// the packets of two runs apart.
    pub fn new(seed: u64) -> Self {
        Self { next_id: seed as u16 }
    }

    /// Sends a message, all its packets at once, to a replica or to a multicast group.
    ///
    /// # Panics
    ///
    /// If `message_type` is not one of those for replicas.
    pub fn send(
        &mut self,
        message_type: MessageType,
        to: SocketAddrV4,
        body: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), SendError> {
        assert!(message_type.is_for_replicas(), "{message_type:?} has an endpoint of its own");
        let mut envelope = Envelope {
            message_type,
            policy: Policy::Fixed,
            request_id: self.next_id,
            options: Options::REPAIRABLE,
            // What a message says names its cluster; an answer may be for somebody of none.
            seed: CheckSeed::NONE,
        };
        let cut = envelope.cut(body)?;
        self.next_id = self.next_id.wrapping_add(1);
        for index in 0..cut.count() {
            outbox.push(to, |out| envelope.write(&cut, body, index, out));
        }
        Ok(())
    }
}

/// The limits of a [`MessageReceiver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageConfig {
    /// The largest body of a message, in bytes; a larger one is refused.
    pub message_bytes_max: usize,
    /// The memory for incomplete messages of one peer, in bytes; at least one largest message has
    /// room whatever it says.
    pub peer_bytes_max: usize,
    /// The memory for all incomplete messages, in bytes; at least that for one peer.
    pub reassembly_bytes_max: usize,
}

impl Default for MessageConfig {
    fn default() -> Self {
        Self {
            message_bytes_max: 16 << 20,
            peer_bytes_max: 32 << 20,
            reassembly_bytes_max: 128 << 20,
        }
    }
}

/// A message of another replica.
#[derive(Debug)]
pub struct Message<'a> {
    /// Which of the types for replicas.
    pub message_type: MessageType,
    /// The sender's number for it.
    pub request_id: u16,
    /// What it says.
    pub body: Body<'a>,
}

/// Puts together the messages of other replicas.
#[derive(Debug)]
pub struct MessageReceiver {
    messages: Reassembler,
}

impl MessageReceiver {
    /// A receiver whose hash tables are seeded by `seed`.
    pub fn new(config: MessageConfig, seed: u64) -> Self {
        let limits = Limits {
            message: config.message_bytes_max,
            peer: config.peer_bytes_max,
            total: config.reassembly_bytes_max,
        };
        Self { messages: Reassembler::new(limits, seed) }
    }

    /// Takes a datagram of a type for replicas. Returns a message if this completes one.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &'a [u8],
    ) -> Result<Option<Message<'a>>, WireError> {
        // There is no timer to drive: replicas hear of each other all the time.
        self.messages.expire(now);
        let packet = Packet::open(datagram, CheckSeed::NONE)?;
        let message_type = packet.header.message_type;
        if !message_type.is_for_replicas() {
            return Err(WireError::Misdirected(message_type));
        }
        let request_id = packet.header.request_id;
        let message = |body| Message { message_type, request_id, body };
        if packet.header.is_single() {
            return Ok(Some(message(Body::Borrowed(packet.body))));
        }
        match self.messages.insert(now, from, &packet, 0) {
            Inserted::Complete(whole) => Ok(Some(message(Body::Shared(whole.body)))),
            Inserted::Fresh(_) | Inserted::Known(_) | Inserted::TooLarge | Inserted::Ignored => {
                Ok(None)
            }
        }
    }

    /// What happened to multi-packet messages so far.
    pub fn counters(&self) -> ReassemblyCounters {
        self.messages.counters
    }
}
