//! Runs of the segmented store that crash, and a model of what they may leave.

use hovercraft::{
    Index, Term,
    storage::{Crash, Loaded, LogStore, SimDisk, StoreError},
};

use super::{entries, entry, hard_state, opened, publish, sink};

/// A call to a store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Append { first: Index, count: u64, term: Term },
    Sync,
    Vote { term: Term },
    Publish { at: (Index, Term) },
    Trim { first: Index },
    Install { at: (Index, Term), keep_tail: bool },
}

pub(crate) fn perform(store: &mut dyn LogStore, call: Call) -> Result<(), StoreError> {
    match call {
        Call::Append { first, count, term } => store.append(first, &entries(first, count, term)),
        Call::Sync => store.sync(),
        Call::Vote { term } => store.save_hard_state(&hard_state(term)),
        Call::Publish { at } => publish(store, at),
        Call::Trim { first } => store.trim(first),
        Call::Install { at, keep_tail } => {
            let (sink, meta) = sink(store, at)?;
            store.install(sink, &meta, keep_tail)
        }
    }
}

/// A log that may be found.
#[derive(Debug, Clone)]
struct Log {
    first: Index,
    terms: Vec<Term>,
    /// A crash may cut the entries from this index on.
    cut_from: Index,
    /// The snapshots that it may be found with, by index and term; 0 for none.
    snapshots: Vec<(Index, Term)>,
}

impl Log {
    fn next(&self) -> Index {
        self.first + self.terms.len() as Index
    }

    fn term(&self, index: Index) -> Option<Term> {
        self.terms.get(index.checked_sub(self.first)? as usize).copied()
    }
}

/// The logs and votes that may be found after a crash.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// The last one is the present one; those before it are from before calls that no sync follows.
    logs: Vec<Log>,
    votes: Vec<Term>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let log = Log { first: 1, terms: Vec::new(), cut_from: 1, snapshots: vec![(0, 0)] };
        Self { logs: vec![log], votes: vec![0] }
    }

    fn present(&self) -> &Log {
        self.logs.last().expect("there is always a log")
    }

    /// The term of the present entry at an index.
    fn term(&self, index: Index) -> Term {
        self.present().term(index).expect("the log holds it")
    }

    fn snapshot(&self) -> Index {
        self.present().snapshots.last().expect("there is always one, or 0").0
    }

    /// A call has begun: what it does may be found, or not.
    fn begin(&mut self, call: Call) {
        match call {
            Call::Append { first, count, term } => {
                let mut log = self.present().clone();
                log.terms.truncate((first - log.first) as usize);
                log.terms.resize((first + count - log.first) as usize, term);
                log.cut_from = first;
                self.logs.push(log);
            }
            Call::Vote { term } => self.votes.push(term),
            Call::Publish { at } => {
                self.logs.iter_mut().for_each(|log| log.snapshots.push(at));
            }
            // All that was appended is synced before the snapshot takes its place.
            Call::Install { at, keep_tail: true } => {
                self.logs.last_mut().expect("there is always a log").snapshots.push(at);
            }
            Call::Install { at, keep_tail: false } => {
                let (first, snapshots) = (at.0 + 1, vec![at]);
                self.logs.push(Log { first, terms: Vec::new(), cut_from: first, snapshots });
            }
            Call::Sync | Call::Trim { .. } => {}
        }
    }

    /// A call has returned: what it promises is there.
    fn complete(&mut self, call: Call) {
        let present = self.logs.len() - 1;
        match call {
            Call::Sync | Call::Install { .. } => {
                self.logs.drain(..present);
                self.logs[0].cut_from = self.logs[0].next();
                if let Call::Install { at, .. } = call {
                    self.logs[0].snapshots = vec![at];
                }
            }
            Call::Vote { .. } => {
                self.votes.drain(..self.votes.len() - 1);
            }
            Call::Publish { at } => {
                self.logs.iter_mut().for_each(|log| log.snapshots = vec![at]);
            }
            Call::Append { .. } | Call::Trim { .. } => {}
        }
    }

    fn check(&self, loaded: &Loaded) -> Result<(), String> {
        if let Some(torn) = loaded.torn {
            return Err(format!("it says that {torn}, and nothing that was synced is"));
        }
        let vote = loaded.hard_state.as_ref().map_or(0, |state| state.term);
        if !self.votes.contains(&vote) {
            return Err(format!("the vote of {vote} instead of {:?}", self.votes));
        }
        for (index, found) in (loaded.first_index..).zip(&loaded.entries) {
            if *found != entry(index, found.term) {
                return Err(format!("entry {index} was never written"));
            }
        }
        let reasons: Vec<_> =
            self.logs.iter().map(|log| log.check(loaded)).filter_map(Result::err).collect();
        if reasons.len() < self.logs.len() { Ok(()) } else { Err(reasons.join("; ")) }
    }
}

impl Log {
    fn check(&self, loaded: &Loaded) -> Result<(), String> {
        let at = loaded.snapshot.as_ref().map_or((0, 0), |meta| (meta.index, meta.term));
        if !self.snapshots.contains(&at) {
            return Err(format!("the snapshot is {at:?} instead of {:?}", self.snapshots));
        }
        let (snapshot, term) = at;
        let next = loaded.first_index + loaded.entries.len() as Index;
        if loaded.first_index > snapshot + 1 || next <= snapshot {
            return Err(format!("a log of {}..{next} with {snapshot}", loaded.first_index));
        }
        // None of a log with another entry at the snapshot's index may be there.
        if self.term(snapshot).is_some_and(|own| own != term) {
            let is_gone = loaded.entries.is_empty();
            return if is_gone { Ok(()) } else { Err("it is stale".to_owned()) };
        }
        // A log that ends below the snapshot looks as if it ended there.
        let end = next.min(self.next());
        if end < self.cut_from || end.max(snapshot + 1) != next {
            let (low, high) = (self.cut_from, self.next());
            return Err(format!("it ends before {next} instead of {low}..={high}"));
        }
        let mut indexed = (loaded.first_index..).zip(&loaded.entries);
        match indexed.find(|(index, found)| self.term(*index) != Some(found.term)) {
            Some((index, found)) => {
                let expected = self.term(index);
                Err(format!("entry {index} is of term {} instead of {expected:?}", found.term))
            }
            None => Ok(()),
        }
    }
}

/// Calls that a replica may make, drawn from a seed.
pub(crate) fn script(seed: u64, length: usize) -> Vec<Call> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut model = Model::new();
    // A hard state comes before everything else.
    let mut calls = vec![Call::Vote { term: 1 }];
    model.begin(calls[0]);
    for step in 2.. {
        if calls.len() == length {
            break;
        }
        let (next, snapshot) = (model.present().next(), model.snapshot());
        let uncovered = snapshot + 1;
        let call = match rng.u32(..100) {
            0..45 => {
                let back = if rng.u32(..4) == 0 { rng.u64(..30) } else { 0 };
                let first = next.saturating_sub(back).max(uncovered);
                Call::Append { first, count: rng.u64(..40), term: step }
            }
            45..70 => Call::Sync,
            70..78 => Call::Vote { term: step },
            78..86 if next > uncovered => {
                let index = rng.u64(uncovered..next);
                Call::Publish { at: (index, model.term(index)) }
            }
            86..94 => Call::Trim { first: rng.u64(1..=uncovered) },
            94..96 if next > uncovered => {
                let index = rng.u64(uncovered..next);
                Call::Install { at: (index, model.term(index)), keep_tail: true }
            }
            96..98 => Call::Install { at: (rng.u64(1..next + 10), step), keep_tail: false },
            _ => continue,
        };
        model.begin(call);
        model.complete(call);
        calls.push(call);
    }
    calls
}

/// Makes the calls until one fails, as all do on a disk that is broken.
pub(crate) fn run(disk: &SimDisk, calls: &[Call], model: &mut Model) -> bool {
    let Ok((mut store, loaded)) = opened(disk, 1) else {
        return false;
    };
    model.check(&loaded).unwrap_or_else(|reason| panic!("at a start: {reason}"));
    for call in calls {
        model.begin(*call);
        if perform(&mut store, *call).is_err() {
            return false;
        }
        model.complete(*call);
    }
    true
}

/// Opens what a crash has left, compares it, and goes on from it: what was cut off stays away.
pub(crate) fn check(disk: &SimDisk, model: &Model, what: &str) {
    let fail = |step: &str, reason: String| -> ! { panic!("{what}, {step}: {reason}") };
    let (store, loaded) = opened(disk, 2).unwrap_or_else(|error| fail("open", error.to_string()));
    model.check(&loaded).unwrap_or_else(|reason| fail("load", reason));
    drop(store);
    // A crash right after the start, which changes nothing.
    disk.crash(Crash::Prefix(0));
    let (mut store, again) = opened(disk, 3).unwrap_or_else(|e| fail("again", e.to_string()));
    if (&again.entries, again.first_index) != (&loaded.entries, loaded.first_index) {
        fail("again", "another log than at the first start".to_owned());
    }
    let next = loaded.first_index + loaded.entries.len() as Index;
    let term = 1_000_000;
    let go_on = |store: &mut dyn LogStore| {
        perform(store, Call::Vote { term })?;
        perform(store, Call::Append { first: next, count: 2, term })?;
        store.sync()
    };
    go_on(&mut store).unwrap_or_else(|error| fail("go on", error.to_string()));
    drop(store);
    disk.crash(Crash::Prefix(0));
    let (_, after) = opened(disk, 4).unwrap_or_else(|error| fail("reopen", error.to_string()));
    let end = after.first_index + after.entries.len() as Index;
    let kept = after.entries.len().saturating_sub(2);
    let old = loaded.entries.len().saturating_sub(kept);
    if after.torn.is_some()
        || end != next + 2
        || after.entries[..kept] != loaded.entries[old..]
        || after.entries[kept..] != entries(next, 2, term)
    {
        fail("reopen", format!("{}..{end} instead of ..{}", after.first_index, next + 2));
    }
}

/// Cuts the run of a script at one operation on the disk, in the first process or in one that goes
/// on from all that it left, and checks some of what a crash may leave. All is drawn from the seed.
pub(crate) fn cut_once(seed: u64) {
    const OPERATIONS_MAX: u64 = 400;
    const IMAGES: u64 = 8;
    let mut rng = fastrand::Rng::with_seed(seed);
    let calls = script(seed, 40);
    let (first, second) = calls.split_at(rng.usize(..calls.len()));
    let (disk, mut model) = (SimDisk::new(seed), Model::new());
    if rng.bool() {
        disk.break_after(rng.u64(..OPERATIONS_MAX));
    }
    if run(&disk, &[first, &[Call::Sync]].concat(), &mut model) {
        disk.break_after(rng.u64(..OPERATIONS_MAX));
        run(&disk, second, &mut model);
    }
    for number in 0..IMAGES {
        let image = disk.fork(rng.u64(..));
        let prefix = Crash::Prefix(rng.usize(..=disk.unsynced_count()));
        let crash = if number % 2 == 0 { Crash::Random } else { prefix };
        image.crash(crash);
        check(&image, &model, &format!("script {seed}, image {number} ({crash:?})"));
    }
}
