//! The transformers of a U-Net: attention to the image itself and to the text, and feed-forward layers.
//! It knows no level.

use super::Level;
use super::network::Network;
use crate::architecture::builder::Value;

/// The epsilon of a transformer's group norm, whatever that of the residual blocks' is.
const TRANSFORMER_GROUP_EPSILON: f64 = 1e-6;
/// The epsilon of the layer norms in a transformer block.
const LAYER_EPSILON: f64 = 1e-5;
/// How much wider a transformer block is inside.
const FEED_FORWARD_FACTOR: usize = 4;

impl Network<'_> {
    /// diffusers' `Transformer2DModel`: an image's cells as tokens, and back.
    ///
    /// Its outer layers are linear here, also for `use_linear_projection: false`, which stores the same numbers as
    /// convolutions of one cell.
    pub(super) fn transformer(&mut self, x: &Value, name: &str, level: &Level, blocks: usize) -> Value {
        let channels = level.channels;
        let b = &mut self.builder;
        let groups = self.config.norm_num_groups;
        let tokens =
            b.group_norm_tokens(x, &format!("{name}.norm"), channels, groups, TRANSFORMER_GROUP_EPSILON);
        let mut tokens = b.linear(&tokens, &format!("{name}.proj_in"), channels, channels);
        for block in 0..blocks {
            tokens = self.transformer_block(&tokens, &format!("{name}.transformer_blocks.{block}"), level);
        }
        let b = &mut self.builder;
        let tokens = b.linear(&tokens, &format!("{name}.proj_out"), channels, channels);
        let planes = b.transpose(&tokens, &[0, 2, 1]);
        let sizes = b.sizes(x, 0, 4);
        let planes = b.op("Reshape", &[&planes, &sizes], &[]);
        b.add(&planes, x)
    }

    /// diffusers' `BasicTransformerBlock`.
    fn transformer_block(&mut self, x: &Value, name: &str, level: &Level) -> Value {
        let channels = level.channels;
        let normal = self.builder.layer_norm(x, &format!("{name}.norm1"), channels, LAYER_EPSILON);
        let attended = self.attention(&normal, &format!("{name}.attn1"), level, level.only_cross_attention);
        let x = self.builder.add(&attended, x);
        let normal = self.builder.layer_norm(&x, &format!("{name}.norm2"), channels, LAYER_EPSILON);
        let attended = self.attention(&normal, &format!("{name}.attn2"), level, true);
        let b = &mut self.builder;
        let x = b.add(&attended, &x);

        // GEGLU (Shazeer 2020).
        let inner = FEED_FORWARD_FACTOR * channels;
        let normal = b.layer_norm(&x, &format!("{name}.norm3"), channels, LAYER_EPSILON);
        let both = b.linear(&normal, &format!("{name}.ff.net.0.proj"), channels, 2 * inner);
        let halves = b.split(&both, -1, 2);
        let gate = b.gelu(&halves[1]);
        let gated = b.mul(&halves[0], &gate);
        let fed = b.linear(&gated, &format!("{name}.ff.net.2"), inner, channels);
        b.add(&fed, &x)
    }

    /// Attention to the text, or to `x` itself.
    fn attention(&mut self, x: &Value, name: &str, level: &Level, to_text: bool) -> Value {
        let channels = level.channels;
        let (seen, width) =
            if to_text { (&self.text, self.config.cross_attention_dim) } else { (x, channels) };
        let b = &mut self.builder;
        let q = b.linear_without_bias(x, &format!("{name}.to_q"), channels, channels);
        let k = b.linear_without_bias(seen, &format!("{name}.to_k"), width, channels);
        let v = b.linear_without_bias(seen, &format!("{name}.to_v"), width, channels);
        let mixed = b.attention(&q, &k, &v, level.heads, false);
        b.linear(&mixed, &format!("{name}.to_out.0"), channels, channels)
    }
}
