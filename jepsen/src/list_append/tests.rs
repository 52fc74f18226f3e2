use super::*;

/// The kinds of what is wrong with a history in which transactions follow each other, except those
/// that begin with `~`: these begin with the first one and end with the last one.
fn kinds(txns: &[&str]) -> Vec<String> {
    let mut text = String::new();
    let (concurrent, sequential): (Vec<_>, Vec<_>) =
        (0..).zip(txns).partition(|(_, txn)| txn.starts_with('~'));
    let invoke = |(process, txn): &(i32, &&str)| {
        format!("[{process} :invoke :txn [{}]]\n", txn.trim_start_matches(['~', '!', '?']))
    };
    let complete = |(process, txn): &(i32, &&str)| {
        let txn = txn.trim_start_matches('~');
        let kind = match txn.chars().next() {
            Some('!') => "fail",
            Some('?') => "info",
            _ => "ok",
        };
        format!("[{process} :{kind} :txn [{}]]\n", txn.trim_start_matches(['!', '?']))
    };
    text.extend(concurrent.iter().map(invoke));
    for it in &sequential {
        text += &(invoke(it) + &complete(it));
    }
    text.extend(concurrent.iter().map(complete));
    let text = if text.is_empty() { "[]".to_owned() } else { text };
    let history = History::read(text.as_bytes()).expect(&text);
    let report = check_list_append(&history, &Limits::steps(u64::MAX)).expect(&text);
    report.anomalies.iter().map(|anomaly| anomaly.kind.to_string()).collect()
}

#[test]
fn what_is_strictly_serializable_has_no_anomaly() {
    let good: [&[&str]; 6] = [
        &[],
        &["[:append x 1]", "[:append x 2] [:r x [1 2]]", "[:r x [1 2]] [:r y nil]"],
        &["~[:append x 1] [:append y 1]", "~[:r x [1]] [:r y [1]]", "~[:r x nil] [:r y nil]"],
        // What failed was not done, and what is unknown may have been.
        &["![:append x 1]", "?[:append x 2]", "[:r x [2]]"],
        &["?[:append x 2]", "[:r x []]"],
        // A list that nobody read.
        &["[:append x 1] [:append x 2]", "[:append x 3]"],
    ];
    for txns in good {
        assert_eq!(kinds(txns), [""; 0], "{txns:?}");
    }
}

#[test]
fn every_anomaly_has_its_name() {
    let bad: [(&str, &[&str]); 19] = [
        (
            "G0",
            &[
                "~[:append x 1] [:append y 1]",
                "~[:append x 2] [:append y 2]",
                "[:r x [1 2]]",
                "[:r y [2 1]]",
            ],
        ),
        ("G1a", &["![:append x 1]", "[:r x [1]]"]),
        ("G1b", &["~[:append x 1] [:append x 2]", "~[:r x [1]]", "[:r x [1 2]]"]),
        ("G1c", &["~[:append x 1] [:r y [1]]", "~[:append y 1] [:r x [1]]"]),
        ("G-single", &["~[:append x 1] [:append y 1]", "~[:r x [1]] [:r y nil]", "[:r y [1]]"]),
        (
            "G2",
            &["~[:append x 1] [:r y nil]", "~[:append y 1] [:r x nil]", "[:r x [1]] [:r y [1]]"],
        ),
        ("internal", &["[:append x 1] [:r x nil]"]),
        ("internal", &["[:append x 1]", "[:r x [1]] [:r x nil]"]),
        ("internal", &["[:r x [1]] [:append x 1]"]),
        ("internal", &["[:append x 0]", "[:r x [0]] [:append x 1] [:r x [1]]"]),
        (
            "incompatible-order",
            &["~[:append x 1]", "~[:append x 2]", "~[:r x [1 2]]", "~[:r x [2 1]]"],
        ),
        ("duplicate-elements", &["[:append x 1]", "[:r x [1 1]]"]),
        ("never-appended", &["[:r x [7]]"]),
        ("lost-append", &["[:append x 1]", "[:r x nil]"]),
        ("lost-append", &["[:append x 1]", "[:append x 2]", "[:r x [2]]"]),
        ("G0-realtime", &["[:append x 1]", "[:append x 2]", "~[:r x [2 1]]"]),
        ("G1c-realtime", &["[:r x [1]]", "[:append x 1]"]),
        ("G-single-realtime", &["[:append x 1]", "[:append x 2]", "[:r x [1]]", "~[:r x [1 2]]"]),
        // One began after what the first did not see, and did not see the first.
        ("G2-realtime", &["~[:r x nil] [:append y 1]", "[:append x 1]", "[:r y nil]"]),
    ];
    for (kind, txns) in bad {
        let kinds = kinds(txns);
        assert!(kinds.iter().any(|it| it == kind), "{kind}: {kinds:?} in {txns:?}");
    }
}

/// Elle's example of a read that misses what was done, told in its paper.
#[test]
fn the_example_of_the_paper_is_a_single_anti_dependency() {
    let kinds = kinds(&[
        "~[:append 5 1] [:append 5 2]",
        "~[:append 6 8] [:r 5 [1 2]]",
        "~[:append 7 4] [:r 6 [8]] [:r 7 [4]]",
        "~[:r 6 nil] [:append 7 3]",
        "[:r 7 [3 4]]",
    ]);
    assert!(!kinds.is_empty());
}

#[test]
fn an_explanation_says_why() {
    let text = "[0 :invoke :txn [[:append x 1]]]\n[0 :ok :txn [[:append x 1]]]\n\
                [1 :invoke :txn [[:r x nil]]]\n[1 :ok :txn [[:r x nil]]]";
    let history = History::read(text.as_bytes()).expect("a history");
    let report = check_list_append(&history, &Limits::steps(u64::MAX)).expect("transactions");
    let told: Vec<_> = report.anomalies.iter().map(|it| &*it.explanation).collect();
    let expected = [
        "the transaction of line 1 (process 0) appended 1 to x and was done before the transaction \
         of line 3 (process 1) began, which did not see it, and nobody did",
        "the transaction of line 3 (process 1) did not see 1 in x, which the transaction of line 1 \
         (process 0) appended; the transaction of line 1 (process 0) was done before the \
         transaction of line 3 (process 1) began: each came before the next, and so before itself",
    ];
    assert_eq!(told, expected);
    assert_eq!(report.anomalies[1].operations, [0, 1]);
}

#[test]
fn what_cannot_be_checked_is_told_with_its_line() {
    let error = |text: &str| {
        let history = History::read(text.as_bytes()).expect(text);
        check_list_append(&history, &Limits::steps(u64::MAX)).expect_err(text).to_string()
    };
    let twice = "[0 :invoke :txn [[:append x 1]]]\n[1 :invoke :txn [[:append x 1]]]";
    let expected =
        "line 2: 1 was appended to x before, on line 1; list-append needs different values";
    assert_eq!(error(twice), expected);
    assert!(error("[0 :invoke :txn [[:w x 1]]]").contains("neither"));
    assert!(error("[0 :invoke :txn 7]").contains("not a list"));
    assert!(error("[0 :invoke :read nil]").contains("it has txn"));
}

/// Two transactions after two others, each of which saw what the other appended.
#[test]
fn limits_leave_what_is_not_known_unknown() {
    let text = "[0 :invoke :txn [[:append x 1]]] [1 :invoke :txn [[:append y 1]]]
                [0 :ok :txn [[:append x 1]]] [1 :ok :txn [[:append y 1]]]
                [0 :invoke :txn [[:append x 2] [:r y nil]]]
                [1 :invoke :txn [[:append y 2] [:r x nil]]]
                [0 :ok :txn [[:append x 2] [:r y [1 2]]]]
                [1 :ok :txn [[:append y 2] [:r x [1 2]]]]";
    let history = History::read(text.as_bytes()).expect("a history");
    let check = |limits: &Limits<'_>| {
        let report = check_list_append(&history, limits).expect("transactions");
        (report.anomalies.len(), report.limit)
    };
    let steps = |steps_max: u64| Limits::steps(steps_max);
    assert_eq!(check(&steps(100)), (1, None));
    assert_eq!(check(&steps(0)), (0, Some(Limit::Steps)));
    assert_eq!(check(&Limits { is_time_up: &|| true, ..steps(100) }), (0, Some(Limit::Time)));
    let bytes = |bytes_max: usize| Limits { bytes_max, ..steps(100) };
    assert_eq!(check(&bytes(100)), (0, Some(Limit::Memory)));
    // What is there without real time is found in less.
    let history_bytes = 2 * history.bytes();
    assert_eq!(check(&bytes(history_bytes)), (1, Some(Limit::Memory)));
    assert_eq!(check(&bytes(history_bytes + 10_000)), (1, None));
}

/// What a serial execution at random times produces is right, and stays so only until it is changed.
#[test]
fn a_correct_store_is_never_accused_and_a_stale_read_always_is() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (history, stale) = serial(&mut random);
        assert_eq!(
            check_list_append(&history, &Limits::steps(u64::MAX)).expect("transactions").anomalies,
            [],
            "seed {seed}"
        );
        let Some(stale) = stale else { continue };
        let report = check_list_append(&stale, &Limits::steps(u64::MAX)).expect("transactions");
        assert!(!report.anomalies.is_empty(), "seed {seed}");
    }
}

/// A correct history, and the same with another read in the end that misses the last append.
fn serial(random: &mut fastrand::Rng) -> (History, Option<History>) {
    use crate::{Operation, Outcome, Value};
    let mut lists: [Vec<Value>; 3] = Default::default();
    let mut operations: Vec<Operation> = Vec::new();
    let keyword = |name: &str| Value::Keyword(name.into());
    let txn = |at: u64, length: (u64, u64), steps: Vec<Value>, outcome: Outcome| Operation {
        process: at.cast_signed(),
        f: "txn".into(),
        key: Value::Nil,
        argument: Value::list(steps),
        invoked_ns: (at * 10).saturating_sub(length.0),
        completed_ns: Some(at * 10 + length.1),
        outcome,
        line: 0,
    };
    for at in 1..30_u64 {
        let (mut asked, mut done) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..4) {
            let key = random.usize(..3);
            let name = Value::Int(key.cast_signed() as i64);
            if random.bool() {
                let element = Value::Int(at.cast_signed() * 10 + done.len().cast_signed() as i64);
                lists[key].push(element.clone());
                done.push(Value::list([keyword("append"), name, element]));
                asked.push(done[done.len() - 1].clone());
            } else {
                let seen = Value::list(lists[key].iter().cloned());
                asked.push(Value::list([keyword("r"), name.clone(), Value::Nil]));
                done.push(Value::list([keyword("r"), name, seen]));
            }
        }
        let is_unknown = random.u8(..5) == 0;
        let outcome = if is_unknown { Outcome::Info } else { Outcome::Ok(Value::list(done)) };
        operations.push(txn(at, (random.u64(..40), random.u64(..40)), asked, outcome));
    }
    let history = History::new(operations.clone());
    // Only what was acknowledged or seen must be there.
    let key = random.usize(..3);
    let name = Value::Int(key.cast_signed() as i64);
    let read = |seen: &[Value]| {
        let step = Value::list([keyword("r"), name.clone(), Value::list(seen.iter().cloned())]);
        Outcome::Ok(Value::list([step]))
    };
    let Some((_, before)) = lists[key].split_last() else { return (history, None) };
    operations.push(txn(40, (0, 1), Vec::new(), read(&lists[key])));
    operations.push(txn(41, (0, 1), Vec::new(), read(before)));
    (history, Some(History::new(operations)))
}
