//! Jobs of the storage role, and what it tells.

use std::{any::Any, sync::Mutex};

use super::*;
use crate::{
    core::testing::{DIGEST_KEY, configuration, noop},
    entry::{Entry, Incarnation, NodeId},
    node::roles::channel,
    storage::Loaded,
};

/// A store that keeps nothing, and notes what it was asked to do, in order.
#[derive(Clone, Default)]
struct Noting {
    calls: Arc<Mutex<Vec<&'static str>>>,
    /// Appends find the disk full until something is trimmed.
    full: bool,
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
        if self.full {
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
        self.full = false;
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
        assert_eq!(*store.calls.lock().unwrap(), ["append", "sync", "publish"], "{durability:?}");
    }
}

/// P38: what had no room, and all that comes after it, is done in order when there is. A trim, which
/// gives room, does not wait for it.
#[test]
fn an_append_without_room_waits_for_it_and_stops_nothing() {
    let store = Noting { full: true, ..Noting::default() };
    let (jobs, to_do) = channel();
    let (tell, mut done) = channel();
    let syncing = Syncing { durability: Durability::Sync, interval: Duration::ZERO };
    let room = (1, Room::UNLIMITED);
    let waker = Waker::noop().clone();
    let persistence = Persistence::new(Box::new(store.clone()), syncing, tell, waker, room);
    let storage = roles::spawn("storage", persistence.run(to_do)).unwrap();
    let entries = vec![noop(2)];
    jobs.send(Job::Write(Write::Append { number: 1, first: 1, entries })).unwrap();
    let state = HardState {
        term: 1,
        vote: None,
        incarnation: Incarnation(1),
        birth: None,
        durability: Durability::Sync,
        clean: false,
    };
    let write = Write::HardState { number: 2, state: Box::new(state) };
    jobs.send(Job::Write(write)).unwrap();
    jobs.send(Job::Write(Write::Trim { first: 1 })).unwrap();
    let mut told = Vec::new();
    while !told.contains(&"stored") {
        told.extend(done.try_next().map(|done| match done {
            Done::Stored(2) => "stored",
            Done::Room(Room { bytes: 0, is_full: true, .. }) => "no room",
            Done::Room(Room { is_full: false, .. }) => "room",
            _ => "something else",
        }));
        std::thread::yield_now();
    }
    assert_eq!(told, ["no room", "room", "stored"]);
    drop(jobs);
    roles::finish(storage.join()).unwrap();
    let calls = ["trim", "append", "save the hard state", "sync"];
    assert_eq!(*store.calls.lock().unwrap(), calls);
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
    while let Some(Done::SnapshotPart { part: Some((meta, offset, data)), .. }) = done.try_next() {
        assert_eq!(data.len(), 10);
        parts.push((meta.index, offset));
    }
    // The reader of one that is not there gets the beginning of the latest.
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
    // A flush of the rest fails, and a service hides an error.
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
