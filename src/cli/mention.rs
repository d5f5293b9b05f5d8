//! The files that a prompt names, found in the folders that flags name: `<lora:NAME:1>` and `embedding:NAME`.
//! What is not found, or not used, is told; it knows nothing of what is in the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calotype::prompt::{Mention, mentions};
use calotype::recipe::{NamedFile, NamedLora, Recipe};
use calotype::{Error, ErrorKind};

use super::say;

/// How deep folders are searched, and the most files that are looked at.
const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 100_000;
/// What the files of a folder end in.
const ENDING: &str = "safetensors";
/// The same of textual inversions: those behind the first are pickles, which are not opened.
const EMBEDDINGS: [&str; 3] = [ENDING, "pt", "bin"];

/// Folders with files that prompts name.
#[derive(clap::Args, Default)]
pub(super) struct Folders {
    /// Folder for `<lora:NAME:1>` in prompts, where NAME is a LoRA file's name without extension; subfolders are
    /// searched too.
    #[arg(long, value_name = "DIR")]
    lora_dir: Option<PathBuf>,
    /// Folder of the textual inversions that prompts use as `embedding:NAME` or NAME; subfolders are searched
    /// too.
    #[arg(long, value_name = "DIR")]
    embedding_dir: Option<PathBuf>,
}

/// What prompts name.
#[derive(Default)]
pub(super) struct Mentioned {
    pub(super) loras: Vec<NamedLora>,
    pub(super) embeddings: Vec<PathBuf>,
    /// Both prompts in small letters, where there are any.
    texts: Option<String>,
}

impl Mentioned {
    /// Finds the files that these prompts name, and tells of those that are not found.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a name that several files of a folder have; [`ErrorKind::Input`] for a folder that cannot
    /// be read.
    pub(super) fn find(recipe: &Recipe, folders: &Folders) -> Result<Self, Error> {
        let (prompt, negative) = (recipe.prompt.as_str(), recipe.negative.as_deref().unwrap_or_default());
        let mut mentioned =
            Self { texts: Some(format!("{prompt}\n{negative}").to_lowercase()), ..Self::default() };
        if recipe.literal {
            return Ok(mentioned);
        }
        let loras = stems(folders.lora_dir.as_deref(), &[ENDING])?;
        let mut embeddings = stems(folders.embedding_dir.as_deref(), &EMBEDDINGS)?;
        let mut pickles = BTreeMap::new();
        embeddings.retain(|name, files| {
            let pickled = files.extract_if(.., |file| !has_ending(file, &[ENDING])).collect::<Vec<_>>();
            if files.is_empty() {
                pickles.insert(name.clone(), pickled);
            }
            !files.is_empty()
        });
        let stem_of = |file: &NamedFile| file.path.as_deref().map(stem).unwrap_or_default();
        let given: Vec<(String, bool)> =
            recipe.lora.iter().map(|lora| (stem_of(&lora.file), lora.file.sha256.is_some())).collect();
        let mut words = Vec::new();
        for (mention, is_negative) in mentions(prompt)
            .into_iter()
            .map(|m| (m, false))
            .chain(mentions(negative).into_iter().map(|m| (m, true)))
        {
            match mention {
                Mention::Lora { name, .. } if is_negative => {
                    tell(&format!(
                        "negative prompt: <lora:{name}>: ignored: LoRA files are read from the prompt only"
                    ));
                }
                Mention::Lora { name, .. } if given.iter().any(|(stem, _)| *stem == name.to_lowercase()) => {
                    // A receipt lists what its prompt mentioned.
                    if !given.contains(&(name.to_lowercase(), true)) {
                        tell(&format!("prompt: <lora:{name}>: ignored: --lora already gives this file"));
                    }
                }
                Mention::Lora { name, text_encoder, unet } => match only(&loras, &name)? {
                    Some(file) => mentioned.loras.push(NamedLora {
                        file: file.into(),
                        strength: unet,
                        text_encoder_strength: (text_encoder != unet).then_some(text_encoder),
                    }),
                    None => tell(&not_found("<lora:NAME>", &name, "--lora-dir", folders.lora_dir.as_deref())),
                },
                Mention::Embedding { name } => words.push(name),
                Mention::Unknown(typed) => tell(&format!("prompt: {typed}: not understood; ignored")),
            }
        }
        for name in words {
            let is_given = recipe.embedding.iter().any(|file| stem_of(file) == name.to_lowercase());
            match only(&embeddings, &name)? {
                Some(file) if !mentioned.embeddings.contains(&file) => mentioned.embeddings.push(file),
                Some(_) => {}
                None if is_given => {}
                None => tell(&format!(
                    "{}; its name is read as text",
                    not_found("embedding:NAME", &name, "--embedding-dir", folders.embedding_dir.as_deref())
                )),
            }
        }
        for (name, files) in &pickles {
            if mentioned.has_word(name) {
                let file = files[0].display();
                tell(&format!(
                    "embedding: {file}: not used: a PyTorch pickle, which can run code; convert it to {ENDING}"
                ));
            }
        }
        // Words that are typed as they are, as in A1111.
        for (name, files) in &embeddings {
            if let [file] = &files[..]
                && mentioned.has_word(name)
                && !mentioned.embeddings.contains(file)
                && !recipe.embedding.iter().any(|given| given.path.as_deref() == Some(file))
            {
                mentioned.embeddings.push(file.clone());
            }
        }
        Ok(mentioned)
    }

    /// Tells of a word that no prompt has, where there are prompts.
    pub(super) fn tell_unused(&self, word: &str) {
        if self.texts.is_some() && !self.has_word(&word.to_lowercase()) {
            tell(&format!("embedding: not used: neither prompt has its trigger word {word:?}"));
        }
    }

    /// Whether a prompt has a word that is not a part of a longer one.
    fn has_word(&self, word: &str) -> bool {
        let text = self.texts.as_deref().unwrap_or_default();
        let is_part = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
        text.match_indices(word).any(|(at, _)| {
            !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next())
        })
    }
}

fn tell(line: &str) {
    say(format_args!("{line}"));
}

fn not_found(form: &str, name: &str, flag: &str, folder: Option<&Path>) -> String {
    let form = form.replace("NAME", name);
    match folder {
        Some(folder) => {
            format!("prompt: {form}: expected {name}.{ENDING} in {}, got none; ignored", folder.display())
        }
        None => format!("prompt: {form}: ignored: give its folder with {flag}"),
    }
}

/// The only file of a name, whatever its case.
fn only(files: &BTreeMap<String, Vec<PathBuf>>, name: &str) -> Result<Option<PathBuf>, Error> {
    match files.get(&name.to_lowercase()).map(Vec::as_slice) {
        None | Some([]) => Ok(None),
        Some([file]) => Ok(Some(file.clone())),
        Some([one, other, ..]) => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "prompt: {name}: expected one file of that name, got {} and {}",
                one.display(),
                other.display()
            ),
        )),
    }
}

/// A file's name without its ending, in small letters.
fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn has_ending(file: &Path, endings: &[&str]) -> bool {
    file.extension().is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
}

/// The files of a folder, and of those in it, by their stems.
fn stems(folder: Option<&Path>, endings: &[&str]) -> Result<BTreeMap<String, Vec<PathBuf>>, Error> {
    let mut files = BTreeMap::<String, Vec<PathBuf>>::new();
    let (mut left, mut count) =
        (folder.map(|folder| (folder.to_owned(), 0)).into_iter().collect::<Vec<_>>(), 0);
    while let Some((folder, depth)) = left.pop() {
        let refuse =
            |error| Error::new(ErrorKind::Input, folder.display().to_string()).source(error).in_file(&folder);
        for entry in fs::read_dir(&folder).map_err(refuse)? {
            let path = entry.map_err(refuse)?.path();
            count += 1;
            if count > MAX_FILES {
                let got = format!("{}: expected at most {MAX_FILES} files, got more", folder.display());
                return Err(Error::new(ErrorKind::Input, got).in_file(&folder));
            }
            if path.is_dir() {
                left.extend((depth < MAX_DEPTH).then(|| (path.clone(), depth + 1)));
            } else if has_ending(&path, endings) {
                files.entry(stem(&path)).or_default().push(path);
            }
        }
    }
    files.values_mut().for_each(|files| files.sort());
    Ok(files)
}
