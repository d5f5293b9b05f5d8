//! The `calotype` program: hands the command line to `cli` and ends with its exit code.

mod cli;

use std::process::ExitCode;

use calotype::engine::{Heap, disable_telemetry, exit_when_exhausted};

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    // First: while there is one thread.
    disable_telemetry();
    exit_when_exhausted(cli::report_exhaustion);
    cli::exit_when_truncated();
    cli::run()
}
