//! The `hovercraft` command: its arguments, and what runs for each of its subcommands.

mod cluster;
mod demo;
mod init;
mod kv;
mod log;
mod node;
mod standing;
mod status;
mod switch;
mod switch_status;

use std::{ffi::OsString, fmt::Display, io::Write, process::ExitCode};

use clap::{Parser, Subcommand};

use self::cluster::ClusterArguments;

/// What the command says when it ends, here and in every binary of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was done.
    Good = 0,
    /// It was done or judged, and the verdict is bad; or it was certainly not done.
    Bad = 1,
    /// It is unknown whether it was done.
    Unknown = 2,
    /// Bad input or usage: nothing was tried.
    Usage = 3,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  good
  1  bad: a verdict, a condition that did not hold, or certainly not done
  2  unknown whether it was done
  3  bad input or usage; nothing was tried";

/// Run and use a service that is replicated by HovercRaft: Raft with replies, reads and the
/// dissemination of requests taken off the leader.
#[derive(Debug, Parser)]
#[command(name = "hovercraft", version, after_help = EXIT_CODES, subcommand_required = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Node(node::Arguments),
    Init(init::Arguments),
    Switch(switch::Arguments),
    Status(status::Arguments),
    Kv(kv::Arguments),
    Log(log::Arguments),
    Demo(demo::Arguments),
}

/// Runs the command with the arguments of the process, its name first.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let exit = match Arguments::try_parse_from(arguments) {
        Ok(Arguments { command }) => match command {
            Command::Node(arguments) => node::run(&arguments),
            Command::Init(arguments) => init::run(arguments),
            Command::Switch(arguments) => switch::run(&arguments),
            Command::Status(arguments) => status::run(arguments),
            Command::Kv(arguments) => kv::run(arguments),
            Command::Log(arguments) => log::run(&arguments),
            Command::Demo(arguments) => demo::run(arguments),
        },
        Err(error) => {
            // Also how --help and --version end, which are no errors. If nobody can read it there
            // is nobody to tell.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Good }
        }
    };
    ExitCode::from(exit as u8)
}

/// Says on standard error why the command ends as it does.
fn fail(exit: Exit, reason: impl Display) -> Exit {
    // If nobody can read it there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "hovercraft: {reason}");
    exit
}

/// A runtime for a command that asks others and waits.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_subcommand_and_argument_has_help() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{argument} has no help");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Arguments::command());
    }
}
