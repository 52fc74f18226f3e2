//! The `hovercraft` command.

use std::process::ExitCode;

/// Each request costs a few small allocations, many of them freed in another order or by another
/// thread; with the system's allocator these were a seventh of a replica's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hovercraft_apps::cli::run(std::env::args_os())
}
