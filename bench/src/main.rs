//! The `hovercraft-bench` command.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

/// As the replicas, so that the client does not become the bottleneck.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; a usage error is 3 in every binary here.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 3 } else { 0 });
        }
    };
    arguments.execute()
}
