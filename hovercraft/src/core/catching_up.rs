//! Three cores that exchange messages by hand: a replica that was away, or that was told wrong,
//! catches up (P9, P36, P37).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use r2p2::Time;

use crate::{
    core::{
        Cause, Core, Mode, Output, Reading, Settings, Standstill, Timing,
        testing::{
            DIGEST_KEY, append_noops, configuration, core_of, envelope, return_path, settle, write,
        },
    },
    digest::Digest,
    entry::{Incarnation, Index, NodeId},
    messages::{
        AppendEntries, AppendReply, BodyRefusal, BodyWant, Envelope, Message, Metadata,
        RefusalReason, WholeEntry, WholeRequest,
    },
    request::{Identity, Key, Kind, Request},
    storage::{Durability, SnapshotMeta},
};

/// Bytes of the snapshots that the cores exchange.
const SNAPSHOT_BYTES: usize = 100_000;

/// A body that no message carries whole.
const LARGE: usize = 40_000;

/// Changes a message on its way from one core to another; false if it is lost.
type Tamper = Box<dyn FnMut(usize, &mut Message) -> bool>;

struct Net {
    cores: Vec<Core>,
    now: Time,
    is_cut: Vec<bool>,
    queue: VecDeque<(usize, Envelope)>,
    tamper: Option<Tamper>,
    /// Bytes of each log when it was largest.
    largest: [usize; 3],
}

impl Net {
    /// Three replicas; the first leads.
    fn elected(settings: &[Settings; 3]) -> Self {
        let core = |number: u16| {
            let settings = settings[usize::from(number) - 1];
            core_of((number, 3), settings, Vec::new(), number.into())
        };
        let mut net = Self {
            cores: (1..=3).map(core).collect(),
            now: Time::ZERO,
            is_cut: vec![false; 3],
            queue: VecDeque::new(),
            tamper: None,
            largest: [0; 3],
        };
        net.elect(0);
        net
    }

    fn elect(&mut self, at: usize) {
        self.now += Timing::LAN.election_max;
        self.cores[at].handle_timeout(self.now);
        self.exchange();
        assert!(self.cores[at].is_leader(), "{}", self.state());
        self.run_for(50);
    }

    fn settle_one(&mut self, at: usize) {
        loop {
            let mut is_quiet = true;
            for output in settle(&mut self.cores[at], self.now) {
                is_quiet &= !matches!(
                    output,
                    Output::TakeSnapshot
                        | Output::ReadSnapshot(_)
                        | Output::StageSnapshot { .. }
                        | Output::InstallSnapshot { .. }
                );
                self.act(at, output);
            }
            self.largest[at] = self.largest[at].max(self.cores[at].log.size_bytes());
            if is_quiet {
                return;
            }
        }
    }

    fn act(&mut self, at: usize, output: Output) {
        let now = self.now;
        let core = &mut self.cores[at];
        match output {
            Output::Send { to, envelope } => {
                let to = usize::from(to.0) - 1;
                if !self.is_cut[at] && !self.is_cut[to] {
                    self.queue.push_back((to, *envelope));
                }
            }
            Output::TakeSnapshot => core.handle_snapshot(now, Some(&meta(core.applied_index()))),
            Output::ReadSnapshot(read) => {
                let latest = core.snapshots.latest();
                let offset = if read.index == latest { read.offset } else { 0 };
                let rest = SNAPSHOT_BYTES.saturating_sub(offset as usize);
                let data = vec![7; rest.min(read.bytes as usize)];
                core.send_snapshot_part(read, meta(latest), offset, data);
            }
            Output::StageSnapshot { .. } => core.handle_staged(now, Reading::Complete),
            Output::InstallSnapshot { .. } => core.handle_installed(now),
            Output::KeepSnapshotPart { .. } | Output::AnswerRetry { .. } | Output::Write(_) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }

    fn exchange(&mut self) {
        for at in 0..3 {
            if !self.is_cut[at] {
                self.settle_one(at);
            }
        }
        let mut budget = 200_000;
        while let Some((to, mut envelope)) = self.queue.pop_front() {
            let is_lost = self.is_cut[to]
                || self.tamper.as_mut().is_some_and(|tamper| !tamper(to, &mut envelope.message));
            if !is_lost {
                self.cores[to].handle_message(self.now, envelope);
                self.settle_one(to);
            }
            budget -= 1;
            assert!(budget > 0, "endless exchange: {}", self.state());
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        for at in 0..3 {
            if !self.is_cut[at] {
                self.cores[at].handle_timeout(self.now);
            }
        }
        self.exchange();
    }

    fn run_for(&mut self, ms: u64) {
        for _ in 0..ms / 5 {
            self.tick(5);
        }
    }

    /// A client's write reaches these replicas.
    fn write(&mut self, sequence: u64, body: Vec<u8>, to: &[usize]) {
        let identity = Identity::Session { client: 9, sequence };
        let request =
            Arc::new(Request::new(DIGEST_KEY, identity, 1, Kind::Write, Bytes::from(body)));
        for &at in to {
            if !self.is_cut[at] {
                let request = Arc::clone(&request);
                self.cores[at].handle_request(self.now, request, return_path(1));
            }
        }
    }

    fn writes(&mut self, from: u64, count: u64) {
        for sequence in from..from + count {
            self.write(sequence, b"small".to_vec(), &[0, 1, 2]);
            if sequence % 50 == 49 {
                self.tick(1);
            }
        }
        self.tick(1);
    }

    /// Replica 3 has applied everything that is committed, and is a member.
    fn assert_caught_up(&self) {
        let commit = self.cores.iter().map(Core::commit_index).max().unwrap();
        let last = &self.cores[2];
        assert_eq!(last.applied_index(), commit, "{}", self.state());
        assert!(!last.status().recovering, "{}", self.state());
    }

    fn state(&self) -> String {
        let state = |core: &Core| {
            let status = core.status();
            let (bulk, role) = (core.recovery.is_bulk(), status.role);
            let (first, last, commit) = (status.first, status.last, status.commit);
            format!("[{role:?} {first}..{last} commit {commit} bulk {bulk} {:?}]", core.binding)
        };
        let states = self.cores.iter().map(state);
        states.map(|state| state.chars().take(300).collect::<String>()).collect()
    }
}

fn meta(index: Index) -> SnapshotMeta {
    SnapshotMeta {
        index,
        term: 1,
        configuration: configuration(3),
        log_time_us: 0,
        size_bytes: SNAPSHOT_BYTES as u64,
        checksum: 0,
        digest_key: DIGEST_KEY,
    }
}

/// A replica that was away while one large body and `count` small ones were committed.
fn away_for(count: u64, settings: &[Settings; 3]) -> Net {
    let mut net = Net::elected(settings);
    net.writes(1, 100);
    net.is_cut[2] = true;
    net.write(1_000_000, vec![7; LARGE], &[0, 1]);
    net.tick(1);
    net.writes(1000, count);
    net
}

#[test]
fn a_large_body_is_fetched_long_after_its_key_is_forgotten() {
    for mode in [Mode::HovercRaft, Mode::Raft] {
        for count in [3000, 9500] {
            let mut net = away_for(count, &[Settings { mode, ..Settings::default() }; 3]);
            net.is_cut[2] = false;
            net.run_for(2000);
            net.assert_caught_up();
        }
    }
}

#[test]
fn a_small_body_is_fetched_long_after_its_key_is_forgotten() {
    let mut net = Net::elected(&[Settings::default(); 3]);
    net.writes(1, 100);
    // Its copy is lost. It hears of the order, and then of nothing.
    net.write(1_000_000, b"lost".to_vec(), &[0, 1]);
    net.exchange();
    assert_eq!(net.cores[2].binding.len(), 1);
    net.is_cut[2] = true;
    net.writes(1000, 9500);
    net.is_cut[2] = false;
    net.run_for(2000);
    net.assert_caught_up();
}

#[test]
fn two_healthy_replicas_go_on_when_the_leader_dies_too() {
    let mut net = away_for(9500, &[Settings::default(); 3]);
    (net.is_cut[0], net.is_cut[2]) = (true, false);
    net.elect(1);
    net.run_for(2000);
    let before = net.cores[1].commit_index();
    net.writes(20_000, 10);
    net.run_for(100);
    assert!(net.cores[1].commit_index() >= before + 10, "{}", net.state());
    net.assert_caught_up();
}

#[test]
fn a_replica_that_lost_its_memory_is_counted_again() {
    let settings = Settings { durability: Durability::Memory, ..Settings::default() };
    let mut net = Net::elected(&[settings; 3]);
    net.write(1_000_000, vec![7; LARGE], &[0, 1, 2]);
    net.writes(1, 9500);
    // Its process is killed, and starts again with nothing, under a new incarnation.
    let mut core = core_of((3, 3), settings, Vec::new(), 9);
    core.hard_state.incarnation = Incarnation(99);
    net.cores[2] = core;
    net.run_for(3000);
    net.assert_caught_up();
}

#[test]
fn a_large_body_comes_from_a_follower_when_the_leader_has_trimmed_it() {
    let small = Settings { log_bytes_max: 1 << 16, ..Settings::default() };
    let mut net = away_for(9500, &[small, Settings::default(), Settings::default()]);
    net.run_for(1000);
    assert!(net.cores[0].log.first() > 1000 && net.cores[1].log.first() == 1);
    net.is_cut[2] = false;
    net.run_for(3000);
    net.assert_caught_up();
    assert_eq!(net.cores[2].counters.snapshots_installed, 0, "{}", net.state());
}

#[test]
fn entries_in_bulk_are_committed_so_that_a_log_with_a_bound_keeps_it() {
    let small = Settings { log_bytes_max: 1 << 16, ..Settings::default() };
    let mut net = away_for(9500, &[small, Settings::default(), small]);
    net.run_for(1000);
    // The leader can compare nothing with what the follower fetches.
    assert!(net.cores[0].log.first() > 5000 && net.cores[1].log.first() == 1);
    net.is_cut[2] = false;
    net.run_for(3000);
    net.assert_caught_up();
    assert_eq!(net.cores[2].counters.snapshots_installed, 0, "{}", net.state());
    assert!(net.largest[2] <= (2 << 16) + 2 * LARGE, "{} bytes in the log", net.largest[2]);
}

#[test]
fn a_body_that_everybody_trims_while_it_is_fetched_is_replaced_by_a_snapshot() {
    let mut settings = Settings { log_bytes_max: 1 << 17, ..Settings::default() };
    settings.mode = Mode::HovercRaft;
    let mut net = Net::elected(&[settings; 3]);
    net.writes(1, 100);
    // It gets metadata of the large body, and nothing of the body.
    net.tamper = Some(Box::new(|to, message| {
        to != 2 || !matches!(message, Message::Bodies { .. } | Message::SnapshotPart { .. })
    }));
    net.write(1_000_000, vec![7; LARGE], &[0, 1]);
    net.run_for(20);
    assert!(net.cores[2].binding.len() > 0);
    net.writes(1000, 3000);
    assert!(net.cores[0].log.first() > 1000, "{}", net.state());
    net.tamper = None;
    net.run_for(3000);
    net.assert_caught_up();
    assert!(net.cores[2].counters.snapshots_installed > 0, "{}", net.state());
}

/// Metadata of a write, with a digest that the leader never ordered.
fn flipped(metadata: &Metadata) -> Metadata {
    let mut metadata = *metadata;
    metadata.flip_bit(3);
    metadata
}

/// The next message with entries to replica 3 has a bit flipped; later ones are whole.
fn flip_next(bit: u32) -> Tamper {
    let mut is_done = false;
    Box::new(move |to, message| {
        if let Message::AppendEntries(append) = message
            && to == 2
            && !is_done
            && let Some(metadata) = append.entries.first_mut()
        {
            metadata.flip_bit(bit);
            is_done = true;
        }
        true
    })
}

#[test]
fn metadata_that_no_body_fits_is_taken_back_and_comes_again() {
    // A bit of the digest, of the identity, and of the length.
    for bit in [3, 64 + 5, 64 + 128 + 2, 64 + 128 + 17] {
        let mut net = Net::elected(&[Settings::default(); 3]);
        net.writes(1, 10);
        net.tamper = Some(flip_next(bit));
        // A copy that is here would be bound, whatever length the order says.
        net.write(99, b"small".to_vec(), &[0, 1]);
        net.writes(100, 20);
        net.run_for(500);
        net.assert_caught_up();
        let counters = net.cores[2].counters;
        assert!(counters.metadata_taken_back > 0, "bit {bit}: {counters:?}");
        assert_eq!(counters.entries_truncated, 0);
    }
}

#[test]
fn a_body_that_is_said_to_be_far_too_long_brings_no_flood_of_questions() {
    let mut net = Net::elected(&[Settings::default(); 3]);
    net.writes(1, 10);
    let mut flip = flip_next(64 + 128 + 29);
    // Nothing of the leader's refusal is heard, so others are asked too.
    net.tamper = Some(Box::new(move |to, message| {
        flip(to, message) && !matches!(message, Message::BodiesRefused { .. })
    }));
    let asked = |net: &Net| net.cores[2].counters.bodies_asked;
    net.write(99, b"small".to_vec(), &[0, 1]);
    net.run_for(1000);
    assert!((1..400).contains(&asked(&net)), "{} times", asked(&net));
    net.tamper = None;
    net.run_for(500);
    net.assert_caught_up();
}

#[test]
fn two_followers_with_unfit_metadata_stop_no_writes() {
    let mut net = Net::elected(&[Settings::default(); 3]);
    net.writes(1, 10);
    let mut left = 2;
    net.tamper = Some(Box::new(move |_, message| {
        if let Message::AppendEntries(append) = message
            && left > 0
            && let Some(metadata) = append.entries.first_mut()
        {
            metadata.flip_bit(3);
            left -= 1;
        }
        true
    }));
    net.writes(100, 20);
    net.run_for(500);
    let commit = net.cores[0].commit_index();
    assert_eq!(commit, net.cores[0].log.last());
    assert!(net.cores.iter().all(|core| core.applied_index() == commit), "{}", net.state());
}

#[test]
fn the_leader_names_a_follower_that_waits_for_a_body() {
    let mut net = Net::elected(&[Settings::default(); 3]);
    net.writes(1, 10);
    net.tamper =
        Some(Box::new(|to, message| to != 2 || !matches!(message, Message::Bodies { .. })));
    net.write(50, b"lost".to_vec(), &[0, 1]);
    let index = net.cores[0].log.last() + 1;
    net.run_for(1000);
    let standstill = |net: &Net| net.cores[0].status().replicas[2].standstill;
    assert_eq!(standstill(&net), Some(Standstill { index, cause: Cause::Body }));
    assert!(net.cores[0].is_leader(), "nobody steps down for it");
    net.tamper = None;
    net.run_for(1000);
    assert_eq!(standstill(&net), None);
    net.assert_caught_up();
}

/// Replica 1 with an entry of term 1 in its log, and metadata of another that no body fits, both
/// from its leader, replica 2.
fn misled() -> (Core, BodyWant) {
    let mut core = core_of((1, 3), Settings::default(), Vec::new(), 1);
    let good = Metadata::of(&write(1, 9, 1), 0).expect("the base is the entry's own");
    let bad = flipped(&Metadata::of(&write(1, 9, 2), 0).expect("the base is the entry's own"));
    core.handle_request(Time::ZERO, crate::core::testing::request(9, 1), return_path(1));
    let entries = vec![good, bad];
    let append = AppendEntries { entries, ..append_noops((0, 0), 1, 0) };
    core.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(append)));
    settle(&mut core, Time::ZERO);
    core.handle_timeout(Time::ZERO + Duration::from_millis(1));
    let wants = settle(&mut core, Time::ZERO).into_iter().find_map(|output| match output {
        Output::Send { envelope, .. } => match envelope.message {
            Message::FetchBodies { wants, .. } => Some(wants),
            _ => None,
        },
        _ => None,
    });
    let want = wants.expect("it asks for what is missing")[0];
    assert_eq!((want.index, core.log.last(), core.commit.verified()), (2, 1, 2));
    (core, want)
}

/// Returns the index after which the core rejects to replica 2 after this refusal.
fn refused(core: &mut Core, from: u16, want: BodyWant, reason: RefusalReason) -> Option<Index> {
    let refusals = vec![BodyRefusal { want, reason }];
    core.handle_message(Time::ZERO, envelope(from, 1, Message::BodiesRefused { refusals }));
    settle(core, Time::ZERO).into_iter().find_map(|output| match output {
        Output::Send { to: NodeId(2), envelope } => match envelope.message {
            Message::AppendReply(AppendReply { rejected_after, .. }) => rejected_after,
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn only_the_leaders_answer_about_what_is_still_here_counts() {
    let reason = RefusalReason::Request;
    // A follower may have less, or another term's entry.
    let (mut core, want) = misled();
    assert_eq!(refused(&mut core, 3, want, reason), None);
    assert_eq!(core.ordered_last(), 2);
    // A late answer about other metadata, and one about what is in the log.
    let other = Key { digest: Digest(5), ..want.key() };
    let late = BodyWant::new(2, 1, other, want.body_len, 0);
    assert_eq!(refused(&mut core, 2, late, reason), None);
    let in_log = crate::core::testing::request(9, 1).key();
    let late = BodyWant::new(1, 1, in_log, want.body_len, 0);
    assert_eq!(refused(&mut core, 2, late, reason), None);
    assert_eq!(core.ordered_last(), 2);
    // The leader's own: the log stays, and what is verified goes back to it.
    assert_eq!(refused(&mut core, 2, want, reason), Some(1));
    assert_eq!((core.ordered_last(), core.log.last(), core.commit.verified()), (1, 1, 1));
    // It comes twice.
    assert_eq!(refused(&mut core, 2, want, reason), None);
    assert_eq!(core.log.last(), 1);
}

#[test]
fn silence_is_no_reason_to_take_anything_back() {
    let (mut core, _) = misled();
    let mut now = Time::ZERO;
    for round in 2..200 {
        now += Duration::from_millis(20);
        let heartbeat = AppendEntries { round, ..append_noops((2, 1), 1, 0) };
        core.handle_message(now, envelope(2, 1, Message::AppendEntries(heartbeat)));
        core.handle_timeout(now);
        settle(&mut core, now);
    }
    assert_eq!((core.ordered_last(), core.log.last(), core.commit.verified()), (2, 1, 2));
}

#[test]
fn entries_in_bulk_and_carried_requests_fill_bodies_of_the_same_entry() {
    let entry = write(1, 9, 1);
    let metadata = Metadata::of(&entry, 0).expect("the base is the entry's own");
    let told = || {
        let mut core = core_of((1, 3), Settings::default(), Vec::new(), 1);
        let append = AppendEntries { entries: vec![metadata], ..append_noops((0, 0), 1, 0) };
        core.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(append.clone())));
        assert_eq!((core.ordered_last(), core.log.last()), (1, 0));
        (core, append)
    };
    let (mut core, append) = told();
    let whole = WholeRequest::new(entry.request().expect("it is a write"), None);
    let append = AppendEntries { requests: vec![(0, whole)], ..append };
    core.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(append)));
    assert_eq!(core.log.last(), 1);
    // In bulk: the leader is far ahead.
    let (mut core, append) = told();
    let heartbeat = AppendEntries { commit: 10_000, entries: Vec::new(), ..append };
    core.handle_message(Time::ZERO, envelope(2, 1, Message::AppendEntries(heartbeat)));
    assert!(core.recovery.is_bulk());
    let entries = vec![WholeEntry::new(&entry, 1000)];
    let (after, after_term, question, until) = (0, 0, 1, 1);
    let message = Message::Entries { after, after_term, entries, question, until };
    core.handle_message(Time::ZERO, envelope(3, 1, message));
    assert_eq!((core.log.last(), core.counters.bodies_carried), (1, 1));
}
