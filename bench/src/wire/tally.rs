//! What a datagram at the leader was for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddrV4,
};

use hovercraft::messages::{AggCommit, AppendEntries, AppendReply, Envelope, Message};
use r2p2::{MessageConfig, MessageReceiver, MessageType, Packet, Time, message_type};

use super::capture::Datagram;

/// What a message at the leader is for. The first five are those that the paper counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Of a client.
    Request,
    /// To a client.
    Reply,
    /// Append-entries with entries.
    Append,
    /// A follower holds more than it said before.
    Acknowledgement,
    /// By the aggregator: a quorum holds more than was said before.
    AggCommit,
    /// The commit index, without entries (P14).
    Announcement,
    /// A follower has applied more, and holds no more (P15).
    Report,
    /// The leader's disk holds more, to the aggregator (P32).
    Durable,
    /// The switch is told that a request is answered (P19).
    Feedback,
    /// By time: a round of the leader, or an answer to one.
    Heartbeat,
    /// What somebody lacks: rejections, bodies, entries, snapshots.
    Recovery,
    /// Elections, sessions that are opened, refusals, and whatever is not known here.
    Other,
    /// Of and to operators: those who measure.
    Operator,
}

/// Whether the leader receives or sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// It receives.
    In,
    /// It sends.
    Out,
}

/// Counts the messages of one replica by purpose.
#[derive(Debug)]
pub struct Tally {
    leader: SocketAddrV4,
    receiver: MessageReceiver,
    clock: u64,
    messages: BTreeMap<(Direction, Purpose), u64>,
    datagrams: (u64, u64),
    requests: HashSet<(u64, u64)>,
    /// The last index of a batch, and how many batches there were.
    batched: u64,
    batches: u64,
    /// What was sent to each address: the highest round, and the highest index.
    sent: HashMap<SocketAddrV4, (u64, u64)>,
    /// What each follower said itself: round, and index held.
    said: HashMap<SocketAddrV4, (u64, u64)>,
    aggregated: Option<AggCommit>,
}

impl Tally {
    /// Nothing yet, of the leader at this address.
    pub fn new(leader: SocketAddrV4) -> Self {
        Self {
            leader,
            receiver: MessageReceiver::new(MessageConfig::default(), 1),
            clock: 0,
            messages: BTreeMap::new(),
            datagrams: (0, 0),
            requests: HashSet::new(),
            batched: 0,
            batches: 0,
            sent: HashMap::new(),
            said: HashMap::new(),
            aggregated: None,
        }
    }

    /// How many different requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.len() as u64
    }

    /// How many append-entries there were that order something for the first time, whomever they go to.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// How many messages of a purpose there were.
    pub fn messages(&self, direction: Direction, purpose: Purpose) -> u64 {
        self.messages.get(&(direction, purpose)).copied().unwrap_or(0)
    }

    /// Datagrams in and out, without those of operators.
    pub fn datagrams(&self) -> (u64, u64) {
        self.datagrams
    }

    pub(super) fn datagram(&mut self, datagram: &Datagram<'_>) {
        let Datagram { from, to, payload } = *datagram;
        let direction = match (from == self.leader, to == self.leader) {
            (true, false) => Direction::Out,
            (false, true) => Direction::In,
            _ => return,
        };
        let Some(purpose) = self.purpose(direction, from, to, payload) else {
            // A part of a message.
            return self.count_datagram(direction);
        };
        if purpose != Purpose::Operator {
            self.count_datagram(direction);
        }
        *self.messages.entry((direction, purpose)).or_default() += 1;
    }

    fn count_datagram(&mut self, direction: Direction) {
        match direction {
            Direction::In => self.datagrams.0 += 1,
            Direction::Out => self.datagrams.1 += 1,
        }
    }

    /// None if more packets belong to the message.
    fn purpose(
        &mut self,
        direction: Direction,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
    ) -> Option<Purpose> {
        match message_type(payload) {
            Some(MessageType::Request) => Some(self.request(payload)),
            Some(MessageType::Response) => Some(Purpose::Reply),
            Some(MessageType::Feedback) => Some(Purpose::Feedback),
            Some(MessageType::RaftRequest | MessageType::RaftReply) => Some(Purpose::Operator),
            Some(MessageType::RaftMessage) => {
                // Messages are told apart by their senders, so one receiver does for both directions.
                self.clock += 1;
                let now = Time::from_nanos(self.clock);
                let Ok(message) = self.receiver.handle_datagram(now, from, payload) else {
                    return Some(Purpose::Other);
                };
                match Envelope::decode(&message?.body) {
                    Ok(envelope) => Some(self.message(direction, (from, to), &envelope.message)),
                    Err(_) => Some(Purpose::Other),
                }
            }
            _ => Some(Purpose::Other),
        }
    }

    fn request(&mut self, payload: &[u8]) -> Purpose {
        let session = Packet::parse(payload).ok().and_then(|packet| packet.options.session);
        match session {
            // Who opens a session has none.
            Some(session) if session.client != 0 => {
                self.requests.insert((session.client, session.sequence));
                Purpose::Request
            }
            _ => Purpose::Other,
        }
    }

    fn message(
        &mut self,
        direction: Direction,
        (from, to): (SocketAddrV4, SocketAddrV4),
        message: &Message,
    ) -> Purpose {
        match (message, direction) {
            (Message::AppendEntries(append), Direction::Out) => {
                self.append(to, append, Purpose::Announcement)
            }
            (Message::Aggregate(it), Direction::Out) => {
                self.append(to, &it.append, Purpose::Durable)
            }
            (Message::AppendReply(reply), Direction::In) => self.reply(from, reply),
            (Message::AggCommit(commit), Direction::In) => self.agg_commit(commit),
            (
                Message::FetchBodies { .. }
                | Message::Bodies { .. }
                | Message::BodiesRefused { .. }
                | Message::FetchEntries { .. }
                | Message::Entries { .. }
                | Message::SnapshotAvailable { .. }
                | Message::FetchSnapshot { .. }
                | Message::SnapshotPart { .. },
                _,
            ) => Purpose::Recovery,
            _ => Purpose::Other,
        }
    }

    /// Append-entries; `otherwise` if it neither orders anything nor begins a round.
    fn append(&mut self, to: SocketAddrV4, append: &AppendEntries, otherwise: Purpose) -> Purpose {
        let last = append.previous_index + append.entries.len() as u64;
        let sent = self.sent.entry(to).or_default();
        let is_round = append.round > sent.0;
        sent.0 = append.round.max(sent.0);
        if append.entries.is_empty() {
            return if is_round { Purpose::Heartbeat } else { otherwise };
        }
        sent.1 = last.max(sent.1);
        if last > self.batched {
            self.batched = last;
            self.batches += 1;
        }
        Purpose::Append
    }

    fn reply(&mut self, from: SocketAddrV4, reply: &AppendReply) -> Purpose {
        let said = self.said.entry(from).or_default();
        // What the leader did not send itself it hears of by the aggregator.
        let sent = self.sent.get(&from).map_or(0, |sent| sent.1);
        let (is_round, holds_more) = (reply.round > said.0, reply.acknowledged.min(sent) > said.1);
        *said = (reply.round.max(said.0), reply.acknowledged.max(said.1));
        match () {
            () if reply.rejected_after.is_some() => Purpose::Recovery,
            () if holds_more => Purpose::Acknowledgement,
            () if is_round => Purpose::Heartbeat,
            () => Purpose::Report,
        }
    }

    fn agg_commit(&mut self, commit: &AggCommit) -> Purpose {
        let before = self.aggregated.replace(commit.clone());
        let Some(before) = before else { return Purpose::AggCommit };
        let all = |of: &AggCommit| of.replicas.iter().map(|it| it.round).min();
        match () {
            () if commit.commit > before.commit => Purpose::AggCommit,
            // It says what followers hold too, and would have been sent if they held nothing new.
            () if commit.round > before.round || all(commit) > all(&before) => Purpose::Heartbeat,
            () => Purpose::Report,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc, time::Duration};

    use bytes::Bytes;
    use hovercraft::{
        Incarnation, NodeId, Request,
        core::{Core, Mode, Output, Policy, Write},
    };
    use r2p2::{CheckSeed, Header, MessageSender, Options, Outbox, Session};

    use super::*;
    use crate::model::cores::{Cores, request, return_path};

    fn address(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    const LEADER: u16 = 1;

    fn said(tally: &mut Tally, from: u16, to: u16, message: Message) {
        let envelope = Envelope {
            cluster: 1,
            from: NodeId(from),
            incarnation: Incarnation(1),
            term: 1,
            message,
        };
        let (mut body, mut outbox) = (Vec::new(), Outbox::new());
        envelope.encode(&mut body);
        MessageSender::new(tally.clock)
            .send(MessageType::RaftMessage, address(to), &body, &mut outbox)
            .expect("a message");
        outbox.drain(|batch| {
            for payload in batch.datagrams() {
                tally.datagram(&Datagram { from: address(from), to: address(to), payload });
            }
        });
    }

    fn empty(round: u64) -> Message {
        Message::AppendEntries(AppendEntries {
            previous_index: 0,
            previous_term: 0,
            commit: 0,
            noop: 1,
            first_index: 1,
            round,
            entries_term: 1,
            log_time_us: 0,
            entries: Vec::new(),
            configurations: Vec::new(),
            requests: Vec::new(),
        })
    }

    #[test]
    fn what_carries_no_entries_is_told_apart_by_its_round() {
        let mut tally = Tally::new(address(LEADER));
        for message in [empty(5), empty(5), empty(6)] {
            said(&mut tally, LEADER, 2, message);
        }
        // To another follower the round is new.
        said(&mut tally, LEADER, 3, empty(6));
        assert_eq!(tally.messages(Direction::Out, Purpose::Heartbeat), 3);
        assert_eq!(tally.messages(Direction::Out, Purpose::Announcement), 1);
        assert_eq!(tally.datagrams(), (0, 4));
    }

    /// Real cores of a cluster, one of which leads; what they say goes by a tally of the leader.
    struct Cluster {
        cores: Vec<Core>,
        inboxes: Vec<Vec<Envelope>>,
        now: Time,
    }

    impl Cluster {
        fn settle(&mut self, request: Option<&Arc<Request>>, tally: &mut Tally) {
            let mut asked = request;
            loop {
                let mut sent = Vec::new();
                for (core, inbox) in self.cores.iter_mut().zip(&mut self.inboxes) {
                    if let Some(request) = asked {
                        core.handle_request(self.now, Arc::clone(request), return_path(1));
                    }
                    for envelope in inbox.drain(..) {
                        core.handle_message(self.now, envelope);
                    }
                    core.handle_timeout(self.now);
                    turn(core, self.now, &mut sent);
                }
                asked = None;
                if sent.is_empty() {
                    return;
                }
                for (to, envelope) in sent {
                    said(tally, envelope.from.0, to.0, envelope.message.clone());
                    self.inboxes[usize::from(to.0) - 1].push(envelope);
                }
            }
        }
    }

    fn turn(core: &mut Core, now: Time, sent: &mut Vec<(NodeId, Envelope)>) {
        core.flush(now, 0);
        while let Some(output) = core.poll_output() {
            match output {
                Output::Send { to, envelope } => sent.push((to, *envelope)),
                Output::Write(Write::HardState { number, .. } | Write::Append { number, .. }) => {
                    core.handle_stored(now, number);
                }
                _ => {}
            }
        }
        while let Some(committed) = core.poll_apply() {
            core.handle_applied(now, committed.index);
        }
    }

    #[test]
    fn what_cores_say_about_a_request_is_told_apart() {
        const REQUESTS: u64 = 50;
        let (mode, policy) = (Mode::HovercRaft, Policy::Leader);
        let cores = Cores { replicas: 3, mode, policy, queue_bound: 128, seed: 1 };
        let cores = cores.start(Time::ZERO);
        let inboxes = cores.iter().map(|_| Vec::new()).collect();
        let mut cluster = Cluster { cores, inboxes, now: Time::ZERO };
        let mut tally = Tally::new(address(0));
        for _ in 0..1000 {
            cluster.now += Duration::from_millis(1);
            cluster.settle(None, &mut tally);
        }
        let leads = cluster.cores.iter().position(Core::is_leader).expect("a leader");
        tally = Tally::new(address(leads as u16 + 1));
        for number in 1..=REQUESTS {
            let request = Arc::new(request(number, false, Bytes::from_static(b"body")));
            cluster.settle(Some(&request), &mut tally);
            // Long enough for reports that nothing else carries, and now and then for a heartbeat.
            for _ in 0..5 {
                cluster.now += Duration::from_millis(1);
                cluster.settle(None, &mut tally);
            }
        }
        let (coming, going) = (Direction::In, Direction::Out);
        assert_eq!(tally.batches(), REQUESTS);
        assert_eq!(tally.messages(going, Purpose::Append), 2 * REQUESTS);
        assert_eq!(tally.messages(coming, Purpose::Acknowledgement), 2 * REQUESTS);
        let beats = tally.messages(going, Purpose::Heartbeat);
        assert!((20..=30).contains(&beats), "{beats} in a quarter of a second, to two");
        assert!(tally.messages(coming, Purpose::Report) > 0);
        for purpose in [Purpose::Recovery, Purpose::Other, Purpose::AggCommit] {
            assert_eq!(tally.messages(coming, purpose) + tally.messages(going, purpose), 0);
        }
    }

    #[test]
    fn copies_of_a_request_are_messages_and_one_request() {
        let mut tally = Tally::new(address(LEADER));
        for sequence in [1, 1, 2] {
            let session = Some(Session { client: 7, sequence, lowest: 1 });
            let header = Header::single(MessageType::Request, r2p2::Policy::Replicated, 1);
            let mut payload = Vec::new();
            Packet {
                options: Options { session, ..Options::NONE },
                ..Packet::new(header, b"body")
            }
            .encode(CheckSeed::NONE, &mut payload);
            let (from, to) = (address(99), address(LEADER));
            tally.datagram(&Datagram { from, to, payload: &payload });
        }
        assert_eq!(tally.messages(Direction::In, Purpose::Request), 3);
        assert_eq!(tally.requests(), 2);
    }
}
