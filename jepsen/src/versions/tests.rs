use proptest::prelude::*;

use super::*;

/// A service that executes an operation at any time between its beginning and its end, or after an end
/// as unknown.
struct World {
    state: FinalState,
    processes: [Process; PROCESSES],
    operations: Vec<Operation>,
    /// Operations with an unknown outcome that were not executed yet.
    late: Vec<usize>,
    now: u64,
    /// The last value that was set, per register.
    set: HashMap<String, i64>,
}

/// What a process does, with the place of its operation.
#[derive(Clone, Copy)]
enum Process {
    Idle,
    Waits(usize),
    Executed(usize, Option<i64>),
}

/// Which process makes a step, what it invokes if it is idle, and what comes of its operation.
type Step = (usize, u8, u8);

const PROCESSES: usize = 4;

impl World {
    fn run(steps: &[Step]) -> Self {
        let mut world = Self {
            state: FinalState::new(),
            processes: [Process::Idle; PROCESSES],
            operations: Vec::new(),
            late: Vec::new(),
            now: 0,
            set: HashMap::new(),
        };
        for step in steps {
            world.now += 1;
            world.step(*step);
        }
        world
    }

    fn step(&mut self, (process, choice, fate): Step) {
        self.processes[process] = match self.processes[process] {
            Process::Idle => Process::Waits(self.invoke(process, choice)),
            Process::Waits(at) if fate == 0 => {
                self.end(at, Outcome::Fail);
                Process::Idle
            }
            Process::Waits(at) if fate == 1 => {
                self.end(at, Outcome::Info);
                self.late.push(at);
                Process::Idle
            }
            Process::Waits(at) => Process::Executed(at, self.execute(at)),
            Process::Executed(at, result) => {
                self.end(at, Outcome::Ok(result.into()));
                Process::Idle
            }
        };
        if fate == 2 && !self.late.is_empty() {
            let at = self.late.swap_remove(choice as usize % self.late.len());
            self.execute(at);
        }
    }

    fn end(&mut self, at: usize, outcome: Outcome) {
        self.operations[at].outcome = outcome;
        self.operations[at].completed_ns = Some(self.now);
    }

    fn invoke(&mut self, process: usize, choice: u8) -> usize {
        // A register of its own, left alone after an unknown set.
        let unknown = |operation: &&Operation| {
            operation.outcome == Outcome::Info
                && operation.completed_ns.is_some()
                && operation.process == process.cast_signed() as i64
        };
        let generation = self.operations.iter().filter(unknown).count();
        let register = format!("r{process}.{generation}");
        let (f, key, argument) = match choice % 4 {
            0 => ("incr", "c".to_owned(), Some(1)),
            1 => {
                let last = self.set.entry(register.clone()).or_default();
                *last += 1;
                ("set", register, Some(*last))
            }
            2 => ("get", "c".to_owned(), None),
            _ => ("get", format!("r{}.0", choice as usize % PROCESSES), None),
        };
        let at = self.operations.len();
        self.operations.push(Operation {
            process: process.cast_signed() as i64,
            f: f.into(),
            key: key.as_str().into(),
            argument: argument.into(),
            invoked_ns: self.now,
            completed_ns: None,
            outcome: Outcome::Info,
            line: 0,
        });
        at
    }

    fn execute(&mut self, at: usize) -> Option<i64> {
        let operation = &self.operations[at];
        let value = self.state.get(&operation.key).copied();
        let function = Function::of(operation);
        let next = match function {
            Function::Get => return value,
            Function::Set => operation.argument.as_int().unwrap(),
            Function::Increment => value.unwrap_or(0) + 1,
        };
        self.state.insert(operation.key.clone(), next);
        (function == Function::Increment).then_some(next)
    }

    fn check(self) -> Findings {
        check(&History::new(self.operations), &self.state)
    }

    /// The places of acknowledged operations.
    fn acknowledged(&self, which: impl Fn(&Operation) -> bool) -> Vec<usize> {
        let places = self.operations.iter().enumerate();
        places
            .filter(|(_, operation)| operation.is_acknowledged() && which(operation))
            .map(|(at, _)| at)
            .collect()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..PROCESSES, any::<u8>(), 0..12_u8), 0..300)
}

proptest! {
    #[test]
    fn a_correct_service_is_never_accused(steps in steps()) {
        prop_assert_eq!(World::run(&steps).check(), Findings::default());
    }

    #[test]
    fn a_lost_increment_shows(steps in steps()) {
        let mut world = World::run(&steps);
        let is_counted = |it: &Operation| Function::of(it) == Function::Increment;
        prop_assume!(!world.acknowledged(is_counted).is_empty());
        // As if the last ones had never been ordered.
        let last = world.acknowledged(is_counted).into_iter().map(|at| version(&world.operations[at]));
        let last = last.max().unwrap();
        world.state.insert("c".into(), last - 1);
        prop_assert_eq!(world.check().lost, 1);
    }

    #[test]
    fn a_doubled_increment_shows(steps in steps()) {
        let mut world = World::run(&steps);
        // Unknown ones are counted as if they had been executed, so they all are.
        let unknown = world.operations.iter().filter(|it| {
            Function::of(it) == Function::Increment && it.outcome == Outcome::Info
        });
        let is_counted = |it: &Operation| Function::of(it) == Function::Increment;
        let most = unknown.count() + world.acknowledged(is_counted).len();
        prop_assume!(most > 0);
        let too_many = i64::try_from(most).unwrap() + 1;
        world.state.insert("c".into(), too_many);
        prop_assert_eq!(world.check().duplicated, 1);
    }

    #[test]
    fn a_read_that_goes_back_shows(steps in steps(), which: prop::sample::Index) {
        let mut world = World::run(&steps);
        let reads = world.acknowledged(|it| Function::of(it) == Function::Get && version(it) > 0);
        prop_assume!(!reads.is_empty());
        let read = world.operations[reads[which.index(reads.len())]].clone();
        world.operations.push(Operation {
            process: 99,
            invoked_ns: read.completed_ns.unwrap() + 1,
            completed_ns: Some(read.completed_ns.unwrap() + 2),
            outcome: Outcome::Ok(Value::Int(version(&read) - 1)),
            ..read
        });
        prop_assert_eq!(world.check().stale_reads, 1);
    }
}

fn operation(f: &str, number: i64, times: (u64, u64), outcome: Outcome) -> Operation {
    Operation {
        process: times.0.cast_signed(),
        f: f.into(),
        key: "k".into(),
        argument: (f != "get").then_some(number).into(),
        invoked_ns: times.0,
        completed_ns: Some(times.1),
        outcome,
        line: 0,
    }
}

fn findings(operations: Vec<Operation>, last: i64) -> Findings {
    check(&History::new(operations), &[("k".into(), last)].into())
}

#[test]
fn a_lost_set_shows() {
    let set = |number, times| operation("set", number, times, Outcome::Ok(Value::Nil));
    let sets = || vec![set(1, (0, 1)), set(2, (2, 3)), set(3, (4, 5))];
    assert!(findings(sets(), 3).is_clean());
    let found = findings(sets(), 1);
    assert_eq!(found.lost, 2);
    assert_eq!(found.examples, ["2 acknowledged writes of \"k\" are not in its 1"]);
}

#[test]
fn two_increments_with_one_effect_are_one_lost() {
    let increment = |times| operation("incr", 1, times, Outcome::Ok(Value::Int(1)));
    assert_eq!(findings(vec![increment((0, 9)), increment((1, 8))], 1).lost, 1);
}

#[test]
fn a_read_that_began_earlier_may_see_less() {
    let set = operation("set", 1, (0, 10), Outcome::Ok(Value::Nil));
    let read = |times| operation("get", 0, times, Outcome::Ok(Value::Nil));
    assert!(findings(vec![set.clone(), read((10, 20))], 1).is_clean());
    let found = findings(vec![set, read((11, 20))], 1);
    assert_eq!((found.stale_reads, found.examples.len()), (1, 1));
}

#[test]
fn a_read_of_what_nobody_wrote_shows() {
    let read = operation("get", 0, (5, 6), Outcome::Ok(Value::Int(1)));
    let set = |times| operation("set", 1, times, Outcome::Ok(Value::Nil));
    assert!(findings(vec![set((6, 9)), read.clone()], 1).is_clean());
    assert_eq!(findings(vec![set((7, 9)), read.clone()], 1).impossible_reads, 1);
    let refused = Operation { outcome: Outcome::Fail, ..set((0, 1)) };
    assert_eq!(findings(vec![refused, read], 1).impossible_reads, 1);
}

#[test]
fn an_increment_that_was_refused_and_done_all_the_same_is_one_too_many() {
    let refused = operation("incr", 1, (0, 1), Outcome::Fail);
    assert_eq!(findings(vec![refused], 1).duplicated, 1);
    let unknown = operation("incr", 1, (0, 1), Outcome::Info);
    assert!(findings(vec![unknown.clone()], 1).is_clean());
    assert!(findings(vec![unknown], 0).is_clean());
}
