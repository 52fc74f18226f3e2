//! What a run is like: cluster, clients, network, disks and faults, all from one seed.

use std::time::Duration;

use hovercraft::{
    ClusterLimits,
    core::{Mode, Policy, Settings, Timing},
    storage::Durability,
};

use crate::{
    client::ClientOptions, disk::DiskOptions, faults::FaultOptions, network::NetworkOptions,
    replica::Pace, seed::Seed,
};

/// Everything that a run derives from.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of all chance.
    pub seed: Seed,
    /// One for each replica.
    pub replicas: Vec<Settings>,
    /// What apply decides by.
    pub limits: ClusterLimits,
    /// The links.
    pub network: NetworkOptions,
    /// Messages between replicas go through their form on the wire.
    pub encodes: bool,
    /// The disks.
    pub disk: DiskOptions,
    /// The replicas' speed.
    pub pace: Pace,
    /// Clocks go wrong by up to so many millionths.
    pub drift_ppm_max: u64,
    /// One for each client.
    pub clients: Vec<ClientOptions>,
    /// What goes wrong.
    pub faults: FaultOptions,
    /// How long things go wrong.
    pub chaos: Duration,
    /// Everything is done this long after nothing goes wrong any more, or something is stuck.
    pub patience: Duration,
}

impl Options {
    /// A run without faults on a quick network: for stories.
    pub fn calm(seed: u64, replicas: usize) -> Self {
        let micros = Duration::from_micros;
        Self {
            seed: Seed(seed),
            replicas: vec![Settings::default(); replicas],
            limits: ClusterLimits::default(),
            network: NetworkOptions {
                delay_min: micros(50),
                delay_spread: Duration::ZERO,
                late_per_mille: 0,
                late_max: Duration::ZERO,
                loss_per_mille: 0,
                doubled_per_mille: 0,
                damaged_per_mille: 0,
            },
            encodes: true,
            disk: DiskOptions {
                sync_min: micros(100),
                sync_spread: Duration::ZERO,
                interval: Duration::from_millis(100),
                spoiled_per_mille: 0,
            },
            pace: Pace { turn_max: Duration::ZERO, apply_max: None, ballast: 0 },
            drift_ppm_max: 0,
            clients: Vec::new(),
            faults: FaultOptions::NONE,
            chaos: Duration::ZERO,
            patience: Duration::from_secs(8),
        }
    }

    /// The run of a seed. Each seed turns on some of what there is, so that what would hide
    /// something else is absent in other seeds.
    pub fn from_seed(seed: u64) -> Self {
        let seed = Seed(seed);
        let mut rng = seed.stream("options", 0);
        let count = pick(&mut rng, &[1, 3, 3, 3, 3, 3, 5, 5]);
        let settings = settings(&mut rng);
        let mut log_rng = seed.stream("log bytes", 0);
        let small_logs = log_rng.u8(..3) > 0;
        let replicas = (0..count).map(|_| {
            let bytes = if small_logs { 1 << log_rng.u32(11..17) } else { 64 << 20 };
            Settings { log_bytes_max: bytes, ..settings }
        });
        let is_quick = settings.timing == Timing::DATACENTER;
        let chaos = Duration::from_millis(if is_quick { 300 } else { rng.u64(500..3000) });
        Self {
            seed,
            replicas: replicas.collect(),
            limits: limits(&mut seed.stream("limits", 0)),
            network: network(&mut seed.stream("network", 0), is_quick),
            encodes: rng.u8(..4) == 0,
            disk: disk(&mut seed.stream("disk", 0), is_quick),
            pace: pace(&mut seed.stream("pace", 0)),
            drift_ppm_max: pick(&mut rng, &[0, 100, 50_000]),
            clients: clients(&mut seed.stream("clients", 0), chaos),
            faults: FaultOptions::from_rng(&mut seed.stream("faults", 0), is_quick),
            chaos,
            patience: Duration::from_secs(8),
        }
    }
}

fn pick<T: Copy>(rng: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

fn settings(rng: &mut fastrand::Rng) -> Settings {
    use Durability::{Interval, Memory, Sync};
    Settings {
        mode: pick(rng, &[Mode::HovercRaft, Mode::HovercRaft, Mode::HovercRaft, Mode::Raft]),
        policy: pick(rng, &[Policy::Jbsq, Policy::Jbsq, Policy::Random, Policy::Leader]),
        queue_bound: pick(rng, &[1, 2, 4, 32, 128]),
        timing: pick(rng, &[Timing::LAN, Timing::LAN, Timing::LAN, Timing::DATACENTER]),
        durability: pick(rng, &[Sync, Sync, Sync, Memory, Memory, Interval]),
        admission_limit: pick(rng, &[2, 8, 64, 16_384]),
        log_bytes_max: 64 << 20,
    }
}

fn limits(rng: &mut fastrand::Rng) -> ClusterLimits {
    let usual = ClusterLimits::default();
    let lifetime = pick(rng, &[usual.session_lifetime; 4]);
    ClusterLimits {
        session_lifetime: pick(rng, &[lifetime, lifetime, lifetime, Duration::from_millis(300)]),
        session_window: pick(rng, &[2, 8, usual.session_window]),
        session_bytes_max: pick(rng, &[usual.session_bytes_max, usual.session_bytes_max, 2048]),
        ..usual
    }
}

fn network(rng: &mut fastrand::Rng, is_quick: bool) -> NetworkOptions {
    let (millis, micros) = (Duration::from_millis, Duration::from_micros);
    let quick = (micros(20), micros(100));
    let slow = if is_quick { quick } else { (micros(200), millis(3)) };
    let (delay_min, delay_spread) = pick(rng, &[quick, quick, slow]);
    NetworkOptions {
        delay_min,
        delay_spread,
        late_per_mille: pick(rng, &[0, 0, 10, 100]),
        late_max: pick(rng, &[millis(2), millis(50), millis(500)]),
        loss_per_mille: pick(rng, &[0, 0, 10, 100, 250]),
        doubled_per_mille: pick(rng, &[0, 0, 10, 200]),
        damaged_per_mille: pick(rng, &[0, 0, 10, 200]),
    }
}

fn disk(rng: &mut fastrand::Rng, is_quick: bool) -> DiskOptions {
    let (millis, micros) = (Duration::from_millis, Duration::from_micros);
    let slow = if is_quick { micros(500) } else { millis(15) };
    DiskOptions {
        sync_min: micros(50),
        sync_spread: pick(rng, &[micros(20), micros(20), millis(1), slow]),
        interval: pick(rng, &[millis(5), millis(100)]),
        spoiled_per_mille: pick(rng, &[0, 0, 200]),
    }
}

fn pace(rng: &mut fastrand::Rng) -> Pace {
    let (millis, micros) = (Duration::from_millis, Duration::from_micros);
    Pace {
        turn_max: pick(rng, &[Duration::ZERO, micros(20), micros(300)]),
        apply_max: pick(rng, &[None, None, Some(micros(50)), Some(millis(3))]),
        ballast: pick(rng, &[0, 0, 0, 0, 100_000, 600_000]),
    }
}

fn clients(rng: &mut fastrand::Rng, chaos: Duration) -> Vec<ClientOptions> {
    let millis = Duration::from_millis;
    let body_max = pick(rng, &[0, 200, 2000, 100_000]);
    let cancels_after = pick(rng, &[None, Some(1), Some(4)]);
    let in_a_burst = rng.u8(..4) == 0;
    let count = rng.usize(1..6);
    let client = |position: usize| {
        let operations = rng.u32(10..60);
        // Most clients have something to do as long as things go wrong.
        let span = if in_a_burst { chaos / 20 } else { chaos * 2 };
        ClientOptions {
            plain: position > 0 && rng.u8(..6) == 0,
            operations,
            window: pick(rng, &[1, 3, 16]),
            think_max: span / operations,
            reads_per_mille: pick(rng, &[0, 200, 500, 900]),
            body_max,
            retry_after: pick(rng, &[millis(5), millis(20)]),
            cancels_after,
            steals_per_mille: pick(rng, &[0, 100]),
        }
    };
    (0..count).map(client).collect()
}
