//! Samplers: how latents move from one noise level to the next, given a denoiser.
//! They know nothing of models, prediction types or guidance.

mod ddim;
mod dpmpp;
mod euler;
mod lcm;

use std::fmt;
use std::str::FromStr;

use crate::noise::NoiseSource;
use crate::schedule::{Grid, NoiseCurve, Schedule, ScheduleKind, Spacing, Step};
use crate::{Error, ErrorKind};

/// What a sampler asks of a model: the clean latents behind noisy ones.
pub trait Denoise {
    /// Writes the clean latents expected behind `x` to `out`, which is as long.
    ///
    /// `x` is `x0 + step_sigma * noise`; `timestep` is the model's own time of `step_sigma`.
    fn denoise(&mut self, x: &[f32], step_sigma: f64, timestep: f64, out: &mut [f32]) -> Result<(), Error>;
}

/// One run of a sampling method.
pub trait Sampler {
    /// Takes `x` from noise level `step.from` to `step.to`. Allocates nothing.
    ///
    /// Steps come in the order of their schedule, from any one on. Noise is drawn in the order in which diffusers
    /// draws it, a whole tensor at a time. The errors are the denoiser's; `x` is then as it was.
    ///
    /// # Panics
    /// Where `x` does not have the length that the sampler was built for.
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn NoiseSource,
    ) -> Result<(), Error>;
}

/// The sampling methods, each with the levels it visits.
///
/// ```
/// use calotype::sampler::SamplerKind;
/// assert_eq!("DPM++ 2M Karras".parse::<SamplerKind>()?, SamplerKind::DpmPp2mKarras);
/// assert_eq!(SamplerKind::DpmPp2mKarras.to_string(), "dpm++2m-karras");
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// Euler's method (Karras et al. 2022).
    Euler,
    /// Euler's method with fresh noise after each step.
    EulerAncestral,
    /// Deterministic DDIM (Song, Meng & Ermon 2021).
    Ddim,
    /// Second-order multistep DPM-Solver++ (Lu et al. 2022).
    DpmPp2m,
    /// The same on the noise levels of Karras et al. 2022.
    DpmPp2mKarras,
    /// Latent consistency models (Luo et al. 2023): a few steps of a model distilled for it.
    Lcm,
}

impl SamplerKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Euler, Self::EulerAncestral, Self::Ddim, Self::DpmPp2m, Self::DpmPp2mKarras, Self::Lcm];

    /// The levels that this method visits in `steps` steps: those of diffusers' scheduler of that name.
    ///
    /// The Karras levels and those of latent consistency models do not depend on the spacing.
    /// [`ErrorKind::Usage`] for no steps, or for more than the curve and the spacing have room for.
    pub fn schedule(self, curve: &NoiseCurve, spacing: Spacing, steps: usize) -> Result<Schedule, Error> {
        let spaced = ScheduleKind::Spaced(spacing);
        match self {
            Self::Euler | Self::EulerAncestral => Schedule::of(&spaced, curve, Grid::Fractional, steps),
            Self::Ddim => Schedule::of(&spaced, curve, Grid::Whole, steps),
            Self::DpmPp2m => Schedule::of(&spaced, curve, Grid::WholeAboveLast, steps),
            Self::DpmPp2mKarras => {
                Schedule::of(&ScheduleKind::Karras { rho: 7.0 }, curve, Grid::WholeAboveLast, steps)
            }
            Self::Lcm => Schedule::of(&ScheduleKind::Lcm { trained_steps: 50 }, curve, Grid::Whole, steps),
        }
    }

    /// A sampler for one run on latents of `len` values.
    pub fn build(self, len: usize) -> Box<dyn Sampler> {
        match self {
            Self::Euler => Box::new(euler::Euler::new(len)),
            Self::EulerAncestral => Box::new(euler::EulerAncestral::new(len)),
            Self::Ddim => Box::new(ddim::Ddim::new(len)),
            Self::DpmPp2m | Self::DpmPp2mKarras => Box::new(dpmpp::DpmPp2m::new(len)),
            Self::Lcm => Box::new(lcm::Lcm::new(len)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Ddim => "ddim",
            Self::DpmPp2m => "dpm++2m",
            Self::DpmPp2mKarras => "dpm++2m-karras",
            Self::Lcm => "lcm",
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// Reads a name as it is written here, by diffusers' users or by A1111's: case, spaces and punctuation do not
    /// matter, and `pp` may stand for `++`. [`ErrorKind::Usage`] for any other name.
    fn from_str(text: &str) -> Result<Self, Error> {
        let typed = bare(text);
        if typed == "eulerancestral" {
            return Ok(Self::EulerAncestral);
        }
        if let Some(kind) = Self::ALL.into_iter().find(|kind| bare(kind.name()) == typed) {
            return Ok(kind);
        }
        let names = Self::ALL.map(Self::name).join(", ");
        let mut error =
            Error::new(ErrorKind::Usage, format!("sampler: expected one of {names}, got {text:?}"));
        // Measuring an endless name is not worth a suggestion.
        if typed.len() < 32 {
            let nearest = Self::ALL.into_iter().min_by_key(|kind| edit_distance(&bare(kind.name()), &typed));
            error = error.help(format!("did you mean {}?", nearest.expect("there are kinds")));
        }
        Err(error)
    }
}

/// A name without case, spaces and punctuation.
fn bare(name: &str) -> String {
    name.to_lowercase().replace("++", "pp").chars().filter(|c| c.is_alphanumeric()).collect()
}

/// How many letters must be put in, taken out or exchanged to make one word of the other (Levenshtein 1966).
fn edit_distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let exchanged = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_its_own_name() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
        }
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        let names = [
            ("Euler", SamplerKind::Euler),
            ("Euler a", SamplerKind::EulerAncestral),
            ("euler_ancestral", SamplerKind::EulerAncestral),
            ("DDIM", SamplerKind::Ddim),
            ("dpmpp_2m", SamplerKind::DpmPp2m),
            ("dpm++-2m", SamplerKind::DpmPp2m),
            ("DPM++ 2M", SamplerKind::DpmPp2m),
            ("dpmpp_2m_karras", SamplerKind::DpmPp2mKarras),
            ("DPM++ 2M Karras", SamplerKind::DpmPp2mKarras),
            ("LCM", SamplerKind::Lcm),
        ];
        for (name, kind) in names {
            assert_eq!(name.parse::<SamplerKind>().unwrap(), kind, "{name}");
        }
    }

    #[test]
    fn unknown_names_list_all_and_suggest_the_nearest() {
        for (typo, nearest) in
            [("eluer", "euler"), ("dmp++2m", "dpm++2m"), ("dpm++2m-karas", "dpm++2m-karras"), ("lmc", "lcm")]
        {
            let error = typo.parse::<SamplerKind>().expect_err(typo);
            assert_eq!(error.kind(), ErrorKind::Usage);
            let text = error.to_string();
            assert!(text.ends_with(&format!("did you mean {nearest}?")), "{text}");
            assert!(SamplerKind::ALL.iter().all(|kind| text.contains(kind.name())), "{text}");
        }
        for hostile in ["", "++", "\0", &"e".repeat(1 << 20)] {
            assert_eq!(hostile.parse::<SamplerKind>().expect_err("no name").kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn edit_distance_counts_edits() {
        for (one, other, edits) in
            [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
        {
            assert_eq!(edit_distance(one, other), edits, "{one} {other}");
            assert_eq!(edit_distance(other, one), edits, "{other} {one}");
        }
    }
}
