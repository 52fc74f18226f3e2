//! Asks replicas which cluster they are of, without I/O: for clients and switches, whose packets
//! carry checks that begin with that (protocol §1).

use std::net::SocketAddrV4;

use r2p2::{MessageConfig, MessageReceiver, MessageSender, MessageType, Outbox, Time, WireError};

use crate::admin::{Answer, Question};

/// The most addresses whose answers are kept: of a multicast group anyone may answer.
const ANSWERS_MAX: usize = 64;

/// More than any answer takes.
const LIMITS: MessageConfig = MessageConfig {
    message_bytes_max: 1 << 16,
    peer_bytes_max: 1 << 18,
    reassembly_bytes_max: 1 << 20,
};

/// The answers so far, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Unknown,
    /// All of them the same; 0 is no cluster.
    Agreed(u64),
    /// Two different things.
    Disagreed(Disagreement),
}

/// Two replicas of one list are of different clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disagreement {
    /// The address that says otherwise than most do.
    pub(crate) odd: SocketAddrV4,
    /// The cluster that it names.
    pub(crate) odd_cluster: u64,
    /// The cluster that most name.
    pub(crate) cluster: u64,
}

/// Asks a list of addresses, and keeps the latest answer of each.
#[derive(Debug)]
pub(crate) struct ClusterId {
    addresses: Vec<SocketAddrV4>,
    answers: Vec<(SocketAddrV4, u64)>,
    sender: MessageSender,
    receiver: MessageReceiver,
}

impl ClusterId {
    pub(crate) fn new(addresses: Vec<SocketAddrV4>, seed: u64) -> Self {
        Self {
            addresses,
            answers: Vec::new(),
            sender: MessageSender::new(seed),
            receiver: MessageReceiver::new(LIMITS, seed),
        }
    }

    /// Forgets what was said.
    pub(crate) fn forget(&mut self) {
        self.answers.clear();
    }

    /// Asks everyone.
    pub(crate) fn ask(&mut self, outbox: &mut Outbox) {
        let question = Question::Hello.encode();
        for &address in &self.addresses {
            let sent = self.sender.send(MessageType::RaftRequest, address, &question, outbox);
            sent.expect("a question fits a packet");
        }
    }

    /// Takes a datagram of type `RAFT_REP`. Returns whether somebody who was asked says of which
    /// cluster it is.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
    ) -> Result<bool, WireError> {
        let Some(message) = self.receiver.handle_datagram(now, from, datagram)? else {
            return Ok(false);
        };
        let was_asked =
            self.addresses.iter().any(|asked| *asked == from || asked.ip().is_multicast());
        let cluster = match Answer::decode(&message.body) {
            Ok(Answer::Hello { membership: Some(it), .. }) => it.cluster,
            Ok(Answer::Cluster(cluster)) => cluster,
            // A replica before `init`, for example.
            Ok(_) | Err(_) => return Ok(false),
        };
        if !was_asked {
            return Ok(false);
        }
        if let Some((_, said)) = self.answers.iter_mut().find(|(address, _)| *address == from) {
            *said = cluster;
            return Ok(true);
        }
        let has_room = self.answers.len() < ANSWERS_MAX;
        if has_room {
            self.answers.push((from, cluster));
        }
        Ok(has_room)
    }

    /// Returns whether everyone has answered who can be told apart.
    pub(crate) fn is_complete(&self) -> bool {
        self.addresses.iter().all(|asked| self.has_answered(*asked))
    }

    /// Returns whether an address has answered.
    pub(crate) fn has_answered(&self, address: SocketAddrV4) -> bool {
        self.answers.iter().any(|(from, _)| *from == address)
    }

    /// The cluster that more than half of those who were asked have named; of a group, anyone.
    pub(crate) fn named_by_most(&self) -> Option<u64> {
        let mut named = self.answers.iter().map(|(_, cluster)| *cluster);
        named.find(|cluster| self.count(*cluster) * 2 > self.addresses.len())
    }

    /// Number of answers that name a cluster.
    fn count(&self, cluster: u64) -> usize {
        self.answers.iter().filter(|(_, named)| *named == cluster).count()
    }

    pub(crate) fn verdict(&self) -> Verdict {
        // Of equally many, whoever answered first.
        let most = self.answers.iter().rev().max_by_key(|(_, cluster)| self.count(*cluster));
        let Some(&(_, cluster)) = most else { return Verdict::Unknown };
        match self.answers.iter().find(|(_, other)| *other != cluster) {
            Some(&(odd, odd_cluster)) => {
                Verdict::Disagreed(Disagreement { odd, odd_cluster, cluster })
            }
            None => Verdict::Agreed(cluster),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The datagram in which somebody says of which cluster it is.
    pub(crate) fn says(cluster: u64) -> Vec<u8> {
        let (mut outbox, mut datagram) = (Outbox::new(), Vec::new());
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let answer = Answer::Cluster(cluster).encode();
        MessageSender::new(1).send(MessageType::RaftReply, to, &answer, &mut outbox).unwrap();
        outbox.drain(|batch| datagram.extend_from_slice(&batch.bytes));
        datagram
    }

    #[test]
    fn the_odd_address_is_named() {
        let address = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let mut asked = ClusterId::new((1..=3).map(address).collect(), 1);
        assert_eq!(asked.verdict(), Verdict::Unknown);
        let mut take = |from, cluster| {
            asked.handle_datagram(Time::ZERO, address(from), &says(cluster)).unwrap();
            (asked.verdict(), asked.is_complete())
        };
        assert_eq!(take(9, 4), (Verdict::Unknown, false), "nobody has asked it");
        assert_eq!(take(2, 5), (Verdict::Agreed(5), false));
        let disagreed = |odd, odd_cluster, cluster| {
            Verdict::Disagreed(Disagreement { odd: address(odd), odd_cluster, cluster })
        };
        assert_eq!(take(1, 6), (disagreed(1, 6, 5), false));
        assert_eq!(take(3, 6), (disagreed(2, 5, 6), true));
        assert_eq!(take(2, 6), (Verdict::Agreed(6), true));
    }
}
