//! How samplers are found by name: by their own, and by those of other programs. It knows nothing of arithmetic.

use std::fmt;
use std::str::FromStr;

use super::SamplerKind;
use super::setting::Settings;
use crate::schedule::{Grid, ScheduleKind};
use crate::{Error, ErrorKind, name};

/// Methods that calotype does not have, by name, and why.
const NOT_HERE: [(&str, &str); 6] = [
    (
        "DPM fast",
        "expected a sampler that follows a schedule, got one that chooses its own noise levels; dpm++2s takes as many model calls",
    ),
    (
        "dpm_fast",
        "expected a sampler that follows a schedule, got one that chooses its own noise levels; dpm++2s takes as many model calls",
    ),
    (
        "DPM adaptive",
        "expected a sampler with a given number of steps, got one with adaptive steps; try dpm++3m",
    ),
    (
        "dpm_adaptive",
        "expected a sampler with a given number of steps, got one with adaptive steps; try dpm++3m",
    ),
    (
        "heunpp2",
        "expected a sampler with one or two model calls per step, got Heun++ with three; use heun or dpm++3m",
    ),
    (
        "Restart",
        "expected a sampler with falling noise levels, got one that raises them again; euler with s_churn is similar",
    ),
];

impl SamplerKind {
    /// How the levels that it visits relate to whole timesteps.
    pub fn grid(self) -> Grid {
        self.about().grid
    }

    /// The schedule that belongs to the method itself, whatever the model's: that of consistency models.
    pub fn own_schedule(self) -> Option<ScheduleKind> {
        self.about().own_schedule.cloned()
    }

    /// Whether it asks the denoiser for the unconditional answer, too.
    pub fn needs_uncond(self) -> bool {
        self.about().needs_uncond
    }

    /// Its settings where none is given.
    pub(super) fn defaults(self) -> Settings {
        Settings::new(self.about().settings, self.about().fixed)
    }

    /// The kind of this name, and the settings that the program whose name it is has by default.
    ///
    /// A name with settings is found first where it is written as its program writes it: A1111's `UniPC` is another than
    /// `unipc` here, though names are otherwise compared without case and punctuation.
    pub(super) fn named(text: &str) -> Result<(Self, &'static str), Error> {
        let presets =
            || Self::ALL.into_iter().flat_map(|kind| kind.about().presets.iter().map(move |p| (kind, p)));
        if let Some((kind, (_, settings))) = presets().find(|(_, (name, _))| *name == text.trim()) {
            return Ok((kind, settings));
        }
        let typed = bare(text);
        if let Some((name, why)) = NOT_HERE.iter().find(|(name, _)| bare(name) == typed) {
            return Err(Error::new(ErrorKind::Usage, format!("sampler: {name}: {why}")));
        }
        let called = |is_named: &dyn Fn(&Self) -> bool| Self::ALL.into_iter().find(is_named);
        let own = called(&|kind| bare(kind.about().name) == typed).map(|kind| (kind, ""));
        let preset = || presets().find(|(_, (name, _))| bare(name) == typed);
        let other = || called(&|kind| kind.about().names().any(|name| bare(name) == typed));
        let known = own
            .or_else(|| preset().map(|(kind, (_, settings))| (kind, *settings)))
            .or_else(|| other().map(|kind| (kind, "")));
        known.ok_or_else(|| name::unknown("sampler", Self::ALL.map(|kind| kind.about().name), text))
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.about().name)
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// Reads a name as it is written here, or by the users of diffusers, A1111, ComfyUI or stable-diffusion.cpp: case,
    /// spaces and punctuation do not matter, and `pp` may stand for `++`. [`ErrorKind::Usage`] for any other name.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::named(text).map(|(kind, _)| kind)
    }
}

/// A name as it is compared, without the word that ends all names in diffusers.
fn bare(name: &str) -> String {
    let bare = name::bare(name);
    bare.strip_suffix("scheduler").map(str::to_owned).unwrap_or(bare)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::sampler::ETA;

    #[test]
    fn every_kind_reads_every_name_it_has() {
        let mut taken = HashMap::new();
        for kind in SamplerKind::ALL {
            assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
            for name in kind.about().names() {
                assert_eq!(name.parse::<SamplerKind>().unwrap(), kind, "{name}");
                let first = taken.insert(bare(name), kind);
                assert!(first.is_none_or(|first| first == kind), "{name}: {first:?} and {kind:?}");
            }
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
            ("DPMSolverMultistep", SamplerKind::DpmPp2m),
            ("KDPM2AncestralDiscreteScheduler", SamplerKind::Dpm2Ancestral),
            ("DPM++ 2S a", SamplerKind::DpmPp2sAncestral),
            ("euler_a_cfg_pp", SamplerKind::EulerAncestralCfgPp),
            ("PLMS", SamplerKind::Pndm),
            ("LCM", SamplerKind::Lcm),
        ];
        for (name, kind) in names {
            assert_eq!(name.parse::<SamplerKind>().unwrap(), kind, "{name}");
        }
    }

    #[test]
    fn unknown_names_list_all_and_suggest_the_nearest() {
        for (typo, nearest) in
            [("eluer", "euler"), ("dmp++2m", "dpm++2m"), ("dpm++2m-sd", "dpm++2m-sde"), ("lmc", "lms")]
        {
            let error = typo.parse::<SamplerKind>().expect_err(typo);
            assert_eq!(error.kind(), ErrorKind::Usage);
            let text = error.to_string();
            assert!(text.ends_with(&format!("did you mean {nearest}?")), "{text}");
            assert!(SamplerKind::ALL.iter().all(|kind| text.contains(kind.about().name)), "{text}");
        }
        for hostile in ["", "++", "\0", &"e".repeat(1 << 20)] {
            assert_eq!(hostile.parse::<SamplerKind>().expect_err("no name").kind(), ErrorKind::Usage);
        }
    }

    /// The table says of each kind what its settings say.
    #[test]
    fn stochastic_kinds_are_those_that_add_noise() {
        for kind in SamplerKind::ALL {
            let about = kind.about();
            let adds = kind.defaults().get(&ETA) > 0.0 || kind == SamplerKind::Lcm;
            assert_eq!(about.is_stochastic, adds, "{kind}");
        }
    }

    /// What a row declares can be: every default is a value that may be set, and no name is there twice.
    #[test]
    fn defaults_are_within_their_ranges() {
        for kind in SamplerKind::ALL {
            let about = kind.about();
            assert!((about.check)(&kind.defaults()).is_ok(), "{kind}");
            for (at, setting) in about.settings.iter().enumerate() {
                assert!(setting.accepts(setting.default()), "{kind}: {}", setting.name());
                assert!(!setting.help().is_empty() && !setting.expected().is_empty(), "{kind}");
                let others = about.settings[..at].iter().chain(about.fixed);
                assert!(others.into_iter().all(|other| other.name() != setting.name()), "{kind}");
            }
        }
    }
}
