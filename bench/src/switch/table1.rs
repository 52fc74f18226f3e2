//! Messages at the leader for a request, counted from packets (the paper's Table 1).

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use hovercraft::Mode;
use serde::{Deserialize, Serialize};

use super::SwitchError;
use crate::{
    Cluster, Setup, SwitchSetup,
    generator::Pace,
    machine::{Machine, commit, unix_seconds},
    netns::OwnLoopback,
    processes::Look,
    run::{Spec, closed_loop},
    wire::{Capture, Direction, Purpose, Tally},
    workload::Workload,
};

/// How it is counted.
#[derive(Debug, Clone)]
pub struct Table1Plan {
    /// The `hovercraft` command.
    pub binary: PathBuf,
    /// How long each line is captured.
    pub duration: Duration,
}

/// Messages at the leader, each for a request or, in a line with batches, for a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What the replicas did.
    pub mode: String,
    /// How many.
    pub replicas: u16,
    /// As in a configuration file.
    pub durability: String,
    /// How many requests one client had outstanding; with 1 they came so slowly, one at a time, that
    /// nothing is batched.
    pub outstanding: usize,
    /// How many different requests were seen.
    pub requests: u64,
    /// How many of them were ordered together, in the mean.
    pub requests_per_batch: f64,
    /// What the paper says comes in: requests, and what says that followers hold them.
    pub paper_in: f64,
    /// The same, counted.
    pub counted_in: f64,
    /// What the paper says goes out: append-entries and replies.
    pub paper_out: f64,
    /// The same, counted.
    pub counted_out: f64,
    /// Append-entries among it, a batch.
    pub appends_per_batch: f64,
    /// What says that followers hold more, a batch.
    pub acknowledgements_per_batch: f64,
    /// The commit index alone, out (P14).
    pub announcements: f64,
    /// That a follower has applied more, in (P15).
    pub reports: f64,
    /// That the leader's disk holds more, out (P32).
    pub durables: f64,
    /// To the switch, out (P19).
    pub feedback: f64,
    /// By time, in and out.
    pub heartbeats: f64,
    /// Of whoever lacks something, in and out.
    pub recovery: f64,
    /// All datagrams that came in.
    pub datagrams_in: f64,
    /// The same by the replica's own counter.
    pub own_datagrams_in: f64,
    /// All datagrams that went out.
    pub datagrams_out: f64,
    /// The same by the replica's own counter.
    pub own_datagrams_out: f64,
}

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table1 {
    /// One for each mode and size of the cluster.
    pub table1: Vec<Row>,
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub commit: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

const SIZES: [u16; 4] = [3, 5, 7, 9];

/// How many requests are outstanding in the lines with batches.
const OUTSTANDING: usize = 64;

/// How many requests come a second in the lines without. Each must be over when the next one comes:
/// what a follower has not said yet it says together with what it says then.
const SLOWLY_PER_S: f64 = 100.0;

/// A count may be off the paper's by this share.
const OFF_MAX: f64 = 0.05;

/// How often a line is tried: an election in the middle of one mixes two leaders.
const TRIES: usize = 3;

/// Counts all lines; `each` sees every one when it is there.
pub async fn table1(plan: &Table1Plan, mut each: impl FnMut(&Row)) -> Result<Table1, SwitchError> {
    let machine = Machine::here();
    // Nobody else's packets, and no trains of datagrams that are one packet.
    let _loopback = OwnLoopback::enter()?;
    let mut rows = Vec::new();
    for mode in [Mode::Raft, Mode::HovercRaft, Mode::HovercRaftPlusPlus] {
        for replicas in SIZES {
            lines(plan, mode, replicas, "memory", &[1, OUTSTANDING], &mut rows, &mut each).await?;
        }
    }
    // What it takes to say what is on the leader's disk shows only if something is.
    for replicas in [3, 9] {
        let mode = Mode::HovercRaftPlusPlus;
        lines(plan, mode, replicas, "sync", &[1], &mut rows, &mut each).await?;
    }
    Ok(Table1 { table1: rows, machine, commit: commit(), unix_seconds: unix_seconds() })
}

/// The lines of one cluster.
async fn lines(
    plan: &Table1Plan,
    mode: Mode,
    replicas: u16,
    durability: &str,
    outstanding: &[usize],
    rows: &mut Vec<Row>,
    each: &mut impl FnMut(&Row),
) -> Result<(), SwitchError> {
    let mut spec = Spec::new(Workload::Tiny, mode, replicas);
    // As in the paper, where the switch passes requests on and is told of answers.
    let switch = SwitchSetup { disseminates: true, admission: None };
    spec.setup = Setup {
        durability: durability.to_owned(),
        // Each replica answers its share; B is the default.
        policy: "random".to_owned(),
        queue_bound: 128,
        switch: (mode == Mode::HovercRaftPlusPlus).then_some(switch),
        ..spec.setup
    };
    let cluster = Cluster::start(&plan.binary, &spec.setup).await?;
    for outstanding in outstanding {
        let row = line(plan, &cluster, &spec, *outstanding).await?;
        each(&row);
        rows.push(row);
    }
    Ok(())
}

async fn line(
    plan: &Table1Plan,
    cluster: &Cluster,
    spec: &Spec,
    outstanding: usize,
) -> Result<Row, SwitchError> {
    /// After this the clients have sessions, and the aggregator is in use.
    const BEFORE: Duration = Duration::from_millis(600);
    for _ in 0..TRIES {
        let requests = spec.workload.requests(spec.request_bytes, spec.seed);
        // Where they come slowly, it takes longer to see enough of them.
        let (pace, captured) = match outstanding {
            1 => (Pace::Open { per_second: SLOWLY_PER_S }, plan.duration * 3),
            _ => (Pace::Closed { outstanding }, plan.duration),
        };
        let duration = captured + BEFORE;
        let (load, counted) =
            tokio::join!(closed_loop(cluster, spec, requests, pace, duration), async {
                tokio::time::sleep(BEFORE).await;
                count(cluster, captured).await
            });
        load?;
        if let Some(counted) = counted? {
            return Ok(Row::new(spec, outstanding, &counted));
        }
    }
    Err(SwitchError::NoLeader(TRIES))
}

/// What was seen of the leader, and what it says itself.
struct Counted {
    tally: Tally,
    before: Look,
    after: Look,
}

/// Counts for a time; none if the lead changes meanwhile.
async fn count(cluster: &Cluster, duration: Duration) -> Result<Option<Counted>, SwitchError> {
    let leads = |looks: Vec<Look>| looks.into_iter().find(Look::leads);
    let Some(before) = leads(cluster.look().await) else { return Ok(None) };
    let members: Vec<_> = cluster.addresses().collect();
    let Some(leader) = members.get(usize::from(before.id.0) - 1) else { return Ok(None) };
    let capture = Capture::start(Tally::new(*leader))?;
    tokio::time::sleep(duration).await;
    let tally = capture.stop()?;
    let after = leads(cluster.look().await).filter(|after| after.id == before.id);
    Ok(after.map(|after| Counted { tally, before, after }))
}

impl Row {
    fn new(spec: &Spec, outstanding: usize, counted: &Counted) -> Self {
        let Counted { tally, before, after } = counted;
        let n = f64::from(spec.setup.replicas);
        let requests = tally.requests().max(1) as f64;
        let batches = tally.batches().max(1) as f64;
        let of = |direction, purpose| tally.messages(direction, purpose) as f64 / requests;
        let held =
            of(Direction::In, Purpose::Acknowledgement) + of(Direction::In, Purpose::AggCommit);
        let appends = of(Direction::Out, Purpose::Append);
        let per_batch = requests / batches;
        // The paper counts without batches. What is there once for all requests of a batch counts once;
        // if they come one at a time, a batch is a request.
        let (appends_paper, replies_paper) = match spec.setup.mode {
            Mode::HovercRaftPlusPlus => (1.0, 1.0 / n),
            Mode::HovercRaft => (n - 1.0, 1.0 / n),
            _ => (n - 1.0, 1.0),
        };
        let shared = appends_paper / per_batch;
        let (datagrams_in, datagrams_out) = tally.datagrams();
        // The replica counts a little longer, so it is asked by the requests that it counts.
        let own_requests = (after.requests() - before.requests().min(after.requests())).max(1);
        let network = (&before.status.network, &after.status.network);
        let own = |from: u64, to: u64| to.saturating_sub(from) as f64 / own_requests as f64;
        let both = |purpose| of(Direction::In, purpose) + of(Direction::Out, purpose);
        Self {
            mode: spec.setup.mode.to_string(),
            replicas: spec.setup.replicas,
            durability: spec.setup.durability.clone(),
            outstanding,
            requests: tally.requests(),
            requests_per_batch: per_batch,
            paper_in: 1.0 + shared,
            counted_in: of(Direction::In, Purpose::Request) + held,
            paper_out: shared + replies_paper,
            counted_out: appends + of(Direction::Out, Purpose::Reply),
            appends_per_batch: appends * per_batch,
            acknowledgements_per_batch: held * per_batch,
            announcements: of(Direction::Out, Purpose::Announcement),
            reports: of(Direction::In, Purpose::Report),
            durables: of(Direction::Out, Purpose::Durable),
            feedback: of(Direction::Out, Purpose::Feedback),
            heartbeats: both(Purpose::Heartbeat),
            recovery: both(Purpose::Recovery),
            datagrams_in: datagrams_in as f64 / requests,
            own_datagrams_in: own(network.0.datagrams_in, network.1.datagrams_in),
            datagrams_out: datagrams_out as f64 / requests,
            own_datagrams_out: own(network.0.datagrams_out, network.1.datagrams_out),
        }
    }

    /// Whether what was counted is what the paper says, where it says something: of requests one by one.
    pub fn agrees(&self) -> bool {
        let near = |counted: f64, paper: f64| (counted / paper - 1.0).abs() <= OFF_MAX;
        self.outstanding > 1
            || (near(self.counted_in, self.paper_in) && near(self.counted_out, self.paper_out))
    }
}

impl Table1 {
    /// Whether every line is as in the paper.
    pub fn agrees(&self) -> bool {
        self.table1.iter().all(Row::agrees)
    }
}

impl Row {
    /// The head of a table of lines.
    pub fn head() -> String {
        format!(
            "{:<13} {:>2} {:<7} {:>6} {:>6} | {:>6} {:>6} | {:>6} {:>6} | {:>5} {:>5} {:>5} {:>5} {:>5} \
             | {:>6} {:>6} {:>6} {:>6}\n",
            "mode",
            "N",
            "",
            "outst.",
            "batch",
            "in",
            "paper",
            "out",
            "paper",
            "P14",
            "P15",
            "P32",
            "FEEDB",
            "beats",
            "dgr in",
            "own",
            "out",
            "own"
        )
    }

    /// One of its lines.
    pub fn line(&self) -> String {
        let mut text = format!(
            "{:<13} {:>2} {:<7} {:>6} {:>6.1}",
            self.mode, self.replicas, self.durability, self.outstanding, self.requests_per_batch
        );
        let groups = [
            &[self.counted_in, self.paper_in][..],
            &[self.counted_out, self.paper_out],
            &[self.announcements, self.reports, self.durables, self.feedback, self.heartbeats],
            &[self.datagrams_in, self.own_datagrams_in, self.datagrams_out, self.own_datagrams_out],
        ];
        for (group, width) in groups.iter().zip([6, 6, 5, 6]) {
            text.push_str(" |");
            for figure in *group {
                // Writing to a string does not fail.
                let _ = write!(text, " {figure:>width$.3}");
            }
        }
        text + if self.agrees() { "\n" } else { "  NOT AS IN THE PAPER\n" }
    }
}
