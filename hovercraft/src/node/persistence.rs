//! The storage role: it owns the log store, so that nothing else waits for a disk.
//!
//! Its queue is bounded: the core hands over no more than a number of bytes of entries that are not
//! complete, and asks for one snapshot at a time; the network loop counts the parts that are read
//! and the bytes of those that are kept.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use crate::{
    core::{SnapshotRead, Write, WriteNumber},
    entropy::random_u64,
    entry::{Entry, Index},
    node::roles::{self, Next, Receiver, Role, Sender},
    state_machine::SnapshotWriter,
    storage::{
        self, Durability, HardState, LogStore, OpenSnapshot, Room, SnapshotMeta, SnapshotSink,
        SnapshotSource, SnapshotStore, StoreError,
    },
};

/// What the storage role is asked to do, in this order.
pub(crate) enum Job {
    Write(Write),
    /// Write a snapshot of what is applied.
    TakeSnapshot(SnapshotMeta, SnapshotWriter),
    /// Read a part of a snapshot, for another replica.
    ReadSnapshot(SnapshotRead),
    /// Keep a part of a snapshot of another replica.
    KeepPart {
        offset: u64,
        data: Vec<u8>,
    },
    /// Check the parts, and open them for the service to read.
    Stage(SnapshotMeta),
    Install {
        meta: SnapshotMeta,
        keep_tail: bool,
    },
    /// Delete the parts, and open the latest own snapshot if the service needs it.
    Discard {
        reads_own: bool,
    },
    /// Sync everything, and save this as the last word.
    Stop(HardState),
}

/// What the storage role has done.
pub(crate) enum Done {
    /// Everything up to this write, and on disk as the durability demands.
    Stored(WriteNumber),
    /// None if the service could not write it; the next one will do.
    SnapshotTaken(Option<SnapshotMeta>),
    /// There was no room for it; nothing else has changed (P38).
    SnapshotPostponed,
    /// A part of a snapshot and where it lies; none if there is none to be read.
    SnapshotPart { read: SnapshotRead, part: Option<(SnapshotMeta, u64, Vec<u8>)> },
    /// So many bytes of a received part.
    PartKept(usize),
    /// The received parts, to be read; none if they are not what they claimed to be.
    Staged(Option<(SnapshotMeta, Box<dyn SnapshotSource>)>),
    /// The received snapshot is the latest one.
    Installed,
    /// The latest own snapshot, to be read again; none if there is none.
    Own(Option<(SnapshotMeta, Box<dyn SnapshotSource>)>),
    /// There was no room for a received snapshot, and what was kept of it is gone (P38).
    ReceivedPostponed,
    /// The room that the log has, before the writes that it is less for are said to be stored.
    Room(Room),
    /// After the first failure the node stops (P38).
    Failed(StoreError),
}

/// How often entries are synced in the durability `interval`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Syncing {
    pub(crate) durability: Durability,
    pub(crate) interval: Duration,
}

/// Number of snapshots that are kept open for readers, and for how long after they were last read.
const OPEN_MAX: usize = 2;
const OPEN_FOR: Duration = Duration::from_secs(10);

/// A snapshot that another replica reads.
struct Open {
    snapshot: OpenSnapshot,
    read_at: Instant,
}

/// Bytes that an append takes of [`Room::bytes`] beside its entries.
const APPEND_BYTES: usize = 64;

/// The room that the log has, as it was last told; asked for again and again while the disk is full.
#[derive(Debug)]
struct RoomWatch {
    /// Bytes of the largest entry that there can be.
    entry_bytes_max: u64,
    told: Room,
    /// Number of times in a row that the disk had no more.
    refusals: u32,
    /// Time from which it is asked again.
    due: Option<Instant>,
    /// Bytes that appends took since it was asked.
    used_bytes: u64,
    rng: fastrand::Rng,
}

impl RoomWatch {
    /// The pause after the disk first had no more; then it doubles.
    const PAUSE_MIN: Duration = Duration::from_millis(50);
    /// So often at most: five times, to have at least 0.8 s.
    const DOUBLINGS_MAX: u32 = 4;

    fn new(entry_bytes_max: u64, told: Room) -> Self {
        Self {
            entry_bytes_max,
            told,
            refusals: 0,
            due: None,
            used_bytes: 0,
            rng: fastrand::Rng::with_seed(random_u64()),
        }
    }

    /// Counts what an append takes while the disk is not asked.
    fn take(&mut self, entries: &[Entry]) {
        if self.due.is_some() {
            let bytes = entries.iter().map(Entry::size_bytes).sum::<usize>() + APPEND_BYTES;
            self.used_bytes += bytes as u64;
        }
    }

    /// Whether the disk is not to be asked yet.
    fn is_resting(&self) -> bool {
        self.due.is_some_and(|due| Instant::now() < due)
    }

    /// Returns what there is at least, if appends took any since the disk was asked.
    fn rest(&mut self) -> Option<Room> {
        let used_bytes = std::mem::take(&mut self.used_bytes);
        self.told.bytes = self.told.bytes.saturating_sub(used_bytes);
        (used_bytes > 0).then_some(self.told)
    }

    /// Takes note of what there is; returns it if that is news.
    fn note(&mut self, room: Room) -> Option<Room> {
        self.used_bytes = 0;
        if room.is_full {
            let longest = Self::PAUSE_MIN * 2u32.pow(self.refusals.min(Self::DOUBLINGS_MAX));
            // Drawn, so that replicas that share a disk do not ask at the same time.
            let longest_us = longest.as_micros() as u64;
            let pause = Duration::from_micros(self.rng.u64(longest_us / 2..=longest_us));
            self.due = Some(Instant::now() + pause);
            self.refusals = self.refusals.saturating_add(1);
        } else {
            (self.due, self.refusals) = (None, 0);
        }
        if room.is_full != self.told.is_full {
            if room.is_full {
                tracing::warn!(
                    left_bytes = room.bytes,
                    "the disk is full: requests are refused when the log has used up the room that \
                     is reserved; make room on the disk, and this replica goes on by itself"
                );
            } else {
                tracing::info!("there is room on the disk again");
            }
        }
        (std::mem::replace(&mut self.told, room) != room).then_some(room)
    }

    /// How long it may wait until the disk is asked again; none if there is no need.
    fn pause(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }
}

pub(crate) struct Persistence {
    store: Box<dyn LogStore>,
    syncing: Syncing,
    done: Sender<Done>,
    waker: Waker,
    /// The snapshot that is being received.
    sink: Option<Box<dyn SnapshotSink>>,
    /// The role that writes a snapshot, or has written the last one.
    writer: Option<Role<()>>,
    /// Snapshots that other replicas read, the one that was last read at the end. They stay
    /// readable when a newer one replaces them, so that no reader begins anew.
    open: Vec<Open>,
    /// Entries were appended since the last sync.
    is_dirty: bool,
    synced_at: Instant,
    room: RoomWatch,
    /// An append that found no room, and the jobs behind it (P38). The core hands over no such
    /// append, unless room was lost that had been reserved: by a copy of the directory, say.
    waiting: VecDeque<Job>,
}

impl Persistence {
    /// `room` is what the store has said for entries of up to `entry_bytes_max`.
    pub(crate) fn new(
        store: Box<dyn LogStore>,
        syncing: Syncing,
        done: Sender<Done>,
        waker: Waker,
        (entry_bytes_max, room): (u64, Room),
    ) -> Self {
        let mut watch = RoomWatch::new(entry_bytes_max, Room::UNLIMITED);
        watch.note(room);
        let synced_at = Instant::now();
        Self {
            store,
            syncing,
            done,
            waker,
            sink: None,
            writer: None,
            open: Vec::new(),
            is_dirty: false,
            synced_at,
            room: watch,
            waiting: VecDeque::new(),
        }
    }

    /// Works until it is told to stop, or its queue is closed, or something fails.
    pub(crate) async fn run(mut self, mut jobs: Receiver<Job>) {
        let result = loop {
            match self.turn(&mut jobs).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // A snapshot that is still being written must not outlive the store: the directory is
        // free for another run after that.
        if let Some(writer) = self.writer.take() {
            // Its panics are caught inside.
            let _ = writer.join().await;
        }
        if let Err(error) = result {
            tracing::error!(%error, "storage failed: this replica stops");
            self.tell(Done::Failed(error));
        }
    }

    /// Does what waits, with one sync for all of it; false at the end.
    async fn turn(&mut self, jobs: &mut Receiver<Job>) -> Result<bool, StoreError> {
        let mut stored = None;
        let mut goes_on = true;
        let pause = self.sync_due().into_iter().chain(self.room.pause()).min();
        let mut next = match jobs.next(pause).await {
            Next::Message(job) => Some(job),
            Next::TimedOut => None,
            Next::Closed => {
                goes_on = false;
                None
            }
        };
        if !self.room.is_resting() {
            for job in std::mem::take(&mut self.waiting) {
                stored = self.job(job).await?.or(stored);
            }
        }
        while let Some(job) = next {
            if let Job::Stop(state) = job {
                self.stop(&state).await?;
                goes_on = false;
                break;
            }
            stored = self.job(job).await?.or(stored);
            next = jobs.try_next();
        }
        if self.syncing.durability == Durability::Sync
            || self.synced_at.elapsed() >= self.syncing.interval
        {
            self.sync().await?;
        }
        // Before what it is less for is said to be stored: the core must not give that room twice.
        if let Some(room) = self.look_for_room()? {
            self.tell(Done::Room(room));
        }
        if let Some(number) = stored {
            self.tell(Done::Stored(number));
        }
        Ok(goes_on)
    }

    /// Does a job, or keeps it behind an append that waits for room.
    async fn job(&mut self, job: Job) -> Result<Option<WriteNumber>, StoreError> {
        if !self.waiting.is_empty() {
            self.waiting.push_back(job);
            return Ok(None);
        }
        let Job::Write(write) = job else {
            self.snapshot_job(job).await?;
            return Ok(None);
        };
        match self.write(&write).await {
            Err(error @ StoreError::Full { .. }) => {
                tracing::error!(%error, "the log waits for room that it had reserved");
                self.waiting.push_back(Job::Write(write));
                Ok(None)
            }
            result => result,
        }
    }

    /// The end of a run in good order, unless something waits for room: then the run ends as by a
    /// crash.
    async fn stop(&mut self, state: &HardState) -> Result<(), StoreError> {
        if self.waiting.is_empty() {
            self.sync().await?;
            self.store.save_hard_state(state)?;
        }
        Ok(())
    }

    /// Returns the room that the log has, if that is news.
    fn look_for_room(&mut self) -> Result<Option<Room>, StoreError> {
        if self.room.is_resting() {
            return Ok(self.room.rest());
        }
        let mut room = self.store.room(self.room.entry_bytes_max)?;
        if !self.waiting.is_empty() {
            (room.bytes, room.is_full) = (0, true);
        }
        Ok(self.room.note(room))
    }

    /// How long it may wait for the next job; for ever if there is nothing to sync.
    fn sync_due(&self) -> Option<Duration> {
        let left = self.syncing.interval.saturating_sub(self.synced_at.elapsed());
        self.is_dirty.then_some(left)
    }

    async fn write(&mut self, write: &Write) -> Result<Option<WriteNumber>, StoreError> {
        match write {
            Write::HardState { number, state } => {
                roles::disk_time(self.store.as_mut()).await;
                self.store.save_hard_state(state)?;
                Ok(Some(*number))
            }
            Write::Append { number, first, entries } => {
                self.store.append(*first, entries)?;
                self.room.take(entries);
                self.is_dirty = true;
                Ok(Some(*number))
            }
            Write::Trim { first } => {
                self.store.trim(*first)?;
                Ok(None)
            }
        }
    }

    async fn sync(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_dirty) {
            roles::disk_time(self.store.as_mut()).await;
            self.store.sync()?;
            self.synced_at = Instant::now();
        }
        Ok(())
    }

    async fn snapshot_job(&mut self, job: Job) -> Result<(), StoreError> {
        match job {
            Job::TakeSnapshot(meta, writer) => {
                // P36: every write up to that of the snapshot's last entry has come before this
                // job. Unsynced, one of them may be a truncation that a crash undoes, and the
                // snapshot would stand beside a log that it does not fit.
                self.sync().await?;
                self.take_snapshot(meta, writer);
            }
            Job::ReadSnapshot(read) => self.read_part(read)?,
            Job::KeepPart { offset, data } => {
                self.keep_part(offset, &data)?;
                self.tell(Done::PartKept(data.len()));
            }
            Job::Stage(meta) => {
                roles::disk_time(self.store.as_mut()).await;
                self.stage(meta)?;
            }
            Job::Install { meta, keep_tail } => {
                roles::disk_time(self.store.as_mut()).await;
                self.install(&meta, keep_tail)?;
            }
            Job::Discard { reads_own } => {
                self.sink = None;
                if reads_own {
                    let own = self.store.snapshots().open()?;
                    self.tell(Done::Own(own.map(|own| (own.meta, own.source))));
                }
            }
            Job::Write(_) | Job::Stop(_) => unreachable!("these are not snapshot jobs"),
        }
        Ok(())
    }

    /// Writes a snapshot in a role of its own: it may take long, and appends must not wait.
    fn take_snapshot(&mut self, meta: SnapshotMeta, writer: SnapshotWriter) {
        // The files of snapshots that were replaced take room on the disk while they are open.
        self.open.retain(|open| open.read_at.elapsed() < OPEN_FOR);
        let (store, done) = (self.store.snapshots(), self.done.clone());
        let waker = self.waker.clone();
        let disk_time = roles::disk_time(self.store.as_mut());
        let write = async move {
            disk_time.await;
            let index = meta.index;
            // A service that panics while it writes has lost this snapshot and nothing else.
            let result = catch_unwind(AssertUnwindSafe(|| write_snapshot(&store, meta, writer)));
            let said = match result {
                Ok(Ok(meta)) => Done::SnapshotTaken(Some(meta)),
                Ok(Err(Unwritten::ByService(error))) => {
                    tracing::error!(index, %error, "the service could not write a snapshot");
                    Done::SnapshotTaken(None)
                }
                // Nothing rests on it yet: what was written of it is gone (P38).
                Ok(Err(Unwritten::ByDisk(error @ StoreError::Full { .. }))) => {
                    tracing::warn!(index, %error, "a snapshot is put off");
                    Done::SnapshotPostponed
                }
                // Its log would grow full, and a leader would order nothing more, for ever (P38).
                Ok(Err(Unwritten::ByDisk(error))) => Done::Failed(error),
                Err(_) => {
                    tracing::error!(index, "the service panicked while it wrote a snapshot");
                    Done::SnapshotTaken(None)
                }
            };
            // The node may have stopped meanwhile.
            let _ = done.send(said);
            waker.wake();
        };
        match roles::spawn("snapshot", write) {
            // One at a time: the core asks for the next when it has heard of this one.
            Ok(role) => self.writer = Some(role),
            Err(error) => {
                tracing::error!(%error, "no thread for a snapshot");
                self.tell(Done::SnapshotTaken(None));
            }
        }
    }

    fn read_part(&mut self, read: SnapshotRead) -> Result<(), StoreError> {
        let mut is_readable = true;
        let part = self.open_at(read.index)?.and_then(|snapshot| {
            // Of another snapshot than was asked for, the reader needs the beginning.
            let is_asked = snapshot.meta.index == read.index;
            let offset = if is_asked { read.offset } else { 0 };
            let mut data = vec![0; read.bytes as usize];
            match snapshot.source.read_at(offset, &mut data) {
                Ok(len) => {
                    data.truncate(len);
                    Some((snapshot.meta.clone(), offset, data))
                }
                Err(error) => {
                    tracing::error!(index = read.index, %error, "a snapshot cannot be read");
                    is_readable = false;
                    None
                }
            }
        });
        if !is_readable {
            self.open.pop();
        }
        self.tell(Done::SnapshotPart { read, part });
        Ok(())
    }

    /// Returns the snapshot at an index if it is still open, else the latest.
    fn open_at(&mut self, index: Index) -> Result<Option<&mut OpenSnapshot>, StoreError> {
        let place =
            |open: &[Open], index| open.iter().position(|it| it.snapshot.meta.index == index);
        let mut at = place(&self.open, index);
        if at.is_none() {
            let Some(snapshot) = self.store.snapshots().open()? else {
                return Ok(None);
            };
            at = place(&self.open, snapshot.meta.index);
            if at.is_none() {
                if self.open.len() == OPEN_MAX {
                    self.open.remove(0);
                }
                self.open.push(Open { snapshot, read_at: Instant::now() });
            }
        }
        if let Some(at) = at {
            let open = self.open.remove(at);
            self.open.push(open);
        }
        let last = self.open.last_mut();
        Ok(last.map(|open| {
            open.read_at = Instant::now();
            &mut open.snapshot
        }))
    }

    fn keep_part(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let kept = self.write_part(offset, data);
        self.unless_full(kept)
    }

    fn write_part(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if offset == 0 {
            self.sink = None;
            self.sink = Some(self.store.snapshots().create()?);
        }
        if let Some(sink) = &mut self.sink {
            let action = || format!("write {} bytes of a received snapshot", data.len());
            sink.write_all(data).map_err(|source| unwritten(action(), source))?;
        }
        Ok(())
    }

    /// Puts off what is being received if the disk has no room for it.
    fn unless_full(&mut self, result: Result<(), StoreError>) -> Result<(), StoreError> {
        let Err(error @ StoreError::Full { .. }) = result else { return result };
        tracing::warn!(%error, "a received snapshot is put off");
        // With what was written of it: nothing rests on that yet.
        self.sink = None;
        self.tell(Done::ReceivedPostponed);
        Ok(())
    }

    /// Checks what was received, and opens it. Nothing else changes.
    fn stage(&mut self, meta: SnapshotMeta) -> Result<(), StoreError> {
        let staged = match &mut self.sink {
            None => None,
            Some(sink) => match meta.check_written(sink.written()) {
                Ok(()) => {
                    let read = sink.read_back();
                    let action = || "read a received snapshot".to_owned();
                    let read = read.map_err(|source| unwritten(action(), source));
                    match read {
                        Ok(source) => Some(source),
                        Err(error) => {
                            self.unless_full(Err(error))?;
                            None
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "a received snapshot is not what it should be");
                    None
                }
            },
        };
        self.tell(Done::Staged(staged.map(|source| (meta, source))));
        Ok(())
    }

    /// The service has read what was received: it becomes the latest snapshot.
    fn install(&mut self, meta: &SnapshotMeta, keep_tail: bool) -> Result<(), StoreError> {
        let sink = self.sink.take().expect("it was staged, and no part has come since");
        let installed = self.store.install(sink, meta, keep_tail);
        if installed.is_ok() {
            // One of the same index may have other bytes.
            self.open.clear();
            self.tell(Done::Installed);
        }
        self.unless_full(installed)
    }

    fn tell(&self, done: Done) {
        // If nobody listens any more the node is stopping, and nobody needs to know.
        let _ = self.done.send(done);
        self.waker.wake_by_ref();
    }
}

/// Why there is no snapshot.
enum Unwritten {
    ByService(io::Error),
    ByDisk(StoreError),
}

/// Hands on what a service writes, and remembers why that failed, if it did.
struct Watched<'a> {
    sink: &'a mut dyn SnapshotSink,
    failure: Option<io::Error>,
}

impl Watched<'_> {
    fn watch<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failure.get_or_insert(error);
            }
            kind.into()
        })
    }
}

impl io::Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.sink.write(bytes);
        self.watch(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.sink.flush();
        self.watch(result)
    }
}

/// The error of a snapshot that could not be written.
fn unwritten(action: String, source: io::Error) -> StoreError {
    let place = "the data directory".to_owned();
    if storage::is_full(&source) {
        return StoreError::Full { action, place };
    }
    StoreError::Io { action, place, source }
}

fn write_snapshot(
    store: &Arc<dyn SnapshotStore>,
    mut meta: SnapshotMeta,
    writer: SnapshotWriter,
) -> Result<SnapshotMeta, Unwritten> {
    let mut sink = store.create().map_err(Unwritten::ByDisk)?;
    let mut watched = Watched { sink: sink.as_mut(), failure: None };
    let mut buffered = io::BufWriter::with_capacity(1 << 16, &mut watched);
    let result = writer(&mut buffered).and_then(|()| buffered.flush());
    // What is left in it after a failure is not tried again.
    let _ = buffered.into_parts();
    if let Some(source) = watched.failure {
        return Err(Unwritten::ByDisk(unwritten("write a snapshot".to_owned(), source)));
    }
    result.map_err(Unwritten::ByService)?;
    (meta.size_bytes, meta.checksum) = sink.written();
    store.publish(sink, &meta).map_err(Unwritten::ByDisk)?;
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use std::{any::Any, sync::Mutex};

    use super::*;
    use crate::{
        core::testing::{DIGEST_KEY, configuration, noop},
        entry::{Entry, NodeId},
        node::roles::channel,
        storage::Loaded,
    };

    /// A store that keeps nothing, and notes what it was asked to do, in order.
    #[derive(Clone, Default)]
    struct Noting {
        calls: Arc<Mutex<Vec<&'static str>>>,
        /// Number of appends that find the disk full.
        full: u32,
    }

    impl Noting {
        fn note(&self, call: &'static str) {
            self.calls.lock().unwrap().push(call);
        }
    }

    impl LogStore for Noting {
        fn load(&mut self) -> Result<Loaded, StoreError> {
            unreachable!("it was loaded before")
        }

        fn save_hard_state(&mut self, _: &HardState) -> Result<(), StoreError> {
            self.note("save the hard state");
            Ok(())
        }

        fn append(&mut self, _: Index, _: &[Entry]) -> Result<(), StoreError> {
            if self.full > 0 {
                self.full -= 1;
                let (action, place) = ("append".to_owned(), "memory".to_owned());
                return Err(StoreError::Full { action, place });
            }
            self.note("append");
            Ok(())
        }

        fn sync(&mut self) -> Result<(), StoreError> {
            self.note("sync");
            Ok(())
        }

        fn trim(&mut self, _: Index) -> Result<(), StoreError> {
            self.note("trim");
            Ok(())
        }

        fn snapshots(&self) -> Arc<dyn SnapshotStore> {
            Arc::new(self.clone())
        }

        fn install(
            &mut self,
            _: Box<dyn SnapshotSink>,
            _: &SnapshotMeta,
            _: bool,
        ) -> Result<(), StoreError> {
            self.note("install");
            Ok(())
        }
    }

    impl SnapshotStore for Noting {
        fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError> {
            Ok(Box::new(Part { room: 1 << 20, written: 0 }))
        }

        fn publish(&self, _: Box<dyn SnapshotSink>, _: &SnapshotMeta) -> Result<(), StoreError> {
            self.note("publish");
            Ok(())
        }

        fn open(&self) -> Result<Option<OpenSnapshot>, StoreError> {
            Ok(None)
        }
    }

    /// P36: a truncation that is not synced may be undone by a crash, and the snapshot would stand
    /// beside a log that it does not fit.
    #[test]
    fn a_snapshot_is_published_after_the_writes_it_rests_on_are_synced() {
        for durability in [Durability::Sync, Durability::Interval] {
            let store = Noting::default();
            let (jobs, to_do) = channel();
            let (tell, _done) = channel();
            // An interval that does not end by itself.
            let syncing = Syncing { durability, interval: Duration::from_hours(1) };
            let persistence = Persistence::new(
                Box::new(store.clone()),
                syncing,
                tell,
                Waker::noop().clone(),
                (1, Room::UNLIMITED),
            );
            let entries = vec![noop(2)];
            jobs.send(Job::Write(Write::Append { number: 1, first: 1, entries })).unwrap();
            let writer: SnapshotWriter = Box::new(|out| out.write_all(b"state"));
            jobs.send(Job::TakeSnapshot(meta(), writer)).unwrap();
            drop(jobs);
            roles::finish(persistence.run(to_do));
            assert_eq!(
                *store.calls.lock().unwrap(),
                ["append", "sync", "publish"],
                "{durability:?}"
            );
        }
    }

    /// P38: what had no room, and all that comes after it, is done in order when there is.
    #[test]
    fn an_append_without_room_waits_for_it_and_stops_nothing() {
        let store = Noting { full: 2, ..Noting::default() };
        let (jobs, to_do) = channel();
        let (tell, mut done) = channel();
        let syncing = Syncing { durability: Durability::Sync, interval: Duration::ZERO };
        let room = (1, Room::UNLIMITED);
        let waker = Waker::noop().clone();
        let persistence = Persistence::new(Box::new(store.clone()), syncing, tell, waker, room);
        let storage = roles::spawn("storage", persistence.run(to_do)).unwrap();
        let entries = vec![noop(2)];
        jobs.send(Job::Write(Write::Append { number: 1, first: 1, entries })).unwrap();
        jobs.send(Job::Write(Write::Trim { first: 1 })).unwrap();
        let mut told = Vec::new();
        while !told.contains(&"stored") {
            told.extend(done.try_next().map(|done| match done {
                Done::Stored(1) => "stored",
                Done::Room(Room { bytes: 0, is_full: true, .. }) => "no room",
                Done::Room(Room { is_full: false, .. }) => "room",
                _ => "something else",
            }));
            std::thread::yield_now();
        }
        assert_eq!(told, ["no room", "room", "stored"]);
        drop(jobs);
        roles::finish(storage.join()).unwrap();
        assert_eq!(*store.calls.lock().unwrap(), ["append", "trim", "sync"]);
    }

    /// A store whose latest snapshot is a newer one each time that it is opened.
    #[derive(Clone, Default)]
    struct Changing(Arc<Mutex<Index>>);

    impl LogStore for Changing {
        fn load(&mut self) -> Result<Loaded, StoreError> {
            unreachable!("it was loaded before")
        }

        fn save_hard_state(&mut self, _: &HardState) -> Result<(), StoreError> {
            Ok(())
        }

        fn append(&mut self, _: Index, _: &[Entry]) -> Result<(), StoreError> {
            Ok(())
        }

        fn sync(&mut self) -> Result<(), StoreError> {
            Ok(())
        }

        fn trim(&mut self, _: Index) -> Result<(), StoreError> {
            Ok(())
        }

        fn snapshots(&self) -> Arc<dyn SnapshotStore> {
            Arc::new(self.clone())
        }

        fn install(
            &mut self,
            _: Box<dyn SnapshotSink>,
            _: &SnapshotMeta,
            _: bool,
        ) -> Result<(), StoreError> {
            Ok(())
        }
    }

    impl SnapshotStore for Changing {
        fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError> {
            unreachable!("nothing is written")
        }

        fn publish(&self, _: Box<dyn SnapshotSink>, _: &SnapshotMeta) -> Result<(), StoreError> {
            Ok(())
        }

        fn open(&self) -> Result<Option<OpenSnapshot>, StoreError> {
            let mut latest = self.0.lock().unwrap();
            *latest += 1;
            let meta = SnapshotMeta { index: *latest, size_bytes: 100, ..meta() };
            Ok(Some(OpenSnapshot { meta, source: Box::new(Zeros) }))
        }
    }

    struct Zeros;

    impl io::Read for Zeros {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
    }

    impl SnapshotSource for Zeros {
        fn read_at(&mut self, _: u64, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
    }

    /// P36: whoever reads a snapshot goes on with it, though newer ones are taken and read.
    #[test]
    fn a_snapshot_that_is_being_read_stays_readable() {
        let (jobs, to_do) = channel();
        let (tell, mut done) = channel();
        let syncing = Syncing { durability: Durability::Memory, interval: Duration::ZERO };
        let store = Box::new(Changing::default());
        let room = (1, Room::UNLIMITED);
        let persistence = Persistence::new(store, syncing, tell, Waker::noop().clone(), room);
        // The first reader knows of snapshot 1, others have heard of newer ones.
        for (to, index) in [(2, 1), (2, 1), (3, 2), (2, 1), (3, 7), (2, 1), (3, 7)] {
            let (to, offset, bytes, question) = (NodeId(to), 20, 10, 1);
            let read = SnapshotRead { to, index, offset, bytes, question };
            jobs.send(Job::ReadSnapshot(read)).unwrap();
        }
        drop(jobs);
        roles::finish(persistence.run(to_do));
        let mut parts = Vec::new();
        while let Some(Done::SnapshotPart { part: Some((meta, offset, data)), .. }) =
            done.try_next()
        {
            assert_eq!(data.len(), 10);
            parts.push((meta.index, offset));
        }
        // Of one that is not there, the reader gets the beginning of the latest.
        assert_eq!(parts, [(1, 20), (1, 20), (2, 20), (1, 20), (3, 0), (1, 20), (4, 0)]);
    }

    fn meta() -> SnapshotMeta {
        let configuration = configuration(3);
        SnapshotMeta {
            index: 1,
            term: 1,
            configuration,
            log_time_us: 0,
            size_bytes: 0,
            checksum: 0,
            digest_key: DIGEST_KEY,
        }
    }

    /// A disk that holds so many bytes.
    struct Small(usize);

    struct Part {
        room: usize,
        written: u64,
    }

    impl SnapshotStore for Small {
        fn create(&self) -> Result<Box<dyn SnapshotSink>, StoreError> {
            Ok(Box::new(Part { room: self.0, written: 0 }))
        }

        fn publish(&self, _: Box<dyn SnapshotSink>, _: &SnapshotMeta) -> Result<(), StoreError> {
            Ok(())
        }

        fn open(&self) -> Result<Option<OpenSnapshot>, StoreError> {
            Ok(None)
        }
    }

    impl io::Write for Part {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            self.written += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl SnapshotSink for Part {
        fn read_back(&mut self) -> io::Result<Box<dyn SnapshotSource>> {
            unreachable!("it is not received")
        }

        fn written(&self) -> (u64, u32) {
            (self.written, 0)
        }

        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    fn written(room: usize, writer: SnapshotWriter) -> Result<u64, Unwritten> {
        let store: Arc<dyn SnapshotStore> = Arc::new(Small(room));
        write_snapshot(&store, meta(), writer).map(|meta| meta.size_bytes)
    }

    #[test]
    fn whose_fault_it_is_that_there_is_no_snapshot_is_known() {
        let large = |out: &mut dyn io::Write| out.write_all(&vec![7; 100_000]);
        assert!(matches!(written(1 << 20, Box::new(large)), Ok(100_000)));
        assert!(matches!(written(1000, Box::new(large)), Err(Unwritten::ByDisk(_))));
        // What fails when the rest is flushed, and what the service does not mention.
        let small = |out: &mut dyn io::Write| out.write_all(b"rest");
        assert!(matches!(written(0, Box::new(small)), Err(Unwritten::ByDisk(_))));
        let careless = move |out: &mut dyn io::Write| large(out).or(Ok(()));
        assert!(matches!(written(0, Box::new(careless)), Err(Unwritten::ByDisk(_))));
        let unable = |out: &mut dyn io::Write| {
            out.write_all(b"half of it")?;
            Err(io::Error::other("the service cannot say it"))
        };
        assert!(matches!(written(1 << 20, Box::new(unable)), Err(Unwritten::ByService(_))));
    }
}
