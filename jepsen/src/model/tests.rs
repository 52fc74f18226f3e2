use super::*;
use crate::{
    History,
    check::{Limits, Verdict, check},
};

/// The verdict on a history in a line, in Jepsen's short form.
fn is_linearizable(model: &impl Model, text: &str) -> bool {
    let history = History::read(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"));
    let report = check(model, &history, &Limits::steps(100_000)).expect(text);
    match report.verdict {
        Verdict::Linearizable => true,
        Verdict::NotLinearizable => false,
        Verdict::Unknown(limit) => panic!("{limit:?}: {text}"),
    }
}

fn assert_all(model: &impl Model, linearizable: &[&str], not: &[&str]) {
    for text in linearizable {
        assert!(is_linearizable(model, text), "{text}");
    }
    for text in not {
        assert!(!is_linearizable(model, text), "{text}");
    }
}

const fn register(semantics: Semantics) -> Register {
    Register { semantics, has_cas: true }
}

#[test]
fn knossos_knows_nothing_of_failures_and_nil() {
    let linearizable = [
        "[0 :invoke :read nil] [0 :ok :read 0]",
        "[0 :invoke :write 1] [0 :ok :write 1] [0 :invoke :read nil] [0 :ok :read nil]",
        "[0 :invoke :cas [0 1]] [0 :fail :cas [0 1]]",
        "[0 :invoke :cas [5 1]] [0 :fail :cas [5 1]] [0 :invoke :read nil] [0 :ok :read 0]",
        "[0 :invoke :cas [0 1]] [1 :invoke :read nil] [1 :ok :read 1]",
        "[0 :invoke :cas [0 1]] [0 :info :cas [0 1]] [1 :invoke :read nil] [1 :ok :read 0]
         [1 :invoke :read nil] [1 :ok :read 1]",
        "[0 :invoke :write nil] [0 :ok :write 3] [1 :invoke :read 3] [1 :ok :read nil]",
    ];
    let not = [
        "[0 :invoke :read nil] [0 :ok :read 1]",
        "[0 :invoke :write 1] [0 :fail :write 1] [0 :invoke :read nil] [0 :ok :read 1]",
        "[0 :invoke :cas [0 1]] [0 :ok :cas [0 1]] [0 :invoke :cas [0 1]] [0 :ok :cas [0 1]]",
        "[0 :invoke :cas [0 1]] [0 :info :cas [0 1]] [1 :invoke :read nil] [1 :ok :read 1]
         [1 :invoke :read nil] [1 :ok :read 0]",
        // A read that crashed does not hide what comes after.
        "[6 :invoke :read nil] [0 :invoke :write 4] [0 :ok :write 4] [2 :invoke :write 1]
         [3 :invoke :read 3] [4 :invoke :read 2] [4 :ok :read 2] [3 :ok :read 3]",
    ];
    assert_all(&register(Semantics::Knossos), &linearizable, &not);
}

#[test]
fn in_the_suite_for_etcd_failures_and_nil_say_something() {
    let linearizable = [
        "[0 :invoke :read nil] [0 :ok :read nil]",
        "[0 :invoke :cas [0 1]] [0 :fail :cas [0 1]]",
        "[0 :invoke :write 1] [1 :invoke :cas [1 2]] [1 :fail :cas [1 2]] [0 :ok :write 1]",
        "[0 :invoke :write 1] [0 :fail :write 1] [1 :invoke :read nil] [1 :fail :read :timed-out]",
    ];
    let not = [
        "[0 :invoke :read nil] [0 :ok :read 0]",
        "[0 :invoke :write 1] [0 :ok :write 1] [0 :invoke :read nil] [0 :ok :read nil]",
        "[0 :invoke :write 1] [0 :ok :write 1] [1 :invoke :cas [1 2]] [1 :fail :cas [1 2]]",
    ];
    assert_all(&register(Semantics::Etcd), &linearizable, &not);
}

#[test]
fn a_lock_is_held_once() {
    let linearizable = [
        "[0 :invoke :acquire nil] [0 :ok :acquire nil] [1 :invoke :acquire nil]
         [0 :invoke :release nil] [1 :ok :acquire nil] [0 :ok :release nil]",
        "[0 :invoke :acquire nil] [0 :ok :acquire nil] [0 :invoke :release nil]
         [0 :info :release nil] [1 :invoke :acquire nil] [1 :ok :acquire nil]",
        "[0 :invoke :acquire nil] [0 :fail :acquire nil]",
    ];
    let not = [
        "[0 :invoke :acquire nil] [0 :ok :acquire nil] [1 :invoke :acquire nil] [1 :ok :acquire nil]",
        "[0 :invoke :release nil] [0 :ok :release nil]",
        "[0 :invoke :acquire nil] [0 :fail :acquire nil] [0 :invoke :release nil] [0 :ok :release nil]",
    ];
    assert_all(&Mutex, &linearizable, &not);
}

#[test]
fn a_set_has_what_was_added() {
    let both = "[0 :invoke :add 100] [1 :invoke :add 110] [2 :invoke :read nil]";
    let with =
        |read: &str| format!("{both} [2 :ok :read {read}] [1 :ok :add 110] [0 :ok :add 100]");
    let removed = "[0 :invoke :add 1] [0 :ok :add 1] [0 :invoke :remove 1] [0 :ok :remove 1]";
    let model = Set { semantics: Semantics::Knossos };
    for read in ["#{}", "[100]", "#{110}", "[110 100]", "nil", "(100 110)"] {
        assert!(is_linearizable(&model, &with(read)), "{read}");
    }
    for read in ["[100 100 110]", "#{7}", "[100 110 120]"] {
        assert!(!is_linearizable(&model, &with(read)), "{read}");
    }
    assert!(is_linearizable(
        &model,
        &format!("{removed} [0 :invoke :read nil] [0 :ok :read #{{}}]")
    ));
    assert!(!is_linearizable(
        &model,
        &format!("{removed} [0 :invoke :read nil] [0 :ok :read #{{1}}]")
    ));
}

#[test]
fn a_queue_gives_in_the_order_in_which_it_took() {
    let two = "[0 :invoke :enqueue 1] [0 :ok :enqueue 1] [0 :invoke :enqueue 2] [0 :ok :enqueue 2]";
    let take = |value: &str| format!("[1 :invoke :dequeue nil] [1 :ok :dequeue {value}]");
    let one = take("1");
    let linearizable = [
        format!("{two} {one} {} {}", take("2"), take("nil")),
        format!("{two} [2 :invoke :dequeue nil] [2 :info :dequeue nil] {}", take("2")),
        format!("{two} [2 :invoke :dequeue nil] [2 :fail :dequeue nil] {one}"),
        format!("[0 :invoke :enqueue 1] {one} [0 :ok :enqueue 1]"),
    ];
    let not = [
        format!("{two} {}", take("2")),
        format!("{two} {one} {one}"),
        format!("{two} {}", take("nil")),
        one.clone(),
        format!("{two} [2 :invoke :dequeue nil] [2 :fail :dequeue nil] {}", take("2")),
    ];
    assert_all(
        &Queue,
        &linearizable.each_ref().map(String::as_str),
        &not.each_ref().map(String::as_str),
    );
}

#[test]
fn a_counter_counts() {
    let model = Counter { semantics: Semantics::Knossos };
    let linearizable = [
        "[0 :invoke :add 2] [1 :invoke :read nil] [1 :ok :read 0] [0 :ok :add 2]
         [1 :invoke :read nil] [1 :ok :read 2]",
        "[0 :invoke :incr nil] [0 :ok :incr nil] [0 :invoke :decr 3] [0 :info :decr 3]
         [1 :invoke :read nil] [1 :ok :read -2]",
    ];
    let not = [
        "[0 :invoke :add 2] [0 :ok :add 2] [1 :invoke :read nil] [1 :ok :read 0]",
        "[0 :invoke :add 2] [0 :fail :add 2] [1 :invoke :read nil] [1 :ok :read 2]",
    ];
    assert_all(&model, &linearizable, &not);
}

#[test]
fn a_store_keeps_texts_by_keys() {
    let get = |key: &str, value: &str| {
        format!("[9 :invoke :get [{key} nil]] [9 :ok :get [{key} {value}]]")
    };
    let appended = "[0 :invoke :append [\"a\" \"x\"]] [0 :ok :append [\"a\" \"x\"]]
                    [0 :invoke :append [\"a\" \"y\"]] [0 :ok :append [\"a\" \"y\"]]";
    let crashed = "[0 :invoke :append [\"a\" \"x\"]] [0 :info :append [\"a\" \"x\"]]";
    let increment = "[0 :invoke :incr [1 nil]] [0 :ok :incr [1 1]] [0 :invoke :incr [1 4]]";
    let linearizable = [
        format!("{appended} {}", get("\"a\"", "\"xy\"")),
        format!("{appended} {} {} {}", get("\"b\"", "\"\""), get("\"b\"", "nil"), get("3", "nil")),
        format!("{crashed} {}", get("\"a\"", "\"x\"")),
        format!("{crashed} {}", get("\"a\"", "nil")),
        format!("[0 :invoke :put [1 5]] [0 :ok :put [1 5]] {}", get("1", "\"5\"")),
        format!("{increment} [0 :ok :incr [1 5]] {}", get("1", "5")),
    ];
    let not = [
        format!("{appended} {}", get("\"a\"", "\"yx\"")),
        format!("{appended} {}", get("\"a\"", "\"x\"")),
        format!("{appended} {}", get("\"b\"", "\"xy\"")),
        format!("{crashed} {} {}", get("\"a\"", "\"x\""), get("\"a\"", "nil")),
        format!("{increment} [0 :ok :incr [1 6]]"),
    ];
    assert_all(
        &Kv,
        &linearizable.each_ref().map(String::as_str),
        &not.each_ref().map(String::as_str),
    );
}

#[test]
fn what_a_model_does_not_know_is_an_error_with_its_line() {
    let history = History::read("\n[0 :invoke :pop nil]".as_bytes()).expect("a history");
    let error = check(&Queue, &history, &Limits::steps(1)).unwrap_err().to_string();
    let expected = "line 2: this model has no operation \"pop\"; it has enqueue and dequeue";
    assert_eq!(error, expected);
    let history = History::read("[0 :invoke :cas 7]".as_bytes()).expect("a history");
    let error = check(&register(Semantics::Etcd), &history, &Limits::steps(1)).unwrap_err();
    assert_eq!(error.to_string(), "line 1: the value 7 of cas is not [expected new]");
}
