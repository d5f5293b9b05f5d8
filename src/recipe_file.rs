//! The files that a recipe names, opened: its model with what replaces parts of it and what is added, and its images.
//! It knows nothing of how a face names a setting, or of where notes go.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::adapter::embedding::Embedding;
use crate::adapter::lora::Lora;
use crate::image_file::ImageFile;
use crate::model::{Adapted, ControlNet, Model, Overrides};
use crate::recipe::parameters::Addition;
use crate::recipe::{Image, NamedControlModel, NamedFile, NamedLora, Recipe};
use crate::{Error, ErrorKind};

/// The model of a recipe.
pub struct Opened {
    /// It.
    pub model: Model,
    /// The recipe, with the hashes of what was added to the model.
    pub recipe: Recipe,
    /// What A1111 calls that.
    pub additions: Vec<Addition>,
    /// The trigger words of its textual inversions.
    pub words: Vec<String>,
}

/// Opens the model of a recipe. `name` is what the face calls a setting; `note` is called with each line on what of the files is not
/// used, or is not what the recipe says.
///
/// # Errors
/// [`ErrorKind::Model`] for files that are missing, damaged or unfit; [`ErrorKind::Usage`] for one of which the recipe does not say
/// where it is.
pub fn open(
    mut recipe: Recipe,
    name: &dyn Fn(&str) -> String,
    note: &mut dyn FnMut(String),
) -> Result<Opened, Error> {
    let path = |setting: &str, file: &Option<NamedFile>| {
        file.as_ref().map(|file| path_of(setting, file).map(Path::to_owned)).transpose()
    };
    let text_encoders = recipe.text_encoder.iter();
    let overrides = Overrides {
        unet: path("unet", &recipe.unet)?,
        vae: path("vae", &recipe.vae)?,
        text_encoders: text_encoders
            .map(|file| path_of("text_encoder", file).map(Path::to_owned))
            .collect::<Result<_, _>>()?,
        variant: recipe.variant.clone(),
    };
    let mut model = Model::open_with(path("model", &recipe.model)?.as_deref(), &overrides)?;
    if let Some(prediction) = recipe.prediction {
        model.predict(prediction)?;
    }
    if let Some(clip_skip) = recipe.clip_skip {
        model.skip_clip_layers(clip_skip)?;
    }
    model.notes().iter().for_each(|line| note(line.to_string()));

    let (mut opened_loras, mut opened_embeddings, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    let mut words_of_embeddings = Vec::new();
    // What has no strength changes nothing, and is no part of the image.
    recipe.lora.retain(|lora| {
        let is_nothing = lora.strength == 0.0 && lora.text_encoder_strength.unwrap_or(0.0) == 0.0;
        !(is_nothing && lora.file.path.as_ref().is_some_and(|file| file.is_file()))
    });
    for NamedLora { file, strength, text_encoder_strength } in &mut recipe.lora {
        let path = path_of("lora", file)?.to_owned();
        let lora = Lora::open(&path)?;
        lora.unused().iter().for_each(|line| note(format!("lora {}: not used: {line}", path.display())));
        opened_embeddings.extend_from_slice(lora.embeddings());
        opened_loras.push(match text_encoder_strength {
            Some(text_encoder) if text_encoder != strength => {
                (lora.with_shares(*text_encoder, *strength), 1.0)
            }
            _ => (lora, *strength),
        });
        additions.push(added(file, name, note, &path, true)?);
    }
    for file in &mut recipe.embedding {
        let path = path_of("embedding", file)?.to_owned();
        let words = Embedding::open(&path)?;
        words_of_embeddings.extend(words.iter().map(|word| word.trigger().to_owned()));
        opened_embeddings.extend(words);
        additions.push(added(file, name, note, &path, false)?);
    }
    if !opened_loras.is_empty() {
        for Adapted { component, tensors, unused, .. } in model.add_loras(opened_loras)? {
            if tensors == 0 && unused.is_empty() {
                note(format!("lora: not used: its weights for {component}, which this model does not have"));
            }
            for line in unused {
                note(format!("lora: not used: {line}, which this model's {component} does not have"));
            }
        }
    }
    let mut networks = Vec::new();
    for NamedControlModel { kind, file } in &recipe.control_model {
        networks.push(ControlNet::open(kind, path_of("control_model", file)?)?);
    }
    model.add_controls(&networks)?;
    if !opened_embeddings.is_empty() {
        model.add_embeddings(&opened_embeddings)?;
    }
    Ok(Opened { model, recipe, additions, words: words_of_embeddings })
}

/// Opens the images of a recipe; only their headers are read. `name` and `note` as for [`open`].
///
/// # Errors
/// [`ErrorKind::Input`] for a file that is missing, damaged or of no kind that is read; [`ErrorKind::Usage`] for one of which the recipe
/// does not say where it is.
pub fn open_images(
    recipe: &mut Recipe,
    name: &dyn Fn(&str) -> String,
    note: &mut dyn FnMut(String),
) -> Result<(), Error> {
    if let Some(init) = &mut recipe.init {
        open_image("init", name, note, init)?;
    }
    if let Some(mask) = &mut recipe.mask {
        open_image("mask", name, note, mask)?;
    }
    for control in &mut recipe.control {
        open_image("control", name, note, &mut control.image)?;
    }
    Ok(())
}

/// Opens the file of an image. One that a receipt names by its hash has it, or this is noted.
fn open_image<T>(
    setting: &str,
    name: &dyn Fn(&str) -> String,
    note: &mut dyn FnMut(String),
    image: &mut Image<T>,
) -> Result<(), Error>
where
    Image<T>: From<ImageFile>,
{
    if let Image::Named(file) = image {
        let opened = ImageFile::open(path_of(setting, file)?)?;
        if file.sha256.is_some() {
            note_hash(&name(setting), file, opened.sha256()?).into_iter().for_each(note);
        }
        *image = opened.into();
    }
    Ok(())
}

/// Notes the hash of a file; a line where it is not the one that was noted before. `name` is the face's of the setting.
pub fn note_hash(name: &str, file: &mut NamedFile, found: String) -> Option<String> {
    let path = file.path.as_deref().unwrap_or(Path::new("")).display();
    let other = file.sha256.as_ref().filter(|noted| **noted != found).map(|noted| {
        format!(
            "{name}: {path}: expected the file of the recipe with SHA-256 {noted}, got {found}: the image will differ"
        )
    });
    file.sha256 = Some(found);
    other
}

/// The path of a file; [`ErrorKind::Usage`] for one of which a recipe does not know it.
fn path_of<'a>(setting: &str, file: &'a NamedFile) -> Result<&'a Path, Error> {
    file.path.as_deref().ok_or_else(|| {
        let place = setting.replace('_', " ");
        let message = format!("{place}: expected a file, got a recipe that does not say where it is");
        Error::new(ErrorKind::Usage, message).help(format!("give it with {{{setting}}}"))
    })
}

/// Notes the hash of a file that was read.
fn added(
    file: &mut NamedFile,
    name: &dyn Fn(&str) -> String,
    note: &mut dyn FnMut(String),
    path: &Path,
    is_lora: bool,
) -> Result<Addition, Error> {
    let refuse = |error: io::Error| {
        Error::new(ErrorKind::Model, path.display().to_string()).source(error).in_file(path)
    };
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash)).map_err(refuse)?;
    let setting = if is_lora { "lora" } else { "embedding" };
    note_hash(&name(setting), file, format!("{:x}", hash.finalize())).into_iter().for_each(note);
    Ok(Addition {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        is_lora,
        hash: addition_hash(path, is_lora).map_err(refuse)?,
    })
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
