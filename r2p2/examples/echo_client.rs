//! An R2P2 client that calls an echo server and checks what it says. The server may be an original
//! R2P2 one.
//!
//! `cargo run --release -p r2p2 --example echo_client -- --server 127.0.0.1:9000 --size 20000`
//!
//! Exit codes: 0 every reply is right, 1 one is wrong, 2 an outcome is unknown, 3 bad usage.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use r2p2::{BindError, CallSettings, Client, Policy};
use tokio::{sync::Semaphore, task::JoinSet};

#[derive(Parser)]
struct Arguments {
    /// The server's address.
    #[arg(long, default_value = "127.0.0.1:9000")]
    server: String,
    /// The bytes of a request, "abc…zabc…".
    #[arg(long, default_value_t = 8)]
    size: usize,
    /// The bytes that a reply must have, if the server does not echo.
    #[arg(long)]
    reply_size: Option<usize>,
    /// How many calls to make.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How many calls may be outstanding at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    outstanding: u16,
    /// Whether any server may answer, or the one called.
    #[arg(long, value_enum, default_value_t = PolicyArgument::Fixed)]
    policy: PolicyArgument,
    /// Send options, so that large messages survive loss. Original servers do not know them.
    #[arg(long)]
    options: bool,
    /// How long a call may take, in ms.
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum PolicyArgument {
    Lb,
    Fixed,
}

/// What came of the calls.
#[derive(Default)]
struct Tally {
    right: usize,
    wrong: usize,
    failed: usize,
    micros: Vec<f64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help is good, and everything else is wrong usage.
            let code = if error.use_stderr() { 3 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let start = Instant::now();
    match run(&arguments).await {
        Ok(tally) => {
            report(&tally, start.elapsed());
            match tally {
                Tally { wrong: 1.., .. } => ExitCode::from(1),
                Tally { failed: 1.., .. } => ExitCode::from(2),
                _ => ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            eprintln!("echo_client: --server {}: {error}", arguments.server);
            ExitCode::from(3)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Tally, BindError> {
    let settings = CallSettings {
        timeout: Duration::from_millis(arguments.timeout_ms),
        policy: match arguments.policy {
            PolicyArgument::Lb => Policy::LoadBalance,
            PolicyArgument::Fixed => Policy::Fixed,
        },
        original_server: !arguments.options,
        ..CallSettings::default()
    };
    let client = Client::connect_with(&arguments.server, settings).await?;
    let request = pattern(arguments.size);
    let expected = pattern(arguments.reply_size.unwrap_or(arguments.size));
    let turns = Arc::new(Semaphore::new(arguments.outstanding.into()));
    let mut calls = JoinSet::new();
    let mut tally = Tally::default();
    for _ in 0..arguments.count {
        let turn = Arc::clone(&turns);
        let turn = turn.acquire_owned().await.expect("it is never closed");
        let (client, request) = (client.clone(), request.clone());
        calls.spawn(async move {
            let start = Instant::now();
            let reply = client.call(request).await;
            drop(turn);
            (reply, start.elapsed())
        });
        while let Some(done) = calls.try_join_next() {
            let (reply, elapsed) = done.expect("a call does not panic");
            tally.add(reply, elapsed, &expected);
        }
    }
    for (reply, elapsed) in calls.join_all().await {
        tally.add(reply, elapsed, &expected);
    }
    Ok(tally)
}

impl Tally {
    fn add(&mut self, reply: Result<Bytes, r2p2::CallError>, elapsed: Duration, expected: &Bytes) {
        self.micros.push(elapsed.as_secs_f64() * 1e6);
        match reply {
            Ok(reply) if reply == *expected => self.right += 1,
            Ok(reply) => {
                self.wrong += 1;
                eprintln!("a wrong reply of {} bytes, {} expected", reply.len(), expected.len());
            }
            Err(error) => {
                self.failed += 1;
                eprintln!("{error}");
            }
        }
    }
}

fn report(tally: &Tally, elapsed: Duration) {
    let Tally { right, wrong, failed, micros } = tally;
    let mut micros = micros.clone();
    micros.sort_by(f64::total_cmp);
    let at = |percent: usize| micros.get(micros.len() * percent / 100).copied();
    println!(
        "{right} right, {wrong} wrong, {failed} failed; p50 {:.0} µs, p99 {:.0} µs, {:.0}/s",
        at(50).unwrap_or_default(),
        at(99).unwrap_or_default(),
        micros.len() as f64 / elapsed.as_secs_f64()
    );
}

fn pattern(size: usize) -> Bytes {
    (0..size).map(|i| b'a' + (i % 26) as u8).collect()
}
