//! `bugs`: the planted ones.

use std::{fmt::Write, path::PathBuf};

use crate::bugs::{ARE_PLANTED, BUGS, Bug};
use serde::Serialize;

use super::{CliError, GOOD, print, write_json};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Write the list as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct List {
    /// Whether this build has them.
    planted: bool,
    bugs: &'static [Bug],
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, CliError> {
    let mut text = String::new();
    for Bug { name, rule, what, tier } in BUGS {
        let _ = writeln!(text, "{name:<29} {:<7} {rule:<13} {what}", tier.name());
    }
    if !ARE_PLANTED {
        text.push_str("this build has none of them; build it with --features planted\n");
    }
    print(&text)?;
    write_json(arguments.json.as_ref(), &List { planted: ARE_PLANTED, bugs: BUGS })?;
    Ok(GOOD)
}
