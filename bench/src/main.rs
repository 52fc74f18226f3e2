//! The `hovercraft-bench` command.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use hovercraft_bench::mark::{self, Row};

/// As the replicas, so that the client does not become the bottleneck.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures clusters of replicas on this machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The first speed mark: three replicas and one client here, beside Redis if it is installed.
    ///
    /// Closed loop: so many requests are outstanding at any time. What is measured is what this
    /// machine does with all of them and the client on it; compare within one run.
    Mark {
        /// How long each line is measured.
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// The `hovercraft` command; by default the one beside this one.
        #[arg(long)]
        bin: Option<PathBuf>,
        /// Where the lines are written as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// How long the replicas look for work before they sleep, in microseconds.
        #[arg(long, default_value_t = 0)]
        spin_us: u32,
        /// Only the lines whose name, requests outstanding and size contain this.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; a usage error is 3 in every binary here.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 3 } else { 0 });
        }
    };
    let Command::Mark { seconds, bin, json, spin_us, only } = arguments.command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, mark_command(seconds, bin, json, spin_us, only.as_deref()))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hovercraft-bench: {error}");
            ExitCode::from(2)
        }
    }
}

async fn mark_command(
    seconds: u64,
    bin: Option<PathBuf>,
    json: Option<PathBuf>,
    spin_us: u32,
    only: Option<&str>,
) -> Result<(), String> {
    let binary = match bin {
        Some(binary) => binary,
        None => {
            beside().ok_or("there is no hovercraft command beside this one; name it by --bin")?
        }
    };
    println!(
        "{:<22} {:>6} {:>6} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "system",
        "outst.",
        "bytes",
        "requests/s",
        "p50 us",
        "p99 us",
        "CPU us",
        "client us",
        "leader B",
        "datagr.",
        "failed"
    );
    let duration = Duration::from_secs(seconds.max(1));
    let rows = mark::run(&binary, duration, spin_us, only, print).await;
    let rows = rows.map_err(|error| error.to_string())?;
    println!(
        "CPU us: user and system time of all replicas a request; leader B, datagr.: bytes and \
         datagrams that the leader sends a request."
    );
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| error.to_string())?;
        std::fs::write(&path, text + "\n")
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

fn print(row: &Row) {
    let optional = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.2}"));
    println!(
        "{:<22} {:>6} {:>6} {:>10.0} {:>9.1} {:>9.1} {:>9.2} {:>9} {:>9} {:>9} {:>7}",
        row.system,
        row.outstanding,
        row.request_bytes,
        row.per_second,
        row.p50_us,
        row.p99_us,
        row.replicas_cpu_us,
        optional(row.client_cpu_us),
        optional(row.leader_bytes_out),
        optional(row.leader_datagrams_out),
        row.failed,
    );
}

fn beside() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("hovercraft");
    path.exists().then_some(path)
}
