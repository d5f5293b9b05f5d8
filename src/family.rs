//! Model families: what models with the same kinds of networks have in common, and the files of a model leave out. A family is
//! one file in `family/`, with its text-to-image, inpainting, editing and upscaling variants, and one line in the table here.
//! It knows numbers, names and shapes, and nothing of how files are read or graphs are made.

mod encoder;
mod layout;
mod sd1;
mod sd2;
mod sdxl;
mod sdxl_refiner;
mod upscaler;

use std::fmt;

pub(crate) use self::encoder::{CONTEXT, Encoder, special_tokens};
pub(crate) use self::layout::{Label, Layout, Level};
pub(crate) use self::sdxl_refiner::{STRENGTH as REFINER_STRENGTH, TIME_IDS as AESTHETIC_TIME_IDS};
use crate::Error;
use crate::architecture::clip::States;
use crate::architecture::unet;
use crate::name;
use crate::noise_model::NoiseModel;
use crate::prediction::Prediction;
use crate::schedule::{Betas, Spacing};

/// Declares [`Family`] from a table of variants and the files that describe them.
macro_rules! families {
    ($($(#[$about:meta])* $variant:ident: $file:ident,)*) => {
        /// Models with the same kinds of networks.
        ///
        /// Distilled models (Turbo, Lightning, LCM without a guidance input) have the names and shapes of what they were made from.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Family {
            $($(#[$about])* $variant,)*
        }

        impl Family {
            /// Every family, in the order in which files are compared with them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            fn facts(self) -> &'static Facts {
                match self {
                    $(Self::$variant => &$file::FACTS,)*
                }
            }
        }
    };
}

families! {
    /// Stable Diffusion 1.
    Sd1: sd1,
    /// Stable Diffusion 2.
    Sd2: sd2,
    /// Stable Diffusion XL, base.
    Sdxl: sdxl,
    /// Stable Diffusion XL, refiner.
    SdxlRefiner: sdxl_refiner,
    /// The Stable Diffusion x4 upscaler.
    Upscaler: upscaler,
}

/// What is known of a family.
struct Facts {
    name: &'static str,
    /// What other programs call it, in files and menus.
    aliases: &'static [&'static str],
    /// Whether a U-Net in a single file is one of this family.
    fits: fn(&Layout) -> Fit,
    /// What its published U-Net takes beside latents and time.
    inputs: Inputs,
    /// Tensors of its published U-Net under their original names and their shapes, the most distinctive first.
    tells: Tells,
    /// What its U-Nets are given beside noise and text.
    purposes: &'static [Purpose],
    heads: Heads,
    /// Whether the first attention of a block reads the text, too, at all resolutions but the lowest.
    only_cross_attention: bool,
    /// Rows and columns of the latents that a U-Net of this prediction was trained on.
    cells: fn(Prediction) -> usize,
    /// Its text encoders.
    text: &'static [Encoder],
    /// Which states its U-Net was trained on.
    states: States,
    /// Whether the absent negative prompt is zeros.
    zero_negative: bool,
    latents: Latents,
    /// The noise that its U-Net was trained on.
    noise: Noise,
    /// What its U-Net predicts where the file does not say.
    prediction: Prediction,
    /// A tensor whose values say what a U-Net predicts, where there is one.
    telling: Option<fn(&Layout, Purpose) -> Option<Telling>>,
    /// The default number of steps and guidance scale of a model that is not distilled.
    steps: usize,
    guidance: f64,
    /// The most noise on an image that is upscaled, in timesteps.
    max_noise_level: Option<usize>,
}

/// How latents relate to images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latents {
    /// Values per cell.
    pub(crate) channels: usize,
    /// What the VAE's latents are multiplied by for the U-Net, once `shift` is subtracted.
    pub(crate) scale: f64,
    /// The VAE's latents' mean.
    pub(crate) shift: f64,
    /// Per channel of the U-Net's latents its share of red, green and blue, in -1..=1, for previews.
    pub(crate) rgb: Option<&'static [[f32; 3]]>,
}

/// The noise that a U-Net was trained on.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    pub(crate) betas: Betas,
    pub(crate) train_timesteps: usize,
    /// Which timesteps a run visits unless the sampler has its own.
    pub(crate) spacing: Spacing,
}

impl Noise {
    /// Stable Diffusion's (its `configs/stable-diffusion/v1-inference.yaml`, and diffusers' schedulers of it).
    const STABLE_DIFFUSION: Self = Self {
        betas: Betas::ScaledLinear { start: 0.00085, end: 0.012 },
        train_timesteps: 1000,
        spacing: Spacing::Leading { offset: 1 },
    };

    /// The curve itself.
    pub(crate) fn model(self) -> Result<NoiseModel, Error> {
        NoiseModel::discrete(self.betas, self.train_timesteps, self.spacing)
    }

    /// The same down to noise alone, from which runs are then to start (Lin et al. 2024, section 3.3).
    pub(crate) fn with_zero_terminal_snr(self) -> Self {
        let betas = Betas::ZeroTerminalSnr(Box::new(self.betas));
        Self { betas, spacing: Spacing::Trailing, ..self }
    }
}

/// How many heads an attention has.
#[derive(Clone, Copy)]
enum Heads {
    Count(usize),
    /// As many as there are so many channels.
    Width(usize),
}

/// Whether a U-Net is one of a family.
pub(crate) enum Fit {
    No,
    Yes,
    /// It is a relative that cannot be run: what it looks like, and the way out.
    Relative(String, &'static str),
}

impl From<bool> for Fit {
    fn from(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }
}

/// What a U-Net takes beside latents and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// The width of the text's states.
    pub(crate) states: Option<usize>,
    /// Whether it takes the prompt in one vector.
    pub(crate) pooled: bool,
    /// How many sizes it takes with that, where it is known.
    pub(crate) time_ids: Option<usize>,
    /// Whether it takes the noise level of an image as a class.
    pub(crate) class_labels: bool,
}

impl Inputs {
    pub(crate) fn of(config: &unet::Config) -> Self {
        Self {
            states: Some(config.cross_attention_dim),
            pooled: config.added_embedding.is_some(),
            time_ids: None,
            class_labels: config.class_embedding.is_some(),
        }
    }

    /// Whether both are of the same kinds, whatever the widths.
    fn are_like(self, other: Self) -> bool {
        let agree =
            |one: Option<usize>, other: Option<usize>| one.is_none() || other.is_none() || one == other;
        (self.pooled, self.class_labels) == (other.pooled, other.class_labels)
            && agree(self.time_ids, other.time_ids)
    }
}

/// Tensors and their shapes.
pub(crate) type Tells = &'static [(&'static str, &'static [usize])];

/// A tensor whose values say what a U-Net predicts.
pub(crate) struct Telling {
    /// A vector.
    pub(crate) tensor: String,
    /// The standard deviation of its values above which `prediction` is meant, and otherwise the family's usual one.
    pub(crate) above: f64,
    pub(crate) prediction: Prediction,
}

/// What a U-Net is given beside noise and text, as the number of its input channels says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing.
    Generate,
    /// A mask and the latents of what is outside of it.
    Inpaint,
    /// The latents of an image to be edited (InstructPix2Pix).
    Edit,
    /// The pixels of a small image.
    Upscale,
}

impl Purpose {
    /// How many channels that adds to latents of `channels`.
    pub(crate) fn added_channels(self, channels: usize) -> usize {
        match self {
            Self::Generate => 0,
            Self::Inpaint => channels.saturating_add(1),
            Self::Edit => channels,
            Self::Upscale => 3,
        }
    }
}

impl Family {
    /// The family of this name, or of one that other programs have for it, whatever its case and punctuation.
    ///
    /// ```
    /// use calotype::family::Family;
    /// assert_eq!(Family::named("stable-diffusion-xl-v1-base"), Some(Family::Sdxl));
    /// assert_eq!(Family::named("sd 1.5"), Some(Family::Sd1));
    /// assert_eq!(Family::named("flux"), None);
    /// ```
    pub fn named(text: &str) -> Option<Self> {
        let bare = name::bare(text);
        let is_named = |family: &&Self| {
            let facts = family.facts();
            facts.aliases.iter().chain([&facts.name]).any(|known| name::bare(known) == bare)
        };
        Self::ALL.iter().find(is_named).copied()
    }

    /// The family of a U-Net that takes exactly this, if any is known.
    pub(crate) fn of(inputs: Inputs) -> Option<Self> {
        let fits = |family: &&Self| {
            let own = family.facts().inputs;
            own.states == inputs.states && own.are_like(inputs)
        };
        Self::ALL.iter().find(fits).copied()
    }

    /// The family whose numbers a U-Net that takes this is given where its files say none: the first that takes the same kinds
    /// of inputs, or else the first of all.
    pub(crate) fn like(inputs: Inputs) -> Self {
        let is_like = |family: &&Self| family.facts().inputs.are_like(inputs);
        Self::of(inputs).or_else(|| Self::ALL.iter().find(is_like).copied()).unwrap_or(Self::ALL[0])
    }

    /// Per channel of the latents its share of red, green and blue, in -1..=1, for previews without a VAE; nothing where none are
    /// published. A preview's pixel is `sum(latents[channel] * share[channel])`.
    pub fn latent_rgb(self) -> Option<&'static [[f32; 3]]> {
        self.facts().latents.rgb
    }

    pub(crate) fn fits(self, layout: &Layout) -> Fit {
        (self.facts().fits)(layout)
    }

    pub(crate) fn tells(self) -> Tells {
        self.facts().tells
    }

    pub(crate) fn purposes(self) -> &'static [Purpose] {
        self.facts().purposes
    }

    /// How many heads an attention of `channels` has; the width that these are to be a multiple of, where they are not.
    pub(crate) fn heads(self, channels: usize) -> Result<usize, usize> {
        match self.facts().heads {
            Heads::Count(count) => Ok(count),
            Heads::Width(width) if channels.is_multiple_of(width) => Ok(channels / width),
            Heads::Width(width) => Err(width),
        }
    }

    pub(crate) fn only_cross_attention(self) -> bool {
        self.facts().only_cross_attention
    }

    pub(crate) fn cells(self, prediction: Prediction) -> usize {
        (self.facts().cells)(prediction)
    }

    pub(crate) fn text(self) -> &'static [Encoder] {
        self.facts().text
    }

    pub(crate) fn states(self) -> States {
        self.facts().states
    }

    /// Whether its U-Net takes the prompt in one vector, which its last text encoder gives.
    pub(crate) fn pools(self) -> bool {
        self.facts().inputs.pooled
    }

    pub(crate) fn zero_negative(self) -> bool {
        self.facts().zero_negative
    }

    pub(crate) fn latents(self) -> Latents {
        self.facts().latents
    }

    pub(crate) fn noise(self) -> Noise {
        self.facts().noise.clone()
    }

    pub(crate) fn prediction(self) -> Prediction {
        self.facts().prediction
    }

    /// Whether values of tensors say what its U-Nets predict.
    pub(crate) fn tells_prediction(self) -> bool {
        self.facts().telling.is_some()
    }

    pub(crate) fn telling(self, layout: &Layout, purpose: Purpose) -> Option<Telling> {
        self.facts().telling.and_then(|telling| telling(layout, purpose))
    }

    pub(crate) fn steps(self) -> usize {
        self.facts().steps
    }

    pub(crate) fn guidance(self) -> f64 {
        self.facts().guidance
    }

    pub(crate) fn max_noise_level(self) -> Option<usize> {
        self.facts().max_noise_level
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().name)
    }
}

/// Which families can be run, as the end of a message.
pub(crate) fn supported() -> String {
    let names: Vec<String> = Family::ALL.iter().map(ToString::to_string).collect();
    format!(
        "{} are supported, with their inpainting, InstructPix2Pix, LCM and Turbo models",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_inputs_and_tensors_tell_families_apart() {
        for family in Family::ALL {
            let facts = family.facts();
            for name in facts.aliases.iter().chain([&facts.name]) {
                assert_eq!(Family::named(name), Some(*family), "{name}");
            }
            assert_eq!(Family::of(facts.inputs), Some(*family));
            assert_eq!(Family::like(facts.inputs), *family);
            assert!(Family::ALL.iter().all(|other| other == family || other.tells() != family.tells()));
            assert!(facts.latents.rgb.is_none_or(|rgb| rgb.len() == facts.latents.channels), "{family}");
        }
        // Narrow models are told by the kinds of their inputs alone.
        let narrow = |pooled, time_ids, class_labels| {
            Family::like(Inputs { states: Some(32), pooled, time_ids, class_labels })
        };
        assert_eq!(narrow(false, None, false), Family::Sd1);
        assert_eq!(narrow(true, None, false), Family::Sdxl);
        assert_eq!(narrow(true, Some(5), false), Family::SdxlRefiner);
        assert_eq!(narrow(false, None, true), Family::Upscaler);
        assert_eq!(Family::of(Inputs { states: Some(32), ..Inputs::default() }), None);
    }
}
