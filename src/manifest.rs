//! The manifest of a bundle, `calotype.json`: everything that a model says of itself.
//! It knows the form of each number, and nothing of the files behind the names.

mod compute;
mod preview;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Component as PathPart, Path};

use serde::{Deserialize, Serialize};

pub use self::compute::{Compute, ComputeRecord};
pub use self::preview::PreviewFactors;
use crate::family::{AESTHETIC_TIME_IDS, Purpose};
use crate::graph::{Dim, Graph, Port};
use crate::guidance::Guidance;
use crate::noise_model::{Discrete, NoiseModel, TimeInput};
use crate::prediction::Prediction;
use crate::sampler::{Method, S_CHURN, SamplerKind, Sampling};
use crate::schedule::{Betas, NoiseCurve, Schedule, ScheduleKind, Spacing};
use crate::signature::{Role, Signature};
use crate::tensor::{LatentShape, PixelSize};
use crate::tokenizer::{CONTEXTS, SpecialTokens};
use crate::weights::Dtype;
use crate::{Error, ErrorKind, json};

/// The name of the manifest's file in its bundle.
pub const FILE_NAME: &str = "calotype.json";
/// The only layout of the manifest so far.
const FORMAT: u32 = 1;
/// The most latent channels that are believed; published models have 4 to 128.
const MAX_CHANNELS: usize = 1024;

/// What a model says of itself: the numbers that its graphs do not tell.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What the model is called.
    pub name: String,
    /// Its licence, as an SPDX expression; `NOASSERTION` where its files do not say.
    pub licence: String,
    /// The noise that the model was trained on.
    pub noise: NoiseModel,
    /// What the U-Net predicts.
    pub prediction: Prediction,
    /// How latents relate to images.
    pub latents: LatentSpace,
    /// How previews are made from latents, where that is known.
    pub preview: Option<PreviewFactors>,
    /// The words of the captions that the model was trained on, in lower case, where it has few enough to list them.
    pub trained_words: Vec<String>,
    /// Whether the absent negative prompt is zeros instead of the states of an empty text (Stable Diffusion XL).
    pub zero_negative: bool,
    /// Whether the U-Net takes the guidance scale as an input (latent consistency models), and no negative prompt;
    /// its graph says so.
    pub embedded_guidance: bool,
    /// The only size that the U-Net's graph can draw, if it is so.
    pub fixed_size: Option<PixelSize>,
    /// What the U-Net draws from beside the prompt; its graph says so.
    pub conditions: Conditions,
    /// Whether the model can turn images into latents: whether it has a VAE encoder.
    pub encodes: bool,
    /// The control networks that were put beside the U-Net.
    pub controls: Vec<ControlKind>,
    /// How noise gets onto the small image, if the model enlarges images.
    pub low_res: Option<LowRes>,
    /// What a request gets where it does not say.
    pub defaults: Defaults,
}

/// A control network that was put beside a U-Net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlKind {
    /// What requests call it.
    pub name: String,
    /// Of a T2I-Adapter, what the sides of images must be multiples of; nothing for a ControlNet.
    pub adapter_px: Option<u32>,
}

/// What a U-Net draws from beside the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conditions {
    /// Nothing; it may start from an image.
    #[default]
    Prompt,
    /// Nothing, but it must start from an image, of which it takes an aesthetic score (Stable Diffusion XL's refiner;
    /// Podell et al. 2023, section 2.5).
    Refiner,
    /// A mask of what is to be repainted, and the latents of the image around it.
    Inpainting,
    /// The latents of an image that the prompt says how to edit (Brooks et al. 2023, "InstructPix2Pix").
    Editing,
    /// A small image with a known amount of noise, which is enlarged.
    Upscaling,
}

impl Conditions {
    /// Those of the U-Net with this signature, on latents of `channels`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a number of input channels that is none of these.
    pub fn of(unet: &Signature, channels: usize) -> Result<Self, Error> {
        let fixed = |role: Role| match unet.input(role).map(|port| &port.dims[1]) {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        };
        let is_upscaler = unet.input(Role::ClassLabels).is_some();
        let is_refiner = fixed(Role::TimeIds) == Some(AESTHETIC_TIME_IDS);
        let input = fixed(Role::Latents).unwrap_or(channels);
        let all = [Self::Prompt, Self::Inpainting, Self::Editing, Self::Upscaling];
        let fits = |one: &Self| {
            input == channels + one.channels(channels) && (*one == Self::Upscaling) == is_upscaler
        };
        match all.into_iter().find(fits) {
            Some(Self::Prompt) if is_refiner => Ok(Self::Refiner),
            Some(conditions) => Ok(conditions),
            None => {
                let labels = if is_upscaler { "class labels" } else { "no class labels" };
                Err(Error::new(
                    ErrorKind::Model,
                    format!(
                        "unet: expected {channels} input channels, or {} (inpainting), {} (editing) or, with class \
                         labels, {} (enlarging), got {input} and {labels}",
                        channels + Self::Inpainting.channels(channels),
                        channels + Self::Editing.channels(channels),
                        channels + Self::Upscaling.channels(channels),
                    ),
                ))
            }
        }
    }

    /// How many channels the U-Net takes beside latents of `channels`.
    pub(crate) fn channels(self, channels: usize) -> usize {
        let purpose = match self {
            Self::Prompt | Self::Refiner => Purpose::Generate,
            Self::Inpainting => Purpose::Inpaint,
            Self::Editing => Purpose::Edit,
            Self::Upscaling => Purpose::Upscale,
        };
        purpose.added_channels(channels)
    }
}

/// How noise gets onto the small image that is enlarged.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRes {
    /// The recipe of `curve`.
    pub betas: Betas,
    /// The noise levels that the U-Net was trained to be told of.
    pub curve: NoiseCurve,
    /// The highest level, in timesteps of the curve, that makes sense.
    pub max_level: usize,
}

impl LowRes {
    /// Noise levels of a recipe.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] where they make no curve, or one that ends before `max_level`.
    pub fn new(betas: Betas, train_timesteps: usize, max_level: usize) -> Result<Self, Error> {
        let curve = NoiseCurve::new(betas.clone(), train_timesteps)?;
        if max_level >= curve.len() {
            return Err(Error::new(
                ErrorKind::Model,
                format!("noise level: expected at most {}, got up to {max_level}", curve.len() - 1),
            ));
        }
        Ok(Self { betas, curve, max_level })
    }
}

/// The files of a bundle.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The graphs and their weights.
    pub components: Components,
    /// Size and hash of every file of the bundle but the manifest.
    pub files: BTreeMap<String, FileRecord>,
}

/// The graphs of a latent diffusion model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Components {
    /// Token ids -> states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<Component>,
    /// Token ids -> more states, beside the first encoder's, and the pooled prompt (Stable Diffusion XL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder_2: Option<Component>,
    /// Noisy latents, time and states -> prediction.
    pub unet: Component,
    /// Image -> latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae_encoder: Option<Component>,
    /// Latents -> image.
    pub vae_decoder: Component,
}

impl Components {
    /// Every component there is, with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Component)> {
        [
            ("text_encoder", self.text_encoder.as_ref()),
            ("text_encoder_2", self.text_encoder_2.as_ref()),
            ("unet", Some(&self.unet)),
            ("vae_encoder", self.vae_encoder.as_ref()),
            ("vae_decoder", Some(&self.vae_decoder)),
        ]
        .into_iter()
        .filter_map(|(name, component)| Some((name, component?)))
    }
}

/// One graph, its weights, and the signature that it promises.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// The graph's file: ONNX without weights, gzipped.
    pub graph: String,
    /// The safetensors files that fill it.
    pub weights: Vec<String>,
    /// What it is fed, by name.
    pub inputs: BTreeMap<String, PortContract>,
    /// What it gives, by name.
    pub outputs: BTreeMap<String, PortContract>,
    /// What makes its token ids, if it is a text encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerFiles>,
    /// How it computes, if it does in integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<ComputeRecord>,
}

impl Component {
    /// That of a graph: what its inputs and outputs are, with the files that it and its weights lie in.
    pub fn new(
        graph_file: String,
        weights: Vec<String>,
        graph: &Graph,
        tokenizer: Option<TokenizerFiles>,
    ) -> Self {
        let contracts =
            |ports: &[Port]| ports.iter().map(|port| (port.name.clone(), PortContract::of(port))).collect();
        Self {
            graph: graph_file,
            weights,
            inputs: contracts(graph.inputs()),
            outputs: contracts(graph.outputs()),
            tokenizer,
            compute: None,
        }
    }

    /// Compares a graph with the signature promised here; `name` says in messages which one it is.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the first input or output that is missing, unexpected or different.
    pub fn check(&self, name: &str, graph: &Graph) -> Result<(), Error> {
        for (side, promised, got) in
            [("input", &self.inputs, graph.inputs()), ("output", &self.outputs, graph.outputs())]
        {
            for (port_name, contract) in promised {
                let found = got.iter().find(|port| port.name == *port_name).map(PortContract::of);
                if found.as_ref() != Some(contract) {
                    let found = found.map_or("none of that name".to_owned(), |found| found.to_string());
                    return Err(Error::new(
                        ErrorKind::Model,
                        format!("{name}: {side} {port_name}: expected {contract}, got {found}"),
                    )
                    .help("manifest does not match graph"));
                }
            }
            if let Some(extra) = got.iter().find(|port| !promised.contains_key(&port.name)) {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("{name}: {side} {extra}: expected only what the manifest lists, got this too"),
                ));
            }
        }
        Ok(())
    }
}

/// Type and dimensions of an input or output.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PortContract {
    /// The element type, `F32`.
    #[serde(with = "dtype_name")]
    pub dtype: Dtype,
    /// Numbers for fixed dimensions, names for free ones.
    pub dims: Vec<DimContract>,
}

impl PortContract {
    fn of(port: &Port) -> Self {
        let dims = port.dims.iter().map(|dim| match dim {
            Dim::Fixed(size) => DimContract::Fixed(*size),
            Dim::Free(name) => DimContract::Free(name.clone()),
        });
        Self { dtype: port.dtype, dims: dims.collect() }
    }
}

impl fmt::Display for PortContract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims = self.dims.iter().map(|dim| match dim {
            DimContract::Fixed(size) => size.to_string(),
            DimContract::Free(name) => name.clone(),
        });
        write!(f, "{}[{}]", self.dtype, dims.collect::<Vec<_>>().join(", "))
    }
}

/// One dimension of a [`PortContract`].
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum DimContract {
    /// Always this many.
    Fixed(usize),
    /// Any number, by this name.
    Free(String),
}

/// The tokenizer's files and what a token sequence is made of.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerFiles {
    /// A `tokenizer.json`, or a `vocab.json` and a `merges.txt`; none for CLIP's own, which calotype has.
    pub files: Vec<String>,
    /// Tokens per prompt, special tokens included.
    pub context: usize,
    /// The token before the prompt.
    pub bos: u32,
    /// The token after it.
    pub eos: u32,
    /// The token that fills the rest.
    pub pad: u32,
}

impl TokenizerFiles {
    /// The special tokens, as the tokenizer takes them.
    pub fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens { bos: self.bos, eos: self.eos, pad: self.pad }
    }
}

/// How latents relate to images.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSpace {
    /// Values per cell.
    pub channels: usize,
    /// Pixels per cell, along each side.
    pub factor_px: u32,
    /// What the VAE's latents are multiplied by for the U-Net, once `shift` is subtracted.
    pub scale: f64,
    /// The VAE's latents' mean.
    pub shift: f64,
    /// Where they are normalised by channels, as Playground 2.5's are, mean and deviation of each: latents are then
    /// `(x - mean) * scale / deviation`. Empty elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub normalised: Vec<[f64; 2]>,
}

impl LatentSpace {
    /// What a VAE encoder gives as the U-Net takes it.
    pub(crate) fn scaled(&self, mut encoded: Vec<f32>) -> Vec<f32> {
        let len = (encoded.len() / self.channels).max(1);
        for (channel, values) in encoded.chunks_mut(len).enumerate() {
            let (scale, shift) = self.of_channel(channel);
            values.iter_mut().for_each(|x| *x = ((f64::from(*x) - shift) * scale) as f32);
        }
        encoded
    }

    /// What a VAE decoder takes, of latents as the U-Net gives them.
    pub(crate) fn unscaled<'a>(&'a self, latents: &'a [f32]) -> impl Iterator<Item = f64> + Clone + 'a {
        let len = (latents.len() / self.channels).max(1);
        latents.chunks(len).enumerate().flat_map(|(channel, values)| {
            let (scale, shift) = self.of_channel(channel);
            values.iter().map(move |x| f64::from(*x) / scale + shift)
        })
    }

    /// Scale and shift of a channel.
    fn of_channel(&self, channel: usize) -> (f64, f64) {
        match self.normalised.get(channel) {
            Some([mean, deviation]) => (self.scale / deviation, *mean),
            None => (self.scale, self.shift),
        }
    }

    /// The latents of an image; [`ErrorKind::Usage`] for a size that is not made of whole cells, naming the nearest.
    pub fn shape(&self, size: PixelSize) -> Result<LatentShape, Error> {
        let factor_px = self.factor_px;
        if factor_px == 0 {
            return Err(Error::new(ErrorKind::Model, "latents: factor_px: expected a number above 0, got 0"));
        }
        if !size.width_px().is_multiple_of(factor_px) || !size.height_px().is_multiple_of(factor_px) {
            let near = |side_px: u32, up: bool| {
                let cells = if up { side_px.div_ceil(factor_px) } else { side_px / factor_px };
                cells.max(1) * factor_px
            };
            let nearest = |up| format!("{}x{}", near(size.width_px(), up), near(size.height_px(), up));
            let (below, above) = (nearest(false), nearest(true));
            let help =
                if below == above { format!("try {above}") } else { format!("try {below} or {above}") };
            return Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected multiples of {factor_px} pixels, got {size}"),
            )
            .help(help));
        }
        Ok(LatentShape {
            channels: self.channels,
            height_cells: (size.height_px() / factor_px) as usize,
            width_cells: (size.width_px() / factor_px) as usize,
        })
    }
}

/// What a request gets where it does not say.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The size that the model was trained on.
    pub size: PixelSize,
    /// How many steps.
    pub steps: usize,
    /// The guidance scale.
    pub guidance: f64,
    /// The sampling method.
    pub sampler: Method,
    /// The noise levels that go with it, where the model's files name others than evenly spaced timesteps.
    pub schedule: Option<ScheduleKind>,
}

/// What is known of a file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its length.
    pub len_bytes: u64,
    /// The SHA-256 of its bytes, in lower-case hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// What requests and pipelines compare: the same for the same model, and for no other but by chance.
    pub(crate) fn identity(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        format!("{self:?}").hash(&mut hash);
        hash.finish()
    }

    /// The latents of an image of this size.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a size that is not a multiple of the latents' cells, or not the one that the graph is for.
    pub(crate) fn shape(&self, size: PixelSize) -> Result<LatentShape, Error> {
        match self.fixed_size {
            Some(fixed) if fixed != size => Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected {fixed}, the only size of this model's graph, got {size}"),
            )),
            _ => self.latents.shape(size),
        }
    }

    /// Reads the manifest of a bundle and its table of contents; `origin` says in messages where they came from.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for JSON that is not a manifest, naming the field, and for numbers no model can have.
    pub fn parse(origin: &str, json: &[u8]) -> Result<(Self, Contents), Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{origin}: {problem}"));
        let json = json::standard(origin, json)?;
        let mut deserializer = serde_json::Deserializer::from_slice(&json);
        let file: File = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            refuse(format!("expected a manifest, got an error at {}", error.path()))
                .source(error.into_inner())
        })?;
        deserializer
            .end()
            .map_err(|error| refuse("expected a manifest, got data after it".into()).source(error))?;
        if file.format != FORMAT {
            return Err(refuse(format!("format: expected {FORMAT}, got {}", file.format))
                .help("a newer version of calotype may support it"));
        }

        let at = |place: &str, error: Error| refuse(place.to_owned()).source(error);
        let noise = match (file.curve, file.noise) {
            (Some(curve), None) => curve.model().map_err(|e| at("curve", e))?,
            (None, Some(noise)) => noise.model().map_err(|e| at("noise", e))?,
            (Some(_), Some(_)) => return Err(refuse("expected either curve or noise, got both".into())),
            (None, None) => return Err(refuse("missing field `curve`, or `noise` in its place".into())),
        };
        let [width_px, height_px] = file.defaults.size;
        let sampling: Sampling = file.defaults.sampler.parse().map_err(|e| at("defaults.sampler", e))?;
        let schedule = file.defaults.schedule.as_deref().map(str::parse).transpose();
        let defaults = Defaults {
            size: PixelSize::new(width_px, height_px).map_err(|e| at("defaults.size", e))?,
            steps: file.defaults.steps,
            guidance: file.defaults.guidance,
            sampler: sampling.method,
            schedule: schedule.map_err(|e| at("defaults.schedule", e))?.or(sampling.schedule),
        };
        let manifest = Self {
            name: file.name,
            licence: file.licence,
            noise,
            prediction: file.prediction.into(),
            latents: file.latents,
            preview: file.preview,
            trained_words: file.trained_words,
            zero_negative: file.zero_negative,
            embedded_guidance: false,
            fixed_size: None,
            conditions: Conditions::default(),
            encodes: false,
            controls: Vec::new(),
            low_res: file.low_res.map(LowResFields::low_res).transpose().map_err(|e| at("low_res", e))?,
            defaults,
        };
        manifest.check().map_err(|error| refuse_with(origin, error))?;

        let contents = Contents { components: file.components, files: file.files };
        contents.check().map_err(refuse)?;
        Ok((manifest, contents))
    }

    /// The bytes of a bundle's manifest.
    pub fn to_json(&self, contents: &Contents) -> Vec<u8> {
        let file = File {
            format: FORMAT,
            name: self.name.clone(),
            licence: self.licence.clone(),
            components: contents.components.clone(),
            curve: CurveFields::of(&self.noise),
            noise: NoiseFields::of(&self.noise),
            prediction: self.prediction.into(),
            latents: self.latents.clone(),
            preview: self.preview.clone(),
            trained_words: self.trained_words.clone(),
            zero_negative: self.zero_negative,
            low_res: self.low_res.as_ref().map(LowResFields::of),
            defaults: DefaultFields {
                size: [self.defaults.size.width_px(), self.defaults.size.height_px()],
                steps: self.defaults.steps,
                guidance: self.defaults.guidance,
                sampler: self.defaults.sampler.to_string(),
                schedule: self.defaults.schedule.as_ref().map(ToString::to_string),
            },
            files: contents.files.clone(),
        };
        let mut json = serde_json::to_vec_pretty(&file).expect("names and numbers are JSON");
        json.push(b'\n');
        json
    }

    /// Whether the numbers are ones that a model can have; what a user does not type must not be what is wrong with it.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the field.
    pub fn check(&self) -> Result<(), Error> {
        let at = |place: &str, error: Error| Error::new(ErrorKind::Model, place).source(error);
        let LatentSpace { channels, factor_px, scale, shift, ref normalised } = self.latents;
        let is_normal =
            |[mean, deviation]: &[f64; 2]| mean.is_finite() && deviation.is_finite() && *deviation > 0.0;
        if !(normalised.is_empty() || normalised.len() == channels && normalised.iter().all(is_normal)) {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "latents.normalised: expected a mean and a deviation above 0 of each of {channels} channels, got {normalised:?}"
                ),
            ));
        }
        let positive = scale.is_finite() && scale > 0.0 && shift.is_finite();
        if !(1..=MAX_CHANNELS).contains(&channels) || factor_px == 0 || !positive {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "latents: expected 1 to {MAX_CHANNELS} channels and positive numbers, got {channels} channels, \
                     {factor_px} pixels, scale {scale}, shift {shift}"
                ),
            ));
        }
        if let Some(problem) = self.preview.as_ref().and_then(|preview| preview.problem(channels)) {
            return Err(Error::new(ErrorKind::Model, problem));
        }
        self.noise.check().map_err(|e| at("noise", e))?;
        self.prediction.check_noise(&self.noise)?;
        let Defaults { size, steps, guidance, .. } = self.defaults;
        self.latents.shape(size).map_err(|e| at("defaults.size", e))?;
        self.schedule(None, None, steps).map_err(|e| at("defaults.steps", e))?;
        Guidance::new(guidance).map_err(|e| at("defaults.guidance", e))?;
        Ok(())
    }

    /// The levels of a run: those of `kind` or, where it is absent, of the method's own or the model's schedule.
    ///
    /// The model's default schedule belongs to its default method; with another one it is the model's spacing.
    ///
    /// # Errors
    /// As [`NoiseModel::schedule`], and [`ErrorKind::Usage`] for a method that does not work with the model's noise.
    pub fn schedule(
        &self,
        method: Option<Method>,
        kind: Option<ScheduleKind>,
        steps: usize,
    ) -> Result<(ScheduleKind, Schedule), Error> {
        let sampler = method.unwrap_or(self.defaults.sampler).kind();
        let default = || if method.is_none() { self.defaults.schedule.clone() } else { None };
        let kind = kind
            .or_else(default)
            .or_else(|| sampler.own_schedule())
            .unwrap_or_else(|| self.noise.usual_levels());
        if let NoiseModel::Flow { .. } = self.noise {
            check_flow(method.unwrap_or(self.defaults.sampler))?;
        }
        let schedule = self.noise.schedule(&kind, sampler.grid(), steps)?;
        Ok((kind, schedule))
    }
}

impl Contents {
    /// Whether every file is recorded and stays in the bundle, and every component has what it needs.
    fn check(&self) -> Result<(), String> {
        if let Some(name) = self.files.keys().find(|name| !stays_inside(name)) {
            return Err(format!("files: expected names inside the bundle, got {name:?}"));
        }
        let Components { text_encoder, text_encoder_2, .. } = &self.components;
        if text_encoder.is_none() && text_encoder_2.is_none() {
            return Err("components: expected a text_encoder, got none".into());
        }
        let mut named = Vec::new();
        for (name, component) in self.components.iter() {
            if component.weights.is_empty() {
                return Err(format!("components.{name}.weights: expected files, got none"));
            }
            named.extend(component.weights.iter().chain([&component.graph]));
            match &component.tokenizer {
                Some(tokenizer) if name.starts_with("text_encoder") => {
                    if !CONTEXTS.contains(&tokenizer.context) {
                        let (least, most) = CONTEXTS.into_inner();
                        return Err(format!(
                            "components.{name}.tokenizer.context: expected {least} to {most} tokens, got {}",
                            tokenizer.context
                        ));
                    }
                    if tokenizer.files.len() > 2 {
                        return Err(format!(
                            "components.{name}.tokenizer.files: expected a tokenizer.json, a vocab.json and a \
                             merges.txt, or none, got {} files",
                            tokenizer.files.len()
                        ));
                    }
                    named.extend(&tokenizer.files);
                }
                None if name.starts_with("text_encoder") => {
                    return Err(format!("components.{name}: expected a tokenizer, got none"));
                }
                Some(_) => return Err(format!("components.{name}: expected no tokenizer, got one")),
                None => {}
            }
        }
        match named.into_iter().find(|name| !self.files.contains_key(*name)) {
            Some(name) => Err(format!("files: expected a record of {name:?}, got none")),
            None => Ok(()),
        }
    }
}

/// Whether a method works on latents that are mixed of image and noise.
fn check_flow(method: Method) -> Result<(), Error> {
    if method.kind().about().is_slope {
        let churn = method.get(&S_CHURN);
        let error = || {
            let why = "because added noise would need rescaled latents";
            Error::new(
                ErrorKind::Usage,
                format!("sampler: s_churn: expected 0 for flow matching, {why}, got {churn}"),
            )
        };
        return if churn == 0.0 { Ok(()) } else { Err(error()) };
    }
    let able = SamplerKind::ALL.iter().map(|kind| kind.about()).filter(|about| about.is_slope);
    let names: Vec<&str> = able.map(|about| about.name).collect();
    Err(Error::new(
        ErrorKind::Usage,
        format!("sampler: expected one for flow matching ({}), got {method}", names.join(", ")),
    ))
}

fn refuse_with(origin: &str, error: Error) -> Error {
    Error::new(error.kind(), origin).source(error)
}

/// The manifest as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    name: String,
    licence: String,
    components: Components,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    curve: Option<CurveFields>,
    /// In place of a curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noise: Option<NoiseFields>,
    prediction: PredictionName,
    latents: LatentSpace,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preview: Option<PreviewFactors>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trained_words: Vec<String>,
    zero_negative: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    low_res: Option<LowResFields>,
    defaults: DefaultFields,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CurveFields {
    betas: BetasName,
    /// The first and last beta; 0 where the recipe has none.
    start: f64,
    end: f64,
    /// The betas themselves; `trained` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trained: Vec<f32>,
    #[serde(default, skip_serializing_if = "is_false")]
    zero_terminal_snr: bool,
    train_timesteps: usize,
    spacing: SpacingName,
    /// Added to every timestep; leading spacing only.
    steps_offset: u32,
    /// Whether the U-Net is told `ln(sigma) / 4` in place of timesteps.
    #[serde(default, skip_serializing_if = "is_false")]
    continuous: bool,
}

impl CurveFields {
    fn of(noise: &NoiseModel) -> Option<Self> {
        let NoiseModel::Discrete(discrete) = noise else { return None };
        let BetasFields { betas, start, end, trained, zero_terminal_snr } = BetasFields::of(discrete.betas());
        let train_timesteps = discrete.curve().len();
        let (spacing, steps_offset) = match discrete.spacing() {
            Spacing::Leading { offset } => (SpacingName::Leading, offset),
            Spacing::Linspace => (SpacingName::Linspace, 0),
            Spacing::Trailing => (SpacingName::Trailing, 0),
        };
        let continuous = discrete.time_input() == TimeInput::QuarterLog;
        Some(Self {
            betas,
            start,
            end,
            trained,
            zero_terminal_snr,
            train_timesteps,
            spacing,
            steps_offset,
            continuous,
        })
    }

    fn model(self) -> Result<NoiseModel, Error> {
        let Self { betas, start, end, trained, zero_terminal_snr, .. } = self;
        let betas = BetasFields { betas, start, end, trained, zero_terminal_snr }.betas();
        let spacing = match self.spacing {
            SpacingName::Leading => Spacing::Leading { offset: self.steps_offset },
            SpacingName::Linspace => Spacing::Linspace,
            SpacingName::Trailing => Spacing::Trailing,
        };
        let time_input = if self.continuous { TimeInput::QuarterLog } else { TimeInput::Timestep };
        Discrete::new(betas, self.train_timesteps, spacing, time_input).map(NoiseModel::Discrete)
    }
}

/// Noise without a curve.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum NoiseFields {
    Flow { shift: f64, train_timesteps: usize },
    Edm { sigma_min: f64, sigma_max: f64, levels: String },
}

impl NoiseFields {
    fn of(noise: &NoiseModel) -> Option<Self> {
        match noise {
            NoiseModel::Discrete(_) => None,
            NoiseModel::Flow { shift, train_timesteps } => {
                Some(Self::Flow { shift: *shift, train_timesteps: *train_timesteps })
            }
            NoiseModel::Edm { sigma_min, sigma_max, levels } => {
                Some(Self::Edm { sigma_min: *sigma_min, sigma_max: *sigma_max, levels: levels.to_string() })
            }
        }
    }

    fn model(self) -> Result<NoiseModel, Error> {
        Ok(match self {
            Self::Flow { shift, train_timesteps } => NoiseModel::Flow { shift, train_timesteps },
            Self::Edm { sigma_min, sigma_max, levels } => {
                let levels = levels
                    .parse()
                    .map_err(|error| Error::new(ErrorKind::Model, "edm.levels").source(error))?;
                NoiseModel::Edm { sigma_min, sigma_max, levels }
            }
        })
    }
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum BetasName {
    Linear,
    ScaledLinear,
    SquaredcosCapV2,
    Sigmoid,
    Trained,
}

/// A recipe of betas as fields. They are repeated where they are written, because serde finds unknown fields no longer
/// where others are flattened.
struct BetasFields {
    betas: BetasName,
    start: f64,
    end: f64,
    trained: Vec<f32>,
    zero_terminal_snr: bool,
}

impl BetasFields {
    fn of(betas: &Betas) -> Self {
        let fields = |betas, start, end| {
            let trained = Vec::new();
            Self { betas, start, end, trained, zero_terminal_snr: false }
        };
        match betas {
            Betas::Linear { start, end } => fields(BetasName::Linear, *start, *end),
            Betas::ScaledLinear { start, end } => fields(BetasName::ScaledLinear, *start, *end),
            Betas::SquaredCosCapV2 => fields(BetasName::SquaredcosCapV2, 0.0, 0.0),
            Betas::Sigmoid { start, end } => fields(BetasName::Sigmoid, *start, *end),
            Betas::Trained(list) => Self { trained: list.clone(), ..fields(BetasName::Trained, 0.0, 0.0) },
            Betas::ZeroTerminalSnr(betas) => Self { zero_terminal_snr: true, ..Self::of(betas) },
        }
    }

    fn betas(self) -> Betas {
        let Self { betas, start, end, trained, zero_terminal_snr } = self;
        let betas = match betas {
            BetasName::Linear => Betas::Linear { start, end },
            BetasName::ScaledLinear => Betas::ScaledLinear { start, end },
            BetasName::SquaredcosCapV2 => Betas::SquaredCosCapV2,
            BetasName::Sigmoid => Betas::Sigmoid { start, end },
            BetasName::Trained => Betas::Trained(trained),
        };
        if zero_terminal_snr { Betas::ZeroTerminalSnr(Box::new(betas)) } else { betas }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's way of asking
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LowResFields {
    betas: BetasName,
    start: f64,
    end: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trained: Vec<f32>,
    #[serde(default, skip_serializing_if = "is_false")]
    zero_terminal_snr: bool,
    train_timesteps: usize,
    max_level: usize,
}

impl LowResFields {
    fn of(low_res: &LowRes) -> Self {
        let BetasFields { betas, start, end, trained, zero_terminal_snr } = BetasFields::of(&low_res.betas);
        let LowRes { curve, max_level, .. } = low_res;
        let (train_timesteps, max_level) = (curve.len(), *max_level);
        Self { betas, start, end, trained, zero_terminal_snr, train_timesteps, max_level }
    }

    fn low_res(self) -> Result<LowRes, Error> {
        let Self { betas, start, end, trained, zero_terminal_snr, train_timesteps, max_level } = self;
        let betas = BetasFields { betas, start, end, trained, zero_terminal_snr }.betas();
        LowRes::new(betas, train_timesteps, max_level)
    }
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum SpacingName {
    Leading,
    Linspace,
    Trailing,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum PredictionName {
    Epsilon,
    VPrediction,
    Sample,
    Flow,
    Edm { sigma_data: f64 },
    EdmV { sigma_data: f64 },
}

impl From<PredictionName> for Prediction {
    fn from(name: PredictionName) -> Self {
        match name {
            PredictionName::Epsilon => Self::Epsilon,
            PredictionName::VPrediction => Self::V,
            PredictionName::Sample => Self::Sample,
            PredictionName::Flow => Self::Flow,
            PredictionName::Edm { sigma_data } => Self::Edm { sigma_data },
            PredictionName::EdmV { sigma_data } => Self::EdmV { sigma_data },
        }
    }
}

impl From<Prediction> for PredictionName {
    fn from(prediction: Prediction) -> Self {
        match prediction {
            Prediction::Epsilon => Self::Epsilon,
            Prediction::V => Self::VPrediction,
            Prediction::Sample => Self::Sample,
            Prediction::Flow => Self::Flow,
            Prediction::Edm { sigma_data } => Self::Edm { sigma_data },
            Prediction::EdmV { sigma_data } => Self::EdmV { sigma_data },
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DefaultFields {
    size: [u32; 2],
    steps: usize,
    guidance: f64,
    sampler: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<String>,
}

/// Whether a file's name leads nowhere but into the bundle.
fn stays_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, PathPart::Normal(_)))
}

mod dtype_name {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::weights::Dtype;

    pub fn serialize<S: Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(dtype)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
        let name = String::deserialize(deserializer)?;
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
            serde::de::Error::custom(format!("expected an element type like F32, got {name:?}"))
        })
    }
}
