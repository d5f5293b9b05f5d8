//! Which numbers a U-Net can have: what no network has is refused before a graph is built. It knows no graph.

use super::{AddedEmbedding, ClassEmbedding, Config, Level, Middle, PROJECTION_KEY, TIME_FACTOR};
use crate::Error;
use crate::architecture::{MAX_BLOCKS, MAX_CHANNELS, MAX_LAYERS, check_range, unfit};

/// The most residual and transformer blocks that are believed, all together; SDXL has 87.
const MAX_ALL_LAYERS: usize = 1024;
/// The largest kernel that is believed at either end; published networks have 3.
const MAX_KERNEL: usize = 31;

impl Config {
    /// Checks that a network has these numbers; messages name diffusers' keys.
    pub(in crate::architecture) fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "block_out_channels", 1..=MAX_BLOCKS, self.levels.len())?;
        let mut widths = vec![
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("norm_num_groups", self.norm_num_groups),
            ("cross_attention_dim", self.cross_attention_dim),
        ];
        widths.extend(self.levels.iter().map(|level| ("block_out_channels", level.channels)));
        widths.extend(self.time_cond_proj_dim.map(|width| ("time_cond_proj_dim", width)));
        widths.extend(self.class_embedding.and_then(|class| match class {
            ClassEmbedding::Table(classes) => Some(("num_class_embeds", classes)),
            ClassEmbedding::Timestep => None,
            ClassEmbedding::Projection(width) => Some((PROJECTION_KEY, width)),
        }));
        if let Some(AddedEmbedding { time_width, inputs, .. }) = self.added_embedding {
            widths.push(("addition_time_embed_dim", time_width));
            widths.push((PROJECTION_KEY, inputs));
        }
        for (key, width) in widths {
            check_range(place, key, 1..=MAX_CHANNELS, width)?;
        }
        let max_time = TIME_FACTOR * MAX_CHANNELS;
        check_range(place, "time_embedding_dim", 1..=max_time, self.time_embedding_dim)?;
        for (key, kernel) in
            [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)]
        {
            if kernel > MAX_KERNEL || kernel.is_multiple_of(2) {
                return Err(unfit(place, key, format_args!("an odd number up to {MAX_KERNEL}"), kernel));
            }
        }
        if !self.norm_eps.is_finite() || self.norm_eps <= 0.0 {
            return Err(unfit(place, "norm_eps", "a positive number", self.norm_eps));
        }
        self.check_frequencies(place, "block_out_channels[0]", self.levels[0].channels)?;
        if let Some(AddedEmbedding { time_width, inputs, text_width }) = self.added_embedding {
            self.check_frequencies(place, "addition_time_embed_dim", time_width)?;
            if inputs <= time_width {
                let expected = format_args!("more than addition_time_embed_dim, {time_width}");
                return Err(unfit(place, PROJECTION_KEY, expected, inputs));
            }
            if let Some(text_width) = text_width.filter(|width| {
                inputs.checked_sub(*width).is_none_or(|sizes| sizes == 0 || sizes % time_width != 0)
            }) {
                let expected = format_args!("{text_width} for the text and {time_width} for each size");
                return Err(unfit(place, PROJECTION_KEY, expected, inputs));
            }
        }

        for (index, level) in self.levels.iter().enumerate() {
            level.check(place, index, self.norm_num_groups)?;
        }
        let middle = match self.middle {
            Middle::Absent => 0,
            Middle::Residual => 1,
            Middle::Transformer(blocks) => blocks.saturating_add(2),
        };
        if let Middle::Transformer(_) = self.middle {
            let last = self.levels.len() - 1;
            self.levels[last].check_heads(place, last)?;
        }
        let layers = self.levels.iter().map(Level::size).fold(middle, usize::saturating_add);
        if layers > MAX_ALL_LAYERS {
            let expected = format_args!("at most {MAX_ALL_LAYERS} residual and transformer blocks in all");
            return Err(unfit(place, "layers_per_block, transformer_layers_per_block", expected, layers));
        }
        Ok(())
    }

    /// Checks that sines and cosines of this width can be made.
    fn check_frequencies(&self, place: &str, key: &str, width: usize) -> Result<(), Error> {
        if !width.is_multiple_of(2) {
            return Err(unfit(place, key, "an even number of sines and cosines", width));
        }
        // Refuses what is not a number, too.
        if !(0.0..(width / 2) as f64).contains(&self.freq_shift) {
            let expected = format_args!("0 up to the frequencies of {key}, {}", width / 2);
            return Err(unfit(place, "freq_shift", expected, self.freq_shift));
        }
        Ok(())
    }
}

impl Level {
    fn check(&self, place: &str, index: usize, groups: usize) -> Result<(), Error> {
        let Self { channels, layers, down, up, .. } = self;
        if !channels.is_multiple_of(groups) {
            let expected = format_args!("a multiple of norm_num_groups, {groups}");
            return Err(unfit(place, &format!("block_out_channels[{index}]"), expected, channels));
        }
        check_range(place, "layers_per_block", 1..=MAX_LAYERS, *layers)?;
        for (transformers, expected) in [(down, *layers), (up, layers + 1)] {
            let Some(transformers) = transformers else { continue };
            self.check_heads(place, index)?;
            if transformers.len() != expected {
                let key = format!("transformer_layers_per_block[{index}]");
                let expected = format_args!("{expected} numbers, one for each residual block");
                return Err(unfit(place, &key, expected, transformers.len()));
            }
        }
        Ok(())
    }

    fn check_heads(&self, place: &str, index: usize) -> Result<(), Error> {
        let Self { channels, heads, .. } = self;
        if *heads == 0 || !channels.is_multiple_of(*heads) {
            let expected = format_args!("a number of heads that divides {channels} channels");
            return Err(unfit(place, &format!("attention_head_dim[{index}]"), expected, heads));
        }
        Ok(())
    }

    /// How many residual and transformer blocks it has.
    fn size(&self) -> usize {
        let transformers = self.down.iter().chain(&self.up).flatten().copied();
        transformers.fold(self.layers.saturating_mul(2).saturating_add(1), usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use crate::architecture::unet::tests::{SD15, parse, refusal, refusal_with, sdxl, with};
    use crate::architecture::unet::{Config, DEPTHS_KEY, Middle};

    #[test]
    fn levels_without_end() {
        assert_eq!(refusal_with("block_out_channels", "[]"), "block_out_channels: expected 1 to 16, got 0");
        let many = format!("{:?}", [32; 17]);
        assert_eq!(refusal_with("block_out_channels", &many), "block_out_channels: expected 1 to 16, got 17");
    }

    #[test]
    fn layers_without_end() {
        let key = "layers_per_block";
        for (value, got) in [("0", "0"), ("257", "257"), ("[2, 0, 2, 2]", "0")] {
            assert_eq!(refusal_with(key, value), format!("{key}: expected 1 to 256, got {got}"));
        }
        let most = u64::MAX.to_string();
        assert_eq!(refusal_with(key, &most), format!("{key}: expected 1 to 256, got {most}"));
        // There are sixteen transformers: each may be believable, and all together not.
        for depth in ["100", &most] {
            let message = refusal_with(DEPTHS_KEY, depth);
            assert!(
                message.starts_with(
                    "layers_per_block, transformer_layers_per_block: expected at most 1024 residual and \
                     transformer blocks in all, got "
                ),
                "{message}"
            );
        }
    }

    #[test]
    fn absurd_widths() {
        let most = u64::MAX.to_string();
        for key in
            ["in_channels", "out_channels", "norm_num_groups", "cross_attention_dim", "time_cond_proj_dim"]
        {
            assert_eq!(refusal_with(key, "0"), format!("{key}: expected 1 to 65536, got 0"));
            assert_eq!(refusal_with(key, &most), format!("{key}: expected 1 to 65536, got {most}"));
        }
        assert_eq!(refusal_with("num_class_embeds", "0"), "num_class_embeds: expected 1 to 65536, got 0");
        let most_channels = format!("[320, 640, {most}, 1280]");
        let message = refusal_with("block_out_channels", &most_channels);
        assert_eq!(message, format!("block_out_channels: expected 1 to 65536, got {most}"));
        let message = refusal_with("block_out_channels", &format!("[{most}, 640, 640, 1280]"));
        assert_eq!(message, format!("block_out_channels: expected 1 to 65536, got {most}"));
        let message = refusal_with("time_embedding_dim", "0");
        assert_eq!(message, "time_embedding_dim: expected 1 to 262144, got 0");
        let json = with(&sdxl(), "addition_time_embed_dim", "65537");
        assert_eq!(refusal(&json), "addition_time_embed_dim: expected 1 to 65536, got 65537");
    }

    #[test]
    fn channels_that_cannot_be_divided() {
        assert_eq!(
            refusal_with("norm_num_groups", "48"),
            "block_out_channels[0]: expected a multiple of norm_num_groups, 48, got 320"
        );
        assert_eq!(
            refusal_with("attention_head_dim", "7"),
            "attention_head_dim[0]: expected a number of heads that divides 320 channels, got 7"
        );
        assert_eq!(
            refusal_with("attention_head_dim", "[8, 0, 8, 8]"),
            "attention_head_dim[1]: expected a number of heads that divides 640 channels, got 0"
        );
        // The last level of SD 1.5 has no transformers, but its middle has one, and the same heads.
        assert_eq!(
            refusal_with("attention_head_dim", "[8, 8, 8, 9]"),
            "attention_head_dim[3]: expected a number of heads that divides 1280 channels, got 9"
        );
    }

    #[test]
    fn kernels_that_change_the_size() {
        for (key, value) in [("conv_in_kernel", 2), ("conv_out_kernel", 0), ("conv_in_kernel", 33)] {
            assert_eq!(
                refusal_with(key, &value.to_string()),
                format!("{key}: expected an odd number up to 31, got {value}")
            );
        }
    }

    #[test]
    fn frequencies_that_cannot_be() {
        let message = refusal_with("freq_shift", "160");
        assert_eq!(
            message,
            "freq_shift: expected 0 up to the frequencies of block_out_channels[0], 160, got 160"
        );
        assert!(refusal_with("freq_shift", "-1").ends_with("got -1"));
        let message = refusal(&with(&sdxl(), "addition_time_embed_dim", "255"));
        assert_eq!(message, "addition_time_embed_dim: expected an even number of sines and cosines, got 255");
        let odd = with(SD15, "norm_num_groups", "1");
        let message = refusal(&with(&odd, "block_out_channels", "[321, 640, 1280, 1280]"));
        assert_eq!(message, "block_out_channels[0]: expected an even number of sines and cosines, got 321");
    }

    #[test]
    fn epsilons_that_cannot_be() {
        assert_eq!(refusal_with("norm_eps", "0.0"), "norm_eps: expected a positive number, got 0");
        assert_eq!(refusal_with("norm_eps", "-1e-5"), "norm_eps: expected a positive number, got -0.00001");
    }

    #[test]
    fn configurations_built_in_code_are_checked_too() {
        let refusal = |change: fn(&mut Config)| {
            let mut config = parse(SD15);
            change(&mut config);
            config.graph().expect_err("the configuration is hostile").to_string()
        };
        assert_eq!(
            refusal(|config| config.levels.clear()),
            "unet: block_out_channels: expected 1 to 16, got 0"
        );
        assert_eq!(
            refusal(|config| config.levels[1].up = Some(vec![1, 1])),
            "unet: transformer_layers_per_block[1]: expected 3 numbers, one for each residual block, got 2"
        );
        assert_eq!(
            refusal(|config| config.levels[3].layers = usize::MAX),
            format!("unet: layers_per_block: expected 1 to 256, got {}", usize::MAX)
        );
        assert_eq!(
            refusal(|config| config.norm_eps = f64::NAN),
            "unet: norm_eps: expected a positive number, got NaN"
        );
        assert!(refusal(|config| config.freq_shift = f64::NAN).starts_with("unet: freq_shift: expected"));
        assert!(refusal(|config| config.middle = Middle::Transformer(usize::MAX)).contains("in all"));
    }
}
