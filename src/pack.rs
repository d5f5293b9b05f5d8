//! Packing: any opened model becomes a bundle on disk, its weights in a form of the caller's choice, and a bundle is
//! checked. It knows a model only as its parts, never where they came from.

mod calibration;
mod comparison;
mod folder;
mod quantizer;
mod sensitivity;
mod tensor;
mod verification;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::{Compression, write::GzEncoder};

pub use self::comparison::OutputError;
use self::folder::Folder;
use self::sensitivity::Found;
use self::tensor::Packed;
pub use self::verification::{Verified, verify, verify_within};
use crate::engine::{Residency, SessionOptions};
use crate::graph::Graph;
use crate::graph::int8::{Int8, NARROW, WeightBits};
use crate::graph::qdq::Ranges;
use crate::graph::quantize::Quantized;
use crate::manifest::{
    self, Component, Components, Compute, ComputeRecord, Contents, FileRecord, Manifest, TokenizerFiles,
};
use crate::model::{Model, Part, TextEncoderPart};
use crate::plan::Budget;
use crate::weights::{Dtype, Weights};
use crate::{Error, ErrorKind};

/// The component that can compute in integers.
const UNET: &str = "unet";
/// Its layers in integers, all of them, for as long as these are measured.
const INTEGERS_FILE: &str = "weights/unet.integers.safetensors";

/// The form of a bundle's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Large weights in 8-bit integers; see [`crate::graph::quantize`].
    Int8,
    /// Large weights of linear layers in 4-bit integers, those of convolutions in 8-bit ones.
    Int4,
}

impl Precision {
    const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Int8, Self::Int4];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Reads what `Display` writes; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|precision| precision.to_string() == text).ok_or_else(|| {
            let known = Self::ALL.map(|precision| precision.to_string()).join(", ");
            Error::new(ErrorKind::Usage, format!("weights: expected one of {known}, got {text:?}"))
        })
    }
}

/// How a model is packed.
#[derive(Clone, Debug)]
pub struct Options {
    /// The form of the weights; absent, each keeps its own.
    pub weights: Option<Precision>,
    /// How the U-Net computes in integers, if it does; its weights are integers then, and what computes in floats stays in
    /// floats, also where `weights` are integers.
    pub compute: Option<ComputeOptions>,
    /// What the bundle is called; absent, as the model.
    pub name: Option<String>,
    /// The bundle's licence, as an SPDX expression; absent, the model's.
    pub licence: Option<String>,
    /// How many threads work on one operator where outputs are compared.
    pub threads: NonZeroUsize,
    /// The most memory that the process may take while they are; no limit when absent.
    pub memory: Option<Budget>,
}

/// How the U-Net of a bundle computes in integers.
#[derive(Clone, Copy, Debug)]
pub struct ComputeOptions {
    /// In which.
    pub form: Compute,
    /// How long the integers of weights are; absent, as long as this machine's CPU takes them.
    pub weight_bits: Option<WeightBits>,
    /// The most that a call of the U-Net may be off, on seeded inputs, relative to the source's output; the worst blocks stay
    /// in floats for its sake. No limit when absent.
    pub max_error: Option<f64>,
}

impl ComputeOptions {
    fn weight_bits(self) -> WeightBits {
        self.weight_bits.unwrap_or_else(WeightBits::of_this_cpu)
    }

    /// With the ranges that were measured, where the form has such.
    fn how(self, ranges: Option<&Ranges>) -> How<'_> {
        let bits = self.weight_bits();
        self.form.dynamic(bits).map_or(How::Static { ranges, bits }, How::Dynamic)
    }

    fn check(self) -> Result<(), Error> {
        match self.max_error {
            Some(error) if !(error.is_finite() && error > 0.0) => Err(Error::new(
                ErrorKind::Usage,
                format!("max error: expected a number above 0, as 0.01 is for 1 %, got {error}"),
            )),
            _ => Ok(()),
        }
    }
}

/// How layers compute in integers.
#[derive(Clone, Copy)]
enum How<'a> {
    Dynamic(Int8),
    Static { ranges: Option<&'a Ranges>, bits: WeightBits },
}

impl How<'_> {
    /// The graph with layers that compute so, but for those whose weights are in `left`, and what its new parameters hold.
    fn apply(
        self,
        graph: &Graph,
        left: &BTreeSet<String>,
    ) -> Result<(Graph, BTreeMap<String, Quantized>), Error> {
        match self {
            Self::Dynamic(how) => graph.compute_in_int8(how, left),
            Self::Static { ranges, bits } => graph.compute_in_qdq(ranges, bits, left),
        }
    }
}

/// How far a pack has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights that are written.
    pub done_bytes: usize,
    /// Bytes of weights in all.
    pub all_bytes: usize,
}

/// What came of a pack.
#[derive(Clone, Debug)]
pub struct Report {
    /// Per component, in the order in which an image meets them.
    pub components: Vec<PackedComponent>,
    /// The bundle's files.
    pub contents: Contents,
    /// How long it took, comparison included.
    pub time: Duration,
}

/// What came of one component.
#[derive(Clone, Debug)]
pub struct PackedComponent {
    /// Its name in the bundle.
    pub name: &'static str,
    /// The size of its weights in the source.
    pub source_bytes: usize,
    /// The size of its weights' file in the bundle.
    pub packed_bytes: u64,
    /// Whether an earlier run, which was stopped, had written them.
    pub is_kept: bool,
    /// How long it took to write them.
    pub time: Duration,
    /// How far its outputs lie from the source's, on seeded inputs.
    pub errors: Vec<OutputError>,
    /// How it computes in integers, if it does, and what each of its blocks loses by it.
    pub compute: Option<ComputeRecord>,
}

/// Packs a model into a new folder. The folder is there whole or not at all; until then it is called `DEST.partial`, and
/// a pack that was stopped goes on from there when it is called again.
///
/// # Errors
/// [`ErrorKind::Output`] when the destination is taken or cannot be written to; [`ErrorKind::Model`] for weights that
/// the form cannot hold; [`ErrorKind::Usage`] where the form makes no difference to any weight;
/// [`ErrorKind::Numeric`] when source or bundle computes what is no number; [`ErrorKind::Runtime`] without ONNX Runtime.
pub fn pack(
    model: &Model,
    destination: &Path,
    options: &Options,
    on_progress: impl FnMut(Progress),
) -> Result<Report, Error> {
    let manifest = manifest(model, options)?;
    if let Some(compute) = options.compute {
        compute.check()?;
    }
    let weights = model.parts().map(Part::adapted_weights).collect::<Result<Vec<_>, Error>>()?;
    let plans = model.parts().zip(&weights).map(|(part, weights)| Plan::new(part, weights, options));
    let mut plans = plans.collect::<Result<Vec<Plan>, Error>>()?;
    if let (None, Some(contents)) = (options.compute, model.contents()) {
        // What a bundle says of its integers goes on to hold.
        let unet = plans.iter_mut().find(|plan| plan.part.name() == UNET);
        unet.into_iter().for_each(|plan| plan.compute.clone_from(&contents.components.unet.compute));
    }
    let is_integer = matches!(options.weights, Some(Precision::Int8 | Precision::Int4));
    if is_integer && plans.iter().all(|plan| plan.tensors.iter().all(|tensor| tensor.form.is_none())) {
        return Err(Error::new(
            ErrorKind::Usage,
            "weights: expected a model with large weights in 32-bit floats to quantise, got one without",
        ));
    }
    let mut folder = Folder::open(destination)?;
    let filled = measure(&mut folder, model, &mut plans, options)
        .and_then(|()| fill(&mut folder, model, &manifest, &plans, options, on_progress));
    match filled {
        Ok(report) => {
            let names = report.contents.files.keys().map(String::as_str);
            let names: BTreeSet<&str> = names.chain([manifest::FILE_NAME]).collect();
            folder.finish(&names)?;
            Ok(report)
        }
        // What the model is to blame for is so at the next try.
        Err(error) if [ErrorKind::Model, ErrorKind::Numeric].contains(&error.kind()) => {
            folder.discard();
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// What the bundle says of itself.
fn manifest(model: &Model, options: &Options) -> Result<Manifest, Error> {
    let mut manifest = model.manifest().clone();
    let given =
        [("name", &options.name, &mut manifest.name), ("licence", &options.licence, &mut manifest.licence)];
    for (what, given, field) in given {
        let Some(given) = given else { continue };
        let is_line = !given.trim().is_empty() && !given.chars().any(char::is_control);
        // Characters of an SPDX expression, such as `MIT AND (Apache-2.0 OR LicenseRef-mine)`.
        let is_part = |c: char| c.is_ascii_alphanumeric() || " -.+:()".contains(c);
        if !is_line || (what == "licence" && !given.chars().all(is_part)) {
            let expected = if what == "name" { "a name" } else { "an SPDX expression, like CC-BY-4.0" };
            return Err(Error::new(ErrorKind::Usage, format!("{what}: expected {expected}, got {given:?}")));
        }
        field.clone_from(given);
    }
    Ok(manifest)
}

/// What a component becomes.
struct Plan<'a> {
    part: &'a Part,
    weights: &'a Arc<Weights>,
    graph: Graph,
    tensors: Vec<Packed<'a>>,
    source_bytes: usize,
    compute: Option<ComputeRecord>,
}

impl<'a> Plan<'a> {
    fn new(part: &'a Part, weights: &'a Arc<Weights>, options: &Options) -> Result<Self, Error> {
        // Whether weights and graph fit at all.
        part.bind()?;
        let compute = options.compute.filter(|_| part.name() == UNET);
        let is_integer = |dtype: Dtype| [Dtype::U8, Dtype::I8].contains(&dtype);
        let is_quantised = part.graph().parameters().iter().any(|parameter| is_integer(parameter.dtype));
        let asked = match (compute, options.weights) {
            (Some(compute), _) => Some(("compute", compute.form.to_string())),
            (None, precision) => precision.map(|precision| ("weights", precision.to_string())),
        };
        if let (Some((setting, form)), true) = (asked, is_quantised) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{setting}: expected a model in floats to make {form} of, got one whose {} is quantised",
                    part.name()
                ),
            )
            .help(format!("pack the model that it was made of, or leave {{{setting}}} out")));
        }
        let nothing = BTreeSet::new();
        let how = compute.map(|compute| (compute.how(None), &nothing));
        let (graph, tensors) = tensor::plan(part.graph(), weights, options.weights, how)?;
        if compute.is_some() && tensors.iter().all(|tensor| tensor.form.is_none()) {
            let message =
                "compute: expected a U-Net with layers that can compute in integers, got one without";
            return Err(Error::new(ErrorKind::Usage, message).help(format!(
                "these are linear layers and convolutions of 32-bit floats with more than {NARROW} channels on both sides"
            )));
        }
        let parameters = part.graph().parameters().iter();
        let sources = parameters.filter_map(|parameter| weights.get(&parameter.name));
        let source_bytes = sources.map(|weight| weight.len_bytes()).sum();
        Ok(Self { part, weights, graph, tensors, source_bytes, compute: None })
    }

    fn graph_file(&self) -> String {
        format!("graphs/{}.onnx.gz", self.part.name())
    }

    fn weights_file(&self) -> String {
        format!("weights/{}.safetensors", self.part.name())
    }

    fn len_bytes(&self) -> usize {
        self.tensors.iter().map(Packed::len_bytes).sum()
    }
}

/// Measures what computing in integers costs the U-Net, if it is to, and plans which of its blocks do.
fn measure(
    folder: &mut Folder,
    model: &Model,
    plans: &mut [Plan<'_>],
    options: &Options,
) -> Result<(), Error> {
    let plan = plans.iter_mut().find(|plan| plan.part.name() == UNET);
    let (Some(compute), Some(plan)) = (options.compute, plan) else { return Ok(()) };
    let upright = plan.part.graph().upright()?;
    let (_, made) = compute.how(None).apply(&upright, &BTreeSet::new())?;
    let sources: BTreeSet<String> = made.into_values().map(|quantized| quantized.source).collect();
    // All integers beside the source, of which blocks are then taken.
    plan.tensors.retain(|tensor| tensor.form.is_some());
    write_tensors(folder, INTEGERS_FILE, &plan.tensors, |_| ())?;
    let path = folder.path().join(INTEGERS_FILE);
    // Each is opened for two calls: no weights are copied for these.
    let session = SessionOptions { residency: Residency::PerStage, ..SessionOptions::new(options.threads) };
    let session = within(session, options.memory);
    let ranges = match compute.form {
        Compute::Qdq => Some(calibration::ranges(model, plan.weights, &session)?),
        Compute::Int8 | Compute::Int8Fine => None,
    };
    let how = compute.how(ranges.as_ref());
    let Found { record, left } =
        sensitivity::measure(model, compute, how, plan.weights, &sources, &path, &session)?;
    (plan.graph, plan.tensors) =
        tensor::plan(plan.part.graph(), plan.weights, options.weights, Some((how, &left)))?;
    plan.compute = Some(record);
    Ok(())
}

/// Writes a file of tensors, if an earlier run has not written the same; whether it has.
fn write_tensors(
    folder: &mut Folder,
    name: &str,
    tensors: &[Packed],
    on_tensor: impl FnMut(usize),
) -> Result<(FileRecord, bool), Error> {
    if let Some(record) = folder.kept(name, || tensor::source(tensors)) {
        return Ok((record, true));
    }
    let mut source = String::new();
    let record = folder.write(name, |to| {
        source = tensor::write(tensors, to, on_tensor)?;
        Ok(())
    })?;
    folder.note(name, source, &record)?;
    Ok((record, false))
}

/// Makes all files of the bundle, opens it, and compares it with its source.
fn fill(
    folder: &mut Folder,
    model: &Model,
    manifest: &Manifest,
    plans: &[Plan],
    options: &Options,
    mut on_progress: impl FnMut(Progress),
) -> Result<Report, Error> {
    let started = Instant::now();
    let all_bytes = plans.iter().map(Plan::len_bytes).sum();
    let mut done_bytes = 0;
    let (mut files, mut components, mut packed) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for plan in plans {
        let started = Instant::now();
        let name = plan.part.name();
        let (graph, weights) = (plan.graph_file(), plan.weights_file());
        files.insert(graph.clone(), write_bytes(folder, &graph, &zipped(&plan.graph.encode()))?);
        let before_bytes = done_bytes;
        let (record, is_kept) = write_tensors(folder, &weights, &plan.tensors, |bytes| {
            done_bytes += bytes;
            on_progress(Progress { done_bytes, all_bytes });
        })?;
        done_bytes = before_bytes + plan.len_bytes();
        on_progress(Progress { done_bytes, all_bytes });
        packed.push(PackedComponent {
            name,
            source_bytes: plan.source_bytes,
            packed_bytes: record.len_bytes,
            is_kept,
            time: started.elapsed(),
            errors: Vec::new(),
            compute: plan.compute.clone(),
        });
        files.insert(weights.clone(), record);
        let encoder = model.text_encoders().iter().find(|encoder| encoder.name() == name);
        let tokenizer = encoder.map(|encoder| write_tokenizer(folder, encoder, &mut files)).transpose()?;
        let component = Component::new(graph, vec![weights], &plan.graph, tokenizer);
        components.insert(name, Component { compute: plan.compute.clone(), ..component });
    }
    let mut component = |name: &str| components.remove(name);
    let contents = Contents {
        components: Components {
            text_encoder: component("text_encoder"),
            text_encoder_2: component("text_encoder_2"),
            unet: component(UNET).expect("a model with a U-Net"),
            vae_encoder: component("vae_encoder"),
            vae_decoder: component("vae_decoder").expect("a model with a VAE decoder"),
        },
        files,
    };
    write_bytes(folder, manifest::FILE_NAME, &manifest.to_json(&contents))?;

    // Read back from disk, every byte of it.
    let bundle = Model::open(folder.path())?;
    let memory = options.memory;
    let options = within(SessionOptions::new(options.threads), memory);
    for (component, errors) in packed.iter_mut().zip(comparison::compare(model, &bundle, &options)?) {
        component.errors = errors;
    }
    Ok(Report { components: packed, contents, time: started.elapsed() })
}

/// How components are opened to be looked at: within a budget, where there is one.
fn within(options: SessionOptions, memory: Option<Budget>) -> SessionOptions {
    memory.map_or(options.clone(), |budget| options.within(budget.bytes()))
}

/// Writes the files of a text encoder's tokenizer, under its name.
fn write_tokenizer(
    folder: &Folder,
    encoder: &TextEncoderPart,
    files: &mut BTreeMap<String, FileRecord>,
) -> Result<TokenizerFiles, Error> {
    let mut names = Vec::new();
    for (file, bytes) in encoder.tokenizer_files() {
        let name = format!("{}/{file}", encoder.name());
        files.insert(name.clone(), write_bytes(folder, &name, bytes)?);
        names.push(name);
    }
    let marks = encoder.special_tokens();
    let (bos, eos, pad) = (marks.bos, marks.eos, marks.pad);
    Ok(TokenizerFiles { files: names, context: encoder.context(), bos, eos, pad })
}

fn write_bytes(folder: &Folder, name: &str, bytes: &[u8]) -> Result<FileRecord, Error> {
    folder.write(name, |to| Ok(to.write_all(bytes)?))
}

/// The same bytes always, for there is no time in them.
fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a Vec takes all bytes")
}
