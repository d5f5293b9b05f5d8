//! The solver of the extended reverse-time equation. It knows nothing of where the levels come from.

use super::about::About;
use super::arithmetic::{History, blend};
use super::setting::{self, ALL_ETA, S_NOISE, STEP_NOISE, Setting, Settings};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::Step;
use crate::state::Record;

pub(super) const ER_SDE: About = About {
    order: 0,
    is_stochastic: true,
    comfyui: "er_sde",
    sd_cpp: "er_sde",
    settings: &[&S_NOISE, &ORDER, &STEP_NOISE],
    fixed: &[&ALL_ETA],
    ..About::new("er-sde", |settings, _, len| Box::new(ErSde::new(settings, len)))
};

/// The highest order.
const MAX_ORDER: usize = 3;
const ORDER: Setting<usize> = Setting { default: MAX_ORDER, range: MAX_ORDER, ..setting::ORDER };
/// Points of the sums that stand for the paper's integrals; the authors' number.
const POINTS: usize = 200;

/// ER-SDE-Solver (Cui et al. 2023, "Elucidating the solution space of extended reverse-time SDE", algorithms 1 to 3). Its
/// noise at level `sigma` is scaled by `sigma (e^(sigma^0.3) + 10)` (their ER-SDE 5); ComfyUI's `sample_er_sde`.
/// Its integrals are the authors' left Riemann sums.
pub(super) struct ErSde {
    order: usize,
    s_noise: f64,
    history: History,
    noise: Vec<f32>,
}

impl ErSde {
    /// Of the settings `order` (1 to [`MAX_ORDER`]) and `s_noise`.
    pub(super) fn new(settings: &Settings, len: usize) -> Self {
        let order = settings.get(&ORDER);
        let s_noise = settings.get(&S_NOISE);
        Self { order, s_noise, history: History::new(order, len), noise: vec![0.0; len] }
    }
}

/// The paper's `phi`.
fn scale(sigma: f64) -> f64 {
    sigma * (sigma.powf(0.3).exp() + 10.0)
}

impl Sampler for ErSde {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { from, to, .. } = step;
        let answer = self.history.next();
        denoiser.denoise(x, from, answer)?;
        if to == 0.0 {
            x.copy_from_slice(answer);
            return Ok(());
        }
        self.history.keep(from);
        let history = &self.history;
        let order = self.order.min(history.len());

        let keep = scale(to) / scale(from);
        let mut answers = [1.0 - keep, 0.0, 0.0];
        if order >= 2 {
            let width = (from - to) / POINTS as f64;
            let at = |k: usize| to + k as f64 * width;
            let sum = |value: &dyn Fn(f64) -> f64| -> f64 {
                width * (0..POINTS).map(|k| value(at(k)) / scale(at(k))).sum::<f64>()
            };
            // Of the clean latents' slope over the level, by the last answer.
            let slope = to - from + scale(to) * sum(&|_| 1.0);
            let newer = slope / (from - history.sigma(1));
            answers[0] += newer;
            answers[1] -= newer;
            if order == 3 {
                // Of the slope's own slope, by the last two: u = 2 (slope - last slope) / (from - the level before the last).
                let bend = (to - from).powi(2) / 2.0 + scale(to) * sum(&|at| at - from);
                let bend = 2.0 * bend / (from - history.sigma(2));
                let newer = bend / (from - history.sigma(1));
                let older = bend / (history.sigma(1) - history.sigma(2));
                answers[0] += newer;
                answers[1] -= newer + older;
                answers[2] += older;
            }
        }
        let fresh = self.s_noise * (to * to - (from * keep).powi(2)).max(0.0).sqrt();
        if fresh > 0.0 {
            noise.fill_between(from, to, &mut self.noise);
        }
        let past = |age: usize| if age < order { history.values(age) } else { &[] };
        blend(
            x,
            keep,
            &[(answers[0], past(0)), (answers[1], past(1)), (answers[2], past(2)), (fresh, &self.noise)],
        );
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.history.state(record)
    }
}
