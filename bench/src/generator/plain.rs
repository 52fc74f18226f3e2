//! Open-loop load of requests without sessions: each is sent once. What is refused is refused, and what
//! is not answered in time is lost, so that what a server does under too much load shows.

use std::{
    collections::VecDeque,
    net::SocketAddrV4,
    sync::Arc,
    time::{Duration, Instant},
};

use r2p2::{
    ClientConfig, ClientEndpoint, ClientEventKind, Link as _, Options, Outbox, Policy,
    RequestHandle, Time,
};

use super::{
    Cost, DriveError, Poisson, Record, Watch,
    drive::{Meter, Sockets, WAIT_MAX},
    recorder::Measured,
};
use crate::workload::Requests;

/// What is sent.
#[derive(Debug, Clone)]
pub struct PlainPlan {
    /// Poisson arrivals.
    pub per_second: f64,
    /// Over how many sockets.
    pub clients: usize,
    /// Of all requests.
    pub policy: Policy,
    /// What is asked.
    pub requests: Requests,
    /// Requests of this first part are not counted.
    pub warm_up: Duration,
    /// How long is measured.
    pub duration: Duration,
    /// An answer that takes longer is worth nothing.
    pub timeout: Duration,
    /// Of all that is random.
    pub seed: u64,
}

/// What came of the requests that were meant to be sent in the measured time.
#[derive(Debug, Default)]
pub struct PlainRecord {
    /// Of those that were answered in time: latencies, from when they were meant to be sent. And of all,
    /// how late they were sent.
    pub answered: Record,
    /// How many there were.
    pub offered: u64,
    /// How many were refused (P23).
    pub refused: u64,
    /// How many were not answered in time, nor refused.
    pub lost: u64,
}

#[derive(Debug)]
struct Client {
    endpoint: ClientEndpoint,
    /// When the request with each handle's index was meant to be sent.
    intended: Vec<Time>,
    /// When each was meant to be sent, in that order; some have ended since.
    sent: VecDeque<(Time, RequestHandle)>,
    open: usize,
}

/// A generator without I/O.
#[derive(Debug)]
struct Engine {
    plan: PlainPlan,
    destinations: Arc<[SocketAddrV4]>,
    clients: Vec<Client>,
    schedule: Poisson,
    previous: Time,
    measured: Measured,
    next_client: usize,
    record: PlainRecord,
}

/// Sends what is planned to a switch or a server, on sockets, in this thread.
pub fn drive_plain(
    plan: PlainPlan,
    to: SocketAddrV4,
    watch: &Watch,
) -> Result<(PlainRecord, Cost), DriveError> {
    let mut sockets = Sockets::open(plan.clients, None)?;
    let origin = Instant::now();
    let clock = || Time::ZERO + origin.elapsed();
    let mut engine = Engine::new(plan, to, clock());
    let mut outbox = Outbox::new();
    let mut meter = Meter::default();
    while !engine.is_finished(clock()) {
        if watch.stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(DriveError::Interrupted);
        }
        let now = clock();
        sockets.receive(&mut outbox, |client, from, datagram, outbox| {
            engine.handle_datagram(client, now, from, datagram, outbox);
        })?;
        while let Some(client) = engine.send_next(clock(), &mut outbox) {
            sockets.links[client].send(&mut outbox)?;
        }
        engine.give_up(clock());
        let measured = (engine.measured.from, engine.measured.to);
        meter.look(Some(measured), engine.record.answered.completed, now, watch);
        let now = clock();
        sockets.wait(engine.poll_timeout(now).since(now).min(WAIT_MAX))?;
    }
    Ok((engine.record, meter.cost()))
}

impl Engine {
    fn new(plan: PlainPlan, to: SocketAddrV4, now: Time) -> Self {
        assert!(plan.clients > 0, "a generator has clients");
        // Never sent again: it is given up before.
        let retry_after = plan.timeout * 2;
        let config =
            ClientConfig { retry_after, retry_after_max: retry_after, ..ClientConfig::default() };
        let mut seeds = fastrand::Rng::with_seed(plan.seed);
        let client = |_| Client {
            endpoint: ClientEndpoint::new(config, seeds.u64(..)),
            intended: Vec::new(),
            sent: VecDeque::new(),
            open: 0,
        };
        let from = now + plan.warm_up;
        Self {
            destinations: Arc::from([to]),
            clients: (0..plan.clients).map(client).collect(),
            schedule: Poisson::new(now, plan.per_second, plan.seed ^ 0x5EED),
            previous: now,
            measured: Measured { from, to: from + plan.duration },
            next_client: 0,
            record: PlainRecord::default(),
            plan,
        }
    }

    /// Sends the next request that is due, to be sent on the client's socket.
    fn send_next(&mut self, now: Time, outbox: &mut Outbox) -> Option<usize> {
        let intended = self.schedule.next();
        if intended > now || intended >= self.measured.to {
            return None;
        }
        self.schedule.advance();
        let is_counted = self.measured.contains(intended);
        if is_counted {
            self.record.offered += 1;
            let gap = intended.since(self.previous);
            self.record.answered.arrived(gap, now.since(intended));
        }
        self.previous = intended;
        let place = self.next_client;
        self.next_client = (place + 1) % self.clients.len();
        let client = &mut self.clients[place];
        let body = self.plan.requests.next().body;
        let (to, policy) = (&self.destinations, self.plan.policy);
        let Ok(handle) = client.endpoint.request(now, to, policy, Options::NONE, body, outbox)
        else {
            // As many are open as may be.
            self.record.lost += u64::from(is_counted);
            return Some(place);
        };
        let index = handle.index();
        if client.intended.len() <= index {
            client.intended.resize(index + 1, Time::ZERO);
        }
        client.intended[index] = intended;
        client.open += 1;
        client.sent.push_back((intended, handle));
        Some(place)
    }

    fn handle_datagram(
        &mut self,
        client: usize,
        now: Time,
        from: SocketAddrV4,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        let client = &mut self.clients[client];
        let Ok(Some(event)) = client.endpoint.handle_datagram(now, from, datagram, outbox) else {
            return;
        };
        let handle = event.handle;
        let is_answer = match event.kind {
            ClientEventKind::Reply { .. } => true,
            ClientEventKind::Dropped { .. } => {
                client.endpoint.forget(now, handle);
                false
            }
            _ => return,
        };
        client.open -= 1;
        let intended = client.intended[handle.index()];
        let is_counted = self.measured.contains(intended);
        if !is_answer {
            self.record.refused += u64::from(is_counted);
        } else if is_counted {
            let latency = now.since(intended);
            self.record.answered.ended(intended.since(self.measured.from), latency);
            self.record.answered.completed += 1;
        }
    }

    /// Gives up what has waited for too long.
    fn give_up(&mut self, now: Time) {
        for client in &mut self.clients {
            while let Some(&(intended, handle)) = client.sent.front()
                && intended + self.plan.timeout <= now
            {
                client.sent.pop_front();
                let open = client.endpoint.outstanding_count();
                client.endpoint.forget(now, handle);
                // One that has ended before was forgotten then.
                if client.endpoint.outstanding_count() < open {
                    client.open -= 1;
                    self.record.lost += u64::from(self.measured.contains(intended));
                }
            }
        }
    }

    /// When there is something to do, if nothing comes before.
    fn poll_timeout(&self, now: Time) -> Time {
        let sent = self.clients.iter().filter_map(|client| client.sent.front());
        let given_up = sent.map(|(at, _)| *at + self.plan.timeout).min();
        let next = Some(self.schedule.next()).filter(|next| *next < self.measured.to);
        let end = Some(self.measured.to).filter(|end| now < *end);
        [given_up, next, end].into_iter().flatten().min().unwrap_or(now + WAIT_MAX)
    }

    fn is_finished(&self, now: Time) -> bool {
        now >= self.measured.to && self.clients.iter().all(|client| client.open == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use r2p2::{ReplyTo, ServerConfig, ServerEndpoint};

    use super::*;

    /// What a server does with each request, in turn.
    #[derive(Clone, Copy)]
    enum Deed {
        Answer,
        Refuse,
        Ignore,
    }

    #[test]
    fn every_request_is_answered_or_refused_or_lost() {
        const DEEDS: [Deed; 4] = [Deed::Answer, Deed::Answer, Deed::Refuse, Deed::Ignore];
        let server_at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let plan = PlainPlan {
            per_second: 1000.0,
            clients: 3,
            policy: Policy::Replicated,
            requests: Requests::same(Bytes::from_static(b"request"), false),
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(4),
            timeout: Duration::from_millis(100),
            seed: 1,
        };
        let mut engine = Engine::new(plan, server_at, Time::ZERO);
        let mut server = ServerEndpoint::new(ServerConfig::default(), 1);
        let (mut now, mut count) = (Time::ZERO, 0);
        while !engine.is_finished(now) {
            let mut outbox = Outbox::new();
            while let Some(client) = engine.send_next(now, &mut outbox) {
                let client_at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 100 + client as u16);
                for answer in serve(&mut server, now, client_at, &mut outbox, DEEDS[count % 4]) {
                    engine.handle_datagram(client, now, server_at, &answer, &mut Outbox::new());
                }
                count += 1;
            }
            engine.give_up(now);
            now = now.max(engine.poll_timeout(now)) + Duration::from_micros(1);
        }
        let PlainRecord { answered, offered, refused, lost } = engine.record;
        assert!((3800..4200).contains(&offered), "{offered}");
        assert!(answered.completed.abs_diff(offered / 2) <= 2);
        assert!(refused.abs_diff(offered / 4) <= 2 && lost.abs_diff(offered / 4) <= 2);
        assert_eq!(answered.completed + refused + lost, offered);
    }

    fn serve(
        server: &mut ServerEndpoint,
        now: Time,
        from: SocketAddrV4,
        outbox: &mut Outbox,
        deed: Deed,
    ) -> Vec<Vec<u8>> {
        let mut asked = Vec::new();
        outbox.drain(|batch| asked.extend(batch.datagrams().map(<[u8]>::to_vec)));
        let mut out = Outbox::new();
        for datagram in asked {
            let incoming = server.handle_datagram(now, from, &datagram, &mut out);
            let incoming = incoming.expect("a request").expect("a whole one");
            let (to, options): (ReplyTo, _) = (incoming.reply_to, incoming.reply_options());
            match deed {
                Deed::Answer => {
                    let sent = server.respond(now, to, &options, &b"reply"[..], &mut out);
                    sent.expect("it is small");
                }
                Deed::Refuse => server.drop_request(to, &Options::NONE, &mut out),
                Deed::Ignore => {}
            }
        }
        let mut said = Vec::new();
        out.drain(|batch| said.extend(batch.datagrams().map(<[u8]>::to_vec)));
        said
    }
}
