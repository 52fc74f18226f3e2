use proptest::prelude::*;

use super::*;

fn operation(process: i64, f: &str, times: (u64, u64)) -> Operation {
    let (argument, outcome) = match f {
        "set" => (Value::Int(7), Outcome::Ok(Value::Nil)),
        "incr" => (Value::Int(1), Outcome::Ok(Value::Int(4))),
        _ => (Value::Nil, Outcome::Ok(Value::Nil)),
    };
    Operation {
        process,
        f: f.into(),
        key: "k".into(),
        argument,
        invoked_ns: times.0,
        completed_ns: Some(times.1),
        outcome,
        line: 0,
    }
}

fn written(operations: Vec<Operation>) -> String {
    let mut bytes = Vec::new();
    History::new(operations).write(&mut bytes).expect("memory does not fail");
    String::from_utf8(bytes).expect("JSON is text")
}

fn read(text: &str) -> History {
    History::read(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn refusal(text: &str) -> String {
    History::read(text.as_bytes()).expect_err(text).to_string()
}

/// The operations in one line each, for comparison.
fn told(history: &History) -> Vec<String> {
    let tell = |it: &Operation| {
        let Operation { process, f, key, argument, outcome, .. } = it;
        let outcome = match outcome {
            Outcome::Ok(result) => format!("ok {result}"),
            Outcome::Fail => "fail".to_owned(),
            Outcome::Info => "info".to_owned(),
        };
        format!("{process} {f} {key} {argument} → {outcome}")
    };
    history.operations.iter().map(tell).collect()
}

#[test]
fn an_event_a_line_in_order_of_time() {
    let set = operation(0, "set", (1, 30));
    let get = Operation { key: "q".into(), ..operation(1, "get", (2, 20)) };
    let unknown =
        Operation { outcome: Outcome::Info, completed_ns: None, ..operation(2, "incr", (3, 0)) };
    let expected = "\
        {\"process\":0,\"type\":\"invoke\",\"f\":\"set\",\"key\":\"k\",\"value\":7,\"time\":1}\n\
        {\"process\":1,\"type\":\"invoke\",\"f\":\"get\",\"key\":\"q\",\"value\":null,\"time\":2}\n\
        {\"process\":2,\"type\":\"invoke\",\"f\":\"incr\",\"key\":\"k\",\"value\":1,\"time\":3}\n\
        {\"process\":1,\"type\":\"ok\",\"f\":\"get\",\"key\":\"q\",\"value\":null,\"time\":20}\n\
        {\"process\":0,\"type\":\"ok\",\"f\":\"set\",\"key\":\"k\",\"value\":7,\"time\":30}\n";
    assert_eq!(written(vec![set, get, unknown]), expected);
}

#[test]
fn one_history_in_every_form_is_the_same() {
    let expected = ["0 write nil 3 → ok 3", "1 read nil nil → ok 3", "2 cas nil [3 4] → info"];
    let forms = [
        // Maps, one a line, with keys that nobody needs, and a nemesis.
        "{:process 0, :type :invoke, :f :write, :value 3, :index 0}\n\
         {:process :nemesis, :type :info, :f :start, :value #object[a 0x1 \"b\"]}\n\
         {:process 1, :type :invoke, :f :read, :value nil}\n\
         {:process 2, :type :invoke, :f :cas, :value [3 4]} ; a comment\n\
         {:process 0, :type :ok, :f :write, :value 3}\n\
         {:process 2, :type :info, :f :cas, :value [3 4], :error :timed-out}\n\
         {:process 1, :type :ok, :f :read, :value 3}",
        // Records in a vector, two on one line, one on two.
        "[#jepsen.history.Op{:index 0, :time 5, :type :invoke, :process 0, :f :write, :value 3}\n\
          #jepsen.history.Op{:time 6, :type :invoke, :process 1,\n :f :read, :value nil} \
          #jepsen.history.Op{:time 7, :type :invoke, :process 2, :f :cas, :value [3 4]}\n\
          #jepsen.history.Op{:time 8, :type :ok, :process 0, :f :write, :value 3}\n\
          #jepsen.history.Op{:time 9, :type :ok, :process 1, :f :read, :value 3}]",
        // The short form.
        "[0 :invoke :write 3]\n[:nemesis :info :start nil]\n[1 :invoke :read nil]\n\
         [2 :invoke :cas [3 4]]\n[0 :ok :write 3]\n[1 :ok :read 3]\n[2 :info :cas [3 4] :lost]",
        // Logs.
        "INFO  jepsen.core - Running test\n\
         INFO  jepsen.util - 0\t:invoke\t:write\t3\n\
         INFO  jepsen.util - :nemesis\t:info\t:start\tnil\n\
         INFO [2024-01-01] jepsen worker 1 - jepsen.util 1\t:invoke\t:read\tnil\n\
         INFO  jepsen.util - 2\t:invoke\t:cas\t[3 4]\n\
         INFO  jepsen.util - 0\t:ok\t:write\t3\n\
         INFO  jepsen.util - 2\t:info\t:cas\t:timed-out\n\
         INFO  jepsen.util - 1\t:ok\t:read\t3\n",
        "0\t:invoke\t:write\t3\n1\t:invoke\t:read\tnil\n2\t:invoke\t:cas\t[3 4]\n\
         :nemesis\t:info\t:start\tnil\n0\t:ok\t:write\t3\n1\t:ok\t:read\t3\n",
        // JSON, out of order.
        "{\"process\":0,\"type\":\"invoke\",\"f\":\"write\",\"value\":3,\"time\":1}\n\n\
         {\"process\":1,\"type\":\"invoke\",\"f\":\"read\",\"value\":null,\"time\":2}\n\
         {\"process\":1,\"type\":\"ok\",\"f\":\"read\",\"value\":3,\"time\":5}\n\
         {\"process\":0,\"type\":\"ok\",\"f\":\"write\",\"value\":3,\"time\":4,\"node\":{\"a\":[1.5]}}\n\
         {\"process\":2,\"type\":\"invoke\",\"f\":\"cas\",\"value\":[3,4],\"time\":3}",
    ];
    for form in forms {
        assert_eq!(told(&read(form)), expected, "{form}");
    }
    assert_eq!(read("[]").operations, []);
}

#[test]
fn keys_are_told_or_in_the_values() {
    let told_of = |text: &str| told(&read(text));
    // Told.
    let text = "{:process 0, :type :invoke, :f :append, :key \"4\", :value \"x 0 1 y\"}\n\
                {:process 0, :type :ok, :f :append, :key \"4\", :value \"x 0 1 y\"}";
    assert_eq!(told_of(text), ["0 append \"4\" \"x 0 1 y\" → ok \"x 0 1 y\""]);
    // Jepsen's tuples: if all are.
    let text = "[0 :invoke :cas [9 [1 2]]] [1 :invoke :read [9 nil]] [0 :ok :cas [9 [1 2]]] \
                [1 :ok :read [9 2]] [1 :invoke :read [8 nil]] [1 :info :read :timed-out]";
    let expected = ["0 cas 9 [1 2] → ok [1 2]", "1 read 9 nil → ok 2", "1 read 8 nil → info"];
    assert_eq!(told_of(text), expected);
    // Not all are: a set that reads a list of two.
    let text = "[0 :invoke :add 1] [0 :ok :add 1] [0 :invoke :read nil] [0 :ok :read [1 2]]";
    assert_eq!(told_of(text), ["0 add nil 1 → ok 1", "0 read nil nil → ok [1 2]"]);
    assert_eq!(told_of("[0 :invoke :cas [1 2]]"), ["0 cas nil [1 2] → info"]);
    let text = "[0 :invoke :txn [[:r 1 nil] [:r 2 nil]]]";
    assert_eq!(told_of(text), ["0 txn nil [[:r 1 nil] [:r 2 nil]] → info"]);
    // What was read is no tuple, though it looks like one, where the key is told.
    let text = "{:process 0, :type :invoke, :f :read, :key 1, :value nil} \
                {:process 0, :type :ok, :f :read, :key 1, :value [1 2]}";
    assert_eq!(told_of(text), ["0 read 1 nil → ok [1 2]"]);
    // What needs a key finds it.
    let text = "[0 :invoke :put [\"a\" 1]] [0 :ok :put [\"a\" 1]] [0 :invoke :get \"a\"] \
                [0 :ok :get [\"a\" 1]] [0 :invoke :get \"b\"] [0 :ok :get 2]";
    let expected = ["0 put \"a\" 1 → ok 1", "0 get \"a\" nil → ok 1", "0 get \"b\" nil → ok 2"];
    assert_eq!(told_of(text), expected);
}

#[test]
fn times_are_those_of_the_file_or_places() {
    let times = |text: &str| -> Vec<_> {
        let history = read(text);
        let of = |it: &Operation| (it.invoked_ns, it.completed_ns);
        let times: Vec<_> = history.operations.iter().map(of).collect();
        assert_eq!(history.has_times, text.contains("time"));
        times
    };
    let text = "[0 :invoke :read nil] [1 :invoke :read nil] [0 :ok :read 1]";
    assert_eq!(times(text), [(0, Some(2)), (1, None)]);
    // Equal times stay in order, and what is negative is moved.
    let event = |process, kind, time| {
        format!("{{:process {process}, :type :{kind}, :f :read, :time {time}}}\n")
    };
    let text = event(0, "invoke", 7) + &event(0, "ok", 7) + &event(1, "invoke", 7);
    assert_eq!(times(&text), [(7, Some(8)), (9, None)]);
    let text = event(0, "ok", 100) + &event(0, "invoke", -5);
    assert_eq!(times(&text), [(0, Some(105))]);
    let extreme = event(0, "invoke", i64::MIN) + &event(0, "ok", i64::MAX);
    let _ = History::read(extreme.as_bytes());
}

#[test]
fn what_is_not_a_history_is_refused_with_its_line() {
    let invoke = "[0 :invoke :read nil]\n";
    let ok = "[0 :ok :read nil]\n";
    let double = refusal(&format!("{invoke}{invoke}"));
    let expected = "line 2: process 0 invokes while its operation of line 1 is outstanding";
    assert_eq!(double, expected);
    let uninvoked = refusal(&format!("{invoke}{ok}{ok}"));
    assert_eq!(uninvoked, "line 3: process 0 completes what it did not invoke");
    assert!(refusal(&format!("{invoke}{{:process 1")).starts_with("line 2: "));
    assert!(refusal("[[0 :invoke :read nil]\n").starts_with("line 2: the history ends"));
    assert_eq!(refusal("\n{:type :ok}"), "line 2: the event has no process");
    assert!(refusal("{:process 0}").contains("the type nil is not"));
    assert!(refusal("[0 :invoke 7 nil]").contains("7 is not an f"));
    assert!(refusal("[[]]").contains("inside of another"));
    assert_eq!(refusal("[0 1]"), "line 1: [0 1] is not an event");
    let json = "{\"process\":0,\"type\":\"invoke\",\"f\":\"get\",\"time\":1}\n";
    assert!(refusal(&format!("{json}nonsense")).starts_with("line 2: not JSON"));
    assert!(refusal("nonsense\n").contains("neither"));
    assert!(refusal(" ; nothing\n").contains("no events"));
    let bytes = [b"[0 :invoke :read nil]\n".as_slice(), &[0xff]].concat();
    let error = History::read(&*bytes).unwrap_err().to_string();
    assert_eq!(error, "line 2: the history is not UTF-8 text");
}

#[test]
fn transactions_may_be_written_down_without_processes() {
    let invoke = "{:type :invoke, :value [[:append 1 2] [:r 3 nil]]}\n";
    let ok = "{:type :ok, :value [[:append 1 2] [:r 3 [4]]]}\n";
    let history = History::read(format!("{invoke}{ok}{invoke}{ok}").as_bytes()).unwrap();
    assert_eq!(history.operations.len(), 2);
    let mixed = refusal(&format!("{invoke}{{:process 1, :type :invoke, :value [[:r 3 nil]]}}\n"));
    assert_eq!(mixed, "line 1: the event has no process");
    assert!(refusal(&format!("{invoke}{invoke}")).starts_with("line 2: "));
}

#[test]
fn a_history_that_does_not_fit_is_refused() {
    let text = "[0 :invoke :read nil]\n[0 :ok :read 1]\n".repeat(100);
    let read = |bytes_max| History::read_within(text.as_bytes(), bytes_max);
    for bytes_max in [100, text.len(), text.len() + 1000] {
        let error = read(bytes_max).unwrap_err();
        assert!(matches!(error, HistoryError::TooLarge { .. }), "{error}");
    }
    assert_eq!(read(1 << 20).expect("it fits").operations.len(), 100);
}

#[test]
fn an_unknown_operation_stays_open() {
    let text = "[0 :invoke :write 1] [0 :info :write 1] [0 :invoke :write 2] [7 :info :x nil]";
    assert_eq!(told(&read(text)), ["0 write nil 1 → info", "0 write nil 2 → info"]);
}

/// Operations of one process one after another, each with any outcome.
fn operations_of(process: i64) -> impl Strategy<Value = Vec<Operation>> {
    let f = prop_oneof![Just("get"), Just("set"), Just("incr")];
    let step = (f, "[a-c]|\"\\PC", any::<i64>(), 1..3_u64, 1..3_u64, 0..4_u8);
    prop::collection::vec(step, 0..20).prop_map(move |steps| {
        let mut now = 0;
        let mut operations = Vec::new();
        for (f, key, number, before, during, outcome) in steps {
            // Processes have times of their own, because equal ones are moved apart.
            let invoked_ns = now + 2 * before + process.cast_unsigned();
            now = invoked_ns + 2 * during;
            let outcome = match outcome {
                0 => Outcome::Fail,
                1 => Outcome::Info,
                2 if f == "get" => Outcome::Ok(Value::Nil),
                _ => Outcome::Ok(Value::Int(number)),
            };
            operations.push(Operation {
                process,
                f: f.into(),
                key: key.as_str().into(),
                argument: (f != "get").then_some(number).into(),
                invoked_ns,
                completed_ns: Some(now),
                outcome,
                line: 0,
            });
            now -= process.cast_unsigned();
        }
        operations
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        mut operations in operations_of(0),
        others in operations_of(1),
        outstanding: bool,
    ) {
        operations.extend(others);
        if outstanding {
            let never = operation(2, "set", (5, 0));
            operations.push(Operation {
                completed_ns: None,
                outcome: Outcome::Info,
                ..never
            });
        }
        prop_assume!(!operations.is_empty());
        let read = read(&written(operations.clone()));
        let of = |process: i64, all: &[Operation]| -> Vec<Operation> {
            let of = all.iter().filter(|operation| operation.process == process);
            of.map(|operation| Operation { line: 0, invoked_ns: 0, completed_ns: None, ..operation.clone() }).collect()
        };
        for process in 0..3 {
            prop_assert_eq!(of(process, &read.operations), of(process, &operations));
        }
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in "\\PC*|[\\[\\]{}()#:\" 0-9a-z\\n]{0,60}") {
        let _ = History::read(text.as_bytes());
    }
}
