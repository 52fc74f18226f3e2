//! The `hovercraft` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    hovercraft_apps::cli::run(std::env::args_os())
}
