//! The limits that the system sets a process: where they leave too little, a run ends with an exit code that says so and a
//! message, never by a signal, and never blames the model.
#![cfg(target_os = "linux")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

/// Runs the program with these limits of a shell's `ulimit`.
fn calotype(limits: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new("bash")
        .args(["-c", &format!("ulimit -c 0; {limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_calotype")])
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

/// How a run within limits ended; panics if it is in a way that is not allowed.
fn end(limits: &str, arguments: &[&str]) -> i32 {
    let output = calotype(limits, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let place = format!("{limits}: {arguments:?}: {:?}: {said}", output.status);
    assert_eq!(output.status.signal(), None, "{place}");
    let code = output.status.code().unwrap();
    match code {
        0 => {}
        5 => assert!(said.contains("memory"), "{place}"),
        // Below some 60 MiB not even the library can be loaded.
        6 => assert!(said.contains("no ONNX Runtime library") || said.contains("threads: "), "{place}"),
        _ => panic!("{place}"),
    }
    code
}

/// Address spaces from too small for the library to plenty for the picture, at places that a seed chooses.
#[test]
fn too_little_address_space_is_exit_code_5() {
    let mut state = 20261127u64;
    let mut random = move |below: u64| {
        // Knuth's linear congruential generator (MMIX).
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut codes = Vec::new();
    for size in ["128x128", "512x512", "768x768"] {
        for base in (100_000..800_000).step_by(100_000) {
            let limit = base + random(100_000);
            let arguments = ["generate", "a red apple", "--steps", "1", "--seed", "1", "--size", size];
            codes.push(end(&format!("ulimit -v {limit}"), &arguments));
        }
    }
    // Both ends of the range were met.
    assert!(codes.contains(&0) && codes.contains(&5), "{codes:?}");
}

/// The other limits, other commands, and more threads than fit.
#[test]
fn other_limits_and_commands() {
    let draw = ["generate", "a red apple", "--steps", "1", "--size", "512x512"];
    for limit in ["ulimit -d 120000", "ulimit -d 200000", "ulimit -d 300000"] {
        end(limit, &draw);
    }
    let threads = [&draw[..], &["--threads", "1024"]].concat();
    assert_eq!(end("ulimit -v 1500000", &threads), 5);
    for arguments in [&["doctor", "--certify"][..], &["pack", "bundle"], &["plan", "--size", "768x768"]] {
        for limit in [130_000, 180_000, 230_000, 300_000] {
            end(&format!("ulimit -v {limit}"), arguments);
        }
    }
}
