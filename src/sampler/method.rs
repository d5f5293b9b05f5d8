//! A sampling method as users name it: a kind of sampler and its settings, read from and written to text.
//! It knows nothing of what a sampler does with them.

use std::fmt;
use std::str::FromStr;

use super::setting::{Setting, SettingValue, Settings};
use super::{Sampler, SamplerKind};
use crate::name;
use crate::schedule::{Schedule, ScheduleKind};
use crate::{Error, ErrorKind};

/// A sampling method: a kind of sampler and its settings.
///
/// As text it is a name and, behind a colon, settings that differ from the kind's own.
///
/// ```
/// use calotype::sampler::{ETA, Method, SamplerKind};
/// let method: Method = "ddim:eta=0.5".parse()?;
/// assert_eq!(method, Method::from(SamplerKind::Ddim).with(&ETA, 0.5)?);
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

    /// The value of a setting: its default where the kind does not have it.
    pub fn get<T: SettingValue>(&self, setting: &Setting<T>) -> T {
        self.settings.get(setting)
    }

    /// The method with this value of a setting.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the kind does not have the setting, or not with this value, or not beside its others.
    pub fn with<T: SettingValue>(mut self, setting: &Setting<T>, value: T) -> Result<Self, Error> {
        self.settings.set(&self.place(), setting, value)?;
        self.checked()
    }

    /// A sampler for one run over this schedule, on latents of `len` values.
    pub fn build(&self, schedule: &Schedule, len: usize) -> Box<dyn Sampler> {
        (self.kind.about().build)(&self.settings, schedule, len)
    }

    fn read(&mut self, settings: &str) -> Result<(), Error> {
        name::each_setting(settings).try_for_each(|setting| self.settings.read(&self.place(), setting))
    }

    fn checked(self) -> Result<Self, Error> {
        match (self.kind.about().check)(&self.settings) {
            Ok(()) => Ok(self),
            Err(problem) => Err(Error::new(ErrorKind::Usage, format!("{}: {problem}", self.place()))),
        }
    }

    fn place(&self) -> String {
        format!("sampler: {}", self.kind)
    }
}

impl From<SamplerKind> for Method {
    fn from(kind: SamplerKind) -> Self {
        Self { kind, settings: kind.defaults() }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name::with_settings(self.kind.about().name, &self.settings.changed()))
    }
}

impl FromStr for Method {
    type Err = Error;

    /// Reads a name as [`SamplerKind`] does, and settings; [`ErrorKind::Usage`] for what is neither. A name of another
    /// program stands for the settings that it has there.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let (kind, preset) = SamplerKind::named(name)?;
        let mut method = Self::from(kind);
        method.read(preset)?;
        method.read(settings)?;
        method.checked()
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
            let (name, end) = (&name[..end], &name[end + 1..]);
            if name.parse::<SamplerKind>().is_err() {
                continue;
            }
            // A1111's name for the schedule that a method goes with.
            let schedule = match name::bare(end).as_str() {
                AUTOMATIC => None,
                _ => match end.parse::<ScheduleKind>() {
                    Ok(schedule) => Some(schedule),
                    Err(_) => continue,
                },
            };
            let method = format!("{name}:{settings}").parse()?;
            return Ok(Self { method, schedule });
        }
        Err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{
        BH, Bh, ETA, ORDER, S_CHURN, S_TMAX, S_TMIN, SOLVER, STEP_NOISE, Solver, StepNoiseKind,
    };

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
        ("UniPC", Some(("unipc:order=3,solver=bh1", None))),
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
        ("uni_pc", Some(("unipc:order=3,solver=bh1", None))),
        ("uni_pc_bh2", Some(("unipc:order=3", None))),
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

    /// A name that its program writes so stands for that program's defaults; any other spelling is a name here.
    #[test]
    fn names_with_other_defaults_are_read_as_they_are_written() {
        for (text, method) in [
            ("UniPC", "unipc:order=3,solver=bh1"),
            ("UniPC Karras", "unipc:order=3,solver=bh1"),
            ("uni_pc:order=1", "unipc:order=1,solver=bh1"),
            ("UNI-PC BH2", "unipc:order=3"),
            ("unipc", "unipc"),
            ("unipc-karras", "unipc"),
            ("UniPCMultistepScheduler", "unipc"),
        ] {
            assert_eq!(text.parse::<Sampling>().expect(text).method.to_string(), method, "{text}");
        }
        for kind in SamplerKind::ALL {
            for (name, settings) in kind.about().presets {
                let written = format!("{kind}:{settings}").parse::<Method>().expect(name);
                assert_eq!(name.parse::<Method>().expect(name), written, "{name}");
            }
        }
    }

    #[test]
    fn settings_are_set_by_type_as_by_text() {
        let typed = Method::from(SamplerKind::DpmPp2mSde).with(&ETA, 0.3).unwrap();
        let typed =
            typed.with(&SOLVER, Solver::Heun).unwrap().with(&STEP_NOISE, StepNoiseKind::Stream).unwrap();
        assert_eq!(typed, "dpm++2m-sde:eta=0.3,solver=heun,noise=stream".parse().unwrap());
        assert_eq!((typed.get(&ETA), typed.get(&SOLVER), typed.get(&S_CHURN)), (0.3, Solver::Heun, 0.0));
        // What belongs to the sampler has a value, and is not to be set.
        let ddpm = Method::from(SamplerKind::Ddpm);
        assert_eq!(ddpm.get(&ETA), 1.0);
        for (refused, message) in [
            (
                ddpm.with(&ETA, 1.0),
                "sampler: ddpm: expected settings of s_noise, variance, noise, got \"eta\"",
            ),
            (
                typed.with(&ETA, f64::NAN),
                "sampler: dpm++2m-sde: eta: expected a number from 0 to 1, got \"NaN\"",
            ),
            (
                typed.with(&BH, Bh::Bh1),
                "sampler: dpm++2m-sde: solver: expected midpoint or heun, got \"bh1\"",
            ),
            (typed.with(&ORDER, 0), "sampler: dpm++2m-sde: order: expected 1 to 3, got \"0\""),
            (
                Method::from(SamplerKind::Euler).with(&S_TMIN, 5.0).unwrap().with(&S_TMAX, 1.0),
                "sampler: euler: expected s_tmin up to s_tmax, got 5 and 1",
            ),
        ] {
            let error = refused.expect_err(message);
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Usage, message));
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
