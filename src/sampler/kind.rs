//! The sampling methods there are: their names here and elsewhere, and what they need. It knows nothing of arithmetic.

use std::fmt;
use std::str::FromStr;

use super::adams;
use super::deis;
use super::dpm;
use super::er_sde;
use super::method::{Bh, Key, Settings, Solver, StepNoiseKind, Third, Variance};
use super::unipc;
use crate::schedule::{Grid, ScheduleKind};
use crate::{Error, ErrorKind, name};

/// The kinds of sampling methods. What each is, and what it is called elsewhere, is in its [`About`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Names are what there is to say; `about` says the rest.
pub enum SamplerKind {
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    Ddim,
    Ddpm,
    Pndm,
    Ipndm,
    DpmSolver,
    DpmSolverSde,
    DpmSolverSinglestep,
    DpmPp2m,
    DpmPp3m,
    DpmPp2mSde,
    DpmPp2mSdeHeun,
    DpmPp3mSde,
    DpmPp2s,
    DpmPp3s,
    DpmPp2sAncestral,
    DpmPpSde,
    UniPc,
    Deis,
    Lcm,
    Tcd,
    ErSde,
    ResMultistep,
    EulerCfgPp,
    EulerAncestralCfgPp,
}

/// What is to be known of a kind.
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
    others: &'static [&'static str],
    pub(super) defaults: Settings,
    pub(super) keys: &'static [Key],
    pub(super) max_order: usize,
    grid: Grid,
}

impl About {
    /// The names of the settings that it has.
    pub fn settings(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name())
    }

    /// Every name that is read as this kind.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let elsewhere = [self.name, self.a1111, self.comfyui, self.sd_cpp];
        let classes = self.diffusers.split(' ').take(1).filter(|_| !self.diffusers.contains('='));
        elsewhere
            .into_iter()
            .chain(classes)
            .chain(self.others.iter().copied())
            .filter(|name| !name.is_empty())
    }
}

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

/// The settings of a kind that has none.
const PLAIN: Settings = Settings {
    eta: 0.0,
    s_noise: 1.0,
    s_churn: 0.0,
    s_tmin: 0.0,
    s_tmax: f64::INFINITY,
    order: 1,
    solver: Solver::Midpoint,
    bh: Bh::Bh2,
    third: Third::Published,
    lower_final: true,
    variance: Variance::Small,
    r: 0.5,
    noise: StepNoiseKind::Stream,
};
const ANCESTRAL: Settings = Settings { eta: 1.0, ..PLAIN };
/// k-diffusion's stochastic solvers never lower their order, and draw from a Brownian tree.
const SDE: Settings = Settings { lower_final: false, noise: StepNoiseKind::Tree, order: 2, ..ANCESTRAL };

const CHURN: &[Key] = &[Key::SNoise, Key::SChurn, Key::STmin, Key::STmax];
const FRESH: &[Key] = &[Key::Eta, Key::SNoise, Key::Noise];
const SOLVER: &[Key] = &[Key::Order, Key::Solver, Key::Third, Key::LowerFinal];
const SOLVER_SDE: &[Key] =
    &[Key::Eta, Key::SNoise, Key::Order, Key::Solver, Key::Third, Key::LowerFinal, Key::Noise];

const ANY: &str = "any";

/// What most kinds are.
const USUAL: About = About {
    name: "",
    evaluations: 1,
    order: 1,
    is_stochastic: false,
    is_slope: false,
    models: ANY,
    diffusers: "",
    a1111: "",
    comfyui: "",
    sd_cpp: "",
    others: &[],
    defaults: PLAIN,
    keys: &[],
    max_order: 1,
    grid: Grid::Fractional,
};

impl SamplerKind {
    /// Every kind.
    pub const ALL: [Self; 30] = [
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Lms,
        Self::Ddim,
        Self::Ddpm,
        Self::Pndm,
        Self::Ipndm,
        Self::DpmSolver,
        Self::DpmSolverSde,
        Self::DpmSolverSinglestep,
        Self::DpmPp2m,
        Self::DpmPp3m,
        Self::DpmPp2mSde,
        Self::DpmPp2mSdeHeun,
        Self::DpmPp3mSde,
        Self::DpmPp2s,
        Self::DpmPp3s,
        Self::DpmPp2sAncestral,
        Self::DpmPpSde,
        Self::UniPc,
        Self::Deis,
        Self::Lcm,
        Self::Tcd,
        Self::ErSde,
        Self::ResMultistep,
        Self::EulerCfgPp,
        Self::EulerAncestralCfgPp,
    ];

    /// What is to be known of it.
    pub const fn about(self) -> &'static About {
        match self {
            Self::Euler => &About {
                name: "euler",
                is_slope: true,
                diffusers: "EulerDiscreteScheduler",
                a1111: "Euler",
                comfyui: "euler",
                sd_cpp: "euler",
                others: &["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "k_euler", "sample_euler"],
                keys: CHURN,
                ..USUAL
            },
            Self::EulerAncestral => &About {
                name: "euler-a",
                is_stochastic: true,
                diffusers: "EulerAncestralDiscreteScheduler",
                a1111: "Euler a",
                comfyui: "euler_ancestral",
                sd_cpp: "euler_a",
                others: &["k_euler_a", "k_euler_ancestral", "euler_ancestral_RF"],
                defaults: ANCESTRAL,
                keys: FRESH,
                ..USUAL
            },
            Self::Heun => &About {
                name: "heun",
                evaluations: 2,
                order: 2,
                is_slope: true,
                diffusers: "HeunDiscreteScheduler",
                a1111: "Heun",
                comfyui: "heun",
                sd_cpp: "heun",
                others: &["FlowMatchHeunDiscreteScheduler", "k_heun"],
                keys: CHURN,
                ..USUAL
            },
            Self::Dpm2 => &About {
                name: "dpm2",
                evaluations: 2,
                order: 2,
                is_slope: true,
                diffusers: "KDPM2DiscreteScheduler",
                a1111: "DPM2",
                comfyui: "dpm_2",
                sd_cpp: "dpm2",
                others: &["k_dpm_2", "kdpm_2"],
                keys: CHURN,
                ..USUAL
            },
            Self::Dpm2Ancestral => &About {
                name: "dpm2-a",
                evaluations: 2,
                order: 2,
                is_stochastic: true,
                diffusers: "KDPM2AncestralDiscreteScheduler",
                a1111: "DPM2 a",
                comfyui: "dpm_2_ancestral",
                others: &["k_dpm_2_a", "k_dpm_2_ancestral", "kdpm_2_a", "dpm_2_a"],
                defaults: ANCESTRAL,
                keys: FRESH,
                ..USUAL
            },
            Self::Lms => &About {
                name: "lms",
                order: adams::MAX_ORDER,
                is_slope: true,
                diffusers: "LMSDiscreteScheduler",
                a1111: "LMS",
                comfyui: "lms",
                sd_cpp: "lms",
                others: &["k_lms"],
                defaults: Settings { order: adams::MAX_ORDER, ..PLAIN },
                keys: &[Key::Order],
                max_order: adams::MAX_ORDER,
                ..USUAL
            },
            Self::Ddim => &About {
                name: "ddim",
                diffusers: "DDIMScheduler",
                a1111: "DDIM",
                comfyui: "ddim",
                keys: FRESH,
                grid: Grid::Whole,
                ..USUAL
            },
            Self::Ddpm => &About {
                name: "ddpm",
                is_stochastic: true,
                diffusers: "DDPMScheduler",
                comfyui: "ddpm",
                defaults: ANCESTRAL,
                keys: &[Key::SNoise, Key::Variance, Key::Noise],
                grid: Grid::Whole,
                ..USUAL
            },
            Self::Pndm => &About {
                name: "pndm",
                order: 2,
                is_slope: true,
                diffusers: "PNDMScheduler",
                a1111: "PLMS",
                others: &["PNDM", "PLMS", "k_plms"],
                defaults: Settings { order: adams::MAX_ORDER, ..PLAIN },
                grid: Grid::Whole,
                ..USUAL
            },
            Self::Ipndm => &About {
                name: "ipndm",
                order: 2,
                is_slope: true,
                diffusers: "IPNDMScheduler",
                comfyui: "ipndm",
                sd_cpp: "ipndm",
                defaults: Settings { order: adams::MAX_ORDER, ..PLAIN },
                keys: &[Key::Order],
                max_order: adams::MAX_ORDER,
                ..USUAL
            },
            Self::DpmSolver => &About {
                name: "dpm-solver",
                order: 2,
                diffusers: "DPMSolverMultistepScheduler algorithm_type=dpmsolver",
                defaults: Settings { order: 2, ..PLAIN },
                keys: SOLVER,
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmSolverSde => &About {
                name: "sde-dpm-solver",
                order: 0,
                is_stochastic: true,
                diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver",
                defaults: Settings { order: 2, ..ANCESTRAL },
                keys: &[Key::SNoise, Key::Order, Key::Solver, Key::Noise],
                max_order: 2,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmSolverSinglestep => &About {
                name: "dpm-solver-s",
                order: 2,
                diffusers: "DPMSolverSinglestepScheduler algorithm_type=dpmsolver",
                defaults: Settings { order: 2, ..PLAIN },
                keys: &[Key::Order, Key::Solver],
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp2m => &About {
                name: "dpm++2m",
                order: 2,
                diffusers: "DPMSolverMultistepScheduler",
                a1111: "DPM++ 2M",
                comfyui: "dpmpp_2m",
                sd_cpp: "dpm++2m",
                others: &["EDMDPMSolverMultistepScheduler", "k_dpmpp_2m", "dpmpp2m"],
                defaults: Settings { order: 2, ..PLAIN },
                keys: SOLVER,
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp3m => &About {
                name: "dpm++3m",
                order: 2,
                diffusers: "DPMSolverMultistepScheduler solver_order=3",
                defaults: Settings { order: 3, ..PLAIN },
                keys: SOLVER,
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp2mSde => &About {
                name: "dpm++2m-sde",
                order: 2,
                is_stochastic: true,
                diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++",
                a1111: "DPM++ 2M SDE",
                comfyui: "dpmpp_2m_sde",
                sd_cpp: "dpm++2m_sde",
                others: &["dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"],
                defaults: SDE,
                keys: SOLVER_SDE,
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp2mSdeHeun => &About {
                name: "dpm++2m-sde-heun",
                order: 2,
                is_stochastic: true,
                diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++ solver_type=heun",
                a1111: "DPM++ 2M SDE Heun",
                comfyui: "dpmpp_2m_sde_heun",
                others: &["dpmpp_2m_sde_heun_gpu", "k_dpmpp_2m_sde_heun"],
                defaults: Settings { solver: Solver::Heun, ..SDE },
                keys: SOLVER_SDE,
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp3mSde => &About {
                name: "dpm++3m-sde",
                order: 2,
                is_stochastic: true,
                diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++ solver_order=3",
                a1111: "DPM++ 3M SDE",
                comfyui: "dpmpp_3m_sde",
                others: &["dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"],
                defaults: Settings { order: 3, solver: Solver::Heun, ..SDE },
                keys: SOLVER_SDE,
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp2s => &About {
                name: "dpm++2s",
                order: 2,
                diffusers: "DPMSolverSinglestepScheduler",
                defaults: Settings { order: 2, ..PLAIN },
                keys: &[Key::Order, Key::Solver],
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp3s => &About {
                name: "dpm++3s",
                order: 3,
                diffusers: "DPMSolverSinglestepScheduler solver_order=3",
                defaults: Settings { order: 3, ..PLAIN },
                keys: &[Key::Order, Key::Solver],
                max_order: dpm::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::DpmPp2sAncestral => &About {
                name: "dpm++2s-a",
                evaluations: 2,
                order: 2,
                is_stochastic: true,
                a1111: "DPM++ 2S a",
                comfyui: "dpmpp_2s_ancestral",
                sd_cpp: "dpm++2s_a",
                others: &["k_dpmpp_2s_a", "k_dpmpp_2s_ancestral", "dpmpp_2s_a"],
                defaults: ANCESTRAL,
                keys: FRESH,
                ..USUAL
            },
            Self::DpmPpSde => &About {
                name: "dpm++sde",
                evaluations: 2,
                order: 2,
                is_stochastic: true,
                diffusers: "DPMSolverSDEScheduler",
                a1111: "DPM++ SDE",
                comfyui: "dpmpp_sde",
                others: &["dpmpp_sde_gpu", "k_dpmpp_sde"],
                defaults: Settings { noise: StepNoiseKind::Tree, ..ANCESTRAL },
                keys: &[Key::Eta, Key::SNoise, Key::R, Key::Noise],
                ..USUAL
            },
            Self::UniPc => &About {
                name: "unipc",
                order: 3,
                diffusers: "UniPCMultistepScheduler",
                a1111: "UniPC",
                comfyui: "uni_pc_bh2",
                others: &["uni_pc", "k_unipc", "unipc_multistep"],
                defaults: Settings { order: 2, ..PLAIN },
                keys: &[Key::Order, Key::Bh, Key::LowerFinal],
                max_order: unipc::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::Deis => &About {
                name: "deis",
                order: 2,
                diffusers: "DEISMultistepScheduler",
                comfyui: "deis",
                defaults: Settings { order: 2, ..PLAIN },
                keys: &[Key::Order, Key::LowerFinal],
                max_order: deis::MAX_ORDER,
                grid: Grid::WholeAboveLast,
                ..USUAL
            },
            Self::Lcm => &About {
                name: "lcm",
                order: 0,
                is_stochastic: true,
                models: "latent consistency",
                diffusers: "LCMScheduler",
                a1111: "LCM",
                comfyui: "lcm",
                sd_cpp: "lcm",
                others: &["k_lcm"],
                grid: Grid::Whole,
                ..USUAL
            },
            Self::Tcd => &About {
                name: "tcd",
                order: 0,
                is_stochastic: true,
                models: "trajectory consistency",
                diffusers: "TCDScheduler",
                sd_cpp: "tcd",
                defaults: Settings { eta: 0.3, ..PLAIN },
                keys: &[Key::Eta],
                grid: Grid::Whole,
                ..USUAL
            },
            Self::ErSde => &About {
                name: "er-sde",
                order: 0,
                is_stochastic: true,
                comfyui: "er_sde",
                sd_cpp: "er_sde",
                defaults: Settings { eta: 1.0, order: er_sde::MAX_ORDER, ..PLAIN },
                keys: &[Key::SNoise, Key::Order, Key::Noise],
                max_order: er_sde::MAX_ORDER,
                ..USUAL
            },
            Self::ResMultistep => &About {
                name: "res-multistep",
                order: 2,
                comfyui: "res_multistep",
                sd_cpp: "res_multistep",
                defaults: Settings { order: 2, solver: Solver::Heun, lower_final: false, ..PLAIN },
                ..USUAL
            },
            Self::EulerCfgPp => &About {
                name: "euler-cfg++",
                models: "with guidance",
                a1111: "DDIM CFG++",
                comfyui: "euler_cfg_pp",
                sd_cpp: "euler_cfg_pp",
                ..USUAL
            },
            Self::EulerAncestralCfgPp => &About {
                name: "euler-a-cfg++",
                is_stochastic: true,
                models: "with guidance",
                comfyui: "euler_ancestral_cfg_pp",
                sd_cpp: "euler_a_cfg_pp",
                defaults: ANCESTRAL,
                keys: FRESH,
                ..USUAL
            },
        }
    }

    /// How the levels that it visits relate to whole timesteps.
    pub fn grid(self) -> Grid {
        self.about().grid
    }

    /// The schedule that belongs to the method itself, whatever the model's: that of consistency models.
    pub fn own_schedule(self) -> Option<ScheduleKind> {
        matches!(self, Self::Lcm | Self::Tcd).then_some(ScheduleKind::LCM)
    }

    /// Whether it asks the denoiser for the unconditional answer, too.
    pub fn takes_apart(self) -> bool {
        matches!(self, Self::EulerCfgPp | Self::EulerAncestralCfgPp)
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
    /// spaces and punctuation do not matter, and `pp` may stand for `++`. [`ErrorKind::Usage`](crate::ErrorKind::Usage) for any other name.
    fn from_str(text: &str) -> Result<Self, Error> {
        let typed = bare(text);
        if let Some((name, why)) = NOT_HERE.iter().find(|(name, _)| bare(name) == typed) {
            return Err(Error::new(ErrorKind::Usage, format!("sampler: {name}: {why}")));
        }
        let is_named = |kind: &Self| kind.about().names().any(|name| bare(name) == typed);
        let known = Self::ALL.into_iter().find(is_named);
        known.ok_or_else(|| name::unknown("sampler", Self::ALL.map(|kind| kind.about().name), text))
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
            let adds = about.defaults.eta > 0.0 || kind == SamplerKind::Lcm;
            assert_eq!(about.is_stochastic, adds, "{kind}");
            assert!(about.defaults.order <= about.max_order || !about.keys.contains(&Key::Order), "{kind}");
        }
    }
}
