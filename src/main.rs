//! The `calotype` program: hands the command line to `cli` and ends with its exit code.

mod cli;

use calotype::engine::{Heap, disable_telemetry, exit, exit_when_exhausted};

#[global_allocator]
static HEAP: Heap = Heap;

fn main() {
    // First: while there is one thread.
    disable_telemetry();
    exit_when_exhausted(cli::report_exhaustion);
    cli::exit_when_truncated();
    exit(cli::run())
}
