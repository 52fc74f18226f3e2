//! The storage role: it owns the log store, so that nothing else waits for a disk.
//!
//! Its queue is bounded: the core hands over no more than a number of bytes of entries that are not
//! complete, and asks for one snapshot at a time; the network loop counts the parts that are read
//! and the bytes of those that are kept.

use std::{
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use crate::{
    core::{SnapshotRead, Write, WriteNumber},
    entry::Index,
    node::roles::{self, Next, Receiver, Role, Sender},
    state_machine::SnapshotWriter,
    storage::{
        Durability, HardState, LogStore, OpenSnapshot, SnapshotMeta, SnapshotSink, SnapshotSource,
        SnapshotStore, StoreError,
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
}

impl Persistence {
    pub(crate) fn new(
        store: Box<dyn LogStore>,
        syncing: Syncing,
        done: Sender<Done>,
        waker: Waker,
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
        let mut next = match jobs.next(self.sync_due()).await {
            Next::Message(job) => Some(job),
            Next::TimedOut => None,
            Next::Closed => {
                goes_on = false;
                None
            }
        };
        while let Some(job) = next {
            match job {
                Job::Write(write) => stored = self.write(write).await?.or(stored),
                Job::Stop(state) => {
                    self.sync().await?;
                    self.store.save_hard_state(&state)?;
                    goes_on = false;
                }
                job => self.snapshot_job(job).await?,
            }
            next = if goes_on { jobs.try_next() } else { None };
        }
        if self.syncing.durability == Durability::Sync
            || self.synced_at.elapsed() >= self.syncing.interval
        {
            self.sync().await?;
        }
        if let Some(number) = stored {
            self.tell(Done::Stored(number));
        }
        Ok(goes_on)
    }

    /// How long it may wait for the next job; for ever if there is nothing to sync.
    fn sync_due(&self) -> Option<Duration> {
        let left = self.syncing.interval.saturating_sub(self.synced_at.elapsed());
        self.is_dirty.then_some(left)
    }

    async fn write(&mut self, write: Write) -> Result<Option<WriteNumber>, StoreError> {
        match write {
            Write::HardState { number, state } => {
                roles::disk_time(self.store.as_mut()).await;
                self.store.save_hard_state(&state)?;
                Ok(Some(number))
            }
            Write::Append { number, first, entries } => {
                self.store.append(first, &entries)?;
                self.is_dirty = true;
                Ok(Some(number))
            }
            Write::Trim { first } => {
                self.store.trim(first)?;
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
        if offset == 0 {
            self.sink = Some(self.store.snapshots().create()?);
        }
        if let Some(sink) = &mut self.sink {
            sink.write_all(data).map_err(|source| StoreError::Io {
                action: format!("write {} bytes of a received snapshot", data.len()),
                place: "the data directory".to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Checks what was received, and opens it. Nothing else changes.
    fn stage(&mut self, meta: SnapshotMeta) -> Result<(), StoreError> {
        let staged = match &mut self.sink {
            None => None,
            Some(sink) => match meta.check_written(sink.written()) {
                Ok(()) => Some(sink.read_back().map_err(|source| StoreError::Io {
                    action: "read a received snapshot".to_owned(),
                    place: "the data directory".to_owned(),
                    source,
                })?),
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
        self.store.install(sink, meta, keep_tail)?;
        // One of the same index may have other bytes.
        self.open.clear();
        self.tell(Done::Installed);
        Ok(())
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
        return Err(Unwritten::ByDisk(StoreError::Io {
            action: "write a snapshot".to_owned(),
            place: "the data directory".to_owned(),
            source,
        }));
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
    struct Noting(Arc<Mutex<Vec<&'static str>>>);

    impl Noting {
        fn note(&self, call: &'static str) {
            self.0.lock().unwrap().push(call);
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
            let persistence =
                Persistence::new(Box::new(store.clone()), syncing, tell, Waker::noop().clone());
            let entries = vec![noop(2)];
            jobs.send(Job::Write(Write::Append { number: 1, first: 1, entries })).unwrap();
            let writer: SnapshotWriter = Box::new(|out| out.write_all(b"state"));
            jobs.send(Job::TakeSnapshot(meta(), writer)).unwrap();
            drop(jobs);
            roles::finish(persistence.run(to_do));
            assert_eq!(*store.0.lock().unwrap(), ["append", "sync", "publish"], "{durability:?}");
        }
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
        let persistence = Persistence::new(store, syncing, tell, Waker::noop().clone());
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
