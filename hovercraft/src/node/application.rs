//! The application role: the state machine, in the network loop or in a thread of its own.

use std::{collections::VecDeque, io::BufReader, sync::Arc, task::Waker};

use bytes::Bytes;

use crate::{
    core::{Applier, Committed, Poisoned, Response, RestoreError},
    entry::Index,
    node::roles::{self, Next, Receiver, Role, Sender, channel},
    request::{Identity, Outcome, Request, ReturnPath},
    state_machine::SnapshotWriter,
    storage::{SnapshotMeta, SnapshotSource},
};

/// Where the service runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Execution {
    /// In the network loop: for services whose requests take microseconds. A hand-over to another
    /// thread costs more than such a request.
    #[default]
    Inline,
    /// In a thread of its own: for services whose requests may take longer than a heartbeat.
    Thread,
}

/// Bounds of the entries that were handed to the application and are not applied: their number, and
/// their bytes. More wait in the log.
const UNDER_WAY_MAX: usize = 1024;
const UNDER_WAY_BYTES_MAX: usize = 16 << 20;

/// Bounds of the retries that wait for a busy thread: their number, and their bytes.
const RETRIES_MAX: usize = 1024;
const RETRIES_BYTES_MAX: usize = 16 << 20;

/// What the application has done.
pub(crate) enum Event {
    /// Everything up to this index is applied, and there are so many sessions.
    Applied(Index, usize),
    Respond(OwnedResponse),
    /// A retry whose reply is not kept.
    NotKept(Arc<Request>, ReturnPath),
    /// A thread has dealt with a retry of so many bytes; only [`Application`] itself sees this.
    Retried(usize),
    /// None if there is none to be had.
    Snapshot(Option<(SnapshotMeta, SnapshotWriter)>),
    /// The service has the state of a snapshot, or could not read it.
    Restored(Origin, SnapshotMeta, Result<(), RestoreError>),
    Poisoned(Poisoned),
}

/// A [`Response`] that outlives the turn that made it.
pub(crate) struct OwnedResponse {
    pub(crate) to: ReturnPath,
    pub(crate) identity: Identity,
    pub(crate) outcome: Outcome,
    pub(crate) body: Bytes,
}

impl OwnedResponse {
    fn new(response: &Response<'_>) -> Self {
        let body = Bytes::copy_from_slice(response.body);
        Self { to: response.to, identity: response.identity, outcome: response.outcome, body }
    }
}

/// What the application is asked to do, in this order.
pub(crate) enum Task {
    Apply(Committed),
    AnswerRetry(Arc<Request>, ReturnPath),
    TakeSnapshot,
    Restore(Origin, SnapshotMeta, Box<dyn SnapshotSource>),
}

/// The replica that took a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This one: its service reads it because it could not read another one.
    Own,
    /// Another one.
    Received,
}

/// A handle to the application, wherever it runs.
pub(crate) struct Application {
    place: Place,
    progress: Progress,
}

/// What is known here of the state, wherever it is.
#[derive(Default)]
struct Progress {
    /// Index and bytes of what was handed over and is not applied, and all these bytes.
    under_way: VecDeque<(Index, usize)>,
    under_way_bytes: usize,
    /// The reason why nothing more is handed over, until a snapshot replaces the state (P42).
    poisoned: Option<String>,
}

impl Progress {
    /// An entry is handed over.
    fn hand_over(&mut self, committed: &Committed) {
        let bytes = committed.entry.size_bytes();
        self.under_way.push_back((committed.index, bytes));
        self.under_way_bytes += bytes;
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Applied(index, _) => {
                while let Some((_, bytes)) = self.under_way.pop_front_if(|(at, _)| *at <= *index) {
                    self.under_way_bytes -= bytes;
                }
            }
            // Nothing is handed over while the service reads.
            Event::Restored(_, _, Ok(())) => *self = Self::default(),
            Event::Restored(Origin::Own, meta, Err(error)) => {
                self.poisoned = Some(format!(
                    "the service could not read a received snapshot, nor its own at index {} \
                     again: {error}; this replica applies nothing more",
                    meta.index
                ));
            }
            Event::Poisoned(error) => self.poisoned = Some(error.to_string()),
            Event::Restored(Origin::Received, _, Err(_))
            | Event::Respond(_)
            | Event::NotKept(..)
            | Event::Retried(_)
            | Event::Snapshot(_) => {}
        }
    }
}

enum Place {
    Inline(Box<Applier>),
    Thread {
        tasks: Sender<Task>,
        events: Receiver<Event>,
        role: Role<()>,
        /// Number of retries that wait in `tasks`, and their bytes.
        retries: usize,
        retries_bytes: usize,
    },
}

impl Application {
    pub(crate) fn new(
        applier: Applier,
        execution: Execution,
        waker: Waker,
    ) -> std::io::Result<Self> {
        let place = match execution {
            Execution::Inline => Place::Inline(Box::new(applier)),
            Execution::Thread => {
                let (tasks, to_do) = channel();
                let (done, events) = channel();
                let role = roles::spawn("application", run(applier, to_do, done, waker))?;
                Place::Thread { tasks, events, role, retries: 0, retries_bytes: 0 }
            }
        };
        Ok(Self { place, progress: Progress::default() })
    }

    /// Whether another entry may be handed over now.
    pub(crate) fn has_room(&self) -> bool {
        let Progress { under_way, under_way_bytes, poisoned } = &self.progress;
        let has_room = under_way.len() < UNDER_WAY_MAX && *under_way_bytes < UNDER_WAY_BYTES_MAX;
        poisoned.is_none() && has_room
    }

    /// Does a task, or hands it over; what comes of it goes to `each`, now or at a later
    /// [`Self::poll`].
    pub(crate) fn handle(&mut self, task: Task, each: &mut dyn FnMut(Event)) {
        match &mut self.place {
            Place::Inline(applier) => {
                let progress = &mut self.progress;
                handle(applier, task, &mut |event| {
                    progress.note(&event);
                    each(event);
                });
            }
            Place::Thread { tasks, retries, retries_bytes, .. } => {
                if let Task::AnswerRetry(request, _) = &task {
                    // The client will ask again.
                    if *retries >= RETRIES_MAX || *retries_bytes >= RETRIES_BYTES_MAX {
                        return;
                    }
                    *retries += 1;
                    *retries_bytes += request.body().len();
                }
                if let Task::Apply(committed) = &task {
                    self.progress.hand_over(committed);
                }
                // A thread that has ended has said why: it is poisoned.
                drop(tasks.send(task));
            }
        }
    }

    /// What a thread has done meanwhile.
    pub(crate) fn poll(&mut self, each: &mut dyn FnMut(Event)) {
        let Place::Thread { events, retries, retries_bytes, .. } = &mut self.place else { return };
        while let Some(event) = events.try_next() {
            if let Event::Retried(bytes) = event {
                *retries -= 1;
                *retries_bytes -= bytes;
                continue;
            }
            // What was handed over before the first is known fails like that one.
            let is_known = matches!(event, Event::Poisoned(_)) && self.progress.poisoned.is_some();
            self.progress.note(&event);
            if !is_known {
                each(event);
            }
        }
    }

    /// Hands nothing more over: the state is undefined, and there is no snapshot to go back to.
    pub(crate) fn give_up(&mut self) {
        let reason = "the service could not read a received snapshot, and there is none of its \
                      own to go back to; this replica applies nothing more";
        self.progress.poisoned = Some(reason.to_owned());
    }

    /// The reason why nothing more is applied (P42).
    pub(crate) fn poisoned(&self) -> Option<&str> {
        self.progress.poisoned.as_deref()
    }

    #[cfg(test)]
    fn retries(&self) -> usize {
        match &self.place {
            Place::Inline(_) => 0,
            Place::Thread { retries, .. } => *retries,
        }
    }

    /// Waits until a thread has done what it was handed.
    pub(crate) async fn stop(self) {
        if let Place::Thread { tasks, events, role, .. } = self.place {
            drop((tasks, events));
            // A panic of the service is caught in the role; one of ours has been printed.
            let _ = role.join().await;
        }
    }
}

async fn run(mut applier: Applier, mut tasks: Receiver<Task>, done: Sender<Event>, waker: Waker) {
    while let Next::Message(task) = tasks.next(None).await {
        let retried = match &task {
            Task::AnswerRetry(request, _) => Some(request.body().len()),
            Task::Apply(_) | Task::TakeSnapshot | Task::Restore(..) => None,
        };
        // Whoever listened has stopped: so do we, at the next task.
        handle(&mut applier, task, &mut |event| drop(done.send(event)));
        if let Some(bytes) = retried {
            drop(done.send(Event::Retried(bytes)));
        }
        waker.wake_by_ref();
        roles::breathe().await;
    }
}

fn handle(applier: &mut Applier, task: Task, each: &mut dyn FnMut(Event)) {
    match task {
        Task::Apply(committed) => {
            let mut respond = |response: Response<'_>| {
                each(Event::Respond(OwnedResponse::new(&response)));
            };
            match applier.apply(&committed, &mut respond) {
                Ok(()) => each(Event::Applied(committed.index, applier.sessions().0)),
                Err(poisoned) => each(Event::Poisoned(poisoned)),
            }
        }
        Task::AnswerRetry(request, to) => {
            let mut respond = |response: Response<'_>| {
                each(Event::Respond(OwnedResponse::new(&response)));
            };
            if !applier.answer_retry(request.key(), to, &mut respond) {
                each(Event::NotKept(request, to));
            }
        }
        Task::TakeSnapshot => each(Event::Snapshot(applier.snapshot())),
        Task::Restore(origin, meta, source) => {
            let result = applier.restore(&meta, &mut BufReader::with_capacity(1 << 16, source));
            each(Event::Restored(origin, meta, result));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read},
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use bytes::Bytes;

    use super::*;
    use crate::{
        core::testing::{DIGEST_KEY, configuration, entry, request, return_path},
        entry::{NodeId, Payload},
        request::{Identity, Kind},
        state_machine::{Context, StateMachine},
    };

    /// A service that executes nothing until it is told to.
    struct Waiting(mpsc::Receiver<()>);

    impl StateMachine for Waiting {
        fn execute(&mut self, _: &Context, _: &[u8], _: &mut Vec<u8>) {
            assert_ne!(self.0.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Timeout));
        }

        fn query(&self, _: &Context, _: &[u8], _: &mut Vec<u8>) {}

        fn snapshot(&self) -> SnapshotWriter {
            Box::new(|_| Ok(()))
        }

        fn restore(&mut self, _: &mut dyn Read) -> io::Result<()> {
            Ok(())
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A service in a thread, and the word on which it executes the next entry.
    fn waiting() -> (Application, Sender<()>) {
        let (go_on, told) = mpsc::channel();
        let applier =
            Applier::new(Box::new(Waiting(told)), 1, DIGEST_KEY, Arc::new(configuration(3)));
        let waker = Waker::noop().clone();
        (Application::new(applier, Execution::Thread, waker).unwrap(), go_on)
    }

    fn request_of(number: u16, bytes: usize) -> Arc<Request> {
        let identity = Identity::Plain { address: return_path(1).address, request_id: number };
        Arc::new(Request::new(DIGEST_KEY, identity, 0, Kind::Write, Bytes::from(vec![0; bytes])))
    }

    fn apply(index: u16, bytes: usize) -> Task {
        let payload = Payload::Request { replier: NodeId(1), request: request_of(index, bytes) };
        let (index, entry) = (Index::from(index), entry(1, payload));
        Task::Apply(Committed { index, entry, executes_read: false, answer_to: None })
    }

    #[test]
    fn entries_and_retries_that_wait_for_a_busy_service_are_bounded_in_bytes() {
        let (mut application, go_on) = waiting();
        let mut handed = 0;
        while application.has_room() {
            handed += 1;
            application.handle(apply(handed, 1 << 20), &mut |_| ());
        }
        assert_eq!(usize::from(handed), UNDER_WAY_BYTES_MAX >> 20);
        for number in 0..100 {
            let retry = Task::AnswerRetry(request_of(number, 1 << 20), return_path(1));
            application.handle(retry, &mut |_| ());
        }
        assert_eq!(application.retries(), RETRIES_BYTES_MAX >> 20);
        (0..handed).for_each(|_| go_on.send(()).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while application.retries() > 0 || application.progress.under_way_bytes > 0 {
            assert!(Instant::now() < deadline);
            application.poll(&mut |_| ());
            thread::yield_now();
        }
        assert!(application.has_room());
        roles::finish(application.stop());
    }

    #[test]
    fn retries_that_wait_for_a_busy_service_are_bounded() {
        let (mut application, go_on) = waiting();
        application.handle(apply(1, 0), &mut |_| ());
        for sequence in 0..2 * RETRIES_MAX as u64 {
            let retry = Task::AnswerRetry(request(9, sequence), return_path(1));
            application.handle(retry, &mut |_| ());
        }
        go_on.send(()).unwrap();
        let (deadline, mut answered) = (Instant::now() + PATIENCE, 0);
        while application.retries() > 0 {
            assert!(Instant::now() < deadline, "{answered} retries were looked at");
            application.poll(&mut |event| {
                answered += usize::from(matches!(event, Event::NotKept(..)));
            });
            thread::yield_now();
        }
        assert_eq!(answered, RETRIES_MAX);
        roles::finish(application.stop());
    }
}
