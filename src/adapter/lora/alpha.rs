//! The alphas by which a LoRA file scales its products: as tensors of their own, or in what PEFT writes into the file's
//! metadata. It knows nothing of the products.

use serde_json::{Map, Value};

use super::delta::Piece;
use crate::adapter::{Component, floats};
use crate::json;
use crate::weights::{Dtype, Weights};

/// Where diffusers keeps, as JSON, what PEFT needs to know beside the tensors.
const METADATA: &str = "lora_adapter_metadata";

/// PEFT's settings by their names, `unet.lora_alpha` or, in the file of a single network, `lora_alpha`.
#[derive(Default)]
pub(super) struct Alphas(Map<String, Value>);

impl Alphas {
    pub(super) fn read(file: &Weights) -> Result<Self, String> {
        match file.metadata(METADATA) {
            None => Ok(Self::default()),
            Some(text) => {
                let text =
                    json::standard(METADATA, text.as_bytes()).map_err(|error| format!("metadata {error}"))?;
                serde_json::from_slice(&text)
                    .map(Self)
                    .map_err(|error| format!("metadata {METADATA}: expected an object of settings, {error}"))
            }
        }
    }

    /// The alpha of a module for which the file has no tensor; `module` has dots.
    pub(super) fn of(&self, component: Component, module: &str) -> Result<Option<f64>, String> {
        let pattern = self.setting(component, "alpha_pattern").and_then(Value::as_object);
        for (name, alpha) in pattern.into_iter().flatten() {
            // PEFT takes them for regular expressions; its own files only ever have names, at most with a `^` in front.
            let name = name.trim_start_matches('^').replace("\\.", ".");
            if name.contains(|c: char| !c.is_alphanumeric() && !"._-".contains(c)) {
                return Err(format!(
                    "metadata {METADATA}: alpha_pattern: expected names of modules, got {name:?}"
                ));
            }
            if module.strip_suffix(&name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
                return checked("alpha_pattern", alpha).map(Some);
            }
        }
        self.setting(component, "lora_alpha").map(|alpha| checked("lora_alpha", alpha)).transpose()
    }

    /// `alpha / rank`, or what the rank-stabilised kind has in its place (Kalajdzievski 2023, section 4).
    pub(super) fn scale(&self, component: Component, alpha: f64, rank: usize) -> f32 {
        let is_stabilised = self.setting(component, "use_rslora").and_then(Value::as_bool) == Some(true);
        let rank = rank as f64;
        (alpha / if is_stabilised { rank.sqrt() } else { rank }) as f32
    }

    fn setting(&self, component: Component, name: &str) -> Option<&Value> {
        self.0.get(&format!("{component}.{name}")).or_else(|| self.0.get(name))
    }
}

fn checked(name: &str, alpha: &Value) -> Result<f64, String> {
    let finite = alpha.as_f64().filter(|alpha| alpha.is_finite());
    finite.ok_or_else(|| format!("metadata {METADATA}: {name}: expected a number, got {alpha}"))
}

/// The only element of a tensor.
pub(super) fn number(file: &Weights, piece: &Piece) -> Result<f64, String> {
    let view = file.get(&piece.name).expect("a piece is one of the file's tensors");
    let refuse = || format!("alpha: expected one finite number, got {} {:?}", view.dtype(), view.shape());
    let number = match view.dtype() {
        Dtype::F64 => <[u8; 8]>::try_from(view.to_bytes()).map(f64::from_le_bytes).map_err(|_| refuse())?,
        // A trainer that was given a whole number writes one.
        Dtype::I64 => <[u8; 8]>::try_from(view.to_bytes())
            .map(|b| i64::from_le_bytes(b) as f64)
            .map_err(|_| refuse())?,
        _ => match floats("alpha", view).map_err(|_| refuse())?[..] {
            [number] => number.into(),
            _ => return Err(refuse()),
        },
    };
    if number.is_finite() { Ok(number) } else { Err(refuse()) }
}
