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
    entry::Index,
    node::{
        roles::{self, Next, Receiver, Role, Sender},
        room_watch::RoomWatch,
    },
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
            room: RoomWatch::new(entry_bytes_max, room),
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
        if let Some(number) = stored.filter(|_| planted!("stored-before-sync")) {
            self.tell(Done::Stored(number));
        }
        if self.syncing.durability == Durability::Sync
            || self.synced_at.elapsed() >= self.syncing.interval
        {
            self.sync().await?;
        }
        // Before what it is less for is said to be stored: the core must not give that room twice.
        let is_waiting = !self.waiting.is_empty();
        if let Some(room) = self.room.look(self.store.as_mut(), is_waiting)? {
            self.tell(Done::Room(room));
        }
        if let Some(number) = stored {
            self.tell(Done::Stored(number));
        }
        Ok(goes_on)
    }

    /// Does a job, or keeps it behind an append that waits for room. A trim does not wait: it gives
    /// room, and what it drops is in a snapshot that is on disk, below all that waits.
    async fn job(&mut self, job: Job) -> Result<Option<WriteNumber>, StoreError> {
        let gives_room = matches!(job, Job::Write(Write::Trim { .. }));
        if !self.waiting.is_empty() && !gives_room {
            self.waiting.push_back(job);
            return Ok(None);
        }
        let Job::Write(write) = job else {
            self.snapshot_job(job).await?;
            return Ok(None);
        };
        match self.write(&write).await {
            Err(error @ StoreError::Full { .. }) => {
                if !self.room.is_used_up() {
                    tracing::error!(%error, "the log waits for room that it had reserved");
                }
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
                if !planted!("snapshot-before-sync") {
                    self.sync().await?;
                }
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
mod tests;
