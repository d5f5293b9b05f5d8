//! What commands that run models are told of providers, and what they say of them.

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use calotype::Error;
use calotype::certify::{self, Chosen};
use calotype::engine::{
    Compiling, Intent, Library, Placement, Provider, Providers, SessionOptions, Share, Watch,
};
use calotype::model::Model;
use calotype::pipeline::Options;
use calotype::plan::Budget;
use calotype::request::Request;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::interrupt::Heeded;
use super::say;

#[derive(clap::Args, Clone, Default)]
pub(super) struct Choice {
    /// Execution providers, comma-separated, in fallback order: cpu, cuda, tensorrt, coreml, openvino, directml, qnn,
    /// xnnpack, webgpu or plugin:FILE[:NAME], with options as in `cuda:device_id=1`. `cuda,cpu` runs operators that
    /// CUDA lacks on the CPU; `unet=cuda,vae=cpu` chooses per component. `auto`: for each component the one that is fastest for
    /// these images and whose results match the CPU's, by trials that are cached. CPU when absent.
    #[arg(long, value_name = "LIST")]
    provider: Option<String>,
    /// How exactly providers compute: exact (32-bit floats), balanced (TF32 or 16-bit floats where that is faster) or fast
    /// (also bfloat16). The provider's own default when absent; options of a provider that set it have priority.
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

    /// Whether any of it was typed.
    pub(super) fn is_typed(&self) -> bool {
        self.provider.is_some() || self.precision.is_some() || self.provider_cache.is_some()
    }

    /// Whether providers are yet to be chosen.
    pub(super) fn is_automatic(&self) -> bool {
        self.provider
            .as_deref()
            .is_some_and(|typed| typed.parse().is_ok_and(|list: Providers| list.is_automatic()))
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

/// The providers for this many images of a request, and for programs how they were chosen. Where that was left open: those
/// of an earlier image, `before`, if the library has them all, else the fastest.
pub(super) fn choose(
    model: &Model,
    request: &Request,
    images: u64,
    options: &SessionOptions,
    memory: Option<Budget>,
    before: Option<&str>,
    library: &Library,
) -> Result<(Providers, Option<Value>), Error> {
    if !options.providers.is_automatic() {
        return Ok((options.providers.clone(), None));
    }
    if let Some(before) = before.filter(|_| memory.is_none()) {
        let known = before.parse::<Providers>().ok();
        let missing = known.iter().flat_map(Providers::all).find(|provider| library.find(provider).is_err());
        match (known.as_ref(), missing) {
            (Some(known), None) => {
                say(format_args!("provider auto: {known}, as in the receipt"));
                return Ok((known.clone(), Some(json!({ "reason": "as in the receipt", "components": {} }))));
            }
            _ => {
                say(format_args!("provider auto: expected {before} as in the receipt, got a library without"))
            }
        }
    }
    let options = SessionOptions { cancel: Heeded::cancel(), ..options.clone() };
    let choice = certify::choose(model, request, images, &options, memory.is_some())?;
    let choice = choice.expect("providers that are yet to be chosen");
    say(format_args!("provider auto: {choice}"));
    let components = choice.chosen.iter().map(|Chosen { component, providers, estimates }| {
        let estimates = estimates.iter().map(|(provider, estimate)| {
            let estimate = match estimate {
                Ok(seconds) => json!({ "seconds": seconds }),
                Err(reason) => json!({ "refused": reason }),
            };
            (provider.clone(), estimate)
        });
        let estimates: serde_json::Map<_, _> = estimates.collect();
        (component.clone(), json!({ "provider": Provider::join(providers), "estimates": estimates }))
    });
    let components: serde_json::Map<_, _> = components.collect();
    let reason = choice.only_cpu.as_deref().unwrap_or("timed trials");
    Ok((choice.providers.clone(), Some(json!({ "reason": reason, "components": components }))))
}

/// Calotype's folder among the user's caches, where the system has a place for these.
pub(super) fn cache_folder() -> Option<PathBuf> {
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
