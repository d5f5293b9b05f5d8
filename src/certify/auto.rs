//! `auto`: the provider that finishes the images of a request first, for each component, of those that compute what the
//! CPU does. It is found by timed trials, which are remembered; it knows nothing of how sessions are opened.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Tried;
use crate::engine::{Library, Provider, Providers, SessionOptions, cpu_model};
use crate::memory::Memory;
use crate::model::{Model, Part, hex};
use crate::request::Request;
use crate::signature::Role;
use crate::stage::feed::Feed;
use crate::stage::seeded;
use crate::stage::trial::{self, Sampled};
use crate::tensor::LatentShape;
use crate::{Error, ErrorKind};

/// How much of the CPU's time another provider may take at most: less is within what timings differ by.
const WORTH: f64 = 0.95;
/// How much memory a trial may take, as a multiple of the weights in 32-bit floats: a provider's copy, and the CPU's.
const COPIES: u64 = 3;

/// The providers that were chosen for a request, and why.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Of all components.
    pub providers: Providers,
    /// Why there was nothing to choose from.
    pub only_cpu: Option<String>,
    /// By the names under which components are chosen for.
    pub chosen: Vec<Chosen>,
}

/// What was chosen for a component.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The component, or the first of those that are chosen for together.
    pub component: String,
    /// Its providers.
    pub providers: Vec<Provider>,
    /// By provider, how many seconds it was estimated to take for all images, opening included; or why it cannot be taken.
    pub estimates: BTreeMap<String, Result<f64, String>>,
}

impl Choice {
    fn cpu(reason: &str) -> Self {
        Self { providers: Providers::default(), only_cpu: Some(reason.into()), chosen: Vec::new() }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.only_cpu {
            return write!(f, "cpu: {reason}");
        }
        let lines: Vec<String> = self.chosen.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} (", self.component, Provider::join(&self.providers))?;
        for (index, (provider, estimate)) in self.estimates.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match estimate {
                Ok(seconds) => write!(f, "{comma}{provider} {seconds:.1} s")?,
                Err(reason) => write!(f, "{comma}not {provider}: {reason}")?,
            }
        }
        f.write_str(")")
    }
}

/// How long a trial took, in seconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Times {
    open: f64,
    first_run: f64,
    run: f64,
}

impl Times {
    /// For so many runs of the trial's size. A session that is opened is tried once, in its first run.
    fn of_runs(self, runs: f64) -> f64 {
        self.open + self.first_run + runs * self.run
    }
}

/// A provider's trial: its times, or why it cannot be taken.
type Trial = Result<Times, String>;

/// What is remembered; `component` and `provider` are for people.
#[derive(Deserialize, Serialize)]
struct Remembered {
    component: String,
    provider: String,
    trial: Trial,
}

/// Chooses providers for this many images of a request, where `options` leave that open (`auto`); of several, as many as a
/// server draws, opening does not count. Nothing where providers are chosen already.
///
/// With `has_budget` all is the CPU's: plans are made of its memory alone. Trials take at most some seconds for each
/// component and provider, and are remembered in `options.cache`.
///
/// # Errors
/// [`ErrorKind::Cancelled`]; otherwise those of opening and running the model on the CPU.
pub fn choose(
    model: &Model,
    request: &Request,
    images: u64,
    options: &SessionOptions,
    has_budget: bool,
) -> Result<Option<Choice>, Error> {
    if !options.providers.is_automatic() {
        return Ok(None);
    }
    if has_budget {
        return Ok(Some(Choice::cpu("memory is planned for the CPU only")));
    }
    let library = Library::load(None)?;
    let accelerators = library.accelerators();
    let accelerators = accelerators.into_iter().filter_map(|provider| match options.providers.intent() {
        // What cannot be told to compute so exactly is no candidate.
        Some(intent) => {
            let told = Providers::everywhere(vec![provider]).with_precision(intent).ok()?;
            told.all().next().cloned()
        }
        None => Some(provider),
    });
    let lists: Vec<Vec<Provider>> = accelerators.map(|provider| vec![provider, Provider::CPU]).collect();
    if lists.is_empty() {
        return Ok(Some(Choice::cpu("this ONNX Runtime library has no other provider")));
    }
    let trials = Trials { model, options, machine: machine(library, options) };
    let mut runs: BTreeMap<&str, Vec<(&Part, f64)>> = BTreeMap::new();
    for part in model.parts() {
        let runs_of_image = runs_of_image(model, part, request)?;
        if runs_of_image > 0.0 {
            runs.entry(Providers::group_of(part.name())).or_default().push((part, runs_of_image));
        }
    }
    let mut choice = Choice { providers: Providers::default(), only_cpu: None, chosen: Vec::new() };
    for (group, parts) in runs {
        let mut estimates = BTreeMap::new();
        let cpu = trials.estimate(&parts, &[Provider::CPU], images)?;
        let mut best = (vec![Provider::CPU], cpu.clone().map_or(f64::INFINITY, |seconds| seconds * WORTH));
        estimates.insert(Provider::CPU.to_string(), cpu);
        for list in &lists {
            let estimate = trials.estimate(&parts, list, images)?;
            if let Ok(seconds) = &estimate
                && *seconds < best.1
            {
                best = (list.clone(), *seconds);
            }
            estimates.insert(list[0].to_string(), estimate);
        }
        if best.0.len() > 1 {
            choice.providers = choice.providers.with(group, best.0.clone());
        }
        choice.chosen.push(Chosen { component: group.into(), providers: best.0, estimates });
    }
    Ok(Some(choice))
}

/// How often an image takes the work of a component's trial.
fn runs_of_image(model: &Model, part: &Part, request: &Request) -> Result<f64, Error> {
    let cells = |shape: LatentShape| (shape.height_cells * shape.width_cells) as f64;
    let size = match seeded::cells(part, model.manifest())? {
        Some(of_trial) => cells(request.shape) / of_trial as f64,
        None => return Ok(1.0),
    };
    let signature = part.signature();
    Ok(match (signature.input(Role::States), signature.input(Role::Latents)) {
        (Some(_), _) => {
            let texts = if request.guidance_scale() == 1.0 { 1.0 } else { 2.0 };
            size * texts * request.steps() as f64
        }
        (None, Some(_)) => size,
        // The encoder is there for init images alone.
        (None, None) if request.recipe().init.is_some() => size,
        (None, None) => 0.0,
    })
}

/// A name for the library and the device that trials are of.
fn machine(library: &Library, options: &SessionOptions) -> String {
    let mut hash = Sha256::new();
    let file = fs::metadata(library.path()).map(|file| (file.len(), file.modified().ok())).ok();
    let devices = library.devices();
    hash.update(format!("{} {:?} {file:?}\n", library.version(), library.path()));
    hash.update(format!("{:?} {devices:?} {}", cpu_model(), options.threads));
    hex(&hash.finalize())
}

/// The trials of a model's components on this machine.
struct Trials<'a> {
    model: &'a Model,
    options: &'a SessionOptions,
    machine: String,
}

impl Trials<'_> {
    /// How many seconds components take together on a list of providers.
    fn estimate(
        &self,
        parts: &[(&Part, f64)],
        list: &[Provider],
        images: u64,
    ) -> Result<Result<f64, String>, Error> {
        let mut seconds = 0.0;
        for (part, runs) in parts {
            match self.of(part, list)? {
                Ok(times) => seconds += times.of_runs(runs * images as f64),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(seconds))
    }

    /// That of a component: the remembered one, or a new one.
    fn of(&self, part: &Part, list: &[Provider]) -> Result<Trial, Error> {
        let (model, options) = (self.model, self.options);
        let feeds = seeded::feeds(part, model.encoder(part), model.manifest(), None, trial::SEED)?;
        let file = match &options.cache {
            Some(root) => {
                let mut key = Sha256::new_with_prefix(&self.machine);
                key.update(Provider::join(list));
                key.update(trial::key(&feeds));
                key.update(part.bind()?.key_with(part.weights().sampled_sha256()));
                let folder = root.join("auto").join(env!("CARGO_PKG_VERSION"));
                Some(folder.join(format!("{}.json", &hex(&key.finalize())[..32])))
            }
            None => None,
        };
        if let Some(known) = file.as_deref().and_then(trial::recall::<Remembered>) {
            return Ok(known.trial);
        }
        let elements =
            part.graph().parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>());
        let needed_bytes = 4 * COPIES * elements.sum::<usize>() as u64;
        if Memory::of_this_machine().is_some_and(|memory| memory.available_bytes < needed_bytes) {
            return Ok(Err(format!("a trial would take {} MiB", needed_bytes >> 20)));
        }
        let (found, is_lasting) = match self.tried(part, list, vec![feeds]) {
            Ok(found) => (found, true),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => (Err(error.to_string()), error.kind() == ErrorKind::Runtime),
        };
        if let Some(file) = file.filter(|_| is_lasting) {
            let (component, provider) = (part.name().to_owned(), Provider::join(list));
            let remembered = Remembered { component, provider, trial: found.clone() };
            if let Err(error) = trial::remember(&file, &remembered) {
                tracing::warn!(file = %file.display(), %error, "a provider's trial was not cached");
            }
        }
        Ok(found)
    }

    /// Runs a trial.
    fn tried(&self, part: &Part, list: &[Provider], feeds: Vec<Vec<Feed>>) -> Result<Trial, Error> {
        let tried = Tried::on(part, list, &feeds, self.options)?;
        let seconds = |time: Duration| time.as_secs_f64();
        let times =
            Times { open: seconds(tried.open), first_run: seconds(tried.first_run), run: seconds(tried.run) };
        if list.iter().all(Provider::is_cpu) {
            return Ok(Ok(times));
        }
        let expected: Vec<Sampled> = trial::reference(part, &feeds[0], self.options)?;
        let limit = trial::limit(tried.placement.precision);
        Ok(match trial::distance(&expected, &tried.outputs[0]) {
            Ok(error) if error <= limit => Ok(times),
            Ok(error) => Err(format!("a relative error of {error:.1e}, above {limit:.0e}")),
            Err(problem) => Err(problem),
        })
    }
}
