//! LoRA and its relatives: small matrices that are added to the weights of a model when it is loaded.
//! It knows nothing of graphs; where a file's tensors belong it derives from the names of the weights.

mod alpha;
mod delta;
mod key;
mod target;

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use ndarray::Array2;

use self::alpha::{Alphas, number};
use self::delta::{Delta, Magnitudes, Piece, matrix_sizes};
use self::key::{Key, Part};
use self::target::{Modules, flat};
use super::{Component, floats};
use crate::weights::{Dtype, Stored, TensorView, Weights};
use crate::{Error, ErrorKind};

/// How many names of one kind an error gives.
const NAMED: usize = 3;

/// A LoRA file that is whole, finite and understood; which model it is for, [`apply`] finds out.
#[derive(Debug)]
pub struct Lora {
    place: String,
    file: Weights,
    /// By component, in the order of the file's names.
    edits: BTreeMap<Component, Vec<Edit>>,
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
        let place = format!("lora {}", path.display());
        let file = Weights::open(&[path]).map_err(|error| Error::new(error.kind(), "lora").source(error))?;
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));

        let mut modules: BTreeMap<(Component, String), Parts> = BTreeMap::new();
        for (name, view) in file.iter() {
            let key = Key::parse(name).ok_or_else(|| {
                refuse(format!("{name}: expected a name as kohya's trainers, diffusers or PEFT write it"))
                    .help("LoRA, LoCon, DoRA, LoHa, LoKr and differences for Stable Diffusion 1, 2 and XL are known")
            })?;
            if view.len_bytes() == 0 {
                return Err(refuse(format!("{name}: expected elements, got shape {:?}", view.shape())));
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
        if modules.is_empty() {
            return Err(refuse("expected tensors, got none".into()));
        }

        let alphas = Alphas::read(&file).map_err(refuse)?;
        let mut edits: BTreeMap<Component, Vec<Edit>> = BTreeMap::new();
        for ((component, _), parts) in modules {
            let stem = parts.stem.clone();
            let parsed = parts.edits(&file, &alphas, component);
            let parsed = parsed.map_err(|problem| refuse(format!("{stem}: {problem}")))?;
            edits.entry(component).or_default().extend(parsed);
        }
        for (name, view) in file.iter().filter(|(name, _)| !name.ends_with(".alpha")) {
            floats(&format!("{place}: {name}"), view)?;
        }
        Ok(Self { place, file, edits })
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
/// [`ErrorKind::Model`] when a file has tensors for this component that are not in it or have another shape, or a sum is
/// not finite; [`ErrorKind::Usage`] when a `w` is not. Everything but the sums is checked before anything is computed.
pub fn apply(
    component: Component,
    weights: &Weights,
    loras: &[(&Lora, f32)],
) -> Result<(Weights, Applied), Error> {
    let modules = Modules::of(component, weights);
    let mut plan: BTreeMap<String, Vec<(&Lora, &Edit, f32)>> = BTreeMap::new();
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

    let mut changed = weights.clone();
    let mut applied = Applied { tensors: plan.len(), bytes: 0 };
    for (name, edits) in &plan {
        let view = weights.get(name).expect("targets are tensors of these weights");
        let bytes = edited(name, view, edits)?;
        applied.bytes += bytes.len();
        changed.replace(name, view.dtype(), view.shape(), &bytes)?;
    }
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
            let tensor = modules.find(&edit.module).map(|module| format!("{module}.{}", edit.tensor));
            let Some((tensor, view)) = tensor.and_then(|name| weights.get(&name).map(|view| (name, view)))
            else {
                strange.push(edit.stem.as_str());
                continue;
            };
            edit.check(&tensor, view).map_err(|problem| {
                refuse(format!("{}: {problem}", edit.stem)).help("it was made for another family of models")
            })?;
            if let Some(other) = targets.insert(tensor, edit) {
                return Err(refuse(format!(
                    "{}: expected once, got {} for the same module",
                    edit.stem, other.stem
                )));
            }
        }
        if !strange.is_empty() {
            let named = strange[..strange.len().min(NAMED)].join(", ");
            let others = strange.len().saturating_sub(NAMED);
            let more = if others > 0 { format!(" and {others} more") } else { String::new() };
            return Err(refuse(format!(
                "expected names of the model's {component}, got {} of {} that are not: {named}{more}",
                strange.len(),
                edits.len()
            ))
            .help("it was made for another family of models"));
        }
        Ok(targets)
    }
}

/// The tensors that a file has for one module.
struct Parts {
    stem: String,
    module: String,
    pieces: BTreeMap<Part, Piece>,
}

impl Parts {
    /// What they mean.
    fn edits(self, file: &Weights, alphas: &Alphas, component: Component) -> Result<Vec<Edit>, String> {
        let Self { stem, module, mut pieces } = self;
        let endings = pieces.values().map(|piece| piece.name.strip_prefix(&stem).unwrap_or(&piece.name));
        let endings = endings.collect::<Vec<_>>().join(", ");

        let alpha = match pieces.remove(&Part::Alpha) {
            Some(piece) => Some(number(file, &piece)?),
            None => alphas.of(component, &module)?,
        };
        let magnitudes = match (pieces.remove(&Part::DoraScale), pieces.remove(&Part::Magnitude)) {
            (Some(piece), None) => Some(Magnitudes { piece, may_be_row: true }),
            (None, Some(piece)) => Some(Magnitudes { piece, may_be_row: false }),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(format!("expected magnitudes once, got {endings}")),
        };
        let bias = pieces.remove(&Part::BiasDifference);
        let mut edits = Vec::new();
        if bias.is_none() || !pieces.is_empty() || magnitudes.is_some() {
            let delta = Delta::take(&mut pieces).filter(|_| pieces.is_empty());
            let delta = delta.ok_or_else(|| format!("expected a whole set of tensors, got {endings}"))?;
            delta.shape()?;
            let scale = match (delta.rank(), alpha) {
                (Some(rank), Some(alpha)) => alphas.scale(component, alpha, rank),
                _ => 1.0,
            };
            let (stem, module) = (stem.clone(), module.clone());
            edits.push(Edit { stem, module, tensor: "weight", delta, scale, magnitudes });
        }
        if let Some(piece) = bias {
            let delta = Delta::whole(piece);
            edits.push(Edit { stem, module, tensor: "bias", delta, scale: 1.0, magnitudes: None });
        }
        Ok(edits)
    }
}

impl Edit {
    fn check(&self, name: &str, view: TensorView<'_>) -> Result<(), String> {
        if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
            return Err(format!("expected floats of 16 or 32 bits in {name}, got {}", view.dtype()));
        }
        let expected = shape_as_trained(view);
        let got = self.delta.shape()?;
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
    let original = edits.iter().any(|(_, edit, _)| edit.magnitudes.is_some()).then(|| weight.clone());
    for (lora, edit, strength) in edits {
        match (&edit.magnitudes, &original) {
            (Some(magnitudes), Some(original)) => {
                let mut tuned = original.clone();
                edit.delta.add(&lora.file, edit.scale, &mut tuned)?;
                magnitudes.rescale(&lora.file, &shape, &mut tuned)?;
                weight.scaled_add(*strength, &(tuned - original));
            }
            _ => edit.delta.add(&lora.file, edit.scale * strength, &mut weight)?,
        }
    }
    if view.is_transposed() {
        weight = weight.reversed_axes();
    }
    let dtype = view.dtype();
    let mut bytes = Vec::with_capacity(view.len_bytes());
    for &value in weight.iter() {
        let is_finite = match dtype {
            Dtype::F16 => {
                let value = f16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            Dtype::Bf16 => {
                let value = bf16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            _ => {
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
        };
        if !is_finite {
            let files: Vec<&str> = edits.iter().map(|(lora, ..)| lora.place.as_str()).collect();
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "{}: weight {name}: expected sums that {dtype} can hold, got {value}",
                    files.join(", ")
                ),
            )
            .help("give the LoRA a smaller weight"));
        }
    }
    Ok(bytes)
}
