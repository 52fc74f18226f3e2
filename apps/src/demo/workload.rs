//! The load of the demo: callers that read and write the kv service, one operation after another,
//! and write down what they did and saw.
//!
//! Half of the operations are reads. The keys are those that [`hovercraft_jepsen::versions`] knows:
//! counters that all callers increment, and registers, one for each caller, that all read.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hovercraft::CallOutcome;
use hovercraft_jepsen::{History, Operation, Outcome, Value, versions::FinalState};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    backend::Backend,
    kv::{Condition, Kv, KvError},
};

/// What the callers share.
#[derive(Debug)]
pub struct Shared {
    /// When the callers started: the zero of the history's times.
    pub started: Instant,
    stops: AtomicBool,
    /// The register of each caller.
    registers: Mutex<Vec<Arc<str>>>,
    counters: Vec<Arc<str>>,
    /// How many operations were acknowledged so far.
    pub acknowledged: AtomicU64,
    /// How many have an unknown outcome.
    pub unknown: AtomicU64,
}

/// Callers at work.
#[derive(Debug)]
pub struct Workload {
    /// What they share with whoever watches them.
    pub shared: Arc<Shared>,
    callers: JoinSet<Vec<Operation>>,
}

impl Shared {
    /// Now, as a time of the history.
    pub fn nanos(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

/// How many operations one run may have in all, because its history is kept in memory.
const OPERATIONS_MAX: u64 = 4_000_000;

/// How many keys are incremented: few enough that callers meet.
const COUNTERS: usize = 8;

impl Workload {
    /// Starts `clients` callers over the connections in turn. If they are faster than a history in
    /// memory can be over `duration`, they are held back to that.
    pub fn start<B: Backend>(connections: &[Kv<B>], clients: u32, duration: Duration) -> Self {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            stops: AtomicBool::new(false),
            registers: Mutex::new((0..clients).map(|caller| register(caller, 0)).collect()),
            counters: (0..COUNTERS).map(|counter| format!("counter-{counter}").into()).collect(),
            acknowledged: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        });
        let interval_min = duration * clients / OPERATIONS_MAX as u32;
        let mut callers = JoinSet::new();
        for (number, kv) in (0..clients).zip(connections.iter().cycle()) {
            let caller = Caller {
                kv: kv.clone(),
                number,
                clients,
                generation: 0,
                register: register(number, 0),
                last_set: 0,
                interval_min,
                random: fastrand::Rng::with_seed(number.into()),
                shared: Arc::clone(&shared),
            };
            callers.spawn(caller.run());
        }
        Self { shared, callers }
    }

    /// Lets every caller end its operation, and returns what they did and saw.
    pub async fn stop(self) -> History {
        self.shared.stops.store(true, Ordering::Relaxed);
        let operations = self.callers.join_all().await.concat();
        History::new(operations)
    }
}

/// Reads all keys of a history several times after everything, adds that to the history, and returns
/// what was read last.
pub async fn read_everything<B: Backend>(
    kv: &Kv<B>,
    times: usize,
    shared: &Shared,
    history: &mut History,
) -> Result<FinalState, KvError> {
    let keys: BTreeSet<_> = history.operations.iter().map(|it| it.key.clone()).collect();
    let first = history.operations.iter().map(|it| it.process + 1).max().unwrap_or(0);
    let get: Arc<str> = "get".into();
    let mut state = FinalState::new();
    for _ in 0..times {
        let invoked_ns = shared.nanos();
        let names = keys.iter().filter_map(Value::as_name);
        let names = names.map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
        let values = kv.get_many(names).await?;
        let completed_ns = Some(shared.nanos());
        // A key a process, because these reads are at the same time.
        for ((process, key), value) in (first..).zip(&keys).zip(values) {
            let value = value.map(|value| number(&value));
            history.operations.push(Operation {
                process,
                f: Arc::clone(&get),
                key: key.clone(),
                argument: Value::Nil,
                invoked_ns,
                completed_ns,
                outcome: Outcome::Ok(value.into()),
                line: 0,
            });
            state.extend(value.map(|value| (key.clone(), value)));
        }
    }
    Ok(state)
}

fn register(caller: u32, generation: u32) -> Arc<str> {
    format!("register-{caller}.{generation}").into()
}

/// What a value means. One that is no number was never written, and neither was the number for that.
fn number(value: &[u8]) -> i64 {
    str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MAX)
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Get,
    Set,
    Increment,
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Increment => "incr",
        }
    }
}

struct Caller<B> {
    kv: Kv<B>,
    number: u32,
    clients: u32,
    /// How often its outcome was unknown: each time it goes on as another process, and with another
    /// register, because what it did may still take effect.
    generation: u32,
    register: Arc<str>,
    last_set: i64,
    /// The mean interval between the beginnings of its operations is at least this.
    interval_min: Duration,
    random: fastrand::Rng,
    shared: Arc<Shared>,
}

impl<B: Backend> Caller<B> {
    async fn run(mut self) -> Vec<Operation> {
        /// After an operation that was not done, so that an error is not repeated without pause.
        const PAUSE: Duration = Duration::from_millis(10);
        let mut operations = Vec::new();
        let mut not_before = self.shared.started;
        while !self.shared.stops.load(Ordering::Relaxed) {
            not_before += self.interval_min;
            if not_before > Instant::now() {
                tokio::time::sleep_until(not_before).await;
            }
            let operation = self.operate().await;
            let outcome = operation.outcome.clone();
            operations.push(operation);
            if matches!(outcome, Outcome::Ok(_)) {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                tokio::time::sleep(PAUSE).await;
            }
            if outcome == Outcome::Info {
                self.shared.unknown.fetch_add(1, Ordering::Relaxed);
                self.go_on_as_another();
            }
        }
        operations
    }

    async fn operate(&mut self) -> Operation {
        let (function, key, argument) = self.choose();
        let name = Bytes::copy_from_slice(key.as_bytes());
        let invoked_ns = self.shared.nanos();
        let result = match argument {
            None => self.kv.get(name).await.map(|value| value.map(|value| number(&value))),
            Some(value) if function == Function::Set => {
                let set = self.kv.set(name, value.to_string(), Condition::Always).await;
                set.map(|_| None)
            }
            Some(by) => self.kv.increment(name, by).await.map(Some),
        };
        let outcome = match result {
            Ok(result) => Outcome::Ok(result.into()),
            Err(error) => outcome(function, &error),
        };
        Operation {
            process: i64::from(self.number) + i64::from(self.generation) * i64::from(self.clients),
            f: function.name().into(),
            key: Value::Text(key),
            argument: argument.into(),
            invoked_ns,
            completed_ns: Some(self.shared.nanos()),
            outcome,
            line: 0,
        }
    }

    fn choose(&mut self) -> (Function, Arc<str>, Option<i64>) {
        let counter = Arc::clone(&self.shared.counters[self.random.usize(..COUNTERS)]);
        match self.random.u8(..4) {
            0 => (Function::Increment, counter, Some(1)),
            1 => {
                self.last_set += 1;
                (Function::Set, Arc::clone(&self.register), Some(self.last_set))
            }
            2 => (Function::Get, counter, None),
            _ => {
                let registers = self.shared.registers.lock().expect("nobody panics with it");
                let whose = self.random.usize(..registers.len());
                (Function::Get, Arc::clone(&registers[whose]), None)
            }
        }
    }

    fn go_on_as_another(&mut self) {
        self.generation += 1;
        self.register = register(self.number, self.generation);
        self.last_set = 0;
        let mut registers = self.shared.registers.lock().expect("nobody panics with it");
        registers[self.number as usize] = Arc::clone(&self.register);
    }
}

fn outcome(function: Function, error: &KvError) -> Outcome {
    match error.outcome() {
        CallOutcome::NotExecuted => Outcome::Fail,
        // What it read is not known, so that it read does not matter.
        _ if function == Function::Get => Outcome::Fail,
        CallOutcome::Executed if function == Function::Set => Outcome::Ok(Value::Nil),
        // To a counter's check an increment without its sum is as good as unknown.
        CallOutcome::Executed | CallOutcome::Unknown => Outcome::Info,
    }
}

#[cfg(test)]
mod tests {
    use hovercraft_jepsen::versions::{Findings, check};

    use super::*;
    use hovercraft::CallError;

    use crate::{backend::InProcess, kv::KvService};

    /// A service in this process with a fault: every so many commands something goes wrong.
    #[derive(Clone)]
    struct Faulty {
        service: InProcess<KvService>,
        fault: Fault,
        commands: Arc<AtomicU64>,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fault {
        None,
        Unknown,
        Refused,
        Lost,
        Doubled,
    }

    impl Backend for Faulty {
        async fn call(&self, command: Bytes) -> Result<Bytes, CallError> {
            let strikes = self.commands.fetch_add(1, Ordering::Relaxed) % 10 == 9;
            match self.fault {
                _ if !strikes => {}
                Fault::None => {}
                Fault::Unknown => {
                    self.service.call(command).await?;
                    return Err(CallError::TimedOut(Duration::ZERO));
                }
                Fault::Refused => return Err(CallError::Cancelled(Duration::ZERO)),
                Fault::Lost => {
                    // Executed by a service that is then forgotten.
                    let fork = InProcess::new(KvService::default());
                    return fork.call(command).await;
                }
                Fault::Doubled => {
                    self.service.call(command.clone()).await?;
                }
            }
            let reply = self.service.call(command).await;
            tokio::task::yield_now().await;
            reply
        }

        async fn query(&self, query: Bytes) -> Result<Bytes, CallError> {
            tokio::task::yield_now().await;
            self.service.query(query).await
        }
    }

    /// Runs callers until they have done some hundred operations.
    async fn run(fault: Fault) -> (History, Findings) {
        let service = InProcess::new(KvService::default());
        let commands = Arc::new(AtomicU64::new(0));
        let kv = Kv::new(Faulty { service, fault, commands });
        let connections = [kv.clone(), kv.clone()];
        let workload = Workload::start(&connections, 7, Duration::from_secs(1));
        let shared = Arc::clone(&workload.shared);
        while shared.acknowledged.load(Ordering::Relaxed) < 300 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut history = workload.stop().await;
        let state = read_everything(&kv, 2, &shared, &mut history).await.expect("it answers");
        let findings = check(&history, &state);
        (history, findings)
    }

    fn count(history: &History, which: impl Fn(&Operation) -> bool) -> usize {
        history.operations.iter().filter(|operation| which(operation)).count()
    }

    #[tokio::test]
    async fn a_correct_service_is_found_correct() {
        let (history, findings) = run(Fault::None).await;
        assert_eq!(findings, Findings::default());
        for function in [Function::Get, Function::Set, Function::Increment] {
            assert!(count(&history, |it| *it.f == *function.name() && it.is_acknowledged()) > 30);
        }
    }

    #[tokio::test]
    async fn a_process_and_its_register_end_with_an_unknown_outcome() {
        let (history, findings) = run(Fault::Unknown).await;
        assert_eq!(findings, Findings::default());
        let unknown: Vec<_> =
            history.operations.iter().filter(|it| it.outcome == Outcome::Info).collect();
        assert!(!unknown.is_empty());
        for last in unknown {
            let later = |it: &Operation| {
                it.invoked_ns > last.invoked_ns
                    && (it.process == last.process || &*it.f == "set" && it.key == last.key)
            };
            assert_eq!(count(&history, later), 0);
        }
    }

    #[tokio::test]
    async fn what_was_not_executed_is_not_missed() {
        let (history, findings) = run(Fault::Refused).await;
        assert_eq!(findings, Findings::default());
        assert!(count(&history, |it| it.outcome == Outcome::Fail) > 0);
    }

    #[tokio::test]
    async fn lost_and_doubled_writes_are_found() {
        let (_, findings) = run(Fault::Lost).await;
        assert!(findings.lost > 0, "{findings:?}");
        let (_, findings) = run(Fault::Doubled).await;
        assert!(findings.duplicated > 0, "{findings:?}");
    }
}
