//! The layout of a U-Net in a single file: what names and shapes tell of it.
//! It knows no names.

use crate::architecture::unet::Middle;

/// What names and shapes tell of a U-Net.
pub(crate) struct Layout {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) time_width: usize,
    pub(crate) cross_width: usize,
    /// Whether transformers begin and end with linear layers, not convolutions.
    pub(crate) is_linear: bool,
    /// The name and the width of the embedding of the guidance scale (LCM).
    pub(crate) condition: Option<(&'static str, usize)>,
    pub(crate) label: Label,
    pub(crate) levels: Vec<Level>,
    pub(crate) middle: Middle,
}

/// What is added to the time embedding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    Nothing,
    /// One of so many classes.
    Class(usize),
    /// A vector of this width.
    Vector(usize),
}

#[derive(Default)]
pub(crate) struct Level {
    pub(crate) channels: usize,
    /// Per residual block on the way down the number of transformer blocks behind it; 0 without a transformer.
    pub(crate) down: Vec<usize>,
    /// The same on the way up, where there is one residual block more.
    pub(crate) up: Vec<usize>,
}

impl Layout {
    /// Whether a transformer works at the latents' own size.
    pub(crate) fn reads_at_full_size(&self) -> bool {
        self.levels[0].down.iter().any(|depth| *depth > 0)
    }
}
