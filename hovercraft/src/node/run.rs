//! The life of a node, from what it has loaded to its end: the network role.

use std::{io, sync::Arc, time::Duration};

use r2p2::{
    CheckSeed, MessageConfig, MessageReceiver, MessageSender, Outbox, ServerConfig, ServerEndpoint,
    WaitLink,
};

use super::{
    Mode, NodeBuilder, NodeError, Stopper,
    application::Application,
    network::{Clock, Endpoints, Replica},
    persistence::{Done, Job, Persistence, Syncing},
    roles::{self, channel},
    startup::end_run,
    unborn,
    unreplicated::Unreplicated,
};
use crate::{
    admin::{ExchangeStatus, NetworkStatus},
    core::{self, Applier, Core, Settings, Start},
    entry::Entry,
    state_machine::StateMachine,
    storage::{HardState, Loaded, LogStore},
};

/// What was loaded, on its way into the network role.
pub(crate) struct Prepared<L> {
    pub(crate) service: Box<dyn StateMachine>,
    pub(crate) store: Box<dyn LogStore>,
    pub(crate) loaded: Loaded,
    pub(crate) state: HardState,
    /// What may be lost, if the incarnation is a new one.
    pub(crate) missing: Option<String>,
    pub(crate) link: L,
    pub(crate) endpoints: Endpoints,
    pub(crate) stopper: Stopper,
    pub(crate) seed: u64,
}

/// The network role of a server in mode `unreplicated`.
pub(crate) async fn serve(
    mut server: Unreplicated,
    mut link: impl WaitLink,
    spin: Duration,
    stopper: Stopper,
) -> Result<(), NodeError> {
    while !stopper.is_stopped() {
        server.network = network_status(&link, server.packets_damaged());
        if server.turn(&mut link)? {
            roles::breathe().await;
        } else {
            let now = server.clock.now();
            link.wait(server.deadline().map(|at| at.since(now)), spin).await?;
        }
    }
    Ok(())
}

/// The network role of a replica, which starts the others.
pub(crate) async fn replicate(
    builder: NodeBuilder,
    prepared: Prepared<impl WaitLink>,
) -> Result<(), NodeError> {
    let Prepared { service, mut store, loaded, mut state, mut link, .. } = prepared;
    let Prepared { mut endpoints, stopper, seed, missing, .. } = prepared;
    let (id, mode) = (builder.id, builder.mode);
    if state.birth.is_none() {
        let (store, link) = (store.as_mut(), &mut link);
        let named =
            unborn::wait_for_init(id, mode, state, store, link, &mut endpoints, &stopper).await?;
        let Some(named) = named else { return Ok(()) };
        state = named;
    }
    let birth = state.birth.as_ref().expect("init has named it");
    // The cluster's limits, not the builder's, which are for a server without a cluster.
    let limits = birth.configuration.limits;
    endpoints.requests = request_endpoint(limits.request_bytes_max as usize, seed);
    endpoints.requests.set_check_seed(CheckSeed::of(birth.cluster));
    let members = birth.configuration.members.iter().map(|member| member.address);
    let switches = builder.switch.into_iter().chain(builder.aggregator);
    endpoints.requests.set_switches(switches.chain(members).collect());
    let configuration = Arc::new(birth.configuration.clone());
    let mut applier = Applier::new(service, birth.cluster, birth.digest_key, configuration);
    restore(&mut applier, store.as_ref())?;
    let clock = Clock::new();
    let settings = Settings {
        mode: match mode {
            Mode::Raft => core::Mode::Raft,
            Mode::HovercRaftPlusPlus => core::Mode::HovercRaftPlusPlus,
            Mode::Unreplicated | Mode::HovercRaft => core::Mode::HovercRaft,
        },
        ..builder.settings
    };
    let entry_bytes_max = Entry::size_bytes_of_body(limits.request_bytes_max as usize) as u64;
    let room = store.room(entry_bytes_max).map_err(NodeError::Store)?;
    let now = clock.now();
    let mut core = Core::new(Start { hard_state: state, loaded, settings, seed }, now);
    core.handle_room(room);
    let application = Application::new(applier, builder.execution, link.waker())?;
    let (jobs, to_do) = channel();
    let (tell, done) = channel();
    let syncing = Syncing { durability: settings.durability, interval: builder.sync_interval };
    let waker = link.waker();
    let persistence = Persistence::new(store, syncing, tell, waker, (entry_bytes_max, room));
    let storage = roles::spawn(&format!("storage-{id}"), persistence.run(to_do))?;
    let mut replica = Replica {
        core,
        endpoints,
        application,
        jobs,
        done,
        clock,
        mode,
        aggregator: builder.aggregator,
        network: NetworkStatus::default(),
        exchange: ExchangeStatus::default(),
        reads: Vec::new(),
        parts_bytes: 0,
        buffer: Vec::new(),
        missing,
    };
    let result = drive(&mut replica, &mut link, builder.spin, &stopper).await;
    let ended = end(replica, storage, result.is_ok()).await;
    result.and(ended)
}

/// Gives the service the state of the latest snapshot, if there is one.
fn restore(applier: &mut Applier, store: &dyn LogStore) -> Result<(), NodeError> {
    let Some(open) = store.snapshots().open().map_err(NodeError::Store)? else { return Ok(()) };
    let mut data = io::BufReader::with_capacity(1 << 16, open.source);
    let index = open.meta.index;
    applier
        .restore(&open.meta, &mut data)
        .map_err(|error| NodeError::Restore { index, source: error.into() })
}

async fn drive(
    replica: &mut Replica,
    link: &mut impl WaitLink,
    spin: Duration,
    stopper: &Stopper,
) -> Result<(), NodeError> {
    while !stopper.is_stopped() {
        replica.network = network_status(link, replica.endpoints.packets_damaged);
        if replica.turn(link)? {
            roles::breathe().await;
        } else {
            let now = replica.clock.now();
            link.wait(replica.deadline().map(|at| at.since(now)), spin).await?;
        }
    }
    Ok(())
}

/// Stops the other roles, and says what failed last.
async fn end(
    replica: Replica,
    storage: roles::Role<()>,
    is_in_order: bool,
) -> Result<(), NodeError> {
    let Replica { mut core, application, jobs, mut done, .. } = replica;
    if is_in_order && core.may_stop_clean() {
        if let Some(log) = core.log_for_clean_stop() {
            let _ = jobs.send(Job::Write(log));
        }
        // Everything else is complete: the marker of a clean stop comes last (P37). A storage
        // role that has failed meanwhile leaves the stop unclean, which is what it is.
        let _ = jobs.send(Job::Stop(end_run(core.hard_state())));
    }
    drop(jobs);
    application.stop().await;
    storage.join().await.map_err(|roles::Panicked| NodeError::Panicked)?;
    // What failed at the very end was told to nobody else.
    while let Some(done) = done.try_next() {
        if let Done::Failed(error) = done {
            return Err(NodeError::Store(error));
        }
    }
    Ok(())
}

pub(crate) fn endpoints(request_bytes_max: usize, seed: u64) -> Endpoints {
    Endpoints {
        requests: request_endpoint(request_bytes_max, seed),
        receiver: MessageReceiver::new(MessageConfig::default(), seed),
        sender: MessageSender::new(seed),
        outbox: Outbox::new(),
        switch: None,
        packets_damaged: 0,
    }
}

fn request_endpoint(request_bytes_max: usize, seed: u64) -> ServerEndpoint {
    let config = ServerConfig { request_bytes_max, ..ServerConfig::default() };
    ServerEndpoint::new(config, seed)
}

pub(crate) fn network_status(link: &impl WaitLink, packets_damaged: u64) -> NetworkStatus {
    let statistics = link.statistics();
    NetworkStatus {
        datagrams_in: statistics.datagrams_in,
        bytes_in: statistics.bytes_in,
        calls_in: statistics.calls_in,
        datagrams_out: statistics.datagrams_out,
        bytes_out: statistics.bytes_out,
        calls_out: statistics.calls_out,
        calls_wait: statistics.calls_wait,
        datagrams_lost: statistics.lost_full + statistics.lost_refused,
        packets_damaged,
    }
}
