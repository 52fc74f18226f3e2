//! What a run is like: everything is drawn from the schedule before it begins.

use std::{sync::Arc, time::Duration};

use hovercraft::{Execution, Mode, core, core::Settings};
use r2p2::Time;

use crate::{
    network::up_to,
    options::Options,
    schedule::{Schedule, Timed},
    seed::Seed,
    workload::Planned,
};

/// A run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) seed: Seed,
    pub(super) options: Options,
    pub(super) beyond: bool,
    /// Clients multicast, instead of sending to each replica.
    pub(super) multicasts: bool,
    pub(super) clients: Vec<ClientPlan>,
    /// In order of time.
    pub(super) faults: Arc<[Timed]>,
    /// When the last operation comes up.
    pub(super) asked: Duration,
}

/// What a client does.
#[derive(Debug)]
pub(super) struct ClientPlan {
    /// How many calls it has outstanding at most.
    pub(super) window: usize,
    pub(super) timeout: Duration,
    /// In order of time.
    pub(super) calls: Vec<(Planned, Ending)>,
}

/// How long a caller waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    /// Until there is an answer, or the client's timeout.
    Answer,
    /// Until the outcome is known.
    Known,
    /// So long at most: then it drops the call.
    Dropped(Duration),
}

impl Plan {
    /// The run of a schedule.
    pub(super) fn new(schedule: &Schedule) -> Self {
        let options = schedule.options.clone();
        let seed = Seed(options.seed);
        let is_raft = options.cluster.mode == core::Mode::Raft;
        let clients = 0..options.clients.len();
        Self {
            seed,
            beyond: schedule.beyond,
            multicasts: !is_raft && seed.stream("multicast", 0).bool(),
            clients: clients.map(|number| ClientPlan::new(seed, number, schedule)).collect(),
            faults: schedule.faults.clone().into(),
            asked: schedule.last_planned().since(Time::ZERO),
            options,
        }
    }

    /// The settings of a replica, by its position, as a node takes them: it refuses logs that are
    /// smaller than a large request.
    pub(super) fn settings(&self, at: usize) -> Settings {
        let settings = self.options.cluster.settings(at);
        Settings { log_bytes_max: settings.log_bytes_max.max(1 << 16), ..settings }
    }

    pub(super) fn mode(&self) -> Mode {
        match self.options.cluster.mode {
            core::Mode::Raft => Mode::Raft,
            core::Mode::HovercRaft => Mode::HovercRaft,
            core::Mode::HovercRaftPlusPlus => Mode::HovercRaftPlusPlus,
        }
    }

    pub(super) fn execution(&self) -> Execution {
        match self.options.pace.apply_max_us {
            Some(_) => Execution::Thread,
            None => Execution::Inline,
        }
    }

    pub(super) fn chaos(&self) -> Duration {
        Duration::from_micros(self.options.chaos_us)
    }

    /// Everything is done this long after nothing goes wrong any more, or something is stuck.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_micros(self.options.patience_us)
    }
}

impl ClientPlan {
    fn new(seed: Seed, number: usize, schedule: &Schedule) -> Self {
        let options = &schedule.options.clients[number];
        let mut rng = seed.stream("endings", number as u64);
        let millis = Duration::from_millis;
        let timeouts = [millis(60), millis(400), millis(2000)];
        let timeout = timeouts[rng.usize(..timeouts.len())];
        let own = schedule.operations.iter().filter(|planned| planned.client == number);
        let calls = own.cloned().map(|planned| {
            let ending = match rng.u8(..8) {
                0 => Ending::Dropped(up_to(&mut rng, millis(5))),
                1 if !planned.read && options.cancels_after.is_some() => Ending::Known,
                _ => Ending::Answer,
            };
            (planned, ending)
        });
        Self { window: options.window as usize, timeout, calls: calls.collect() }
    }
}
