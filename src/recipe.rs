//! A recipe: everything that determines an image, as typed, and its JSON. Flags, receipts and requests are made of it.
//! It knows how values are written, and nothing of what a model makes of them.

mod form;
mod hires;
mod infotext;
mod old;
pub mod parameters;
mod receipt;

use std::ops::Not;
use std::path::PathBuf;

use image::{GrayImage, RgbImage};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use self::form::{ControlFields, ControlModelFields, FileFields, LoraFields, PathOr, as_scales, as_text};
pub use self::hires::{Hires, HiresUpscaler};
pub use self::receipt::{Provenance, Ran, Receipt, Retry};
use crate::Error;
use crate::control::{Annotator, Steering};
use crate::guidance::{self, Scales, Within};
use crate::image_file::{Extend, ImageFile, Init, Mask, Resize};
use crate::noise::Rng;
use crate::prediction::{Prediction, Thresholding};
use crate::sampler::Method;
use crate::schedule::ScheduleKind;
use crate::tensor::PixelSize;

/// The version of the JSON form; another one is refused.
pub const VERSION: u32 = 1;

/// Everything that determines an image; what is absent gets the model's default.
///
/// As JSON it is one object with the names below, the version, and nothing else. Numbers are numbers, and what has a text
/// form (sizes, samplers, schedules) is that text. A file is an object of path and SHA-256, or its path alone.
///
/// ```
/// use calotype::recipe::Recipe;
/// let json = br#"{"version": 1, "prompt": "a red apple", "sampler": "dpm++2m", "seed": 7}"#;
/// let recipe = Recipe::parse("apple.json", json)?;
/// assert_eq!((recipe.prompt.as_str(), recipe.seed), ("a red apple", Some(7)));
/// assert!(Recipe::parse("apple.json", br#"{"version": 1, "sed": 7}"#).is_err());
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    #[doc(hidden)]
    pub version: Version,
    /// The model; the built-in one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<NamedFile>,
    /// A file with a U-Net that replaces the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unet: Option<NamedFile>,
    /// A file or folder with a VAE that replaces the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<NamedFile>,
    /// Files with text encoders that replace the model's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text_encoder: Vec<NamedFile>,
    /// Which variant of a folder's files is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What the U-Net predicts, where the model's files are wrong or do not say.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Which layer of the text encoders is read, as [`Model::skip_clip_layers`](crate::model::Model::skip_clip_layers) counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// LoRA files, in the order in which they are applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<NamedLora>,
    /// Textual inversions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub embedding: Vec<NamedFile>,
    /// Control networks (ControlNet, T2I-Adapter), by the kinds by which `control` names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub control_model: Vec<NamedControlModel>,
    /// Control images, which steer the image that is drawn: each by the control network of its kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<ControlImage>,
    /// The prompt; may be empty. Its syntax is described in [the manual](crate::manual::prompts).
    pub prompt: String,
    /// The negative prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// Whether both prompts are literal: every character means itself.
    #[serde(skip_serializing_if = "Not::not")]
    pub literal: bool,
    /// The image's size; when absent that of `init`, or the model's default.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub size: Option<PixelSize>,
    /// A second pass at a larger size, which starts from the image of `size` (A1111's "Hires fix").
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub hires: Option<Hires>,
    /// How many denoising steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// End after so many of the steps that are taken: the image is then what the model expects of the finished one at that point. Not
    /// for images that are made in several passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<usize>,
    /// The guidance scale, or one per step.
    #[serde(with = "as_scales", skip_serializing_if = "Option::is_none")]
    pub guidance: Option<Scales>,
    /// The guidance method; classifier-free guidance when absent. Not for models that edit images, which have their own.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub guidance_method: Option<guidance::Method>,
    /// The sigmas or steps with guidance; all when absent.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<Within>,
    /// How clean latents are kept in range, for models that work on pixels; not at all when absent.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub thresholding: Option<Thresholding>,
    /// The init image, which is resized to the size of the result, and for a model that upscales images to that of its
    /// latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<Image<Init>>,
    /// How an init image of other proportions than `size` is brought to it, and its mask with it; stretched when absent.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// The inpainting mask, of the size of `init` or with `mask_fit`: white areas are repainted. In the denoising loop a latent
    /// cell is repainted where its first pixel is nearer to white than to black, but see `soft_mask`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Image<Mask>>,
    /// By how many pixels `init` is extended on each side (outpainting), and how wide the seam is; the finished image has the size
    /// of `init` and what is added. A side that adds more than half of the image is painted in several rounds.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub extend: Option<Extend>,
    /// How a mask of another size is brought to that of `init`: stretched or cropped. Without it such a mask is refused.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub mask_fit: Option<Resize>,
    /// Whether black areas of the mask are repainted in place of white ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_invert: Option<bool>,
    /// By how many pixels of the finished image white areas of the mask grow in each direction; below 0 they shrink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_grow: Option<i32>,
    /// The standard deviation of a Gaussian filter over the mask, in pixels of the finished image; 0 is none. When absent 0,
    /// and 4 with `mask_only`. It comes after `mask_invert` and `mask_grow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_blur: Option<f64>,
    /// Work only at the surroundings of the mask: the region of `init` around all of it that is not black, and so many pixels
    /// around, is scaled to `size` (the model's default when absent), repainted, scaled back and pasted. The finished image
    /// has the size of `init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_only: Option<u32>,
    /// Whether grey values of the mask are denoising strengths (Levin & Fried 2023, "Differential diffusion"): a latent cell
    /// with a mask of m, from 0 to 1, is repainted in the last `m * steps` of all steps, less those that `strength` leaves out.
    /// Not for models that take a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_mask: Option<bool>,
    /// Whether pixels outside of the mask keep their values in `init`; they do when absent. The finished image is then
    /// `init + mask * (decoded - init)` with a mask from 0 to 1: where it is black every bit stays, and greys blend; with
    /// `soft_mask` those below one step. Otherwise all pixels are the VAE's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_outside: Option<bool>,
    /// Denoising strength, from 0 to 1: the last `steps * strength` of the steps are taken. When absent 0.8, but 0.3 for
    /// a refiner, and 1 with a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Image guidance scale (InstructPix2Pix); 1.5 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_guidance: Option<f64>,
    /// Noise level of `init` in a model that upscales images, in timesteps of its own curve; 20 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_level: Option<usize>,
    /// The sampling method.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Method>,
    /// How the noise levels are chosen.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleKind>,
    /// The seed; random when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The random generator to reproduce, for the initial noise and that of the steps; torch when absent.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub rng: Option<Rng>,
    /// Seed of noise that is mixed into the initial noise, for small variations of an image; with its strength.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variation_seed: Option<u64>,
    /// How much of that noise, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variation_strength: Option<f64>,
}

/// [`VERSION`], which is checked before anything else is read.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(VERSION)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            VERSION => Ok(Self),
            other => Err(serde::de::Error::custom(format!("expected {VERSION}, got {other}"))),
        }
    }
}

/// A file that a recipe names: where it was, and what was in it. Each may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PathOr<FileFields>")]
pub struct NamedFile {
    /// Where it was when the recipe was made; of a path that is not Unicode only what is.
    #[serde(serialize_with = "form::path", skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The SHA-256 of its bytes as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl From<PathBuf> for NamedFile {
    fn from(path: PathBuf) -> Self {
        Self { path: Some(path), sha256: None }
    }
}

/// A LoRA file that a recipe names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PathOr<LoraFields>")]
pub struct NamedLora {
    /// The file.
    #[serde(flatten)]
    pub file: NamedFile,
    /// How much of it the U-Net gets.
    pub strength: f32,
    /// How much of it the text encoders get, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder_strength: Option<f32>,
}

/// A control network that a recipe names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ControlModelFields")]
pub struct NamedControlModel {
    /// What control images are for it: `canny`, `depth`, whatever.
    pub kind: String,
    /// A diffusers folder of a ControlNet or a T2I-Adapter, or a file with one.
    #[serde(flatten)]
    pub file: NamedFile,
}

/// A control image of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "ControlFields")]
pub struct ControlImage {
    /// Which control network it is for.
    pub kind: String,
    /// The image: edges, depths or whatever the network was trained on, in red, green and blue. It is resized to the size of the
    /// result, as an init image is.
    #[serde(flatten)]
    pub image: Image<Init>,
    /// What makes the control image of it; it is one already when absent.
    #[serde(with = "as_text", skip_serializing_if = "Option::is_none")]
    pub annotate: Option<Annotator>,
    /// How it steers.
    #[serde(flatten, serialize_with = "form::steering")]
    pub steering: Steering,
}

impl ControlImage {
    /// One that steers all steps and predictions with a weight of 1.
    pub fn new(kind: impl Into<String>, image: impl Into<Image<Init>>) -> Self {
        Self { kind: kind.into(), image: image.into(), annotate: None, steering: Steering::default() }
    }

    /// The same without what it is an image of.
    fn without_file(&self) -> Self {
        Self { image: Image::Named(NamedFile::default()), ..self.clone() }
    }
}

/// An image of a recipe: the image itself, or a file that was not opened, of which no request can be made.
#[derive(Clone, Debug)]
pub enum Image<T> {
    /// It.
    Given(T),
    /// Its file.
    Named(NamedFile),
}

impl<T> Image<T> {
    /// The image, if it is there.
    pub fn given(&self) -> Option<&T> {
        match self {
            Self::Given(image) => Some(image),
            Self::Named(_) => None,
        }
    }

    /// The file, if it was not opened.
    pub fn named(&self) -> Option<&NamedFile> {
        match self {
            Self::Given(_) => None,
            Self::Named(file) => Some(file),
        }
    }
}

macro_rules! image_from {
    ($($from:ty => $kind:ty),*) => {$(
        impl From<$from> for Image<$kind> {
            fn from(image: $from) -> Self {
                Self::Given(image.into())
            }
        }
    )*};
}
image_from!(RgbImage => Init, ImageFile => Init, Init => Init, GrayImage => Mask, ImageFile => Mask, Mask => Mask);

impl Recipe {
    /// Reads a recipe; `origin` says in messages where the JSON is from.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for anything but a recipe of this version, with the path of the field that is wrong, and the
    /// nearest name for one that is not known.
    pub fn parse(origin: &str, json: &[u8]) -> Result<Self, Error> {
        Self::read(origin, form::object(origin, json)?)
    }

    /// The recipe in an object.
    fn read(origin: &str, object: Map<String, Value>) -> Result<Self, Error> {
        form::check_version(origin, &object)?;
        form::fields(origin, object)
    }

    /// Its JSON on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// The names of its fields in JSON, which are those of the command line's flags.
    pub fn fields() -> &'static [&'static str] {
        form::names::<Self>()
    }

    /// The same without control networks that no control image is for: whoever draws many images with one model opens it with all of
    /// them.
    #[cfg(any(feature = "server", feature = "capi", feature = "python"))]
    pub(crate) fn without_idle_controls(mut self) -> Self {
        let images = &self.control;
        self.control_model.retain(|model| images.iter().any(|image| image.kind == model.kind));
        self
    }

    /// What a model is opened from, without the settings of an image: recipes that are alike in this share a model.
    pub fn of_model(&self) -> Self {
        Self::default().with_model_of(self)
    }

    /// The same settings for the model that `own` names: what [`Self::of_model`] keeps is that of `own`.
    pub(crate) fn with_model_of(self, own: &Self) -> Self {
        // In full, so that a new field is decided upon here.
        let Self {
            model,
            unet,
            vae,
            text_encoder,
            variant,
            prediction,
            clip_skip,
            lora,
            embedding,
            control_model,
            version: _,
            control: _,
            prompt: _,
            negative: _,
            literal: _,
            size: _,
            hires: _,
            steps: _,
            stop_after: _,
            guidance: _,
            guidance_method: _,
            guidance_interval: _,
            thresholding: _,
            init: _,
            resize: _,
            mask: _,
            extend: _,
            mask_fit: _,
            mask_invert: _,
            mask_grow: _,
            mask_blur: _,
            mask_only: _,
            soft_mask: _,
            keep_outside: _,
            strength: _,
            image_guidance: _,
            noise_level: _,
            sampler: _,
            schedule: _,
            seed: _,
            rng: _,
            variation_seed: _,
            variation_strength: _,
        } = own.clone();
        Self {
            model,
            unet,
            vae,
            text_encoder,
            variant,
            prediction,
            clip_skip,
            lora,
            embedding,
            control_model,
            ..self
        }
    }

    /// The settings alone.
    pub(crate) fn without_files(&self) -> Self {
        Self {
            model: None,
            unet: None,
            vae: None,
            text_encoder: Vec::new(),
            lora: Vec::new(),
            embedding: Vec::new(),
            control_model: Vec::new(),
            control: self.control.iter().map(ControlImage::without_file).collect(),
            init: None,
            mask: None,
            ..self.clone()
        }
    }

    /// The same with the files of its images by name and hash, in place of what is opened; pixels in memory become a file
    /// of which nothing is known.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for a file that can no longer be read.
    pub fn with_images_named(self) -> Result<Self, Error> {
        let unknown = NamedFile::default;
        let init = self.init.map(|init| match init {
            Image::Given(Init::File(file)) => named(&file),
            Image::Given(Init::Pixels(_)) => Ok(Image::Named(unknown())),
            Image::Named(file) => Ok(Image::Named(file)),
        });
        let mask = self.mask.map(|mask| match mask {
            Image::Given(Mask::File(file)) => named(&file),
            Image::Given(Mask::Pixels(_)) => Ok(Image::Named(unknown())),
            other => Ok(other),
        });
        let control = self.control.into_iter().map(|control| {
            let image = match control.image {
                Image::Given(Init::File(file)) => named(&file)?,
                Image::Given(Init::Pixels(_)) => Image::Named(unknown()),
                Image::Named(file) => Image::Named(file),
            };
            Ok(ControlImage { image, ..control })
        });
        let control = control.collect::<Result<_, Error>>()?;
        Ok(Self { init: init.transpose()?, mask: mask.transpose()?, control, ..self })
    }
}

fn named<T>(file: &ImageFile) -> Result<Image<T>, Error> {
    Ok(Image::Named(NamedFile { path: Some(file.origin().into()), sha256: Some(file.sha256()?) }))
}
