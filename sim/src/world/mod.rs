//! The world: the real shells of nodes and clients, with their roles, channels, timers and restarts,
//! on simulated hosts, links and disks (madsim).
//!
//! What is real here is everything in `hovercraft` and `r2p2` but for sockets, threads and files: a
//! node's roles are tasks (`hovercraft/src/node/roles`), its link is a [`link::SimLink`] on the
//! [`fabric::Fabric`], its store is the product's own on a [`disk::Disk`]. One schedule gives one
//! run, here, in a sweep and in another process, and the digest of all that was delivered says so.
//!
//! The [`Stepper`](crate::Stepper) looks at the protocol after every step, and is an order of
//! magnitude faster; the world is for what it leaves out.

mod atlas;
mod checks;
mod clients;
mod disk;
mod fabric;
mod injection;
mod link;
mod plan;
mod replicas;
mod service;
mod switches;
mod watcher;

use std::{
    net::Ipv4Addr,
    pin::pin,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use hovercraft::{admin, storage::Durability};
use madsim::{
    Config,
    runtime::{Handle, NodeHandle, Runtime},
    task::JoinHandle,
    time::{TimeHandle, sleep, timeout},
};

use self::{
    clients::{Caller, Destination, Records},
    fabric::Fabric,
    link::{Pace, SimLink},
    plan::{Ending, Plan},
    replicas::{GROUP, Replica},
    service::Witness,
    switches::SwitchHost,
    watcher::Watcher,
};
use crate::{
    bugs::{self, Bug},
    coverage::Coverage,
    faults::Leaves,
    invariants::Violation,
    observed::Answered,
    runner::Run,
    schedule::Schedule,
    sweep::QUIET_THREAD,
    trace::Place,
    workload::Workload,
};

/// Whoever looks at the replicas from outside.
const OBSERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

/// Who makes the last calls of a run.
const PROBER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// How long it takes at most until a cluster is initialised, whatever the links lose.
const INIT_TIMEOUT: Duration = Duration::from_mins(1);

/// How often the world looks after its replicas.
const STEP: Duration = Duration::from_millis(1);

/// The simulated time that no run reaches.
const TIME_LIMIT: Duration = Duration::from_hours(3);

/// How many commands and queries the prober makes each time.
const PROBES: u32 = 8;

/// What a run leaves, however it ends.
#[derive(Debug, Default)]
struct Remains {
    digest: u64,
    coverage: Coverage,
}

/// Runs a schedule in the world, in a thread of its own: what depends on a thread's hash keys is then
/// the same in every run.
pub(crate) fn run(
    schedule: &Schedule,
    workload: &Arc<dyn Workload>,
    bug: Option<&'static Bug>,
) -> Run {
    let story: watcher::Story = Arc::default();
    let remains: Arc<Mutex<Remains>> = Arc::default();
    let witness = Witness::default();
    let (seen, told, left) = (witness.clone(), Arc::clone(&story), Arc::clone(&remains));
    let (plan, workload, seed) = (Plan::new(schedule), Arc::clone(workload), schedule.options.seed);
    let run = move || {
        bugs::plant(bug);
        let mut runtime = Runtime::with_seed_and_config(seed, Config::default());
        runtime.add_simulator::<Fabric>();
        runtime.set_time_limit(TIME_LIMIT);
        runtime.block_on(World::run(plan, workload, seen, told, left))
    };
    let thread = thread::Builder::new().name(QUIET_THREAD.to_owned()).spawn(run);
    let result = match thread.expect("the system has threads").join() {
        Ok(result) => {
            assert!(witness.is_last(), "a process of the run has outlived it");
            result
        }
        // An assertion of the product that fails is a violation too.
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let what = text.unwrap_or_else(|| "no message".to_owned());
            Err(Violation { invariant: "no assertion fails", rule: "panic", what })
        }
    };
    let remains = std::mem::take(&mut *watcher::lock(&remains));
    let lines = std::mem::take(&mut *watcher::lock(&story));
    Run {
        violation: result.err(),
        coverage: remains.coverage,
        digest: remains.digest,
        lines,
        replicas: usize::from(schedule.options.cluster.replicas),
        clients: schedule.options.clients.len(),
    }
}

/// What was found.
fn wrong(invariant: &'static str, rule: &'static str, what: impl Into<String>) -> Violation {
    Violation { invariant, rule, what: what.into() }
}

/// Too much time has passed.
fn stuck(what: impl Into<String>) -> Violation {
    wrong("progress", "liveness", what)
}

/// Lets time pass. A plain `sleep` of madsim lasts for a millisecond at least.
async fn pass(time: Duration) {
    let mut sleep = pin!(sleep(time));
    sleep.as_mut().reset(Instant::now() + time);
    sleep.await;
}

/// A run.
struct World {
    plan: Plan,
    workload: Arc<dyn Workload>,
    replicas: Vec<Replica>,
    switch: Option<SwitchHost>,
    witness: Witness,
    records: Records,
    watcher: Watcher,
    fabric: Arc<Fabric>,
    coverage: Coverage,
    clients: Vec<JoinHandle<()>>,
    client_hosts: Vec<Ipv4Addr>,
    probes: u32,
}

impl World {
    async fn run(
        plan: Plan,
        workload: Arc<dyn Workload>,
        witness: Witness,
        story: watcher::Story,
        remains: Arc<Mutex<Remains>>,
    ) -> Result<(), Violation> {
        let fabric = Fabric::current();
        fabric.set_up(plan.seed, plan.options.network);
        let pumping = Arc::clone(&fabric);
        host("fabric").spawn(async move { pumping.pump().await });
        let count = usize::from(plan.options.cluster.replicas);
        let replica = |at| Replica::new(&plan, at, &workload, &witness);
        let replicas: Vec<_> = (0..count).map(replica).collect();
        let switch = SwitchHost::new(&plan);
        let members = replicas.iter().map(|replica| (replica.id, replica.address)).collect();
        let watcher = Watcher::new(members, story);
        let mut world = Self {
            plan,
            workload,
            replicas,
            switch,
            witness,
            records: Records::default(),
            watcher,
            fabric,
            coverage: Coverage::default(),
            clients: Vec::new(),
            client_hosts: Vec::new(),
            probes: 0,
        };
        let result = world.live().await;
        *watcher::lock(&remains) = world.remains();
        // A task that is left when its runtime goes is never freed.
        let hosts = Fabric::current().hosts();
        let others = hosts.into_iter().filter(|host| *host != madsim::plugin::node());
        others.for_each(|host| Handle::current().kill(host));
        result
    }

    async fn live(&mut self) -> Result<(), Violation> {
        self.begin().await?;
        self.go_wrong().await?;
        self.heal();
        let ended = self.end().await;
        // Beyond what is promised nothing needs to be done in the end; but nothing that is done may
        // be wrong.
        match ended {
            Err(Violation { rule: "liveness", .. }) if self.plan.beyond => {
                self.coverage.add("runs beyond the promises that did not recover", 1);
            }
            ended => ended?,
        }
        let records = self.records.all();
        let is_decided = checks::check(&records, &self.witness.seen(), self.workload.as_ref())?;
        self.coverage.add("histories that could not be decided", u64::from(!is_decided));
        Ok(())
    }

    /// Starts the replicas, makes a cluster of them, and lets the clients go.
    async fn begin(&mut self) -> Result<(), Violation> {
        self.want_all();
        self.start_switch();
        self.look()?;
        self.initialise().await?;
        self.watcher.watch();
        let destination = self.destination();
        for (number, plan) in std::mem::take(&mut self.plan.clients).into_iter().enumerate() {
            let ip = Ipv4Addr::new(10, 0, 1, number as u8 + 1);
            let (destination, records) = (destination.clone(), self.records.clone());
            let running = clients::run(number as u32, ip, destination, plan, records);
            self.clients.push(host(&format!("client {number}")).spawn(running));
            self.client_hosts.push(ip);
        }
        Ok(())
    }

    /// Makes a cluster of the replicas, some of which may die meanwhile. An operator whose `init`
    /// fails repeats it.
    async fn initialise(&mut self) -> Result<(), Violation> {
        const TRIES: usize = 5;
        let mut rng = self.plan.seed.stream("kills during init", 0);
        let mut kills = if self.survives_blackouts() { [0, 0, 1, 4][rng.usize(..4)] } else { 0 };
        let members: Vec<_> =
            self.replicas.iter().map(|replica| (replica.id, replica.address)).collect();
        let limits = self.plan.options.cluster.limits();
        let mut failed = None;
        for _ in 0..TRIES {
            let init = admin::init_on(observer_link(), &members, limits, INIT_TIMEOUT);
            let mut init = pin!(init);
            let result = loop {
                self.look()?;
                if let Ok(result) = timeout(STEP, init.as_mut()).await {
                    break result;
                }
                if kills > 0 && rng.u8(..4) == 0 {
                    kills -= 1;
                    let at = rng.usize(..self.replicas.len());
                    self.watcher.tell(Place::At(at), format!("{} dies during init", at + 1));
                    self.coverage.add("kills during init", 1);
                    self.replicas[at].kill(Leaves::Torn);
                    self.replicas[at].is_wanted = true;
                }
            };
            match result {
                Ok(_) => return Ok(()),
                Err(error) => failed = Some(error),
            }
        }
        let failed = failed.map_or_else(String::new, |error| error.to_string());
        Err(stuck(format!("the cluster was not initialised: {failed}")))
    }

    fn destination(&self) -> Destination {
        Destination {
            members: self.replicas.iter().map(|replica| replica.address).collect(),
            group: self.plan.multicasts.then_some(GROUP),
            switch: self.plan.options.cluster.by_switch.then_some(switches::ADDRESS),
            mode: self.plan.mode(),
        }
    }

    fn start_switch(&mut self) {
        self.switch.iter_mut().for_each(SwitchHost::start);
    }

    /// From here on nothing goes wrong.
    fn heal(&mut self) {
        self.watcher.tell(Place::World, "nothing goes wrong any more".to_owned());
        self.fabric.calm();
        self.replicas.iter_mut().for_each(Replica::heal);
        self.start_switch();
    }

    fn want_all(&mut self) {
        self.replicas.iter_mut().for_each(|replica| replica.is_wanted = true);
    }

    /// Everything that clients do ends; then they find what they wrote, also after every replica
    /// was started again.
    async fn end(&mut self) -> Result<(), Violation> {
        let asked = self.plan.asked.saturating_sub(self.plan.chaos());
        let patience = asked + self.plan.patience();
        for (number, client) in std::mem::take(&mut self.clients).into_iter().enumerate() {
            let what = format!("client {number} still waits");
            let ended = self.attend(&what, patience, client).await?;
            ended.map_err(|_| stuck(format!("client {number} is gone")))?;
        }
        self.agree("no progress when all was well again").await?;
        self.start_again().await?;
        self.agree("no progress when all were started again").await
    }

    /// The cluster makes progress, and then all replicas have the same state.
    async fn agree(&mut self, otherwise: &str) -> Result<(), Violation> {
        // What the first probe writes a replica may get in a snapshot; the second is executed by all.
        for _ in 0..2 {
            self.probes += 1;
            let probing = self.probe(self.probes);
            self.attend(otherwise, self.plan.patience(), probing).await?;
            self.level().await?;
        }
        let seen = self.witness.seen();
        let newest = seen.commands.values().max();
        let is_equal = seen.last.values().all(|last| Some(last) == newest);
        if !is_equal || seen.last.len() != self.replicas.len() {
            let what = format!("the last commands differ: {:?}, newest {newest:?}", seen.last);
            return Err(wrong("equal states at the end", "P5", what));
        }
        Ok(())
    }

    /// Looks after the replicas until something has happened; an error if it takes too long.
    async fn attend<T>(
        &mut self,
        otherwise: &str,
        patience: Duration,
        what: impl Future<Output = T>,
    ) -> Result<T, Violation> {
        let mut what = pin!(what);
        let deadline = TimeHandle::current().elapsed() + patience;
        while TimeHandle::current().elapsed() < deadline {
            self.look()?;
            if let Ok(result) = timeout(STEP, what.as_mut()).await {
                return Ok(result);
            }
        }
        let statuses = self.watcher.ask_all().await;
        Err(stuck(format!("{otherwise} after {patience:?}: {statuses:?}")))
    }

    /// Asks for some things until each is answered; the last one is a write.
    fn probe(&self, probe: u32) -> impl Future<Output = ()> + use<> {
        let (destination, records) = (self.destination(), self.records.clone());
        let mut rng = self.plan.seed.stream("probe", u64::from(probe));
        let mut commands: Vec<_> =
            (0..PROBES).map(|_| self.workload.command(&mut rng, 800)).collect();
        // Of a workload that has no writes nothing is expected.
        let mut writes = (0..1000).map(|_| self.workload.command(&mut rng, 0));
        commands.extend(writes.find(|command| !command.is_read));
        let probing = async move {
            let timeout = Duration::from_secs(1);
            let client = u32::MAX - probe;
            let caller = Caller::connect(client, PROBER, &destination, timeout, records).await;
            let mut number = 0;
            for command in commands {
                loop {
                    number += 1;
                    let outcome = caller.call(number, &command, Ending::Answer).await;
                    if let Answered::With(_) = outcome {
                        break;
                    }
                }
            }
        };
        // A host of its own, because the client's task outlives it.
        let probing = host("prober").spawn(probing);
        async move { drop(probing.await) }
    }

    /// Waits until all replicas have applied the same.
    async fn level(&mut self) -> Result<(), Violation> {
        let patience = self.plan.patience();
        let deadline = TimeHandle::current().elapsed() + patience;
        loop {
            self.look()?;
            let statuses = self.watcher.ask_all().await;
            let applied = |status: &hovercraft::core::Status| {
                (status.applied == status.last).then_some(status.applied)
            };
            let level: Option<Vec<_>> =
                statuses.iter().map(|status| status.as_ref().and_then(applied)).collect();
            let level = level.filter(|level| level.iter().all(|index| *index == level[0]));
            if level.is_some() {
                return Ok(());
            }
            if TimeHandle::current().elapsed() > deadline {
                let what = format!("the replicas are not level after {patience:?}: {statuses:?}");
                return Err(stuck(what));
            }
        }
    }

    /// Ends every process and starts it again: what is there then was on the disks.
    async fn start_again(&mut self) -> Result<(), Violation> {
        self.watcher.tell(Place::World, "every replica is started again".to_owned());
        let kills = self.plan.options.cluster.durability == Durability::Sync;
        for replica in &mut self.replicas {
            if kills {
                replica.kill(Leaves::Nothing);
                self.watcher.bury(replica.id, &mut self.coverage);
            } else {
                replica.stop();
            }
        }
        while self.replicas.iter().any(|replica| replica.is_up) {
            sleep(STEP).await;
            self.look()?;
        }
        self.want_all();
        Ok(())
    }

    fn remains(mut self) -> Remains {
        let counters = self.fabric.counters();
        for (what, count) in [
            ("deliveries", counters.delivered),
            ("packets lost", counters.lost),
            ("packets doubled", counters.doubled),
            ("packets late", counters.late),
            ("packets damaged", counters.damaged),
            ("packets too large", counters.too_large),
            ("packets cut off", counters.cut_off),
            ("packets multicast", counters.multicast),
            ("packets of a switch heard again", counters.echoed),
            ("packets that overran a buffer", counters.overrun),
            ("packets to nobody", counters.unreachable),
        ] {
            self.coverage.add(what, count);
        }
        for record in &self.records.all() {
            let what = match (&record.seen.answered, record.seen.command.is_read) {
                (Answered::With(_), false) => "commands done",
                (Answered::With(_), true) => "queries done",
                (Answered::NotExecuted, _) => "calls known not to be done",
                (Answered::Unknown, _) => "calls of unknown outcome",
            };
            self.coverage.add(what, 1);
        }
        let answers = self.coverage.count("commands done") + self.coverage.count("queries done");
        self.coverage.add("answers", answers);
        let executed = self.witness.seen().executions.len() as u64;
        self.coverage.add("entries committed", executed);
        self.watcher.cover(&mut self.coverage);
        Remains { digest: self.fabric.digest(), coverage: self.coverage }
    }
}

/// A host for something that is not a replica.
fn host(name: &str) -> NodeHandle {
    Handle::current().create_node().name(name).build()
}

/// A link for whoever looks from outside: no fault cuts it off.
fn observer_link() -> SimLink {
    SimLink::bind(std::net::SocketAddrV4::new(OBSERVER, 0), None, Pace::instant())
}
