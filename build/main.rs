//! The build script: what each feature takes from outside of the source. It knows nothing of how the program uses it.

#[cfg(feature = "builtin")]
mod builtin;
#[cfg(feature = "cli")]
mod onnxruntime;

use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build");
    let steps: &[fn() -> Result<(), String>] = &[
        #[cfg(feature = "builtin")]
        builtin::find,
        #[cfg(feature = "cli")]
        onnxruntime::ship,
    ];
    for step in steps {
        if let Err(problem) = step() {
            eprintln!("\n{problem}\n");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// An environment variable that is set and not empty; cargo is told that the result of the build depends on it.
#[cfg(any(feature = "builtin", feature = "cli"))]
fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(any(feature = "builtin", feature = "cli"))]
fn required(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name}: cargo sets it, but it is not set"))
}

#[cfg(feature = "cli")]
fn at(path: &std::path::Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
