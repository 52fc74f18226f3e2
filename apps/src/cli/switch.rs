//! `hovercraft switch`: runs a switch until it is told to stop.

use std::{path::PathBuf, thread};

use super::{
    Exit, fail,
    node::{exit_with_stdin, start_logging},
};
use crate::{switch, switch_config::SwitchFile};

/// Run a switch until SIGTERM or SIGINT: it admits requests and passes them on to the replicas, or
/// aggregates for the mode hovercraft++, or gives requests to the workers of an unreplicated service.
///
/// It keeps nothing on disk, and may be killed and started again at any time. A sample of the
/// configuration file with every field explained is in the sources: apps/switch.sample.toml. How it
/// is, `hovercraft status` tells with the configuration of a replica that names it.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file of the switch
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Stop at once when standard input ends: a launcher's switch does not outlive it
    #[arg(long)]
    until_stdin_ends: bool,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let file = match SwitchFile::read(&arguments.config) {
        Ok(file) => file,
        Err(error) => return fail(Exit::Usage, error),
    };
    start_logging();
    if arguments.until_stdin_ends
        && let Err(error) = thread::Builder::new().spawn(exit_with_stdin)
    {
        return fail(Exit::Bad, error);
    }
    match switch::run(file) {
        Ok(()) => Exit::Good,
        Err(error) if error.is_bad_input() => fail(Exit::Usage, error),
        Err(error) => fail(Exit::Bad, error),
    }
}
