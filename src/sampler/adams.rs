//! Linear multistep methods on the slope: LMS, PNDM in its PLMS form, and iPNDM.
//! It knows nothing of where the levels come from.

use super::about::About;
use super::arithmetic::{History, blend};
use super::setting::{self, Setting, Settings};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Grid, Step};
use crate::state::Record;

pub(super) const LMS: About = About {
    order: MAX_ORDER,
    is_slope: true,
    diffusers: "LMSDiscreteScheduler",
    a1111: "LMS",
    comfyui: "lms",
    sd_cpp: "lms",
    others: &["k_lms"],
    settings: &[&ORDER],
    ..About::new("lms", |settings, _, len| Box::new(Adams::new(Rule::Lms, settings, len)))
};

pub(super) const PNDM: About = About {
    order: 2,
    is_slope: true,
    diffusers: "PNDMScheduler",
    a1111: "PLMS",
    others: &["PNDM", "PLMS", "k_plms"],
    fixed: &[&ORDER],
    grid: Grid::Whole,
    ..About::new("pndm", |settings, _, len| Box::new(Adams::new(Rule::Plms, settings, len)))
};

pub(super) const IPNDM: About = About {
    order: 2,
    is_slope: true,
    diffusers: "IPNDMScheduler",
    comfyui: "ipndm",
    sd_cpp: "ipndm",
    settings: &[&ORDER],
    ..About::new("ipndm", |settings, _, len| Box::new(Adams::new(Rule::Ipndm, settings, len)))
};

/// The highest order of these methods.
const MAX_ORDER: usize = 4;
const ORDER: Setting<usize> = Setting { default: MAX_ORDER, range: MAX_ORDER, ..setting::ORDER };

/// Which method.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Weights for the levels as they are: the slopes' polynomial is integrated over the step (k-diffusion's `sample_lms`).
    Lms,
    /// Weights for evenly spaced steps (Liu et al. 2022, "Pseudo numerical methods", equation 12), whose first step asks
    /// twice, as Heun's does: `PLMS` of Katherine Crowson, diffusers' PNDM without Runge-Kutta steps.
    Plms,
    /// The same weights from one evaluation on (Zhang & Chen 2023, "DEIS", section 4, iPNDM), and to the clean latents
    /// themselves at the end, as ComfyUI's `sample_ipndm` has it.
    Ipndm,
}

/// An Adams-Bashforth method on the probability flow ODE `dx/dsigma = (x - D(x; sigma)) / sigma`, of the slopes of this
/// step and of up to three before it.
pub(super) struct Adams {
    rule: Rule,
    order: usize,
    /// Slopes, which are the noise that the model sees.
    slopes: History,
    denoised: Vec<f32>,
    /// Where the first step of `Rule::Plms` asks again.
    ahead: Vec<f32>,
}

impl Adams {
    /// Of the settings `order`, from 1 to [`MAX_ORDER`].
    pub(super) fn new(rule: Rule, settings: &Settings, len: usize) -> Self {
        let order = settings.get(&ORDER);
        let ahead = vec![0.0; if rule == Rule::Plms { len } else { 0 }];
        Self { rule, order, slopes: History::new(order, len), denoised: vec![0.0; len], ahead }
    }
}

impl Sampler for Adams {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { from, to, .. } = step;
        denoiser.denoise(x, from, &mut self.denoised)?;
        let is_first = self.slopes.len() == 0;
        let slope = self.slopes.next();
        blend(slope, 0.0, &[(1.0 / from, &*x), (-1.0 / from, &self.denoised)]);
        if self.rule == Rule::Plms && is_first && to > 0.0 {
            blend(&mut self.ahead, 0.0, &[(1.0, &*x), (to - from, slope)]);
            denoiser.denoise(&self.ahead, to, &mut self.denoised)?;
            let half = (to - from) / 2.0;
            // The slope ahead is not kept: the next step asks at that level itself.
            blend(x, 1.0, &[(half, slope), (half / to, &self.ahead), (-half / to, &self.denoised)]);
            self.slopes.keep(from);
            return Ok(());
        }
        self.slopes.keep(from);
        let order = if self.rule == Rule::Ipndm && to == 0.0 { 1 } else { self.slopes.len() };
        let weights = match self.rule {
            Rule::Lms => integrals(&self.slopes, order, from, to),
            Rule::Plms | Rule::Ipndm => EVEN[order - 1].map(|weight| weight * (to - from)),
        };
        let parts: [(f64, &[f32]); MAX_ORDER] = std::array::from_fn(|age| match weights[age] {
            0.0 => (0.0, &[][..]),
            weight => (weight, self.slopes.values(age)),
        });
        blend(x, 1.0, &parts[..self.order]);
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.slopes.state(record)
    }
}

/// The weights of Adams and Bashforth for evenly spaced steps of length 1, per order, the newest slope first.
const EVEN: [[f64; MAX_ORDER]; MAX_ORDER] = [
    [1.0, 0.0, 0.0, 0.0],
    [1.5, -0.5, 0.0, 0.0],
    [23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0, 0.0],
    [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// The integrals from `from` to `to` of the polynomials that are 1 at the level of one slope and 0 at those of the
/// others, exactly: Gauss and Legendre's two points integrate cubics.
fn integrals(slopes: &History, order: usize, from: f64, to: f64) -> [f64; MAX_ORDER] {
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let distance = half / 3f64.sqrt();
    let basis = |age: usize, at: f64| -> f64 {
        let own = slopes.sigma(age);
        let others = (0..order).filter(|other| *other != age).map(|other| slopes.sigma(other));
        others.map(|other| (at - other) / (own - other)).product()
    };
    std::array::from_fn(|age| match age < order {
        true => half * (basis(age, middle - distance) + basis(age, middle + distance)),
        false => 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(levels: &[f64]) -> History {
        let mut history = History::new(levels.len(), 0);
        levels.iter().rev().for_each(|level| history.keep(*level));
        history
    }

    /// A polynomial of one degree less than the order is integrated without error.
    #[test]
    fn weights_integrate_polynomials() {
        let levels = [4.0, 5.5, 6.0, 9.0];
        let slopes = at(&levels);
        for order in 1..=MAX_ORDER {
            let weights = integrals(&slopes, order, 4.0, 2.5);
            for degree in 0..order as i32 {
                let integral = |sigma: f64| sigma.powi(degree + 1) / f64::from(degree + 1);
                let sum: f64 = weights.iter().zip(levels).map(|(w, level)| w * level.powi(degree)).sum();
                assert!((sum - (integral(2.5) - integral(4.0))).abs() < 1e-10, "{order}, {degree}");
            }
        }
    }

    #[test]
    fn weights_of_even_steps_are_the_integrals() {
        let slopes = at(&[4.0, 5.0, 6.0, 7.0]);
        for order in 1..=MAX_ORDER {
            let exact = integrals(&slopes, order, 4.0, 3.0);
            for (even, exact) in EVEN[order - 1].iter().zip(exact) {
                assert!((-even - exact).abs() < 1e-12, "{order}");
            }
        }
    }
}
