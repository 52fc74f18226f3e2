//! What an operation of the kv service costs: encoding, executing, decoding the reply, without a
//! network. Run it with `cargo run --release -p hovercraft-apps --example kv_speed`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hovercraft::{Context, StateMachine};
use hovercraft_apps::kv::{
    Condition, KvService, Operation, Request, decode_response, encode_request,
};

const KEYS: u64 = 100_000;
const ROUNDS: u64 = 1_000_000;

fn main() {
    let mut service = KvService::default();
    let set = |n: u64| Operation::Set {
        key: key(n),
        value: Bytes::from_static(b"a value "),
        condition: Condition::Always,
    };
    measure("set, new keys", KEYS, |n| run(&mut service, &Request::One(set(n))));
    measure("set", ROUNDS, |n| run(&mut service, &Request::One(set(spread(n)))));
    measure("get", ROUNDS, |n| {
        run(&mut service, &Request::One(Operation::Get { key: key(spread(n)) }));
    });
    measure("increment", ROUNDS, |n| {
        let key = Bytes::from(format!("counter{}", n % 1000));
        run(&mut service, &Request::One(Operation::Increment { key, by: 1 }));
    });
    measure("100 sets in a batch", ROUNDS / 100, |n| {
        let sets = (0..100).map(|m| set(spread(100 * n + m)));
        run(&mut service, &Request::Batch(sets.collect()));
    });
    let snapshot = service.snapshot();
    measure("set, after a snapshot began", KEYS, |n| {
        run(&mut service, &Request::One(set(spread(n))));
    });
    let start = Instant::now();
    let mut bytes = Vec::new();
    snapshot(&mut bytes).expect("writing to a vector");
    println!("snapshot of {} bytes: {:?}", bytes.len(), start.elapsed());
}

/// A key of 16 bytes.
fn key(n: u64) -> Bytes {
    Bytes::from(format!("key-{n:012}"))
}

/// Visits all keys in an order that no cache likes.
fn spread(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS
}

fn run(service: &mut KvService, request: &Request) {
    let context = Context { index: 1, time_us: 1, seed: 1 };
    let mut reply = Vec::with_capacity(64);
    service.execute(&context, &encode_request(request), &mut reply);
    assert!(decode_response(&reply).is_some());
}

/// Prints the mean time of a round: over all, and over the fastest part of them, which is what it
/// costs when nothing else disturbs this machine.
fn measure(name: &str, rounds: u64, mut round: impl FnMut(u64)) {
    const PARTS: u64 = 20;
    let part = rounds / PARTS;
    let times: Vec<Duration> = (0..PARTS)
        .map(|n| {
            let start = Instant::now();
            (n * part..(n + 1) * part).for_each(&mut round);
            start.elapsed()
        })
        .collect();
    let each = |time: Duration, rounds: u64| time.as_nanos() / u128::from(rounds);
    let mean = each(times.iter().sum(), rounds);
    let fastest = each(*times.iter().min().expect("there are parts"), part);
    println!("{name:30} {fastest:>7} ns undisturbed {mean:>7} ns on average");
}
