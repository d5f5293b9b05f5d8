//! The text encoders that families read: three published CLIP models, and the special tokens of all.
//! It knows nothing of the names of their tensors.

use crate::tokenizer::SpecialTokens;

/// A published text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoder {
    /// OpenAI's CLIP ViT-L.
    ClipL,
    /// OpenCLIP's ViT-H, of whose 24 layers the last is not read.
    OpenClipH,
    /// OpenCLIP's ViT-bigG, which gives the prompt in one vector, too.
    OpenClipG,
}

/// How many tokens a prompt has, special tokens included.
pub(crate) const CONTEXT: usize = 77;
/// Those around a prompt.
const BOS: u32 = 49406;
const EOS: u32 = 49407;
/// What prompts of OpenCLIP's encoders are padded with: `!`.
const OPEN_CLIP_PAD: u32 = 0;

/// CLIP's special tokens, for an encoder of OpenAI's or of OpenCLIP's.
pub(crate) fn special_tokens(is_open_clip: bool) -> SpecialTokens {
    SpecialTokens { bos: BOS, eos: EOS, pad: if is_open_clip { OPEN_CLIP_PAD } else { EOS } }
}

impl Encoder {
    const ALL: [Self; 3] = [Self::ClipL, Self::OpenClipH, Self::OpenClipG];

    /// The encoder whose states are so wide.
    pub(crate) fn of_width(width: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|encoder| encoder.width() == width)
    }

    /// The width of its states.
    pub(crate) const fn width(self) -> usize {
        match self {
            Self::ClipL => 768,
            Self::OpenClipH => 1024,
            Self::OpenClipG => 1280,
        }
    }

    /// How many layers it is published with, where the last of them is not read.
    pub(crate) const fn layers_with_unread(self) -> Option<usize> {
        match self {
            Self::OpenClipH => Some(24),
            Self::ClipL | Self::OpenClipG => None,
        }
    }

    /// Its place among a model's text encoders.
    pub(crate) const fn position(self) -> usize {
        match self {
            Self::ClipL | Self::OpenClipH => 0,
            Self::OpenClipG => 1,
        }
    }

    /// What it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ClipL => "CLIP ViT-L",
            Self::OpenClipH => "OpenCLIP ViT-H",
            Self::OpenClipG => "OpenCLIP ViT-bigG",
        }
    }
}
