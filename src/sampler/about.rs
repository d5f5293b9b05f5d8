//! A row of the table of samplers: what a sampler is called here and elsewhere, its settings, and how it is built.
//! It knows no sampler: each declares its rows in its own file.

use super::Sampler;
use super::setting::{AnySetting, Declared, Settings};
use crate::schedule::{Grid, Schedule, ScheduleKind};

/// What is to be known of a kind of sampler.
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// How often a step asks the model.
    pub evaluations: usize,
    /// How fast errors shrink with the number of steps, at its default settings but `eta`, which is 0; 0 for methods that
    /// cannot follow the ordinary equation.
    pub order: usize,
    /// Whether steps add fresh noise at its default settings.
    pub is_stochastic: bool,
    /// Whether it steps along slopes, so that it also works on the levels of flow matching.
    pub is_slope: bool,
    /// Which models it is for.
    pub models: &'static str,
    /// Its names in diffusers: a scheduler, with the settings that make it this kind.
    pub diffusers: &'static str,
    /// Its name in A1111's web UI.
    pub a1111: &'static str,
    /// Its name in ComfyUI.
    pub comfyui: &'static str,
    /// Its name in stable-diffusion.cpp.
    pub sd_cpp: &'static str,
    /// Names that are read beside these.
    pub(super) others: &'static [&'static str],
    /// Names whose program has other settings by default, and these.
    pub(super) presets: &'static [(&'static str, &'static str)],
    /// The settings that users may set.
    pub(super) settings: Declared,
    /// Settings of its file whose value belongs to the sampler.
    pub(super) fixed: Declared,
    /// Whether settings that are right by themselves are right together; what was expected, where they are not.
    pub(super) check: fn(&Settings) -> Result<(), String>,
    /// How the levels that it visits relate to whole timesteps.
    pub(super) grid: Grid,
    /// The schedule that belongs to the method itself, whatever the model's: that of consistency models.
    pub(super) own_schedule: Option<&'static ScheduleKind>,
    /// Whether it asks the denoiser for the unconditional answer, too.
    pub(super) needs_uncond: bool,
    /// A sampler for one run over this schedule, on latents of so many values.
    pub(super) build: Build,
}

/// What builds a sampler: settings, the schedule of the run, and how many values its latents have.
pub(super) type Build = fn(&Settings, &Schedule, usize) -> Box<dyn Sampler>;

impl About {
    /// A row of what most samplers are, to which each adds what it is.
    pub(super) const fn new(name: &'static str, build: Build) -> Self {
        Self {
            name,
            evaluations: 1,
            order: 1,
            is_stochastic: false,
            is_slope: false,
            models: "any",
            diffusers: "",
            a1111: "",
            comfyui: "",
            sd_cpp: "",
            others: &[],
            presets: &[],
            settings: &[],
            fixed: &[],
            check: |_| Ok(()),
            grid: Grid::Fractional,
            own_schedule: None,
            needs_uncond: false,
            build,
        }
    }

    /// The settings that it has.
    pub fn settings(&self) -> &'static [&'static dyn AnySetting] {
        self.settings
    }

    /// Every name that is read as this kind.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        let elsewhere = [self.name, self.a1111, self.comfyui, self.sd_cpp];
        let classes = self.diffusers.split(' ').take(1).filter(|_| !self.diffusers.contains('='));
        elsewhere
            .into_iter()
            .chain(classes)
            .chain(self.others.iter().copied())
            .filter(|name| !name.is_empty())
    }
}
