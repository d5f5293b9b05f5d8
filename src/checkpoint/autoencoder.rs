//! The KL autoencoder of Rombach et al. 2022 under its original names: its configuration in diffusers' words, and its
//! names there. It knows nothing of the networks beside it.

use super::Part;
use super::source::{Source, Table};
use crate::Error;
use crate::architecture::autoencoder_kl::Config;
use crate::family::Family;

/// A tensor that every such autoencoder has.
pub(super) const MARKER: &str = "encoder.down.0.block.0.norm1.weight";

/// Names of the layers of the attention in the middle: diffusers', and the original ones, of which those that converters
/// left as diffusers has them.
pub(super) const ATTENTION: [(&str, &[&str]); 5] = [
    ("group_norm", &["norm", "group_norm"]),
    ("to_q", &["q", "to_q", "query"]),
    ("to_k", &["k", "to_k", "key"]),
    ("to_v", &["v", "to_v", "value"]),
    ("to_out.0", &["proj_out", "to_out.0", "proj_attn"]),
];

/// `family`: what it was trained for, where that is known; it decides what the latents are multiplied by.
pub(super) fn part(source: &Source<'_>, family: Option<Family>) -> Result<Part<Config>, Error> {
    let count = source.count("encoder.down.")?;
    let channels = |level: usize| source.size(&format!("encoder.down.{level}.block.0.conv1.weight"), &[4], 0);
    let channels = (0..count).map(channels).collect::<Result<Vec<_>, _>>()?;
    let layers = source.count("encoder.down.0.block.")?;
    let attends = source.has_any("encoder.mid.attn_1.");
    let (quantises, dequantises) = (source.has_any("quant_conv."), source.has_any("post_quant_conv."));
    let (default, latents) = (Config::default(), family.map(Family::latents));
    let config = Config {
        in_channels: source.size("encoder.conv_in.weight", &[4], 1)?,
        out_channels: source.size("decoder.conv_out.weight", &[4], 0)?,
        block_out_channels: channels,
        layers_per_block: layers,
        latent_channels: source.size("decoder.conv_in.weight", &[4], 1)?,
        mid_block_add_attention: attends,
        use_quant_conv: quantises,
        use_post_quant_conv: dequantises,
        scaling_factor: latents.map_or(default.scaling_factor, |latents| latents.scale),
        shift_factor: latents.map(|latents| latents.shift).filter(|shift| *shift != 0.0),
        ..default
    };

    let mut table = Table::new(source);
    let t = &mut table;
    for (side, is_encoder) in [("encoder", true), ("decoder", false)] {
        t.layer(&format!("{side}.conv_in"), &format!("{side}.conv_in"));
        for (block, original) in [(0, "block_1"), (1, "block_2")] {
            let name = format!("{side}.mid_block.resnets.{block}");
            residual(t, source, &name, &format!("{side}.mid.{original}"));
        }
        if attends {
            for (layer, originals) in ATTENTION {
                let places = originals.iter().map(|name| format!("{side}.mid.attn_1.{name}"));
                let place = places.clone().find(|place| source.has_any(&format!("{place}.")));
                let usual = format!("{side}.mid.attn_1.{}", originals[0]);
                t.layer(&format!("{side}.mid_block.attentions.0.{layer}"), &place.unwrap_or(usual));
            }
        }
        for level in 0..count {
            // On the way up the original numbers run against the order, and there is one residual block more.
            let (name, original, sampler, layers) = match is_encoder {
                true => (
                    format!("{side}.down_blocks.{level}"),
                    format!("{side}.down.{level}"),
                    "downsample",
                    layers,
                ),
                false => {
                    let number = count - 1 - level;
                    (
                        format!("{side}.up_blocks.{level}"),
                        format!("{side}.up.{number}"),
                        "upsample",
                        layers + 1,
                    )
                }
            };
            for layer in 0..layers {
                residual(t, source, &format!("{name}.resnets.{layer}"), &format!("{original}.block.{layer}"));
            }
            if level + 1 < count {
                t.layer(&format!("{name}.{sampler}rs.0.conv"), &format!("{original}.{sampler}.conv"));
            }
        }
        t.layer(&format!("{side}.conv_norm_out"), &format!("{side}.norm_out"));
        t.layer(&format!("{side}.conv_out"), &format!("{side}.conv_out"));
    }
    if quantises {
        t.layer("quant_conv", "quant_conv");
    }
    if dequantises {
        t.layer("post_quant_conv", "post_quant_conv");
    }
    // What its training leaves behind.
    t.ignore(|name| name.starts_with("loss.") || name.starts_with("model_ema."));
    Ok(Part { config, names: table.finish()? })
}

fn residual(table: &mut Table<'_, '_>, source: &Source<'_>, name: &str, original: &str) {
    for layer in ["norm1", "conv1", "norm2", "conv2"] {
        table.layer(&format!("{name}.{layer}"), &format!("{original}.{layer}"));
    }
    let shortcut = format!("{original}.nin_shortcut");
    if source.has_any(&format!("{shortcut}.")) {
        table.layer(&format!("{name}.conv_shortcut"), &shortcut);
    }
}
