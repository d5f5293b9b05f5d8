//! `calotype doctor`: what this device and this build can do, what is missing, and how to get it.

use std::fmt::Write as _;
use std::path::PathBuf;

use calotype::certify::{self, Certificate};
use calotype::engine::{
    About, Device, Provider, ProviderKind, Providers, SessionOptions, cpu_features, cpu_model,
};
use calotype::memory::Memory;
use calotype::plan::Budget;
use calotype::{Error, ErrorKind};
use serde_json::{Value, json};

use super::open::{Additions, Components, open_model};
use super::{Common, Report, path_json, provider, say};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// Run every component of a model on each provider, and report its error and run time.
    #[arg(long)]
    certify: bool,
    /// The model to run; the built-in one when absent.
    #[arg(short, long, value_name = "PATH", requires = "certify")]
    model: Option<PathBuf>,
    /// Memory limit of the process, as in `300MiB`: components run a segment at a time. CPU only.
    #[arg(long, value_name = "SIZE", requires = "certify")]
    memory: Option<Budget>,
    #[command(flatten)]
    provider: provider::Choice,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let library = flags.common.library()?;
    let names = library.providers()?;
    let chosen = flags.provider.providers()?;
    // Plugins offer their devices once they are loaded.
    for provider in chosen.iter().flat_map(Providers::all) {
        library.find(provider)?;
    }
    let devices = library.devices();
    let memory = Memory::of_this_machine();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (cpu, features) = (cpu_model(), cpu_features());
    let mut text = format!(
        "calotype {} for {}-{}\nCPU: {}, {cores} cores, {}\n{}ONNX Runtime {} from {}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        cpu.as_deref().unwrap_or("model not known"),
        if features.is_empty() { "features not known".into() } else { features.join(" ") },
        memory.map_or("memory: not known\n".into(), memory_text),
        library.version(),
        library.path().display(),
    );
    for Device { provider, kind, vendor } in &devices {
        writeln!(text, "device: {kind} from {vendor}, for {provider}").expect("a String takes all");
    }
    for (kind, about) in ProviderKind::built_in() {
        match names.iter().any(|name| name == about.canonical) {
            true => writeln!(text, "provider {kind}: in this library"),
            false => writeln!(text, "provider {kind}: missing; to get it: {}", about.source),
        }
        .expect("a String takes all");
        for command in commands(&names, &about) {
            writeln!(text, "    {command}").expect("a String takes all");
        }
    }
    let mut json = json!({
        "calotype": env!("CARGO_PKG_VERSION"),
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "onnxruntime": { "version": library.version(), "path": path_json(library.path()), "providers": names },
        "cores": cores,
        "cpu": cpu,
        "cpu_features": features,
        "memory": memory.map(memory_json),
        "providers": ProviderKind::built_in().map(|(kind, about)| json!({
            "name": kind.to_string(),
            "present": names.iter().any(|name| name == about.canonical),
            "source": about.source,
            "commands": commands(&names, &about),
        })).collect::<Vec<_>>(),
        "devices": devices.iter().map(|device| json!({
            "provider": device.provider,
            "kind": device.kind,
            "vendor": device.vendor,
        })).collect::<Vec<_>>(),
    });
    if flags.certify {
        // Those from which `auto` chooses are all.
        let all = || Providers::everywhere([library.accelerators(), vec![Provider::CPU]].concat());
        let providers = chosen.filter(|chosen| !chosen.is_automatic()).unwrap_or_else(all);
        let options = SessionOptions { providers, ..flags.provider.options()? };
        let options = match flags.memory {
            Some(budget) => options.within(budget.bytes()),
            None => options,
        };
        let certificates = certify(flags, &options)?;
        for certificate in &certificates {
            writeln!(text, "{}", line(certificate)).expect("a String takes all");
        }
        json["certificates"] = certificates.iter().map(certificate_json).collect();
    }
    Ok(Report::new(text, json))
}

/// The commands that get a library with a provider that this one lacks, into calotype's folder in the user's cache, and try
/// it; none where PyPI has no such library for this machine.
fn commands(names: &[String], about: &About) -> Vec<String> {
    let (Some(packages), Some(cache)) = (about.packages, provider::cache_folder()) else { return Vec::new() };
    if names.iter().any(|name| name == about.canonical) {
        return Vec::new();
    }
    let name = about.name;
    let folder = cache.join("libraries").join(name);
    let file = match (cfg!(windows), cfg!(target_os = "macos")) {
        (true, _) => "onnxruntime.dll",
        (_, true) => "libonnxruntime.*.dylib",
        _ => "libonnxruntime.so.1.*",
    };
    let library = folder.join("onnxruntime").join("capi");
    vec![
        format!("pip install --target \"{}\" {packages}", folder.display()),
        // The shell finds the name of the file, which has the version.
        format!("calotype doctor --certify --provider {name} --ort \"{}\"/{file}", library.display()),
    ]
}

/// All certificates, told as they come; [`ErrorKind::Numeric`] when one is not passed.
fn certify(flags: &Flags, options: &SessionOptions) -> Result<Vec<Certificate>, Error> {
    let model = open_model(flags.model.as_ref(), &Components::default(), &Additions::default())?;
    let certificates = certify::certify(&model, options, |certificate| say(line(certificate)))?;
    match certificates.iter().find(|certificate| !certificate.is_passed()) {
        Some(failed) => Err(Error::new(ErrorKind::Numeric, line(failed))
            .help("this provider computes wrong results; use another one or another version")),
        None => Ok(certificates),
    }
}

fn line(certificate: &Certificate) -> String {
    let Certificate { component, providers, error, limit, has_golden, placement, open, first_run, run } =
        certificate;
    let found = match error {
        Ok(error) => format!("{error:.1e}"),
        Err(problem) => problem.clone(),
    };
    let reference = if *has_golden { "PyTorch and the CPU" } else { "the CPU" };
    let seconds = [open, first_run, run].map(|time| time.as_secs_f64());
    let parts = placement.shares.as_deref().map(|shares| format!("; {}", provider::shares_text(shares)));
    let divided = placement.divided().map(|problem| format!("; slow: {problem}"));
    let parts = parts.into_iter().chain(divided).collect::<String>();
    format!(
        "{component} on {}: expected a relative error of at most {limit:.0e} from {reference}, got {found}; \
         opened in {:.3} s, first run {:.3} s, later {:.3} s{parts}",
        Provider::join(providers),
        seconds[0],
        seconds[1],
        seconds[2],
    )
}

fn certificate_json(certificate: &Certificate) -> Value {
    json!({
        "component": certificate.component,
        "provider": Provider::join(&certificate.providers),
        "error": certificate.error.as_ref().ok(),
        "limit": certificate.limit,
        "golden": certificate.has_golden,
        "shares": certificate.placement.shares.as_deref().map(provider::shares_json),
        "seconds": {
            "open": certificate.open.as_secs_f64(),
            "first_run": certificate.first_run.as_secs_f64(),
            "run": certificate.run.as_secs_f64(),
        },
    })
}

fn memory_text(memory: Memory) -> String {
    let Memory { total_bytes, available_bytes, limit_bytes, swap_bytes } = memory;
    let limit = limit_bytes.map_or(String::new(), |limit| format!(", limited to {} MiB", limit >> 20));
    format!(
        "memory: {} MiB, {} MiB available{limit}, {} MiB of swap\n",
        total_bytes >> 20,
        available_bytes >> 20,
        swap_bytes >> 20
    )
}

fn memory_json(memory: Memory) -> Value {
    json!({
        "total_bytes": memory.total_bytes,
        "available_bytes": memory.available_bytes,
        "limit_bytes": memory.limit_bytes,
        "swap_bytes": memory.swap_bytes,
    })
}
