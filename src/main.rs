//! The `calotype` program: hands the command line to `cli` and ends with its exit code.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
