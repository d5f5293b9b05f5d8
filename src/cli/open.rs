//! Opens the model of a recipe with what is put in and added, and notes in the recipe what the files were.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use calotype::model::Model;
use calotype::prediction::Prediction;
use calotype::recipe::parameters::Addition;
use calotype::recipe::{NamedFile, NamedLora, Recipe};
use calotype::recipe_file::{self, Opened};
use calotype::{Error, ErrorKind};
use clap::Args;

use super::mention::Mentioned;
use super::session::Session;
use super::{flag, say};

/// Files with components that replace those of the model.
#[derive(Args, Clone, Default)]
pub(super) struct Components {
    /// A file with a U-Net that replaces the model's (safetensors or GGUF).
    #[arg(long, value_name = "FILE")]
    unet: Option<PathBuf>,
    /// A file with a VAE, or a diffusers folder of one, that replaces the model's.
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// A file with a text encoder that replaces the model's encoder of the same kind; repeatable. Stable Diffusion XL has
    /// two, CLIP ViT-L and OpenCLIP ViT-bigG: give one file of each, or one file with both.
    #[arg(long, value_name = "FILE")]
    text_encoder: Vec<PathBuf>,
    /// Variant of a folder's files: `fp16` for diffusion_pytorch_model.fp16.safetensors or
    /// model_fp16.onnx.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Prediction type of the U-Net, if the model's files are wrong or omit it: epsilon, v or sample.
    #[arg(long, value_name = "KIND")]
    prediction: Option<Prediction>,
}

impl Components {
    /// Sets in a recipe what was typed.
    pub(super) fn apply(&self, recipe: &mut Recipe) {
        let Self { unet, vae, text_encoder, variant, prediction } = self;
        let file = |path: &PathBuf| NamedFile::from(path.clone());
        recipe.unet = unet.as_ref().map(file).or(recipe.unet.take());
        recipe.vae = vae.as_ref().map(file).or(recipe.vae.take());
        if !text_encoder.is_empty() {
            recipe.text_encoder = text_encoder.iter().map(file).collect();
        }
        recipe.variant = variant.clone().or(recipe.variant.take());
        recipe.prediction = prediction.or(recipe.prediction);
    }
}

/// What is added to a model.
#[derive(Args, Clone, Default)]
pub(super) struct Additions {
    /// A LoRA file, with optional strength (default 1); repeatable.
    #[arg(long, value_name = "FILE[@W]")]
    pub(super) lora: Vec<OsString>,
    /// A textual inversion file, whose trigger word can then be used in prompts; repeatable.
    #[arg(long, value_name = "FILE")]
    pub(super) embedding: Vec<PathBuf>,
}

impl Additions {
    /// Sets in a recipe what was typed.
    pub(super) fn apply(&self, recipe: &mut Recipe) -> Result<(), Error> {
        if !self.lora.is_empty() {
            recipe.lora = self.lora.iter().map(|typed| lora(typed)).collect::<Result<_, _>>()?;
        }
        if !self.embedding.is_empty() {
            recipe.embedding = self.embedding.iter().cloned().map(NamedFile::from).collect();
        }
        Ok(())
    }
}

/// The model at a path, or the built-in one, with components from files of their own, LoRA files and textual inversions
/// added.
pub(super) fn open_model(
    path: Option<&PathBuf>,
    components: &Components,
    additions: &Additions,
) -> Result<Model, Error> {
    let mut recipe = Recipe { model: path.cloned().map(NamedFile::from), ..Recipe::default() };
    components.apply(&mut recipe);
    additions.apply(&mut recipe)?;
    Ok(open(recipe, &Mentioned::default(), &Session::default())?.0)
}

/// The model of a recipe; the recipe with what its prompts mention, and the hashes of what was added; and what A1111 calls
/// the latter.
pub(super) fn open(
    mut recipe: Recipe,
    mentioned: &Mentioned,
    session: &Session,
) -> Result<(Model, Recipe, Vec<Addition>), Error> {
    recipe.lora.extend_from_slice(&mentioned.loras);
    recipe.embedding.extend(mentioned.embeddings.iter().cloned().map(NamedFile::from));
    session.check_signed(&recipe)?;
    let opened = recipe_file::open(recipe, &flag, &mut |note| say(note))?;
    opened.words.iter().for_each(|word| mentioned.tell_unused(word));
    let Opened { model, recipe, additions, .. } = opened;
    Ok((model, recipe, additions))
}

/// Notes the hash of a file, and tells where it is not the one that was noted before.
pub(super) fn note_hash(setting: &str, file: &mut NamedFile, found: String) {
    recipe_file::note_hash(&flag(setting), file, found).into_iter().for_each(say);
}

/// `FILE@W`; a name with an `@` of its own is a name, if there is such a file.
fn lora(typed: &OsStr) -> Result<NamedLora, Error> {
    let whole = PathBuf::from(typed);
    let (path, strength) = match split_at_sign(typed) {
        Some((file, number)) if !whole.exists() => match number.and_then(|number| number.parse::<f32>().ok())
        {
            Some(strength) if strength.is_finite() => (file, strength),
            _ => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("--lora: expected FILE or FILE@W with a number W, got {typed:?}"),
                ));
            }
        },
        _ => (whole, 1.0),
    };
    Ok(NamedLora { file: path.into(), strength, text_encoder_strength: None })
}

/// What is before the last `@`, and what is behind it, if that is text.
#[cfg(unix)]
fn split_at_sign(typed: &OsStr) -> Option<(PathBuf, Option<&str>)> {
    use std::os::unix::ffi::OsStrExt;
    let at = typed.as_bytes().iter().rposition(|&byte| byte == b'@')?;
    let (file, number) = typed.as_bytes().split_at(at);
    Some((OsStr::from_bytes(file).into(), str::from_utf8(&number[1..]).ok()))
}

#[cfg(not(unix))]
fn split_at_sign(typed: &OsStr) -> Option<(PathBuf, Option<&str>)> {
    typed.to_str()?.rsplit_once('@').map(|(file, number)| (file.into(), Some(number)))
}
