//! `hovercraft-jepsen`: checks histories.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
