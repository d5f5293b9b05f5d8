//! Fetches the ONNX Runtime library that ships with the program and puts it beside the binary.
//! It knows nothing of how the program finds a library at run time (that is `src/engine/library.rs`).
//!
//! The library comes out of PyPI's `onnxruntime` wheel, by pip, pinned by version and SHA-256, and is kept in a cache:
//! `CALOTYPE_CACHE`, else `XDG_CACHE_HOME/calotype`, else `~/.cache/calotype`, else the build folder.
//! `CALOTYPE_ORT=system` fetches nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::{at, required, variable};

const VERSION: &str = "1.31.1";
const WAY_OUT: &str = "Mend that, or build with CALOTYPE_ORT=system to fetch nothing and give the program a library when it runs \
                       (--ort FILE, ORT_DYLIB_PATH, or libonnxruntime.so beside the executable).";

/// What is fetched for one target.
struct Pin {
    platform: &'static str,
    wheel_sha256: &'static str,
    library_sha256: &'static str,
}

const X86_64_LINUX: Pin = Pin {
    platform: "manylinux_2_28_x86_64",
    wheel_sha256: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
    library_sha256: "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
};
const AARCH64_LINUX: Pin = Pin {
    platform: "manylinux_2_28_aarch64",
    wheel_sha256: "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
    library_sha256: "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
};

/// Fetches the library, unless it was fetched before, and puts it beside the binary.
pub fn ship() -> Result<(), String> {
    try_ship()
        .map_err(|problem| format!("The ONNX Runtime library could not be fetched: {problem}\n{WAY_OUT}"))
}

fn try_ship() -> Result<(), String> {
    match variable("CALOTYPE_ORT").as_deref() {
        None => {}
        Some("system") => return Ok(()),
        Some(other) => return Err(format!("CALOTYPE_ORT: expected system or nothing, got {other}")),
    }
    // The documentation builder has no network, and documentation needs no library.
    if variable("DOCS_RS").is_some() {
        return Ok(());
    }
    let target = required("TARGET")?;
    let pin = match target.as_str() {
        "x86_64-unknown-linux-gnu" => X86_64_LINUX,
        "aarch64-unknown-linux-gnu" => AARCH64_LINUX,
        _ => {
            println!(
                "cargo:warning=no ONNX Runtime library is shipped for {target}: give the program one of version 1.23 or newer \
                 (--ort FILE, ORT_DYLIB_PATH, or beside the executable)"
            );
            return Ok(());
        }
    };

    let out = PathBuf::from(required("OUT_DIR")?);
    let cached = cache_folder(&out).join("onnxruntime").join(VERSION).join(target).join("libonnxruntime.so");
    if !is_pinned(&cached, &pin) {
        fetch(&pin, &out, &cached)?;
    }

    // OUT_DIR is PROFILE/build/calotype-HASH/out, and the binary is written to PROFILE.
    let profile =
        out.ancestors().nth(3).ok_or_else(|| format!("{}: not a folder that cargo makes", out.display()))?;
    let beside_binary = profile.join("libonnxruntime.so");
    if !is_pinned(&beside_binary, &pin) {
        place(&cached, &beside_binary)?;
    }

    // The last place where the program looks; tests, whose executables lie in PROFILE/deps, find it there.
    println!("cargo:rustc-env=CALOTYPE_ORT_SHIPPED={}", cached.display());
    println!("cargo:rerun-if-changed={}", cached.display());
    println!("cargo:rerun-if-changed={}", beside_binary.display());
    Ok(())
}

/// An absolute path: the program is told it, and runs in other folders.
fn cache_folder(out: &Path) -> PathBuf {
    let under = |name: &str, rest: &str| std::path::absolute(Path::new(&variable(name)?).join(rest)).ok();
    under("CALOTYPE_CACHE", "")
        .or_else(|| under("XDG_CACHE_HOME", "calotype"))
        .or_else(|| under("HOME", ".cache/calotype"))
        .unwrap_or_else(|| out.join("cache"))
}

/// Downloads the wheel, takes the library out of it, checks it, and moves it to `cached` in one step, so that two
/// builds at once cannot see half a file.
fn fetch(pin: &Pin, out: &Path, cached: &Path) -> Result<(), String> {
    let python = python()?;
    let work = out.join("fetch");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).map_err(|error| at(&work, error))?;

    // A requirements file is the only way to tell pip the hash.
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, format!("onnxruntime=={VERSION} --hash=sha256:{}\n", pin.wheel_sha256))
        .map_err(|error| at(&requirements, error))?;
    run(Command::new(python)
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
        ])
        .args([
            "--platform",
            pin.platform,
            "--implementation",
            "cp",
            "--python-version",
            "3.11",
            "--abi",
            "cp311",
        ])
        .args(["--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(&work))?;

    let wheel = work.join(format!("onnxruntime-{VERSION}-cp311-cp311-{}.whl", pin.platform));
    let member = format!("onnxruntime/capi/libonnxruntime.so.{VERSION}");
    run(Command::new(python)
        .args(["-c", "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])"])
        .arg(&wheel)
        .arg(&member)
        .arg(&work))?;
    let library = work.join(member);
    if !is_pinned(&library, pin) {
        let got = sha256(&library).map_err(|error| at(&library, error))?;
        return Err(format!("{}: expected SHA-256 {}, got {got}", library.display(), pin.library_sha256));
    }

    place(&library, cached)?;
    fs::remove_dir_all(&work).map_err(|error| at(&work, error))
}

/// The first Python that has pip.
fn python() -> Result<&'static str, String> {
    let mut problems = Vec::new();
    for name in ["python3", "python"] {
        match run(Command::new(name).args(["-m", "pip", "--version"])) {
            Ok(_) => return Ok(name),
            Err(problem) => problems.push(problem),
        }
    }
    Err(format!("Python with pip is needed:\n{}", problems.join("\n")))
}

fn run(command: &mut Command) -> Result<Output, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()))
}

/// Copies a file by way of a temporary name in the destination's folder.
fn place(from: &Path, to: &Path) -> Result<(), String> {
    let folder = to.parent().ok_or_else(|| format!("{}: has no folder", to.display()))?;
    fs::create_dir_all(folder).map_err(|error| at(folder, error))?;
    let temporary = folder.join(format!(".libonnxruntime.{}", std::process::id()));
    let placed = fs::copy(from, &temporary)
        // Cargo reruns this script when a watched file is newer than the script's last start; this file must not be.
        .and_then(|_| File::options().write(true).open(&temporary)?.set_modified(long_ago()))
        .and_then(|()| fs::rename(&temporary, to));
    placed.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        at(to, error)
    })
}

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn is_pinned(file: &Path, pin: &Pin) -> bool {
    sha256(file).is_ok_and(|hash| hash == pin.library_sha256)
}

fn sha256(file: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}
