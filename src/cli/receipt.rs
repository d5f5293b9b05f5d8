//! Hashes of a model's files, for receipts.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use calotype::model::Model;
use calotype::recipe::{NamedFile, Recipe};
use sha2::{Digest, Sha256};

use super::open::note_hash;

/// Hashes of the large files of a recipe, found while images are drawn, because reading gigabytes takes a while.
pub(super) struct Hashes {
    /// That by which A1111 names the model.
    model: Option<String>,
    /// Of the components that replace the model's, in the order of [`components`].
    components: Vec<Option<String>>,
    #[expect(clippy::type_complexity, reason = "both of the above")]
    search: Option<JoinHandle<(Option<String>, Vec<Option<String>>)>>,
}

impl Hashes {
    /// Of a bundle, that of its U-Net's weights, which the manifest has; of a single file, that of the file, as A1111; of
    /// a folder, that of the weights in its `unet`, as if they were one file in the order of their names.
    pub(super) fn begin(model: &Model, recipe: &Recipe) -> Self {
        let contents = model.contents();
        let unet = contents.and_then(|contents| contents.files.get(&contents.components.unet.weights[0]));
        let known = unet.map(|record| record.sha256.clone());
        let path = recipe.model.as_ref().and_then(|file| file.path.clone()).filter(|_| contents.is_none());
        let mut recipe = recipe.clone();
        let paths: Vec<Option<PathBuf>> =
            components(&mut recipe).into_iter().map(|(_, file)| file.path.clone()).collect();
        if path.is_none() && paths.is_empty() {
            return Self { model: known, components: Vec::new(), search: None };
        }
        let of = |path: &Path| hash_of(&weight_files(path)).ok();
        let search = move || {
            let components = paths.iter().map(|path| path.as_deref().and_then(of)).collect();
            (path.as_deref().and_then(of), components)
        };
        let search = thread::Builder::new().name("calotype-hash".into()).spawn(search).ok();
        Self { model: known, components: Vec::new(), search }
    }

    /// Waits until they are found, and notes them; the model's.
    pub(super) fn note(&mut self, recipe: &mut Recipe) -> Option<String> {
        if let Some((model, components)) = self.search.take().and_then(|search| search.join().ok()) {
            self.model = self.model.take().or(model);
            self.components = components;
        }
        for ((setting, file), hash) in components(recipe).into_iter().zip(&self.components) {
            if let Some(hash) = hash {
                note_hash(setting, file, hash.clone());
            }
        }
        self.model.clone()
    }
}

/// The components that replace the model's, and the settings that name them.
fn components(recipe: &mut Recipe) -> Vec<(&'static str, &mut NamedFile)> {
    let Recipe { unet, vae, text_encoder, control_model, .. } = recipe;
    let one = [("unet", unet), ("vae", vae)];
    let one = one.into_iter().filter_map(|(setting, file)| Some((setting, file.as_mut()?)));
    let controls = control_model.iter_mut().map(|model| ("control_model", &mut model.file));
    one.chain(text_encoder.iter_mut().map(|file| ("text_encoder", file))).chain(controls).collect()
}

fn weight_files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let unet = path.join("unet");
    let entries =
        fs::read_dir(if unet.is_dir() { unet.as_path() } else { path }).into_iter().flatten().flatten();
    let is_weights = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        ["safetensors", "onnx", "onnx_data", "data"].contains(&extension)
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_weights).collect();
    files.sort();
    files
}

fn hash_of(files: &[PathBuf]) -> io::Result<String> {
    if files.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut hash = Sha256::new();
    for file in files {
        io::copy(&mut File::open(file)?, &mut hash)?;
    }
    Ok(format!("{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_by_their_files() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("unet")).expect("a folder");
        for (name, bytes) in [("b.safetensors", "2"), ("a.safetensors", "1"), ("config.json", "3")] {
            fs::write(folder.path().join("unet").join(name), bytes).expect("written");
        }
        let hash = hash_of(&weight_files(folder.path())).expect("a hash");
        assert_eq!(hash, format!("{:x}", Sha256::digest(b"12")));
        let file = folder.path().join("unet/config.json");
        assert_eq!(hash_of(&weight_files(&file)).expect("a hash"), format!("{:x}", Sha256::digest(b"3")));
        assert_eq!(hash_of(&weight_files(&folder.path().join("unet"))).expect("of a component"), hash);
        fs::create_dir(folder.path().join("empty")).expect("a folder");
        assert!(hash_of(&weight_files(&folder.path().join("empty"))).is_err());
    }
}
