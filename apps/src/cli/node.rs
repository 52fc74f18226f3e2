//! `hovercraft node`: runs a replica until it is told to stop.

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::PathBuf,
    process, thread,
};

use super::{Exit, fail};
use crate::{config::Config, node};

/// Run a replica until SIGTERM or SIGINT.
///
/// A replica with an empty data directory waits for `hovercraft init`. A sample of the
/// configuration file with every field explained is in the sources: apps/hovercraft.sample.toml.
/// What it logs goes to standard error; the environment variable `HOVERCRAFT_LOG` says how much, for
/// example `debug` or `hovercraft=debug,warn`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Where to speak the Redis protocol; instead of what the file says
    #[arg(long, value_name = "ADDRESS")]
    resp: Option<SocketAddr>,

    /// Stop at once when standard input ends: a launcher's replicas do not outlive it
    #[arg(long)]
    until_stdin_ends: bool,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let mut config = match Config::read(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Usage, error),
    };
    if arguments.resp.is_some() {
        config.resp = arguments.resp;
    }
    start_logging();
    if arguments.until_stdin_ends
        && let Err(error) = thread::Builder::new().spawn(exit_with_stdin)
    {
        return fail(Exit::Bad, error);
    }
    match node::run(&config) {
        Ok(()) => Exit::Good,
        Err(error) if error.is_bad_input() => fail(Exit::Usage, error),
        Err(error) => fail(Exit::Bad, error),
    }
}

/// Ends the process without further ado when standard input does.
pub(super) fn exit_with_stdin() {
    // What is written there means nothing; an error is an end too.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    process::exit(Exit::Bad as i32);
}

pub(super) fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("HOVERCRAFT_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}
