//! The diffusion exponential integrator sampler, DEIS. It knows nothing of where the levels come from.

use super::about::About;
use super::arithmetic::{History, blend, order_at};
use super::setting::{self, LOWER_FINAL, Setting, Settings};
use super::{Denoise, Sampler, dpm};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Grid, Schedule, Step};
use crate::state::Record;

pub(super) const DEIS: About = About {
    order: 2,
    diffusers: "DEISMultistepScheduler",
    comfyui: "deis",
    settings: &[&ORDER, &LOWER_FINAL],
    grid: Grid::WholeAboveLast,
    ..About::new("deis", |settings, schedule, len| Box::new(Deis::new(settings, schedule, len)))
};

/// The highest order.
const MAX_ORDER: usize = 3;
const ORDER: Setting<usize> = Setting { default: 2, range: MAX_ORDER, ..setting::ORDER };

/// The diffusion exponential integrator sampler (Zhang & Chen 2023, equation 15) with polynomials in `ln rho` (their
/// log-rho Adams-Bashforth; diffusers' `DEISMultistepScheduler`): the noise that the model sees, as a polynomial in
/// `ln sigma` through this step's and the last ones', is integrated over the step. Their `rho` is `sigma` here.
///
/// The step to 0, where the logarithm ends, is of first order.
pub(super) struct Deis {
    /// Per step, the highest order that it may have.
    orders: Vec<usize>,
    slopes: History,
}

impl Deis {
    /// Of the settings `order`, from 1 to [`MAX_ORDER`], and `lower_final`.
    pub(super) fn new(settings: &Settings, schedule: &Schedule, len: usize) -> Self {
        let order = |index| match settings.get(&LOWER_FINAL) {
            true => dpm::highest_order(schedule, schedule.steps_from(index)),
            false => usize::MAX,
        };
        let orders = (0..schedule.steps().len()).map(order).collect();
        Self { orders, slopes: History::new(settings.get(&ORDER), len) }
    }
}

impl Sampler for Deis {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { index, from, to, .. } = step;
        let Self { orders, slopes } = self;
        let slope = slopes.next();
        denoiser.denoise(x, from, slope)?;
        if to == 0.0 {
            x.copy_from_slice(slope);
            return Ok(());
        }
        blend(slope, -1.0 / from, &[(1.0 / from, &*x)]);
        slopes.keep(from);
        let order = slopes.len().min(order_at(orders, index));
        let part = |age: usize| match age < order {
            true => (integral(slopes, order, age, from, to), slopes.values(age)),
            false => (0.0, &[][..]),
        };
        blend(x, 1.0, &[part(0), part(1), part(2)]);
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.slopes.state(record)
    }
}

/// The integral from `from` to `to` of the polynomial in `ln sigma` that is 1 at the level of one slope and 0 at those of
/// the others.
fn integral(slopes: &History, order: usize, age: usize, from: f64, to: f64) -> f64 {
    // In l = ln(sigma / from), so that the antiderivatives of 1, l and l^2 over sigma lose no digits.
    let place = |age: usize| (slopes.sigma(age) / from).ln();
    let l = (to / from).ln();
    let moments = [to - from, to * (l - 1.0) + from, to * (l * l - 2.0 * l + 2.0) - 2.0 * from];
    let own = place(age);
    let mut others = (0..order).filter(|other| *other != age).map(place);
    match (others.next(), others.next()) {
        (Some(a), Some(b)) => {
            (moments[2] - (a + b) * moments[1] + a * b * moments[0]) / ((own - a) * (own - b))
        }
        (Some(a), None) => (moments[1] - a * moments[0]) / (own - a),
        _ => moments[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A polynomial in the logarithm of one degree less than the order is integrated without error.
    #[test]
    fn weights_integrate_polynomials_in_the_logarithm() {
        const POINTS: usize = 20_000;
        let levels = [4.0f64, 5.5, 9.0];
        let mut slopes = History::new(3, 0);
        levels.iter().rev().for_each(|level| slopes.keep(*level));
        let (from, to) = (4.0f64, 2.5f64);
        for order in 1..=MAX_ORDER {
            for degree in 0..order as i32 {
                let sum: f64 = (0..order)
                    .map(|age| integral(&slopes, order, age, from, to) * levels[age].ln().powi(degree))
                    .sum();
                let width = (to - from) / POINTS as f64;
                let at = |k: usize| from + (k as f64 + 0.5) * width;
                let exact: f64 = (0..POINTS).map(|k| at(k).ln().powi(degree) * width).sum();
                assert!((sum - exact).abs() < 1e-7, "{order}, {degree}: {sum}, expected {exact}");
            }
        }
    }
}
