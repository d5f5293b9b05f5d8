//! `calotype inspect`: what a model is made of, and how each input and output was understood.

use std::fmt::Write as _;
use std::path::PathBuf;

use calotype::engine::{Placement, Provider, Residency, Session, SessionOptions, providers_needed};
use calotype::model::{Model, Part};
use calotype::signature::Binding;
use calotype::{Error, ErrorKind};
use serde_json::{Value, json};

use super::open::{Additions, Components, open_model};
use super::pack::losses;
use super::{Common, Report, provider};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    model: Option<PathBuf>,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    additions: Additions,
    /// With --provider every component is opened there, one at a time, and what each provider takes of its graph is reported;
    /// no weights or images are compared.
    #[command(flatten)]
    provider: provider::Choice,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let model = open_model(flags.model.as_ref(), &flags.components, &flags.additions)?;
    let session = match flags.provider.providers()? {
        Some(providers) if providers.is_automatic() => {
            let problem =
                "provider: expected providers by name, got auto, which chooses for the images of a prompt";
            return Err(Error::new(ErrorKind::Usage, problem));
        }
        Some(_) => {
            flags.common.library()?;
            Some(SessionOptions { residency: Residency::PerStage, ..flags.provider.options()? })
        }
        None => None,
    };
    let manifest = model.manifest();
    let defaults = &manifest.defaults;
    let (schedule, _) = manifest.schedule(None, None, defaults.steps)?;
    let mut text = format!(
        "{} ({})\n  prediction {:?}, {}, latents {} channels, 1 cell = {} px, scale {}\n  defaults {}, {} steps, guidance {}, {}, {}\n",
        manifest.name,
        manifest.licence,
        manifest.prediction,
        manifest.noise,
        manifest.latents.channels,
        manifest.latents.factor_px,
        manifest.latents.scale,
        defaults.size,
        defaults.steps,
        defaults.guidance,
        defaults.sampler,
        schedule,
    );
    let mut components = serde_json::Map::new();
    for part in model.parts() {
        let (told, seen) = component(&model, part, session.as_ref())?;
        text += &told;
        components.insert(part.name().into(), seen);
    }
    let json = json!({
        "name": manifest.name,
        "licence": manifest.licence,
        "prediction": format!("{:?}", manifest.prediction),
        "noise": manifest.noise.to_string(),
        "latents": manifest.latents,
        "defaults": {
            "size": defaults.size.to_string(),
            "steps": defaults.steps,
            "guidance": defaults.guidance,
            "sampler": defaults.sampler.to_string(),
            "schedule": schedule.to_string(),
        },
        "components": components,
        "files": model.contents().map(|contents| &contents.files),
    });
    Ok(Report::new(text, json))
}

/// What is in a component, as text and as JSON.
fn component(model: &Model, part: &Part, session: Option<&SessionOptions>) -> Result<(String, Value), Error> {
    let mut text = String::new();
    let (graph, weights, signature) = (part.graph(), part.weights(), part.signature());
    let bytes: usize =
        graph.parameters().iter().filter_map(|p| weights.get(&p.name)).map(|w| w.len_bytes()).sum();
    let count: usize = graph.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum();
    // Binding is what a run would do: a model that does not fit is found here too.
    part.bind()?;
    let bindings = |bindings: &[Binding]| bindings.iter().map(Binding::to_string).collect::<Vec<_>>();
    let (inputs, outputs) = (bindings(&signature.inputs), bindings(&signature.outputs));
    writeln!(text, "{}: {} + {}", part.name(), part.graph_origin(), part.weights_origin())
        .expect("a String takes all text");
    writeln!(text, "  {}", part.family()).expect("a String takes all text");
    writeln!(text, "  {count} parameters in {bytes} bytes").expect("a String takes all text");
    let copied_bytes = weights.copied_bytes();
    if copied_bytes > 0 {
        writeln!(text, "  {copied_bytes} bytes of them copied or decoded into memory while it is open")
            .expect("a String takes all text");
    }
    let contents = model.contents().map(|contents| &contents.components);
    let component = contents.and_then(|components| components.iter().find(|(name, _)| *name == part.name()));
    let compute = component.and_then(|(_, component)| component.compute.as_ref());
    if let Some(compute) = compute {
        text += &losses(compute);
    }
    for port in &inputs {
        writeln!(text, "  in  {port}").expect("a String takes all text");
    }
    for port in &outputs {
        writeln!(text, "  out {port}").expect("a String takes all text");
    }
    let operators = graph.custom_operators();
    for operator in &operators {
        let note = match providers_needed(operator) {
            Some(providers) => format!("not on a CPU: needs {providers}"),
            None => "ONNX Runtime's own".into(),
        };
        writeln!(text, "  op  {operator} ({note})").expect("a String takes all text");
    }
    let placement = session.map(|options| placement(part, options)).transpose()?;
    text += &placement.as_ref().map_or(String::new(), placement_text);
    let json = json!({
        "family": part.family(),
        "graph": part.graph_origin(),
        "weights": part.weights_origin(),
        "parameters": count,
        "weights_bytes": bytes,
        "copied_bytes": copied_bytes,
        "compute": compute,
        "inputs": inputs,
        "outputs": outputs,
        "operators": operators.iter().map(|name| (name.clone(), json!(providers_needed(name)))).collect::<serde_json::Map<_, _>>(),
        "placement": placement.as_ref().map(provider::json),
    });
    Ok((text, json))
}

/// Where a component runs, which is seen when it is opened.
fn placement(part: &Part, options: &SessionOptions) -> Result<Placement, Error> {
    let placement = Session::open(part.bind()?, options)?.placement().clone();
    provider::warn_divided(&placement);
    Ok(placement)
}

/// The same, for people.
fn placement_text(placement: &Placement) -> String {
    let passed_over = placement.passed_over.iter();
    let mut text: String =
        passed_over.map(|(provider, reason)| format!("  not on {provider}: {reason}\n")).collect();
    let shares = match &placement.shares {
        Some(shares) => provider::shares_text(shares),
        None if placement.is_cpu() => "all nodes".into(),
        None => "nodes not known (ONNX Runtime before 1.24)".into(),
    };
    writeln!(text, "  on {}: {shares}", Provider::join(&placement.providers))
        .expect("a String takes all text");
    for share in placement.shares.iter().flatten().filter(|share| share.is_cpu()) {
        let operators: Vec<String> =
            share.operators.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        writeln!(text, "  left on the CPU: {}", operators.join(", ")).expect("a String takes all text");
    }
    text
}
