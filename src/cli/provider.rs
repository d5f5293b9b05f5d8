//! What commands that run models are told of providers, and what they say of them.

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use calotype::Error;
use calotype::engine::{Compiling, Intent, Placement, Provider, Providers, SessionOptions, Share, Watch};
use calotype::pipeline::Options;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::say;

#[derive(clap::Args)]
pub(super) struct Choice {
    /// Execution providers, comma-separated, in fallback order: cpu, cuda, tensorrt, coreml, openvino, directml, qnn,
    /// xnnpack, webgpu or plugin:FILE[:NAME], with options as in `cuda:device_id=1`. `cuda,cpu` runs operators that
    /// CUDA lacks on the CPU; `unet=cuda,vae=cpu` chooses per component. CPU when absent.
    #[arg(long, value_name = "LIST")]
    provider: Option<String>,
    /// How exactly providers compute: exact (32-bit floats), balanced (TF32 or 16-bit floats where that is faster) or fast
    /// (bfloat16, too). The provider's own default when absent; options of a provider that set it have priority.
    #[arg(long, value_name = "LEVEL", requires = "provider")]
    precision: Option<Intent>,
    /// Folder for compiled graphs of providers; calotype's folder in the user's cache when absent.
    #[arg(long, value_name = "DIR")]
    provider_cache: Option<PathBuf>,
}

impl Choice {
    /// What was chosen; nothing if nothing was typed.
    pub(super) fn providers(&self) -> Result<Option<Providers>, Error> {
        let providers: Option<Providers> = self.provider.as_deref().map(str::parse).transpose()?;
        Ok(match self.precision {
            Some(intent) => providers.map(|providers| providers.with_precision(intent)).transpose()?,
            None => providers,
        })
    }

    /// The defaults but for what was typed.
    pub(super) fn options(&self) -> Result<SessionOptions, Error> {
        Ok(SessionOptions {
            providers: self.providers()?.unwrap_or_default(),
            cache: self.provider_cache.clone().or_else(cache_folder),
            watch: Some(watch()),
            ..Options::default().session
        })
    }
}

/// Calotype's folder among the user's caches, where the system has a place for these.
fn cache_folder() -> Option<PathBuf> {
    let folder = |variable: &str| {
        env::var_os(variable)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let caches = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))
    };
    caches.map(|caches| caches.join("calotype"))
}

/// Shows that a provider compiles, for how long it has, and for how long it will.
fn watch() -> Watch {
    let shown: Mutex<Option<ProgressBar>> = Mutex::default();
    Watch::new(move |Compiling { component, provider, estimate, took }| {
        let mut shown = shown.lock().expect("nobody panics with it");
        if let Some(bar) = shown.take() {
            bar.finish_and_clear();
        }
        let is_terminal = io::stderr().is_terminal();
        match took {
            Some(took) => {
                say(format_args!("{component}: {provider} compiled it in {:.1} s", took.as_secs_f64()));
            }
            None => {
                let estimate = match estimate {
                    Some(estimate) => format!("about {} s, as last time", estimate.as_secs_f64().ceil()),
                    None => "for the first time, which can take minutes".into(),
                };
                if !is_terminal {
                    say(format_args!("{component}: {provider} compiles it, {estimate}"));
                    return;
                }
                let style = ProgressStyle::with_template("{msg}: {elapsed}").expect("the template is right");
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
                bar.set_message(format!("{component}: {provider} compiles it, {estimate}"));
                bar.enable_steady_tick(Duration::from_millis(500));
                *shown = Some(bar);
            }
        }
    })
}

/// Where a component runs, for programs.
pub(super) fn json(placement: &Placement) -> Value {
    let passed_over = placement.passed_over.iter();
    json!({
        "component": placement.component,
        "providers": placement.providers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "passed_over": passed_over
            .map(|(provider, reason)| json!({ "provider": provider.to_string(), "reason": reason }))
            .collect::<Vec<_>>(),
        "shares": placement.shares.as_deref().map(shares_json),
        "divided": placement.divided(),
        "trial_error": placement.error,
    })
}

/// What each provider runs of a graph, for programs.
pub(super) fn shares_json(shares: &[Share]) -> Value {
    let shares = shares.iter().map(|Share { provider, partitions, nodes, operators }| {
        json!({ "provider": provider, "partitions": partitions, "nodes": nodes, "operators": operators })
    });
    shares.collect()
}

/// The same, for people.
pub(super) fn shares_text(shares: &[Share]) -> String {
    let shares = shares.iter().map(|Share { provider, partitions, nodes, .. }| {
        let (one_node, one_part) =
            (if *nodes == 1 { "" } else { "s" }, if *partitions == 1 { "" } else { "s" });
        format!("{nodes} node{one_node} in {partitions} part{one_part} on {provider}")
    });
    shares.collect::<Vec<_>>().join("; ")
}

/// Says on standard error where a component runs, unless it is the CPU, as nothing else was asked for.
pub(super) fn report(placement: &Placement) {
    let Placement { component, providers, passed_over, error, .. } = placement;
    for (provider, reason) in passed_over {
        say(format_args!("{component}: not on {provider}: {reason}"));
    }
    if placement.is_cpu() && passed_over.is_empty() {
        return;
    }
    let tried = match error {
        Some(error) => format!(", relative error {error:.0e}"),
        None if placement.is_cpu() => String::new(),
        None => ", not compared with the CPU, which cannot run it".into(),
    };
    say(format_args!("{component}: on {}{tried}", Provider::join(providers)));
    warn_divided(placement);
}

/// Says on standard error that a graph is divided between providers, which makes it slow.
pub(super) fn warn_divided(placement: &Placement) {
    if let Some(problem) = placement.divided() {
        say(format_args!("{}: slow: {problem}", placement.component));
    }
}
