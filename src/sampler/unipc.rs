//! The unified predictor-corrector, UniPC. It knows nothing of where the levels come from.

use super::about::About;
use super::arithmetic::{History, blend, solve};
use super::setting::{self, Choice, LOWER_FINAL, Setting, Settings};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Grid, Schedule, Step};
use crate::state::Record;

pub(super) const UNIPC: About = About {
    order: 3,
    diffusers: "UniPCMultistepScheduler",
    a1111: "UniPC",
    comfyui: "uni_pc_bh2",
    others: &["k_unipc", "unipc_multistep"],
    // These programs' defaults (A1111's settings, ComfyUI's `sample_unipc`); diffusers' are this row's.
    presets: &[
        ("UniPC", "order=3,solver=bh1"),
        ("uni_pc", "order=3,solver=bh1"),
        ("uni_pc_bh2", "order=3,solver=bh2"),
    ],
    settings: &[&ORDER, &BH, &LOWER_FINAL],
    grid: Grid::WholeAboveLast,
    ..About::new("unipc", |settings, schedule, len| Box::new(UniPc::new(settings, schedule, len)))
};

/// The highest order.
const MAX_ORDER: usize = 3;
const ORDER: Setting<usize> = Setting { default: 2, range: MAX_ORDER, ..setting::ORDER };

/// The form of a step of UniPC.
pub const BH: Setting<Bh> = Setting {
    name: "solver",
    default: Bh::Bh2,
    range: (),
    help: "function B(h) of the update (Zhao et al. 2023, section 3.4)",
};

/// The function `B(h)` of UniPC (Zhao et al. 2023, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bh {
    /// `B(h) = h`.
    Bh1,
    /// `B(h) = e^h - 1`.
    Bh2,
}

impl Choice for Bh {
    const WORDS: &'static [(&'static str, Self)] = &[("bh1", Self::Bh1), ("bh2", Self::Bh2)];
}

/// The unified predictor-corrector of Zhao et al. 2023 ("UniPC", algorithms 1 and 2) for data prediction: every answer
/// of the model first corrects the step that led to it, then predicts the next one. [`Bh`] is a
/// choice that they leave. The order falls towards the end (diffusers' `lower_order_final`), and the step to 0 is of first
/// order.
pub(super) struct UniPc {
    bh: Bh,
    order: usize,
    lower_final: bool,
    steps: usize,
    history: History,
    /// The latents that the last step started from, corrected, and the order that it had.
    last: Vec<f32>,
    last_order: usize,
    answer: Vec<f32>,
}

impl UniPc {
    /// Of the settings `order` (1 to [`MAX_ORDER`]), `bh` and `lower_final`.
    pub(super) fn new(settings: &Settings, schedule: &Schedule, len: usize) -> Self {
        let order = settings.get(&ORDER);
        Self {
            bh: settings.get(&BH),
            order,
            lower_final: settings.get(&LOWER_FINAL),
            steps: schedule.steps_from(0),
            history: History::new(order, len),
            last: vec![0.0; len],
            last_order: 0,
            answer: vec![0.0; len],
        }
    }

    /// Of a step from the newest answer of the history to `to`: the share of the latents that is kept, the weights of the
    /// history's answers, and that of the answer at `to` itself, where it is known.
    fn weights(&self, to: f64, order: usize, corrects: bool) -> (f64, [f64; MAX_ORDER], f64) {
        let from = self.history.sigma(0);
        let ratio = to / from;
        let h = -(from / to).ln();
        // h phi_1, then (phi_1 - 1) / h and so on, in the paper's symbols for data prediction, where h is negative.
        let phi_1 = h.exp_m1();
        let b_h = if self.bh == Bh::Bh1 { h } else { phi_1 };
        // Distances of the earlier answers in `h`, and of the one at `to`.
        let mut nodes = [1.0; MAX_ORDER];
        for age in 1..order {
            nodes[age - 1] = (self.history.sigma(age) / from).ln() / h;
        }
        let (mut phi, mut factorial) = (phi_1 / h - 1.0, 1.0);
        let (mut matrix, mut right) = ([[0.0; MAX_ORDER]; MAX_ORDER], [0.0; MAX_ORDER]);
        for row in 0..order {
            matrix[row] = nodes.map(|node| node.powi(row as i32));
            right[row] = phi * factorial / b_h;
            factorial *= row as f64 + 2.0;
            phi = phi / h - 1.0 / factorial;
        }
        let mut rho = match (corrects, order) {
            // The paper's choices where the order leaves one (section 3.4).
            (true, 1) | (false, 2) => [0.5, 0.0, 0.0],
            (true, _) => solve(matrix, right, order),
            (false, _) => solve(matrix, right, order - 1),
        };
        let ahead = if corrects { std::mem::take(&mut rho[order - 1]) } else { 0.0 };
        let mut weights = [0.0; MAX_ORDER];
        weights[0] = -phi_1 + b_h * ahead;
        for age in 1..order {
            let weight = -b_h * rho[age - 1] / nodes[age - 1];
            weights[age] = weight;
            weights[0] -= weight;
        }
        (ratio, weights, -b_h * ahead)
    }
}

impl Sampler for UniPc {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { index, from, to, .. } = step;
        denoiser.denoise(x, from, &mut self.answer)?;
        if self.history.len() > 0 {
            let (keep, weights, ahead) = self.weights(from, self.last_order, true);
            let past = |age: usize| if age < self.last_order { self.history.values(age) } else { &[] };
            let parts = [(weights[0], past(0)), (weights[1], past(1)), (weights[2], past(2))];
            blend(x, 0.0, &[(keep, &self.last), parts[0], parts[1], parts[2], (ahead, &self.answer)]);
        }
        self.last.copy_from_slice(x);
        self.history.next().copy_from_slice(&self.answer);
        self.history.keep(from);
        if to == 0.0 {
            x.copy_from_slice(&self.answer);
            return Ok(());
        }
        let highest = if self.lower_final { self.steps - index } else { usize::MAX };
        let order = self.order.min(self.history.len()).min(highest);
        let (keep, weights, _) = self.weights(to, order, false);
        let past = |age: usize| if age < order { self.history.values(age) } else { &[] };
        blend(x, keep, &[(weights[0], past(0)), (weights[1], past(1)), (weights[2], past(2))]);
        self.last_order = order;
        Ok(())
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.history.state(record)?;
        record.count(&mut self.last_order, self.history.len())?;
        record.f32s(&mut self.last)
    }
}
