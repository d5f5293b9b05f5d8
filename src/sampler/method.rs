//! A sampling method as users name it: a kind, its settings, and what is read from and written to text.
//! It knows which settings a kind has, and nothing of what a sampler does with them.

use std::fmt;
use std::str::FromStr;

use super::kind::SamplerKind;
use crate::name::{self, Setting};
use crate::schedule::ScheduleKind;
use crate::{Error, ErrorKind};

/// The settings that some kinds have, all of them with a value. Which a kind has is in [`About`](super::About).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How much of the noise that a step takes away is replaced by fresh noise: 0 none, 1 all. TCD's gamma.
    pub eta: f64,
    /// The factor of all fresh noise; 1 is right, and a little more makes up for detail that models lose.
    pub s_noise: f64,
    /// How much noise is added before steps, in all of a run (Karras et al. 2022, section 4).
    pub s_churn: f64,
    /// The lowest level at which it is.
    pub s_tmin: f64,
    /// The highest.
    pub s_tmax: f64,
    /// The order, where a kind has several.
    pub order: usize,
    /// The form of a step.
    pub solver: Solver,
    /// The form of a step of UniPC.
    pub bh: Bh,
    /// The form of a step of third order.
    pub third: Third,
    /// Whether in runs of fewer than 15 steps the last step is of first order and the one before of second at most; UniPC's
    /// are in runs of any length.
    pub lower_final: bool,
    /// The variance of DDPM's noise.
    pub variance: Variance,
    /// Where in a step, in `ln sigma`, the model is asked again.
    pub r: f64,
    /// Where the fresh noise of steps comes from.
    pub noise: StepNoiseKind,
}

/// The form of a step, where the order leaves a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solver {
    /// DPM-Solver's first form of second order: the slope is exact in the middle of a step.
    Midpoint,
    /// DPM-Solver's second form: the slope's integral is exact.
    Heun,
}

/// The function `B(h)` of UniPC (Zhao et al. 2023, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bh {
    /// `B(h) = h`.
    Bh1,
    /// `B(h) = e^h - 1`.
    Bh2,
}

/// The form of a multistep step of third order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Third {
    /// As published and as everywhere: with half of the second derivative's weight, so that errors shrink as those of
    /// second order.
    Published,
    /// With the weight that makes the method one of third order.
    Exact,
}

/// The variance of DDPM's noise (Ho et al. 2020, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// The posterior's, right for data of one value: diffusers' `fixed_small`.
    Small,
    /// The step's own, `beta`, right for data of unit variance: diffusers' `fixed_large`.
    Large,
}

/// Where the fresh noise of steps comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepNoiseKind {
    /// The next values of the generator that the run started from, as in diffusers.
    Stream,
    /// A Brownian tree of the run's seed, which is the same for any number of steps, as in k-diffusion.
    Tree,
}

/// A sampling method: a kind and its settings.
///
/// As text it is a name and, behind a colon, settings that differ from the kind's own.
///
/// ```
/// use calotype::sampler::{Method, SamplerKind};
/// let method: Method = "ddim:eta=0.5".parse()?;
/// assert_eq!(method.kind(), SamplerKind::Ddim);
/// assert_eq!(method.settings().eta, 0.5);
/// assert_eq!(method.to_string(), "ddim:eta=0.5");
/// assert_eq!("DPMSolverMultistepScheduler".parse::<Method>()?.to_string(), "dpm++2m");
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Method {
    kind: SamplerKind,
    settings: Settings,
}

impl Method {
    /// The kind.
    pub fn kind(&self) -> SamplerKind {
        self.kind
    }

    /// Its settings; those that the kind does not have are its defaults.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    fn set(&mut self, setting: Setting<'_>) -> Result<(), Error> {
        let about = self.kind.about();
        let what = format!("sampler: {}", self.kind);
        let Some(key) = about.keys.iter().find(|key| key.name() == setting.name) else {
            let names = about.settings().collect::<Vec<_>>().join(", ");
            let expected =
                if names.is_empty() { "no settings".into() } else { format!("settings of {names}") };
            let got = format!("{what}: expected {expected}, got {:?}", setting.name);
            return Err(Error::new(ErrorKind::Usage, got));
        };
        key.set(&mut self.settings, setting, about.max_order, &what)
    }
}

impl From<SamplerKind> for Method {
    fn from(kind: SamplerKind) -> Self {
        Self { kind, settings: kind.about().defaults }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = self.kind.about();
        let changed = about.keys.iter().filter_map(|key| {
            let value = key.get(&self.settings);
            (value != key.get(&about.defaults)).then_some((key.name(), value))
        });
        f.pad(&name::with_settings(about.name, &changed.collect::<Vec<_>>()))
    }
}

impl FromStr for Method {
    type Err = Error;

    /// Reads a name as [`SamplerKind`] does, and settings; [`ErrorKind::Usage`] for what is neither.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, settings) = name::settings(text);
        let mut method = Self::from(name.parse::<SamplerKind>()?);
        for setting in settings {
            method.set(setting)?;
        }
        if method.settings.s_tmin > method.settings.s_tmax {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "sampler: {}: expected s_tmin up to s_tmax, got {} and {}",
                    method.kind, method.settings.s_tmin, method.settings.s_tmax
                ),
            ));
        }
        Ok(method)
    }
}

/// A method, and the schedule where it is part of the name: `DPM++ 2M Karras` is one of the two.
///
/// ```
/// use calotype::sampler::Sampling;
/// let sampling: Sampling = "DPM++ 2M SDE Karras".parse()?;
/// assert_eq!(sampling.method.to_string(), "dpm++2m-sde");
/// assert_eq!(sampling.schedule.unwrap().to_string(), "karras");
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// The method.
    pub method: Method,
    /// The schedule, where the name says which.
    pub schedule: Option<ScheduleKind>,
}

/// What A1111 calls leaving the schedule to the method.
const AUTOMATIC: &str = "automatic";

impl FromStr for Sampling {
    type Err = Error;

    /// Reads a method's name, and behind it, where there is more, a schedule's.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = match text.parse::<Method>() {
            Ok(method) => return Ok(Self { method, schedule: None }),
            Err(error) => error,
        };
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let ends = name.char_indices().filter(|(_, c)| matches!(c, ' ' | '_' | '-')).map(|(at, _)| at);
        // A name of a million words is none.
        for end in ends.take(16) {
            let (Ok(kind), end) = (name[..end].parse::<SamplerKind>(), &name[end + 1..]) else { continue };
            // A1111's name for the schedule that a method goes with.
            let schedule = match name::bare(end).as_str() {
                AUTOMATIC => None,
                _ => match end.parse::<ScheduleKind>() {
                    Ok(schedule) => Some(schedule),
                    Err(_) => continue,
                },
            };
            let method = format!("{kind}:{settings}").parse()?;
            return Ok(Self { method, schedule });
        }
        Err(refused)
    }
}

/// The largest factor of noise; 1 is right, and people use 1.003.
const MAX_S_NOISE: f64 = 10.0;

/// The name of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Eta,
    SNoise,
    SChurn,
    STmin,
    STmax,
    Order,
    /// Of DPM-Solver.
    Solver,
    /// Of UniPC.
    Bh,
    Third,
    LowerFinal,
    Variance,
    R,
    Noise,
}

impl Key {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Eta => "eta",
            Self::SNoise => "s_noise",
            Self::SChurn => "s_churn",
            Self::STmin => "s_tmin",
            Self::STmax => "s_tmax",
            Self::Order => "order",
            Self::Solver | Self::Bh => "solver",
            Self::Third => "third",
            Self::LowerFinal => "lower_final",
            Self::Variance => "variance",
            Self::R => "r",
            Self::Noise => "noise",
        }
    }

    /// Sets it; [`ErrorKind::Usage`] for what it cannot be.
    fn set(
        self,
        settings: &mut Settings,
        setting: Setting<'_>,
        max_order: usize,
        what: &str,
    ) -> Result<(), Error> {
        let number = |expected: &str, fits: &dyn Fn(f64) -> bool| {
            let number = setting.value.parse::<f64>().ok().filter(|number| fits(*number));
            number.ok_or_else(|| setting.refused(what, expected))
        };
        let from_0 = || number("a number from 0 up", &|number| number.is_finite() && number >= 0.0);
        match self {
            Self::Eta => {
                settings.eta = number("a number from 0 to 1", &|eta| (0.0..=1.0).contains(&eta))?;
            }
            Self::SNoise => {
                settings.s_noise = from_0()?;
                if settings.s_noise > MAX_S_NOISE {
                    return Err(setting.refused(what, &format!("at most {MAX_S_NOISE}")));
                }
            }
            Self::SChurn => settings.s_churn = from_0()?,
            Self::STmin => settings.s_tmin = from_0()?,
            Self::STmax => settings.s_tmax = number("a number from 0 up, or inf", &|level| level >= 0.0)?,
            Self::Order => {
                let order = setting.value.parse().ok().filter(|order| (1..=max_order).contains(order));
                settings.order = order.ok_or_else(|| setting.refused(what, &format!("1 to {max_order}")))?;
            }
            Self::Solver => {
                let solvers = [("midpoint", Solver::Midpoint), ("heun", Solver::Heun)];
                settings.solver = setting.choose(what, solvers)?;
            }
            Self::Bh => settings.bh = setting.choose(what, [("bh1", Bh::Bh1), ("bh2", Bh::Bh2)])?,
            Self::Third => {
                let forms = [("published", Third::Published), ("exact", Third::Exact)];
                settings.third = setting.choose(what, forms)?;
            }
            Self::LowerFinal => {
                settings.lower_final = setting.choose(what, [("on", true), ("off", false)])?;
            }
            Self::Variance => {
                let variances = [("small", Variance::Small), ("large", Variance::Large)];
                settings.variance = setting.choose(what, variances)?;
            }
            Self::R => settings.r = number("a number above 0, at most 1", &|r| r > 0.0 && r <= 1.0)?,
            Self::Noise => {
                let kinds = [("stream", StepNoiseKind::Stream), ("tree", StepNoiseKind::Tree)];
                settings.noise = setting.choose(what, kinds)?;
            }
        }
        Ok(())
    }

    /// Its value as text, as [`Key::set`] reads it.
    fn get(self, settings: &Settings) -> String {
        match self {
            Self::Eta => settings.eta.to_string(),
            Self::SNoise => settings.s_noise.to_string(),
            Self::SChurn => settings.s_churn.to_string(),
            Self::STmin => settings.s_tmin.to_string(),
            Self::STmax => settings.s_tmax.to_string(),
            Self::Order => settings.order.to_string(),
            Self::Solver => if settings.solver == Solver::Heun { "heun" } else { "midpoint" }.into(),
            Self::Bh => if settings.bh == Bh::Bh2 { "bh2" } else { "bh1" }.into(),
            Self::Third => if settings.third == Third::Exact { "exact" } else { "published" }.into(),
            Self::LowerFinal => if settings.lower_final { "on" } else { "off" }.into(),
            Self::Variance => if settings.variance == Variance::Large { "large" } else { "small" }.into(),
            Self::R => settings.r.to_string(),
            Self::Noise => if settings.noise == StepNoiseKind::Tree { "tree" } else { "stream" }.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method, and the schedule that is in the name, if any.
    type Read = (&'static str, Option<&'static str>);

    /// What programs call their samplers; nothing for those that are not here, which are refused.
    const ELSEWHERE: [(&str, Option<Read>); 106] = [
        // A1111's labels, and the aliases under which its texts and programming interface also know them.
        ("DPM++ 2M", Some(("dpm++2m", None))),
        ("k_dpmpp_2m", Some(("dpm++2m", None))),
        ("DPM++ SDE", Some(("dpm++sde", None))),
        ("k_dpmpp_sde", Some(("dpm++sde", None))),
        ("DPM++ 2M SDE", Some(("dpm++2m-sde", None))),
        ("k_dpmpp_2m_sde", Some(("dpm++2m-sde", None))),
        ("DPM++ 2M SDE Heun", Some(("dpm++2m-sde-heun", None))),
        ("k_dpmpp_2m_sde_heun", Some(("dpm++2m-sde-heun", None))),
        ("DPM++ 2S a", Some(("dpm++2s-a", None))),
        ("k_dpmpp_2s_a", Some(("dpm++2s-a", None))),
        ("DPM++ 3M SDE", Some(("dpm++3m-sde", None))),
        ("k_dpmpp_3m_sde", Some(("dpm++3m-sde", None))),
        ("Euler a", Some(("euler-a", None))),
        ("k_euler_a", Some(("euler-a", None))),
        ("k_euler_ancestral", Some(("euler-a", None))),
        ("Euler", Some(("euler", None))),
        ("k_euler", Some(("euler", None))),
        ("LMS", Some(("lms", None))),
        ("k_lms", Some(("lms", None))),
        ("Heun", Some(("heun", None))),
        ("k_heun", Some(("heun", None))),
        ("DPM2", Some(("dpm2", None))),
        ("k_dpm_2", Some(("dpm2", None))),
        ("DPM2 a", Some(("dpm2-a", None))),
        ("k_dpm_2_a", Some(("dpm2-a", None))),
        ("DPM fast", None),
        ("k_dpm_fast", None),
        ("DPM adaptive", None),
        ("k_dpm_ad", None),
        ("Restart", None),
        ("DDIM", Some(("ddim", None))),
        ("DDIM CFG++", Some(("euler-cfg++", None))),
        ("ddim_cfgpp", Some(("euler-cfg++", None))),
        ("PLMS", Some(("pndm", None))),
        ("UniPC", Some(("unipc", None))),
        ("LCM", Some(("lcm", None))),
        ("k_lcm", Some(("lcm", None))),
        // With a schedule, as before its version 1.9.
        ("DPM++ 2M Karras", Some(("dpm++2m", Some("karras")))),
        ("k_dpmpp_2m_ka", Some(("dpm++2m", Some("karras")))),
        ("DPM++ SDE Karras", Some(("dpm++sde", Some("karras")))),
        ("k_dpmpp_sde_ka", Some(("dpm++sde", Some("karras")))),
        ("DPM++ 2M SDE Karras", Some(("dpm++2m-sde", Some("karras")))),
        ("DPM++ 2M SDE Exponential", Some(("dpm++2m-sde", Some("exponential")))),
        ("DPM++ 2M SDE Heun Karras", Some(("dpm++2m-sde-heun", Some("karras")))),
        ("DPM++ 2S a Karras", Some(("dpm++2s-a", Some("karras")))),
        ("k_dpmpp_2s_a_ka", Some(("dpm++2s-a", Some("karras")))),
        ("DPM++ 3M SDE Exponential", Some(("dpm++3m-sde", Some("exponential")))),
        ("DPM2 a Karras", Some(("dpm2-a", Some("karras")))),
        ("k_dpm_2_a_ka", Some(("dpm2-a", Some("karras")))),
        ("DPM2 Karras", Some(("dpm2", Some("karras")))),
        ("LMS Karras", Some(("lms", Some("karras")))),
        ("k_lms_ka", Some(("lms", Some("karras")))),
        // ComfyUI's.
        ("euler_ancestral", Some(("euler-a", None))),
        ("euler_cfg_pp", Some(("euler-cfg++", None))),
        ("euler_ancestral_cfg_pp", Some(("euler-a-cfg++", None))),
        ("heunpp2", None),
        ("dpm_2", Some(("dpm2", None))),
        ("dpm_2_ancestral", Some(("dpm2-a", None))),
        ("dpm_fast", None),
        ("dpm_adaptive", None),
        ("dpmpp_2s_ancestral", Some(("dpm++2s-a", None))),
        ("dpmpp_2s_ancestral_cfg_pp", None),
        ("dpmpp_sde", Some(("dpm++sde", None))),
        ("dpmpp_sde_gpu", Some(("dpm++sde", None))),
        ("dpmpp_2m", Some(("dpm++2m", None))),
        ("dpmpp_2m_cfg_pp", None),
        ("dpmpp_2m_sde", Some(("dpm++2m-sde", None))),
        ("dpmpp_2m_sde_gpu", Some(("dpm++2m-sde", None))),
        ("dpmpp_2m_sde_heun", Some(("dpm++2m-sde-heun", None))),
        ("dpmpp_2m_sde_heun_gpu", Some(("dpm++2m-sde-heun", None))),
        ("dpmpp_3m_sde", Some(("dpm++3m-sde", None))),
        ("dpmpp_3m_sde_gpu", Some(("dpm++3m-sde", None))),
        ("ddpm", Some(("ddpm", None))),
        ("lcm", Some(("lcm", None))),
        ("ipndm", Some(("ipndm", None))),
        ("ipndm_v", None),
        ("deis", Some(("deis", None))),
        ("res_multistep", Some(("res-multistep", None))),
        ("res_multistep_ancestral", None),
        ("gradient_estimation", None),
        ("er_sde", Some(("er-sde", None))),
        ("seeds_2", None),
        ("sa_solver", None),
        ("uni_pc", Some(("unipc", None))),
        ("uni_pc_bh2", Some(("unipc", None))),
        // InvokeAI's.
        ("deis_k", Some(("deis", Some("karras")))),
        ("dpmpp_2s", Some(("dpm++2s", None))),
        ("dpmpp_2s_k", Some(("dpm++2s", Some("karras")))),
        ("dpmpp_2m_k", Some(("dpm++2m", Some("karras")))),
        ("dpmpp_2m_sde_k", Some(("dpm++2m-sde", Some("karras")))),
        ("dpmpp_3m", Some(("dpm++3m", None))),
        ("dpmpp_3m_k", Some(("dpm++3m", Some("karras")))),
        ("dpmpp_sde_k", Some(("dpm++sde", Some("karras")))),
        ("euler_k", Some(("euler", Some("karras")))),
        ("euler_a", Some(("euler-a", None))),
        ("heun_k", Some(("heun", Some("karras")))),
        ("kdpm_2", Some(("dpm2", None))),
        ("kdpm_2_k", Some(("dpm2", Some("karras")))),
        ("kdpm_2_a", Some(("dpm2-a", None))),
        ("kdpm_2_a_k", Some(("dpm2-a", Some("karras")))),
        ("lms_k", Some(("lms", Some("karras")))),
        ("pndm", Some(("pndm", None))),
        ("unipc_k", Some(("unipc", Some("karras")))),
        ("tcd", Some(("tcd", None))),
        ("Euler Automatic", Some(("euler", None))),
        ("DPM++ 2M SGM Uniform", Some(("dpm++2m", Some("sgm-uniform")))),
    ];

    #[test]
    fn samplers_are_read_by_the_names_of_other_programs() {
        for (name, expected) in ELSEWHERE {
            let read = name.parse::<Sampling>();
            let Some((method, schedule)) = expected else {
                assert_eq!(read.expect_err(name).kind(), ErrorKind::Usage, "{name}");
                continue;
            };
            let Sampling { method: found, schedule: of_name } =
                read.unwrap_or_else(|error| panic!("{name}: {error}"));
            let of_name = of_name.map(|kind| kind.to_string());
            assert_eq!((found.to_string().as_str(), of_name.as_deref()), (method, schedule), "{name}");
        }
    }

    /// The schedules of A1111 (labels and names) and ComfyUI; InvokeAI has them in its samplers' names.
    #[test]
    fn schedules_are_read_by_the_names_of_other_programs() {
        for (name, expected) in [
            ("Uniform", Some("normal")),
            ("Karras", Some("karras")),
            ("Exponential", Some("exponential")),
            ("Polyexponential", Some("polyexponential")),
            ("SGM Uniform", Some("sgm-uniform")),
            ("SGMUniform", Some("sgm-uniform")),
            ("KL Optimal", Some("kl-optimal")),
            ("kl_optimal", Some("kl-optimal")),
            ("Align Your Steps", Some("ays")),
            ("align_your_steps", Some("ays")),
            ("Simple", Some("simple")),
            ("Normal", Some("normal")),
            ("DDIM", Some("leading")),
            ("ddim_uniform", Some("leading")),
            ("Beta", Some("beta")),
            ("sgm_uniform", Some("sgm-uniform")),
            ("linear_quadratic", None),
        ] {
            let read = name.parse::<ScheduleKind>().map(|kind| kind.to_string());
            match expected {
                Some(kind) => assert_eq!(read.unwrap(), kind, "{name}"),
                None => assert_eq!(read.expect_err(name).kind(), ErrorKind::Usage, "{name}"),
            }
        }
    }

    #[test]
    fn methods_read_what_they_write() {
        for text in [
            "euler",
            "euler:s_noise=1.003,s_churn=5,s_tmin=0.1,s_tmax=10",
            "ddim:eta=0.5",
            "ddpm:variance=large",
            "dpm++2m-sde:eta=0.3,solver=heun,noise=stream",
            "dpm++3m:third=exact,lower_final=off",
            "unipc:order=3,solver=bh1",
            "dpm++sde:r=0.25",
        ] {
            assert_eq!(text.parse::<Method>().expect(text).to_string(), text);
        }
        // A default that is typed is left out again, and blanks mean nothing.
        assert_eq!("unipc: solver = bh2 , order=3".parse::<Method>().unwrap().to_string(), "unipc:order=3");
        for kind in SamplerKind::ALL {
            assert_eq!(Method::from(kind).to_string().parse::<Method>().unwrap(), kind.into());
        }
    }

    #[test]
    fn settings_that_cannot_be_are_refused_with_what_can() {
        for (text, message) in [
            (
                "euler:eta=0.5",
                "sampler: euler: expected settings of s_noise, s_churn, s_tmin, s_tmax, got \"eta\"",
            ),
            ("lcm:eta=0.5", "sampler: lcm: expected no settings, got \"eta\""),
            ("ddim:eta=1.5", "sampler: ddim: eta: expected a number from 0 to 1, got \"1.5\""),
            ("ddim:eta=nan", "eta: expected a number from 0 to 1, got \"nan\""),
            ("ddim:eta", "eta: expected a number from 0 to 1, got \"\""),
            ("ddim:=", "got \"\""),
            ("euler-a:s_noise=inf", "s_noise: expected a number from 0 up"),
            ("unipc:order=4", "order: expected 1 to 3, got \"4\""),
            ("unipc:order=0", "order: expected 1 to 3"),
            ("unipc:solver=heun", "solver: expected bh1 or bh2"),
            ("dpm++2m:solver=bh1", "solver: expected midpoint or heun"),
            ("dpm++sde:r=0", "r: expected a number above 0, at most 1"),
            ("euler:s_tmin=5,s_tmax=1", "expected s_tmin up to s_tmax, got 5 and 1"),
            ("dpm++2m-sde:noise=pink", "noise: expected stream or tree"),
        ] {
            let error = text.parse::<Method>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.to_string().contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_may_end_in_its_schedule() {
        for (text, method, schedule) in [
            ("DPM++ 2M Karras", "dpm++2m", Some("karras")),
            ("dpmpp_2m_karras", "dpm++2m", Some("karras")),
            ("dpm++2m-karras", "dpm++2m", Some("karras")),
            ("DPM++ 3M SDE Exponential", "dpm++3m-sde", Some("exponential")),
            ("ddim_trailing", "ddim", Some("trailing")),
            ("euler-sgm-uniform", "euler", Some("sgm-uniform")),
            ("dpm++2m-karras:solver=heun", "dpm++2m:solver=heun", Some("karras")),
            ("DPM++ 2M", "dpm++2m", None),
        ] {
            let sampling: Sampling = text.parse().expect(text);
            assert_eq!(sampling.method.to_string(), method, "{text}");
            assert_eq!(sampling.schedule.map(|kind| kind.to_string()).as_deref(), schedule, "{text}");
        }
        for text in ["karras", "karras-euler", "euler-carras", &"a ".repeat(1 << 16)] {
            assert_eq!(text.parse::<Sampling>().expect_err("no name").kind(), ErrorKind::Usage);
        }
    }
}
