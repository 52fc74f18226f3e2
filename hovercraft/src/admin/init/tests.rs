use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use r2p2::{Link, MessageReceiver, MessageSender, MessageType, Outbox, Time};

use super::*;
use crate::{
    entry::Incarnation,
    node::{network::hello as hello_of, unborn::take_birth},
    storage::{Durability, HardState},
};

const REPLICA: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1);

/// A network with one replica, on which every answer comes again with the next one.
struct Repeating {
    sender: MessageSender,
    receiver: MessageReceiver,
    before: Vec<Vec<u8>>,
    inbox: VecDeque<Vec<u8>>,
}

impl Link for Repeating {
    fn send(&mut self, outbox: &mut Outbox) -> std::io::Result<()> {
        let mut answers = Outbox::new();
        let Self { sender, receiver, .. } = self;
        outbox.drain(|batch| {
            for datagram in batch.datagrams() {
                let message = receiver.handle_datagram(Time::ZERO, REPLICA, datagram);
                let message = message.unwrap().unwrap();
                let answer = match Question::decode(&message.body).unwrap() {
                    Question::Hello => {
                        let (node, incarnation) = (NodeId(1), Incarnation(7));
                        Answer::Hello {
                            node,
                            incarnation,
                            membership: None,
                            counted_by: None,
                            term: 0,
                        }
                    }
                    _ => Answer::Initialised,
                };
                let answer = answer.encode();
                sender.send(MessageType::RaftReply, REPLICA, &answer, &mut answers).unwrap();
            }
        });
        self.inbox.extend(self.before.clone());
        answers.drain(|batch| {
            self.before.extend(batch.datagrams().map(<[u8]>::to_vec));
            self.inbox.extend(batch.datagrams().map(<[u8]>::to_vec));
        });
        Ok(())
    }

    fn receive(&mut self, each: &mut dyn FnMut(SocketAddrV4, &[u8])) -> std::io::Result<usize> {
        let Some(datagram) = self.inbox.pop_front() else { return Ok(0) };
        each(REPLICA, &datagram);
        Ok(1)
    }
}

impl AsyncLink for Repeating {
    async fn readable(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_answer_that_comes_again_does_not_answer_the_next_question() {
    let link = Repeating {
        sender: MessageSender::new(1),
        receiver: MessageReceiver::new(r2p2::MessageConfig::default(), 1),
        before: Vec::new(),
        inbox: VecDeque::new(),
    };
    let members = [(NodeId(1), REPLICA)];
    let timeout = Duration::from_secs(10);
    init_on(link, &members, ClusterLimits::default(), timeout).await.unwrap();
}

/// Replicas before and after `init`, as far as it sees them.
struct Replicas {
    states: Vec<HardState>,
    drawn: u64,
    /// Births that are passed on are lost on their way.
    loses_births: bool,
}

fn address(number: u16) -> SocketAddrV4 {
    SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 7000 + number)
}

fn members(numbers: &[u16]) -> Vec<(NodeId, SocketAddrV4)> {
    numbers.iter().map(|number| (NodeId(*number), address(*number))).collect()
}

impl Replicas {
    fn new(count: u16) -> Arc<Mutex<Self>> {
        let mut replicas = Self { states: Vec::new(), drawn: 0, loses_births: false };
        for _ in 0..count {
            let state = replicas.empty_disk();
            replicas.states.push(state);
        }
        Arc::new(Mutex::new(replicas))
    }

    fn empty_disk(&mut self) -> HardState {
        self.drawn += 1;
        HardState {
            term: 0,
            vote: None,
            incarnation: Incarnation(self.drawn),
            birth: None,
            durability: Durability::Sync,
            clean: false,
        }
    }

    fn answer(&mut self, to: SocketAddrV4, question: &Question) -> Answer {
        let node = NodeId(to.port() - 7000);
        let state = &mut self.states[usize::from(node.0) - 1];
        match question {
            Question::Hello => hello_of(node, state, None),
            Question::Init(birth) => take_birth(node, state, birth, None),
            Question::PassOn(to) => {
                let birth = state.birth.clone().expect("only a holder is asked");
                let member = birth.configuration.member(*to).expect("only for a member");
                let question = Question::Init(Birth { node: *to, ..birth.clone() });
                if !self.loses_births {
                    self.answer(member.address, &question);
                }
                Answer::PassedOn
            }
            Question::Status => panic!("init does not ask for it"),
        }
    }

    /// Every cluster that has a quorum elects a leader.
    fn elect(&mut self) {
        for at in 0..self.states.len() {
            let Some(birth) = self.states[at].birth.clone() else { continue };
            let is_of = |state: &&mut HardState| {
                state.birth.as_ref().is_some_and(|other| other.cluster == birth.cluster)
            };
            let holders: Vec<_> = self.states.iter_mut().filter(is_of).collect();
            if holders.len() >= birth.configuration.quorum() {
                for state in holders {
                    state.term = 1;
                }
            }
        }
    }

    fn clusters(&self, numbers: &[u16]) -> Vec<Option<u64>> {
        let cluster = |number: &u16| {
            let state = &self.states[usize::from(*number) - 1];
            state.birth.as_ref().map(|birth| birth.cluster)
        };
        numbers.iter().map(cluster).collect()
    }
}

/// The link of one `init`: its question waits until it is delivered.
#[derive(Clone)]
struct Wire(Arc<Mutex<Waiting>>);

struct Waiting {
    asked: VecDeque<(SocketAddrV4, Question)>,
    answers: VecDeque<(SocketAddrV4, Vec<u8>)>,
    receiver: MessageReceiver,
    sender: MessageSender,
}

impl Link for Wire {
    fn send(&mut self, outbox: &mut Outbox) -> std::io::Result<()> {
        let Waiting { asked, receiver, .. } = &mut *self.0.lock().unwrap();
        outbox.drain(|batch| {
            for datagram in batch.datagrams() {
                let to = batch.destination;
                let message = receiver.handle_datagram(Time::ZERO, to, datagram).unwrap();
                let message = message.expect("a question is one packet");
                asked.push_back((to, Question::decode(&message.body).unwrap()));
            }
        });
        Ok(())
    }

    fn receive(&mut self, each: &mut dyn FnMut(SocketAddrV4, &[u8])) -> std::io::Result<usize> {
        let answer = self.0.lock().unwrap().answers.pop_front();
        Ok(answer.map_or(0, |(from, datagram)| {
            each(from, &datagram);
            1
        }))
    }
}

impl AsyncLink for Wire {
    async fn readable(&mut self) -> std::io::Result<()> {
        let has_answer = || !self.0.lock().unwrap().answers.is_empty();
        poll_fn(|_| if has_answer() { Poll::Ready(Ok(())) } else { Poll::Pending }).await
    }
}

type Ended = Result<u64, AdminError>;

/// An `init` under way.
struct Run {
    future: Pin<Box<dyn Future<Output = Ended>>>,
    wire: Wire,
    ended: Option<Ended>,
}

impl Run {
    fn new(numbers: &'static [u16]) -> Self {
        Self::with_patience(numbers, Duration::from_mins(1))
    }

    fn with_patience(numbers: &'static [u16], patience: Duration) -> Self {
        let wire = Wire(Arc::new(Mutex::new(Waiting {
            asked: VecDeque::new(),
            answers: VecDeque::new(),
            receiver: MessageReceiver::new(r2p2::MessageConfig::default(), 1),
            sender: MessageSender::new(1),
        })));
        let link = wire.clone();
        let future = Box::pin(async move {
            init_on(link, &members(numbers), ClusterLimits::default(), patience).await
        });
        let mut run = Self { future, wire, ended: None };
        run.go_on();
        run
    }

    fn go_on(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(ended) = self.future.as_mut().poll(&mut context) {
            self.ended = Some(ended);
        }
    }

    /// Delivers what it asks, and the answer.
    fn step(&mut self, replicas: &Mutex<Replicas>) {
        if self.ended.is_some() {
            return;
        }
        let Waiting { asked, answers, sender, .. } = &mut *self.wire.0.lock().unwrap();
        if let Some((to, question)) = asked.pop_front() {
            let answer = replicas.lock().unwrap().answer(to, &question).encode();
            let mut outbox = Outbox::new();
            sender.send(MessageType::RaftReply, to, &answer, &mut outbox).unwrap();
            outbox.drain(|batch| {
                answers.extend(batch.datagrams().map(|datagram| (to, datagram.to_vec())));
            });
        }
    }

    fn finish(mut self, replicas: &Mutex<Replicas>) -> Ended {
        while self.ended.is_none() {
            self.step(replicas);
            self.go_on();
        }
        self.ended.expect("it has ended")
    }
}

/// Runs two at once in the order that the bits of `order` say, each until it is killed.
fn two_at_once(
    lists: [&'static [u16]; 2],
    replicas: &Mutex<Replicas>,
    order: u32,
    rng: &mut fastrand::Rng,
) -> [Option<Ended>; 2] {
    let mut runs = lists.map(Run::new);
    // Each is killed after a few of its steps, or never.
    let mut left = [(); 2].map(|()| if rng.bool() { u8::MAX } else { rng.u8(..14) });
    for step in 0..24 {
        let at = (order >> step) as usize & 1;
        if left[at] > 0 {
            left[at] -= 1;
            runs[at].step(replicas);
            runs[at].go_on();
        }
        if rng.u8(..8) == 0 {
            replicas.lock().unwrap().elect();
        }
    }
    let mut ended = [None, None];
    for (at, run) in runs.into_iter().enumerate() {
        ended[at] = if left[at] > 100 { Some(run.finish(replicas)) } else { run.ended };
    }
    ended
}

/// The replicas that a message says to empty.
fn named(error: &AdminError, replicas: &Replicas) -> Vec<usize> {
    let text = error.to_string();
    let Some((_, named)) = text.split_once("empty the data directory of") else {
        return Vec::new();
    };
    (0..replicas.states.len())
        .filter(|at| named.contains(&address(*at as u16 + 1).to_string()))
        .collect()
}

/// An `init` after it all, by an operator who does what the messages say.
fn follow_the_messages(list: &'static [u16], replicas: &Mutex<Replicas>) -> Result<u64, String> {
    let mut said = Vec::new();
    for _ in 0..3 {
        let error = match Run::new(list).finish(replicas) {
            Ok(cluster) => return Ok(cluster),
            Err(error) => error,
        };
        said.push(error.to_string());
        let replicas = &mut *replicas.lock().unwrap();
        let to_empty = named(&error, replicas);
        if to_empty.is_empty() {
            break;
        }
        for at in to_empty {
            assert_eq!(replicas.states[at].term, 0, "it may hold what nobody else does: {error}");
            replicas.states[at] = replicas.empty_disk();
        }
    }
    Err(said.join("; then "))
}

#[tokio::test]
async fn two_at_once_for_the_same_members_make_one_cluster() {
    const ALL: &[u16] = &[1, 2, 3];
    let lists: [&'static [u16]; 3] = [&[1, 2, 3], &[3, 2, 1], &[2, 3, 1]];
    for order in 0..4096 {
        let mut rng = fastrand::Rng::with_seed(order.into());
        let replicas = Replicas::new(3);
        let two = [lists[rng.usize(..3)], lists[rng.usize(..3)]];
        let ended = two_at_once(two, &replicas, rng.u32(..) << 12 | order, &mut rng);
        let cluster = Run::new(ALL).finish(&replicas).expect("it is completed, or made anew");
        assert_eq!(replicas.lock().unwrap().clusters(ALL), [Some(cluster); 3], "order {order}");
        for ended in ended.into_iter().flatten() {
            assert_eq!(ended.expect("nobody is refused in the end"), cluster, "order {order}");
        }
    }
}

#[tokio::test]
async fn two_for_different_members_leave_clusters_or_say_whom_to_empty() {
    let lists: [&'static [u16]; 4] = [&[1, 2, 3], &[2, 3, 4], &[4, 3, 1], &[5, 1, 2, 3, 4]];
    let mut stuck = 0;
    for order in 0..4096 {
        let mut rng = fastrand::Rng::with_seed(order.into());
        let replicas = Replicas::new(5);
        let two = [lists[rng.usize(..4)], lists[rng.usize(..4)]];
        let ended = two_at_once(two, &replicas, rng.u32(..) << 12 | order, &mut rng);
        for (list, ended) in two.iter().zip(&ended) {
            if let Some(Ok(cluster)) = ended {
                let clusters = replicas.lock().unwrap().clusters(list);
                assert!(clusters.iter().all(|it| *it == Some(*cluster)), "order {order}");
            }
        }
        let [first, second] = two.map(|list| follow_the_messages(list, &replicas));
        if let Err(said) = &first {
            // The other list is the cluster's, or both clusters are at work.
            let is_named =
                said.contains("name exactly these") || said.contains("different clusters");
            assert!(is_named, "order {order}: {said}");
            stuck += u32::from(second.is_err());
        }
    }
    assert!(stuck < 100, "{stuck} times neither list of members led anywhere");
}

#[tokio::test]
async fn a_disk_that_was_lost_is_named_and_nothing_is_overwritten() {
    const ALL: &[u16] = &[1, 2, 3];
    let replicas = Replicas::new(3);
    let cluster = Run::new(ALL).finish(&replicas).unwrap();
    let empty = || {
        let replicas = &mut *replicas.lock().unwrap();
        replicas.states[1] = replicas.empty_disk();
    };
    empty();
    // Two of three may elect at any moment, so nobody is told to empty them.
    let said = Run::new(ALL).finish(&replicas).unwrap_err().to_string();
    assert!(said.contains("its disk is empty; nothing was changed; do not empty"), "{said}");
    replicas.lock().unwrap().elect();
    let said = Run::new(ALL).finish(&replicas).unwrap_err().to_string();
    assert!(said.contains("its disk is empty; nothing was changed; do not empty"), "{said}");
    assert_eq!(replicas.lock().unwrap().clusters(ALL), [Some(cluster), None, Some(cluster)]);
}

#[tokio::test]
async fn a_replica_that_answers_but_takes_no_birth_is_not_called_silent() {
    const ALL: &[u16] = &[1, 2, 3];
    let replicas = Replicas::new(3);
    let before = replicas.lock().unwrap().states[2].clone();
    Run::new(ALL).finish(&replicas).unwrap();
    {
        let replicas = &mut *replicas.lock().unwrap();
        replicas.states[2] = before;
        replicas.loses_births = true;
    }
    let mut run = Run::with_patience(ALL, Duration::from_millis(500));
    while run.ended.is_none() {
        run.step(&replicas);
        run.go_on();
        // It sleeps between two looks, and only a runtime that has its turn wakes it.
        tokio::task::yield_now().await;
    }
    let said = run.ended.expect("it has ended").unwrap_err().to_string();
    assert!(said.contains("it answers, but has not become a member"), "{said}");
    replicas.lock().unwrap().loses_births = false;
    Run::new(ALL).finish(&replicas).unwrap();
}
