//! The replicas of a run: real nodes on simulated hosts, with disks that outlive them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hovercraft::{Node, NodeError, NodeId, Stopper, node::NodeBuilder};
use madsim::{runtime::Handle, time::TimeHandle};

use super::{
    disk::Disk,
    link::{Pace, SimLink},
    plan::Plan,
    service::{Spoiling, Watched, Witness},
    switches,
};
use crate::{faults::Leaves, workload::Workload};

const PORT: u16 = 7000;

/// The address of a replica, by its position.
pub(super) fn address(at: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, at as u8 + 1), PORT)
}

/// The group that all replicas are members of.
pub(super) const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), PORT);

/// A replica, whether it runs or not.
pub(super) struct Replica {
    pub(super) id: NodeId,
    pub(super) address: SocketAddrV4,
    pub(super) disk: Disk,
    pub(super) is_up: bool,
    /// It is to run: [`Self::attend`] sees to that.
    pub(super) is_wanted: bool,
    /// It may have lost what it acknowledged, and not be back in the configuration.
    pub(super) lost: bool,
    host: madsim::task::NodeId,
    builder: NodeBuilder,
    group: Option<SocketAddrV4>,
    pace: Pace,
    witness: Witness,
    workload: Arc<dyn Workload>,
    spoiling: Spoiling,
    unreadable: Spoiling,
    ballast: usize,
    /// It stands still until then.
    paused_until: Duration,
    process: Arc<Mutex<Process>>,
}

/// What is known of the present process.
#[derive(Default)]
struct Process {
    stopper: Option<Stopper>,
    ended: Option<Result<(), NodeError>>,
}

impl Replica {
    pub(super) fn new(
        plan: &Plan,
        at: usize,
        workload: &Arc<dyn Workload>,
        witness: &Witness,
    ) -> Self {
        let (id, address) = (NodeId(at as u16 + 1), address(at));
        let (settings, options) = (plan.settings(at), &plan.options);
        let builder = Node::builder(id, address)
            .mode(plan.mode())
            .durability(settings.durability)
            .sync_interval(Duration::from_micros(options.disk.interval_us))
            .policy(settings.policy, settings.queue_bound)
            .timing(settings.timing)
            .admission_limit(settings.admission_limit)
            .log_bytes_max(settings.log_bytes_max)
            .execution(plan.execution())
            .limits(options.cluster.limits());
        let cluster = &options.cluster;
        let builder =
            if cluster.aggregators > 0 { builder.aggregator(switches::ADDRESS) } else { builder };
        let builder = if cluster.by_switch { builder.switch(switches::ADDRESS) } else { builder };
        let host = Handle::current().create_node().name(format!("replica {id}")).build();
        let stream = |source| plan.seed.stream(source, at as u64);
        Self {
            id,
            address,
            disk: Disk::new(options.disk, settings.durability, stream("disk")),
            is_up: false,
            is_wanted: false,
            lost: false,
            host: host.id(),
            builder,
            group: plan.multicasts.then_some(GROUP),
            pace: Pace::new(options.pace.turn_max_us, stream("pace")),
            witness: witness.clone(),
            workload: Arc::clone(workload),
            spoiling: Spoiling::new(options.disk.spoiled_per_mille, stream("spoiling")),
            unreadable: Spoiling::new(options.disk.unreadable_per_mille, stream("unreadable")),
            ballast: options.pace.ballast_bytes,
            paused_until: Duration::ZERO,
            process: Arc::default(),
        }
    }

    /// Starts a process, if there is none and there is to be one; returns whether it did.
    pub(super) fn attend(&mut self) -> bool {
        let starts = self.is_wanted && !self.is_up && self.disk.is_usable();
        if starts {
            self.start();
        }
        starts
    }

    fn start(&mut self) {
        (self.is_up, self.process) = (true, Arc::default());
        // Each process has another stream.
        self.pace.rng = self.pace.rng.fork();
        let (builder, pace, process) =
            (self.builder.clone(), self.pace.clone(), Arc::clone(&self.process));
        let (address, group, disk) = (self.address, self.group, self.disk.clone());
        let (witness, spoiling) = (self.witness.clone(), self.spoiling.clone());
        let (service, unreadable) = (self.workload.service(), self.unreadable.clone());
        let service = Watched::new(service, self.id, witness, self.ballast, spoiling, unreadable);
        let host = Handle::current().get_node(self.host).expect("it was created");
        host.spawn(async move {
            let link = SimLink::bind(address, group, pace);
            let started = disk.open().map_err(NodeError::Store);
            let started = started.and_then(|store| builder.start_on(link, service, Some(store)));
            let ended = match started {
                Ok(node) => {
                    lock(&process).stopper = Some(node.stopper());
                    node.join().await
                }
                Err(error) => Err(error),
            };
            lock(&process).ended = Some(ended);
        });
    }

    /// The process dies, wherever it is.
    pub(super) fn kill(&mut self, leaves: Leaves) {
        self.is_wanted = false;
        self.end(leaves);
    }

    fn end(&mut self, leaves: Leaves) {
        if !self.is_up {
            return;
        }
        let handle = Handle::current();
        handle.kill(self.host);
        // A host without a process, on which the next one can be started.
        handle.restart(self.host);
        handle.resume(self.host);
        self.paused_until = Duration::ZERO;
        self.disk.crash(leaves);
        self.is_up = false;
    }

    /// Asks the process to stop in good order; [`Self::ended`] tells when it has.
    pub(super) fn stop(&mut self) {
        self.is_wanted = false;
        if let Some(stopper) = &lock(&self.process).stopper {
            stopper.stop();
        }
    }

    /// How the process ended, if it has, by itself or because it was told to. The error of a disk
    /// that fails is what it should end by (P38).
    pub(super) fn ended(&mut self) -> Option<Result<(), NodeError>> {
        let mut ended = lock(&self.process).ended.take();
        if self.disk.may_fail() && matches!(ended, Some(Err(NodeError::Store(_)))) {
            ended = Some(Ok(()));
        }
        if ended.is_some() {
            // Nothing of it is left, and what it did not sync may be lost as with any other end.
            self.end(Leaves::Torn);
        }
        ended
    }

    /// Stands still for a while.
    pub(super) fn pause(&mut self, time: Duration) {
        if self.is_up {
            self.paused_until = self.paused_until.max(TimeHandle::current().elapsed() + time);
            Handle::current().pause(self.host);
        }
    }

    /// Goes on, if it is time.
    pub(super) fn resume(&self) {
        if TimeHandle::current().elapsed() >= self.paused_until {
            Handle::current().resume(self.host);
        }
    }

    /// Every turn takes up to so much longer than usual.
    pub(super) fn set_slow(&self, extra_us: u64) {
        self.pace.set_extra_us(extra_us);
    }

    /// Nothing goes wrong with it any more.
    pub(super) fn heal(&mut self) {
        self.paused_until = Duration::ZERO;
        self.resume();
        self.set_slow(0);
        self.disk.repair();
        self.spoiling.end();
        self.unreadable.end();
        self.is_wanted = true;
    }
}

fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    // The one thread that there is panicked: whatever it was, the run has failed.
    process.lock().unwrap_or_else(PoisonError::into_inner)
}
