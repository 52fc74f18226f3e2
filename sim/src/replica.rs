//! A replica: the core, the application and the disk, driven as a node drives them.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use hovercraft::{
    Identity, Incarnation, Index, NodeId, Outcome, Request, ReturnPath,
    core::{
        Applier, Committed, Conflict, Core, Output, Reading, Refusal, Response, RestoreError,
        Settings, SnapshotRead, Start, WriteNumber,
    },
    messages::{Envelope, Message},
    node::{begin_run, end_run},
    storage::{Durability, Room},
};
use r2p2::Time;

use crate::{
    clock::Clock,
    disk::{Disk, Published, Snapshot},
    faults::Leaves,
    options::Pace,
    service::{Call, Calls, Watched},
    view::{Samples, View},
    workload::Workload,
};

/// The whole replicated state is compared across replicas at every index that this divides.
const DIGEST_EVERY: Index = 16;

/// What the state of most runs takes.
const SMALL_SNAPSHOT_BYTES: usize = 4096;

/// How many entries an application thread holds that it has not applied.
const UNDER_WAY_MAX: usize = 16;

/// What happened to a replica.
#[derive(Debug)]
pub(crate) enum Input {
    Message(Box<Envelope>),
    Request(Arc<Request>, ReturnPath),
    Stored(WriteNumber),
    Room(Room),
    SnapshotTaken(Box<Snapshot>),
    Staged(Option<Box<Snapshot>>),
    Installed,
    /// The disk had no room to install a received snapshot.
    ReceivedPostponed,
    OwnSnapshot(Option<Box<Snapshot>>),
    Applied(Index),
}

/// What a replica does, for the world and for the invariants.
#[derive(Debug)]
pub(crate) enum Effect {
    Send {
        to: NodeId,
        envelope: Box<Envelope>,
    },
    Aggregate {
        envelope: Box<Envelope>,
    },
    Reply {
        to: ReturnPath,
        identity: Identity,
        outcome: Outcome,
        body: Bytes,
    },
    Drop {
        to: ReturnPath,
        identity: Identity,
        refusal: Option<Refusal>,
    },
    /// An entry was applied; for that the service was called at most once. At some indices with a
    /// view of the whole state.
    Applied {
        committed: Committed,
        call: Option<Call>,
        state: Option<View>,
    },
    /// A snapshot of another replica replaced the state; with a view of what is there now.
    Restored(Box<Snapshot>, Option<View>),
    /// The service could not read one, and has the state of the own snapshot again.
    WentBack(Box<Snapshot>, Option<View>),
    /// A snapshot that it received was not whole.
    RefusedSnapshot,
    /// It has taken a snapshot of this index, which is to be written; and what a fresh service that
    /// it is restored into says otherwise, if anything.
    TookSnapshot(Index, Option<String>),
    Stop(Conflict),
}

/// One replica, over all its runs.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) node: NodeId,
    pub(crate) settings: Settings,
    /// Most bytes of an entry in this run.
    pub(crate) entry_bytes_max: u64,
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    /// None while it is down.
    pub(crate) life: Option<Life>,
    /// Counts its starts.
    pub(crate) run: u64,
    pub(crate) paused_until: Time,
    /// Its turns take up to so much longer.
    pub(crate) slow_us: u64,
    /// It is down, and may have lost what it had acknowledged.
    pub(crate) lost: bool,
    /// The digest of its state is looked at from time to time.
    pub(crate) digests: bool,
    rng: fastrand::Rng,
}

/// What a process has in memory.
pub(crate) struct Life {
    pub(crate) core: Core,
    pub(crate) applier: Applier,
    calls: Calls,
    pub(crate) inbox: Vec<Input>,
    /// When the inbox will be looked at.
    pub(crate) turn_at: Option<Time>,
    /// What an application thread has been handed.
    pub(crate) tasks: VecDeque<Committed>,
    pub(crate) is_applying: bool,
    /// Its service has panicked; nothing is applied any more.
    is_poisoned: bool,
    in_thread: bool,
    /// Its snapshots have so many bytes more than they need, so that they travel in parts.
    ballast_bytes: usize,
    /// At which indices the whole state is looked at; 0 for none.
    digest_every: Index,
    /// The snapshot that another replica reads.
    open: Option<Snapshot>,
    workload: Arc<dyn Workload>,
    samples: Samples,
    /// Used again, so that a turn allocates nothing.
    replies: Vec<Effect>,
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Life").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Replica {
    pub(crate) fn new(
        node: NodeId,
        (settings, entry_bytes_max): (Settings, u64),
        disk: Disk,
        clock: Clock,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            node,
            settings,
            entry_bytes_max,
            disk,
            clock,
            life: None,
            run: 0,
            paused_until: Time::ZERO,
            slow_us: 0,
            digests: true,
            lost: false,
            rng,
        }
    }

    /// Starts the process.
    pub(crate) fn start(&mut self, now: Time, pace: Pace, workload: &Arc<dyn Workload>) {
        self.run += 1;
        self.clock.start(now);
        let loaded = self.disk.load();
        loaded.check().unwrap_or_else(|what| panic!("what is loaded is no log: {what}"));
        let drawn = Incarnation(self.rng.u64(1..));
        let hard_state = begin_run(&loaded, self.settings.durability, drawn);
        self.lost = false;
        self.disk.save_hard_state(&hard_state);
        let birth = hard_state.birth.clone().expect("every disk of the simulation was initialised");
        let calls = Calls::default();
        let watched = Watched::new(workload.service(), calls.clone());
        let configuration = Arc::new(birth.configuration);
        let mut applier =
            Applier::new(Box::new(watched), birth.cluster, birth.digest_key, configuration);
        if let Some(snapshot) = self.disk.snapshot() {
            restore(&mut applier, snapshot, pace.ballast_bytes)
                .expect("a service can read its own snapshot");
        }
        let start = Start { hard_state, loaded, settings: self.settings, seed: self.rng.u64(..) };
        let local = self.clock.local(now);
        let mut core = Core::new(start, local);
        core.handle_room(self.disk.room());
        self.life = Some(Life {
            core,
            applier,
            calls,
            inbox: Vec::new(),
            turn_at: None,
            tasks: VecDeque::new(),
            is_applying: false,
            is_poisoned: false,
            in_thread: pace.apply_max_us.is_some(),
            ballast_bytes: pace.ballast_bytes,
            digest_every: if self.digests { DIGEST_EVERY } else { 0 },
            open: None,
            workload: Arc::clone(workload),
            samples: Samples::of(workload.as_ref()),
            replies: Vec::new(),
        });
    }

    /// The process dies. Returns whether a torn tail was cut from its log.
    pub(crate) fn kill(&mut self, leaves: Leaves) -> bool {
        self.life = None;
        self.lost |= self.disk.durability() != Durability::Sync;
        self.disk.crash(leaves)
    }

    /// The process stops in good order, if it can.
    pub(crate) fn stop(&mut self) {
        if let Some(life) = &mut self.life
            && life.core.may_stop_clean()
        {
            let log = life.core.log_for_clean_stop();
            self.disk.stop(log, end_run(life.core.hard_state()));
            self.life = None;
        }
    }

    /// The service panics on the next entry.
    pub(crate) fn poison(&mut self, now: Time) {
        let local = self.clock.local(now);
        if let Some(life) = &mut self.life {
            life.is_poisoned = true;
            life.tasks.clear();
            life.core.handle_poisoned(local);
        }
    }

    /// Takes what is in the inbox, lets the core decide, and does what it says.
    pub(crate) fn turn(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let (local, wall_us) = (self.clock.local(now), self.clock.wall_us(now));
        #[cfg(feature = "planted")]
        hovercraft::planted::set_clock_us(local.as_micros());
        let Some(life) = &mut self.life else { return };
        life.turn_at = None;
        life.core.handle_wake(local);
        let mut inbox = std::mem::take(&mut life.inbox);
        for input in inbox.drain(..) {
            life.input(local, input, &mut self.disk, effects);
        }
        life.inbox = inbox;
        life.core.handle_timeout(local);
        loop {
            life.core.flush(local, wall_us);
            while let Some(output) = life.core.poll_output() {
                life.output(local, output, &mut self.disk, effects);
            }
            if !life.apply(local, effects) {
                return;
            }
        }
    }

    /// The application thread applies the next entry that it was handed; its index.
    pub(crate) fn apply_next(&mut self, effects: &mut Vec<Effect>) -> Option<Index> {
        let life = self.life.as_mut()?;
        let committed = life.tasks.pop_front()?;
        let index = committed.index;
        life.apply_one(committed, effects);
        Some(index)
    }
}

impl Life {
    pub(crate) fn without_digests(&mut self) {
        self.digest_every = 0;
    }

    fn input(&mut self, now: Time, input: Input, disk: &mut Disk, effects: &mut Vec<Effect>) {
        match input {
            Input::Message(envelope) => {
                let is_announced = is_announced_to_follower(&self.core, &envelope);
                let before = is_announced.then(|| self.core.poll_timeout());
                self.core.handle_message(now, *envelope);
                let is_later = before.is_some_and(|before| self.core.poll_timeout() > before);
                assert!(!is_later, "an announcement of the aggregator is no sign of life (P29)");
            }
            Input::Request(request, path) => self.core.handle_request(now, request, path),
            Input::Stored(number) => self.core.handle_stored(now, number),
            Input::Room(room) => self.core.handle_room(room),
            Input::SnapshotTaken(snapshot) => {
                let meta = snapshot.meta.clone();
                match disk.publish(*snapshot) {
                    Published::Latest => self.core.handle_snapshot(now, Some(&meta)),
                    Published::Spoiled => self.core.handle_snapshot(now, None),
                    Published::Postponed => self.core.handle_snapshot_postponed(now),
                }
            }
            Input::Staged(None) => {
                self.core.handle_staged(now, Reading::Refused);
                effects.push(Effect::RefusedSnapshot);
            }
            Input::Staged(Some(snapshot)) => {
                self.finish_tasks(now, effects);
                if disk.spoils_reading() {
                    self.calls.break_restore();
                }
                self.read_received(now, snapshot, effects);
            }
            Input::ReceivedPostponed => self.core.handle_received_postponed(now),
            Input::Installed => {
                // One of the same index may have other bytes.
                self.open = None;
                self.core.handle_installed(now);
            }
            Input::OwnSnapshot(snapshot) => self.go_back(now, snapshot, effects),
            // A snapshot may have been installed meanwhile.
            Input::Applied(index) if index <= self.core.applied_index() => {}
            Input::Applied(index) => {
                self.core.note_sessions(self.applier.sessions().0);
                self.core.handle_applied(now, index);
            }
        }
    }

    /// A thread does what it was handed before it reads a snapshot.
    fn finish_tasks(&mut self, now: Time, effects: &mut Vec<Effect>) {
        while let Some(committed) = self.tasks.pop_front() {
            let index = committed.index;
            self.apply_one(committed, effects);
            self.core.handle_applied(now, index);
        }
    }

    /// The service reads a snapshot of another replica.
    fn read_received(&mut self, now: Time, snapshot: Box<Snapshot>, effects: &mut Vec<Effect>) {
        let reading = match restore(&mut self.applier, &snapshot, self.ballast_bytes) {
            Ok(()) => {
                self.is_poisoned = false;
                let state = self.state();
                effects.push(Effect::Restored(snapshot, state));
                Reading::Complete
            }
            Err(RestoreError::Refused(_)) => Reading::Refused,
            Err(RestoreError::Failed(_)) => Reading::Failed,
        };
        self.core.handle_staged(now, reading);
    }

    /// The service reads the own snapshot again.
    fn go_back(&mut self, now: Time, snapshot: Option<Box<Snapshot>>, effects: &mut Vec<Effect>) {
        let read = snapshot
            .filter(|snapshot| restore(&mut self.applier, snapshot, self.ballast_bytes).is_ok());
        self.is_poisoned = read.is_none();
        if let Some(snapshot) = read {
            self.core.handle_went_back(now, Some(snapshot.meta.index));
            let state = self.state();
            effects.push(Effect::WentBack(snapshot, state));
        } else {
            self.core.handle_went_back(now, None);
            self.core.handle_poisoned(now);
        }
    }

    fn state(&self) -> Option<View> {
        (self.digest_every > 0).then(|| self.view()).flatten()
    }

    fn output(&mut self, now: Time, output: Output, disk: &mut Disk, effects: &mut Vec<Effect>) {
        match output {
            Output::Send { to, envelope } => effects.push(Effect::Send { to, envelope }),
            Output::Aggregate { envelope } => effects.push(Effect::Aggregate { envelope }),
            Output::Write(write) => disk.write(write),
            Output::Drop { to, identity, refusal } => {
                effects.push(Effect::Drop { to, identity, refusal });
            }
            Output::AnswerRetry { request, to } => {
                let mut respond = |response: Response<'_>| effects.push(reply(&response));
                if !self.applier.answer_retry(request.key(), to, &mut respond) {
                    self.core.order_again(now, &request, to);
                }
            }
            Output::TakeSnapshot => {
                let Some(snapshot) = take(&self.applier, self.ballast_bytes) else {
                    self.core.handle_snapshot(now, None);
                    return;
                };
                let lost = self.lost_by(&snapshot);
                effects.push(Effect::TookSnapshot(snapshot.meta.index, lost));
                disk.take_snapshot(Box::new(snapshot));
            }
            Output::ReadSnapshot(read) => self.read_snapshot(read, disk),
            Output::KeepSnapshotPart { offset, data } => {
                if !disk.keep_part(offset, &data) {
                    self.core.handle_received_postponed(now);
                }
            }
            Output::StageSnapshot { meta } => disk.stage(*meta),
            Output::InstallSnapshot { keep_tail, .. } => disk.install(keep_tail),
            Output::DiscardSnapshot { restores_own } => disk.discard(restores_own),
            Output::Stop(conflict) => effects.push(Effect::Stop(conflict)),
        }
    }

    /// Sends a part of a snapshot. One that is being read stays readable when a newer one replaces
    /// it.
    fn read_snapshot(&mut self, read: SnapshotRead, disk: &Disk) {
        if self.open.as_ref().is_none_or(|open| open.meta.index != read.index) {
            self.open = disk.snapshot().cloned();
        }
        let Some(Snapshot { meta, data }) = &self.open else { return };
        // Of another snapshot than was asked for, the reader needs the beginning.
        let offset = if meta.index == read.index { read.offset } else { 0 };
        let rest = &data[data.len().min(offset as usize)..];
        let part = rest[..rest.len().min(read.bytes as usize)].to_vec();
        self.core.send_snapshot_part(read, meta.clone(), offset, part);
    }

    /// Applies what is committed, or hands it to the thread; false if nothing came of it.
    fn apply(&mut self, now: Time, effects: &mut Vec<Effect>) -> bool {
        let mut applied = None;
        while !self.is_poisoned && (!self.in_thread || self.tasks.len() < UNDER_WAY_MAX) {
            let Some(committed) = self.core.poll_apply() else { break };
            if self.in_thread {
                self.tasks.push_back(committed);
            } else {
                applied = Some(committed.index);
                self.apply_one(committed, effects);
            }
        }
        if let Some(index) = applied {
            self.core.note_sessions(self.applier.sessions().0);
            self.core.handle_applied(now, index);
        }
        applied.is_some()
    }

    /// Returns what the whole state looks like; none of a poisoned service.
    pub(crate) fn view(&self) -> Option<View> {
        self.samples.view(&self.applier, &self.calls)
    }

    /// Restores a snapshot into a fresh service, and says what is different there.
    fn lost_by(&self, snapshot: &Snapshot) -> Option<String> {
        if self.digest_every == 0 {
            return None;
        }
        let calls = Calls::default();
        let watched = Watched::new(self.workload.service(), calls.clone());
        let configuration = Arc::new(snapshot.meta.configuration.clone());
        let key = snapshot.meta.digest_key;
        let mut fresh = Applier::new(Box::new(watched), 0, key, configuration);
        if let Err(error) = restore(&mut fresh, snapshot, self.ballast_bytes) {
            return Some(format!("a fresh service cannot read it: {error}"));
        }
        let own = self.view()?;
        let Some(restored) = self.samples.view(&fresh, &calls) else {
            return Some("a fresh service that has read it takes no snapshot".to_owned());
        };
        let named = (("the service", &own), ("a fresh one with its snapshot", &restored));
        let differs = || self.samples.difference(self.workload.as_ref(), named.0, named.1);
        (own != restored).then(differs)
    }

    fn apply_one(&mut self, committed: Committed, effects: &mut Vec<Effect>) {
        let Self { applier, replies, .. } = self;
        applier
            .apply(&committed, &mut |response| replies.push(reply(&response)))
            .unwrap_or_else(|poisoned| panic!("{poisoned}"));
        let call = self.calls.take();
        let is_chosen = committed.index.is_multiple_of(self.digest_every);
        let state = is_chosen.then(|| self.view()).flatten();
        effects.push(Effect::Applied { committed, call, state });
        effects.append(&mut self.replies);
    }
}

/// Whether this is what an aggregator says to a follower in its term: hearing that must put off
/// nothing (P29).
fn is_announced_to_follower(core: &Core, envelope: &Envelope) -> bool {
    let is_announcement = matches!(envelope.message, Message::AggCommit(_));
    let is_current = envelope.term == core.hard_state().term;
    is_announcement && is_current && !core.is_leader()
}

fn reply(response: &Response<'_>) -> Effect {
    Effect::Reply {
        to: response.to,
        identity: response.identity,
        outcome: response.outcome,
        body: Bytes::copy_from_slice(response.body),
    }
}

/// The whole replicated state of one replica, as a snapshot, and so many bytes behind it; none of a
/// poisoned service.
fn take(applier: &Applier, ballast_bytes: usize) -> Option<Snapshot> {
    let (mut meta, writer) = applier.snapshot()?;
    let mut data = Vec::with_capacity(SMALL_SNAPSHOT_BYTES + ballast_bytes);
    writer(&mut data).expect("writing into memory does not fail");
    data.resize(data.len() + ballast_bytes, meta.index as u8);
    meta.size_bytes = data.len() as u64;
    meta.checksum = crc32fast::hash(&data);
    Some(Snapshot { meta, data: Bytes::from(data) })
}

fn restore(
    applier: &mut Applier,
    snapshot: &Snapshot,
    ballast_bytes: usize,
) -> Result<(), RestoreError> {
    let state = &snapshot.data[..snapshot.data.len() - ballast_bytes];
    applier.restore(&snapshot.meta, &mut &state[..])
}
