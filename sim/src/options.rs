//! What a run is like: cluster, clients, network and disks, all from one seed. Plain data, so that
//! a schedule can carry it.

use std::time::Duration;

use hovercraft::{
    ClusterLimits,
    core::{Limits, Mode, Policy, Settings, Timing},
    storage::Durability,
};
use serde::{Deserialize, Serialize};

use crate::{limits, seed::Seed, survivors::Survivors};

/// What a run is like, but for what goes wrong and what is asked. Times are in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Of all chance.
    pub seed: u64,
    /// The replicas.
    pub cluster: ClusterOptions,
    /// The links.
    pub network: NetworkOptions,
    /// The disks.
    pub disk: DiskOptions,
    /// The replicas' speed.
    pub pace: Pace,
    /// Clocks go wrong by up to so many millionths.
    pub drift_ppm_max: u32,
    /// One for each client.
    pub clients: Vec<ClientOptions>,
    /// How long things go wrong.
    pub chaos_us: u64,
    /// Faults last until then, although all operations may be answered before.
    #[serde(default)]
    pub is_lasting: bool,
    /// When it is over a part of the cluster must make progress without the rest, before everything
    /// is healed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survivors: Option<Survivors>,
    /// No client begins anything for so long after a snapshot was taken or installed, and after a
    /// leader was elected.
    #[serde(default)]
    pub quiet_us: u64,
    /// Everything is done this long after nothing goes wrong any more and the last operation has come
    /// up, or something is stuck.
    pub patience_us: u64,
}

/// The replicas, and what apply decides by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterOptions {
    /// How many.
    pub replicas: u8,
    /// How requests reach them.
    #[serde(with = "ModeName")]
    pub mode: Mode,
    /// How many aggregators the replicas talk to: one, or two by a mistake; none in other modes than
    /// `hovercraft++`.
    #[serde(default)]
    pub aggregators: u8,
    /// Clients send by the first of them, as a switch that admits requests; to the replicas what that
    /// does not get answered.
    #[serde(default)]
    pub by_switch: bool,
    /// Who answers.
    #[serde(with = "PolicyName")]
    pub policy: Policy,
    /// B (P15).
    pub queue_bound: usize,
    /// Heartbeats and elections.
    pub heartbeat_us: u64,
    /// The shortest time without a leader before an election.
    pub election_min_us: u64,
    /// And the longest.
    pub election_max_us: u64,
    /// What an acknowledgement promises.
    #[serde(with = "DurabilityName")]
    pub durability: Durability,
    /// How many requests may be in the system (P24).
    pub admission_limit: usize,
    /// How many bytes of log each replica keeps; as many numbers as there are replicas.
    pub log_bytes_max: Vec<usize>,
    /// When an idle session expires (P20).
    pub session_lifetime_us: u64,
    /// How many sequences a client may have open.
    pub session_window: u32,
    /// The kept replies of all sessions take at most so many bytes.
    pub session_bytes_max: u64,
    /// Highest number of sessions.
    #[serde(default = "usual_sessions_max")]
    pub sessions_max: u32,
    /// Bytes of the largest request.
    #[serde(default = "request_bytes_max")]
    pub request_bytes_max: u32,
    /// Internal bounds of the core; left out where they are those that nodes run.
    #[serde(with = "limits::LimitFields", default = "limits::usual")]
    #[serde(skip_serializing_if = "limits::are_usual")]
    pub limits: Limits,
}

fn usual_sessions_max() -> u32 {
    ClusterLimits::default().sessions_max
}

fn request_bytes_max() -> u32 {
    ClusterLimits::default().request_bytes_max
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Mode", rename_all = "lowercase")]
enum ModeName {
    Raft,
    HovercRaft,
    #[serde(rename = "hovercraft++")]
    HovercRaftPlusPlus,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Policy", rename_all = "lowercase")]
enum PolicyName {
    Jbsq,
    Random,
    Leader,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Durability", rename_all = "lowercase")]
enum DurabilityName {
    Sync,
    Interval,
    Memory,
}

/// How the links behave when nothing is wrong with them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOptions {
    /// A packet takes at least this long.
    pub delay_min_us: u64,
    /// And up to this much longer, each packet for itself: so they overtake each other.
    pub delay_spread_us: u64,
    /// Messages between replicas go through their form on the wire.
    pub encodes: bool,
}

/// How fast a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskOptions {
    /// A batch of writes takes at least this long.
    pub sync_min_us: u64,
    /// And up to this much longer.
    pub sync_spread_us: u64,
    /// In the durability `interval`: the time from one sync to the next.
    pub interval_us: u64,
    /// Of a thousand snapshots that it takes, this many cannot be written.
    pub spoiled_per_mille: u32,
    /// The product's own log store stands on it, over a disk that tears and reorders.
    #[serde(default)]
    pub segmented: bool,
    /// In the durability `interval`: most syncs of the log put nothing on the disk. That is
    /// within the promises, because nothing that was acknowledged rests on them.
    #[serde(default)]
    pub syncs_lie: bool,
    /// Of a thousand snapshots of other replicas, the service cannot read this many.
    #[serde(default)]
    pub unreadable_per_mille: u32,
}

/// How fast a replica works.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// What arrives waits up to this long, and is taken in one turn with what came meanwhile.
    pub turn_max_us: u64,
    /// An entry takes up to this long in an application thread; none if entries are applied in the
    /// turn that commits them.
    pub apply_max_us: Option<u64>,
    /// The service's snapshots have so many bytes more than they need.
    pub ballast_bytes: usize,
}

/// What a client is like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientOptions {
    /// It has no session: its requests may execute twice.
    pub plain: bool,
    /// How many operations are made up for it.
    pub operations: u32,
    /// How many requests it has outstanding at most.
    pub window: u64,
    /// The time between two operations is up to this long.
    pub think_max_us: u64,
    /// Of a thousand operations, this many are reads.
    pub reads_per_mille: u32,
    /// Bodies are up to this long.
    pub body_max: usize,
    /// It waits this long for a reply before it tries again, then twice as long, and so on.
    pub retry_after_us: u64,
    /// It wants to know what became of a write that it tried this often.
    pub cancels_after: Option<u32>,
    /// Of a thousand writes that are answered, this many are followed by another one that steals
    /// their identity.
    pub steals_per_mille: u32,
}

impl ClientOptions {
    /// A client in good order that does what it is told, without a pause.
    pub const OBEDIENT: Self = Self {
        plain: false,
        operations: 0,
        window: 4,
        think_max_us: 0,
        reads_per_mille: 0,
        body_max: 0,
        retry_after_us: 5000,
        cancels_after: None,
        steals_per_mille: 0,
    };
}

impl ClientOptions {
    /// Asks three times as much in the same time.
    fn hurry(&mut self) {
        self.operations *= 3;
        self.think_max_us /= 3;
        self.window = self.window.max(16);
        self.body_max = self.body_max.min(200);
    }

    /// Asks the survivors of a run whether they go on; the last one.
    pub(crate) const PROBER: Self =
        Self { plain: true, window: 32, retry_after_us: 20_000, ..Self::OBEDIENT };
}

const MIB: usize = 1 << 20;

/// Bodies that are drawn have at most so many bytes, with what the service adds.
const LARGEST_BODY_BYTES: u32 = 128 << 10;

impl ClusterOptions {
    /// Replicas with default settings.
    pub fn of(replicas: u8) -> Self {
        let (settings, limits) = (Settings::default(), ClusterLimits::default());
        let micros = |duration: Duration| duration.as_micros() as u64;
        Self {
            replicas,
            mode: settings.mode,
            aggregators: 0,
            by_switch: false,
            policy: settings.policy,
            queue_bound: settings.queue_bound,
            heartbeat_us: micros(settings.timing.heartbeat),
            election_min_us: micros(settings.timing.election_min),
            election_max_us: micros(settings.timing.election_max),
            durability: settings.durability,
            admission_limit: settings.admission_limit,
            log_bytes_max: vec![settings.log_bytes_max; usize::from(replicas)],
            session_lifetime_us: micros(limits.session_lifetime),
            session_window: limits.session_window,
            session_bytes_max: limits.session_bytes_max,
            sessions_max: limits.sessions_max,
            request_bytes_max: limits.request_bytes_max,
            limits: Limits::DEFAULT,
        }
    }

    /// Whether its times are those of a data centre.
    pub(crate) fn is_quick(&self) -> bool {
        self.election_max_us < 50_000
    }

    /// The settings of a replica, by its position.
    pub fn settings(&self, at: usize) -> Settings {
        Settings {
            mode: self.mode,
            policy: self.policy,
            queue_bound: self.queue_bound,
            timing: Timing {
                heartbeat: Duration::from_micros(self.heartbeat_us),
                election_min: Duration::from_micros(self.election_min_us),
                election_max: Duration::from_micros(self.election_max_us),
            },
            durability: self.durability,
            admission_limit: self.admission_limit,
            log_bytes_max: self.log_bytes_max[at],
            limits: self.limits,
        }
    }

    /// What apply decides by.
    pub fn limits(&self) -> ClusterLimits {
        ClusterLimits {
            session_lifetime: Duration::from_micros(self.session_lifetime_us),
            session_window: self.session_window,
            session_bytes_max: self.session_bytes_max,
            sessions_max: self.sessions_max,
            request_bytes_max: self.request_bytes_max,
        }
    }

    fn from_rng(rng: &mut fastrand::Rng) -> Self {
        use Durability::{Interval, Memory, Sync};
        // Even clusters have the largest quorums for their size (P37).
        let count = pick(rng, &[1, 2, 3, 3, 3, 3, 4, 5]);
        let timing = pick(rng, &[Timing::LAN, Timing::LAN, Timing::LAN, Timing::DATACENTER]);
        let small_logs = rng.u8(..3) > 0;
        let log_bytes = |_| if small_logs { 1 << rng.u32(11..17) } else { 64 * MIB };
        let log_bytes_max = (0..count).map(log_bytes).collect();
        let usual = Self::of(count);
        Self {
            mode: pick(rng, &[Mode::HovercRaft, Mode::HovercRaft, Mode::HovercRaft, Mode::Raft]),
            policy: pick(rng, &[Policy::Jbsq, Policy::Jbsq, Policy::Random, Policy::Leader]),
            queue_bound: pick(rng, &[1, 2, 4, 32, 128]),
            heartbeat_us: timing.heartbeat.as_micros() as u64,
            election_min_us: timing.election_min.as_micros() as u64,
            election_max_us: timing.election_max.as_micros() as u64,
            durability: pick(rng, &[Sync, Sync, Sync, Memory, Memory, Interval]),
            admission_limit: pick(rng, &[2, 8, 64, 16_384]),
            log_bytes_max,
            session_lifetime_us: pick(rng, &[300_000, 3_600_000_000, 3_600_000_000, 3_600_000_000]),
            session_window: pick(rng, &[2, 8, usual.session_window]),
            session_bytes_max: pick(rng, &[usual.session_bytes_max, usual.session_bytes_max, 600]),
            sessions_max: usual.sessions_max,
            ..usual
        }
    }
}

impl ClusterOptions {
    /// In most clusters the core meets its bounds soon.
    fn with_limits(self, rng: &mut fastrand::Rng) -> Self {
        let request_bytes_max = pick(rng, &[LARGEST_BODY_BYTES, request_bytes_max()]);
        let limits = limits::draw(rng, request_bytes_max as usize);
        Self { request_bytes_max, limits, ..self }
    }

    /// Some replicas trim much sooner than others, so that what one has trimmed another still has;
    /// and a leader that is cut off orders as much as comes.
    fn with_unequal_logs(self, rng: &mut fastrand::Rng) -> Self {
        let replicas = self.replicas.max(3);
        let log_bytes_max =
            (0..replicas).map(|_| pick(rng, &[2048, 2048, 4096, 8192, 16_384])).collect();
        let usual = Self::of(replicas);
        Self {
            replicas,
            queue_bound: usual.queue_bound,
            admission_limit: usual.admission_limit,
            log_bytes_max,
            session_window: usual.session_window,
            limits: Limits::DEFAULT,
            ..self
        }
    }

    /// Half of the clusters that could have aggregators do. The larger ones gain the most by them, and
    /// only there a minority can hold what is not committed.
    fn perhaps_aggregated(self, rng: &mut fastrand::Rng) -> Self {
        if self.mode != Mode::HovercRaft || self.replicas < 2 || rng.bool() {
            return self;
        }
        let (aggregators, by_switch) = (pick(rng, &[1, 1, 1, 2]), rng.bool());
        let replicas = pick(rng, &[self.replicas, 5]);
        let log_bytes_max =
            self.log_bytes_max.into_iter().cycle().take(usize::from(replicas)).collect();
        let mode = Mode::HovercRaftPlusPlus;
        Self { replicas, mode, aggregators, by_switch, log_bytes_max, ..self }
    }
}

impl Options {
    /// A run on a quick network, with clients that are to be added: for stories.
    pub fn calm(seed: u64, replicas: u8) -> Self {
        Self {
            seed,
            cluster: ClusterOptions::of(replicas),
            network: NetworkOptions { delay_min_us: 50, delay_spread_us: 0, encodes: true },
            disk: DiskOptions {
                sync_min_us: 100,
                sync_spread_us: 0,
                interval_us: 100_000,
                spoiled_per_mille: 0,
                segmented: false,
                syncs_lie: false,
                unreadable_per_mille: 0,
            },
            pace: Pace { turn_max_us: 0, apply_max_us: None, ballast_bytes: 0 },
            drift_ppm_max: 0,
            clients: Vec::new(),
            chaos_us: 0,
            is_lasting: false,
            survivors: None,
            quiet_us: 0,
            patience_us: PATIENCE_US,
        }
    }

    /// The run of a seed. Each part has a stream of its own.
    pub fn from_seed(seed: u64) -> Self {
        let stream = |source| Seed(seed).stream(source, 0);
        let cluster = ClusterOptions::from_rng(&mut stream("cluster"));
        let cluster = cluster.perhaps_aggregated(&mut stream("aggregators"));
        let cluster = cluster.with_limits(&mut stream("limits"));
        let deposes = Self::deposes_leaders(seed);
        let cluster =
            if deposes { cluster.with_unequal_logs(&mut stream("logs")) } else { cluster };
        let is_quick = cluster.is_quick();
        let survivors = Survivors::draw(&mut stream("survivors"), &cluster);
        let quiet_us = pick(&mut stream("quiet windows"), &[0, 0, 0, cluster.election_max_us]);
        let mut rng = stream("options");
        let chaos_us = if is_quick { 300_000 } else { rng.u64(500_000..3_000_000) };
        let chaos_us = if deposes { chaos_us.max(10 * cluster.election_max_us) } else { chaos_us };
        let mut clients = clients(&mut stream("clients"), chaos_us, survivors.is_some());
        if deposes {
            clients.iter_mut().for_each(ClientOptions::hurry);
        }
        // With fewer, sessions in use would evict each other, and nobody would get on.
        let few = clients.len() as u32 + 1;
        let usual = cluster.sessions_max;
        let sessions_max = pick(&mut stream("sessions"), &[usual, usual, few]);
        Self {
            seed,
            cluster: ClusterOptions { sessions_max, ..cluster },
            network: network(&mut stream("network"), is_quick),
            disk: disk(&mut stream("disk options"), is_quick),
            pace: pace(&mut stream("pace")),
            drift_ppm_max: pick(&mut rng, &[0, 100, 50_000]),
            clients,
            chaos_us,
            is_lasting: stream("lasting").u8(..4) == 0,
            survivors,
            quiet_us,
            patience_us: PATIENCE_US,
        }
    }

    /// Returns whether leaders are cut off under load in a seed's run, one after the other.
    pub(crate) fn deposes_leaders(seed: u64) -> bool {
        Seed(seed).stream("deposes leaders", 0).u8(..8) == 0
    }

    /// A run of 2,000 to 10,000 operations, and of faults as long as these take.
    pub fn large(seed: u64) -> Self {
        let mut options = Self::from_seed(seed);
        let mut rng = Seed(seed).stream("large", 0);
        let scale = if options.cluster.is_quick() { 10 } else { 1 };
        options.chaos_us = rng.u64(4_000_000..16_000_000) / scale;
        options.is_lasting = true;
        options.pace.apply_max_us = options.pace.apply_max_us.map(|us| us.min(50));
        let count = options.clients.iter().filter(|client| client.operations > 0).count() as u32;
        let operations = rng.u32(2000..=10_000).div_ceil(count);
        let in_a_burst = rng.u8(..4) == 0;
        let span_us = if in_a_burst { options.chaos_us / 20 } else { options.chaos_us * 2 };
        for client in options.clients.iter_mut().filter(|client| client.operations > 0) {
            client.operations = operations;
            client.think_max_us = span_us / u64::from(operations);
            client.body_max = client.body_max.min(20_000);
        }
        // Where the bounds are very small one request is served after the other.
        let slowest_us = u64::from(operations * count) * options.answered_us();
        options.patience_us = slowest_us.max(8 * PATIENCE_US);
        options
    }

    /// Nothing else goes wrong than what a schedule's faults do, and nothing has little room.
    pub(crate) fn leave_alone(&mut self) {
        (self.survivors, self.is_lasting, self.quiet_us) = (None, false, 0);
        self.cluster.limits = Limits::DEFAULT;
    }

    /// Returns how long packets there and back may take, with a turn and a sync at each end.
    pub(crate) fn answered_us(&self) -> u64 {
        let Self { network, disk, pace, .. } = self;
        let way_us = network.delay_min_us + network.delay_spread_us + pace.turn_max_us;
        2 * (way_us + disk.sync_min_us + disk.sync_spread_us)
    }
}

/// Longest time that everything may take when nothing goes wrong any more.
const PATIENCE_US: u64 = 8_000_000;

fn pick<T: Copy>(rng: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

fn network(rng: &mut fastrand::Rng, is_quick: bool) -> NetworkOptions {
    let quick = (20, 100);
    let slow = if is_quick { quick } else { (200, 3000) };
    let (delay_min_us, delay_spread_us) = pick(rng, &[quick, quick, slow]);
    NetworkOptions { delay_min_us, delay_spread_us, encodes: rng.u8(..4) == 0 }
}

fn disk(rng: &mut fastrand::Rng, is_quick: bool) -> DiskOptions {
    let slow = if is_quick { 500 } else { 15_000 };
    DiskOptions {
        sync_min_us: 50,
        sync_spread_us: pick(rng, &[20, 20, 1000, slow]),
        interval_us: pick(rng, &[5000, 100_000]),
        spoiled_per_mille: pick(rng, &[0, 0, 200]),
        segmented: rng.bool(),
        syncs_lie: rng.bool(),
        unreadable_per_mille: pick(rng, &[0, 0, 300]),
    }
}

fn pace(rng: &mut fastrand::Rng) -> Pace {
    Pace {
        turn_max_us: pick(rng, &[0, 20, 300]),
        apply_max_us: pick(rng, &[None, None, Some(50), Some(3000)]),
        ballast_bytes: pick(rng, &[0, 0, 0, 100_000]),
    }
}

fn clients(rng: &mut fastrand::Rng, chaos_us: u64, are_probed: bool) -> Vec<ClientOptions> {
    let body_max = pick(rng, &[0, 200, 2000, 100_000]);
    let cancels_after = pick(rng, &[None, Some(1), Some(4)]);
    let in_a_burst = rng.u8(..4) == 0;
    let count = rng.usize(1..6);
    let client = |position: usize| {
        let operations = rng.u32(10..60);
        // Most clients have something to do as long as things go wrong.
        let span_us = if in_a_burst { chaos_us / 20 } else { chaos_us * 2 };
        ClientOptions {
            plain: position > 0 && rng.u8(..6) == 0,
            operations,
            window: pick(rng, &[1, 3, 16]),
            think_max_us: span_us / u64::from(operations),
            reads_per_mille: pick(rng, &[0, 200, 500, 900]),
            body_max,
            retry_after_us: pick(rng, &[5000, 20_000]),
            cancels_after,
            steals_per_mille: pick(rng, &[0, 100]),
        }
    };
    let drawn = (0..count).map(client);
    drawn.chain(are_probed.then_some(ClientOptions::PROBER)).collect()
}
