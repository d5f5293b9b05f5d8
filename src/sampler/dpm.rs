//! DPM-Solver and DPM-Solver++, multistep and singlestep, for the ordinary and the stochastic equation.
//! It knows nothing of where the levels come from.

use super::about::About;
use super::arithmetic::{History, blend, order_at};
use super::setting::{
    self, ALL_ETA, Choice, Declared, ETA, LOWER_FINAL, S_NOISE, STEP_NOISE, Setting, Settings, TREE,
};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Grid, Schedule, Step};
use crate::state::Record;

pub(super) const DPM_SOLVER: About = About {
    order: 2,
    diffusers: "DPMSolverMultistepScheduler algorithm_type=dpmsolver",
    settings: SECOND,
    grid: Grid::WholeAboveLast,
    ..About::new("dpm-solver", |settings, schedule, len| Equation::Noise.multistep(settings, schedule, len))
};

pub(super) const DPM_SOLVER_SDE: About = About {
    order: 0,
    is_stochastic: true,
    diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver",
    settings: &[&S_NOISE, &UP_TO_SECOND, &SOLVER, &STEP_NOISE],
    fixed: &[&ALL_ETA],
    grid: Grid::WholeAboveLast,
    ..About::new("sde-dpm-solver", |settings, schedule, len| {
        Equation::Noise.multistep(settings, schedule, len)
    })
};

pub(super) const DPM_SOLVER_SINGLESTEP: About = About {
    order: 2,
    diffusers: "DPMSolverSinglestepScheduler algorithm_type=dpmsolver",
    settings: &[&ORDER, &SOLVER],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm-solver-s", |settings, schedule, len| {
        Equation::Noise.singlestep(settings, schedule, len)
    })
};

pub(super) const DPMPP_2M: About = About {
    order: 2,
    diffusers: "DPMSolverMultistepScheduler",
    a1111: "DPM++ 2M",
    comfyui: "dpmpp_2m",
    sd_cpp: "dpm++2m",
    others: &["EDMDPMSolverMultistepScheduler", "k_dpmpp_2m", "dpmpp2m"],
    settings: SECOND,
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++2m", |settings, schedule, len| Equation::Data.multistep(settings, schedule, len))
};

pub(super) const DPMPP_3M: About = About {
    order: 2,
    diffusers: "DPMSolverMultistepScheduler solver_order=3",
    settings: &[&THIRD_ORDER, &SOLVER, &THIRD, &LOWER_FINAL],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++3m", |settings, schedule, len| Equation::Data.multistep(settings, schedule, len))
};

pub(super) const DPMPP_2M_SDE: About = About {
    order: 2,
    is_stochastic: true,
    diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++",
    a1111: "DPM++ 2M SDE",
    comfyui: "dpmpp_2m_sde",
    sd_cpp: "dpm++2m_sde",
    others: &["dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"],
    settings: &[&ALL_ETA, &S_NOISE, &ORDER, &SOLVER, &THIRD, &NEVER_LOWER, &TREE],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++2m-sde", |settings, schedule, len| Equation::Data.multistep(settings, schedule, len))
};

pub(super) const DPMPP_2M_SDE_HEUN: About = About {
    order: 2,
    is_stochastic: true,
    diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++ solver_type=heun",
    a1111: "DPM++ 2M SDE Heun",
    comfyui: "dpmpp_2m_sde_heun",
    others: &["dpmpp_2m_sde_heun_gpu", "k_dpmpp_2m_sde_heun"],
    settings: &[&ALL_ETA, &S_NOISE, &ORDER, &HEUN, &THIRD, &NEVER_LOWER, &TREE],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++2m-sde-heun", |settings, schedule, len| {
        Equation::Data.multistep(settings, schedule, len)
    })
};

pub(super) const DPMPP_3M_SDE: About = About {
    order: 2,
    is_stochastic: true,
    diffusers: "DPMSolverMultistepScheduler algorithm_type=sde-dpmsolver++ solver_order=3",
    a1111: "DPM++ 3M SDE",
    comfyui: "dpmpp_3m_sde",
    others: &["dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"],
    settings: &[&ALL_ETA, &S_NOISE, &THIRD_ORDER, &HEUN, &THIRD, &NEVER_LOWER, &TREE],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++3m-sde", |settings, schedule, len| Equation::Data.multistep(settings, schedule, len))
};

pub(super) const DPMPP_2S: About = About {
    order: 2,
    diffusers: "DPMSolverSinglestepScheduler",
    settings: &[&ORDER, &SOLVER],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++2s", |settings, schedule, len| Equation::Data.singlestep(settings, schedule, len))
};

pub(super) const DPMPP_3S: About = About {
    order: 3,
    diffusers: "DPMSolverSinglestepScheduler solver_order=3",
    settings: &[&THIRD_ORDER, &SOLVER],
    grid: Grid::WholeAboveLast,
    ..About::new("dpm++3s", |settings, schedule, len| Equation::Data.singlestep(settings, schedule, len))
};

pub(super) const RES_MULTISTEP: About = About {
    order: 2,
    comfyui: "res_multistep",
    sd_cpp: "res_multistep",
    fixed: &[&ORDER, &HEUN, &NEVER_LOWER],
    ..About::new("res-multistep", |settings, schedule, len| Equation::Data.multistep(settings, schedule, len))
};

/// The form of a step of second order.
pub const SOLVER: Setting<Solver> = Setting {
    name: "solver",
    default: Solver::Midpoint,
    range: (),
    help: "form of the second-order step, as diffusers' solver_type: midpoint or heun",
};

/// The form of a step, where the order leaves a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solver {
    /// DPM-Solver's first form of second order: the slope is exact in the middle of a step.
    Midpoint,
    /// DPM-Solver's second form: the slope's integral is exact.
    Heun,
}

impl Choice for Solver {
    const WORDS: &'static [(&'static str, Self)] = &[("midpoint", Self::Midpoint), ("heun", Self::Heun)];
}

/// The form of a multistep step of third order.
pub const THIRD: Setting<Third> = Setting {
    name: "third",
    default: Third::Published,
    range: (),
    help: "form of the third-order step: as published (second-order accurate), or with the weight that makes it third-order accurate",
};

/// The form of a multistep step of third order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Third {
    /// As published and as everywhere: with half of the second derivative's weight, so that errors shrink as those of
    /// second order.
    Published,
    /// With the weight that makes the method one of third order.
    Exact,
}

impl Choice for Third {
    const WORDS: &'static [(&'static str, Self)] = &[("published", Self::Published), ("exact", Self::Exact)];
}

/// The highest order.
const MAX_ORDER: usize = 3;
const ORDER: Setting<usize> = Setting { default: 2, range: MAX_ORDER, ..setting::ORDER };
const UP_TO_SECOND: Setting<usize> = Setting { range: 2, ..ORDER };
const THIRD_ORDER: Setting<usize> = Setting { default: 3, ..ORDER };
const HEUN: Setting<Solver> = Setting { default: Solver::Heun, ..SOLVER };
/// k-diffusion's stochastic solvers never lower their order.
const NEVER_LOWER: Setting<bool> = Setting { default: false, ..LOWER_FINAL };
/// The settings of multistep solvers of second order for the ordinary equation.
const SECOND: Declared = &[&ORDER, &SOLVER, &THIRD, &LOWER_FINAL];

/// In shorter runs the step before the last is of second order at most (diffusers' `lower_order_final`).
const SHORT_RUN: usize = 15;

/// The highest order of a step, of which there are so many from it to the end of a run, itself included: in short runs
/// the last step is of first order, and the one before of second at most.
pub(super) fn highest_order(schedule: &Schedule, steps_left: usize) -> usize {
    if schedule.asked_steps() < SHORT_RUN { steps_left } else { usize::MAX }
}

/// What the solver takes for a polynomial in `lambda = -ln sigma`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Equation {
    /// The clean latents: DPM-Solver++ (Lu et al. 2022, "DPM-Solver++", equation 9).
    Data,
    /// The noise: DPM-Solver (Lu et al. 2022, "DPM-Solver", equation 3.4).
    Noise,
}

impl Equation {
    fn multistep(self, settings: &Settings, schedule: &Schedule, len: usize) -> Box<dyn Sampler> {
        Box::new(Multistep::new(self, settings, schedule, len))
    }

    fn singlestep(self, settings: &Settings, schedule: &Schedule, len: usize) -> Box<dyn Sampler> {
        Box::new(Singlestep::new(self, settings, schedule, len))
    }

    /// Asks the model, and keeps what of its answer this equation is about. The last answer, to level 0, is where the
    /// run ends, whatever came before: then `x` is that, and this says so.
    fn ask(
        self,
        history: &mut History,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
    ) -> Result<bool, Error> {
        let answer = history.next();
        denoiser.denoise(x, step.from, answer)?;
        if step.to == 0.0 {
            x.copy_from_slice(answer);
            return Ok(true);
        }
        if self == Self::Noise {
            blend(answer, -1.0 / step.from, &[(1.0 / step.from, &*x)]);
        }
        history.keep(step.from);
        Ok(false)
    }

    /// The share of `x` that is kept from `from` to `to`, the weights of the polynomial's value and of its first and second
    /// derivative at `from` (times `h` and `h^2`, the second halved where [`Third::Published`] halves it), and of noise.
    ///
    /// With `h = ln(from / to)` and `H = (1 + eta) h` the weights for [`Equation::Data`] are
    /// `phi_1 = 1 - e^-H`, `phi_2 = (e^-H - 1) / H + 1` and `-phi_3 = 1/2 - phi_2 / H`
    /// (Lu et al. 2022, "DPM-Solver++", appendix A; its SDE form is section 4.5 with `eta` 1; k-diffusion's
    /// `sample_dpmpp_2m_sde` and `sample_dpmpp_3m_sde` for `eta` between).
    fn weights(self, from: f64, to: f64, eta: f64, solver: Solver) -> Weights {
        let h = (from / to).ln();
        match self {
            Self::Data => {
                let long = (1.0 + eta) * h;
                let value = -(-long).exp_m1();
                let slope = 1.0 - value / long;
                Weights {
                    keep: to / from * (-eta * h).exp(),
                    value,
                    first: if solver == Solver::Midpoint { value / 2.0 } else { slope },
                    slope,
                    curve: 0.5 - slope / long,
                    noise: to * (-(-2.0 * eta * h).exp_m1()).sqrt(),
                }
            }
            Self::Noise => {
                let times = 1.0 + eta;
                let value = times * (to - from);
                let slope = times * (to - (from - to) / h);
                Weights {
                    keep: 1.0,
                    value,
                    first: if solver == Solver::Midpoint { value / 2.0 } else { slope },
                    slope,
                    curve: to / 2.0 - ((from - to) / h - to) / h,
                    noise: eta * (from * from - to * to).sqrt(),
                }
            }
        }
    }
}

/// What a step is made of.
struct Weights {
    keep: f64,
    value: f64,
    /// Of the first derivative in a step of second order.
    first: f64,
    /// Of the first derivative in a step of third order.
    slope: f64,
    /// Of the second derivative.
    curve: f64,
    noise: f64,
}

/// DPM-Solver and DPM-Solver++ of the evaluations before this one (Lu et al. 2022, "DPM-Solver++", algorithm 2).
///
/// The step to 0, where `lambda` ends, is of first order. Third order is as published, whose second derivative has
/// half of its weight, which makes the method one of second order, in all programs that have it; or exact, which is
/// [`Third::Exact`]. diffusers' `sde-dpmsolver++` of third order has the sign of a half wrong in that weight; it is
/// right here and in k-diffusion.
pub(super) struct Multistep {
    equation: Equation,
    eta: f64,
    s_noise: f64,
    solver: Solver,
    third: Third,
    /// Per step, the highest order that it may have.
    orders: Vec<usize>,
    history: History,
    noise: Vec<f32>,
}

impl Multistep {
    /// Of the settings `order` (1 to [`MAX_ORDER`]), `solver`, `third`, `lower_final`, `eta` and `s_noise`. With
    /// [`Equation::Noise`] `eta` is 0 or 1.
    pub(super) fn new(equation: Equation, settings: &Settings, schedule: &Schedule, len: usize) -> Self {
        let eta = settings.get(&ETA);
        Self {
            equation,
            eta,
            s_noise: settings.get(&S_NOISE),
            solver: settings.get(&SOLVER),
            third: settings.get(&THIRD),
            orders: (0..schedule.steps().len())
                .map(|index| match settings.get(&LOWER_FINAL) {
                    true => highest_order(schedule, schedule.steps_from(index)),
                    false => usize::MAX,
                })
                .collect(),
            history: History::new(settings.get(&ORDER), len),
            noise: vec![0.0; if eta > 0.0 { len } else { 0 }],
        }
    }
}

impl Sampler for Multistep {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { index, from, to, .. } = step;
        let Self { equation, history, .. } = self;
        if equation.ask(history, x, step, denoiser)? {
            return Ok(());
        }

        let weights = equation.weights(from, to, self.eta, self.solver);
        let order = history.len().min(order_at(&self.orders, index));
        let h = (from / to).ln();
        // Divided differences over distances in `h`, from which the derivatives follow.
        let distance = |age: usize| (history.sigma(age + 1) / history.sigma(age)).ln() / h;
        let answers = match order {
            1 => [weights.value, 0.0, 0.0],
            2 => {
                let slope = weights.first / distance(0);
                [weights.value + slope, -slope, 0.0]
            }
            _ => {
                let (r0, r1) = (distance(0), distance(1));
                let curve = weights.curve * if self.third == Third::Exact { 2.0 } else { 1.0 };
                // d1 = d01 + r0 / (r0 + r1) (d01 - d12) and d2 = (d01 - d12) / (r0 + r1).
                let bend = (weights.slope * r0 + curve) / (r0 + r1);
                let (newer, older) = ((weights.slope + bend) / r0, -bend / r1);
                [weights.value + newer, older - newer, -older]
            }
        };
        let fresh = if self.eta > 0.0 { weights.noise * self.s_noise } else { 0.0 };
        if fresh > 0.0 {
            noise.fill_between(from, to, &mut self.noise);
        }
        let past = |age: usize| if age < order { history.values(age) } else { &[] };
        blend(
            x,
            weights.keep,
            &[(answers[0], past(0)), (answers[1], past(1)), (answers[2], past(2)), (fresh, &self.noise)],
        );
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.history.state(record)
    }
}

/// Singlestep DPM-Solver++ and DPM-Solver: steps in groups of up to `order`, each of which starts again from the
/// latents at the group's beginning (Lu et al. 2022, "DPM-Solver++", algorithm 1; "DPM-Solver", algorithms 1 and 2).
/// Every step asks the model once, so that a group of three asks as often as three steps of first order.
///
/// How steps are grouped is diffusers' `DPMSolverSinglestepScheduler.get_order_list`.
pub(super) struct Singlestep {
    equation: Equation,
    solver: Solver,
    /// Per step.
    orders: Vec<usize>,
    /// The latents at the beginning of a group.
    start: Vec<f32>,
    history: History,
}

impl Singlestep {
    /// Of the settings `order` (1 to [`MAX_ORDER`]) and `solver`.
    pub(super) fn new(equation: Equation, settings: &Settings, schedule: &Schedule, len: usize) -> Self {
        let (left, asked) = (schedule.steps_from(0), schedule.asked_steps());
        let order = settings.get(&ORDER);
        let ends_low = schedule.steps().last().is_some_and(|step| step.to > 0.0);
        Self {
            equation,
            solver: settings.get(&SOLVER),
            orders: orders(order, asked, ends_low)[asked - left..].to_vec(),
            start: vec![0.0; len],
            history: History::new(order, len),
        }
    }
}

/// The order of each of `steps` steps: groups of rising order, and the first order at the end.
/// A run that ends above 0 may end within a group.
fn orders(order: usize, steps: usize, ends_low: bool) -> Vec<usize> {
    let mut orders: Vec<usize> = (0..steps).map(|index| index % order + 1).collect();
    if order == 3 && steps.is_multiple_of(3) && !ends_low {
        // Not a whole group at the end, but one of second order and one step.
        orders[steps - 1] = 1;
    }
    if let Some(last) = orders.last_mut().filter(|_| !ends_low) {
        *last = 1;
    }
    orders
}

impl Sampler for Singlestep {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { index, to, .. } = step;
        let Self { equation, history, .. } = self;
        if equation.ask(history, x, step, denoiser)? {
            return Ok(());
        }
        // A run that starts within a group has fewer answers than the group's order asks for.
        let order = order_at(&self.orders, index).min(history.len());
        if order == 1 {
            self.start.copy_from_slice(x);
        }

        let begin = history.sigma(order - 1);
        let weights = equation.weights(begin, to, 0.0, self.solver);
        let h = (begin / to).ln();
        let distance = |age: usize| (begin / history.sigma(age)).ln() / h;
        let answers = match order {
            1 => [weights.value, 0.0, 0.0],
            2 => {
                let slope = weights.first / distance(0);
                [slope, weights.value - slope, 0.0]
            }
            _ => {
                let (r0, r1) = (distance(0), distance(1));
                let (d0, d1) = match self.solver {
                    Solver::Midpoint => (weights.slope, 0.0),
                    // d = (r0 d1 - r1 d0) / (r0 - r1) and its derivative 2 (d0 - d1) / (r0 - r1).
                    Solver::Heun => {
                        let bend = 2.0 * weights.curve;
                        ((bend - weights.slope * r1) / (r0 - r1), (weights.slope * r0 - bend) / (r0 - r1))
                    }
                };
                let (newest, middle) = (d0 / r0, d1 / r1);
                [newest, middle, weights.value - newest - middle]
            }
        };
        let past = |age: usize| if age < order { history.values(age) } else { &[] };
        let parts = [(answers[0], past(0)), (answers[1], past(1)), (answers[2], past(2))];
        blend(x, 0.0, &[(weights.keep, &self.start), parts[0], parts[1], parts[2]]);
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        record.f32s(&mut self.start)?;
        self.history.state(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// diffusers' lists, written out.
    #[test]
    fn groups_are_those_of_diffusers() {
        assert_eq!(orders(1, 3, false), [1, 1, 1]);
        assert_eq!(orders(2, 4, false), [1, 2, 1, 1]);
        assert_eq!(orders(2, 5, false), [1, 2, 1, 2, 1]);
        assert_eq!(orders(3, 6, false), [1, 2, 3, 1, 2, 1]);
        assert_eq!(orders(3, 7, false), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(orders(3, 8, false), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(orders(3, 1, false), [1]);
    }

    /// Against the integral of `e^(lambda - lambda_to)` times the polynomial, by many midpoints.
    #[test]
    fn weights_are_integrals() {
        const POINTS: usize = 20_000;
        for (from, to) in [(10.0, 4.0), (1.0, 0.9)] {
            let h = f64::ln(from / to);
            let integral = |degree: i32, growth: f64| -> f64 {
                let at = |k: usize| (k as f64 + 0.5) / POINTS as f64;
                let part = |t: f64| (growth * (t - 1.0) * h).exp() * t.powi(degree) * h / POINTS as f64;
                (0..POINTS).map(|k| part(at(k))).sum()
            };
            let close = |actual: f64, expected: f64| {
                assert!((actual - expected).abs() < 1e-7, "{from} to {to}: {actual}, expected {expected}");
            };
            for eta in [0.0, 0.5, 1.0] {
                let weights = Equation::Data.weights(from, to, eta, Solver::Heun);
                let growth = 1.0 + eta;
                close(weights.value, growth * integral(0, growth));
                close(weights.first, growth * integral(1, growth));
                close(2.0 * weights.curve, growth * integral(2, growth));
                let kept = (to / from).powf(growth);
                close(weights.keep, kept);
                close(weights.noise.powi(2), to * to * (1.0 - (to / from).powf(2.0 * eta)));
            }
            let weights = Equation::Noise.weights(from, to, 0.0, Solver::Heun);
            // The noise's weight falls as the level does.
            let integral = |degree: i32| integral(degree, -1.0);
            close(weights.value, -to * integral(0));
            close(weights.first, -to * integral(1));
            close(2.0 * weights.curve, -to * integral(2));
        }
    }
}
