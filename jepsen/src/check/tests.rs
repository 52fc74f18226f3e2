use super::*;
use crate::{
    Operation, Outcome, check_witness,
    model::{Counter, Kv, Mutex, Queue, Register, Semantics, Set, Step},
};

/// Small random histories, with the same sequence of them every time.
const HISTORIES: u64 = 4000;

const STEPS: u64 = 1_000_000;

/// What a state is as a value, for a read of it.
fn value_of<M: Model>(model: &M, state: &M::State) -> Value {
    let text = format!("[0 :invoke :x {}]", model.describe(state));
    History::read(text.as_bytes()).expect("states are described in EDN").operations[0]
        .argument
        .clone()
}

/// What a service has done that is correct: operations of several processes at the same time, each
/// executed somewhere between its beginning and its end, or after an end as unknown.
fn correct_history<M: Model>(
    model: &M,
    events: u64,
    random: &mut fastrand::Rng,
    draw: Draw,
) -> History {
    let mut states: Vec<M::State> = (0..2).map(|_| model.initial()).collect();
    let mut operations: Vec<Operation> = Vec::new();
    // Of each process its operation, and whether it was executed.
    let mut processes: [Option<(usize, bool)>; 5] = [None; 5];
    let mut late = Vec::new();
    for now in 0..events {
        let process = random.usize(..processes.len());
        let execute = match processes[process] {
            None => {
                let (f, argument, _) = draw(random);
                processes[process] = Some((operations.len(), false));
                operations.push(Operation {
                    process: now.cast_signed(),
                    f: f.into(),
                    key: Value::Int(random.i64(0..2)),
                    argument,
                    invoked_ns: now,
                    completed_ns: None,
                    outcome: Outcome::Info,
                    line: 0,
                });
                None
            }
            Some((at, false)) if random.u8(..12) == 0 => {
                late.push(at);
                processes[process] = None;
                None
            }
            Some((at, false)) => {
                processes[process] = Some((at, true));
                Some(at)
            }
            Some((at, true)) => {
                operations[at].completed_ns = Some(now);
                processes[process] = None;
                None
            }
        };
        let is_late = !late.is_empty() && random.u8(..8) == 0;
        let executed =
            execute.or_else(|| is_late.then(|| late.swap_remove(random.usize(..late.len()))));
        if let Some(at) = executed {
            let key =
                usize::try_from(operations[at].key.as_int().expect("as made")).expect("0 or 1");
            operations[at].outcome = execute_on(model, &mut states[key], &operations[at]);
        }
    }
    // What was executed and not answered is unknown.
    for operation in &mut operations {
        if operation.completed_ns.is_none() {
            operation.outcome = Outcome::Info;
        }
    }
    History::new(operations)
}

/// Executes an operation: with the result that the model allows.
fn execute_on<M: Model>(model: &M, state: &mut M::State, operation: &Operation) -> Outcome {
    let whole = value_of(model, state);
    let first = whole.items().and_then(|items| items.first()).cloned().unwrap_or_default();
    let sum = (-50..50).map(Value::Int);
    for result in [whole, first, Value::Nil].into_iter().chain(sum) {
        let outcome = Outcome::Ok(result);
        let done = Operation { outcome: outcome.clone(), ..operation.clone() };
        let Some(action) = model.action(&done).ok().flatten() else { continue };
        match model.step(state, &action) {
            Step::Refused => {}
            Step::Unchanged => return outcome,
            Step::Becomes(after) => {
                *state = after;
                return outcome;
            }
        }
    }
    Outcome::Fail
}

/// Checks that a correct service is never accused, and that this is proved by an order.
fn accepts<M: Model>(model: &M, events_max: u64, draw: Draw) {
    for seed in 0..400 {
        let random = &mut fastrand::Rng::with_seed(seed);
        let events = random.u64(20..events_max);
        let history = correct_history(model, events, random, draw);
        let report = check(model, &history, &Limits::steps(STEPS)).expect("known operations");
        assert_eq!(report.verdict, Verdict::Linearizable, "seed {seed}: {history:#?}");
        let mut order: Vec<usize> = Vec::new();
        for key in &report.keys {
            let Finding::Linearizable(of_key) = &key.finding else { panic!("seed {seed}") };
            assert_eq!(check_witness(model, &only(&history, &key.key), of_key), Ok(()));
            order.extend(of_key);
        }
        assert!(order.len() <= history.operations.len());
    }
}

/// A history in which nothing is known of the operations on other keys. The places stay as they are.
fn only(history: &History, key: &Value) -> History {
    let mut history = history.clone();
    for operation in history.operations.iter_mut().filter(|it| it.key != *key) {
        operation.outcome = Outcome::Info;
    }
    history
}

/// Whether operations have an order, by trying all.
fn has_order<M: Model>(model: &M, state: &M::State, left: &[(&Operation, M::Action)]) -> bool {
    let ends = |it: &Operation| {
        it.completed_ns.filter(|_| it.outcome != Outcome::Info).unwrap_or(u64::MAX)
    };
    if left.iter().all(|(it, _)| ends(it) == u64::MAX) {
        return true;
    }
    (0..left.len()).any(|at| {
        let (operation, action) = &left[at];
        let is_next = left.iter().all(|(other, _)| ends(other) >= operation.invoked_ns);
        let after = match model.step(state, action) {
            Step::Refused => return false,
            Step::Unchanged => state.clone(),
            Step::Becomes(after) => after,
        };
        let mut rest = left.to_vec();
        rest.remove(at);
        is_next && has_order(model, &after, &rest)
    })
}

/// The same for a history of several keys.
fn is_linearizable<M: Model>(model: &M, history: &History) -> bool {
    let mut keys: Vec<_> = history.operations.iter().map(|it| &it.key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().all(|key| {
        let of_key = history.operations.iter().filter(|it| it.key == *key);
        let actions = of_key.filter_map(|it| Some((it, model.action(it).expect("known")?)));
        has_order(model, &model.initial(), &actions.collect::<Vec<_>>())
    })
}

/// A history in which what completed after an operation did, did not.
fn until(history: &History, last: &Operation) -> History {
    let end = last.completed_ns.expect("it completed");
    let mut operations = history.operations.clone();
    operations.retain(|it| it.key == last.key && it.invoked_ns <= end);
    for operation in &mut operations {
        // Its result stays known, as in the checker's counterexample.
        if operation.completed_ns.is_some_and(|completed_ns| completed_ns > end) {
            operation.completed_ns = Some(u64::MAX);
        }
    }
    History::new(operations)
}

/// What an operation does, what it is given and what comes of it, at random.
type Draw = fn(&mut fastrand::Rng) -> (&'static str, Value, Value);

fn random_history(random: &mut fastrand::Rng, draw: Draw) -> History {
    let count = random.usize(1..=7);
    let keys = random.i64(1..=2);
    let mut times: Vec<u64> = (0..2 * count as u64).collect();
    random.shuffle(&mut times);
    let operations = (0..).zip(times.chunks(2)).map(|(process, times)| {
        let (f, argument, result) = draw(random);
        let outcome = match random.u8(..10) {
            0 => Outcome::Fail,
            1 | 2 => Outcome::Info,
            _ => Outcome::Ok(result),
        };
        Operation {
            process,
            f: f.into(),
            key: Value::Int(random.i64(0..keys)),
            argument,
            invoked_ns: times[0].min(times[1]),
            completed_ns: Some(times[0].max(times[1])),
            outcome,
            line: 0,
        }
    });
    History::new(operations.collect())
}

/// Checks that the checker and brute force agree, on the verdict and on the counterexample.
fn agree<M: Model>(model: &M, events_max: u64, draw: Draw) {
    accepts(model, events_max, draw);
    let mut linearizable = 0;
    for seed in 0..HISTORIES {
        let history = random_history(&mut fastrand::Rng::with_seed(seed), draw);
        let report = check(model, &history, &Limits::steps(STEPS)).expect("known operations");
        let expected = is_linearizable(model, &history);
        let verdict = if expected { Verdict::Linearizable } else { Verdict::NotLinearizable };
        assert_eq!(report.verdict, verdict, "seed {seed}: {history:#?}");
        linearizable += u64::from(expected);
        for key in &report.keys {
            let of_key = only(&history, &key.key);
            match &key.finding {
                Finding::Linearizable(order) => {
                    assert_eq!(check_witness(model, &of_key, order), Ok(()), "seed {seed}");
                }
                Finding::NotLinearizable(found) => agree_on(model, &history, found, seed),
                Finding::Unknown(_) => assert!(!expected, "seed {seed}"),
            }
        }
    }
    let share = linearizable * 100 / HISTORIES;
    assert!((10..=90).contains(&share), "{share} % of the histories are linearizable");
}

/// The beginning has no order, all shorter ones have, and the orders are such.
fn agree_on<M: Model>(model: &M, history: &History, found: &Counterexample, seed: u64) {
    let stuck = &history.operations[found.stuck];
    let order_of = |history: &History| {
        let actions = history.operations.iter();
        let actions = actions.filter_map(|it| Some((it, model.action(it).expect("known")?)));
        // What is still outstanding has its result, and no end.
        has_order(model, &model.initial(), &actions.collect::<Vec<_>>())
    };
    assert!(!order_of(&until(history, stuck)), "seed {seed}: {found:?} {history:#?}");
    for earlier in &history.operations {
        let is_earlier = earlier.completed_ns < stuck.completed_ns
            && earlier.key == stuck.key
            && earlier.outcome != Outcome::Info;
        if is_earlier {
            assert!(order_of(&until(history, earlier)), "seed {seed}: {found:?} {history:#?}");
        }
    }
    assert!(!found.orders.is_empty(), "seed {seed}: {found:?}");
    for order in &found.orders {
        let mut state = model.initial();
        for place in &order.operations {
            let action = model.action(&history.operations[*place]).expect("known");
            match model.step(&state, &action.expect("it does something")) {
                Step::Refused => panic!("seed {seed}: {order:?}"),
                Step::Unchanged => {}
                Step::Becomes(after) => state = after,
            }
        }
        assert_eq!(model.describe(&state), order.state, "seed {seed}");
        let missing = history.operations.iter().enumerate().filter(|(place, it)| {
            it.key == stuck.key
                && it.completed_ns < stuck.completed_ns
                && it.outcome != Outcome::Info
                && model.action(it).expect("known").is_some()
                && !order.operations.contains(place)
        });
        assert_eq!(missing.count(), 0, "seed {seed}: {order:?}");
    }
}

/// How many events a correct history has that the checker is to accept.
const EVENTS_MAX: u64 = 300;

fn small(random: &mut fastrand::Rng) -> Value {
    Value::Int(random.i64(0..3))
}

fn of_register(random: &mut fastrand::Rng) -> (&'static str, Value, Value) {
    match random.u8(..3) {
        0 => ("write", small(random), Value::Nil),
        1 => ("cas", Value::list([small(random), small(random)]), Value::Nil),
        _ => ("read", Value::Nil, small(random)),
    }
}

#[test]
fn agrees_with_brute_force_on_registers() {
    for semantics in [Semantics::Knossos, Semantics::Etcd] {
        let model = Register { semantics, has_cas: true };
        agree(&model, EVENTS_MAX, of_register);
    }
    agree(&Register { semantics: Semantics::Knossos, has_cas: false }, EVENTS_MAX, |random| {
        match random.u8(..2) {
            0 => ("write", small(random), Value::Nil),
            _ => ("read", Value::Nil, small(random)),
        }
    });
}

#[test]
fn agrees_with_brute_force_on_stores() {
    agree(&Kv, EVENTS_MAX, |random| {
        let text = |random: &mut fastrand::Rng| ["a", "b"][random.usize(..2)].into();
        match random.u8(..6) {
            0 => ("put", text(random), Value::Nil),
            1 | 2 => ("append", text(random), Value::Nil),
            _ => (
                "get",
                Value::Nil,
                ["", "a", "b", "ab", "ba", "aa", "aab"][random.usize(..7)].into(),
            ),
        }
    });
    agree(&Kv, EVENTS_MAX, |random| match random.u8(..4) {
        0 => ("set", small(random), Value::Nil),
        1 => ("incr", Value::Int(1), Value::Int(random.i64(1..3))),
        2 => ("incr", Value::Int(1), Value::Nil),
        _ => ("get", Value::Nil, small(random)),
    });
}

#[test]
fn agrees_with_brute_force_on_locks() {
    agree(&Mutex, EVENTS_MAX, |random| {
        (["acquire", "release"][random.usize(..2)], Value::Nil, Value::Nil)
    });
}

#[test]
fn agrees_with_brute_force_on_sets() {
    agree(&Set { semantics: Semantics::Knossos }, EVENTS_MAX, |random| match random.u8(..5) {
        0 | 1 => ("add", small(random), Value::Nil),
        2 => ("remove", small(random), Value::Nil),
        _ => {
            let count = random.usize(..3);
            ("read", Value::Nil, Value::set((0..count).map(|_| small(random)).collect::<Vec<_>>()))
        }
    });
}

#[test]
fn agrees_with_brute_force_on_queues() {
    // What is in a queue is seen late, so that many orders have to be kept in mind.
    agree(&Queue, EVENTS_MAX / 4, |random| match random.u8(..5) {
        0..3 => ("enqueue", small(random), Value::Nil),
        3 => ("dequeue", Value::Nil, small(random)),
        _ => ("dequeue", Value::Nil, if random.bool() { Value::Nil } else { small(random) }),
    });
}

#[test]
fn agrees_with_brute_force_on_counters() {
    agree(&Counter { semantics: Semantics::Etcd }, EVENTS_MAX, |random| match random.u8(..4) {
        0 => ("decr", Value::Int(random.i64(1..3)), Value::Nil),
        1 | 2 => ("add", Value::Int(random.i64(0..3)), Value::Nil),
        _ => ("read", Value::Nil, small(random)),
    });
}

const MODEL: Register = Register { semantics: Semantics::Knossos, has_cas: true };

const COUNTER: Counter = Counter { semantics: Semantics::Knossos };

/// Additions at the same time whose sums all differ, and after them a read of what no sum is.
fn hard(key: i64) -> String {
    let all = |kind: &str| -> String {
        let add = |it| format!("[{} :{kind} :add [{key} {}]]\n", key * 1000 + it, 2_i64 << it);
        (0..40).map(add).collect::<Vec<_>>().concat()
    };
    let (read, (invoke, ok)) = (key * 1000 + 999, (all("invoke"), all("ok")));
    let seen = (1_i64 << 41) - 3;
    format!("{invoke}{ok}[{read} :invoke :read [{key} nil]] [{read} :ok :read [{key} {seen}]]\n")
}

fn history(text: &str) -> History {
    History::read(text.as_bytes()).expect("a history")
}

#[test]
fn a_hard_key_does_not_hide_an_easy_violation() {
    let easy = "[1 :invoke :read [7 nil]] [1 :ok :read [7 5]]\n";
    let text = hard(3) + easy;
    let report = check(&COUNTER, &history(&text), &Limits::steps(100_000)).expect("known");
    assert_eq!(report.verdict, Verdict::NotLinearizable);
    assert_eq!(report.keys[0].finding, Finding::Unknown(None));
    assert!(report.steps < 20_000, "{}", report.steps);
}

#[test]
fn every_limit_is_kept() {
    let verdict = |limits: &Limits<'_>| {
        let report = check(&COUNTER, &history(&hard(0)), limits).expect("known");
        (report.verdict, report.steps)
    };
    let steps = verdict(&Limits::steps(50_000));
    assert_eq!(steps, (Verdict::Unknown(Limit::Steps), 50_000));
    let memory = verdict(&Limits { bytes_max: 1 << 20, ..Limits::steps(u64::MAX) });
    assert_eq!(memory.0, Verdict::Unknown(Limit::Memory));
    assert_eq!(memory, verdict(&Limits { bytes_max: 1 << 20, ..Limits::steps(u64::MAX) }));
    let none = verdict(&Limits { bytes_max: 100, ..Limits::steps(u64::MAX) });
    assert_eq!(none, (Verdict::Unknown(Limit::Memory), 0));
    let time = verdict(&Limits { is_time_up: &|| true, ..Limits::steps(u64::MAX) });
    assert_eq!(time.0, Verdict::Unknown(Limit::Time));
}

#[test]
fn the_search_that_takes_the_memory_is_given_up_for_the_others() {
    let linearizable = "[1 :invoke :add [7 5]] [1 :ok :add [7 5]]\n";
    let text = hard(3) + linearizable;
    let limits = Limits { bytes_max: 1 << 20, ..Limits::steps(u64::MAX) };
    let report = check(&COUNTER, &history(&text), &limits).expect("known");
    assert_eq!(report.verdict, Verdict::Unknown(Limit::Memory));
    assert!(matches!(report.keys[1].finding, Finding::Linearizable(_)));
}

#[test]
fn unknown_operations_do_not_multiply() {
    // Writes that crashed and were never seen, which could each be anywhere.
    let crashed = |it| format!("[{it} :invoke :write {}]\n", it + 100);
    let done = |it| format!("[500 :invoke :write {it}] [500 :ok :write {it}]\n");
    let text: Vec<_> = (0..60).map(crashed).chain((0..100).map(done)).collect();
    let text = text.concat();
    let stale = text.clone() + "[500 :invoke :read nil] [500 :ok :read 98]";
    let crashed = text + "[500 :invoke :read nil] [500 :ok :read 159]";
    let report =
        |text: &str| check(&MODEL, &history(text), &Limits::steps(1_000_000)).expect("known");
    assert_eq!(report(&stale).verdict, Verdict::NotLinearizable);
    assert_eq!(report(&crashed).verdict, Verdict::Linearizable);
}

#[test]
fn the_counterexample_is_the_shortest_beginning() {
    let text = "[0 :invoke :write 1] [0 :ok :write 1] [1 :invoke :write 2] [2 :invoke :read nil]
        [2 :ok :read 7] [1 :ok :write 2] [0 :invoke :read nil] [0 :ok :read 9]";
    let report = check(&MODEL, &history(text), &Limits::steps(1000)).expect("known");
    let Finding::NotLinearizable(found) = &report.keys[0].finding else { panic!("{report:?}") };
    assert_eq!((found.stuck, &*found.prefix, &*found.concurrent), (2, &[0, 1, 2][..], &[1][..]));
    let orders: Vec<_> = found.orders.iter().map(|it| (&*it.operations, &*it.state)).collect();
    assert_eq!(orders, [(&[0, 1][..], "2"), (&[0][..], "1")]);
}

#[test]
fn nothing_is_linearizable() {
    let report = check(&MODEL, &History::new(Vec::new()), &Limits::steps(1)).expect("known");
    assert_eq!((report.verdict, report.keys.len()), (Verdict::Linearizable, 0));
}
