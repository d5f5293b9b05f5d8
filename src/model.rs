//! A model: what it says of itself, and its components, each a graph with weights that fit, from wherever they came.
//! It knows the forms in which models are kept, and nothing of sessions.

mod additions;
mod builtin;
mod bundle;
mod control;
mod diffusers;
mod files;
mod folder;
mod network;
mod onnx;
mod preview;
mod replacement;
mod signed;
mod single_file;
mod traits;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::Deserialize;

pub(crate) use self::additions::Additions;
pub(crate) use self::bundle::{check_file, check_files, hex};
pub use self::control::ControlNet;
pub(crate) use self::control::ControlPart;
pub(crate) use self::files::ModelFiles;
pub(crate) use self::preview::{NAME as PREVIEW_DECODER, PreviewDecoder};
pub use self::replacement::Overrides;
use self::replacement::Replacements;
pub(crate) use self::signed::SIGNATURE_SUFFIX;
pub use self::signed::Signer;
use crate::adapter::Component;
use crate::adapter::embedding::Embedding;
use crate::adapter::lora::{self, Lora};
use crate::architecture::{clip, unet};
use crate::family::{Encoder, Family, Inputs};
use crate::graph::{BoundGraph, Dim, Graph, Port};
use crate::json::standard;
use crate::manifest::{self, Conditions, Contents, Manifest};
use crate::prediction::Prediction;
use crate::signature::{CONTROL_NAMES, Role, Signature};
use crate::tensor::PixelSize;
use crate::tokenizer::{SpecialTokens, Tokenizer};
use crate::weights::{Dtype, Weights};
use crate::{Error, ErrorKind};

/// The length of CLIP's `vocab.json` and `merges.txt`.
const CLIP_BYTES: usize = 1_500_000;

/// The longest manifest, configuration or vocabulary that is read.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// How many files a message names.
const MAX_NAMED: usize = 6;

/// An opened model: every file that it needs is there, and every graph has the inputs and outputs that it must.
#[derive(Clone, Debug)]
pub struct Model {
    manifest: Manifest,
    text_encoders: Vec<TextEncoderPart>,
    unet: Part,
    vae_decoder: Part,
    vae_encoder: Option<Part>,
    /// What steers the U-Net.
    controls: Vec<ControlPart>,
    /// Of previews; no part of what is packed, compared or adapted.
    preview_decoder: Option<PreviewDecoder>,
    /// Of a bundle.
    contents: Option<Contents>,
    /// What is to be said of its files, a line each.
    notes: Vec<String>,
    additions: Additions,
}

/// A component: a graph, its weights, and what its inputs and outputs are for.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    graph_origin: String,
    weights_origin: String,
    /// Shared by the copies of this part: descriptions of graphs take megabytes.
    graph: Arc<Graph>,
    weights: Arc<Weights>,
    signature: Signature,
    /// What the graph of a U-Net was derived from, if it was.
    unet: Option<Arc<unet::Config>>,
    /// The LoRA files that are added to the weights where they are used.
    added: Option<Arc<Added>>,
}

/// LoRA files for one component. They are added when it is opened, so that a plan can count what that takes before.
#[derive(Debug)]
struct Added {
    component: Component,
    loras: Arc<Vec<(Lora, f32)>>,
    cost: lora::Cost,
    /// The weights with them, for as long as somebody uses these.
    weights: Mutex<Weak<Weights>>,
}

/// A text encoder and what makes its token ids.
#[derive(Clone, Debug)]
pub struct TextEncoderPart {
    part: Part,
    vocabulary: Vocabulary,
    special: SpecialTokens,
    context: usize,
    /// Words that were added, with their numbers of tokens.
    words: Vec<(String, u32)>,
    /// What its graph was derived from, if it was.
    derived: Option<Derived>,
}

/// What the graph of a text encoder is derived from.
#[derive(Clone, Debug)]
struct Derived {
    config: clip::Config,
    states: clip::States,
    is_pooled: bool,
}

/// What LoRA files changed in one component of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapted {
    /// The component; one that the model lacks has no tensors changed.
    pub component: Component,
    /// How many tensors are in private memory while it is open.
    pub tensors: usize,
    /// How much memory they take.
    pub bytes: usize,
    /// The files' names of what they have for it, and it has not.
    pub unused: Vec<String>,
}

/// The bytes that a tokenizer is made of.
#[derive(Clone, Debug)]
enum Vocabulary {
    /// CLIP's own, which calotype has.
    Clip,
    /// A `tokenizer.json`.
    Json(Cow<'static, [u8]>),
    /// A `vocab.json` and a `merges.txt`.
    Merges { vocabulary: Cow<'static, [u8]>, merges: Cow<'static, [u8]> },
}

impl Vocabulary {
    /// The ids of tokens, by their texts.
    fn ids<const N: usize>(&self, tokens: [&str; N]) -> Result<[Option<u32>; N], Error> {
        #[derive(Deserialize)]
        struct Json {
            #[serde(default)]
            added_tokens: Vec<Added>,
            model: Inner,
        }
        #[derive(Deserialize)]
        struct Added {
            id: u32,
            content: String,
        }
        #[derive(Deserialize)]
        struct Inner {
            vocab: HashMap<String, u32>,
        }
        let refuse = |error| Error::new(ErrorKind::Model, "tokenizer: expected a vocabulary").source(error);
        Ok(match self {
            Self::Clip => [None; N],
            Self::Json(json) => {
                let json: Json =
                    serde_json::from_slice(&standard("tokenizer.json", json)?).map_err(refuse)?;
                tokens.map(|token| {
                    let added = json.added_tokens.iter().find(|added| added.content == token);
                    added.map(|added| added.id).or_else(|| json.model.vocab.get(token).copied())
                })
            }
            Self::Merges { vocabulary, .. } => {
                let vocabulary = standard("vocab.json", vocabulary)?;
                let vocabulary: HashMap<String, u32> = serde_json::from_slice(&vocabulary).map_err(refuse)?;
                tokens.map(|token| vocabulary.get(token).copied())
            }
        })
    }
}

impl Model {
    /// The model that is part of every program with the feature `builtin`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when the program was built without that feature;
    /// [`ErrorKind::Internal`] when the program was built around a damaged model.
    pub fn built_in() -> Result<Self, Error> {
        bundle::built_in()
    }

    /// Opens the model at a path: a bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when nothing of these is there, or a file is missing, damaged or not understood.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(Some(path), &Overrides::default())
    }

    /// Opens the model at a path, or the built-in one, with components from files of their own in the place of those of
    /// the model, which then need not be there: a U-Net alone becomes a model with a VAE and text encoders.
    ///
    /// What a model predicts, its noise levels and the scale of its latents stay those of the model, unless the file of
    /// the U-Net tells what it predicts.
    ///
    /// # Errors
    /// As [`Model::open`], and when the components do not fit together.
    pub fn open_with(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Error> {
        let replacements = Replacements::open(overrides)?;
        let variant = overrides.variant.as_deref();
        let opened = Self::open_at(path, variant, &replacements);
        opened.map_err(|error| match path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    fn open_at(
        path: Option<&Path>,
        variant: Option<&str>,
        replacements: &Replacements,
    ) -> Result<Self, Error> {
        let put_into = |model: Self| match replacements.is_empty() {
            true => Ok(model),
            false => replacements.put_into(model),
        };
        let Some(path) = path else {
            no_variant(variant, "the built-in model")?;
            return put_into(Self::built_in()?);
        };
        let shown = path.display();
        let metadata = fs::metadata(path)
            .map_err(|error| Error::new(ErrorKind::Model, format!("model {shown}")).source(error))?;
        if !metadata.is_dir() {
            no_variant(variant, &shown.to_string())?;
            return single_file::open(path, replacements);
        }
        if path.join(manifest::FILE_NAME).exists() {
            no_variant(variant, &shown.to_string())?;
            return put_into(bundle::open(path)?);
        }
        // Some published folders have both forms of the same weights; these load faster and take LoRA by name.
        if diffusers::has_weights(path) {
            return diffusers::open(path, variant, replacements);
        }
        if onnx::is_one(path) {
            return put_into(onnx::open(path, variant)?);
        }
        if path.join("unet/config.json").exists() || diffusers::is_one(path) {
            return diffusers::open(path, variant, replacements);
        }
        Err(not_a_model(path))
    }

    /// Joins components to a model, and notes what their graphs say that manifests need not.
    fn new(
        mut manifest: Manifest,
        text_encoders: Vec<TextEncoderPart>,
        unet: Part,
        vae_decoder: Part,
        vae_encoder: Option<Part>,
    ) -> Result<Self, Error> {
        manifest.embedded_guidance = unet.signature.input(Role::GuidanceEmbedding).is_some();
        manifest.conditions = Conditions::of(&unet.signature, manifest.latents.channels)?;
        manifest.encodes = vae_encoder.is_some();
        if manifest.conditions == Conditions::Upscaling && manifest.low_res.is_none() {
            return Err(Error::new(
                ErrorKind::Model,
                "low_res_scheduler: expected one, because this model upscales images, got none",
            ));
        }
        let latents = unet.signature.input(Role::Latents).expect("no signature without latents");
        manifest.fixed_size = fixed_size(latents, manifest.latents.factor_px)?;
        if let Some(size) = manifest.fixed_size {
            manifest.defaults.size = size;
        }
        let timestep = unet.signature.input(Role::Timestep);
        if manifest.noise.tells_fractions()
            && let Some(port) = timestep.filter(|port| matches!(port.dtype, Dtype::I64 | Dtype::I32))
        {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "unet: expected a timestep of floats, because this model takes ln(sigma) / 4, got {port}"
                ),
            ));
        }
        manifest.check()?;
        Ok(Self {
            manifest,
            text_encoders,
            unet,
            vae_decoder,
            vae_encoder,
            controls: Vec::new(),
            preview_decoder: None,
            contents: None,
            notes: Vec::new(),
            additions: Additions::default(),
        })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The family of its U-Net, as far as its inputs tell.
    pub fn family(&self) -> Option<Family> {
        Family::of(self.unet.inputs())
    }

    /// What its files say that is not done, and what was assumed where they say nothing: a line each, for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Takes the U-Net's output for something else than its files say, for files that are wrong or silent.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for what does not go with the noise that the model was trained on.
    pub fn predict(&mut self, prediction: Prediction) -> Result<(), Error> {
        let own = self.manifest.prediction;
        self.manifest.prediction = own.replaced(prediction, &self.manifest.noise)?;
        Ok(())
    }

    /// Takes the text encoders' states of an earlier layer: `clip_skip` counts from the end, as A1111's `Clip skip` does, so that
    /// 1 is the last layer, which Stable Diffusion 1 and 2 were trained on, and 2 the one before, which Stable Diffusion XL
    /// was. In diffusers' counting that is `clip_skip` of one less, for Stable Diffusion XL of two less. States of the families
    /// that were trained on the last layer are normalised as those are. To be called before words are added.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a layer that the model does not have, or that comes after the one that it was trained on;
    /// [`ErrorKind::Model`] for a text encoder whose graph came with the model, and gives the states of one layer alone.
    pub fn skip_clip_layers(&mut self, clip_skip: usize) -> Result<(), Error> {
        let mut graphs = Vec::new();
        for encoder in &self.text_encoders {
            let Some(Derived { config, states, is_pooled }) = &encoder.derived else {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!(
                        "clip skip: expected a {} whose graph calotype derives, got one that came with the model ({}), which gives the \
                         states of one layer alone",
                        encoder.name,
                        encoder.graph_origin()
                    ),
                )
                .help("give the model as a diffusers folder or a single file"));
            };
            let usual = match states {
                clip::States::Last => 1,
                clip::States::Penultimate => 2,
            };
            if !(usual..=config.num_hidden_layers).contains(&clip_skip) {
                let layers = config.num_hidden_layers;
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "clip skip: expected {usual} to {layers} for this model's {}, got {clip_skip}",
                        encoder.name
                    ),
                )
                .help(format!(
                    "{usual} is what the model was trained on; diffusers' clip_skip 0 is {usual}"
                )));
            }
            graphs.push(config.graph_skipping(*states, clip_skip - usual, *is_pooled)?);
        }
        for (encoder, graph) in self.text_encoders.iter_mut().zip(graphs) {
            encoder.part.signature = Signature::of(encoder.part.name, &graph)?;
            encoder.part.graph = Arc::new(graph);
        }
        self.additions = Additions { clip_skip: Some(clip_skip), ..self.additions.renewed() };
        Ok(())
    }

    /// Has previews of runs ([`Run::preview`](crate::run::Run::preview)) decoded by a tiny autoencoder's decoder (TAESD): a diffusers
    /// folder of an `AutoencoderTiny`, its file alone, or `taesd_decoder.safetensors`. Finished images are decoded by the VAE as
    /// before. A plan counts it; it runs on the CPU.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a file that is not of a tiny autoencoder, and one of other latents than the model's VAE has.
    pub fn decode_previews_by(&mut self, path: &Path) -> Result<(), Error> {
        let opened = PreviewDecoder::open(path, &self.manifest.latents);
        self.preview_decoder = Some(opened.map_err(|error| error.in_file(path))?);
        Ok(())
    }

    /// Whether there are previews of its runs.
    pub fn has_previews(&self) -> bool {
        self.preview_decoder.is_some() || self.manifest.preview.is_some()
    }

    /// The decoder of previews, if there is one.
    pub(crate) fn preview_decoder(&self) -> Option<&PreviewDecoder> {
        self.preview_decoder.as_ref()
    }

    /// Makes the graphs of this model take images of one size alone, one at a time, and prompts of one length: some providers
    /// (QNN, CoreML) take no other graphs. Inputs that have one shape already keep it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a size that is not a whole number of latent cells; [`ErrorKind::Model`] for a graph of
    /// another size, and one whose shapes cannot be inferred.
    pub fn fix_shapes(&mut self, size: PixelSize) -> Result<(), Error> {
        if let Some(fixed) = self.manifest.fixed_size.filter(|fixed| *fixed != size) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected {fixed}, the only size of this model's graph, got {size}"),
            ));
        }
        let factor = self.manifest.latents.factor_px;
        let cells = |side_px: u32| (side_px / factor) as usize;
        if !size.width_px().is_multiple_of(factor) || !size.height_px().is_multiple_of(factor) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected multiples of {factor} px for graphs of fixed shapes, got {size}"),
            ));
        }
        let tokens = self.text_encoders.iter().map(|encoder| encoder.context).min().unwrap_or_default();
        let fixed = |part: &Part| -> Result<Graph, Error> {
            let shapes = part.signature.inputs.iter().map(|binding| {
                let port = &binding.port;
                let dims = port.dims.iter().enumerate().map(|(axis, dim)| match (dim, binding.role, axis) {
                    (Dim::Fixed(size), _, _) => Some(*size),
                    (_, _, 0) => Some(1),
                    (_, Role::Latents | Role::ControlHint, 2) => Some(cells(size.height_px())),
                    (_, Role::Latents | Role::ControlHint, 3) => Some(cells(size.width_px())),
                    (_, Role::Image | Role::ControlImage, 2) => Some(size.height_px() as usize),
                    (_, Role::Image | Role::ControlImage, 3) => Some(size.width_px() as usize),
                    (dim, Role::DownResidual(_) | Role::BlockResidual(_) | Role::MiddleResidual, 2) => {
                        Some(dim.divided(cells(size.height_px())))
                    }
                    (dim, Role::DownResidual(_) | Role::BlockResidual(_) | Role::MiddleResidual, 3) => {
                        Some(dim.divided(cells(size.width_px())))
                    }
                    (_, Role::States | Role::TokenIds | Role::Mask, 1) => Some(tokens),
                    _ => None,
                });
                let shape = dims.collect::<Option<Vec<usize>>>().ok_or_else(|| {
                    let problem = format!("{}: input {port}: expected sizes that are known", part.name);
                    Error::new(ErrorKind::Model, problem)
                })?;
                Ok((port.name.clone(), shape))
            });
            part.graph.with_shapes(&shapes.collect::<Result<Vec<_>, Error>>()?)
        };
        let mut graphs = self.parts().map(fixed).collect::<Result<Vec<_>, Error>>()?.into_iter();
        let image = [1, 3, size.height_px() as usize, size.width_px() as usize];
        for encoder in self.controls.iter_mut().filter_map(|control| control.encoder.as_mut()) {
            let input = encoder.inputs()[0].name.clone();
            *encoder = Arc::new(encoder.with_shapes(&[(input, image.to_vec())])?);
        }
        for part in self.parts_mut() {
            let graph = graphs.next().expect("a graph for each part");
            part.signature = Signature::of(part.name, &graph)?;
            part.graph = Arc::new(graph);
        }
        self.manifest.fixed_size = Some(size);
        self.manifest.defaults.size = size;
        Ok(())
    }

    /// The layer of the text encoders that [`Model::skip_clip_layers`] chose, counted from the end.
    pub fn clip_skip(&self) -> Option<usize> {
        self.additions.clip_skip
    }

    /// What was added to it.
    pub(crate) fn additions(&self) -> &Additions {
        &self.additions
    }

    /// What tells its files from those of other models.
    pub(crate) fn files(&self) -> ModelFiles {
        ModelFiles::of(self)
    }

    /// The files of a bundle; other models have none to list.
    pub fn contents(&self) -> Option<&Contents> {
        self.contents.as_ref()
    }

    /// Token ids -> states; there are one or two.
    pub fn text_encoders(&self) -> &[TextEncoderPart] {
        &self.text_encoders
    }

    /// Noisy latents, time and states -> prediction.
    pub fn unet(&self) -> &Part {
        &self.unet
    }

    /// Latents -> image.
    pub fn vae_decoder(&self) -> &Part {
        &self.vae_decoder
    }

    /// Image -> latents, where the model has it.
    pub fn vae_encoder(&self) -> Option<&Part> {
        self.vae_encoder.as_ref()
    }

    /// Adds LoRA files to the weights, each as often as the number beside it says, and tells what they change. They are
    /// checked now by names and shapes, and computed a tensor at a time when a component is opened. To be called once,
    /// with all files.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a file is for another family of models; nothing is changed then.
    pub fn add_loras(&mut self, loras: Vec<(Lora, f32)>) -> Result<Vec<Adapted>, Error> {
        let loras = Arc::new(loras);
        let components: BTreeSet<Component> =
            loras.iter().flat_map(|(lora, _)| lora.components()).map(|(component, _)| component).collect();
        for (lora, _) in loras.iter() {
            let weights = |component: Component| self.parts().find(|part| part.name == component.to_string());
            let is_strange = |(component, count): (Component, usize)| {
                weights(component).is_none_or(|part| lora.strange(component, &part.weights).len() == count)
            };
            if lora.components().count() > 1 && lora.components().all(is_strange) {
                let what: Vec<String> =
                    lora.components().map(|(component, _)| component.to_string()).collect();
                return Err(Error::new(
                    ErrorKind::Model,
                    format!(
                        "{}: expected names of this model, got none for its {}",
                        lora.place(),
                        what.join(" and ")
                    ),
                )
                .help(lora::made_for(lora.family())));
            }
        }
        let mut changed = Vec::new();
        for component in components {
            let added = match self.parts().find(|part| part.name == component.to_string()) {
                Some(part) => Some(Added::new(component, &part.weights, Arc::clone(&loras))?),
                None => None,
            };
            changed.push((component, added));
        }
        if changed.iter().all(|(_, added)| added.is_none()) && !changed.is_empty() {
            let missing: Vec<String> = changed.iter().map(|(component, _)| component.to_string()).collect();
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "lora: expected tensors for this model, got some for {} alone",
                    missing.join(" and ")
                ),
            )
            .help(lora::made_for(loras.iter().find_map(|(lora, _)| lora.family()))));
        }
        let mut adapted = Vec::new();
        for (component, added) in changed {
            let mut report = Adapted { component, tensors: 0, bytes: 0, unused: Vec::new() };
            if let Some(added) = added {
                let part = self.parts().find(|part| part.name == component.to_string());
                let weights = &part.expect("a part that was found before").weights;
                let strange = loras.iter().flat_map(|(lora, _)| lora.strange(component, weights));
                let unused = strange.map(ToOwned::to_owned).collect();
                let lora::Cost { tensors, bytes, .. } = &added.cost;
                report = Adapted { component, tensors: tensors.len(), bytes: *bytes, unused };
                let part = self.parts_mut().find(|part| part.name == component.to_string());
                let is_changed = report.tensors > 0;
                part.expect("a part that was found before").added = is_changed.then(|| Arc::new(added));
            }
            adapted.push(report);
        }
        self.additions = Additions { loras, ..self.additions.renewed() };
        Ok(adapted)
    }

    /// What steers the U-Net.
    pub(crate) fn controls(&self) -> &[ControlPart] {
        &self.controls
    }

    /// Gives the text encoders words of their own, by textual inversion. To be called once, with all words.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a file is for another family of models; [`ErrorKind::Usage`] for a word that the
    /// tokenizer has already. Nothing is changed then.
    pub fn add_embeddings(&mut self, embeddings: &[Embedding]) -> Result<(), Error> {
        let mut changed = Vec::new();
        for encoder in &self.text_encoders {
            let component = match encoder.name {
                "text_encoder_2" => Component::TextEncoder2,
                _ => Component::TextEncoder,
            };
            let mut graph = Graph::clone(&encoder.graph);
            let width = graph.embedding_width()?;
            let mut tokenizer = encoder.tokenizer(encoder.context)?;
            let (mut words, mut rows, mut first) = (Vec::new(), Vec::new(), None);
            for embedding in embeddings {
                let count = embedding.count() as u32;
                let ids = tokenizer.add_word(embedding.trigger(), count)?;
                first.get_or_insert(ids.start);
                rows.extend_from_slice(embedding.vectors(component, width)?);
                words.push((embedding.trigger().to_owned(), count));
            }
            if let Some(first) = first {
                graph.extend_embedding(first, &rows)?;
            }
            changed.push((graph, words));
        }
        for (encoder, (graph, words)) in self.text_encoders.iter_mut().zip(changed) {
            encoder.part.graph = Arc::new(graph);
            encoder.words = words;
        }
        self.additions = Additions { embeddings: embeddings.to_vec(), ..self.additions.renewed() };
        Ok(())
    }

    /// The text encoder that a component is, if it is one.
    pub(crate) fn encoder(&self, part: &Part) -> Option<&TextEncoderPart> {
        self.text_encoders.iter().find(|encoder| encoder.name == part.name)
    }

    /// The same model with another form of one of its components.
    pub(crate) fn with_part(&self, part: &Part) -> Self {
        let mut model = self.clone();
        model.parts_mut().filter(|own| own.name == part.name).for_each(|own| own.clone_from(part));
        model
    }

    fn parts_mut(&mut self) -> impl Iterator<Item = &mut Part> {
        let encoders = self.text_encoders.iter_mut().map(|encoder| &mut encoder.part);
        let controls = self.controls.iter_mut().map(|control| &mut control.part);
        encoders
            .chain([&mut self.unet])
            .chain(controls)
            .chain(&mut self.vae_encoder)
            .chain([&mut self.vae_decoder])
    }

    /// Every component, in the order in which an image meets them.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        let encoders = self.text_encoders.iter().map(|encoder| &encoder.part);
        let controls = self.controls.iter().map(|control| &control.part);
        encoders.chain([&self.unet]).chain(controls).chain(&self.vae_encoder).chain([&self.vae_decoder])
    }
}

impl Part {
    pub(crate) fn new(
        name: &'static str,
        graph_origin: String,
        weights_origin: String,
        graph: Graph,
        weights: Arc<Weights>,
    ) -> Result<Self, Error> {
        let signature = Signature::of(name, &graph)?;
        let graph = Arc::new(graph);
        Ok(Self { name, graph_origin, weights_origin, graph, weights, signature, unet: None, added: None })
    }

    /// The same U-Net, whose graph was derived from this configuration.
    pub(super) fn derived_from(self, config: unet::Config) -> Self {
        Self { unet: Some(Arc::new(config)), ..self }
    }

    /// Its name in bundles: `unet`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Which published networks have inputs and outputs of these sizes, for people.
    pub fn family(&self) -> String {
        let known = match self.name {
            "unet" => match Family::of(self.inputs()) {
                Some(family) => format!("U-Net of {family}"),
                None => "U-Net".to_owned(),
            },
            "vae_encoder" | "vae_decoder" => "VAE".to_owned(),
            name if CONTROL_NAMES.contains(&name) => match self.signature.input(Role::ControlImage) {
                Some(_) => "T2I-Adapter".to_owned(),
                None => "ControlNet".to_owned(),
            },
            _ => {
                let states = self.signature.output(Role::States);
                let states = states.or(self.signature.output(Role::PenultimateStates));
                let encoder = fixed(states, 2).and_then(Encoder::of_width);
                encoder.map_or("CLIP text encoder", Encoder::name).to_owned()
            }
        };
        match fixed(self.signature.input(Role::Latents), 1) {
            Some(channels) => format!("{known}, {channels} channels in"),
            None => known,
        }
    }

    /// What a U-Net takes beside latents and time.
    fn inputs(&self) -> Inputs {
        let input = |role| self.signature.input(role);
        Inputs {
            states: fixed(input(Role::States), 2),
            pooled: input(Role::Pooled).is_some(),
            time_ids: fixed(input(Role::TimeIds), 1),
            class_labels: input(Role::ClassLabels).is_some(),
        }
    }

    /// Where its graph came from, for people.
    pub fn graph_origin(&self) -> &str {
        &self.graph_origin
    }

    /// Where its weights came from, for people.
    pub fn weights_origin(&self) -> &str {
        &self.weights_origin
    }

    /// Its graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its weights as they are stored, without what LoRA files add to them.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// What LoRA files take while it is open.
    pub(crate) fn added_cost(&self) -> Option<&lora::Cost> {
        self.added.as_ref().map(|added| &added.cost)
    }

    /// What its inputs and outputs are for.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The same component, computed in 32-bit floats; none where it is so already.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a graph that cannot be made so.
    pub(crate) fn in_f32(&self) -> Result<Option<Self>, Error> {
        let wide = self.graph.in_f32()?;
        Ok(wide.map(|graph| Self { graph: Arc::new(graph), ..self.clone() }))
    }

    /// The graph with its weights, ready to be opened.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when weights and graph do not fit.
    pub fn bind(&self) -> Result<BoundGraph, Error> {
        self.bind_graph(Graph::clone(&self.graph))
    }

    /// A graph that was made of this part's, with its weights.
    pub(crate) fn bind_graph(&self, graph: Graph) -> Result<BoundGraph, Error> {
        graph.bind(self.adapted_weights()?)
    }

    /// Its weights with what LoRA files add to them, which is in memory for as long as these are.
    pub(crate) fn adapted_weights(&self) -> Result<Arc<Weights>, Error> {
        match &self.added {
            Some(added) => added.to(&self.weights),
            None => Ok(Arc::clone(&self.weights)),
        }
    }

    /// The same for counting alone: what LoRA files change has no bytes.
    pub(crate) fn bind_to_count(&self, graph: Graph) -> Result<BoundGraph, Error> {
        graph.bind(match self.added_cost() {
            Some(cost) => Arc::new(self.weights.with_private(cost.tensors.iter().map(String::as_str))),
            None => Arc::clone(&self.weights),
        })
    }
}

impl Added {
    fn new(component: Component, weights: &Weights, loras: Arc<Vec<(Lora, f32)>>) -> Result<Self, Error> {
        let borrowed: Vec<(&Lora, f32)> = loras.iter().map(|(lora, strength)| (lora, *strength)).collect();
        let cost = lora::cost(component, weights, &borrowed)?;
        Ok(Self { component, loras, cost, weights: Mutex::default() })
    }

    /// These weights with the files added to them.
    fn to(&self, weights: &Weights) -> Result<Arc<Weights>, Error> {
        let mut known = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = known.upgrade() {
            return Ok(weights);
        }
        let borrowed: Vec<(&Lora, f32)> =
            self.loras.iter().map(|(lora, strength)| (lora, *strength)).collect();
        let weights = Arc::new(lora::apply(self.component, weights, &borrowed)?.0);
        *known = Arc::downgrade(&weights);
        Ok(weights)
    }
}

impl Deref for TextEncoderPart {
    type Target = Part;

    fn deref(&self) -> &Part {
        &self.part
    }
}

impl TextEncoderPart {
    fn new(part: Part, vocabulary: Vocabulary, special: SpecialTokens, context: usize) -> Self {
        Self { part, vocabulary, special, context, words: Vec::new(), derived: None }
    }

    /// The same, whose graph was derived from a configuration.
    fn derived_from(mut self, config: &clip::Config, states: clip::States, is_pooled: bool) -> Self {
        self.derived = Some(Derived { config: config.clone(), states, is_pooled });
        self
    }

    /// The same network, with the tokenizer of the one that it replaces.
    fn with_tokenizer_of(self, replaced: &Self) -> Self {
        Self {
            vocabulary: replaced.vocabulary.clone(),
            special: replaced.special,
            context: self.context.min(replaced.context),
            ..self
        }
    }

    /// How many tokens a prompt has, special tokens included, where the graph takes any number.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The length of the files that its tokenizer is made of.
    pub(crate) fn vocabulary_bytes(&self) -> usize {
        match &self.vocabulary {
            Vocabulary::Clip => CLIP_BYTES,
            Vocabulary::Json(json) => json.len(),
            Vocabulary::Merges { vocabulary, merges } => vocabulary.len() + merges.len(),
        }
    }

    /// Whether it has words of its own.
    pub(crate) fn has_words(&self) -> bool {
        !self.words.is_empty()
    }

    /// The files that its tokenizer is made of, as a bundle's manifest lists them: name and bytes.
    pub(crate) fn tokenizer_files(&self) -> Vec<(&'static str, &[u8])> {
        match &self.vocabulary {
            Vocabulary::Clip => Vec::new(),
            Vocabulary::Json(json) => vec![("tokenizer.json", json)],
            Vocabulary::Merges { vocabulary, merges } => {
                vec![("vocab.json", vocabulary), ("merges.txt", merges)]
            }
        }
    }

    /// Whether there are words that it has no tokens for: CLIP's own vocabulary has one for every byte.
    pub(crate) fn may_lack_words(&self) -> bool {
        matches!(self.vocabulary, Vocabulary::Json(_))
    }

    /// The special tokens around its prompts.
    pub(crate) fn special_tokens(&self) -> SpecialTokens {
        self.special
    }

    /// Its tokenizer, for prompts of `context` tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when its files are not a tokenizer.
    pub fn tokenizer(&self, context: usize) -> Result<Tokenizer, Error> {
        let mut tokenizer = match &self.vocabulary {
            Vocabulary::Clip => Tokenizer::clip(context, self.special),
            Vocabulary::Json(json) => Tokenizer::from_bytes(json, context, self.special),
            Vocabulary::Merges { vocabulary, merges } => {
                Tokenizer::from_vocabulary(vocabulary, merges, context, self.special)
            }
        }?;
        for (word, count) in &self.words {
            tokenizer.add_word(word, *count)?;
        }
        Ok(tokenizer)
    }
}

/// What a folder is that holds no model.
fn not_a_model(folder: &Path) -> Error {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let ending = |ends: &[&str]| {
        let found = names.iter().filter(|name| ends.iter().any(|end| name.to_lowercase().ends_with(end)));
        found.take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ")
    };
    let (weights, pickles, graphs) =
        (ending(&[".safetensors", ".gguf"]), ending(&[".ckpt", ".pt", ".pth", ".bin"]), ending(&[".onnx"]));
    let class = folder::class_of(folder);
    let has = |name: &str| names.iter().any(|known| known == name);
    let (got, help) = if let Some(class) = class {
        let parent = folder.parent().unwrap_or(folder).display().to_string();
        (format!("a single component ({class})"), format!("give the folder that it is a part of: {parent}"))
    } else if has("snapshots") && has("blobs") {
        let revisions = fs::read_dir(folder.join("snapshots")).into_iter().flatten().filter_map(Result::ok);
        let first = revisions.map(|entry| entry.path().display().to_string()).next();
        (
            "the cache of a model hub".to_owned(),
            format!("give one of its snapshots: {}", first.unwrap_or_default()),
        )
    } else if !weights.is_empty() {
        (format!("a folder with {weights}"), "give one of these files".to_owned())
    } else if !graphs.is_empty() {
        let help =
            "each graph belongs in a folder of its component: unet, text_encoder, vae_decoder, vae_encoder";
        (format!("a folder with {graphs}"), help.to_owned())
    } else if !pickles.is_empty() {
        let help = "PyTorch pickles can run code when they are opened: take the model's .safetensors file, or convert it in \
                    Python with torch.load(..., weights_only=True) and safetensors.torch.save_file";
        (format!("a folder with {pickles}"), help.to_owned())
    } else if names.is_empty() {
        ("an empty folder".to_owned(), "download the model again".to_owned())
    } else {
        let some = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
        (format!("a folder with {some}"), "give the folder that holds model_index.json".to_owned())
    };
    Error::new(
        ErrorKind::Model,
        format!(
            "model {}: expected a {} (a bundle), a unet/config.json (a diffusers folder) or a unet/model.onnx (an ONNX \
             folder), got {got}",
            folder.display(),
            manifest::FILE_NAME
        ),
    )
    .help(help)
}

/// [`ErrorKind::Usage`] for a variant of a model that has one form alone.
fn no_variant(variant: Option<&str>, model: &str) -> Result<(), Error> {
    match variant {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::Usage,
            format!("variant {name}: expected a diffusers folder or an ONNX folder, got {model}"),
        )),
    }
}

/// The size of a dimension, where it is fixed.
fn fixed(port: Option<&Port>, axis: usize) -> Option<usize> {
    match port?.dims.get(axis) {
        Some(Dim::Fixed(size)) => Some(*size),
        _ => None,
    }
}

/// The size of the images of a U-Net that draws only one.
fn fixed_size(latents: &Port, factor_px: u32) -> Result<Option<PixelSize>, Error> {
    let side_px = |axis: usize| match latents.dims[axis] {
        Dim::Fixed(cells) => u32::try_from(cells).ok().and_then(|cells| cells.checked_mul(factor_px)),
        Dim::Free(_) => None,
    };
    match (side_px(3), side_px(2)) {
        (Some(width_px), Some(height_px)) => PixelSize::new(width_px, height_px)
            .map(Some)
            .map_err(|error| Error::new(ErrorKind::Model, format!("unet: input {latents}")).source(error)),
        _ => Ok(None),
    }
}

/// The bytes of a text that is read whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    read_at_most(path, MAX_TEXT_BYTES)
}

/// The same of a file that has no more than so many.
fn read_at_most(path: &Path, most_bytes: u64) -> Result<Vec<u8>, Error> {
    let refuse = |error: io::Error| {
        Error::new(ErrorKind::Model, path.display().to_string()).source(error).in_file(path)
    };
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(most_bytes + 1).read_to_end(&mut bytes))
        .map_err(refuse)?;
    if read as u64 > most_bytes {
        return Err(Error::new(
            ErrorKind::Model,
            format!("{}: expected at most {most_bytes} bytes, got more", path.display()),
        )
        .in_file(path));
    }
    Ok(bytes)
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::engine::{Session, SessionOptions, TensorRef};
    use crate::recipe::Recipe;
    use crate::request::Request;

    /// As `export/golden_clip_skip.py` makes it.
    fn encoder(config: &clip::Config, states: clip::States, weights: &Weights) -> TextEncoderPart {
        let graph = config.graph(states, states == clip::States::Penultimate).unwrap();
        let is_pooled = states == clip::States::Penultimate;
        let part = Part::new("text_encoder", String::new(), String::new(), graph, Arc::new(weights.clone()));
        let special = SpecialTokens { bos: 0, eos: 31, pad: 31 };
        TextEncoderPart::new(part.unwrap(), Vocabulary::Clip, special, 8)
            .derived_from(config, states, is_pooled)
    }

    fn states(encoder: &TextEncoderPart, ids: &[i64]) -> Vec<f32> {
        let name =
            encoder.signature().output(Role::States).or(encoder.signature().output(Role::PenultimateStates));
        let mut session =
            Session::open(encoder.bind().unwrap(), &SessionOptions::new(NonZeroUsize::MIN)).unwrap();
        let shape = [1, ids.len()];
        let inputs = [("input_ids", TensorRef::new(&shape, ids))];
        session.compute(&inputs, &[&name.unwrap().name]).unwrap().remove(0).data
    }

    /// States as diffusers gives them with `clip_skip`, of random weights.
    #[test]
    fn skipped_layers_give_the_states_of_diffusers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip_skip.safetensors");
        let weights = Weights::open(&[path]).unwrap();
        let bytes = |name: &str| weights.get(name).unwrap_or_else(|| panic!("{name}")).to_bytes();
        let ids: Vec<i64> =
            bytes("ids").chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap())).collect();
        let config = clip::Config {
            vocab_size: 32,
            hidden_size: 16,
            intermediate_size: 32,
            projection_dim: 16,
            num_hidden_layers: 4,
            num_attention_heads: 2,
            max_position_embeddings: 8,
            eos_token_id: 31,
            ..clip::Config::default()
        };
        for (of, usual, prefix) in
            [(clip::States::Last, 1, "skip"), (clip::States::Penultimate, 2, "xl_skip")]
        {
            let mut model = Model::built_in().unwrap();
            let plain = encoder(&config, of, &weights);
            let mut before = states(&plain, &ids);
            for clip_skip in usual..=4 {
                model.text_encoders = vec![plain.clone()];
                model.skip_clip_layers(clip_skip).unwrap();
                assert_eq!(model.clip_skip(), Some(clip_skip));
                let got = states(&model.text_encoders[0], &ids);
                let expected: Vec<f32> = bytes(&format!("{prefix}.{clip_skip}"))
                    .chunks_exact(4)
                    .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
                    .collect();
                let far = |one: &[f32], other: &[f32]| {
                    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
                };
                assert_eq!(got.len(), expected.len());
                assert!(far(&got, &expected) < 1e-4, "{prefix}.{clip_skip}: {}", far(&got, &expected));
                // The layer that is usual is what the graph gives without, and every other is another.
                assert_eq!(far(&got, &before) < 1e-4, clip_skip == usual, "{prefix}.{clip_skip}");
                before = got;
            }
            model.text_encoders = vec![plain];
            for clip_skip in [0, usual - 1, 5, usize::MAX] {
                let error = model.skip_clip_layers(clip_skip).expect_err("no such layer");
                assert_eq!(error.kind(), ErrorKind::Usage);
                let expected = format!(
                    "clip skip: expected {usual} to 4 for this model's text_encoder, got {clip_skip}"
                );
                assert!(error.to_string().starts_with(&expected), "{error}");
            }
        }
    }

    /// In graphs of fixed shapes nothing is left that computes sizes, and they compute what the others do.
    #[test]
    fn fixed_shapes_leave_no_sizes_to_compute() {
        use crate::graph::Dialect;
        use crate::graph::proto::ModelProto;
        use prost::Message as _;

        let mut model = Model::built_in().unwrap();
        let size = PixelSize::new(128, 64).unwrap();
        model.fix_shapes(size).unwrap();
        assert_eq!(model.manifest().fixed_size, Some(size));
        let sample = model.unet().signature().input(Role::Latents).unwrap().clone();
        assert_eq!(sample.signature(), "F32[1, 16, 4, 8]");
        fn parts(model: &Model) -> impl Iterator<Item = &Part> {
            let parts = model.text_encoders.iter().map(|encoder| &encoder.part);
            parts.chain([&model.unet, &model.vae_decoder]).chain(&model.vae_encoder)
        }
        let free = Model::built_in().unwrap();
        for (part, free) in parts(&model).zip(parts(&free)) {
            for port in part.graph.inputs().iter().chain(part.graph.outputs()) {
                assert!(port.dims.iter().all(|dim| matches!(dim, Dim::Fixed(_))), "{}: {port}", part.name);
            }
            let count = |graph: &Graph, operator: &str| {
                let nodes = ModelProto::decode(&graph.encode()[..]).unwrap().graph.unwrap().node;
                nodes.iter().filter(|node| node.op_type() == operator).count()
            };
            let standard = part.graph().clone().in_dialect(Dialect::Standard);
            for operator in ["Shape", "ConstantOfShape", "Trilu"] {
                assert_eq!(count(&standard, operator), 0, "{}: {operator}", part.name);
            }
            // The VAE of this model has nothing to compute them for.
            let free = free.graph().clone().in_dialect(Dialect::Standard);
            assert_eq!(count(&free, "Shape") > 0, !part.name.starts_with("vae"), "{}", part.name);
        }
        // They are fixed once, and to whole cells.
        for wrong in [PixelSize::new(64, 64).unwrap(), PixelSize::new(128, 68).unwrap()] {
            assert!(model.fix_shapes(wrong).is_err(), "{wrong}");
            assert_eq!(model.manifest().fixed_size, Some(size));
        }

        let draw = |model: &Model, dialect: Option<Dialect>| {
            let options = crate::pipeline::Options {
                session: SessionOptions { dialect, ..SessionOptions::new(NonZeroUsize::MIN) },
                plan: None,
            };
            let mut pipeline = crate::pipeline::Pipeline::open(model, &options).unwrap();
            let draft = Recipe {
                prompt: "a red apple".into(),
                size: Some(size),
                steps: Some(2),
                seed: Some(1),
                ..Recipe::default()
            };
            let request = pipeline.request(draft).unwrap();
            pipeline.denoise(&request, |_| std::ops::ControlFlow::Continue(())).unwrap()
        };
        let expected = draw(&Model::built_in().unwrap(), None);
        let norm = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
        for dialect in [None, Some(Dialect::Standard)] {
            let got = draw(&model, dialect);
            let off = got.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(off < 1e-4 * norm, "{dialect:?}: {}", off / norm);
        }
    }

    #[test]
    fn graphs_that_came_with_a_model_have_no_layers_to_skip() {
        let mut model = Model::built_in().unwrap();
        let error = model.skip_clip_layers(2).expect_err("a ready-made graph");
        assert_eq!((error.kind(), model.clip_skip()), (ErrorKind::Model, None));
        assert!(error.to_string().contains("states of one layer alone"), "{error}");
    }

    /// Of a U-Net that takes whole timesteps, as of many ONNX folders, the steps are counted that are not.
    #[test]
    fn timesteps_that_are_rounded_are_counted() {
        let mut model = Model::built_in().unwrap();
        let rounded = |model: &Model, sampler: &str, schedule: &str, steps: usize| {
            let draft = Recipe {
                sampler: Some(sampler.parse().unwrap()),
                schedule: Some(schedule.parse().unwrap()),
                steps: Some(steps),
                ..Recipe::default()
            };
            Request::new(draft, model).unwrap().warnings(model).unwrap().rounded_timesteps
        };
        assert_eq!(rounded(&model, "euler", "karras", 10), 0);
        for dtype in [Dtype::I64, Dtype::I32] {
            let inputs = &mut model.unet.signature.inputs;
            inputs.iter_mut().find(|input| input.role == Role::Timestep).unwrap().port.dtype = dtype;
            // The first and the last are whole.
            assert_eq!(rounded(&model, "euler", "karras", 10), 8);
            let draft = Recipe { steps: Some(11), schedule: "linspace".parse().ok(), ..Recipe::default() };
            let draft = Recipe { sampler: "euler".parse().ok(), ..draft };
            let warnings = Request::new(draft, &model).unwrap().warnings(&model).unwrap();
            let expected = "timesteps: 9 of 11 are fractions and are rounded, because this model's U-Net takes integers only; \
                            --sampler ddim, or --schedule trailing or simple, has integer timesteps";
            assert_eq!(warnings.lines(|setting| format!("--{setting}")), [expected]);
            assert_eq!(rounded(&model, "euler", "linspace", 11), 9);
            assert_eq!(rounded(&model, "euler", "trailing", 10), 0);
            assert_eq!(rounded(&model, "ddim", "linspace", 11), 0);
            assert_eq!(rounded(&model, "dpm++2m", "karras", 10), 0);
        }
    }
}
