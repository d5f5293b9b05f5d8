//! The names under which LoRA files know a network's modules: its own, and for a U-Net those of the original
//! implementation (Rombach et al. 2022). It knows nothing of a file's tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::adapter::Component;
use crate::weights::Weights;

/// What CLIP's layers are inside of, which some files leave away.
const TEXT_MODEL: &str = "text_model.";

/// A component's modules by every name there is for them.
pub(super) struct Modules(HashMap<String, String>);

impl Modules {
    pub(super) fn of(component: Component, weights: &Weights) -> Self {
        let modules: BTreeSet<&str> = weights
            .iter()
            .filter_map(|(name, _)| name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")))
            .collect();
        let mut names = HashMap::new();
        let blocks = Blocks::of(&modules);
        for module in modules {
            let other = match component {
                Component::Unet => blocks.original(module),
                _ => Some(match module.strip_prefix(TEXT_MODEL) {
                    Some(rest) => rest.into(),
                    None => format!("{TEXT_MODEL}{module}"),
                }),
            };
            if let Some(other) = other {
                names.entry(flat(&other)).or_insert_with(|| module.to_owned());
            }
            names.insert(flat(module), module.to_owned());
        }
        Self(names)
    }

    /// The module's name in the weights.
    pub(super) fn find(&self, module: &str) -> Option<&str> {
        self.0.get(&flat(module)).map(String::as_str)
    }
}

/// kohya's trainers write underscores for dots, from which the dots cannot be told; so all names are compared like this.
pub(super) fn flat(name: &str) -> String {
    name.replace('.', "_")
}

/// How many layers each block of a U-Net has, from which the original implementation counts its blocks.
struct Blocks {
    down: BTreeMap<usize, BTreeSet<usize>>,
    up: BTreeMap<usize, BTreeSet<usize>>,
    /// Which of the `up` blocks have attention.
    attentive: BTreeSet<usize>,
}

impl Blocks {
    fn of(modules: &BTreeSet<&str>) -> Self {
        let mut blocks = Self { down: BTreeMap::new(), up: BTreeMap::new(), attentive: BTreeSet::new() };
        for module in modules {
            let parts: Vec<&str> = module.split('.').collect();
            let &[side, block, kind, layer, ..] = &parts[..] else { continue };
            let (Ok(block), Ok(layer)) = (block.parse(), layer.parse()) else { continue };
            match (side, kind) {
                ("down_blocks", "resnets") => drop(blocks.down.entry(block).or_default().insert(layer)),
                ("up_blocks", "resnets") => drop(blocks.up.entry(block).or_default().insert(layer)),
                ("up_blocks", "attentions") => drop(blocks.attentive.insert(block)),
                _ => {}
            }
        }
        blocks
    }

    /// The original implementation's name of a module of diffusers' U-Net.
    fn original(&self, module: &str) -> Option<String> {
        let parts: Vec<&str> = module.split('.').collect();
        Some(match &parts[..] {
            ["conv_in"] => "input_blocks.0.0".into(),
            ["conv_norm_out"] => "out.0".into(),
            ["conv_out"] => "out.2".into(),
            ["time_embedding", layer] => format!("time_embed.{}", embedding(layer)?),
            ["add_embedding", layer] => format!("label_emb.0.{}", embedding(layer)?),
            ["mid_block", kind, layer, rest @ ..] => {
                let layer = layer.parse::<usize>().ok()?;
                let place = layer.checked_mul(2)?.checked_add(usize::from(*kind == "attentions"))?;
                format!("middle_block.{place}.{}", inner(kind, rest)?)
            }
            ["down_blocks", block, kind, layer, rest @ ..] => {
                // Before all of them comes the first convolution, and behind each block's layers its downsampler.
                let (layers_before, blocks_before, layers) = counted(&self.down, block)?;
                let start = 1 + layers_before + blocks_before;
                match *kind {
                    "downsamplers" => format!("input_blocks.{}.0.op", start + layers.len()),
                    _ => {
                        let place = start + place(layers, layer)?;
                        let slot = usize::from(*kind == "attentions");
                        format!("input_blocks.{place}.{slot}.{}", inner(kind, rest)?)
                    }
                }
            }
            ["up_blocks", block, kind, layer, rest @ ..] => {
                let (start, _, layers) = counted(&self.up, block)?;
                match *kind {
                    "upsamplers" => {
                        // Within the block's last layer, behind what else is in it.
                        let slot = 1 + usize::from(self.attentive.contains(&block.parse().ok()?));
                        format!("output_blocks.{}.{slot}.conv", start + layers.len() - 1)
                    }
                    _ => {
                        let place = start + place(layers, layer)?;
                        let slot = usize::from(*kind == "attentions");
                        format!("output_blocks.{place}.{slot}.{}", inner(kind, rest)?)
                    }
                }
            }
            _ => return None,
        })
    }
}

/// How many layers the blocks before this one have, how many blocks those are, and this one's layers.
fn counted<'a>(
    blocks: &'a BTreeMap<usize, BTreeSet<usize>>,
    block: &str,
) -> Option<(usize, usize, &'a BTreeSet<usize>)> {
    let block = block.parse().ok()?;
    let before = blocks.range(..block).map(|(_, layers)| layers.len());
    Some((before.clone().sum(), before.count(), blocks.get(&block)?))
}

fn place(layers: &BTreeSet<usize>, layer: &str) -> Option<usize> {
    let layer: usize = layer.parse().ok()?;
    layers.iter().position(|&other| other == layer)
}

fn embedding(layer: &str) -> Option<usize> {
    match layer {
        "linear_1" => Some(0),
        "linear_2" => Some(2),
        _ => None,
    }
}

/// The rest of a name inside of a residual block or a transformer.
fn inner(kind: &str, rest: &[&str]) -> Option<String> {
    match (kind, rest) {
        ("attentions", rest) => Some(rest.join(".")),
        ("resnets", [layer]) => Some(
            match *layer {
                "norm1" => "in_layers.0",
                "conv1" => "in_layers.2",
                "time_emb_proj" => "emb_layers.1",
                "norm2" => "out_layers.0",
                "conv2" => "out_layers.3",
                "conv_shortcut" => "skip_connection",
                _ => return None,
            }
            .into(),
        ),
        _ => None,
    }
}
