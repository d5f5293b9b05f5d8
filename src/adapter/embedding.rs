//! Textual inversion (Gal et al. 2022): vectors that a text encoder is given in the place of a word's own.
//! It knows nothing of tokenizers and graphs, which must be told of the word.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Component, floats};
use crate::weights::{TensorView, Weights};
use crate::{Error, ErrorKind};

/// The most vectors that are believed; files have 1 to 75, which is what fits a prompt.
const MAX_VECTORS: usize = 1024;
/// What the names of files end in that PyTorch writes by pickling.
const PICKLES: [&str; 3] = ["pt", "bin", "pth"];

/// The most words of one file.
const MAX_WORDS: usize = 64;
/// What trainers call the only tensor of a file, whose word the file's name then is.
const ONLY: &str = "*";
const FORMS: &str = "emb_params, clip_g and clip_l, *, or tensors named after their triggers";

/// The text encoder that a tensor of this name is for, where the name is no word.
fn component(name: &str) -> Option<Component> {
    match name.strip_prefix("string_to_param.").unwrap_or(name) {
        ONLY | "emb_params" | "clip_l" | "text_encoders_0" => Some(Component::TextEncoder),
        "clip_g" | "text_encoders_1" => Some(Component::TextEncoder2),
        _ => None,
    }
}

/// A file's word and what stands for it, in one text encoder or in two.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    place: String,
    trigger: String,
    count: usize,
    vectors: BTreeMap<Component, Vectors>,
}

/// Vectors for one text encoder.
#[derive(Clone, Debug, PartialEq)]
struct Vectors {
    /// The tensor's name, for messages.
    name: String,
    width: usize,
    values: Vec<f32>,
}

impl Embedding {
    /// The SHA-256 of its word and its vectors.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(format!("{:?} {}", self.trigger, self.count));
        for (component, Vectors { width, values, .. }) in &self.vectors {
            hash.update(format!("{component} {width}"));
            values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
        hash.finalize().into()
    }

    /// Opens a safetensors file: `emb_params` or `*` for the only text encoder, `clip_l` and `clip_g` or `text_encoders_0` and
    /// `text_encoders_1` for Stable Diffusion XL's two, each `[vectors, width]` and triggered by the file's name; or as
    /// diffusers' trainer writes it, tensors named after their triggers, `[width]` or `[vectors, width]`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file cannot be read or is none of these, or has numbers that are not finite.
    pub fn open(path: &Path) -> Result<Vec<Self>, Error> {
        Self::read(path).map_err(|error| error.in_file(path))
    }

    fn read(path: &Path) -> Result<Vec<Self>, Error> {
        let place = format!("embedding {}", path.display());
        if path.extension().is_some_and(|end| PICKLES.iter().any(|pickle| end == *pickle)) && path.is_file() {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{place}: expected safetensors, got a PyTorch pickle, which can run code when it is opened"),
            )
            .help(
                "convert it in Python: safetensors.torch.save_file({\"emb_params\": torch.load(FILE, \
                 weights_only=True)[\"string_to_param\"][\"*\"].detach()}, \"WORD.safetensors\")",
            ));
        }
        let file =
            Weights::open(&[path]).map_err(|error| Error::new(error.kind(), "embedding").source(error))?;
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let tensors: Vec<(&str, TensorView<'_>)> = file.iter().collect();
        if tensors.is_empty() {
            return Err(refuse(format!("expected {FORMS}, got no tensors")));
        }
        if tensors.iter().all(|(name, _)| component(name).is_some()) {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let trigger = stem.ok_or_else(|| refuse("file name: expected UTF-8".into()))?;
            return Ok(vec![Self::of(&place, trigger, &tensors)?]);
        }
        // Each is a word of its own.
        let known = tensors.iter().find(|(name, _)| component(name).is_some());
        if let Some((name, _)) = known {
            return Err(refuse(format!("expected {FORMS}, got {name} among {} tensors", tensors.len())));
        }
        if tensors.len() > MAX_WORDS {
            return Err(refuse(format!("expected {FORMS}, got {} tensors", tensors.len())));
        }
        tensors.iter().map(|&(name, view)| Self::of(&place, name, &[(ONLY, view)])).collect()
    }

    /// One that another file brings along; `tensors` are named as in a separate file.
    pub(super) fn bundled(
        place: &str,
        word: &str,
        tensors: &[(&str, TensorView<'_>)],
    ) -> Result<Self, Error> {
        match tensors.iter().find(|(name, _)| component(name).is_none()) {
            Some((name, _)) => Err(Error::new(
                ErrorKind::Model,
                format!(
                    "{place}: embedding {word}: expected emb_params, clip_l and clip_g, or *, got {name}"
                ),
            )),
            None => Self::of(place, word, tensors),
        }
    }

    /// Of tensors whose names say which text encoder they are for.
    fn of(place: &str, trigger: &str, tensors: &[(&str, TensorView<'_>)]) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let mut count = None;
        let mut vectors = BTreeMap::new();
        for &(name, view) in tensors {
            let component = component(name).unwrap_or(Component::TextEncoder);
            // Tensors without a specific name are named after their word.
            let name = if name == ONLY { trigger } else { name };
            let (rows, width) = match *view.shape() {
                [width] => (1, width),
                [rows, width] => (rows, width),
                _ => {
                    return Err(refuse(format!("{name}: expected [vectors, width], got {:?}", view.shape())));
                }
            };
            if rows == 0 || rows > MAX_VECTORS || width == 0 {
                return Err(refuse(format!(
                    "{name}: expected 1 to {MAX_VECTORS} vectors, got shape {:?}",
                    view.shape()
                )));
            }
            if *count.get_or_insert(rows) != rows {
                let names = tensors.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                return Err(refuse(format!("{names}: expected the same number of vectors in both")));
            }
            let values = floats(&format!("{place}: {name}"), view)?;
            let of_one = Vectors { name: name.to_owned(), width, values };
            if let Some(other) = vectors.insert(component, of_one) {
                return Err(refuse(format!(
                    "{name}: expected vectors for {component} once, got {} too",
                    other.name
                )));
            }
        }
        let trigger = trigger.to_owned();
        Ok(Self { trigger, count: count.unwrap_or(0), vectors, place: place.to_owned() })
    }

    /// The word in a prompt that the vectors stand for.
    pub fn trigger(&self) -> &str {
        &self.trigger
    }

    /// How many vectors, and so tokens of the prompt, it takes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The vectors for a text encoder whose table of embeddings is this wide, one after another.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file has none for that text encoder, or of another width.
    pub fn vectors(&self, component: Component, width: usize) -> Result<&[f32], Error> {
        let refuse = |problem: String| {
            Err(Error::new(ErrorKind::Model, format!("{}: {problem}", self.place))
                .help("it was made for another model family"))
        };
        let Some(vectors) = self.vectors.get(&component) else {
            return refuse(format!("expected vectors for {component}, got none"));
        };
        if vectors.width != width {
            let Vectors { name, width: got, .. } = vectors;
            return refuse(format!("{name}: expected {component}'s width {width}, got {got}"));
        }
        Ok(&vectors.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these tensors, each of ones and, last, a 7.
    fn open(file_name: &str, tensors: &[(&str, &[usize])]) -> Result<Embedding, Error> {
        written(file_name, &file(tensors))
    }

    fn file(tensors: &[(&str, &[usize])]) -> Vec<u8> {
        let (mut declared, mut data) = (Vec::new(), Vec::new());
        for (name, shape) in tensors {
            let begin = data.len();
            let count = shape.iter().product::<usize>();
            let values = (0..count).map(|index| if index + 1 == count { 7.0f32 } else { 1.0 });
            data.extend(values.flat_map(f32::to_le_bytes));
            let end = data.len();
            declared.push(format!(
                r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            ));
        }
        let header = format!("{{{}}}", declared.join(","));
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }

    fn written(file_name: &str, bytes: &[u8]) -> Result<Embedding, Error> {
        all(file_name, bytes).map(|mut words| words.remove(0))
    }

    fn all(file_name: &str, bytes: &[u8]) -> Result<Vec<Embedding>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file_name);
        std::fs::write(&path, bytes).unwrap();
        Embedding::open(&path)
    }

    /// What an error says behind the file's name.
    fn problem<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        let error = result.expect_err("it is wrong");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string().rsplit_once(".safetensors: ").expect("the file is named").1.to_owned()
    }

    #[test]
    fn every_form_of_file() {
        let (first, second) = (Component::TextEncoder, Component::TextEncoder2);
        let of_trainer = open("bad.hands.safetensors", &[("emb_params", &[2, 3])]).unwrap();
        assert_eq!((of_trainer.trigger(), of_trainer.count()), ("bad.hands", 2));
        assert_eq!(of_trainer.vectors(first, 3).unwrap(), [1.0, 1.0, 1.0, 1.0, 1.0, 7.0]);

        let of_diffusers = open("learned_embeds.safetensors", &[("<cat-toy>", &[3])]).unwrap();
        assert_eq!((of_diffusers.trigger(), of_diffusers.count()), ("<cat-toy>", 1));
        assert_eq!(of_diffusers.vectors(first, 3).unwrap(), [1.0, 1.0, 7.0]);

        let of_two = open("xl.safetensors", &[("clip_l", &[2, 3]), ("clip_g", &[2, 4])]).unwrap();
        assert_eq!((of_two.trigger(), of_two.count()), ("xl", 2));
        assert_eq!(of_two.vectors(first, 3).unwrap().len(), 6);
        assert_eq!(of_two.vectors(second, 4).unwrap().len(), 8);
    }

    #[test]
    fn a_star_is_called_as_its_file() {
        for name in ["*", "string_to_param.*", "emb_params"] {
            let word = open("easy.negative.safetensors", &[(name, &[2, 3])]).unwrap();
            assert_eq!((word.trigger(), word.count()), ("easy.negative", 2), "{name}");
        }
        let of_two =
            open("xl.safetensors", &[("text_encoders_0", &[2, 3]), ("text_encoders_1", &[2, 4])]).unwrap();
        assert_eq!((of_two.trigger(), of_two.count()), ("xl", 2));
        assert_eq!(of_two.vectors(Component::TextEncoder, 3).unwrap().len(), 6);
        assert_eq!(of_two.vectors(Component::TextEncoder2, 4).unwrap().len(), 8);
    }

    #[test]
    fn several_words_in_a_file() {
        let words = all("a.safetensors", &file(&[("<cat>", &[3]), ("<dog>", &[2, 3])])).unwrap();
        let words: Vec<_> = words.iter().map(|word| (word.trigger(), word.count())).collect();
        assert_eq!(words, [("<cat>", 1), ("<dog>", 2)]);
    }

    #[test]
    fn another_family() {
        let single = open("a.safetensors", &[("emb_params", &[2, 3])]).unwrap();
        assert_eq!(
            problem(single.vectors(Component::TextEncoder, 4)),
            "emb_params: expected text_encoder's width 4, got 3; it was made for another model family"
        );
        assert_eq!(
            problem(single.vectors(Component::TextEncoder2, 3)),
            "expected vectors for text_encoder_2, got none; it was made for another model family"
        );
    }

    #[test]
    fn files_of_another_form() {
        let of = |tensors: &[(&str, &[usize])]| problem(open("a.safetensors", tensors));
        assert_eq!(of(&[]), format!("expected {FORMS}, got no tensors"));
        assert_eq!(
            of(&[("a", &[1]), ("clip_l", &[1])]),
            format!("expected {FORMS}, got clip_l among 2 tensors")
        );
        assert_eq!(
            of(&[("clip_l", &[2, 3]), ("emb_params", &[2, 3])]),
            "emb_params: expected vectors for text_encoder once, got clip_l too"
        );
        assert_eq!(of(&[("emb_params", &[])]), "emb_params: expected [vectors, width], got []");
        assert_eq!(of(&[("emb_params", &[1, 2, 3])]), "emb_params: expected [vectors, width], got [1, 2, 3]");
    }

    #[test]
    fn no_vectors() {
        let of = |shape: &[usize]| problem(open("a.safetensors", &[("emb_params", shape)]));
        assert_eq!(of(&[0, 3]), "emb_params: expected 1 to 1024 vectors, got shape [0, 3]");
        assert_eq!(of(&[3, 0]), "emb_params: expected 1 to 1024 vectors, got shape [3, 0]");
    }

    #[test]
    fn too_many_vectors() {
        assert_eq!(
            problem(open("a.safetensors", &[("emb_params", &[1025, 1])])),
            "emb_params: expected 1 to 1024 vectors, got shape [1025, 1]"
        );
    }

    #[test]
    fn different_numbers_of_vectors() {
        assert_eq!(
            problem(open("a.safetensors", &[("clip_l", &[2, 3]), ("clip_g", &[1, 4])])),
            "clip_g, clip_l: expected the same number of vectors in both"
        );
    }

    #[test]
    fn numbers_that_are_not_finite() {
        let header = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}  "#;
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0, 0, 0, 0x7c]].concat();
        assert_eq!(problem(written("a.safetensors", &file)), "a: expected finite values, got inf at index 1");
    }

    #[test]
    fn pickle() {
        let error = written("style.pt", b"PK\x03\x04 archive/data.pkl").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        let message = error.to_string();
        assert!(message.contains("style.pt: expected safetensors, got a PyTorch pickle"), "{message}");
        assert!(message.contains("torch.load(FILE, weights_only=True)[\"string_to_param\"]"), "{message}");
        let missing = Embedding::open(Path::new("/no/such.pt")).unwrap_err();
        assert!(missing.to_string().starts_with("embedding: /no/such.pt: No such file"), "{missing}");
    }
}
