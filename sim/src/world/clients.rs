//! The clients of a run: the real client on the fabric, and what it was told.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hovercraft::{CallError, CallOutcome, Client, ConnectError, Mode};
use madsim::{
    task::spawn,
    time::{TimeHandle, timeout},
};
use r2p2::Time;
use tokio::sync::Semaphore;

use super::{
    link::{Pace, SimLink},
    pass,
    plan::{ClientPlan, Ending},
    service::OperationId,
};
use crate::{
    observed::{Answered, Observed},
    workload::Command,
};

/// A call, and what its caller knows of it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) id: OperationId,
    pub(super) seen: Observed,
}

/// What all callers know.
#[derive(Debug, Clone, Default)]
pub(super) struct Records(Arc<Mutex<Vec<Record>>>);

impl Records {
    fn add(&self, record: Record) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    pub(super) fn all(&self) -> Vec<Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where the replicas are.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub(super) members: Vec<SocketAddrV4>,
    pub(super) group: Option<SocketAddrV4>,
    pub(super) switch: Option<SocketAddrV4>,
    pub(super) mode: Mode,
}

/// A client, which notes every call of its.
#[derive(Clone)]
pub(super) struct Caller {
    client: Client,
    number: u32,
    records: Records,
}

impl Caller {
    /// Connects, however long it takes, from the host that this runs on.
    pub(super) async fn connect(
        number: u32,
        host: Ipv4Addr,
        destination: &Destination,
        timeout: Duration,
        records: Records,
    ) -> Self {
        loop {
            let link = SimLink::bind(SocketAddrV4::new(host, 0), None, Pace::instant());
            let mut builder = Client::builder().mode(destination.mode).timeout(timeout);
            builder = match (destination.switch, destination.group) {
                (Some(switch), _) => builder.switch(switch).members(destination.members.clone()),
                (None, Some(group)) => builder.multicast(group, host),
                (None, None) => builder.members(destination.members.clone()),
            };
            match builder.connect_on(link).await {
                Ok(client) => return Self { client, number, records },
                Err(ConnectError::TimedOut(_)) => {}
                Err(error) => panic!("a client of the simulation cannot connect: {error}"),
            }
        }
    }

    /// Makes a call, and notes it.
    pub(super) async fn call(&self, number: u32, command: &Command, ending: Ending) -> Answered {
        let now = || Time::ZERO + TimeHandle::current().elapsed();
        let id = OperationId { client: self.number, number };
        let (is_query, body) = (command.is_read, id.mark(&command.body));
        let began = now();
        let result = match ending {
            Ending::Dropped(after) => {
                timeout(after, self.submit(is_query, body)).await.unwrap_or(Err(None))
            }
            Ending::Known => self.client.call_until_known(body).await.map_err(Some),
            Ending::Answer => self.submit(is_query, body).await,
        };
        let answered = match result {
            Ok(reply) => Answered::With(reply),
            Err(Some(error)) if error.outcome() == CallOutcome::NotExecuted => {
                Answered::NotExecuted
            }
            Err(_) => Answered::Unknown,
        };
        let seen = Observed {
            client: self.number as usize,
            plain: false,
            command: command.clone(),
            began,
            ended: (answered != Answered::Unknown).then(now),
            answered: answered.clone(),
        };
        self.records.add(Record { id, seen });
        answered
    }

    async fn submit(&self, is_query: bool, body: Bytes) -> Result<Bytes, Option<CallError>> {
        if is_query {
            self.client.query(body).await.map_err(Some)
        } else {
            self.client.call(body).await.map_err(Some)
        }
    }
}

/// Does what a client of the plan does, and returns when all of that has ended.
pub(super) async fn run(
    number: u32,
    host: Ipv4Addr,
    destination: Destination,
    plan: ClientPlan,
    records: Records,
) {
    let time = TimeHandle::current();
    let begun = time.elapsed();
    let ClientPlan { window, timeout, calls } = plan;
    let caller = Caller::connect(number, host, &destination, timeout, records).await;
    let places = Arc::new(Semaphore::new(window));
    let mut calling = Vec::new();
    for (position, (planned, ending)) in calls.into_iter().enumerate() {
        let due = begun + Duration::from_micros(planned.at_us);
        let early = due.saturating_sub(time.elapsed());
        if !early.is_zero() {
            pass(early).await;
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let caller = caller.clone();
        calling.push(spawn(async move {
            let command = Command { is_read: planned.read, body: planned.whole_body() };
            caller.call(position as u32, &command, ending).await;
            drop(place);
        }));
    }
    for call in calling {
        // Nobody cancels it, and a panic ends the run.
        let _ = call.await;
    }
}
