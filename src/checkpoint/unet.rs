//! The U-Net of Rombach et al. 2022 under its original names: its layout, its configuration in diffusers' words, and its
//! names there. It knows nothing of the networks beside it.

use super::source::{Source, Table};
use super::{Names, Part};
use crate::Error;
use crate::architecture::unet::{AddedEmbedding, ClassEmbedding, Config, Level as LevelConfig, Middle};
use crate::family::{Family, Fit, Label, Layout, Level, Purpose};
use crate::prediction::Prediction;

/// A tensor that every such U-Net has.
pub(super) const MARKER: &str = "input_blocks.0.0.weight";

/// The groups and the epsilon of group norms, which all of them have.
const GROUPS: usize = 32;
const EPSILON: f64 = 1e-5;
/// The width that SDXL gives each size.
const SIZE_WIDTH: usize = 256;

/// Names of a residual block's layers, diffusers' and original.
pub(super) const RESIDUAL: [(&str, &str); 5] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
];
/// Layers of a transformer block with a bias.
const TRANSFORMER: [&str; 7] =
    ["norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"];
/// Layers of a transformer block without.
const PROJECTIONS: [&str; 6] =
    ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v"];

impl Layout {
    pub(super) fn read(source: &Source<'_>) -> Result<Self, Error> {
        let condition = ["time_embedding.cond_proj.weight", "time_embed.cond_proj.weight"]
            .into_iter()
            .find(|name| source.has(name))
            .map(|name| Ok::<_, Error>((name, source.size(name, &[2], 1)?)))
            .transpose()?;
        let label = if source.has("label_emb.weight") {
            Label::Class(source.size("label_emb.weight", &[2], 0)?)
        } else if source.has_any("label_emb.") {
            Label::Vector(source.size("label_emb.0.0.weight", &[2], 1)?)
        } else {
            Label::Nothing
        };

        let mut transformers = Vec::new();
        let mut levels = way_down(source, &mut transformers)?;
        let middle = middle(source, &mut transformers)?;
        let mut index = 0;
        for level in levels.iter_mut().rev() {
            for _ in 0..=level.down.len() {
                level.up.push(depth(source, &format!("output_blocks.{index}"), &mut transformers)?);
                index += 1;
            }
        }

        let Some(transformer) = transformers.first() else {
            return Err(source.refuse("expected transformers with cross-attention, got none".into()));
        };
        let queries = format!("{transformer}.transformer_blocks.0.attn2.to_k.weight");
        let entry = source.get(&format!("{transformer}.proj_in.weight"))?;
        Ok(Self {
            in_channels: source.size(MARKER, &[4], 1)?,
            out_channels: source.size("out.2.weight", &[4], 0)?,
            time_width: source.size("time_embed.0.weight", &[2], 0)?,
            cross_width: source.size(&queries, &[2], 1)?,
            is_linear: entry.shape().len() == 2,
            condition,
            label,
            levels,
            middle,
        })
    }

    pub(super) fn family(&self, source: &Source<'_>) -> Result<Family, Error> {
        for family in Family::ALL {
            match family.fits(self) {
                Fit::Yes => return Ok(*family),
                Fit::Relative(problem, way_out) => return Err(source.refuse(problem).help(way_out)),
                Fit::No => {}
            }
        }
        Err(source.refuse(format!(
            "expected the U-Net of a known family, got one with {} levels and {} latent channels",
            self.levels.len(),
            self.out_channels
        )))
    }

    pub(super) fn purpose(&self, source: &Source<'_>, family: Family) -> Result<Purpose, Error> {
        let latent = self.out_channels;
        let added = self.in_channels.checked_sub(latent);
        let fits = |purpose: &&Purpose| added == Some(purpose.added_channels(latent));
        family.purposes().iter().find(fits).copied().ok_or_else(|| {
            let expected = family.purposes().iter().map(|purpose| {
                let channels = latent.saturating_add(purpose.added_channels(latent));
                match purpose {
                    Purpose::Generate => format!("{channels} input channels"),
                    Purpose::Inpaint => format!("{channels} for inpainting"),
                    Purpose::Edit => format!("{channels} for editing"),
                    Purpose::Upscale => format!("{channels} input channels for upscaling"),
                }
            });
            let mut expected: Vec<String> = expected.collect();
            let last = expected.pop().unwrap_or_default();
            let or = if expected.is_empty() { "" } else { " or " };
            let expected = format!("{}{or}{last}", expected.join(", "));
            let look = if added == Some(1) { ": looks like a model that takes a depth map" } else { "" };
            source
                .refuse(format!("expected {expected}, got {}{look}", self.in_channels))
                .help("use the text-to-image model that it was made from")
        })
    }

    pub(super) fn part(
        &self,
        source: &Source<'_>,
        family: Family,
        prediction: Prediction,
    ) -> Result<Part<Config>, Error> {
        Ok(Part { config: self.config(source, family, prediction)?, names: self.names(source)? })
    }

    fn config(&self, source: &Source<'_>, family: Family, prediction: Prediction) -> Result<Config, Error> {
        let cells = family.cells(prediction);
        let levels = self.levels.iter().enumerate().map(|(index, level)| {
            let only_cross_attention = family.only_cross_attention() && index + 1 < self.levels.len();
            level.config(source, family, only_cross_attention)
        });
        Ok(Config {
            sample_size: Some([cells; 2]),
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            center_input_sample: false,
            conv_in_kernel: source.size(MARKER, &[4], 2)?,
            conv_out_kernel: source.size("out.2.weight", &[4], 2)?,
            norm_num_groups: GROUPS,
            norm_eps: EPSILON,
            cross_attention_dim: self.cross_width,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embedding_dim: self.time_width,
            time_cond_proj_dim: self.condition.map(|(_, width)| width),
            class_embedding: match self.label {
                Label::Class(count) => Some(ClassEmbedding::Table(count)),
                Label::Nothing | Label::Vector(_) => None,
            },
            added_embedding: match self.label {
                Label::Vector(inputs) => {
                    Some(AddedEmbedding { time_width: SIZE_WIDTH, inputs, text_width: None })
                }
                Label::Nothing | Label::Class(_) => None,
            },
            levels: levels.collect::<Result<_, _>>()?,
            middle: self.middle,
        })
    }

    fn names(&self, source: &Source<'_>) -> Result<Names, Error> {
        let mut table = Table::new(source);
        let t = &mut table;
        t.layer("conv_in", "input_blocks.0.0");
        t.layer("time_embedding.linear_1", "time_embed.0");
        t.layer("time_embedding.linear_2", "time_embed.2");
        if let Some((name, _)) = self.condition {
            t.tensor("time_embedding.cond_proj.weight", name);
        }
        match self.label {
            Label::Nothing => {}
            Label::Class(_) => t.tensor("class_embedding.weight", "label_emb.weight"),
            Label::Vector(_) => {
                t.layer("add_embedding.linear_1", "label_emb.0.0");
                t.layer("add_embedding.linear_2", "label_emb.0.2");
            }
        }
        let last = self.levels.len() - 1;
        let mut index = 1;
        for (number, level) in self.levels.iter().enumerate() {
            let block = format!("down_blocks.{number}");
            for (layer, depth) in level.down.iter().enumerate() {
                residual(t, source, &format!("{block}.resnets.{layer}"), &format!("input_blocks.{index}.0"));
                if *depth > 0 {
                    let original = format!("input_blocks.{index}.1");
                    transformer(t, &format!("{block}.attentions.{layer}"), &original, *depth);
                }
                index += 1;
            }
            if number < last {
                t.layer(&format!("{block}.downsamplers.0.conv"), &format!("input_blocks.{index}.0.op"));
                index += 1;
            }
        }
        if !matches!(self.middle, Middle::Absent) {
            residual(t, source, "mid_block.resnets.0", "middle_block.0");
        }
        if let Middle::Transformer(depth) = self.middle {
            transformer(t, "mid_block.attentions.0", "middle_block.1", depth);
            residual(t, source, "mid_block.resnets.1", "middle_block.2");
        }
        let mut index = 0;
        for (number, level) in self.levels.iter().rev().enumerate() {
            let block = format!("up_blocks.{number}");
            for (layer, depth) in level.up.iter().enumerate() {
                residual(t, source, &format!("{block}.resnets.{layer}"), &format!("output_blocks.{index}.0"));
                if *depth > 0 {
                    let original = format!("output_blocks.{index}.1");
                    transformer(t, &format!("{block}.attentions.{layer}"), &original, *depth);
                }
                if layer == level.down.len() && number < last {
                    let position = if *depth > 0 { 2 } else { 1 };
                    let sampler = format!("output_blocks.{index}.{position}.conv");
                    t.layer(&format!("{block}.upsamplers.0.conv"), &sampler);
                }
                index += 1;
            }
        }
        t.layer("conv_norm_out", "out.0");
        t.layer("conv_out", "out.2");
        table.finish()
    }
}

impl Level {
    fn config(
        &self,
        source: &Source<'_>,
        family: Family,
        only_cross_attention: bool,
    ) -> Result<LevelConfig, Error> {
        let depths = |depths: &[usize]| match depths.iter().filter(|depth| **depth > 0).count() {
            0 => Ok(None),
            count if count == depths.len() => Ok(Some(depths.to_vec())),
            count => Err(source.refuse(format!(
                "expected a transformer after all {} residual blocks of a level or none, got {count}",
                depths.len()
            ))),
        };
        let (down, up) = (depths(&self.down)?, depths(&self.up)?);
        // Only a level with transformers has heads.
        let reads = down.is_some() || up.is_some();
        let heads = match family.heads(self.channels) {
            Ok(heads) => heads,
            Err(width) if reads => {
                let channels = self.channels;
                return Err(
                    source.refuse(format!("expected channels in multiples of {width}, got {channels}"))
                );
            }
            Err(width) => self.channels / width,
        };
        Ok(LevelConfig {
            channels: self.channels,
            layers: self.down.len(),
            heads,
            only_cross_attention,
            down,
            up,
        })
    }
}

/// The levels of the way down; notes where transformers are.
pub(super) fn way_down(source: &Source<'_>, transformers: &mut Vec<String>) -> Result<Vec<Level>, Error> {
    let mut levels = vec![Level::default()];
    for index in 1..source.count("input_blocks.")? {
        let place = format!("input_blocks.{index}");
        // There is always one; a sampler ends a level.
        let mut level = levels.pop().unwrap_or_default();
        if source.has_any(&format!("{place}.0.op.")) {
            levels.extend([level, Level::default()]);
            continue;
        }
        let depth = depth(source, &place, transformers)?;
        let channels = source.size(&format!("{place}.0.in_layers.2.weight"), &[4], 0)?;
        if !level.down.is_empty() && level.channels != channels {
            return Err(source.refuse(format!(
                "{place}: expected {} channels, as in the block before it, got {channels}",
                level.channels
            )));
        }
        level.channels = channels;
        level.down.push(depth);
        levels.push(level);
    }
    if levels.iter().any(|level| level.down.is_empty()) {
        return Err(
            source.refuse("input_blocks: expected residual blocks at every resolution, got none".into())
        );
    }
    Ok(levels)
}

/// What is between the ways; notes where a transformer is.
fn middle(source: &Source<'_>, transformers: &mut Vec<String>) -> Result<Middle, Error> {
    if !source.has_any("middle_block.") {
        return Ok(Middle::Absent);
    }
    // Blocks that are not expected where they are, are found when the table is made.
    Ok(match source.count("middle_block.1.transformer_blocks.")? {
        0 => Middle::Residual,
        depth => {
            transformers.push("middle_block.1".into());
            Middle::Transformer(depth)
        }
    })
}

/// The number of transformer blocks in a block, 0 without a transformer; notes where the transformer is.
fn depth(source: &Source<'_>, block: &str, transformers: &mut Vec<String>) -> Result<usize, Error> {
    let transformer = format!("{block}.1");
    let depth = source.count(&format!("{transformer}.transformer_blocks."))?;
    if depth > 0 {
        transformers.push(transformer);
    }
    Ok(depth)
}

pub(super) fn residual(table: &mut Table<'_, '_>, source: &Source<'_>, name: &str, original: &str) {
    for (layer, original_layer) in RESIDUAL {
        table.layer(&format!("{name}.{layer}"), &format!("{original}.{original_layer}"));
    }
    let shortcut = format!("{original}.skip_connection");
    if source.has_any(&format!("{shortcut}.")) {
        table.layer(&format!("{name}.conv_shortcut"), &shortcut);
    }
}

pub(super) fn transformer(table: &mut Table<'_, '_>, name: &str, original: &str, depth: usize) {
    for layer in ["norm", "proj_in", "proj_out"] {
        table.layer(&format!("{name}.{layer}"), &format!("{original}.{layer}"));
    }
    for block in 0..depth {
        let block = format!("transformer_blocks.{block}");
        for layer in TRANSFORMER {
            table.layer(&format!("{name}.{block}.{layer}"), &format!("{original}.{block}.{layer}"));
        }
        for layer in PROJECTIONS {
            table.tensor(
                &format!("{name}.{block}.{layer}.weight"),
                &format!("{original}.{block}.{layer}.weight"),
            );
        }
    }
}
