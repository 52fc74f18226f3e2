//! A packet in its form on the wire, with a bit flipped, at the endpoint that gets it: UDP's checksum is
//! right, so that nothing but the packet's own check can tell.

use std::{net::Ipv4Addr, net::SocketAddrV4, sync::Arc};

use bytes::Bytes;
use hovercraft::{DigestKey, Identity, Kind, Outcome, Request, ReturnPath, messages::Envelope};
use r2p2::{
    CheckSeed, ClientConfig, ClientEndpoint, ClientEventKind, Feedback, MessageConfig,
    MessageReceiver, MessageSender, MessageType, Options, Outbox, Packet as Datagram, Policy,
    ReplyTo, ServerConfig, ServerEndpoint, Session, Time,
};

use super::{Packet, Reply};

const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);

/// Somewhere a packet belongs, and the number that says which of its bits is flipped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flip {
    pub(super) cluster: u64,
    pub(super) digest_key: DigestKey,
    pub(super) number: u64,
}

impl Flip {
    /// The packet as its receiver takes it; none if it takes nothing. Plain packets have no check:
    /// they are lost, as if UDP's checksum had found the bit.
    pub(super) fn of(self, packet: Packet) -> Option<Packet> {
        match packet {
            Packet::Message(envelope) => self.message(&encode(&envelope)),
            Packet::Encoded(bytes) => self.message(&bytes),
            Packet::Request(request, path) => self.request(&request, path),
            Packet::Reply(reply) => self.reply(&reply),
            Packet::Feedback(identity) => self.feedback(identity),
            // It says nothing but that a request was refused, which changes nothing here.
            Packet::Drop => None,
        }
    }

    fn message(self, bytes: &[u8]) -> Option<Packet> {
        let mut outbox = Outbox::new();
        MessageSender::new(self.number)
            .send(MessageType::RaftMessage, PEER, bytes, &mut outbox)
            .expect("a replica's message fits its packets");
        let mut receiver = MessageReceiver::new(MessageConfig::default(), 0);
        let body = self.flipped(&mut outbox).into_iter().find_map(|datagram| {
            let message = receiver.handle_datagram(Time::ZERO, PEER, &datagram).ok()??;
            Some(message.body.into_bytes())
        })?;
        Some(Packet::Message(Box::new(Envelope::decode(&body).ok()?)))
    }

    fn request(self, request: &Request, path: ReturnPath) -> Option<Packet> {
        let Identity::Session { client, sequence } = request.identity() else { return None };
        let (policy, request_kind) = match request.kind() {
            Kind::Write => (Policy::Replicated, None),
            Kind::Read => (Policy::ReplicatedRead, None),
            Kind::OpenSession => (Policy::Replicated, Some(1)),
            Kind::Cancel => (Policy::Replicated, Some(2)),
        };
        let session = Some(Session { client, sequence, lowest: request.lowest() });
        let options = Options { session, request_kind, ..Options::NONE };
        let mut server = self.server();
        let (mut outbox, mut answers) = (Outbox::new(), Outbox::new());
        let body = Bytes::copy_from_slice(request.body());
        self.client()
            .request(Time::ZERO, &Arc::from([PEER]), policy, options, body, &mut outbox)
            .expect("a client can send it");
        // Of a large request this is the first packet: the others are not asked for.
        let datagram = self.flipped(&mut outbox).pop()?;
        let incoming =
            server.handle_datagram(Time::ZERO, path.address, &datagram, &mut answers).ok()??;
        let session = incoming.options.session?;
        let kind = match (incoming.policy, incoming.options.request_kind) {
            (Policy::Replicated, None) => Kind::Write,
            (Policy::ReplicatedRead, None) => Kind::Read,
            (Policy::Replicated, Some(1)) => Kind::OpenSession,
            (Policy::Replicated, Some(2)) => Kind::Cancel,
            _ => return None,
        };
        let Session { client, sequence, lowest } = session;
        let identity = Identity::Session { client, sequence };
        let request =
            Request::new(self.digest_key, identity, lowest, kind, incoming.body.into_bytes());
        Some(Packet::Request(Arc::new(request), path))
    }

    fn reply(self, reply: &Reply) -> Option<Packet> {
        let Identity::Session { client, sequence } = reply.identity else { return None };
        let (mut asker, mut server, mut outbox) = (self.client(), self.server(), Outbox::new());
        let session = Session { client, sequence, lowest: 0 };
        let options = Options { session: Some(session), ..Options::NONE };
        let policy = Policy::Replicated;
        asker
            .request(Time::ZERO, &Arc::from([PEER]), policy, options, Bytes::new(), &mut outbox)
            .expect("a client can send it");
        outbox.drain(|_| ());
        let outcome = (reply.outcome != Outcome::Executed).then_some(reply.outcome as u8);
        let options = Options { identity: Some(session.identity()), outcome, ..Options::NONE };
        let to = ReplyTo { address: PEER, request_id: 1 };
        server
            .respond(Time::ZERO, to, &options, &reply.body[..], &mut outbox)
            .expect("a reply fits its packets");
        for datagram in self.flipped(&mut outbox) {
            let taken = asker.handle_datagram(Time::ZERO, PEER, &datagram, &mut outbox);
            if let Ok(Some(event)) = taken
                && let ClientEventKind::Reply { options, body } = event.kind
            {
                let outcome = Outcome::from_number(options.outcome.unwrap_or(0))?;
                let body = body.into_bytes();
                let reply = Reply { identity: reply.identity, outcome, body };
                return Some(Packet::Reply(Box::new(reply)));
            }
        }
        None
    }

    fn feedback(self, identity: Identity) -> Option<Packet> {
        let Identity::Session { client, sequence } = identity else { return None };
        let mut outbox = Outbox::new();
        let to = ReplyTo { address: PEER, request_id: 1 };
        let identity = Some(r2p2::Identity { client, sequence });
        self.server().feedback(PEER, to, identity, &mut outbox);
        let datagram = self.flipped(&mut outbox).pop()?;
        let packet = Datagram::open(&datagram, CheckSeed::of(self.cluster)).ok()?;
        Feedback::parse(packet.body).ok()?;
        let r2p2::Identity { client, sequence } = packet.options.identity?;
        Some(Packet::Feedback(Identity::Session { client, sequence }))
    }

    fn client(self) -> ClientEndpoint {
        let mut client = ClientEndpoint::new(ClientConfig::default(), self.number);
        client.set_check_seed(CheckSeed::of(self.cluster));
        client
    }

    fn server(self) -> ServerEndpoint {
        let mut server = ServerEndpoint::new(ServerConfig::default(), 0);
        server.set_check_seed(CheckSeed::of(self.cluster));
        server
    }

    /// The datagrams that wait, one bit of all of them flipped.
    fn flipped(self, outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        outbox.drain(|batch| datagrams.extend(batch.datagrams().map(<[u8]>::to_vec)));
        let mut bit = self.number % (datagrams.iter().map(Vec::len).sum::<usize>() * 8) as u64;
        for datagram in &mut datagrams {
            let bits = datagram.len() as u64 * 8;
            if bit < bits {
                datagram[(bit / 8) as usize] ^= 1 << (bit % 8);
                break;
            }
            bit -= bits;
        }
        datagrams
    }
}

fn encode(envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope.encode(&mut bytes);
    bytes
}
