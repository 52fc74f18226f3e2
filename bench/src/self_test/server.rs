//! A server with latencies that are known: it grants sessions and answers after a drawn time.

use std::{cmp::Reverse, collections::BinaryHeap, net::SocketAddrV4, time::Duration};

use hovercraft::{
    admin::{Answer, Question},
    core::SessionGrant,
};
use r2p2::{
    MessageConfig, MessageReceiver, MessageSender, MessageType, Options, Outbox, ReplyTo,
    ServerConfig, ServerEndpoint, Time, message_type,
};

/// Latencies: a floor, and an exponential time above it.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// The least.
    pub floor: Duration,
    /// The mean of what is above.
    pub mean: Duration,
}

impl Latency {
    fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        self.floor + self.mean.mul_f64(-(1.0 - rng.f64()).ln())
    }

    /// How likely a latency is above so many µs.
    fn above(&self, us: f64) -> f64 {
        let over = us - self.floor.as_secs_f64() * 1e6;
        if over <= 0.0 { 1.0 } else { (-over / (self.mean.as_secs_f64() * 1e6)).exp() }
    }
}

/// What a server does.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// How long an answer takes.
    pub latency: Latency,
    /// The share of requests that it loses.
    pub drops: f64,
    /// Each first, it stands still for the second: what comes then waits for the end.
    pub stall: Option<(Duration, Duration)>,
}

/// The client sends again what was not answered for so long; if that is lost too, after twice as long
/// again, which for the quantiles here does not matter.
const RETRY_AFTER_US: f64 = 25_000.0;

impl Behaviour {
    /// The true quantile of the latency that a user sees, in µs.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        // What is above falls from 1 to 0 over this range.
        let (mut low, mut high) = (0.0, 10_000_000.0);
        while high - low > 0.01 {
            let middle = f64::midpoint(low, high);
            if self.above(middle) > 1.0 - quantile { low = middle } else { high = middle }
        }
        f64::midpoint(low, high)
    }

    fn above(&self, us: f64) -> f64 {
        let once = |us: f64| match self.stall {
            None => self.latency.above(us),
            Some((period, stall)) => {
                // A user comes at any time of the period, and waits for what is left of the stall.
                const STEPS: u32 = 2000;
                let share = stall.as_secs_f64() / period.as_secs_f64();
                let stall_us = stall.as_secs_f64() * 1e6;
                let waits = (0..STEPS).map(|step| {
                    let left = stall_us * (f64::from(step) + 0.5) / f64::from(STEPS);
                    self.latency.above(us - left)
                });
                (1.0 - share) * self.latency.above(us)
                    + share * waits.sum::<f64>() / f64::from(STEPS)
            }
        };
        let (lost, kept) = (self.drops, 1.0 - self.drops);
        if lost == 0.0 {
            return once(us);
        }
        let twice = 3.0 * RETRY_AFTER_US;
        kept * once(us) + lost * kept * once(us - RETRY_AFTER_US) + lost * lost * once(us - twice)
    }
}

/// The server without I/O.
#[derive(Debug)]
pub(super) struct Server {
    endpoint: ServerEndpoint,
    questions: MessageReceiver,
    answers: MessageSender,
    behaviour: Behaviour,
    rng: fastrand::Rng,
    replies: BinaryHeap<Reverse<(Time, u64)>>,
    /// What each reply says and to whom, by its number.
    waiting: std::collections::HashMap<u64, (ReplyTo, Options, Vec<u8>)>,
    count: u64,
}

impl Server {
    pub(super) fn new(behaviour: Behaviour, seed: u64) -> Self {
        Self {
            endpoint: ServerEndpoint::new(ServerConfig::default(), seed),
            questions: MessageReceiver::new(MessageConfig::default(), seed),
            answers: MessageSender::new(seed),
            behaviour,
            rng: fastrand::Rng::with_seed(seed),
            replies: BinaryHeap::new(),
            waiting: std::collections::HashMap::new(),
            count: 0,
        }
    }

    pub(super) fn handle_datagram(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        if message_type(datagram) == Some(MessageType::RaftRequest) {
            return self.answer_hello(now, from, datagram, outbox);
        }
        let Ok(Some(incoming)) = self.endpoint.handle_datagram(now, from, datagram, outbox) else {
            return;
        };
        let (to, options) = (incoming.reply_to, incoming.reply_options());
        // 1 opens a session.
        let opens = incoming.options.request_kind == Some(1);
        self.count += 1;
        let (due, body) = if opens {
            let grant = SessionGrant {
                client: self.count,
                window: 1 << 16,
                request_bytes_max: 1 << 20,
                lifetime: Duration::from_mins(10),
            };
            (now, grant.encode().to_vec())
        } else if self.rng.f64() < self.behaviour.drops {
            return;
        } else {
            let latency = self.behaviour.latency.draw(&mut self.rng);
            (self.after_stall(now) + latency, vec![0; 8])
        };
        self.replies.push(Reverse((due, self.count)));
        self.waiting.insert(self.count, (to, options, body));
    }

    /// Tells a client that this server is of no cluster, as one in mode `unreplicated` does.
    fn answer_hello(
        &mut self,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        let question = self.questions.handle_datagram(now, from, datagram);
        if let Ok(Some(question)) = question
            && let Ok(Question::Hello) = Question::decode(&question.body)
        {
            let answer = Answer::Cluster(0).encode();
            (self.answers.send(MessageType::RaftReply, from, &answer, outbox))
                .expect("an answer of few bytes is a packet");
        }
    }

    /// When a stall that is under way at `now` ends.
    fn after_stall(&self, now: Time) -> Time {
        let Some((period, stall)) = self.behaviour.stall else { return now };
        let (period, stall) = (period.as_nanos() as u64, stall.as_nanos() as u64);
        let into = now.as_nanos() % period;
        if into < stall { Time::from_nanos(now.as_nanos() - into + stall) } else { now }
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.replies.peek().map(|Reverse((due, _))| *due)
    }

    pub(super) fn handle_timeout(&mut self, now: Time, outbox: &mut Outbox) {
        while self.poll_timeout().is_some_and(|due| due <= now) {
            let Some(Reverse((_, number))) = self.replies.pop() else { return };
            let (to, options, body) =
                self.waiting.remove(&number).expect("each number is put in once, with its reply");
            (self.endpoint.respond(now, to, &options, body.as_slice(), outbox))
                .expect("a reply of few bytes is a packet");
        }
    }
}
