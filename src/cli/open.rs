//! Opens the model of a recipe with what is put in and added, and notes in the recipe what the files were.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use calotype::adapter::embedding::Embedding;
use calotype::adapter::lora::Lora;
use calotype::model::{Adapted, ControlNet, Model, Overrides};
use calotype::prediction::Prediction;
use calotype::recipe::parameters::Addition;
use calotype::recipe::{NamedControlModel, NamedFile, NamedLora, Recipe};
use calotype::{Error, ErrorKind};
use clap::Args;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::mention::Mentioned;
use super::say;

/// Files with components that replace those of the model.
#[derive(Args, Default)]
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
    /// Prediction type of the U-Net, if the model's files are wrong or do not say: epsilon, v or sample.
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
#[derive(Args, Default)]
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
    Ok(open(recipe, &Mentioned::default())?.0)
}

/// The model of a recipe; the recipe with what its prompts mention, and the hashes of what was added; and what A1111 calls
/// the latter.
pub(super) fn open(
    mut recipe: Recipe,
    mentioned: &Mentioned,
) -> Result<(Model, Recipe, Vec<Addition>), Error> {
    let path = |flag: &str, file: &Option<NamedFile>| {
        file.as_ref().map(|file| path_of(flag, file).map(Path::to_owned)).transpose()
    };
    let text_encoders = recipe.text_encoder.iter();
    let overrides = Overrides {
        unet: path("--unet", &recipe.unet)?,
        vae: path("--vae", &recipe.vae)?,
        text_encoders: text_encoders
            .map(|file| path_of("--text-encoder", file).map(Path::to_owned))
            .collect::<Result<_, _>>()?,
        variant: recipe.variant.clone(),
    };
    let mut model = Model::open_with(path("--model", &recipe.model)?.as_deref(), &overrides)?;
    if let Some(prediction) = recipe.prediction {
        model.predict(prediction)?;
    }
    if let Some(clip_skip) = recipe.clip_skip {
        model.skip_clip_layers(clip_skip)?;
    }
    model.notes().iter().for_each(|note| say(format_args!("{note}")));

    let (mut opened_loras, mut opened_embeddings, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    recipe.lora.extend_from_slice(&mentioned.loras);
    // What has no strength changes nothing, and is no part of the image.
    recipe.lora.retain(|lora| {
        let is_nothing = lora.strength == 0.0 && lora.text_encoder_strength.unwrap_or(0.0) == 0.0;
        !(is_nothing && lora.file.path.as_ref().is_some_and(|file| file.is_file()))
    });
    for NamedLora { file, strength, text_encoder_strength } in &mut recipe.lora {
        let path = path_of("--lora", file)?.to_owned();
        let lora = Lora::open(&path)?;
        lora.unused().iter().for_each(|line| say(format_args!("lora {}: not used: {line}", path.display())));
        opened_embeddings.extend_from_slice(lora.embeddings());
        opened_loras.push(match text_encoder_strength {
            Some(text_encoder) if text_encoder != strength => {
                (lora.with_shares(*text_encoder, *strength), 1.0)
            }
            _ => (lora, *strength),
        });
        additions.push(added(file, &path, true)?);
    }
    recipe.embedding.extend(mentioned.embeddings.iter().cloned().map(NamedFile::from));
    for file in &mut recipe.embedding {
        let path = path_of("--embedding", file)?.to_owned();
        let words = Embedding::open(&path)?;
        words.iter().for_each(|word| mentioned.tell_unused(word.trigger()));
        opened_embeddings.extend(words);
        additions.push(added(file, &path, false)?);
    }
    if !opened_loras.is_empty() {
        for Adapted { component, tensors, unused, .. } in model.add_loras(opened_loras)? {
            if tensors == 0 {
                say(format_args!(
                    "lora: not used: its weights for {component}, which this model does not have"
                ));
            }
            for line in unused {
                say(format_args!("lora: not used: {line}, which this model's {component} does not have"));
            }
        }
    }
    let mut networks = Vec::new();
    for NamedControlModel { kind, file } in &recipe.control_model {
        networks.push(ControlNet::open(kind, path_of("--control-model", file)?)?);
    }
    model.add_controls(&networks)?;
    if !opened_embeddings.is_empty() {
        model.add_embeddings(&opened_embeddings)?;
    }
    Ok((model, recipe, additions))
}

/// The path of a file; [`ErrorKind::Usage`] for one of which a recipe does not know it.
pub(super) fn path_of<'a>(flag: &str, file: &'a NamedFile) -> Result<&'a Path, Error> {
    file.path.as_deref().ok_or_else(|| {
        let name = flag.trim_start_matches('-').replace('-', " ");
        let message = format!("{name}: expected a file, got a recipe that does not say where it is");
        Error::new(ErrorKind::Usage, message).help(format!("give it with {flag}"))
    })
}

/// Notes the hash of a file, and tells where it is not the one that was noted before.
pub(super) fn note_hash(flag: &str, file: &mut NamedFile, found: String) {
    if let Some(noted) = &file.sha256
        && *noted != found
    {
        let path = file.path.as_deref().unwrap_or(Path::new(""));
        say(format_args!(
            "{flag}: {}: expected the file of the recipe with SHA-256 {noted}, got {found}: the image will differ",
            path.display()
        ));
    }
    file.sha256 = Some(found);
}

/// Notes the hash of a file that was read.
fn added(file: &mut NamedFile, path: &Path, is_lora: bool) -> Result<Addition, Error> {
    let refuse = |error: io::Error| {
        Error::new(ErrorKind::Model, path.display().to_string()).source(error).in_file(path)
    };
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash)).map_err(refuse)?;
    note_hash(if is_lora { "--lora" } else { "--embedding" }, file, format!("{:x}", hash.finalize()));
    Ok(Addition {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        is_lora,
        hash: addition_hash(path, is_lora).map_err(refuse)?,
    })
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

/// The hash by which A1111 names a small file that is added to a model: of a LoRA in safetensors what its trainer wrote
/// into it, or that of the tensors alone; of all else that of the file.
fn addition_hash(path: &Path, is_lora: bool) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let header_bytes = bytes.first_chunk().map(|head| u64::from_le_bytes(*head));
    let data = header_bytes
        .and_then(|len| usize::try_from(len).ok()?.checked_add(8))
        .and_then(|start| Some((bytes.get(8..start)?, bytes.get(start..)?)));
    let Some((header, data)) = data.filter(|_| is_lora) else {
        return Ok(format!("{:x}", Sha256::digest(&bytes)));
    };
    let written = serde_json::from_slice::<Value>(header)
        .ok()
        .and_then(|header| header["__metadata__"]["sshs_model_hash"].as_str().map(str::to_owned));
    Ok(written
        .filter(|hash| hash.len() >= 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .unwrap_or_else(|| format!("{:x}", Sha256::digest(data))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths and hashes as A1111's `addnet_hash_safetensors` and `sha256` give them.
    #[test]
    fn small_files_have_the_hashes_that_a1111_gives_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lora.safetensors");
        let file =
            |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"data"].concat();
        let of = |bytes: &[u8], is_lora| {
            fs::write(&path, bytes).expect("written");
            addition_hash(&path, is_lora).expect("a hash")
        };
        let sha256 = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
        assert_eq!(of(&file("{}"), true), sha256(b"data"));
        assert_eq!(of(&file("{}"), false), sha256(&file("{}")));
        let named = file(r#"{"__metadata__": {"sshs_model_hash": "0123456789abcdef"}}"#);
        assert_eq!(of(&named, true), "0123456789abcdef");
        for odd in [&b""[..], b"short", &[0xff; 20]] {
            assert_eq!(of(odd, true), sha256(odd));
        }
    }
}
