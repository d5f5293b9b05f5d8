//! LoRA and its relatives: small matrices that are added to the weights of a model when it is loaded.
//! It knows nothing of graphs; where a file's tensors belong it derives from the names of the weights.

mod alpha;
mod delta;
mod key;
mod rotation;
mod target;

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array2;
use sha2::{Digest, Sha256};

use self::alpha::{Alphas, number};
use self::delta::{Delta, Magnitudes, Piece, matrix_sizes};
use self::key::{Key, Part};
use self::target::{Modules, flat};
use super::embedding::Embedding;
use super::{Component, floats, to_bytes};
use crate::family::Family;
use crate::weights::{Dtype, Stored, TensorView, Weights};
use crate::{Error, ErrorKind};

/// How many names of one kind an error gives.
const NAMED: usize = 3;
/// Where a file's header says which family it was made for: Stability AI's model metadata standard, and kohya's trainers.
const SAID_FAMILY: [&str; 2] = ["modelspec.architecture", "ss_base_model_version"];
/// What stands before the names of the textual inversions that a file brings along.
const BUNDLE: &str = "bundle_emb.";

/// A LoRA file that is whole, finite and understood; which model it is for, [`apply`] finds out.
#[derive(Debug)]
pub struct Lora {
    place: String,
    file: Weights,
    /// By component, in the order of the file's names.
    edits: BTreeMap<Component, Vec<Edit>>,
    /// Textual inversions that the file brings along.
    embeddings: Vec<Embedding>,
    /// What of the file is not understood, and why, a line each.
    unused: Vec<String>,
}

/// What a file does to one tensor.
#[derive(Debug)]
struct Edit {
    /// The start of the file's names of it, for messages.
    stem: String,
    /// The module as the file names it, and which of its tensors.
    module: String,
    tensor: &'static str,
    delta: Delta,
    /// `alpha / rank`
    scale: f32,
    magnitudes: Option<Magnitudes>,
    /// How much of it is added where all of the file is.
    share: f32,
}

/// What [`apply`] changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// How many tensors are now in private memory.
    pub tensors: usize,
    /// How much memory they take.
    pub bytes: usize,
}

impl Lora {
    /// Opens a safetensors file of LoRA (also DoRA and LoCon), LoHa, LoKr or whole differences, with names as they are
    /// written by kohya's trainers (with diffusers' or the original implementation's blocks), diffusers, or PEFT.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file cannot be read, has a name of an unknown form, an incomplete set of tensors,
    /// tensors that do not fit each other, or numbers that are not finite.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::read(path).map_err(|error| error.in_file(path))
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let place = format!("lora {}", path.display());
        let file = Weights::open(&[path]).map_err(|error| Error::new(error.kind(), "lora").source(error))?;
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));

        let mut modules: BTreeMap<(Component, String), Parts> = BTreeMap::new();
        let (mut unused, mut bundled) = (Vec::new(), BTreeMap::<&str, Vec<_>>::new());
        for (name, view) in file.iter() {
            if let Some((word, tensor)) = name.strip_prefix(BUNDLE).and_then(|rest| rest.rsplit_once('.')) {
                // A1111's trainers keep a dictionary of tensors in each: `string_to_param.*`.
                let word = word.strip_suffix(".string_to_param").unwrap_or(word);
                bundled.entry(word).or_default().push((tensor, view));
                continue;
            }
            let Some(key) = Key::parse(name) else {
                unused.push(format!(
                    "{name}: expected a name as kohya's trainers, diffusers, PEFT or ComfyUI write it"
                ));
                continue;
            };
            if view.len_bytes() == 0 {
                // A module of rank 0 adds nothing.
                unused.push(format!("{name}: expected elements, got shape {:?}", view.shape()));
                continue;
            }
            let piece = Piece { name: name.to_owned(), shape: view.shape().to_vec() };
            let Key { component, module, part, stem } = key;
            let parts = modules.entry((component, flat(&module))).or_insert_with(|| Parts {
                stem: stem.to_owned(),
                module,
                pieces: BTreeMap::new(),
            });
            if let Some(other) = parts.pieces.insert(part, piece) {
                return Err(refuse(format!("{name}: expected once, got {} too", other.name)));
            }
        }
        let embeddings =
            bundled.into_iter().map(|(word, tensors)| Embedding::bundled(&place, word, &tensors));
        let embeddings = embeddings.collect::<Result<Vec<_>, _>>()?;
        let alphas = Alphas::read(&file).map_err(refuse)?;
        let mut edits: BTreeMap<Component, Vec<Edit>> = BTreeMap::new();
        for ((component, _), parts) in modules {
            let stem = parts.stem.clone();
            match parts.edits(&file, &alphas, component) {
                Ok(parsed) => edits.entry(component).or_default().extend(parsed),
                Err(Unfit::Unknown(problem)) => unused.push(format!("{stem}: {problem}")),
                Err(Unfit::Wrong(problem)) => return Err(refuse(format!("{stem}: {problem}"))),
            }
        }
        if edits.is_empty() && embeddings.is_empty() {
            let Some(first) = unused.first() else { return Err(refuse("expected tensors, got none".into())) };
            return Err(refuse(first.clone())
                .help("LoRA, LoCon, DoRA, LoHa, LoKr, OFT, BOFT, GLoRA, IA3 and differences are known"));
        }
        let is_number = |name: &str| [".alpha", ".on_input"].iter().any(|ending| name.ends_with(ending));
        let is_read =
            |name: &str| !is_number(name) && (Key::parse(name).is_some() || name.starts_with(BUNDLE));
        for (name, view) in file.iter().filter(|(name, _)| is_read(name)) {
            floats(&format!("{place}: {name}"), view)?;
        }
        file.release_all();
        Ok(Self { place, file, edits, embeddings, unused })
    }

    /// The same file, of which the text encoders and the U-Net get only so much.
    #[must_use]
    pub fn with_shares(mut self, text_encoder: f32, unet: f32) -> Self {
        for (component, edits) in &mut self.edits {
            let share = if *component == Component::Unet { unet } else { text_encoder };
            edits.iter_mut().for_each(|edit| edit.share *= share);
        }
        self
    }

    /// The SHA-256 of what it adds at a strength: all its tensors, and how much of them each component gets.
    pub(crate) fn sha256(&self, strength: f32) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, tensor) in self.file.iter() {
            hash.update(format!("{name} {}{:?}", tensor.dtype(), tensor.shape()));
            hash.update(tensor.to_bytes());
            tensor.release();
        }
        for (component, edits) in &self.edits {
            // All edits of a component have one share.
            let share = edits.first().map_or(1.0, |edit| edit.share);
            hash.update(format!("{component} {}", share * strength));
        }
        hash.finalize().into()
    }

    /// The file, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The family that it was made for, where its header says so.
    pub fn family(&self) -> Option<Family> {
        let said = SAID_FAMILY.iter().filter_map(|key| self.file.metadata(key));
        said.filter_map(|said| Family::named(said.split('/').next()?)).next()
    }

    /// The textual inversions that the file brings along.
    pub fn embeddings(&self) -> &[Embedding] {
        &self.embeddings
    }

    /// What of the file is not understood, and why, a line each.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The file's names of what it has for a component that these weights do not have.
    pub fn strange(&self, component: Component, weights: &Weights) -> Vec<&str> {
        let modules = Modules::of(component, weights);
        let edits = self.edits.get(&component).map_or(&[][..], |edits| edits);
        let is_known = |edit: &&Edit| edit.target(weights, &modules).is_some();
        edits.iter().filter(|edit| !is_known(edit)).map(|edit| edit.stem.as_str()).collect()
    }

    /// The networks that it changes, and how many tensors of each.
    ///
    /// Whoever has a model without one of them can so say what of the file has no effect.
    pub fn components(&self) -> impl Iterator<Item = (Component, usize)> {
        self.edits.iter().map(|(&component, edits)| (component, edits.len()))
    }
}

/// A component's weights with LoRAs added, each as often as the number beside it says: `W + sum(w * alpha / rank * up * down)`.
///
/// The tensors that they change are computed in 32-bit floats and rounded once to their own type, in private memory, one
/// after another; all others are shared with `weights`. The tensors go by diffusers' and transformers' names.
/// With DoRA, `w` says how far to go from the weight to the one that the file describes.
///
/// # Errors
/// [`ErrorKind::Model`] when no tensor of a file for this component is in it, one has another shape, or a sum is
/// not finite; what is not in it otherwise is [`Lora::strange`]; [`ErrorKind::Usage`] when a `w` is not. Everything but the sums is checked before anything is computed.
pub fn apply(
    component: Component,
    weights: &Weights,
    loras: &[(&Lora, f32)],
) -> Result<(Weights, Applied), Error> {
    let plan = edits_of(component, weights, loras)?;
    let mut changed = weights.clone();
    let mut applied = Applied { tensors: plan.len(), bytes: 0 };
    for (name, edits) in &plan {
        let view = weights.get(name).expect("targets are tensors of these weights");
        let bytes = edited(name, view, edits)?;
        view.release();
        applied.bytes += bytes.len();
        changed.replace(name, view.dtype(), view.shape(), &bytes)?;
    }
    loras.iter().for_each(|(lora, _)| lora.file.release_all());
    // A tensor keeps its layout.
    let table = changed.iter().map(|(name, view)| {
        let was_transposed = weights.get(name).is_some_and(|old| old.is_transposed());
        (
            name.to_owned(),
            Stored { transposed: was_transposed != view.is_transposed(), ..Stored::whole(name) },
        )
    });
    let changed = changed.select(table)?;
    Ok((changed, applied))
}

/// What [`apply`] would take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The names of the tensors that would be in private memory.
    pub tensors: Vec<String>,
    /// How much memory those would take.
    pub bytes: usize,
    /// How much more is needed meanwhile: one tensor is computed at a time.
    pub temporary_bytes: usize,
}

/// What [`apply`] would take, by names and shapes alone.
///
/// # Errors
/// Those of [`apply`], but for sums that are not finite.
pub fn cost(component: Component, weights: &Weights, loras: &[(&Lora, f32)]) -> Result<Cost, Error> {
    let plan = edits_of(component, weights, loras)?;
    let mut cost = Cost::default();
    for (name, edits) in &plan {
        let view = weights.get(name).expect("targets are tensors of these weights");
        let elements: usize = view.shape().iter().product();
        // Its bytes, once more as they are converted, in floats, those of a difference that is whole, and the same three
        // forms of the sum; DoRA also keeps the original and the tuned.
        let has_magnitudes =
            edits.iter().any(|(_, edit, _)| edit.magnitudes.is_some() || edit.delta.needs_weight());
        let floats = if has_magnitudes { 5 } else { 2 };
        let temporary_bytes = 4 * view.len_bytes() + floats * elements * size_of::<f32>();
        cost.temporary_bytes = cost.temporary_bytes.max(temporary_bytes);
        cost.bytes += view.len_bytes();
        cost.tensors.push(name.clone());
    }
    // Pages of the files, and the factors of one tensor in floats.
    let files: usize =
        loras.iter().map(|(lora, _)| lora.file.iter().map(|(_, view)| view.len_bytes()).sum::<usize>()).sum();
    cost.temporary_bytes += if plan.is_empty() { 0 } else { 2 * files };
    Ok(cost)
}

/// By the name of a tensor, what changes it, and its strength.
type Edits<'a> = BTreeMap<String, Vec<(&'a Lora, &'a Edit, f32)>>;

/// What changes each tensor that is changed, all of which is there and fits.
fn edits_of<'a>(
    component: Component,
    weights: &Weights,
    loras: &[(&'a Lora, f32)],
) -> Result<Edits<'a>, Error> {
    let modules = Modules::of(component, weights);
    let mut plan = Edits::new();
    for &(lora, strength) in loras {
        if !strength.is_finite() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: weight: expected a finite number, got {strength}", lora.place),
            ));
        }
        for (tensor, edit) in lora.targets(component, weights, &modules)? {
            if strength != 0.0 {
                plan.entry(tensor).or_default().push((lora, edit, strength));
            }
        }
    }
    Ok(plan)
}

impl Lora {
    /// The tensors that it changes, all of which are there and fit.
    fn targets(
        &self,
        component: Component,
        weights: &Weights,
        modules: &Modules,
    ) -> Result<BTreeMap<String, &Edit>, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{}: {problem}", self.place));
        let edits = self.edits.get(&component).map_or(&[][..], |edits| edits);
        let (mut targets, mut strange) = (BTreeMap::<String, &Edit>::new(), Vec::new());
        for edit in edits {
            let Some((tensor, view)) = edit.target(weights, modules) else {
                strange.push(edit.stem.as_str());
                continue;
            };
            edit.check(&tensor, view).map_err(|problem| {
                refuse(format!("{}: {problem}", edit.stem)).help(made_for(self.family()))
            })?;
            if let Some(other) = targets.insert(tensor, edit) {
                return Err(refuse(format!(
                    "{}: expected once, got {} for the same module",
                    edit.stem, other.stem
                )));
            }
        }
        // Of a file for several networks another may have what it is for.
        if !strange.is_empty() && targets.is_empty() && self.edits.len() == 1 {
            let named = strange[..strange.len().min(NAMED)].join(", ");
            let others = strange.len().saturating_sub(NAMED);
            let more = if others > 0 { format!(" and {others} more") } else { String::new() };
            return Err(refuse(format!(
                "expected names of the model's {component}, got {} of {} that are not: {named}{more}",
                strange.len(),
                edits.len()
            ))
            .help(made_for(self.family())));
        }
        Ok(targets)
    }
}

/// Why a file does not fit, as a way out.
pub(crate) fn made_for(family: Option<Family>) -> String {
    let other = || "it was made for another model family".to_owned();
    family.map_or_else(other, |family| format!("it was made for {family}"))
}

/// Why a module of a file is not used.
enum Unfit {
    /// It has a form that is not known, or not all of one.
    Unknown(String),
    /// Its tensors contradict each other.
    Wrong(String),
}

/// The tensors that a file has for one module.
struct Parts {
    stem: String,
    module: String,
    pieces: BTreeMap<Part, Piece>,
}

impl Parts {
    /// What they mean.
    fn edits(self, file: &Weights, alphas: &Alphas, component: Component) -> Result<Vec<Edit>, Unfit> {
        let Self { stem, module, mut pieces } = self;
        let endings = pieces.values().map(|piece| piece.name.strip_prefix(&stem).unwrap_or(&piece.name));
        let endings = endings.collect::<Vec<_>>().join(", ");

        let alpha = match pieces.remove(&Part::Alpha) {
            Some(piece) => Some(number(file, &piece).map_err(Unfit::Wrong)?),
            None => alphas.of(component, &module).map_err(Unfit::Wrong)?,
        };
        let scalar = pieces.remove(&Part::Scalar).map(|piece| number(file, &piece));
        let scalar = scalar.transpose().map_err(Unfit::Wrong)?.unwrap_or(1.0) as f32;
        let magnitudes = match (pieces.remove(&Part::DoraScale), pieces.remove(&Part::Magnitude)) {
            (Some(piece), None) => Some(Magnitudes { piece, may_be_row: true }),
            (None, Some(piece)) => Some(Magnitudes { piece, may_be_row: false }),
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(Unfit::Wrong(format!("expected magnitudes once, got {endings}")));
            }
        };
        let bias = pieces.remove(&Part::BiasDifference);
        let up_bias = pieces.remove(&Part::UpBias);
        let mut edits = Vec::new();
        let mut weight_scale = scalar;
        if bias.is_none() || !pieces.is_empty() || magnitudes.is_some() {
            let delta = Delta::take(&mut pieces, |piece| number(file, piece), alpha).map_err(Unfit::Wrong)?;
            let delta = delta.filter(|_| pieces.is_empty());
            let delta = delta.ok_or_else(|| {
                Unfit::Unknown(format!("expected a complete set of tensors, got {endings}"))
            })?;
            delta.shape().map_err(Unfit::Wrong)?;
            let scale = match (delta.rank(), alpha) {
                (Some(rank), Some(alpha)) => alphas.scale(component, alpha, rank),
                _ => 1.0,
            };
            let scale = scale * scalar;
            weight_scale = scale;
            let (stem, module) = (stem.clone(), module.clone());
            edits.push(Edit { stem, module, tensor: "weight", delta, scale, magnitudes, share: 1.0 });
        }
        if let Some(piece) = up_bias {
            let (stem, module, delta) = (stem.clone(), module.clone(), Delta::bias(piece));
            edits.push(Edit {
                stem,
                module,
                tensor: "bias",
                delta,
                scale: weight_scale,
                magnitudes: None,
                share: 1.0,
            });
        }
        if let Some(piece) = bias {
            let delta = Delta::whole(piece);
            edits.push(Edit {
                stem,
                module,
                tensor: "bias",
                delta,
                scale: 1.0,
                magnitudes: None,
                share: 1.0,
            });
        }
        Ok(edits)
    }
}

impl Edit {
    /// The tensor of these weights that it changes.
    fn target<'a>(&self, weights: &'a Weights, modules: &Modules) -> Option<(String, TensorView<'a>)> {
        let tensor = format!("{}.{}", modules.find(&self.module)?, self.tensor);
        weights.get(&tensor).map(|view| (tensor, view))
    }

    fn check(&self, name: &str, view: TensorView<'_>) -> Result<(), String> {
        if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
            return Err(format!("expected floats of 16 or 32 bits in {name}, got {}", view.dtype()));
        }
        let expected = shape_as_trained(view);
        self.delta.fits(&expected)?;
        let Some(got) = self.delta.shape()? else { return Ok(()) };
        // Dimensions of 1 come and go between linear layers and 1x1 convolutions, and some files flatten kernels.
        if matrix_sizes(&expected) != matrix_sizes(&got) {
            return Err(format!("expected shape {expected:?} for {name}, got {got:?}"));
        }
        if let Some(magnitudes) = &self.magnitudes {
            magnitudes.per_input(&expected)?;
        }
        Ok(())
    }
}

/// The shape with the outputs first.
fn shape_as_trained(view: TensorView<'_>) -> Vec<usize> {
    let mut shape = view.shape().to_vec();
    if view.is_transposed() {
        shape.reverse();
    }
    shape
}

/// A tensor's new bytes.
fn edited(name: &str, view: TensorView<'_>, edits: &[(&Lora, &Edit, f32)]) -> Result<Vec<u8>, Error> {
    let shape = shape_as_trained(view);
    let (rows, columns) = matrix_sizes(&shape);
    let values = floats(&format!("weight {name}"), view)?;
    let matrix = |shape, values| Array2::from_shape_vec(shape, values).expect("there are as many values");
    let mut weight = match view.is_transposed() {
        true => matrix((columns, rows), values).reversed_axes(),
        false => matrix((rows, columns), values),
    };
    let needs_original = |edit: &Edit| edit.magnitudes.is_some() || edit.delta.needs_weight();
    let original = edits.iter().any(|(_, edit, _)| needs_original(edit)).then(|| weight.clone());
    let inputs = shape.get(1).copied().unwrap_or(1);
    for (lora, edit, strength) in edits {
        let strength = strength * edit.share;
        match (&edit.magnitudes, &original) {
            (Some(magnitudes), Some(original)) => {
                let mut tuned = original.clone();
                edit.delta.add(&lora.file, edit.scale, &mut tuned, Some(original), inputs)?;
                magnitudes.rescale(&lora.file, &shape, &mut tuned)?;
                weight.scaled_add(strength, &(tuned - original));
            }
            (_, original) => {
                edit.delta.add(&lora.file, edit.scale * strength, &mut weight, original.as_ref(), inputs)?;
            }
        }
    }
    // The values lie as they did.
    let (values, _) = weight.into_raw_vec_and_offset();
    let dtype = view.dtype();
    to_bytes(&values, dtype).map_err(|value| {
        let files: Vec<&str> = edits.iter().map(|(lora, ..)| lora.place.as_str()).collect();
        Error::new(
            ErrorKind::Model,
            format!("{}: weight {name}: expected sums that {dtype} can hold, got {value}", files.join(", ")),
        )
        .help("give the LoRA a smaller weight")
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// A safetensors file of these names, types, shapes and bytes.
    fn file(metadata: &str, tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
        let text = serde_json::to_string(metadata).unwrap();
        let entry = format!(r#""lora_adapter_metadata":{text}"#);
        file_with(if metadata.is_empty() { "" } else { &entry }, tensors)
    }

    /// A file with this in its header.
    fn file_with(metadata: &str, tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
        let (mut declared, mut data) = (Vec::new(), Vec::new());
        for (name, dtype, shape, bytes) in tensors {
            let begin = data.len();
            data.extend(bytes);
            let end = data.len();
            declared.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            ));
        }
        if !metadata.is_empty() {
            declared.push(format!(r#""__metadata__":{{{metadata}}}"#));
        }
        let header = format!("{{{}}}", declared.join(","));
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }

    fn opened(bytes: &[u8]) -> Result<Lora, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, bytes).unwrap();
        Lora::open(&path)
    }

    /// A file of tensors full of halves.
    fn open(tensors: &[(&str, &[usize])]) -> Result<Lora, Error> {
        let halves = |shape: &[usize]| 0.5f32.to_le_bytes().repeat(shape.iter().product());
        let tensors: Vec<_> =
            tensors.iter().map(|(name, shape)| (*name, "F32", *shape, halves(shape))).collect();
        opened(&file("", &tensors))
    }

    /// Weights of zeros.
    fn weights(dtype: &str, tensors: &[(&str, &[usize])]) -> Weights {
        let size = if dtype == "F32" { 4 } else { 2 };
        let zeros = |shape: &[usize]| vec![0; shape.iter().product::<usize>() * size];
        let tensors: Vec<_> =
            tensors.iter().map(|(name, shape)| (*name, dtype, *shape, zeros(shape))).collect();
        Weights::from_static("unet", file("", &tensors).leak()).unwrap()
    }

    /// What an error says behind the file's name.
    fn problem<T>(result: Result<T, Error>) -> String {
        let error = result.err().expect("it is wrong");
        assert_eq!(error.kind(), ErrorKind::Model);
        let text = error.to_string();
        let text = text.split_once(".safetensors: ").expect("the file is named").1;
        text.split_once("; LoRA, LoCon").map_or(text, |(problem, _)| problem).to_owned()
    }

    const DOWN: &str = "lora_unet_conv_in.lora_down.weight";
    const UP: &str = "lora_unet_conv_in.lora_up.weight";
    const ALPHA: &str = "lora_unet_conv_in.alpha";

    #[test]
    fn unknown_form_of_name() {
        let message = problem(open(&[("transformer.blocks.0.lora_A.weight", &[1, 1])]));
        assert!(message.starts_with("transformer.blocks.0.lora_A.weight: expected a name as "), "{message}");
    }

    #[test]
    fn file_without_tensors() {
        assert_eq!(problem(open(&[])), "expected tensors, got none");
    }

    #[test]
    fn incomplete_sets_of_tensors() {
        let of = |tensors: &[(&str, &[usize])]| problem(open(tensors));
        let expected = "lora_unet_conv_in: expected a complete set of tensors, got";
        assert_eq!(of(&[(UP, &[1, 1])]), format!("{expected} .lora_up.weight"));
        assert_eq!(of(&[(DOWN, &[1, 1])]), format!("{expected} .lora_down.weight"));
        assert_eq!(of(&[(ALPHA, &[])]), format!("{expected} .alpha"));
        assert_eq!(
            of(&[("conv_in.dora_scale", &[1])]),
            "conv_in: expected a complete set of tensors, got .dora_scale"
        );
        let [a, b] = ["lora_unet_conv_in.hada_w1_a", "lora_unet_conv_in.hada_w1_b"];
        assert_eq!(of(&[(a, &[1, 1]), (b, &[1, 1])]), format!("{expected} .hada_w1_a, .hada_w1_b"));
        let left_over = of(&[(DOWN, &[1, 1]), (UP, &[1, 1]), (a, &[1, 1])]);
        assert_eq!(left_over, format!("{expected} .lora_down.weight, .lora_up.weight, .hada_w1_a"));
    }

    #[test]
    fn one_tensor_under_two_names() {
        assert_eq!(
            problem(open(&[(DOWN, &[1, 1]), (UP, &[1, 1]), ("unet.conv_in.lora_A.weight", &[1, 1])])),
            format!("unet.conv_in.lora_A.weight: expected once, got {DOWN} too")
        );
        // The original implementation's name means the same module.
        let [down, up] =
            ["lora_unet_input_blocks_0_0.lora_down.weight", "lora_unet_input_blocks_0_0.lora_up.weight"];
        let lora = open(&[(DOWN, &[1, 1]), (UP, &[1, 1]), (down, &[1, 1]), (up, &[1, 1])]).unwrap();
        let weights = weights("F32", &[("conv_in.weight", &[1, 1])]);
        assert_eq!(
            problem(apply(Component::Unet, &weights, &[(&lora, 1.0)])),
            "lora_unet_input_blocks_0_0: expected once, got lora_unet_conv_in for the same module"
        );
    }

    #[test]
    fn tensors_that_do_not_fit_each_other() {
        let of = |tensors: &[(&str, &[usize])]| problem(open(tensors)).replace("lora_unet_conv_in: ", "");
        assert_eq!(
            of(&[(DOWN, &[3, 4]), (UP, &[5, 2])]),
            "expected shapes of one rank, got [[5, 2], [3, 4]]"
        );
        let [mid, w1, w2] =
            ["lora_mid.weight", "lokr_w1", "lokr_w2"].map(|end| format!("lora_unet_conv_in.{end}"));
        assert_eq!(
            of(&[(DOWN, &[2, 4]), (&mid, &[3, 2, 1, 1]), (UP, &[5, 2])]),
            "expected shapes of one rank, got [[5, 2], [3, 2, 1, 1], [2, 4]]"
        );
        assert_eq!(
            of(&[(DOWN, &[2, 4]), (&mid, &[2]), (UP, &[5, 2])]),
            "expected two ranks and a kernel, got shape [2]"
        );
        assert_eq!(
            of(&[(&w1, &[2, 4, 3, 3]), (&w2, &[2, 4])]),
            "expected a matrix as first factor, got shape [2, 4, 3, 3]"
        );
        let [a1, b1, a2, b2] =
            ["1_a", "1_b", "2_a", "2_b"].map(|end| format!("lora_unet_conv_in.hada_w{end}"));
        assert_eq!(
            of(&[(&a1, &[2, 1]), (&b1, &[1, 4]), (&a2, &[2, 1]), (&b2, &[1, 5])]),
            "expected two products of one shape, got [2, 4] and [2, 5]"
        );
    }

    #[test]
    fn rank_without_measure() {
        assert_eq!(
            problem(open(&[(DOWN, &[4097, 1]), (UP, &[1, 4097])])),
            "lora_unet_conv_in: rank: expected at most 4096, got 4097"
        );
    }

    #[test]
    fn rank_of_zero() {
        let huge = 1 << 40;
        assert_eq!(
            problem(open(&[(DOWN, &[0, huge]), (UP, &[4, 0])])),
            format!("{DOWN}: expected elements, got shape [0, {huge}]")
        );
    }

    /// The sizes of a Kronecker product are products of those in the file.
    #[test]
    fn kronecker_product_without_measure() {
        let [w1, w2] = ["lokr_w1", "lokr_w2"].map(|end| format!("lora_unet_conv_in.{end}"));
        let lora = open(&[(&w1, &[1000, 1000]), (&w2, &[1000, 1000])]).unwrap();
        let weights = weights("F32", &[("conv_in.weight", &[2, 2])]);
        assert!(
            problem(apply(Component::Unet, &weights, &[(&lora, 1.0)]))
                .contains("expected shape [2, 2] for conv_in.weight, got [1000000, 1000000]")
        );
    }

    #[test]
    fn numbers_that_are_not_finite() {
        let one = 1f32.to_le_bytes().to_vec();
        for (bad, written) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            let bad = bad.to_le_bytes().to_vec();
            let message = problem(opened(&file(
                "",
                &[(DOWN, "F32", &[1, 1], bad.clone()), (UP, "F32", &[1, 1], one.clone())],
            )));
            assert_eq!(message, format!("{DOWN}: expected finite values, got {written} at index 0"));
            let message = problem(opened(&file(
                "",
                &[
                    (DOWN, "F32", &[1, 1], one.clone()),
                    (UP, "F32", &[1, 1], one.clone()),
                    (ALPHA, "F32", &[], bad),
                ],
            )));
            assert_eq!(message, "lora_unet_conv_in: alpha: expected one finite number, got F32 []");
        }
    }

    #[test]
    fn tensors_of_integers() {
        let one = 1i32.to_le_bytes().to_vec();
        let message =
            problem(opened(&file("", &[(DOWN, "I32", &[1, 1], one.clone()), (UP, "I32", &[1, 1], one)])));
        assert_eq!(message, format!("{DOWN}: expected floats, got I32"));
    }

    /// The only element of a 1x1 weight after `up * down = 1 * 1` was added to 0, with these further tensors.
    fn scale_of(metadata: &str, alpha: Option<(&str, &[usize], Vec<u8>)>) -> Result<f32, Error> {
        let one = 1f32.to_le_bytes();
        let mut tensors = vec![
            ("unet.conv_in.lora_A.weight", "F32", &[4, 1][..], one.repeat(4)),
            ("unet.conv_in.lora_B.weight", "F32", &[1, 4][..], one.repeat(4)),
        ];
        tensors.extend(alpha.map(|(dtype, shape, bytes)| ("unet.conv_in.alpha", dtype, shape, bytes)));
        let lora = opened(&file(metadata, &tensors))?;
        let weights = weights("F32", &[("conv_in.weight", &[1, 1])]);
        let (changed, _) = apply(Component::Unet, &weights, &[(&lora, 1.0)])?;
        // Four ones make the product.
        Ok(floats("", changed.get("conv_in.weight").unwrap())?[0] / 4.0)
    }

    #[test]
    fn alphas_of_every_type() {
        let of = |dtype, shape, bytes| scale_of("", Some((dtype, shape, bytes)));
        assert_eq!(scale_of("", None).unwrap(), 1.0);
        assert_eq!(of("F32", &[], 2f32.to_le_bytes().into()).unwrap(), 0.5);
        assert_eq!(of("F16", &[1], f16::from_f32(2.0).to_le_bytes().into()).unwrap(), 0.5);
        assert_eq!(of("BF16", &[], bf16::from_f32(2.0).to_le_bytes().into()).unwrap(), 0.5);
        assert_eq!(of("F64", &[], 2f64.to_le_bytes().into()).unwrap(), 0.5);
        assert_eq!(of("I64", &[], 2i64.to_le_bytes().into()).unwrap(), 0.5);
        assert_eq!(of("F32", &[], 0f32.to_le_bytes().into()).unwrap(), 0.0);
        for (dtype, shape, len) in [("F32", &[2][..], 8), ("I64", &[2][..], 16), ("U8", &[][..], 1)] {
            assert_eq!(
                problem(of(dtype, shape, vec![0; len])),
                format!("unet.conv_in: alpha: expected one finite number, got {dtype} {shape:?}")
            );
        }
    }

    #[test]
    fn a_file_says_which_family_it_was_made_for() {
        let one = 1f32.to_le_bytes().to_vec();
        for (key, said, help) in [
            (
                "modelspec.architecture",
                "stable-diffusion-xl-v1-base/lora",
                "it was made for Stable Diffusion XL",
            ),
            ("ss_base_model_version", "sd_v1", "it was made for Stable Diffusion 1"),
            ("ss_base_model_version", "flux1", "it was made for another model family"),
            ("other", "sd_v1", "it was made for another model family"),
        ] {
            let tensors = [(DOWN, "F32", &[1, 1][..], one.clone()), (UP, "F32", &[1, 1], one.clone())];
            let lora = opened(&file_with(&format!(r#""{key}":"{said}""#), &tensors)).unwrap();
            let weights = weights("F32", &[("conv_in.weight", &[2, 2])]);
            let message = apply(Component::Unet, &weights, &[(&lora, 1.0)]).unwrap_err().to_string();
            assert!(message.ends_with(&format!("; {help}")), "{message}");
        }
    }

    #[test]
    fn alphas_in_metadata() {
        let of = |metadata| scale_of(metadata, None);
        assert_eq!(of(r#"{"unet.lora_alpha": 2, "text_encoder.lora_alpha": 8}"#).unwrap(), 0.5);
        assert_eq!(of(r#"{"lora_alpha": 2.0}"#).unwrap(), 0.5);
        assert_eq!(of(r#"{"lora_alpha": 2, "use_rslora": true}"#).unwrap(), 1.0);
        assert_eq!(
            of(r#"{"lora_alpha": 2, "alpha_pattern": {"xconv_in": 8, "^conv_in": 1}}"#).unwrap(),
            0.25
        );
        let one = Some(("F32", &[][..], 1f32.to_le_bytes().into()));
        assert_eq!(scale_of(r#"{"lora_alpha": 2}"#, one).unwrap(), 0.25);

        assert!(
            problem(of("[]")).starts_with("metadata lora_adapter_metadata: expected an object of settings, ")
        );
        assert_eq!(
            problem(of(r#"{"lora_alpha": "2"}"#)),
            "unet.conv_in: metadata lora_adapter_metadata: lora_alpha: expected a number, got \"2\""
        );
        assert!(
            problem(of(r#"{"alpha_pattern": {"conv_(in|out)": 1}}"#))
                .ends_with("alpha_pattern: expected names of modules, got \"conv_(in|out)\"")
        );
    }

    #[test]
    fn magnitudes_of_another_shape() {
        let lora =
            open(&[(DOWN, &[1, 4]), (UP, &[3, 1]), ("lora_unet_conv_in.dora_scale", &[5, 1])]).unwrap();
        let weights = weights("F32", &[("conv_in.weight", &[3, 4])]);
        assert!(problem(apply(Component::Unet, &weights, &[(&lora, 1.0)])).starts_with(
            "lora_unet_conv_in: magnitudes: expected one for each of 3 outputs, got shape [5, 1]"
        ));
    }

    /// `m V / ||V||` of a vector of zeros is one.
    #[test]
    fn a_vector_without_length_keeps_it() {
        let lora = open(&[(DOWN, &[1, 4]), (UP, &[3, 1]), ("lora_unet_conv_in.dora_scale", &[3, 1])]);
        let mut lora = lora.unwrap();
        lora.edits.get_mut(&Component::Unet).unwrap()[0].scale = 0.0;
        let weights = weights("F32", &[("conv_in.weight", &[3, 4])]);
        let (changed, _) = apply(Component::Unet, &weights, &[(&lora, 1.0)]).unwrap();
        assert_eq!(floats("", changed.get("conv_in.weight").unwrap()).unwrap(), [0.0; 12]);
    }

    #[test]
    fn sums_that_overflow() {
        let lora = open(&[(DOWN, &[1, 1]), (UP, &[1, 1])]).unwrap();
        let weights = weights("F16", &[("conv_in.weight", &[1, 1])]);
        let error = apply(Component::Unet, &weights, &[(&lora, 1e6)]).err().unwrap();
        assert_eq!(
            problem::<()>(Err(error)),
            "weight conv_in.weight: expected sums that F16 can hold, got 250000; give the LoRA a smaller weight"
        );
    }

    #[test]
    fn weight_that_is_not_finite() {
        let lora = open(&[(DOWN, &[1, 1]), (UP, &[1, 1])]).unwrap();
        let weights = weights("F32", &[("conv_in.weight", &[1, 1])]);
        for strength in [f32::NAN, f32::INFINITY] {
            let error = apply(Component::Unet, &weights, &[(&lora, strength)]).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn weights_of_integers() {
        let lora = open(&[(DOWN, &[1, 1]), (UP, &[1, 1])]).unwrap();
        let weights = weights("I16", &[("conv_in.weight", &[1, 1])]);
        assert!(
            problem(apply(Component::Unet, &weights, &[(&lora, 1.0)]))
                .contains("expected floats of 16 or 32 bits in conv_in.weight, got I16")
        );
    }

    #[test]
    fn what_is_not_changed_stays_where_it_is() {
        let lora = open(&[(DOWN, &[1, 1]), (UP, &[1, 1])]).unwrap();
        let weights = weights("F32", &[("conv_in.weight", &[1, 1]), ("conv_out.weight", &[1, 1])]);
        let (changed, applied) = apply(Component::Unet, &weights, &[(&lora, 1.0)]).unwrap();
        assert_eq!(applied, Applied { tensors: 1, bytes: 4 });
        let place = |weights: &Weights, name: &str| {
            let (file, offset) = weights.get(name).unwrap().location();
            let lent = weights.lend([file.strip_prefix("weights-").unwrap().parse().unwrap()]).unwrap();
            let (_, start, _) = lent.files().find(|(name, ..)| *name == file).unwrap();
            start as usize + offset
        };
        assert_eq!(place(&changed, "conv_out.weight"), place(&weights, "conv_out.weight"));
        assert_ne!(place(&changed, "conv_in.weight"), place(&weights, "conv_in.weight"));
    }

    #[test]
    fn text_encoders_with_and_without_their_prefix() {
        let file = |name: &str| {
            let [down, up] = ["lora_A", "lora_B"].map(|end| format!("text_encoder.{name}.{end}.weight"));
            open(&[(&down, &[1, 1]), (&up, &[1, 1])]).unwrap()
        };
        let (short, long) = ("encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1");
        for (of_file, of_weights) in [(short, long), (long, short), (long, long), (short, short)] {
            let weights = weights("F32", &[(&format!("{of_weights}.weight"), &[1, 1])]);
            let (_, applied) = apply(Component::TextEncoder, &weights, &[(&file(of_file), 1.0)]).unwrap();
            assert_eq!(applied.tensors, 1, "{of_file} for {of_weights}");
        }
    }
}
