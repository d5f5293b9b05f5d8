//! `calotype doctor`: what this device and this build can do, and what is missing.

use std::fs;

use calotype::Error;
use serde_json::json;

use super::{Common, Report};

#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let library = flags.common.library()?;
    let providers = library.providers()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_bytes = available_memory_bytes();
    let features = cpu_features();
    let text = format!(
        "calotype {} for {}-{}\nONNX Runtime {} from {}\nproviders: {}\ncores: {cores}\ncpu: {}\navailable memory: {}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        library.version(),
        library.path().display(),
        providers.join(", "),
        if features.is_empty() { "nothing known".into() } else { features.join(" ") },
        memory_bytes.map_or("not known".into(), |bytes| format!("{} MiB", bytes >> 20)),
    );
    let json = json!({
        "calotype": env!("CARGO_PKG_VERSION"),
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "onnxruntime": { "version": library.version(), "path": library.path(), "providers": providers },
        "cores": cores,
        "cpu_features": features,
        "available_memory_bytes": memory_bytes,
    });
    Ok(Report { text, json })
}

/// What the kernel would give before it swaps; Linux only.
fn available_memory_bytes() -> Option<u64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// The vector instructions that decide how fast ONNX Runtime is.
fn cpu_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($is:ident: $($name:tt)*) => { [$(($name, std::arch::$is!($name))),*] };
    }
    #[cfg(target_arch = "x86_64")]
    let all = detected!(is_x86_feature_detected: "avx2" "fma" "f16c" "avx512f" "avx512vnni" "avx512bf16");
    #[cfg(target_arch = "aarch64")]
    let all = detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}
