//! A switch as a value: it is given datagrams, and says what to send. Any of the roles may be left
//! out.

use std::net::SocketAddrV4;

use r2p2::{
    CheckSeed, Feedback, MessageConfig, MessageReceiver, MessageSender, MessageType, Outbox,
    Packet, Router, RouterConfig, Time, WireError, has_room_for_origin, pass_on, refuse,
};

use super::{
    AdmissionConfig, Aggregator, SwitchAdmission,
    members::Members,
    status::{FanOutCounters, RouterStatus, SwitchStatus},
};
use crate::{
    admin::{Answer, NetworkStatus, Question},
    request::{Identity, Kind},
};

/// What a switch does.
#[derive(Debug, Clone, Default)]
pub struct SwitchConfig {
    /// The replicas that get every replicated request (P3); none if it passes on none.
    pub members: Vec<SocketAddrV4>,
    /// Which of them it admits; all, if it is not to decide that (P23).
    pub admission: Option<AdmissionConfig>,
    /// Whether it aggregates (P26).
    pub aggregates: bool,
    /// The workers of an unreplicated service.
    pub router: Option<RouterConfig>,
}

/// The roles of a switch, and what they have counted.
#[derive(Debug)]
pub struct Switch {
    members: Members,
    admission: Option<SwitchAdmission>,
    aggregator: Option<Aggregator>,
    router: Option<Router>,
    receiver: MessageReceiver,
    sender: MessageSender,
    fan_out: FanOutCounters,
    /// The encoded announcement, reused.
    buffer: Vec<u8>,
    /// Packets whose check was wrong.
    packets_damaged: u64,
    /// What the sockets have done, for whoever asks.
    pub(super) network: NetworkStatus,
}

impl Switch {
    /// A switch that has seen nothing. What is drawn, is drawn from `seed`.
    ///
    /// # Panics
    ///
    /// If there is a router without workers.
    pub fn new(config: SwitchConfig, seed: u64) -> Self {
        Self {
            members: Members::new(config.members, seed),
            admission: config.admission.map(|admission| SwitchAdmission::new(admission, seed)),
            aggregator: config.aggregates.then(Aggregator::new),
            router: config.router.map(|router| Router::new(router, seed)),
            receiver: MessageReceiver::new(MessageConfig::default(), seed),
            sender: MessageSender::new(seed),
            fan_out: FanOutCounters::default(),
            buffer: Vec::new(),
            packets_damaged: 0,
            network: NetworkStatus::default(),
        }
    }

    /// Takes a datagram of a client, a replica, a worker or an operator.
    pub fn handle_datagram(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let taken = match r2p2::message_type(datagram) {
            Some(MessageType::Request) => self.request(now, from, datagram, outbox),
            Some(MessageType::Feedback) => self.feedback(now, from, datagram, outbox),
            Some(MessageType::RaftMessage) => self.message(now, from, datagram, outbox),
            Some(MessageType::RaftRequest) => self.question(now, from, datagram, outbox),
            Some(MessageType::RaftReply) => self.members.handle_answer(now, from, datagram),
            Some(other) => Err(WireError::Misdirected(other)),
            None => Err(WireError::NotR2p2),
        };
        self.packets_damaged += u64::from(taken == Err(WireError::Damaged));
        taken
    }

    /// Ends a turn: says what came of all that arrived in it.
    pub fn flush(&mut self, outbox: &mut Outbox) {
        let Some(aggregator) = &mut self.aggregator else {
            return;
        };
        let Some(announcement) = aggregator.poll_announcement() else {
            return;
        };
        self.buffer.clear();
        announcement.encode(&mut self.buffer);
        aggregator.recycle(announcement);
        for member in aggregator.members() {
            send(&mut self.sender, member.address, &self.buffer, outbox);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        self.members.handle_timeout(now, outbox);
        if let Some(router) = &mut self.router {
            router.handle_timeout(now, outbox);
        }
    }

    /// When to call [`Self::handle_timeout`]. May change with every call of another method.
    pub fn poll_timeout(&self) -> Option<Time> {
        let router = self.router.as_ref().and_then(Router::poll_timeout);
        router.into_iter().chain(self.members.poll_timeout()).min()
    }

    pub(super) fn packets_damaged(&self) -> u64 {
        self.packets_damaged
    }

    /// What the roles have done.
    pub fn status(&self) -> SwitchStatus {
        SwitchStatus {
            admission: self.admission.as_ref().map(super::status::AdmissionStatus::of),
            fan_out: (!self.members.addresses().is_empty()).then_some(self.fan_out),
            aggregator: self.aggregator.as_ref().map(|it| (it.status(), *it.counters())),
            router: self.router.as_ref().map(RouterStatus::of),
            network: self.network,
        }
    }

    fn request(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let packet = Packet::parse(datagram)?;
        if !packet.header.policy.is_replicated() {
            // Who is not replicated is of no cluster.
            let packet = Packet::open(datagram, CheckSeed::NONE)?;
            if let Some(router) = &mut self.router {
                router.handle_request(now, from, &packet, datagram, outbox);
            } else {
                self.fan_out.refused += 1;
                refuse(&packet, from, CheckSeed::NONE, outbox);
            }
            return Ok(());
        }
        // Before it is told of which cluster its members are, it passes on unchecked.
        if let Some(seed) = self.members.seed() {
            Packet::open(datagram, seed)?;
        }
        // ORIGIN is for switches to say. A client that says it would have others answered.
        if packet.options.origin.is_some() || self.members.addresses().is_empty() {
            self.fan_out.refused += 1;
            return Ok(());
        }
        if !has_room_for_origin(datagram) {
            self.fan_out.refused += 1;
            self.refuse(&packet, from, outbox);
            return Ok(());
        }
        // On the first packet only (P4).
        if packet.header.first && !self.is_admitted(now, from, &packet) {
            self.refuse(&packet, from, outbox);
            return Ok(());
        }
        self.fan_out.packets_in += 1;
        for &member in self.members.addresses() {
            pass_on(datagram, from, member, outbox);
            self.fan_out.packets_out += 1;
        }
        Ok(())
    }

    /// Refuses a replicated request. One that was sent with a check is refused with the right one,
    /// or not at all: then its client asks again.
    fn refuse(&self, packet: &Packet<'_>, client: SocketAddrV4, outbox: &mut Outbox) {
        match self.members.seed() {
            Some(seed) => refuse(packet, client, seed, outbox),
            None if !packet.has_options => refuse(packet, client, CheckSeed::NONE, outbox),
            None => {}
        }
    }

    fn is_admitted(&mut self, now: Time, from: SocketAddrV4, packet: &Packet<'_>) -> bool {
        let Some(admission) = &mut self.admission else {
            return true;
        };
        let identity = match packet.options.session {
            Some(session) => {
                Identity::Session { client: session.client, sequence: session.sequence }
            }
            None => Identity::Plain { address: from, request_id: packet.header.request_id },
        };
        // A client that must know what became of a request is not to be kept from that (P23).
        let kind = Kind::of(packet.header.policy, packet.options.request_kind);
        let undroppable = packet.options.undroppable || kind == Some(Kind::Cancel);
        admission.admit(now, identity, from, undroppable)
    }

    fn feedback(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let is_of_member = self.members.addresses().contains(&from);
        // Only replicas and workers can say that a request is answered.
        if !is_of_member && self.router.is_none() {
            return Ok(());
        }
        // A worker is of no cluster. What a member says before it said of which it is, is unchecked.
        let seed = if is_of_member { self.members.seed() } else { Some(CheckSeed::NONE) };
        let packet = match seed {
            Some(seed) => Packet::open(datagram, seed)?,
            None => Packet::parse(datagram)?,
        };
        let said = Feedback::parse(packet.body)?;
        if let Some(admission) = self.admission.as_mut().filter(|_| is_of_member) {
            let identity = match packet.options.identity {
                Some(id) => Identity::Session { client: id.client, sequence: id.sequence },
                None => Identity::Plain { address: said.client, request_id: said.request_id },
            };
            admission.answered(now, &identity);
        }
        if let Some(router) = &mut self.router {
            router.handle_feedback(now, from, said, outbox);
        }
        Ok(())
    }

    fn message(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let Some(aggregator) = &mut self.aggregator else {
            return Ok(());
        };
        let Some(message) = self.receiver.handle_datagram(now, from, datagram)? else {
            return Ok(());
        };
        match aggregator.handle_record(now, &message.body) {
            Ok(is_for_followers) => {
                for member in aggregator.followers().filter(|_| is_for_followers) {
                    send(&mut self.sender, member.address, &message.body, outbox);
                }
            }
            Err(error) => tracing::debug!(%from, %error, "not a message of a replica"),
        }
        Ok(())
    }

    fn question(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), WireError> {
        let Some(message) = self.receiver.handle_datagram(now, from, datagram)? else {
            return Ok(());
        };
        let answer = match Question::decode(&message.body) {
            Ok(Question::Status) => Answer::Switch(Box::new(self.status())),
            Ok(question) => match (question, self.members.cluster()) {
                (Question::Hello, Some(cluster)) => Answer::Cluster(cluster),
                _ => Answer::Refused("it is a switch, and no replica".to_owned()),
            },
            Err(error) => {
                tracing::debug!(%from, %error, "not a question");
                return Ok(());
            }
        };
        let sent = self.sender.send(MessageType::RaftReply, from, &answer.encode(), outbox);
        if let Err(error) = sent {
            tracing::warn!(%from, %error, "an answer cannot be sent");
        }
        Ok(())
    }
}

fn send(sender: &mut MessageSender, to: SocketAddrV4, body: &[u8], outbox: &mut Outbox) {
    if let Err(error) = sender.send(MessageType::RaftMessage, to, body, outbox) {
        tracing::warn!(%to, %error, "a message cannot be sent");
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use r2p2::{Header, Identity as IdentityOption, Options, Policy, Routing, Session};

    use super::*;
    use crate::cluster_id::tests::says;
    use crate::core::testing::{aggregate, append_noops, envelope};
    use crate::messages::Message;

    fn address(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    const CLIENT: u16 = 99;

    const CLUSTER: u64 = 7;

    fn seed() -> CheckSeed {
        CheckSeed::of(CLUSTER)
    }

    struct Bench {
        switch: Switch,
        now: Time,
    }

    impl Bench {
        /// In front of replicas 1 to 3, with room for two requests.
        fn new() -> Self {
            let admission =
                AdmissionConfig { limit: 2, age_max: Duration::from_secs(1), slo: None };
            let config = SwitchConfig {
                members: (1..=3).map(address).collect(),
                admission: Some(admission),
                aggregates: true,
                router: None,
            };
            let mut bench = Self { switch: Switch::new(config, 1), now: Time::ZERO };
            (1..=3).for_each(|member| assert_eq!(bench.send(member, &says(CLUSTER)), []));
            bench.request(0);
            bench.now += Duration::from_secs(1);
            bench
        }

        fn send(&mut self, from: u16, datagram: &[u8]) -> Vec<(u16, Vec<u8>)> {
            let mut outbox = Outbox::new();
            let taken = self.switch.handle_datagram(self.now, address(from), datagram, &mut outbox);
            taken.unwrap();
            self.switch.flush(&mut outbox);
            sent(&mut outbox)
        }

        /// The client's request with a session; whom what was said.
        fn request(&mut self, sequence: u64) -> Vec<(u16, MessageType)> {
            let session = Session { client: 5, sequence, lowest: 1 };
            self.packet(Options { session: Some(session), ..Options::NONE }, sequence as u16, true)
        }

        fn packet(&mut self, options: Options, id: u16, first: bool) -> Vec<(u16, MessageType)> {
            let header =
                Header { first, ..Header::single(MessageType::Request, Policy::Replicated, id) };
            let mut datagram = Vec::new();
            Packet { options, ..Packet::new(header, b"body") }.encode(seed(), &mut datagram);
            let sent = self.send(CLIENT, &datagram);
            for (_, datagram) in &sent {
                let packet = Packet::parse(datagram).unwrap();
                let is_request = packet.header.message_type == MessageType::Request;
                assert_eq!(packet.options.origin, is_request.then(|| address(CLIENT)));
                let identity = options.session.map(|session| session.identity());
                assert_eq!(packet.options.identity, identity.filter(|_| !is_request));
            }
            let kind = |datagram: &[u8]| r2p2::message_type(datagram).expect("it is a packet");
            sent.iter().map(|(to, datagram)| (*to, kind(datagram))).collect()
        }

        fn feedback(&mut self, from: u16, sequence: u64) {
            let header = Header::single(MessageType::Feedback, Policy::Fixed, sequence as u16);
            let said = Feedback { request_id: sequence as u16, client: address(CLIENT) };
            let body = said.to_bytes();
            let identity = Some(IdentityOption { client: 5, sequence });
            let mut datagram = Vec::new();
            Packet { options: Options { identity, ..Options::NONE }, ..Packet::new(header, &body) }
                .encode(seed(), &mut datagram);
            assert_eq!(self.send(from, &datagram), []);
        }
    }

    fn sent(outbox: &mut Outbox) -> Vec<(u16, Vec<u8>)> {
        let mut sent = Vec::new();
        outbox.drain(|batch| {
            let to = batch.destination.port();
            sent.extend(batch.datagrams().map(|datagram| (to, datagram.to_vec())));
        });
        sent
    }

    const TO_ALL: [(u16, MessageType); 3] =
        [(1, MessageType::Request), (2, MessageType::Request), (3, MessageType::Request)];

    #[test]
    fn what_is_admitted_goes_to_every_replica_and_the_rest_is_told() {
        let mut bench = Bench::new();
        assert_eq!((bench.request(1), bench.request(2)), (TO_ALL.into(), TO_ALL.into()));
        assert_eq!(bench.request(3), [(CLIENT, MessageType::Drop)]);
        // A retry passes (P24), and so does what follows a first packet (P4).
        assert_eq!(bench.request(1), TO_ALL);
        assert_eq!(bench.packet(Options::NONE, 9, false), TO_ALL);
        // Only a replica can say that a request is answered.
        bench.feedback(CLIENT, 1);
        assert_eq!(bench.request(3), [(CLIENT, MessageType::Drop)]);
        bench.feedback(2, 1);
        assert_eq!(bench.request(3), TO_ALL);
    }

    /// A request with a session, as its client sends it.
    fn datagram(seed: CheckSeed) -> Vec<u8> {
        let header = Header::single(MessageType::Request, Policy::Replicated, 3);
        let session = Some(Session { client: 5, sequence: 3, lowest: 1 });
        let mut datagram = Vec::new();
        Packet { options: Options { session, ..Options::NONE }, ..Packet::new(header, b"body") }
            .encode(seed, &mut datagram);
        datagram
    }

    #[test]
    fn a_switch_asks_its_members_and_checks_nothing_before_it_is_told() {
        let members: Vec<_> = (1..=3).map(address).collect();
        let config = SwitchConfig { members, ..SwitchConfig::default() };
        let mut bench = Bench { switch: Switch::new(config, 1), now: Time::ZERO };
        let ask = |bench: &mut Bench| {
            let mut outbox = Outbox::new();
            bench.now = bench.switch.poll_timeout().expect("it asks").max(bench.now);
            bench.switch.handle_timeout(bench.now, &mut outbox);
            let kind = |(to, datagram): (u16, Vec<u8>)| (to, r2p2::message_type(&datagram));
            sent(&mut outbox).into_iter().map(kind).collect::<Vec<_>>()
        };
        let question = |to| (to, Some(MessageType::RaftRequest));
        assert_eq!(ask(&mut bench), [question(1), question(2), question(3)]);
        // Of any cluster, and even damaged.
        let mut damaged = datagram(seed());
        *damaged.last_mut().unwrap() ^= 1;
        for packet in [&datagram(seed()), &datagram(CheckSeed::of(1)), &damaged] {
            assert_eq!(bench.send(CLIENT, packet).len(), 3);
        }
        assert_eq!(bench.send(2, &says(CLUSTER)), []);
        assert_eq!(bench.send(CLIENT, &datagram(seed())).len(), 3);
        let mut outbox = Outbox::new();
        let (now, from) = (bench.now, address(CLIENT));
        for packet in [&datagram(CheckSeed::of(1)), &damaged] {
            let taken = bench.switch.handle_datagram(now, from, packet, &mut outbox);
            assert_eq!((taken, outbox.is_empty()), (Err(WireError::Damaged), true));
        }
        assert_eq!(bench.switch.packets_damaged(), 2);
        // Members that disagree make it believe nobody; it goes on asking.
        bench.send(3, &says(1));
        assert_eq!(bench.send(CLIENT, &damaged).len(), 3);
        assert_eq!(ask(&mut bench).len(), 3);
        // Unless more than half of the list say the same: one wrong address stops nobody.
        bench.send(1, &says(CLUSTER));
        let taken = bench.switch.handle_datagram(now, from, &damaged, &mut outbox);
        assert_eq!((taken, outbox.is_empty()), (Err(WireError::Damaged), true));
        assert_eq!(bench.send(CLIENT, &datagram(seed())).len(), 3);
    }

    #[test]
    fn a_client_learns_from_a_switch_which_cluster_it_is() {
        let mut bench = Bench::new();
        let (mut outbox, question) = (Outbox::new(), Question::Hello.encode());
        let mut sender = MessageSender::new(1);
        sender.send(MessageType::RaftRequest, address(9), &question, &mut outbox).unwrap();
        let answers = bench.send(CLIENT, &sent(&mut outbox)[0].1);
        let packet = Packet::open(&answers[0].1, CheckSeed::NONE).unwrap();
        assert_eq!(Answer::decode(packet.body), Ok(Answer::Cluster(CLUSTER)));
    }

    #[test]
    fn a_refusal_has_the_seed_of_the_cluster() {
        let mut bench = Bench::new();
        (1..=2).for_each(|sequence| drop(bench.request(sequence)));
        let refused = bench.send(CLIENT, &datagram(seed()));
        assert_eq!(refused[0].0, CLIENT);
        assert!(Packet::open(&refused[0].1, seed()).is_ok());
    }

    #[test]
    fn an_undroppable_request_and_a_cancellation_pass() {
        let mut bench = Bench::new();
        (1..=2).for_each(|sequence| drop(bench.request(sequence)));
        let plain = Options { undroppable: true, ..Options::NONE };
        assert_eq!(bench.packet(plain, 77, true), TO_ALL);
        let session = Some(Session { client: 5, sequence: 9, lowest: 1 });
        let cancel = Options { session, request_kind: Some(2), ..Options::NONE };
        assert_eq!(bench.packet(cancel, 78, true), TO_ALL);
    }

    #[test]
    fn a_client_cannot_have_others_answered() {
        let mut bench = Bench::new();
        let header = Header::single(MessageType::Request, Policy::Replicated, 1);
        let options = Options { origin: Some(address(7)), ..Options::NONE };
        let mut datagram = Vec::new();
        Packet { options, ..Packet::new(header, b"body") }.encode(seed(), &mut datagram);
        assert_eq!(bench.send(CLIENT, &datagram), []);
    }

    #[test]
    fn it_passes_on_the_leaders_message_as_it_is_and_tells_all_what_came_of_it() {
        // P26.
        let mut bench = Bench::new();
        let message = Message::Aggregate(Box::new(aggregate(1, append_noops((0, 0), 1, 1))));
        let (mut bytes, mut outbox) = (Vec::new(), Outbox::new());
        envelope(1, 1, message).encode(&mut bytes);
        let mut sender = MessageSender::new(1);
        sender.send(MessageType::RaftMessage, address(9), &bytes, &mut outbox).unwrap();
        let mut passed_on = Vec::new();
        for (_, datagram) in sent(&mut outbox) {
            for (to, datagram) in bench.send(1, &datagram) {
                passed_on.push((to, Packet::parse(&datagram).unwrap().body.to_vec()));
            }
        }
        assert_eq!(passed_on, [(2, bytes.clone()), (3, bytes)]);
        let answer = crate::messages::Acknowledge {
            configuration: 1,
            round: 1,
            acknowledged: 1,
            applied: 0,
            poisoned: false,
            disk_wait_us: 0,
            lacks_room: false,
        };
        let mut bytes = Vec::new();
        envelope(2, 1, Message::Acknowledge(answer)).encode(&mut bytes);
        sender.send(MessageType::RaftMessage, address(9), &bytes, &mut outbox).unwrap();
        let (_, datagram) = sent(&mut outbox).remove(0);
        let told: Vec<_> = bench.send(2, &datagram).iter().map(|(to, _)| *to).collect();
        assert_eq!(told, [1, 2, 3]);
    }

    #[test]
    fn what_is_not_replicated_is_routed_or_refused() {
        let header = Header::single(MessageType::Request, Policy::LoadBalance, 1);
        let mut datagram = Vec::new();
        Packet::new(header, b"body").encode(CheckSeed::NONE, &mut datagram);
        let to = |sent: Vec<(u16, Vec<u8>)>| sent.into_iter().map(|(to, _)| to).collect::<Vec<_>>();
        assert_eq!(to(Bench::new().send(CLIENT, &datagram)), [CLIENT]);
        let router = RouterConfig {
            workers: vec![address(7)],
            routing: Routing::Jbsq(1),
            age_max: Duration::from_secs(1),
            waiting_max: 1,
        };
        let config = SwitchConfig { router: Some(router), ..SwitchConfig::default() };
        let mut bench = Bench { switch: Switch::new(config, 1), now: Time::ZERO };
        assert_eq!(to(bench.send(CLIENT, &datagram)), [7]);
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_panics(datagrams: Vec<Vec<u8>>, kinds: Vec<u8>) {
            // P40.
            let mut bench = Bench::new();
            let mut outbox = Outbox::new();
            for (mut datagram, kind) in datagrams.into_iter().zip(kinds) {
                if datagram.len() > 3 {
                    (datagram[0], datagram[2]) = (0xCC, kind & 0x73);
                    datagram[1] = 8 + kind % 9;
                }
                let from = address(1 + u16::from(kind % 4));
                let _ = bench.switch.handle_datagram(bench.now, from, &datagram, &mut outbox);
                bench.switch.flush(&mut outbox);
                bench.now += Duration::from_millis(u64::from(kind));
            }
        }
    }
}
