//! The levels of a U-Net: the way down, the middle and the way up, of residual blocks and transformers.
//! It knows how they are joined, and not what a transformer is.

use super::{Config, Level, Middle, Residual, Takes};
use crate::architecture::builder::{Builder, Conv, Value};
use crate::weights::Dtype;

/// What every block of the network needs.
pub(in crate::architecture) struct Network<'a> {
    pub(in crate::architecture) builder: Builder,
    pub(in crate::architecture) config: &'a Config,
    /// The time embedding after its activation.
    pub(in crate::architecture) time: Value,
    /// The text's states, `[batch, tokens, cross]`.
    pub(in crate::architecture) text: Value,
}

impl Network<'_> {
    /// All that is between the first convolution and the last norm; as many channels come out as go in. What other
    /// networks give is added to the levels of the way down, to what the way up takes from it, and to the middle.
    pub(super) fn levels(&mut self, x: Value, takes: Takes) -> Value {
        let features = if takes.features { self.config.block_residuals() } else { Vec::new() };
        let (x, mut skips) = self.way_down(x, &features);
        let mut x = self.middle(x);
        let [down, middle] = self.config.residuals();
        if takes.residuals {
            for ((skip, _), residual) in skips.iter_mut().zip(&down) {
                *skip = self.plus(skip, residual);
            }
        }
        if takes != Takes::default() {
            x = self.plus(&x, &middle[0]);
        }
        self.way_up(x, skips)
    }

    /// The way down: what comes out, and what the way up takes from it, with its channels. `features` are added, one to each level.
    pub(in crate::architecture) fn way_down(
        &mut self,
        mut x: Value,
        features: &[Residual],
    ) -> (Value, Vec<(Value, usize)>) {
        let levels = &self.config.levels;
        let last = levels.len() - 1;
        let mut channels = levels[0].channels;
        let mut skips = vec![(x.clone(), channels)];
        for (index, level) in levels.iter().enumerate() {
            let name = format!("down_blocks.{index}");
            let feature = features.get(index);
            for layer in 0..level.layers {
                x = self.residual(&x, &format!("{name}.resnets.{layer}"), channels, level.channels);
                channels = level.channels;
                if let Some(transformers) = &level.down {
                    x = self.transformer(
                        &x,
                        &format!("{name}.attentions.{layer}"),
                        level,
                        transformers[layer],
                    );
                    if let Some(feature) = feature.filter(|_| layer + 1 == level.layers) {
                        x = self.plus(&x, feature);
                    }
                }
                skips.push((x.clone(), channels));
            }
            if index < last {
                let halve = Conv { stride: 2, ..Conv::same(channels, channels, 3) };
                x = self.builder.conv(&x, &format!("{name}.downsamplers.0.conv"), halve);
                skips.push((x.clone(), channels));
            }
            if let Some(feature) = feature.filter(|_| level.down.is_none()) {
                x = self.plus(&x, feature);
                // The same tensor in diffusers, to which it is added in place.
                skips.pop();
                skips.push((x.clone(), channels));
            }
        }
        (x, skips)
    }

    /// What is between the way down and the way up.
    pub(in crate::architecture) fn middle(&mut self, mut x: Value) -> Value {
        let last = self.config.levels.len() - 1;
        let channels = self.config.levels[last].channels;
        if self.config.middle != Middle::Absent {
            x = self.residual(&x, "mid_block.resnets.0", channels, channels);
        }
        if let Middle::Transformer(blocks) = self.config.middle {
            // Where the other transformers of a level look only at the text, this one does not.
            let level = Level { only_cross_attention: false, ..self.config.levels[last].clone() };
            x = self.transformer(&x, "mid_block.attentions.0", &level, blocks);
            x = self.residual(&x, "mid_block.resnets.1", channels, channels);
        }
        x
    }

    fn way_up(&mut self, mut x: Value, mut skips: Vec<(Value, usize)>) -> Value {
        let levels = &self.config.levels;
        let mut channels = levels[levels.len() - 1].channels;
        for (index, level) in levels.iter().rev().enumerate() {
            let name = format!("up_blocks.{index}");
            let own = skips.split_off(skips.len() - (level.layers + 1));
            for (layer, (skip, skip_channels)) in own.iter().rev().enumerate() {
                x = self.builder.concat(&[&x, skip], 1);
                let inputs = channels + skip_channels;
                x = self.residual(&x, &format!("{name}.resnets.{layer}"), inputs, level.channels);
                channels = level.channels;
                if let Some(transformers) = &level.up {
                    x = self.transformer(
                        &x,
                        &format!("{name}.attentions.{layer}"),
                        level,
                        transformers[layer],
                    );
                }
            }
            if let Some((next, _)) = skips.last() {
                // To the size of what it will be joined with: an odd one is not twice its half.
                let b = &mut self.builder;
                let (planes, sides) = (b.sizes(&x, 0, 2), b.sizes(next, 2, 4));
                let sizes = b.concat(&[&planes, &sides], 0);
                x = b.nearest(&x, &sizes);
                x = b.conv(&x, &format!("{name}.upsamplers.0.conv"), Conv::same(channels, channels, 3));
            }
        }
        x
    }

    fn plus(&mut self, x: &Value, residual: &Residual) -> Value {
        let added = self.builder.input(&residual.name, Dtype::F32, &residual.dims);
        self.builder.add(x, &added)
    }

    /// diffusers' `ResnetBlock2D`.
    fn residual(&mut self, x: &Value, name: &str, inputs: usize, outputs: usize) -> Value {
        let Config { norm_num_groups: groups, norm_eps: epsilon, time_embedding_dim, .. } = *self.config;
        let b = &mut self.builder;
        let inner = b.group_norm(x, &format!("{name}.norm1"), inputs, groups, epsilon);
        let inner = b.silu(&inner);
        let inner = b.conv(&inner, &format!("{name}.conv1"), Conv::same(inputs, outputs, 3));
        let time = b.linear(&self.time, &format!("{name}.time_emb_proj"), time_embedding_dim, outputs);
        let time = b.reshape(&time, &[0, -1, 1, 1]);
        let inner = b.add(&inner, &time);
        let inner = b.group_norm(&inner, &format!("{name}.norm2"), outputs, groups, epsilon);
        let inner = b.silu(&inner);
        let inner = b.conv(&inner, &format!("{name}.conv2"), Conv::same(outputs, outputs, 3));
        if inputs == outputs {
            return b.add(x, &inner);
        }
        let x = b.conv(x, &format!("{name}.conv_shortcut"), Conv::same(inputs, outputs, 1));
        b.add(&x, &inner)
    }
}
