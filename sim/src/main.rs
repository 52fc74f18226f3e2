//! `hovercraft-sim`: runs HovercRaft through hostile schedules, and tells the story of one that
//! breaks it.
//!
//! Exit codes: 0 nothing broke, 1 something did, 2 it cannot be told, 3 bad input or usage.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hovercraft_sim::command_line(hovercraft_sim::Registers)
}
