//! The switch of a run: a real one on a simulated host, which has no disk and forgets (P24, P27).

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use hovercraft::switch::{AdmissionConfig, RunningSwitch, SwitchConfig};
use madsim::runtime::Handle;

use super::{
    link::{Pace, SimLink},
    plan::Plan,
    replicas,
};

/// Where it is.
pub(super) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 3, 1), 7100);

/// After so long a request that was admitted does not count any more. It is short, because a link
/// that would tell of answers may be dead for good (P24): then this alone makes room.
const AGE_MAX: Duration = Duration::from_millis(50);

/// A switch, whether it runs or not.
pub(super) struct SwitchHost {
    host: madsim::task::NodeId,
    config: SwitchConfig,
    pace: Pace,
    is_up: bool,
    /// It never comes back.
    is_gone: bool,
}

impl SwitchHost {
    /// The switch of a run, if it has one. That some runs have two by a mistake is the stepper's: a
    /// node has one.
    pub(super) fn new(plan: &Plan) -> Option<Self> {
        let cluster = &plan.options.cluster;
        if cluster.aggregators == 0 {
            return None;
        }
        let members = (0..usize::from(cluster.replicas)).map(replicas::address).collect();
        let admission =
            AdmissionConfig { limit: cluster.admission_limit, age_max: AGE_MAX, slo: None };
        let config = SwitchConfig {
            members,
            admission: Some(admission),
            aggregates: true,
            ..SwitchConfig::default()
        };
        let host = Handle::current().create_node().name("switch").build().id();
        let pace = Pace::new(plan.options.pace.turn_max_us, plan.seed.stream("switch", 0));
        Some(Self { host, config, pace, is_up: false, is_gone: false })
    }

    /// Starts it, if it does not run and is not gone for good.
    pub(super) fn start(&mut self) {
        if self.is_up || self.is_gone {
            return;
        }
        self.is_up = true;
        // Each process has another stream.
        self.pace.rng = self.pace.rng.fork();
        let (config, pace) = (self.config.clone(), self.pace.clone());
        let host = Handle::current().get_node(self.host).expect("it was created");
        host.spawn(async move {
            let link = SimLink::bind(ADDRESS, None, pace);
            let switch = RunningSwitch::start_on(link, config, Duration::ZERO);
            let switch = switch.expect("a switch starts with these settings");
            switch.join().await.expect("a switch does not end by itself");
        });
    }

    /// The process dies, wherever it is, and is forgotten.
    pub(super) fn kill(&mut self, for_good: bool) {
        self.is_gone |= for_good;
        if self.is_up {
            let handle = Handle::current();
            handle.kill(self.host);
            // A host without a process, on which the next one can be started.
            handle.restart(self.host);
            self.is_up = false;
        }
    }
}
